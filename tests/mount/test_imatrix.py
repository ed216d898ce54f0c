"""mkhyperfs --imatrix. If these fail, an importance matrix changes the wrong tensors, or an image
depends on more than its source and options."""

import json
import os
import struct

import numpy as np
import pytest
from conftest import run
from samples import gguf, gguf_string, old_form
from weights import write_model

LAYERS, HIDDEN, INNER = 3, 128, 256
SHARES = [4.0, 0.01, 0.3]  # mean squares of the inputs of each layer's last matrices


@pytest.fixture
def model(tmp_path):
    """A Llama of three layers of Gaussian weights."""
    rng = np.random.default_rng(5)
    shapes = {"model.embed_tokens.weight": (256, HIDDEN)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        for name in "qkvo":
            shapes[f"{at}self_attn.{name}_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[at + "mlp.up_proj.weight"] = (INNER, HIDDEN)
        shapes[at + "mlp.down_proj.weight"] = (HIDDEN, INNER)
    source = tmp_path / "model"
    source.mkdir()
    write_model(source / "model.safetensors", {
        name: ("F32", list(shape), (rng.standard_normal(shape) * 0.05).astype("<f4").tobytes())
        for name, shape in shapes.items()})
    return source


def moments():
    """Name, mean squares by column; a mean square for all columns of one matrix."""
    for layer, share in enumerate(SHARES):
        for name, columns in (("attn_q", HIDDEN), ("attn_output", HIDDEN), ("ffn_up", HIDDEN),
                              ("ffn_down", INNER)):
            last = name in ("attn_output", "ffn_down")
            yield f"blk.{layer}.{name}.weight", np.full(columns, share if last else 1.0, "<f4")


def store(tools, source, image, *options):
    run([tools.mkhyperfs, "-q", "-f", "--mtime=0", "--quality=small", *options, source, image])
    return image.read_bytes()


def levels(tools, image):
    about = json.loads(run([tools.dump, "--json", "--tensors", image]).stdout)
    return {t["name"]: t["sqnr_db"] for t in about["tensors"]}


def offsets_expected():
    """The formula of mkhyperfs/importance.h in Python; weights have the variance 0.0025."""
    stream, shares = 0.0025, {"self_attn": [], "mlp": []}
    for share in SHARES:
        for branch, inputs in (("self_attn", HIDDEN), ("mlp", INNER)):
            energy = 0.0025 * share * inputs
            shares[branch].append(10 * np.log10(energy / (stream + energy)))
            stream += energy
    return {branch: np.clip(0.8 * (np.array(db) - np.mean(db)), -6, 6)
            for branch, db in shares.items()}


@pytest.fixture(params=[old_form, gguf])
def matrix(request, tmp_path):
    path = tmp_path / "some.imatrix"
    path.write_bytes(request.param(moments()))
    return path


def test_layers_that_count_more_are_finer(tools, model, matrix, tmp_path):
    image = tmp_path / "i.hyperfs"
    store(tools, model, image, f"--imatrix={matrix}")
    expected = offsets_expected()
    assert max(expected["mlp"]) - min(expected["mlp"]) > 3
    found = levels(tools, image)
    parts = {name: name.split(".") for name in found if ".layers." in name}
    common = {}  # the rest, of one kind of tensor in all layers: the common level and its rule
    for name, at in parts.items():
        common.setdefault(at[4], []).append(found[name] - expected[at[3]][int(at[2])])
    assert len(common) == 6
    assert all(len(rest) == LAYERS and max(rest) - min(rest) < 0.3 for rest in common.values()), common
    without = tmp_path / "without.hyperfs"
    store(tools, model, without)
    # What no layer has stays as it was beside a middle layer, for which there are no rules.
    embedding, middle, rules = "model.embed_tokens.weight", "q_proj", levels(tools, without)
    assert abs(found[embedding] - common[middle][0] - rules[embedding]
               + rules[f"model.layers.1.self_attn.{middle}.weight"]) < 0.3


def test_a_rule_stands_above_it(tools, model, matrix, tmp_path):
    image = tmp_path / "i.hyperfs"
    store(tools, model, image, f"--imatrix={matrix}", "--rule=*down_proj*=27")
    found = levels(tools, image)
    assert all(abs(db - 27) < 0.2 for name, db in found.items() if "down_proj" in name)


def test_the_same_bytes_with_any_number_of_threads_and_any_directory(tools, model, matrix,
                                                                      tmp_path):
    one = store(tools, model, tmp_path / "1.hyperfs", f"--imatrix={matrix}", "-j1")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other = elsewhere / matrix.name
    other.write_bytes(matrix.read_bytes())
    assert store(tools, model, tmp_path / "2.hyperfs", f"--imatrix={other}", "-j2") == one
    about = json.loads(run([tools.dump, "--json", tmp_path / "1.hyperfs"]).stdout)["meta"]
    assert "some.imatrix" in str(about) and str(tmp_path) not in str(about)


def test_another_matrix_of_the_same_effect_is_told_apart(tools, model, tmp_path):
    images = []
    for text in (b"a.txt", b"b.txt"):
        path = tmp_path / "m.dat"
        path.write_bytes(old_form(moments())[:-5] + text)
        images.append(store(tools, model, tmp_path / "i.hyperfs", f"--imatrix={path}"))
    assert images[0] != images[1]


def test_entries_that_fit_nothing_are_listed_and_ignored(tools, model, tmp_path):
    extra = [(f"blk.{i}.no_such.weight", np.ones(4, "<f4")) for i in range(9)]
    extra.append(("blk.0.ffn_gate.weight", np.ones(HIDDEN, "<f4")))
    some = [(name, mean[:-1] if name == "blk.2.attn_q.weight" else mean)
            for name, mean in moments()]
    path, image = tmp_path / "m.dat", tmp_path / "i.hyperfs"
    path.write_bytes(old_form([*some, *extra]))
    done = run([tools.mkhyperfs, f"--imatrix={path}", model, image])
    assert "10 of 22 entries are not used" in done.stderr
    assert "blk.0.ffn_gate.weight, blk.0.no_such.weight" in done.stderr
    assert "blk.8.no_such.weight" not in done.stderr
    assert "another width than its tensor: blk.2.attn_q.weight" in done.stderr
    done = run([tools.mkhyperfs, "-vf", f"--imatrix={path}", model, image])
    assert "blk.8.no_such.weight has the name of no tensor" in done.stderr


@pytest.mark.parametrize("content, sentence", [
    (old_form([("blk.0.other.weight", np.ones(4, "<f4"))]), "none of its 1 entries, such as blk.0.other"),
    (gguf([("blk.0.attn_q.weight", np.full(HIDDEN, np.nan, "<f4"))]), "which is no sum of squares"),
    (b"", "the file ends within"),
    (b"This is a text, and a long one too.", "is neither GGUF nor"),
], ids=["another model", "NaN", "empty", "text"])
def test_what_is_no_matrix_of_this_model_is_refused(tools, model, tmp_path, content, sentence):
    path, image = tmp_path / "m.imatrix", tmp_path / "i.hyperfs"
    path.write_bytes(content)
    done = run([tools.mkhyperfs, f"--imatrix={path}", model, image], check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and str(path) in done.stderr
    assert sentence in done.stderr
    assert not image.exists()


def test_keys_longer_than_what_is_read_at_a_time(tools, model, tmp_path):
    """What other programs put into a GGUF is passed over, however long it is."""
    texts = [gguf_string(text) for text in ("", "y" * 99_999, "z")]
    keys = [("a.text", 8, gguf_string("x" * 300_000)),
            ("some.numbers", 9, struct.pack("<IQ", 6, 100_000) + bytes(400_000)),
            ("some.texts", 9, struct.pack("<IQ", 8, len(texts)) + b"".join(texts))]
    found = []
    for file, further in ((tmp_path / "short", ()), (tmp_path / "long", keys)):
        file.write_bytes(gguf(moments(), keys=further))
        store(tools, model, file.with_suffix(".hyperfs"), f"--imatrix={file}")
        found.append(levels(tools, file.with_suffix(".hyperfs")))
    assert found[0] == found[1]


def test_what_is_no_file_is_refused(tools, model, tmp_path):
    fifo = tmp_path / "a pipe"
    os.mkfifo(fifo)
    for path in (fifo, "/dev/zero", tmp_path):
        done = run([tools.mkhyperfs, f"--imatrix={path}", model, tmp_path / "i"], check=False,
                   timeout=20)
        assert done.returncode == 1 and f"{path}: is not a regular file" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_usage(tools, model, tmp_path):
    for options in (["--imatrix="], ["--lossless", "--imatrix=x"], ["--quality=24", "--imatrix=x"],
                    ["--allocation=flat", "--imatrix=x"]):
        done = run([tools.mkhyperfs, *options, model, tmp_path / "i"], check=False)
        assert done.returncode == 2 and "--imatrix" in done.stderr
    done = run([tools.mkhyperfs, "--imatrix=/nowhere/at.all", model, tmp_path / "i"], check=False)
    assert done.returncode == 1 and "/nowhere/at.all: cannot be opened" in done.stderr


def test_a_model_that_normalises_its_branches_is_left_as_it_is(tools, model, tmp_path):
    extra = model / "norms.safetensors"
    write_model(extra, {"model.layers.0.post_feedforward_layernorm.weight":
                        ("F32", [HIDDEN], np.ones(HIDDEN, "<f4").tobytes())})
    path, image = tmp_path / "m.dat", tmp_path / "i.hyperfs"
    path.write_bytes(old_form(moments()))
    without = tmp_path / "without.hyperfs"
    store(tools, model, without)
    done = run([tools.mkhyperfs, "--quality=small", f"--imatrix={path}", model, image])
    assert "it normalises the outputs of its layers" in done.stderr
    assert levels(tools, image) == levels(tools, without)


def test_experts(tools, tmp_path):
    """Two of four experts work on each token, one on none; their mean output is half as strong."""
    rng = np.random.default_rng(6)
    source, image, path = tmp_path / "model", tmp_path / "i.hyperfs", tmp_path / "m.gguf"
    source.mkdir()
    tensors = {"model.embed_tokens.weight": (256, HIDDEN)}
    for layer in range(2):
        tensors[f"model.layers.{layer}.self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
    tensors["model.layers.0.mlp.down_proj.weight"] = (HIDDEN, INNER)
    for expert in range(4):
        tensors[f"model.layers.1.mlp.experts.{expert}.down_proj.weight"] = (HIDDEN, INNER)
    write_model(source / "model.safetensors", {
        name: ("F32", list(shape), (rng.standard_normal(shape) * 0.05).astype("<f4").tobytes())
        for name, shape in tensors.items()})
    mean = np.full((4, INNER), 0.02, "<f4")
    mean[3] = 99
    path.write_bytes(gguf([("blk.0.attn_output.weight", np.full(HIDDEN, 1e-9, "<f4")),
                           ("blk.1.attn_output.weight", np.full(HIDDEN, 1e-9, "<f4")),
                           ("blk.0.ffn_down.weight", np.full(INNER, 0.02, "<f4")),
                           ("blk.1.ffn_down_exps.weight", (mean, [2048, 1024, 1024, 0]))]))
    store(tools, source, image, f"--imatrix={path}")
    energy = 0.02 * INNER
    shares = [10 * np.log10(energy / (1 + energy)),
              10 * np.log10(energy / 2 / (1 + energy + energy / 2))]
    common = [db - 0.8 * shares[int(name.split(".")[2])]
              for name, db in levels(tools, image).items() if "down_proj" in name]
    assert len(common) == 5 and max(common) - min(common) < 0.25, common


def test_explain_names_it(tools, model, matrix):
    out = run([tools.mkhyperfs, "--explain", "--quality=small", f"--imatrix={matrix}", model]).stdout
    lines = [line for line in out.splitlines() if "model.layers.0.mlp.down_proj" in line]
    assert len(lines) == 1 and "importance matrix +" in lines[0]
    assert "layer 0" not in lines[0]
