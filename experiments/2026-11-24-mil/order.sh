#!/bin/sh
# The order of instances at length 16,384: made-up slides of 128 x 128 patches, four models, three seeds, all at once.
# One of them does not fill a GPU. Needs python3, no network and no data.
#   OUT=results sh order.sh [SSM_BINARY]
# $OUT holds order.txt (printed too), order.json and the curves of every run. Ends by itself after $SECS. Every value
# below may be set in the environment, which is how the script is tried on a small CPU.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
: "${OUT:?a directory for results}"
ssm=${1:-${SSM:-$root/target/release/ssm}}
mkdir -p "$OUT"
: "${SECS:=400}" "${EVAL_SECS:=60}" "${WORK:=$OUT/order}" "${DEVICES:=}"
: "${SEEDS:=0 1 2}" "${ORDERS:=srmamba_width srmamba_5 mamba abmil}"
: "${SIDE:=128}" "${N_MARKERS:=64}" "${N_PAIRS:=64}" "${N_TRAIN:=200}" "${N_VALID:=50}" "${N_TEST:=200}" "${EPOCHS:=40}"
export root ssm OUT SECS EVAL_SECS WORK DEVICES SEEDS ORDERS SIDE N_MARKERS N_PAIRS N_TRAIN N_VALID N_TEST EPOCHS
exec python3 - <<'PYTHON'
import json, os, pathlib, shutil, signal, statistics, subprocess, time

started = time.time()
env = os.environ
ssm, out, work = env["ssm"], pathlib.Path(env["OUT"]), pathlib.Path(env["WORK"])
secs, eval_secs = float(env["SECS"]), float(env["EVAL_SECS"])
orders, seeds = env["ORDERS"].split(), env["SEEDS"].split()
devices = env["DEVICES"].split()
if not devices:
    try:
        cards = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout.splitlines()
    except FileNotFoundError:
        cards = []
    devices = [f"cuda:{index}" for index in range(len(cards))] or ["flex"]
n_train, batch = int(env["N_TRAIN"]), 4
logs = work / "logs"
logs.mkdir(parents=True, exist_ok=True)


def settings(order, seed):
    values = [f"run.seed={seed}", f"data.neighbours.seed={seed}", f"train.epochs={env['EPOCHS']}",
              f"train.eval_every_steps={max(1, 2 * n_train // batch)}"]
    for name in ("width", "height"):
        values.append(f"data.neighbours.{name}={env['SIDE']}")
    for name in ("n_markers", "n_pairs", "n_train", "n_valid", "n_test"):
        values.append(f"data.neighbours.{name}={env[name.upper()]}")
    if order == "srmamba_width":
        values.append(f"model.mamba_mil.mixer.sr_mamba.rate={env['SIDE']}")
    return [part for value in values for part in ("--set", value)]


def start(name, cache, *words):
    """A process with kernels of its own: several writers of one file of kernels would wait for each other."""
    with open(logs / f"{name}.out", "w") as text, open(logs / f"{name}.log", "w") as log:
        return subprocess.Popen([ssm, *words], stdout=text, stderr=log,
                                env={**env, "XDG_CACHE_HOME": str(cache)})


def wait(processes, until, by):
    """Until all have ended; what runs longer is asked to end, and ended 20 s later."""
    for process in processes.values():
        try:
            process.wait(max(0.0, until - time.time()))
        except subprocess.TimeoutExpired:
            process.send_signal(by)
    last = max(until, time.time()) + 20
    for name, process in processes.items():
        try:
            process.wait(max(0.0, last - time.time()))
        except subprocess.TimeoutExpired:
            process.kill()
            print(f"{name} did not end", flush=True)


lines = []


def say(line=""):
    print(line, flush=True)
    lines.append(line)
    (out / "order.txt").write_text("\n".join(lines) + "\n")


config = lambda order: str(pathlib.Path(env["root"]) / "configs" / "mil" / f"neighbours_{order}.toml")
cache = lambda name: work / "cache" / name

# Kernels are compiled once for each model, by itself.
first = {order: start(f"bench_{order}", cache(order), "bench", config(order), "--device",
                      devices[place % len(devices)], "--steps", "3", "--json", *settings(order, 0))
         for place, order in enumerate(orders)}
wait(first, started + secs / 4, signal.SIGKILL)
say(f"devices {' '.join(devices)}; a step of {batch} bags alone, after {time.time() - started:.0f} s:")
for order in orders:
    try:
        tables = json.loads((logs / f"bench_{order}.out").read_text())
        parts = ", ".join(f"{row['part']} {row['ms']}" for row in tables["A step"])
        say(f"  {order}: {parts} ms")
    except (ValueError, KeyError) as error:
        say(f"  {order}: not measured ({error})")

names = [(order, seed) for seed in seeds for order in orders]
processes = {}
for place, (order, seed) in enumerate(names):
    name = f"{order}_{seed}"
    if cache(order).exists():
        shutil.copytree(cache(order), cache(name), dirs_exist_ok=True)
    processes[name] = start(name, cache(name), "train", config(order), "--quiet", "--device",
                            devices[place % len(devices)], "--set", f"run.dir={work / 'runs'}",
                            "--set", f"run.name={name}", *settings(order, seed))
wait(processes, started + secs - eval_secs - 20, signal.SIGINT)
say(f"training ended after {time.time() - started:.0f} s; exit codes: "
    + ", ".join(f"{name} {process.returncode}" for name, process in processes.items()))

# The best checkpoint, whether there was time for all epochs or not.
tests = {}
for place, (order, seed) in enumerate(names):
    name = f"{order}_{seed}"
    tests[name] = start(f"test_{name}", cache(name), "eval", str(work / "runs" / name), "--split", "test",
                        "--device", devices[place % len(devices)], "--json")
wait(tests, started + secs - 20, signal.SIGKILL)

found = {}
say()
say("| model | AUC on the test slides, a seed each | steps done | of | ms a bag | best validation AUC |")
say("|---|---|---|---|---|---|")
for order in orders:
    cells = [[] for _ in range(4)]
    for seed in seeds:
        name = f"{order}_{seed}"
        try:
            tables = json.loads((logs / f"test_{name}.out").read_text())
            test = next(row["auc"] for rows in tables.values() for row in rows if "auc" in row)
        except (ValueError, StopIteration):
            test = None
        metrics = work / "runs" / name / "metrics.jsonl"
        rows = [json.loads(line) for line in open(metrics)] if metrics.exists() else []
        pace = [row["samples_per_sec"] for row in rows if row.get("samples_per_sec")]
        valid = [row["auc"] for row in rows if row["split"] == "valid" and row.get("auc") is not None]
        steps = max([row["step"] for row in rows], default=0)
        found[name] = {"test_auc": test, "steps": steps, "valid_auc": valid, "metrics": rows}
        for cell, text in zip(cells, (f"{test:.3f}" if test is not None else "missing", str(steps),
                                      f"{1e3 / statistics.median(pace):.1f}" if pace else "-",
                                      f"{max(valid):.3f}" if valid else "-")):
            cell.append(text)
    total = int(env["EPOCHS"]) * -(-n_train // batch)
    say(f"| {order} | {', '.join(cells[0])} | {', '.join(cells[1])} | {total} | {', '.join(cells[2])} "
        f"| {', '.join(cells[3])} |")
(out / "order.json").write_text(json.dumps(found))
for log in sorted(logs.glob("*.log")):
    if "error:" in (text := log.read_text()):
        say(f"{log.stem}: {text[text.index('error:'):][:300]}")
shutil.rmtree(work / "cache", ignore_errors=True)
for checkpoints in (work / "runs").glob("*/checkpoints"):
    shutil.rmtree(checkpoints)
say(f"ended after {time.time() - started:.0f} s")
PYTHON
