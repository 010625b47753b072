"""Skewed series are learnt on a bent scale, and every law of forecasts holds on theirs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from titans_ts import TitansForecaster, TrainConfig
from titans_ts.forecasting.door import read
from titans_ts.forecasting.streaming import StreamingForecaster
from titans_ts.forecasting.transform import Arcsinh, fit_arcsinh, plain

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)


def river(rows=700, seed=0):
    """A level that drifts back and forth, and the flow that grows exponentially with it."""
    level = np.random.default_rng(seed).normal(size=rows)
    for row in range(1, rows):
        level[row] += 0.9 * level[row - 1]
    return np.stack([np.exp(level), level], axis=1)


def fitted(values, **changes):
    settings = {"horizon": 4, "quantiles": LEVELS, "point": "median", "train": TrainConfig(steps=2), "random_state": 0}
    return TitansForecaster(**{**settings, **changes}).fit(values)


@pytest.fixture(scope="module")
def forecaster():
    return fitted(river())


def bent(forecaster):
    return np.isfinite(forecaster.transform_.size).tolist()


def test_a_river_is_bent_and_its_level_is_not(forecaster):
    assert bent(forecaster) == [False, True, False]


def test_a_bent_river_is_forecast_better(forecaster, monkeypatch):
    values = river(1100)
    errors = []
    for way in (fit_arcsinh, lambda panel, *rest: plain(panel.ids)):
        monkeypatch.setattr("titans_ts.forecasting.forecaster.fit_arcsinh", way)
        model = fitted(values[:700, :1])
        losses = []
        for row in range(700, 1096, 4):
            losses.append(np.abs(model.predict()[:, 0] - values[row : row + 4, 0]).mean())
            model.update(values[row : row + 4, :1])
        errors.append(np.mean(losses))
    assert errors[0] < 0.95 * errors[1]


@pytest.mark.parametrize(("scale", "shift"), [(1000.0, 0.0), (0.01, -3.0), (1.0, 50.0)])
def test_other_units_give_the_same_forecast_in_these_units(forecaster, scale, shift):
    other = fitted(scale * river() + shift)
    assert bent(other) == bent(forecaster)
    np.testing.assert_allclose(other.predict(), scale * forecaster.predict() + shift, rtol=1e-4, atol=1e-4 * scale)


def test_a_river_upside_down_is_bent_from_above(forecaster):
    other = fitted(-river())
    assert bent(other) == [False, True, False]
    assert other.transform_.edge[1] == -forecaster.transform_.edge[1]


def test_update_gives_what_the_whole_history_gives():
    values = river().astype(np.float64)
    stream = fitted(values[:600], train=TrainConfig(steps=0))
    assert bent(stream)[1]
    whole = stream.predict(y=values)
    for row in range(600, 700, 10):
        stream.update(values[row : row + 10])
    np.testing.assert_allclose(stream.predict(), whole, rtol=1e-9)


def test_the_compiled_stream_speaks_on_the_plain_scale(forecaster):
    stream = StreamingForecaster.from_forecaster(forecaster)
    new = river(705)[700:]
    twin = fitted(river())
    for row in new:
        stream.update([0, 1], row)
    np.testing.assert_allclose(stream.forecast([0, 1]).point.T, twin.update(new).predict(), rtol=1e-4)


def test_save_and_load_keep_the_scale(forecaster, tmp_path):
    forecaster.save(tmp_path / "model")
    again = TitansForecaster.load(tmp_path / "model")
    np.testing.assert_array_equal(again.predict(), forecaster.predict())
    new = river(705)[700:]
    np.testing.assert_array_equal(again.update(new).predict(), fitted(river()).update(new).predict())


def test_quantiles_rise_on_the_plain_scale(forecaster):
    said = forecaster._forecast(forecaster._known.state, np.arange(2))
    assert (np.diff(said.quantiles, axis=-1) > 0).all()
    np.testing.assert_allclose(said.quantiles[..., 2], said.point, rtol=1e-6)


def test_forecasts_of_means_are_of_the_plain_scale():
    assert bent(fitted(river(), point="mean")) == [False, False, False]


def test_a_series_that_is_not_skewed_stays_as_it_is_to_the_last_bit():
    panel = read(river()[:, 1:])[0]
    way = fit_arcsinh(panel, np.array([560]), 24, 4)
    assert not way.moves
    assert way.of(panel) is panel


def test_few_validation_rows_bend_nothing():
    panel = read(river()[:, :1])[0]
    assert fit_arcsinh(panel, np.array([560]), 24, 4).moves
    assert not fit_arcsinh(panel, np.array([690]), 24, 4).moves


@given(st.floats(-1e6, 1e6), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_forward_and_back_are_inverse(value, edge, size):
    way = Arcsinh(np.array([0.0, edge]), np.array([np.inf, size]), ("a",))
    values, rows = np.array([value, value]), np.array([0, 1])
    np.testing.assert_allclose(way.back(way.forward(values, rows), rows), values, rtol=1e-9, atol=1e-9 * size)


def test_what_is_endless_on_the_bent_scale_comes_back_as_a_number():
    way = Arcsinh(np.array([0.0, 0.0]), np.array([np.inf, 1.0]), ("a",))
    there = way.back(np.array([[1e6, np.nan], [1e6, -1e6]]), np.array([0, 1]))
    np.testing.assert_array_equal(there[0], [1e6, np.nan])
    assert np.isfinite(there[1]).all()
