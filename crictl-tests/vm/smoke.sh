#!/bin/sh
# Runs in the machine: a pod from an imported image, on cgroup v2 with systemd. Each line that begins with "ok" is a check.
set -eu
. /share/node.sh

[ -e /sys/fs/cgroup/cgroup.controllers ] || fail "no cgroup v2"
[ -d /run/systemd/system ] || fail "no systemd"
serve
ok "the daemon serves: $(cat /run/daemon.out)"

crisp image import /share/busybox.tar >/dev/null || fail "image import"
cri images | grep -q example.org/busybox || fail "image list"
ok "an image is imported"

mounts=$(grep -c . /proc/self/mountinfo)
links=$(ip -o link | grep -c veth || true)
cat >/run/pod.json <<EOF
{"metadata": {"name": "smoke", "namespace": "default", "uid": "smoke-1"}, "log_directory": "/run/logs", "linux": {}}
EOF
cat >/run/server.json <<EOF
{"metadata": {"name": "server"}, "image": {"image": "example.org/busybox:1"}, "log_path": "server.log",
 "command": ["sh", "-c", "mkdir /www; echo pong >/www/ping; echo serving; exec httpd -f -p 8080 -h /www"],
 "linux": {"resources": {"memory_limit_in_bytes": 67108864, "cpu_quota": 50000, "cpu_period": 100000}}}
EOF
cat >/run/client.json <<EOF
{"metadata": {"name": "client"}, "image": {"image": "example.org/busybox:1"}, "log_path": "client.log",
 "command": ["sh", "-c", "until wget -q -O - http://127.0.0.1:8080/ping; do usleep 100000; done; exit 7"], "linux": {}}
EOF
pod=$(cri runp /run/pod.json) || fail "runp"
server=$(cri create "$pod" /run/server.json /run/pod.json) || fail "create"
cri start "$server" >/dev/null || fail "start"
client=$(cri create "$pod" /run/client.json /run/pod.json) || fail "create the second container"
cri start "$client" >/dev/null || fail "start the second container"
ok "a pod of two containers runs"

exited() { cri inspect "$client" | grep -q '"exitCode": 7'; }
eventually 30 exited || fail "the client's exit code"
[ "$(cri logs "$client")" = pong ] || fail "the client's log"
ok "they talk over localhost; exit code and log are right"

[ "$(cri exec -s "$server" echo hi)" = hi ] || fail "exec"
ok "exec works"
cgroup=$(find /sys/fs/cgroup -type d -name "crisp-$server.scope")
[ -n "$cgroup" ] || fail "the container's cgroup: $(find /sys/fs/cgroup -type d -name '*crisp*')"
limit=$(cat "$cgroup/memory.max")
[ "$limit" = 67108864 ] || fail "memory.max is $limit"
[ "$(cat "$cgroup/cpu.max")" = "50000 100000" ] || fail "cpu.max"
cri update --memory 33554432 "$server" >/dev/null || fail "update"
[ "$(cat "$cgroup/memory.max")" = 33554432 ] || fail "memory.max after the update"
ok "limits reach the kernel"
cri stats -o json "$server" | grep -q workingSetBytes || fail "stats"
cri statsp -o json "$pod" | grep -q '"name": "eth0"' || fail "statsp"
ok "statistics"

cat >/run/oom.json <<EOF
{"metadata": {"name": "oom"}, "image": {"image": "example.org/busybox:1"}, "log_path": "oom.log",
 "command": ["dd", "if=/dev/zero", "of=/dev/null", "bs=40M"],
 "linux": {"resources": {"memory_limit_in_bytes": 15728640, "memory_swap_limit_in_bytes": 15728640}}}
EOF
oom=$(cri create "$pod" /run/oom.json /run/pod.json) && cri start "$oom" >/dev/null || fail "start the large one"
killed() { cri inspect "$oom" | grep -q '"reason": "OOMKilled"'; }
eventually 30 killed || fail "OOMKilled: $(cri inspect "$oom" | grep -E 'reason|exitCode')"
ok "out of memory is recognised"

# The default device rules of cgroup v2 are a program in the kernel: a device that nobody listed is refused.
major=$(printf '%d' "0x$(stat -c %t /dev/vda)")
cat >/run/device.json <<EOF
{"metadata": {"name": "device"}, "image": {"image": "example.org/busybox:1"}, "log_path": "device.log",
 "command": ["sh", "-c", "busybox mknod /disk b $major 0; cat /disk >/dev/null"], "linux": {}}
EOF
device=$(cri create "$pod" /run/device.json /run/pod.json) && cri start "$device" >/dev/null || fail "start the third one"
refused() { cri logs "$device" 2>&1 | grep -q "/disk': Operation not permitted"; }
eventually 30 refused || fail "a device of the node: $(cri logs "$device" 2>&1)"
ok "devices of the node are refused"

kill -KILL $daemon
wait $daemon || true
serve
[ "$(cri exec -s "$server" echo again)" = again ] || fail "exec after a restart"
ok "pods survive the daemon"

cri stopp "$pod" >/dev/null || fail "stopp"
cri rmp "$pod" >/dev/null || fail "rmp"
kill -TERM $daemon
wait $daemon || fail "SIGTERM ended the daemon with $?"
same_mounts() { [ "$(grep -c . /proc/self/mountinfo)" = "$mounts" ]; }
eventually 10 same_mounts || fail "mounts are left: $(grep crisp /proc/self/mountinfo)"
no_shims() { ! grep -l crisp-shim /proc/[0-9]*/comm 2>/dev/null; }
eventually 10 no_shims || fail "processes are left"
no_links() { [ "$(ip -o link | grep -c veth || true)" = "$links" ]; }
eventually 10 no_links || fail "links are left: $(ip -o link)"
no_cgroups() { ! find /sys/fs/cgroup -type d | grep -qE '[0-9a-f]{64}'; }
eventually 10 no_cgroups || fail "cgroups are left: $(find /sys/fs/cgroup -type d -name '*crisp*')"
left=$(find /run/crisp/pods /run/crisp/containers /var/lib/crisp/containers -mindepth 1 2>/dev/null || true)
[ -z "$left" ] || fail "files are left: $left"
ok "nothing is left"
