"""Fading memories: causal, exact when they are cut anywhere, and in the units of their series."""

import math

import numpy as np
import pytest
import torch

from titans_ts.core.ops.fading import errors_of_rates
from titans_ts.forecasting.clock import CountClock
from titans_ts.forecasting.fading import KEPT, NOTHING, Fading, fit_fading
from titans_ts.forecasting.panel import Panel

pytestmark = pytest.mark.interpreted
SEASON, HORIZON = 4, 6


def panel_of(*series):
    lengths = np.array([len(values) for values in series])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = tuple(range(len(series)))
    return Panel(np.concatenate(series).astype(float), offsets, ids, lengths - 1, 0 * lengths, CountClock())


def seasonal(length, seed=0):
    random, steps = np.random.default_rng(seed), np.arange(length)
    return 10 + 0.1 * steps + 3 * np.sin(2 * np.pi * steps / SEASON) + random.normal(size=length)


def by_definition(values, rate, season, horizon):
    """One rate, straight from the equations, in plain Python."""
    alpha, beta, damp, gamma = rate
    level, trend, seasons, changes, at_place = 0.0, 0.0, [0.0] * season, 0, [0] * season
    seen = 0
    for t, value in enumerate(values):
        place = t % season
        ahead = level + damp * trend
        trend = damp * trend
        if not math.isnan(value):
            ahead += max(alpha, 1 / (seen + 1)) * (value - ahead - seasons[place])
            if beta and t >= season and not math.isnan(values[t - season]):
                trend += max(beta, 1 / (changes + 1)) * ((value - values[t - season]) / season - trend)
                changes += 1
            elif t >= season and not math.isnan(values[t - season]):
                changes += 1
            if season > 1:
                seasons[place] += max(gamma, 1 / (at_place[place] + 1)) * (value - ahead - seasons[place])
            at_place[place] += 1
            seen += 1
        level = ahead
    out, move = [], trend
    for step in range(1, horizon + 1):
        move *= damp
        level += move
        out.append(level + seasons[(len(values) + step - 1) % season])
    return out


@pytest.mark.parametrize("season", [1, SEASON])
@pytest.mark.parametrize("rate", [(0.2, 0.05, 0.9, 0.3), (1.0, 0.0, 1.0, 0.1), (0.05, 0.2, 1.0, 0.6)])
def test_the_kernel_is_the_definition(rate, season):
    values = seasonal(40)
    values[[5, 17, 18]] = np.nan
    fading = Fading(np.array([rate]), np.ones((1, 1)), season, (), np.array([NOTHING]))
    panel = panel_of(values)
    said = fading.ahead(fading.absorb(fading.start(panel.ids), panel), HORIZON)[0][0]
    np.testing.assert_allclose(said, by_definition(values.tolist(), rate, season, HORIZON), rtol=1e-12)


def test_a_history_cut_anywhere_leaves_the_same_memories_bit_for_bit():
    panel = panel_of(seasonal(50), seasonal(50, 1))
    fading = fit_fading(panel, HORIZON, SEASON)
    whole = fading.absorb(fading.start(panel.ids), panel)
    for at in (0, 1, 3, 20, 49, 50):
        parts = fading.absorb(fading.absorb(fading.start(panel.ids), panel.head(at)), panel.drop_head(at))
        assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))


def test_forecasts_inside_a_pass_are_those_from_the_state_there():
    panel = panel_of(seasonal(50), seasonal(30, 1))
    fading = fit_fading(panel, HORIZON, SEASON)
    series, origins = np.array([1, 0, 0, 1]), np.array([30, 7, 50, 3])
    said, ripe, surprise, bounds = fading.at(panel, series, origins, HORIZON)
    for row, (i, origin) in enumerate(zip(series, origins, strict=True)):
        part = panel.select([i]).head(origin)
        state = fading.absorb(fading.start(part.ids), part)
        alone, grown, held = fading.ahead(state, HORIZON)
        assert (held[0] == bounds[row]).all()
        assert (alone[0] == said[row]).all()
        assert grown[0] == ripe[row] == min(max((origin / SEASON - 2) / 6, 0.0), 1.0)
        assert float(state.surprise[0]) == surprise[row]


def test_a_series_that_stood_often_at_its_least_or_greatest_value_does_not_go_beyond():
    sun = np.maximum(np.sin(np.arange(60.0)), 0.0)
    for values, wanted in (
        (sun, (0.0, np.inf)),
        (-sun, (-np.inf, 0.0)),
        (3.0 * sun - 2.0, (-2.0, np.inf)),
        (sun[:12], (-np.inf, np.inf)),  # it stood there too seldom to tell
        (np.append(sun, -0.1), (-np.inf, np.inf)),  # it did not stay there
        (np.where(np.arange(60) % 7 == 0, np.nan, sun), (0.0, np.inf)),
        (seasonal(60), (-np.inf, np.inf)),
    ):
        panel = panel_of(values)
        fading = fit_fading(panel, HORIZON, SEASON)
        assert tuple(fading.ahead(fading.absorb(fading.start(panel.ids), panel), HORIZON)[2][0]) == wanted


def test_an_edge_of_a_window_that_the_series_once_went_beyond_is_no_bound():
    sun = np.maximum(np.sin(np.arange(60.0)), 0.0)
    fading = fit_fading(panel_of(sun, np.append(sun, -1.0)), HORIZON, SEASON)
    window = panel_of(sun[-30:], sun[-30:])
    low = fading.ahead(fading.absorb(fading.start((0, 1)), window), HORIZON)[2][:, 0]
    np.testing.assert_array_equal(low, [0.0, -np.inf])
    shifted = panel_of(sun[-30:] - 0.3, sun[-30:] + 5)  # in other units its own edges are all there is to know
    low = fading.ahead(fading.absorb(fading.start((0, 1)), shifted), HORIZON)[2][:, 0]
    np.testing.assert_array_equal(low, [-0.3, 5.0])
    rounded = fit_fading(panel_of(sun + 0.1), HORIZON, SEASON)
    window = panel_of((sun[-30:] + 0.1).astype(np.float32))
    assert rounded.ahead(rounded.absorb(rounded.start((0,)), window), HORIZON)[2][0, 0] == np.float32(0.1)


def test_what_is_usual_is_the_mean_of_all_values_and_of_those_of_fit_while_fewer_were_seen():
    one, other = seasonal(60), 100 + seasonal(80, 1)
    other[:20] = np.nan
    panel = panel_of(one, other)
    fading = fit_fading(panel, HORIZON, SEASON)
    usual = fading.usual(fading.absorb(fading.start((0, 1)), panel))
    np.testing.assert_allclose(usual, [[one.mean(), one.var()], [np.nanmean(other), np.nanvar(other)]], rtol=1e-12)
    later = fading.absorb(fading.start((0, 1)), panel_of(np.append(one, 50.0), other))
    # a level that is left after fit makes the variance no larger
    np.testing.assert_allclose(fading.usual(later)[0], [np.append(one, 50.0).mean(), one.var()], rtol=1e-12)
    window = fading.absorb(fading.start((0, "stranger")), panel_of(one[-15:], one[-15:]))
    quarter = one[-15:].mean()
    np.testing.assert_allclose(fading.usual(window)[:, 0], [0.25 * quarter + 0.75 * one.mean(), quarter], rtol=1e-12)
    away = fading.absorb(fading.start((0, 1)), panel_of(1e3 * one[-15:], one[-15:]))
    np.testing.assert_allclose(fading.usual(away)[:, 0], [1e3 * quarter, quarter], rtol=1e-12)  # other units, or series
    empty = fading.usual(fading.start((0, "stranger")))
    assert empty[0].tolist() == pytest.approx([one.mean(), one.var()])
    assert np.isnan(empty[1]).all()


def test_the_weights_do_not_know_what_comes_after_the_training_rows():
    one, other = seasonal(60), seasonal(60)
    other[40:] *= 100
    first, second = (fit_fading(panel_of(values), HORIZON, SEASON, np.array([40])) for values in (one, other))
    assert (first.rates == second.rates).all()
    assert (first.weights == second.weights).all()
    assert not (fit_fading(panel_of(other), HORIZON, SEASON).weights[1] == first.weights[1]).all()


def test_other_units_give_the_same_forecasts_in_those_units():
    values = seasonal(50)
    fadings = [fit_fading(panel_of(y), HORIZON, SEASON) for y in (values, 1e-6 * values + 1e3 * 1e-6)]
    one, other = (
        fading.ahead(fading.absorb(fading.start((0,)), panel_of(y)), HORIZON)[0]
        for fading, y in zip(fadings, (values, 1e-6 * values + 1e3 * 1e-6), strict=True)
    )
    np.testing.assert_allclose(other, 1e-6 * one + 1e3 * 1e-6, rtol=1e-9)


def test_a_missing_value_moves_time_and_teaches_nothing():
    rate = np.array([[0.2, 0.05, 0.9, 0.3]])
    fading = Fading(rate, np.ones((1, 1)), SEASON, (), np.array([NOTHING]))
    before = fading.absorb(fading.start((0,)), panel_of(seasonal(30)))
    after = fading.absorb(before, panel_of(np.full(3, np.nan)))
    np.testing.assert_allclose(fading.ahead(after, 4)[0], fading.ahead(before, 7)[0][:, 3:], rtol=1e-12)
    assert torch.equal(before.surprise, after.surprise)


def test_before_a_first_value_nothing_is_said():
    fading = fit_fading(panel_of(seasonal(30)), HORIZON, SEASON)
    state = fading.absorb(fading.start(("new",)), panel_of(np.full(3, np.nan)))
    assert np.isnan(fading.ahead(state, HORIZON)[0]).all()


def test_a_stranger_has_the_weights_of_all_and_few_rates_are_kept():
    fading = fit_fading(panel_of(*(seasonal(40, seed) for seed in range(5))), HORIZON, SEASON)
    assert fading.weights.shape == (6, KEPT)
    np.testing.assert_allclose(fading.weights.sum(1), 1)
    assert fading.start(("stranger", 3)).own.tolist() == [0, 4]


def test_steady_series_keep_slow_rates_and_jumping_ones_fast_rates():
    random = np.random.default_rng(0)
    calm = [5 + random.normal(size=200) for _ in range(3)]
    jumping = [np.cumsum(random.normal(size=200)) for _ in range(3)]
    mean_rate = [
        float((fading.weights[0] * fading.rates[:, 0]).sum())
        for fading in (fit_fading(panel_of(*group), HORIZON, 1) for group in (calm, jumping))
    ]
    assert mean_rate[0] < 0.15 < 0.7 < mean_rate[1]


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0], [2.0] * 40, [np.nan] * 5, [0.0] * 9 + [1.0]])
def test_tiny_and_constant_series_have_finite_weights(values):
    fading = fit_fading(panel_of(np.array(values)), HORIZON, SEASON)
    assert np.isfinite(fading.weights).all()
    said, _, _ = fading.ahead(fading.absorb(fading.start((0,)), panel_of(np.array(values))), HORIZON)
    assert np.isfinite(said).all() == np.isfinite(values).any()


def test_a_season_too_long_to_keep_is_left_out():
    assert fit_fading(panel_of(seasonal(50)), HORIZON, 1440).season == 1


def test_errors_are_tried_at_most_so_often():
    panel = panel_of(seasonal(5000))
    errors, counted = np.zeros((1, 1)), np.zeros(1, dtype=np.int64)
    rates = np.array([[0.2, 0.05, 0.9, 0.3]])
    errors_of_rates(panel.values, panel.offsets, panel.lengths, rates, SEASON, HORIZON, errors, counted)
    assert 128 <= counted[0] <= 257
