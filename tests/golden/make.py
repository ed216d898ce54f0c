#!/usr/bin/env python3
"""Makes the golden images of the version in build/, in a new folder of tests/golden.

    tests/golden/make.py VERSION

Run once for each released version, by hand; the images are never made again or changed, and every
later version has to read them (tests/mount/test_golden.py). An image has beside it a list of the
SHA-256 of each file in it, as sha256sum -c reads it; of an image that has to be refused, the
words of the sentence instead.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import xxhash

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from weights import write_model  # noqa: E402

BUILD = ROOT / os.environ.get("HYPERFS_BUILD", "build")
COUNT = 6_001


def weights(dtype, rng, pruned):
    values = rng.normal(0, 0.02, COUNT)
    values[[5, 4_000]] = 4e3, -3e-7  # beyond the window, and next to nothing
    if pruned:
        values[rng.random(COUNT) < 0.7] = 0
    if dtype == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes()


def model(folder, rng):
    tensors = {f"{dtype}.{'pruned' if pruned else 'dense'}.weight":
               (dtype, [COUNT // 17, 17], weights(dtype, rng, pruned)[:COUNT // 17 * 17 * size])
               for dtype, size in (("F16", 2), ("BF16", 2), ("F32", 4), ("F64", 8))
               for pruned in (False, True)}
    for dtype, kind in (("I8", "i1"), ("I16", "<i2"), ("I32", "<i4"), ("I64", "<i8")):
        tensors[f"{dtype}.table"] = (dtype, [999], rng.integers(0, 99, 999).astype(kind).tobytes())
    tensors["empty"] = ("F32", [0, 7], b"")
    tensors["norm"] = ("BF16", [64], weights("BF16", rng, False)[:128])
    write_model(folder / "model.safetensors", tensors)


def tree(folder):
    (folder / "sub" / "empty folder").mkdir(parents=True)
    (folder / "empty").touch()
    (folder / "notes.txt").write_text("words " * 60_000)
    (folder / "zeros").write_bytes(bytes(300_000))
    (folder / "sub" / "link").symlink_to("../notes.txt")
    os.link(folder / "notes.txt", folder / "sub" / "hard.txt")
    shutil.copy(folder / "notes.txt", folder / "sub" / "equal.txt")
    Path(os.fsdecode(bytes(folder) + b"/not \xff UTF-8 \n")).write_bytes(b"x")
    (folder / ("n" * 255)).write_bytes(b"a name of 255 bytes")


def sums(folder):
    out = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            name = os.fsencode(path.relative_to(folder))
            digest = hashlib.sha256(path.read_bytes()).hexdigest().encode()
            escaped = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
            out.append((b"\\" if escaped != name else b"") + digest + b"  " + escaped + b"\n")
    return b"".join(out)


def add(out, name, source, *options):
    image = out / f"{name}.hyperfs"
    subprocess.run([BUILD / "mkhyperfs", "-q", "--mtime=1700000000", source, image, *options],
                   check=True)
    with tempfile.TemporaryDirectory() as scratch:
        extracted = Path(scratch) / "x"
        subprocess.run([BUILD / "fsck.hyperfs", "-q", f"--extract={extracted}", image], check=True)
        (out / f"{name}.sha256").write_bytes(sums(extracted))


def edit(out, name, image, at, value, words):
    """An image with one byte of its superblocks changed, checksums mended, that is refused."""
    data = bytearray(image.read_bytes())
    for start in (0, len(data) - 128):
        data[start + at] = value
        data[start + 120:start + 128] = xxhash.xxh3_64_intdigest(
            bytes(data[start:start + 120])).to_bytes(8, "little")
    (out / f"{name}.hyperfs").write_bytes(data)
    (out / f"{name}.refused").write_text(words + "\n")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__.strip())
    out = Path(__file__).resolve().parent / sys.argv[1]
    out.mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "model").mkdir()
        (folder / "tree").mkdir()
        model(folder / "model", np.random.default_rng(5))
        tree(folder / "tree")
        add(out, "tree", folder / "tree")
        add(out, "lossless", folder / "model", "--lossless")
        add(out, "no-trellis", folder / "model", "--quality=12", "--effort=0")
        add(out, "fast", folder / "model", "--quality=19", "--effort=fast")
        add(out, "good", folder / "model", "--quality=29")
        add(out, "best", folder / "model", "--quality=36", "--effort=best")
    edit(out, "future", out / "tree.hyperfs", 8, 2, "version 2")
    edit(out, "feature", out / "tree.hyperfs", 16 + 7, 1, "features that this hyperfs does not know")


main()
