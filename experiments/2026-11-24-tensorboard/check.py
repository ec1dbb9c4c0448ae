"""Reads the event file of a run with TensorBoard's own package and compares it to metrics.jsonl.

    pip install tensorboard
    ssm train configs/forecasting/debug.toml --set log.tensorboard=true
    python experiments/2026-11-24-tensorboard/check.py runs/debug
"""

import json
import pathlib
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

run = pathlib.Path(sys.argv[1])
events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
events.Reload()
kept = set(events.Tags()["scalars"])

expected = {}
for line in (run / "metrics.jsonl").read_text().splitlines():
    row = json.loads(line)
    for key, value in row.items():
        if key not in ("step", "epoch", "split", "elapsed_secs"):
            single = struct.unpack("f", struct.pack("f", value))[0]
            expected.setdefault(f"{row['split']}/{key}", []).append((row["step"], single))

assert kept == set(expected), (kept, set(expected))
for tag, points in expected.items():
    got = [(event.step, event.value) for event in events.Scalars(tag)]
    assert got == points, (tag, got, points)
print(f"{sum(map(len, expected.values()))} values of {len(expected)} curves are equal")
