#!/usr/bin/env bash
# Two network namespaces, joined by one cable, stand for two machines: does MPI between them train what one
# process trains? As root, from the root of the repository, with a binary that was built with `--features mpi`:
#   experiments/2026-11-27-replicas/namespaces.sh path/to/ssm
# Needs iproute2, util-linux and Open MPI. Prints what differs, and fails if anything does.
set -euo pipefail
ssm=$(realpath "${1:?the binary}")
config=${CONFIG:-configs/lm/debug.toml}
work=$(mktemp -d)
end() {
    ip netns del ssm_a 2>/dev/null || true
    ip netns del ssm_b 2>/dev/null || true
    rm -rf "$work"
}
trap end EXIT

ip netns add ssm_a
ip netns add ssm_b
ip link add ssm_wire_a netns ssm_a type veth peer name ssm_wire_b netns ssm_b
for side in a b; do
    ip -n ssm_$side link set lo up
    ip -n ssm_$side addr add "10.77.0.$([ $side = a ] && echo 1 || echo 2)/24" dev ssm_wire_$side
    ip -n ssm_$side link set ssm_wire_$side up
done

# There is no ssh between them: what mpirun starts on the other machine is entered into its namespace, under
# a host name of its own, so that neither shares memory with the other.
cat > "$work/agent" <<'AGENT'
#!/bin/sh
shift
mkdir -p "$0.b"
exec ip netns exec ssm_b unshare --uts sh -c "hostname ssm-b; export TMPDIR=$0.b; $*"
AGENT
chmod +x "$work/agent"

net=10.77.0.0/24
across() {
    ip netns exec ssm_a unshare --uts sh -c 'hostname ssm-a; exec "$@"' sh \
        mpirun --allow-run-as-root --bind-to none --host 10.77.0.1:1,10.77.0.2:1 -n 2 \
        --mca plm_rsh_agent "$work/agent" --mca plm_rsh_no_tree_spawn 1 \
        --mca btl tcp,self --mca btl_tcp_if_include $net --mca oob_tcp_if_include $net "$@"
}
echo "== who is there"
across sh -c 'echo "rank $OMPI_COMM_WORLD_RANK on $(hostname), $(ip -br -4 addr show scope global | tr -s " ")"'

# train NAME env|across [argument...]
train() {
    local name=$1 how=$2
    shift 2
    NO_COLOR=1 $how "$ssm" train "$config" --quiet --set "run.dir=$work" --set "run.name=$name" \
        --set device.backend=flex --set train.batch_size=16 --set train.accumulate=2 --set log.every_steps=1 "$@"
}
bytes() { ip -n ssm_a -s link show ssm_wire_a | awk '/RX:/ { getline; rx = $1 } /TX:/ { getline; print rx + $1 }'; }

echo "== one process, two micro-batches a step"
train one env > "$work/one.log"
echo "== two processes, one in each namespace"
before=$(bytes)
began=$(date +%s.%N)
train two across > "$work/two.log"
awk -v b="$began" -v e="$(date +%s.%N)" -v n="$(($(bytes) - before))" \
    'BEGIN { printf "%.1f s, %.1f MB over the wire\n", e - b, n / 1e6 }'

# Times differ, and what the session was; nothing else may.
strip() { sed -E 's/,?"(elapsed_secs|samples_per_sec|tokens_per_sec|mfu)":[^,}]*//g' "$1"; }
failed=0
strip "$work/one/metrics.jsonl" > "$work/one.curve"
strip "$work/two/metrics.jsonl" > "$work/two.curve"
for pair in "one.curve two.curve" "one/result.json two/result.json" \
    "one/checkpoints/$(head -n 1 "$work/one/checkpoints/last")/model.bpk two/checkpoints/$(head -n 1 "$work/two/checkpoints/last")/model.bpk"; do
    read -r left right <<< "$pair"
    if cmp "$work/$left" "$work/$right"; then
        echo "equal, byte by byte: $(basename "$left") ($(stat -c %s "$work/$left") bytes)"
    else
        failed=1
    fi
done
tail -1 "$work/two.curve"

echo "== SIGKILL to the process in the other namespace"
train cut across --set train.steps=100000 --set checkpoint.every_steps=20 > "$work/cut.log" 2>&1 &
job=$!
until [ -e "$work/cut/checkpoints/last" ]; do sleep 0.1; done
victim=$(ip netns pids ssm_b | while read -r pid; do
    [ "$(readlink "/proc/$pid/exe")" = "$ssm" ] && echo "$pid"
done)
began=$(date +%s.%N)
kill -KILL $victim
wait $job && { echo "it should have failed"; failed=1; }
awk -v b="$began" -v e="$(date +%s.%N)" 'BEGIN { printf "all ended after %.1f s\n", e - b }'
grep -vE '^ *$' "$work/cut.log" | tail -12
echo "resumed by one process:"
train cut env --resume --set train.steps=$((10#$(sed -n '1s/step_//p' "$work/cut/checkpoints/last") + 20)) 2>&1 | grep -E 'replicas|step' || failed=1
exit $failed
