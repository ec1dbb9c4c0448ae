"""mamba.py's training step of a language model of 4 layers, 256 wide: batch 8 x 256 bytes, clip, AdamW; two threads.

    V/bin/python cpu_step.py      (V as for ../2026-11-24-cpu-peers/peers.py)
"""
import json
import time

import torch
import torch.nn.functional as F
from mambapy.mamba import Mamba, MambaConfig

torch.set_num_threads(2)
# Its own module of language models wants CUDA kernels when it is imported; around the layers it does no more than this.
model = torch.nn.Sequential(
    torch.nn.Embedding(256, 256),
    Mamba(MambaConfig(d_model=256, n_layers=4)),
    torch.nn.RMSNorm(256),
    torch.nn.Linear(256, 256, bias=False),
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
tokens = torch.randint(256, (8, 257))
times = []
for _ in range(6):
    start = time.perf_counter()
    optimizer.zero_grad()
    logits = model(tokens[:, :-1])
    F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    times.append(1e3 * (time.perf_counter() - start))
parameters = sum(p.numel() for p in model.parameters())
print(json.dumps({"op": "mamba.py, training step", "parameters": parameters, "ms": sorted(times[1:])[2]}))
