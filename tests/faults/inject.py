"""Runs a program under tests/faults/inject.c, the library that makes calls fail."""

import errno
import mmap
import os
import struct
from types import SimpleNamespace

from conftest import BUILD, run

LIBRARY = BUILD / "tests" / "inject.so"
SIZE, HEADER, ENTRY = 4096, struct.Struct("<qQ"), struct.Struct("<24sQ")


class Injector:
    """The control file of one program and of the processes that it forks.

    calls, action, sticky, path, bad, clock: as in inject.c; action may be the name of an errno.
    nth: the call that is hit, counted from 1; 0 hits none, and counts.
    """

    def __init__(self, folder, calls="", nth=0, action="EIO", sticky=False, path=None, bad=None,
                 clock=None):
        self.file = folder / "inject.control"
        self.file.unlink(missing_ok=True)  # a daemon that is about to end may still have it mapped
        self.file.write_bytes(bytes(SIZE))
        with open(self.file, "r+b") as f:
            self.memory = mmap.mmap(f.fileno(), SIZE)
        self.arm(nth)
        number = getattr(errno, action, action)
        variables = {"CONTROL": self.file, "CALLS": calls, "ACTION": number, "PATH": path,
                     "STICKY": 1 if sticky else None, "CLOCK": clock,
                     "BAD": bad and ",".join(f"{at}+{n}" for at, n in bad)}
        self.env = {**os.environ, "LD_PRELOAD": str(LIBRARY),
                    "ASAN_OPTIONS": f"verify_asan_link_order=0:log_path={folder}/asan",
                    **{f"INJECT_{k}": str(v) for k, v in variables.items() if v is not None}}

    def arm(self, nth):
        self.memory[:8] = struct.pack("<q", nth)

    @property
    def hits(self):
        return HEADER.unpack_from(self.memory)[1]

    @property
    def calls(self):
        """Calls so far, by name."""
        entries = (ENTRY.unpack_from(self.memory, at)
                   for at in range(HEADER.size, SIZE - ENTRY.size, ENTRY.size))
        return {name.rstrip(b"\0").decode(): n for name, n in entries if n > 0}


def sanitizer_met_it(folder):
    """Whether the sanitizer's own library, which gives up then, met the fault."""
    met = False
    for log in folder.glob("asan.*"):
        text = log.read_text()
        assert "CHECK failed: sanitizer_" in text, text
        met = True
        log.unlink()
    return met


ALLOCATIONS = ("malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc")


def count(folder, command, calls, **kw):
    """How many calls of `calls` ("alloc", "io" or a list of names) the command makes."""
    injector = Injector(folder, path=kw.pop("path", None))
    run(command, env=injector.env, **kw)
    made = injector.calls
    if calls == "alloc":
        return sum(made.get(name, 0) for name in ALLOCATIONS)
    if calls == "io":
        return sum(n for name, n in made.items() if name not in ALLOCATIONS)
    return sum(made.get(name, 0) for name in calls.split(","))


def attempt(folder, command, calls, nth, action, **kw):
    """Runs the command with one fault; what it did, and whether the fault was met."""
    names = ("sticky", "path", "bad", "clock")
    injector = Injector(folder, calls, nth, action, **{k: kw.pop(k) for k in names if k in kw})
    done = run(command, check=False, env=injector.env, **kw)
    return SimpleNamespace(status=done.returncode, out=done.stdout, err=done.stderr,
                           hits=injector.hits, label=f"{calls} {nth} {action} {kw or ''}")
