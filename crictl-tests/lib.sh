# Shared by the scripts at the top level: sourced, with `set -eu`, from the repository's folder.

say() { printf '==> %s\n' "$*"; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

need_root() {
    [ "$(id -u)" = 0 ] || die "root is required (namespaces, mounts, cgroups): sudo $1"
}

# Runs what fetches from the network: what fails there for a moment is asked again.
fetch() {
    for try in 1 2 3; do
        "$@" && return
        say "try $try failed: $*"
        sleep 15
    done
    "$@"
}

# packages FILE:PACKAGE…: installs the packages whose file is missing.
packages() {
    missing=""
    for pair; do
        [ -e "${pair%%:*}" ] || missing="$missing ${pair#*:}"
    done
    [ -n "$missing" ] || return 0
    command -v apt-get >/dev/null || die "please install:$missing"
    say "apt-get install$missing"
    export DEBIAN_FRONTEND=noninteractive
    # Another apt of this machine is waited for.
    lock=-oDPkg::Lock::Timeout=600
    fetch apt-get $lock update -qq
    # shellcheck disable=SC2086
    fetch apt-get $lock install -y -qq --no-install-recommends $missing >/dev/null
}

# Under sudo root's PATH may lack the cargo that rustup gave the caller. Their toolchains are used; the registry is root's own, so
# that no file in their folder becomes root's.
callers_cargo() {
    home=$(getent passwd "${SUDO_USER:-root}" | cut -d: -f6)
    [ -x "$home/.cargo/bin/cargo" ] || return 0
    PATH="$home/.cargo/bin:$PATH"
    RUSTUP_HOME="${RUSTUP_HOME:-$home/.rustup}"
    export PATH RUSTUP_HOME
}

# What the build needs: a C compiler that links, and the pinned Rust toolchain with its static target.
build_tools() {
    packages /usr/bin/cc:gcc /usr/include/stdio.h:libc6-dev /usr/include/seccomp.h:libseccomp-dev /usr/bin/pkg-config:pkg-config
    command -v cargo >/dev/null || callers_cargo
    command -v cargo >/dev/null || die "cargo is missing: install Rust with rustup (https://rustup.rs)"
    if command -v rustup >/dev/null; then
        target="$(uname -m)-unknown-linux-musl"
        if ! rustup target list --installed | grep -qx "$target"; then
            say "rustup target add $target"
            rustup target add "$target" || say "it cannot be had: the supervisor is linked with glibc and is larger"
        fi
    fi
}
