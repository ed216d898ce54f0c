"""Small models for the tests of faults: every kind of file, segment and code, in little time."""

import json
import os
import struct

import numpy as np


def write_safetensors(path, tensors):
    """tensors: name -> (dtype, numpy array)"""
    header, offset = {}, 0
    for name, (dtype, array) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape),
                        "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text
                     + b"".join(array.tobytes() for _, array in tensors.values()))


def gaussian(dice, *shape):
    return dice.normal(0, 0.02, shape).astype("<f4")


def tiny(root):
    """The least that has one of everything: a run takes milliseconds."""
    dice = np.random.default_rng(1)
    (root / "sub").mkdir(parents=True)
    write_safetensors(root / "model.safetensors", {
        "model.layers.0.mlp.up_proj.weight": ("F32", gaussian(dice, 64, 72)),  # stored with loss
        "zeros": ("F32", np.zeros((64, 64), "<f4")),
        "numbers": ("I64", dice.integers(0, 1 << 40, 100))})
    (root / "config.json").write_text('{"model_type": "test"}\n')
    (root / "sub" / "text").write_text("words " * 500)
    os.link(root / "sub" / "text", root / "hard")
    os.symlink("sub/text", root / "link")
    (root / "empty").touch()
    return root


def shards(root):
    """Two files of many tensors, some of several blocks, and files of several blocks."""
    dice = np.random.default_rng(2)
    root.mkdir(parents=True)
    for shard in range(2):
        tensors = {f"layer.{i}.weight": ("F32", gaussian(dice, 40 + 8 * i, 128)) for i in range(8)}
        tensors |= {f"layer.{i}.norm": ("F32", 1 + gaussian(dice, 128)) for i in range(8)}
        tensors["embed"] = ("F32", gaussian(dice, 1200, 128))
        tensors["index"] = ("I64", dice.integers(0, 1 << 50, 500))
        tensors["mask"] = ("U8", np.zeros(20000, "u1"))
        write_safetensors(root / f"model-{shard}.safetensors", tensors)
    (root / "config.json").write_text('{"model_type": "test"}\n')
    (root / "tokenizer.json").write_bytes(dice.integers(32, 127, 600_000, "u1").tobytes())
    with open(root / "sparse", "wb") as f:
        f.truncate(1 << 20)
    (root / "sub").mkdir()
    (root / "sub" / "notes.txt").write_text("words " * 2000)
    return root
