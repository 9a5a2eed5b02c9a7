#!/bin/sh
# Builds Crisp, starts its daemon with the built-in defaults and runs the example pod; the daemon stays.
#   ./run-example.sh
set -eu
cd "$(dirname "$0")"
. ./crictl-tests/lib.sh

need_root "./run-example.sh"
build_tools
say "building Crisp (cargo build --release; the first time takes 6 to 12 minutes on two cores)"
cargo build --release --locked
PATH="$PWD/target/release:$PATH"

if crisp ps >/dev/null 2>&1; then
    say "a daemon already serves /run/crisp/crisp.sock: it is used"
else
    mkdir -p /run/crisp
    say "starting the daemon: crisp serve (its log: /run/crisp/daemon.log)"
    setsid crisp serve >/run/crisp/ready 2>/run/crisp/daemon.log </dev/null &
    daemon=$!
    until [ -s /run/crisp/ready ]; do
        kill -0 $daemon 2>/dev/null || { cat /run/crisp/daemon.log; die "the daemon ended"; }
        sleep 0.05
    done
    cat /run/crisp/ready
fi

pod=examples/pod.yaml
image=docker.io/library/busybox
say "pulling $image:stable"
if crisp image pull $image:stable; then
    # The example names the image that is made below.
    pod=/run/crisp/example.yaml
    sed "s|$image:local|$image:stable|" examples/pod.yaml >$pod
else
    say "it cannot be had: an image is made of this machine's own busybox instead"
    packages /bin/busybox:busybox-static
    examples/busybox-image.sh /run/crisp/busybox.tar $image:local
    crisp image import /run/crisp/busybox.tar
    rm /run/crisp/busybox.tar
fi
say "running $pod: one container serves, the other fetches from it over localhost"
crisp run $pod

say "the daemon goes on. What next:"
echo "    target/release/crisp ps -a"
echo "    target/release/crisp run --detach $pod; target/release/crisp logs hello"
echo "    crictl --runtime-endpoint unix:///run/crisp/crisp.sock images"
echo "    kill \$(pidof crisp)                                  # ends the daemon; pods run on"
