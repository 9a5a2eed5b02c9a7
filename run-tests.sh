#!/bin/sh
# Builds Crisp and runs all its tests. Installs what they need: Debian packages, and Kubernetes tools with Go.
#   ./run-tests.sh            everything
#   ./run-tests.sh quick      without critest and the virtual machine
set -eu
cd "$(dirname "$0")"
. ./crictl-tests/lib.sh

need_root "./run-tests.sh"
build_tools
logs=target/crictl-tests/logs
rm -rf target/crictl-tests/reports "$logs"
mkdir -p "$logs"
failed=""
# What cargo fetches is asked for again when the network fails for a moment.
export CARGO_NET_RETRY="${CARGO_NET_RETRY:-10}"

# What panicked in a stage, and the end of its output.
show_failure() {
    grep -A 12 'panicked at' "$logs/$1.log" | head -n 200 || true
    tail -n 200 "$logs/$1.log"
}
# Runs a stage; its output goes to a file that is shown when it fails, and its last lines in any case.
stage() {
    name=$1
    shift
    began=$(date +%s)
    if "$@" >"$logs/$name.log" 2>&1; then result=ok; else result=FAILED; fi
    [ $result = ok ] || failed="$failed $name"
    say "$name: $result ($(($(date +%s) - began)) s)"
    if [ $result = ok ]; then tail -n "${lines:-1}" "$logs/$name.log"; else show_failure "$name"; fi
}
# The same for a stage that runs beside others: begin NAME COMMAND…, then finish NAME.
begin() {
    name=$1
    shift
    ( set +e; "$@" >"$logs/$name.log" 2>&1; echo $? >"$logs/$name.code" ) &
    eval "job_$name=$!"
}
finish() {
    eval "wait \$job_$1" || true
    lines=${2:-1} stage_result "$1" "$(cat "$logs/$1.code")"
}
stage_result() {
    if [ "$2" = 0 ]; then say "$1: ok"; tail -n "$lines" "$logs/$1.log"; return; fi
    failed="$failed $1"
    say "$1: FAILED"
    show_failure "$1"
}

unit() {
    cargo test --locked --workspace --no-fail-fast
}
tests=target/debug/crictl-tests

lines=0 stage build cargo build --release --locked
# With the features of the whole workspace, so that the unit tests below take the same dependencies.
lines=0 stage build-tests cargo build --locked --workspace --bin crictl-tests
case $failed in *build*) die "the build failed" ;; esac
lines=0 stage prepare $tests prepare
[ "${1:-}" = quick ] || begin machine crictl-tests/vm/vmtest build

# What compiles and packs runs side by side; what has limits of time runs alone.
lines=0 stage build-unit cargo test --locked --workspace --no-run
if [ "${1:-}" != quick ]; then
    finish machine
    lines=2 stage critest $tests critest
fi
stage unit unit
[ "${1:-}" = quick ] || lines=20 stage vm $tests vm --smoke
lines=100 stage outside $tests test
lines=80 stage bench $tests bench --extent short

unit_passed=$(sed -n 's/^test result: .* \([0-9]*\) passed.*/\1/p' "$logs/unit.log" | awk '{s += $1} END {print s + 0}')
unit_failed=$(sed -n 's/^test result: .* \([0-9]*\) failed.*/\1/p' "$logs/unit.log" | awk '{s += $1} END {print s + 0}')
if [ -n "$failed" ] && [ -d target/crictl-tests/reports ]; then
    for log in target/crictl-tests/reports/failed-*.log; do
        [ -e "$log" ] || continue
        say "the daemon's log in $log ends with"
        tail -n 60 "$log"
    done
fi
echo
say "summary"
echo "unit: $unit_passed passed, $unit_failed failed"
[ ! -e "$logs/critest.log" ] || grep -h '^critest: ' "$logs/critest.log" || echo "critest: no result"
[ ! -e "$logs/vm.log" ] || tail -n 1 "$logs/vm.log"
echo "outside: $(tail -n 1 "$logs/outside.log")"
if [ -n "$failed" ]; then die "failed:$failed"; fi
say "all passed"
