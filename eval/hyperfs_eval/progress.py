"""A bar on a terminal, a plain line every ten seconds at most in a log; both on stderr."""

import sys
import time

LOG_EVERY_S = 10
DRAW_EVERY_S = 0.1
WIDTH = 30


class Progress:
    """with Progress("evaluating", 40) as bar: bar.add(1). quiet: shows nothing."""

    def __init__(self, label: str, total: int, quiet: bool = False):
        self.label, self.total, self.done = label, total, 0
        self.quiet, self.terminal = quiet, sys.stderr.isatty()
        self.started = time.monotonic()
        self.shown = self.started - (DRAW_EVERY_S if self.terminal else 0)

    def __enter__(self):
        self._show()
        return self

    def __exit__(self, *_):
        if self.terminal and not self.quiet:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def add(self, count: int):
        self.done += count
        self._show()

    def _show(self):
        now = time.monotonic()
        if self.quiet or now - self.shown < (DRAW_EVERY_S if self.terminal else LOG_EVERY_S):
            return
        self.shown = now
        part = self.done / self.total if self.total else 0.0
        left = f", {(now - self.started) * (1 - part) / part:.0f} s left" if part > 0 else ""
        text = f"{self.label} {self.done}/{self.total}{left}"
        if self.terminal:
            full = round(WIDTH * part)
            print(f"\r\033[K[{'#' * full}{'.' * (WIDTH - full)}] {text}", end="", file=sys.stderr,
                  flush=True)
        else:
            print(f"hyperfs-eval: {text}", file=sys.stderr, flush=True)
