"""Intervals wider than the trained levels cover what they say, whatever tails the errors have."""

import numpy as np
import pytest

from titans_ts import TitansForecaster, TrainConfig
from titans_ts.forecasting.calibration import tails_of
from titans_ts.forecasting.forecast import quantiles_at
from titans_ts.forecasting.streaming import StreamingForecaster


def heavy(rows, series, freedom=3, seed=0):
    return np.random.default_rng(seed).standard_t(freedom, size=(rows, series))


def make():
    train = TrainConfig(steps=0)
    return TitansForecaster(horizon=5, train=train, intervals="conformal", random_state=0).fit(heavy(205, 100)[:200])


@pytest.fixture(scope="module")
def forecaster():
    """With units that are not drawn to what is usual: those say a part of what tails say here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("titans_ts.forecasting.calibration.DRAWS", (0.0,))
        return make()


def covered(forecast, levels):
    truth = heavy(205, 100)[200:].T
    low, high = np.moveaxis(quantiles_at(forecast, levels), -1, 0)
    return ((truth >= low) & (truth <= high)).mean()


def test_intervals_beyond_the_deciles_cover_heavy_tails(forecaster):
    said = forecaster._forecast(forecaster._known.state, np.arange(100))
    line = said._replace(tails=(1.0, 1.0))
    assert min(said.tails) > 1.2
    assert abs(covered(said, [0.025, 0.975]) - 0.95) < 0.025
    assert covered(line, [0.025, 0.975]) < covered(said, [0.025, 0.975]) - 0.005
    assert covered(line, [0.005, 0.995]) < covered(said, [0.005, 0.995]) - 0.015
    assert covered(line, [0.1, 0.9]) == covered(said, [0.1, 0.9])


def test_heavy_tails_are_covered_where_units_are_drawn_too():
    forecaster = make()
    said = forecaster._forecast(forecaster._known.state, np.arange(100))
    assert (forecaster.calibration_.habits[1:, 3] > 0).any()
    assert abs(covered(said, [0.025, 0.975]) - 0.95) < 0.025
    assert covered(said._replace(tails=(1.0, 1.0)), [0.005, 0.995]) < covered(said, [0.005, 0.995])


def test_normal_errors_have_tails_of_one():
    errors, levels = np.random.default_rng(0).normal(size=(5000, 3)), (0.1, 0.5, 0.9)
    tails = tails_of(errors, np.quantile(errors, levels, axis=0).T, levels)
    np.testing.assert_allclose(tails, 1.0, atol=0.1)


def test_what_is_saved_streamed_and_simulated_has_the_same_tails(forecaster, tmp_path):
    forecaster.save(tmp_path / "model")
    loaded = TitansForecaster.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(level=99), forecaster.predict(level=99))
    assert StreamingForecaster.from_forecaster(forecaster).forecast(0).tails == forecaster.calibration_.tails
    high = forecaster.predict(quantiles=0.99, ids=7)[:, 0, 1]
    paths = forecaster.simulate(4000, seed=0, ids=[7])
    drawn = paths.groupby("ds")["TitansForecaster"].quantile(0.99)
    np.testing.assert_allclose(drawn, high, rtol=0.2)
