#!/bin/sh
# Runs one group of experiments: sh run.sh GROUP [PROGRAM]; needs SSM_DATA. Results: runs/mil/*/result.json.
set -eu
cd "$(dirname "$0")/../.."
ssm=${2:-target/release/ssm}
train() {
    config=$1 name=$2
    shift 2
    # What is there already goes on where it stood.
    resume=
    if [ -d "runs/mil/$name" ]; then resume=--resume; fi
    nice -n 10 "$ssm" train "configs/mil/$config.toml" --quiet $resume \
        --set run.dir=runs/mil --set "run.name=$name" "$@" > "runs/mil/$name.txt" 2> "runs/mil/$name.log"
}
mkdir -p runs/mil
# The operations on bags of ten instances are too small to share: one thread is faster, most of all on a busy machine.
if [ "$1" = classic ]; then export RAYON_NUM_THREADS=1; fi
case $1 in
classic)
    for data in musk1 musk2 elephant fox tiger ucsb; do
        for model in srmamba abmil; do train "${data}_$model" "${data}_$model"; done
    done ;;
order)
    for seed in 0 1 2; do
        for order in srmamba_width srmamba_5 mamba bimamba abmil; do
            train "neighbours_$order" "neighbours_${order}_$seed" \
                --set "run.seed=$seed" --set "data.neighbours.seed=$seed"
        done
    done ;;
mnist)
    for seed in 0 1 2; do
        for model in abmil srmamba; do
            train "mnist_bags_$model" "mnist_bags_${model}_$seed" \
                --set "run.seed=$seed" --set "data.mnist_bags.seed=$seed"
        done
    done ;;
survival)
    for model in srmamba abmil; do train "survival_$model" "survival_$model"; done ;;
*) echo "unknown group $1" >&2; exit 2 ;;
esac
