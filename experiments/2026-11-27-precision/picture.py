"""The curves that run.sh left as one SVG: losses above, what sets them apart from the first run below.

    python3 picture.py OUT/curves.csv picture.svg
"""

import csv
import math
import sys

WIDTH, LEFT, RIGHT = 760, 70, 190
PANELS = [(30, 250), (330, 250)]  # top and height
COLOURS = {"flex": "#0072b2", "cuda": "#d55e00", "vulkan": "#009e73", "webgpu": "#cc79a7"}

with open(sys.argv[1], newline="") as file:
    names, *rows = csv.reader(file)
names = names[1:]
steps = [int(row[0]) for row in rows]
curves = {name: [float(row[i + 1]) for row in rows] for i, name in enumerate(names)}
first = names[0]
apart = {name: [abs(a - b) for a, b in zip(curves[name], curves[first])] for name in names[1:]}


def style(name):
    backend, precision, seed = name.split("_")
    dash = {"f32": "", "bf16": ' stroke-dasharray="6 3"'}[precision]
    width = 1.6 if seed == first.split("_")[2] else 0.8
    return f'fill="none" stroke="{COLOURS.get(backend, "#555")}" stroke-width="{width}"{dash}'


def label(name):
    backend, precision, seed = name.split("_")
    return f"{backend}, {precision}, seed {seed}"


out = []


def text(x, y, words, anchor="start", size=12):
    out.append(f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{words}</text>')


def panel(index, title, series, low, high, ticks, place):
    top, height = PANELS[index]
    span = WIDTH - LEFT - RIGHT

    def x(step):
        return LEFT + span * (step - steps[0]) / max(1, steps[-1] - steps[0])

    def y(value):
        return top + height * (1 - (place(value) - place(low)) / (place(high) - place(low)))

    text(LEFT, top - 10, title, size=13)
    for value, words in ticks:
        out.append(f'<line x1="{LEFT}" x2="{LEFT + span}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>')
        text(LEFT - 8, y(value) + 4, words, "end")
    for step in [steps[0]] + [step for step in steps if step % 100 == 0]:
        text(x(step), top + height + 16, step, "middle", 11)
    for name, values in series.items():
        points = " ".join(f"{x(step):.1f},{y(min(max(value, low), high)):.1f}" for step, value in zip(steps, values))
        out.append(f'<polyline points="{points}" {style(name)}/>')
    for i, name in enumerate(series):
        line, row = WIDTH - RIGHT + 15, top + 14 + 18 * i
        out.append(f'<line x1="{line}" x2="{line + 26}" y1="{row - 4}" y2="{row - 4}" {style(name)}/>')
        text(line + 32, row, label(name), size=11)


every = [value for values in curves.values() for value in values]
low, high = math.floor(2 * min(every)) / 2, math.ceil(2 * max(every)) / 2
halves = [low + i / 2 for i in range(int(2 * (high - low)) + 1)]
panel(0, "Training loss in nats by step", curves, low, high, [(value, f"{value:.1f}") for value in halves], lambda v: v)
# The log keeps five digits behind the point.
powers = [10.0 ** -k for k in range(5, -1, -1)]
panel(1, f"Distance to {label(first)}; what is below 1e-5 is drawn there", apart, powers[0], powers[-1],
      [(value, f"{value:g}") for value in powers], math.log10)
height = PANELS[1][0] + PANELS[1][1] + 30
with open(sys.argv[2], "w") as file:
    file.write(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">\n'
               f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>\n' + "\n".join(out) + "\n</svg>\n")
