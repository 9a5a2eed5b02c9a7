#!/bin/sh
# Runs in the machine: the default AppArmor profile, as containers of each handler see it. Argument: short (the built-in
# handler alone, and the profile is not touched) or nothing.
set -eu
. /share/node.sh
profiles=/sys/kernel/security/apparmor/profiles
loaded() { grep -q "^$1 (enforce)" $profiles; }

[ "$(cat /sys/module/apparmor/parameters/enabled)" = Y ] || fail "no AppArmor"
# The daemon of an earlier test loaded it.
unload() { printf 'profile crisp-default {}' | apparmor_parser -K -R; }
if loaded crisp-default; then unload; fi
serve
eventually 60 loaded crisp-default || fail "the default profile is not loaded"
ok "the default profile is loaded at the start"
crisp check | grep AppArmor || fail "crisp check says nothing of AppArmor"
crisp image import /share/busybox.tar >/dev/null || fail "image import"

# container NAME SECURITY_CONTEXT: the id of a running one that waits.
container() {
    cat >/run/container.json <<EOF
{"metadata": {"name": "$1"}, "image": {"image": "example.org/busybox:1"}, "log_path": "$1.log",
 "command": ["sh", "-c", "trap 'exit 3' TERM; echo up; while :; do sleep 1; done"],
 "linux": {"security_context": $2}}
EOF
    cri create "$pod" /run/container.json /run/pod.json
}
# profile ID: of its first process and of a process that is executed beside it; one line when they are the same.
profile() { { cat "/proc/$(init_of "$1")/attr/current"; cri exec -s "$1" cat /proc/self/attr/current; } | grep . | sort -u; }
init_of() { cri inspect "$1" | sed -n 's/^ *"pid": \([0-9]*\),*$/\1/p' | head -n 1; }
same_profile() {
    seen=$(profile "$1")
    [ "$seen" = "$2" ] || fail "$3: the profile is $seen"
}
# refuses ID COMMAND: the command must fail for lack of permission.
refuses() {
    id=$1
    shift
    said=$(cri exec -s "$id" sh -c "$*" 2>&1) && fail "$* succeeded"
    case $said in *"ermission denied"* | *"peration not permitted"*) ;; *) fail "$* said $said" ;; esac
}
exit_code() { cri inspect "$1" | grep -q "\"exitCode\": $2"; }

case ${1-} in short) handlers=crisp ;; *) handlers="crisp runc crun" ;; esac
for handler in $handlers; do
    cat >/run/pod.json <<EOF
{"metadata": {"name": "apparmor-$handler", "namespace": "default", "uid": "apparmor-$handler"}, "log_directory": "/run/logs",
 "linux": {"security_context": {"privileged": true}}}
EOF
    pod=$(cri runp --runtime "$handler" /run/pod.json) || fail "runp $handler"
    # All capabilities and nothing masked or read-only: what is refused is refused by the profile.
    unset=$(container unset '{"capabilities": {"add_capabilities": ["ALL"]}}') || fail "create unset"
    cri start "$unset" >/dev/null || fail "start unset"
    same_profile "$unset" "crisp-default (enforce)" "$handler, nothing asked"
    refuses "$unset" 'echo h >/proc/sysrq-trigger'
    refuses "$unset" 'echo 1 >/proc/sys/kernel/panic_on_oops'
    refuses "$unset" 'mount -t tmpfs none /tmp'
    cri exec -s "$unset" sh -c 'echo x >/tmp/file && cat /tmp/file && wget --help 2>&1 | grep -q Usage && ip addr >/dev/null' \
        >/dev/null || fail "$handler: ordinary work"
    cri exec -s "$unset" sh -c 'sleep 100 & kill $!; wait' >/dev/null || fail "$handler: a signal within the profile"
    cri stop --timeout 10 "$unset" >/dev/null || fail "$handler: stop"
    exit_code "$unset" 3 || fail "$handler: the signal of the stop did not arrive: $(cri inspect "$unset" | grep exitCode)"
    asked=$(container asked '{"apparmor": {"profile_type": 0}}') && cri start "$asked" >/dev/null || fail "RuntimeDefault"
    same_profile "$asked" "crisp-default (enforce)" "$handler, RuntimeDefault"
    free=$(container free '{"apparmor": {"profile_type": 1}}') && cri start "$free" >/dev/null || fail "Unconfined"
    same_profile "$free" unconfined "$handler, Unconfined"
    privileged=$(container privileged '{"privileged": true, "apparmor": {"profile_type": 0}}') || fail "create privileged"
    cri start "$privileged" >/dev/null || fail "start privileged"
    same_profile "$privileged" unconfined "$handler, privileged"
    cri stopp "$pod" >/dev/null || fail "$handler: stopp, with containers that do not end by themselves"
    cri rmp "$pod" >/dev/null || fail "$handler: rmp"
    ok "$handler: profile on start and exec, what it refuses, what it lets pass, signals"
done

pod=$(cri runp /run/pod.json) || fail "runp"
missing=$(container missing '{"apparmor": {"profile_type": 2, "localhost_ref": "localhost/missing"}}' 2>&1) && fail "a missing profile"
case $missing in *missing*'is not loaded'*) ;; *) fail "a missing profile: $missing" ;; esac
echo 'profile site-own flags=(attach_disconnected) { file, capability, network, signal, deny /tmp/** w, }' | apparmor_parser -K -r
own=$(container own '{"apparmor": {"profile_type": 2, "localhost_ref": "site-own"}}') && cri start "$own" >/dev/null || fail "Localhost"
same_profile "$own" "site-own (enforce)" Localhost
refuses "$own" 'echo x >/tmp/file'
ok "a profile by name, loaded and not"
if [ "${1-}" = short ]; then
    cri stopp "$pod" >/dev/null && cri rmp "$pod" >/dev/null || fail "remove the pod"
    kill -TERM $daemon
    wait $daemon || fail "SIGTERM ended the daemon with $?"
    exit 0
fi

unload
if loaded crisp-default; then fail "unload"; fi
again=$(container again '{"capabilities": {"add_capabilities": ["ALL"]}}') && cri start "$again" >/dev/null || fail "after the profile was unloaded"
same_profile "$again" "crisp-default (enforce)" "after the profile was unloaded"
refuses "$again" 'mount -t tmpfs none /tmp'
ok "a profile that was unloaded comes back"

# Another version has rules that let mounts pass, and left its text for the next start.
mounts() { cri exec -s "$1" sh -c 'mount -t tmpfs none /tmp && busybox umount /tmp' >/dev/null 2>&1; }
mounts_no_more() { ! mounts "$1"; }
rewritten() { ! grep -q 'another version' /run/crisp/apparmor/crisp-default; }
echo '# another version
profile crisp-default flags=(attach_disconnected) { file, capability, network, signal, ptrace, unix, mount, umount, }' >/run/other
apparmor_parser -K -r /run/other || fail "load another version"
mounts "$again" || fail "another version's rules are not in force"
kill -KILL $daemon
wait $daemon || true
cp /run/other /run/crisp/apparmor/crisp-default
serve
eventually 60 mounts_no_more "$again" || fail "the profile of another version stays"
refuses "$again" 'mount -t tmpfs none /tmp'
eventually 10 rewritten || fail "the text of another version stays"
same_profile "$again" "crisp-default (enforce)" "after a restart"
ok "another version's profile is replaced, for running containers too"
cri stopp "$pod" >/dev/null && cri rmp "$pod" >/dev/null || fail "remove the pod"
kill -TERM $daemon
wait $daemon || fail "SIGTERM ended the daemon with $?"

mkdir -p /etc/crisp
printf '[security]\napparmor = "off"\n' >/etc/crisp/config.toml
serve
pod=$(cri runp /run/pod.json) || fail "runp"
unset=$(container unset '{}') && cri start "$unset" >/dev/null || fail "start"
same_profile "$unset" unconfined "turned off, nothing asked"
asked=$(container asked '{"apparmor": {"profile_type": 0}}' 2>&1) && fail "turned off, RuntimeDefault"
case $asked in *'turned off'*) ;; *) fail "turned off, RuntimeDefault: $asked" ;; esac
cri stopp "$pod" >/dev/null && cri rmp "$pod" >/dev/null || fail "remove the pod"
kill -TERM $daemon
wait $daemon || fail "SIGTERM ended the daemon with $?"
ok "turned off: none, and an error for who asks"
rm -r /etc/crisp
