#!/usr/bin/env bash
# Induction heads trained at 256 tokens, for as many steps as the time allows and in as many calls as it takes.
#   OUT=DIR [RESUME=OLD_OUT] induction.sh SSM [VARIANT...]
# Variants, by default those of the second round, are the names in the table below. A model of 66,000 parameters takes a
# step in 6 ms on two idle cores, which is what launches of a GPU take, but in 30 to 45 ms where cores are busy. OUT gets
# summary.txt (also printed), results.tar.gz, and state.00, state.01 and so on, a tar file in pieces: what the next call
# goes on from. Settings, each from the environment:
#   SECS     time of the call in seconds, 540
#   TEST     seconds of it for the scores, 110
#   RESUME   OUT of the call before
#   DECAY    let the rate fall to zero in so many steps at the end of this call, and so end the runs
#   MS_A_STEP  what a step of the decay takes in milliseconds, 12
#   ON       what trains, gpu or cpu; default: GPUs where there are some. Scores are made on GPUs in any case, if there are.
#   DEVICES  GPUs, as in "cuda:0 cuda:1"; default: those that nvidia-smi lists, else the cores
#   THREADS  cores of a run, 2
#   WEIGHTS  which are scored: last, or best on the validation set; default: best with DECAY, else last
#   N_TEST   sequences of each length, 128
#   MILLION  the longest length that is tested and its quarter and so on, 1048576
set -euo pipefail
ssm=$(realpath "$1")
shift
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
: "${OUT:?a directory for results}" "${SECS:=540}" "${TEST:=110}" "${RESUME:=}" "${DECAY:=}" "${THREADS:=2}" "${N_TEST:=128}"
: "${MILLION:=1048576}"
if [ -z "${WEIGHTS:=}" ]; then WEIGHTS=$([ -n "$DECAY" ] && echo best || echo last); fi
if [ -z "${DEVICES+x}" ]; then
    DEVICES=$(nvidia-smi --list-gpus 2> /dev/null | awk '{ printf "cuda:%d ", NR - 1 }') || DEVICES=
fi
read -ra gpus <<< "$DEVICES"
if [ -z "${ON:=}" ]; then ON=$([ ${#gpus[@]} -gt 0 ] && echo gpu || echo cpu); fi
# Two scores at a time on each GPU: one alone waits for its launches.
read -ra devices <<< "${DEVICES:+$DEVICES }${DEVICES:-flex}"
started=$(date +%s)
mkdir -p "$OUT/scored"
OUT=$(realpath "$OUT")
if [ -n "$RESUME" ]; then cat "$RESUME"/state.?? | tar -xzf - -C "$OUT"; fi

# The protocol of the paper, whose Adam is the usual one, and what it leaves open or what else may keep a state: how small
# a gradient Adam follows and how long it remembers a large one, where step sizes begin, how much a step of training sees.
mixer=model.mixer.mamba
long="optim.adamw.betas=[0.9,0.999]"
adam="optim.adamw.betas=[0.9,0.999] optim.adamw.eps=1e-8"
declare -A variants=(
    [paper_0]="$adam"
    [paper_1]="$adam run.seed=1"
    [paper_2]="$adam run.seed=2"
    [paper_slow]="$adam $mixer.dt_min=1e-6 $mixer.dt_init_floor=1e-6"
    [long]="$long"
    [middle]="optim.adamw.betas=[0.9,0.99]"
    [eps_0]=""
    [eps_1]="run.seed=1"
    [tiny]="optim.adamw.eps=1e-20"
    [slow]="$mixer.dt_min=1e-6 $mixer.dt_init_floor=1e-6"
    [slower]="$mixer.dt_min=1e-8 $mixer.dt_init_floor=1e-8"
    [batch]="train.batch_size=32"
    [decay]="optim.adamw.weight_decay=0.01"
    [fast]="optim.adamw.lr=2e-3"
    # The first round said: the second moment at 0.999, and step sizes that begin small.
    [slow_long]="$long $mixer.dt_min=1e-6 $mixer.dt_init_floor=1e-6"
    [slow_long_1]="$long $mixer.dt_min=1e-6 $mixer.dt_init_floor=1e-6 run.seed=1"
    [slower_long]="$long $mixer.dt_min=1e-8 $mixer.dt_init_floor=1e-8"
    [slower_long_1]="$long $mixer.dt_min=1e-8 $mixer.dt_init_floor=1e-8 run.seed=1"
    [slower_paper]="$adam $mixer.dt_min=1e-8 $mixer.dt_init_floor=1e-8"
    # The third round said: what is learned last is which channels hold for long. A larger rank of the projection of the
    # step size, and a higher rate, move step sizes faster.
    [rank_16]="$long $mixer.dt_rank=16"
    [rank_64]="$long $mixer.dt_rank=64"
    [rank_64_1]="$long $mixer.dt_rank=64 run.seed=1"
    [rank_128]="$long $mixer.dt_rank=128"
    [rank_64_slow]="$long $mixer.dt_rank=64 $mixer.dt_min=1e-6 $mixer.dt_init_floor=1e-6"
    [rank_64_fast]="$long $mixer.dt_rank=64 optim.adamw.lr=2e-3"
    [fast_long]="$long optim.adamw.lr=2e-3"
    [fast_long_1]="$long optim.adamw.lr=2e-3 run.seed=1"
    [faster_long]="$long optim.adamw.lr=4e-3"
    [fast_slow]="$long optim.adamw.lr=2e-3 $mixer.dt_min=1e-6 $mixer.dt_init_floor=1e-6"
    [fast_batch]="$long optim.adamw.lr=2e-3 train.batch_size=32"
    [state_4]="$long $mixer.d_state=4"
    [state_64]="$long $mixer.d_state=64"
    # The fourth: the recipe of the file.
    [scaled]="$long optim.adamw.lr=3e-3 optim.adamw.eps=1e-20 run.seed=1 model.logit_scale=0.000244140625 $mixer.d_state=2"
    [low_long]="$long $mixer.dt_min=1e-8 $mixer.dt_init_floor=1e-8 $mixer.dt_max=1e-3"
)
names=${*:-slow_long slower_long slower_long_1 slower_paper}

# What all variants share. Validation is longer than training: it selects weights that forget little.
lens=$((MILLION / 64)),$((MILLION / 16)),$((MILLION / 4)),$MILLION
common=(--quiet --set 'optim.adamw.betas=[0.9,0.95]' --set optim.adamw.eps=1e-15 --set optim.adamw.lr=1e-3
    --set run.seed=0 --set model.logit_scale=1 --set $mixer.d_state=16
    --set $mixer.dt_min=1e-3 --set $mixer.dt_init_floor=1e-4
    --set "data.induction_heads.test_lens=[64,256,1024,4096,$lens]"
    --set "data.induction_heads.samples.test=$N_TEST" --set "data.induction_heads.samples.test_tokens=$((N_TEST * MILLION))"
    --set data.induction_heads.valid_len=16384 --set data.induction_heads.samples.valid=64
    --set train.eval_every_steps=2000 --set checkpoint.keep=1 --set log.every_steps=500)

# arguments NAME DIR: those of a run, in `arguments`.
arguments() {
    arguments=("$root/configs/lm/induction_heads_mamba.toml" "${common[@]}" --set "run.dir=$2" --set "run.name=$1")
    for word in ${variants[$1]?no variant $1}; do arguments+=(--set "$word"); done
}
last_step() { ls "$OUT/runs/$1/checkpoints" 2> /dev/null | sed -n 's/^step_0*//p' | sort -n | tail -n 1 || true; }

# train NAME DEVICE: until the time for it is over, and through the decay if there is one.
train() {
    arguments "$1" "$OUT/runs"
    arguments+=(--device "$2")
    resume=()
    if [ -n "$(last_step "$1")" ]; then resume=(--resume); fi
    secs=$((started + SECS - TEST - $(date +%s)))
    if [ -n "$DECAY" ]; then secs=$((secs - DECAY * ${MS_A_STEP:-12} / 1000)); fi
    if [ "$secs" -gt 5 ]; then
        RAYON_NUM_THREADS=$THREADS timeout -s INT -k 20 "$secs" "$ssm" train "${arguments[@]}" \
            --set train.steps=10000000 --set 'schedule={constant={}}' "${resume[@]}" \
            > /dev/null 2>> "$OUT/$1.log" || true
    fi
    if [ -z "$DECAY" ]; then return 0; fi
    # The end is scored elsewhere: the run is stopped when its last weights are saved.
    end=$(($(last_step "$1") + DECAY))
    RAYON_NUM_THREADS=$THREADS "$ssm" train "${arguments[@]}" --resume --set train.steps=$end \
        --set "schedule={wsd={decay_steps=$DECAY}}" > /dev/null 2>> "$OUT/$1.log" &
    pid=$!
    while kill -0 $pid 2> /dev/null && [ "$(last_step "$1")" -lt $end ] && [ "$(date +%s)" -lt $((started + SECS - TEST)) ]; do
        sleep 0.5
    done
    kill -INT $pid 2> /dev/null || true
    wait $pid || true
}

# Scores a copy: the run itself goes on as if nobody had looked.
score() {
    arguments "$1" "$OUT/scored"
    steps=$(last_step "$1")
    if [ -z "$steps" ]; then return 0; fi
    rm -rf "$OUT/scored/$1"
    cp -r "$OUT/runs/$1" "$OUT/scored/$1"
    # Without its best weights a run scores its last ones.
    best=$(head -n 1 "$OUT/scored/$1/checkpoints/best" 2> /dev/null || true)
    if [ "$WEIGHTS" = last ] && [ "$best" != "$(head -n 1 "$OUT/scored/$1/checkpoints/last")" ] && [ -n "$best" ]; then
        rm -r "$OUT/scored/$1/checkpoints/$best"
    fi
    left=$((started + SECS - $(date +%s)))
    if [ "$left" -lt 5 ]; then return 0; fi
    timeout -k 5 "$left" "$ssm" train "${arguments[@]}" --device "$2" --resume --set train.steps="$steps" \
        --set 'schedule={constant={}}' > "$OUT/$1.txt" 2>> "$OUT/$1.log" || true
}

if [ "$ON" = gpu ]; then
    # Kernels are compiled once, before several processes ask for them.
    timeout 60 "$ssm" bench "$root/configs/lm/induction_heads_mamba.toml" --device "${gpus[0]}" --steps 20 \
        > "$OUT/bench.txt" 2>&1 || true
fi
i=0
for name in $names; do
    device=flex
    if [ "$ON" = gpu ]; then device=${gpus[$((i % ${#gpus[@]}))]}; fi
    i=$((i + 1))
    train "$name" "$device" &
done
wait
read -ra queue <<< "$(echo $names)"
for i in "${!devices[@]}"; do
    for ((j = i; j < ${#queue[@]}; j += ${#devices[@]})); do score "${queue[$j]}" "${devices[$i]}"; done &
done
wait
rm -rf "$OUT"/state.??
(cd "$OUT" && tar -czf - runs | split -b 15000000 -d - state.)
python3 "$here/induction.py" "$OUT" | tee "$OUT/summary.txt"
(cd "$OUT" && tar -czf results.tar.gz --exclude checkpoints runs scored ./*.txt ./*.log)
