#!/usr/bin/env python3
"""table.py MODEL TEXT: one row for each preset of mkhyperfs, as a Markdown table.

Stores MODEL with each preset, mounts it, and computes what the loss does to the model's predictions
of TEXT (quality.py). Size and bits are those of the whole image.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from quality import compare

BUILD = Path(__file__).resolve().parent.parent / "build"
PRESETS = ["--lossless", "--quality=high", "--quality=good", "--quality=small", "--quality=tiny"]


def run(*words):
    return subprocess.run(list(map(str, words)), check=True, stdout=subprocess.PIPE, text=True).stdout


def row(preset, model, text, scratch):
    image, mnt = scratch / "image.hyperfs", scratch / "mnt"
    mnt.mkdir(exist_ok=True)
    run(BUILD / "mkhyperfs", "-q", "-f", preset, model, image)
    facts = json.loads(run(BUILD / "dump.hyperfs", "--json", image))
    run(BUILD / "hyperfs", image, mnt)
    try:
        result = compare(model, mnt, text)
    finally:
        run("fusermount3", "-u", mnt)
    lossy = facts["lossy_tensors"] > 0
    return (f"`{preset}`", f"{facts['image_bytes'] / 1e6:.2f} MB", f"{facts['ratio']:.2f}",
            f"{facts['bits_a_weight']:.2f}" if lossy else "",
            f"{facts['sqnr_median_db']:.1f} dB" if lossy else "exact",
            f"{result.copy:.2f}", f"{100 * (result.copy / result.original - 1):+.1f} %",
            f"{result.divergence:.4f}")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__.strip())
    model, text = sys.argv[1:]
    print("| option | image | times smaller | bits a weight | SQNR | perplexity | change | KL |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="hyperfs-table-") as scratch:
        for preset in PRESETS:
            print("|", " | ".join(row(preset, model, text, Path(scratch))), "|", flush=True)


if __name__ == "__main__":
    main()
