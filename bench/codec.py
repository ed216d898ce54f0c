#!/usr/bin/env python3
"""bench/codec.py: what the code reaches in size and speed, with pass or miss beside each limit.

Run by `make bench-codec`. Everything is measured file to file with the tools in build/, but the
figures of one core in memory (build/bench/speed). Writes bench/results/codec.md and codec.json
and the plot docs/rate-distortion.svg.

HYPERFS_MODELS names a folder of further models (../shared/models); those that are missing are
left out, and the table says so.
"""

import csv
import json
import math
import os
import platform
import statistics
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import zstandard

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / os.environ.get("HYPERFS_BUILD", "build")
RESULTS = ROOT / "bench" / "results"
MODELS = Path(os.environ.get("HYPERFS_MODELS", ROOT.parent / "shared" / "models"))
DB_A_BIT = 20 * math.log10(2)
GAUSSIAN = 16 << 20  # weights
EFFORTS = {"fast": (0.65, 60), "default": (0.45, 25), "best": (0.40, 6)}  # dB, M weights/s
# The gap swings by 0.03 dB with a period of 3 dB, as Huffman's code fits better or worse; 20, 23
# ... 35 are its worst points.
LEVELS = [12.7, 19, 20, 23, 26, 29, 32, 35, 36]
REPEATS = 5
# Scores of formats that nobody stores a model in: bounds and variants with an ideal code.
IDEAL = ("ecsq", "lossless", "scalar", "bf16", "hf_U")


class Report:
    def __init__(self):
        self.lines, self.data, self.missed = [], {}, []

    def add(self, text=""):
        print(text, flush=True)
        self.lines.append(text)

    def table(self, header, rows):
        self.add("| " + " | ".join(header) + " |")
        self.add("|" + " --- |" * len(header))
        for row in rows:
            self.add("| " + " | ".join(str(cell) for cell in row) + " |")
        self.add()

    def verdict(self, good, what):
        if not good:
            self.missed.append(what)
        return "pass" if good else "**miss**"


def run(*words):
    done = subprocess.run([str(w) for w in words], text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"bench: {' '.join(map(str, words))}: {done.stderr}")
    return done.stdout


def bf16(values):
    """float32 to the nearest bfloat16, as uint16."""
    bits = np.ascontiguousarray(values, "<f4").view("<u4")
    return ((bits + 0x7fff + (bits >> 16 & 1)) >> 16).astype("<u2")


def write_safetensors(path, tensors):
    """tensors: name -> (dtype, shape, array)"""
    header, offset = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape,
                        "data_offsets": [offset, offset + data.nbytes]}
        offset += data.nbytes
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            f.write(data.tobytes())


def read_safetensors(path):
    raw = Path(path).read_bytes()
    size = struct.unpack_from("<Q", raw)[0]
    header = json.loads(raw[8:8 + size])
    header.pop("__metadata__", None)
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
    for name, t in header.items():
        begin, end = t["data_offsets"]
        if t["dtype"] in kinds:
            yield name, t["dtype"], t["shape"], np.frombuffer(raw, kinds[t["dtype"]],
                                                              (end - begin) // np.dtype(
                                                                  kinds[t["dtype"]]).itemsize,
                                                              8 + size + begin)


def store(source, image, *options):
    """Makes an image; mkhyperfs's summary, and the records of its lossy tensors."""
    summary = json.loads(run(BUILD / "mkhyperfs", "-f", "--json", *options, source, image))
    tensors = json.loads(run(BUILD / "dump.hyperfs", "--json", "--tensors", image))["tensors"]
    return summary, [t for t in tensors if t["code"] == "trajectory"]


def bits_of(tensors):
    return sum(t["stored"] for t in tensors) * 8 / sum(t["elements"] for t in tensors)


def gaussian(dtype):
    values = np.random.default_rng(1).standard_normal(GAUSSIAN, np.float32) * np.float32(0.02)
    return bf16(values) if dtype == "BF16" else values.astype("<f4")


def rate_distortion(report, sources, image):
    """sources: dtype -> file. Returns dtype -> effort -> [(bits, SQNR)]."""
    report.add("## Rate and distortion\n")
    report.add(f"{GAUSSIAN / 2**20:.0f} M Gaussian weights, file to file with one thread and "
               f"without reading back. Gap: {DB_A_BIT:.4f} dB a bit less the SQNR; Shannon's bound is "
               "0. Bits: data of the tensor, all side information in its blocks. Speed: whole "
               f"runs of mkhyperfs, median of {REPEATS} at 23 dB, else one run. In BF16 the rounding "
               "of what is decoded adds noise of its own, 0.04 dB at 35 dB.\n")
    curves, rows = {}, []
    for dtype, source in sources.items():
        curves[dtype] = {effort: [] for effort in EFFORTS}
        for effort, (gap_limit, speed_limit) in EFFORTS.items():
            for db in LEVELS:
                timed, seconds = db == 23, []
                for _ in range(REPEATS if timed else 1):
                    summary, (tensor,) = store(source, image, f"--quality={db}",
                                               f"--effort={effort}", "-j1", "--no-verify")
                    seconds.append(summary["seconds"])
                bits, sqnr = bits_of([tensor]), tensor["sqnr_db"]
                gap, speed = DB_A_BIT * bits - sqnr, GAUSSIAN / statistics.median(seconds) / 1e6
                limit = 1.0 if db < 19 else gap_limit
                curves[dtype][effort].append((bits, sqnr))
                rows.append([dtype, effort, db, f"{sqnr:.2f}", f"{bits:.4f}", f"{gap:.3f}",
                             f"{limit:.2f}",
                             report.verdict(gap <= limit, f"gap, {dtype}, {effort}, {db} dB"),
                             f"{speed:.1f}", speed_limit if timed else "",
                             report.verdict(speed >= speed_limit, f"encoding, {dtype}, {effort}")
                             if timed else ""])
    report.table(["dtype", "effort", "asked dB", "SQNR dB", "bits", "gap dB", "limit", "",
                  "M weights/s a core", "limit", ""], rows)
    source = sources["BF16"]
    one, two = (statistics.median(
        store(source, image, "--quality=23", f"-j{jobs}", "--no-verify")[0]["seconds"]
        for _ in range(REPEATS)) for jobs in (1, 2))
    report.add(f"Two threads, BF16, default effort: {one / two:.2f} times as fast as one; LLaMA2-7B "
               f"(6.74 G weights) would take {6.74e9 / GAUSSIAN * two / 60:.1f} minutes.\n")
    peak = int(subprocess.run(["/usr/bin/time", "-f", "%M", BUILD / "mkhyperfs", "-f", "-q",
                               "--no-verify", "-j2", "--quality=23", "--effort=best", source, image],
                              capture_output=True, text=True).stderr.split()[-1]) / 1024
    report.add(f"Peak memory with two threads at best effort: {peak:.0f} MiB, limit 256: "
               f"{report.verdict(peak <= 256, 'memory')}.\n")
    report.data["curves"] = curves
    return curves


def bits_at(curve, sqnr):
    """Bits of a rate-distortion curve at an SQNR, by interpolation of the gap."""
    curve = sorted(curve, key=lambda point: point[1])
    gaps = np.interp(sqnr, [s for _, s in curve], [DB_A_BIT * b - s for b, s in curve])
    return (sqnr + float(gaps)) / DB_A_BIT


def available_models():
    found = {"demo": ROOT / "models" / "demo"}
    for name in ("lm", "story"):
        if (MODELS / name / "model.safetensors").exists():
            found[name] = MODELS / name
    return found


def real_models(report, models, image, curves):
    report.add("## Real weights against Gaussian ones\n")
    report.add("Default effort. The limit is what Gaussian weights take at the same SQNR; the bits are "
               "those of the tensors' data, as above.\n")
    rows = []
    for name, path in models.items():
        for db in (19, 23, 29, 36):
            _, tensors = store(path / "model.safetensors", image, f"--quality={db}", "--no-verify")
            bits = bits_of(tensors)
            weight = sum(t["elements"] for t in tensors)
            limit = sum(t["elements"] * bits_at(curves[t["dtype"]]["default"], t["sqnr_db"])
                        for t in tensors) / weight
            rows.append([name, db, f"{bits:.4f}", f"{limit:.4f}",
                         report.verdict(bits <= limit, f"bits of {name} at {db} dB")])
    for name in ("lm", "story"):
        if name not in models:
            report.add(f"Not here: {name}.\n")
    report.table(["model", "dB", "bits", "Gaussian", ""], rows)


def peers(report, curves):
    report.add("## Other formats on the same weights\n")
    report.add("bench/peers.csv has their bits, SQNR, perplexity and KL divergence, measured with the "
               "formats' own code or a model of it. Beside each what hyperfs takes at the same "
               "SQNR (Gaussian weights, BF16, default effort). Limits from 19 to 36 dB: a tenth smaller than "
               "what is deployed, a fiftieth smaller than scalar quantisation with an ideal entropy "
               "code.\n")
    rows, points = [], []
    with open(ROOT / "bench" / "peers.csv", newline="") as f:
        for row in csv.DictReader(f):
            bits, sqnr = float(row["bits_per_weight"]), float(row["sqnr_db"])
            method = row["method"]
            scalar = method.startswith("ecsq")
            if row["model"] != "gauss" or sqnr > 100:
                continue
            points.append((method, bits, sqnr))
            if not 19 <= sqnr <= 36 or (method.startswith(IDEAL) and not scalar):
                continue
            ours = bits_at(curves["BF16"]["default"], sqnr)
            saved = 1 - ours / bits
            rows.append([method, f"{bits:.3f}", f"{sqnr:.2f}", f"{ours:.3f}", f"{100 * saved:.1f} %",
                         "2 %" if scalar else "10 %",
                         report.verdict(saved >= (0.02 if scalar else 0.10), f"size beside {method}")])
    rows.sort(key=lambda row: float(row[2]))
    report.table(["format", "bits", "SQNR dB", "hyperfs, bits", "smaller by", "limit", ""], rows)
    return points


def lossless(report, models, work):
    import zipnn
    report.add("## Lossless\n")
    rng = np.random.default_rng(20260101)
    normal = (rng.standard_normal(4 << 20) * 0.02).astype("<f4")
    upper = bf16(normal)
    cases = {
        "Gaussian, BF16": ("BF16", upper, 67.5),
        "Gaussian, F32 of BF16 values": ("F32", upper.astype("<u4") << 16, 34.0),
        "Gaussian, F16": ("F16", normal.astype("<f2"), 86.0),
    }
    for name, path in models.items():
        parts = [(d, a) for _, d, s, a in read_safetensors(path / "model.safetensors") if len(s) > 1]
        kind = parts[0][0]
        cases[f"{name}, {kind}"] = (kind, np.concatenate([a for d, a in parts if d == kind]),
                                    34.0 if kind == "F32" else 67.5)
    rows = []
    for name, (dtype, array, limit) in cases.items():
        raw = array.tobytes()
        n = len(raw) // 2 // array.itemsize * array.itemsize
        write_safetensors(work / "l.safetensors", {"w": (dtype, [2, n // array.itemsize],
                                                         np.frombuffer(raw[:2 * n], "u1"))})
        run(BUILD / "mkhyperfs", "-f", "-q", "--lossless", work / "l.safetensors", work / "l.hyperfs")
        size = (work / "l.hyperfs").stat().st_size
        zstd = len(zstandard.ZstdCompressor(level=19, threads=2).compress(raw))
        theirs = {"BF16": "bfloat16", "F32": "float32", "F16": "float16"}[dtype]
        nn = len(zipnn.ZipNN(bytearray_dtype=theirs).compress(bytearray(raw)))
        percent = 100 * size / len(raw)
        rows.append([name, f"{percent:.2f} %", f"{limit} %",
                     report.verdict(percent <= limit, f"lossless, {name}"),
                     f"{100 * zstd / len(raw):.2f} %", f"{100 * nn / len(raw):.2f} %"])
    report.table(["weights", "hyperfs, whole image", "limit", "", "zstd -19", "zipnn"], rows)


def speeds(report, speed):
    report.add("## Speed in memory, one core\n")
    report.add(f"{platform.processor() or platform.machine()}, {cpu_name()}. GB/s of uncompressed bytes, "
               "median of 7 runs. The limits are for a core of an AMD EPYC (Zen 4).\n")
    copy = next(s["decode_gbs"] for s in speed if s["name"] == "memcpy")
    zstd = next(s["decode_gbs"] for s in speed if s["name"] == "zstd -3")
    limits = {("default", "BF16"): (3.0, 1.2), ("fast", "BF16"): (3.0, 1.2),
              ("best", "BF16"): (3.0, 1.2), ("lossless", "BF16"): (2.5, None)}
    bf = next(s for s in speed if s["name"] == "default" and s["dtype"] == "BF16")
    rows = []
    for s in speed:
        if "dtype" not in s:
            rows.append([s["name"], "", f"{s['bits']:.2f}" if "bits" in s else "", "",
                         f"{s['decode_gbs']:.2f}", "", "", f"{s['decode_gbs'] / copy:.3f}",
                         f"{s['decode_gbs'] / zstd:.1f}"])
            continue
        fast, slow = s["decode_gbs_avx2"], s["decode_gbs_portable"]
        limit, limit_slow = limits.get((s["name"], s["dtype"]), (None, None))
        if (s["name"], s["dtype"]) == ("default", "F32"):
            limit = 1.6 * bf["decode_gbs_avx2"]
        what = f"decoding, {s['name']}, {s['dtype']}"
        rows.append([s["name"], s["dtype"], f"{s['bits']:.2f}", f"{s['encode_mweights']:.0f}",
                     f"{fast:.2f}", f"{limit:.2f} {report.verdict(fast >= limit, what)}" if limit else "",
                     f"{slow:.2f}" + (f" ({limit_slow}: {report.verdict(slow >= limit_slow, what + ', portable')})"
                                      if limit_slow else ""),
                     f"{fast / copy:.3f}", f"{fast / zstd:.1f}"])
    report.table(["code", "dtype", "bits", "encoding M/s", "decoding GB/s, AVX2", "limit", "portable",
                  "of memcpy", "of zstd -3"], rows)


def cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown processor"


def pruned(report, models, work, image):
    report.add("## Pruned models\n")
    report.add("The smallest weights of every matrix set to zero, stored as F32, `--quality small`. Entropy: "
               "H(p) + (1 - p) times the bits of the same tensors unpruned. The paper's pruned UNet "
               "takes 17.9 times less than F32.\n")
    rows = []
    for name, path in models.items():
        matrices = {}
        for t, dtype, shape, a in read_safetensors(path / "model.safetensors"):
            if len(shape) > 1 and a.size >= 4096:
                wide = (a.astype("<u4") << 16).view("<f4") if dtype == "BF16" else a.astype("<f4")
                matrices[t] = (shape, wide)
        def bits(tensors):
            write_safetensors(work / "p.safetensors", {t: ("F32", shape, np.ascontiguousarray(a))
                                                       for t, (shape, a) in tensors.items()})
            return bits_of(store(work / "p.safetensors", image, "--quality=small", "--no-verify")[1])
        dense = bits(matrices)
        for percent in (50, 70, 90):
            cut = {}
            for t, (shape, a) in matrices.items():
                threshold = np.quantile(np.abs(a), percent / 100)
                cut[t] = (shape, np.where(np.abs(a) <= threshold, np.float32(0), a))
            p = sum((a == 0).sum() for _, a in cut.values()) / sum(a.size for _, a in cut.values())
            got = bits(cut)
            ideal = -p * math.log2(p) - (1 - p) * math.log2(1 - p) + (1 - p) * dense
            rows.append([name, f"{100 * p:.1f} %", f"{got:.3f}", f"{ideal:.3f}",
                         report.verdict(got <= 1.05 * ideal, f"pruned {name}, {percent} %"),
                         f"{32 / got:.1f}"])
    report.table(["model", "zeros", "bits", "entropy", "within 5 %", "times smaller than F32"], rows)


def plot(curves, points):
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "hyperfs"
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(8, 5.5))
    shown = {"ggml_": "k-quants, i-quants", "bnb_": "NF4, FP4", "rtn": "int, groups", "hqq": "HQQ",
             "fp8": "FP8", "int8": "int8 a row"}
    xs = np.array([2, 8])
    axes.plot(xs, np.zeros(2), color="black", lw=1, label="Shannon")
    for effort, colour in zip(curves, ("tab:orange", "tab:red", "tab:purple")):
        curve = sorted(curves[effort])
        axes.plot([b for b, _ in curve], [DB_A_BIT * b - s for b, s in curve], "o-", color=colour,
                  label=f"hyperfs, {effort}")
    scalar = sorted((b, s) for m, b, s in points if m.startswith("ecsq"))
    axes.plot([b for b, _ in scalar], [DB_A_BIT * b - s for b, s in scalar], "k--", lw=1,
              label="scalar, ideal entropy code")
    paper = sorted((b, s) for m, b, s in points if m.startswith("hf_U") and m[4:].isdigit())
    axes.plot([b for b, _ in paper], [DB_A_BIT * b - s for b, s in paper], "x", color="grey", ls="",
              label="the paper (fixed-width index)")
    markers = iter("sD^v<>P*")
    for prefix, label in shown.items():
        some = [(b, s, m) for m, b, s in points if m.startswith(prefix)]
        axes.plot([b for b, _, _ in some], [DB_A_BIT * b - s for b, s, _ in some], next(markers),
                  ls="", label=label)
        for b, s, m in some:
            if prefix == "ggml_":
                axes.annotate(m[5:], (b, DB_A_BIT * b - s), fontsize=6, xytext=(3, 3),
                              textcoords="offset points")
    axes.set(xlabel="bits a weight, all side information", xlim=(2, 8.7), ylim=(-0.3, 14),
             ylabel="dB lost to Shannon's bound", title="16 M Gaussian weights, BF16")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncol=2, loc="upper left")
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "rate-distortion.svg", metadata={"Date": None})


def main():
    report = Report()
    RESULTS.mkdir(exist_ok=True)
    report.add("# The code, measured\n")
    report.add(f"By `make bench-codec` on {os.cpu_count()} cores of {cpu_name()}.\n")
    speed = json.loads(run(BUILD / "bench" / "speed"))
    models = available_models()
    with tempfile.TemporaryDirectory(prefix="hyperfs-bench-") as folder:
        work = Path(folder)
        image, sources = work / "i.hyperfs", {}
        for dtype in ("BF16", "F32"):
            sources[dtype] = work / f"{dtype}.safetensors"
            write_safetensors(sources[dtype],
                              {"w": (dtype, [4096, GAUSSIAN // 4096], gaussian(dtype))})
        curves = rate_distortion(report, sources, image)
        speeds(report, speed)
        real_models(report, models, image, curves)
        points = peers(report, curves)
        lossless(report, models, work)
        pruned(report, models, work, image)
    plot(curves["BF16"], points)
    report.add(f"{len(report.missed)} missed" + (": " + "; ".join(report.missed) if report.missed
                                                  else "") + ".")
    (RESULTS / "codec.md").write_text("\n".join(report.lines) + "\n")
    (RESULTS / "codec.json").write_text(json.dumps({"speed": speed, **report.data,
                                                    "missed": report.missed}, indent=1) + "\n")


if __name__ == "__main__":
    main()
