#!/bin/sh
# Runs in the machine: checkpoints a container that counts, and restores it. Each line that begins with "ok" is a check.
set -eu
. /share/node.sh

criu=${CRIU:-$(command -v criu)} || fail "no criu in the machine"
# With /run/slow, processes stand for eight seconds when they are written.
cat >/run/criu-slow <<END
#!/bin/sh
[ -e /run/slow ] && [ "\$1" = dump ] && set -- "\$@" --action-script /run/stand
exec $criu "\$@"
END
cat >/run/stand <<'END'
#!/bin/sh
[ "$CRTOOLS_SCRIPT_ACTION" != post-dump ] || exec sleep 8
END
chmod +x /run/criu-slow /run/stand
mkdir -p /etc/crisp
printf '[checkpoint]\ncriu = "/run/criu-slow"\n' >>/etc/crisp/config.toml
serve
crisp image import /share/busybox.tar >/dev/null || fail "image import"
mounts=$(grep -c . /proc/self/mountinfo)
archives=/run/archives
mkdir -p $archives /run/data
image=example.org/busybox:1

pod() {
    cat >"/run/$1.json" <<END
{"metadata": {"name": "$1", "namespace": "default", "uid": "$1-1"}, "log_directory": "/run/logs/$1",
 "linux": {"security_context": {"namespace_options": {"pid": 1}}}}
END
    cri runp "/run/$1.json" || fail "runp $1"
}
# A container of pod $1 from image $2; "$3" is put into the configuration.
create() {
    cat >"/run/$1-c.json" <<END
{"metadata": {"name": "count"}, "image": {"image": "$2"}, "log_path": "count.log",
 "command": ["sh", "-c", "trap 'exit 7' TERM; n=0; busybox rm /bin/wget; while :; do n=\$((n+1)); echo \$n; echo \$n >/count; usleep 100000; done"],
 "mounts": [{"container_path": "/data", "host_path": "/run/data"}],
 "linux": {"resources": {"memory_limit_in_bytes": 67108864}, "security_context": {"namespace_options": {"pid": 1}, "seccomp": {"profile_type": ${profile:-0}}, "no_new_privs": true,
  "masked_paths": ["/proc/kcore", "/proc/keys", "/proc/acpi", "/sys/firmware"], "readonly_paths": ["/proc/sys", "/proc/bus"]${3:-}}}}
END
    cri create "$(cat "/run/$1.id")" "/run/$1-c.json" "/run/$1.json"
}
lines() { grep -c . "/run/logs/$1/count.log" 2>/dev/null || echo 0; }
last() { tail -n 1 "/run/logs/$1/count.log" | awk '{print $NF}'; }
first() { head -n 1 "/run/logs/$1/count.log" | awk '{print $NF}'; }
reaches() { [ "$(last "$1")" -ge "$2" ] 2>/dev/null; }
# Three steps on: it counts.
counts() {
    before=$(last "$1")
    eventually 30 reaches "$1" $((before + 3)) || fail "$1 does not count: $(last "$1") after $before"
}
inspect() { cri inspect "$1"; }

pod one >/run/one.id
source=$(create one $image) || fail "create"
cri start "$source" >/dev/null || fail "start"
eventually 30 reaches one 20 || fail "it does not count"
began=$(date +%s%N)
cri checkpoint --export=$archives/c.tar "$source" >/dev/null || fail "checkpoint"
took=$((($(date +%s%N) - began) / 1000000))
ok "a container is checkpointed in $took ms, into $(stat -c %s $archives/c.tar) bytes"
[ "$(stat -c %a $archives/c.tar)" = 600 ] || fail "mode of the archive"
counts one
ok "it goes on counting"
for name in config.dump spec.dump status.dump network.status deleted.files rootfs-diff.tar dump.log stats-dump container.log \
    checkpoint/inventory.img checkpoint/descriptors.json; do
    tar -tf $archives/c.tar | grep -qx "$name" || fail "the archive has no $name: $(tar -tf $archives/c.tar)"
done
tar -xOf $archives/c.tar config.dump | grep -q "\"id\":\"$source\"" || fail "config.dump"
at=$(tar -xOf $archives/c.tar rootfs-diff.tar | tar -xO count)
logged=$(tar -xOf $archives/c.tar container.log | tail -n 1 | awk '{print $NF}')
ok "the archive has what it must; the container had counted to $at in its file, $logged in its log"
cri inspect "$source" | grep -q '"restored": false' || fail "restored"
cri inspect "$source" | grep -q '"checkpointedAt": [0-9]' || fail "checkpointedAt: $(cri inspect "$source" | grep checkpointedAt)"
ok "the status tells of the checkpoint"

# What must be refused.
refused() {
    what=$1 text=$2
    shift 2
    if said=$("$@" 2>&1); then fail "not refused: $what"; fi
    echo "$said" | grep -q "$text" || fail "$what: $said"
    ok "refused: $what"
}
refused "a location that is taken" AlreadyExists cri checkpoint --export=$archives/c.tar "$source"
refused "a location in no directory" InvalidArgument cri checkpoint --export=/run/none/c.tar "$source"
refused "a relative location" InvalidArgument cri checkpoint --export=c.tar "$source"
[ "$(find $archives -type f | wc -l)" = 1 ] || fail "files are left: $(ls -la $archives)"
counts one

# Into a new pod, while the first one runs.
restore() {
    pod "$1" >"/run/$1.id"
    restored=$(create "$1" $archives/c.tar) || fail "create from the archive"
    began=$(date +%s%N)
    cri start "$restored" >/dev/null || fail "start from the archive"
    took=$((($(date +%s%N) - began) / 1000000))
    eventually 30 reaches "$1" $((at + 5)) || fail "it does not go on: $(cat "/run/logs/$1/count.log")"
    [ "$(first "$1")" -ge "$at" ] || fail "it began at $(first "$1"), not after $at"
    [ "$(first "$1")" -le $((at + 2)) ] || fail "it went on at $(first "$1"), after $at"
    ok "restored in $took ms: the first line of its log is $(first "$1"), after $at"
    counts "$1"
    count=$(cri exec -s "$restored" cat /count)
    [ "$count" -ge $((at + 5)) ] || fail "its file says $count"
    cri exec -s "$restored" ls /bin/wget >/dev/null 2>&1 && fail "a deleted file is back"
    cri exec -s "$restored" sh -c "echo hi >/data/$1" && [ "$(cat "/run/data/$1")" = hi ] || fail "its mount"
    ok "exec works, its files and its mount are there"
    inspect "$restored" | grep -q '"restored": true' || fail "restored is not told"
    inspect "$restored" | grep -q '"state": "CONTAINER_RUNNING"' || fail "state"
    cgroup=$(find /sys/fs/cgroup -type d -name "crisp-$restored.scope")
    [ "$(cat "$cgroup/memory.max")" = 67108864 ] || fail "memory.max"
    pid=$(inspect "$restored" | sed -n 's/.*"pid": \([0-9][0-9][0-9]*\),/\1/p' | head -n 1)
    grep -qx "$pid" "$cgroup/cgroup.procs" || fail "init $pid is not in its cgroup"
    grep -q '^Seccomp:.2' "/proc/$pid/status" || fail "seccomp"
    cat "/proc/$pid/attr/current" | grep -q crisp || fail "label: $(cat "/proc/$pid/attr/current")"
    ok "limits, filter and label are in force: $(cat "/proc/$pid/attr/current")"
}
# The state of the container that was checkpointed is kept by the archive alone.
restore two
kill -KILL $daemon
wait $daemon || true
serve
counts two
cri exec -s "$restored" true || fail "exec after a restart"
ok "a restored container survives the daemon"
cri checkpoint --export=$archives/again.tar "$restored" >/dev/null || fail "checkpoint of a restored one"
counts two
ok "a restored container is checkpointed again"
cri stop --timeout 20 "$restored" >/dev/null || fail "stop"
code=$(inspect "$restored" | sed -n 's/.*"exitCode": \([0-9]*\),/\1/p')
[ "$code" = 7 ] || fail "exit code $code"
ok "it is stopped by its own trap: exit code $code"
cri stopp "$(cat /run/two.id)" >/dev/null && cri rmp "$(cat /run/two.id)" >/dev/null || fail "remove two"

# After the first one is gone.
cri stopp "$(cat /run/one.id)" >/dev/null && cri rmp "$(cat /run/one.id)" >/dev/null || fail "remove one"
restore three
cri stopp "$(cat /run/three.id)" >/dev/null && cri rmp "$(cat /run/three.id)" >/dev/null || fail "remove three"
ok "restored after the original was removed"

# What is no checkpoint, or a hostile one.
pod bad >/run/bad.id
hostile=/run/hostile
mkdir -p $hostile/good/checkpoint
tar -xf $archives/c.tar -C $hostile/good
bad() { refused "$1" "$2" create bad "$hostile/$3"; }
head -c 5000 /dev/urandom >$hostile/noise.tar
bad "noise" InvalidArgument noise.tar
bad "a file that is not there" NotFound none.tar
(cd $hostile && rm -rf t && cp -a good t && rm t/config.dump && ln -s /etc/shadow t/config.dump && tar -cf link.tar -C t .)
bad "a link as config.dump" InvalidArgument link.tar
(cd $hostile && rm -rf t && cp -a good t && ln -sf /etc/shadow t/container.log && tar -cf log.tar -C t .)
bad "a link as the log" InvalidArgument log.tar
(cd $hostile && rm -rf t && cp -a good t && mknod t/checkpoint/x.img b 254 0 && tar -cf device.tar -C t .)
bad "a device" InvalidArgument device.tar
(cd $hostile && tar -cf double.tar -C good . && tar -rf double.tar -C good ./config.dump)
bad "an entry that is there twice" InvalidArgument double.tar
(cd $hostile && rm -rf t && cp -a good t && echo '{"rootfsImage": "example.org/none:1"}' >t/config.dump && tar -cf image.tar -C t .)
bad "the checkpoint of an image that is not here" NotFound image.tar
(cd $hostile && rm -rf t && cp -a good t && echo evil >evil && tar -cPf t/rootfs-diff.tar --transform 's#evil#../../evil#' evil && tar -cf diff.tar -C t .)
bad "changes that lead upwards" InvalidArgument diff.tar
(cd $hostile && rm -rf t && cp -a good t && rm t/checkpoint/seccomp.img && tar -cf filter.tar -C t .)
bad "processes without a filter" InvalidArgument filter.tar
[ -z "$(find /run/crisp/containers /var/lib/crisp/containers /var/lib/crisp/layers/.staging -mindepth 1)" ] || fail "a refused checkpoint leaves something"
cri stopp "$(cat /run/bad.id)" >/dev/null && cri rmp "$(cat /run/bad.id)" >/dev/null || fail "remove bad"
ok "refused checkpoints leave nothing"

# Whatever happens to a checkpoint, the container goes on.
touch /run/slow
pod slow >/run/slow.id
slow=$(create slow $image) && cri start "$slow" >/dev/null || fail "start the slow one"
eventually 30 reaches slow 5 || fail "it does not count"
refused "a checkpoint that takes too long" DeadlineExceeded cri --timeout 3s checkpoint --export=$archives/slow.tar "$slow"
counts slow
ok "it goes on counting"
cri checkpoint --export=$archives/slow.tar "$slow" >/dev/null 2>&1 &
asked=$!
stands() { find /var/lib/crisp/containers -path '*/checkpoint/checkpoint/inventory.img' | grep -q . && pgrep -x sleep >/dev/null; }
eventually 30 stands || fail "no dump is under way"
kill -KILL $daemon
wait $daemon || true
wait $asked || true
serve
counts slow
ok "it goes on counting after the daemon died in the middle"
rm /run/slow
cri checkpoint --export=$archives/slow.tar "$slow" >/dev/null || fail "checkpoint after that"
cri stopp "$(cat /run/slow.id)" >/dev/null && cri rmp "$(cat /run/slow.id)" >/dev/null || fail "remove slow"
[ "$(find $archives -type f | wc -l)" = 3 ] || fail "files are left: $(ls -la $archives)"

# A request that gives less than the checkpoint has.
pod four >/run/four.id
refused "a filter that is not the requested one" "seccomp filter" create four $archives/c.tar ', "capabilities": {"drop_capabilities": ["ALL"]}'
profile=1
lax=$(create four $image) && cri start "$lax" >/dev/null || fail "start one without a filter"
eventually 30 reaches four 5 || fail "it does not count"
cri checkpoint --export=$archives/lax.tar "$lax" >/dev/null || fail "checkpoint one without a filter"
cri rm -f "$lax" >/dev/null || fail "remove it"
strict=$(create four $archives/lax.tar ', "capabilities": {"drop_capabilities": ["ALL"]}') || fail "create a strict one"
lines=$(lines four)
refused "more capabilities than requested" "a process has Cap" cri start "$strict"
[ "$(lines four)" = "$lines" ] || fail "it ran: $(tail -n 3 /run/logs/four/count.log)"
cri inspect "$strict" | grep -q '"reason": "StartError"' || fail "reason"
ok "nothing of it has run; it ended with StartError"
cri stopp "$(cat /run/four.id)" >/dev/null && cri rmp "$(cat /run/four.id)" >/dev/null || fail "remove four"

kill -TERM $daemon
wait $daemon || fail "SIGTERM ended the daemon with $?"
same_mounts() { [ "$(grep -c . /proc/self/mountinfo)" -le "$mounts" ]; }
eventually 10 same_mounts || fail "mounts are left: $(grep crisp /proc/self/mountinfo)"
no_processes() { ! grep -lE 'crisp-shim|criu' /proc/[0-9]*/comm 2>/dev/null; }
eventually 10 no_processes || fail "processes are left"
no_cgroups() { ! find /sys/fs/cgroup -type d | grep -qE '[0-9a-f]{64}'; }
eventually 10 no_cgroups || fail "cgroups are left: $(find /sys/fs/cgroup -type d -name '*crisp*')"
left=$(find /run/crisp/pods /run/crisp/containers /var/lib/crisp/containers /var/lib/crisp/layers/.staging -mindepth 1 2>/dev/null || true)
[ -z "$left" ] || fail "files are left: $left"
ok "nothing is left"
