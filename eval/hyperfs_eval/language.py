"""Perplexity of a causal language model, and the divergence of a copy's predictions.

Logits are computed batch by batch; at most those of one batch and of two models are in memory.
"""

import math
import shutil
import tempfile
from dataclasses import dataclass

import numpy as np
import torch

from . import Problem, size
from .models import enough_memory
from .text import Windows

BATCH_LOGITS = 1 << 24  # numbers that the logits of a batch have at most, if one window has no more
ROWS = 128              # predictions whose probabilities are computed at a time
CLUSTERS = 8            # windows from which on the standard error is that of whole windows


def batches_of(windows: Windows, vocabulary: int) -> list[torch.Tensor]:
    return [torch.tensor(batch) for batch in windows.batches(max(BATCH_LOGITS // vocabulary, 1))]


class Live:
    """Logits of a loaded model: a matrix for each batch, one row a prediction, in 32-bit floats."""

    def __init__(self, model, batches, given: int, name: str):
        self.model, self.batches, self.given, self.name = model, batches, given, name

    def logits(self, number: int) -> torch.Tensor:
        with torch.inference_mode(), enough_memory():
            found = self.model(input_ids=self.batches[number], use_cache=False).logits
            found = found[:, self.given - 1:-1].float().flatten(0, 1)
        # -inf is a token that the model excludes.
        if torch.isnan(found).any() or torch.isposinf(found).any():
            raise Problem(f"{self.name} predicts values that are not numbers: its weights are "
                          "damaged, or --dtype is too narrow for it")
        return found


class Stored:
    """Logits of a model that is no longer in memory, from a temporary file without a name."""

    def __init__(self, live: Live, progress=None, directory: str | None = None):
        rows = [batch.shape[0] * (batch.shape[1] - live.given) for batch in live.batches]
        where = directory or tempfile.gettempdir()
        self.file = tempfile.TemporaryFile(dir=where)
        self.places = []
        for number in range(len(rows)):
            found = live.logits(number)
            if number == 0:
                need, free = 4 * found.shape[1] * sum(rows), shutil.disk_usage(where).free
                if need > free:
                    raise Problem(f"the original's predictions take {size(need)} in {where}, where "
                                  f"{size(free)} are free: set TMPDIR, or take fewer --windows")
            self.places.append((self.file.tell(), found.shape))
            try:
                self.file.write(found.numpy().data)
            except OSError as e:
                raise Problem(f"{where} cannot be written: {e.strerror}") from e
            if progress:
                progress.add(live.batches[number].shape[0])

    def logits(self, number: int) -> torch.Tensor:
        place, shape = self.places[number]
        self.file.seek(place)
        raw = np.fromfile(self.file, np.float32, shape[0] * shape[1])
        return torch.from_numpy(raw.reshape(shape))

    def close(self):
        self.file.close()


@dataclass
class Predictions:
    """One number for each prediction. loss: -log of the probability of the token that came; the
    last three only of a comparison."""
    window: np.ndarray
    loss: np.ndarray
    original_loss: np.ndarray | None = None
    divergence: np.ndarray | None = None
    agree: np.ndarray | None = None

    def error(self, values: np.ndarray) -> float:
        """Standard error of the mean. Tokens of one text hang together, so where there are enough
        windows they are what varies independently."""
        values = values.astype(np.float64)
        n, windows = len(values), int(self.window[-1]) + 1
        if windows < CLUSTERS:
            return float(values.std(ddof=1) / math.sqrt(n))
        sums = np.bincount(self.window, values - values.mean())
        return float(math.sqrt(windows / (windows - 1) * (sums ** 2).sum()) / n)


def _rows(target, q, p):
    """loss, and with p loss of p, divergence and agreement, of some rows."""
    log_q = torch.log_softmax(q, -1)
    found = [-log_q.gather(-1, target)[:, 0]]
    if p is not None:
        log_p = torch.log_softmax(p, -1)
        probability = log_p.exp()
        parts = torch.where(probability > 0, probability * (log_p - log_q), 0.0)
        # Rounding can leave a sum of nearly nothing below zero, which no divergence is.
        found += [-log_p.gather(-1, target)[:, 0], parts.sum(-1).clamp_min(0),
                  log_p.argmax(-1) == log_q.argmax(-1)]
    return found


def evaluate(copy, batches, given: int, original=None, progress=None) -> Predictions:
    """copy and original: Live or Stored, over the same batches."""
    columns: list[list[np.ndarray]] = []
    numbers, windows = [], 0
    with torch.inference_mode(), enough_memory():
        for number, batch in enumerate(batches):
            target = batch[:, given:].reshape(-1, 1)
            q = copy.logits(number)
            p = original.logits(number) if original else None
            if p is not None and p.shape != q.shape:
                raise Problem(f"the vocabularies differ: {q.shape[1]} tokens, {p.shape[1]} in the "
                              "original")
            for at in range(0, len(target), ROWS):
                some = slice(at, at + ROWS)
                columns.append([t.numpy() for t in
                                _rows(target[some], q[some], None if p is None else p[some])])
            per = batch.shape[1] - given
            numbers.append(np.repeat(np.arange(windows, windows + batch.shape[0]), per))
            windows += batch.shape[0]
            if progress:
                progress.add(batch.shape[0])
    return Predictions(np.concatenate(numbers), *(np.concatenate(c) for c in zip(*columns)))


def summary(found: Predictions) -> dict:
    """What is printed of it; perplexities, and their errors to first order."""
    def perplexity(loss):
        mean = float(loss.astype(np.float64).mean())
        value = math.exp(mean) if mean < 700 else math.inf
        return value, value * found.error(loss)

    result: dict = {"predictions": len(found.loss), "windows": int(found.window[-1]) + 1}
    result["perplexity"], result["perplexity_error"] = perplexity(found.loss)
    if found.divergence is None:
        return result
    result["original_perplexity"], result["original_perplexity_error"] = \
        perplexity(found.original_loss)
    # Both models see the same tokens: the error of the difference is far below that of either.
    difference = found.loss.astype(np.float64) - found.original_loss
    mean = float(difference.mean())
    change = math.expm1(mean) if mean < 700 else math.inf
    result |= {"change": change, "change_error": (1 + change) * found.error(difference),
               "kl_mean": float(found.divergence.astype(np.float64).mean()),
               "kl_error": found.error(found.divergence),
               "kl_p99": float(np.quantile(found.divergence, 0.99)),
               "kl_max": float(found.divergence.max()),
               "top1_agreement": float(found.agree.mean()),
               "top1_error": found.error(found.agree)}
    return result
