"""What the tests of tests/mount and tests/loaders share: the tools, the models, real mounts.

HYPERFS_BUILD names the build folder (build). A test fails where it cannot mount; none is skipped.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / os.environ.get("HYPERFS_BUILD", "build")
TOOLS = SimpleNamespace(mkhyperfs=BUILD / "mkhyperfs", hyperfs=BUILD / "hyperfs",
                        fsck=BUILD / "fsck.hyperfs", dump=BUILD / "dump.hyperfs")
DEMO_MODEL = ROOT / "models" / "demo"
TIMEOUT_S = 300

os.environ["HF_HUB_OFFLINE"] = "1"  # a loader that wants the network fails instead of waiting

# Under nohup, and in the background of a script, signals are ignored, and the tools leave them so.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


def run(cmd, check=True, **kw):
    """Runs a command to its end, its output captured as text; with check it has to succeed."""
    cmd = [str(word) for word in cmd]
    options = {"text": True, "errors": "replace", "capture_output": True, "timeout": TIMEOUT_S}
    done = subprocess.run(cmd, **{**options, **kw})
    if check:
        assert done.returncode == 0, (f"{' '.join(cmd)}: exit status {done.returncode}\n"
                                      f"{done.stdout}{done.stderr}")
    return done


def unmount(point):
    """Unmounts politely; where that is refused for two seconds, lazily, and fails."""
    deadline = time.monotonic() + 2
    while True:
        done = run(["fusermount3", "-u", point], check=False)
        if done.returncode == 0:
            return
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    run(["fusermount3", "-u", "-z", point], check=False)
    pytest.fail(f"{point} could not be unmounted: {done.stderr}")


@contextlib.contextmanager
def mounted(image, *args):
    """Mounts image in the background on a new directory, yields it, and always unmounts."""
    with tempfile.TemporaryDirectory(prefix="hyperfs-test-") as scratch:
        point = Path(scratch) / "mnt"
        point.mkdir()
        done = run([TOOLS.hyperfs, image, point, *args], check=False, timeout=60)
        try:
            assert done.returncode == 0, f"cannot mount {image}: {done.stdout}{done.stderr}"
            assert os.path.ismount(point), f"hyperfs says that {image} is mounted; it is not"
            yield point
        finally:
            if os.path.ismount(point):
                unmount(point)


@pytest.fixture(scope="session")
def tools():
    return TOOLS


@pytest.fixture(scope="session")
def demo_model():
    return DEMO_MODEL


def models():
    """The bundled model, and those that lie in ../shared/models where there is such a folder."""
    shared = ROOT.parent / "shared" / "models"
    others = sorted(d for d in shared.glob("*") if d.is_dir() and d.name != DEMO_MODEL.name)
    return [DEMO_MODEL, *others]


@pytest.fixture(scope="session", params=models(), ids=lambda path: path.name)
def model(request):
    return request.param


@pytest.fixture(scope="session")
def image_of(tmp_path_factory):
    """image_of(source, option...): an image of source, made once for each list of options."""
    images = {}

    def make(source, *options):
        key = (source, options)
        if key not in images:
            path = tmp_path_factory.mktemp("image") / f"{source.name}.hyperfs"
            run([TOOLS.mkhyperfs, source, path, *options])
            images[key] = path
        return images[key]

    return make
