#!/bin/sh
# Memory of one training step on a bag of 100,000 x 1,024 on a GPU: what tensors need, what CubeCL's pools hold beyond
# that, and what nvidia-smi says. Needs python3, no network and no data; the bench `bag` built with the feature `cuda`.
#   OUT=results sh memory.sh [SSM_BINARY]
#   OUT=results BAG=target/release/deps/bag-0123456789abcdef sh memory.sh
# Of the program only the directory is used, if BAG is not given: the newest `deps/bag-*` beside it. $OUT holds
# memory.txt (printed too). Ends by itself after $SECS.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
: "${OUT:?a directory for results}"
ssm=${1:-${SSM:-$root/target/release/ssm}}
mkdir -p "$OUT"
: "${SECS:=300}" "${LENGTHS:=100000}" "${DEVICE_WORD:=cuda}" "${BAG:=}"
: "${VARIANTS:=default cleanup async exact}"
if [ -z "$BAG" ]; then
    BAG=$(find "$(dirname "$ssm")/deps" -name 'bag-*' ! -name '*.d' -type f 2> /dev/null | xargs -r ls -t | head -n 1)
fi
: "${BAG:?the bench, built with: cargo bench --workspace --bench bag --features cuda --no-run}"
export OUT SECS LENGTHS DEVICE_WORD BAG VARIANTS
exec python3 - <<'PYTHON'
import os, pathlib, queue, re, subprocess, tempfile, threading, time

started = time.time()
env = os.environ
out, secs = pathlib.Path(env["OUT"]), float(env["SECS"])
bag = pathlib.Path(env["BAG"]).resolve()


def smi(*words):
    try:
        asked = subprocess.run(["nvidia-smi", *words], capture_output=True, text=True, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return []
    return asked.stdout.split() if asked.returncode == 0 else []


cards = smi("--query-gpu=index", "--format=csv,noheader") or ["none"]
used = lambda card: int((smi("-i", card, "--query-gpu=memory.used", "--format=csv,noheader,nounits") or ["0"])[0])
# What CubeCL reads from the directory that it is started in.
CONFIG = {
    "default": "",
    "cleanup": "",
    "async": '[memory.cuda]\nallocator = "async"\n',
    # No pages: each tensor has an allocation of its size, which only tensors of that size use again.
    "exact": '[memory]\npersistent_memory = "enforced"\n',
}
jobs = queue.Queue()
for length in env["LENGTHS"].split():
    for variant in env["VARIANTS"].split():
        for how in ("keep", "recompute"):
            jobs.put((length, variant, how))
found, lines = [], []


def work(card):
    while True:
        try:
            length, variant, how = jobs.get_nowait()
        except queue.Empty:
            return
        left = started + secs - time.time()
        if left < 20:
            continue
        words = [length, env["DEVICE_WORD"]] + [word for word in (how, variant) if word in ("recompute", "cleanup")]
        with tempfile.TemporaryDirectory() as place:
            if CONFIG[variant]:
                (pathlib.Path(place) / "cubecl.toml").write_text(CONFIG[variant])
            before, peak, began = used(card), 0, time.time()
            with open(pathlib.Path(place) / "out", "w+") as text:
                process = subprocess.Popen([bag, *words], cwd=place, stdout=text, stderr=subprocess.STDOUT,
                                           env={**env, "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
                                                "CUDA_VISIBLE_DEVICES": card})
                while process.poll() is None:
                    peak = max(peak, used(card) - before)
                    time.sleep(0.05)
                    if time.time() > started + secs:
                        process.kill()
                text.seek(0)
                said = text.read()
        found.append((length, variant, how, peak * 2**20 / 1e9, process.returncode, said, time.time() - began))


def say(line=""):
    print(line, flush=True)
    lines.append(line)
    (out / "memory.txt").write_text("\n".join(lines) + "\n")


threads = [threading.Thread(target=work, args=(card,)) for card in cards]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
say("| instances | pools | layers | nvidia-smi, peak | tensors, peak | pages, peak | tensors kept | s a step |")
say("|---|---|---|---|---|---|---|---|")
for length, variant, how, peak, code, said, _ in sorted(found, key=lambda one: (-int(one[0]), one[1], one[2])):
    watched = re.search(r"at most ([\d.]+) GB of tensors, ([\d.]+) GB", said)
    kept = re.findall(r"behind the forward pass ([\d.]+) GB", said)
    step = re.search(r"forward and backward ([\d.]+) s", said)
    cells = [f"{peak:.2f} GB", *(f"{value} GB" for value in (watched.groups() if watched else ("-", "-"))),
             f"{kept[-1]} GB" if kept else "-", step.group(1) if step else "-"]
    say(f"| {length} | {variant} | {how} | " + " | ".join(cells) + " |" + (f" exit code {code}" if code else ""))
for length, variant, how, peak, code, said, took in found:
    say()
    say(f"{length} {variant} {how}, {took:.0f} s")
    say(said.strip()[-3000:])
say(f"ended after {time.time() - started:.0f} s")
PYTHON
