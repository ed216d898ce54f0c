#!/bin/sh
# ports.sh ARCH...: builds mkhyperfs, fsck.hyperfs and dump.hyperfs for other Debian architectures
# (s390x, arm64) into build/ARCH, with Debian's cross compilers; what is missing is installed.
set -eu

for arch in "$@"; do
    case $arch in
    s390x) machine=s390x-linux-gnu ;;
    arm64) machine=aarch64-linux-gnu ;;
    *)
        echo "ports: $arch: only s390x and arm64 are known" >&2
        exit 2
        ;;
    esac
    libraries="libzstd-dev:$arch libxxhash-dev:$arch nettle-dev:$arch libjansson-dev:$arch"
    if ! dpkg --print-foreign-architectures | grep -qx "$arch"; then
        if [ "$(id -u)" -ne 0 ]; then
            echo "ports: run this as root, then try again: dpkg --add-architecture $arch" >&2
            exit 1
        fi
        dpkg --add-architecture "$arch"
        apt-get update -q
    fi
    # shellcheck disable=SC2086 # a list of words
    scripts/deps.sh qemu-user-static "gcc-$machine" "libc6-dev-$arch-cross" $libraries
    PKG_CONFIG_LIBDIR=/usr/lib/$machine/pkgconfig:/usr/share/pkgconfig \
        make --no-print-directory B="build/$arch" CC="$machine-gcc" \
        PKGS="libzstd jansson libxxhash nettle" \
        "build/$arch/mkhyperfs" "build/$arch/fsck.hyperfs" "build/$arch/dump.hyperfs"
done
