"""The mount: every reader gets the bytes that went in, nothing can be changed, whatever goes wrong
is said, and a mount that ends leaves nothing behind."""

import concurrent.futures
import contextlib
import ctypes
import errno
import hashlib
import json
import mmap
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import time
from pathlib import Path

import pytest

from conftest import mounted, run, unmount

SEED = int(os.environ.get("HYPERFS_SEED", random.randrange(1 << 32)))
AS_ROOT = os.geteuid() == 0
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
as_root = pytest.mark.skipif(not AS_ROOT, reason="needs root")
SUPERBLOCK = 128  # bytes; the data blocks begin behind it


def safetensors(path, tensors):
    """Writes {name: (dtype, shape, bytes)}; safetensors' own library has not all the dtypes."""
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text
                     + b"".join(data for _, _, data in tensors.values()))


def weights(dice, n, kind):
    """n numbers that look like weights, so that they compress as weights do."""
    pack = struct.Struct({"F32": "<f", "F64": "<d"}[kind])
    some = [pack.pack(dice.gauss(0, 0.02)) for _ in range(5000)]
    return b"".join(dice.choices(some, k=n))


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A tree with blocks of all sizes: 256 KiB to 1 MiB, tiny ones, runs of zeros, an odd rest."""
    dice = random.Random(1)
    tree = tmp_path_factory.mktemp("tree") / "model"
    (tree / "sub" / "deeper").mkdir(parents=True)
    tensors = {"wide": ("F64", [1100, 1024], weights(dice, 1100 * 1024, "F64")),
               "zeros": ("F32", [1 << 20], bytes(4 << 20)),
               "plain": ("F32", [2000, 1025], weights(dice, 2000 * 1025, "F32")),
               "bytes": ("U8", [700001], dice.randbytes(700001))}
    for i in range(300):
        tensors[f"tiny.{i}"] = ("F32", [i % 7], dice.randbytes(4 * (i % 7)))
    safetensors(tree / "model.safetensors", tensors)
    (tree / "config.json").write_text('{"model_type": "test"}')
    (tree / "empty").touch()
    (tree / "sub" / "deeper" / "notes.txt").write_text("words " * 100000)
    os.link(tree / "config.json", tree / "sub" / "same.json")
    (tree / "link").symlink_to("sub/deeper/notes.txt")
    (tree / "sub" / "odd \n name, with 100 %").write_bytes(b"x" * 13)
    (tree / "many").mkdir()
    for i in range(1500):
        (tree / "many" / f"file-{i:04}").write_bytes(b"%d" % i)
    (tree / "config.json").chmod(0o640)
    os.utime(tree / "config.json", ns=(0, 1_600_000_000_123_456_789))
    return tree


@pytest.fixture(scope="session")
def image(source, image_of):
    return image_of(source, "--lossless")


@pytest.fixture(scope="session")
def mnt(image):
    with mounted(image) as point:
        yield point


def files(tree):
    return sorted(p.relative_to(tree) for p in tree.rglob("*") if p.is_file())


def wait_until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def daemon_of(point):
    """Process number of the program behind a mount: its command line names the mount point."""
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


# ---- the same tree ----


def test_tree_is_the_same(source, mnt):
    def listing(tree):
        out = {}
        for p in tree.rglob("*"):
            s = p.lstat()
            size = 0 if stat.S_ISDIR(s.st_mode) else s.st_size
            out[p.relative_to(tree)] = (s.st_mode, s.st_uid, s.st_gid, s.st_nlink, size,
                                        s.st_mtime_ns, p.is_symlink() and os.readlink(p))
        return out
    assert listing(mnt) == listing(source)
    assert (mnt / "config.json").stat().st_ino == (mnt / "sub" / "same.json").stat().st_ino
    with pytest.raises(FileNotFoundError):
        (mnt / "none").stat()
    with pytest.raises(FileNotFoundError):
        (mnt / "none").stat()


@pytest.mark.parametrize("command", [
    ["diff", "-r", "--no-dereference", "{source}", "{mnt}"],
    ["sh", "-c", "cp -r {mnt} {tmp}/copy && diff -r {source} {tmp}/copy"],
    ["sh", "-c", "cp -r --sparse=always {mnt} {tmp}/copy && diff -r {source} {tmp}/copy"],
    ["sh", "-c", "dd if={mnt}/model.safetensors bs=7777 status=none"
                 " | cmp - {source}/model.safetensors"],
    ["sh", "-c", "dd if={mnt}/model.safetensors bs=1M iflag=direct status=none"
                 " | cmp - {source}/model.safetensors"],
    ["sh", "-c", "cd {mnt} && find . -type f -exec sha256sum {{}} + | sort > {tmp}/a && cd {source}"
                 " && find . -type f -exec sha256sum {{}} + | sort > {tmp}/b && cmp {tmp}/a {tmp}/b"],
    ["sh", "-c", "tar -C {mnt} -cf - . | tar -C {source} -df -"],
], ids=["diff", "cp", "cp-sparse", "dd", "dd-direct", "sha256sum", "tar"])
def test_ordinary_tools_read_the_same_bytes(command, source, mnt, tmp_path):
    run([word.format(source=source, mnt=mnt, tmp=tmp_path) for word in command])


def test_directories_list_alike_from_any_place(source, mnt):
    names = sorted(os.listdir(source / "many"))
    for _ in range(2):  # the second time from the kernel's cache
        assert sorted(os.listdir(mnt / "many")) == names
    with os.scandir(mnt / "many") as entries:
        assert all(e.is_file(follow_symlinks=False) for e in entries)
    assert run(["ls", "-lR", mnt / "many"]).stdout.count("file-") == len(names)


def test_seek_to_data_and_hole(mnt):
    path = mnt / "config.json"
    size = path.stat().st_size
    with open(path, "rb") as f:
        assert os.lseek(f.fileno(), 5, os.SEEK_DATA) == 5
        assert os.lseek(f.fileno(), 5, os.SEEK_HOLE) == size
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            with pytest.raises(OSError) as e:
                os.lseek(f.fileno(), size, whence)
            assert e.value.errno == errno.ENXIO


# ---- many readers ----


def read_at_random(job):
    """Reads pieces of a file in all ways and compares; the number of those that differ."""
    path, original, seed, rounds = job
    dice = random.Random(seed)
    wrong = 0
    expected = Path(original).read_bytes()
    direct = os.O_DIRECT if seed % 3 == 0 else 0
    fd = os.open(path, os.O_RDONLY | direct)
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
        for _ in range(rounds):
            at = dice.randrange(len(expected) + 10)
            n = dice.choice([1, 100, 4096, 70000, 262144, 1 << 20, 3 << 20])
            data = os.pread(fd, n, at) if dice.random() < 0.6 else mapped[at:at + n]
            wrong += data != expected[at:at + n]
            if dice.random() < 0.1:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    return wrong


def readers(kind, path, original, rounds):
    jobs = [(str(path), str(original), SEED + i, rounds) for i in range(6)]
    context = {"mp_context": multiprocessing.get_context("fork")} if kind == "processes" else {}
    pool = {"threads": concurrent.futures.ThreadPoolExecutor,
            "processes": concurrent.futures.ProcessPoolExecutor}[kind]
    with pool(len(jobs), **context) as p:
        return sum(p.map(read_at_random, jobs))


@pytest.mark.parametrize("kind", ["threads", "processes"])
@pytest.mark.parametrize("options", ["memory=1M", "memory=2M,max_threads=16",
                                     "memory=64M,max_threads=1", "max_read=4096"])
def test_parallel_readers(kind, options, source, image):
    """In the smallest cache too: no wrong byte, and no request that waits for ever."""
    print(f"seed: HYPERFS_SEED={SEED}")
    name = "model.safetensors"
    with mounted(image, "-o", options) as point:
        assert readers(kind, point / name, source / name, 60) == 0


def test_one_thread(source, image):
    with mounted(image, "-s") as point:
        run(["cmp", point / "model.safetensors", source / "model.safetensors"])


def test_memory_is_bounded(image, source):
    """Whatever is read: SIZE and what the program itself needs, not the size of the model."""
    def peak(options):
        with mounted(image, "-o", options) as point:
            path = point / "model.safetensors"
            with open(path, "rb") as f:  # never whole blocks: the cache keeps what it may
                for at in range(0, path.stat().st_size, 32 << 10):
                    os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                    os.pread(f.fileno(), 1000, at)
            status = Path(f"/proc/{daemon_of(point)}/status").read_text()
            return next(int(line.split()[1]) << 10 for line in status.splitlines()
                        if line.startswith("VmHWM"))
    large, small = peak("memory=256M"), peak("memory=4M")
    assert large - small > 14 << 20, "the cache keeps nothing, or more than it may"


# ---- read-only ----

WRITES = {
    "write": lambda m: os.open(m / "config.json", os.O_WRONLY),
    "read-write": lambda m: os.open(m / "config.json", os.O_RDWR),
    "append": lambda m: os.open(m / "config.json", os.O_WRONLY | os.O_APPEND),
    "truncating": lambda m: os.open(m / "config.json", os.O_RDONLY | os.O_TRUNC),
    "create": lambda m: os.open(m / "new", os.O_CREAT | os.O_WRONLY),
    "mkdir": lambda m: os.mkdir(m / "new"),
    "rmdir": lambda m: os.rmdir(m / "many"),
    "unlink": lambda m: os.unlink(m / "empty"),
    "rename": lambda m: os.rename(m / "empty", m / "full"),
    "chmod": lambda m: os.chmod(m / "empty", 0o777),
    "chown": lambda m: os.chown(m / "empty", 1, 1),
    "utime": lambda m: os.utime(m / "empty", (1, 1)),
    "truncate": lambda m: os.truncate(m / "config.json", 1),
    "setxattr": lambda m: os.setxattr(m / "empty", "user.x", b"y"),
    "removexattr": lambda m: os.removexattr(m, "user.hyperfs.code"),
    "link": lambda m: os.link(m / "empty", m / "new"),
    "symlink": lambda m: os.symlink("empty", m / "new"),
    "mknod": lambda m: os.mkfifo(m / "new"),
}


def outcome(write, point):
    try:
        write(point)
    except OSError as e:
        return e.errno
    return 0


def test_nothing_can_be_written(mnt):
    assert {name: outcome(w, mnt) for name, w in WRITES.items()} == dict.fromkeys(
        WRITES, errno.EROFS)
    assert not os.access(mnt / "config.json", os.W_OK)
    assert os.statvfs(mnt).f_flag & os.ST_RDONLY


@as_root
def test_nothing_can_be_written_after_a_remount(image):
    """The kernel lets root make any mount writable; then we have to refuse by ourselves."""
    with mounted(image) as point:
        refused = run(["mount", "-i", "-o", "remount,rw", point], check=False).returncode != 0
        assert bool(os.statvfs(point).f_flag & os.ST_RDONLY) == refused
        assert {name: outcome(w, point) for name, w in WRITES.items()} == dict.fromkeys(
            WRITES, errno.EROFS)


def test_rw_means_ro(image):
    with mounted(image, "-o", "rw,suid,dev") as point:
        status = os.statvfs(point)
        assert status.f_flag & os.ST_RDONLY
        assert status.f_flag & os.ST_NOSUID
        assert status.f_flag & os.ST_NODEV


# ---- what the mount says about itself ----


def test_statfs(source, mnt):
    status = os.statvfs(mnt)
    inodes = {p.lstat().st_ino: p for p in [source, *source.rglob("*")]}
    content = sum(p.stat().st_size for p in inodes.values()
                  if p.is_file() and not p.is_symlink())
    assert status.f_frsize * (status.f_blocks - 1) < content <= status.f_frsize * status.f_blocks
    assert status.f_bfree == status.f_bavail == status.f_ffree == 0
    assert status.f_files == len(inodes)
    assert status.f_namemax == 255


def attributes(path):
    return {n: os.getxattr(path, n).decode() for n in os.listxattr(path)}


def test_attributes_of_a_lossless_image(source, image, mnt):
    got = attributes(mnt)
    assert sorted(got) == [f"user.hyperfs.{n}" for n in
                           ("code", "decoded", "delivered", "ratio", "sqnr", "version")]
    assert got["user.hyperfs.version"] == "1"
    assert set(got["user.hyperfs.code"].split(",")) == {"planes", "bytes"}
    assert got["user.hyperfs.sqnr"] == "inf"
    inodes = {p.lstat().st_ino: p for p in source.rglob("*") if p.is_file() and not p.is_symlink()}
    content = sum(p.stat().st_size for p in inodes.values())
    # All but the tables is blocks.
    assert content / image.stat().st_size <= float(got["user.hyperfs.ratio"])
    assert float(got["user.hyperfs.ratio"]) < content / (image.stat().st_size - (256 << 10))
    notes = attributes(mnt / "sub" / "deeper" / "notes.txt")
    assert notes["user.hyperfs.code"] == "bytes"
    assert float(notes["user.hyperfs.ratio"]) > 10
    assert "user.hyperfs.version" not in notes
    assert attributes(mnt / "sub" / "deeper") == notes, "a directory is what lies in it"
    with pytest.raises(OSError) as e:
        os.getxattr(mnt, "user.other")
    assert e.value.errno == errno.ENODATA


def test_attributes_of_a_lossy_image(demo_model, image_of, tools):
    image = image_of(demo_model, "--quality", "23")
    worst = json.loads(run([tools.dump, "--json", image]).stdout)["sqnr_worst_db"]
    with mounted(image) as point:
        got = attributes(point / "model.safetensors")
        assert "trajectory" in got["user.hyperfs.code"].split(",")
        assert 22.9 <= float(got["user.hyperfs.sqnr"]) <= 23.5
        assert abs(float(got["user.hyperfs.sqnr"]) - worst) < 0.01
        assert float(got["user.hyperfs.ratio"]) > 3.5
        assert attributes(point / "config.json")["user.hyperfs.sqnr"] == "inf"


# ---- decoding ahead ----


def counted(point):
    return [int(os.getxattr(point, f"user.hyperfs.{n}")) for n in ("decoded", "delivered")]


@pytest.fixture(scope="session")
def long(tmp_path_factory, image_of):
    """A file of 48 MiB, long enough for several streams, and its image."""
    tree = tmp_path_factory.mktemp("long") / "model"
    tree.mkdir()
    dice = random.Random(3)
    safetensors(tree / "model.safetensors",
                {f"t{i}": ("U8", [12 << 20], dice.randbytes(12 << 20)) for i in range(4)})
    return tree / "model.safetensors", image_of(tree, "--lossless")


def read_in_order(path, content):
    with open(path, "rb", buffering=0) as f:
        for at in range(0, len(content), 1 << 20):
            assert f.read(1 << 20) == content[at:at + (1 << 20)]


def map_in_order(path, content):
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        for at in range(0, len(content), mmap.PAGESIZE):
            assert mapped[at] == content[at]


def read_backwards(path, content):
    with open(path, "rb", buffering=0) as f:
        for at in range(len(content) - (1 << 20), -1, -1 << 20):
            assert os.pread(f.fileno(), 1 << 20, at) == content[at:at + (1 << 20)]


def read_interleaved(path, content):
    """One descriptor, several processes and threads, each on its own part."""
    fd = os.open(path, os.O_RDONLY)
    part = len(content) // 6 + 1

    def read_part(number):
        end = min((number + 1) * part, len(content))
        for at in range(number * part, end, 1 << 20):
            size = min(1 << 20, end - at)
            assert os.pread(fd, size, at) == content[at:at + size]

    def read_three(first):
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            list(pool.map(read_part, range(first, first + 3)))

    context = multiprocessing.get_context("fork")
    children = [context.Process(target=read_three, args=(first,)) for first in (0, 3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    os.close(fd)


@pytest.mark.parametrize("options", ["read_ahead_kb=1024", "read_ahead_kb=128",
                                     "read_ahead_kb=128,max_threads=1"])
@pytest.mark.parametrize("pattern", [read_in_order, map_in_order, read_backwards,
                                     read_interleaved])
def test_no_block_is_decoded_twice(pattern, options, long):
    path, image = long
    content = path.read_bytes()
    with mounted(image, "-o", options) as point:
        pattern(point / path.name, content)
        decoded, delivered = counted(point)
        # The kernel reads a page or two ahead of its own readers more than once.
        assert len(content) <= delivered <= 1.05 * len(content)
        assert decoded <= 1.05 * len(content)


def test_memory_is_bounded_while_decoding_ahead(long):
    path, image = long
    content = path.read_bytes()

    def peak(options):
        with mounted(image, "-o", options) as point:
            read_interleaved(point / path.name, content)
            status = Path(f"/proc/{daemon_of(point)}/status").read_text()
            return next(int(line.split()[1]) << 10 for line in status.splitlines()
                        if line.startswith("VmHWM"))
    assert peak("memory=4M") < 40 << 20


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_signal_while_decoding_ahead(sign, long):
    path, image = long
    for _ in range(5):
        with mounted(image, "-o", "read_ahead_kb=128") as point:
            daemon = daemon_of(point)
            with open(point / path.name, "rb", buffering=0) as f:
                f.read(2 << 20)
                os.kill(daemon, sign)
                wait_until(lambda: not is_running(daemon))
            run(["fusermount3", "-u", "-z", point], check=False)


@as_root
def test_read_ahead(image):
    def read_ahead(point):
        device = os.stat(point).st_dev
        return int(Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
                   .read_text())
    with mounted(image) as point:
        assert read_ahead(point) == 1024
    with mounted(image, "-o", "read_ahead_kb=512") as point:
        assert read_ahead(point) == 512
    with mounted(image, "-o", "read_ahead_kb=0") as point:
        assert read_ahead(point) == 128


# ---- damage ----


@pytest.fixture
def damaged(source, image, tmp_path):
    """A copy of the image with one wrong byte in the middle of its data."""
    copy = tmp_path / "damaged.hyperfs"
    data = bytearray(image.read_bytes())
    data[len(data) // 2] ^= 0x10
    copy.write_bytes(data)
    return copy


def broken_pages(path, original):
    """Offsets of the pages that give EIO; all others have to be right."""
    broken = []
    expected = original.read_bytes()
    with open(path, "rb") as f:
        for at in range(0, len(expected), mmap.PAGESIZE):
            try:
                assert os.pread(f.fileno(), mmap.PAGESIZE, at) == expected[at:at + mmap.PAGESIZE]
            except OSError as e:
                assert e.errno == errno.EIO
                broken.append(at)
    return broken


@contextlib.contextmanager
def in_foreground(tools, image, point, *args, prefix=()):
    """A mount in the foreground; yields the process. Its messages are read after the end."""
    point.mkdir(exist_ok=True)
    daemon = subprocess.Popen([*prefix, tools.hyperfs, "-f", *args, image, point],
                              stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: os.path.ismount(point) or daemon.poll() is not None)
        yield daemon
    finally:
        if daemon.poll() is None:
            daemon.send_signal(signal.SIGTERM)
        daemon.wait(20)


def test_damaged_block_is_an_error_and_nothing_else_is(source, damaged, tools, tmp_path):
    point = tmp_path / "mnt"
    name = "model.safetensors"
    with in_foreground(tools, damaged, point) as daemon:
        broken = broken_pages(point / name, source / name)
        assert broken, "the wrong byte was not noticed"
        assert broken == list(range(broken[0], broken[-1] + 1, mmap.PAGESIZE))
        assert len(broken) <= (1 << 20) / mmap.PAGESIZE + 1, "more than one block was lost"
        with open(point / name, "rb") as f:
            mapped = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
            assert mapped[:1000] == (source / name).read_bytes()[:1000]
        for other in files(source):
            if other != Path(name):
                run(["cmp", point / other, source / other])
    lines = daemon.stderr.read().splitlines()
    assert len(lines) == 1, "one line, however often the block is read"
    assert str(damaged) in lines[0] and name in lines[0] and "damaged" in lines[0]
    first, last = (int(lines[0].split(word)[1].split()[0].rstrip(")"))
                   for word in ("(bytes ", " to "))
    assert first < broken[0] + mmap.PAGESIZE and broken[-1] <= last


def test_image_cut_while_mounted(source, image, tools, tmp_path):
    """A disk error or a truncated image is an error of read, never a signal to the mount."""
    copy = tmp_path / "copy.hyperfs"
    shutil.copy(image, copy)
    name = "model.safetensors"
    with in_foreground(tools, copy, tmp_path / "mnt") as daemon:
        os.truncate(copy, 200_000)
        with pytest.raises(OSError) as e:
            (tmp_path / "mnt" / name).read_bytes()
        assert e.value.errno == errno.EIO
        shutil.copy(image, copy)  # the same inode: the mount still has it open
        assert (tmp_path / "mnt" / name).read_bytes() == (source / name).read_bytes()
    assert name in daemon.stderr.read()


@as_root
def test_damage_in_the_background_goes_to_syslog(damaged, source):
    log = Path("/dev/log")
    if log.exists():
        pytest.skip("there is a real syslog")
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listener:
        listener.bind(str(log))
        try:
            listener.settimeout(10)
            with mounted(damaged) as point:
                assert broken_pages(point / "model.safetensors", source / "model.safetensors")
                line = listener.recv(4096).decode()
                while "no filter of system calls" in line:  # of a build with sanitizers
                    line = listener.recv(4096).decode()
        finally:
            log.unlink()
    assert "hyperfs[" in line and "model.safetensors: block" in line


# ---- coming and going ----


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_unmounts(sign, image):
    with mounted(image) as point:
        daemon = daemon_of(point)
        assert (point / "config.json").read_text()
        os.kill(daemon, sign)
        wait_until(lambda: not is_running(daemon))
        assert not os.path.ismount(point)
        assert os.listdir(point) == []


def test_signal_with_a_file_open(image):
    with mounted(image) as point:
        daemon = daemon_of(point)
        with open(point / "model.safetensors", "rb"):
            os.kill(daemon, signal.SIGTERM)
            wait_until(lambda: not is_running(daemon))
            assert not os.path.ismount(point)


def test_unmount_lazily_with_a_file_open(image, source):
    """What was open stays readable until it is closed, then the program ends."""
    name = "model.safetensors"
    with mounted(image) as point:
        daemon = daemon_of(point)
        with open(point / name, "rb") as f:
            first = f.read(1000)
            assert run(["fusermount3", "-u", point], check=False).returncode != 0
            run(["fusermount3", "-u", "-z", point])
            assert not os.path.ismount(point)
            assert first + f.read() == (source / name).read_bytes()
        wait_until(lambda: not is_running(daemon))


def test_unmount_under_readers(image):
    """Readers get an error or their bytes; nobody hangs."""
    with mounted(image) as point:
        readers = [subprocess.Popen(["sh", "-c", f"while cat '{point}/model.safetensors'"
                                     " > /dev/null 2>&1; do :; done"]) for _ in range(4)]
        time.sleep(0.5)
        run(["fusermount3", "-u", "-z", point])
        for reader in readers:
            reader.wait(20)


def test_mount_and_unmount_again_and_again(image):
    for _ in range(10):
        with mounted(image) as point:
            assert (point / "empty").exists()


def test_same_image_twice(image):
    with mounted(image) as a, mounted(image) as b:
        assert (a / "config.json").read_bytes() == (b / "config.json").read_bytes()


def test_foreground_ends_with_status_0(image, tools, tmp_path):
    for args in ([], ["-s"]):
        with in_foreground(tools, image, tmp_path / "mnt", *args) as daemon:
            assert daemon.poll() is None
        assert daemon.returncode == 0
        assert daemon.stderr.read() == ""
        assert not os.path.ismount(tmp_path / "mnt")


def test_debug_shows_requests(image, tools, tmp_path):
    with in_foreground(tools, image, tmp_path / "mnt", "-d") as daemon:
        (tmp_path / "mnt" / "empty").stat()
    assert "LOOKUP" in daemon.stderr.read()


def test_background_leaves_the_terminal(image):
    """Nothing of the caller stays in use: neither its terminal nor its directory."""
    with mounted(image) as point:
        process = Path("/proc") / str(daemon_of(point))
        assert os.readlink(process / "cwd") == "/"
        for fd in "012":
            assert os.readlink(process / "fd" / fd) == "/dev/null"
        assert os.getsid(int(process.name)) != os.getsid(0)
        assert "NoNewPrivs:\t1" in (process / "status").read_text()


def test_relative_paths(image, tools, tmp_path):
    shutil.copy(image, tmp_path / "image, odd name.hyperfs")
    (tmp_path / "mnt").mkdir()
    run([tools.hyperfs, "image, odd name.hyperfs", "mnt"], cwd=tmp_path)
    try:
        assert (tmp_path / "mnt" / "empty").exists()
        assert "image, odd name.hyperfs" in Path("/proc/self/mounts").read_text().replace(
            "\\040", " ")
    finally:
        unmount(tmp_path / "mnt")


# ---- mount(8) and fstab(5) ----


def mount_by_mount(tools, command, point):
    """Runs mount(8) and looks, in a mount namespace where the tools lie in /usr/local/bin: mount(8)
    passes on no PATH. Returns the mount's line of /proc/self/mounts."""
    script = """set -e
        mount --bind "$1" /usr/local/bin
        shift
        "$@"
        trap "umount '$point'" EXIT
        cat "$point/config.json" > "$point.copy"
        grep " $point " /proc/self/mounts"""
    return run(["unshare", "--mount", "sh", "-c", script, "sh", tools.hyperfs.parent, *command],
               env={**os.environ, "point": str(point)}).stdout


@as_root
@pytest.mark.parametrize("options", [
    [], ["-o", "ro,allow_other,nodev,nosuid,noexec,memory=64M"],
    ["-o", "rw,noatime,exec,x-systemd.automount,x-gvfs-show,_netdev,nofail,noauto,user"],
    ["-r"]])
def test_mount_command(options, source, image, tools, tmp_path):
    point = tmp_path / "mnt"
    point.mkdir()
    line = mount_by_mount(tools, ["mount", "-t", "fuse.hyperfs", image, point, *options], point)
    assert line.split()[0] == str(image) and line.split()[2] == "fuse.hyperfs"
    assert line.split()[3].startswith("ro,")
    assert (tmp_path / "mnt.copy").read_bytes() == (source / "config.json").read_bytes()


@as_root
def test_fstab_line(source, image, tools, tmp_path):
    point = tmp_path / "mnt"
    point.mkdir()
    table = tmp_path / "fstab"
    table.write_text(f"{image} {point} fuse.hyperfs "
                     "ro,allow_other,noauto,nofail,_netdev,x-systemd.requires=/,memory=32M 0 0\n")
    line = mount_by_mount(tools, ["mount", "-T", table, point], point)
    assert "allow_other" in line.split()[3] and "default_permissions" in line.split()[3]
    assert (tmp_path / "mnt.copy").read_bytes() == (source / "config.json").read_bytes()


# ---- an ordinary user ----


@pytest.fixture
def open_to_all(image):
    """A folder of nobody's with the image, and /dev/fuse open to all, as it is elsewhere."""
    device = Path("/dev/fuse")
    mode = stat.S_IMODE(device.stat().st_mode)
    folder = Path(run(["mktemp", "-d", "/tmp/hyperfs-user-XXXXXX"]).stdout.strip())
    try:
        device.chmod(0o666)
        shutil.copy(image, folder / "image.hyperfs")
        (folder / "mnt").mkdir()
        for p in (folder, folder / "image.hyperfs", folder / "mnt"):
            os.chown(p, 65534, 65534)
        yield folder
    finally:
        device.chmod(mode)
        run(["fusermount3", "-u", "-q", "-z", folder / "mnt"], check=False)
        shutil.rmtree(folder)


@pytest.fixture
def copied_tool(tools, open_to_all):
    """The program where an ordinary user can run it: the repository may lie in a private home."""
    shutil.copy(tools.hyperfs, open_to_all / "hyperfs")
    return open_to_all / "hyperfs"


def mount_as_nobody(tool, folder, *args):
    return run([*NOBODY, tool, *args, folder / "image.hyperfs", folder / "mnt"], check=False)


@as_root
@pytest.mark.parametrize("ending", ["fusermount3", "SIGTERM", "file open", "SIGKILL",
                                    "foreground"])
def test_ordinary_user(ending, source, open_to_all, copied_tool):
    """Whichever way it ends, no mount stays behind."""
    folder, point = open_to_all, open_to_all / "mnt"
    name = "model.safetensors"
    if ending == "foreground":
        daemon = subprocess.Popen([*NOBODY, copied_tool, "-f", folder / "image.hyperfs", point])
        wait_until(lambda: os.path.ismount(point) or str(point) in
                   Path("/proc/self/mounts").read_text())
        pid = daemon.pid
    else:
        done = mount_as_nobody(copied_tool, folder)
        assert done.returncode == 0, done.stderr
        pid = daemon_of(point)
    digest = run([*NOBODY, "sha256sum", point / name]).stdout.split()[0]
    assert digest == hashlib.sha256((source / name).read_bytes()).hexdigest()
    if ending == "file open":
        reader = subprocess.Popen(
            [*NOBODY, "sh", "-c", f"exec 3< '{point}/{name}' && echo open && exec sleep 30"],
            stdout=subprocess.PIPE)
        assert reader.stdout.readline() == b"open\n"
    if ending == "fusermount3":
        run([*NOBODY, "fusermount3", "-u", point])
    else:
        os.kill(pid, signal.SIGKILL if ending == "SIGKILL" else signal.SIGTERM)
    if ending == "foreground":
        assert daemon.wait(10) == 0
    wait_until(lambda: not is_running(pid))
    if ending == "file open":
        reader.terminate()
        reader.wait()
    wait_until(lambda: str(point) not in Path("/proc/self/mounts").read_text())
    assert os.listdir(point) == []


@as_root
def test_ordinary_user_is_told_why_not(open_to_all, copied_tool):
    Path("/dev/fuse").chmod(0o600)
    done = mount_as_nobody(copied_tool, open_to_all)
    assert done.returncode == 1
    assert "/dev/fuse" in done.stderr and "mnt" in done.stderr


@as_root
def test_allow_other_keeps_to_the_modes(image):
    with mounted(image, "-o", "allow_other") as point:
        point.parent.chmod(0o755)
        run([*NOBODY, "cat", point / "empty"])
        denied = run([*NOBODY, "cat", point / "config.json"], check=False)  # mode 640
        assert denied.returncode != 0 and "Permission denied" in denied.stderr


# ---- what goes wrong at the start ----


def refused(tools, image, point, *args, status=1):
    done = run([tools.hyperfs, *args, image, point], check=False, timeout=30)
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("hyperfs: ")
    assert str(point) not in Path("/proc/self/mounts").read_text()
    return done.stderr


@pytest.mark.parametrize("args", [[], ["-f"]], ids=["background", "foreground"])
class TestRefused:
    def test_missing_mount_point(self, args, tools, image, tmp_path):
        message = refused(tools, image, tmp_path / "none", *args)
        assert str(tmp_path / "none") in message and "mkdir" in message
        assert message.count("\n") == 1

    def test_mount_point_is_a_file(self, args, tools, image, tmp_path):
        (tmp_path / "file").touch()
        assert "not a directory" in refused(tools, image, tmp_path / "file", *args)

    def test_mount_point_is_not_empty(self, args, tools, image, tmp_path):
        point = tmp_path / "mnt"
        point.mkdir()
        (point / "file").touch()
        message = refused(tools, image, point, *args)
        assert "not empty" in message and "-o nonempty" in message
        assert (point / "file").exists()

    @pytest.mark.parametrize("content", [b"", b"hello", bytes(100_000)],
                             ids=["empty", "short", "zeros"])
    def test_no_image(self, args, content, tools, tmp_path):
        (tmp_path / "mnt").mkdir()
        (tmp_path / "file").write_bytes(content)
        message = refused(tools, tmp_path / "file", tmp_path / "mnt", *args)
        assert str(tmp_path / "file") in message and message.count("\n") == 1

    def test_missing_image(self, args, tools, tmp_path):
        (tmp_path / "mnt").mkdir()
        message = refused(tools, tmp_path / "none", tmp_path / "mnt", *args)
        assert "No such file" in message and message.count("\n") == 1

    def test_image_is_a_directory(self, args, tools, tmp_path):
        (tmp_path / "mnt").mkdir()
        assert refused(tools, tmp_path, tmp_path / "mnt", *args).count("\n") == 1

    @pytest.mark.parametrize("size", [64, SUPERBLOCK, 200_000, -1])
    def test_truncated_image(self, args, size, tools, image, tmp_path):
        (tmp_path / "mnt").mkdir()
        (tmp_path / "cut").write_bytes(image.read_bytes()[:size])
        message = refused(tools, tmp_path / "cut", tmp_path / "mnt", *args)
        assert message.count("\n") == 1

    def test_newer_version(self, args, tools, image, tmp_path):
        (tmp_path / "mnt").mkdir()
        data = bytearray(image.read_bytes())
        for at in (8, len(data) - SUPERBLOCK + 8):  # in both superblocks
            data[at:at + 4] = struct.pack("<I", 2)
        (tmp_path / "new").write_bytes(data)
        message = refused(tools, tmp_path / "new", tmp_path / "mnt", *args)
        assert "version" in message and message.count("\n") == 1


def test_nonempty(image, tools, tmp_path):
    (tmp_path / "file").touch()
    run([tools.hyperfs, "-o", "nonempty", image, tmp_path])
    try:
        assert (tmp_path / "config.json").exists()
    finally:
        unmount(tmp_path)
    assert os.listdir(tmp_path) == ["file"]


@as_root
def test_dead_mount_below(image, tools, tmp_path):
    """Root's mount whose program was killed: we say how to get rid of it."""
    point = tmp_path / "mnt"
    point.mkdir()
    run([tools.hyperfs, image, point])
    daemon = daemon_of(point)
    os.kill(daemon, signal.SIGKILL)
    wait_until(lambda: not is_running(daemon))
    try:
        done = run([tools.hyperfs, image, point], check=False)
        assert done.returncode == 1
        assert f"fusermount3 -u {point}" in done.stderr and done.stderr.count("\n") == 1
    finally:
        run(["fusermount3", "-u", point])


@pytest.mark.parametrize("args", [
    [], ["image"], ["image", "mnt", "more"], ["--no-such-option", "image", "mnt"],
    ["-o", "memory=12", "image", "mnt"], ["-o", "memory=1M1", "image", "mnt"],
    ["-o", "memory=99999999999999999999G", "image", "mnt"], ["-o", "memory=-1", "image", "mnt"],
    ["-o", "max_threads=0", "image", "mnt"], ["-o", "max_threads=1000", "image", "mnt"],
    ["-o", "read_ahead_kb=x", "image", "mnt"], ["-o", "max_read=1", "image", "mnt"],
    ["-o", "nonsense", "image", "mnt"]], ids=" ".join)
def test_usage_error(args, tools, image, tmp_path):
    words = [{"image": image, "mnt": tmp_path}.get(a, a) for a in args]
    done = run([tools.hyperfs, *words], check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("hyperfs: ")
    assert done.stderr.endswith("Try 'hyperfs --help' for more information.\n")
    assert not os.path.ismount(tmp_path)


def digest_of(image, tools):
    return json.loads(run([tools.dump, "--json", image]).stdout)["sha256"]


def test_digest(image, source, tools, tmp_path):
    digest = digest_of(image, tools)
    with mounted(image, "-o", f"digest=sha256:{digest}") as mnt:
        for path in source.rglob("*"):
            if path.is_file():
                assert (mnt / path.relative_to(source)).read_bytes() == path.read_bytes()
    run([tools.fsck, "-q", f"--digest={digest}", image])
    other = digest[:-1] + ("1" if digest[-1] == "0" else "0")
    for command, status in (([tools.hyperfs, "-o", f"digest={other}", image, tmp_path], 1),
                            ([tools.fsck, f"--digest={other}", image], 4)):
        r = subprocess.run(command, capture_output=True, text=True)
        assert r.returncode == status
        assert digest in r.stderr and "not the digest asked for" in r.stderr
    assert not os.path.ismount(tmp_path)


def test_digest_finds_damage(damaged, source, tools):
    with mounted(damaged, "-o", f"digest={digest_of(damaged, tools)}") as mnt:
        failed = 0
        for file in source.rglob("*"):
            if file.is_file():
                try:
                    (mnt / file.relative_to(source)).read_bytes()
                except OSError as e:
                    assert e.errno == errno.EIO
                    failed += 1
        assert failed


def test_running_mount_holds_little(image, tools, tmp_path):
    """No way to new privileges, a filter of system calls, no capability but those for unmounting, no
    descriptor of who started it."""
    inherited = os.open("/etc/passwd", os.O_RDONLY)
    child = subprocess.Popen([tools.hyperfs, "-f", image, tmp_path], pass_fds=[inherited],
                             stderr=subprocess.PIPE)
    os.close(inherited)
    try:
        while not os.path.ismount(tmp_path):
            assert child.poll() is None, child.stderr.read()
            time.sleep(0.01)
        next(p for p in tmp_path.iterdir() if p.is_file()).read_bytes()
        status = Path(f"/proc/{child.pid}/status").read_text()
        assert "NoNewPrivs:\t1" in status
        if "san" not in tools.hyperfs.parent.parts:  # sanitizers need more system calls
            assert "Seccomp:\t2" in status
        for thread in Path(f"/proc/{child.pid}/task").iterdir():
            sets = re.findall(r"Cap(Inh|Prm|Eff):\t(\w+)", (thread / "status").read_text())
            least = 1 << 21 | 1 << 2  # CAP_SYS_ADMIN, CAP_DAC_READ_SEARCH
            assert len(sets) == 3 and all(int(bits, 16) & ~least == 0 for _, bits in sets)
        opened = {os.readlink(fd) for fd in Path(f"/proc/{child.pid}/fd").iterdir()
                  if int(fd.name) > 2}
        assert "/etc/passwd" not in opened
        named = {path for path in opened if path.startswith("/") and path != "/dev/null"}
        assert named == {"/dev/fuse", str(image)}
    finally:
        child.terminate()
        assert child.wait() == 0, child.stderr.read()
    assert not os.path.ismount(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user has no such directory to mount in")
def test_root_unmounts_in_a_directory_of_another(image, tools, tmp_path):
    """What root's mount keeps is enough to take it down at its end."""
    point = tmp_path / "home" / "mnt"
    point.mkdir(parents=True)
    os.chown(point.parent, 65534, 65534)
    point.parent.chmod(0o700)
    child = subprocess.Popen([tools.hyperfs, "-f", image, point], stderr=subprocess.PIPE)
    while not os.path.ismount(point):
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.01)
    child.terminate()
    assert child.wait() == 0, child.stderr.read()
    mounts = Path("/proc/self/mounts").read_text()
    if str(point) in mounts:
        subprocess.run(["umount", point], check=True)
    assert str(point) not in mounts
