"""A reader of safetensors files of our own, so that the tests do not trust the code under test."""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DTYPE_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16}
MIN_ELEMENTS = 4096  # smaller tensors, and those of fewer than two dimensions, are never lossy


@dataclass
class Tensor:
    name: str
    dtype: str
    shape: tuple
    begin: int  # bytes from the start of the file
    end: int

    @property
    def elements(self):
        return math.prod(self.shape)

    @property
    def eligible(self):
        """May the trajectory code take it?"""
        return (self.dtype in DTYPE_BITS and len(self.shape) >= 2
                and self.elements >= MIN_ELEMENTS)


def read_tensors(path):
    """The tensors of a file in the order of their data."""
    with open(path, "rb") as f:
        size, = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(size))
    header.pop("__metadata__", None)
    tensors = [Tensor(name, t["dtype"], tuple(t["shape"]),
                      *(8 + size + offset for offset in t["data_offsets"]))
               for name, t in header.items()]
    return sorted(tensors, key=lambda t: (t.begin, t.end))


def raw(path, begin, end):
    with open(path, "rb") as f:
        f.seek(begin)
        return f.read(end - begin)


def values(path, tensor):
    """The weights of a tensor as 64-bit floats."""
    data = raw(path, tensor.begin, tensor.end)
    if tensor.dtype == "BF16":  # the upper half of a 32-bit float
        bits = np.frombuffer(data, "<u2").astype(np.uint32) << 16
        return bits.view(np.float32).astype(np.float64)
    kind = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[tensor.dtype]
    return np.frombuffer(data, kind).astype(np.float64)


def sqnr_db(original, copy):
    noise = np.sum((original - copy) ** 2)
    return math.inf if noise == 0 else 10 * math.log10(np.sum(original ** 2) / noise)


def safetensors_files(directory):
    return sorted(Path(directory).rglob("*.safetensors"))


def header(text):
    return struct.pack("<Q", len(text)) + text


def write_model(path, tensors, metadata=None):
    """tensors: name -> (dtype, shape, bytes)"""
    about, offset = {"__metadata__": metadata} if metadata else {}, 0
    for name, (dtype, shape, data) in tensors.items():
        about[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    path.write_bytes(header(json.dumps(about).encode())
                     + b"".join(data for _, _, data in tensors.values()))
