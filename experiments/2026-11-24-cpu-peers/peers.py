"""What PyTorch does on this CPU with the shapes of our bench: mamba.py's scan and blocks, an S-Mamba step.

    python3 -m venv V && V/bin/pip install torch mambapy && V/bin/python peers.py [block|compiled]

One JSON row a case, medians in milliseconds, two threads. Run it beside our bench and quote ratios.
"""
import json
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F
from mambapy.mamba import Mamba, MambaBlock, MambaConfig
from mambapy.pscan import pscan

torch.set_num_threads(2)


def median_ms(run, n):
    run()
    times = []
    for _ in range(n):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return sorted(times)[n // 2]


def row(**fields):
    print(json.dumps(fields), flush=True)


def scan(batch=8, seq_len=512, d_inner=512, d_state=16):
    u = torch.randn(batch, seq_len, d_inner, requires_grad=True)
    delta = torch.rand(batch, seq_len, d_inner, requires_grad=True)
    a = (-torch.rand(d_inner, d_state)).requires_grad_()
    b = torch.randn(batch, seq_len, d_state, requires_grad=True)
    c = torch.randn(batch, seq_len, d_state, requires_grad=True)

    def forward():
        decay = torch.exp(delta.unsqueeze(-1) * a)
        inputs = (delta * u).unsqueeze(-1) * b.unsqueeze(2)
        return (pscan(decay, inputs) @ c.unsqueeze(-1)).squeeze(-1)

    def no_grad():
        with torch.no_grad():
            forward()

    both = lambda: torch.autograd.grad(forward().sum(), [u, delta, a, b, c])
    row(op="scan, mamba.py pscan", fwd_ms=median_ms(no_grad, 5), fwd_bwd_ms=median_ms(both, 3))


def block(batch, seq_len, d_model, n_layer, use_pscan, runs=3, compiled=False):
    model = Mamba(MambaConfig(d_model=d_model, n_layers=n_layer, pscan=use_pscan))
    if compiled:
        model = torch.compile(model)
    x = torch.randn(batch, seq_len, d_model)

    def forward():
        with torch.no_grad():
            model(x)

    def both():
        model.zero_grad()
        model(x).sum().backward()

    how = "torch.compile of " if compiled else ""
    name = f"{how}mamba.py {n_layer} layer(s), batch {batch}, pscan {use_pscan}, median of {runs}"
    row(op=name, fwd_ms=median_ms(forward, runs), fwd_bwd_ms=median_ms(both, runs))


class Layer(nn.Module):
    def __init__(self, d, d_state):
        super().__init__()
        config = lambda: MambaConfig(d_model=d, n_layers=1, d_state=d_state, expand_factor=1, d_conv=2)
        self.forwards, self.backwards = MambaBlock(config()), MambaBlock(config())
        self.fc1, self.fc2 = nn.Linear(d, d), nn.Linear(d, d)
        self.norm1, self.norm2, self.dropout = nn.LayerNorm(d), nn.LayerNorm(d), nn.Dropout(0.1)

    def forward(self, x):
        x = self.norm1(x + self.forwards(x) + self.backwards(x.flip(1)).flip(1))
        return self.norm2(x + self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x))))))


class SMamba(nn.Module):
    def __init__(self, d=256, d_state=2, n_layer=2, horizon=96):
        super().__init__()
        self.embed, self.norm, self.out = nn.Linear(96, d), nn.LayerNorm(d), nn.Linear(d, horizon)
        self.layers = nn.ModuleList([Layer(d, d_state) for _ in range(n_layer)])

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        std = (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        h = self.embed(((x - mean) / std).transpose(1, 2))
        for layer in self.layers:
            h = layer(h)
        return self.out(self.norm(h)).transpose(1, 2) * std + mean


def s_mamba_step():
    model = SMamba()
    optimizer = torch.optim.Adam(model.parameters())
    x, y = torch.randn(32, 96, 11), torch.randn(32, 96, 11)

    def step():
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()

    row(op="S-Mamba training step, ETTh1 96 -> 96", ms=median_ms(step, 20))


if sys.argv[1:] == ["block"]:
    block(2, 256, 256, 1, True)
    sys.exit()
if sys.argv[1:] == ["compiled"]:
    block(2, 256, 256, 1, True, runs=40)
    block(2, 256, 256, 1, True, runs=40, compiled=True)
    sys.exit()
row(torch=torch.__version__, threads=torch.get_num_threads())
n = torch.randn(1024, 1024)
ms = median_ms(lambda: n @ n, 10)
row(op="matmul 1024", ms=ms, gflop_per_s=2 * 1024**3 / ms / 1e6)
s_mamba_step()
scan()
block(2, 256, 256, 1, True)
block(2, 256, 256, 1, True, runs=40)
block(2, 256, 256, 1, False)
block(8, 256, 256, 4, True)
