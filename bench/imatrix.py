#!/usr/bin/env python3
"""bench/imatrix.py: what an importance matrix (mkhyperfs --imatrix) is worth.

Computes the importance matrix of the model lm (HYPERFS_MODELS, ../shared/models) from the first
100,000 characters of its heldout.txt by forward hooks, writes it in both of llama.cpp's forms, and
measures the Kullback-Leibler divergence from the original, in nats a token, on windows of the rest
of the text:

1. images made by mkhyperfs with and without the matrix, compared at equal bits a weight;
2. the divergence that each tensor causes alone, and how well the formula of mkhyperfs/importance.h
   and simpler ones predict it;
3. what weights for columns would give within a tensor: a step for each column, simulated by a
   scalar quantiser, and columns' weights in the metric of the trellis, simulated on Gaussian pairs.

Writes bench/results/imatrix.md. Needs torch and transformers (tests/loaders/requirements.txt) and
gguf besides bench/requirements.txt. Takes some minutes on two cores.
"""

import argparse
import math
import os
import struct
import sys
import tempfile
from pathlib import Path

import numpy as np

from codec import BUILD, MODELS, RESULTS, Report, bits_of, run, store

CALIBRATION = 100_000  # characters
WINDOW, WINDOWS, BATCH = 512, 20, 4
FEW = 2  # every second one where many copies are compared
BITS = [3.2, 4, 5]  # a weight
NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
         "mlp.down_proj": "ffn_down"}
K, P, LIMIT = 0.8, 0.5, 6.0  # of mkhyperfs/importance.h
TAPS = {6: (0x29, 0x1F), 8: (0xC5, 0xB4)}  # of the trellis, docs/codec.md


def decibels(ratio):
    return 10 * math.log10(ratio)


def load(directory):
    import torch
    from transformers import AutoModelForCausalLM
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def windows_of(directory):
    """Windows for the matrix, and for the evaluation: spread evenly over the rest of the text."""
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(directory, model_max_length=1 << 30)
    text = (directory / "heldout.txt").read_text(encoding="utf-8")

    def tokens(part):
        return tokenizer(part, add_special_tokens=False, return_tensors="pt").input_ids[0]

    first, rest = tokens(text[:CALIBRATION]), tokens(text[CALIBRATION:])
    count = len(rest) // WINDOW
    starts = [(2 * i + 1) * count // (2 * WINDOWS) * WINDOW for i in range(WINDOWS)]
    return ([first[i:i + WINDOW] for i in range(0, len(first) - WINDOW + 1, WINDOW)],
            [rest[s:s + WINDOW] for s in starts])


def batches(windows):
    import torch
    return [torch.stack(windows[i:i + BATCH]) for i in range(0, len(windows), BATCH)]


def moments_of(model, windows):
    """Sums of squares of the inputs of each matrix of a layer by column, and counts of tokens."""
    import torch
    sums, hooks = {}, []

    def hook(name):
        def see(_, inputs, __):
            x = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
            total, count = sums.get(name, (0, 0))
            sums[name] = total + (x * x).sum(0), count + len(x)
        return see

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            hooks.append(module.register_forward_hook(hook(name + ".weight")))
    with torch.inference_mode():
        for x in batches(windows):
            model(input_ids=x, use_cache=False)
    for one in hooks:
        one.remove()
    return sums


def llama_name(name):
    layer, rest = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{layer}.{NAMES[rest]}.weight"


def write_gguf(path, sums, chunks):
    from gguf import GGUFWriter
    writer = GGUFWriter(str(path), "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["heldout.txt"])
    writer.add_uint32("imatrix.chunk_count", chunks)
    writer.add_uint32("imatrix.chunk_size", WINDOW)
    for name, (total, count) in sorted(sums.items()):
        writer.add_tensor(llama_name(name) + ".in_sum2", total.float().numpy()[None])
        writer.add_tensor(llama_name(name) + ".counts", np.array([[count]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_dat(path, sums, chunks):
    with open(path, "wb") as f:
        f.write(struct.pack("<i", len(sums)))
        for name, (total, count) in sorted(sums.items()):
            text = llama_name(name).encode()
            values = (total / count * chunks).float().numpy()
            f.write(struct.pack("<i", len(text)) + text)
            f.write(struct.pack("<ii", chunks, len(values)) + values.astype("<f4").tobytes())
        f.write(struct.pack("<ii", chunks, 11) + b"heldout.txt")


class Divergence:
    """From the original, on the same windows each time."""

    def __init__(self, model, windows):
        self.windows = batches(windows)
        self.reference = [self.log_probabilities(model, x) for x in self.windows]

    @staticmethod
    def log_probabilities(model, x):
        import torch
        with torch.inference_mode():
            return torch.log_softmax(model(input_ids=x, use_cache=False).logits[:, :-1], dim=-1)

    def of(self, model):
        total, tokens = 0.0, 0
        for x, log_p in zip(self.windows, self.reference):
            log_q = self.log_probabilities(model, x)
            total += (log_p.exp() * (log_p - log_q)).sum(-1).double().sum().item()
            tokens += log_p.shape[0] * log_p.shape[1]
        return total / tokens


# ---- images ----

def measure_images(directory, matrices, divergence, work):
    """For each way and number of bits: the bits that came out, and the divergence."""
    ways = {"one SQNR": ["--allocation=flat"], "rules": [],
            "rules and importance matrix": [f"--imatrix={matrices['gguf']}"],
            "the same, older form": [f"--imatrix={matrices['dat']}"]}
    rows = {way: [] for way in ways}
    for way, options in ways.items():
        for bits in BITS if "older" not in way else BITS[1:2]:
            image, out = work / "i.hyperfs", work / "extracted"
            _, tensors = store(directory, image, f"--bits={bits}", *options)
            run(BUILD / "fsck.hyperfs", "-q", f"--extract={out}", image)
            rows[way].append((bits_of(tensors), divergence.of(load(out))))
            run("rm", "-r", out, image)
    return rows


def at_equal_bits(row, bits):
    """A divergence as it would be at so many bits: close to the measured ones, a bit is 6.02 dB."""
    return row[1] * 4 ** (row[0] - bits)


def tell_images(report, rows):
    report.add("## Images at equal size\n")
    report.add("By mkhyperfs --bits; the divergences are moved to the exact number of bits (by less than "
               "1 % of it), in brackets against the rules.\n")
    cells = []
    for way, results in rows.items():
        line = [way]
        for i, bits in enumerate(BITS):
            if len(results) == 1 and i != 1:
                line.append("")
                continue
            here = at_equal_bits(results[0 if len(results) == 1 else i], bits)
            rules = at_equal_bits(rows["rules"][i], bits)
            line.append(f"{here:.2e} ({100 * (here / rules - 1):+.1f} %)")
        cells.append(line)
    report.table(["way"] + [f"KL at {b} bits" for b in BITS], cells)


# ---- sensitivities ----

def scalar(w, db):
    """w rounded to multiples of a step, at `db`."""
    import torch
    wanted = w.double().square().mean().item() * 10 ** (-db / 10)
    step = math.sqrt(12 * wanted)
    for _ in range(4):
        noise = (torch.round(w / step) * step - w).double().square().mean().item()
        step *= math.sqrt(wanted / noise)
    return torch.round(w / step) * step


def sensitivities(model, divergence, sums):
    """For each matrix of a layer: weights, divergence at 20 dB, and what predicts it."""
    import torch
    parameters = dict(model.named_parameters())
    embedding = parameters["model.embed_tokens.weight"]
    stream = embedding.double().square().mean().item()
    rows = []
    for name, p in parameters.items():
        if name not in sums:
            continue
        w, (total, count) = p.data.clone(), sums[name]
        with torch.no_grad():
            p.copy_(scalar(w, 20))
            kl = divergence.of(model)
            p.copy_(w)
        square, moment = w.double().square().mean().item(), total / count
        inputs = (moment.pow(0.25).mean() ** 4 * len(moment)).item()  # as in mkhyperfs/imatrix.h
        rows.append({"layer": int(name.split(".")[2]), "kind": name.split(".")[-2],
                     "branch": name.split(".")[3], "n": w.numel(), "kl": kl,
                     "inputs": decibels(inputs), "noise": decibels(square * inputs),
                     "energy": square * inputs,
                     "peak": decibels(moment.mean().item() * len(moment) / inputs)})
    for layer in range(1 + max(r["layer"] for r in rows)):
        for branch, last in (("self_attn", "o_proj"), ("mlp", "down_proj")):
            some = [r for r in rows if r["layer"] == layer and r["branch"] == branch]
            energy = next(r["energy"] for r in some if r["kind"] == last)
            for r in some:
                r["output"] = decibels(energy)
                r["share"] = decibels(energy / (stream + energy))
                r["layer_peak"] = next(o["peak"] for o in some if o["kind"] == last)
            stream += energy
    return rows


def within_kind(rows, key):
    kinds = {r["kind"] for r in rows}
    mean = {k: np.mean([r[key] for r in rows if r["kind"] == k]) for k in kinds}
    return np.array([r[key] - mean[r["kind"]] for r in rows])


def tell_sensitivities(report, rows):
    """The sum of divergences if noise power moves between tensors at equal bits: each tensor's
    divergence is in proportion to its noise, and a dB costs the same in every weight."""
    n = np.array([r["n"] for r in rows], float)
    kl = np.array([r["kl"] for r in rows])

    def total(offsets):
        offsets = offsets - (offsets * n).sum() / n.sum()
        return (kl * 10 ** (-offsets / 10)).sum() / kl.sum()

    need = np.array([decibels(r["kl"] / r["n"]) for r in rows])
    for r, one in zip(rows, need):
        r["need"] = one
    kinds = need - within_kind(rows, "need")
    report.add("## Which number predicts what a tensor needs\n")
    report.add("Each matrix of a layer is quantised alone at 20 dB; its divergence a weight says how "
               "much finer it should be. The table predicts the sum of divergences at equal bits, "
               "compared with one SQNR, for offsets of K times a number's deviation from its mean "
               f"over the layers, at most {LIMIT:g} dB. \"Share\" is that of mkhyperfs.\n")
    report.table(["offsets", "K 0.25", "0.5", "0.8", "1"],
                 [[label] + [f"{total(np.clip(k * within_kind(rows, key), -LIMIT, LIMIT)):.3f}"
                             for k in (0.25, 0.5, K, 1)]
                  for key, label in (("inputs", "inputs, typical in_sum2"),
                                     ("noise", "weights and inputs: noise at the output"),
                                     ("output", "energy of the branch's output"),
                                     ("share", "share of the branch in the stream"))])
    feed_forward = np.array([r["branch"] == "mlp" for r in rows])
    down = [r["peak"] for r in rows if r["kind"] == "down_proj"]
    peak = np.array([r["layer_peak"] for r in rows]) - np.mean(down)
    formula = K * within_kind(rows, "share") + P * feed_forward * np.maximum(0, peak)
    report.add(f"For comparison: the best offset for each kind of tensor {total(kinds):.3f}, these and "
               "the whole formula, with the peaks of inputs, "
               f"{total(kinds + np.clip(formula, -LIMIT, LIMIT)):.3f}, "
               f"the measured divergences themselves {total(need):.3f}.\n")


# ---- columns ----

def column_steps(model, divergence, sums, power):
    """Divergence at about 20 dB with steps in proportion to a column's second moment to the
    -power/2, their geometric mean kept: the rate is then the same at these rates."""
    import torch
    kept = {}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name not in sums:
                continue
            kept[name] = w = p.data.clone()
            moment = (sums[name][0] / sums[name][1]).float().clamp_min(1e-12)
            gain = moment.pow(-power / 2)
            gain /= gain.log().mean().exp()
            step = math.sqrt(12 * w.double().square().mean().item() / 100)
            p.copy_(torch.round(w / gain / step) * step * gain)
        kl = divergence.of(model)
        for name, w in kept.items():
            model.get_parameter(name).copy_(w)
    return kl


def trellis_gain(weights, nu, sequences=1000, db=24.0):
    """dB by which the weighted error falls if the trellis knows the weights of the pairs."""
    import torch
    generator = torch.Generator().manual_seed(1)
    length, states = len(weights), 1 << nu
    x = torch.randn(sequences, length, 2, generator=generator)
    d = math.sqrt(10 ** (-db / 10) / 0.11)
    basis = torch.tensor([[2 * d, 0], [d, d * math.sqrt(3)]])
    distance = []
    for phase in range(4):
        y = (x - (phase & 1) * basis[0] / 2 - (phase >> 1) * basis[1] / 2) @ basis.inverse()
        cell = y - y.floor()
        corners = [((cell - torch.tensor([i, j])) @ basis).square().sum(-1)
                   for i in (0.0, 1.0) for j in (0.0, 1.0)]
        distance.append(torch.stack(corners).amin(0))
    distance = torch.stack(distance)
    parity = lambda v: torch.tensor([bin(int(i)).count("1") & 1 for i in v])
    now = torch.arange(states)
    before = torch.stack([now >> 1, (now >> 1) | (states >> 1)])
    phases = torch.stack([parity(b & TAPS[nu][0]) + 2 * ((now & 1) ^ parity(b & TAPS[nu][1]))
                          for b in before])

    def error(metric):
        cost = torch.full((sequences, states), 1e9)
        cost[:, 0] = 0
        real = torch.zeros(sequences, states)
        for t in range(length):
            here = distance[:, :, t].T[:, phases].permute(1, 0, 2)
            both = cost[:, before].permute(1, 0, 2) + metric[t] * here
            reals = real[:, before].permute(1, 0, 2) + weights[t] * here
            cost, which = both.min(0)
            real = reals.gather(0, which[None])[0]
        return real.gather(1, cost.argmin(1, keepdim=True)).mean().item()

    return decibels(error(torch.ones(length)) / error(weights))


def tell_columns(report, model, divergence, sums):
    report.add("## Columns within a tensor\n")
    report.add("Not in hyperfs. A step for each column, in proportion to its second moment to the power "
               "-a/2, scalar quantiser, equal bits (all matrices of layers; then o and down alone):\n")
    some = {n: v for n, v in sums.items() if "o_proj" in n or "down_proj" in n}
    powers = (0, 0.5, 1)
    table = []
    for label, which in (("all", sums), ("o and down", some)):
        kl = [column_steps(model, divergence, which, a) for a in powers]
        table.append([label] + [f"{one:.2e} ({100 * (one / kl[0] - 1):+.1f} %)" for one in kl])
    report.table(["matrices"] + [f"KL, a = {a:g}" for a in powers], table)
    report.add("The second moments as weights in the metric of the trellis, simulated with Gaussian "
               "pairs: how far the diagonal spreads (arithmetic over geometric mean), and the gain "
               "in weighted error.\n")
    table = []
    for name in ("model.layers.2.mlp.down_proj.weight", "model.layers.4.mlp.down_proj.weight",
                 "model.layers.4.self_attn.o_proj.weight",
                 "model.layers.4.self_attn.q_proj.weight"):
        moment = sums[name][0].float()
        pairs = moment.reshape(-1, 2).mean(1)
        spread = decibels(moment.mean().item()) - 10 * moment.log10().mean().item()
        table.append([name, f"{spread:.2f}", f"{trellis_gain(pairs / pairs.mean(), 6):.2f}"])
    report.table(["matrix", "spread, dB", "gain, dB (64 states)"], table)


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
                            ).parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        import gguf  # noqa: F401
        import torch
        from transformers.utils import logging
    except ImportError as e:
        sys.exit(f"bench: {e.name} is missing: pip install -r tests/loaders/requirements.txt "
                 "-r bench/requirements.txt")
    directory = MODELS / "lm"
    if not (directory / "heldout.txt").exists():
        sys.exit(f"bench: the model lm is not in {MODELS} (HYPERFS_MODELS)")
    logging.disable_progress_bar()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    model = load(directory)
    calibration, evaluation = windows_of(directory)
    sums = moments_of(model, calibration)
    few, all_of_them = Divergence(model, evaluation[::FEW]), Divergence(model, evaluation)
    report = Report()
    report.add("# Importance matrix\n")
    report.add(f"By bench/imatrix.py: the model lm, matrix from {len(calibration)} windows of {WINDOW} "
               f"tokens, divergence on {len(evaluation)} others (images) or {len(evaluation[::FEW])}.\n")
    with tempfile.TemporaryDirectory(prefix="hyperfs-bench-") as work:
        matrices = {"gguf": Path(work) / "lm.gguf", "dat": Path(work) / "lm.dat"}
        write_gguf(matrices["gguf"], sums, len(calibration))
        write_dat(matrices["dat"], sums, len(calibration))
        tell_images(report, measure_images(directory, matrices, all_of_them, Path(work)))
    tell_sensitivities(report, sensitivities(model, few, sums))
    tell_columns(report, model, few, sums)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "imatrix.md").write_text("\n".join(report.lines) + "\n")


if __name__ == "__main__":
    main()
