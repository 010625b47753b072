"""Precision: the state is float32 whatever the network computes in, and bfloat16 stays close to float32."""

import pytest
import torch
from laws.cases import BACKBONES, NETWORKS, assert_same, make_backbone, make_memory, name_of
from torch import Tensor

from titans_ts.core.memory import NeuralMemory
from titans_ts.core.ops.backends import OPS, choose
from titans_ts.core.ops.contract import Rule, Tokens
from titans_ts.core.state import MemoryState, leaves
from titans_ts.models.backbone import Backbone
from titans_ts.models.blocks import memory_of


def half(module, x, state=None):
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        return module(x, state)


@pytest.mark.parametrize("config", [*NETWORKS, *BACKBONES], ids=name_of)
def test_the_state_is_kept_in_single_precision_under_autocast(config):
    module = Backbone(config) if hasattr(config, "variant") else NeuralMemory(config)
    x = torch.randn(2, 13, config.dim)
    _, state = half(module, x)
    _, state = half(module, x, state)
    assert {leaf.dtype for leaf in leaves(state) if leaf.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("config", [*(config for config in NETWORKS if not config.residual), *BACKBONES], ids=name_of)
def test_bfloat16_is_within_3_percent_of_single_precision(config):
    """Outputs; weights within 10, since those of memory as context saw rounded attention. A residual memory divides by
    what its network puts out, which may be next to nothing, and is no closer than a third."""
    module = Backbone(config) if hasattr(config, "variant") else NeuralMemory(config)
    x = torch.randn(8, 33, config.dim)
    with torch.no_grad():
        y, state = module(x)
        rounded, rounded_state = half(module, x)
        assert ((rounded.float() - y).norm() / y.norm()).item() < 0.03
        pairs = [(state, rounded_state)] if config in NETWORKS else list(zip(state, rounded_state, strict=True))
        for exact, other in ((memory_of(a), memory_of(b)) for a, b in pairs):
            for weight, other_weight in zip(exact.weights, other.weights, strict=True):
                assert ((weight - other_weight).norm() / weight.norm()).item() < 0.1


@pytest.mark.parametrize("config", NETWORKS, ids=name_of)
def test_the_update_rule_knows_nothing_of_autocast(config, monkeypatch):
    module, name = NeuralMemory(config), choose(config)
    run, seen = OPS[name], []

    def watched(state: MemoryState, tokens: Tokens, rule: Rule) -> tuple[Tensor, MemoryState]:
        seen.append((torch.is_autocast_enabled("cpu"), {leaf.dtype for leaf in tokens[:6]}))
        return run(state, tokens, rule)

    monkeypatch.setitem(OPS, name, watched)
    half(module, torch.randn(2, 9, config.dim))
    assert seen == [(False, {torch.float32})]


@pytest.mark.parametrize("config", NETWORKS, ids=name_of)
def test_a_slow_forgetting_is_not_rounded_away_under_autocast(config):
    """In bfloat16 `w * (1 - 1e-3)` is w."""
    module = NeuralMemory(config)
    with torch.no_grad():
        module.gates.bias.copy_(torch.tensor([-60.0, 0.0, -6.9]).repeat_interleave(module.gates.bias.numel() // 3))
        module.gates.weight.zero_()
        module.initial[-1].normal_()
        _, state = half(module, torch.randn(1, 500, config.dim))
    for start, weight in zip(module.initial, state.weights, strict=True):
        assert (weight[0] / start).median().item() == pytest.approx((1 - 1e-3) ** 500, rel=0.02)


@pytest.mark.parametrize("config", [*NETWORKS, *BACKBONES], ids=name_of)
def test_single_is_close_to_double_precision(config):
    make = make_backbone if hasattr(config, "variant") else make_memory
    double = make(config)
    x = torch.randn(2, 33, config.dim, dtype=torch.float64)
    with torch.no_grad():
        y, state = double(x)
        single, single_state = double.float()(x.float())
    assert {leaf.dtype for leaf in leaves(state) if leaf.is_floating_point()} == {torch.float64}
    assert {leaf.dtype for leaf in leaves(single_state) if leaf.is_floating_point()} == {torch.float32}
    assert_same(single.double(), y, relative=1e-3 if config in NETWORKS and config.residual else 1e-4)
