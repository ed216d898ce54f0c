#!/usr/bin/env python3
"""Runs tests and closes with one line, "N passed, M failed".

    tests/run.py unit|corpus|mount|faults|soak|loaders|ports|GROUP/FILE ...

unit: the cmocka programs of tests/unit; corpus: the fuzz targets on tests/corpus and on a few
mutants of it; the others: pytest in that folder of tests/, or on one file in it
(mount/test_fsck.py).
HYPERFS_BUILD names the build folder (build). A program that crashes, a test file that does not
load and a group without a test count as failed.
"""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / os.environ.get("HYPERFS_BUILD", "build")
UNIT_TIMEOUT_S = 600
MUTANTS = 2000


class Count:
    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def line(self):
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return f"{self.passed} passed, {self.failed} failed{skipped}"


def run_tap(program, count, *args):
    """Counts the lines of the Test Anything Protocol that cmocka and tests/fuzz/replay.c print."""
    try:
        done = subprocess.run([program, *args], cwd=ROOT, timeout=UNIT_TIMEOUT_S, text=True,
                              errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              env={**os.environ, "CMOCKA_MESSAGE_OUTPUT": "TAP"})
        output, status = done.stdout, done.returncode
    except subprocess.TimeoutExpired as e:
        output, status = (e.stdout or b"").decode(errors="replace"), f"timeout {UNIT_TIMEOUT_S} s"
    except OSError as e:
        output, status = "", e
    planned = sum(map(int, re.findall(r"^1\.\.(\d+)", output, re.M)))
    passed = len(re.findall(r"^ok \d+(?!.*# SKIP)", output, re.M))
    skipped = len(re.findall(r"^(?:not )?ok \d+.*# SKIP", output, re.M))
    failed = planned - passed - skipped
    if status != 0 or planned == 0:
        failed = max(failed, 1)
    count.passed += passed
    count.failed += failed
    count.skipped += skipped
    print(f"{program.name}: {passed} passed, {failed} failed", flush=True)
    if failed:
        print(output, f"exit status {status}", sep="\n", flush=True)


def run_unit(count):
    sources = sorted((ROOT / "tests/unit").glob("test_*.c"))
    for source in sources:
        run_tap(BUILD / "tests" / source.stem, count)
    if not sources:
        count.failed += 1


def run_corpus(count):
    """Inputs of a target lie in tests/corpus/TARGET. The read target opens images too, but
    what is an error of an image's tables is none for it: there names do not tell its verdict."""
    targets = sorted(path.stem.removeprefix("fuzz_")
                     for path in (ROOT / "tests/fuzz").glob("fuzz_*.c"))
    for target in targets:
        args = ["-n", "tests/corpus/image"] if target == "read" else [f"tests/corpus/{target}"]
        run_tap(BUILD / "tests" / f"replay_{target}", count, "-m", str(MUTANTS), *args)
    if not targets:
        count.failed += 1


def run_pytest(group, count):
    report = BUILD / "tests" / f"{group.replace('/', '-')}.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    status = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
                             f"--junitxml={report}", ROOT / "tests" / group], cwd=ROOT).returncode
    failed = passed = 0
    if report.exists():
        for suite in xml.parse(report).getroot().iter("testsuite"):
            failed += int(suite.get("failures")) + int(suite.get("errors"))
            count.skipped += int(suite.get("skipped"))
            passed += int(suite.get("tests")) - int(suite.get("failures")) \
                - int(suite.get("errors")) - int(suite.get("skipped"))
    count.passed += max(passed, 0)
    count.failed += max(failed, 1) if status != 0 else failed


def main():
    groups = sys.argv[1:]
    known = {"unit", "corpus", "mount", "faults", "soak", "loaders", "ports"}
    if not groups or any(g not in known and not (ROOT / "tests" / g).is_file() for g in groups):
        sys.exit(__doc__.strip())
    count = Count()
    own = {"unit": run_unit, "corpus": run_corpus}
    for group in groups:
        own[group](count) if group in own else run_pytest(group, count)
    print(count.line(), flush=True)
    sys.exit(count.failed != 0)


main()
