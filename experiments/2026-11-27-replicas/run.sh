#!/usr/bin/env bash
# Data-parallel training on the GPUs of one machine: the Mamba-130M recipe with the same 8 x 2048 tokens in
# every step on 1, 2, 4 of them, as many as there are. From the root of the repository:
#   experiments/2026-11-27-replicas/run.sh path/to/ssm [part...]
# Parts, all by default: scale share profile seed recipe kill full. Results go to $OUT (default: a new directory).
#   TOKENS     directory of token shards; by default made of War and Peace and GPT-NeoX's vocabulary in SSM_DATA
#   PRECISION  f32 (default) or bf16
#   STEPS      steps of a measured run, 60 by default
#   RECIPE_STEPS  steps of a run of the part `recipe`, 12 by default; one GPU takes 2.5 s for each
#   LAYERS     layers of the model, 24 by default
set -euo pipefail
ssm=$(realpath "${1:?the binary}")
shift
parts=${*:-scale share profile seed recipe kill full}
out=$(realpath "${OUT:-$(mktemp -d)}")
steps=${STEPS:-60}
recipe_steps=${RECIPE_STEPS:-12}
config=configs/lm/mamba_130m.toml

# NVLink multicast stays off; NCCL is found by the name `libnccl.so`.
export NCCL_NVLS_ENABLE=0
if ! ldconfig -p | grep -q 'libnccl\.so '; then
    found=$({
        ls /usr/lib/*/libnccl.so.2 /usr/local/*/lib*/libnccl.so.2
        python3 -c 'import nvidia.nccl as n; print(list(n.__path__)[0] + "/lib/libnccl.so.2")'
        find / -xdev -name libnccl.so.2
    } 2>/dev/null | head -1 || true)
    mkdir -p "$out/lib" && ln -sf "${found:?no NCCL on this machine}" "$out/lib/libnccl.so"
    export LD_LIBRARY_PATH="$out/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    echo "NCCL: $found"
fi

tokens=${TOKENS:-$out/tokens}
if [ ! -d "$tokens" ]; then
    "$ssm" tokenize "$SSM_DATA/lm/warpeace_input.txt.gz" \
        --tokenizer "$SSM_DATA/tokenizers/20B_tokenizer.json.gz" --out "$tokens"
fi
gpus=$(nvidia-smi -L | wc -l)
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
counts=()
for n in 1 2 4 8; do [ "$n" -gt "$gpus" ] || counts+=("$n"); done
most=${counts[-1]}
has() { [[ " $parts " == *" $1 "* ]]; }

# train NAME GPUS BATCH ACCUMULATE STEPS [argument...]: a run; its times and the memory of every GPU are kept.
train() {
    local name=$1 n=$2 batch=$3 accumulate=$4 length=$5
    shift 5
    nvidia-smi --query-gpu=index,memory.used --format=csv,noheader,nounits -lms 500 > "$out/$name.memory" &
    local watcher=$!
    local status=0
    "$ssm" train "$config" --quiet --set "run.dir=$out" --set "run.name=$name" --set device.backend=cuda \
        --set "device.replicas=$n" --set "data.shards.train=[{dir=\"$tokens\"}]" \
        --set "train.batch_size=$batch" --set "train.accumulate=$accumulate" --set "train.steps=$length" \
        --set train.eval_batch_size=4 --set "train.eval_every_steps=$length" --set log.every_steps=5 \
        --set schedule.cosine.warmup_steps=8 --set "model.n_layer=${LAYERS:-24}" \
        ${PRECISION:+--set "train.precision=\"$PRECISION\""} "$@" > "$out/$name.log" 2>&1 || status=$?
    kill "$watcher"
    [ "$status" = 0 ] || { echo "$name: exit code $status"; tail -5 "$out/$name.log"; }
    return "$status"
}

# rate NAME [SHARE] [FIRST]: tokens a second after the first 20 or FIRST steps, milliseconds of 16,384 / SHARE tokens.
rate() {
    python3 - "$out/$1" "${2:-1}" "${3:-20}" <<'PY'
import json, re, sys
run, share = sys.argv[1], int(sys.argv[2])
rows = [json.loads(line) for line in open(run + "/metrics.jsonl")]
rates = [row["samples_per_sec"] for row in rows if row["split"] == "train" and row["step"] > int(sys.argv[3])]
tokens = len(rates) / sum(1 / rate for rate in rates)
memory = {}
for line in open(run + ".memory"):
    match = re.fullmatch(r"(\d+), (\d+)\s*", line)
    if match:
        gpu, used = map(int, match.groups())
        memory[gpu] = max(used, memory.get(gpu, 0))
used = sorted((m for m in memory.values() if m > 1000), reverse=True)
print(f"{tokens:.0f} {16384 / share / tokens * 1e3:.2f} {'/'.join(f'{m / 1024:.1f}' for m in used)}")
PY
}

# spans NAME LABEL [SKIP]: medians of the spans of a step of a run with `--profile`, ms, of its first replica.
spans() {
    python3 - "$out/$1.json" "$2" "${3:-5}" <<'PY'
import collections, json, statistics, sys
skip = int(sys.argv[3])
spans, open_ = collections.defaultdict(list), {}
for event in json.load(open(sys.argv[1])):
    key = (event.get("tid"), event.get("name"))
    if event.get("ph") == "B":
        open_[key] = event["ts"]
    elif event.get("ph") == "E" and key in open_:
        spans[key].append((event["ts"] - open_.pop(key)) / 1e3)
leader = next((tid for tid, name in spans if name == "optimizer"), None)
names = ["data", "forward", "backward", "collective", "norm", "optimizer"]
found = {n: statistics.median(spans[leader, n][skip:]) for n in names if len(spans[leader, n]) > skip}
# Whoever comes last to the collective waits for nobody.
each = [times[skip:] for (_, name), times in spans.items() if name == "collective"]
if len(each) > 1 and all(each):
    found["collective of the last to come"] = statistics.median(map(min, zip(*each)))
print(f"{sys.argv[2]}:", ", ".join(f"{name} {ms:.2f}" for name, ms in found.items()))
PY
}

if has scale; then
    echo "== the same 8 x 2048 tokens a step; first a run that fills the caches of kernels"
    train warm 1 8 1 10
    echo "gpus  tokens/s  ms/step  efficiency  GiB of each"
    for n in "${counts[@]}"; do
        [ "$n" = 1 ] || train "warm$n" "$n" $((8 / n)) "$n" 10
        train "gpus$n" "$n" $((8 / n)) "$n" "$steps"
        read -r speed ms memory < <(rate "gpus$n")
        [ "$n" != 1 ] || one=$speed
        awk -v n="$n" -v t="$speed" -v o="$one" -v m="$ms" -v g="$memory" \
            'BEGIN { printf "%4d  %8d  %7.1f  %9.1f%%  %s\n", n, t, m, 100 * t / o / n, g }' | tee -a "$out/scale.txt"
        grep -h 'replicas:' "$out/gpus$n.log" || true
    done
fi

if has share; then
    echo "== what one GPU takes for its share of a step, without any other: what is more is the collective"
    echo "gpus  ms/step  of it the share  not hidden"
    for n in "${counts[@]:1}"; do
        train "share$n" 1 $((8 / n)) 1 "$steps"
        read -r _ share _ < <(rate "share$n" "$n")
        read -r _ whole _ < <(rate "gpus$n")
        awk -v n="$n" -v w="$whole" -v s="$share" \
            'BEGIN { printf "%4d  %7.1f  %15.1f  %7.2f ms\n", n, w, s, w - s }' | tee -a "$out/share.txt"
    done
fi

if has profile; then
    echo "== medians of the spans of a step, ms, the device waited for after each (replica 0)"
    for n in "${counts[@]}"; do
        train "profile$n" "$n" $((8 / n)) "$n" 20 --profile "$out/profile$n.json"
        spans "profile$n" "$n GPU" | tee -a "$out/profile.txt"
    done
fi

if has seed; then
    echo "== another seed on one GPU, and all curves on one page"
    train seed1 1 8 1 "$steps" --set run.seed=1
    # What two GPUs add up, one after the other on one: the same sums in the same order.
    train same1 1 4 2 "$steps"
    runs=()
    for n in "${counts[@]}"; do runs+=("$out/gpus$n"); done
    "$ssm" compare "${runs[@]}" "$out/same1" "$out/seed1" --output "$out/curves.html"
    python3 - "$out" "${counts[@]}" <<'PY'
import csv, json, sys
out, runs = sys.argv[1], [f"gpus{n}" for n in sys.argv[2:]] + ["same1", "seed1"]
curves = {}
for run in runs:
    rows = map(json.loads, open(f"{out}/{run}/metrics.jsonl"))
    curves[run] = {row["step"]: row["loss"] for row in rows if row["split"] == "train"}
with open(f"{out}/curves.csv", "w") as file:
    table = csv.writer(file)
    table.writerow(["step"] + runs)
    for step in sorted(curves["gpus1"]):
        table.writerow([step] + [f"{curves[run][step]:.6f}" for run in runs])
pairs = [(run, "gpus1") for run in runs[1:]] + [("gpus2", "same1")] * ("gpus2" in runs)
for run, other in pairs:
    gaps = [abs(curves[run][s] - curves[other][s]) for s in curves[other]]
    mean = sum(gaps) / len(gaps)
    print(f"{run} and {other}: at most {max(gaps):.6f} nats apart, {mean:.6f} on average")
PY
fi

# What a step of the recipe is: half a million tokens, here 32 micro-batches of 8 x 2048, shared among the GPUs.
if has recipe; then
    echo "== the recipe's step: 32 micro-batches of 8 x 2048 tokens, at a rate of its warm-up"
    own=(--set log.every_steps=1 --set 'schedule={constant={}}' --set optim.adamw.lr=1e-4)
    for n in "${counts[@]}"; do train "ready$n" "$n" 8 "$n" 2 "${own[@]}"; done
    echo "gpus  tokens/s  efficiency  GiB of each"
    for n in "${counts[@]}"; do
        train "recipe$n" "$n" 8 32 "$recipe_steps" "${own[@]}"
        read -r speed _ memory < <(rate "recipe$n" 1 3)
        [ "$n" != 1 ] || one=$speed
        awk -v n="$n" -v t="$speed" -v o="$one" -v g="$memory" \
            'BEGIN { printf "%4d  %8d  %9.1f%%  %s\n", n, t, 100 * t / o / n, g }' | tee -a "$out/recipe.txt"
    done
    train recipe_seed1 "$most" 8 32 "$recipe_steps" "${own[@]}" --set run.seed=1
    # Spans of micro-batches, and the one collective, norm and optimiser of a step; the device is waited for.
    train recipe_profile "$most" 8 32 4 "${own[@]}" --profile "$out/recipe_profile.json"
    spans recipe_profile "$most GPU, recipe" 1 | tee -a "$out/recipe.txt"
    runs=()
    for n in "${counts[@]}"; do runs+=("$out/recipe$n"); done
    "$ssm" compare "${runs[@]}" "$out/recipe_seed1" --output "$out/recipe.html" > /dev/null
    python3 - "$out" "${counts[@]}" <<'PY'
import json, sys
out, runs = sys.argv[1], [f"recipe{n}" for n in sys.argv[2:]] + ["recipe_seed1"]
curves = {}
for run in runs:
    rows = map(json.loads, open(f"{out}/{run}/metrics.jsonl"))
    curves[run] = {row["step"]: row["loss"] for row in rows if row["split"] == "train"}
with open(f"{out}/recipe.csv", "w") as file:
    print(",".join(["step"] + runs), file=file)
    for step in sorted(curves[runs[0]]):
        print(",".join([str(step)] + [f"{curves[run][step]:.6f}" for run in runs]), file=file)
for run in runs[1:]:
    gaps = [abs(curves[run][step] - loss) for step, loss in curves[runs[0]].items()]
    print(f"{run} and recipe1: at most {max(gaps):.6f} nats apart, {sum(gaps) / len(gaps):.6f} on average")
PY
fi

small=(--set model.n_layer=4 --set checkpoint.every_steps=10)
# until_saved NAME STEP: waits for a checkpoint of the run in the background.
until_saved() {
    until [ -d "$out/$1/checkpoints/step_$(printf %08d "$2")" ]; do
        kill -0 "$!" || return 1
        sleep 0.2
    done
}

if has kill && [ "$most" -gt 1 ]; then
    echo "== SIGKILL while $most GPUs train, then on with one"
    (train killed "$most" $((8 / most)) "$most" 40 "${small[@]}" || true) &
    until_saved killed 20
    kill -KILL "$(cat "$out/killed/lock")"
    wait
    train killed 1 $((8 / most)) "$most" 40 "${small[@]}" --resume
    grep -hE 'WARN|INFO|device.replicas' "$out/killed.log" | grep -vE 'data:' || true
    ls "$out/killed/checkpoints"
fi

if has full && [ "$most" -gt 1 ]; then
    echo "== the memory of the last GPU is full: one replica fails, the job stops, and goes on without that GPU"
    train full "$most" $((8 / most)) "$most" 20 "${small[@]}"
    last=$((most - 1))
    python3 - "$last" <<'PY' &
import sys, time, torch
device = f"cuda:{sys.argv[1]}"
free, _ = torch.cuda.mem_get_info(device)
hold = torch.empty(free - (1 << 31), dtype=torch.uint8, device=device)
print("held:", hold.numel() >> 30, "GiB", flush=True)
time.sleep(120)
PY
    hog=$!
    sleep 15
    began=$SECONDS
    train full "$most" $((8 / most)) "$most" 40 "${small[@]}" --resume && echo "it should have failed"
    echo "stopped after $((SECONDS - began)) s"
    kill "$hog" && wait "$hog" 2>/dev/null || true
    train full 1 $((8 / most)) "$most" 40 "${small[@]}" --resume
    grep -hE 'replicas' "$out/full.log"
fi
echo "everything is in $out"
