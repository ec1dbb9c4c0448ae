#!/usr/bin/env bash
# Ours and PyTorch's times on this CPU: four passes, then the block turn by turn, the old bench in the first five turns, and
# PyTorch's compiler last. Real-time priority holds other work back, which needs root or the right to it.
# Usage: run.sh PYTHON_WITH_TORCH_AND_MAMBAPY OLD_CHECKOUT; the latter a clone at commit 821a41e, built by itself.
set -euo pipefail
python=$1 old=$2
cd "$(dirname "$0")/../.."
peers=experiments/2026-11-24-cpu-peers/peers.py
first() { chrt -r 10 "$@"; }
# Built before the priority is raised, so that only the bench itself holds others back.
bench() { (cd "$1" && cargo bench -q --workspace --bench selective_scan --no-run); }
run() { (cd "$1" && shift && first cargo bench -q --workspace --bench selective_scan -- "$@"); }
bench . && bench "$old"
for _ in 1 2 3 4; do
  first "$python" "$peers"
  run .
done
for turn in {1..15}; do
  first "$python" "$peers" block
  run . block
  if [ "$turn" -le 5 ]; then run "$old" block; fi
done
run . growth
# One after the other, 40 runs each: mamba.py's block as it is, and compiled.
first "$python" "$peers" compiled
