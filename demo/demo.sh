#!/usr/bin/env bash
# The whole way in a few seconds: a model directory becomes an image, the image a mount, and an
# unmodified loader writes text from it. `make demo` builds what this needs and runs it.
set -euo pipefail
cd "$(dirname "$0")/.."

model=models/demo
image=build/demo/demo.hyperfs
mnt=build/demo/mnt
python=build/venv/bin/python
prompt='A file system is'
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error # no network, no chatter

bold='' plain=''
if [ -t 1 ]; then
    bold=$'\033[1m' plain=$'\033[0m'
fi

step() {
    printf '\n%s%s%s\n' "$bold" "$1" "$plain"
}

# Shows a command, runs it and indents what it says.
show() {
    local word
    printf '   $'
    for word; do
        case $word in
        *' '*) printf " '%s'" "$word" ;;
        *) printf ' %s' "$word" ;;
        esac
    done
    echo
    "$@" 2>&1 | sed 's/^/   /'
}

unmount() {
    if mountpoint -q "$mnt"; then
        fusermount3 -u "$mnt" || fusermount3 -u -z "$mnt"
    fi
}

mkdir -p "$mnt"
unmount # what a demo that was killed has left
trap unmount EXIT
trap 'exit 130' INT TERM

echo "${bold}hyperfs stores AI models small and mounts them as plain files.${plain}"
echo "The model of this demo is tiny, 3.4 million weights: it writes words, not sense."

step "1. A model directory becomes one image."
show build/mkhyperfs -f "$model" "$image" --quality small

step "2. The image is mounted: the same files, with the same names and sizes."
show build/hyperfs "$image" "$mnt"
show ls -lh "$mnt"

step "3. mlx-lm, which knows nothing of hyperfs, loads the model from the mount and writes."
show "$python" -m mlx_lm generate --model "$mnt" --prompt "$prompt" \
    --max-tokens 32 --temp 0.4 --seed 1 --verbose False

step "4. What the loss does to the model's predictions of demo/text.txt."
show "$python" demo/quality.py "$model" "$mnt" demo/text.txt

unmount
trap - EXIT
step "Done; unmounted. The image is $image. Next: README.md, or build/mkhyperfs --help."
