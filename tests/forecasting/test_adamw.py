"""The optimiser takes torch's own steps, and brings less along."""

import subprocess
import sys

import torch
from torch import nn

from titans_ts.forecasting.adamw import AdamW


def test_its_steps_are_those_of_torch():
    """Rates that change, decays that differ, and a parameter that has no gradient for a while."""
    ours, theirs = ([nn.Parameter(torch.linspace(-1, 1, size)) for size in (7, 3, 5)] for _ in range(2))
    decays = (0.05, 0.0, 0.1)
    optimizer = AdamW(zip(ours, decays, strict=True), betas=(0.9, 0.99))
    groups = [{"params": [p], "weight_decay": decay} for p, decay in zip(theirs, decays, strict=True)]
    wanted = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(0)
    for step in range(60):
        rate = 1e-2 / (1 + step)
        for group in wanted.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        wanted.zero_grad()
        for place, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            if place or step % 3:
                p.grad = torch.randn(p.shape, generator=generator)
                q.grad = p.grad.clone()
        optimizer.step(rate)
        wanted.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))
    assert not torch.equal(ours[0], torch.linspace(-1, 1, 7))


def test_fit_does_not_bring_the_compiler_of_torch_along():
    """66 MB that nothing here uses."""
    script = """
import sys
import numpy as np
from titans_ts import TitansForecaster, TrainConfig
TitansForecaster(horizon=4, season_length=4, train=TrainConfig(steps=2), random_state=0).fit(np.sin(np.arange(99.0)))
sys.exit("torch._dynamo" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
