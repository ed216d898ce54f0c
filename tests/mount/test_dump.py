"""dump.hyperfs: what it says of an image is true, and safe to print."""

import json
import os
import stat
import sys
from pathlib import Path

import pytest
from conftest import run

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from weights import read_tensors  # noqa: E402


def dump(tools, *args):
    return json.loads(run([tools.dump, "--json", *args]).stdout)


def source_files(root):
    return [p for p in root.rglob("*") if p.is_file() and not p.is_symlink()]


def test_summary_adds_up(tools, demo_model, image_of):
    image = image_of(demo_model, "--quality", "23")
    document = dump(tools, image)
    assert document["image_bytes"] == image.stat().st_size
    assert document["regular_files"] == len(source_files(demo_model))
    assert document["content_bytes"] == sum(p.stat().st_size for p in source_files(demo_model))
    assert document["ratio"] == pytest.approx(document["content_bytes"] / document["image_bytes"])
    tensors = read_tensors(demo_model / "model.safetensors")
    assert document["tensor_count"] == len(tensors)
    assert document["lossy_tensors"] == len([t for t in tensors if t.eligible])
    assert document["lossy_weights"] == sum(t.elements for t in tensors if t.eligible)
    assert 3 < document["bits_a_weight"] <= 4
    assert 22.9 <= document["sqnr_worst_db"] <= document["sqnr_median_db"] <= 23.2
    text = run([tools.dump, image]).stdout
    assert f"{document['sqnr_worst_db']:.2f}" in text and document["worst_tensor"] in text
    assert f"{document['bits_a_weight']:.2f}" in text


def test_summary_of_a_lossless_image(tools, demo_model, image_of):
    image = image_of(demo_model, "--lossless")
    document = dump(tools, image)
    assert document["lossy_tensors"] == 0
    assert document["bits_a_weight"] is None and document["sqnr_worst_db"] is None
    assert "every bit is kept" in run([tools.dump, image]).stdout


def test_files_are_those_of_the_source(tools, demo_model, image_of):
    image = image_of(demo_model, "--quality", "small")
    listed = {f["path"]: f for f in dump(tools, "--files", image)["files"]}
    assert set(listed) == {"", *(str(p.relative_to(demo_model)) for p in demo_model.rglob("*"))}
    for path, entry in listed.items():
        st = (demo_model / path).lstat()
        assert entry["mode"] == stat.S_IMODE(st.st_mode)
        assert (entry["uid"], entry["gid"]) == (st.st_uid, st.st_gid)
        assert entry["mtime"] * 10**9 + entry["mtime_nsec"] == st.st_mtime_ns
        if stat.S_ISREG(st.st_mode):
            assert entry["size"] == st.st_size
            assert entry["stored"] <= st.st_size + 64
    assert sum(f.get("stored", 0) for f in listed.values()) == dump(tools, image)["data_bytes"]


def test_tensors_are_those_of_the_source(tools, demo_model, image_of):
    image = image_of(demo_model, "--quality", "small")
    listed = {t["name"]: t for t in dump(tools, "--tensors", image)["tensors"]}
    tensors = read_tensors(demo_model / "model.safetensors")
    assert set(listed) == {t.name for t in tensors}
    for t in tensors:
        entry = listed[t.name]
        assert (entry["dtype"], tuple(entry["shape"])) == (t.dtype, t.shape)
        assert entry["file"] == "model.safetensors"
        assert (entry["code"] == "trajectory") == t.eligible
        assert (entry["sqnr_db"] is not None) == t.eligible
        assert entry["bits"] == pytest.approx(8 * entry["stored"] / t.elements)


def test_tables_align_and_fit(tools, demo_model, image_of):
    image = image_of(demo_model, "--quality", "small")
    for option, last in ("--files", "name"), ("--tensors", "tensor"):
        lines = run([tools.dump, option, image]).stdout.splitlines()
        header = next(line for line in lines if line.endswith(last))
        column = header.rindex(last)
        body = lines[lines.index(header) + 1:]
        assert body
        for line in body:
            assert line[column - 1] == " " and line[column] != " ", line
            assert column <= 80


def test_hostile_names_stay_harmless(tools, image_of, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    name = b"\x1b]0;title\x07\xff\r\n\xc2\x9b31m"
    with open(os.fsencode(source) + b"/" + name, "wb") as f:
        f.write(b"x")
    image = image_of(source, "--lossless")
    text = run([tools.dump, "--files", image], text=False, errors=None).stdout
    assert not [byte for byte in text if byte < 0x20 and byte != 0x0A]
    assert b"\xc2\x9b" not in text and b"\xff" not in text
    assert len(text.splitlines()) == 3
    document = json.loads(run([tools.dump, "--json", "--files", image]).stdout)
    assert os.fsencode(document["files"][1]["path"]) == name


def test_what_is_no_image_is_refused(tools, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"no image" * 100)
    for args in [path], [tmp_path / "missing"], ["--json", path]:
        done = run([tools.dump, *args], check=False)
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr.count("\n") == 1 and done.stderr.startswith("dump.hyperfs: ")


def test_output_that_cannot_be_written_is_an_error(tools, demo_model, image_of):
    image = image_of(demo_model, "--lossless")
    with open("/dev/full", "w") as full:
        done = run([tools.dump, image], check=False, capture_output=False, stdout=full)
    assert done.returncode == 1
