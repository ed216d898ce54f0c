#!/bin/sh
# deps.sh PACKAGE... installs the Debian packages that are missing; needs no network when none is.
set -eu

if ! command -v dpkg-query >/dev/null; then
    echo "deps: this is not a Debian system; if the build fails, install the equivalents of: $*" >&2
    exit 0
fi

missing=
for package in "$@"; do
    case $(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null || true) in
    ii*) ;;
    *) missing="$missing $package" ;;
    esac
done
[ -n "$missing" ] || exit 0

as_root=
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "deps: run this as root, then try again: apt-get install$missing" >&2
        exit 1
    fi
    as_root=sudo
fi

echo "deps: installing$missing"
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 # both variables are lists of words
{
    $as_root apt-get update -q
    $as_root apt-get install -y -q --no-install-recommends $missing
}
