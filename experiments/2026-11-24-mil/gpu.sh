#!/bin/sh
# Measurements on a GPU: memory and time of long bags, where an epoch's time goes, and the order of instances at
# length 16,384. Needs no network and no data; python3 with numpy, h5py if it is there.
#   SSM=target/release/ssm OUT=results sh gpu.sh [bags] [epoch] [order]
# $OUT holds summary.txt and results.tar.gz after each part. About five minutes on an H200, 14 GB of disk and memory.
# Every number below may be set in the environment, which is how the script is tried on a small CPU.
set -eu
root=$(dirname "$0")/../..
: "${SSM:?the program ssm}" "${OUT:?a directory for results}"
: "${DEVICE:=cuda:0}" "${WORK:=$(mktemp -d)}"
: "${BAG_SIDES:=25x40 100x100 250x400}" "${BAG_STEPS:=8}" "${BAG_SECS:=60}"    # rasters of 1,000, 10,000, 100,000
: "${SLIDES:=500}" "${SLIDE_LEN:=5000}" "${D_FEATURE:=1024}" "${EPOCH_SECS:=30}"
: "${SIDE:=128}" "${EPOCHS:=20}" "${SEEDS:=0 1 2}" "${ORDER_SECS:=100}" "${N_TRAIN:=200}"
: "${N_MARKERS:=64}" "${N_PAIRS:=32}"
results=$WORK/results
mkdir -p "$OUT" "$results"
export SLIDES SLIDE_LEN D_FEATURE WORK

# train SECONDS NAME CONFIG OVERRIDES...: stops by itself when the time is over, with a checkpoint; watches memory.
train() {
    secs=$1 name=$2 config=$3
    shift 3
    timeout -s INT -k 20 "$secs" "$SSM" train "$root/configs/mil/$config.toml" --quiet --device "$DEVICE" \
        --set "run.dir=$WORK/runs" --set "run.name=$name" "$@" > "$results/$name.txt" 2> "$results/$name.log" &
    watched=$!
    peak_gpu=0 peak_host=0
    while kill -0 "$watched" 2> /dev/null; do
        # What the device holds, all pools included, and what the process holds on the host, in MiB.
        now=$(nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits 2> /dev/null | head -n 1) || now=0
        if [ "${now:-0}" -gt "$peak_gpu" ]; then peak_gpu=$now; fi
        child=$(pgrep -P "$watched" 2> /dev/null | head -n 1) || child=$watched
        now=$(awk '/^VmHWM/ { print int($2 / 1024) }' "/proc/${child:-$watched}/status" 2> /dev/null) || now=0
        if [ "${now:-0}" -gt "$peak_host" ]; then peak_host=$now; fi
        sleep 0.2
    done
    wait "$watched" || echo "$name: ended early, exit code $?" >> "$results/ended_early.txt"
    echo "$name $peak_gpu $peak_host" >> "$results/memory.txt"
}

# Two layers of the published width on one bag after another; with and without recomputation of layers.
bags() {
    for sides in $BAG_SIDES; do
        width=${sides%x*} height=${sides#*x}
        for recompute in keep layer; do
            again=
            if [ "$recompute" = layer ]; then again='--set train.recompute="layer"'; fi
            # shellcheck disable=SC2086
            train "$BAG_SECS" "bag_$((width * height))_$recompute" neighbours_srmamba_5 $again \
                --set "data.neighbours.width=$width" --set "data.neighbours.height=$height" \
                --set data.neighbours.n_markers=4 --set data.neighbours.n_pairs=2 \
                --set "data.neighbours.d_feature=$D_FEATURE" --set data.neighbours.n_train=2 \
                --set data.neighbours.n_valid=2 --set data.neighbours.n_test=2 \
                --set model.mamba_mil.d_model=512 --set model.mamba_mil.n_layer=2 \
                --set model.mamba_mil.d_attention=128 --set train.batch_size=1 \
                --set "train.epochs=$((BAG_STEPS / 2))" --set train.eval_every_steps=1000000 --set log.every_steps=1
        done
    done
}

# The same epoch three times: gzipped HDF5, plain arrays, and bags that lie in memory.
epoch() {
    python3 - <<'PYTHON'
import os, pathlib
import numpy as np
work = pathlib.Path(os.environ["WORK"])
n, length, d = (int(os.environ[key]) for key in ("SLIDES", "SLIDE_LEN", "D_FEATURE"))
try:
    import h5py
except ImportError:
    h5py = None
rng = np.random.default_rng(0)
# Slides are links to eight files: reading is from the page cache, the fastest storage there is.
for kind in ("npy", "h5") if h5py else ("npy",):
    folder = work / kind
    folder.mkdir(exist_ok=True)
    for base in range(min(8, n)):
        # As a ReLU leaves them: half of the features are zero.
        x = np.maximum(rng.standard_normal((length, d), dtype=np.float32), 0)
        file = work / f"base_{base}.{kind}"
        if kind == "npy":
            np.save(file, x)
        else:
            with h5py.File(file, "w") as out:
                out.create_dataset("features", data=x, chunks=(min(256, length), d), compression="gzip")
    for slide in range(n + 4):
        link = folder / f"slide_{slide}.{kind}"
        link.unlink(missing_ok=True)
        os.link(work / f"base_{slide % min(8, n)}.{kind}", link)
with open(work / "slides.csv", "w") as table:
    print("slide_id,case_id,label,split", file=table)
    for slide in range(n + 4):
        part = "train" if slide < n else ("valid", "valid", "test", "test")[slide - n]
        print(f"slide_{slide},{slide},{'ab'[slide % 2]},{part}", file=table)
PYTHON
    model="--set train.epochs=1 --set train.eval_every_steps=1000000 --set train.batch_size=1 --set log.every_steps=10"
    for kind in h5 npy; do
        if [ ! -d "$WORK/$kind" ]; then continue; fi
        # shellcheck disable=SC2086
        train "$EPOCH_SECS" "epoch_$kind" slides_srmamba $model --set task.mil.class_weighted=false \
            --set "data.slides.table=$WORK/slides.csv" --set "data.slides.features=$WORK/$kind" \
            --set 'data.slides.split_columns=["split"]'
    done
    # shellcheck disable=SC2086
    train "$EPOCH_SECS" epoch_memory neighbours_srmamba_5 $model --set data.neighbours.width="$((SLIDE_LEN / 50))" \
        --set data.neighbours.height=50 --set data.neighbours.n_markers=4 --set data.neighbours.n_pairs=2 \
        --set "data.neighbours.d_feature=$D_FEATURE" --set data.neighbours.n_train=60 \
        --set data.neighbours.n_valid=2 --set data.neighbours.n_test=2 --set model.mamba_mil.d_model=512 \
        --set model.mamba_mil.n_layer=2 --set model.mamba_mil.d_attention=128
}

# All seeds and orders at once: one of them does not fill the GPU.
order() {
    started=
    for seed in $SEEDS; do
        for order in srmamba_width srmamba_5 mamba abmil; do
            name="order_${order}_$seed"
            rate=
            if [ "$order" = srmamba_width ]; then rate="--set model.mamba_mil.mixer.sr_mamba.rate=$SIDE"; fi
            # shellcheck disable=SC2086
            (timeout -s INT -k 20 "$ORDER_SECS" "$SSM" train "$root/configs/mil/neighbours_$order.toml" --quiet \
                --device "$DEVICE" --set "run.dir=$WORK/runs" --set "run.name=$name" --set "run.seed=$seed" \
                --set "data.neighbours.seed=$seed" --set "data.neighbours.width=$SIDE" \
                --set "data.neighbours.height=$SIDE" --set "data.neighbours.n_markers=$N_MARKERS" \
                --set "data.neighbours.n_pairs=$N_PAIRS" --set "data.neighbours.n_train=$N_TRAIN" \
                --set data.neighbours.n_valid=50 --set "train.epochs=$EPOCHS" \
                --set "train.eval_every_steps=$((N_TRAIN / 2))" $rate > "$results/$name.txt" 2> "$results/$name.log" || true
            # The best checkpoint, whether there was time for all epochs or not.
            timeout -k 5 40 "$SSM" eval "$WORK/runs/$name" --split test --device "$DEVICE" --json \
                > "$results/$name.json" 2>> "$results/$name.log" || true) &
            started="$started $!"
        done
    done
    # shellcheck disable=SC2086
    wait $started
}

# What there is to say so far.
summarise() {
    python3 - "$WORK" > "$OUT/summary.txt" <<'PYTHON'
import json, pathlib, statistics, sys
out = pathlib.Path(sys.argv[1]) / "results"
runs = pathlib.Path(sys.argv[1]) / "runs"
memory = {}
if (out / "memory.txt").exists():
    memory = {name: rest for name, *rest in map(str.split, open(out / "memory.txt"))}
print("run, steps, seconds a bag, MiB on the device (all processes), MiB on the host")
for file in sorted(runs.glob("*/metrics.jsonl")):
    lines = [json.loads(line) for line in open(file)]
    trained = [line for line in lines if line["split"] == "train" and line.get("samples_per_sec")]
    if not trained:
        print(file.parent.name, "no step was logged")
        continue
    # The first line holds the compilation of kernels.
    seconds = statistics.median([1 / line["samples_per_sec"] for line in trained[1:] or trained])
    name = file.parent.name
    print(name, trained[-1]["step"], f"{seconds:.4f}", *memory.get(name, ["-", "-"]))
print()
print("order: AUC on the test slides")
for file in sorted(out.glob("order_*.json")):
    text = file.read_text()
    scores = [row["auc"] for rows in json.loads(text or "{}").values() for row in rows]
    print(file.stem, *scores or ["no result"])
PYTHON
    for run in "$WORK"/runs/*; do
        cp "$run/metrics.jsonl" "$results/$(basename "$run").jsonl" 2> /dev/null || true
    done
    tar -C "$WORK" -czf "$OUT/results.tar.gz" results
}

for part in ${*:-bags epoch order}; do
    "$part"
    summarise
done
cat "$OUT/summary.txt"
