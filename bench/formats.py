"""Weight formats that are simple enough to be written down here, for bench/quality.py.

Each takes a flat tensor of 32-bit floats and returns what it decodes to, and the bits it takes: all
side information counted, the last group filled with zeros. They are written after the formats'
descriptions, not with their own code; bench/peers.csv has figures of that code for other models.
"""

import functools
import math

import torch

LEAST = 4096  # elements of a matrix that is stored with loss, as in mkhyperfs

# The quantiles of a normal distribution that NF4 has (Dettmers et al.,
# arXiv 2305.14314, appendix E).
NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
       -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
       0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
       0.7229568362236023, 1.0]


def groups(flat, size: int):
    return torch.nn.functional.pad(flat, (0, -len(flat) % size)).view(-1, size)


def ungroup(grouped, flat):
    return grouped.reshape(-1)[:len(flat)]


def nonzero(scale):
    return torch.where(scale == 0, 1, scale)


def q8_0(flat):
    """ggml: 32 bytes and a scale of 16 bits."""
    g = groups(flat, 32)
    scale = (g.abs().amax(1, keepdim=True) / 127).half().float()
    return ungroup((g / nonzero(scale)).round().clamp(-128, 127) * scale, flat), 8.5 * g.numel()


def q4_0(flat):
    """ggml: 32 numbers from -8 to 7 and a scale of 16 bits; the farthest weight becomes -8."""
    g = groups(flat, 32)
    farthest = g.gather(1, g.abs().argmax(1, keepdim=True))
    scale = (farthest / -8).half().float()
    return ungroup((g / nonzero(scale)).round().clamp(-8, 7) * scale, flat), 4.5 * g.numel()


def int4_g128(flat):
    """Rounding to nearest: 128 numbers from 0 to 15, a scale of 16 bits, a zero point of 4."""
    g = groups(flat, 128)
    low, high = g.amin(1, keepdim=True).clamp(max=0), g.amax(1, keepdim=True).clamp(min=0)
    scale = nonzero(((high - low) / 15).half().float())
    zero = (-low / scale).round().clamp(0, 15)
    decoded = ((g / scale).round() + zero).clamp(0, 15).sub(zero) * scale
    return ungroup(decoded, flat), (4 + 20 / 128) * g.numel()


def nf4(flat):
    """64 numbers of 4 bits; the scales in 8 bits, 256 of them with one of 32 bits. bitsandbytes
    stores the scales in a code of its own, which loses more (bench/peers.csv)."""
    g = groups(flat, 64)
    scale = g.abs().amax(1)
    mean = scale.mean()
    second = groups(scale - mean, 256)
    step = nonzero(second.abs().amax(1, keepdim=True) / 127)
    scale = ungroup((second / step).round() * step, scale)[:, None] + mean
    levels = torch.tensor(NF4)
    number = torch.bucketize(g / nonzero(scale), (levels[1:] + levels[:-1]) / 2)
    return ungroup(levels[number] * scale, flat), (4 + 8 / 64 + 32 / (64 * 256)) * g.numel()


def scalar(flat, db: float):
    """Multiples of one step at that SQNR, in an ideal entropy code, which no file has."""
    wanted = flat.double().square().mean().item() * 10 ** (-db / 10)
    if wanted == 0:
        return flat, 0.0
    step = math.sqrt(12 * wanted)
    for _ in range(3):
        noise = (torch.round(flat / step) * step - flat).double().square().mean().item()
        step *= math.sqrt(wanted / noise)
    number = torch.round(flat / step)
    counts = torch.unique(number, return_counts=True)[1].double()
    return number * step, -(counts * (counts / counts.sum()).log2()).sum().item()


FORMATS = {"Q8_0": q8_0, "Q4_0": q4_0, "int4 g128": int4_g128, "NF4, linear scales": nf4} | {
    f"scalar, {db} dB": functools.partial(scalar, db=db) for db in (18, 23, 29, 35)}


def apply(model, quantise) -> float:
    """Replaces all matrices of the model by what they decode to; bits a weight."""
    bits, weights = 0.0, 0
    with torch.no_grad():
        for p in model.parameters():  # tied ones once
            if p.dim() > 1 and p.numel() >= LEAST:
                decoded, size = quantise(p.reshape(-1).float())
                p.copy_(decoded.view_as(p))
                bits += size
                weights += p.numel()
    return bits / weights
