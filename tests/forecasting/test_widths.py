"""Intervals that learn from what fell outside: what is kept, what is learnt, and of what nothing is."""

import copy
import math

import numpy as np
import pandas as pd
import pytest

from titans_ts import TitansForecaster
from titans_ts.core.ops.widths import FASTEST, MOST, RATE
from titans_ts.forecasting.streaming import StreamingForecaster
from titans_ts.forecasting.training import TrainConfig
from titans_ts.forecasting.widths import STANDING, STRETCHES

HORIZON, PAST = 12, 400
TIMES = np.arange(2000)
RANDOM = np.random.default_rng(0)
SEASON = np.sin(TIMES / 4)[:, None] * [1.0, 2.0, 30.0]
NOISE = RANDOM.normal(size=(len(TIMES), 3)) * [0.2, 0.2, 5.0]


def make(**changes):
    return TitansForecaster(
        **{"horizon": HORIZON, "train": TrainConfig(steps=0), "season_length": 24, "random_state": 0, **changes}
    )


@pytest.fixture(scope="module")
def fitted():
    return make().fit((SEASON + NOISE)[:PAST])


def moved(forecaster, rows, block=None):
    """A copy after these rows, `block` at a time."""
    other = copy.copy(forecaster)
    for start in range(0, len(rows), block or len(rows)):
        other.update(rows[start : start + (block or len(rows))])
    return other


def widths_of(forecaster):
    return forecaster._known.state.widths


def naive_widths(forecaster, rows):
    """The same, in so many words: every half horizon the forecast of then is put by, and judged value by value."""
    at, columns = copy.copy(forecaster), rows.shape[1]
    horizon, widths = HORIZON, np.zeros((columns, STRETCHES))
    rate = min(RATE * STRETCHES / (horizon * STANDING), FASTEST)
    standing = []
    for now, values in enumerate(rows):
        if now % (horizon // STANDING) == 0:
            still = copy.copy(at)
            state = still._known.state
            zero = state.widths._replace(widths=state.widths.widths * 0)
            standing.append((now, still._forecast(state._replace(widths=zero), np.arange(columns)).quantiles))
        for since, quantiles in standing[-STANDING:]:
            step = now - since
            for column, value in enumerate(values):
                low, middle, high = quantiles[column, step, [0, 4, 8]]
                stretch = step * STRETCHES // horizon
                reach = (high - middle if value > middle else middle - low) * math.exp(widths[column, stretch])
                widths[column, stretch] += rate * ((abs(value - middle) > reach) - 0.2)
        at.update(values[None])
    return widths


@pytest.mark.interpreted
def test_widths_are_what_the_words_say(fitted):
    rows = (SEASON + 2 * NOISE)[PAST : PAST + 45]
    np.testing.assert_allclose(widths_of(moved(fitted, rows)).widths, naive_widths(fitted, rows), atol=1e-12)


@pytest.mark.parametrize("block", [1, 5, 12, 31])
def test_blocks_do_not_show(fitted, block):
    rows = (SEASON + 2 * NOISE)[PAST : PAST + 62]
    for one, other in zip(widths_of(moved(fitted, rows)), widths_of(moved(fitted, rows, block)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_series_do_not_see_each_other(fitted):
    rows = (SEASON + 2 * NOISE)[PAST : PAST + 40]
    frame = pd.concat(
        [
            pd.DataFrame({"unique_id": column, "ds": np.arange(PAST, PAST + count), "y": rows[:count, column]})
            for column, count in ((0, 40), (2, 17))
        ]
    )
    long = pd.DataFrame(
        {
            "unique_id": np.repeat(np.arange(3), PAST),
            "ds": np.tile(np.arange(PAST), 3),
            "y": (SEASON + NOISE)[:PAST].T.ravel(),
        }
    )
    ragged = make().fit(long).update(frame)
    alone = make().fit(long)
    alone = alone.update(frame[frame["unique_id"] == 2])
    np.testing.assert_array_equal(widths_of(ragged).widths[2], widths_of(alone).widths[2])
    assert not widths_of(ragged).widths[1].any()
    assert widths_of(alone).told.tolist()[:2] == [[HORIZON] * STANDING] * 2


@pytest.mark.interpreted
def test_a_stream_learns_the_same(fitted):
    rows = (SEASON + 2 * NOISE)[PAST : PAST + 45]
    rows[7, 1] = math.nan
    stream = StreamingForecaster.from_forecaster(fitted)
    for values in rows:
        stream.update(np.arange(3), values)
    other = moved(fitted, rows)
    for one, same in zip(stream.panel_state().widths, widths_of(other), strict=True):
        np.testing.assert_allclose(one, same, rtol=1e-9, atol=1e-9)
    said, wanted = stream.forecast(np.arange(3)), other._forecast(other._known.state, np.arange(3))
    np.testing.assert_allclose(said.quantiles, wanted.quantiles, rtol=1e-6, atol=1e-6)
    again = StreamingForecaster.from_forecaster(other)
    again.update(0, rows[0, 0])
    assert again.panel_state().widths.told[0].tolist() != widths_of(other).told[0].tolist()


@pytest.mark.parametrize(("factor", "horizon"), [(0.5, 4), (1.8, 4), (1.8, 1)])
def test_intervals_cover_again_when_noise_changes(factor, horizon):
    """The noise is another from the end of `fit` on; the frozen twin goes on as it was."""
    series = SEASON + NOISE * np.where(TIMES < PAST, 1.0, factor)[:, None]
    learning = make(horizon=horizon).fit(series[:PAST])
    frozen = copy.copy(learning)
    frozen.adapt = False
    covered = []
    for stream in map(StreamingForecaster.from_forecaster, (learning, frozen)):
        inside = []
        for origin in range(PAST, len(TIMES) - horizon):
            if origin >= 1000:
                quantiles = stream.forecast(np.arange(3)).quantiles
                truth = series[origin : origin + horizon].T
                inside.append((quantiles[..., 0] <= truth) & (truth <= quantiles[..., -1]))
            stream.update(np.arange(3), series[origin])
        covered.append(np.mean(inside))
    assert abs(covered[0] - 0.8) < 0.04
    assert abs(covered[0] - 0.8) < abs(covered[1] - 0.8) - 0.04


def test_nothing_is_learnt_without_surprise(fitted):
    nothing = np.full((30, 3), math.nan)
    assert not widths_of(moved(fitted, nothing)).widths.any()
    frozen = copy.copy(fitted)
    frozen.adapt = False
    assert not widths_of(moved(frozen, (SEASON + 5 * NOISE)[PAST : PAST + 40])).widths.any()
    one_sided = make(quantiles=(0.5, 0.9)).fit((SEASON + NOISE)[:PAST])
    assert not widths_of(moved(one_sided, (SEASON + 5 * NOISE)[PAST : PAST + 40])).widths.any()


def test_an_update_equals_a_longer_history(fitted):
    whole = SEASON[: PAST + 40] + NOISE[: PAST + 40] * np.where(TIMES[: PAST + 40] < PAST, 1.0, 3.0)[:, None]
    learnt = moved(fitted, whole[PAST:])
    np.testing.assert_allclose(fitted.predict(level=80, y=whole), learnt.predict(level=80), rtol=1e-9, atol=1e-9)
    known = fitted._start(fitted._read(whole)[0])
    np.testing.assert_allclose(known.widths.widths, widths_of(learnt).widths, atol=1e-12)
    assert not fitted._start(fitted._read(whole[:PAST])[0]).widths.widths.any()


def test_a_stranger_keeps_the_widths_of_fit(fitted):
    rows = (SEASON + 4 * NOISE)[:200, :1]
    new = pd.DataFrame({"unique_id": "new", "ds": np.arange(200), "y": rows[:, 0]})
    long = pd.DataFrame({"unique_id": "known", "ds": np.arange(PAST), "y": (SEASON + NOISE)[:PAST, 0]})
    whole, pieces = make().fit(long).update(new), make().fit(long)
    for start, stop in ((0, 10), (10, 11), (11, 200)):
        pieces.update(new[start:stop])
    for one, other in zip(widths_of(whole), widths_of(pieces), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not widths_of(whole).widths.any()


@pytest.mark.interpreted
def test_what_stands_comes_due_where_nothing_is_learnt(fitted):
    rows = (SEASON + 2 * NOISE)[PAST : PAST + 30]
    learnt = moved(fitted, rows[:3])
    learnt.adapt = False
    frozen = moved(learnt, rows[3:11])
    assert widths_of(frozen).told.tolist() == [[11, HORIZON]] * 3
    np.testing.assert_array_equal(widths_of(frozen).widths, widths_of(learnt).widths)
    stream = StreamingForecaster.from_forecaster(learnt)
    for values in rows[3:11]:
        stream.update(np.arange(3), values)
    np.testing.assert_array_equal(stream.panel_state().widths.told, widths_of(frozen).told)


def test_holes_in_the_validation_rows_make_no_noise():
    y = np.sin(TIMES / 4) + 0.3 * RANDOM.normal(size=len(TIMES))
    y[1640::2] = math.nan
    make(horizon=32).fit(y)
    make(horizon=4).fit(np.where(TIMES < 1800, 1e-4, 1.0) * RANDOM.normal(size=len(TIMES)))


def test_a_series_that_died_stays_silent():
    fitted = make(season_length=1).fit((SEASON + NOISE)[:PAST, 0])
    with np.errstate(all="raise", under="ignore"):
        fitted.adapt = False
        assert np.isfinite(fitted.update(np.zeros(40_000)).predict(level=80)).all()


def test_widths_have_an_end(fitted):
    wild = (SEASON + 100 * NOISE)[PAST:1500]
    widths = widths_of(moved(fitted, wild)).widths
    assert widths.max() <= MOST
    assert widths.min() >= -MOST


def test_a_series_with_an_edge_keeps_the_widths_of_fit():
    nights = np.maximum((SEASON + NOISE)[:, :1] * np.where(TIMES < PAST, 1.0, 2.0)[:, None], 0.0)
    learnt = moved(make().fit(nights[:PAST]), nights[PAST : PAST + 60])
    assert not widths_of(learnt).widths.any()


def test_other_units_learn_the_same(fitted):
    rows = (SEASON + 2 * NOISE)[: PAST + 40]
    other = make().fit(1000 * (SEASON + NOISE)[:PAST])
    one, same = moved(fitted, rows[PAST:]), moved(other, 1000 * rows[PAST:])
    np.testing.assert_allclose(widths_of(one).widths, widths_of(same).widths, atol=1e-12)


def test_widths_are_saved(fitted, tmp_path):
    rows = (SEASON + 2 * NOISE)[PAST : PAST + 30]
    learnt = moved(fitted, rows)
    learnt.save(tmp_path / "model")
    loaded = TitansForecaster.load(tmp_path / "model")
    more = (SEASON + 2 * NOISE)[PAST + 30 : PAST + 60]
    for one, same in zip(widths_of(moved(loaded, more)), widths_of(moved(learnt, more)), strict=True):
        np.testing.assert_array_equal(one, same)


@pytest.mark.parametrize("point", ["mean", "median"])
def test_skewed_series_learn_on_their_own_scale(point):
    walk = np.exp(0.3 * np.cumsum(RANDOM.normal(size=(1200, 2)), axis=0) / 4 + SEASON[:1200, :2])
    fitted = make(point=point, horizon=4).fit(walk[:900])
    one, other = moved(fitted, walk[900:960]), moved(fitted, walk[900:960], 7)
    np.testing.assert_allclose(widths_of(one).widths, widths_of(other).widths, atol=1e-12)
    assert widths_of(one).widths.any()
