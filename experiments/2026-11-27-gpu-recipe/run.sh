#!/usr/bin/env bash
# S-Mamba's recipe on a GPU: the whole run with empty and with warm caches, what a step launches, then
# memory over a long run.
# Usage: SSM_DATA=DIR OUT=DIR run.sh SSM_BINARY [recipe] [launches] [memory]; under four minutes on an H200.
# DEVICE and STEPS may be set, which is how the script is tried on a small machine.
set -euo pipefail
ssm=${1:?the program ssm}; shift
: "${SSM_DATA:?the directory of data sets}" "${OUT:?a directory for results}" "${DEVICE:=cuda:0}" "${STEPS:=2000}"
root=$(cd "$(dirname "$0")/../.." && pwd)
config=$root/configs/forecasting/etth1_96_smamba.toml
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$OUT"
# A cache of its own, so that the first run is cold whatever ran before.
export XDG_CACHE_HOME=$work/cache SSM_DATA
now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.2f", b - a }'; }

# train NAME CONFIG OVERRIDES...: prints the seconds to the first logged step and to the end.
train() {
  local name=$1 config=$2 began first=-; shift 2
  began=$(now)
  "$ssm" train "$config" --quiet --device "$DEVICE" --set run.dir="$work/runs" --set run.name="$name" "$@" \
    > "$OUT/$name.txt" 2> "$OUT/$name.log" &
  local pid=$!
  while kill -0 $pid 2> /dev/null; do
    if [ "$first" = - ] && [ -s "$work/runs/$name/metrics.jsonl" ]; then first=$(since "$began"); fi
    watch_memory "$name" "$began"
    sleep 0.05
  done
  wait $pid || { echo "$name failed:"; tail -n 5 "$OUT/$name.log"; return 1; }
  cp "$work/runs/$name/metrics.jsonl" "$OUT/$name.jsonl"
  echo "$name: first logged step after $first s, whole run $(since "$began") s"
}
watch_memory() { :; }

# Cold, then twice warm: equal losses show that nothing depends on what was compiled when.
recipe() {
  for name in cold warm_1 warm_2; do
    train "$name" "$config" --set log.every_steps=1
    python3 - "$OUT/$name.jsonl" "$work/runs/$name/result.json" <<'PYTHON'
import json, statistics, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
train = [row for row in rows if row["split"] == "train"]
valid = [row["elapsed_secs"] for row in rows if row["split"] == "valid"]
ends = [0.0] + valid
epochs = " ".join(f"{b - a:.2f}" for a, b in zip(ends, ends[1:]))
steps = [1e3 * 32 / row["samples_per_sec"] for row in train[20:]]
print(f"  epochs with validation, s: {epochs}")
print(f"  a step, ms: median {statistics.median(steps):.2f}, 95 % {sorted(steps)[len(steps) * 95 // 100]:.2f}")
print(f"  loss of the last step {train[-1]['loss']!r}")
result = json.load(open(sys.argv[2]))
metrics = result.get("metrics", result)
print("  test " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if isinstance(value, float)))
PYTHON
  done
}

# Kernels of a training step, by name: what ten more steps launch. CubeCL writes a line a launch.
launches() {
  for steps in 2 12; do
    sed -e "s/^epochs = .*/steps = $steps/" -e '/^patience = /d' -e '/^baselines = /d' "$config" > "$work/short.toml"
    CUBECL_DEBUG_LOG=$work/launches_$steps.log train "launches_$steps" "$work/short.toml" > /dev/null
    awk -F'|' '/^\| .* \| / { print $3 }' "$work/launches_$steps.log" | sed 's/<.*//; s/ //g' | sort | uniq -c \
      | awk '{ print $2, $1 }' | sort > "$work/launches_$steps.txt"
  done
  join -a 2 -e 0 -o 0,1.2,2.2 "$work/launches_2.txt" "$work/launches_12.txt" \
    | awk '{ n = ($3 - $2) / 10; if (n) printf "%7.1f %s\n", n, $1 }' | sort -rn > "$OUT/launches.txt"
  awk '{ n += $1 } END { printf "launches of a step: %.0f\n", n }' "$OUT/launches.txt"
  head -n 25 "$OUT/launches.txt"
}

# What the device holds, every second, beside the step that was logged last.
memory() {
  watch_memory() {
    local mib step
    mib=$(nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits 2> /dev/null | head -n 1) || mib=0
    step=$(tail -n 1 "$work/runs/$1/metrics.jsonl" 2> /dev/null | sed -n 's/.*"step":\([0-9]*\).*/\1/p') || step=0
    echo "${step:-0} ${mib:-0}" >> "$OUT/memory.csv"
  }
  rm -f "$OUT/memory.csv"
  sed -e "s/^epochs = .*/steps = $STEPS/" -e '/^patience = /d' -e '/^baselines = /d' "$config" > "$work/long.toml"
  train long "$work/long.toml" --set log.every_steps=10
  watch_memory() { :; }
  awk -v n="$STEPS" '$1 > 0 && $1 <= n / 10 { a += $2; na++; if ($2 > amax) amax = $2 }
    $1 > n * 9 / 10 { b += $2; nb++; if ($2 > bmax) bmax = $2 }
    END { if (na && nb) printf "memory of the device, MiB: first tenth mean %.0f, most %d; last tenth mean %.0f, most %d\n",
                               a / na, amax, b / nb, bmax
          else print "memory: too few samples" }' "$OUT/memory.csv"
}

for part in ${*:-recipe launches memory}; do "$part"; done | tee "$OUT/summary.txt"
