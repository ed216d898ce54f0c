"""Whatever fails while a tool runs: the image under the target's name is the old one or the new one,
whole; the source is as it was; nothing is left behind; and the user reads one sentence."""

import concurrent.futures
import contextlib
import errno
import fcntl
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

import samples
from conftest import BUILD, ROOT, TOOLS, run, unmount
from inject import Injector, attempt, count, sanitizer_met_it

SEED = int(os.environ.get("HYPERFS_SEED", random.randrange(1 << 32)))
KILLS = 200 if os.environ.get("HYPERFS_FAULTS") == "full" else 30
SANITIZED = BUILD.name != "build"
TRANSFERS = "read,pread,write,pwrite"
# What the daemon does itself. A lost request or reply of the FUSE device is not a fault that a
# disk has.
MOUNT_CALLS = "open,openat,opendir,readdir,stat,fstat,pread,pipe2,fork,pthread_create"


def contents(root):
    """Everything of a tree: bytes, link targets and times."""
    found = {}
    for path in sorted(root.rglob("*")):
        st = path.lstat()
        data = os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        found[path.relative_to(root)] = (st.st_mode, st.st_mtime_ns, data)
    return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return samples.tiny(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return samples.shards(tmp_path_factory.mktemp("source") / "shards")


@pytest.fixture(scope="module")
def image(tiny, image_of):
    image = image_of(tiny, "-j1")
    codes = run([TOOLS.dump, "--tensors", image]).stdout
    assert "trajectory" in codes and "planes" in codes, f"a code is not tested:\n{codes}"
    return image


def sentences(text):
    return [line for line in text.splitlines() if ": warning: " not in line]


def one_sentence(tool, outcome):
    lines = sentences(outcome.err)
    assert len(lines) == 1, f"{outcome.label}: {len(lines)} sentences:\n{outcome.err}"
    assert lines[0].startswith(f"{tool.name}: ") and len(lines[0]) > len(tool.name) + 10, \
        f"{outcome.label}: {lines[0]}"


# ---- making an image ----


class Target:
    """A folder with the target's name in it, and what may stand there."""

    def __init__(self, folder, old, new):
        folder.mkdir()
        self.image, self.old, self.new = folder / "model.hyperfs", old, new
        self.reset()

    def reset(self, old=None):
        """Makes the folder as it is before a run: with the image `old`, or empty."""
        self.old = old
        for path in self.image.parent.iterdir():
            path.unlink()
        if self.old:
            self.image.write_bytes(self.old)

    def state(self):
        """"old", "new" or "none"; anything else fails."""
        names = [p.name for p in self.image.parent.iterdir()]
        assert set(names) <= {self.image.name}, f"left behind: {names}"
        if not names:
            assert not self.old, "the old image is gone"
            return "none"
        data = self.image.read_bytes()
        assert data in (self.old, self.new), "a damaged image under the target's name"
        return "new" if data == self.new else "old"


@pytest.fixture
def target(tmp_path, image):
    return Target(tmp_path / "target", None, image.read_bytes())


@pytest.fixture(params=["by default", "target", "GGUF", "old matrix", "summary"])
def options(request, tmp_path, tiny):
    """Options of mkhyperfs with code of their own."""
    matrix = tmp_path / "matrix"
    means = [("blk.0.ffn_up.weight", np.ones(72, "<f4"))]
    matrix.write_bytes({"GGUF": samples.gguf, "old matrix": samples.old_form}
                       .get(request.param, lambda _: b"")(means))
    return {"by default": [], "target": ["--ratio=8"], "summary": ["--explain", "--json"]
            }.get(request.param, [f"--imatrix={matrix}"])


def mkhyperfs_under(tmp_path, target, source, calls, action, *options, **kw):
    """Fails each of these calls once, every second time with an old image in the way; the number of
    calls, and of faults that it survived."""
    command = [TOOLS.mkhyperfs, "-j1", "-f", source, target.image, *options]
    before = contents(source)
    made, survived = count(tmp_path, command, calls), 0
    assert made > 0
    for nth in range(1, made + 1):
        target.reset(b"the old image" if nth % 2 else None)
        outcome = attempt(tmp_path, command, calls, nth, action, **kw)
        if sanitizer_met_it(tmp_path):
            continue
        state = target.state()
        if outcome.status == 0:
            assert state == "new", f"{outcome.label}: no image, and no error"
            survived += outcome.hits > 0
        else:
            assert outcome.status == 1, f"{outcome.label}: status {outcome.status}\n{outcome.err}"
            one_sentence(TOOLS.mkhyperfs, outcome)
            assert state != "new" or " is written, but " in outcome.err, outcome.label
    assert contents(source) == before, "the source was changed"
    return made, survived


def test_mkhyperfs_every_call_fails(options, tmp_path, tiny, image_of):
    target = Target(tmp_path / "target", None, image_of(tiny, "-j1", *options).read_bytes())
    made, survived = mkhyperfs_under(tmp_path, target, tiny, "io", "EIO", *options)
    assert survived < made / 2, "most faults were not met, or not noticed"


def test_mkhyperfs_every_allocation_fails(options, tmp_path, tiny, image_of):
    target = Target(tmp_path / "target", None, image_of(tiny, "-j1", *options).read_bytes())
    made, survived = mkhyperfs_under(tmp_path, target, tiny, "alloc", "ENOMEM", *options)
    assert made > 200 and survived < made / 2


def test_mkhyperfs_short_reads_and_writes(tmp_path, target, tiny):
    made, survived = mkhyperfs_under(tmp_path, target, tiny, TRANSFERS, "short")
    assert made == survived > 50, "a short read or write is no error"


@pytest.mark.parametrize("calls, action", [("io", "EIO"), ("io", "EACCES"), ("alloc", "ENOMEM")])
def test_a_config_that_cannot_be_read_is_not_missing(calls, action, tmp_path, tiny, image_of):
    """Weights of a quantised model are never stored with loss because its config.json was met by a
    fault; nor is a key in it taken for another one, nor a tensor's name."""
    source = tmp_path / "quantised"
    shutil.copytree(tiny, source, symlinks=True)
    (source / "config.json").write_text(json.dumps(
        {"model_type": "test", "quantization_config": {"bits": 8, "quant_method": "of a test"}}))
    image = image_of(source, "-j1")
    assert ", 0 as exact as stated" in run([TOOLS.fsck, f"--against={source}", image]).stdout
    target = Target(tmp_path / "target", None, image.read_bytes())
    made, survived = mkhyperfs_under(tmp_path, target, source, calls, action)
    assert made > 100 and survived < made / 2


@pytest.mark.parametrize("sticky", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("action", ["ENOSPC", "EDQUOT", "EIO", "short"])
def test_every_write_of_a_larger_image(action, sticky, tmp_path, shards, image_of):
    whole = image_of(shards, "-j1", "--lossless").read_bytes()
    target = Target(tmp_path / "target", None, whole)
    kw = {"sticky": True} if sticky else {}
    made, survived = mkhyperfs_under(tmp_path, target, shards, "pwrite,ftruncate,fsync", action,
                                     "--lossless", **kw)
    assert made > 5
    assert action == "short" or survived == 0, "an error of a write was not noticed"


def kill_at(moment, command):
    """Starts command, kills it after `moment` seconds; true if it was still running."""
    process = subprocess.Popen([str(w) for w in command], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(moment)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def test_kill_leaves_no_image_or_the_old_one(tmp_path, shards, image_of, capsys):
    dice = random.Random(SEED)
    new = image_of(shards, "--quality", "small").read_bytes()
    target = Target(tmp_path / "target", None, new)
    old = image_of(shards, "--quality", "tiny").read_bytes()
    command = [TOOLS.mkhyperfs, "-f", shards, target.image, "--quality", "small", "-j2"]
    before = contents(shards)
    start = time.monotonic()
    run(command)
    length = time.monotonic() - start
    killed, states = 0, {"none": 0, "old": 0, "new": 0}
    for number in range(KILLS):
        target.reset(old if number % 2 else None)
        moment = dice.uniform(0, length)
        where = f"kill {number} after {moment:.4f} s, seed {SEED}"
        killed += kill_at(moment, command)
        stale = [p for p in target.image.parent.iterdir() if p != target.image]
        assert len(stale) <= 1 and all(p.name.endswith(".hyperfs-tmp") for p in stale), where
        if number % 10 == 0:
            done = run(command)
            assert all(p.name in done.stderr for p in stale), f"removed without a word: {where}"
            assert target.state() == "new", where
        else:
            for path in stale:
                path.unlink()
            states[target.state()] += 1
    assert contents(shards) == before, "the source was changed"
    assert killed >= KILLS // 3, "most kills came too late to test anything"
    with capsys.disabled():
        print(f"\n{KILLS} kills, {killed} in time: {states}, no damaged image; HYPERFS_SEED={SEED}")


CHANGES = {
    "shorter": "truncate -s -100 '{}'",
    "longer": "echo more >> '{}'",
    "other bytes": "printf xyz | dd of='{}' conv=notrunc bs=1 seek=20000 2> /dev/null",
    "empty": "truncate -s 0 '{}'",
    "replaced": "cp -p '{0}' '{0}.x' && mv '{0}.x' '{0}'",
    "removed": "rm '{}'",
}


def share_refused(tmp_path, command, target, file, change, check_image):
    """Changes a file at each of the command's calls on it. Then there is an image that passes the check,
    or a sentence that names the file. The share of the latter."""
    kept, refused = tmp_path / "kept", 0
    shutil.copy2(file, kept)
    calls = count(tmp_path, command, "io", path=file.name)
    assert calls > 3
    for nth in range(1, calls + 1):
        target.reset()
        file.unlink(missing_ok=True)
        shutil.copy2(kept, file)
        outcome = attempt(tmp_path, command, "io", nth, "sh:" + CHANGES[change].format(file),
                          path=file.name)
        assert outcome.hits == 1
        if outcome.status == 0:
            check_image(outcome)
        else:
            one_sentence(TOOLS.mkhyperfs, outcome)
            assert str(file) in outcome.err
            assert not list(target.image.parent.iterdir()), outcome.label
            refused += 1
    return refused / calls


@pytest.mark.parametrize("change", CHANGES)
def test_source_changes_while_it_is_read(change, tmp_path, tiny):
    source, target = tmp_path / "source", Target(tmp_path / "target", None, None)
    shutil.copytree(tiny, source, symlinks=True)
    command = [TOOLS.mkhyperfs, "-j1", "-f", source, target.image, "--lossless"]

    def is_of_the_source(_):
        run([TOOLS.fsck, f"--against={source}", target.image])

    assert share_refused(tmp_path, command, target, source / "model.safetensors", change,
                         is_of_the_source) > 0.5


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("form", [samples.gguf, samples.old_form])
def test_matrix_changes_while_it_is_read(form, change, tmp_path, tiny, image_of):
    matrix, target = tmp_path / "moments.bin", Target(tmp_path / "target", None, None)
    matrix.write_bytes(form([("blk.0.ffn_up.weight", np.ones(72, "<f4"))]
                            + [(f"blk.{i}.no_such.weight", np.ones(4096, "<f4")) for i in range(5)]))
    before = image_of(tiny, "-j1", f"--imatrix={matrix}").read_bytes()
    command = [TOOLS.mkhyperfs, "-j1", "-f", tiny, target.image, f"--imatrix={matrix}"]

    def is_of_one_matrix(outcome):
        found = target.image.read_bytes()
        if found != before:
            run(command)
            assert target.image.read_bytes() == found, f"{outcome.label}: of a mixture"

    refused = share_refused(tmp_path, command, target, matrix, change, is_of_one_matrix)
    assert refused > 0.5 or change in ("replaced", "removed")  # an open file stays as it is


def test_another_mkhyperfs_on_the_same_target(tmp_path, tiny, target):
    """It begins and ends before each of the first one's calls, such as that which locks the temporary
    file. Both succeed, and the image is that of the one which gave its name last."""
    command = [TOOLS.mkhyperfs, "-j1", "-f", tiny, target.image]
    other = shlex.join(str(w) for w in [*command, "--lossless"])
    calls = count(tmp_path, command, "io")
    from_first = 0
    for nth in range(1, calls + 1):
        target.reset()
        outcome = attempt(tmp_path, command, "io", nth, f"sh:{other} > {tmp_path}/said 2>&1 && "
                          f"cp {target.image} {tmp_path}/other")
        assert outcome.hits == 1 and outcome.status == 0, f"{outcome.label}: {outcome.err}"
        assert (tmp_path / "other").exists(), (tmp_path / "said").read_text()
        target.old = (tmp_path / "other").read_bytes()
        (tmp_path / "other").unlink()
        from_first += target.state() == "new"
    assert calls > 50 and calls / 2 < from_first < calls


def test_clock_jumps(tmp_path, tiny, image):
    print(f"seed: HYPERFS_SEED={SEED}")
    for seed in range(SEED, SEED + 10):
        path = tmp_path / "jumps.hyperfs"
        for options in (["-v"], ["--json"]):
            injector = Injector(tmp_path, clock=seed % (1 << 32))
            done = run([TOOLS.mkhyperfs, "-f", "-j1", tiny, path, *options], env=injector.env)
            assert path.read_bytes() == image.read_bytes()
            if "--json" in options:
                assert json.loads(done.stdout)["seconds"] >= 0
            assert "-" not in done.stdout.partition("time ")[2].partition("\n")[0]
        done = run([TOOLS.fsck, "--json", path], env=Injector(tmp_path, clock=seed).env)
        assert json.loads(done.stdout)["seconds"] >= 0


# ---- pipes that nobody reads ----


@contextlib.contextmanager
def full_pipe():
    """The write end of a pipe that takes nothing more; the read end stays open."""
    ends = os.pipe()
    os.set_blocking(ends[1], False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(ends[1], bytes(1 << 16))
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(ends[1], b"x")
    try:
        yield ends[1]
    finally:
        for end in ends:
            os.close(end)


@contextlib.contextmanager
def closed_pipe():
    ends = os.pipe()
    os.close(ends[0])
    try:
        yield ends[1]
    finally:
        os.close(ends[1])


@pytest.mark.parametrize("pipe", [full_pipe, closed_pipe])
def test_nobody_reads_the_messages(pipe, tmp_path, tiny, image):
    path = tmp_path / "model.hyperfs"
    for command in ([TOOLS.mkhyperfs, "-v", "-j1", tiny, path], [TOOLS.fsck, "-v", path],
                    [TOOLS.fsck, "-v", f"--extract={tmp_path / 'out'}", path]):
        with pipe() as end:
            assert subprocess.run(command, stderr=end, stdout=subprocess.DEVNULL,
                                  timeout=60).returncode == 0
    assert path.read_bytes() == image.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["model.hyperfs", "out"]
    assert (tmp_path / "out" / "config.json").exists()


def test_sigpipe(tmp_path, tiny, image):
    """The reader of the output has gone: one sentence, nothing half done."""
    path, out = tmp_path / "model.hyperfs", tmp_path / "out"
    for command, status in (([TOOLS.mkhyperfs, "-j1", tiny, path], 1), ([TOOLS.fsck, path], 8),
                            ([TOOLS.fsck, f"--extract={out}", path], 8)):
        with closed_pipe() as end:
            done = subprocess.run(command, stdout=end, stderr=subprocess.PIPE, text=True,
                                  timeout=60)
        assert done.returncode == status
        assert len(done.stderr.splitlines()) == 1 and "written" in done.stderr, done.stderr
    assert path.read_bytes() == image.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["model.hyperfs", "out"]
    assert (out / "config.json").exists()


def test_a_full_pipe_delays_no_read(tmp_path, shards, image_of):
    """A mount whose messages nobody reads answers every request."""
    image, point = tmp_path / "image.hyperfs", tmp_path / "mnt"
    data = bytearray(image_of(shards, "--lossless").read_bytes())
    for at in range(1000, len(data) - 60000, 1000):
        data[at] ^= 1
    image.write_bytes(data)
    point.mkdir()
    ends = os.pipe()
    fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, 4096)
    os.write(ends[1], bytes(4096))
    daemon = subprocess.Popen([TOOLS.hyperfs, "-f", image, point], stderr=ends[1])
    reader = None
    try:
        deadline = time.monotonic() + 20
        while not os.path.ismount(point):
            assert time.monotonic() < deadline and daemon.poll() is None
        reader = subprocess.Popen(["sh", "-c", f"cat '{point}'/* '{point}'/sub/*"],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert reader.wait(60) != 0
        unmount(point)
        assert daemon.wait(20) == 0
    finally:
        daemon.kill()
        daemon.wait()
        for end in ends:
            os.close(end)
        if reader:
            reader.wait(20)


# ---- checking, extracting, listing ----


def fsck_under(tmp_path, args, image, calls, action, expected=None):
    """Fails each of these calls once. expected: the tree that --extract gives."""
    folder = tmp_path / "out"
    folder.mkdir()
    args = [f"--extract={folder / 'tree'}" if a == "--extract" else a for a in args]
    command = [TOOLS.fsck, "-j1", *args, image]
    made, failed = count(tmp_path, command, calls), 0
    shutil.rmtree(folder / "tree", ignore_errors=True)
    for nth in range(1, made + 1):
        outcome = attempt(tmp_path, command, calls, nth, action)
        names, label = os.listdir(folder), f"{args} {outcome.label}"
        assert outcome.status in (0, 4, 8), f"{label}: {outcome.status}\n{outcome.err}"
        assert action != "ENOMEM" or outcome.status != 4, f"{label}: no memory is no damage"
        if "--json" in args:
            assert json.loads(outcome.out)["exit_status"] == outcome.status, label
        elif outcome.status == 8:
            one_sentence(TOOLS.fsck, outcome)
        elif outcome.status == 4:
            assert sentences(outcome.err), label
        if outcome.status == 0 and expected is not None:
            assert names == ["tree"] and contents(folder / "tree").keys() == expected.keys(), label
            found = contents(folder / "tree")
            assert all(found[p][2] == expected[p][2] for p in expected), label
            assert found == expected or ": warning: " in outcome.err, label
        else:
            assert names == [], f"{label}: left behind: {names}"
        failed += outcome.status != 0
        shutil.rmtree(folder / "tree", ignore_errors=True)
    assert failed > 0
    return made, failed


def digest_of(image):
    return json.loads(run([TOOLS.dump, "--json", image]).stdout)["sha256"]


@pytest.mark.parametrize("args", [[], ["--json"], ["--digest"], ["--extract"], ["--against"]],
                         ids=["check", "json", "digest", "extract", "against"])
@pytest.mark.parametrize("calls, action", [("io", "EIO"), ("alloc", "ENOMEM")])
def test_fsck_every_call_fails(calls, action, args, tmp_path, tiny, image):
    expected = None
    if args == ["--extract"]:
        run([TOOLS.fsck, f"--extract={tmp_path / 'expected'}", image])
        expected = contents(tmp_path / "expected")
    if args == ["--against"]:
        args = [f"--against={tiny}"]
    if args == ["--digest"]:
        args = [f"--digest={digest_of(image)}"]
    fsck_under(tmp_path, args, image, calls, action, expected)


@pytest.mark.parametrize("args", [[], ["--json"], ["--files"], ["--tensors"]], ids=str)
@pytest.mark.parametrize("calls, action", [("io", "EIO"), ("alloc", "ENOMEM"),
                                           (TRANSFERS, "short")])
def test_dump_every_call_fails(calls, action, args, tmp_path, image):
    command = [TOOLS.dump, *args, image]
    expected = run(command).stdout
    made = count(tmp_path, command, calls)
    assert made > 5
    for nth in range(1, made + 1):
        outcome = attempt(tmp_path, command, calls, nth, action)
        if outcome.status == 0:
            copy = "copy at the end was used" in outcome.out or '"used_copy": true' in outcome.out
            assert outcome.out == expected or (action == "EIO" and copy), outcome.label
        else:
            assert outcome.status == 1 and action != "short", outcome.label
            one_sentence(TOOLS.dump, outcome)


@pytest.mark.parametrize("calls, action", [("io", "EIO"), ("alloc", "ENOMEM")])
def test_dump_plot_every_call_fails(calls, action, tmp_path, image):
    """The picture that was there, or the whole new one."""
    plot = tmp_path / "plots" / "plot.svg"
    plot.parent.mkdir()
    command = [TOOLS.dump, f"--plot={plot}", image]
    made = count(tmp_path, command, calls)
    whole, failed = plot.read_bytes(), 0
    for nth in range(1, made + 1):
        plot.write_bytes(b"the old picture")
        outcome = attempt(tmp_path, command, calls, nth, action)
        failed += outcome.status != 0
        assert os.listdir(plot.parent) == [plot.name], outcome.label
        if outcome.status == 0:
            assert plot.read_bytes() == whole, outcome.label
        else:
            one_sentence(TOOLS.dump, outcome)
            assert plot.read_bytes() == b"the old picture", outcome.label
    assert failed > made / 4


# ---- mounting ----


def read_files(point, expected):
    """Reads every file; those that gave an error. A wrong byte fails."""
    errors = []
    for path, data in expected.items():
        try:
            with open(point / path, "rb") as f:
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                assert f.read() == data, f"{path}: wrong bytes"
        except OSError as e:
            errors.append((path, e.errno))
    return errors


@pytest.fixture(scope="module")
def tree(image, tmp_path_factory):
    """What is in the image: path -> bytes."""
    root = tmp_path_factory.mktemp("tree") / "tree"
    run([TOOLS.fsck, f"--extract={root}", image])
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def mounts():
    return Path("/proc/self/mounts").read_text()


@pytest.mark.parametrize("digest", [False, True], ids=["", "digest"])
@pytest.mark.parametrize("calls, action", [("alloc", "ENOMEM"), (MOUNT_CALLS, "EIO"),
                                           ("pread", "short")])
def test_mount_every_call_fails(calls, action, digest, tmp_path, image, tree):
    """The mount is refused with one sentence, or it works; a read that meets the fault gives an
    error, and the next one is right."""
    point = tmp_path / "mnt"
    point.mkdir()
    options = f"max_threads=2,digest={digest_of(image)}" if digest else "max_threads=2"
    refused = errors = 0
    for nth in range(1, 10000):
        injector = Injector(tmp_path, calls, nth, action)
        label = f"{calls} {nth} {action}"
        done = run([TOOLS.hyperfs, "-o", options, image, point], check=False, env=injector.env,
                   timeout=60)
        if done.returncode != 0:
            refused += 1
            if sanitizer_met_it(tmp_path):
                continue
            lines = [s for s in done.stderr.splitlines() if not s.startswith("fuse: ")]
            assert len(lines) == 1 and lines[0].startswith("hyperfs: "), f"{label}: {done.stderr}"
            assert str(point) not in mounts(), f"{label}: refused, and mounted"
            continue
        try:
            met = read_files(point, tree)
            hit = injector.hits > 0
            if sanitizer_met_it(tmp_path):
                continue
            assert hit or not met, f"{label}: {met}"
            if not hit:
                break
            assert read_files(point, tree) == [], f"{label}: a later read fails too"
            errors += met != []
        finally:
            unmount(point)
    assert errors > 0 or action != "ENOMEM", "no request met a fault"
    assert refused > 0 or action == "short", "no start met a fault"


def test_allocations_fail_under_load(tmp_path, image, tree):
    """Readers of a mount that is short of memory again and again get an error or the right bytes.
    Nobody waits for ever: no request is lost."""
    print(f"seed: HYPERFS_SEED={SEED}")
    dice = random.Random(SEED)
    point = tmp_path / "mnt"
    point.mkdir()
    met = rounds = 0
    for _ in range(15):
        injector = Injector(tmp_path, "alloc", 0, "ENOMEM")
        run([TOOLS.hyperfs, "-o", "max_threads=16", image, point], env=injector.env)
        try:
            with concurrent.futures.ThreadPoolExecutor(12) as pool:
                readers = [pool.submit(read_files, point, tree) for _ in range(120)]
                while not all(r.done() for r in readers):
                    injector.arm(dice.randrange(1, 40))
                    concurrent.futures.wait(readers, 0.001)
                errors = [e for r in readers for e in r.result(60)]
            injector.arm(0)
            if sanitizer_met_it(tmp_path):
                continue
            rounds += 1
            assert {number for _, number in errors} <= {errno.ENOMEM, errno.EIO}, errors
            assert read_files(point, tree) == [], "a later read fails too"
            met += injector.hits
        finally:
            unmount(point)
    assert met > 100 or (SANITIZED and rounds < 15)


# ---- what no fault shows ----


def test_valgrind():
    """No uninitialised byte is read, or written into an image; no leak."""
    if SANITIZED:
        return  # valgrind cannot run what was built with a sanitizer, which finds the same
    run([ROOT / "tests" / "valgrind.sh", "--quality=small"])
