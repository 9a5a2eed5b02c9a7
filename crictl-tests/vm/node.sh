# Sourced by the scripts of the machine: a daemon with its tools on the path.
export PATH="/share:$PATH"
endpoint=unix:///run/crisp/crisp.sock
cri() { crictl --config /dev/null --timeout 300s --runtime-endpoint $endpoint --image-endpoint $endpoint "$@"; }
ok() { echo "ok $*"; }
fail() {
    echo "FAILED: $*"
    tail -n 60 /run/daemon.log
    # Another script may come after this one.
    [ -z "${daemon-}" ] || kill -KILL "$daemon" 2>/dev/null || true
    exit 1
}
# Asks until the command succeeds, at most this many seconds.
eventually() {
    limit=$(($(date +%s) + $1))
    shift
    until "$@"; do
        [ "$(date +%s)" -lt $limit ] || return 1
    done
}
serve() {
    : >/run/daemon.out
    crisp serve >/run/daemon.out 2>>/run/daemon.log &
    daemon=$!
    eventually 300 test -s /run/daemon.out || fail "the daemon does not get ready"
}
# The kernel's SELinux needs a policy, which no init has loaded: the node's root is not labelled.
load_selinux_policy() {
    [ -e /sys/fs/selinux ] || return 0
    mountpoint -q /sys/fs/selinux || mount -t selinuxfs selinuxfs /sys/fs/selinux
    load_policy -i
    mkdir -p /etc/crisp
    printf '[security]\nselinux = true\n' >>/etc/crisp/config.toml
}
