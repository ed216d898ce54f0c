"""The table, the files in bench/results and the plot of bench/read.py."""

import csv
import json
import os
import platform
import statistics
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"

# Pattern: what it is, the goals (share of the null file system) as root and as an ordinary user.
GOALS = {
    "seq": ("sequential read(), 1 MiB", 0.65, 0.80),
    "mmap": ("mmap touched in order, one thread", 0.60, 0.75),
    "load": ("safetensors `load_file`, copy of every tensor", 0.65, 0.80),
    "load, 2 threads": ("the same, copied by two threads of torch", 0.65, 0.80),
    "halves": ("two readers on different halves", 0.55, 0.65),
    "random": ("random 64 KiB preads, one thread", None, None),
    "interleaved": ("4 processes of 2 threads, interleaved MiB", 0.50, 0.50),
    "warm": ("warm (page cache)", 0.95, 0.95),
}
# GB/s of a null file system measured once on two cores with kernel 6.18 and libfuse 3.14: what null
# has to come up to. A null at more than a quarter less would make the shares too good.
LAB = {"root": {"seq": 3.91, "mmap": 4.34, "load": 2.86, "load, 2 threads": 2.99, "halves": 4.59,
                "random": 1.23, "warm": 6.02},
       "user": {"seq": 2.07, "mmap": 2.47, "load": 2.78, "load, 2 threads": 3.46, "halves": 3.22,
                "random": 0.86, "warm": 6.02}}
RANDOM_GOAL, RANDOM_BESIDE_SQUASHFUSE = 4000, 2.0
SMALL_GOAL, FIRST_BYTE_GOAL, LIMITED_GOAL, DECODED_GOAL = 1.3, 0.020, 2.5, 1.05
MEMORY_GOAL = 256  # MiB, as mounted
FAIR_GOAL = 0.80  # speed of the slower of two loaders over that of the faster
NAMES = {"root": "root", "user": "ordinary user"}


class Report:
    def __init__(self):
        self.lines, self.missed, self.figures = [], [], {}

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


class Rows:
    """The runs of all parts, by privilege, pattern and file system."""

    def __init__(self, rows):
        self.by = defaultdict(list)
        for row in rows:
            self.by[row["privilege"], row["pattern"], row["kind"]].append(row)

    def values(self, privilege, pattern, kind, field):
        return [r[field] for r in self.by[privilege, pattern, kind] if r.get(field) is not None]

    def median(self, *key):
        values = self.values(*key)
        return statistics.median(values) if values else None

    def ratio(self, privilege, pattern, kind, other, field="gbs"):
        """Median over rounds of the ratio within a round."""
        first = {r["round"]: r[field] for r in self.by[privilege, pattern, kind]}
        second = {r["round"]: r[field] for r in self.by[privilege, pattern, other]}
        ratios = [first[n] / second[n] for n in first if n in second]
        return statistics.median(ratios) if ratios else None


def number(value, form=".2f"):
    return "" if value is None else format(value, form)


def measured(rows):
    return [p for p in NAMES if rows.by.get((p, "seq", "hyperfs"))]


def ceiling(rows, privilege, pattern):
    cost = sum(rows.median(privilege, pattern, "hyperfs", field)
               for field in ("reader_cpu", "daemon_cpu"))
    # One thread that reads at random waits for each block; warm reads need no daemon.
    if pattern in ("random", "warm"):
        return None
    return min(1, os.cpu_count() / cost / rows.median(privilege, pattern, "null", "gbs"))


def patterns_table(report, rows):
    report.add("## Beside a null file system\n")
    report.add("GB/s; the share is the median over rounds of hyperfs over null within a round. "
               "Ceiling: the share if no core were ever idle, from the processor time a GB below; "
               "only cheaper decoding or more cores lift it.\n")
    table = []
    for privilege in measured(rows):
        for pattern, (name, *goals) in GOALS.items():
            goal = goals[privilege == "user"]
            speeds = [rows.median(privilege, pattern, kind, "gbs")
                      for kind in ("null", "hyperfs", "squashfuse zstd", "squashfuse lz4", "raw")]
            share = rows.ratio(privilege, pattern, "hyperfs", "null")
            verdict = "" if goal is None else report.verdict(
                round(share, 2) >= goal, f"{name}, {NAMES[privilege]}")
            report.figures[f"share, {pattern}, {privilege}"] = share
            table.append([NAMES[privilege], name, *map(number, speeds), number(share),
                          number(ceiling(rows, privilege, pattern)), number(goal), verdict])
    report.table(["as", "pattern", "null", "hyperfs", "squashfuse zstd", "squashfuse lz4",
                  "raw file", "share of null", "ceiling", "goal", ""], table)


def random_table(report, rows):
    report.add("Random preads of 64 KiB a second, and how many times squashfuse's (zstd):\n")
    table = []
    for privilege in measured(rows):
        each = [1e9 * (rows.median(privilege, "random", kind, "gbs") or 0) / 65536
                for kind in ("null", "hyperfs", "squashfuse zstd", "squashfuse lz4")]
        times = rows.ratio(privilege, "random", "hyperfs", "squashfuse zstd")
        table.append([NAMES[privilege], *(f"{e:,.0f}" for e in each), f"{RANDOM_GOAL:,}",
                      report.verdict(each[1] >= RANDOM_GOAL, f"random reads, {NAMES[privilege]}"),
                      number(times), RANDOM_BESIDE_SQUASHFUSE,
                      report.verdict(times >= RANDOM_BESIDE_SQUASHFUSE,
                                     f"random reads beside squashfuse, {NAMES[privilege]}")])
    report.table(["as", "null", "hyperfs", "squashfuse zstd", "squashfuse lz4", "goal", "",
                  "times squashfuse", "goal", ""], table)


def quiet_machine(report, rows):
    """Whether the machine had anything else to do; the kernel's own threads count too."""
    for privilege in measured(rows):
        shares = [r["others"] for (p, pattern, _), runs in rows.by.items() for r in runs
                  if p == privilege and pattern in GOALS and "others" in r]
        report.add(f"Processor time that went to others while {NAMES[privilege]}'s runs were "
                   f"measured: {100 * statistics.median(shares):.0f} % of the machine (median), "
                   f"{100 * statistics.quantiles(shares, n=10)[-1]:.0f} % in the worst tenth of "
                   "them. Runs at more than 20 % were repeated, at most 6 of them.\n")


def null_table(report, rows):
    report.add("## Is the null file system a fair one?\n")
    report.add("Its GB/s, beside those measured once on a like machine (two cores, kernel 6.18, "
               "libfuse 3.14); it should not be more than a quarter below. Warm reads are the "
               "page cache's, FUSE has no part in them.\n")
    table = []
    for privilege in measured(rows):
        for pattern, lab in LAB[privilege].items():
            speed = rows.median(privilege, pattern, "null", "gbs")
            table.append([NAMES[privilege], GOALS[pattern][0], number(speed), lab,
                          report.verdict(speed >= 0.75 * lab,
                                         f"null, {GOALS[pattern][0]}, {NAMES[privilege]}")])
    report.table(["as", "pattern", "null", "before", ""], table)


def cost_table(report, rows):
    report.add("## Processor time, memory and work done twice\n")
    report.add("Seconds of processor time (user and system, reader and daemon) a GB delivered; in "
               "brackets the daemon's. Peak: the daemon's largest resident memory (VmHWM) in any "
               "run, mounted with memory=256M. Decoded: bytes decoded over bytes delivered, as "
               "hyperfs counts them. Read: a check from outside, the bytes that the daemon read "
               "from its image over those that what was delivered takes there.\n")
    table = []
    for privilege in measured(rows):
        for pattern, (name, *_) in GOALS.items():
            cells = []
            for kind in ("hyperfs", "null", "squashfuse zstd", "squashfuse lz4"):
                mine = rows.median(privilege, pattern, kind, "daemon_cpu")
                reader = rows.median(privilege, pattern, kind, "reader_cpu")
                cells.append("" if mine is None else f"{mine + reader:.2f} ({mine:.2f})")
            peak = max(rows.values(privilege, pattern, "hyperfs", "peak_mib"))
            what = f"{name}, {NAMES[privilege]}"
            again = rows.median(privilege, pattern, "hyperfs", "decoded")
            counted = "" if pattern == "warm" else number(again, ".3f") or "not counted"
            if again is not None and pattern != "random":
                counted += " " + report.verdict(again <= DECODED_GOAL, f"decoded, {what}")
            table.append([NAMES[privilege], name, *cells, f"{peak:.1f}",
                          report.verdict(peak <= MEMORY_GOAL, f"memory, {what}"), counted,
                          number(rows.median(privilege, pattern, "hyperfs", "taken"), ".3f")])
    report.table(["as", "pattern", "hyperfs", "null", "squashfuse zstd", "squashfuse lz4",
                  "peak MiB", f"at most {MEMORY_GOAL}", f"decoded, at most {DECODED_GOAL}",
                  "read"], table)


def together_table(report, rows):
    report.add("## Two models at once\n")
    report.add("Two mounts, two processes that load and copy at the same time, one thread each; "
               "the "
               "two images hold the same weights at 4 bits and at `good`. Fair: the slower "
               f"reaches at least {FAIR_GOAL} of the faster.\n")
    table = []
    for privilege in measured(rows):
        pair = [rows.by[privilege, f"together: {name}", "hyperfs"] for name in ("4 bits", "good")]
        fair = statistics.median(min(a["gbs"], b["gbs"]) / max(a["gbs"], b["gbs"])
                                 for a, b in zip(*pair))
        alone = rows.median(privilege, "load", "hyperfs", "gbs")
        speeds = [statistics.median(r["gbs"] for r in each) for each in pair]
        table.append([NAMES[privilege], number(alone), *map(number, speeds),
                      number(sum(speeds)), number(fair),
                      report.verdict(fair >= FAIR_GOAL, f"two models, {NAMES[privilege]}")])
    report.table(["as", "one alone", "4 bits", "good", "sum", "slower over faster", ""], table)


def small_table(report, rows):
    report.add("## 10,000 small files\n")
    report.add("Text of 200 to 8,000 bytes in 100 folders; seconds for `find`, `stat` of all "
               "and `cat` of "
               "all, one after the other on a fresh mount. squashfuse: zstd -3.\n")
    table = []
    for privilege in NAMES:
        if not rows.by.get((privilege, "find", "hyperfs")):
            continue
        sums = {}
        for kind in ("hyperfs", "squashfuse zstd"):
            runs = [rows.values(privilege, p, kind, "seconds") for p in ("find", "stat", "cat")]
            sums[kind] = [sum(each) for each in zip(*runs)]
        times = statistics.median(a / b for a, b in zip(sums["hyperfs"], sums["squashfuse zstd"]))
        cells = [number(rows.median(privilege, p, kind, "seconds")) for kind in sums
                 for p in ("find", "stat", "cat")]
        table.append([NAMES[privilege], *cells, number(times), SMALL_GOAL, report.verdict(
            times <= SMALL_GOAL, f"small files, {NAMES[privilege]}")])
    report.table(["as", "find", "stat", "cat", "squashfuse: find", "stat", "cat",
                  "times squashfuse", "at most", ""], table)


def mount_table(report, runs, facts):
    report.add("## Time to mount and first byte\n")
    report.add("From starting `hyperfs` to the first byte of the last of 1,000 tensors, with a "
               "synthetic "
               f"image of a 70 GB file (bench/synth.c; {facts['synth'] / 1e6:.0f} MB: 267,001 "
               "blocks, index and tables as long as a real one's, 1,000 codes; the first block "
               "of each "
               "tensor holds Gaussian weights at about 4 bits, the others zeros). Median, ms.\n")
    table = []
    for privilege in NAMES:
        for state, name in (("cached", "in the page cache"), ("cold", "on the disk")):
            some = [r for r in runs if (r["privilege"], r["state"]) == (privilege, state)]
            if not some:
                continue
            total = statistics.median(r["seconds"] for r in some)
            mount = statistics.median(r["mount_seconds"] for r in some)
            table.append([NAMES[privilege], name, f"{1e3 * mount:.1f}", f"{1e3 * total:.1f}",
                          f"{1e3 * FIRST_BYTE_GOAL:.0f}" if state == "cached" else "",
                          report.verdict(total < FIRST_BYTE_GOAL,
                                         f"first byte, {NAMES[privilege]}")
                          if state == "cached" else ""])
    report.table(["as", "image", "mounted", "first byte", "below", ""], table)


def disk_table(report, part, facts):
    report.add("## From the disk\n")
    if not part["rows"]:
        report.add("Not measured: emptying the page cache and limiting a disk need root.\n")
        return
    report.add("Nothing in the page cache; safetensors `load_file` and a copy of every tensor, one "
               "thread. hyperfs: the image at `good`, "
               f"{facts['raw'] / facts['good']:.2f} times smaller. Limits by a control group "
               "(blkio.throttle.read_bps_device or io.max) with reader and daemon in it. "
               "Seconds for "
               "1.07 GB, and how many times faster than the raw file in the same round.\n")
    table = []
    for rate in sorted({r["rate"] for r in part["rows"]}, key=lambda r: r or 0):
        rows = Rows([r for r in part["rows"] if r["rate"] == rate])
        seconds = [rows.median("root", "load", kind, "seconds")
                   for kind in ("raw", "hyperfs", "squashfuse zstd")]
        times = 1 / rows.ratio("root", "load", "hyperfs", "raw", "seconds")
        goal = LIMITED_GOAL if rate else None
        table.append([f"{rate} MB/s" if rate else "unlimited", *map(number, seconds),
                      number(times, ".3f"), number(goal, ".1f"),
                      report.verdict(times >= goal, f"load at {rate} MB/s") if goal else ""])
    if part["limited"] is None:
        for rate in (200, 500):
            # What the disk takes, and after it all that loading from the page cache takes.
            warm = statistics.median(r["seconds"] for r in part["cached"])
            raw, ours = facts["raw"] / rate / 1e6, facts["good"] / rate / 1e6 + warm
            table.append([f"{rate} MB/s, calculated", number(raw), number(ours), "",
                          number(raw / ours), LIMITED_GOAL,
                          report.verdict(raw / ours >= LIMITED_GOAL, f"load at {rate} MB/s")])
        report.add("The disk could not be limited here: calculated from the sizes and from the "
                   "time to "
                   "load with the image in the page cache, as if nothing overlapped.\n")
    report.table(["disk", "raw file", "hyperfs", "squashfuse zstd", "times faster", "at least", ""],
                 table)


READ_AHEAD = """## A larger read-ahead for ordinary users

The kernel reads 128 KiB ahead in a FUSE mount. Root's mounts get 1,024 from hyperfs itself; for
those of ordinary users an administrator can do it, because each FUSE mount has a device of class
bdi and the kernel announces it. /etc/udev/rules.d/90-fuse-read-ahead.rules:

    ACTION=="add", SUBSYSTEM=="bdi", KERNEL=="0:*", \\
      RUN+="/bin/sh -c 'sleep 1; echo 1024 > /sys/class/bdi/%k/read_ahead_kb'"

then `udevadm control --reload`. The rule holds for all file systems with such a device and no disk
of their own, NFS among them. It waits because the kernel sets the value once more when the new
mount answers its first request: with ATTR{read_ahead_kb}="1024" instead of RUN a mount of an
ordinary user kept 1,024 only where udev happened to be faster or slower than that (2 of 20 mounts;
with RUN 20 of 20; udev 252, kernel 6.18). For one mount that is there already, as root:

    echo 1024 > /sys/class/bdi/$(findmnt -no MAJ:MIN MOUNTPOINT)/read_ahead_kb
"""


def plot(rows):
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "hyperfs"
    import matplotlib.pyplot as plt
    labels = {"seq": "read()", "mmap": "mmap", "load": "load_file\nand copy",
              "load, 2 threads": "the same,\n2 threads", "halves": "two\nreaders",
              "random": "random\n64 KiB", "interleaved": "4 x 2\ninterleaved"}
    kinds = {"null": ("null (FUSE alone)", "0.75"), "hyperfs": ("hyperfs, 4 bits", "tab:red"),
             "squashfuse lz4": ("squashfuse, lz4", "tab:blue"),
             "squashfuse zstd": ("squashfuse, zstd -3", "tab:cyan")}
    shown = measured(rows)
    figure, panels = plt.subplots(1, len(shown), figsize=(5 * len(shown), 3.6), sharey=True,
                                  squeeze=False)
    for axes, privilege in zip(panels[0], shown):
        for place, (kind, (name, colour)) in enumerate(kinds.items()):
            for at, pattern in enumerate(labels):
                values = rows.values(privilege, pattern, kind, "gbs")
                if not values:
                    continue
                middle = statistics.median(values)
                axes.bar(at + 0.2 * (place - 1.5), middle, 0.2, color=colour,
                         label=name if at == 0 else None)
                axes.plot([at + 0.2 * (place - 1.5)] * 2, [min(values), max(values)],
                          color="black", lw=0.7)
        ahead = {"root": "as root, read-ahead 1 MiB",
                 "user": "as an ordinary user, read-ahead 128 KiB"}[privilege]
        axes.set_xticks(range(len(labels)), labels.values(), fontsize=7)
        axes.set_title(ahead, fontsize=10)
        axes.grid(axis="y", alpha=0.3)
    panels[0][0].set_ylim(top=1.2 * panels[0][0].get_ylim()[1])
    panels[0][0].set_ylabel("GB/s of weights")
    panels[0][0].legend(fontsize=7, ncol=2, loc="upper left")
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "throughput.svg", metadata={"Date": None})


def versions():
    import re
    import subprocess
    fuse = subprocess.run(["pkg-config", "--modversion", "fuse3"], text=True, capture_output=True)
    squash = subprocess.run(["squashfuse_ll", "--help"], text=True, capture_output=True)
    found = re.search(r"squashfuse ([\d.]+)", squash.stdout + squash.stderr)
    return (f"kernel {platform.release().split('-')[0]}, "
            f"libfuse {fuse.stdout.strip() or 'unknown'}, "
            f"squashfuse_ll {found.group(1) if found else 'unknown'}")


def cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown processor"


def introduce(report, facts):
    report.add("# Reading from a mount, measured\n")
    report.add(f"By `make bench-read` on {os.cpu_count()} cores of {cpu_name()}, {versions()}.\n")
    report.add(f"A safetensors file of {facts['raw'] / 2**30:.2f} GiB, BF16, Gaussian weights, "
               f"{facts['bits']:.2f} bits a weight in the image ({facts['low'] / 1e6:.0f} MB), "
               f"image "
               "in the page cache; squashfs of the same file with blocks of 256 KiB "
               f"({facts['zstd'] / 1e6:.0f} MB with zstd -3; "
               f"{facts['lz4'] / 1e6:.0f} with lz4, which does not shrink weights). "
               "Every run is on a fresh mount, so that none of its pages are cached. Median of "
               f"{facts['rounds']} rounds (squashfuse: 3), file systems alternating. Root's mounts "
               "read 1,024 KiB ahead, an ordinary user's the kernel's 128. The null file system "
               "(bench/nullfs.c) answers from 1 MiB of memory with four threads. DwarFS is in "
               "neither "
               "Debian 12 nor PyPI and is left out.\n")


def write_report(folder, parts):
    """From what lies in folder; parts that were not measured are left out."""
    report, facts = Report(), json.loads((folder / "facts.json").read_text())
    found = {p: json.loads((folder / f"part-{p}.json").read_text()) for p in parts
             if (folder / f"part-{p}.json").exists()}
    rows = Rows([r for p in ("root", "user", "small") if p in found for r in found[p]["rows"]])
    introduce(report, facts)
    if measured(rows):
        for table in (patterns_table, random_table, quiet_machine, null_table, cost_table,
                      together_table):
            table(report, rows)
        plot(rows)
    if "small" in found:
        small_table(report, rows)
    if "mount" in found:
        mount_table(report, found["mount"]["rows"], facts)
    if "disk" in found:
        disk_table(report, found["disk"], facts)
    report.add(f"{len(report.missed)} missed" + (": " + "; ".join(report.missed) if report.missed
                                                  else "") + ".\n")
    report.add(READ_AHEAD)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "read.md").write_text("\n".join(report.lines))
    every = [{"part": p, **r} for p in found for r in found[p]["rows"]]
    fields = list(dict.fromkeys(name for row in every for name in row))
    with open(RESULTS / "read.csv", "w", newline="") as f:
        table = csv.DictWriter(f, fields, lineterminator="\n")
        table.writeheader()
        for row in every:
            table.writerow({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()})
    (RESULTS / "read.json").write_text(json.dumps(
        {"facts": facts, "figures": report.figures, "missed": report.missed}, indent=1) + "\n")
