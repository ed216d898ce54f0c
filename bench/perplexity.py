#!/usr/bin/env python3
"""bench/perplexity.py: what the loss in the weights does to a language model's predictions.

Stores each model with one signal-to-noise ratio for all tensors, extracts the image, loads both with
unmodified transformers and computes in 32-bit floats on the CPU the perplexity and the mean
Kullback-Leibler divergence from the original in nats a token, on 40 windows of 512 tokens.
Writes bench/results/perplexity.md and perplexity.json and the plot docs/perplexity.svg, which sets
the figures beside those of other formats in bench/peers.csv.

Models: models/demo with demo/text.txt, and lm with its heldout.txt in HYPERFS_MODELS
(../shared/models); one that is missing is left out, and the report says so.

Needs torch and transformers (tests/loaders/requirements.txt) besides bench/requirements.txt.
"""

import argparse
import csv
import json
import math
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from codec import BUILD, MODELS, RESULTS, ROOT, Report, bits_of, run, store

LEVELS = [19, 23, 26, 29, 35]  # dB
WINDOW, WINDOWS, BATCH = 512, 40, 4
PEERS_MODEL, PEERS_PERPLEXITY = "lm", 37.607  # unquantised, on the windows of peers.csv
# Uniform scalar quantisers of these SQNR are in peers.csv too: evaluated here as well, they tell how
# far the two sets of windows differ.
ANCHORS = [20, 29]
# Bounds and variants that are in peers.csv for other comparisons.
NOT_SHOWN = ("scalar", "lossless", "bf16")
FAMILIES = {"ggml_": ("k-quants, i-quants", "s", "tab:blue"), "bnb_": ("NF4", "D", "tab:green"),
            "rtn": ("int4, groups", "^", "tab:brown"), "hqq": ("HQQ", "v", "tab:olive"),
            "fp8": ("FP8", "P", "tab:pink"), "int8": ("int8 a row", "*", "tab:cyan"),
            "hf_U": ("the paper (fixed-width index)", "x", "grey")}
# Formats named in the plot, and where the name stands: points right and up of the mark.
LABELS = {"Q8_0": (6, -2, "left"), "Q6_K": (6, -2, "left"), "Q5_K": (6, -2, "left"),
          "Q4_K": (6, -6, "left"), "Q3_K": (6, -2, "left"), "Q4_0": (6, -2, "left"),
          "IQ4_XS": (-50, -32, "right"), "MXFP4": (6, -2, "left"), "Q3_K_M": (-13, -3, "right"),
          "Q4_K_M": (-1, -11, "right"), "Q5_K_M": (5, 4, "left")}


def load(directory):
    import torch
    from transformers import AutoModelForCausalLM
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def windows_of(directory, text):
    """At most 40 windows, spread evenly over all that the text has; the short last one is left out
    unless it is the only one."""
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(directory, model_max_length=1 << 30)
    tokens = tokenizer(Path(text).read_text(encoding="utf-8"), add_special_tokens=False,
                       return_tensors="pt").input_ids[0]
    count = max(1, len(tokens) // WINDOW)
    chosen = min(count, WINDOWS)
    starts = [(2 * i + 1) * count // (2 * chosen) * WINDOW for i in range(chosen)]
    return [tokens[s:s + WINDOW] for s in starts]


def scalar_copy(directory, db):
    """The model with all matrices rounded to multiples of a step a tensor, at `db` each."""
    import torch
    model = load(directory)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() < 2:
                continue
            power = p.double().square().mean().item()
            wanted = power * 10 ** (-db / 10)
            step = math.sqrt(12 * wanted)
            for _ in range(3):
                noise = (torch.round(p / step) * step - p).double().square().mean().item()
                step *= math.sqrt(wanted / noise)
            p.copy_(torch.round(p / step) * step)
    return model


def evaluate(original, copies, windows):
    """Perplexity of the original; perplexity and divergence of each copy."""
    import torch
    tokens = 0
    loss = np.zeros(1 + len(copies))
    divergence = np.zeros(len(copies))
    with torch.inference_mode():
        for i in range(0, len(windows), BATCH):
            x = torch.stack(windows[i:i + BATCH])
            target = x[:, 1:, None]

            def log_probabilities(model):
                logits = model(input_ids=x, use_cache=False).logits[:, :-1].float()
                return torch.log_softmax(logits, dim=-1)

            log_p = log_probabilities(original)
            p = log_p.exp()
            loss[0] -= log_p.gather(-1, target).double().sum().item()
            for k, copy in enumerate(copies):
                log_q = log_probabilities(copy)
                loss[1 + k] -= log_q.gather(-1, target).double().sum().item()
                divergence[k] += (p * (log_p - log_q)).sum(-1).double().sum().item()
            tokens += target.numel()
    perplexity = [math.exp(one / tokens) for one in loss]
    return perplexity[0], list(zip(perplexity[1:], (divergence / tokens).tolist())), tokens


def measure(directory, text, work, anchors):
    import torch
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    copies, facts = [], []
    for db in LEVELS:
        image, out = work / "i.hyperfs", work / "extracted"
        _, tensors = store(directory, image, f"--quality={db}")
        run(BUILD / "fsck.hyperfs", "-q", f"--extract={out}", image)
        copies.append(load(out))
        facts.append((db, bits_of(tensors), image.stat().st_size))
        run("rm", "-r", out, image)
    windows = windows_of(directory, text)
    names = [f"scalar_{db}dB" for db in anchors]
    copies += [scalar_copy(directory, db) for db in anchors]
    base, results, tokens = evaluate(load(directory), copies, windows)
    rows = [{"db": db, "bits": bits, "image": size, "perplexity": ppl, "kl": kl}
            for (db, bits, size), (ppl, kl) in zip(facts, results)]
    checks = {name: {"perplexity": ppl, "kl": kl}
              for name, (ppl, kl) in zip(names, results[len(rows):])}
    return {"windows": len(windows), "tokens": tokens, "perplexity": base, "hyperfs": rows,
            "scalar": checks}


def read_peers():
    with open(ROOT / "bench" / "peers.csv", newline="") as f:
        return {row["method"]: {"bits": float(row["bits_per_weight"]),
                                "perplexity": float(row["perplexity"]),
                                "kl": float(row["kl_nats_per_token"])}
                for row in csv.DictReader(f)
                if row["model"] == PEERS_MODEL and row["perplexity"] and row["kl_nats_per_token"]}


def bits_at(rows, kl):
    """Bits of the hyperfs curve at a divergence; None outside of what was measured."""
    rows = sorted(rows, key=lambda row: row["kl"])
    if not rows[0]["kl"] <= kl <= rows[-1]["kl"]:
        return None
    return float(np.interp(math.log(kl), [math.log(row["kl"]) for row in rows],
                           [row["bits"] for row in rows]))


def tell_model(report, name, result):
    report.add(f"## {name}\n")
    report.add(f"{result['windows']} windows of {WINDOW} tokens, {result['tokens']} predictions; "
               f"perplexity of the original: {result['perplexity']:.3f}.\n")
    report.table(["dB", "bits a weight", "image, bytes", "perplexity", "change", "KL, nats a token"],
                 [[r["db"], f"{r['bits']:.3f}", r["image"], f"{r['perplexity']:.3f}",
                   f"{100 * (r['perplexity'] / result['perplexity'] - 1):+.2f} %", f"{r['kl']:.2e}"]
                  for r in result["hyperfs"]])


def tell_peers(report, result, peers):
    report.add("## Other formats at equal divergence\n")
    report.add("Figures of bench/peers.csv for the same model, on other windows of the same text "
               f"(unquantised perplexity {PEERS_PERPLEXITY}). So what is compared is the divergence and the "
               "relative change of perplexity. How far the windows differ is told by scalar quantisers "
               "that both have:\n")
    report.table(["quantiser", "KL here", "KL in peers.csv", "ratio", "perplexity here", "in peers.csv"],
                 [[name, f"{one['kl']:.2e}", f"{peers[name]['kl']:.2e}",
                   f"{one['kl'] / peers[name]['kl']:.2f}",
                   f"{100 * (one['perplexity'] / result['perplexity'] - 1):+.2f} %",
                   f"{100 * (peers[name]['perplexity'] / PEERS_PERPLEXITY - 1):+.2f} %"]
                  for name, one in result["scalar"].items() if name in peers])
    report.add("hyperfs has one signal-to-noise ratio for all tensors here; the types with \"like\" in "
               "their names and the paper's rule do not. Bits of hyperfs by interpolation between the "
               "levels above; formats outside of their range are left out.\n")
    rows = []
    for method, peer in sorted(peers.items(), key=lambda item: item[1]["kl"]):
        bits = bits_at(result["hyperfs"], peer["kl"])
        if bits is None or method.startswith(NOT_SHOWN):
            continue
        rows.append([method, f"{peer['bits']:.3f}",
                     f"{100 * (peer['perplexity'] / PEERS_PERPLEXITY - 1):+.2f} %",
                     f"{peer['kl']:.2e}", f"{bits:.3f}", f"{100 * (1 - bits / peer['bits']):.1f} %"])
    report.table(["format", "bits", "perplexity", "KL", "hyperfs, bits", "smaller by"], rows)


def draw(axes, peers, y, hyperfs, label_at):
    scalar = sorted((p["bits"], y(p)) for m, p in peers.items() if m.startswith("ecsq"))
    axes.plot(*zip(*scalar), "k--", lw=1, label="scalar, ideal entropy code")
    for prefix, (family, marker, colour) in FAMILIES.items():
        some = sorted((p["bits"], y(p), m) for m, p in peers.items() if m.startswith(prefix))
        if not some:
            continue
        axes.plot([b for b, _, _ in some], [v for _, v, _ in some], marker, ls="", ms=5,
                  color=colour, label=family)
        for b, v, m in some:
            name = m.removeprefix("ggml_").removesuffix("_like")
            if name in label_at:
                dx, dy, where = label_at[name]
                axes.annotate(name, (b, v), fontsize=7, xytext=(dx, dy), ha=where, color=colour,
                              textcoords="offset points", arrowprops={
                                  "arrowstyle": "-", "lw": 0.6, "color": colour}
                              if dx < -20 else None)
    axes.plot([b for b, _ in hyperfs], [v for _, v in hyperfs], "o-", color="tab:red", zorder=3,
              label="hyperfs, default effort")
    axes.set(xlabel="bits a weight", yscale="log")
    axes.grid(alpha=0.3, which="both", lw=0.5)


def plot(result, peers):
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "hyperfs"
    import matplotlib.pyplot as plt
    peers = {m: p for m, p in peers.items() if not m.startswith(NOT_SHOWN)}
    figure, (left, other) = plt.subplots(1, 2, figsize=(10, 5))
    draw(left, peers, lambda p: p["kl"], [(r["bits"], r["kl"]) for r in result["hyperfs"]], LABELS)
    left.set(title="divergence from the original", ylabel="KL, nats a token", xlim=(2.3, 9.2))
    change = lambda p: 100 * (p["perplexity"] / PEERS_PERPLEXITY - 1)
    draw(other, peers, change,
         [(r["bits"], 100 * (r["perplexity"] / result["perplexity"] - 1))
          for r in result["hyperfs"] if r["perplexity"] > result["perplexity"]],
         LABELS | {"Q4_K_M": (6, -2, "left"), "Q3_K_M": (-8, -9, "right"),
                   "Q5_K_M": (4, -11, "left")})
    other.set(title="change of perplexity", ylabel="%", xlim=(2.3, 9.2))
    left.legend(fontsize=7, loc="upper right")
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "perplexity.svg", metadata={"Date": None})


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
                            ).parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        from transformers.utils import logging
    except ImportError:
        sys.exit("bench: torch or transformers is missing: pip install -r tests/loaders/requirements.txt")
    logging.disable_progress_bar()
    report, results, peers = Report(), {}, read_peers()
    RESULTS.mkdir(exist_ok=True)
    report.add("# Perplexity and divergence\n")
    report.add("By bench/perplexity.py: unmodified transformers on extracted images, 32-bit floats, default "
               "effort, one signal-to-noise ratio for all tensors.\n")
    cases = {"lm": (MODELS / "lm", MODELS / "lm" / "heldout.txt"),
             "demo": (ROOT / "models" / "demo", ROOT / "demo" / "text.txt")}
    for name, (directory, text) in cases.items():
        if not (directory / "model.safetensors").exists() or not text.exists():
            report.add(f"Not here: {name}.\n")
            continue
        with tempfile.TemporaryDirectory(prefix="hyperfs-bench-") as work:
            results[name] = measure(directory, text, Path(work),
                                    ANCHORS if name == PEERS_MODEL else [])
        tell_model(report, name, results[name])
        if name == PEERS_MODEL:
            tell_peers(report, results[name], peers)
            plot(results[name], peers)
    (RESULTS / "perplexity.md").write_text("\n".join(report.lines) + "\n")
    (RESULTS / "perplexity.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
