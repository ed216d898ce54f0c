"""fsck.hyperfs: no damage stays unnoticed, nothing is lost in extracting, no difference missed."""

import json
import os
import random
import stat
import struct

import pytest
from conftest import run

SEED = int(os.environ.get("HYPERFS_SEED", random.randrange(1 << 32)))
CLEAN, DAMAGED, FAILED = 0, 4, 8
SUPERBLOCK = 128


def write_safetensors(path, tensors):
    """tensors: name -> (dtype, shape, bytes)"""
    header, offset = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text
                     + b"".join(data for _, _, data in tensors.values()))


def gaussian(count, seed):
    dice = random.Random(seed)
    return struct.pack(f"<{count}f", *(dice.gauss(0, 0.02) for _ in range(count)))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A small tree with everything in it that an image can hold."""
    root = tmp_path_factory.mktemp("source") / "tree"
    deep = root / "sub" / "deep"
    deep.mkdir(parents=True)
    write_safetensors(root / "model.safetensors", {
        "weight": ("F32", [96, 64], gaussian(96 * 64, 1)),
        "bias": ("F32", [64], gaussian(64, 2)),
    })
    (root / "config.json").write_text('{"model_type": "test"}\n')
    (root / "empty").touch()
    (root / "empty directory").mkdir()
    (root / "sub" / "text").write_bytes(random.Random(3).randbytes(3000) * 2)
    os.link(root / "sub" / "text", root / "hard")
    with open(deep / "sparse", "wb") as f:
        f.write(b"x")
        f.seek(3 << 20)
        f.write(b"y")
    os.symlink("sub/text", root / "link")
    os.symlink("../sub", root / "sub" / "around")
    odd = os.fsencode(root) + b"/\xff\x1b[31m\n"
    with open(odd, "wb") as f:
        f.write(b"odd name\n")
    for i, path in enumerate(sorted(root.rglob("*"))):
        if not path.is_symlink():
            os.utime(path, ns=(0, (1_500_000_000 + i) * 10**9 + 123_456_789))
    os.chmod(root / "config.json", 0o4755)
    os.chmod(deep, 0o555)
    os.chmod(root / "sub", 0o751)
    return root


@pytest.fixture(scope="module")
def image(tree, image_of):
    return image_of(tree, "--quality", "23")


@pytest.fixture
def copy(image, tmp_path):
    path = tmp_path / "copy.hyperfs"
    path.write_bytes(image.read_bytes())
    return path


def fsck(tools, *args):
    return run([tools.fsck, *args], check=False)


def result(tools, *args):
    """The JSON document, which has to tell what the exit status tells."""
    done = fsck(tools, "--json", *args)
    document = json.loads(done.stdout)
    assert document["exit_status"] == done.returncode, done.stderr
    return document


class Flipper:
    """Flips one bit of a file and puts it back."""

    def __init__(self, path):
        self.file = open(path, "r+b", buffering=0)

    def flip(self, position, bit):
        self.file.seek(position)
        byte, = self.file.read(1)
        self.file.seek(position)
        self.file.write(bytes([byte ^ 1 << bit]))


def missed(tools, path, positions, *options):
    """Positions where a flipped bit is not found."""
    dice = random.Random(SEED)
    flipper, found_clean = Flipper(path), []
    for position in positions:
        bit = dice.randrange(8)
        flipper.flip(position, bit)
        status = run([tools.fsck, "-q", *options, path], check=False).returncode
        flipper.flip(position, bit)
        assert status in (CLEAN, DAMAGED, FAILED), f"byte {position}, bit {bit}: {status}"
        if status == CLEAN:
            found_clean.append((position, bit))
    assert fsck(tools, path).returncode == CLEAN
    return found_clean


def table_bytes(tools, image):
    """Positions of the superblock and of all that follows the data blocks."""
    size = image.stat().st_size
    data = json.loads(run([tools.dump, "--json", image]).stdout)["data_bytes"]
    return [*range(SUPERBLOCK), *range(SUPERBLOCK + data, size)]


# ---- damage ----


def test_a_good_image_is_clean(tools, image):
    assert fsck(tools, image).returncode == CLEAN
    assert fsck(tools, "--quick", image).returncode == CLEAN
    document = result(tools, image)
    assert document["result"] == "clean"
    assert document["problems"] == [] and document["damaged"] == []
    assert document["blocks_read"] > 4


def test_a_flipped_bit_is_found_anywhere(tools, copy):
    print(f"seed: HYPERFS_SEED={SEED}")
    dice = random.Random(SEED)
    size = copy.stat().st_size
    assert missed(tools, copy, [dice.randrange(size) for _ in range(1000)]) == []


def test_a_flipped_bit_is_found_in_every_byte_of_the_tables(tools, copy):
    print(f"seed: HYPERFS_SEED={SEED}")
    positions = table_bytes(tools, copy)
    assert len(positions) > 1000
    assert missed(tools, copy, positions, "--quick") == []


def test_a_truncated_image_is_found(tools, copy):
    whole = copy.read_bytes()
    dice = random.Random(SEED)
    for size in {0, 1, 8, 127, 128, len(whole) // 2, len(whole) - 128, len(whole) - 1,
                 *(dice.randrange(len(whole)) for _ in range(20))}:
        copy.write_bytes(whole[:size])
        status = fsck(tools, copy).returncode
        assert status == (DAMAGED if size >= SUPERBLOCK else status), f"cut to {size} bytes"
        assert status in (DAMAGED, FAILED), f"cut to {size} bytes"


@pytest.mark.parametrize("tail", [b"\0", b"x", bytes(128), bytes(4096)])
def test_trailing_bytes_are_found(tools, copy, tail):
    whole = copy.read_bytes()
    copy.write_bytes(whole + tail)
    assert fsck(tools, copy).returncode == DAMAGED
    copy.write_bytes(whole + whole[-128:])
    assert fsck(tools, copy).returncode == DAMAGED


def damage_tensor(tools, image, name="weight"):
    """Flips a bit in the middle of what is stored of a tensor's file; returns the JSON finding."""
    flipper = Flipper(image)
    data = json.loads(run([tools.dump, "--json", image]).stdout)["data_bytes"]
    for position in range(SUPERBLOCK, SUPERBLOCK + data, 97):
        flipper.flip(position, 3)
        damaged = result(tools, image)["damaged"]
        if any(f.get("tensor") == name for d in damaged for f in d["files"]):
            return damaged
        flipper.flip(position, 3)
    pytest.fail(f"no block of {name} was found")


def test_damage_is_named_with_file_tensor_and_bytes(tools, copy, tree):
    (finding,) = damage_tensor(tools, copy)
    (hit,) = finding["files"]
    assert hit["path"] == "model.safetensors"
    size = (tree / "model.safetensors").stat().st_size
    assert hit["length"] == 96 * 64 * 4
    assert hit["offset"] + hit["length"] == size - 64 * 4
    done = fsck(tools, copy)
    assert done.returncode == DAMAGED
    assert f"bytes {hit['offset']} to {hit['offset'] + hit['length'] - 1}" in done.stderr
    assert "tensor weight" in done.stderr


@pytest.mark.parametrize("make, status", [
    (lambda path: None, FAILED),
    (lambda path: path.mkdir(), FAILED),
    (lambda path: path.write_bytes(b"no image" * 1000), FAILED),
    (lambda path: os.mkfifo(path), FAILED),
])
def test_what_is_no_image_is_refused(tools, tmp_path, make, status):
    path = tmp_path / "x"
    make(path)
    done = fsck(tools, path)
    assert done.returncode == status
    assert str(path) in done.stderr and done.stderr.count("\n") == 1


# ---- extract ----


def description(root):
    """All that is kept of a tree, by path."""
    found = {}
    for path in [root, *root.rglob("*")]:
        st = path.lstat()
        what = [stat.S_IFMT(st.st_mode)]
        if path.is_symlink():
            what += [os.readlink(path)]
        else:
            what += [st.st_mode & 0o1777, st.st_mtime_ns]
        if path.is_file() and not path.is_symlink():
            what += [path.read_bytes(), st.st_nlink]
        if os.geteuid() == 0:
            what += [st.st_uid, st.st_gid]
        found[os.fsencode(path.relative_to(root))] = what
    return found


@pytest.mark.parametrize("exists", [False, True], ids=["new", "empty"])
def test_extract_gives_the_tree_back(tools, tree, image_of, tmp_path, exists):
    target = tmp_path / "out" / "tree"
    target.parent.mkdir()
    if exists:
        target.mkdir()
    run([tools.fsck, f"--extract={target}", image_of(tree, "--lossless")])
    assert description(target) == description(tree)
    assert os.path.samefile(target / "hard", target / "sub" / "text")
    assert (target / "sub/deep/sparse").stat().st_blocks * 512 < 1 << 20
    assert (target / "config.json").stat().st_mode & 0o7777 == 0o755
    assert os.listdir(target.parent) == ["tree"]


def test_extract_leaves_other_files_alone(tools, image, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine").write_text("mine")
    done = fsck(tools, f"--extract={target}", image)
    assert done.returncode == FAILED and "not empty" in done.stderr
    assert os.listdir(target) == ["mine"]
    assert fsck(tools, f"--extract={target / 'mine'}", image).returncode == FAILED
    assert fsck(tools, f"--extract={tmp_path / 'no' / 'out'}", image).returncode == FAILED
    os.symlink("nowhere", tmp_path / "dangling")
    assert fsck(tools, f"--extract={tmp_path / 'dangling'}", image).returncode == FAILED
    assert sorted(os.listdir(tmp_path)) == ["dangling", "out"]


def test_extract_of_a_damaged_image_leaves_nothing(tools, copy, tmp_path):
    damage_tensor(tools, copy)
    done = fsck(tools, f"--extract={tmp_path / 'out'}", copy)
    assert done.returncode == DAMAGED and "--keep-going" in done.stderr
    assert os.listdir(tmp_path) == [copy.name]


def test_keep_going_saves_what_is_readable(tools, copy, image, tmp_path):
    run([tools.fsck, f"--extract={tmp_path / 'good'}", image])
    (finding,) = damage_tensor(tools, copy)
    (hit,) = finding["files"]
    saved = tmp_path / "saved"
    done = fsck(tools, f"--extract={saved}", "--keep-going", copy)
    assert done.returncode == DAMAGED and "tensor weight" in done.stderr
    good = description(tmp_path / "good")
    content = bytearray(good[b"model.safetensors"][3])
    content[hit["offset"]:hit["offset"] + hit["length"]] = bytes(hit["length"])
    good[b"model.safetensors"][3] = bytes(content)
    assert description(saved) == good


def test_extract_into_a_full_file_system_leaves_nothing(tools, image_of, demo_model, tmp_path):
    image = image_of(demo_model, "--lossless")
    script = 'mount -t tmpfs -o size=2m none "$1" && "$2" --extract="$1/out" "$3"; ' \
             'status=$?; ls -A "$1"; exit $status'
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    done = run(["unshare", "--mount", *user, "sh", "-c", script, "sh", tmp_path, tools.fsck, image],
               check=False)
    assert done.returncode == FAILED and "No space left" in done.stderr
    assert done.stdout == ""


# ---- against ----


@pytest.fixture
def changed(tree, tmp_path):
    """A copy of the source, to be changed."""
    path = tmp_path / "changed"
    run(["cp", "-a", tree, path])
    return path


def differing(document):
    return {f["path"]: f["what"] for f in document["files"] if f["result"] == "different"}


def test_against_its_source(tools, tree, image_of, image):
    lossless = result(tools, f"--against={tree}", image_of(tree, "--lossless"))
    assert lossless["result"] == "clean"
    assert {f["result"] for f in lossless["files"]} == {"equal"}
    document = result(tools, f"--against={tree}", image)
    assert document["result"] == "clean"
    (model,) = [f for f in document["files"] if f["result"] == "as stated"]
    (tensor,) = model["tensors"]
    assert tensor["name"] == "weight" and tensor["elements"] == 96 * 64
    assert abs(tensor["stated_db"] - 23) < 0.2
    assert abs(tensor["measured_db"] - tensor["stated_db"]) < 0.05
    assert "weight: stated 2" in fsck(tools, f"--against={tree}", image).stdout


def flip_in(path, position):
    Flipper(path).flip(position % path.stat().st_size, 0)


@pytest.mark.parametrize("path, change", [
    ("sub/text", lambda p: flip_in(p, 5999)),
    ("hard", lambda p: flip_in(p, 0)),
    ("sub/deep/sparse", lambda p: flip_in(p, 1 << 20)),
    ("config.json", lambda p: p.write_text("longer" * 10)),
    ("config.json", lambda p: p.unlink()),
    ("empty", lambda p: p.write_text("x")),
    ("new", lambda p: p.write_text("")),
    ("sub/new directory", lambda p: p.mkdir()),
    ("link", lambda p: (p.unlink(), p.symlink_to("config.json"))),
    ("link", lambda p: (p.unlink(), p.write_text("sub/text"))),
    ("empty directory", lambda p: p.rmdir()),
    ("empty", lambda p: (p.unlink(), p.mkdir())),
    ("empty", lambda p: (p.unlink(), os.mkfifo(p))),
    ("model.safetensors", lambda p: flip_in(p, -3)),
    ("model.safetensors", lambda p: flip_in(p, 9)),
])
def test_against_finds_every_difference(tools, image, changed, path, change):
    change(changed / path)
    document = result(tools, f"--against={changed}", image)
    assert document["exit_status"] == DAMAGED
    assert path in differing(document)
    assert set(differing(document)) <= {path, "hard", "sub/text"}
    done = fsck(tools, "-q", f"--against={changed}", image)
    assert done.returncode == DAMAGED and path in done.stderr and done.stdout == ""


@pytest.mark.parametrize("value", [0.2, float("nan"), float("inf")])
def test_against_finds_a_weight_that_is_another(tools, image, changed, value):
    weights = changed / "model.safetensors"
    with open(weights, "r+b") as f:
        f.seek(weights.stat().st_size - 64 * 4 - 4 * 1000)
        f.write(struct.pack("<f", value))
    document = result(tools, f"--against={changed}", image)
    assert document["exit_status"] == DAMAGED
    assert "model.safetensors" in differing(document)
    (tensor,) = [t for f in document["files"] for t in f.get("tensors", [])]
    assert not tensor["good"]


def test_against_a_single_file(tools, tree, image_of, tmp_path):
    image = image_of(tree / "model.safetensors", "--quality", "small")
    run([tools.fsck, f"--against={tree / 'model.safetensors'}", image])
    other = tmp_path / "other.safetensors"
    other.write_bytes((tree / "model.safetensors").read_bytes())
    document = result(tools, f"--against={other}", image)
    assert set(differing(document)) == {"model.safetensors", "other.safetensors"}


def test_against_knows_what_was_left_out_on_purpose(tools, changed, tmp_path):
    (changed / "leave.bin").write_text("x")
    os.mkfifo(changed / "pipe")
    image = tmp_path / "image.hyperfs"
    run([tools.mkhyperfs, changed, image, "--lossless", "--exclude=*.bin", "--exclude=sub/text",
         "--skip-special"])
    document = result(tools, f"--against={changed}", image)
    assert document["result"] == "clean" and document["against"]["excluded"] == 2
    (changed / "other").write_text("x")
    assert set(differing(result(tools, f"--against={changed}", image))) == {"other"}


def test_against_links_that_were_made_relative(tools, changed, tmp_path):
    os.symlink(changed / "config.json", changed / "absolute")
    outside = tmp_path / "outside"
    outside.write_text("outside")
    os.symlink(outside, changed / "followed")
    image = tmp_path / "image.hyperfs"
    run([tools.mkhyperfs, changed, image, "--lossless"])
    assert result(tools, f"--against={changed}", image)["result"] == "clean"
    outside.write_text("Outside")
    assert set(differing(result(tools, f"--against={changed}", image))) == {"followed"}


def test_against_what_is_not_there(tools, image, tmp_path):
    assert fsck(tools, f"--against={tmp_path / 'nothing'}", image).returncode == FAILED
