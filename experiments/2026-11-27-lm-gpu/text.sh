#!/usr/bin/env bash
# Language models of text on GPUs: characters of Shakespeare at the size of nanoGPT's model, and WikiText-2's validation
# text from a model of War and Peace and TinyStories. About five minutes on two GPUs.
#   OUT=DIR SSM_DATA=DIR text.sh SSM [books] [shakespeare]
#   DEVICES     GPUs, as in "cuda:0 cuda:1"; default: those that nvidia-smi lists, else the CPU
#   PER_DEVICE  runs at a time on each of them, 2
#   SECS        time of a run in seconds; it is then cut, and scored with the best weights so far, 220
#   TOTAL       time of all of them: a run that would start with less than a minute left does not, 480
#   STEPS       steps of every run instead of its own number, to try the script
set -euo pipefail
ssm=$(realpath "$1")
shift
groups=${*:-books shakespeare}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
: "${OUT:?a directory for results}" "${SSM_DATA:?the directory with data sets}" "${SECS:=220}" "${STEPS:=}"
: "${PER_DEVICE:=2}" "${TOTAL:=480}"
deadline=$(($(date +%s) + TOTAL))
if [ -z "${DEVICES+x}" ]; then
    DEVICES=$(nvidia-smi --list-gpus 2> /dev/null | awk '{ printf "cuda:%d ", NR - 1 }') || DEVICES=
fi
read -ra devices <<< "${DEVICES:-flex}"
mkdir -p "$OUT"
OUT=$(realpath "$OUT")

# DEVICE NAME CONFIG OVERRIDES...: one run, scored whether it ended or its time did.
run() {
    device=$1 name=$2 config=$3
    shift 3
    secs=$((deadline - $(date +%s) - 20))
    if [ "$secs" -lt 40 ]; then return 0; fi
    if [ "$secs" -gt "$SECS" ]; then secs=$SECS; fi
    arguments=("$root/configs/lm/$config.toml" --quiet --device "$device" --data-dir "$OUT" --data-dir "$SSM_DATA"
        --set "run.dir=$OUT/runs" --set "run.name=$name")
    for word in "$@"; do arguments+=(--set "$word"); done
    if [ -n "$STEPS" ]; then arguments+=(--set "train.steps=$STEPS" --set 'schedule={constant={}}'); fi
    timeout -s INT -k 30 "$secs" "$ssm" train "${arguments[@]}" > "$OUT/$name.txt" 2> "$OUT/$name.log" || true
    if [ ! -e "$OUT/runs/$name/result.json" ]; then
        last=$(ls "$OUT/runs/$name/checkpoints" 2> /dev/null | sed -n 's/^step_0*//p' | sort -n | tail -n 1)
        if [ -n "$last" ]; then
            timeout -k 5 100 "$ssm" train "${arguments[@]}" --resume --set "train.steps=$last" \
                --set 'schedule={constant={}}' \
                > "$OUT/$name.txt" 2>> "$OUT/$name.log" || true
        fi
        if [ ! -e "$OUT/runs/$name/result.json" ]; then echo "$name: $(head -n 1 "$OUT/$name.log")" >&2; fi
    fi
}

jobs=()
for group in $groups; do
    case $group in
    shakespeare)
        # The model knows the text by heart after some hundred steps: schedules that end about there, and what holds it up.
        char="shakespeare_char_mamba_10m train.eval_every_steps=50 train.patience=1000"
        for variant in \
            "600_drop2 train.steps=600 model.dropout=0.2" \
            "600_drop3 train.steps=600 model.dropout=0.3" \
            "800_drop3 train.steps=800 model.dropout=0.3" \
            "800_drop4 train.steps=800 model.dropout=0.4" \
            "800_drop3_decay train.steps=800 model.dropout=0.3 optim.adamw.weight_decay=1.0" \
            "600_drop3_fast train.steps=600 model.dropout=0.3 optim.adamw.lr=3e-3" \
            "1200_drop3_batch32 train.steps=1200 model.dropout=0.3 train.batch_size=32" \
            "500_drop3_batch128 train.steps=500 model.dropout=0.3 train.batch_size=128 optim.adamw.lr=3e-3"; do
            jobs+=("shakespeare_${variant%% *} $char schedule={cosine={warmup_steps=100,min_factor=0.0}} ${variant#* }")
        done
        ;;
    books)
        # War and Peace is at hand with the line ends of another system, which the other texts do not have.
        mkdir -p "$OUT/lm"
        gzip -dc "$SSM_DATA/lm/warpeace_input.txt.gz" | sed '1s/^\xEF\xBB\xBF//' | tr -d '\r' > "$OUT/lm/warpeace_input.txt"
        "$ssm" tokenize "$OUT/lm/warpeace_input.txt" "$SSM_DATA/lm/tiny_stories_first.txt.gz" \
            --train --vocab-size 4096 --out "$OUT/books_bpe.json"
        jobs+=("books books_bpe_mamba")
        ;;
    *)
        echo "expected shakespeare or books, got $group" >&2
        exit 2
        ;;
    esac
done
# Places for runs: each takes the next job when it is free.
printf '%s\0' "${jobs[@]}" > "$OUT/jobs"
place() {
    set -euo pipefail
    set -f
    read -ra words <<< "$1"
    read -ra devices <<< "${DEVICES:-flex}"
    run "${devices[$((SLOT % ${#devices[@]}))]}" "${words[@]}"
}
export -f run place
export ssm root OUT SSM_DATA DEVICES SECS STEPS deadline
xargs -0 -a "$OUT/jobs" -n 1 -P $((PER_DEVICE * ${#devices[@]})) --process-slot-var=SLOT bash -c 'place "$0"' || true
{
    python3 - "$OUT" "$SSM_DATA" << 'PYTHON'
import gzip, json, math, pathlib, sys
out, data = map(pathlib.Path, sys.argv[1:])
for run in sorted((out / "runs").iterdir()):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    valid = [line for line in lines if line["split"] == "valid"]
    trained = [line for line in lines if line["split"] == "train"]
    best = min(valid, key=lambda line: line["loss"])
    print(f"{run.name}: {trained[-1]['step']} steps in {trained[-1]['elapsed_secs']:.0f} s, "
          f"{trained[-1]['samples_per_sec']:.0f} tokens/s, last training loss {trained[-1]['loss']:.4f}, "
          f"best validation loss {best['loss']:.4f} nats at step {best['step']}")
    result = run / "result.json"
    if run.name == "books" and result.exists():
        metrics = json.loads(result.read_text())["metrics"]
        text = gzip.open(data / "lm" / "wikitext-2_valid.txt.gz").read()
        # A word is what stands between spaces, and the end of each line, as in the published perplexities.
        words = sum(len(line.split()) + 1 for line in text.splitlines())
        nats = metrics["bits_per_byte"] * math.log(2) * len(text) / words
        print(f"  WikiText-2 valid, {words} words: {metrics['bits_per_byte']:.4f} bits a byte, perplexity "
              f"{metrics['perplexity']:.1f} a token of its vocabulary, {math.exp(nats):.0f} a word; not the benchmark: "
              "trained on other books")
PYTHON
} | tee "$OUT/summary.txt"
(cd "$OUT" && tar -czf results.tar.gz --exclude checkpoints runs ./*.txt ./*.log)
