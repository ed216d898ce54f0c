"""The command line of hyperfs-eval; the rest, which needs torch, is imported when it is needed."""

import argparse
import json
import math
import os
import sys
import time
import warnings

from . import Problem, __version__

PROGRAM = "hyperfs-eval"
HELP = """\
Usage: hyperfs-eval [OPTION]... --text=FILE MODEL
Measures what the loss in a stored model's weights does to its predictions. MODEL is a directory,
for instance a mounted image. Of a language model: perplexity, and against the original KL
divergence and top-1 agreement. Of an embedding model: cosine and order of similarities.

      --against=ORIGINAL  the model directory to compare with
      --text=FILE         text in UTF-8 (-: standard input); embedding models: one text a line
      --windows=N         take N windows of the text, or N lines (0: all; default 40, 1000 lines)
      --tokens=N          the same in tokens: N, rounded to whole windows
      --context=N         tokens of a window (default 512, or what the model has)
      --seed=N            draw the windows at random instead of spreading them evenly
      --embedding         compare vectors of sentences, whatever config.json says
      --dtype=TYPE        compute in float32 (default), bfloat16 or float16
      --threads=N         threads to compute with (default: one for each core)
      --low-memory        one model in memory at a time; predictions go through a temporary file
      --json              print one JSON document
  -q, --quiet             no progress
  -h, --help              print this help
      --version           print the version
"""
FEW = 2000  # predictions below which a note is printed


class Usage(Exception):
    pass


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Usage(message.removeprefix("argument "))


def number(least: int, most: int = 1 << 40):
    def convert(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text[:20]) <= most:
            raise argparse.ArgumentTypeError(f"'{text}' is no number from {least} to {most}")
        return int(text)
    return convert


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog=PROGRAM, add_help=False, allow_abbrev=False)
    parser.add_argument("model", nargs="?")
    for option in "--against", "--text":
        parser.add_argument(option)
    parser.add_argument("--windows", type=number(0))
    parser.add_argument("--tokens", type=number(1))
    parser.add_argument("--context", type=number(2, 1 << 24))
    parser.add_argument("--seed", type=number(0))
    parser.add_argument("--threads", type=number(1, 4096))
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    for option in "--embedding", "--low-memory", "--json", "--version":
        parser.add_argument(option, action="store_true")
    parser.add_argument("-q", "--quiet", action="store_true")
    parser.add_argument("-h", "--help", action="store_true")
    options, rest = parser.parse_known_args(arguments)
    unknown = [word for word in rest if word.startswith("-") and word != "-"]
    if unknown:
        raise Usage(f"unknown option '{unknown[0]}'")
    if options.help or options.version:
        return options
    if rest:
        raise Usage(f"one MODEL at a time: '{rest[0]}' is one too many")
    if options.model is None:
        raise Usage("no MODEL given")
    if options.text is None:
        raise Usage("no text given: --text=FILE")
    if options.windows is not None and options.tokens is not None:
        raise Usage("--windows and --tokens exclude each other")
    return options


def lines(found: dict) -> list[tuple[str, str]]:
    if found["kind"] == "embedding":
        return [("cosine", f"{found['cosine_mean']:.6f} ± {found['cosine_error']:.1e} in the mean "
                           f"of {found['lines']:,} lines, least {found['cosine_min']:.6f}"),
                ("order", f"{found['rank_correlation']:.6f} rank correlation of {found['pairs']:,} "
                          "similarities"),
                ("verdict", found["verdict"])]
    rows = [("perplexity", f"{found['perplexity']:.3f} ± {found['perplexity_error']:.3f}, "
                           f"{found['predictions']:,} predictions in {found['windows']} windows")]
    if found["against"]:
        rows += [("original", f"{found['original_perplexity']:.3f} ± "
                              f"{found['original_perplexity_error']:.3f}"),
                 ("change", f"{100 * found['change']:+.2f} % ± "
                            f"{100 * found['change_error']:.2f} %"),
                 ("KL divergence", f"{found['kl_mean']:.5f} ± {found['kl_error']:.5f} nats a "
                                   f"token, 99th percentile {found['kl_p99']:.4f}"),
                 ("top-1", f"{100 * found['top1_agreement']:.2f} % ± "
                           f"{100 * found['top1_error']:.2f} % of the predictions agree"),
                 ("verdict", found["verdict"])]
    return rows


def plain(value):
    """JSON has no infinities."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def report(found: dict, options):
    if options.json:
        print(json.dumps({key: plain(value) for key, value in found.items()}, indent=1))
        return
    for name, value in lines(found):
        print(f"{name:<14} {value}")
    if found.get("predictions", FEW) < FEW:
        print(f"{PROGRAM}: few predictions: a longer text gives firmer figures", file=sys.stderr)


def work(options):
    warnings.simplefilter("ignore")
    try:
        from .run import run
    except ImportError as e:
        raise Problem(f"{e.name or 'a package'} is missing: `make eval` installs what is needed, "
                      "or pip install -r eval/requirements.txt") from e
    started = time.monotonic()
    found = run(options)
    report(found | {"seconds": round(time.monotonic() - started, 3)}, options)
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
    except Usage as e:
        print(f"{PROGRAM}: {e}\nTry '{PROGRAM} --help' for more information.", file=sys.stderr)
        return 2
    try:
        if options.help:
            print(HELP, end="", flush=True)
        elif options.version:
            print(f"{PROGRAM} (hyperfs) {__version__}", flush=True)
        else:
            work(options)
    except Problem as e:
        print(f"{PROGRAM}: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains when it ends
        return 1
    except OSError as e:
        print(f"{PROGRAM}: {e}", file=sys.stderr)
        return 1
    return 0
