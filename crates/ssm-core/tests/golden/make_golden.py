"""Writes mamba_block.json: one residual block around Mamba, computed in f64 straight from the equations.

A listing of its own, step by step and channel by channel, so that it shares no idea of an
implementation with the crate. Weights lie as in the published checkpoints (a linear map is
[d_out, d_in]) and are multiples of 1/256, which every float type here holds exactly.

    python3 make_golden.py > mamba_block.json

Equations: Gu & Dao 2023, arXiv:2312.00752, figure 3, algorithm 2 and section 3.6; names of the weights:
state-spaces/mamba.
"""

import json
import math

import numpy as np

BATCH, SEQ_LEN, D_MODEL = 2, 7, 6
D_STATE, D_CONV, EXPAND, DT_RANK = 3, 4, 2, 2
D_INNER = EXPAND * D_MODEL
EPSILON = 1e-5

rng = np.random.default_rng(20231201)


def draw(*shape, low=-1.0, high=1.0):
    return np.round(rng.uniform(low, high, shape) * 256.0) / 256.0


weights = {
    "norm.weight": draw(D_MODEL, low=0.5, high=1.5),
    "mixer.in_proj.weight": draw(2 * D_INNER, D_MODEL),
    "mixer.conv1d.weight": draw(D_INNER, 1, D_CONV),
    "mixer.conv1d.bias": draw(D_INNER),
    "mixer.x_proj.weight": draw(DT_RANK + 2 * D_STATE, D_INNER, low=-0.5, high=0.5),
    "mixer.dt_proj.weight": draw(D_INNER, DT_RANK),
    "mixer.dt_proj.bias": draw(D_INNER, low=-2.0, high=0.0),
    "mixer.A_log": draw(D_INNER, D_STATE),
    "mixer.D": draw(D_INNER),
    "mixer.out_proj.weight": draw(D_MODEL, D_INNER),
}
x = draw(BATCH, SEQ_LEN, D_MODEL, low=-2.0, high=2.0)


def silu(value):
    return value / (1.0 + math.exp(-value))


def softplus(value):
    return math.log1p(math.exp(value))


def block(x):
    """[SEQ_LEN, D_MODEL] to the same: x + mixer(norm(x))."""
    w = {name.removeprefix("mixer."): value for name, value in weights.items()}
    normed = [row / math.sqrt(np.mean(row**2) + EPSILON) * w["norm.weight"] for row in x]
    xz = [w["in_proj.weight"] @ row for row in normed]
    first = [row[:D_INNER] for row in xz]
    gate = [row[D_INNER:] for row in xz]
    h = np.zeros((D_INNER, D_STATE))
    out = []
    for t in range(SEQ_LEN):
        u = np.zeros(D_INNER)
        for i in range(D_INNER):
            u[i] = w["conv1d.bias"][i]
            for k in range(D_CONV):
                source = t - (D_CONV - 1) + k
                if source >= 0:
                    u[i] += w["conv1d.weight"][i, 0, k] * first[source][i]
            u[i] = silu(u[i])
        dbc = w["x_proj.weight"] @ u
        dt, b, c = dbc[:DT_RANK], dbc[DT_RANK : DT_RANK + D_STATE], dbc[DT_RANK + D_STATE :]
        raw = w["dt_proj.weight"] @ dt + w["dt_proj.bias"]
        y = np.zeros(D_INNER)
        for i in range(D_INNER):
            delta = softplus(raw[i])
            y[i] = w["D"][i] * u[i]
            for n in range(D_STATE):
                a = -math.exp(w["A_log"][i, n])
                h[i, n] = math.exp(delta * a) * h[i, n] + delta * b[n] * u[i]
                y[i] += c[n] * h[i, n]
            y[i] *= silu(gate[t][i])
        out.append(x[t] + w["out_proj.weight"] @ y)
    return np.array(out)


def stored(array):
    return {"shape": list(array.shape), "values": [float(f"{v:.15g}") for v in array.ravel()]}


golden = {
    "weights": {name: stored(value) for name, value in weights.items()},
    "x": stored(x),
    "y": stored(np.array([block(entry) for entry in x])),
}
print(json.dumps(golden, separators=(",", ":")))
