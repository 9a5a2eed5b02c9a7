#!/bin/sh
# Runs in the machine: critest against a registry of our own that stands for all. Arguments: those of ginkgo, --, those of critest.
set -eu
. /share/node.sh
say() { echo "$(date +%T) $*"; }

mkdir -p /run/certs.d/_default /etc/crisp /run/registry
cat >/run/registry/config.yml <<EOF
version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: /share/store}, delete: {enabled: false}}
http: {addr: "127.0.0.1:5000"}
EOF
cat >/run/certs.d/_default/hosts.toml <<EOF
server = "http://127.0.0.1:5000"
[host."http://127.0.0.1:5000"]
  capabilities = ["pull", "resolve"]
EOF
cat /share/config.toml >/etc/crisp/config.toml
load_selinux_policy
# The suite calls it for apparmor_parser.
printf '#!/bin/sh\nexec "$@"\n' >/usr/local/bin/sudo
chmod 755 /usr/local/bin/sudo

docker-registry serve /run/registry/config.yml >/run/registry/log 2>&1 &
registry_answers() { python3 -c 'import socket; socket.create_connection(("127.0.0.1", 5000))' 2>/dev/null; }
eventually 60 registry_answers || fail "the registry: $(cat /run/registry/log)"
serve
say "$(cat /run/daemon.out); kernel $(uname -r), modules $(cat /sys/kernel/security/lsm)"
say "cgroup driver $(cri info | sed -n 's/.*"cgroupDriver": "\([A-Z]*\)".*/\1/p')"

: >/run/crictl.yaml
own=
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    own="$own '$1'"
    shift
done
[ $# = 0 ] || shift
eval "ginkgo $own --json-report critest.json --output-dir /share/out /share/critest.test -- \"\$@\" \
    -runtime-endpoint=$endpoint -image-endpoint=$endpoint -config=/run/crictl.yaml" >/share/out/critest.log 2>&1 || true
say "critest ended"
cp /run/daemon.log /share/out/daemon.log
[ -s /share/out/critest.json ] || fail "no report: $(tail -n 40 /share/out/critest.log)"

for pod in $(cri pods -q); do
    cri stopp "$pod" >/dev/null && cri rmp "$pod" >/dev/null || fail "remove pod $pod"
done
kill -TERM $daemon
wait $daemon || fail "SIGTERM ended the daemon with $?"
no_shims() { ! grep -l crisp-shim /proc/[0-9]*/comm 2>/dev/null; }
eventually 10 no_shims || fail "processes are left"
left=$(find /run/crisp/pods /run/crisp/containers /var/lib/crisp/containers -mindepth 1 2>/dev/null || true)
[ -z "$left" ] || fail "files are left: $left"
say "nothing is left"
