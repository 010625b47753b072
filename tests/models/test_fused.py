"""The fused model is the model: the same state and the same forecast after every single observation."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from laws.cases import assert_same, shaken
from torch import Tensor

from titans_ts.core.config import MemoryConfig
from titans_ts.core.state import leaves
from titans_ts.models import fused
from titans_ts.models.config import BackboneConfig, TimeSeriesConfig
from titans_ts.models.fused import FusedModel, Readout
from titans_ts.models.timeseries import Prediction, SeriesState, TimeSeriesModel

CONFIG = TimeSeriesConfig(
    horizon=5, context=18, patch=4, quantiles=(0.1, 0.5, 0.9), rank=7,
    backbone=BackboneConfig(
        dim=8, depth=2, heads=2, dropout=0.0, residual_init=1.0,
        memory=MemoryConfig(dim=8, heads=2, depth=1, chunk=4, expansion=2, persistent=3),
    ),
)  # fmt: skip
MEMORIES: list[dict[str, Any]] = [
    {"depth": 1},
    {"depth": 2},
    {"depth": 2, "residual": True, "layer_gates": True},
    {"depth": 3, "heads": 1, "momentum": False, "step_budget": None},
    {"depth": 1, "conv": 1, "normalize": False, "forgetting": False, "persistent": 0},
]
ROWS = np.arange(4)


def make(changes: dict[str, Any], dtype: torch.dtype = torch.float64, **sizes: Any) -> TimeSeriesModel:
    backbone = replace(CONFIG.backbone, memory=replace(CONFIG.backbone.memory, **changes))
    return shaken(TimeSeriesModel(replace(CONFIG, backbone=backbone, **sizes)), dtype)


def begun(model: TimeSeriesModel) -> SeriesState:
    """Four series: far in, early, before the first value, and in the middle of a patch."""
    values = 100 + 10 * torch.randn(4, 30, dtype=torch.float64)
    with torch.no_grad():
        return model.encode(values, model.initial_state(4), torch.tensor([28, 7, 0, 30]))[1]


def plain_readout(model: TimeSeriesModel) -> Readout:
    """Without a linear path."""
    nothing = np.zeros((0, model.config.context * model.config.horizon))
    steps = np.zeros(4, dtype=np.int64)
    usual = np.zeros((1, 0)), np.zeros((1, 5)), np.zeros((4, 4), dtype=np.int64), np.zeros((4, 2))
    return Readout(nothing, np.zeros((1, 0)), *usual, steps, steps, 1.0)


def in_units(said: Prediction) -> tuple[Tensor, Tensor, Tensor]:
    """Point forecasts, the head's quantiles around them, and the scales of the windows."""
    point = said.level[:, None] + said.scale[:, None] * said.shift.double()
    return point, said.scale[:, None, None] * said.offsets.double(), said.scale


def known(state: SeriesState) -> SeriesState:
    return state._replace(window=state.window.nan_to_num(nan=-1.0))


def assert_goes_on(model: TimeSeriesModel, steps: int = 50, relative: float = 0.0, adapt: bool = True) -> None:
    """With values missing now and then, of one series longer than its window, and of one every one the same."""
    random, state = np.random.default_rng(0), begun(model)
    other, readout = FusedModel(model, state), plain_readout(model)
    for step in range(steps):
        values = 100 + 10 * random.normal(size=4)
        values[random.random(4) < 0.3] = np.nan
        values[2] = 7.5
        if 10 < step < 36:
            values[1] = np.nan
        other.update(ROWS, values, adapt)
        with torch.no_grad():
            _, state = model.encode(torch.from_numpy(values)[:, None], state, adapt=adapt)
            said = in_units(model.forecast(state))
        assert_same(known(other.series_state()), known(state), relative=relative)
        assert_same(tuple(map(torch.from_numpy, other.forecast(ROWS, readout))), said, relative=relative)


@pytest.mark.interpreted
@pytest.mark.parametrize("changes", MEMORIES, ids=str)
def test_the_fused_model_is_the_model(changes):
    assert_goes_on(make(changes))


@pytest.mark.parametrize("changes", MEMORIES[:2], ids=str)
def test_the_fused_model_is_the_model_in_single_precision(changes):
    assert_goes_on(make(changes, torch.float32), relative=1e-5)


@pytest.mark.parametrize("sizes", [{"patch": 1, "context": 5}, {"patch": 6, "context": 6, "horizon": 1}], ids=str)
def test_patches_of_every_length_are_the_model_s(sizes):
    assert_goes_on(make({"depth": 2}, **sizes), steps=25)


@pytest.mark.interpreted
def test_without_adapting_the_memories_stand_still():
    assert_goes_on(make({"depth": 2}), steps=10, adapt=False)


@pytest.mark.interpreted
def test_a_large_level_costs_no_digits():
    model = make({"depth": 1}, torch.float32)
    values = 1e9 + torch.randn(4, 40, dtype=torch.float64)
    other, state = FusedModel(model, model.initial_state(4)), model.initial_state(4)
    for column in values.T.contiguous():
        other.update(ROWS, column.numpy())
    with torch.no_grad():
        said = in_units(model.forecast(model.encode(values, state)[1]))
    for got, true in zip(other.forecast(ROWS, plain_readout(model)), said, strict=True):
        assert np.abs(got - true.numpy()).max() < 1e-4


@pytest.mark.interpreted
def test_series_may_come_in_any_order_and_at_any_pace():
    model, random = make({"depth": 2}), np.random.default_rng(1)
    together = FusedModel(model, begun(model))
    alone = FusedModel(model, together.series_state())
    for _ in range(20):
        rows = random.permutation(4)[: random.integers(1, 5)]
        values = random.normal(size=len(rows))
        together.update(rows, values)
        for row, value in zip(rows, values, strict=True):
            alone.update(np.array([row]), np.array([value]))
    assert all(
        torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(leaves(together.series_state()), leaves(alone.series_state()), strict=True)
    )
    forecasts = together.forecast(np.array([3, 1]), plain_readout(model))
    assert np.array_equal(forecasts[0][1], alone.forecast(np.array([1]), plain_readout(model))[0][0])


@pytest.mark.interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_series_alone_is_the_series_in_every_tile(dtype):
    model, random, count = make({"depth": 2}, dtype), np.random.default_rng(2), 2 * fused.TILE + 3
    together, alone = (FusedModel(model, model.initial_state(count)) for _ in range(2))
    for step in range(21):
        rows = random.permutation(count)[: count - step % 3]
        values = random.normal(size=len(rows))
        together.update(rows, values)
        for row, value in zip(rows, values, strict=True):
            alone.update(np.array([row]), np.array([value]))
    assert len(set(together.counts[:, 0] % model.config.patch)) > 1  # they have come apart
    same = zip(leaves(together.series_state()), leaves(alone.series_state()), strict=True)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in same)


@pytest.mark.interpreted
def test_several_tiles_at_once_are_the_model():
    model, count = make({"depth": 2}), 2 * fused.TILE + 3
    values = 100 + 10 * torch.randn(count, 30, dtype=torch.float64)
    other = FusedModel(model, model.initial_state(count))
    for column in values.T.contiguous():
        other.update(np.arange(count), column.numpy())
    with torch.no_grad():
        _, state = model.encode(values, model.initial_state(count))
    assert_same(known(other.series_state()), known(state))


def test_every_series_begins_with_a_cache_line():
    model = make({"depth": 2}, torch.float32)
    other = FusedModel(model, begun(model))
    assert other.state.ctypes.data % 64 == 0
    assert other.state.strides[0] % 64 == 0


def test_the_state_goes_to_the_model_and_back_to_the_last_bit():
    model = make({"depth": 2})
    state = begun(model)
    again = FusedModel(model, state).series_state()
    assert all(torch.equal(a, b) for a, b in zip(leaves(known(again)), leaves(known(state)), strict=True))


def test_neither_the_model_nor_the_state_it_began_with_is_changed():
    model = make({"depth": 2})
    state = begun(model)
    before = [leaf.clone() for leaf in [*leaves(state), *model.parameters()]]
    other = FusedModel(model, state)
    for _ in range(9):
        other.update(ROWS, np.ones(4))
    after = [*leaves(state), *model.parameters()]
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(after, before, strict=True))


@pytest.mark.interpreted
def test_threads_share_the_rows_and_change_nothing(monkeypatch):
    model = make({"depth": 2}, torch.float32)
    state, results = begun(model), []
    for count in (1, 3):
        monkeypatch.setattr(fused, "threads", lambda items, count=count: count)
        each = FusedModel(model, state)
        for step in range(9):
            each.update(ROWS, np.full(4, float(step)))
        results.append((each.state, each.exact, each.counts, *each.forecast(ROWS, plain_readout(model))))
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(*results, strict=True))


def test_a_model_with_attention_is_refused():
    model = TimeSeriesModel(replace(CONFIG, backbone=replace(CONFIG.backbone, variant="mag")))
    with pytest.raises(ValueError, match="variant is 'mag'"):
        FusedModel(model, model.initial_state(1))
