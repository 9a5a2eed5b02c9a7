#!/bin/sh
# Runs in the machine: containers as scopes of systemd, with the daemon as a service. Each line that begins with "ok" is a check.
set -eu
. /share/node.sh
unit() { systemctl show "$1" -p "$2" --value; }
fail() {
    echo "FAILED: $*"
    journalctl -u crisp --no-pager -n 60 -o cat
    systemctl stop crisp
    exit 1
}
slice=kubepods-burstable-pod1234_56.slice
dir=/sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice/$slice
ready() { crictl --config /dev/null --runtime-endpoint $endpoint version >/dev/null 2>&1; }
inspected() { cri inspect "$1" | grep -q "$2"; }
milliseconds() { echo $((($2 - $1) / 1000000)); } # of nanoseconds: from, to

sed 's,/usr/local/bin/crisp serve,/share/crisp serve --log info,' /share/crisp.service >/run/systemd/system/crisp.service
systemctl daemon-reload
systemctl start crisp
eventually 60 ready || fail "the service does not get ready"
cri info | grep -q '"cgroupDriver": "SYSTEMD"' || fail "the driver: $(cri info | grep -i cgroup)"
ok "the service runs, the driver is systemd"
crisp image import /share/busybox.tar >/dev/null || fail "image import"

# The kubelet's part.
systemctl start $slice
pod_config() { # name cgroup_parent
    cat <<EOF
{"metadata": {"name": "$1", "namespace": "default", "uid": "$1"}, "log_directory": "/run/logs/$1",
 "linux": {"cgroup_parent": "$2", "security_context": {"namespace_options": {"pid": 1}}}}
EOF
}
container_config() { # name command resources
    cat <<EOF
{"metadata": {"name": "$1"}, "image": {"image": "example.org/busybox:1"}, "log_path": "$1.log",
 "command": ["sh", "-c", "$2"], "linux": {"resources": $3}}
EOF
}
parent=/kubepods.slice/kubepods-burstable.slice/$slice
pod_config pod $parent >/run/pod.json
for bad in /kubepods/pod1 /a--b.slice /kubepods.slice/pod1; do
    pod_config bad $bad >/run/bad.json
    said=$(cri runp /run/bad.json 2>&1) && fail "the parent $bad is taken"
    echo "$said" | grep -q InvalidArgument || fail "the parent $bad: $said"
done
ok "parents that are no slice are invalid arguments"

pod=$(cri runp /run/pod.json) || fail "runp"
container_config server "trap 'exit 3' TERM; while :; do sleep 1; done" '{"cpu_shares": 102, "cpu_quota": 12500, "cpu_period": 100000, "memory_limit_in_bytes": 67108864, "memory_swap_limit_in_bytes": 67108864, "oom_score_adj": 500, "cpuset_cpus": "0", "hugepage_limits": [{"page_size": "2MB", "limit": 0}], "unified": {"memory.high": "60000000", "memory.oom.group": "1"}}' >/run/server.json
server=$(cri create "$pod" /run/server.json /run/pod.json) || fail "create"
scope=crisp-$server.scope
cri start "$server" >/dev/null || fail "start"
cgroup=$dir/$scope
[ -d "$cgroup" ] || fail "the scope's cgroup: $(find /sys/fs/cgroup -name "*$server*")"
[ "$(unit "$scope" Slice)" = $slice ] || fail "slice $(unit "$scope" Slice)"
[ "$(unit "$scope" Delegate)" = yes ] || fail "not delegated"
properties() {
    for name in MemoryMax MemorySwapMax MemoryHigh CPUWeight CPUQuotaPerSecUSec CPUQuotaPeriodUSec TasksMax AllowedCPUs DevicePolicy; do
        printf '%s=%s ' $name "$(unit "$scope" $name)"
    done
}
want="MemoryMax=67108864 MemorySwapMax=0 MemoryHigh=60000000 CPUWeight=17 CPUQuotaPerSecUSec=130ms CPUQuotaPeriodUSec=100ms TasksMax=infinity AllowedCPUs=0 DevicePolicy=auto "
[ "$(properties)" = "$want" ] || fail "properties: $(properties)"
files() {
    for name in memory.max memory.swap.max memory.high memory.oom.group cpu.weight cpu.max pids.max cpuset.cpus hugetlb.2MB.max; do
        printf '%s=%s ' $name "$(cat "$cgroup/$name" 2>/dev/null || echo none)"
    done
}
before=$(files)
case $before in
"memory.max=67108864 memory.swap.max=0 memory.high=59998208 memory.oom.group=1 cpu.weight=17 cpu.max=12500 100000 pids.max=max cpuset.cpus=0 hugetlb.2MB.max="*) ;;
*) fail "limits: $before" ;;
esac
ok "the scope has its limits: $before"
grep -qx "0::$parent/$scope" "/proc/$(cri inspect "$server" | sed -n 's/.*"pid": \([0-9]*\),/\1/p' | head -n 1)/cgroup" || fail "init is elsewhere"
holder=$(cat "$cgroup/hold/cgroup.procs")
[ "$(cat "/proc/$holder/oom_score_adj")" = -1000 ] || fail "the holder's oom_score_adj"
ok "the holder has $(sed -n 's/^Pss: *//p' "/proc/$holder/smaps_rollup") of memory"
shims=/sys/fs/cgroup/system.slice/crisp-shims.scope
grep -qx "$(pgrep -f "crisp-shim serve.*$pod")" $shims/cgroup.procs || fail "the shim is not in its scope"
ok "the shim is in crisp-shims.scope"

major=$(printf '%d' "0x$(stat -c %t /dev/vda)")
cri exec -s "$server" busybox mknod /disk b "$major" 0 || fail "mknod"
devices() {
    cri exec -s "$server" sh -c 'cat /disk >/dev/null' 2>&1 | grep -q 'not permitted' || fail "$1: the node's disk is open"
    cri exec -s "$server" sh -c 'echo >/dev/null; busybox head -c 1 /dev/zero' >/dev/null || fail "$1: /dev/null is closed"
}
devices "at first"
for _ in 1 2 3 4 5; do systemctl daemon-reload; done
[ "$(files)" = "$before" ] || echo "note: after daemon-reload: $(files)"
devices "after daemon-reload"
systemctl daemon-reexec
[ "$(unit "$scope" ActiveState)" = active ] || fail "the scope after daemon-reexec"
# A quota of fractions of a percent is rounded up by versions that store whole ones.
[ "$(files | sed 's/cpu.max=13000/cpu.max=12500/')" = "$before" ] || fail "after daemon-reexec: $(files)"
devices "after daemon-reexec"
ok "daemon-reload and daemon-reexec leave limits and devices alone"

cri update --memory 33554432 --cpu-quota 50000 "$server" >/dev/null || fail "update"
[ "$(unit "$scope" MemoryMax)" = 33554432 ] || fail "MemoryMax after the update"
[ "$(cat "$cgroup/memory.max") $(cat "$cgroup/cpu.max")" = "33554432 50000 100000" ] || fail "$(files)"
inspected "$server" '"memoryLimitInBytes": "33554432"' || fail "status: $(cri inspect "$server" | grep -i memory)"
systemctl daemon-reload
[ "$(cat "$cgroup/memory.max") $(cat "$cgroup/cpu.max")" = "33554432 50000 100000" ] || fail "$(files)"
before=$(files)
said=$(cri update --memory 4096 "$server" 2>&1) && fail "a limit below use is taken"
echo "$said" | grep -q 4096 || fail "the refusal: $said"
refusal=$(echo "$said" | sed -n "s/.*desc = //p" | tail -n 1)
[ "$(files)" = "$before" ] && [ "$(unit "$scope" MemoryMax)" = 33554432 ] || fail "after a refusal: $(files)"
said=$(cri update --cpuset-cpus 999 --memory 50331648 "$server" 2>&1) && fail "a CPU that is not there is taken"
[ "$(files)" = "$before" ] && [ "$(unit "$scope" MemoryMax)" = 33554432 ] || fail "after a refusal: $(files) $(properties)"
ok "updates hold, refusals leave everything: $refusal"

oom_resources='{"memory_limit_in_bytes": 15728640, "memory_swap_limit_in_bytes": 15728640'
for n in 1 2 3 4 5 6; do
    group=$([ $((n % 2)) = 0 ] && echo ', "unified": {"memory.oom.group": "1"}' || true)
    container_config oom$n 'dd if=/dev/zero of=/dev/null bs=40M' "$oom_resources$group}" >/run/oom.json
    oom=$(cri create "$pod" /run/oom.json /run/pod.json) && cri start "$oom" >/dev/null || fail "start the large one"
    eventually 30 inspected "$oom" CONTAINER_EXITED || fail "the large one lives"
    inspected "$oom" '"reason": "OOMKilled"' || fail "OOM $n: $(cri inspect "$oom" | grep -E 'reason|exitCode')"
done
ok "six of six are OOMKilled, with and without memory.oom.group"

container_config seven 'exit 7' '{}' >/run/seven.json
seven=$(cri create "$pod" /run/seven.json /run/pod.json) && cri start "$seven" >/dev/null || fail "start"
eventually 30 inspected "$seven" '"exitCode": 7' || fail "exit code"
created=$(cri create "$pod" /run/server.json /run/pod.json 2>&1) && fail "a name was used twice"
container_config created 'exit 0' '{}' >/run/created.json
created=$(cri create "$pod" /run/created.json /run/pod.json) || fail "create"
eventually 20 systemctl is-active -q "crisp-$created.scope" || fail "no scope is made ahead"
cri rm "$created" >/dev/null || fail "rm"
container_config updated 'sleep 1000' '{"memory_limit_in_bytes": 67108864}' >/run/updated.json
updated=$(cri create "$pod" /run/updated.json /run/pod.json) && cri update --memory 50331648 "$updated" >/dev/null
cri start "$updated" >/dev/null || fail "start of an updated one"
[ "$(cat "$dir/crisp-$updated.scope/memory.max") $(unit "crisp-$updated.scope" MemoryMax)" = "50331648 50331648" ] || fail "updated before its start"
gone() { ! systemctl list-units --all --plain --no-legend 'crisp-*.scope' | grep -q "$1"; }
eventually 20 gone "$created" || fail "the scope of a removed container"
eventually 20 gone "$seven" || fail "the scope of an ended container"
ok "exit codes are right; what ends or is removed leaves no scope"

systemctl restart crisp
eventually 60 ready || fail "the service after its restart"
[ "$(cri exec -s "$server" echo again)" = again ] || fail "exec after a restart"
systemctl kill -s KILL crisp
eventually 60 ready || fail "the service after SIGKILL"
[ "$(cri exec -s "$server" echo again)" = again ] || fail "exec after SIGKILL"
[ "$(unit crisp-shims.scope ActiveState)" = active ] || fail "the shims' scope"
cri update --memory 50331648 "$server" >/dev/null || fail "update after a restart"
cri stop -t 10 "$server" >/dev/null || fail "stop"
inspected "$server" '"exitCode": 3' || fail "exit code after a restart"
ok "pods survive the service's restart and SIGKILL"

for handler in runc crun; do
    pod_config $handler $parent >/run/$handler.json
    other=$(cri runp --runtime $handler /run/$handler.json) || fail "$handler: runp"
    container_config one 'sleep 1000' '{"memory_limit_in_bytes": 67108864, "cpu_shares": 102}' >/run/one.json
    one=$(cri create "$other" /run/one.json /run/$handler.json) && cri start "$one" >/dev/null || fail "$handler: start"
    [ "$(unit "crisp-$one.scope" MemoryMax) $(unit "crisp-$one.scope" Slice)" = "67108864 $slice" ] || fail "$handler: scope"
    [ "$(cri exec -s "$one" echo hi)" = hi ] || fail "$handler: exec"
    cri update --memory 50331648 "$one" >/dev/null || fail "$handler: update"
    [ "$(cat "$dir/crisp-$one.scope/memory.max") $(unit "crisp-$one.scope" MemoryMax)" = "50331648 50331648" ] || fail "$handler: memory.max"
    for n in 1 2 3; do
        container_config oom$n 'dd if=/dev/zero of=/dev/null bs=40M' "$oom_resources}" >/run/oom.json
        oom=$(cri create "$other" /run/oom.json /run/$handler.json) && cri start "$oom" >/dev/null || fail "$handler: start the large one"
        eventually 30 inspected "$oom" CONTAINER_EXITED || fail "$handler: the large one lives"
        inspected "$oom" '"reason": "OOMKilled"' || fail "$handler: OOM $n: $(cri inspect "$oom" | grep -E 'reason|exitCode')"
    done
    cri stopp "$other" >/dev/null && cri rmp "$other" >/dev/null || fail "$handler: removal"
    ok "$handler asks systemd too"
done

# A pod that shares its PID namespace and names no parent: a slice and a PID 1 of its own.
cat >/run/shared.json <<EOF
{"metadata": {"name": "shared", "namespace": "default", "uid": "shared"}, "log_directory": "/run/logs/shared", "linux": {}}
EOF
shared=$(cri runp /run/shared.json) || fail "runp without a parent"
own=/sys/fs/cgroup/system.slice/system-crisp.slice/system-crisp-$shared.slice
[ -d "$own/crisp-$shared.scope" ] || fail "the pod's own slice: $(find /sys/fs/cgroup -name "*$shared*")"
container_config one 'sleep 1000' '{}' >/run/one.json
one=$(cri create "$shared" /run/one.json /run/shared.json) && cri start "$one" >/dev/null || fail "start in a slice of its own"
[ -d "$own/crisp-$one.scope" ] || fail "the container's scope"
cri stopp "$shared" >/dev/null && cri rmp "$shared" >/dev/null || fail "removal"
[ ! -e "$own" ] || fail "the pod's slice is left"
ok "a pod without a parent has a slice of its own"

began=$(date +%s%N)
many=""
for n in $(seq 20); do
    (
        pod_config many$n $parent >/run/many$n.json
        p=$(cri runp /run/many$n.json) && echo "$p" >/run/many$n.pod || exit 1
        c=$(cri create "$p" /run/updated.json /run/many$n.json) && cri start "$c" >/dev/null || exit 1
    ) &
    many="$many $!"
done
for job in $many; do wait "$job" || fail "one of twenty pods"; done
ended=$(date +%s%N)
[ "$(find $dir -maxdepth 1 -name 'crisp-*.scope' | wc -l)" -ge 20 ] || fail "twenty scopes"
ok "twenty pods at once in $(milliseconds "$began" "$ended") ms"
cri rmp -f $(cat /run/many*.pod) >/dev/null || fail "removal of twenty"
cri stopp "$pod" >/dev/null && cri rmp "$pod" >/dev/null || fail "removal"
only_ours() { [ -z "$(find $dir -mindepth 1 -type d)" ]; }
eventually 20 only_ours || fail "cgroups are left: $(find $dir -mindepth 1 -type d)"
no_scopes() { ! systemctl list-units --all --plain --no-legend 'crisp-*.scope' | grep -qv crisp-shims; }
eventually 20 no_scopes || fail "units are left: $(systemctl list-units --all 'crisp-*')"
systemctl stop crisp
no_unit() { [ -z "$(systemctl list-units --all --plain --no-legend 'crisp-*.scope')" ]; }
eventually 20 no_unit || fail "units are left: $(systemctl list-units --all 'crisp-*')"
no_processes() { ! grep -lE 'crisp-(shim|hold)' /proc/[0-9]*/comm 2>/dev/null; }
eventually 10 no_processes || fail "processes are left"
ok "nothing is left"

# What the driver costs: the same pods under both, one after the other.
crictl-tests --help >/dev/null || fail "the tests' program does not run here"
for driver in cgroupfs systemd; do
    mkdir -p /etc/crisp
    printf 'cgroup_driver = "%s"\n' $driver >/etc/crisp/config.toml
    systemctl start crisp
    eventually 60 ready || fail "the service with $driver"
    crisp check | grep 'cgroup driver' || fail "crisp check"
    crictl-tests times --image example.org/busybox:1 --title "cgroup driver $driver (emulated)" || fail "$driver: times"
    systemctl stop crisp
done
rm -r /etc/crisp
