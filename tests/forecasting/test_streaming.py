"""The stream is the forecaster: the same forecasts after every observation, and the state goes back and forth."""

import numpy as np
import pytest
import torch

from titans_ts import BackboneConfig, MemoryConfig, TitansForecaster, TrainConfig
from titans_ts.core.state import leaves
from titans_ts.forecasting.panel import Panel
from titans_ts.forecasting.streaming import StreamingForecaster

LENGTH, SERIES = 300, 3
RANDOM = np.random.default_rng(0)
Y = np.sin(np.arange(LENGTH + 30)[:, None] / 3 + np.arange(SERIES)) + 0.2 * RANDOM.normal(size=(LENGTH + 30, SERIES))
Y[:, 1] += 50
Y[RANDOM.random(Y.shape) < 0.1] = np.nan
PAST, LATER = Y[:LENGTH], Y[LENGTH:]


def fitted(**changes):
    backbone = BackboneConfig(
        dim=16, heads=2, residual_init=1.0, memory=MemoryConfig(dim=16, heads=2, depth=changes.pop("depth", 1))
    )
    options = {
        "horizon": 6,
        "context_length": 24,
        "season_length": 19,
        "model": backbone,
        "train": TrainConfig(steps=5, checks=1),
        "random_state": 0,
    }
    return TitansForecaster(**(options | changes)).fit(PAST)


LINEAR = pytest.param(1, id="linear", marks=pytest.mark.interpreted)  # a deep one trains for minutes without a compiler


@pytest.fixture(scope="module", params=[LINEAR, pytest.param(2, id="deep")])
def forecaster(request):
    made = fitted(depth=request.param)
    made.model_.double()
    made.correction_ = 0.7  # whatever validation said: all parts are to be seen
    assert made.linear_.profile.any()
    assert made.linear_.pull.any()
    state = made._start(panel_of(made, PAST))
    made._known = made._known.__class__(made._known.ids, made._known.ends, made._known.phases, made._known.clock, state)
    return made


def panel_of(forecaster, values):
    count = values.shape[1]
    known = forecaster._known
    offsets = np.arange(count + 1) * len(values)
    ends = np.full(count, len(values) - 1)
    return Panel(values.T.ravel(), offsets, known.ids, ends, np.zeros(count, dtype=np.int64), known.clock)


def assert_equal(forecast, true, tolerance=1e-9):
    for got, wanted in zip(forecast[:2], true[:2], strict=True):
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)
    assert forecast.levels == true.levels


def test_every_observation_gives_the_forecaster_s_forecasts(forecaster):
    stream, state, rows = StreamingForecaster.from_forecaster(forecaster), forecaster._known.state, np.arange(SERIES)
    assert_equal(stream.forecast(rows), forecaster._forecast(state, rows))
    for values in LATER:
        stream.update(rows, values)
        state = forecaster._advance(state, rows, panel_of(forecaster, values[None]))
        assert_equal(stream.forecast(rows), forecaster._forecast(state, rows))


def test_one_series_alone_is_the_series_among_others(forecaster):
    stream, other = (StreamingForecaster.from_forecaster(forecaster) for _ in range(2))
    for values in LATER:
        stream.update(list(range(SERIES)), values)
        for row in (2, 0, 1):
            other.update(row, values[row])
    for row in range(SERIES):
        alone = other.forecast(row)
        assert alone.point.shape == (1, 6)
        assert np.array_equal(alone.quantiles[0], stream.forecast([row]).quantiles[0])


def test_torch_goes_on_from_the_stream_s_state(forecaster):
    stream, rows = StreamingForecaster.from_forecaster(forecaster), np.arange(SERIES)
    half = len(LATER) // 2
    for values in LATER[:half]:
        stream.update(rows, values)
    state = forecaster._advance(stream.panel_state(), rows, panel_of(forecaster, LATER[half:]))
    for values in LATER[half:]:
        stream.update(rows, values)
    assert_equal(stream.forecast(rows), forecaster._forecast(state, rows))


def test_the_forecaster_stays_as_it_is(forecaster):
    before = [leaf.clone() for leaf in leaves(forecaster._known.state)]
    stream = StreamingForecaster.from_forecaster(forecaster)
    first = stream.forecast(0)
    for value in LATER[:, 0]:
        stream.update(0, value)
    after = leaves(forecaster._known.state)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(after, before, strict=True))
    assert not np.array_equal(stream.forecast(0).point, first.point)
    again = stream.forecast(0)
    assert np.array_equal(stream.forecast(0).quantiles, again.quantiles)


VARIATIONS = {
    "a map a series": {},
    "the median": {"point": "median"},
    "frozen": {"adapt": False},
    "no linear path": {"train": TrainConfig(steps=5, linear=False, checks=1)},
    "nothing learnt": {"train": TrainConfig(steps=0)},
}


@pytest.mark.parametrize("case", VARIATIONS)
def test_every_kind_of_forecaster_streams(case):
    forecaster, rows = fitted(**VARIATIONS[case]), np.arange(SERIES)
    if case == "a map a series":
        own = np.random.default_rng(1).normal(size=(SERIES, 24, 6)) / 24
        shared = forecaster.linear_
        forecaster.linear_ = type(shared)(
            np.concatenate([shared.weights, own]), shared.penalty, {}, ids=forecaster.fitted_ids_
        )
        state = forecaster._known.state
        forecaster._known.state.fading.own.copy_(torch.tensor([2, 0, 3]))
    stream = StreamingForecaster.from_forecaster(forecaster)
    state = forecaster._known.state
    for values in LATER[:10]:
        stream.update(rows, values)
        state = forecaster._advance(state, rows, panel_of(forecaster, values[None]))
    assert_equal(stream.forecast(rows), forecaster._forecast(state, rows), 1e-4)


def test_an_empty_window_forecasts_its_last_level():
    forecaster, rows = fitted(), np.arange(SERIES)
    stream, state = StreamingForecaster.from_forecaster(forecaster), forecaster._known.state
    gone = np.full(SERIES, np.nan)
    for _ in range(30):
        stream.update(rows, gone)
        state = forecaster._advance(state, rows, panel_of(forecaster, gone[None]))
    assert np.isfinite(stream.forecast(rows).point).all()
    assert_equal(stream.forecast(rows), forecaster._forecast(state, rows), 1e-4)


def test_what_cannot_be_is_refused_and_changes_nothing(forecaster):
    stream = StreamingForecaster.from_forecaster(forecaster)
    before = stream.forecast(0).point
    for rows, values, message in (
        (3, 1.0, "row 3 does not exist: there are 3 series"),
        (-1, 1.0, "row -1 does not exist"),
        (0, np.inf, "the value of row 0 is infinite"),
        ([0, 5], [1.0, 1.0], r"row \[5\] does not exist"),
        ([0, 0], [1.0, 1.0], r"row \[0\] came twice"),
        ([0, 1], [1.0], "one value a row"),
        ([0, 1], [1.0, np.inf], "1 values are infinite"),
        ([[0]], [[1.0]], "flat list of rows"),
    ):
        with pytest.raises(ValueError, match=message):
            stream.update(rows, values)
    with pytest.raises(ValueError, match="does not exist"):
        stream.forecast(3)
    assert np.array_equal(stream.forecast(0).point, before)
    stream.update([], [])
    assert stream.forecast([]).point.shape == (0, 6)


def test_a_memory_that_never_writes_is_not_written_by_the_stream():
    memory = MemoryConfig(dim=16, heads=2, depth=1)
    forecaster = fitted(model=BackboneConfig(dim=16, heads=2, residual_init=1.0, writes=False, memory=memory))
    forecaster.correction_ = 0.7
    stream, state, rows = StreamingForecaster.from_forecaster(forecaster), forecaster._known.state, np.arange(SERIES)
    for values in LATER:
        stream.update(rows, values)
        state = forecaster._advance(state, rows, panel_of(forecaster, values[None]))
    assert_equal(stream.forecast(rows), forecaster._forecast(state, rows), 1e-4)
