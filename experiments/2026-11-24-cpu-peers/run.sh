#!/usr/bin/env bash
# Ours and PyTorch's times on this CPU, one after the other, five times.
# Usage: SSM_DATA=DIR run.sh PYTHON_WITH_TORCH_AND_MAMBAPY SSM_BINARY
set -euo pipefail
python=$1 ssm=$2
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
step() {
  rm -rf "$scratch/step"
  "$ssm" train configs/forecasting/etth1_96_smamba.toml --quiet --device flex \
    --set run.dir="$scratch" --set run.name=step --set train.epochs= --set train.steps=200 \
    --set log.every_steps=100 --set train.eval_every_steps=200 \
    --set 'task.forecasting.baselines=[]' > /dev/null 2>&1
  sed -n 's/.*"samples_per_sec":\([0-9.]*\).*/\1/p' "$scratch/step/metrics.jsonl" | tail -n 1 |
    awk '{printf "{\"op\":\"ssm: S-Mamba training step, ETTh1 96 -> 96\",\"ms\":%.2f}\n", 32000 / $1}'
}
for _ in 1 2 3 4 5; do
  "$python" "$here/peers.py"
  step
  cargo bench -q --workspace --bench selective_scan
done
# The block once more, turn by turn: what the machine does to one it does to the other.
for _ in {1..15}; do
  "$python" "$here/peers.py" block
  cargo bench -q --workspace --bench selective_scan -- block
done
cargo bench -q --workspace --bench ops
cargo bench -q --workspace --bench selective_scan -- growth
