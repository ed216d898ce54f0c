#!/usr/bin/env python3
"""quality.py ORIGINAL COPY TEXT: what the loss in a model's weights does to its predictions.

Loads both model directories with unmodified mlx-lm, computes in 32-bit floats on the CPU and
prints the perplexity of each on TEXT and the mean Kullback-Leibler divergence of COPY's
predictions from ORIGINAL's, in nats a token: 0 where nothing has changed.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx_lm

WINDOW = 512  # tokens; the first one of each window is not predicted


@dataclass
class Result:
    original: float    # perplexity
    copy: float        # perplexity
    divergence: float  # nats a token
    tokens: int        # predicted ones


def load(directory):
    model, tokenizer = mlx_lm.load(str(directory))
    model.set_dtype(mx.float32)
    return model, tokenizer


def log_probabilities(model, tokens):
    logits = model(mx.array(tokens)[None])[0].astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def compare(original_dir, copy_dir, text):
    mx.set_default_device(mx.cpu)
    original, tokenizer = load(original_dir)
    copy, _ = load(copy_dir)
    tokens = tokenizer.encode(Path(text).read_text(encoding="utf-8"))
    windows = [tokens[i:i + WINDOW] for i in range(0, len(tokens) - 1, WINDOW)]
    beside = mx.new_stream(mx.cpu)
    loss_original = loss_copy = divergence = 0.0
    for window in windows:
        with mx.stream(beside):  # the two models on two cores
            log_q = log_probabilities(copy, window)[:-1]
        log_p = log_probabilities(original, window)[:-1]
        mx.eval(log_p, log_q)
        target = mx.array(window[1:])[:, None]
        loss_original -= mx.take_along_axis(log_p, target, axis=-1).sum().item()
        loss_copy -= mx.take_along_axis(log_q, target, axis=-1).sum().item()
        divergence += (mx.exp(log_p) * (log_p - log_q)).sum().item()
    n = sum(len(window) - 1 for window in windows)
    return Result(math.exp(loss_original / n), math.exp(loss_copy / n), divergence / n, n)


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__.strip())
    r = compare(*sys.argv[1:])
    print(f"perplexity   {r.original:.2f} original, {r.copy:.2f} from the image "
          f"({100 * (r.copy / r.original - 1):+.1f} %), {r.tokens} tokens")
    print(f"divergence   {r.divergence:.4f} nats a token (mean KL)")


if __name__ == "__main__":
    main()
