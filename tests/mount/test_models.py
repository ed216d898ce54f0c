"""What hyperfs promises for every model: nothing is lost where the user asks for that, and where the
user gives up exactness, the loss and the size are what the option says."""

import hashlib
import json
import os
import statistics
from pathlib import Path

import numpy as np
import pytest
from conftest import mounted, run
from weights import raw, read_tensors, safetensors_files, sqnr_db, values


def tree(top):
    """Path, kind, mode, size and time of everything below top."""
    found = {}
    for path in sorted(top.rglob("*")):
        s = path.lstat()
        found[str(path.relative_to(top))] = (s.st_mode, s.st_size, s.st_mtime_ns)
    return found


def first_difference(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def test_lossless_image_gives_every_byte_back(model, image_of):
    with mounted(image_of(model, "--lossless")) as mnt:
        directories = {str(p.relative_to(model)) for p in model.rglob("*") if p.is_dir()}
        expected = tree(model)
        found = tree(mnt)
        assert found.keys() == expected.keys()
        for name, (mode, size, mtime) in expected.items():
            assert found[name][0] == mode and found[name][2] == mtime, name
            if name not in directories:
                assert found[name][1] == size, name
                before, after = (model / name).read_bytes(), (mnt / name).read_bytes()
                assert before == after, f"{name} differs at byte {first_difference(before, after)}"


def test_fsck_agrees_that_a_lossless_image_is_its_source(model, image_of, tools):
    run([tools.fsck, "--against", model, image_of(model, "--lossless")])


def lossy_tensors(original, copy):
    """Compares two safetensors files; returns {tensor: (its weights, those of the copy)} of the
    tensors that changed, and fails if anything else did."""
    assert os.path.getsize(original) == os.path.getsize(copy)
    changed, position = {}, 0
    for t in read_tensors(original):
        assert raw(original, position, t.begin) == raw(copy, position, t.begin), \
            f"bytes {position} to {t.begin} of {original.name} lie outside the tensors and changed"
        position = t.end
        if raw(original, t.begin, t.end) != raw(copy, t.begin, t.end):
            assert t.eligible, f"{t.name} of {original.name} has to be lossless and changed"
            changed[t.name] = values(original, t), values(copy, t)
    end = os.path.getsize(original)
    assert raw(original, position, end) == raw(copy, position, end)
    return changed


def stated_tensors(tools, image, file):
    """What the image says of the tensors that the trajectory code has taken."""
    document = json.loads(run([tools.dump, "--tensors", "--json", image]).stdout)
    return {t["name"]: t for t in document["tensors"]
            if t["file"] == str(file) and t["code"] == "trajectory"}


def test_the_loss_is_what_the_image_states_and_nothing_else_changes(model, image_of, tools):
    image = image_of(model, "--quality", "small")
    expected = tree(model)
    with mounted(image) as mnt:
        assert tree(mnt).keys() == expected.keys()
        for path in filter(Path.is_file, model.rglob("*")):
            name = path.relative_to(model)
            if path.suffix != ".safetensors":
                assert path.read_bytes() == (mnt / name).read_bytes(), name
                continue
            stated = stated_tensors(tools, image, name)
            changed = lossy_tensors(path, mnt / name)
            assert changed.keys() == stated.keys()
            for tensor, (original, copy) in changed.items():
                measured = sqnr_db(original, copy)
                promise = stated[tensor]
                # Weights stored exactly count in what is measured here, not in what is stated.
                assert measured >= promise["sqnr_db"] - 0.05, tensor
                if promise["exact_elements"] == 0:
                    assert measured <= promise["sqnr_db"] + 0.05, tensor
                error = np.max(np.abs(original - copy))
                assert error <= promise["max_error"] * (1 + 1e-6), tensor


def test_quality_23_keeps_its_word(model, image_of, tools):
    image = image_of(model, "--quality", "23")
    measured = {}
    with mounted(image) as mnt:
        for path in safetensors_files(model):
            name = path.relative_to(model)
            changed = lossy_tensors(path, mnt / name)
            measured |= {f"{name}: {tensor}": sqnr_db(*both) for tensor, both in changed.items()}
    median = statistics.median(measured.values())
    worst = min(measured, key=measured.get)
    print(f"{model.name}: median {median:.3f} dB, worst {measured[worst]:.3f} dB ({worst})")
    assert measured[worst] >= 22.9, worst
    assert median <= 23.2


def test_quality_small_takes_at_most_four_bits_a_weight(model, tools, tmp_path):
    """An image of the weights file alone: every byte of it counts."""
    for source in safetensors_files(model):
        image = tmp_path / f"{source.stem}.hyperfs"
        run([tools.mkhyperfs, source, image, "--quality", "small"])
        weights = sum(t.elements for t in read_tensors(source) if t.eligible)
        bits = 8 * image.stat().st_size / weights
        print(f"{model.name}: {bits:.3f} bits a weight")
        assert bits <= 4.0


@pytest.mark.parametrize("db", [12, 20.5, 29, 38])
def test_a_number_after_quality_is_the_sqnr_of_every_tensor(db, demo_model, image_of):
    with mounted(image_of(demo_model, "--quality", str(db))) as mnt:
        changed = lossy_tensors(demo_model / "model.safetensors", mnt / "model.safetensors")
    assert changed
    for name, both in changed.items():
        assert abs(sqnr_db(*both) - db) <= 0.1, f"{name}: {sqnr_db(*both):.2f} dB instead of {db}"


def test_the_image_does_not_depend_on_threads_or_processor(demo_model, tools, tmp_path):
    digests = {}
    for name, options in {"one thread": ["-j1"], "eight threads": ["-j8"],
                          "portable code": ["--isa=portable"]}.items():
        image = tmp_path / f"{len(digests)}.hyperfs"
        run([tools.mkhyperfs, demo_model, image, "--quality", "small", *options])
        digests[name] = hashlib.sha256(image.read_bytes()).hexdigest()
    assert len(set(digests.values())) == 1, digests
