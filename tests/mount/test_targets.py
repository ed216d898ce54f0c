"""Quality by size: --bits, --ratio, --target-size, and what --explain says of it."""

import json

import numpy as np
import pytest
from conftest import run
from weights import write_model

NEAR = 0.01
RNG_SEED = 7


def made(tools, source, image, *options, **kw):
    """The summary, once the image is made."""
    return json.loads(run([tools.mkhyperfs, "--json", "-f", source, image, *options], **kw).stdout)


def failed(tools, *args, status=1):
    done = run([tools.mkhyperfs, *args], check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert done.stderr.startswith("mkhyperfs: ")
    assert len(done.stderr.splitlines()) == (2 if status == 2 else 1), done.stderr
    return done.stderr.splitlines()[0]


def cast(values, dtype):
    if dtype == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes()


def mixed_model(folder, layers=4):
    """Mixed dtypes and shapes, long tails, pruned weights, rows of very different size, tensors that
    are kept, text, and a file of noise behind the weights."""
    rng = np.random.default_rng(RNG_SEED)
    folder.mkdir()
    tensors = {}

    def add(name, dtype, shape, values):
        tensors[name] = (dtype, list(shape), cast(values.ravel(), dtype))

    rows = np.geomspace(0.001, 1, 3000)[:, None]
    add("model.embed_tokens.weight", "BF16", (3000, 256), rng.normal(0, 1, (3000, 256)) * rows)
    for i in range(layers):
        at = f"model.layers.{i}."
        tails = rng.standard_t(4, (640, 256)) * 0.02
        pruned = rng.normal(0, 0.02, (256, 640)) * (rng.random((256, 640)) < 0.4)
        add(at + "mlp.up_proj.weight", "F32", tails.shape, tails)
        add(at + "mlp.down_proj.weight", "F16", pruned.shape, pruned)
        add(at + "self_attn.q_proj.weight", "F64", (256, 256), rng.normal(0, 0.02, (256, 256)))
        add(at + "norm.weight", "F32", (256,), np.ones(256))
    tensors["few.weight"] = ("F32", [64, 128], np.tile(np.float32([1, 2]), 4096).tobytes())
    tensors["ids"] = ("I64", [4096], np.arange(4096, dtype="<i8").tobytes())
    write_model(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))
    (folder / "tokenizer.json").write_text("".join(f"token {i}\n" for i in range(20_000)))
    (folder / "zz noise.bin").write_bytes(rng.bytes(700_000) + bytes(700_000))
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return mixed_model(tmp_path_factory.mktemp("mixed") / "model")


def check_bits(told, bits):
    assert bits * (1 - NEAR) <= told["bits_per_weight"] <= bits


def check_size(told, image, size):
    assert told["image_bytes"] == image.stat().st_size
    assert size * (1 - NEAR) <= told["image_bytes"] <= size


@pytest.mark.parametrize("bits", [2.7, 4.6])
def test_bits_are_an_upper_bound_and_reached(model, tmp_path, tools, bits):
    told = made(tools, model, tmp_path / "image", f"--bits={bits}", "--effort=fast")
    check_bits(told, bits)


@pytest.mark.parametrize("ratio", [4.8, 6])
def test_ratios_are_reached(model, tmp_path, tools, ratio):
    image = tmp_path / "image"
    told = made(tools, model, image, f"--ratio={ratio}", "--effort=fast")
    check_size(told, image, told["source_bytes"] / ratio)


@pytest.mark.parametrize("size", ["1700k", "1.9 MB", "2Mi", "2200000"])
def test_sizes_of_mixed_models_are_reached(mixed, tmp_path, tools, size):
    image = tmp_path / "image"
    bound = {"1700k": 1.7e6, "1.9 MB": 1.9e6, "2Mi": 2 << 20, "2200000": 2.2e6}[size]
    check_size(made(tools, mixed, image, f"--target-size={size}", "--effort=fast"), image, bound)


@pytest.mark.parametrize("options", [["--bits=2.2"], ["--bits=3.1", "--allocation=flat"], ["--bits=5"],
                                     ["--bits=4", "--rule=*embed*=35"],
                                     ["--bits=4", "--rule=*embed*=lossless", "--rule=*q_proj*=-3"]])
def test_bits_of_mixed_models_are_reached(mixed, tmp_path, tools, options):
    told = made(tools, mixed, tmp_path / "image", "--effort=fast", *options)
    check_bits(told, float(options[0].split("=")[1]))


def test_samples_that_mislead_are_made_good_for(tmp_path, tools):
    """The blocks that are looked at beforehand are unlike all the others, in every tensor."""
    rng = np.random.default_rng(RNG_SEED)
    block, tensors = 1 << 17, {}
    for i in range(3):
        values = np.concatenate([rng.normal(0, 1, 12 * block) for _ in range(1)])
        for b in (0, 3, 7, 11):  # a few huge values in each make other blocks cheap and these dear
            part = values[b * block:(b + 1) * block]
            part[:] = rng.choice([-1.0, -0.5, 0.5, 1.0], block) + rng.normal(0, 1e-4, block)
        tensors[f"layers.{i}.w"] = ("F32", [12, block], values.astype("<f4").tobytes())
    path, image = tmp_path / "m.safetensors", tmp_path / "image"
    write_model(path, tensors)
    check_bits(made(tools, path, image, "--bits=3.5", "--effort=fast"), 3.5)
    check_size(made(tools, path, image, "--ratio=8", "--effort=fast"), image,
               path.stat().st_size / 8)


def test_the_image_does_not_depend_on_threads(mixed, tmp_path, tools):
    images = []
    for jobs, isa in ((1, "auto"), (2, "auto"), (5, "portable")):
        images.append(tmp_path / f"{jobs}")
        made(tools, mixed, images[-1], "--target-size=2M", f"-j{jobs}", "--effort=fast", "--mtime=0",
             f"--isa={isa}")
    assert len({image.read_bytes() for image in images}) == 1


def test_what_cannot_be_had_is_said(mixed, tmp_path, tools):
    image = tmp_path / "image"
    words = failed(tools, mixed, image, "--target-size=500k")
    assert "kept exactly takes" in words and "500.0 kB" in words
    words = failed(tools, mixed, image, "--target-size=1100k")
    assert "at the lowest quality, 10 dB" in words and "1.1 MB" in words
    assert "lowest quality" in failed(tools, mixed, image, "--bits=1")
    assert "lowest quality" in failed(tools, mixed, image, "--ratio=9", "-n")
    assert not list(tmp_path.iterdir())


def test_without_weights(tmp_path, tools):
    source, image = tmp_path / "source", tmp_path / "image"
    source.mkdir()
    (source / "noise").write_bytes(np.random.default_rng(RNG_SEED).bytes(100_000))
    assert "no tensor" in failed(tools, source, image, "--bits=4")
    assert "cannot be met" in failed(tools, source, image, "--target-size=90k")
    told = made(tools, source, image, "--target-size=110k")
    assert told["every_bit_kept"] and told["image_bytes"] <= 110_000


def test_room_for_more_than_the_best_quality(mixed, tmp_path, tools):
    image = tmp_path / "image"
    done = run([tools.mkhyperfs, "--json", mixed, image, "--target-size=100M", "--effort=fast"])
    told = json.loads(done.stdout)
    assert "lossless" in done.stderr and told["every_bit_kept"]
    done = run([tools.mkhyperfs, "--json", "-f", mixed, image, "--bits=9", "--effort=fast"])
    told = json.loads(done.stdout)
    assert "best quality with loss" in done.stderr
    assert told["bits_per_weight"] < 9 and told["sqnr_worst_db"] > 39.8


@pytest.mark.parametrize("options", [["--bits=4", "--quality=high"], ["--bits=4", "--ratio=3"],
                                     ["--ratio=4", "--lossless"], ["--target-size=4M", "--bits=4"],
                                     ["--quality=25", "--allocation=rules"], ["--bits=x"],
                                     ["--bits=0"], ["--bits=nan"], ["--bits=4x"], ["--ratio=-1"],
                                     ["--ratio=inf"], ["--target-size=4X"], ["--target-size=0"],
                                     ["--target-size=M"], ["--target-size=4Mx"],
                                     ["--target-size=1e30"], ["--allocation=best"],
                                     ["--rule=a=+31"], ["--rule=a=+"], ["--rule=a=--3"]])
def test_usage_errors(mixed, tmp_path, tools, options):
    words = failed(tools, mixed, tmp_path / "image", *options, status=2)
    assert options[0].split("=")[0] in words


# ---- allocation ----

def wanted(tools, source, *options):
    told = json.loads(run([tools.mkhyperfs, "-n", "--json", "--effort=fast", source, *options]).stdout)
    return {t["name"]: t for t in told["per_tensor"]}


def test_presets_and_targets_are_allocated_and_numbers_are_not(mixed, tools):
    embed, middle = "model.embed_tokens.weight", "model.layers.2.mlp.up_proj.weight"
    for options in (["--quality=small"], ["--bits=3.5"], []):
        found = wanted(tools, mixed, *options)
        assert found[embed]["kind"] == "tied embedding" and found[middle]["kind"] == "MLP up"
        assert found[embed]["wanted_db"] > found[middle]["wanted_db"] + 3
        assert "tied embedding" in found[embed]["rule"]
        found = wanted(tools, mixed, "--allocation=flat", *options)
        assert found[embed]["wanted_db"] == found[middle]["wanted_db"]
    told = json.loads(run([tools.mkhyperfs, "-n", "--json", mixed, "--quality=small"]).stdout)
    lossy = [t for t in told["per_tensor"] if t["wanted_db"]]
    mean = sum(t["wanted_db"] * t["elements"] for t in lossy) / sum(t["elements"] for t in lossy)
    assert mean == pytest.approx(23, abs=0.1)
    found = wanted(tools, mixed, "--quality=23")
    assert {t["wanted_db"] for t in found.values()} == {23, None}
    found = wanted(tools, mixed, "--quality=23", "--rule=*embed*=+2.5", "--rule=*layers.2*=-1")
    assert found[embed]["wanted_db"] == 25.5 and found[middle]["wanted_db"] == 22
    assert "--rule *embed*=+2.5" in found[embed]["rule"]
    assert found["few.weight"]["kept"] == "256 distinct values or fewer"


def test_explain(mixed, tmp_path, tools):
    rules = run([tools.mkhyperfs, "--explain"]).stdout
    assert "tied embedding" in rules and "good" in rules
    document = json.loads(run([tools.mkhyperfs, "--explain", "--json"]).stdout)
    assert any(r["tensors"].startswith("tied embedding") for r in document["rules"])
    assert set(document["presets"]) == {"high", "good", "small", "tiny"}

    text = run([tools.mkhyperfs, "--explain", "--effort=fast", "--bits=4", mixed]).stdout
    line, = [line for line in text.splitlines() if "model.embed_tokens" in line]
    assert "[tied embedding] tied embedding" in line
    assert text.startswith(rules) and "would be stored with loss" in text
    assert not list(tmp_path.iterdir())

    image = tmp_path / "image"
    text = run([tools.mkhyperfs, "--explain", "--effort=fast", "--bits=4", mixed, image]).stdout
    about = json.loads(run([tools.dump, "--json", "--tensors", image]).stdout)
    lines = {line.split("  [")[0].split()[-1]: line.split() for line in text.splitlines()
             if "  [" in line}
    assert len(lines) == len(about["tensors"])
    for tensor in about["tensors"]:
        if tensor["code"] == "trajectory":
            words = lines[tensor["name"]]
            assert float(words[1]) == pytest.approx(tensor["sqnr_db"], abs=0.006)
            assert float(words[2]) == pytest.approx(tensor["max_error"], rel=0.01)


def test_forecasts_and_records_are_those_of_the_image(mixed, tmp_path, tools):
    image = tmp_path / "image"
    options = ["--bits=4", "--effort=fast"]
    guess = wanted(tools, mixed, *options)
    told = made(tools, mixed, image, *options)
    stored = {t["name"]: t for t in
              json.loads(run([tools.dump, "--json", "--tensors", image]).stdout)["tensors"]}
    assert len(told["per_tensor"]) == len(stored) == told["tensors"]
    for tensor in told["per_tensor"]:
        name = tensor["name"]
        assert tensor["bits"] == pytest.approx(guess[name]["bits"], rel=0.12), name
        assert tensor["code"] == stored[name]["code"]
        if tensor["code"] == "trajectory":
            assert tensor["sqnr_db"] == pytest.approx(stored[name]["sqnr_db"], abs=1e-6)
            assert tensor["max_error"] == pytest.approx(stored[name]["max_error"], rel=1e-6)
            assert tensor["sqnr_db"] >= tensor["wanted_db"] - 0.11


def test_a_hostile_config_does_no_harm(mixed, tmp_path, tools):
    source = tmp_path / "source"
    source.mkdir()
    (source / "model.safetensors").symlink_to(mixed / "model.safetensors")
    for text in ('{"num_hidden_layers": 1e400}', "[" * 100_000, '{"architectures": [[[[]]]]}',
                 '{"num_hidden_layers": -9223372036854775808, "tie_word_embeddings": 3}',
                 "\0" * 1000):
        (source / "config.json").write_text(text)
        found = wanted(tools, source, "--quality=tiny")
        assert found["model.embed_tokens.weight"]["kind"] == "tied embedding"
        assert found["model.layers.3.mlp.up_proj.weight"]["layer"] == 3
    (source / "config.json").unlink()
    (source / "config.json").mkdir()
    assert wanted(tools, source, "--quality=tiny")


def test_the_image_says_how_it_was_made(mixed, tmp_path, tools):
    image = tmp_path / "image"
    made(tools, mixed, image, "--bits=4", "--allocation=flat", "--effort=fast")
    about = run([tools.dump, "--json", image]).stdout
    assert "bits=4" in about and "allocation=flat" in about
