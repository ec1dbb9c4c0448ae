#!/bin/sh
# Measurements on a GPU: memory and time of long bags, and where an epoch's time goes. Needs no network and no data;
# python3 with numpy, h5py if it is there.
#   SSM=target/release/ssm OUT=results sh gpu.sh [bags] [epoch]
# $OUT holds summary.txt (printed too) and results.tar.gz after each part. Less than five minutes on an H200 or H100,
# 2 GB of disk, 4 GB of host memory. Every number below may be set in the environment, which is how the script
# is tried on a small CPU.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
: "${SSM:?the program ssm}" "${OUT:?a directory for results}"
: "${DEVICE:=cuda:0}" "${WORK:=$(mktemp -d)}"
: "${BAGS:=1000 10000 30000 100000}" "${BAG_STEPS:=6}" "${BAG_SECS:=40}"
: "${SLIDES:=500}" "${SLIDE_LEN:=5000}" "${D_FEATURE:=1024}" "${EPOCH_SECS:=30}" "${D_MODEL:=512}"
results=$WORK/results
mkdir -p "$OUT" "$results"
export SLIDES SLIDE_LEN D_FEATURE WORK BAGS
files='--set task.mil.class_weighted=false --set data.slides.split_columns=["split"] --set train.batch_size=1'

# What the device holds, all processes and pools, in MiB; nothing where there is none.
held() {
    nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits 2> /dev/null | head -n 1
}

# watched NAME SECONDS COMMAND...: notes the largest memory of the device, and of the process on the host.
watched() {
    name=$1 secs=$2
    shift 2
    before=$(held) peak=0 host=0
    timeout -s INT -k 20 "$secs" "$@" > "$results/$name.out" 2> "$results/$name.log" &
    pid=$!
    while kill -0 "$pid" 2> /dev/null; do
        now=$(held)
        if [ "${now:-0}" -gt "$peak" ]; then peak=$now; fi
        child=$(pgrep -P "$pid" 2> /dev/null | head -n 1) || child=$pid
        now=$(awk '/^VmHWM/ { print int($2 / 1024) }' "/proc/${child:-$pid}/status" 2> /dev/null) || now=0
        if [ "${now:-0}" -gt "$host" ]; then host=$now; fi
        sleep 0.1
    done
    wait "$pid" || echo "$name: ended early, exit code $?" >> "$results/ended_early.txt"
    echo "$name $((peak - ${before:-0})) $host" >> "$results/memory.txt"
}

# A table of slides that are links to few files: reading is from the page cache, the fastest storage there is.
make_slides() {
    python3 - "$@" <<'PYTHON'
import os, pathlib, sys
import numpy as np
work, d = pathlib.Path(os.environ["WORK"]), int(os.environ["D_FEATURE"])
rng = np.random.default_rng(0)


def features(length):
    # As a ReLU leaves them: half of the features are zero.
    return np.maximum(rng.standard_normal((length, d), dtype=np.float32), 0)


def table(name, kind, bases, n_train):
    folder = work / name
    folder.mkdir(exist_ok=True)
    for slide in range(n_train + 4):
        link = folder / f"slide_{slide}.{kind}"
        link.unlink(missing_ok=True)
        os.link(bases[slide % len(bases)], link)
    with open(work / f"{name}.csv", "w") as text:
        print("slide_id,case_id,label,split", file=text)
        for slide in range(n_train + 4):
            part = "train" if slide < n_train else ("valid", "valid", "test", "test")[slide - n_train]
            print(f"slide_{slide},{slide},{'ab'[slide % 2]},{part}", file=text)


def bags():
    for length in map(int, os.environ["BAGS"].split()):
        base = work / f"bag_{length}.npy"
        np.save(base, features(length))
        table(f"bag_{length}", "npy", [base], 100)


def epoch():
    n, length = int(os.environ["SLIDES"]), int(os.environ["SLIDE_LEN"])
    arrays = [features(length) for _ in range(min(8, n))]
    # Plain arrays; HDF5 as CLAM writes it, an instance a chunk; HDF5 with gzip.
    kinds = {"npy": ("npy", None), "clam": ("h5", dict(chunks=(1, d))),
             "gzip": ("h5", dict(chunks=(min(256, length), d), compression="gzip", compression_opts=1))}
    try:
        import h5py
    except ImportError:
        kinds = {"npy": kinds["npy"]}
    for name, (kind, layout) in kinds.items():
        bases = []
        for index, x in enumerate(arrays):
            bases.append(work / f"base_{name}_{index}.{kind}")
            if kind == "npy":
                np.save(bases[-1], x)
            else:
                with h5py.File(bases[-1], "w") as out:
                    out.create_dataset("features", data=x, **layout)
        table(f"epoch_{name}", kind, bases, n)


{"bags": bags, "epoch": epoch}[sys.argv[1]]()
PYTHON
}

# A training step of the published sizes (two layers of width 512) on one bag; with and without recomputation
# of layers. One process a length: pools of device memory never shrink.
bags() {
    make_slides bags
    for length in $BAGS; do
        for recompute in keep layer; do
            again=
            if [ "$recompute" = layer ]; then again='--set train.recompute="layer"'; fi
            # shellcheck disable=SC2086
            watched "bag_${length}_$recompute" "$BAG_SECS" "$SSM" bench "$root/configs/mil/slides_srmamba.toml" \
                --device "$DEVICE" --steps "$BAG_STEPS" --json $files $again --set "model.mamba_mil.d_model=$D_MODEL" \
                --set "data.slides.table=$WORK/bag_$length.csv" --set "data.slides.features=$WORK/bag_$length"
        done
        rm -rf "$WORK/bag_$length" "$WORK/bag_$length.npy"
    done
}

# One epoch from each kind of file, with a profile: what part of it is reading?
epoch() {
    make_slides epoch
    for table in "$WORK"/epoch_*.csv; do
        name=$(basename "$table" .csv)
        # shellcheck disable=SC2086
        watched "$name" "$EPOCH_SECS" "$SSM" train "$root/configs/mil/slides_srmamba.toml" --quiet --device "$DEVICE" \
            --profile "$WORK/$name.trace" $files --set "model.mamba_mil.d_model=$D_MODEL" \
            --set "run.dir=$WORK/runs" --set "run.name=$name" \
            --set "data.slides.table=$table" --set "data.slides.features=$WORK/$name" --set train.epochs=1 \
            --set train.eval_every_steps=1000000 --set log.every_steps=10
    done
}

# What there is to say so far.
summarise() {
    python3 - "$WORK" > "$OUT/summary.txt" <<'PYTHON'
import collections, json, pathlib, sys
work = pathlib.Path(sys.argv[1])
out, runs = work / "results", work / "runs"
memory = {}
if (out / "memory.txt").exists():
    memory = {name: rest for name, *rest in map(str.split, open(out / "memory.txt"))}


def held(name):
    device, host = map(int, memory.get(name, (0, 0)))
    return f"{device * 2**20 / 1e9:.2f} GB on the device, {host * 2**20 / 1e9:.2f} GB on the host (with the file)"


for name in sorted((name for name in memory if name.startswith("bag_")), key=lambda name: (name[-5:], int(name.split("_")[1]))):
    length = int(name.split("_")[1])
    try:
        tables = json.loads((out / f"{name}.out").read_text())
        step = {row["part"]: row["ms"] for row in tables["A step"]}
        pools = next(row["value"] for row in tables["Estimate"] if row["what"].startswith("memory, all"))
        model = sum(step.values()) - step["data"]
        print(f"{name}: {model:.1f} ms a step, {1e3 * model / length:.2f} us an instance, without reading "
              f"({step['data']:.1f} ms); pools {pools}; peak {held(name)}")
    except (ValueError, KeyError, StopIteration) as error:
        print(f"{name}: no result ({error}); peak {held(name)}")

for trace in sorted(work.glob("epoch_*.trace")):
    text = trace.read_text().rstrip().rstrip(",")
    text += "" if text.endswith("]") else "]"
    try:
        events = json.loads(text)
    except ValueError as error:
        print(f"{trace.stem}: no profile ({error})")
        continue
    total, count, first, opened = collections.Counter(), collections.Counter(), {}, collections.defaultdict(list)
    for event in events:
        place = event.get("tid")
        if event["ph"] == "B":
            opened[place].append((event["name"], event["ts"]))
        elif event["ph"] == "E" and opened[place]:
            name, began = opened[place].pop()
            took = event["ts"] - began
            count[name] += 1
            # The first of each kind compiles kernels.
            first.setdefault(name, took)
            total[name] += took
    n = count["optimizer"]
    parts = [(name, (total[name] - first[name]) / max(1, count[name] - 1) / 1e3)
             for name in ("data", "forward", "backward", "norm", "optimizer") if count[name]]
    whole = sum(ms for _, ms in parts)
    spans = ", ".join(f"{name} {ms:.2f} ms ({ms / whole:.0%})" for name, ms in parts)
    print(f"{trace.stem}: {n} steps, {whole:.2f} ms each: {spans}; peak {held(trace.stem)}")

if (out / "ended_early.txt").exists():
    print((out / "ended_early.txt").read_text().strip())
PYTHON
    for run in "$WORK"/runs/*; do
        cp "$run/metrics.jsonl" "$results/$(basename "$run").jsonl" 2> /dev/null || true
    done
    tar -C "$WORK" -czf "$OUT/results.tar.gz" results
}

for part in ${*:-bags epoch}; do
    date "+%T $part"
    "$part"
    summarise
done
date "+%T end"
cat "$OUT/summary.txt"
