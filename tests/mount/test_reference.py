"""The tools against tests/reference.py, which knows the format from its description alone."""

import numpy as np
import pytest
from conftest import run
from reference import Image
from weights import write_model

COUNT = 5_001  # odd, and less than a block of any type, for the reference is slow


def weights(dtype, seed, pruned=False):
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 0.02, COUNT)
    values[[5, 4_000]] = 3e4, -2e-7  # beyond the window, and next to nothing
    if pruned:
        values[rng.random(COUNT) < 0.7] = 0
    if dtype == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2")
    return values.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype])


@pytest.mark.parametrize("options", [
    ["--lossless"], ["--quality=12", "--effort=0"], ["--quality=19", "--effort=fast"],
    ["--quality=23"], ["--quality=33", "--effort=best"]], ids=" ".join)
def test_reference_reads_the_same_bytes(tmp_path, tools, options):
    source, image, out = tmp_path / "source", tmp_path / "i.hyperfs", tmp_path / "out"
    source.mkdir()
    write_model(source / "m.safetensors", {
        f"{dtype}.{'pruned' if pruned else 'dense'}.weight":
            (dtype, [3, COUNT // 3], weights(dtype, seed, pruned).tobytes())
        for seed, dtype in enumerate(["F16", "BF16", "F32", "F64"]) for pruned in (False, True)})
    (source / "text.txt").write_text("trajectory " * 30_000)
    run([tools.mkhyperfs, source, image, *options])
    run([tools.fsck, "-q", f"--extract={out}", image])
    reference = Image(image)
    for name in ("m.safetensors", "text.txt"):
        assert reference.read(name) == (out / name).read_bytes(), name
    assert f"sha256:{reference.digest.hex()}" in run([tools.dump, image]).stdout
    stored = run([tools.dump, "--tensors", image]).stdout
    assert ("trajectory" in stored) == (options != ["--lossless"])


def test_reference_reads_the_bundled_tokenizer(image_of, demo_model):
    reference = Image(image_of(demo_model, "--quality=small"))
    for file in demo_model.iterdir():
        if file.suffix == ".json":
            assert reference.read(file.name) == file.read_bytes()
