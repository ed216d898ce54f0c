"""Programs that know nothing of hyperfs read a mount as they read any directory."""

import mmap
import os
import random
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import safetensors.numpy
from conftest import mounted, run
from safetensors import safe_open
from weights import sqnr_db

SEED = int(os.environ.get("HYPERFS_SEED", random.randrange(1 << 32)))
QUALITIES = {"lossless": ["--lossless"], "small": ["--quality", "small"]}


@pytest.fixture(scope="module")
def numpy_model(tmp_path_factory):
    """A file with every type that numpy has, as numpy writes it; large and small, empty and rank 0."""
    dice = np.random.default_rng(7)
    tensors = {
        "f32": dice.standard_normal((700, 129)).astype(np.float32),
        "f32.tails": dice.standard_t(3, (64, 4096)).astype(np.float32),
        "f16": (dice.standard_normal((3, 200, 100)) / 50).astype(np.float16),
        "f64": dice.standard_normal((129, 513)),
        "f32.vector": dice.standard_normal(70001).astype(np.float32),
        "f32.small": dice.standard_normal((4, 5)).astype(np.float32),
        "f32.zero": np.zeros((300, 300), np.float32),
        "f32.empty": np.zeros((0, 300), np.float32),
        "f32.scalar": np.array(3.25, np.float32),
        "i64": dice.integers(-1000, 1000, (50, 100)),
        "i8": dice.integers(-128, 128, (333, 3), dtype=np.int8),
        "bool": dice.integers(0, 2, (1000,)).astype(bool),
    }
    directory = tmp_path_factory.mktemp("numpy-model")
    safetensors.numpy.save_file(tensors, directory / "arrays.safetensors", {"made by": "numpy"})
    return directory, tensors


def test_numpy_load_file_from_a_lossless_mount(numpy_model, image_of):
    directory, tensors = numpy_model
    with mounted(image_of(directory, "--lossless")) as mnt:
        found = safetensors.numpy.load_file(mnt / "arrays.safetensors")
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


def test_numpy_load_file_from_a_lossy_mount(numpy_model, image_of):
    directory, tensors = numpy_model
    with mounted(image_of(directory, "--quality", "23")) as mnt:
        found = safetensors.numpy.load_file(mnt / "arrays.safetensors")
    lossy = {"f32", "f32.tails", "f16", "f64"}
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        if name in lossy:
            got = sqnr_db(array.astype(np.float64), found[name].astype(np.float64))
            assert 22.9 <= got <= 24, f"{name}: {got} dB"
        else:
            assert found[name].tobytes() == array.tobytes(), name


def test_safe_open_reads_slices(numpy_model, image_of):
    directory, tensors = numpy_model
    with mounted(image_of(directory, "--lossless")) as mnt:
        with safe_open(mnt / "arrays.safetensors", "numpy") as f:
            assert f.metadata() == {"made by": "numpy"}
            part = f.get_slice("f32")[100:600:1, 7:100]
            assert np.array_equal(part, tensors["f32"][100:600, 7:100])
            assert np.array_equal(f.get_tensor("i64"), tensors["i64"])
        del part, f


GENERATE = """
import sys
import mlx.core as mx, mlx_lm
mx.set_default_device(mx.cpu)
model, tokenizer = mlx_lm.load(sys.argv[1])
print(mlx_lm.generate(model, tokenizer, "The file system", max_tokens=24))
"""


def generate(directory, check=True):
    return run([sys.executable, "-c", GENERATE, directory], check=check)


def test_mlx_lm_writes_the_same_text_from_a_lossless_mount(model, demo_model, image_of):
    """A model that mlx-lm does not take from a directory it does not take from a mount either."""
    expected = generate(model, check=model == demo_model)
    with mounted(image_of(model, "--lossless")) as mnt:
        found = generate(mnt, check=False)
    assert (found.returncode, found.stdout) == (expected.returncode, expected.stdout), found.stderr


def test_mlx_lm_writes_text_from_a_lossy_mount(demo_model, image_of):
    with mounted(image_of(demo_model, "--quality", "small")) as mnt:
        assert generate(mnt).stdout.strip()


@pytest.mark.parametrize("quality", QUALITIES)
def test_every_way_of_reading_gives_the_same_bytes(quality, model, image_of, tools, tmp_path):
    """cp -r, cmp, sha256sum, dd, mmap and numpy against the bytes that fsck.hyperfs extracts."""
    image = image_of(model, *QUALITIES[quality])
    reference = tmp_path / "extracted"
    run([tools.fsck, f"--extract={reference}", image])
    with mounted(image) as mnt:
        run(["cp", "-r", mnt, tmp_path / "copied"])
        run(["diff", "-r", reference, tmp_path / "copied"])
        files = sorted(p.relative_to(reference) for p in reference.rglob("*") if p.is_file())
        assert files
        for name in files:
            run(["cmp", reference / name, mnt / name])
        sums = run(["sha256sum", *files], cwd=reference).stdout
        run(["sha256sum", "--check", "--strict", "--quiet"], cwd=mnt, input=sums)

        weights = next(p for p in files if p.suffix == ".safetensors")
        expected = (reference / weights).read_bytes()
        for size, skip in ((1000, 77), (262144, 3), (300001, 2)):
            part = tmp_path / "part"
            run(["dd", f"if={mnt / weights}", f"of={part}", f"bs={size}", f"skip={skip}", "count=5"])
            assert part.read_bytes() == expected[size * skip:size * (skip + 5)]
        array = np.memmap(mnt / weights, mode="r")
        assert np.array_equal(array, np.frombuffer(expected, np.uint8))
        del array


def read_random_ranges(path, reference, seed):
    """Reads ranges with pread and through a mapping, returns the first one that is wrong."""
    dice = random.Random(seed)
    expected = reference.read_bytes()
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as m:
        for _ in range(60):
            at = dice.randrange(len(expected))
            size = dice.choice((1, 4096, 100_000, 700_000))
            if os.pread(f.fileno(), size, at) != expected[at:at + size]:
                return f"pread of {size} bytes at {at}"
            if m[at:at + size] != expected[at:at + size]:
                return f"mmap of {size} bytes at {at}"
    return None


@pytest.mark.parametrize("pool", [ProcessPoolExecutor, ThreadPoolExecutor])
def test_parallel_readers_disturb_nobody(pool, demo_model, image_of, tools, tmp_path):
    print(f"seed: HYPERFS_SEED={SEED}")
    image = image_of(demo_model, "--quality", "small")
    reference = tmp_path / "extracted"
    run([tools.fsck, f"--extract={reference}", image])
    with mounted(image) as mnt, pool(6) as workers:
        jobs = [workers.submit(read_random_ranges, mnt / "model.safetensors",
                               reference / "model.safetensors", SEED + i) for i in range(6)]
        assert [job.result() for job in jobs] == [None] * len(jobs)
