"""Series that come in steps: so do quantiles, medians and paths; a mean, and all else, lies where it lay."""

import copy
import functools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from titans_ts import MemoryConfig, TitansForecaster, TrainConfig
from titans_ts.forecasting.door import read
from titans_ts.forecasting.forecast import Forecast, Grid, quantiles_at
from titans_ts.forecasting.grain import fit_grain, smooth, step_of
from titans_ts.forecasting.judging import said_in_validation
from titans_ts.forecasting.streaming import StreamingForecaster
from titans_ts.models.config import BackboneConfig

HORIZON, SERIES = 6, 30
NAME = "TitansForecaster"
LEVELS = tuple(round(0.1 * k, 1) for k in range(1, 10))
ASKED = {"level": [80, 95], "quantiles": LEVELS}
SMALL = BackboneConfig(dim=8, depth=1, heads=2, memory=MemoryConfig(dim=8, heads=2, depth=1, expansion=2, chunk=16))


def long(y, begin=0):
    """A column a series as a long frame."""
    frame = pd.DataFrame(y, index=pd.RangeIndex(begin, begin + len(y), name="ds"))
    return frame.melt(var_name="unique_id", value_name="y", ignore_index=False).reset_index()


def make(**params):
    defaults = {"context_length": 24, "patch_length": 4, "model": SMALL, "train": TrainConfig(steps=2, batch=4)}
    return TitansForecaster(HORIZON, random_state=0, **{**defaults, **params})


def sales(length=120, seed=0):
    """Daily sales of articles of which mostly none or one is sold."""
    rates = np.linspace(0.1, 1.5, SERIES)
    return np.random.default_rng(seed).poisson(rates, size=(length, SERIES)).astype(float)


@functools.cache
def _fitted(point="median", unit=1.0, base=0.0):
    return make(point=point).fit(long(base + unit * sales()))


def fitted(*args):
    return copy.deepcopy(_fitted(*args))


def columns(said):
    return [name for name in said if name.startswith(NAME)]


def without(forecaster):
    """The same, as if values could lie anywhere."""
    forecaster.grain_ = smooth(SERIES)
    return forecaster


def test_quantiles_medians_and_paths_of_counts_are_whole_numbers():
    forecaster = fitted()
    said, paths = forecaster.predict(**ASKED), forecaster.simulate(20, seed=0)
    for values in (*said[columns(said)].to_numpy().T, paths[NAME].to_numpy()):
        assert np.array_equal(values, np.round(values))
        assert np.ptp(values) > 0
    plain = without(fitted()).predict(**ASKED)[f"{NAME}-ql0.9"]
    assert not np.array_equal(plain, np.round(plain))
    assert np.abs(said[f"{NAME}-ql0.9"] - plain).max() <= 1.0


def test_they_are_better_there():
    forecaster, later = fitted(), long(sales(seed=1)[:HORIZON], 120)
    assert forecaster.score(later) > without(fitted()).score(later) + 0.01


def test_a_mean_lies_between():
    said, plain = fitted("mean").predict(level=80), without(fitted("mean")).predict(level=80)
    assert np.array_equal(said[NAME], plain[NAME])
    assert not np.array_equal(said[NAME], np.round(said[NAME]))
    assert np.array_equal(said[f"{NAME}-hi-80"], np.round(said[f"{NAME}-hi-80"]))


def test_other_units_have_the_same_forecast_in_these_units():
    said, other = fitted().predict(**ASKED), fitted("median", 0.3, -7.0).predict(**ASKED)
    for name in columns(said):
        np.testing.assert_allclose(other[name], -7.0 + 0.3 * said[name], rtol=1e-6, atol=1e-6)


def test_the_unit_of_one_series_is_its_own():
    y = np.random.default_rng(0).poisson(np.exp(np.random.default_rng(1).normal(size=(160, 8)))).astype(float)
    other = y.copy()
    other[:, 2] *= 1e4
    one, two = (make(point="median").fit(long(values)) for values in (y, other))
    assert one.grain_.speaks
    assert one.grain_.lift == two.grain_.lift
    said, same = (forecaster.predict(**ASKED) for forecaster in (one, two))
    unit = np.where(said["unique_id"] == 2, 1e4, 1.0)
    for name in columns(said):
        np.testing.assert_allclose(same[name], unit * said[name], rtol=1e-6, atol=1e-6)


def test_a_value_off_the_steps_ends_them(tmp_path):
    forecaster, stream = fitted(), StreamingForecaster.from_forecaster(fitted())
    new = sales(seed=4)[:1]
    new[0, 3] = 0.4
    forecaster.update(long(new, 120))
    stream.update(np.arange(SERIES), new[0])
    said = forecaster.predict(quantiles=LEVELS)
    whole = (said[columns(said)] == said[columns(said)].round()).all(axis=1).groupby(said["unique_id"]).all()
    assert whole.index[~whole].tolist() == [3]
    for row in (2, 3):
        there = said[said["unique_id"] == row]
        np.testing.assert_allclose(stream.forecast(row).point[0], there[NAME], rtol=1e-4)
    assert stream.panel_state().loose.tolist() == forecaster._known.state.loose.tolist()
    forecaster.save(tmp_path / "loose")
    assert TitansForecaster.load(tmp_path / "loose").predict(quantiles=LEVELS).equals(said)


def test_a_history_in_other_units_has_no_steps():
    history = long(sales(seed=5)[:60] / 1000)
    said = fitted().predict(y=history, level=80)
    assert (said[f"{NAME}-hi-80"] % 1 != 0).mean() > 0.9


def test_a_picture_shows_what_is_forecast():
    pytest.importorskip("matplotlib")
    y = sales()
    y[:, 0] = 0.5 + 10 * y[:, 0]
    forecaster = make(point="median").fit(long(y))
    said = forecaster.predict(level=80)
    figure = forecaster.plot(ids=[1, 0, 29], level=80)
    for axis, row in zip(figure.axes, (1, 0, 29), strict=True):
        (area,) = axis.collections
        drawn = np.unique(area.get_paths()[0].vertices[:, 1])
        there = said[said["unique_id"] == row]
        assert set(drawn) == {*there[f"{NAME}-lo-80"], *there[f"{NAME}-hi-80"]}


def test_nothing_leaves_the_grid_to_be_at_least_nothing():
    grid = Grid(np.array([1.0]), np.array([0.5]), np.array([0.5]))
    forecast = Forecast(np.zeros((1, 1)), np.array([[[-1.2, -0.2, 1.6]]]), (0.1, 0.5, 0.9), least=0.0, grid=grid)
    assert forecast.cut().quantiles.tolist() == [[[0.5, 0.5, 1.5]]]


def test_a_median_that_cannot_be_negative_stays_on_the_grid_too():
    y = 2.0 * (np.random.default_rng(0).random((120, 4)) < 0.1) + 1.0  # 1, now and then 3
    forecaster = make(point="median", non_negative=True).fit(long(y))
    forecaster.calibration_ = replace(forecaster.calibration_, lean=-9.0, bounded=False)  # far below nothing
    stream = StreamingForecaster.from_forecaster(forecaster)
    assert (forecaster.predict()[NAME] == 1.0).all()
    assert (stream.forecast(np.arange(4)).point == 1.0).all()


def test_a_panel_too_short_to_validate_is_judged_by_many_of_its_series(monkeypatch):
    judged = []

    def recorded(*arguments):
        judged.append(said_in_validation(*arguments))
        return judged[-1]

    monkeypatch.setattr("titans_ts.forecasting.forecaster.said_in_validation", recorded)
    y = np.random.default_rng(0).poisson(0.5, size=(16, 120)).astype(float)
    make(context_length=4, train=TrainConfig(steps=2, batch=4, validation=0)).fit(long(y))
    assert len(np.unique(judged[0].series)) > 60


def test_a_stream_and_a_checkpoint_say_the_same(tmp_path):
    forecaster, new = fitted(), sales(seed=2)[:9]
    stream = StreamingForecaster.from_forecaster(forecaster)
    for row in new:
        stream.update(np.arange(SERIES), row)
    forecaster.update(long(new, 120))
    said, true = stream.forecast(np.arange(SERIES)), forecaster.predict(**ASKED)
    assert np.array_equal(said.point.ravel(), true[NAME])
    assert np.array_equal(said.quantiles[..., 8].ravel(), true[f"{NAME}-ql0.9"])
    assert np.array_equal(stream.forecast(3).point[0], said.point[3])
    forecaster.save(tmp_path / "sales")
    again = TitansForecaster.load(tmp_path / "sales").predict(**ASKED)
    assert again.equals(true)


@pytest.mark.parametrize("refit", [False, True])
def test_a_backtest_tells_the_windows_of_each_series(refit):
    y = sales(80)
    y[:, 1] = np.random.default_rng(3).normal(size=80)
    said = make(point="median").backtest(long(y), n_windows=3, level=80, refit=refit)
    for name in (NAME, f"{NAME}-lo-80", f"{NAME}-hi-80"):
        whole = (said[name] == said[name].round()).groupby(said["unique_id"]).mean()
        assert (whole.drop(1) == 1).all()
        assert whole[1] == 0
    assert said.groupby("unique_id").size().eq(3 * HORIZON).all()


def test_what_lies_anywhere_stays():
    y = sales()
    y[:, 0] += np.random.default_rng(0).normal(scale=1e-3, size=len(y))  # no steps
    y[:, 1] = 1000 + np.random.default_rng(0).integers(0, 200, size=len(y))  # fine ones
    forecaster = make(point="median").fit(long(y))
    steps = forecaster.grain_.step
    assert steps[:3].tolist() == [0, 0, 0]  # strangers first
    assert (steps[3:] == 1).all()
    said = forecaster.predict(quantiles=[0.9])
    whole = said[f"{NAME}-ql0.9"] == said[f"{NAME}-ql0.9"].round()
    assert not whole[said["unique_id"] < 2].any()
    assert whole[said["unique_id"] >= 2].all()


def test_a_stranger_and_a_series_with_covariates_lie_anywhere():
    forecaster = fitted()
    history = pd.DataFrame({"unique_id": "new", "ds": range(40), "y": sales()[:40, 20]})
    said = forecaster.predict(y=history, level=80)
    assert not np.array_equal(said[f"{NAME}-hi-80"], np.round(said[f"{NAME}-hi-80"]))
    frame = pd.DataFrame({"unique_id": "a", "ds": range(120), "y": sales()[:, 20]})
    frame["open"] = np.arange(120) % 7 < 5
    assert not make(past_covariates=("open",)).fit(frame).grain_.speaks


def test_steps_are_found():
    random = np.random.default_rng(0)
    assert step_of(random.integers(0, 4, 50) * 0.1) == (pytest.approx(0.1), 0.0)
    assert step_of(np.array([5.0, np.nan, 5.0]))[0] == 0.0
    assert step_of(np.array([np.nan]))[0] == 0.0
    assert step_of(random.normal(size=50))[0] == 0.0
    assert step_of(random.integers(0, 40, 500).astype(float))[0] == 0.0
    assert step_of(np.repeat([9.99, 12.49], 20))[0] == 0.0  # a price that was raised
    assert step_of(np.array([0.0, 0.0, 5.0, 0.0, 0.0])) == (5.0, 0.0)


def test_a_grid_that_errs_more_is_none():
    panel = read(np.array([[0.0, 1.0, 0.0, 2.0, 1.0]]).T)[0]
    truth, said = np.full((8, 1), 1.5), np.tile([1.4, 1.5, 1.6], (8, 1, 1))
    levels, series = (0.1, 0.5, 0.9), np.zeros(8, dtype=np.int64)
    assert not fit_grain(panel, series, truth, said, levels, np.ones(8)).speaks
    assert fit_grain(panel, series, truth + 0.5, said + 0.6, levels, np.ones(8)).speaks


def test_many_windows_can_be_sure_of_going_down():
    panel = read(np.array([[0.0, 1.0, 0.0, 2.0, 1.0]]).T)[0]
    truth, said = np.zeros((60, 1)), np.tile([0.0, 0.4, 0.9], (60, 1, 1))
    few, many = (
        fit_grain(panel, np.zeros(count, dtype=np.int64), truth[:count], said[:count], (0.1, 0.5, 0.9), np.ones(count))
        for count in (20, 60)
    )
    assert (few.lift, many.lift) == (0.5, 0.0)


def test_a_forecast_settles_when_it_is_read():
    grid = Grid(np.array([2.0, 0.0]), np.array([1.0, 0.0]), np.array([0.5, 0.5]))
    quantiles = np.array([[[0.2, 2.2, 5.9]], [[0.2, 2.2, 5.9]]])
    forecast = Forecast(quantiles[..., 1], quantiles, (0.1, 0.5, 0.9), grid=grid)
    assert quantiles_at(forecast, [0.1, 0.5, 0.9]).tolist() == [[[1.0, 3.0, 5.0]], [[0.2, 2.2, 5.9]]]
    assert forecast.cut().cut().quantiles.tolist() == forecast.cut().quantiles.tolist()
    assert forecast.cut().point.tolist() == forecast.point.tolist()
