"""The images of tests/golden, for tests/mount and tests/ports."""

import subprocess
from pathlib import Path

IMAGES = sorted((Path(__file__).parent / "golden").glob("*/*.hyperfs"))
READ = [path for path in IMAGES if path.with_suffix(".sha256").exists()]
REFUSED = [path for path in IMAGES if path.with_suffix(".refused").exists()]


def name(path):
    return f"{path.parent.name}/{path.stem}"


def check_sums(folder, image):
    """All files of the image are in the folder, with their content, and no others."""
    done = subprocess.run(["sha256sum", "--check", "--quiet", image.with_suffix(".sha256")],
                          cwd=folder, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    files = sum(path.is_file() and not path.is_symlink() for path in folder.rglob("*"))
    assert files == image.with_suffix(".sha256").read_bytes().count(b"\n")
