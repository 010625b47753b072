"""The baselines' numbers, and the laws that every forecaster keeps."""

import time
from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from titans_ts.forecasting.baselines import Ridge, SeasonalNaive, validation_ends
from titans_ts.forecasting.door import read
from titans_ts.forecasting.doubt import surely_less
from titans_ts.forecasting.gram import PENALTIES, accumulate, pull_sums, solve
from titans_ts.forecasting.linear import Trials, apply_linear, averaged, fit_linear, with_pull
from titans_ts.forecasting.metrics import evaluate, weighted_quantile_loss
from titans_ts.forecasting.mix import Part, all_but_one, in_turn, shares_of
from titans_ts.forecasting.windows import (
    apart_from,
    blocks,
    centre,
    draw,
    pace,
    places,
    series_scales,
    spread,
    windows_between,
)

SERIES = ("a", "b", "c")
LEVELS = (80, 95)


def panel_frame(length=120, holes=True):
    """Three seasonal series of different scale, start and length, some values missing."""
    random = np.random.default_rng(0)
    parts = []
    for place, name in enumerate(SERIES):
        rows = length - 11 * place
        steps = np.arange(rows)
        y = 10.0**place * (np.sin(2 * np.pi * steps / 7) + 0.3 * random.normal(size=rows)) + 5 * place
        if holes:
            y[random.choice(np.arange(10, rows - 40), 5, replace=False)] = np.nan
        start = pd.Timestamp("2024-01-01") + pd.Timedelta(days=11 * place)
        parts.append(pd.DataFrame({"unique_id": name, "ds": pd.date_range(start, periods=rows, freq="D"), "y": y}))
    return pd.concat(parts, ignore_index=True)


def split(frame, cut):
    ahead = frame.groupby("unique_id").cumcount(ascending=False)
    return frame[ahead >= cut], frame[ahead < cut]


def numbers(forecast, ids=SERIES):
    """The forecast columns, series in a fixed order."""
    return np.stack([forecast[forecast["unique_id"] == name].iloc[:, 2:].to_numpy() for name in ids])


FORECASTERS = [SeasonalNaive(horizon=5), Ridge(horizon=5, context_length=21)]
law = pytest.mark.parametrize("forecaster", FORECASTERS, ids=lambda f: type(f).__name__)


# Laws


@law
def test_predict_twice_is_the_same_and_changes_no_update(forecaster):
    past, later = split(panel_frame(), 6)
    once, twice = forecaster.fit(past).predict(level=LEVELS), forecaster.predict(level=LEVELS)
    pd.testing.assert_frame_equal(once, twice)
    shy = forecaster.update(later).predict(level=LEVELS)
    forecaster.fit(past).update(later)
    pd.testing.assert_frame_equal(shy, forecaster.predict(level=LEVELS))


@law
@pytest.mark.parametrize("cut", [1, 2, 7, 30])
def test_update_equals_a_longer_history_for_the_same_weights(forecaster, cut):
    past, later = split(panel_frame(), cut)
    forecaster.fit(past)
    whole = forecaster.predict(y=panel_frame(), level=LEVELS)
    updated = forecaster.update(later).predict(level=LEVELS)
    assert (whole["ds"] == updated["ds"]).all()
    np.testing.assert_allclose(numbers(updated), numbers(whole), rtol=1e-9)


@law
def test_any_split_of_the_rows_gives_the_same(forecaster):
    past, later = split(panel_frame(), 30)
    at_once = forecaster.fit(past).update(later).predict(level=LEVELS)
    forecaster.fit(past)
    for _, day in later.groupby("ds"):  # the series end on one day, so every day brings a part of them
        forecaster.update(day)
    np.testing.assert_allclose(numbers(forecaster.predict(level=LEVELS)), numbers(at_once), rtol=1e-9)


@law
def test_the_order_of_rows_and_series_does_not_matter(forecaster):
    frame = panel_frame()
    one = forecaster.fit(frame).predict(level=LEVELS)
    other = forecaster.fit(frame.sample(frac=1, random_state=3)).predict(level=LEVELS)
    np.testing.assert_allclose(numbers(other), numbers(one), rtol=1e-9)


@law
def test_units_pass_through(forecaster):
    frame = panel_frame()
    one = forecaster.fit(frame).predict(level=LEVELS)
    other = forecaster.fit(frame.assign(y=1000 * frame["y"] - 7)).predict(level=LEVELS)
    np.testing.assert_allclose(numbers(other), 1000 * numbers(one) - 7, rtol=1e-7)


@law
def test_a_series_alone_is_the_series_in_the_panel(forecaster):
    frame = panel_frame()
    forecaster.fit(frame)
    for name in SERIES:
        alone = forecaster.predict(y=frame[frame["unique_id"] == name], level=LEVELS)
        np.testing.assert_allclose(
            numbers(alone, [name]), numbers(forecaster.predict(ids=[name], level=LEVELS), [name])
        )


@law
def test_quantiles_hold_what_they_promise_on_noise(forecaster):
    noise = np.random.default_rng(5).normal(size=(200, 400))
    band = forecaster.fit(noise[:-1]).predict(1, level=80)[0]
    covered = (noise[-1] >= band[..., 1]) & (noise[-1] <= band[..., 2])
    assert 0.75 < covered.mean() < 0.85


@law
def test_silence_constants_and_short_series_stay_finite(forecaster):
    frame = panel_frame()
    forecaster.fit(frame)
    days = pd.date_range("2024-01-01", periods=60, freq="D")
    odd = {
        "constant": np.ones(60),
        "silent": np.r_[np.arange(9.0), np.full(51, np.nan)],
        "gap": np.r_[1.0, [np.nan] * 58, 2],
    }
    wide = pd.DataFrame(odd, index=days)
    for history in (wide, wide.iloc[:1], wide.iloc[:3]):
        assert np.isfinite(forecaster.predict(y=history, level=LEVELS)).all().all()
    assert (forecaster.predict(y=wide)["constant"] == 1).all()


@law
def test_one_bad_series_does_not_stop_the_panel(forecaster):
    frame = panel_frame()
    frame.loc[frame.index[frame["unique_id"] == "b"][3], "y"] = np.inf
    forecaster.set_params(on_bad="skip").fit(frame)
    forecaster.set_params(on_bad="raise")
    assert list(forecaster.skipped_) == ["b"]
    assert forecaster.fitted_ids_ == ("a", "c")


# SeasonalNaive


def test_seasonal_naive_repeats_the_season():
    forecast = SeasonalNaive(horizon=7, season_length=3).fit(np.array([9.0, 9, 9, 1, 2, 3])).predict()
    assert forecast.tolist() == [1, 2, 3, 1, 2, 3, 1]


def test_seasonal_naive_repeats_the_last_observed_value_of_a_phase():
    y = np.array([1.0, 2, 3, 4, np.nan, 6])
    assert SeasonalNaive(horizon=3, season_length=3).fit(y).predict().tolist() == [4, 2, 6]
    assert SeasonalNaive(horizon=3, season_length=3).fit(y[[4, 3, 2]]).predict().tolist() == [3, 4, 3]


def test_seasonal_naive_spreads_with_the_root_of_the_seasons():
    y = np.tile([0.0, 10.0], 50) + np.repeat(np.arange(50.0) % 2, 2)  # every seasonal error is one
    forecaster = SeasonalNaive(horizon=6, season_length=2).fit(y)
    band = forecaster.predict(quantiles=[0.5, 0.84134474606])
    np.testing.assert_allclose(band[:, 2] - band[:, 1], np.sqrt([1, 1, 2, 2, 3, 3]), rtol=1e-6)


# Ridge


def literal_ridge(y, context, horizon, penalty):
    """Ridge as in the books: every window, normal equations."""
    y = y / y.std()
    rows = [(y[t - context : t], y[t : t + horizon]) for t in range(context, len(y) - horizon + 1)]
    x = np.array([past - past.mean() for past, _ in rows])
    targets = np.array([future - past.mean() for past, future in rows])
    gram = x.T @ x
    return np.linalg.solve(gram + penalty * np.trace(gram) / context * np.eye(context), x.T @ targets)


@pytest.mark.parametrize("penalty", [1e-3, 1.0])
def test_the_weights_are_those_of_the_normal_equations(penalty):
    y = np.random.default_rng(0).normal(size=200).cumsum()
    panel, _, _ = read(y)
    path = fit_linear(panel, 12, 4, penalties=(penalty,))
    np.testing.assert_allclose(path.weights, [literal_ridge(y, 12, 4, penalty)], rtol=1e-8, atol=1e-10)
    assert path.losses == {}


def test_training_windows_never_reach_over_their_end():
    frame = panel_frame()
    panel, _, _ = read(frame)
    ends = panel.lengths - 30
    one = fit_linear(panel, 14, 3, train_ends=ends, penalties=(0.1,))
    spoilt = panel.values.copy()
    for row in range(len(panel)):
        spoilt[panel.offsets[row] + ends[row] : panel.offsets[row + 1]] *= -9
    other = fit_linear(panel.__class__(spoilt, panel.offsets, panel.ids, panel.ends, panel.phases, panel.clock), 14, 3,
                       train_ends=ends, penalties=(0.1,))  # fmt: skip
    np.testing.assert_array_equal(one.weights, other.weights)
    np.testing.assert_allclose(one.weights, fit_linear(panel.head(ends), 14, 3, penalties=(0.1,)).weights)


def test_the_penalty_is_the_one_with_the_least_validation_error():
    panel, _, _ = read(panel_frame())
    ends = panel.lengths - 30
    path = fit_linear(panel, 21, 3, train_ends=ends)
    assert set(path.losses) == set(PENALTIES)
    assert path.penalty == min(path.losses, key=path.losses.get)
    for penalty in (1e-3, 1.0):
        weights = fit_linear(panel, 21, 3, train_ends=ends, penalties=(penalty,))
        scales = series_scales(panel, ends)
        squares = [
            (((targets - apply_linear(weights, contexts)) / scales[series, None]) ** 2).ravel()
            for _, series, _, contexts, targets in blocks(windows_between(panel, 21, 3, ends, panel.lengths))
        ]
        assert path.losses[penalty] == pytest.approx(np.concatenate(squares).mean(), rel=1e-6)


def test_windows_are_all_there_whole_where_possible_and_without_missing_targets():
    values = [np.arange(8.0), np.array([0, 1, np.nan, 3, 4]), np.arange(2.0)]
    frame = pd.concat([pd.DataFrame({"unique_id": i, "ds": np.arange(len(v)), "y": v}) for i, v in enumerate(values)])
    panel, _, _ = read(frame)
    windows = windows_between(panel, 4, 2, np.zeros(3, dtype=np.int64), panel.lengths)
    found = [(int(s), int(t[0])) for block in blocks(windows) for s, t in zip(block.series, block.targets, strict=True)]
    assert found == [(0, 4), (0, 5), (0, 6), (1, 3)]
    (block,) = blocks(windows._replace(first=windows.first[[1]], counts=windows.counts[[1]], panel=panel.select([1])))
    np.testing.assert_array_equal(block.contexts, [[np.nan, 0, 1, np.nan]])
    assert draw(windows, 2, np.random.default_rng(0)).total == 2


def test_holes_take_the_last_value_and_a_missing_start_the_mean():
    path = fit_linear(read(np.random.default_rng(0).normal(size=99))[0], 4, 2)
    holed = apply_linear(path, np.array([[np.nan, 1.0, np.nan, 3.0]]))  # the mean of what is there is 2
    np.testing.assert_allclose(holed, 2 + np.array([[0.0, -1.0, -1.0, 1.0]]) @ path.weights[0])
    assert np.isnan(apply_linear(path, np.full((1, 4), np.nan))).all()


def test_scale_does_not_decide():
    frame = panel_frame(holes=False)
    one = fit_linear(read(frame)[0], 14, 3)
    grown = frame.assign(y=frame["y"].where(frame["unique_id"] != "a", 1e6 * frame["y"]))
    np.testing.assert_allclose(fit_linear(read(grown)[0], 14, 3).weights, one.weights, rtol=1e-6, atol=1e-9)


def test_fewer_windows_are_drawn_by_the_seed():
    panel, _, _ = read(panel_frame())
    few = [fit_linear(panel, 14, 3, max_windows=50, seed=seed).weights for seed in (0, 0, 1)]
    assert (few[0] == few[1]).all()
    assert not np.allclose(few[0], few[2])


def test_one_decomposition_serves_the_whole_grid():
    x = np.random.default_rng(0).normal(size=(50, 6))
    xx, xy = x.T @ x, x.T @ x[:, :2]
    for penalty, weights in zip(PENALTIES, solve(xx, xy, PENALTIES), strict=True):
        ridge = xx + penalty * np.trace(xx) / 6 * np.eye(6)
        np.testing.assert_allclose(weights, np.linalg.solve(ridge, xy))
        np.testing.assert_allclose(weights, solve(xx, xy, (penalty,))[0])


# Maps of single series, and blends


def two_worlds(rows=300):
    """Four series; the first two repeat every 7 steps, the others every 5, all with noise."""
    random, steps = np.random.default_rng(3), np.arange(rows)[:, None]
    waves = np.sin(2 * np.pi * steps / np.array([7, 7, 5, 5]) + np.arange(4))
    return read(waves + 0.5 * random.normal(size=(rows, 4)))[0]


def test_a_single_map_lies_between_that_of_the_series_alone_and_the_shared_one():
    panel = two_worlds()
    shared = fit_linear(panel, 8, 2, penalties=(1e-3,))
    for pooling, limit in ((1e-9, None), (1e9, shared)):
        path = fit_linear(panel, 8, 2, penalties=(1e-3,), poolings=(pooling,))
        assert path.ids == panel.ids
        np.testing.assert_allclose(path.weights[0], shared.weights[0], rtol=1e-9, atol=1e-12)
        for row in range(4):
            alone = limit or fit_linear(panel.select([row]), 8, 2, penalties=(1e-3,))
            np.testing.assert_allclose(path.weights[1 + row], alone.weights[0], rtol=1e-4, atol=1e-6)


def test_a_single_map_is_the_ridge_of_its_windows_and_of_a_share_of_all():
    panel, pooling = two_worlds(60), 3.0
    path = fit_linear(panel, 8, 2, penalties=(0.1,), poolings=(pooling,))
    scales = series_scales(panel, panel.lengths)
    grams = []
    for row in range(4):
        y = panel.values[panel.offsets[row] : panel.offsets[row + 1]] / scales[row]
        x = np.array([y[t - 8 : t] - y[t - 8 : t].mean() for t in range(8, len(y) - 1)])
        targets = np.array([y[t : t + 2] - y[t - 8 : t].mean() for t in range(8, len(y) - 1)])
        grams.append((x.T @ x, x.T @ targets))
    for row, (xx, xy) in enumerate(grams):
        xx = xx + pooling * sum(g[0] for g in grams) / 4
        xy = xy + pooling * sum(g[1] for g in grams) / 4
        expected = np.linalg.solve(xx + 0.1 * np.trace(xx) / 8 * np.eye(8), xy)
        np.testing.assert_allclose(path.weights[1 + row], expected, rtol=1e-7, atol=1e-10)


def test_validation_takes_single_maps_where_series_differ_and_the_shared_one_where_they_do_not():
    panel = two_worlds()
    ends = panel.lengths - 90
    assert fit_linear(panel, 8, 4, train_ends=ends, poolings=(np.inf, 1.0)).pooling == 1.0
    alike = read(np.sin(np.arange(60)[:, None] * 0.9 + np.arange(12)) + np.random.default_rng(0).normal(size=(60, 12)))
    assert fit_linear(alike[0], 8, 4, train_ends=np.full(12, 40), poolings=(np.inf, 0.1)).ids == ()


def test_a_series_without_windows_has_the_shared_map():
    panel = two_worlds()
    rows = [*(panel.series(row) for row in range(4)), np.arange(2.0)]
    frames = [pd.DataFrame({"unique_id": i, "ds": np.arange(len(y)), "y": y}) for i, y in enumerate(rows)]
    path = fit_linear(read(pd.concat(frames))[0], 8, 2, poolings=(0.1,))
    np.testing.assert_allclose(path.weights[5], path.weights[0], rtol=1e-9, atol=1e-12)


def test_another_way_to_fit_is_taken_only_where_it_is_surely_better():
    steady, lucky = np.full(8, 1.0), np.array([0.2, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1])
    assert surely_less(np.full(8, 0.9), steady)
    assert not surely_less(np.full(8, 0.9995), steady)  # by less than a thousandth
    assert not surely_less(lucky, steady)  # on average, but in one group of eight
    assert not surely_less(np.zeros(0), np.zeros(0))  # nothing was judged
    panel = two_worlds()
    trials = Trials(
        windows_between(panel, 8, 2, panel.lengths - 90, panel.lengths), np.ones(4), panel.lengths - 90, 10.0
    )
    assert np.ptp(np.bincount(trials.group, minlength=8)) <= 1
    rows = places(trials.windows)[1]
    for before, after in pairwise(range(8)):  # groups follow each other in time
        assert rows[trials.group == before].max() <= rows[trials.group == after].min()


def test_every_row_is_forecast_by_its_own_map():
    panel = two_worlds()
    path = fit_linear(panel, 8, 2, poolings=(1.0,))
    contexts = np.random.default_rng(0).normal(size=(6, 8))
    maps = path.rows_of([3, "stranger", 0, 3, 1, 2])
    assert maps.tolist() == [4, 0, 1, 4, 2, 3]
    forecast = apply_linear(path, contexts, maps)
    for row, place in enumerate(maps):
        alone = apply_linear(replace(path, weights=path.weights[[place]]), contexts[[row]])
        np.testing.assert_allclose(forecast[[row]], alone)


def test_a_blend_is_the_average_of_the_forecasts_of_nested_contexts():
    panel = two_worlds()
    contexts = np.random.default_rng(0).normal(size=(5, 16)) + 4
    share = (0.5, 0.25, 0.25)
    for poolings in ((np.inf,), (2.0,)):
        whole = fit_linear(panel, 16, 3, penalties=(1e-2,), poolings=poolings, blends=(share,))
        expected = np.zeros((5, 3))
        # the shorter contexts, fitted on the very same windows: those whose targets begin at row 16 or later
        for each, size in zip(share, (16, 8, 4), strict=True):
            part = fit_linear(panel.drop_head(16 - size), size, 3, penalties=(1e-2,), poolings=poolings)
            scales = series_scales(panel, panel.lengths) / series_scales(panel.drop_head(16 - size), panel.lengths)
            np.testing.assert_allclose(scales, 1, rtol=0.05)
            expected += each * apply_linear(part, contexts[:, -size:])
        np.testing.assert_allclose(apply_linear(whole, contexts), expected, rtol=2e-3)


def test_windows_are_spread_over_every_series_whatever_their_order():
    panel = read(panel_frame(300, holes=False))[0]
    zero = np.zeros(len(panel), dtype=np.int64)
    every = windows_between(panel, 8, 2, zero, panel.lengths)
    some = spread(every, 60)
    series, rows = places(some)
    assert 60 <= len(rows) < 60 + len(panel)
    for row in range(len(panel)):
        mine, all_of_mine = rows[series == row], places(every)[1][places(every)[0] == row]
        assert len(mine) == np.ceil(60 * every.counts[row] / every.total)
        assert np.ptp(np.diff(mine)) <= 1
        assert all_of_mine.min() <= mine.min() <= mine.max() <= all_of_mine.max()
    turned = panel.select([2, 0, 1])
    other = places(spread(windows_between(turned, 8, 2, zero, turned.lengths), 60))
    for row, old in enumerate((2, 0, 1)):
        np.testing.assert_array_equal(other[1][other[0] == row], rows[series == old])


def seasonal_jumps(rows=700, season=7):
    """Three noisy series; after every third place of the season the second jumps, and comes back."""
    values = np.random.default_rng(4).normal(size=(rows, 3))
    values[3::season, 1] += 5
    return read(values)[0]


def test_a_profile_tells_what_a_short_context_does_not():
    panel, none, whole = (
        seasonal_jumps(),
        *(fit_linear(seasonal_jumps(), 3, 2, penalties=(1e-2,), season=7, shares=(share,)) for share in (0.0, 1.0)),
    )
    assert none.profile is None
    assert none.season == 1
    assert whole.profile.shape == (4, 7, 2)
    assert not whole.profile[0].any()  # strangers have none
    contexts = np.stack([panel.series(1)[at - 3 : at] for at in range(450, 470)])
    steps, rows = np.arange(450, 470), np.full(20, 2)
    plain, told = (apply_linear(path, contexts, rows, steps) for path in (none, whole))
    jump = (steps % 7) == 3
    assert told[jump, 0].mean() - plain[jump, 0].mean() > 1.5
    assert np.abs(told[~jump] - plain[~jump])[:, 0].max() < 1.5
    np.testing.assert_array_equal(apply_linear(whole, contexts), plain)  # nobody's, and at no step
    np.testing.assert_array_equal(apply_linear(whole, contexts, 0 * rows, steps), plain)


def test_a_profile_is_what_least_squares_in_the_pace_of_the_windows_leaves_over():
    panel = seasonal_jumps()
    path = fit_linear(panel, 3, 2, penalties=(1e-2,), poolings=(1.0,), season=7, shares=(0.5,))
    bare = replace(path, profile=None)
    steps = np.arange(3, 699)
    contexts = np.stack([panel.series(2)[at - 3 : at] for at in steps])
    left = np.stack([panel.series(2)[at : at + 2] for at in steps]) - apply_linear(bare, contexts, np.full(696, 3))
    speed, count = pace(centre(contexts)[0], contexts)[:, None], np.bincount(steps % 7)
    for place in range(7):
        here = steps % 7 == place
        slope = (speed * left)[here].sum(0) / (speed**2)[here].sum()
        share = 0.5 * count[place] / (count[place] + 100)
        np.testing.assert_allclose(path.profile[3, place], share * slope, atol=1e-10)


def test_the_share_of_a_profile_is_chosen_on_the_validation_rows():
    ends = np.full(3, 500)
    repeating = fit_linear(seasonal_jumps(), 3, 2, train_ends=ends, season=7, shares=(0.3, 0.0, 1.0))
    assert repeating.share == 1.0
    panel = seasonal_jumps()
    panel.values.reshape(3, -1)[1, 500:] = panel.values.reshape(3, -1)[1, 497:-3]  # the jumps move on by three places
    moved = fit_linear(panel, 3, 2, train_ends=ends, season=7, shares=(0.3, 0.0, 1.0))
    assert moved.share == 0.0


# What is usual


def away_for_long(rows=900):
    """Four noisy series of different units, which stay above or below their level for twenty steps or so."""
    random, away = np.random.default_rng(5), np.zeros((rows, 4))
    for row in range(1, rows):
        away[row] = 0.95 * away[row - 1] + 0.3 * random.normal(size=4)
    values = (away + 0.1 * random.normal(size=away.shape)) * 10.0 ** np.arange(4) + np.arange(4)
    values[random.random(size=away.shape) < 0.02] = np.nan
    return read(values)[0]


def windows_of(panel, context, horizon):
    """Every wholly observed window by hand: series, rows, contexts, targets and the means of all values before."""
    found = []
    for series in range(len(panel)):
        values = panel.series(series)
        for row in range(context, len(values) - horizon + 1):
            if not np.isnan(values[row : row + horizon]).any():
                parts = values[row - context : row], values[row : row + horizon], np.nanmean(values[:row])
                found.append((series, row, *parts))
    return tuple(map(np.array, zip(*found, strict=True)))


def test_what_is_usual_is_the_mean_and_the_variance_of_all_values_seen_by_then():
    panel = away_for_long(60)
    series, rows = np.repeat(np.arange(4), 61), np.tile(np.arange(61), 4)
    told = panel.usual_before(series, rows)
    for i, row, (mean, variance) in zip(series, rows, told, strict=True):
        before = panel.series(i)[:row]
        assert np.isnan(mean) if not row else mean == pytest.approx(np.nanmean(before))
        assert np.isnan(variance) if not row else variance == pytest.approx(np.nanvar(before), rel=1e-9, abs=1e-12)
    later = panel.values.copy()
    later[30:60] = 1e16  # what comes later changes nothing before it, to the last digit
    np.testing.assert_array_equal(replace(panel, values=later).usual_before(series, rows)[:31], told[:31])


def test_one_outlier_does_not_move_what_is_usual_and_a_level_left_for_good_pulls_no_more():
    values = np.random.default_rng(0).normal(size=1000)
    values[500] = 1e9
    mean, variance = read(values)[0].usual_before(np.array([0]), np.array([1000]))[0]
    assert abs(mean) < 0.2
    assert variance < 3
    usual = np.tile([mean, variance], (4, 1))
    apart = apart_from(usual, mean + variance**0.5 * np.array([-2.0, 4.0, 7.5, 11.0]), np.ones(4))
    np.testing.assert_allclose(apart / variance**0.5, [2.0, -4.0, -3.75, 0.0], atol=1e-12)


def test_a_pull_is_what_least_squares_in_the_distance_from_the_usual_leaves_over():
    panel = away_for_long()
    plain = fit_linear(panel, 6, 3, penalties=(1e-2,), poolings=(1.0,))
    path = fit_linear(panel, 6, 3, penalties=(1e-2,), poolings=(1.0,), pulls=(0.5,))
    np.testing.assert_array_equal(path.weights, plain.weights)
    series, _, contexts, targets, usual = windows_of(panel, 6, 3)
    apart = usual - centre(contexts)[1]
    left = targets - apply_linear(plain, contexts, series + 1)
    heard = 1 / series_scales(panel, panel.lengths)[series] ** 2
    slope = (heard * apart) @ left / ((heard * apart) @ apart)
    assert slope.min() > 0.02
    sure = 4 * 900 / 9 / (4 * 900 / 9 + 10)
    np.testing.assert_allclose(path.pull, np.tile(0.5 * sure * slope, (5, 1)), rtol=1e-7)
    told = apply_linear(path, contexts, series + 1, None, np.column_stack([usual, np.full(len(usual), 1e9)]))
    np.testing.assert_allclose(told - apply_linear(plain, contexts, series + 1), apart[:, None] * path.pull[0])
    np.testing.assert_array_equal(apply_linear(path, contexts, series + 1), apply_linear(plain, contexts, series + 1))


def test_a_part_that_looks_at_the_usual_has_one_input_more():
    panel = away_for_long()
    path = fit_linear(panel, 6, 3, penalties=(1e-2,), mix=((Part(usual=True), 1.0),))
    series, _, contexts, targets, usual = windows_of(panel, 6, 3)
    centred, mean = centre(contexts)
    scale = series_scales(panel, panel.lengths)[series, None]
    x, y = np.column_stack([centred, usual - mean]) / scale, (targets - mean[:, None]) / scale
    gram = x.T @ x
    weights = np.linalg.solve(gram + 1e-2 * np.trace(gram) / 7 * np.eye(7), x.T @ y)
    np.testing.assert_allclose(path.weights[0], weights[:-1], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(path.pull[0], weights[-1], rtol=1e-8)
    both = fit_linear(panel, 6, 3, penalties=(1e-2,), mix=((Part(usual=True), 0.25), (Part("series", 0.02), 0.75)))
    np.testing.assert_allclose(both.pull, np.tile(0.25 * weights[-1], (5, 1)), rtol=1e-8)


def test_what_is_usual_helps_where_levels_come_back_and_is_left_out_where_they_do_not():
    panel, ends, pulls, parts = away_for_long(3000), np.full(4, 2000), (0.3, 0.0, 1.0), (Part(), Part(usual=True))
    assert fit_linear(panel, 6, 20, train_ends=ends, pulls=pulls).pulled == 1.0
    moved = panel.values.reshape(4, -1).T.copy()
    moved[2000:] += 8 * np.nanstd(moved[:2000], axis=0)  # and then they stay where they never were
    assert fit_linear(read(moved)[0], 6, 20, train_ends=ends, pulls=pulls).pulled == 0.0
    assert dict(fit_linear(panel, 6, 20, train_ends=ends, parts=parts).mix)[parts[1]] > 0.5
    walk = read(np.random.default_rng(3).normal(size=(3000, 4)).cumsum(axis=0))[0]
    assert parts[1] not in dict(fit_linear(walk, 6, 20, train_ends=ends, parts=parts).mix)


def test_a_pulled_path_forecasts_scaled_and_shifted_data_alike_with_a_profile_too():
    panel, parts = seasonal_jumps(), (Part(), Part("series", 0.02, usual=True))
    fit = partial(fit_linear, context=3, horizon=2, parts=parts, pulls=(0.5,), season=7, shares=(0.5,))
    path, other = fit(panel), fit(replace(panel, values=3 * panel.values + 7))
    rows, steps, usual = np.arange(4), np.arange(4), np.column_stack([np.linspace(-1, 1, 4), np.ones(4)])
    contexts = np.random.default_rng(0).normal(size=(4, 3))
    one = apply_linear(path, contexts, rows, steps, usual)
    for each in (path, other):
        got = apply_linear(each, 3 * contexts + 7, rows, steps, usual * [3, 9] + [7, 0])
        np.testing.assert_allclose(got, 3 * one + 7, atol=1e-7)
    still = np.array([[0.1, 0.1, 0.1], [0.1, np.nan, 0.1]])  # their sum is not 0.3
    assert (apply_linear(path, still, rows[:2], steps[:2], usual[:2]) == 0.1).all()
    silent = np.full((1, 3), np.nan)
    assert np.isnan(apply_linear(path, silent, rows[:1], steps[:1], usual[:1])).all()
    unknown = apply_linear(path, contexts, rows, steps, np.full((4, 2), np.nan))
    np.testing.assert_array_equal(unknown, apply_linear(path, contexts, rows, steps))


def test_a_blended_path_forecasts_scaled_and_shifted_data_alike():
    path = fit_linear(two_worlds(), 16, 3, poolings=(2.0,), blends=((0.5, 0.5),))
    contexts = np.random.default_rng(0).normal(size=(5, 16))
    maps = np.arange(5)
    np.testing.assert_allclose(
        apply_linear(path, 3 * contexts + 7, maps), 3 * apply_linear(path, contexts, maps) + 7, atol=1e-9
    )


# The average of parts

PARTS = (Part(), Part(halvings=1), Part("window"), Part("series", 0.02))


def test_blocks_are_forecast_by_exactly_the_windows_without_a_target_in_them():
    panel, scales = two_worlds(100), np.array([1.0, 2.0, 3.0, 4.0])
    grams = [accumulate(windows, scales) for windows in in_turn(panel, 8, 3, 4)]
    for block, (xx, xy) in enumerate(all_but_one(grams)):
        begin, stop = np.full(4, 25 * block), np.full(4, 25 * block + 25)
        before = accumulate(windows_between(panel, 8, 3, 0 * begin, begin), scales)
        after = accumulate(windows_between(panel, 8, 3, stop, panel.lengths), scales)
        np.testing.assert_allclose(xx, (before.xx + after.xx)[0], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(xy, (before.xy + after.xy)[0], rtol=1e-9, atol=1e-9)


def test_an_average_gains_what_it_can_and_is_the_first_map_where_blocks_disagree():
    errors = np.random.default_rng(0).normal(size=(3, 400, 6))
    half = np.array([errors[0], errors[0] * np.sign(errors[1])])
    np.testing.assert_allclose(shares_of([half] * 4), [0.5, 0.5], atol=0.05)
    better = np.array([errors[0], 0.5 * errors[0]])
    np.testing.assert_allclose(shares_of([better] * 4), [0.0, 1.0], atol=1e-3)
    lucky = [np.array([errors[0], 0.2 * errors[0]])] + [np.array([errors[0], 1.3 * errors[0]])] * 5
    np.testing.assert_allclose(shares_of(lucky), [1.0, 0.0], atol=1e-6)
    np.testing.assert_array_equal(shares_of([0 * half] * 4), [1.0, 0.0])
    np.testing.assert_allclose(shares_of([half, 0 * half, half]), shares_of([half, half]))


def test_the_shares_of_an_average_err_least_by_squared_and_absolute_error_together():
    errors = np.random.default_rng(1).standard_t(3, size=(3, 2000, 4)) * np.array([1.0, 1.1, 1.5])[:, None, None]

    def loss(shares):
        left = np.tensordot(shares, errors, 1)
        return (left**2).mean() / (errors[0] ** 2).mean() + np.abs(left).mean() / np.abs(errors[0]).mean()

    found = shares_of([errors] * 4)
    for step in np.eye(3)[[0, 0, 1, 1, 2, 2]] - np.eye(3)[[1, 2, 0, 2, 0, 1]]:
        assert loss(found + 0.03 * step) > loss(found)


def test_what_the_parts_of_an_average_took_of_the_usual_is_not_taken_twice():
    panel = two_worlds(600)
    scales, windows = np.ones(4), windows_between(panel, 8, 2, np.zeros(4, dtype=int), np.full(4, 500))
    sums = pull_sums(windows, scales)
    pulls = []
    for share in (0.0, 0.5, 1.0):
        path = averaged(windows, scales, ((Part(), 1 - share), (Part(usual=True), share)), 1e-3, {})
        added = with_pull(path, sums, 0.3, 1.0, panel.shares).pull - (0.0 if path.pull is None else path.pull)
        pulls.append(np.abs(added).max())
    assert pulls[0] > 2 * pulls[1] > 0
    assert pulls[2] == 0


def test_long_series_that_differ_have_maps_of_their_own_and_those_alike_share_one():
    differ = fit_linear(two_worlds(600), 8, 2, train_ends=np.full(4, 500), parts=PARTS)
    shares = dict(differ.mix)
    assert shares[Part("series", 0.02)] > 0.8
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) >= 0.01
    assert differ.ids == (0, 1, 2, 3)
    assert min(differ.losses, key=differ.losses.get) <= differ.penalty
    random = np.random.default_rng(0)
    alike = read(np.sin(np.arange(150)[:, None] * 0.9 + np.arange(12)) + random.normal(size=(150, 12)))[0]
    shares = dict(fit_linear(alike, 12, 4, train_ends=np.full(12, 120), parts=(Part(), Part("series", 0.02))).mix)
    assert shares[Part()] > 0.7


def test_short_series_are_judged_on_their_validation_rows_alone():
    panel = two_worlds(39)  # fewer than four contexts and horizons
    path = fit_linear(panel, 8, 2, train_ends=np.full(4, 30), parts=PARTS)
    assert path.mix == ()
    np.testing.assert_array_equal(path.weights, fit_linear(panel, 8, 2, train_ends=np.full(4, 30)).weights)


def test_series_with_too_few_whole_windows_to_judge_by_keep_to_their_validation_rows():
    panel = two_worlds(60)
    values = panel.values.copy()
    values[np.arange(240) % 60 % 5 == 0] = np.nan
    values.reshape(4, 60)[:, :15:5] = 0.0  # wholly observed targets in the first of six blocks alone
    path = fit_linear(replace(panel, values=values), 5, 5, train_ends=np.full(4, 50), parts=PARTS)
    assert path.mix == ()


def test_an_averaged_path_is_the_average_of_its_parts():
    panel, contexts = two_worlds(), np.random.default_rng(0).normal(size=(5, 8))
    fit, rows = partial(fit_linear, panel, 8, 3, penalties=(1e-2,)), np.arange(5)
    alone = [
        fit(),
        fit(blends=((0.0, 1.0),)),
        fit(units=("window",)),
        fit(poolings=(0.02,)),
        fit(units=("window",), poolings=(2.0,), blends=((0.0, 0.0, 1.0),)),
    ]
    mix = tuple(zip((*PARTS, Part("window", 2.0, 2)), (0.1, 0.2, 0.3, 0.15, 0.25), strict=True))
    expected = sum(share * apply_linear(path, contexts, rows) for path, (_, share) in zip(alone, mix, strict=True))
    path = fit(mix=mix)
    assert path.mix == mix
    np.testing.assert_allclose(apply_linear(path, contexts, rows), expected, rtol=1e-9, atol=1e-12)


def test_weights_come_from_training_rows_whatever_judges_the_parts():
    panel, ends = two_worlds(), np.full(4, 250)
    path = fit_linear(panel, 8, 2, train_ends=ends, parts=PARTS)
    known = fit_linear(panel.head(ends), 8, 2, penalties=(path.penalty,), mix=path.mix)
    np.testing.assert_allclose(path.weights, known.weights, rtol=1e-9, atol=1e-12)


def test_the_order_of_the_series_and_their_units_do_not_change_an_averaged_path():
    panel, ends, order = two_worlds(), np.full(4, 250), [2, 0, 3, 1]
    path = fit_linear(panel, 8, 2, train_ends=ends, parts=PARTS)
    other = fit_linear(panel.select(order), 8, 2, train_ends=ends, parts=PARTS)
    np.testing.assert_allclose(other.weights[1:], path.weights[1:][order], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(other.weights[0], path.weights[0], rtol=1e-9, atol=1e-12)
    scaled = fit_linear(replace(panel, values=1000 * panel.values - 7), 8, 2, train_ends=ends, parts=PARTS)
    np.testing.assert_allclose(scaled.weights, path.weights, rtol=1e-7, atol=1e-9)
    contexts = np.random.default_rng(0).normal(size=(5, 8))
    one = apply_linear(path, contexts, np.arange(5))
    np.testing.assert_allclose(apply_linear(path, 3 * contexts + 7, np.arange(5)), 3 * one + 7, atol=1e-9)


def test_single_maps_that_would_hold_too_much_are_not_made(monkeypatch):
    monkeypatch.setattr("titans_ts.forecasting.linear.OWN_NUMBERS", 200)
    assert fit_linear(two_worlds(), 8, 2, poolings=(1.0,)).ids == ()


def test_series_too_short_for_two_parts_only_train():
    panel, _, _ = read(panel_frame())
    assert validation_ends(panel, 0.2, 5).tolist() == [96, 87, 78]
    assert validation_ends(panel, 100, 5).tolist() == [20, 109, 98]
    assert validation_ends(panel, 0, 5).tolist() == panel.lengths.tolist()
    forecaster = Ridge(horizon=3).fit(np.arange(8.0) ** 2)
    assert forecaster.path_.losses == {}
    with pytest.raises(ValueError, match="shorter horizon"):
        Ridge(horizon=9).fit(np.arange(8.0))


def test_a_line_goes_on():
    forecast = Ridge(horizon=4, context_length=6, penalty=1e-9).fit(np.arange(80.0)).predict()
    np.testing.assert_allclose(forecast, [80, 81, 82, 83], rtol=1e-5)


def test_a_benchmark_sized_fit_is_quick():
    y = np.random.default_rng(0).normal(size=(2000, 7)).cumsum(axis=0)
    begin = time.process_time()
    fit_linear(read(y)[0], 336, 96, train_ends=np.full(7, 1600))
    assert time.process_time() - begin < 3


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"quantiles": (0.0, 0.5)}, "between 0 and 1"),
        ({"quantiles": ()}, "between 0 and 1"),
        ({"context_length": 0}, "1 or more"),
        ({"validation": -1}, "share"),
        ({"penalty": -1.0}, "positive"),
    ],
)
def test_parameters_are_checked_by_fit(parameters, words):
    with pytest.raises(ValueError, match=words):
        Ridge(horizon=3, **parameters).fit(np.arange(50.0))


# Metrics


def test_the_loss_is_that_of_the_definition():
    random = np.random.default_rng(0)
    y, quantiles, levels = random.normal(size=30), np.sort(random.normal(size=(30, 3)), axis=1), (0.1, 0.5, 0.9)
    error = y[:, None] - quantiles
    literal = 2 * np.maximum(levels * error, (np.array(levels) - 1) * error).mean(axis=1).sum() / np.abs(y).sum()
    assert weighted_quantile_loss(y, quantiles, levels) == pytest.approx(literal)
    with_hole = np.append(y, np.nan), np.append(quantiles, quantiles[:1], axis=0)
    assert weighted_quantile_loss(*with_hole, levels) == pytest.approx(literal)


def test_the_table_has_a_row_for_every_model():
    past, later = split(panel_frame(holes=False), 5)
    frame = later
    for forecaster in FORECASTERS:
        frame = frame.merge(forecaster.fit(past).predict(level=[80], quantiles=[0.1, 0.5, 0.9]), on=["unique_id", "ds"])
    table = evaluate(frame, past, ["SeasonalNaive", "Ridge"], season_length=7, level=[80])
    assert table.index.tolist() == ["SeasonalNaive", "Ridge"]
    assert list(table) == ["mase", "crps", "coverage-80"]
    scale = past.groupby("unique_id")["y"].apply(lambda y: y.diff(7).abs().mean())
    errors = (frame["y"] - frame["SeasonalNaive"]).abs().groupby(frame["unique_id"]).mean()
    assert table.loc["SeasonalNaive", "mase"] == pytest.approx((errors / scale).mean())
    assert Fraction(float(table.loc["Ridge", "coverage-80"])).limit_denominator(15) <= 1
