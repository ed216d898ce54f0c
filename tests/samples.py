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


# ---- importance matrices: pairs of a name and its mean squares by column ----


def old_form(entries, calls=4):
    """llama.cpp's .dat."""
    entries = list(entries)
    out = struct.pack("<i", len(entries))
    for name, mean in entries:
        out += struct.pack("<i", len(name)) + name.encode()
        out += struct.pack("<ii", calls, len(mean)) + (mean * calls).astype("<f4").tobytes()
    return out + struct.pack("<ii", calls, 5) + b"a.txt"


def gguf_string(text):
    return struct.pack("<Q", len(text)) + text.encode()


def gguf(entries, tokens=2048, keys=()):
    """The same as GGUF. Of experts a row of means each; (mean, counts) where they saw fewer tokens.
    keys: further ones, (name, type, bytes of the value)."""
    tensors = []
    for name, mean in entries:
        mean, counts = mean if isinstance(mean, tuple) else (mean[None], [tokens])
        counts = np.array(counts, "<f4")[:, None]
        tensors += [(name + ".in_sum2", mean * counts), (name + ".counts", counts)]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 1 + len(keys))
    for name, kind, value in [("general.type", 8, gguf_string("imatrix")), *keys]:
        head += gguf_string(name) + struct.pack("<I", kind) + value
    data = b""
    for name, values in tensors:
        data += b"\0" * (-len(data) % 32)
        head += gguf_string(name) + struct.pack("<IQQIQ", 2, values.shape[1], values.shape[0], 0,
                                           len(data))
        data += values.astype("<f4").tobytes()
    return head + b"\0" * (-len(head) % 32) + data
