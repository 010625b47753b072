"""Operations by formula and by hook are those that torch counts itself."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from titans_ts.benchmark.counts import Useful, by_chunks, by_tokens, products
from titans_ts.core import memory as layer
from titans_ts.core.config import MemoryConfig
from titans_ts.core.memory import NeuralMemory
from titans_ts.core.networks import layer_shapes
from titans_ts.core.ops.backends import rule_of
from titans_ts.core.ops.contract import Tokens
from titans_ts.core.ops.reference import reference
from titans_ts.models.config import BackboneConfig, TimeSeriesConfig
from titans_ts.models.timeseries import SPREAD_SHAPES, TimeSeriesModel

MIXED = 3 * 2 * SPREAD_SHAPES * 5 * 3  # of three rows: shapes of the spread, which no layer mixes


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_token_takes_the_products_of_the_definition_and_three_operations_more_for_each_weight(depth):
    """Those that torch does not call a product: momentum by eta, weights by 1 - alpha, and their sum."""
    config = MemoryConfig(dim=12, heads=2, depth=depth, expansion=3)
    memory, one = NeuralMemory(config), torch.rand(1, 2, 1, 1)
    tokens = Tokens(*torch.randn(3, 1, 2, 1, config.head_dim), 0.1 * one, one, one)
    told = products(lambda: reference(memory.initial_state(1), tokens, rule_of(config)))
    weights = sum(i * o for i, o in layer_shapes(config.head_dim, depth, config.expansion))
    assert by_tokens(config) == told + 3 * config.heads * weights


def test_a_chunk_takes_the_products_of_its_formula():
    linear, deep = MemoryConfig(dim=64, depth=1, heads=4, chunk=16), MemoryConfig(dim=64, heads=4, expansion=2, chunk=8)
    assert by_chunks(linear) == 4 * (10 * 16**2 + 4 * 16 * 16 + 2 * 16**2)
    assert by_chunks(deep) == 4 * (22 * 16 * 32 + 4 * 8 * (16 + 32) + 2 * 8**2)


@pytest.fixture
def model(monkeypatch):
    """A model whose memories say what is written, by an op without products, at different sizes everywhere."""
    monkeypatch.setattr(layer, "OPS", dict.fromkeys(layer.OPS, lambda state, tokens, rule: (tokens.values, state)))
    backbone = BackboneConfig(dim=24, heads=2, memory=MemoryConfig(dim=24, heads=2, depth=1, conv=3), expansion=1.5)
    config = TimeSeriesConfig(horizon=5, context=28, patch=7, quantiles=(0.1, 0.5, 0.9), backbone=backbone, rank=11)
    return TimeSeriesModel(config)


def test_the_layers_of_a_model_are_counted_as_torch_counts_them(model):
    values, state = torch.randn(3, 30, dtype=torch.float64), model.initial_state(3)

    def run():
        encoded, after = model.encode(values, state)
        return encoded, model.forecast(after)

    with Useful(memory=lambda config: 0) as useful, torch.no_grad():
        run()
    assert useful.operations == products(run) - MIXED > 0
    with Useful(memory=lambda config: 1) as more, torch.no_grad():
        run()
    assert more.operations == useful.operations + 2 * 3 * 4  # blocks, rows, patches


def test_backward_counts_as_twice_forward(model):
    state = model.initial_state(3)
    state = state._replace(outputs=torch.randn_like(state.outputs, requires_grad=True))
    with Useful() as forward, torch.no_grad():
        model.forecast(state)
    with Useful() as both, FlopCounterMode(display=False) as counted:
        said = model.forecast(state)
        (said.shift.sum() + said.offsets.sum()).backward()
    assert both.operations == 3 * forward.operations
    assert counted.get_total_flops() == both.operations + 3 * MIXED


def test_a_chunk_is_no_longer_than_the_sequence():
    config, seen = MemoryConfig(dim=8, chunk=64), []
    with Useful(memory=lambda memory: seen.append(memory.chunk) or 0):
        NeuralMemory(config)(torch.zeros(1, 5, 8))
        NeuralMemory(config)(torch.zeros(1, 100, 8))
    assert seen == [5, 64]


def test_what_runs_after_it_is_left_is_not_counted():
    with Useful() as useful:
        pass
    torch.nn.Linear(2, 2)(torch.zeros(1, 2))
    assert useful.operations == 0
