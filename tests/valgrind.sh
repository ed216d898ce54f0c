#!/bin/sh
# Runs the tools under valgrind on a small model: no read of uninitialised memory, none of it in what
# is written (an image, an extracted tree, the bytes of a mount), no leak.
# Arguments: options for mkhyperfs, a run for each. BUILD names the build folder.
set -eu
build=${BUILD:-build}
work=$(mktemp -d)
trap 'fusermount3 -u -q -z "$work/mnt" 2> /dev/null || :; rm -rf "$work"' EXIT

check() {
    valgrind --quiet --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite \
        --log-file="$work/valgrind.%p" "$@" > "$work/out" 2>&1 || {
        status=$?
        cat "$work"/valgrind.* "$work/out" >&2
        echo "valgrind: exit status $status: $*" >&2
        exit 1
    }
    echo "valgrind: clean: ${1##*/} ${2:-}"
    rm -f "$work"/valgrind.*
}

mkdir "$work/source" "$work/mnt"
"${PYTHON:-build/venv/bin/python}" -c '
import pathlib, sys
sys.path.insert(0, "tests")
import samples
samples.tiny(pathlib.Path(sys.argv[1]))' "$work/source/tiny"

[ $# -gt 0 ] || set -- --quality=small --lossless
for mode in "$@"; do
    check "$build/mkhyperfs" "$mode" -j2 -f "$work/source/tiny" "$work/image"
    check "$build/fsck.hyperfs" -j2 "$work/image"
    check "$build/fsck.hyperfs" -j2 --against="$work/source/tiny" "$work/image"
    check "$build/fsck.hyperfs" -j2 --extract="$work/tree" "$work/image"
    check "$build/dump.hyperfs" --json --files --tensors "$work/image"
    # The daemon's own end is waited for: it is there that leaks are found.
    check "$build/hyperfs" -f "$work/image" "$work/mnt" &
    daemon=$!
    until mountpoint -q "$work/mnt"; do
        kill -0 "$daemon"
    done
    diff -r "$work/tree" "$work/mnt"
    getfattr -dR "$work/mnt" > "$work/attributes"
    fusermount3 -u "$work/mnt"
    wait "$daemon"
    rm -rf "$work/tree"
done
echo "valgrind: no error, no leak"
