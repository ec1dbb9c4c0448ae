#!/usr/bin/env bash
# Language models of text on GPUs: characters of Shakespeare at the size of nanoGPT's model, and WikiText-2's validation
# text from a model of War and Peace and TinyStories. About seven minutes on one GPU, four on several.
#   OUT=DIR SSM_DATA=DIR text.sh SSM [shakespeare] [books]
#   DEVICES  GPUs, as in "cuda:0 cuda:1"; default: those that nvidia-smi lists, else the CPU
#   SECS     time of a run in seconds; it is then cut, and scored with the best weights so far, 220
#   STEPS    steps of every run instead of its own number, to try the script
set -euo pipefail
ssm=$(realpath "$1")
shift
groups=${*:-shakespeare books}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
: "${OUT:?a directory for results}" "${SSM_DATA:?the directory with data sets}" "${SECS:=220}" "${STEPS:=}"
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
    arguments=("$root/configs/lm/$config.toml" --quiet --device "$device" --data-dir "$OUT" --data-dir "$SSM_DATA"
        --set "run.dir=$OUT/runs" --set "run.name=$name")
    for word in "$@"; do arguments+=(--set "$word"); done
    if [ -n "$STEPS" ]; then arguments+=(--set "train.steps=$STEPS" --set 'schedule={constant={}}'); fi
    timeout -s INT -k 30 "$SECS" "$ssm" train "${arguments[@]}" > "$OUT/$name.txt" 2> "$OUT/$name.log" || true
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
        jobs+=("shakespeare shakespeare_char_mamba_10m")
        if [ ${#devices[@]} -gt 2 ]; then
            jobs+=("shakespeare_drop shakespeare_char_mamba_10m model.dropout=0.35 train.steps=3500")
            jobs+=("shakespeare_slow shakespeare_char_mamba_10m optim.adamw.lr=1e-3 train.steps=3500")
        fi
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
# The runs of a device one after the other, the devices side by side.
for i in "${!devices[@]}"; do
    for ((j = i; j < ${#jobs[@]}; j += ${#devices[@]})); do
        # shellcheck disable=SC2086
        run "${devices[$i]}" ${jobs[$j]}
    done &
done
wait
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
