"""Any quantile from the trained ones."""

from statistics import NormalDist

import numpy as np
import pytest

from titans_ts.forecasting.forecast import Forecast, interval_levels, quantiles_at

DECILES = tuple(k / 10 for k in range(1, 10))


def gaussian(mean, spread, levels=DECILES):
    values = [NormalDist(mean, spread).inv_cdf(level) for level in levels]
    return Forecast(np.full((1, 1), mean), np.array([[values]]), tuple(levels))


@pytest.mark.parametrize("level", [0.001, 0.025, 0.1, 0.33, 0.5, 0.9, 0.995])
def test_gaussian_quantiles_are_exact_inside_and_beyond(level):
    got = quantiles_at(gaussian(3.0, 2.0), [level])[0, 0, 0]
    assert got == pytest.approx(NormalDist(3.0, 2.0).inv_cdf(level), abs=1e-9)


def test_trained_levels_come_back_bit_for_bit():
    values = np.sort(np.random.default_rng(0).standard_cauchy((2, 3, 9)), axis=-1)
    assert (quantiles_at(Forecast(values[..., 4], values, DECILES), DECILES) == values).all()


def test_quantiles_never_cross_even_if_the_model_crossed():
    values = np.random.default_rng(1).normal(size=(4, 5, 9))
    got = quantiles_at(Forecast(values[..., 4], values, DECILES), np.linspace(0.001, 0.999, 99))
    assert (np.diff(got, axis=-1) >= 0).all()


def test_units_pass_through():
    forecast = gaussian(1.0, 1.0, (0.2, 0.5, 0.7))
    moved = Forecast(5 * forecast.point - 3, 5 * forecast.quantiles - 3, forecast.levels)
    levels = [0.01, 0.4, 0.99]
    np.testing.assert_allclose(quantiles_at(moved, levels), 5 * quantiles_at(forecast, levels) - 3)


def test_one_level_says_nothing_of_the_spread():
    assert quantiles_at(gaussian(3.0, 2.0, (0.5,)), [0.5]).tolist() == [[[3.0]]]
    with pytest.raises(ValueError, match="only trained one"):
        quantiles_at(gaussian(3.0, 2.0, (0.5,)), [0.1, 0.9])


@pytest.mark.parametrize("levels", [[0.0], [1.0], [-0.1], [80]])
def test_levels_outside_zero_and_one_are_refused(levels):
    with pytest.raises(ValueError, match="between 0 and 1"):
        quantiles_at(gaussian(0.0, 1.0), levels)


def test_intervals_are_central():
    assert [interval_levels(level) for level in (80, 95, 50.0)] == [(0.1, 0.9), (0.025, 0.975), (0.25, 0.75)]
    with pytest.raises(ValueError, match="between 0 and 100"):
        interval_levels(100)
