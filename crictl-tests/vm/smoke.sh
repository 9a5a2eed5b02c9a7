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

# Mounts by their points: those of the node's own services may end meanwhile.
mounts() { cut -d ' ' -f 5 /proc/self/mountinfo | grep -v '^/run/credentials/' | sort; }
mounts >/run/mounts.before
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
eventually 120 exited || fail "the client's exit code"
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

metrics=$(cri metricsp -o json) || fail "metricsp"
for resource in cpu memory io; do
    for kind in waiting stalled; do
        echo "$metrics" | grep -q "\"container_pressure_${resource}_${kind}_seconds_total\"" ||
            fail "no pressure of $resource, $kind: $(echo "$metrics" | grep -o 'container_pressure[a-z_]*' | sort -u)"
    done
done
ok "metrics, with the pressure of processor, memory and I/O"

# As a kubelet asks for a pod of hostUsers: false, with limited swap and quality of service for memory.
cri events -o go-template --template '{{.containerEventType}} {{.containerId}}' >/run/events 2>&1 &
listener=$!
told() { grep -qx "$1 $2" /run/events; }
eventually 120 told CONTAINER_STARTED_EVENT "$server" || fail "a new listener is not told what is there: $(cat /run/events)"
ids='[{"host_id": 200000, "container_id": 0, "length": 65536}]'
users="\"security_context\": {\"namespace_options\": {\"pid\": 1, \"userns_options\": {\"mode\": 0, \"uids\": $ids, \"gids\": $ids}}}"
mkdir -p /run/volume
echo data >/run/volume/given
chown 1000:1000 /run/volume/given
cat >/run/mapped-pod.json <<EOF
{"metadata": {"name": "mapped", "namespace": "default", "uid": "mapped-1"}, "log_directory": "/run/logs", "linux": {$users}}
EOF
cat >/run/mapped.json <<EOF
{"metadata": {"name": "mapped"}, "image": {"image": "example.org/busybox:1"}, "log_path": "mapped.log",
 "command": ["sh", "-c", "busybox stat -c '%u:%g' /volume/given; echo made >/volume/made; echo x >/root-file; sleep 1000"],
 "mounts": [{"container_path": "/volume", "host_path": "/run/volume", "uidMappings": $ids, "gidMappings": $ids}],
 "linux": {$users, "resources": {"cpu_period": 100000, "cpu_quota": 20000, "cpu_shares": 204, "oom_score_adj": 999,
  "memory_limit_in_bytes": 67108864, "memory_swap_limit_in_bytes": 100663296,
  "hugepage_limits": [{"page_size": "1GB", "limit": 0}, {"page_size": "2MB", "limit": 0}],
  "unified": {"memory.high": "60395520", "memory.min": "16777216", "memory.oom.group": "1"}}}}
EOF
mapped_pod=$(cri runp /run/mapped-pod.json) || fail "runp with a user namespace"
mapped=$(cri create "$mapped_pod" /run/mapped.json /run/mapped-pod.json) && cri start "$mapped" >/dev/null ||
    fail "start in a user namespace"
map=$(cri exec -s "$mapped" cat /proc/self/uid_map | tr -s ' ')
[ "$map" = " 0 200000 65536" ] || fail "uid_map: $map"
written() { [ -e /run/volume/made ]; }
eventually 120 written || fail "nothing is written into the volume: $(cri logs "$mapped" 2>&1)"
# The log is written beside what the container does.
owner_told() { [ "$(cri logs "$mapped" 2>&1)" = 1000:1000 ]; }
eventually 120 owner_told || fail "the owner in the volume: $(cri logs "$mapped" 2>&1)"
[ "$(stat -c %u:%g /run/volume/made)" = 0:0 ] || fail "the owner outside: $(stat -c %u:%g /run/volume/made)"
ok "a pod has a user namespace, and its volume the same owners on both sides"
cgroup=$(find /sys/fs/cgroup -type d -name "crisp-$mapped.scope")
for want in memory.max=67108864 memory.swap.max=33554432 memory.high=60395520 memory.min=16777216 memory.oom.group=1 \
    'cpu.max=20000 100000'; do
    [ "$(cat "$cgroup/${want%%=*}")" = "${want#*=}" ] || fail "$want: $(cat "$cgroup/${want%%=*}")"
done
hugetlb=$(cat "$cgroup"/hugetlb.1GB.max "$cgroup"/hugetlb.2MB.max 2>/dev/null | sort -u)
# Where the node's cgroups count huge pages, both limits are there, and 0.
if grep -qw hugetlb "$cgroup/cgroup.controllers"; then [ "$hugetlb" = 0 ] || fail "huge pages: $hugetlb"; fi
cri inspect "$mapped" | grep -q '"memorySwapLimitInBytes": "100663296"' || fail "the status of the swap limit"
ok "limits of swap, by file, of huge pages (counted by $(cat "$cgroup/cgroup.controllers"))"
cri stopp "$mapped_pod" >/dev/null && cri rmp "$mapped_pod" >/dev/null || fail "removal of the pod with a user namespace"
for event in CREATED STARTED STOPPED DELETED; do
    eventually 120 told CONTAINER_${event}_EVENT "$mapped" || fail "no event $event: $(cat /run/events)"
    eventually 120 told CONTAINER_${event}_EVENT "$mapped_pod" || fail "no event $event of the pod: $(cat /run/events)"
done
kill $listener
wait $listener || true
ok "events of a container's life and of its pod's"

cat >/run/oom.json <<EOF
{"metadata": {"name": "oom"}, "image": {"image": "example.org/busybox:1"}, "log_path": "oom.log",
 "command": ["dd", "if=/dev/zero", "of=/dev/null", "bs=40M"],
 "linux": {"resources": {"memory_limit_in_bytes": 15728640, "memory_swap_limit_in_bytes": 15728640}}}
EOF
oom=$(cri create "$pod" /run/oom.json /run/pod.json) && cri start "$oom" >/dev/null || fail "start the large one"
killed() { cri inspect "$oom" | grep -q '"reason": "OOMKilled"'; }
eventually 120 killed || fail "OOMKilled: $(cri inspect "$oom" | grep -E 'reason|exitCode')"
ok "out of memory is recognised"

# The default device rules of cgroup v2 are a program in the kernel: a device that nobody listed is refused.
major=$(printf '%d' "0x$(stat -c %t /dev/vda)")
cat >/run/device.json <<EOF
{"metadata": {"name": "device"}, "image": {"image": "example.org/busybox:1"}, "log_path": "device.log",
 "command": ["sh", "-c", "busybox mknod /disk b $major 0; cat /disk >/dev/null"], "linux": {}}
EOF
device=$(cri create "$pod" /run/device.json /run/pod.json) && cri start "$device" >/dev/null || fail "start the third one"
refused() { cri logs "$device" 2>&1 | grep -q "/disk': Operation not permitted"; }
eventually 120 refused || fail "a device of the node: $(cri logs "$device" 2>&1)"
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
new_mounts() { mounts | comm -13 /run/mounts.before -; }
no_mounts() { [ -z "$(new_mounts)" ]; }
eventually 120 no_mounts || fail "mounts are left: $(new_mounts)"
no_shims() { ! grep -l crisp-shim /proc/[0-9]*/comm 2>/dev/null; }
eventually 120 no_shims || fail "processes are left"
no_links() { [ "$(ip -o link | grep -c veth || true)" = "$links" ]; }
eventually 120 no_links || fail "links are left: $(ip -o link)"
no_cgroups() { ! find /sys/fs/cgroup -type d | grep -qE '[0-9a-f]{64}'; }
eventually 120 no_cgroups || fail "cgroups are left: $(find /sys/fs/cgroup -type d -name '*crisp*')"
files() { find /run/crisp/pods /run/crisp/containers /var/lib/crisp/containers -mindepth 1 2>/dev/null || true; }
no_files() { [ -z "$(files)" ]; }
eventually 120 no_files || fail "files are left: $(files)"
ok "nothing is left"
