"""Images of every released version are read by this one (tests/golden/make.py made them), and what is
not for this version is refused in one sentence."""

import os

import pytest
from golden_images import IMAGES, READ, REFUSED, check_sums, name
from conftest import mounted, run


def test_there_are_golden_images():
    assert len(READ) >= 12 and len(REFUSED) >= 4 and len(READ) + len(REFUSED) == len(IMAGES)


@pytest.mark.parametrize("image", READ, ids=name)
def test_golden_image_is_read(image, tools, tmp_path):
    run([tools.fsck, "-q", f"--extract={tmp_path / 'x'}", image])
    check_sums(tmp_path / "x", image)
    with mounted(image) as mnt:
        check_sums(mnt, image)


@pytest.mark.parametrize("image", REFUSED, ids=name)
def test_image_of_the_future_is_refused(image, tools, tmp_path):
    words = image.with_suffix(".refused").read_text().strip()
    for command in ([tools.hyperfs, image, tmp_path], [tools.fsck, image], [tools.dump, image]):
        done = run(command, check=False)
        assert done.returncode != 0
        first = done.stderr.splitlines()[0]
        assert words in first and str(image) in first and "newer" in first
    assert not os.path.ismount(tmp_path)
