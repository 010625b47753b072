"""Checkpointed blocks: the same outputs, state and gradients, and less memory."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from laws.cases import BACKBONES, assert_same, name_of, shaken

from titans_ts.core.state import leaves
from titans_ts.models.backbone import Backbone


def passed(backbone: Backbone, x: torch.Tensor) -> list[torch.Tensor]:
    """Outputs and states of two calls, the second with missing and padded tokens, and all gradients."""
    observed, lengths = torch.arange(x.shape[1]).expand(x.shape[:2]) % 4 > 0, torch.tensor([x.shape[1], 5])
    y, state = backbone(x)
    z, end = backbone(x, state, observed, lengths)
    z = torch.where((torch.arange(x.shape[1]) < lengths[:, None])[..., None], z, 0.0)
    loss = y.square().sum() + z.square().sum()
    return [y, z, *leaves(end), *torch.autograd.grad(loss, list(backbone.parameters()))]


@pytest.mark.parametrize("config", [each for each in BACKBONES if each.memory.depth < 3], ids=name_of)
def test_blocks_computed_again_give_the_same_outputs_states_and_gradients(config):
    plain = shaken(Backbone(config), scale=0.2)
    again = Backbone(replace(config, checkpoint=True)).double().eval()
    again.load_state_dict(plain.state_dict())
    x = torch.randn(2, 17, config.dim, dtype=torch.float64)
    assert_same(tuple(passed(again, x)), tuple(passed(plain, x)), tolerance=1e-12)


def test_dropout_falls_on_the_same_numbers_when_a_block_is_computed_again():
    config = replace(BACKBONES[0], dropout=0.5)
    gradients = []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        backbone = Backbone(replace(config, checkpoint=checkpoint)).double().train()
        y, _ = backbone(torch.randn(2, 17, config.dim, dtype=torch.float64))
        gradients.append(tuple(torch.autograd.grad(y.square().sum(), list(backbone.parameters()))))
    assert_same(gradients[1], gradients[0], tolerance=1e-12)


PEAK = """
import sys
import torch
from titans_ts.benchmark.memory import Peak
from titans_ts.models.backbone import Backbone
from titans_ts.models.config import preset
torch.set_num_threads(1)
backbone = Backbone(preset("small", depth=16, residual_init=1.0, checkpoint=sys.argv[1] == "again"))
backbone(torch.randn(1, 64, 64))[0].sum().backward()
x = torch.randn(1, 4096, 64)
peak = Peak()
backbone(x)[0].square().mean().backward()
print(peak.rise())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
def test_blocks_computed_again_take_less_memory():
    def peak(how: str) -> float:
        return float(
            subprocess.run([sys.executable, "-c", PEAK, how], capture_output=True, text=True, check=True).stdout
        )

    plain, again = peak("plain"), peak("again")
    print(f"sixteen blocks, 4,096 tokens: {plain:.0f} MiB plain, {again:.0f} MiB checkpointed")
    assert again < 0.5 * plain
