#!/bin/sh
# The classic sets on many idle cores: the recipe for each set is chosen on the other five, then 10-fold
# cross-validation is repeated five times. Needs python3, no network, no GPU.
#   SSM_DATA=data OUT=results JOBS=48 sh classic.sh [SSM_BINARY]
# Processes have one thread each: operations on bags of ten instances are too small to share. Folds that $WORK
# holds already are not trained again. $OUT holds tables.txt (printed too) and predictions.json.gz.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
: "${SSM_DATA:?a directory with mil/musk1.csv.gz and the other sets}" "${OUT:?a directory for results}"
ssm=${1:-${SSM:-$root/target/release/ssm}}
mkdir -p "$OUT"
# Every value below may be set in the environment, which is how the script is tried on a small machine.
: "${JOBS:=$(nproc)}" "${WORK:=$OUT/runs}" "${SECS:=450}" "${SHARE:=0.6}"
: "${SETS:=musk1 musk2 elephant fox tiger ucsb}" "${MODELS:=srmamba abmil}" "${CANDIDATES:=}" "${EXTRA:=}"
: "${FOLDS:=10}" "${REPEATS:=5}"
export SSM_DATA RAYON_NUM_THREADS=1
export root ssm OUT JOBS WORK SECS SHARE SETS MODELS CANDIDATES EXTRA FOLDS REPEATS
exec python3 - <<'PYTHON'
import gzip, json, math, os, pathlib, re, shutil, statistics, subprocess, time
from concurrent.futures import ThreadPoolExecutor

env = os.environ
ssm, work, out = env["ssm"], pathlib.Path(env["WORK"]), pathlib.Path(env["OUT"])
configs = pathlib.Path(env["root"]) / "configs" / "mil"
n_folds, n_repeats, n_jobs = (int(env[key]) for key in ("FOLDS", "REPEATS", "JOBS"))
sets, models = env["SETS"].split(), env["MODELS"].split()
started, secs, share = time.time(), float(env["SECS"]), float(env["SHARE"])

# What a candidate changes in configs/mil/SET_MODEL.toml. The list was written down before any of it was run.
cosine, shuffled = ["schedule.cosine={}"], ["task.mil.shuffle_instances=true"]
both = cosine + shuffled
CANDIDATES = {
    "srmamba": {
        "file": [],
        "shuffled": shuffled,
        "cosine": cosine,
        "both": both,
        "both, lr 5e-4": both + ["optim.adam.lr=5e-4"],
        "both, decay 1e-3": both + ["optim.adam.weight_decay=1e-3"],
        "both, decay 3e-2": both + ["optim.adam.weight_decay=3e-2"],
        "both, dropout .25": both + ["model.mamba_mil.dropout=0.25"],
        "both, one layer": both + ["model.mamba_mil.n_layer=1"],
        "both, 20 epochs": both + ["train.epochs=20"],
    },
    "abmil": {
        "file": [],
        "cosine": cosine,
        "cosine, lr 2e-4": cosine + ["optim.adam.lr=2e-4"],
        "cosine, decay 5e-4": cosine + ["optim.adam.weight_decay=5e-4"],
        "cosine, decay 2e-2": cosine + ["optim.adam.weight_decay=2e-2"],
        "cosine, dropout .25": cosine + ["model.abmil.embedder.dropout=0.25"],
        "cosine, gated": cosine + ["model.abmil.gated=true"],
        "cosine, 100 epochs": cosine + ["train.epochs=100"],
    },
}
only = [name.strip() for name in env["CANDIDATES"].split(";") if name.strip()]
for model in models:
    CANDIDATES[model] = {k: v for k, v in CANDIDATES[model].items() if not only or k in only}

# Steps of an epoch, for an order of work that ends together; MUSK2 has long bags.
COST = {"musk1": 92, "musk2": 250, "elephant": 200, "fox": 200, "tiger": 200, "ucsb": 120}


def run_dir(key):
    data, model, candidate = key
    return work / re.sub("[^a-z0-9-]+", "_", f"{data} {model} {candidate}")


def result(key, fold):
    file = run_dir(key) / f"fold_{fold:02}" / "result.json"
    return json.loads(file.read_text()) if file.exists() else None


def train(job):
    key, fold, until = job
    if time.time() > until or result(key, fold):
        return
    data, model, candidate = key
    values = ["run.dir=" + str(work), "run.name=" + run_dir(key).name, f"run.fold={fold}",
              f"task.mil.split.folds={n_folds}", f"task.mil.split.repeats={n_repeats}",
              "task.mil.bootstrap=100", *CANDIDATES[model][candidate], *env["EXTRA"].split()]
    command = [ssm, "train", str(configs / f"{data}_{model}.toml"), "--quiet", "--device", "flex"]
    command += [part for value in values for part in ("--set", value)]
    log = work / "log"
    log.mkdir(parents=True, exist_ok=True)
    with open(log / f"{run_dir(key).name}_{fold:02}", "w") as text:
        subprocess.run(command, stdout=text, stderr=text, check=False)
    # Megabytes a fold, a thousand folds.
    shutil.rmtree(run_dir(key) / f"fold_{fold:02}" / "checkpoints", ignore_errors=True)


def work_off(jobs):
    with ThreadPoolExecutor(n_jobs) as pool:
        list(pool.map(train, jobs))


def auc(said):
    """Of pairs, one of each class, the share in the right order; ties count one half."""
    ranked = sorted(said, key=lambda pair: pair[1])
    rank, position, positives = 0.0, 0, 0
    while position < len(ranked):
        end = position
        while end < len(ranked) and ranked[end][1] == ranked[position][1]:
            end += 1
        ones = sum(truth for truth, _ in ranked[position:end])
        rank += ones * (position + end + 1) / 2
        positives, position = positives + ones, end
    negatives = len(ranked) - positives
    return (rank - positives * (positives + 1) / 2) / (positives * negatives)


def scores(key, folds):
    """Accuracy and AUC of pooled predictions; None if a fold is missing."""
    results = [result(key, fold) for fold in folds]
    if not results or None in results:
        return None
    said = [(sample["class"], sample["probabilities"][1])
            for one in results for sample in one["details"]["samples"]]
    return sum((p > 0.5) == truth for truth, p in said) / len(said), auc(said)


lines = []


def say(line=""):
    print(line, flush=True)
    lines.append(line)
    (out / "tables.txt").write_text("\n".join(lines) + "\n")


def text(value):
    return f"{value:.3f}".lstrip("0")


# First pass: every candidate on every set, one repeat. Fold by fold, so that candidates that there is no
# time to finish stand at the same folds.
until = started + share * secs
jobs = [((data, model, candidate), fold, until) for fold in range(n_folds) for model in models
        for data in sorted(sets, key=lambda data: -COST[data]) for candidate in CANDIDATES[model]]
work_off(jobs)
say(f"first pass: {len(jobs)} folds in {time.time() - started:.0f} s, {n_jobs} processes at once")
chosen = {}
for model in models:
    names = list(CANDIDATES[model])
    table = {}
    for data in sets:
        # Folds that all candidates have.
        folds = [fold for fold in range(n_folds)
                 if all(result((data, model, name), fold) for name in names)]
        for name in names:
            table[data, name] = scores((data, model, name), folds)
        if len(folds) < n_folds:
            say(f"{model} on {data}: only {len(folds)} folds of the first pass were trained")
    say()
    say(f"first pass, {model}: accuracy and AUC of one repeat, and their mean over the sets")
    say("| candidate | " + " | ".join(sets) + " | mean |")
    say("|---" * (len(sets) + 2) + "|")
    value = lambda data, name: statistics.mean(table[data, name] or (math.nan, math.nan))
    for name in names:
        cells = [" ".join(map(text, table[data, name] or (math.nan, math.nan))) for data in sets]
        mean = statistics.mean(value(data, name) for data in sets)
        say(f"| {name} | " + " | ".join(cells) + f" | {mean:.4f} |")
    for data in sets:
        # No bag of a set has a say in what is chosen for it.
        others = [other for other in sets if other != data and table[other, names[0]]] or [data]
        mean = {name: statistics.mean(value(other, name) for other in others) for name in names}
        chosen[data, model] = max(names, key=mean.get)

# Second pass: the chosen ones, all repeats. The first repeat is there already.
until = started + secs
second = time.time()
jobs = [((data, model, chosen[data, model]), fold, until) for repeat in range(n_repeats) for model in models
        for data in sorted(sets, key=lambda data: -COST[data])
        for fold in range(repeat * n_folds, (repeat + 1) * n_folds)]
work_off(jobs)
say()
say(f"second pass: {time.time() - second:.0f} s; mean of the repeats ± standard error")
say("| set | model | chosen on the others | repeats | accuracy | AUC |")
say("|---|---|---|---|---|---|")
kept = []
for data in sets:
    for model in models:
        key = (data, model, chosen[data, model])
        repeats = [scores(key, range(r * n_folds, (r + 1) * n_folds)) for r in range(n_repeats)]
        repeats = [repeat for repeat in repeats if repeat]
        cells = []
        for values in zip(*repeats):
            error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
            cells.append(f"{text(statistics.mean(values))} ± {text(error)}")
        say(f"| {data} | {model} | {key[2]} | {len(repeats)} | " + " | ".join(cells or ["—", "—"]) + " |")
for model in models:
    for name in CANDIDATES[model]:
        for data in sets:
            for fold in range(n_folds * n_repeats):
                one = result((data, model, name), fold)
                if one:
                    said = [[sample["slide"], sample["class"], sample["probabilities"][1]]
                            for sample in one["details"]["samples"]]
                    kept.append([data, model, name, fold, said])
with gzip.open(out / "predictions.json.gz", "wt") as file:
    json.dump(kept, file)
failed = [log.name for log in sorted((work / "log").glob("*")) if "error:" in log.read_text()]
if failed:
    say(f"{len(failed)} folds failed, the first one: {failed[0]}: " + (work / "log" / failed[0]).read_text()[-300:])
PYTHON
