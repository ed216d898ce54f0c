"""dump.hyperfs: what it says of an image is true, and safe to print."""

import json
import os
import re
import resource
import signal
import stat
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest
from conftest import run

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from weights import read_tensors  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"


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


def write_tensors(path, names):
    """A safetensors file with one BF16 vector of 16 elements for each name."""
    header = {name: {"dtype": "BF16", "shape": [16], "data_offsets": [32 * i, 32 * i + 32]}
              for i, name in enumerate(names)}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + os.urandom(32 * len(names)))


def titles(svg):
    return [title.text for title in xml.fromstring(svg).iter(f"{SVG}title")]


def test_plot_shows_every_tensor(tools, demo_model, image_of, tmp_path):
    image = image_of(demo_model, "--quality", "small")
    assert run([tools.dump, f"--plot={tmp_path / 'p.svg'}", image]).stdout == ""
    shown = dict(title.split(": ") for title in titles((tmp_path / "p.svg").read_text()))
    tensors = dump(tools, "--tensors", image)["tensors"]
    assert set(shown) == {t["name"] for t in tensors}
    for t in tensors:
        if t["code"] == "trajectory":
            assert shown[t["name"]].endswith(f", {t['sqnr_db']:.2f} dB")
        else:
            assert shown[t["name"]].endswith(", exact")
    assert [path.name for path in tmp_path.iterdir()] == ["p.svg"]
    assert run([tools.dump, "--plot=-", image]).stdout == (tmp_path / "p.svg").read_text()


def test_plot_sorts_layers_by_number_and_shares_columns(tools, image_of, tmp_path):
    source = tmp_path / "many.safetensors"
    write_tensors(source, sorted(f"model.layers.{i}.w" for i in range(3000)))
    shown = titles(run([tools.dump, "--plot=-", image_of(source)]).stdout)
    assert len(shown) == 2000
    layers = [int(re.search(r"layers\.(\d+)\.", title)[1]) for title in shown]
    assert layers == sorted(layers)
    covered = sum(1 + int((re.search(r"and (\d+) after", t) or [0, 0])[1]) for t in shown)
    assert covered == 3000


def test_plot_of_hostile_names_is_well_formed(tools, image_of, tmp_path):
    source = tmp_path / "x.safetensors"
    names = ["<script>alert(1)</script>&\"'", "\ufffe\uffff", "\x1b]0;t\x07\n", "]]>", "a" * 5000,
             "", "0", "." * 9, "layers.99999999999999999999999.w", "\u202e\U0001f600"]
    write_tensors(source, names)
    shown = titles(run([tools.dump, "--plot=-", image_of(source)]).stdout)
    assert len(shown) == len(names)
    assert any(title.startswith(names[0] + ": ") for title in shown)
    assert any(title.startswith("??: ") for title in shown)


def test_plot_of_an_image_without_tensors(tools, image_of, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    assert titles(run([tools.dump, "--plot=-", image_of(source)]).stdout) == []


def test_plot_never_overwrites_the_image(tools, demo_model, image_of, tmp_path):
    image = tmp_path / "i.hyperfs"
    image.write_bytes(image_of(demo_model, "--quality", "small").read_bytes())
    before = image.read_bytes()
    (tmp_path / "symlink").symlink_to(image)
    os.link(image, tmp_path / "link")
    for target in image, tmp_path / "symlink", tmp_path / "link":
        done = run([tools.dump, f"--plot={target}", image], check=False)
        assert done.returncode == 1 and "is the image itself" in done.stderr
        assert image.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


def limit_files():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def test_plot_that_cannot_be_written_leaves_the_old_one(tools, demo_model, image_of, tmp_path):
    image, picture = image_of(demo_model, "--quality", "small"), tmp_path / "p.svg"
    picture.write_text("old")
    for target in picture, "/dev/full", tmp_path, tmp_path / "no" / "p.svg":
        options = {"preexec_fn": limit_files} if target == picture else {}
        done = run([tools.dump, f"--plot={target}", image], check=False, **options)
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert str(target) in done.stderr and "cannot be written" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["p.svg"]
    assert picture.read_text() == "old"
    picture.chmod(0o640)
    (tmp_path / "symlink").symlink_to(picture)
    run([tools.dump, f"--plot={tmp_path / 'symlink'}", image])
    assert titles(picture.read_text()) and (tmp_path / "symlink").is_symlink()
    assert stat.S_IMODE(picture.stat().st_mode) == 0o640


def test_plot_on_stdout_goes_with_no_list(tools, demo_model, image_of):
    image = image_of(demo_model, "--quality", "small")
    for option in "--json", "--files", "--tensors":
        done = run([tools.dump, "--plot=-", option, image], check=False)
        assert done.returncode == 2 and done.stdout == "" and "--plot=-" in done.stderr
    assert run([tools.dump, "--plot"], check=False).returncode == 2
