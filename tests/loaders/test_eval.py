"""hyperfs-eval: its figures are true, and what it cannot evaluate it says in one sentence."""

import json
import math
import re
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, mounted, run
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel

sys.path.insert(0, str(ROOT / "eval"))
from hyperfs_eval import Problem, cli, language, models, progress, text, verdict  # noqa: E402

TEXT = ROOT / "demo" / "text.txt"
LINES = ["A file has a name.", "The kernel reads a block.", "Every name has a file.",
         "A block is read.",
         "The weights of a model are numbers.", "Numbers are the weights.", "A tree has branches.",
         "The branches of a tree are names.", "Nothing is lost.", "Something was lost here."]


@pytest.fixture
def evaluate(capsys):
    """evaluate(argument...): the JSON document."""
    def call(*args):
        assert cli.main([*map(str, args), "--json", "-q"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)
    return call


@pytest.fixture
def refused(capsys):
    """refused(argument...): the sentence."""
    def call(*args):
        assert cli.main(list(map(str, args))) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("hyperfs-eval: ") and err.count("\n") == 1, err
        return err
    return call


@pytest.fixture(scope="module")
def copy_of(tools, image_of, tmp_path_factory):
    """copy_of(model, option...): what an image of it extracts to."""
    def make(source, *options):
        out = tmp_path_factory.mktemp("copy") / "model"
        run([tools.fsck, "-q", f"--extract={out}", image_of(source, *options)])
        return out
    return make


def reference(directory, copy):
    """Two windows of 512 tokens and the rest, straightforwardly."""
    tokens = AutoTokenizer.from_pretrained(directory)(
        TEXT.read_text(), return_tensors="pt").input_ids
    loss, changed, divergence, agree = [], [], [], []
    with torch.inference_mode():
        p, q = (AutoModelForCausalLM.from_pretrained(d, dtype=torch.float32)
                for d in (directory, copy))
        for window in tokens.split(512, 1):
            a, b = (m(window).logits[0, :-1].double().log_softmax(-1) for m in (p, q))
            target = window[0, 1:, None]
            loss.append(-a.gather(1, target))
            changed.append(-b.gather(1, target))
            divergence.append((a.exp() * (a - b)).sum(-1))
            agree.append(a.argmax(-1) == b.argmax(-1))
    divergence = torch.cat(divergence)
    return {"original_perplexity": torch.cat(loss).mean().exp().item(),
            "perplexity": torch.cat(changed).mean().exp().item(),
            "kl_mean": divergence.mean().item(), "kl_p99": divergence.quantile(0.99).item(),
            "kl_max": divergence.max().item(), "predictions": len(divergence),
            "top1_agreement": torch.cat(agree).double().mean().item()}


def test_figures_are_those_of_a_plain_computation(evaluate, demo_model, copy_of):
    copy = copy_of(demo_model, "--quality", "tiny")
    found = evaluate(f"--text={TEXT}", f"--against={demo_model}", copy)
    for key, value in reference(demo_model, copy).items():
        assert found[key] == pytest.approx(value, rel=1e-3), key
    assert found["change"] == pytest.approx(found["perplexity"] / found["original_perplexity"] - 1)
    assert 0 < found["change_error"] < found["perplexity_error"]
    alone = evaluate(f"--text={TEXT}", copy)
    assert alone["perplexity"] == found["perplexity"] and "kl_mean" not in alone
    low = evaluate(f"--text={TEXT}", f"--against={demo_model}", copy, "--low-memory")
    assert {**low, "seconds": 0} == {**found, "seconds": 0}


def test_lossless_mount_is_identical(evaluate, demo_model, image_of):
    with mounted(image_of(demo_model, "--lossless")) as mnt:
        found = evaluate(f"--text={TEXT}", f"--against={demo_model}", mnt, "--windows=1")
    assert found["verdict"].startswith("identical") and found["windows"] == 1
    assert found["kl_max"] == found["change"] == 0 and found["top1_agreement"] == 1


def test_presets_are_in_order(evaluate, demo_model, copy_of):
    found = [evaluate(f"--text={TEXT}", f"--against={demo_model}",
                      copy_of(demo_model, f"--quality={q}"))
             for q in ("high", "good", "small", "tiny")]
    divergences = [f["kl_mean"] for f in found]
    assert divergences == sorted(divergences) and divergences[0] < divergences[-1] / 4
    assert all(f["top1_agreement"] > 0.85 for f in found)
    assert len({f["verdict"] for f in found}) > 1


def test_options_choose_windows(evaluate, demo_model):
    few = evaluate(f"--text={TEXT}", demo_model, "--context=64", "--windows=3")
    assert (few["windows"], few["predictions"], few["context"]) == (3, 3 * 63, 64)
    assert evaluate(f"--text={TEXT}", demo_model, "--context=64", "--tokens=200")["windows"] == 3
    drawn = [evaluate(f"--text={TEXT}", demo_model, "--context=64", "--windows=3", f"--seed={seed}",
                      "--threads=1")["perplexity"] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    narrow = evaluate(f"--text={TEXT}", demo_model, "--context=64", "--windows=3",
                      "--dtype=bfloat16")
    assert narrow["perplexity"] != few["perplexity"]
    assert narrow["perplexity"] == pytest.approx(few["perplexity"], rel=0.05)


def test_text_output(capsys, demo_model):
    assert cli.main([f"--text={TEXT}", f"--against={demo_model}", str(demo_model),
                     "--windows=2"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == [
        "perplexity", "original", "change", "KL", "top-1", "verdict"]
    assert "±" in out and "few predictions" in err


# ---- windows ----

def test_windows_are_spread_and_complete():
    tokens = list(range(1000))
    every = text.cut(tokens, [], 100, 0, None, "t")
    assert [t for window in every.tokens for t in window] == tokens
    spread = text.cut(tokens, [], 100, 2, None, "t")
    assert [window[0] for window in spread.tokens] == [200, 700]
    assert spread.given == 1 and spread.predictions() == 198
    with_prefix = text.cut(tokens, [7777], 101, 0, None, "t")
    assert all(window[0] == 7777 for window in with_prefix.tokens)
    assert with_prefix.predictions() == 1000
    rest = text.cut(tokens[:950], [], 300, 0, None, "t")
    assert [len(window) for window in rest.tokens] == [300, 300, 300, 50]
    no_rest = text.cut(tokens[:920], [], 300, 0, None, "t")
    assert [len(window) for window in no_rest.tokens] == [300] * 3
    assert [len(b) for b in rest.batches(600)] == [2, 1, 1]
    assert [len(b) for b in rest.batches(1)] == [1, 1, 1, 1]


def test_long_texts_are_cut_at_line_ends():
    line = "a" * 1000 + "\n"
    content = line * (3 * text.PIECE // len(line)) + "b" * (text.PIECE + 5)
    parts = list(text.pieces(content))
    assert "".join(parts) == content and max(map(len, parts)) <= text.PIECE
    assert parts[0].endswith("\n") and len(parts) >= 4


def test_prefix_of_a_tokenizer_that_begins_texts(demo_model, tmp_path, evaluate):
    from tokenizers import processors
    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    assert text.prefix_of(tokenizer) == []
    token = tokenizer.convert_ids_to_tokens(5)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, 5)])
    assert text.prefix_of(tokenizer) == [5]
    shutil.copytree(demo_model, tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    found = evaluate(f"--text={TEXT}", tmp_path / "m", "--context=65", "--windows=2")
    assert found["predictions"] == 128  # <s> is given, so all 64 others are predicted


def test_standard_error_is_that_of_windows():
    rng = np.random.default_rng(5)
    means = rng.standard_normal(400)
    found = language.Predictions(np.repeat(np.arange(400), 50), np.zeros(20000))
    together = np.repeat(means, 50)
    assert found.error(together) == pytest.approx(1 / math.sqrt(400), rel=0.15)
    assert found.error(rng.standard_normal(20000)) == pytest.approx(1 / math.sqrt(20000), rel=0.15)


def test_excluded_tokens_do_not_spoil_the_divergence():
    q = torch.tensor([[0.0, 1.0, -math.inf]])
    p = torch.tensor([[0.5, 0.5, -math.inf]])
    loss, original, divergence, agree = language._rows(torch.tensor([[0]]), q, p)
    assert torch.isfinite(divergence).all() and divergence.item() == pytest.approx(0.1201, abs=1e-3)
    assert original.item() == pytest.approx(math.log(2))


def test_verdicts():
    assert verdict.of_language(0.0005, 0.01, False).startswith("practically")
    assert verdict.of_language(0.0005, 0.05, False).startswith("very close")  # the tail counts
    assert verdict.of_language(math.nan, 0.1, False) == verdict.WORST
    assert verdict.of_language(0.5, 0.1, False) == verdict.WORST
    assert verdict.of_language(0.0, 0.0, True).startswith("identical")
    assert verdict.of_sentences(0.99995, 0.995, False).startswith("close")
    page = (ROOT / "man" / "hyperfs-eval.1").read_text()
    for limit, tail, words in verdict.LANGUAGE:
        name = re.split(" to | from ", words)[0]
        assert f"{name} Ta {limit:g} Ta {tail:g}" in page
    for limit, _, _ in verdict.SENTENCES:
        assert f"{limit:g}" in page


def test_progress_in_a_log_is_a_line_now_and_then(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Progress("evaluating", 100) as bar:
        for _ in range(100):
            now[0] += 0.25
            bar.add(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["hyperfs-eval: evaluating 40/100, 15 s left",
                     "hyperfs-eval: evaluating 80/100, 5 s left"]
    with progress.Progress("evaluating", 1, quiet=True) as bar:
        now[0] += 100
        bar.add(1)
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    with progress.Progress("evaluating", 2) as bar:
        bar.shown = -math.inf
        bar.add(1)
    err = capsys.readouterr().err
    assert "#" * 15 + "." * 15 in err and err.endswith("\r\033[K")


# ---- what is refused ----

def variant(demo_model, tmp_path, **changes):
    """A copy of the model with other values in config.json; None removes a key."""
    out = tmp_path / "variant"
    shutil.copytree(demo_model, out)
    config = json.loads((out / "config.json").read_text())
    config = {k: v for k, v in {**config, **changes}.items() if v is not None}
    (out / "config.json").write_text(json.dumps(config))
    return out


def test_no_model(refused, demo_model, image_of, tmp_path):
    assert "is no directory" in refused("--text", TEXT, tmp_path / "none")
    assert "no config.json" in refused("--text", TEXT, tmp_path)
    image = image_of(demo_model, "--lossless")
    assert "mount an image first" in refused("--text", TEXT, image)
    (tmp_path / "config.json").write_text("{}")
    assert "no *.safetensors" in refused("--text", TEXT, tmp_path)
    shutil.copy(demo_model / "model.safetensors", tmp_path)
    assert "model type 'None'" in refused("--text", TEXT, tmp_path)
    (tmp_path / "config.json").write_text("[")
    assert "is no JSON" in refused("--text", TEXT, tmp_path)
    (tmp_path / "config.json").write_text("[]")
    assert "is no configuration" in refused("--text", TEXT, tmp_path)


def test_no_text(refused, demo_model, tmp_path):
    path = tmp_path / "t"
    assert "No such file" in refused(f"--text={path}", demo_model)
    path.write_text("Too short.")
    assert "too short" in refused(f"--text={path}", demo_model)
    path.write_text("")
    assert "too short" in refused(f"--text={path}", demo_model)
    path.write_bytes(b"ab\xff")
    assert "no UTF-8 text: byte 2 is 0xff" in refused(f"--text={path}", demo_model)
    assert "Is a directory" in refused(f"--text={tmp_path}", demo_model)


def test_too_large_a_text(refused, demo_model, tmp_path, monkeypatch):
    monkeypatch.setattr(text, "MAX_BYTES", 1 << 20)
    (tmp_path / "t").write_bytes(b"a" * ((1 << 20) + 1))
    assert "larger than 1 MiB" in refused(f"--text={tmp_path / 't'}", demo_model)


def test_missing_tokenizer(refused, demo_model, tmp_path):
    out = variant(demo_model, tmp_path)
    for path in out.glob("tokenizer*"):
        path.unlink()
    assert "has no tokenizer" in refused(f"--text={TEXT}", out)


def test_other_vocabularies(refused, demo_model, tmp_path):
    out = variant(demo_model, tmp_path)
    tokenizer = json.loads((out / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-500]
    (out / "tokenizer.json").write_text(json.dumps(tokenizer))
    told = refused(f"--text={TEXT}", f"--against={demo_model}", out)
    assert "vocabularies differ" in told and "tokenizers" in told
    shutil.rmtree(out)
    out = variant(demo_model, tmp_path, vocab_size=4000)
    weights = load_file(out / "model.safetensors")
    weights = {name: w[:4000].clone() if w.shape[0] == 4096 else w for name, w in weights.items()}
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    told = refused(f"--text={TEXT}", f"--against={demo_model}", out)
    assert "vocabularies differ: 4000 tokens" in told
    assert "out of range" in refused(f"--text={TEXT}", out)


def test_not_a_causal_model(refused, demo_model, tmp_path):
    out = variant(demo_model, tmp_path, architectures=["LlamaForSequenceClassification"])
    assert "no causal language model (LlamaForSequenceClassification)" in refused(
        f"--text={TEXT}", out)


def test_code_of_a_model_is_never_run(refused, evaluate, demo_model, tmp_path):
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    out = variant(demo_model, tmp_path, model_type="own", architectures=["OwnForCausalLM"],
                  auto_map=own)
    (out / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert "code of its own, which is never run" in refused(f"--text={TEXT}", out)
    shutil.rmtree(out)
    out = variant(demo_model, tmp_path, auto_map={"AutoModelForCausalLM": "own.OwnForCausalLM"})
    (out / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    evaluate(f"--text={TEXT}", "--context=64", "--windows=1", out)
    assert not (tmp_path / "ran").exists()


def test_context_beyond_the_model(refused, demo_model):
    assert "has 512 positions" in refused(f"--text={TEXT}", "--context=513", demo_model)


def test_damaged_models(refused, demo_model, tmp_path):
    out = variant(demo_model, tmp_path)
    weights = load_file(out / "model.safetensors")
    name = "model.layers.3.mlp.up_proj.weight"
    save_file({k: w for k, w in weights.items() if k != name},
              out / "model.safetensors", {"format": "pt"})
    assert f"lacks 1 of the model's tensors, {name}" in refused(f"--text={TEXT}", out)
    weights[name] = torch.full_like(weights[name], math.nan)
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    assert "not numbers" in refused(f"--text={TEXT}", "-q", out)
    (out / "model.safetensors").write_bytes(b"x" * 100)
    assert "transformers cannot load" in refused(f"--text={TEXT}", out)


def test_too_little_memory(refused, evaluate, demo_model, monkeypatch):
    both = [f"--text={TEXT}", f"--against={demo_model}", demo_model]
    monkeypatch.setattr(models, "available", lambda: 20_000_000)
    told = refused(*both)
    assert "take 27.5 MB, 20.0 MB are available; try --low-memory or --dtype=bfloat16" in told
    evaluate(*both, "--low-memory", "--windows=1")
    monkeypatch.setattr(models, "available", lambda: 10_000_000)
    assert "try --dtype=bfloat16" in refused(*both, "--low-memory")


def test_failed_allocations_are_one_sentence(refused, demo_model, monkeypatch):
    def fail(*_, **__):
        return torch.empty(1 << 60)
    monkeypatch.setattr(language, "_rows", fail)
    assert "not enough memory: try" in refused(f"--text={TEXT}", "-q", demo_model)
    with pytest.raises(Problem), models.enough_memory():
        raise MemoryError
    with pytest.raises(RuntimeError, match="other"), models.enough_memory():
        raise RuntimeError("other")


def test_full_disk(refused, demo_model, monkeypatch):
    full = SimpleNamespace(free=1000)
    monkeypatch.setattr(language.shutil, "disk_usage", lambda _: full)
    told = refused("-q", f"--text={TEXT}", f"--against={demo_model}", demo_model, "--low-memory")
    assert "set TMPDIR" in told


# ---- embedding models ----

@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A BERT with random weights, large enough that its matrices are stored with loss."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    out = tmp_path_factory.mktemp("encoder") / "bert"
    words = sorted({word for line in LINES for word in line.replace(".", " .").split()})
    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {word: i + 2 for i, word in enumerate(words)}
    core = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]",
                            unk_token="[UNK]").save_pretrained(out)
    torch.manual_seed(3)
    BertModel(BertConfig(vocab_size=len(vocabulary), hidden_size=64, num_hidden_layers=2,
                         num_attention_heads=2, intermediate_size=128, max_position_embeddings=64)
              ).eval().save_pretrained(out)
    return out


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("\n\n".join(LINES) + "\n")
    return path


def plain_vectors(directory, pooling):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModel.from_pretrained(directory)
    with torch.inference_mode():
        hidden = [model(**tokenizer(line, return_tensors="pt")).last_hidden_state[0]
                  for line in LINES]
    found = torch.stack([{"mean": h.mean(0), "cls": h[0], "last": h[-1]}[pooling] for h in hidden])
    return torch.nn.functional.normalize(found, dim=1).double()


def spearman(a, b):
    ranks = [np.argsort(np.argsort(v)).astype(float) for v in (a, b)]
    return np.corrcoef(*ranks)[0, 1]


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_embedding_figures_are_those_of_a_plain_computation(evaluate, encoder, copy_of, lines,
                                                            pooling, tmp_path):
    pair = []
    for name, source in ("original", encoder), ("copy", copy_of(encoder, "--quality", "12")):
        pair.append(tmp_path / name)
        shutil.copytree(source, pair[-1])
        if pooling != "mean":
            key = {"cls": "pooling_mode_cls_token", "last": "pooling_mode_lasttoken"}[pooling]
            (pair[-1] / "1_Pooling").mkdir()
            (pair[-1] / "1_Pooling" / "config.json").write_text(
                json.dumps({"word_embedding_dimension": 64, key: True,
                            "pooling_mode_max_tokens": False}))
    found = evaluate(f"--text={lines}", f"--against={pair[0]}", pair[1])
    a, b = (plain_vectors(path, pooling) for path in pair)
    cosine = (a * b).sum(1)
    upper = np.triu_indices(len(LINES), 1)
    assert (found["kind"], found["pooling"], found["lines"]) == ("embedding", pooling, len(LINES))
    assert found["cosine_mean"] == pytest.approx(cosine.mean().item(), abs=1e-5)
    assert found["cosine_min"] == pytest.approx(cosine.min().item(), abs=1e-5)
    assert found["cosine_mean"] < 0.9999
    assert found["rank_correlation"] == pytest.approx(
        spearman((b @ b.T).numpy()[upper], (a @ a.T).numpy()[upper]), abs=2e-3)


def test_lossless_encoder_is_identical(evaluate, encoder, copy_of, lines):
    found = evaluate(f"--text={lines}", f"--against={encoder}", copy_of(encoder, "--lossless"))
    assert found["verdict"].startswith("identical")
    assert found["rank_correlation"] == pytest.approx(1) and found["cosine_min"] == pytest.approx(1)


def test_embedding_of_a_language_model(evaluate, demo_model, copy_of, lines):
    found = evaluate(f"--text={lines}", f"--against={demo_model}",
                     copy_of(demo_model, "--quality", "tiny"), "--embedding", "--windows=5")
    assert found["lines"] == 5 and 0.9 < found["cosine_min"] < 1


def test_embedding_models_that_are_refused(refused, encoder, demo_model, lines, tmp_path):
    assert "which has no perplexity" in refused(f"--text={lines}", encoder)
    assert "different kinds" in refused(f"--text={lines}", f"--against={demo_model}", encoder)
    (tmp_path / "t").write_text("one\ntwo\n")
    told = refused(f"--text={tmp_path / 't'}", f"--against={encoder}", encoder)
    assert "one text a line, and it has 2" in told
    out = tmp_path / "pooled"
    shutil.copytree(encoder, out)
    (out / "1_Pooling").mkdir()
    (out / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    assert "pools in a way" in refused(f"--text={lines}", f"--against={out}", out)
