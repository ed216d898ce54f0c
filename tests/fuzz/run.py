#!/usr/bin/env python3
"""Runs the fuzz targets, or tells what their inputs cover.

    tests/fuzz/run.py fuzz SECONDS JOBS [TARGET...]
    tests/fuzz/run.py hours
    tests/fuzz/run.py coverage [TARGET...]

fuzz: each target SECONDS long in JOBS processes that share their inputs (build/fuzz/corpus/TARGET;
those of tests/corpus are read too). Findings are saved in build/fuzz/findings and named; with one
the exit status is 1. What was run is added to tests/fuzz/hours.csv, with a checksum of the sources
that the target was built from.

hours: for each target the processor time that its sources as they are now were fuzzed for; with
less than GOAL_S, or with a finding in them, the exit status is 1.

coverage: lines of the code that reads hostile bytes, as the inputs of both folders reach
them, and the lines that none reaches.
"""

import csv
import datetime
import hashlib
import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FUZZ = ROOT / "build/fuzz"
COVERAGE = ROOT / "build/coverage"
FINDINGS = FUZZ / "findings"
HOURS = ROOT / "tests/fuzz/hours.csv"
HOURS_FIELDS = ["date", "target", "sources", "cpu_s", "executions", "findings"]
GOAL_S = 3600  # of processor time: 30 minutes on each of two cores
SHARED_CORPUS = {"read": "image"}  # targets that take another one's inputs
MAX_LEN = 64 << 10
TIMEOUT_S = 20  # of one input
SLACK_S = 60  # beyond SECONDS, until a process counts as stuck
MOST_FINDINGS = 5  # of one process, until it is not started again

# What reads hostile bytes. Encoders share files with decoders: what stands below the heading
# "encoder" of a file, and these functions, only they call.
ENCODER_FUNCTIONS = {"hc_step_from", "hc_lossless", "round_div", "reduce", "set_basis",
                     "hc_lattice_choose", "hc_lattice_for", "hc_dtype_name",
                     "hc_lattice_spacing", "hc_lattice_covering_radius", "hc_compress_literals",
                     "hc_compress_full", "hc_work_for_encoding", "hc_zeromap_compact"}
READERS = ["fs/image.c", "fs/image_index.c", "fs/image_decode.c", "fs/check.c", "fs/trust.c",
           "fs/digest.c", "fs/walk.c", "fs/mount_read.c", "fs/mount_xattr.c",
           "codec/code.c", "codec/dtype.c", "codec/kernels_avx2.c", "codec/kernels_common.h",
           "codec/kernels_portable.c", "codec/lattice.c", "codec/lossless.c", "codec/trajectory.c",
           "codec/work.c", "codec/zeromap.c", "mkhyperfs/safetensors.c", "mkhyperfs/json.c",
           "mkhyperfs/imatrix.c", "mkhyperfs/gguf.c", "mkhyperfs/stream.c"]


def all_targets():
    return sorted(path.stem.removeprefix("fuzz_")
                  for path in (ROOT / "tests/fuzz").glob("fuzz_*.c"))


def seeds(target):
    folders = [ROOT / "tests/corpus" / name
               for name in {target, SHARED_CORPUS.get(target, target)}]
    return [folder for folder in folders if folder.is_dir()]


class Job:
    """One libFuzzer process, started again after a finding until the time is over."""

    def __init__(self, target, number, end):
        self.target, self.end = target, end
        self.log = FUZZ / "logs" / f"{target}-{number}.log"
        self.runs = self.failures = 0
        self.cover = "?"
        self.start()

    def start(self):
        left = max(1, int(self.end - time.monotonic()))
        corpus = FUZZ / "corpus" / self.target
        corpus.mkdir(parents=True, exist_ok=True)
        command = [FUZZ / f"fuzz_{self.target}", f"-max_total_time={left}", f"-max_len={MAX_LEN}",
                   f"-timeout={TIMEOUT_S}", f"-artifact_prefix={FINDINGS}/{self.target}-",
                   "-print_final_stats=1", "-reload=30", corpus, *seeds(self.target)]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env={
                "ASAN_OPTIONS": "quarantine_size_mb=16", **os.environ})

    def stuck(self):
        return time.monotonic() > self.end + SLACK_S

    def finished(self):
        """Whether it is over; takes in what it said and starts it again where it is not."""
        status = self.process.poll()
        if status is None and self.stuck():
            self.process.kill()
            status = self.process.wait()
        if status is None:
            return False
        text = self.log.read_text(errors="replace")
        executed = re.search(r"number_of_executed_units:\s*(\d+)", text)
        self.runs += int(executed[1]) if executed else 0
        self.cover = (re.findall(r"\bcov: (\d+)", text) or ["?"])[-1]
        if status != 0:
            self.failures += 1
            self.log.rename(self.log.with_suffix(f".{self.failures}.failed"))
            if self.failures < MOST_FINDINGS and time.monotonic() < self.end:
                self.start()
                return False
        return True


def is_finding(path):
    """Whether an artifact is one. An input that took too long is tried again alone: the machine may
    have been loaded or asleep."""
    if "slow-unit" in path.name:
        return False
    if "-timeout-" not in path.name:
        return True
    target = path.name.split("-")[0]
    done = subprocess.run([FUZZ / f"fuzz_{target}", f"-timeout={TIMEOUT_S}", path], cwd=ROOT,
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if done.returncode == 0:
        path.unlink()
    return done.returncode != 0


def cpu_seconds():
    """Of all processes that ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def sources_checksum(target):
    """Of the sources that a target was built from: the files whose code is in the program, with
    all headers that they include."""
    told = subprocess.run(["llvm-dwarfdump", "--debug-info", "--recurse-depth=0",
                           FUZZ / f"fuzz_{target}"], stdout=subprocess.PIPE, text=True, check=True)
    files = set()
    for unit in re.findall(r'DW_AT_name\t\("(.*)"\)', told.stdout):
        rule = (FUZZ / f"obj/{unit}.d").read_text().split("\n\n")[0]
        files |= set(rule.partition(":")[2].replace("\\\n", " ").split())
    total = hashlib.sha256()
    for name in sorted(files):
        if not os.path.isabs(name):
            content = (ROOT / name).read_bytes()
            total.update(f"{name} {len(content)}\n".encode() + content)
    return total.hexdigest()[:16]


def add_hours(row):
    empty = not HOURS.exists() or HOURS.stat().st_size == 0
    with open(HOURS, "a", newline="") as f:
        writer = csv.DictWriter(f, HOURS_FIELDS, lineterminator="\n")
        if empty:
            writer.writeheader()
        writer.writerow(row)


def hours(targets):
    rows = list(csv.DictReader(open(HOURS, newline=""))) if HOURS.exists() else []
    missing = False
    print(f"{'target':<12} {'minutes':>8} {'goal':>5} {'executions':>14} {'findings':>9}")
    for target in targets:
        sources = sources_checksum(target)
        mine = [row for row in rows if (row["target"], row["sources"]) == (target, sources)]
        cpu, runs, found = (sum(int(row[field]) for row in mine)
                            for field in ("cpu_s", "executions", "findings"))
        missing |= cpu < GOAL_S or found > 0
        print(f"{target:<12} {cpu / 60:>8.1f} {GOAL_S / 60:>5.0f} {runs:>14,} {found:>9}")
    print("minutes: processor time that the sources as they are now were fuzzed for")
    return missing


def fuzz_target(target, seconds, jobs):
    """A row of the table: (executions, executions a second, findings, edges)."""
    before = set(FINDINGS.iterdir())
    sources, start, cpu = sources_checksum(target), time.monotonic(), cpu_seconds()
    running = [Job(target, number, start + seconds) for number in range(jobs)]
    try:
        while not all([job.finished() for job in running]):
            time.sleep(0.2)
    finally:
        for job in running:
            if job.process.poll() is None:
                job.process.kill()
    took, used = time.monotonic() - start, cpu_seconds() - cpu
    new = sorted(set(FINDINGS.iterdir()) - before)
    found = [path for path in new if is_finding(path)]
    runs = sum(job.runs for job in running)
    # Processes that ended badly without an artifact (killed, stuck) count too.
    failures = max(len(found), sum(job.failures for job in running) - len(new) + len(found))
    add_hours({"date": datetime.date.today(), "target": target, "sources": sources,
               "cpu_s": int(used), "executions": runs, "findings": failures})
    return (runs, runs / took, failures, running[0].cover), found


def fuzz(seconds, jobs, targets):
    for folder in (FINDINGS, FUZZ / "logs"):
        folder.mkdir(parents=True, exist_ok=True)
    rows, all_found = [], []
    for target in targets:
        print(f"fuzz: {target}, {seconds} s in {jobs} processes", flush=True)
        row, found = fuzz_target(target, seconds, jobs)
        rows.append((target, *row))
        all_found += found
    print(f"\n{'target':<12} {'executions':>12} {'a second':>9} {'findings':>9} {'edges':>6}")
    for target, runs, rate, failures, cover in rows:
        print(f"{target:<12} {runs:>12,} {rate:>9,.0f} {failures:>9} {cover:>6}")
    for path in all_found:
        target = path.name.split("-")[0]
        print(f"finding: {path.relative_to(ROOT)}; again: build/fuzz/fuzz_{target} FILE; once it "
              f"is mended, it belongs in tests/corpus/{target} with a name of its fault")
    total = sum(row[3] for row in rows)
    print(f"{total} findings; logs are in build/fuzz/logs")
    return total != 0 or not rows


# ---- coverage ----

def replay(target):
    """Runs all inputs of a target; what they reached lands in a profile of its own."""
    profile = COVERAGE / f"{target}.profraw"
    folders = [str(path) for path in (*seeds(target), FUZZ / "corpus" / target)
               if path.is_dir() and any(path.iterdir())]
    done = subprocess.run([COVERAGE / f"tests/replay_{target}", "-n", *folders], cwd=ROOT,
                          stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "LLVM_PROFILE_FILE": str(profile)})
    if done.returncode != 0:
        sys.exit(f"replay_{target} ended with status {done.returncode}:\n{done.stdout[-2000:]}")
    return profile, done.stdout.count("\nok ")


def line_counts(segments):
    """Executions of each line, by llvm-cov's segments (line, column, count, counted, entry, gap)."""
    counts, region = {}, None
    by_line = {}
    for segment in segments:
        by_line.setdefault(segment[0], []).append(segment)
    if not segments:
        return counts
    for line in range(segments[0][0], segments[-1][0] + 1):
        here = by_line.get(line, [])
        starts = [s[2] for s in here if s[3] and s[4] and not s[5]]
        wrapped = region is not None and region[3] and not (region[4] and region[5])
        if starts or wrapped:
            counts[line] = max(starts + ([region[2]] if wrapped else []))
        if here:
            region = here[-1]
    return counts


def encoder_lines(name):
    """Lines that only an encoder runs."""
    lines = set()
    encoder, inside = False, False
    for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
        encoder |= line == "/* ---- encoder ---- */"
        function = re.match(r"[a-z].*?\b(\w+)\(", line)
        if function and not line.endswith(";"):
            inside = function[1] in ENCODER_FUNCTIONS
        if encoder or inside:
            lines.add(number)
        inside &= line != "}"
    return lines


def ranges(lines):
    out, lines = [], sorted(lines)
    for i, line in enumerate(lines):
        if i and line == lines[i - 1] + 1:
            out[-1][1] = line
        else:
            out.append([line, line])
    return [f"{a}" if a == b else f"{a}-{b}" for a, b in out]


def coverage(targets):
    COVERAGE.mkdir(parents=True, exist_ok=True)
    profiles = []
    for target in targets:
        profile, count = replay(target)
        profiles.append(profile)
        print(f"{target}: {count} inputs", flush=True)
    merged = COVERAGE / "all.profdata"
    subprocess.run(["llvm-profdata", "merge", "-o", merged, *profiles], check=True)
    objects = [COVERAGE / f"tests/replay_{target}" for target in targets]
    command = ["llvm-cov", "export", f"-instr-profile={merged}", objects[0]]
    for other in objects[1:]:
        command += ["-object", other]
    data = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    files = {os.path.relpath(f["filename"], ROOT): f for f in data["data"][0]["files"]}
    print(f"\n{'file':<26} {'lines':>6} {'reached':>8}")
    total = reached = 0
    missed = {}
    for name in READERS:
        counts = line_counts(files[name]["segments"]) if name in files else {}
        for line in encoder_lines(name):
            counts.pop(line, None)
        hit = sum(count > 0 for count in counts.values())
        missed[name] = [line for line, count in counts.items() if count == 0]
        total, reached = total + len(counts), reached + hit
        print(f"{name:<26} {len(counts):>6} {100 * hit / max(len(counts), 1):>7.1f} %")
    print(f"{'all':<26} {total:>6} {100 * reached / max(total, 1):>7.1f} %\n")
    for name, lines in missed.items():
        source = (ROOT / name).read_text().splitlines()
        for part in ranges(lines):
            print(f"{name}:{part}: {source[int(part.split('-')[0]) - 1].strip()}")
    return False


def main():
    mode, args = (sys.argv[1:2] or [""])[0], sys.argv[2:]
    targets = all_targets()
    if mode == "fuzz" and len(args) >= 2:
        chosen = args[2:] or targets
    elif mode == "coverage" or (mode == "hours" and not args):
        chosen = args or targets
    else:
        sys.exit(__doc__.strip())
    unknown = set(chosen) - set(targets)
    if unknown:
        sys.exit(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(targets)}")
    if mode == "fuzz":
        sys.exit(fuzz(int(args[0]), int(args[1]), chosen))
    sys.exit(hours(chosen) if mode == "hours" else coverage(chosen))


main()
