"""The tools on the hostile images of tests/corpus: the right exit status, one sentence, nothing
written where it does not belong, and odd names kept."""

import os
import stat
from pathlib import Path

from conftest import ROOT, mounted, run

IMAGES = sorted((ROOT / "tests/corpus/image").iterdir())
HUGE = ("accept-holes", "damage-segments-overlap")  # files of up to 2^63 bytes: not extracted


def images(*verdicts):
    chosen = [image for image in IMAGES if image.name.split("-")[0] in verdicts]
    assert chosen
    return chosen


def test_fsck_finds_what_the_name_says(tools):
    wrong = []
    for image in IMAGES:
        done = run([tools.fsck, "--quiet", image], check=False, timeout=30)
        allowed = {"accept": {0}, "damage": {4}, "refuse": {4, 8}}[image.name.split("-")[0]]
        if done.returncode not in allowed or (not done.stderr) != (done.returncode == 0):
            wrong.append((image.name, done.returncode, done.stderr[:300]))
    assert not wrong


def test_dump_refuses_or_prints(tools):
    wrong = []
    for image in IMAGES:
        for option in ([], ["--tensors"], ["--files"], ["--json"]):
            done = run([tools.dump, *option, image], check=False, timeout=30)
            allowed = {"accept": {0}, "damage": {0, 1}, "refuse": {1}}[image.name.split("-")[0]]
            if done.returncode not in allowed or "\x1b" in done.stdout + done.stderr:
                wrong.append((image.name, option, done.returncode, done.stderr[:300]))
    assert not wrong


def test_extract_stays_in_its_directory(tools, tmp_path):
    wrong = []
    for image in IMAGES:
        if image.name in HUGE:
            continue
        out = tmp_path / image.name / "out"
        out.parent.mkdir()
        done = run([tools.fsck, "--quiet", "--keep-going", f"--extract={out}", image], check=False,
                   timeout=60)
        if done.returncode not in (0, 4, 8) or set(os.listdir(out.parent)) - {"out"}:
            wrong.append((image.name, done.returncode, done.stderr[:300]))
        if image in images("refuse") and out.exists() and os.listdir(out):
            wrong.append((image.name, os.listdir(out)))
        run(["rm", "-rf", out])  # pytest's own clean-up recurses and gives up on deep trees
    assert not wrong


def test_mount_refuses(tools, tmp_path):
    point = tmp_path / "mnt"
    point.mkdir()
    for image in images("refuse"):
        done = run([tools.hyperfs, image, point], check=False, timeout=30)
        assert done.returncode != 0 and image.name in done.stderr and not os.path.ismount(point)


def test_mount_of_odd_names():
    with mounted(ROOT / "tests/corpus/image/accept-names") as point:
        names = os.listdir(os.fsencode(point))
        assert b"n" * 255 in names and b"\xff\xfe" in names and b"\x1b[2J" in names
        assert b"\xed\xa0\x80" in names and b"..." in names and b"\n" in names
        assert len(names) == 14
        for name in names:
            assert stat.S_ISREG(os.lstat(os.path.join(os.fsencode(point), name)).st_mode)


def test_mount_of_damaged_blocks_ends_in_errors_not_in_wrong_bytes():
    with mounted(ROOT / "tests/corpus/image/accept-small") as point:
        good = (Path(point) / "a.bin").read_bytes()
    for name in ("damage-block-bytes", "damage-block-checksum", "damage-block-size-zero",
                 "damage-leaf-offset-high", "damage-code-beyond-dtype"):
        with mounted(ROOT / "tests/corpus/image" / name) as point:
            pieces = 0
            with open(Path(point) / "a.bin", "rb", buffering=0) as f:
                for at in range(0, len(good), 100):
                    try:
                        piece = os.pread(f.fileno(), 100, at)  # short before a page in error
                        assert piece and good.startswith(piece, at)
                    except OSError:
                        pieces += 1
            assert pieces > 0
