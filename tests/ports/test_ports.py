"""Other processors, under qemu-user: a big-endian one (s390x) and arm64 write the same bytes and
read what was written here. `make test-ports` builds the tools for them into build/ARCH."""

import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, run
from golden_images import READ, check_sums, name
from weights import write_model

EMULATORS = {"s390x": "qemu-s390x-static", "arm64": "qemu-aarch64-static"}
OPTIONS = [["--lossless"], ["--quality=small"], ["--quality=33", "--effort=best"],
           ["--quality=14", "--effort=0"]]


@pytest.fixture(scope="module", params=list(EMULATORS))
def port(request):
    """Command lines of the tools for that processor."""
    build = ROOT / "build" / request.param
    return SimpleNamespace(**{name: [EMULATORS[request.param], build / tool] for name, tool in (
        ("mkhyperfs", "mkhyperfs"), ("fsck", "fsck.hyperfs"), ("dump", "dump.hyperfs"))})


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """All weight types, pruned and not, integers of all sizes, text."""
    rng = np.random.default_rng(7)
    folder = tmp_path_factory.mktemp("ports") / "model"
    folder.mkdir()
    tensors = {}
    for dtype, kind in (("F16", "<f2"), ("BF16", None), ("F32", "<f4"), ("F64", "<f8")):
        for pruned in (False, True):
            values = rng.normal(0, 0.02, 40_001)
            values[[7, 30_000]] = 4e3, -3e-7
            if pruned:
                values[rng.random(values.size) < 0.6] = 0
            raw = values.astype(kind).tobytes() if kind else \
                (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
            tensors[f"{dtype}.{pruned}.weight"] = (dtype, [values.size, 1], raw)
    for dtype, size in (("I16", 2), ("I32", 4), ("I64", 8), ("U8", 1)):
        tensors[f"{dtype}.table"] = (dtype, [5_000], rng.integers(0, 99, 5_000).astype(
            f"<i{size}" if size > 1 else "u1").tobytes())
    write_model(folder / "model.safetensors", tensors)
    shutil.copy(ROOT / "models/demo/config.json", folder)
    (folder / "notes.txt").write_text("words " * 60_000)
    return folder


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_same_image(port, source, options, tools, tmp_path):
    here, there = tmp_path / "here.hyperfs", tmp_path / "there.hyperfs"
    run([tools.mkhyperfs, source, here, *options])
    run([*port.mkhyperfs, source, there, *options, "-j2"])
    assert here.read_bytes() == there.read_bytes()


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_same_files(port, source, options, image_of, tools, tmp_path):
    image = image_of(source, *options)
    run([*port.fsck, "-q", f"--extract={tmp_path / 'there'}", image])
    run([tools.fsck, "-q", f"--extract={tmp_path / 'here'}", image])
    run([*port.fsck, "-q", f"--against={source}", image])
    done = subprocess.run(["diff", "-r", tmp_path / "here", tmp_path / "there"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert run([*port.dump, "--json", image]).stdout == run([tools.dump, "--json", image]).stdout


def test_damage_is_found(port, source, image_of, tmp_path):
    data = bytearray(image_of(source, "--quality=small").read_bytes())
    data[len(data) // 2] ^= 4
    damaged = tmp_path / "damaged.hyperfs"
    damaged.write_bytes(data)
    assert run([*port.fsck, damaged], check=False).returncode == 4


@pytest.mark.parametrize("image", READ, ids=name)
def test_golden_image(port, image, tmp_path):
    run([*port.fsck, "-q", f"--extract={tmp_path / 'x'}", image])
    check_sums(tmp_path / "x", image)
