"""What bench/read.py measures with: mounts as root and as an ordinary user, the processor time and
memory of their daemons, readers and loaders, cold caches and a disk of limited speed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / os.environ.get("HYPERFS_BUILD", "build")
PROGRAMS = ROOT / "build" / "bench"  # read.py sets it
USER = 65534  # nobody: whom root measures as an ordinary user
READ_AHEAD_KB = 1024  # what root's mounts get
MEMORY = "256M"
IS_ROOT = os.geteuid() == 0


def fail(sentence):
    sys.exit(f"bench-read: {sentence}")


def run(*words, **options):
    done = subprocess.run([str(w) for w in words], text=True, capture_output=True, **options)
    if done.returncode:
        fail(f"{' '.join(map(str, words))}: exit status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def as_(privilege, *words):
    """The command with root's rights or an ordinary user's."""
    words = [str(w) for w in words]
    if privilege == "root" or not IS_ROOT:
        return words
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *words]


@contextlib.contextmanager
def fuse_for_all():
    """Ordinary users may open /dev/fuse meanwhile; on most systems they may anyway."""
    mode = os.stat("/dev/fuse").st_mode & 0o777
    if not IS_ROOT or mode & 0o666 == 0o666:
        yield
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda n, _: sys.exit(128 + n))
    try:
        os.chmod("/dev/fuse", 0o666)
        yield
    finally:
        os.chmod("/dev/fuse", mode)


def daemon_command(kind, source, point):
    if kind == "null":
        return [PROGRAMS / "nullfs", source, point, "-o", "workers=4"]
    if kind == "hyperfs":
        return [BUILD / "hyperfs", "-f", source, point, "-o", f"memory={MEMORY}"]
    return ["squashfuse_ll", "-f", source, point]


class Mount:
    """A mounted image, its daemon in the foreground. With kind "raw" the file as it lies there."""

    def __init__(self, kind, privilege, source):
        self.kind, self.privilege, self.daemon = kind, privilege, None
        self.point = Path(source).parent
        if kind != "raw":
            self.folder = tempfile.TemporaryDirectory(prefix="bench-read-")
            os.chmod(self.folder.name, 0o755)
            self.point = Path(self.folder.name) / "mnt"
            self.point.mkdir()
            if privilege == "user" and IS_ROOT:
                os.chown(self.point, USER, USER)
            self.start(daemon_command(kind, source, self.point))

    def start(self, command):
        self.errors = tempfile.TemporaryFile()
        self.daemon = subprocess.Popen(as_(self.privilege, *command), stdout=self.errors,
                                       stderr=self.errors)
        deadline = time.monotonic() + 20
        while f" {self.point} " not in Path("/proc/mounts").read_text():
            if self.daemon.poll() is not None or time.monotonic() > deadline:
                self.errors.seek(0)
                fail(f"{self.kind} could not be mounted: {self.errors.read().decode()}")
            time.sleep(0.002)
        if self.privilege == "root":
            self.raise_read_ahead()

    def raise_read_ahead(self):
        device = os.stat(self.point).st_dev  # answered once the kernel has set its own
        path = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
        if self.kind != "hyperfs":  # which does that itself
            Path(path).write_text(str(READ_AHEAD_KB))

    def cpu(self):
        """Seconds of processor time of the daemon so far."""
        if not self.daemon:
            return 0.0
        fields = Path(f"/proc/{self.daemon.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_mib(self):
        if not self.daemon:
            return None
        status = Path(f"/proc/{self.daemon.pid}/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in status.splitlines()
                    if line.startswith("VmHWM"))

    def bytes_taken(self):
        """Bytes that the daemon has got from read calls: of its image, and the kernel's requests
        (some hundred bytes for each)."""
        if not self.daemon:
            return 0
        return int(Path(f"/proc/{self.daemon.pid}/io").read_text().split()[1])

    def decoded(self):
        """Bytes decoded over bytes delivered, as hyperfs counts them; None where it does not."""
        counts = []
        for name in ("decoded", "delivered"):
            done = subprocess.run(as_(self.privilege, "getfattr", "--only-values", "-n",
                                      f"user.hyperfs.{name}", self.point),
                                  text=True, capture_output=True)
            if self.kind != "hyperfs" or done.returncode:
                return None
            counts.append(int(done.stdout))
        return counts[0] / counts[1] if counts[1] else None

    def close(self):
        if not self.daemon:
            return
        for attempt in range(100):
            command = ["umount", self.point] if IS_ROOT else ["fusermount3", "-u", self.point]
            if subprocess.run([str(w) for w in command], capture_output=True).returncode == 0:
                break
            if self.daemon.poll() is not None:
                break
            time.sleep(0.02)
        else:
            self.daemon.kill()
            subprocess.run(["umount", "-l", str(self.point)], capture_output=True)
        self.daemon.wait(20)
        self.errors.close()
        self.folder.cleanup()


@contextlib.contextmanager
def mounted(kind, privilege, source):
    mount = None
    try:
        mount = Mount(kind, privilege, source)
        yield mount
    finally:
        if mount:
            mount.close()


def read(privilege, pattern, path):
    """Runs a reader of bench/read.c; its figures."""
    return json.loads(run(*as_(privilege, PROGRAMS / "read", pattern, path)))


class Loader:
    """A process with torch that loads safetensors files on request (bench/loader.py)."""

    def __init__(self, privilege, model):
        uid = USER if privilege == "user" and IS_ROOT else os.getuid()
        command = [sys.executable, ROOT / "bench" / "loader.py", str(uid), str(model)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True)
        self.process.stdout.readline()

    def ask(self, path, threads):
        self.process.stdin.write(f"{threads} {path}\n")
        self.process.stdin.flush()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            fail("the loader ended")
        return json.loads(line)

    def load(self, path, threads):
        self.ask(path, threads)
        return self.answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def busy_seconds():
    """Processor time of the whole machine so far, idle time left out."""
    user, nice, system, _, _, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def into_page_cache(*paths):
    for path in paths:
        with open(path, "rb", buffering=0) as f:
            while f.read(1 << 20):
                pass


def out_of_page_cache(*paths):
    os.sync()
    for path in paths:
        with open(path, "rb") as f:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if IS_ROOT:
        Path("/proc/sys/vm/drop_caches").write_text("3")


class Limit:
    """A control group whose processes read from a file's disk at a limited rate. `works` is
    False where there is none: no root, no controller, a file system without a disk of its own."""

    V1, V2 = Path("/sys/fs/cgroup/blkio"), Path("/sys/fs/cgroup")

    def __init__(self, path):
        device = os.stat(path).st_dev
        block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
        self.group, self.works = None, False
        if not IS_ROOT or not block.exists():
            return
        if (block / "partition").exists():
            block = block.resolve().parent
        self.disk = (block / "dev").read_text().strip()
        self.second = (self.V2 / "cgroup.controllers").exists()
        base = self.V2 if self.second else self.V1
        try:
            if self.second:
                (base / "cgroup.subtree_control").write_text("+io")
            self.base, self.group = base, base / f"hyperfs-bench-{os.getpid()}"
            self.group.mkdir()
            self.set(1 << 30)
            self.works = True
        except OSError:
            self.close()

    def set(self, rate):
        if self.second:
            (self.group / "io.max").write_text(f"{self.disk} rbps={rate}")
        else:
            (self.group / "blkio.throttle.read_bps_device").write_text(f"{self.disk} {rate}")

    def add(self, pid):
        (self.group / "cgroup.procs").write_text(str(pid))

    def release(self):
        """All processes back to where they may read at full speed."""
        for pid in (self.group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (self.base / "cgroup.procs").write_text(pid)

    def close(self):
        if self.group and self.group.exists():
            with contextlib.suppress(OSError):
                self.release()
                self.group.rmdir()
