"""Whatever stops mkhyperfs, the user has the old image or the new one, whole, and no rubbish."""

import contextlib
import fcntl
import os
import signal
import subprocess
import time

from conftest import run


def leftovers(directory):
    return sorted(p.name for p in directory.iterdir() if p.name.endswith(".hyperfs-tmp"))


def locked(directory):
    """Whether a temporary file there is locked, which it is a moment after it comes to be."""
    for name in leftovers(directory):
        with contextlib.suppress(FileNotFoundError), open(directory / name, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def test_a_temporary_file_that_is_in_use_is_left_alone(demo_model, tools, tmp_path):
    """A second mkhyperfs on the same target must not pull the file from under the first."""
    image = tmp_path / "model.hyperfs"
    command = [tools.mkhyperfs, demo_model, image, "--quality", "small", "-f", "-j1"]
    first = subprocess.Popen([str(w) for w in [*command, "--isa=portable"]],
                             stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 10
        while not locked(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.001)
        first.send_signal(signal.SIGSTOP)
        names = leftovers(tmp_path)
        assert names, "the first mkhyperfs locked no temporary file"
        run(command)
        assert set(names) <= set(leftovers(tmp_path))
        first.send_signal(signal.SIGCONT)
        _, message = first.communicate(timeout=120)
        assert first.returncode == 0, message
    finally:
        first.kill()
        first.wait()
    assert leftovers(tmp_path) == []


def on_small_disk(directory, megabytes, script):
    """Runs a shell script in a mount namespace of its own, with `directory` on a small disk."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    mount = f'mount -t tmpfs -o size={megabytes}m none "$1" && cd "$1" && '
    return run(["unshare", "--mount", *user, "sh", "-c", mount + script, "sh", directory],
               check=False)


def test_a_full_disk_leaves_no_image(demo_model, tools, tmp_path):
    done = on_small_disk(tmp_path, 1, f"""
        "{tools.mkhyperfs}" "{demo_model}" model.hyperfs --quality small
        echo "status $?"; ls -A""")
    assert done.stdout.splitlines() == ["status 1"], done.stdout + done.stderr
    assert "model.hyperfs: no space left" in done.stderr


def test_a_full_disk_leaves_the_old_image(demo_model, tools, tmp_path):
    done = on_small_disk(tmp_path, 4, f"""
        "{tools.mkhyperfs}" -q "{demo_model}" model.hyperfs --quality small || exit 99
        before=$(sha256sum model.hyperfs)
        "{tools.mkhyperfs}" -f "{demo_model}" model.hyperfs --lossless
        echo "status $?"; ls -A
        [ "$before" = "$(sha256sum model.hyperfs)" ] && "{tools.fsck}" model.hyperfs >&2 && echo intact
        """)
    assert done.stdout.splitlines() == ["status 1", "model.hyperfs", "intact"], \
        done.stdout + done.stderr
    assert "model.hyperfs: no space left" in done.stderr
