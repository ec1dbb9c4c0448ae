#!/usr/bin/env bash
# A training step of 4 layers, 256 wide, batch 8 x 256, ours and mamba.py's in turn, three times. No data is needed.
#   cpu_step.sh PYTHON_WITH_TORCH_AND_MAMBAPY SSM
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# Any text will do: the time of a step does not depend on it.
seq 1 200000 > "$scratch/text.txt"
for _ in 1 2 3; do
    "$1" "$here/cpu_step.py"
    RAYON_NUM_THREADS=2 "$2" bench "$here/../../configs/lm/books_130k_mamba.toml" --device flex --steps 30 --json \
        --set "data.text.train=[\"$scratch/text.txt\"]" --set 'data.text.test=[]' --set model.d_model=256 \
        --set model.n_layer=4 --set train.batch_size=8 --set task.lm.seq_len=256
done
