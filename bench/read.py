#!/usr/bin/env python3
"""bench/read.py: how fast a mounted image is read, with pass or miss beside each goal.

    read.py PROGRAMS [PART...]

PROGRAMS is the folder of nullfs, read and synth (build/bench). Run by `make bench-read`, best as
root: an ordinary user measures the ordinary user's part alone. Measures the parts (root, user,
small, mount, disk; all unless some are named), keeps their figures in PROGRAMS/data and writes
bench/results/read.md, read.csv, read.json and docs/throughput.svg from those that are there.

HYPERFS_BUILD names the folder of the tools to measure, BENCH_QUICK=1 makes three runs instead of
five, BENCH_TRACE=1 shows each run. On the same machine only ratios taken within a run mean something: its speed drifts. So
every round measures all file systems one after the other, and a ratio is the median over
rounds of ratios within a round.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import mounts  # noqa: E402
from codec import bf16  # noqa: E402
from mounts import BUILD, IS_ROOT, Limit, Loader, as_, mounted, read, run  # noqa: E402
from read_report import write_report  # noqa: E402

ROUNDS = 3 if os.environ.get("BENCH_QUICK") else 5
SQUASHFUSE_ROUNDS = 3
LAYERS, ROWS, COLUMNS = 32, 4096, 4096  # 1 GiB of BF16
PATTERNS = ["seq", "mmap", "load", "load, 2 threads", "halves", "random", "interleaved", "warm"]
DISTURBED, MAX_REPEATS = 0.2, 6  # share of the machine that others took; repeats in a part
WARM_READS = 3  # in one run: each takes but a fifth of a second
SMALL_FOLDERS, SMALL_FILES = 100, 100
RATES = (200, 500)  # MB/s
QUIET_WORDS = "-q -f --no-verify".split()


class Data:
    """The files that are measured, made once for each state of the tools."""

    def __init__(self, folder):
        self.folder = folder
        self.raw = folder / "model.safetensors"
        self.low, self.good = folder / "low.hyperfs", folder / "good.hyperfs"
        self.zstd, self.lz4 = folder / "zstd.squashfs", folder / "lz4.squashfs"
        self.tree, self.tree_image = folder / "tree", folder / "tree.hyperfs"
        self.tree_squash = folder / "tree.squashfs"
        self.synth = folder / "synth.hyperfs"

    def source(self, kind):
        return {"null": self.raw, "raw": self.raw, "hyperfs": self.low,
                "squashfuse zstd": self.zstd, "squashfuse lz4": self.lz4}[kind]

    def share(self, kind):
        """Bytes of the 4-bit image for each byte of its file; None for other file systems."""
        return self.low.stat().st_size / self.raw.stat().st_size if kind == "hyperfs" else None

    def make(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.raw.exists():
            print("making 1 GiB of weights", flush=True)
            make_weights(self.raw)
        if not self.tree.exists():
            make_tree(self.tree)
        for image, source, options in (
                (self.zstd, self.raw, "-comp zstd -Xcompression-level 3"),
                (self.lz4, self.raw, "-comp lz4"),
                (self.tree_squash, self.tree, "-comp zstd -Xcompression-level 3")):
            if not image.exists():
                run("mksquashfs", source, image, "-b", "256K", "-no-progress", "-quiet",
                    *options.split())
        stamp = self.folder / "mkhyperfs.stamp"
        tool = hashlib.sha256((BUILD / "mkhyperfs").read_bytes()).hexdigest()
        if not stamp.exists() or stamp.read_text() != tool:
            print("making images", flush=True)
            run(BUILD / "mkhyperfs", *QUIET_WORDS, "--quality=23.65", self.raw, self.low)
            run(BUILD / "mkhyperfs", *QUIET_WORDS, self.raw, self.good)
            run(BUILD / "mkhyperfs", *QUIET_WORDS, self.tree, self.tree_image)
            offset = run(mounts.PROGRAMS / "synth", self.synth)
            (self.folder / "synth.offset").write_text(offset)
            stamp.write_text(tool)
        facts = {name: getattr(self, name).stat().st_size
                 for name in ("raw", "low", "good", "zstd", "lz4", "synth")}
        tensors = json.loads(run(BUILD / "dump.hyperfs", "--json", "--tensors",
                                 self.low))["tensors"]
        lossy = [t for t in tensors if t["code"] == "trajectory"]
        facts["bits"] = (sum(t["stored"] for t in lossy) * 8 / sum(t["elements"] for t in lossy))
        return facts


def make_weights(path):
    """LAYERS matrices of Gaussian weights of different scale, each with a norm beside it."""
    rng, header, arrays, offset = np.random.default_rng(1), {}, [], 0
    shapes = {}
    for i in range(LAYERS):
        shapes[f"layers.{i}.norm"] = [COLUMNS]
        shapes[f"layers.{i}.weight"] = [ROWS, COLUMNS]
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * 2
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    part = path.with_suffix(".part")
    with open(part, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for i, shape in enumerate(shapes.values()):
            scale = np.float32(0.02 * (1 + i / LAYERS))
            f.write(bf16(rng.standard_normal(int(np.prod(shape)), np.float32) * scale).tobytes())
    part.rename(path)


def make_tree(path):
    """Small text files of 200 to 8,000 bytes."""
    rng = random.Random(1)
    words = [f"word{i}" for i in range(2000)]
    part = path.with_suffix(".part")
    for folder in range(SMALL_FOLDERS):
        (part / f"folder{folder:03}").mkdir(parents=True)
        for file in range(SMALL_FILES):
            text = " ".join(rng.choices(words, k=rng.randint(30, 1100)))
            (part / f"folder{folder:03}" / f"file{file:03}.txt").write_text(text[:8000])
    part.rename(path)


def rotated(kinds, by):
    return kinds[by % len(kinds):] + kinds[:by % len(kinds)]


class Run:
    """One run of a pattern on a mount: what reader and daemon spend from here on."""

    def __init__(self, mount, pattern, number, image_share=None):
        self.mount, self.pattern, self.number, self.share = mount, pattern, number, image_share
        self.cpu, self.taken = mount.cpu(), mount.bytes_taken()
        self.busy, self.start = mounts.busy_seconds(), time.monotonic()

    def row(self, figures):
        """Also how often the delivered bytes were decoded, by two counts: hyperfs's own, and
        (image_share: bytes of the image for each byte of its file) by what the daemon has read,
        as whatever is decoded is read from the image right before."""
        mount, size = self.mount, figures["bytes"]
        cpu, wall = mount.cpu() - self.cpu, time.monotonic() - self.start
        others = mounts.busy_seconds() - self.busy - figures["cpu"] - cpu
        decoded, taken = None, None
        if self.share and self.pattern != "warm":
            decoded = mount.decoded()
            taken = (mount.bytes_taken() - self.taken) / (size * self.share)
        return {"privilege": mount.privilege, "pattern": self.pattern, "kind": mount.kind,
                "round": self.number, "bytes": size, "seconds": figures["seconds"],
                "gbs": size / figures["seconds"] / 1e9, "reader_cpu": figures["cpu"] / size * 1e9,
                "daemon_cpu": cpu / size * 1e9, "others": max(others / wall / os.cpu_count(), 0),
                "peak_mib": mount.peak_mib(), "decoded": decoded, "taken": taken}


def measure(mount, pattern, number, data, loader):
    file = mount.point / data.raw.name
    if pattern == "warm":
        read(mount.privilege, "seq", file)
    run_ = Run(mount, pattern, number, data.share(mount.kind))
    if pattern.startswith("load"):
        return run_.row(loader.load(file, 2 if "2" in pattern else 1))
    if pattern == "warm":
        several = [read(mount.privilege, "seq", file) for _ in range(WARM_READS)]
        return run_.row({field: sum(each[field] for each in several) for field in several[0]})
    return run_.row(read(mount.privilege, pattern, file))


def undisturbed(kind, privilege, pattern, number, data, loader, repeats):
    """A run on a fresh mount. While something else takes more than DISTURBED of the machine it is
    repeated, as often as `repeats` allows; the least disturbed one and what is left of them."""
    best = None
    while True:
        with mounted(kind, privilege, data.source(kind)) as mount:
            row = measure(mount, pattern, number, data, loader)
        if best is None or row["others"] < best["others"]:
            best = row
        if os.environ.get("BENCH_TRACE"):
            print(f'{pattern}, {kind}: {row["gbs"]:.2f} GB/s, others {row["others"]:.2f}, '
                  f"{time.monotonic():.2f}", flush=True)
        if best["others"] <= DISTURBED or repeats == 0:
            return best, repeats
        repeats -= 1


def part_patterns(data, privilege):
    rows, loader, repeats = [], Loader(privilege, data.raw), MAX_REPEATS
    mounts.into_page_cache(data.raw, data.low, data.zstd, data.lz4)
    for number in range(ROUNDS):
        for pattern in PATTERNS:
            kinds = ["null", "hyperfs"] if number % 2 else ["hyperfs", "null"]
            if number < SQUASHFUSE_ROUNDS and pattern != "load, 2 threads":
                kinds = kinds + ["squashfuse zstd", "squashfuse lz4"]
            if pattern == "warm":
                kinds = [k for k in kinds if not k.startswith("squash")] + ["raw"]
            for kind in kinds:
                row, repeats = undisturbed(kind, privilege, pattern, number, data, loader, repeats)
                rows.append(row)
        print(f"{privilege}: round {number + 1} of {ROUNDS}", flush=True)
    loader.close()
    rows += several_loaders(data, privilege)
    return {"rows": rows}


def several_loaders(data, privilege):
    """Two models, two mounts, two processes that load them at the same time."""
    rows, loaders = [], [Loader(privilege, data.raw), Loader(privilege, data.raw)]
    mounts.into_page_cache(data.low, data.good)
    for number in range(ROUNDS):
        with mounted("hyperfs", privilege, data.low) as a, \
                mounted("hyperfs", privilege, data.good) as b:
            runs = [Run(a, "together: 4 bits", number), Run(b, "together: good", number)]
            for loader, mount in zip(loaders, (a, b)):
                loader.ask(mount.point / data.raw.name, 1)
            rows += [run_.row(loader.answer()) for run_, loader in zip(runs, loaders)]
    for loader in loaders:
        loader.close()
    return rows


def privileges():
    return ["root", "user"] if IS_ROOT else ["user"]


def part_small(data):
    rows = []
    commands = {"find": "find . -type f > /dev/null",
                "stat": "find . -type f -exec stat {} + > /dev/null",
                "cat": "find . -type f -exec cat {} + > /dev/null"}
    mounts.into_page_cache(data.tree_image, data.tree_squash)
    for privilege in privileges():
        for number in range(ROUNDS):
            for kind in rotated(["hyperfs", "squashfuse zstd"], number):
                image = data.tree_image if kind == "hyperfs" else data.tree_squash
                with mounted(kind, privilege, image) as mount:
                    for name, command in commands.items():
                        start = time.monotonic()
                        run(*as_(privilege, "sh", "-c", f"cd {mount.point} && {command}"))
                        rows.append({"privilege": privilege, "pattern": name, "kind": kind,
                                     "round": number, "seconds": time.monotonic() - start,
                                     "peak_mib": mount.peak_mib()})
    return {"rows": rows}


def part_mount(data):
    """From starting hyperfs to the first byte of the last tensor, the image in the page cache or,
    as root, out of it."""
    rows, offset = [], (data.folder / "synth.offset").read_text().strip()
    for privilege in privileges():
        for state in ("cached", "cold") if IS_ROOT else ("cached",):
            for number in range(2 * ROUNDS):
                with mounts.tempfile.TemporaryDirectory(prefix="bench-read-") as folder:
                    os.chmod(folder, 0o755)
                    point = Path(folder) / "mnt"
                    point.mkdir()
                    if privilege == "user" and IS_ROOT:
                        os.chown(point, mounts.USER, mounts.USER)
                    if state == "cold":
                        mounts.out_of_page_cache(data.synth)
                        run(BUILD / "hyperfs", "--version")  # the program itself is cached
                    else:
                        mounts.into_page_cache(data.synth)
                    try:
                        figures = json.loads(run(*as_(
                            privilege, mounts.PROGRAMS / "read", "first",
                            point / "model.safetensors", offset, BUILD / "hyperfs", data.synth,
                            point)))
                    finally:
                        subprocess.run(["umount" if IS_ROOT else "fusermount3",
                                        *([] if IS_ROOT else ["-u"]), str(point)],
                                       capture_output=True)
                rows.append({"privilege": privilege, "pattern": "first byte", "kind": "hyperfs",
                             "state": state, "round": number, "seconds": figures["seconds"],
                             "mount_seconds": figures["mount_seconds"]})
    return {"rows": rows}


def part_disk(data):
    """Loading from the disk, not from the page cache: at its own speed and at limited ones."""
    if not IS_ROOT:
        return {"rows": [], "limited": None}
    rows, loader, limit = [], Loader("root", data.raw), Limit(data.raw)
    sources = {"raw": data.raw, "hyperfs": data.good, "squashfuse zstd": data.zstd}
    for rate in (None, *RATES) if limit.works else (None,):
        for number in range(ROUNDS):
            for kind in rotated(["raw", "hyperfs", "squashfuse zstd"], number):
                if kind.startswith("squash") and number > 0 and rate:
                    continue
                mounts.out_of_page_cache(data.raw, data.good, data.zstd)
                with mounted(kind, "root", sources[kind]) as mount:
                    if rate:
                        limit.set(rate * 1000000)
                        for process in (mount.daemon, loader.process):
                            if process:
                                limit.add(process.pid)
                    row = measure(mount, "load", number, data, loader)
                    rows.append({**row, "rate": rate, "taken": None})
                    if rate:
                        limit.release()
    cached = [] if limit.works else cached_loads(data, loader)
    loader.close()
    limit.close()
    return {"rows": rows, "limited": "cgroup" if limit.works else None, "cached": cached}


def cached_loads(data, loader):
    rows = []
    mounts.into_page_cache(data.good)
    for number in range(ROUNDS):
        with mounted("hyperfs", "root", data.good) as mount:
            rows.append({**measure(mount, "load", number, data, loader), "taken": None})
    return rows


PARTS = {"root": lambda data: part_patterns(data, "root"),
         "user": lambda data: part_patterns(data, "user"),
         "small": part_small, "mount": part_mount, "disk": part_disk}


def main():
    if len(sys.argv) < 2 or any(part not in PARTS for part in sys.argv[2:]):
        sys.exit(__doc__)
    mounts.PROGRAMS = Path(sys.argv[1]).resolve()
    parts = sys.argv[2:] or list(PARTS)
    if not IS_ROOT and "root" in parts:
        parts.remove("root")
    data = Data(mounts.PROGRAMS / "data")
    facts = data.make()
    facts["rounds"] = ROUNDS
    (data.folder / "facts.json").write_text(json.dumps(facts))
    with mounts.fuse_for_all():
        for part in parts:
            start = time.monotonic()
            result = PARTS[part](data)
            (data.folder / f"part-{part}.json").write_text(json.dumps(result))
            print(f"{part}: {time.monotonic() - start:.0f} s", flush=True)
    write_report(data.folder, list(PARTS))


if __name__ == "__main__":
    main()
