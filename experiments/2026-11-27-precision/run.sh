#!/bin/sh
# Loss curves of one small recipe in f32 and bf16 on every backend of a machine, beside the noise of two seeds.
#   SSM=target/release/ssm SSM_DATA=data OUT=results sh run.sh
# Leaves summary.txt, curves.csv, picture.svg and compare.html in $OUT. Runs are separate processes, side by side; one whose
# backend the machine or the program does not have is named and left out. The first run is what others are compared to.
set -eu
root=$(dirname "$0")/../..
: "${SSM:?the program ssm}" "${SSM_DATA:?a directory with lm/tinyshakespeare_input.txt}" "${OUT:?a directory for results}"
: "${STEPS:=500}" "${EVERY:=25}" "${THREADS:=4}" "${SECS:=200}"
: "${RUNS:=flex_f32_1 flex_f32_2 flex_bf16_1 cuda_f32_1 cuda_f32_2 cuda_bf16_1 cuda_bf16_2 vulkan_f32_1 vulkan_f32_2}"
export SSM_DATA RAYON_NUM_THREADS="$THREADS"
mkdir -p "$OUT/logs"
rm -rf "$OUT/runs"

# train BACKEND_PRECISION_SEED
train() {
    backend=${1%%_*} seed=${1##*_} precision=${1#*_}
    precision=${precision%_*}
    # Processes that start together do not share a store of compiled kernels.
    XDG_CACHE_HOME=$OUT/cache/$1 timeout -s INT -k 20 "$SECS" \
        "$SSM" train "$root/configs/lm/shakespeare_char_mamba.toml" --quiet --device "$backend" \
        --set "run.dir=$OUT/runs" --set "run.name=$1" --set "run.seed=$seed" \
        --set "train.precision=$precision" --set "train.steps=$STEPS" \
        --set "train.eval_every_steps=$STEPS" --set "log.every_steps=$EVERY" \
        > "$OUT/logs/$1.txt" 2> "$OUT/logs/$1.log" || true
}

for run in $RUNS; do train "$run" & done
wait

done_runs=
{
    for run in $RUNS; do
        if [ -f "$OUT/runs/$run/result.json" ]; then
            done_runs="$done_runs $run"
        else
            echo "left out: $run: $(grep -m 1 -i error "$OUT/logs/$run.log" || echo "not done in $SECS s")"
        fi
    done
    echo
    # Each line of a log is one of training, or the evaluation at the end.
    for run in $done_runs; do
        sed "s/^{/{\"run\":\"$run\",/" "$OUT/runs/$run/metrics.jsonl"
    done | awk -v csv="$OUT/curves.csv" '
        function value(key,   text) {
            if (!match($0, "\"" key "\":[^,}]*")) return ""
            text = substr($0, RSTART, RLENGTH)
            sub(/^[^:]*:/, "", text)
            gsub(/"/, "", text)
            return text
        }
        {
            run = value("run"); step = value("step")
            if (!(run in seen)) { seen[run] = 1; names[++n] = run }
            if (value("split") == "valid") { valid[run] = value("loss"); next }
            loss[run, step] = value("loss"); pace[run] = value("tokens_per_sec")
            if (!(step in at)) { at[step] = 1; steps[++m] = step }
        }
        END {
            line = "step"
            for (i = 1; i <= n; i++) line = line "," names[i]
            print line > csv
            for (j = 1; j <= m; j++) {
                line = steps[j]
                for (i = 1; i <= n; i++) line = line "," sprintf("%.5f", loss[names[i], steps[j]])
                print line > csv
            }
            print "difference to " names[1] " of the training loss, over the last half of the steps, in nats"
            printf "%-14s %10s %10s %10s %10s %12s\n", "run", "valid", "mean", "RMS", "largest", "tokens/s"
            for (i = 1; i <= n; i++) {
                sum = square = most = count = 0
                for (j = int(m / 2) + 1; j <= m; j++) {
                    d = loss[names[i], steps[j]] - loss[names[1], steps[j]]
                    sum += d; square += d * d; count++
                    if (d < 0) d = -d
                    if (d > most) most = d
                }
                printf "%-14s %10.4f %10.4f %10.4f %10.4f %12.0f\n", names[i], valid[names[i]], \
                    sum / count, sqrt(square / count), most, pace[names[i]]
            }
        }'
} > "$OUT/summary.txt"
cat "$OUT/summary.txt"
python3 "$(dirname "$0")/picture.py" "$OUT/curves.csv" "$OUT/picture.svg"
# shellcheck disable=SC2046
"$SSM" compare $(for run in $done_runs; do echo "$OUT/runs/$run"; done) --output "$OUT/compare.html" \
    > "$OUT/logs/compare.txt"
