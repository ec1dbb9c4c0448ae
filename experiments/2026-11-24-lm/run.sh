#!/bin/sh
# Runs one group of experiments: sh run.sh GROUP [PROGRAM]; needs SSM_DATA. Results: runs/lm/*/result.json.
set -eu
cd "$(dirname "$0")/../.."
ssm=${2:-target/release/ssm}
mkdir -p runs/lm
train() {
    config=$1 name=$2
    shift 2
    # What is there already goes on where it stood.
    resume=
    if [ -d "runs/lm/$name" ]; then resume=--resume; fi
    nice -n 19 "$ssm" train "configs/lm/$config.toml" --quiet $resume \
        --set run.dir=runs/lm --set "run.name=$name" "$@" > "runs/lm/$name.txt" 2> "runs/lm/$name.log"
}
case $1 in
shakespeare) train shakespeare_char_mamba shakespeare ;;
selection)
    train selective_copying_mamba selective
    train selective_copying_lti lti ;;
induction) train induction_heads_mamba induction ;;
copying)
    for n in 8 32 128; do
        train copying_mamba "copying_$n" --set model.mixer.mamba.d_state=$n \
            --set train.steps=3000 --set train.eval_every_steps=1500
    done ;;
mqar)
    for d in 16 64; do
        for n in 4 16; do
            train mqar_mamba "mqar_${d}_$n" --set model.d_model=$d --set model.mixer.mamba.d_state=$n
        done
    done ;;
books) train books_130k_mamba books ;;
*)
    echo "expected shakespeare, selection, induction, copying, mqar or books, got $1" >&2
    exit 2 ;;
esac
