"""The five command lines: help, manual page, completion and behaviour say the same."""

import re
import sys
from pathlib import Path

import pytest
from conftest import run

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = {"mkhyperfs": "mkhyperfs.1", "hyperfs": "hyperfs.1", "fsck.hyperfs": "fsck.hyperfs.8",
         "dump.hyperfs": "dump.hyperfs.8", "hyperfs-eval": "hyperfs-eval.1"}
USAGE = {"fsck.hyperfs": 16}  # fsck(8) has numbers of its own
COMPLETE = r'''
. "$1"
function=$(complete -p "$2" | sed 's/.*-F \([^ ]*\) .*/\1/')
COMP_WORDS=("$2" -) COMP_CWORD=1 COMP_LINE="$2 -" COMP_POINT=${#COMP_LINE}
"$function" "$2" - "$2" 2> /dev/null
printf '%s\n' "${COMPREPLY[@]}"
'''


@pytest.fixture(params=PAGES, ids=str)
def name(request):
    return request.param


@pytest.fixture
def tool(name, tools):
    return tools.mkhyperfs.parent / name


def in_help(tool):
    text = run([tool, "--help"]).stdout
    return set(re.findall(r"(?<![\w-])(--[a-z][a-z-]*|-[A-Za-z])(?![\w-])", text))


def in_manual(name):
    """The options that have an item of their own."""
    found = set()
    for line in (ROOT / "man" / PAGES[name]).read_text().splitlines():
        if line.startswith(".It Fl "):
            found |= {f"-{flag}" for flag in re.findall(r"\bFl (-?[A-Za-z][a-z-]*)", line)}
    return found


def in_completion(name):
    script = ROOT / "completions" / f"{name}.bash"
    words = run(["bash", "-c", COMPLETE, "bash", script, name]).stdout.split()
    return {word.rstrip("=") for word in words}


def test_help_manual_and_completion_name_the_same_options(tool, name):
    assert len(in_help(tool)) > 3
    assert in_manual(name) == in_help(tool)
    assert in_completion(name) == in_help(tool)


def test_every_option_that_help_names_exists(tool):
    for option in in_help(tool):
        done = run([tool, option, "--help"], check=False)
        assert not re.search("unknown|no option", done.stderr), option


def test_version(tool, name):
    assert run([tool, "--version"]).stdout == f"{name} (hyperfs) 0.2.0\n"


def test_help_fits_a_terminal(tool, name):
    text = run([tool, "--help"]).stdout
    assert text.startswith("Usage: ") and name in text.splitlines()[0]
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("args", [["--no-such-option", "a", "b"], ["-Z", "a", "b"], [],
                                  ["a", "b", "c", "d"]],
                         ids=["unknown long", "unknown short", "no arguments", "too many"])
def test_usage_errors(tool, name, args, tmp_path):
    (tmp_path / "b").mkdir()
    done = run([tool, *args], check=False, cwd=tmp_path)
    assert done.returncode == USAGE.get(name, 2)
    assert done.stdout == ""
    sentence, hint = done.stderr.splitlines()
    assert sentence.startswith(f"{name}: ")
    assert hint == f"Try '{name} --help' for more information."
    if args and args[0].startswith("-"):
        assert args[0] in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize(("args", "words"), [
    (["model"], "no text given"), (["--text=t", "--windows=x", "model"], "'x' is no number"),
    (["--text=t", "--windows=1", "--tokens=9", "model"], "exclude each other"),
    (["--text=t", "--threads=0", "model"], "'0' is no number from 1"),
    (["--text=t", "--context=1", "model"], "'1' is no number from 2"),
    (["--text=t", "--dtype=int4", "model"], "'int4'"), (["model", "--text"], "--text"),
    (["--tex=t", "model"], "unknown option '--tex=t'"), (["--", "-model"], "no text given"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_usage_errors_of_hyperfs_eval(tools, args, words):
    done = run([tools.mkhyperfs.parent / "hyperfs-eval", *args], check=False)
    assert done.returncode == 2 and done.stdout == ""
    sentence, hint = done.stderr.splitlines()
    assert words in sentence and sentence.startswith("hyperfs-eval: ")


def test_hyperfs_eval_reads_its_options_without_torch(tools, tmp_path):
    """Where torch cannot be imported help works, and the rest says what is missing."""
    (tmp_path / "torch.py").write_text("raise ImportError('no torch', name='torch')")
    code = "import sys; from hyperfs_eval.cli import main; sys.exit(main(sys.argv[1:]))"
    env = {"PYTHONPATH": f"{tmp_path}:{ROOT / 'eval'}"}
    done = run([sys.executable, "-c", code, "--help"], env=env)
    assert done.stdout.startswith("Usage: hyperfs-eval")
    done = run([sys.executable, "-c", code, "--text=t", "model"], check=False, env=env)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "torch is missing" in done.stderr and "make eval" in done.stderr
