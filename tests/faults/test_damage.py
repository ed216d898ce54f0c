"""An image that a disk, a cable or a copy has damaged: every byte read is right or gives EIO, fsck
names what is hit, one line in the log does for each block, and the rest can be saved."""

import contextlib
import errno
import json
import os
import random
import re
import subprocess
import time
from collections import Counter
from types import SimpleNamespace

import pytest

import samples
from conftest import TOOLS, run, unmount
from inject import Injector

SEED = int(os.environ.get("HYPERFS_SEED", random.randrange(1 << 32)))
FAULTS = 1000 if os.environ.get("HYPERFS_FAULTS") == "full" else 150
PAGE, SECTOR, SUPERBLOCK = 4096, 512, 128
LOG_LIMIT = 32  # lines a minute about damaged blocks
LINE = re.compile(r"hyperfs: (.*): (.*): block (\d+) \(bytes (\d+) to (\d+)\) cannot be read: .+")


@pytest.fixture(scope="module", params=["--lossless", "--quality=small"])
def sample(request, tmp_path_factory, image_of):
    """An image, its bytes, and the tree in it: path -> bytes."""
    folder = tmp_path_factory.mktemp("damage")
    source = samples.shards(folder / "source")
    image = image_of(source, request.param)
    run([TOOLS.fsck, f"--extract={folder / 'tree'}", image])
    tree = {str(p.relative_to(folder / "tree")): p.read_bytes()
            for p in (folder / "tree").rglob("*") if p.is_file()}
    summary = json.loads(run([TOOLS.dump, "--json", image]).stdout)
    return SimpleNamespace(image=image, data=image.read_bytes(), tree=tree,
                           tables=SUPERBLOCK + summary["data_bytes"])


# ---- the faults ----


def choose_place(dice, sample):
    """Anywhere, but the tables and superblocks more often than their size would have it."""
    size = len(sample.data)
    return dice.choice([lambda: dice.randrange(size), lambda: dice.randrange(size),
                        lambda: dice.randrange(sample.tables, size),
                        lambda: dice.choice([dice.randrange(SUPERBLOCK),
                                             size - 1 - dice.randrange(SUPERBLOCK)])])()


def make_fault(dice, sample):
    """kind, the damaged bytes, and what the injector is to do."""
    data, at, bad = bytearray(sample.data), choose_place(dice, sample), None
    kind = dice.choice(["flipped bit", "flipped bit", "zeroed page", "random sector", "moved page",
                        "lost page", "cut tail", "longer tail", "bad sector", "bad sector",
                        "short reads"])
    page, sector = at // PAGE * PAGE, at // SECTOR * SECTOR
    if kind == "flipped bit":
        data[at] ^= 1 << dice.randrange(8)
    elif kind == "zeroed page":
        data[page:page + PAGE] = bytes(len(data[page:page + PAGE]))
    elif kind == "random sector":
        data[sector:sector + SECTOR] = dice.randbytes(len(data[sector:sector + SECTOR]))
    elif kind == "moved page":
        other = dice.randrange(len(data) // PAGE) * PAGE
        data[page:page + PAGE] = data[other:other + len(data[page:page + PAGE])]
    elif kind == "lost page":  # the disk skipped it: all that follows comes too early
        del data[page:page + PAGE]
    elif kind == "cut tail":
        del data[at:]
    elif kind == "longer tail":
        data += dice.choice([bytes(PAGE), data[-SUPERBLOCK:], dice.randbytes(100)])
    elif kind == "bad sector":
        start, n = dice.choice([(sector, SECTOR), (page, PAGE)])
        bad = [(start, n)]
    return kind, at, bytes(data), bad


def environment(tmp_path, image, kind, bad):
    if kind == "short reads":
        return Injector(tmp_path, "pread", 1, "short", sticky=True, path=image.name).env
    return Injector(tmp_path, path=image.name, bad=bad).env if bad else None


# ---- what is seen of them ----


@contextlib.contextmanager
def foreground(image, point, log, env):
    """A mount in the foreground, its messages in the file log; yields false if it was refused."""
    with open(log, "w") as out:
        daemon = subprocess.Popen([TOOLS.hyperfs, "-f", image, point], stderr=out, env=env)
    try:
        deadline = time.monotonic() + 60
        while not os.path.ismount(point) and daemon.poll() is None:
            assert time.monotonic() < deadline, "the mount neither begins nor fails"
        yield daemon.poll() is None
    finally:
        if daemon.poll() is None:
            unmount(point)
            daemon.wait(20)


def read_pages(path, expected):
    """Offsets of pages that give EIO, and of pages with wrong bytes."""
    failed, wrong = [], []
    fd = os.open(path, os.O_RDONLY)
    try:
        for at in range(0, len(expected), PAGE):
            try:
                if os.pread(fd, PAGE, at) != expected[at:at + PAGE]:
                    wrong.append(at)
            except OSError as e:
                assert e.errno == errno.EIO, e
                failed.append(at)
    finally:
        os.close(fd)
    return failed, wrong


def pages_of(hits):
    """The pages that ranges of bytes lie in: path -> offsets."""
    pages = {}
    for path, offset, length in hits:
        first = offset // PAGE * PAGE
        pages.setdefault(path, set()).update(range(first, offset + length, PAGE))
    return pages


def fsck(image, env, *args):
    done = run([TOOLS.fsck, "--json", *args, image], check=False, env=env)
    document = json.loads(done.stdout)
    assert done.returncode == document["exit_status"] and done.returncode in (0, 4, 8), done.stderr
    return document


def check_mount(sample, image, point, log, env, hits):
    """Reads all there is through a mount. The problems of this fault, and whether it was seen."""
    problems, failed = [], {}
    with foreground(image, point, log, env) as mounted:
        if mounted:
            names = {os.path.relpath(os.path.join(d, f), point)
                     for d, _, files in os.walk(point) for f in files}
            if names != set(sample.tree):
                return ["the mount has other files"], True
            for path, data in sample.tree.items():
                pages, wrong = read_pages(point / path, data)
                if wrong:
                    problems.append(f"SILENT: {path}: wrong bytes at {wrong[0]}")
                if pages:
                    failed[path] = set(pages)
    lines = log.read_text().splitlines()
    if not mounted:
        good = len(lines) == 1 and lines[0].startswith("hyperfs: ")
        return problems + ([] if good else [f"refused with: {lines}"]), True
    if failed != pages_of(hits):
        problems.append(f"EIO in other pages than fsck says: {sorted(failed)}, {hits}")
    told = [m.groups() for m in map(LINE.fullmatch, lines) if m]
    blocks = [block for _, _, block, _, _ in told]
    if len(blocks) != len(set(blocks)):
        problems.append("a block was told twice")
    ranges = {(p, int(a), int(b) + 1 - int(a)) for _, p, _, a, b in told}
    if len(told) < LOG_LIMIT and pages_of(ranges) != failed:
        problems.append(f"the log says {sorted(ranges)}, the pages are {sorted(failed)}")
    others = [s for s in lines if not LINE.fullmatch(s) and "superblock is damaged" not in s]
    if others:
        problems.append(f"also in the log: {others}")
    return problems, bool(failed)


def check_rest(sample, image, folder, env, hits):
    """What --extract --keep-going saves: everything but the blocks that fsck names."""
    document = fsck(image, env, f"--extract={folder}", "--keep-going")
    if document["exit_status"] == 8 or "extracted" not in document:
        return [] if not folder.exists() else ["failed, and left something"]
    expected = {path: bytearray(data) for path, data in sample.tree.items()}
    for path, offset, length in hits:
        expected[path][offset:offset + length] = bytes(length)
    return [f"SILENT: extracted {path} is wrong" for path, data in expected.items()
            if (folder / path).read_bytes() != data]


def judge(sample, tmp_path, number, kind, data, bad):
    """"detected" or "harmless", and what is wrong with how the tools took it."""
    image, folder = tmp_path / "damaged.hyperfs", tmp_path / f"saved-{number}"
    image.write_bytes(data)
    env = environment(tmp_path, image, kind, bad)
    document = fsck(image, env)
    hits = [(f["path"], f["offset"], f["length"]) for d in document.get("damaged", [])
            for f in d["files"]]
    problems, seen = check_mount(sample, image, tmp_path / "mnt", tmp_path / "log", env, hits)
    problems += check_rest(sample, image, folder, env, hits)
    if document["exit_status"] == 0 and (seen or hits):
        problems.append("SILENT: fsck says clean, a reader gets errors")
    if data == sample.data and not bad and document["exit_status"] != 0:
        problems.append("a good image is called damaged")
    run(["rm", "-rf", folder])
    return "harmless" if document["exit_status"] == 0 else "detected", problems


def test_random_faults(sample, tmp_path, capsys):
    (tmp_path / "mnt").mkdir()
    counts, problems = {}, []
    for number in range(FAULTS // 2):
        dice = random.Random(f"{SEED} {number}")
        kind, at, data, bad = make_fault(dice, sample)
        verdict, found = judge(sample, tmp_path, number, kind, data, bad)
        counts.setdefault(kind, Counter())[verdict] += 1
        problems += [f"fault {number}, {kind} at {at}: {p}" for p in found]
    total = sum(counts.values(), Counter())
    silent = sum("SILENT" in p for p in problems)
    with capsys.disabled():
        print(f"\n{FAULTS // 2} faults: {total['detected']} detected, {total['harmless']} harmless, "
              f"{silent} silent; HYPERFS_SEED={SEED}")
        for kind, n in sorted(counts.items()):
            print(f"  {kind:14} {n['detected']:4} detected {n['harmless']:4} harmless")
    assert not problems, f"HYPERFS_SEED={SEED}\n" + "\n".join(problems)


def test_no_sector_is_trusted(sample, tmp_path):
    """A bad sector at each of the tables' sectors and under the superblocks: never a wrong byte, and
    the first superblock alone costs nothing."""
    (tmp_path / "mnt").mkdir()
    sectors = [0, *range(sample.tables // SECTOR * SECTOR, len(sample.data), SECTOR)]
    for number, at in enumerate(sectors):
        verdict, problems = judge(sample, tmp_path, number, "bad sector", sample.data,
                                  [(at, SECTOR)])
        assert not problems and verdict == "detected", f"sector at {at}: {problems}"
    env = Injector(tmp_path, path="damaged.hyperfs", bad=[(0, SUPERBLOCK)]).env
    with foreground(tmp_path / "damaged.hyperfs", tmp_path / "mnt", tmp_path / "log", env) as good:
        assert good, (tmp_path / "log").read_text()
        for path, data in sample.tree.items():
            assert read_pages(tmp_path / "mnt" / path, data) == ([], [])
