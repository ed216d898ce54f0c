#!/usr/bin/env python3
"""bench/sensitivity.py: how much a model's predictions suffer from noise in each of its tensors, and
what the rules that follow from it are worth.

Small noise of variance s^2 on a weight raises the Kullback-Leibler divergence from the original by
F s^2 / 2, where F is the weight's entry on the diagonal of the Fisher information: the mean square
of d log p(y) / dw, with y drawn from the model's own predictions. One backward pass a window gives
F for all weights at once. At an SQNR of q dB a tensor of n weights then adds

    KL = S 10^(-q/10),    S = (mean square of the weights) * (sum of F) / 2

and at equal size the sum over all tensors is least where S 10^(-q/10) / n is the same for all: a
tensor's SQNR should be a common level + 10 log10(S / n) (reverse water-filling). Those are the
offsets printed here. Noise on one part of the model at a time, the rest exact, checks them.

FIT models gave the rules below; HELD_OUT ones check them: stored with one SQNR and with the rules
at the same size, by the real tools. Writes bench/results/sensitivity.md.

Needs torch and transformers (tests/loaders/requirements.txt) besides bench/requirements.txt.
"""

import json
import math
import os
import re
import tempfile
from pathlib import Path

from codec import BUILD, DB_A_BIT, MODELS, RESULTS, ROOT, Report, bits_of, run, store

TEXT = MODELS / "lm" / "heldout.txt"
FIT, HELD_OUT = ["demo", "story"], ["lm"]
WINDOWS = 16  # of the text, for everything but the check on a held-out model, which has 40
MOST_WINDOWS, WINDOW = 40, 512
STORIES = 60
NOISE_DB = 23
CHECKED_BITS = [3, 4, 5]
QUALITY_RANGE = 10, 40  # dB, of mkhyperfs
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

KINDS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj", "gate": "gate_proj",
         "up": "up_proj", "down": "down_proj"}
# The rules of mkhyperfs/sensitivity.c: dB added to the common level; what is not named gets none.
OFFSETS = {"q": -2, "k": -2, "v": +3, "gate": -2.5, "up": -2, "down": +1, "embedding": -2}
FIRST_LAYER = 3  # more for all but q and k
LAST_LAYER = 2  # more for gate, up and down
MAX_HEAD, MAX_GROUPS = 10, 6


def load(directory):
    import torch
    from transformers import AutoModelForCausalLM
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def windows_of(directory, text):
    """At most 40 windows, spread evenly over all that the text has."""
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(directory, model_max_length=1 << 30)
    tokens = tokenizer(Path(text).read_text(encoding="utf-8"), add_special_tokens=False,
                       return_tensors="pt").input_ids[0]
    count = max(1, len(tokens) // WINDOW)
    chosen = min(count, MOST_WINDOWS)
    starts = [(2 * i + 1) * count // (2 * chosen) * WINDOW for i in range(chosen)]
    return [tokens[s:s + WINDOW] for s in starts]


class Tensor:
    def __init__(self, name, shape):
        self.name, self.shape, self.n = name, shape, math.prod(shape)
        number = re.search(r"\.layers\.(\d+)\.", name)
        self.layer = int(number[1]) if number else None
        self.kind = next((kind for kind, part in KINDS.items() if part in name), "other")


def tensors_of(shapes, tied):
    """shapes: name -> shape of every matrix of the file."""
    found = [Tensor(name, shape) for name, shape in shapes.items()]
    for t in found:
        if "lm_head" in t.name or "embed_tokens" in t.name:
            t.kind = "tied embedding" if tied else "head" if "lm_head" in t.name else "embedding"
    return found


def offsets(tensors):
    """The rules, for the tensors of one model: name -> dB."""
    total = sum(t.n for t in tensors)
    last = max((t.layer for t in tensors if t.layer is not None), default=None)
    queries = {t.layer: t.shape[0] for t in tensors if t.kind == "q"}
    result = {}
    for t in tensors:
        db = OFFSETS.get(t.kind, 0)
        if t.kind in ("tied embedding", "head"):
            # About half of the damage is done here whatever the size: so per weight it is the
            # more the smaller this tensor is.
            db = min(max(10 * math.log10(max(total - t.n, 1) / t.n), 0), MAX_HEAD)
        if t.kind in ("k", "v"):  # grouped queries: each head serves several of q's
            db += min(10 * math.log10(queries[t.layer] / t.shape[0]), MAX_GROUPS)
        if t.layer == 0 and t.kind not in ("q", "k"):
            db += FIRST_LAYER
        elif t.layer == last and t.kind in ("gate", "up", "down"):
            db += LAST_LAYER
        result[t.name] = db
    return result


class Subject:
    """A model whose weights can be replaced, with windows of tokens and its own predictions there.
    In memory a tied embedding and head are two copies, so that each can be looked at alone."""

    def __init__(self, directory, windows):
        self.model = load(directory)
        config = json.loads((directory / "config.json").read_text())
        self.tied = config["tie_word_embeddings"]
        self.windows = windows
        self.model.requires_grad_(False)
        if self.tied:
            import torch
            head = self.model.get_output_embeddings()
            head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        self.weights = {name: p for name, p in self.model.named_parameters() if p.dim() == 2}
        self.exact = {name: p.detach().clone() for name, p in self.weights.items()}
        shapes = {name: tuple(p.shape) for name, p in self.weights.items()
                  if not (self.tied and name == HEAD)}
        self.tensors = tensors_of(shapes, self.tied)
        self.total = sum(t.n for t in self.tensors)
        self.predictions = [self.predict(window) for window in windows]
        self.count = sum(p.shape[0] for p in self.predictions)

    def predict(self, window):
        """Logarithms of the probabilities of the next token, after each of a window."""
        logits = self.model(input_ids=window[None], use_cache=False).logits[0, :-1]
        return logits.log_softmax(-1).float()

    def divergence(self):
        import torch
        total = 0.0
        with torch.inference_mode():
            for window, log_p in zip(self.windows, self.predictions):
                log_q = self.predict(window)
                total += (log_p.exp() * (log_p - log_q)).sum(-1).double().sum().item()
        return total / self.count

    def places(self, tensor):
        """Names in memory of a tensor of the file."""
        return [EMBEDDING, HEAD] if tensor.kind == "tied embedding" else [tensor.name]

    def set(self, values):
        """Replaces weights by those given; the others become exact."""
        for name, p in self.weights.items():
            p.copy_(values.get(name, self.exact[name]))

    def noisy(self, groups, db):
        """The divergence with noise on all places of each group, the same within a group."""
        import torch
        generator, values = torch.Generator().manual_seed(0), {}
        for group in groups:
            exact = self.exact[group[0]]
            scale = exact.square().mean().sqrt() * 10 ** (-db / 20)
            noise = torch.randn(exact.shape, generator=generator) * scale
            values.update({name: exact + noise for name in group})
        self.set(values)
        result = self.divergence()
        self.set({})
        return result

    def fisher(self):
        """S for every tensor, and for "input" and "output", the two uses of a tied embedding."""
        import torch
        generator = torch.Generator().manual_seed(0)
        groups = {t.name: self.places(t) for t in self.tensors}
        if self.tied:
            groups |= {"input": [EMBEDDING], "output": [HEAD]}
        sums = dict.fromkeys(groups, 0.0)
        for p in self.weights.values():
            p.requires_grad_(True)
        for window in self.windows:
            log_p = self.predict(window)
            drawn = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
            names, parameters = zip(*self.weights.items())
            gradients = dict(zip(names, torch.autograd.grad(log_p.gather(1, drawn).sum(),
                                                            parameters)))
            for key, group in groups.items():
                sums[key] += sum(gradients[name] for name in group).double().square().sum().item()
        for p in self.weights.values():
            p.requires_grad_(False)
        return {key: sums[key] / self.count / 2 *
                self.exact[group[0]].double().square().mean().item()
                for key, group in groups.items()}


def story_windows(directory):
    import torch
    tokens = json.loads((directory / "eval_tokens.json").read_text())["seqs"][:STORIES]
    return [torch.tensor(one) for one in tokens]


def decibel(x):
    return f"{10 * math.log10(x):+.1f}"


def at_equal_size(s, n, db):
    """KL with these offsets relative to that with none, at equal size."""
    mean = sum(n[k] * db[k] for k in n) / sum(n.values())
    return sum(s[k] * 10 ** ((mean - db[k]) / 10) for k in n) / sum(s[k] for k in n)


def tell_parts(report, subject, s, measure):
    """Every kind and the embedding's two uses, predicted and, if asked for, measured; then layers."""
    whole = sum(s[t.name] for t in subject.tensors)
    level = 10 ** (-NOISE_DB / 10)
    rows = []

    def part(name, tensors, groups=None, sensitivity=None):
        n = sum(t.n for t in tensors)
        value = sensitivity or sum(s[t.name] for t in tensors)
        rows.append([name, f"{100 * n / subject.total:.1f} %", f"{100 * value / whole:.1f} %",
                     decibel(value / n / (whole / subject.total)), f"{value * level:.2e}"])
        if measure:
            noisy = subject.noisy(groups or [subject.places(t) for t in tensors], NOISE_DB)
            rows[-1].append(f"{noisy:.2e}")

    part("everything", subject.tensors)
    for kind in dict.fromkeys(t.kind for t in subject.tensors):
        part(kind, [t for t in subject.tensors if t.kind == kind])
    if subject.tied:
        table = [t for t in subject.tensors if t.kind == "tied embedding"]
        part("... its use as embedding", table, [[EMBEDDING]], s["input"])
        part("... its use as head", table, [[HEAD]], s["output"])
    report.table(["part", "of weights", "of KL", "offset, dB", "KL, predicted"] +
                 ["measured"] * measure, rows)
    tell_layers(report, subject, s, whole)


def tell_layers(report, subject, s, whole):
    layers = sorted({t.layer for t in subject.tensors if t.layer is not None})
    rows = []
    for layer in layers:
        here = {t.kind: t for t in subject.tensors if t.layer == layer}
        every = sum(s[t.name] for t in here.values()) / sum(t.n for t in here.values())
        rows.append([layer] + [decibel(s[here[kind].name] / here[kind].n /
                                       (whole / subject.total)) for kind in KINDS] +
                    [decibel(every / (whole / subject.total))])
    report.add("Offsets in dB by layer:\n")
    report.table(["layer", *KINDS, "all"], rows)


def tell_gain(report, subject, s):
    n = {t.name: t.n for t in subject.tensors}
    rules = offsets(subject.tensors)
    best = {k: 10 * math.log10(s[k] / n[k]) for k in n}
    only = {t.name: rules[t.name] if t.kind in ("tied embedding", "head", "embedding") else 0
            for t in subject.tensors}
    report.add("KL at equal size against one SQNR, predicted: the rules "
               f"{at_equal_size(s, n, rules):.2f}, their part for embedding and head alone "
               f"{at_equal_size(s, n, only):.2f}, every tensor at its own offset "
               f"{at_equal_size(s, n, best):.2f}.\n")


def stored(directory, work, db, rules):
    """Bits a weight and weights of a model stored at a common level and offsets."""
    from safetensors.torch import load_file
    image, out = work / "i.hyperfs", work / "extracted"
    low, high = QUALITY_RANGE
    names = load_file(directory / "model.safetensors").keys()
    if EMBEDDING not in load_file(directory / "model.safetensors"):  # a tied one, stored under the head's name
        rules = rules | {HEAD: rules[EMBEDDING]}
        rules.pop(EMBEDDING)
    options = [f"--rule={name}={min(max(db + more, low), high):.3f}"
               for name, more in rules.items()]
    _, tensors = store(directory, image, f"--quality={db:.3f}", *options)
    run(BUILD / "fsck.hyperfs", "-q", f"--extract={out}", image)
    weights = {name: w.float() for name, w in load_file(out / "model.safetensors").items()}
    run("rm", "-r", out, image)
    return bits_of(tensors), weights


def check(report, directory, subject, work):
    rules = offsets(subject.tensors)
    file_names = {t.name for t in subject.tensors}
    mean = sum(t.n * rules[t.name] for t in subject.tensors) / subject.total
    even = dict.fromkeys(file_names, 0.0)
    centred = {name: db - mean for name, db in rules.items()}
    rows = []
    for bits in CHECKED_BITS:
        db = DB_A_BIT * bits - 0.37  # what the code loses to Shannon's bound

        def divergence(weights):
            if subject.tied:
                table = weights.get(EMBEDDING, weights.get(HEAD))
                weights[EMBEDDING] = weights[HEAD] = table
            subject.set(weights)
            return subject.divergence()

        bits_even, weights = stored(directory, work, db, even)
        kl_even = divergence(weights)
        bits_rules, weights = stored(directory, work, db, centred)
        kl_rules = divergence(weights)
        ratio = kl_rules / kl_even * 4 ** (bits_rules - bits_even)
        rows.append([f"{db:.1f}", f"{bits_even:.4f}", f"{kl_even:.2e}", f"{bits_rules:.4f}",
                     f"{kl_rules:.2e}", f"{ratio:.3f}",
                     report.verdict(ratio <= 0.5, f"half of the KL at {bits} bits")
                     if directory.name in HELD_OUT else
                     report.verdict(ratio <= 1, f"no harm at {bits} bits")])
    subject.set({})
    report.add("By mkhyperfs, one SQNR and the rules; the last ratio is corrected to equal size by "
               "6.02 dB a bit:\n")
    report.table(["dB", "bits", "KL", "bits, rules", "KL, rules", "ratio", ""], rows)


def main():
    import torch
    from transformers.utils import logging
    logging.disable_progress_bar()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    report = Report()
    RESULTS.mkdir(exist_ok=True)
    report.add("# Sensitivity of tensors\n")
    report.add("By bench/sensitivity.py, whose head says how. Offset: 10 log10 of KL a weight, "
               "relative to the whole model. Noise: Gaussian, "
               f"{NOISE_DB} dB below the weights.\n")
    for name in FIT + HELD_OUT:
        directory = ROOT / "models" / "demo" if name == "demo" else MODELS / name
        text = TEXT if TEXT.exists() or name != "demo" else ROOT / "demo" / "text.txt"
        if not (directory / "model.safetensors").exists() or \
                not (name == "story" or text.exists()):
            report.add(f"Not here: {name}.\n")
            continue
        report.add(f"## {name}, {'held out' if name in HELD_OUT else 'used for the rules'}\n")
        windows = story_windows(directory) if name == "story" else windows_of(directory, text)
        few = windows if name == "story" else windows[::max(1, len(windows) // WINDOWS)][:WINDOWS]
        subject = Subject(directory, few)
        s = subject.fisher()
        report.add(f"{subject.total} weights, {subject.count} predictions.\n")
        tell_parts(report, subject, s, name in FIT)
        tell_gain(report, subject, s)
        if name in HELD_OUT:
            subject = Subject(directory, windows)
            report.add(f"Check, {subject.count} predictions. ")
        with tempfile.TemporaryDirectory(prefix="hyperfs-bench-") as work:
            check(report, directory, subject, Path(work))
    report.add("Missed: " + (", ".join(report.missed) or "nothing") + ".")
    (RESULTS / "sensitivity.md").write_text("\n".join(report.lines) + "\n")


if __name__ == "__main__":
    main()
