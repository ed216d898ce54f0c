"""How far the vectors of a sentence encoder move, and whether the order of similarities stays."""

import json
from pathlib import Path

import numpy as np
import torch

from . import Problem
from .models import enough_memory

BATCH = 16
POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls",
            "pooling_mode_lasttoken": "last"}


def pooling_of(path: Path) -> str:
    """How the tokens' vectors become one: by sentence-transformers' own file, else the mean."""
    try:
        modes = json.loads((path / "1_Pooling" / "config.json").read_bytes())
        chosen = [key for key, on in modes.items()
                  if key.startswith("pooling_mode_") and on is True]
    except OSError:
        return "mean"
    except (ValueError, AttributeError) as e:
        raise Problem(f"{path / '1_Pooling' / 'config.json'} is no JSON object") from e
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        raise Problem(
            f"{path} pools in a way that is not supported ({', '.join(chosen) or 'none'})")
    return POOLINGS[chosen[0]]


def length_of(config, context: int) -> int:
    positions = getattr(config, "max_position_embeddings", None)
    # RoBERTa's kin count positions from 2.
    return min(context, positions - 2) if isinstance(positions, int) and positions > 2 else context


def vectors(model, encoded: list[list[int]], padding: int, pooling: str, name: str,
            progress=None) -> np.ndarray:
    """One vector of length 1 for each line, in the order given."""
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))  # little padding
    found: list[np.ndarray | None] = [None] * len(encoded)
    with torch.inference_mode(), enough_memory():
        for at in range(0, len(order), BATCH):
            some = order[at:at + BATCH]
            longest = max(len(encoded[i]) for i in some)
            ids = torch.full((len(some), longest), padding)
            mask = torch.zeros((len(some), longest), dtype=torch.long)
            for row, i in enumerate(some):
                ids[row, :len(encoded[i])] = torch.tensor(encoded[i])
                mask[row, :len(encoded[i])] = 1
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            if pooling == "mean":
                pooled = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
            elif pooling == "cls":
                pooled = hidden[:, 0]
            else:
                pooled = hidden[torch.arange(len(some)), mask.sum(1) - 1]
            if not torch.isfinite(pooled).all():
                raise Problem(f"{name} computes vectors that are not numbers: its weights are "
                              "damaged, or --dtype is too narrow for it")
            pooled = pooled / pooled.norm(dim=1, keepdim=True).clamp_min(1e-30)
            for row, i in enumerate(some):
                found[i] = pooled[row].numpy()
            if progress:
                progress.add(len(some))
    return np.stack(found)


def ranks(values: np.ndarray) -> np.ndarray:
    """From 0; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[inverse]


def compare(copy: np.ndarray, original: np.ndarray) -> dict:
    cosine = np.clip((copy.astype(np.float64) * original).sum(1), -1, 1)
    upper = np.triu_indices(len(copy), 1)
    pairs = [(v.astype(np.float64) @ v.T.astype(np.float64))[upper] for v in (copy, original)]
    a, b = (ranks(p) - (len(p) - 1) / 2 for p in pairs)
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return {"lines": len(copy), "pairs": len(pairs[0]), "cosine_mean": float(cosine.mean()),
            "cosine_error": float(cosine.std(ddof=1) / np.sqrt(len(cosine))),
            "cosine_p1": float(np.quantile(cosine, 0.01)), "cosine_min": float(cosine.min()),
            # Where all similarities are equal there is no order to keep.
            "rank_correlation": float(a @ b) / norm if norm > 0 else 1.0,
            "similarity_change_max": float(np.abs(pairs[0] - pairs[1]).max()),
            "same": bool(np.array_equal(copy, original))}
