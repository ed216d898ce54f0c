"""mkhyperfs: what it takes, what it refuses, and that the mount shows the tree that went in."""

import json
import math
import os
import random
import signal
import socket
import stat
import struct
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import mounted, run
from weights import header, read_tensors, sqnr_db, values, write_model

NOBODY = 65534


def gaussian(count, seed=0, kind="<f4"):
    return np.random.default_rng(seed).normal(0, 0.02, count).astype(kind)


def bf16(floats):
    return (np.asarray(floats, "<f4").view("<u4") >> 16).astype("<u2")


def small_model(path, seed=0):
    write_model(path, {"a.weight": ("F32", [128, 128], gaussian(1 << 14, seed).tobytes())})


def refused(tools, *args, status=1, **kw):
    """Runs mkhyperfs, which has to fail with one sentence; returns that."""
    done = run([tools.mkhyperfs, *args], check=False, **kw)
    assert done.returncode == status, done.stdout + done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == (2 if status == 2 else 1), done.stderr
    assert lines[0].startswith("mkhyperfs: ")
    return lines[0]


def summary(tools, *args):
    return json.loads(run([tools.mkhyperfs, "--json", *args]).stdout)


def tensors_of(tools, image):
    """name -> record, for an image of one safetensors file"""
    about = json.loads(run([tools.dump, "--json", "--tensors", image]).stdout)
    return {t["name"]: t for t in about["tensors"]}


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.mkdir()
    return path


@pytest.fixture
def image(tmp_path):
    return tmp_path / "out.hyperfs"


# ---- the tree ----

def test_tree_comes_back(source, image, tools):
    small_model(source / "model.safetensors")
    (source / "empty").touch()
    (source / "empty directory").mkdir(mode=0o2751)
    deep = source / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (deep / "text").write_bytes(random.Random(1).randbytes(300_000))
    (deep / "text").chmod(0o4750)
    os.link(deep / "text", source / "z hard")
    (source / "a" / "up").symlink_to("../z hard")
    odd = os.fsencode(source) + b"/\xff\n\x1b[31m"
    os.close(os.open(odd, os.O_CREAT | os.O_WRONLY))
    if os.geteuid() == 0:
        os.chown(source / "empty", 1234, 5678)
    for i, path in enumerate([source, *source.rglob("*")]):
        os.utime(path, ns=(0, 1_600_000_000_123_456_789 + i), follow_symlinks=False)

    def describe(root):
        found = {}
        for folder, folders, files in os.walk(os.fsencode(root)):
            for name in [b".", *folders, *files]:
                path = os.path.join(folder, name)
                s = os.lstat(path)
                links = s.st_nlink if stat.S_ISREG(s.st_mode) else None
                data = None
                if stat.S_ISREG(s.st_mode):
                    data = open(path, "rb").read()
                elif stat.S_ISLNK(s.st_mode):
                    data = os.readlink(path)
                size = None if stat.S_ISDIR(s.st_mode) else s.st_size
                found[os.path.relpath(path, os.fsencode(root))] = (
                    s.st_mode, s.st_uid, s.st_gid, size, s.st_mtime_ns, links, data)
        return found

    run([tools.mkhyperfs, "--lossless", source, image])
    with mounted(image) as mnt:
        assert describe(mnt) == describe(source)


def test_one_file_as_source(tmp_path, image, tools):
    """Its name in the image is the one it was called by, also where that is a link to a blob."""
    blob = tmp_path / "0123abcd"
    small_model(blob)
    (tmp_path / "model.safetensors").symlink_to("0123abcd")
    run([tools.mkhyperfs, "model.safetensors", image, "--lossless"], cwd=tmp_path)
    with mounted(image) as mnt:
        assert [p.name for p in mnt.iterdir()] == ["model.safetensors"]
        assert (mnt / "model.safetensors").read_bytes() == blob.read_bytes()


def test_order_of_creation_does_not_matter(tmp_path, tools):
    images = []
    names = [f"file {i}" for i in range(40)]
    for seed in range(2):
        source = tmp_path / f"source {seed}" / "tree"
        source.mkdir(parents=True)
        random.Random(seed).shuffle(names)
        for name in names:
            (source / name).write_text(name)
        images.append(tmp_path / f"{seed}.hyperfs")
        run([tools.mkhyperfs, "--mtime=0", source, images[-1]])
    assert images[0].read_bytes() == images[1].read_bytes()


# ---- links ----

def cache(root):
    """What a Hugging Face cache holds of a model."""
    blobs, snapshot = root / "blobs", root / "snapshots" / "rev"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "c0").write_text("{}")
    small_model(blobs / "77")
    (snapshot / "config.json").symlink_to("../../blobs/c0")
    (snapshot / "model.safetensors").symlink_to("../../blobs/77")
    (snapshot / "again.safetensors").symlink_to("../../blobs/77")
    return blobs, snapshot


def test_links_that_leave_the_source_are_followed(tmp_path, image, tools):
    blobs, snapshot = cache(tmp_path / "models--x")
    told = summary(tools, snapshot, image, "--lossless")
    assert told["files"] == 2
    assert told["source_bytes"] == sum(p.stat().st_size for p in blobs.iterdir())
    with mounted(image) as mnt:
        for name in ("model.safetensors", "again.safetensors"):
            s = (mnt / name).lstat()
            assert stat.S_ISREG(s.st_mode) and s.st_nlink == 2
            assert (mnt / name).read_bytes() == (blobs / "77").read_bytes()
        assert (mnt / "config.json").read_text() == "{}"


def test_a_whole_cache_keeps_its_links_and_still_knows_its_weights(tmp_path, image, tools):
    blobs, _ = cache(tmp_path / "models--x")
    told = summary(tools, tmp_path / "models--x", image)
    assert told["lossy_tensors"] == 1
    with mounted(image) as mnt:
        link = mnt / "snapshots" / "rev" / "model.safetensors"
        assert os.readlink(link) == "../../blobs/77"
        assert link.stat().st_size == (blobs / "77").stat().st_size


def test_what_a_link_leads_to_in_the_mount(tmp_path, source, image, tools):
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "file").write_text("outside")
    (outside / "deep" / "file").write_text("deep")
    (outside / "inner").symlink_to("deep/file")
    (outside / "leaves").symlink_to("../source/inside")
    (source / "sub").mkdir()
    (source / "inside").write_text("inside")
    (source / "left out").write_text("left out")
    (source / "two of them").write_text("in the source")
    (tmp_path / "two of them").write_text("beside the source")
    links = {"relative": "inside", "sub/up": "../inside", "sub/self": ".", "sub/dots": ".././inside",
             "absolute": source / "inside", "sub/absolute": source / "inside",
             "absolute directory": source / "sub", "file outside": outside / "file",
             "directory": "../outside", "twice": "relative", "through": "directory/deep",
             "back": "directory/../source/inside", "excluded": "left out",
             "which": "directory/../two of them"}
    for name, target in links.items():
        (source / name).symlink_to(target)
    run([tools.mkhyperfs, source, image, "--exclude=left out"])
    with mounted(image) as mnt:
        kept = {name: os.readlink(mnt / name) for name in links if (mnt / name).is_symlink()}
        assert kept == {"relative": "inside", "sub/up": "../inside", "sub/self": ".",
                        "sub/dots": ".././inside", "absolute": "inside",
                        "sub/absolute": "../inside", "absolute directory": "sub",
                        "twice": "relative", "through": "directory/deep"}
        for name in links:
            if (source / name).is_file():
                assert (mnt / name).read_text() == (source / name).read_text(), name
        assert sorted(p.name for p in (mnt / "directory").iterdir()) == ["deep", "file", "inner",
                                                                         "leaves"]
        assert os.readlink(mnt / "directory" / "inner") == "deep/file"
        assert (mnt / "directory" / "leaves").read_text() == "inside"


@pytest.mark.parametrize("target", ["loop", "other", "nowhere", "../nowhere", "file/x"])
def test_links_that_lead_nowhere_are_refused(source, image, tools, target):
    (source / "file").touch()
    (source / "other").symlink_to("loop")
    (source / "loop").symlink_to(target)
    assert "source/loop: " in refused(tools, source, image)
    assert not image.exists()
    run([tools.mkhyperfs, source, image, "--exclude=loop", "--exclude=other"])


@pytest.mark.parametrize("target", ["..", "../outside"])
def test_links_to_a_directory_around_the_source_are_refused(tmp_path, source, tools, target):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "back").symlink_to("../source")
    (source / "link").symlink_to(target)
    assert "leads back" in refused(tools, source, "/tmp/hyperfs-test-not-written", "-f")


def test_equal_content_is_stored_once(source, image, tools):
    data = random.Random(2).randbytes(3_000_000)
    other = bytearray(data)
    other[1_500_000] ^= 1
    for name, content in {"1": data, "2": data, "3": other, "4": data}.items():
        (source / name).write_bytes(content)
    small_model(source / "a.safetensors")
    small_model(source / "b.safetensors")
    small_model(source / "b.bin")
    told = summary(tools, source, image)
    assert told["shared_files"] == 3
    assert told["image_bytes"] < 6_200_000
    with mounted(image) as mnt:
        for name, content in {"1": data, "2": data, "3": other, "4": data}.items():
            assert (mnt / name).read_bytes() == content
        assert (mnt / "b.bin").read_bytes() == (source / "b.bin").read_bytes()
        assert (mnt / "a.safetensors").read_bytes() == (mnt / "b.safetensors").read_bytes()
        assert (mnt / "a.safetensors").stat().st_ino != (mnt / "b.safetensors").stat().st_ino


def test_equal_files_that_are_to_be_treated_differently_are_not_shared(source, image, tools):
    for folder in ("plain", "quantised"):
        (source / folder).mkdir()
        small_model(source / folder / "model.safetensors")
    (source / "quantised" / "config.json").write_text('{"quantization_config": {}}')
    assert summary(tools, source, image)["lossy_tensors"] == 1
    with mounted(image) as mnt:
        original = (source / "plain" / "model.safetensors").read_bytes()
        assert (mnt / "quantised" / "model.safetensors").read_bytes() == original
        assert (mnt / "plain" / "model.safetensors").read_bytes() != original


# ---- special files, and what cannot be read ----

@pytest.mark.parametrize("kind", ["socket", "pipe", "device"])
def test_special_files(source, image, tools, kind):
    path = source / "special"
    (source / "file").write_text("file")
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(str(path))
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/null")
    sentence = refused(tools, source, image)
    assert "source/special: " in sentence and kind in sentence and "--skip-special" in sentence
    assert not image.exists()
    run([tools.mkhyperfs, source, image, "--skip-special"])
    with mounted(image) as mnt:
        assert [p.name for p in mnt.iterdir()] == ["file"]


@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_cannot_be_read_is_refused(tools, what):
    with tempfile.TemporaryDirectory(prefix="hyperfs-test-") as top:
        root = Path(top)
        root.chmod(0o777)
        source = root / "source"
        source.mkdir()
        locked = source / "locked"
        locked.touch() if what == "file" else locked.mkdir()
        locked.chmod(0)
        other = {"user": NOBODY, "group": NOBODY} if os.geteuid() == 0 else {}
        sentence = refused(tools, source, root / "image", **other)
        assert "source/locked: " in sentence and "Permission denied" in sentence
        assert [p.name for p in root.iterdir()] == ["source"]


def test_sources_that_are_none(tmp_path, image, tools):
    (tmp_path / "file.bin").touch()
    os.mkfifo(tmp_path / "pipe")
    for name, reason in {"missing": "No such file", "file.bin": ".safetensors file",
                         "pipe": ".safetensors file", "file.bin/": "Not a directory"}.items():
        assert reason in refused(tools, f"{tmp_path}/{name}", image)
    assert not image.exists()


# ---- the target ----

def test_a_target_that_exists(source, image, tools):
    (source / "file").touch()
    image.write_text("old")
    sentence = refused(tools, source, image)
    assert "exists" in sentence and "-f" in sentence
    assert image.read_text() == "old"
    run([tools.mkhyperfs, "-f", source, image])
    assert image.read_bytes()[:7] == b"hyperfs"


def test_a_target_that_is_a_directory_or_has_none(tmp_path, source, tools):
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    for name in ("directory", "missing/x.hyperfs", "link"):
        assert name.split("/")[0] in refused(tools, "-f", source, tmp_path / name)


@pytest.mark.parametrize("where", ["out.hyperfs", "sub/out.hyperfs", "../link/out.hyperfs",
                                   "sub/../out.hyperfs", "../beside/out.hyperfs"])
def test_a_target_within_the_source(tmp_path, source, tools, where):
    (source / "sub").mkdir()
    (tmp_path / "beside").mkdir()
    (tmp_path / "link").symlink_to("source")
    (source / "outside").symlink_to("../beside")
    assert "the image would lie" in refused(tools, source, f"{source}/{where}")
    assert not list(tmp_path.rglob("*hyperfs*"))


def test_a_target_that_is_the_source(tmp_path, tools):
    model = tmp_path / "model.safetensors"
    small_model(model)
    before = model.read_bytes()
    assert "is the image" in refused(tools, "-f", model, model)
    assert model.read_bytes() == before


# ---- damaged safetensors files ----

def entry(name="a", dtype="U8", shape=(4,), begin=0, end=4):
    return json.dumps({name: {"dtype": dtype, "shape": shape,
                              "data_offsets": [begin, end]}})[1:-1].encode()


BROKEN = {
    "empty": b"",
    "seven bytes": b"1234567",
    "length beyond the file": struct.pack("<Q", 100) + b"{}",
    "length above the limit": struct.pack("<Q", 100_000_001) + bytes(64),
    "length of all ones": b"\xff" * 16,
    "truncated header": header(b"{" + entry() + b"}")[:-10],
    "no JSON": header(b"hello, world"),
    "JSON of another kind": header(b"[1, 2, 3]"),
    "overlap": header(b"{" + entry() + b"," + entry("b", begin=2, end=6) + b"}") + bytes(6),
    "hole": header(b"{" + entry() + b"," + entry("b", begin=6, end=10) + b"}") + bytes(10),
    "trailing bytes": header(b"{" + entry() + b"}") + bytes(5),
    "truncated data": header(b"{" + entry() + b"}") + bytes(3),
    "unknown dtype": header(b"{" + entry(dtype="X7") + b"}") + bytes(4),
    "shape that overflows": header(b"{" + entry(shape=(2**40, 2**40)) + b"}") + bytes(4),
    "shape of another size": header(b"{" + entry(shape=(5,)) + b"}") + bytes(4),
    "negative shape": header(b"{" + entry(shape=(-4,)) + b"}") + bytes(4),
    "same name twice": header(b"{" + entry() + b"," + entry(begin=4, end=8) + b"}") + bytes(8),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_broken_safetensors(source, image, tools, damage):
    (source / "model.safetensors").write_bytes(BROKEN[damage])
    sentence = refused(tools, source, image)
    assert "source/model.safetensors: byte " in sentence and "--keep-broken" in sentence
    assert not image.exists()
    done = run([tools.mkhyperfs, source, image, "--keep-broken"])
    assert "model.safetensors: byte " in done.stderr
    with mounted(image) as mnt:
        assert (mnt / "model.safetensors").read_bytes() == BROKEN[damage]


def test_names_cannot_write_to_the_terminal(source, image, tools):
    bad = header(b"{" + entry("\x1b]0;x\x07", dtype="\x1b[31m") + b"}")
    (source / "\x1b[2J.safetensors").write_bytes(bad + bytes(4))
    sentence = refused(tools, source, image)
    assert "\x1b" not in sentence and "\x07" not in sentence and "\\x1b[2J" in sentence


# ---- unusual weights ----

def unusual():
    plain = gaussian(1 << 15, 5)
    nan = plain.copy()
    nan[[0, 77, 4097, -1]] = np.nan, np.inf, -np.inf, np.nan
    outlier = plain.copy()
    outlier[1001] = 1e30
    scales = np.repeat(np.float32(2.0) ** np.arange(-60, 60, dtype=np.float32), 400)
    return {
        "not finite": nan,
        "all not finite": np.full(1 << 13, np.nan, "<f4"),
        "zero": np.zeros(1 << 15, "<f4"),
        "one weight": np.eye(1, 1 << 13, 500, dtype="<f4"),
        "outlier": outlier,
        "constant": np.full(1 << 15, -0.37, "<f4"),
        "subnormal": (plain * np.float32(1e-38)).astype("<f4"),
        "smallest": (np.random.default_rng(1).integers(-3000, 3000, 1 << 15) * 1.4e-45).astype("<f4"),
        "largest": (plain.astype("<f8") * 1e39).clip(-3.4e38, 3.4e38).astype("<f4"),
        "scales": np.random.default_rng(2).normal(0, 1, scales.size).astype("<f4") * scales,
        "odd count": plain[:4097],
    }


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F64"])
@pytest.mark.parametrize("name", unusual())
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_unusual_weights(source, image, tools, name, dtype):
    """What is not finite comes back bit for bit; the rest as exact as the image says."""
    floats = unusual()[name].ravel()
    data = {"F32": lambda: floats, "BF16": lambda: bf16(floats),
            "F16": lambda: floats.astype("<f2"), "F64": lambda: floats.astype("<f8")}[dtype]()
    model = source / "model.safetensors"
    write_model(model, {"w": (dtype, [1, len(data)], data.tobytes())})
    run([tools.mkhyperfs, source, image, "--quality=24"])
    record = tensors_of(tools, image)["w"]
    with mounted(image) as mnt:
        copy = mnt / "model.safetensors"
        tensor, = read_tensors(model)
        before, after = values(model, tensor), values(copy, tensor)
        if record["code"] != "trajectory":
            assert model.read_bytes() == copy.read_bytes()
            return
    finite = np.isfinite(before)
    assert np.array_equal(before[~finite], after[~finite], equal_nan=True)
    before, after = before[finite], after[finite]
    assert np.max(np.abs(before - after)) <= record["max_error"] * (1 + 1e-6)
    assert record["sqnr_db"] >= 23.9
    # The SQNR is over what the code carries; exact weights, if any, can only make it better.
    assert sqnr_db(before, after) >= record["sqnr_db"] - 0.05


@pytest.mark.parametrize("db", [12, 35])
def test_a_tensor_whose_samples_mislead_is_coded_again(source, image, tools, db):
    """Four of its twelve blocks, those that the step is chosen by, are nearly zero."""
    blocks = [gaussian(1 << 17, i) * (1e-3 if i in (0, 3, 7, 11) else 1) for i in range(12)]
    spiky = np.random.default_rng(3).standard_t(2, 1 << 20).astype("<f4")
    write_model(source / "m.safetensors", {
        "uneven": ("BF16", [12, 1 << 17], bf16(np.concatenate(blocks)).tobytes()),
        "even": ("BF16", [64, 64], bf16(gaussian(4096)).tobytes()),
        "spiky": ("F32", [1024, 1024], spiky.tobytes())})
    other = image.with_name("other.hyperfs")
    done = run([tools.mkhyperfs, source, image, f"--quality={db}", "-j1", "-v"])
    assert "uneven: " in done.stderr and "coded again" in done.stderr
    run([tools.mkhyperfs, source, other, f"--quality={db}", "-j5"])
    assert image.read_bytes() == other.read_bytes()
    for name, record in tensors_of(tools, image).items():
        assert record["code"] != "trajectory" or db - 0.1 <= record["sqnr_db"] <= db + 0.2, name
    run([tools.fsck, "-q", f"--against={source}", image])


# ---- which tensors ----

def test_rules_and_policy(source, image, tools):
    weight = ("F32", [128, 128], gaussian(1 << 14).tobytes())
    packed = ("I32", [128, 256], np.random.default_rng(1).integers(0, 2**31, 1 << 15, "<i4").tobytes())
    write_model(source / "m.safetensors", {
        "a.weight": weight, "b.weight": weight, "c.weight": weight, "d.attn_mask": weight,
        "q.qweight": packed, "q.scales": weight, "norm": ("F32", [1 << 14], weight[2]),
        "small": ("F32", [8, 8], gaussian(64).tobytes())})
    done = run([tools.mkhyperfs, source, image, "--rule=?.weight=30", "--rule=b.*=lossless",
                "--rule=norm=20", "--rule=q.*=20", "--rule=nothing=20", "-v"])
    stated = {name: t["sqnr_db"] for name, t in tensors_of(tools, image).items()
              if t["code"] == "trajectory"}
    assert {name: round(db) for name, db in stated.items()} == \
        {"a.weight": 30, "c.weight": 30, "q.scales": 20}
    assert "--rule nothing=20 matches no tensor" in done.stderr
    assert "--rule norm=20 matches only tensors that are always kept exactly" in done.stderr
    assert "b.weight: kept exactly: --rule" in done.stderr
    assert "d.attn_mask: kept exactly: a mask" in done.stderr
    run([tools.mkhyperfs, "-f", source, image])
    assert tensors_of(tools, image)["q.scales"]["code"] == "planes"


def test_lossless_says_so(source, image, tools):
    small_model(source / "m.safetensors")
    assert "Every bit is kept" in run([tools.mkhyperfs, source, image, "--lossless"]).stdout
    lossy = run([tools.mkhyperfs, "-f", source, image]).stdout
    assert "with loss" in lossy and "checksums" in lossy and "Every bit" not in lossy


# ---- options ----

def test_exclude(source, image, tools):
    for path in ("a.bin", "sub/b.bin", "sub/keep", "original/deep/x", "keep.txt"):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text(path)
    done = run([tools.mkhyperfs, source, image, "--exclude=*.bin", "--exclude=original/",
                "--exclude=none"])
    assert "--exclude none matches nothing" in done.stderr
    with mounted(image) as mnt:
        assert sorted(str(p.relative_to(mnt)) for p in mnt.rglob("*")) == ["keep.txt", "sub",
                                                                           "sub/keep"]


def test_times(source, image, tools):
    """--mtime sets all, SOURCE_DATE_EPOCH takes away what is later."""
    for name, t in {"old": 1_000_000_000, "new": 1_700_000_000}.items():
        (source / name).touch()
        os.utime(source / name, ns=(0, t * 10**9 + 5))
    os.utime(source, (0, 1_700_000_000))

    def times(*options, **environment):
        run([tools.mkhyperfs, "-f", source, image, *options], env={**os.environ, **environment})
        with mounted(image) as mnt:
            return [p.stat().st_mtime_ns for p in (mnt, mnt / "old", mnt / "new")]

    assert times("--mtime=@123") == [123 * 10**9] * 3
    assert times("--mtime=-7", SOURCE_DATE_EPOCH="5") == [-7 * 10**9] * 3
    assert times(SOURCE_DATE_EPOCH="1500000000") == [1_500_000_000 * 10**9,
                                                     1_000_000_000 * 10**9 + 5,
                                                     1_500_000_000 * 10**9]


def test_dry_run_writes_nothing_and_guesses_well(demo_model, tmp_path, tools):
    guess = summary(tools, "-n", demo_model, tmp_path / "x.hyperfs")
    assert list(tmp_path.iterdir()) == []
    told = summary(tools, demo_model, tmp_path / "x.hyperfs")
    assert guess["dry_run"] and not told["dry_run"]
    assert told["image_bytes"] == (tmp_path / "x.hyperfs").stat().st_size
    assert abs(guess["image_bytes"] / told["image_bytes"] - 1) < 0.05
    assert guess["lossy_tensors"] == told["lossy_tensors"] > 0
    assert "would be stored with loss" in run([tools.mkhyperfs, "-n", demo_model]).stdout


def test_quiet_and_output_that_cannot_be_written(source, image, tools):
    small_model(source / "m.safetensors")
    done = run([tools.mkhyperfs, "-q", source, image])
    assert done.stdout == done.stderr == ""
    with open("/dev/full", "w") as full:
        done = run([tools.mkhyperfs, "-f", source, image], check=False, capture_output=False,
                   stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1 and "cannot be written" in done.stderr


@pytest.mark.parametrize("option", ["--quality=9.9", "--quality=41", "--quality=best", "--quality=nan",
                                    "--quality=", "--effort=11", "--effort=x", "-j0", "-j2000", "--isa=mmx",
                                    "--mtime=soon", "--rule=x", "--rule=x=50", "--rule==20",
                                    "--exclude=", "--lossless=yes", "--mtime"])
def test_bad_options(source, image, tools, option):
    (source / "file").touch()
    sentence = refused(tools, source, image, option, status=2)
    assert option.split("=")[0].rstrip("0123456789") in sentence
    assert not image.exists()


def test_options_that_contradict_each_other(source, image, tools):
    for options in (["--lossless", "--quality=high"], ["--lossless", "--rule=x=20"], ["-q", "-v"]):
        refused(tools, source, image, *options, status=2)


# ---- a source that changes ----

def change_while_read(tools, source, image, victim, change, written):
    """Stops mkhyperfs once it has written that much, changes a file, lets it go on."""
    process = subprocess.Popen([str(tools.mkhyperfs), str(source), str(image), "-j1"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not any(p.stat().st_size >= written for p in image.parent.glob(".*.hyperfs-tmp")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.0005)
        process.send_signal(signal.SIGSTOP)
        change(victim)
        process.send_signal(signal.SIGCONT)
        out, message = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 1, out + message
    assert victim.name in message and "while it was read" in message
    assert not image.exists() and not list(image.parent.glob(".*"))


def shrink(path):
    os.truncate(path, 100)


def grow(path):
    with open(path, "ab") as f:
        f.write(b"more")


def overwrite(path):
    with open(path, "r+b") as f:
        f.write(b"other")


def replace(path):
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    other.rename(path)


@pytest.mark.parametrize("moment", ["before it is read", "after"])
@pytest.mark.parametrize("change", [shrink, grow, overwrite, replace, Path.unlink],
                         ids=lambda f: f.__name__)
def test_a_file_that_changes_is_an_error(source, image, tools, change, moment):
    for i in range(24):
        (source / f"file {i:02}").write_bytes(random.Random(i).randbytes(1 << 20))
    victim, written = ("file 23", 0) if moment != "after" else ("file 00", 4 << 20)
    change_while_read(tools, source, image, source / victim, change, written)


# ---- signals ----

@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_leave_nothing(source, image, tools, number):
    for i in range(8):
        (source / str(i)).write_bytes(random.Random(i).randbytes(4 << 20))
    image.write_text("old")
    process = subprocess.Popen([str(tools.mkhyperfs), "-f", str(source), str(image), "-j1"],
                               stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(image.parent.glob(".*.hyperfs-tmp")) and time.monotonic() < deadline:
        time.sleep(0.0005)
    process.send_signal(number)
    _, message = process.communicate(timeout=60)
    assert process.returncode in (-number, 128 + number)
    assert "interrupted" in message
    assert not list(image.parent.glob(".*")) and image.read_text() == "old"


# ---- the image's size ----

def test_bits_a_weight_count_everything(demo_model, image, tools):
    """The image of the weights alone is hardly larger than what is said of its weights."""
    told = summary(tools, demo_model / "model.safetensors", image, "--quality=small")
    eligible = sum(t.elements for t in read_tensors(demo_model / "model.safetensors") if t.eligible)
    assert told["weights"] == eligible
    assert told["bits_per_weight"] == pytest.approx(8 * image.stat().st_size / eligible, rel=0.02)
    assert math.isclose(told["ratio"], told["source_bytes"] / told["image_bytes"], rel_tol=1e-6)


# ---- size ----

def test_more_than_2_to_the_31_elements(tmp_path, tools):
    """A tensor of 4 GiB, nearly all of it a hole: 64-bit counts and offsets, from end to end."""
    count, piece = 2**31 + 2, gaussian(1 << 16)
    path, image = tmp_path / "huge.safetensors", tmp_path / "huge.hyperfs"
    text = json.dumps({"w": {"dtype": "BF16", "shape": [2, count // 2],
                             "data_offsets": [0, 2 * count]}}).encode()
    start = 8 + len(text)
    places = [0, 2**31 - 60_000, 2**32 + 4 - 2 * piece.size]  # bytes; the last one ends the tensor
    with open(path, "wb") as f:
        f.write(header(text))
        for place in places:
            f.seek(start + place)
            f.write(bf16(piece).tobytes())
    run([tools.mkhyperfs, path, image, "--quality=23", "--effort=fast", "--no-verify"])
    assert image.stat().st_size < 4 << 20
    record, = tensors_of(tools, image).values()
    assert record["code"] == "trajectory" and record["elements"] == count
    with mounted(image) as point, open(point / path.name, "rb") as f:
        assert os.fstat(f.fileno()).st_size == path.stat().st_size
        for place in places:
            f.seek(start + place)
            got = np.frombuffer(f.read(2 * piece.size), "<u2").astype("<u4") << 16
            want = bf16(piece).astype("<u4") << 16
            assert sqnr_db(want.view("<f4"), got.view("<f4")) > 22.5
        f.seek(start + 2**31 + 2**30)
        assert f.read(1 << 20) == bytes(1 << 20)
