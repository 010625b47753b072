"""The time-series model: its state streams exactly, whatever is missing, ragged, constant or in other units.

B row (series), T step, S forecast origin, F future step, Q quantile.
"""

import math
from itertools import pairwise, product

import pytest
import torch
from laws.cases import assert_same, shaken

from titans_ts.core.config import MemoryConfig
from titans_ts.core.state import leaves, map_state, select_rows
from titans_ts.models.blocks import memory_of
from titans_ts.models.config import VARIANTS, BackboneConfig, TimeSeriesConfig
from titans_ts.models.timeseries import TimeSeriesModel, replace_memories, window_scale

NAN = math.nan
PATCH, CONTEXT, HORIZON = 4, 10, 5  # windows, segments, chunks and patches that do not divide each other
CASES = [*product(VARIANTS, (1,)), ("mac", 2), ("lmm", 2)]


def make_model(variant="lmm", depth=1, dtype=torch.float64):
    memory = MemoryConfig(dim=8, heads=2, depth=depth, expansion=2, chunk=3, conv=2, persistent=2)
    backbone = BackboneConfig(dim=8, depth=2, variant=variant, heads=2, window=3, segment=3, memory=memory)
    config = TimeSeriesConfig(
        horizon=HORIZON, context=CONTEXT, patch=PATCH, quantiles=(0.1, 0.5, 0.9), backbone=backbone
    )
    return shaken(TimeSeriesModel(config), dtype, 0.2).eval()


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-depth{case[1]}")
def model(request):
    return make_model(*request.param)


def values(rows=2, time=41):
    """Noise around a level, with a missing value, a missing run and a missing patch."""
    x = 3 + torch.randn(rows, time, dtype=torch.float64)
    x[0, 5], x[-1, 17:24], x[:, 28:32] = NAN, NAN, NAN
    return x


@torch.no_grad()
def encode(model, x, state=None, lengths=None, **options):
    return model.encode(x, model.initial_state(len(x)) if state is None else state, lengths, **options)


@torch.no_grad()
def forecast(model, state):
    """The quantities that a forecaster makes of a state: expected value and quantiles, [B, F] and [B, F, Q]."""
    said = model.forecast(state)
    mean = said.level[:, None] + said.scale[:, None] * said.shift
    return mean, mean[..., None] + said.scale[:, None, None] * said.offsets


def memories(state):
    """Weights and momentum of every block."""
    return [leaf for part in state.backbone for leaf in (*memory_of(part).weights, *memory_of(part).momentum)]


def same(left, right):
    """Bit for bit, NaN in the same places."""
    return all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(left, right, strict=True))


def finite(*parts):
    return all(part.isfinite().all() for part in parts)


# Split


@pytest.mark.parametrize(
    "cuts",
    [[13], [1, 2, 3, 4, 5, 6, 7, 8], [4, 9, 9, 30], [0, 40], list(range(41))],
    ids=lambda cuts: f"{len(cuts)}cuts",
)
def test_any_cuts_give_what_one_pass_gives(model, cuts):
    x = values()
    whole, end = encode(model, x)
    state, outputs = None, []
    for begin, stop in pairwise([0, *cuts, x.shape[1]]):
        part, state = encode(model, x[:, begin:stop], state)
        outputs.append(part.outputs)
    assert_same(torch.cat(outputs, 1), whole.outputs)
    assert_same(map_state(torch.nan_to_num, state), map_state(torch.nan_to_num, end))
    assert torch.equal(state.window.isnan(), end.window.isnan())
    assert_same(forecast(model, state), forecast(model, end))


def test_float32_keeps_the_split_law_to_its_own_precision():
    model, x = make_model("mac", dtype=torch.float32), values().nan_to_num(3.0)
    _, end = encode(model, x)
    _, state = encode(model, x[:, :14])
    _, state = encode(model, x[:, 14:], state)
    assert_same(forecast(model, state), forecast(model, end), 1e-5)


# Ragged rows


def test_a_row_of_a_padded_batch_is_the_series_alone(model):
    x, lengths = values(4), torch.tensor([41, 17, 0, 3])
    padded = torch.where(torch.arange(41) < lengths[:, None], x, 1e3)  # padding may hold anything
    whole, end = encode(model, padded, None, lengths)
    assert whole.counts.tolist() == [10, 4, 0, 0]
    for row, length in enumerate(lengths.tolist()):
        alone, state = encode(model, x[row : row + 1, :length])
        assert_same(whole.outputs[row : row + 1, : whole.counts[row]], alone.outputs)
        kept = select_rows(end, torch.tensor([row]))
        assert_same(map_state(torch.nan_to_num, kept), map_state(torch.nan_to_num, state))
        assert_same(forecast(model, kept), forecast(model, state))


def test_ragged_rows_go_on_ragged(model):
    x = values(3)
    lengths, more = torch.tensor([6, 11, 20]), torch.tensor([13, 0, 21])
    _, state = encode(model, x[:, :20], None, lengths)
    index = lengths[:, None] + torch.arange(21)
    _, state = encode(model, x.gather(1, index.clamp(max=40)), state, more)
    _, end = encode(model, x, None, lengths + more)
    assert_same(map_state(torch.nan_to_num, state), map_state(torch.nan_to_num, end))


# Missing values


def test_a_missing_patch_moves_time_and_no_memory(model):
    _, state = encode(model, values().nan_to_num(3.0)[:, :12])
    silence = torch.full((2, PATCH), NAN, dtype=torch.float64)
    encoded, later = encode(model, silence, state)
    assert same(memories(later), memories(state))
    assert later.position.tolist() == [16, 16]
    assert encoded.counts.tolist() == [1, 1]
    assert not torch.equal(later.outputs, state.outputs)
    assert torch.equal(later.window[:, :-PATCH], state.window[:, PATCH:])
    assert later.window[:, -PATCH:].isnan().all()


def test_a_missing_patch_is_not_the_series_without_it(model):
    x = values(1).nan_to_num(3.0)
    gap = torch.full((1, PATCH), NAN, dtype=torch.float64)
    _, told = encode(model, torch.cat([x[:, :20], gap, x[:, 20:32]], 1))
    _, deleted = encode(model, x[:, :32])
    assert (told.position - deleted.position).tolist() == [PATCH]
    assert (forecast(model, told)[0] - forecast(model, deleted)[0]).abs().max() > 1e-6


def test_a_missing_value_shifts_the_patches_behind_it(model):
    x = values(1).nan_to_num(3.0)[:, :21]
    told, _ = encode(model, torch.cat([x[:, :9], torch.full((1, 1), NAN, dtype=torch.float64), x[:, 9:]], 1))
    deleted, _ = encode(model, x)
    assert torch.equal(told.outputs[:, :2], deleted.outputs[:, :2])
    assert (told.outputs[:, 2:] - deleted.outputs[:, 2:]).abs().amax((0, 2)).min() > 1e-6


def test_a_missing_value_is_not_the_value_of_the_level(model):
    x = values(1).nan_to_num(3.0)[:, :20]
    holed, filled = x.clone(), x.clone()
    holed[:, 17] = NAN
    filled[:, 17] = window_scale(holed[:, -CONTEXT:])[0]
    assert not torch.equal(encode(model, holed)[0].outputs, encode(model, filled)[0].outputs)


def test_a_silence_of_more_than_a_context_keeps_the_level_and_scale_before_it(model):
    x = values(1).nan_to_num(3.0)[:, :20]
    _, before = encode(model, x)
    last = x[:, 18:]  # what the last patch's window that has a value still holds of them
    for gap in (CONTEXT, 3 * CONTEXT + 1, 200):
        _, state = encode(model, torch.full((1, gap), NAN, dtype=torch.float64), before)
        said = model.forecast(state)
        assert state.window.isnan().all()
        assert same([said.level, said.scale], window_scale(last))
        assert finite(*forecast(model, state), *memories(state))
        encoded, back = encode(model, x, state)
        assert finite(encoded.outputs, *forecast(model, back))


def test_a_series_that_never_spoke_is_finite(model):
    _, state = encode(model, torch.full((1, 50), NAN, dtype=torch.float64))
    assert finite(*forecast(model, state))
    assert same(memories(state), memories(model.initial_state(1)))
    assert finite(*forecast(model, model.initial_state(1)))


# A memory that stands still


def test_without_adapt_the_memories_stand_and_everything_else_moves(model):
    x = values().nan_to_num(3.0)
    _, state = encode(model, x[:, :18])
    encoded, frozen = encode(model, x[:, 18:], state, adapt=False)
    adapting, moved = encode(model, x[:, 18:], state)
    assert same(memories(frozen), memories(state))
    assert not any(torch.equal(a, b) for a, b in zip(memories(moved), memories(state), strict=True))
    assert torch.equal(frozen.window, moved.window)
    assert torch.equal(frozen.position, moved.position)
    assert torch.equal(frozen.levels, moved.levels)
    assert not torch.equal(frozen.outputs, state.outputs)
    assert not torch.equal(encoded.outputs, adapting.outputs)


def test_without_adapt_the_split_law_holds_too(model):
    x = values()
    _, state = encode(model, x[:, :18])
    _, end = encode(model, x[:, 18:], state, adapt=False)
    for begin, stop in pairwise([18, 19, 27, 41]):
        _, state = encode(model, x[:, begin:stop], state, adapt=False)
    assert_same(map_state(torch.nan_to_num, state), map_state(torch.nan_to_num, end))


# Causality


@torch.no_grad()
def forecasts_inside(model, x, before=None):
    """A forecast after every value of `x` from the first whole patch on, [S, F] and [S, F, Q]; one row."""
    before = model.initial_state(1) if before is None else before
    origin = torch.arange(PATCH, x.shape[1] + 1)
    encoded, _ = model.encode(x, before)
    said = model.forecast_at(x, before, encoded, torch.zeros_like(origin), origin // PATCH, origin % PATCH)
    mean = said.level[:, None] + said.scale[:, None] * said.shift
    return mean, mean[..., None] + said.scale[:, None, None] * said.offsets


def test_nothing_before_t_moves_when_the_future_does(model):
    x, time = values(1), 21
    other = x.clone()
    other[:, time:] = 1e3 * torch.randn(1, 20, dtype=torch.float64)
    other[:, 30] = NAN
    left, right = encode(model, x)[0], encode(model, other)[0]
    whole = time // PATCH
    assert torch.equal(left.outputs[:, :whole], right.outputs[:, :whole])
    assert not torch.equal(left.outputs[:, whole:], right.outputs[:, whole:])
    one, two = forecasts_inside(model, x), forecasts_inside(model, other)
    seen = time - PATCH + 1  # forecasts made at `time` and before
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a[:seen], b[:seen])
        assert not torch.equal(a[seen], b[seen])


def test_forecasts_from_inside_a_pass_are_those_of_a_stream(model):
    x = values(1)
    _, before = encode(model, x[:, :8])
    for start, state in ((0, None), (8, before)):
        inside = forecasts_inside(model, x[:, start:], state)
        for step in range(PATCH, x.shape[1] - start + 1, 3):
            _, streamed = encode(model, x[:, start : start + step], state)
            expected = forecast(model, streamed)
            for got, wanted in zip(inside, expected, strict=True):
                assert_same(got[step - PATCH], wanted[0])


# Units


@pytest.mark.parametrize(("factor", "shift"), [(1e3, -7e3), (1e-12, 0.0), (1e12, 5e12), (0.37, 1e4), (1e-3, 1.0)])
def test_other_units_give_the_forecast_in_these_units(model, factor, shift):
    x = values()
    _, state = encode(model, x)
    _, other = encode(model, factor * x + shift)
    size = abs(factor) * 10 + abs(shift)
    for one, two in zip(forecast(model, state), forecast(model, other), strict=True):
        error = (two - (factor * one + shift)).abs().max().item()
        assert error <= 1e-9 * size, f"{error:.2e} of {size:.2e}"
        assert (one - one.mean()).abs().max() > 1e-3  # not the level alone


@pytest.mark.parametrize("constant", [0.0, 5.0, 0.1, 123.456, 1e12 / 3, -1e-12 / 7])
@pytest.mark.parametrize("context", [10, 336])
def test_a_constant_series_goes_on_exactly(constant, context):
    backbone = make_model().config.backbone
    config = TimeSeriesConfig(horizon=3, context=context, patch=PATCH, quantiles=(0.1, 0.9), backbone=backbone)
    model = shaken(TimeSeriesModel(config), scale=0.2).eval()
    for time in (1, 7, 500):
        _, state = encode(model, torch.full((1, time), constant, dtype=torch.float64))
        mean, quantiles = forecast(model, state)
        assert (mean == constant).all()
        assert (quantiles == constant).all()
        assert finite(*memories(state))


def test_the_scale_of_almost_equal_values_is_zero_and_of_others_is_theirs():
    window = torch.full((3, 50), 1e6, dtype=torch.float64)
    window[1, 7] += 1e-6
    window[2, 7] += 1.0
    level, scale = window_scale(window)
    assert level[0] == 1e6
    assert scale[:2].tolist() == [0, 0]
    assert scale[2].item() == pytest.approx(window[2].std(correction=0).item(), rel=1e-9)
    assert level[2].item() == pytest.approx(1e6 + 0.02, rel=1e-15)


def test_a_level_shift_and_a_spike_leave_finite_forecasts(model):
    x = values(1).nan_to_num(3.0)
    for jump in (1e3, 1e9, -1e12):
        shifted, spiked = x.clone(), x.clone()
        shifted[:, 30:] += jump
        spiked[:, 30] = jump
        for series in (shifted, spiked, torch.cat([torch.ones(1, 30, dtype=torch.float64), shifted], 1)):
            _, state = encode(model, series)
            assert finite(*forecast(model, state), *memories(state))


# Quantiles


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantiles_never_cross(dtype):
    model = shaken(make_model(dtype=dtype), dtype, 3.0)  # a wild head
    for x in (values(), 1e9 * values(), values().cumsum(1)):
        _, quantiles = forecast(model, encode(model, x)[1])
        assert quantiles.isfinite().all()
        assert (quantiles.diff(dim=-1) >= 0).all()
        assert quantiles.std() > 0


def test_a_fresh_model_spreads_its_quantiles_like_a_normal_distribution():
    config = TimeSeriesConfig(horizon=2, context=8, patch=4, quantiles=(0.1, 0.5, 0.9))
    torch.manual_seed(1)
    model = TimeSeriesModel(config)
    with torch.no_grad():
        model.mix.weight.zero_()
        said = model.forecast(encode(model, torch.randn(1, 8, dtype=torch.float64))[1])
    expected = torch.tensor([-1.2816, 0.0, 1.2816]) / 2
    assert_same(said.offsets[0, 0], expected, 1e-3)


# Memories from outside


def test_replaced_memories_are_read_and_nothing_else_changes(model):
    x = values()
    _, state = encode(model, x[:, :18])
    silenced = replace_memories(state, torch.zeros_like)
    assert not any(leaf.any() for leaf in memories(silenced))
    assert all(leaf.any() for leaf in memories(state))
    assert same(
        [leaf for part in silenced[:2] + silenced[3:] for leaf in leaves(part)],
        [leaf for part in state[:2] + state[3:] for leaf in leaves(part)],
    )
    assert not torch.equal(encode(model, x[:, 18:], silenced)[0].outputs, encode(model, x[:, 18:], state)[0].outputs)
    assert same(leaves(replace_memories(state, lambda leaf: leaf)), leaves(state))
