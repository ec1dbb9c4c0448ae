#!/usr/bin/env bash
# S-Mamba on ETTh1, ETTh2, ETTm1, Exchange at 96/192/336/720 on the CPU: three seeds at 96, one beyond.
# Usage: SSM_DATA=DIR run.sh SSM_BINARY RUNS_DIR [JOBS]; a finished run is not repeated.
set -euo pipefail
ssm=$1 runs=$2 jobs=${3:-2}
root=$(cd "$(dirname "$0")/../.." && pwd)
list() {
  for seed in 2023 2024 2025; do
    for data in etth1 exchange etth2 ettm1; do echo "$data 96 $seed"; done
  done
  for horizon in 192 336 720; do
    for data in etth1 etth2 exchange ettm1; do echo "$data $horizon 2023"; done
  done
}
one() {
  local name="$1_$2_smamba" run="$1_$2_s$3" baselines='["last_value", "dlinear"]' flag=
  [ "$3" = 2023 ] || baselines='[]'
  [ -e "$runs/$run/result.json" ] && return 0
  [ -d "$runs/$run/checkpoints" ] && flag=--resume
  RAYON_NUM_THREADS=1 "$ssm" train "$root/configs/forecasting/$name.toml" --quiet $flag \
    --set run.dir="$runs" --set run.name="$run" --set run.seed="$3" --device flex \
    --set task.forecasting.baselines="$baselines" > "$runs/$run.out" 2> "$runs/$run.log" ||
    echo "failed: $run, see $runs/$run.log" >&2
}
export -f one; export ssm runs root
mkdir -p "$runs"
list | xargs -P "$jobs" -L 1 bash -c 'one "$@"' _
