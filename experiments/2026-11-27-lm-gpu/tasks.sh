#!/usr/bin/env bash
# Made-up tasks of language modelling, many small models at a time on the GPUs and the cores of one machine: COPY and
# associative recall by size of the state, passkey, selective copying. Induction heads have a script of their own.
#   OUT=DIR tasks.sh SSM [copying] [mqar] [selection] [passkey]
# OUT gets summary.txt (also printed), results.tar.gz and, while it runs, runs/. No data is needed; python3 makes the
# tables. Where a step is short, two cores take it as fast as the launches of a GPU allow, and many runs on one GPU wait for
# each other: only COPY and recall with their batches of 8,192 tokens go to the GPUs. Where there is no GPU everything
# runs on the cores.
# Settings, each from the environment:
#   DEVICES     GPUs, as in "cuda:0 cuda:1"; default: those that nvidia-smi lists
#   PER_DEVICE  runs at a time on each GPU, 3
#   THREADS     cores of a run on the CPU, 2
#   JOBS        runs at a time on the CPU; default: what cores are left by the GPUs
#   SECS        time of a run in seconds; it is then cut, and scored with the best weights so far, 420
#   TOTAL       time of all of them: a run that starts late is cut sooner, or left out, 500
#   SEEDS       of COPY, 0 1
#   STEPS       steps of every run instead of its own number, to try the script
set -euo pipefail
ssm=$(realpath "$1")
shift
groups=${*:-copying mqar selection passkey}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
: "${OUT:?a directory for results}" "${PER_DEVICE:=3}" "${THREADS:=2}" "${SECS:=420}" "${TOTAL:=500}" "${SEEDS:=0 1}" "${STEPS:=}"
if [ -z "${DEVICES+x}" ]; then
    DEVICES=$(nvidia-smi --list-gpus 2> /dev/null | awk '{ printf "cuda:%d ", NR - 1 }') || DEVICES=
fi
n_devices=$(wc -w <<< "$DEVICES")
left=$(($(nproc) - 2 * PER_DEVICE * n_devices))
: "${JOBS:=$((left >= THREADS ? left / THREADS : 1))}"
mkdir -p "$OUT"
OUT=$(realpath "$OUT")
deadline=$(($(date +%s) + TOTAL))
export ssm root OUT DEVICES PER_DEVICE THREADS SECS STEPS deadline
: > "$OUT/gpu.jobs"
: > "$OUT/cpu.jobs"

# gpu|cpu NAME CONFIG OVERRIDES...: a run for the queue of a kind of device.
gpu() {
    if [ "$n_devices" = 0 ]; then cpu "$@"; else printf '%s\0' "$*" >> "$OUT/gpu.jobs"; fi
}
cpu() { printf '%s\0' "$*" >> "$OUT/cpu.jobs"; }

# One run: trained until it ends or its time does, and scored in any case.
run() {
    set -euo pipefail
    set -f
    read -ra words <<< "$1"
    name=${words[0]} config=${words[1]}
    device=flex
    if [ "$2" = gpu ]; then
        read -ra devices <<< "$DEVICES"
        device=${devices[$((SLOT / PER_DEVICE % ${#devices[@]}))]}
    fi
    arguments=("$root/configs/lm/$config.toml" --quiet --device "$device" --set "run.dir=$OUT/runs" --set "run.name=$name")
    for word in "${words[@]:2}"; do arguments+=(--set "$word"); done
    if [ -n "$STEPS" ]; then arguments+=(--set "train.steps=$STEPS" --set 'schedule={constant={}}'); fi
    export RAYON_NUM_THREADS=$THREADS
    started=$(date +%s)
    # What remains is for the scores.
    secs=$((deadline - started - 40))
    if [ "$secs" -lt 20 ]; then return 0; fi
    if [ "$secs" -gt "$SECS" ]; then secs=$SECS; fi
    timeout -s INT -k 30 "$secs" "$ssm" train "${arguments[@]}" > "$OUT/$name.txt" 2> "$OUT/$name.log" || true
    echo "$(($(date +%s) - started)) s of training on $device" >> "$OUT/$name.log"
    if [ ! -e "$OUT/runs/$name/result.json" ]; then
        last=$(ls "$OUT/runs/$name/checkpoints" 2> /dev/null | sed -n 's/^step_0*//p' | sort -n | tail -n 1)
        if [ -n "$last" ]; then
            timeout -k 5 60 "$ssm" train "${arguments[@]}" --resume --set "train.steps=$last" \
                --set 'schedule={constant={}}' \
                > "$OUT/$name.txt" 2>> "$OUT/$name.log" || true
        fi
        if [ ! -e "$OUT/runs/$name/result.json" ]; then echo "$name: $(head -n 1 "$OUT/$name.log")" >&2; fi
    fi
}
export -f run

# Length of a string that is said again without mistakes, against the size of the state.
copying() {
    tests='data.copying.test_lens=[1,2,3,4,6,8,10,12,16,20,24,32,40,48,56,64]'
    common="$tests data.copying.lengths=inverse train.steps=12000 train.batch_size=64 train.eval_every_steps=2000"
    for seed in $SEEDS; do
        for n in 128 64 32 16 8; do
            gpu "copying_${n}_$seed" copying_mamba $common model.mixer.mamba.d_state=$n optim.adamw.lr=3e-3 run.seed=$seed
        done
    done
}

# Share of keys whose value is recalled, against the sizes of state and model.
mqar() {
    for d in 64 32 16; do
        for n in 32 8 2; do
            gpu "mqar_${d}_$n" mqar_mamba train.steps=12000 train.batch_size=64 train.eval_every_steps=2000 \
                data.mqar.seq_len=128 data.mqar.n_pairs=16 data.mqar.n_vocab=256 \
                model.d_model=$d model.mixer.mamba.d_state=$n
        done
    done
}

passkey() {
    for seed in 0 1; do
        cpu "passkey_$seed" passkey_mamba train.steps=12000 run.seed=$seed \
            'data.passkey.test_lens=[64,256,1024,4096,16384]' data.passkey.samples.test_tokens=2097152
    done
}

# As the paper's table 1 in small: the same block with and without selection, three seeds.
selection() {
    for seed in 0 1 2; do
        cpu "selective_$seed" selective_copying_mamba run.seed=$seed
        cpu "lti_$seed" selective_copying_lti run.seed=$seed
    done
}

for group in $groups; do "$group"; done

# Kernels are compiled once, before many processes ask for them.
if [ -s "$OUT/gpu.jobs" ]; then
    read -ra devices <<< "$DEVICES"
    timeout 60 "$ssm" bench "$root/configs/lm/copying_mamba.toml" --device "${devices[0]}" --steps 20 --json \
        >> "$OUT/bench.txt" 2>> "$OUT/bench.log" || true
fi
queue() {
    if [ -s "$OUT/$1.jobs" ]; then
        xargs -0 -a "$OUT/$1.jobs" -n 1 -P "$2" --process-slot-var=SLOT bash -c 'run "$1" "$0"' "$1"
    fi
}
queue gpu $((PER_DEVICE * n_devices)) &
queue cpu "$JOBS" &
wait
python3 "$here/summary.py" "$OUT" | tee "$OUT/summary.txt"
(cd "$OUT" && tar -czf results.tar.gz --exclude checkpoints runs ./*.txt ./*.log)
