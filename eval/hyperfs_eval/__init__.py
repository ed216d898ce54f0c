"""hyperfs-eval: what the loss in a stored model's weights does to its predictions.

cli.py reads the command line and prints; it and verdict.py need the standard library alone. The
other modules need torch and transformers and are imported late.
"""

__version__ = "0.2.0"


class Problem(Exception):
    """What the user is told in one sentence before the program ends."""


def size(count: int) -> str:
    """Bytes in decimal units."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
