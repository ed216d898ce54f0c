"""Long life under load: many processes and threads that read and fault mapped pages at random.

No reader hangs, every byte is compared, and the daemon keeps its bound of memory and its
descriptors. HYPERFS_SOAK=SECONDS sets how long all of it takes (make soak SECONDS=600); in
`make test` it is short.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

import samples
from conftest import BUILD, TOOLS, mounted, run, unmount

SEED = int(os.environ.get("HYPERFS_SEED", random.randrange(1 << 32)))
SECONDS = float(os.environ.get("HYPERFS_SOAK", 9))
LONG = "HYPERFS_SOAK" in os.environ
HANG_S = 60 if LONG else 120  # `make test` may share its processors
PROCESSES, THREADS = (64, 64) if LONG else (16, 16)
SANITIZED, TSAN = BUILD.name != "build", BUILD.name == "tsan"
OWN_KB = 48 << 10  # a daemon's program, libraries, tables and stacks, and what malloc keeps

# name: options, image on another hyperfs mount. memory=1M is a cache of one block.
LAYOUTS = {
    "one thread": (["-s"], False),
    "one worker": (["-o", "max_threads=1"], False),
    "two workers": (["-o", "max_threads=2"], False),
    "64 workers": (["-o", "max_threads=64"], False),
    "one block": (["-o", "memory=1M,max_threads=64"], False),
    "one block, one worker": (["-o", "memory=1M,max_threads=1"], False),
    "on a mount": (["-o", "memory=1M"], True),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory, image_of):
    """(image, what is in it)"""
    folder = tmp_path_factory.mktemp("soak")
    source = samples.shards(folder / "shards")
    image = image_of(source, "--quality", "small")
    run([TOOLS.fsck, f"--extract={folder / 'expected'}", image])
    return image, folder / "expected"


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def daemon_of(point):
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if (entry / "comm").read_text() == "hyperfs\n" and os.fsencode(point) in words:
                return int(entry.name)
    raise AssertionError(f"no process serves {point}")


def is_running(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0] != "Z"
    return False


@contextlib.contextmanager
def mounted_image(image, options, nested, tmp_path):
    if not nested:
        with mounted(image, *options) as point:
            yield point
        return
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.copy(image, outside / "inner.hyperfs")
    run([TOOLS.mkhyperfs, "-f", outside, tmp_path / "outer.hyperfs", "--lossless"])
    with mounted(tmp_path / "outer.hyperfs", *options) as outer:
        with mounted(outer / "inner.hyperfs", *options) as point:
            yield point


def memory_bound_kb(options):
    match = re.search(r"memory=(\d+)M", " ".join(options))
    return (int(match[1]) if match else 256) * 1024 + OWN_KB


@pytest.mark.parametrize("layout", LAYOUTS)
def test_readers_at_random(layout, tree, tmp_path, capsys):
    image, expected = tree
    options, nested = LAYOUTS[layout]
    logs = tmp_path / "tsan"
    if TSAN:
        os.environ["TSAN_OPTIONS"] = f"log_path={logs} exitcode=66"
    with mounted_image(image, options, nested, tmp_path) as point:
        daemon = daemon_of(point)
        done = run([BUILD / "tests" / "soak", point, expected, PROCESSES, THREADS,
                    SECONDS / len(LAYOUTS), daemon, SEED, HANG_S], check=False,
                   timeout=SECONDS + 10 * HANG_S)
        told = dict(word.split("=") for word in done.stdout.split())
        assert is_running(daemon), "the daemon has ended"
    if LONG:
        with capsys.disabled():
            print(f"\n{layout}: {done.stdout.strip()} HYPERFS_SEED={SEED}")
    assert done.returncode == 0 and told["wrong"] == "0", f"HYPERFS_SEED={SEED}\n{done.stderr}"
    assert int(told["operations"]) > PROCESSES + THREADS
    told = {key: int(value) for key, value in told.items()}
    assert told["fds_max"] <= told["fds"] + 2, "descriptors leak"
    if not SANITIZED:  # shadow memory is many times the program's
        assert told["kb_peak"] < memory_bound_kb(options), "more memory than the bound"
        if LONG:
            assert told["kb_late"] < told["kb_early"] * 1.1 + 4096, "memory grows"
    races = "".join(p.read_text() for p in tmp_path.glob("tsan.*"))
    assert "WARNING: ThreadSanitizer" not in races, races


# ---- the end of a mount that is in use ----


READS = "os.pread(f.fileno(), 4096, at); os.stat(other)"
FAULTS = "m[at]"


def start_reader(point, look=READS):
    """A process that has a file open and mapped, and looks at it on and on. Its exit status is 0 if an
    exception told it of the end, and -SIGBUS if a page of the mapping could not be read."""
    program = f"""
import mmap, os
f = open({str(point / 'model-0.safetensors')!r}, "rb")
m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
other = {str(point / 'config.json')!r}
assert m[:1] == f.read(1)
print("reading", flush=True)
at = 0
try:
    while True:
        m.madvise(mmap.MADV_DONTNEED)
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        at = (at + 77777) % len(m)
        {look}
except OSError:
    pass
"""
    reader = subprocess.Popen(["python3", "-c", program], stdout=subprocess.PIPE)
    assert reader.stdout.readline() == b"reading\n"
    return reader


@pytest.mark.parametrize("ending", ["lazy unmount", "SIGTERM", "SIGKILL"])
def test_the_end_while_files_are_mapped(ending, tree, tmp_path):
    """Readers get an error, not a hang; the daemon ends; the mount point can be used again. Whoever has
    a file open does not notice a lazy unmount, but finds no other file there."""
    image, expected = tree
    point = tmp_path / "mnt"
    point.mkdir()
    run([TOOLS.hyperfs, image, point])
    daemon = daemon_of(point)
    statuses = {READS: 0} if ending == "lazy unmount" else {READS: 0, FAULTS: -signal.SIGBUS}
    readers = []
    try:
        readers = [(start_reader(point, look), status) for look, status in statuses.items()
                   for _ in range(3)]
        if ending == "lazy unmount":
            run(["fusermount3", "-u", "-z", point])
        else:
            os.kill(daemon, getattr(signal, ending))
        for reader, status in readers:
            assert reader.wait(60) == status, "a reader was not told by an error"
        wait_until(lambda: not is_running(daemon))
        if ending == "SIGKILL":  # a dead mount: it says so, and what it says helps
            done = run([TOOLS.hyperfs, image, point], check=False)
            assert done.returncode == 1
            assert f"fusermount3 -u {point}" in done.stderr
            run(["fusermount3", "-u", point])
        run([TOOLS.hyperfs, image, point])
        run(["cmp", point / "model-0.safetensors", expected / "model-0.safetensors"])
    finally:
        for reader, _ in readers:
            reader.kill()
            reader.wait()
        if os.path.ismount(point):
            unmount(point)


def test_unmounting_again_and_again_leaves_nothing(tree, tmp_path):
    """No process, no mount and no descriptor stays, also where readers are busy."""
    image, _ = tree
    point = tmp_path / "mnt"
    point.mkdir()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20 if LONG else 5):
        run([TOOLS.hyperfs, image, point])
        try:
            daemon, reader = daemon_of(point), start_reader(point)
        finally:
            run(["fusermount3", "-u", "-z", point])
        assert reader.wait(60) == 0
        reader.stdout.close()
        wait_until(lambda: not is_running(daemon))
    assert str(point) not in Path("/proc/self/mounts").read_text()
    assert len(os.listdir("/proc/self/fd")) == before
