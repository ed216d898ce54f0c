"""From a text file to windows of tokens, or to lines."""

import random
import sys
from array import array
from dataclasses import dataclass
from pathlib import Path

from . import Problem

MAX_BYTES = 256 << 20
PIECE = 4 << 20          # characters for a tokenizer at a time: it needs 100 times the memory
LEAST_PREDICTIONS = 32   # fewer say nothing
LEAST_LINES = 4


@dataclass
class Windows:
    """tokens[i] holds the tokens of window i, the tokenizer's prefix (such as <s>) first. The
    tokens after the first `given` are predicted."""
    tokens: list[list[int]]
    given: int

    def predictions(self) -> int:
        return sum(len(window) - self.given for window in self.tokens)

    def batches(self, limit: int) -> list[list[list[int]]]:
        """Windows of equal length side by side, at most `limit` tokens together."""
        found: list[list[list[int]]] = []
        for window in self.tokens:
            last = found[-1] if found else None
            if last and len(last[0]) == len(window) and (len(last) + 1) * len(window) <= limit:
                last.append(window)
            else:
                found.append([window])
        return found


def read(path: str) -> str:
    try:
        if path == "-":
            raw = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with open(path, "rb") as f:
                raw = f.read(MAX_BYTES + 1)
    except OSError as e:
        raise Problem(f"{path} cannot be read: {e.strerror}") from e
    if len(raw) > MAX_BYTES:
        raise Problem(f"{path} is larger than {MAX_BYTES >> 20} MiB: give a part of it")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise Problem(f"{path} is no UTF-8 text: byte {e.start} is {raw[e.start]:#04x}") from e


def pieces(text: str):
    """The text in parts that end with a line, so that no word is cut."""
    start = 0
    while start < len(text):
        end = start + PIECE
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end


def tokens_of(tokenizer, text: str) -> array:
    ids = array("L")
    for piece in pieces(text):
        ids.extend(tokenizer(piece, add_special_tokens=False, verbose=False).input_ids)
    return ids


def prefix_of(tokenizer) -> list[int]:
    """What the tokenizer puts before a text, such as <s>: models are trained to see it there."""
    plain = tokenizer("a", add_special_tokens=False).input_ids
    whole = tokenizer("a").input_ids
    for at in range(len(whole) - len(plain) + 1):
        if whole[at:at + len(plain)] == plain:
            return whole[:at]
    return []


def cut(tokens, prefix: list[int], context: int, count: int, seed: int | None,
        path: str) -> Windows:
    """`count` windows spread evenly over the text, or drawn at random with a seed; 0: all of it."""
    room = context - len(prefix)
    given = max(len(prefix), 1)
    whole = len(tokens) // room
    starts = [i * room for i in range(whole)]
    if count == 0 or count > whole:
        if len(tokens) - whole * room >= LEAST_PREDICTIONS or whole == 0:
            starts.append(whole * room)  # a short one
    elif seed is not None:
        starts = sorted(random.Random(seed).sample(starts, count))
    else:
        starts = [starts[(2 * i + 1) * whole // (2 * count)] for i in range(count)]
    windows = Windows([prefix + list(tokens[s:s + room]) for s in starts], given)
    if windows.predictions() < LEAST_PREDICTIONS:
        raise Problem(f"{path} is too short: {len(tokens)} tokens, at least "
                      f"{LEAST_PREDICTIONS + 1} are needed")
    return windows


def lines_of(text: str, count: int, seed: int | None, path: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) < LEAST_LINES:
        raise Problem(f"{path} is too short: an embedding model is compared on one text a line, "
                      f"and it has {len(lines)}; at least {LEAST_LINES} are needed")
    if count and count < len(lines):
        if seed is not None:
            chosen = sorted(random.Random(seed).sample(range(len(lines)), count))
        else:
            chosen = [(2 * i + 1) * len(lines) // (2 * count) for i in range(count)]
        lines = [lines[i] for i in chosen]
    return lines


def shown(path: str) -> str:
    return "standard input" if path == "-" else str(Path(path))
