#!/bin/sh
# The classic sets on many idle cores: one recipe for all sets is chosen by inner validation, then 10-fold
# cross-validation is repeated five times. Needs python3, no network, no GPU.
#   SSM_DATA=data OUT=results PHASE=search JOBS=30 sh classic.sh [SSM_BINARY]
#   SSM_DATA=data OUT=results PHASE=final CHOSEN="srmamba=one layer;srmamba@musk1=file" JOBS=30 sh classic.sh [SSM_BINARY]
# The search holds out a fifth of the training bags of a fold and looks at nothing else; the chosen recipe then trains
# on all of them. Processes have one thread each: operations on bags of ten instances are too small to share. Folds
# that $WORK holds already are not trained again. $OUT holds tables.txt (printed too) and, of a final phase,
# predictions.json.gz. Ends by itself after $SECS and the time of a fold.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
: "${SSM_DATA:?a directory with mil/musk1.csv.gz and the other sets}" "${OUT:?a directory for results}"
ssm=${1:-${SSM:-$root/target/release/ssm}}
mkdir -p "$OUT"
# Every value below may be set in the environment, which is how the script is tried on a small machine.
: "${JOBS:=$(nproc)}" "${WORK:=$OUT/runs}" "${SECS:=500}" "${PHASE:=search}" "${CHOSEN:=}"
: "${SETS:=musk1 musk2 elephant fox tiger ucsb}" "${MODELS:=srmamba}" "${CANDIDATES:=}" "${EXTRA:=}"
: "${FOLDS:=10}" "${REPEATS:=5}" "${SEARCH_REPEATS:=3}"
export SSM_DATA RAYON_NUM_THREADS=1
export root ssm OUT JOBS WORK SECS PHASE CHOSEN SETS MODELS CANDIDATES EXTRA FOLDS REPEATS SEARCH_REPEATS
exec python3 - <<'PYTHON'
import gzip, json, math, os, pathlib, re, shutil, statistics, subprocess, time
from concurrent.futures import ThreadPoolExecutor

env = os.environ
ssm, work, out = env["ssm"], pathlib.Path(env["WORK"]), pathlib.Path(env["OUT"])
configs = pathlib.Path(env["root"]) / "configs" / "mil"
n_folds, n_repeats, n_jobs = (int(env[key]) for key in ("FOLDS", "REPEATS", "JOBS"))
sets, models = env["SETS"].split(), env["MODELS"].split()
started, secs, phase = time.time(), float(env["SECS"]), env["PHASE"]

# What a candidate changes in configs/mil/SET_MODEL.toml. The list was written down before any of it was run. A rate
# that falls to zero leaves no score to the step that happens to come last; instances of these bags have no order, so
# that another one in every epoch is more data; a tenth of the default memory fits bags of ten instances.
cosine = ["schedule.cosine={}", "task.mil.shuffle_instances=true"]
small = cosine + ["model.mamba_mil.n_layer=1"]
wide = small + ["model.mamba_mil.d_model=128"]
branch = "model.mamba_mil.mixer.sr_mamba.branch."
short = [branch + "dt_min=0.1", branch + "dt_max=1.0"]
CANDIDATES = {
    "srmamba": {
        "file": [],
        "cosine": cosine,
        "cosine, short memory": cosine + short,
        "one layer": small,
        "one layer, short memory": small + short,
        "one layer, width 128": wide,
        "one layer, decay .1": small + ["optim.adam.weight_decay=0.1"],
        "one layer, half the rate": small + ["optim.adam.lr=1e-4"],
        "one layer, 80 epochs": small + ["train.epochs=80"],
        "one layer, dropout .25": small + ["model.mamba_mil.dropout=0.25"],
        # Added after the first search, of what was best there on some set, and before any of these was run.
        "one layer, width 128, dropout .25": wide + ["model.mamba_mil.dropout=0.25"],
        "one layer, width 128, half the rate": wide + ["optim.adam.lr=1e-4"],
        "one layer, width 128, dropout .25, half the rate":
            wide + ["model.mamba_mil.dropout=0.25", "optim.adam.lr=1e-4"],
        "one layer, dropout .25, half the rate": small + ["model.mamba_mil.dropout=0.25", "optim.adam.lr=1e-4"],
        "cosine, half the rate": cosine + ["optim.adam.lr=1e-4"],
    },
    "abmil": {
        "file": [],
        "cosine": cosine,
        "cosine, gated": cosine + ["model.abmil.gated=true"],
        "cosine, lr 2e-4": cosine + ["optim.adam.lr=2e-4"],
        "cosine, decay 2e-2": cosine + ["optim.adam.weight_decay=2e-2"],
        "cosine, dropout .25": cosine + ["model.abmil.embedder.dropout=0.25"],
    },
}
only = [name.strip() for name in env["CANDIDATES"].split(";") if name.strip()]
for model in models:
    CANDIDATES[model] = {k: v for k, v in CANDIDATES[model].items() if not only or k in only}

# Steps of an epoch, for an order of work that ends together; MUSK2 has long bags.
COST = {"musk1": 92, "musk2": 250, "elephant": 200, "fox": 200, "tiger": 200, "ucsb": 120}


def run_dir(key):
    """A key is a set, a model, a candidate and the share of the training bags that is held out."""
    data, model, candidate, held_out = key
    name = re.sub("[^a-z0-9-]+", "_", f"{data} {model} {candidate}")
    return work / (f"{name}_inner" if held_out else name)


def result(key, fold):
    file = run_dir(key) / f"fold_{fold:02}" / "result.json"
    return json.loads(file.read_text()) if file.exists() else None


def validation(key, fold):
    """Mean of accuracy and AUC over the bags that were held out, and the loss; None if the fold was not trained."""
    if not result(key, fold):
        return None
    rows = map(json.loads, open(run_dir(key) / f"fold_{fold:02}" / "metrics.jsonl"))
    rows = [row for row in rows if row["split"] == "valid" and row.get("auc") is not None]
    return rows and ((rows[-1]["accuracy"] + rows[-1]["auc"]) / 2, rows[-1]["loss"]) or None


def train(job):
    key, fold, until = job
    if time.time() > until or result(key, fold):
        return
    data, model, candidate, held_out = key
    values = ["run.dir=" + str(work), "run.name=" + run_dir(key).name, f"run.fold={fold}",
              f"task.mil.split.folds={n_folds}", f"task.mil.split.repeats={n_repeats}",
              f"task.mil.split.valid={held_out}",
              "task.mil.bootstrap=100", *CANDIDATES[model][candidate], *env["EXTRA"].split()]
    command = [ssm, "train", str(configs / f"{data}_{model}.toml"), "--quiet", "--device", "flex"]
    command += [part for value in values for part in ("--set", value)]
    log = work / "log"
    log.mkdir(parents=True, exist_ok=True)
    began = time.time()
    with open(log / f"{run_dir(key).name}_{fold:02}", "w") as text:
        subprocess.run(command, stdout=text, stderr=text, check=False)
    took.setdefault(key, []).append(time.time() - began)
    # Megabytes a fold, a thousand folds.
    shutil.rmtree(run_dir(key) / f"fold_{fold:02}" / "checkpoints", ignore_errors=True)


took = {}


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


until = started + secs
longest_first = sorted(sets, key=lambda data: -COST[data])


def search():
    # Fold by fold, so that candidates that there is no time to finish stand at the same folds.
    n_search = n_folds * int(env["SEARCH_REPEATS"])
    jobs = [((data, model, candidate, 0.2), fold, until) for fold in range(n_search) for model in models
            for data in longest_first for candidate in CANDIDATES[model]]
    work_off(jobs)
    say(f"search: at most {len(jobs)} folds, {time.time() - started:.0f} s, {n_jobs} processes at once")
    for model in models:
        names = list(CANDIDATES[model])
        table = {}
        for data in sets:
            key = lambda name: (data, model, name, 0.2)
            # Folds that all candidates have.
            folds = [fold for fold in range(n_search) if all(validation(key(name), fold) for name in names)]
            say(f"{model} on {data}: {len(folds)} folds; seconds a fold: "
                + ", ".join(f"{name} {statistics.mean(took[key(name)]):.1f}" for name in names if took.get(key(name))))
            for name in names:
                table[data, name] = [validation(key(name), fold) for fold in folds]
        if not all(table.values()):
            say(f"{model}: no fold of all candidates; nothing is chosen")
            continue
        say()
        say(f"{model}: mean of accuracy and AUC on held-out training bags ± standard error of the difference to "
            f"`{names[0]}`; loss")
        say("| candidate | " + " | ".join(sets) + " | mean |")
        say("|---" * (len(sets) + 2) + "|")
        mean = {}
        for name in names:
            cells = []
            for data in sets:
                values, first = table[data, name], table[data, names[0]]
                apart = [one - other for (one, _), (other, _) in zip(values, first)]
                error = statistics.stdev(apart) / math.sqrt(len(apart)) if len(apart) > 1 else math.nan
                cells.append(f"{text(statistics.mean(one for one, _ in values))} ± {text(error)}; "
                             f"{text(statistics.mean(loss for _, loss in values))}")
            mean[name] = statistics.mean(statistics.mean(one for one, _ in table[data, name]) for data in sets)
            say(f"| {name} | " + " | ".join(cells) + f" | {mean[name]:.4f} |")
        say(f"chosen: {model}={max(names, key=mean.get)}")
        best = lambda data: max(names, key=lambda name: statistics.mean(one for one, _ in table[data, name]))
        say("chosen for each set: " + ";".join(f"{model}@{data}={best(data)}" for data in sets))
        say()


def final():
    chosen = {(model, data): next(iter(CANDIDATES[model])) for model in models for data in sets}
    for choice in filter(None, env["CHOSEN"].split(";")):
        place, name = (part.strip() for part in choice.split("="))
        model, _, data = place.partition("@")
        if name not in CANDIDATES[model]:
            raise SystemExit(f"expected one of {list(CANDIDATES[model])}, got `{name}`")
        chosen |= {(model, each): name for each in ([data] if data else sets)}
    jobs = [((data, model, chosen[model, data], 0.0), fold, until) for repeat in range(n_repeats) for model in models
            for data in longest_first for fold in range(repeat * n_folds, (repeat + 1) * n_folds)]
    work_off(jobs)
    say(f"final: {len(jobs)} folds, {time.time() - started:.0f} s, {n_jobs} processes at once; mean of the repeats "
        "± standard error")
    say("| set | model | recipe | repeats | accuracy | AUC | seconds a fold |")
    say("|---|---|---|---|---|---|---|")
    kept = []
    for data in sets:
        for model in models:
            key = (data, model, chosen[model, data], 0.0)
            repeats = [scores(key, range(r * n_folds, (r + 1) * n_folds)) for r in range(n_repeats)]
            repeats = [repeat for repeat in repeats if repeat]
            cells = []
            for values in zip(*repeats):
                error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
                cells.append(f"{text(statistics.mean(values))} ± {text(error)}")
            pace = f"{statistics.mean(took[key]):.1f}" if took.get(key) else "-"
            say(f"| {data} | {model} | {chosen[model, data]} | {len(repeats)} | " + " | ".join(cells or ["—", "—"])
                + f" | {pace} |")
            for fold in range(n_folds * n_repeats):
                if one := result(key, fold):
                    said = [[sample["slide"], sample["class"], sample["probabilities"][1]]
                            for sample in one["details"]["samples"]]
                    kept.append([data, model, chosen[model, data], fold, said])
    with gzip.open(out / "predictions.json.gz", "wt") as file:
        json.dump(kept, file)


{"search": search, "final": final}[phase]()
failed = [log.name for log in sorted((work / "log").glob("*")) if "error:" in log.read_text()]
if failed:
    say(f"{len(failed)} folds failed, the first one: {failed[0]}: " + (work / "log" / failed[0]).read_text()[-300:])
PYTHON
