"""Tables of the runs that tasks.sh left in a directory."""

import json
import pathlib
import sys

out = pathlib.Path(sys.argv[1])
runs = {}
for file in sorted((out / "runs").glob("*/metrics.jsonl")):
    lines = [json.loads(line) for line in file.open()]
    trained = [line for line in lines if line["split"] == "train"]
    valid = [line for line in lines if line["split"] == "valid"]
    result = file.parent / "result.json"
    tables = []
    if result.exists():
        tables = json.loads(result.read_text()).get("tables", [])
    runs[file.parent.name] = (trained, valid, tables)


def by_length(tables):
    """Accuracy and share of exact sequences by length."""
    for table in tables:
        if table["columns"][:1] == ["length"]:
            return {int(row[0]): (float(row[2]), float(row[3])) for row in table["rows"]}
    return {}


def pace(trained):
    """Milliseconds a step, of the second half of the log."""
    half = trained[len(trained) // 2 :]
    if len(half) < 2:
        return float("nan")
    first, last = half[0], half[-1]
    return 1e3 * (last["elapsed_secs"] - first["elapsed_secs"]) / (last["step"] - first["step"])


print("run: steps, ms a step with evaluations, last training loss, best validation loss (at step)")
for name, (trained, valid, tables) in runs.items():
    best = min(valid, key=lambda line: line["loss"], default=None)
    said = f"{best['loss']:.6f} ({best['step']})" if best else "-"
    last = trained[-1] if trained else {"step": 0, "loss": float("nan")}
    print(f"{name}: {last['step']}, {pace(trained):.1f}, {last['loss']:.5f}, {said}{'' if tables else ', not scored'}")

print("\npasskey: accuracy by length")
for name, (_, _, tables) in runs.items():
    if name.startswith("passkey"):
        print(name, " ".join(f"{length}: {100 * accuracy:.1f}" for length, (accuracy, _) in by_length(tables).items()))

print("\nCOPY: longest tested length up to which at least 95 % of the letters are right; accuracy by length")
for name, (_, _, tables) in runs.items():
    if name.startswith("copying"):
        scores = by_length(tables)
        longest = 0
        for length, (accuracy, _) in sorted(scores.items()):
            if accuracy < 0.95:
                break
            longest = length
        print(name, f"longest {longest};", " ".join(f"{n}: {100 * a:.1f}" for n, (a, _) in scores.items()))

print("\nassociative recall (d_model, d_state), selective copying: accuracy, share of sequences without a mistake")
for name, (_, _, tables) in runs.items():
    if name.startswith(("mqar", "selective", "lti")):
        print(name, *(f"{100 * a:.2f} {100 * e:.2f}" for a, e in by_length(tables).values()))
