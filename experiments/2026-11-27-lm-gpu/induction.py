"""Tables of the runs that induction.sh left in a directory."""

import json
import pathlib
import sys

out = pathlib.Path(sys.argv[1])
for run in sorted((out / "runs").iterdir()):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    trained = [line for line in lines if line["split"] == "train"]
    valid = [line for line in lines if line["split"] == "valid"]
    if not trained:
        continue
    last = trained[-1]
    print(f"{run.name}: {last['step']} steps, {last['samples_per_sec'] / 8:.0f} a second, training loss {last['loss']:.2e}")
    shown = valid[:: max(1, len(valid) // 12)] + valid[-1:]
    print("  validation at 16,384, per cent (nats):", ", ".join(
        f"{line['step'] // 1000}k {100 * line['accuracy']:.0f} ({line['loss']:.1e})" for line in shown))
    result = out / "scored" / run.name / "result.json"
    if not result.exists():
        print("  not scored")
        continue
    result = json.loads(result.read_text())
    for table in result["tables"]:
        if table["columns"][:1] == ["length"]:
            rows = (f"{row[0]}: {100 * float(row[2]):.1f}" for row in table["rows"])
            print(f"  weights of step {result['scored_step']}, accuracy by length, per cent:", ", ".join(rows))
