#!/usr/bin/env python3
"""bench/quality.py: size of the image against what the loss does to a language model's predictions.

Stores each model with every preset, and at 3, 4 and 5 bits with the presets' allocation and with
one signal-to-noise ratio everywhere, extracts the images and compares the predictions with the
original's, as hyperfs-eval does (32-bit floats on the CPU). Beside them: formats that are simple
enough to be here (bench/formats.py), and those of bench/peers.csv, which were measured elsewhere.

Writes bench/results/quality.md and quality.csv, docs/quality-MODEL.svg, and the tables in
docs/quality.md.

Models: models/demo with demo/text.txt; lm and story in HYPERFS_MODELS (../shared/models). One that
is missing is left out, and the report says so. Needs torch and transformers
(eval/requirements.txt) besides bench/requirements.txt.
"""

import argparse
import csv
import json
import math
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from codec import BUILD, MODELS, RESULTS, ROOT, Report, run

sys.path.insert(0, str(ROOT / "eval"))

PRESETS = ["high", "good", "small", "tiny"]
LEVELS = [19, 23, 26, 29, 35]  # dB, the same in all tensors
SIZES = [3, 4, 5]              # bits a weight, with both allocations
CONTEXT, WINDOWS = 512, 40
# What the presets are to reach on lm: divergence below, at that many bits at most.
GOALS = {"high": (0.0003, 5.9), "good": (0.0015, 4.9), "small": (0.004, 4.0), "tiny": (0.015, 3.3)}
GOALS_MODEL, GOAL_RATIO = "lm", 0.5
# Figures of bench/peers.csv: perplexity of the original there, and whether its tokens are ours.
PEERS = {"lm": (37.607, False), "story": (16.916, True)}
# Bounds and variants that are in peers.csv for other comparisons.
NOT_SHOWN = ("scalar", "ecsq", "lossless", "bf16")
FAMILIES = {"ggml_": ("k-quants, i-quants", "s", "tab:blue"),
            "bnb_": ("NF4, FP4", "D", "tab:green"), "rtn": ("int4, groups", "^", "tab:brown"),
            "hqq": ("HQQ", "v", "tab:olive"),
            "fp8": ("FP8", "P", "tab:pink"), "int8": ("int8 a row", "*", "tab:cyan"),
            "hf_U": ("the paper", "x", "grey")}
LABELS = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q4_0", "MXFP4", "Q4_K_M", "Q3_K_M", "Q5_K_M")
FIELDS = ["model", "group", "name", "bits", "image_bytes", "ratio", "sqnr_median_db", "perplexity",
          "change", "change_error", "kl_mean", "kl_error", "kl_p99", "top1_agreement"]


# ---- measuring ----

class Judge:
    """The original's predictions, on disk, and the windows they are of."""

    def __init__(self, directory: Path, windows, vocabulary: int, work: Path):
        from hyperfs_eval import language, models
        self.windows = windows
        self.batches = language.batches_of(windows, vocabulary)
        original = language.Live(models.load_causal(directory, "float32"), self.batches,
                                 windows.given, str(directory))
        self.stored = language.Stored(original, directory=str(work))

    def __call__(self, model, name: str) -> dict:
        from hyperfs_eval import language
        copy = language.Live(model, self.batches, self.windows.given, name)
        return language.summary(language.evaluate(
            copy, self.batches, self.windows.given, self.stored))


def windows_of(name: str, directory: Path):
    from hyperfs_eval import models, text
    if name == "story":
        sequences = json.loads((directory / "eval_tokens.json").read_text())["seqs"]
        return text.Windows(sorted(sequences, key=len), 1)
    path = ROOT / "demo" / "text.txt" if name == "demo" else directory / "heldout.txt"
    tokens = text.tokens_of(models.load_tokenizer(directory), text.read(str(path)))
    return text.cut(tokens, [], CONTEXT, WINDOWS, None, str(path))


def facts_of(image: Path) -> dict:
    """Bits a weight count all matrices of 4,096 elements and more, whatever way they are stored,
    and what the tables say of them."""
    found = json.loads(run(BUILD / "dump.hyperfs", "--json", "--tensors", image))
    matrices = [t for t in found["tensors"] if len(t["shape"]) > 1 and t["elements"] >= 4096]
    size = sum(t["stored"] for t in matrices)
    if found["lossy_tensors"]:
        size += found["bits_a_weight"] * found["lossy_weights"] / 8 - found["lossy_stored"]
    return {"bits": 8 * size / sum(t["elements"] for t in matrices), "ratio": found["ratio"],
            "image_bytes": found["image_bytes"], "sqnr_median_db": found["sqnr_median_db"]}


def variants():
    """group, name, options of mkhyperfs; the groups are lines in the plots."""
    yield "presets", "lossless", ["--lossless"]
    for preset in PRESETS:
        yield "presets", preset, [f"--quality={preset}"]
    if "--allocation" not in run(BUILD / "mkhyperfs", "--help"):
        for db in LEVELS:
            yield "flat", f"{db} dB", [f"--quality={db}"]
        return
    for db in LEVELS:
        yield "flat", f"{db} dB", [f"--quality={db}", "--allocation=flat"]
    for bits in SIZES:
        yield "rules", f"{bits} bits", [f"--bits={bits}"]
        yield "flat", f"{bits} bits, flat", [f"--bits={bits}", "--allocation=flat"]


def measure(name: str, directory: Path, work: Path) -> tuple[list[dict], dict]:
    """The rows, and what they were measured on."""
    import formats
    from hyperfs_eval import models
    windows = windows_of(name, directory)
    vocabulary = models.load_config(directory).vocab_size
    judge = Judge(directory, windows, vocabulary, work)
    rows, image, out = [], work / "i.hyperfs", work / "extracted"

    def add(group, label, facts, found):
        rows.append({"model": name, "group": group, "name": label, **facts,
                     **{k: found[k] for k in FIELDS if k in found}})
        print(f"{name}: {label}: {facts['bits']:.3f} bits, KL {found['kl_mean']:.2e}",
              file=sys.stderr, flush=True)
        return found

    for group, label, options in variants():
        run(BUILD / "mkhyperfs", "-f", "-q", "--no-verify", *options, directory, image)
        run(BUILD / "fsck.hyperfs", "-q", f"--extract={out}", image)
        found = add(group, label, facts_of(image), judge(models.load_causal(out, "float32"), label))
        shutil.rmtree(out)
    for label, quantise in formats.FORMATS.items():
        model = models.load_causal(directory, "float32")
        bits = formats.apply(model, quantise)
        add("formats", label, {"bits": bits}, judge(model, label))
    about = {"windows": len(windows.tokens), "predictions": windows.predictions(),
             "perplexity": found["original_perplexity"],
             "error": found["original_perplexity_error"]}
    return rows, about


# ---- comparing ----

def read_peers(name: str) -> dict:
    with open(ROOT / "bench" / "peers.csv", newline="") as f:
        return {row["method"]: {"bits": float(row["bits_per_weight"]),
                                "change": float(row["perplexity"]) / PEERS[name][0] - 1,
                                "kl_mean": float(row["kl_nats_per_token"])}
                for row in csv.DictReader(f)
                if name in PEERS and row["model"] == name and row["perplexity"]
                and float(row["kl_nats_per_token"] or 0) > 0}


def curve(rows: list[dict], group: str) -> list[tuple[float, float]]:
    """(bits, divergence) of what was stored that way, by bits."""
    groups = ("presets", "rules") if group == "rules" else (group,)
    return sorted((r["bits"], r["kl_mean"])
                  for r in rows if r["group"] in groups and r["kl_mean"] > 0)


def at(points, value: float, wanted: int) -> float | None:
    """Bits (wanted 0) at a divergence, or divergence (1) at bits, between the points of a curve:
    the logarithm of the divergence is nearly a line. None outside of it."""
    xs = [b if wanted else -math.log(kl) for b, kl in points]
    ys = [math.log(kl) if wanted else b for b, kl in points]
    x = value if wanted else -math.log(value)
    if not points or not min(xs) <= x <= max(xs):
        return None
    found = float(np.interp(x, sorted(xs), [y for _, y in sorted(zip(xs, ys))]))
    return math.exp(found) if wanted else found


def percent(value: float, digits: int = 2) -> str:
    return f"{100 * value:+.{digits}f} %"


def preset_table(rows: list[dict]) -> tuple[list[str], list[list]]:
    header = ["option", "image, MB", "times smaller", "bits a weight", "SQNR, dB", "perplexity",
              "change", "KL, nats a token", "99th percentile", "top-1"]
    body = []
    for r in rows:
        option = {"lossless": "`--lossless`"}.get(r["name"], f"`--quality={r['name']}`")
        if r["group"] == "presets":
            sqnr = r["sqnr_median_db"]
            body.append([option, f"{r['image_bytes'] / 1e6:.2f}", f"{r['ratio']:.2f}",
                         f"{r['bits']:.2f}", "exact" if sqnr is None else f"{sqnr:.1f}",
                         f"{r['perplexity']:.3f}",
                         f"{percent(r['change'])} ± {100 * r['change_error']:.2f}",
                         f"{r['kl_mean']:.5f}", f"{r['kl_p99']:.4f}",
                         f"{100 * r['top1_agreement']:.2f} %"])
    return header, body


def tell_goals(report: Report, rows: list[dict]):
    report.add("### Goals\n")
    body = []
    for name, (limit, bits) in GOALS.items():
        r = next(r for r in rows if r["name"] == name)
        body.append([f"`{name}`", f"{r['bits']:.3f}", f"{bits}",
                     report.verdict(r["bits"] <= bits, f"bits of {name}"), f"{r['kl_mean']:.6f}",
                     f"{limit}", report.verdict(r["kl_mean"] < limit, f"divergence of {name}")])
    report.table(["preset", "bits", "at most", "", "KL", "below", ""], body)
    named = {r["name"]: r for r in rows}
    if f"{SIZES[0]} bits" not in named:
        report.add("This mkhyperfs has one allocation only: it is not compared with a flat one.\n")
        return
    body = []
    flat_curve = curve(rows, "flat")
    for size in SIZES:
        rules = named[f"{size} bits"]
        flat = at(flat_curve, rules["bits"], 1) or named[f"{size} bits, flat"]["kl_mean"]
        ratio = rules["kl_mean"] / flat
        body.append([size, f"{rules['bits']:.3f}", f"{flat:.6f}", f"{rules['kl_mean']:.6f}",
                     f"{ratio:.3f}", GOAL_RATIO,
                     report.verdict(ratio <= GOAL_RATIO, f"divergence beside flat at {size} bits")])
    report.add("At equal size, the presets' allocation against one SQNR for all tensors (the flat "
               "divergence is that at the bits which the allocation used, interpolated):\n")
    report.table(["asked bits", "bits", "KL, flat", "KL, allocation", "ratio", "at most", ""], body)


def tell_formats(report: Report, name: str, rows: list[dict], peers: dict):
    report.add("### Beside other formats\n")
    report.add("Formats of bench/formats.py are measured here, on the same predictions"
               + ("." if name not in PEERS else
                  "; those with a star stand in bench/peers.csv, "
                  + ("measured on the same tokens. There matrices below 16,384 elements stayed "
                     "exact." if PEERS[name][1] else
                     f"measured on other windows of the same text (perplexity {PEERS[name][0]} "
                     "there): so divergence and relative change are compared, and formats that are "
                     "in both tell how far the windows differ.")))
    report.add("hyperfs with the presets' allocation, by interpolation between measured points: "
               "its divergence at the format's bits, and its bits at the format's divergence; last "
               "with one SQNR everywhere. Where it was not measured nothing stands.\n")
    ours, plain = curve(rows, "rules"), curve(rows, "flat")
    both = [(r["name"], r) for r in rows if r["group"] == "formats"]
    both += [(f"{method} *", p) for method, p in peers.items() if not method.startswith(NOT_SHOWN)]
    body = []
    for label, r in sorted(both, key=lambda item: item[1]["kl_mean"]):
        kl, bits = at(ours, r["bits"], 1), at(ours, r["kl_mean"], 0)
        same = at(plain, r["kl_mean"], 0)
        body.append([label, f"{r['bits']:.3f}", percent(r["change"]), f"{r['kl_mean']:.2e}",
                     f"{kl:.2e}" if kl else "", f"{r['kl_mean'] / kl:.2f}" if kl else "",
                     f"{bits:.3f}" if bits else "",
                     f"{100 * (1 - bits / r['bits']):.1f} %" if bits else "",
                     f"{100 * (1 - same / r['bits']):.1f} %" if same else ""])
    report.table(["format", "bits", "perplexity", "KL", "hyperfs, KL at equal bits",
                  "format's to ours", "hyperfs, bits at equal KL", "smaller by",
                  "smaller by, one SQNR"], body)


def tell(report: Report, name: str, rows: list[dict], about: dict, peers: dict):
    report.add(f"## {name}\n")
    report.add(f"{about['windows']} windows, {about['predictions']:,} predictions; perplexity of "
               f"the original {about['perplexity']:.3f} ± {about['error']:.3f}.\n")
    report.table(*preset_table(rows))
    report.add("### By size\n")
    report.table(["stored with", "bits a weight", "change of perplexity", "KL, nats a token", "±",
                  "99th percentile", "top-1"],
                 [[r["name"], f"{r['bits']:.3f}",
                   f"{percent(r['change'])} ± {100 * r['change_error']:.2f}", f"{r['kl_mean']:.2e}",
                   f"{r['kl_error']:.0e}", f"{r['kl_p99']:.2e}",
                   f"{100 * r['top1_agreement']:.2f} %"]
                  for r in rows if r["group"] in ("flat", "rules")])
    if name == GOALS_MODEL:
        tell_goals(report, rows)
    tell_formats(report, name, rows, peers)


# ---- pictures ----

def draw(axes, rows: list[dict], peers: dict, key: str):
    for prefix, (family, marker, colour) in FAMILIES.items():
        some = [(p["bits"], p[key], m) for m, p in peers.items()
                if m.startswith(prefix) and not m.endswith("_ent") and p[key] > 0]
        if not some:
            continue
        axes.plot([b for b, _, _ in some], [v for _, v, _ in some], marker, ls="", ms=4.5,
                  color=colour, mfc="none", label=f"{family} (peers.csv)")
        for bits, value, method in some:
            label = method.removeprefix("ggml_").removesuffix("_like")
            if label in LABELS:
                axes.annotate(label, (bits, value), fontsize=7, xytext=(5, 2), color=colour,
                              textcoords="offset points")
    here = [r for r in rows if r["group"] == "formats" and r[key] > 0]
    scalar = sorted((r["bits"], r[key]) for r in here if r["name"].startswith("scalar"))
    axes.plot(*zip(*scalar), "k:", lw=1, label="scalar, ideal entropy code")
    others = [r for r in here if not r["name"].startswith("scalar")]
    axes.plot([r["bits"] for r in others], [r[key] for r in others], "o", ls="", ms=5,
              color="tab:purple", label="formats measured here")
    for i, r in enumerate(sorted(others, key=lambda r: r["bits"]) if not peers else []):
        axes.annotate(r["name"], (r["bits"], r[key]), fontsize=7, xytext=(5, (-9, 4)[i % 2]),
                      color="tab:purple", textcoords="offset points")
    flat = sorted((r["bits"], r[key]) for r in rows if r["group"] == "flat" and r[key] > 0)
    axes.plot(*zip(*flat), "--", color="tab:orange", lw=1.2, label="hyperfs, one SQNR everywhere")
    ours = sorted((r["bits"], r[key]) for r in rows
                  if r["group"] in ("presets", "rules") and r["name"] != "lossless" and r[key] > 0)
    axes.plot(*zip(*ours), "-", color="tab:red", lw=1.4, label="hyperfs, presets' allocation")
    for r in rows:
        if r["group"] == "presets" and r["name"] != "lossless" and r[key] > 0:
            axes.plot(r["bits"], r[key], "o", color="tab:red", zorder=4)
            axes.annotate(r["name"], (r["bits"], r[key]), fontsize=8, xytext=(-6, -10), ha="right",
                          color="tab:red", textcoords="offset points", weight="bold")
    axes.set(xlabel="bits a weight", yscale="log", xlim=(2.3, 9.2))
    axes.grid(alpha=0.3, which="both", lw=0.5)


def plot(name: str, rows: list[dict], about: dict, peers: dict):
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "hyperfs"
    import matplotlib.pyplot as plt
    shown = [{**r, "change": 100 * r["change"]} for r in rows]
    others = {m: {**p, "change": 100 * p["change"]} for m, p in peers.items()}
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.2))
    draw(left, shown, others, "kl_mean")
    left.set(title=f"{name}: divergence from the original", ylabel="KL, nats a token")
    least = min(r["kl_mean"] for r in rows if r["kl_mean"] > 0)
    left.set_ylim(least / 2, max(r["kl_mean"] for r in rows) * 3)
    draw(right, shown, others, "change")
    right.set_ylim(top=10 * max(r["change"] for r in shown if r["group"] == "flat"))
    noise = 100 * about["error"] / about["perplexity"]
    right.set(title=f"{name}: change of perplexity (text: ± {noise:.0f} %)", ylabel="%")
    left.legend(fontsize=7, loc="upper right")
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / f"quality-{name}.svg", metadata={"Date": None})
    plt.close(figure)


def put_table(name: str, lines: list[str]):
    """Into docs/quality.md, between its marks; models that are not here keep what stands there."""
    path = ROOT / "docs" / "quality.md"
    text = path.read_text()
    begin, end = f"<!-- {name}: by make bench-quality -->\n", f"<!-- {name}: end -->"
    head, rest = text.split(begin)
    path.write_text(head + begin + "\n".join(lines) + "\n" + rest[rest.index(end):])


def goals_and_table(report: Report, rows: list[dict], name: str):
    """What docs/quality.md shows of a model."""
    mark = len(report.lines)
    header, body = preset_table(rows)
    keep = [0, 1, 2, 3, 6, 7, 9]
    quiet = Report()
    quiet.add = quiet.lines.append
    quiet.table = lambda h, b: quiet.lines.extend(
        ["| " + " | ".join(h) + " |", "|" + " --- |" * len(h),
         *("| " + " | ".join(map(str, row)) + " |" for row in b), ""])
    quiet.table([header[i] for i in keep], [[row[i] for i in keep] for row in body])
    if name == GOALS_MODEL:
        tell_goals(quiet, rows)
    assert mark == len(report.lines)
    put_table(name, [re.sub("^### Goals$", "Against the goals that were set for the presets:", line)
                     for line in quiet.lines][:-1])


def main():
    argparse.ArgumentParser(description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        from hyperfs_eval import models
    except ImportError:
        sys.exit("bench: torch or transformers is missing: pip install -r eval/requirements.txt")
    models.quiet_transformers()
    report, every = Report(), []
    RESULTS.mkdir(exist_ok=True)
    report.add("# Size and quality\n")
    report.add("By bench/quality.py: unmodified transformers on extracted images, 32-bit floats, "
               "default effort. Bits a weight count all that the image stores about matrices of "
               "4,096 elements and more. KL is the mean divergence from the original's "
               "predictions.\n")
    cases = {"lm": MODELS / "lm", "story": MODELS / "story", "demo": ROOT / "models" / "demo"}
    for name, directory in cases.items():
        if not (directory / "model.safetensors").exists():
            report.add(f"{name} is not here (HYPERFS_MODELS) and was left out.\n")
            continue
        with tempfile.TemporaryDirectory(prefix="hyperfs-bench-") as work:
            rows, about = measure(name, directory, Path(work))
        peers = read_peers(name)
        tell(report, name, rows, about, peers)
        plot(name, rows, about, peers)
        goals_and_table(report, rows, name)
        every += rows
    report.add(f"{len(report.missed)} missed" + (": " + "; ".join(report.missed) if report.missed
                                                  else "") + ".")
    (RESULTS / "quality.md").write_text("\n".join(report.lines) + "\n")
    with open(RESULTS / "quality.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: round(v, 7) if isinstance(v, float) else v for k, v in row.items()}
                         for row in every)


if __name__ == "__main__":
    main()
