"""`non_negative=True`: no forecast falls below 0, all else is as without it, and negative data are refused."""

import functools
import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from titans_ts import DataError, MemoryConfig, TitansForecaster, TrainConfig
from titans_ts.forecasting.door import read
from titans_ts.forecasting.metrics import weighted_quantile_loss
from titans_ts.forecasting.streaming import StreamingForecaster
from titans_ts.models.config import BackboneConfig

HORIZON = 6
NAME = "TitansForecaster"
ASKED = {"level": [80, 98], "quantiles": [0.05, 0.5]}
SMALL = BackboneConfig(
    dim=8, depth=1, heads=2, window=3, segment=3, memory=MemoryConfig(dim=8, heads=2, depth=1, expansion=2, chunk=16)
)


def make(**params):
    defaults = {"context_length": 24, "patch_length": 4, "model": SMALL, "train": TrainConfig(steps=2, batch=4)}
    return TitansForecaster(HORIZON, random_state=0, **{**defaults, **params})


def counts(length=150, seed=0):
    """Daily sales of three articles that are often not sold at all, and seldom when they are dear."""
    random, parts = np.random.default_rng(seed), []
    for name, rate in (("nails", 0.4), ("screws", 1.0), ("doors", 0.1)):
        price = random.choice([1.0, 2.0], size=length)
        y = random.poisson(3 * rate * (price == 1.0)).astype(float)
        ds = pd.date_range("2024-01-01", periods=length, freq="D")
        parts.append(pd.DataFrame({"unique_id": name, "ds": ds, "y": y, "price": price}))
    return pd.concat(parts, ignore_index=True)


WHOLE = counts()
AHEAD = WHOLE.groupby("unique_id").cumcount(ascending=False)
PAST, LATER = WHOLE[AHEAD >= HORIZON], WHOLE[AHEAD < HORIZON]
CASES = {"alone": (), "with a covariate": ("price",)}


@functools.cache
def _fitted(case, non_negative):
    return pickle.dumps(make(non_negative=non_negative, known_covariates=CASES[case]).fit(PAST))


def both(case):
    """The same forecaster, cut and not, and without bounds of its own: these data stand at 0 often."""
    pair = [pickle.loads(_fitted(case, non_negative)) for non_negative in (True, False)]
    for forecaster in pair:
        forecaster.calibration_ = replace(forecaster.calibration_, bounded=False)
    return pair


@pytest.fixture(params=CASES)
def case(request):
    return request.param


def ahead(case):
    return {"future": LATER} if CASES[case] else {}


def assert_is_cut(said, plain):
    """The same frame, cut at 0; and there was something to cut."""
    names = [name for name in said if str(name).startswith(NAME)]
    assert (plain[names].to_numpy() < 0).any()
    expected = plain.copy()
    expected[names] = plain[names].clip(lower=0.0)
    pd.testing.assert_frame_equal(said, expected)


# What is said


def test_point_and_quantiles_are_those_without_it_cut_at_zero(case):
    cut, plain = (each.predict(**ASKED, **ahead(case)) for each in both(case))
    assert_is_cut(cut, plain)
    quantiles = cut[[f"{NAME}-lo-98", f"{NAME}-ql0.05", f"{NAME}-lo-80", f"{NAME}-ql0.5", f"{NAME}-hi-80"]].to_numpy()
    assert (np.diff(quantiles, axis=1) >= 0).all()


def test_the_point_forecast_too_is_cut():
    cut, plain = (each.predict(y=PAST, future=LATER.assign(price=4.0)) for each in both("with a covariate"))
    assert (plain[NAME] < 0).any()
    assert_is_cut(cut, plain)


def test_paths_are_cut(case):
    cut, plain = (each.simulate(50, seed=1, **ahead(case)) for each in both(case))
    assert_is_cut(cut, plain)


def test_a_backtest_is_cut(case):
    cut, plain = (
        make(train=TrainConfig(steps=0), non_negative=non_negative, known_covariates=CASES[case]).backtest(
            WHOLE, n_windows=2, **ASKED
        )
        for non_negative in (True, False)
    )
    assert_is_cut(cut, plain)


def test_the_score_is_that_of_the_cut_quantiles(case):
    forecaster, plain = both(case)
    names = [f"{NAME}-ql{level}" for level in forecaster.levels_]
    said = forecaster.predict(quantiles=forecaster.levels_, **ahead(case)).merge(LATER, on=["unique_id", "ds"])
    loss = weighted_quantile_loss(said["y"].to_numpy(), said[names].to_numpy(), forecaster.levels_)
    assert forecaster.score(LATER) == pytest.approx(-loss, rel=1e-12)
    assert forecaster.score(LATER) > plain.score(LATER)


def test_the_compiled_stream_is_cut_as_predict_is():
    forecaster, _ = both("alone")
    stream = StreamingForecaster.from_forecaster(forecaster)
    panel = read(LATER)[0]
    for step in range(HORIZON):
        said = stream.forecast([0, 1, 2])
        expected = forecaster.predict(quantiles=forecaster.levels_).iloc[:, 2:].to_numpy().reshape(3, HORIZON, -1)
        assert said.quantiles.min() == 0.0 == expected.min()
        np.testing.assert_allclose(np.dstack([said.point, said.quantiles]), expected, rtol=1e-4, atol=1e-5)
        stream.update([0, 1, 2], panel.values.reshape(3, -1)[:, step])
        forecaster.update(LATER.groupby("unique_id").nth(step))


def test_the_picture_shows_nothing_below_zero():
    pytest.importorskip("matplotlib")
    cut, plain = ([axis.dataLim.y0 for axis in each.plot(level=(80, 98)).axes] for each in both("alone"))
    assert min(cut) == 0.0
    assert min(plain) < 0.0


def test_save_and_load_keep_it(case, tmp_path):
    forecaster, _ = both(case)
    forecaster.save(tmp_path / "model")
    loaded = TitansForecaster.load(tmp_path / "model")
    assert loaded.non_negative
    pd.testing.assert_frame_equal(loaded.predict(**ASKED, **ahead(case)), forecaster.predict(**ASKED, **ahead(case)))
    with pytest.raises(DataError, match="negative"):
        loaded.update(LATER.assign(y=-1.0))


# What is refused


def spoilt(frame, name="screws", place=3):
    spoilt = frame.reset_index(drop=True)
    row = spoilt.index[spoilt["unique_id"] == name][place]
    return spoilt.assign(y=spoilt["y"].where(spoilt.index != row, -2.5))


def test_negative_data_are_refused_by_name_time_and_fix():
    words = r"series 'screws': 1 values are negative \(first: -2.5 at 2024-01-04 .*non_negative=True.*Fix: .*NaN"
    with pytest.raises(DataError, match=words):
        make(non_negative=True).fit(spoilt(PAST))
    with pytest.raises(DataError, match=r"series 'screws': -2.5 in its row 3 is negative.*Fix"):
        make(non_negative=True).fit(read(spoilt(PAST))[0])


def test_a_negative_update_changes_nothing():
    forecaster, plain = both("alone")
    before = forecaster.predict()
    for method in (forecaster.update, forecaster.score):
        with pytest.raises(DataError, match="series 'screws': 1 values are negative"):
            method(spoilt(LATER))
    pd.testing.assert_frame_equal(forecaster.predict(), before)
    plain.update(spoilt(LATER))


def test_a_negative_history_is_refused():
    forecaster, _ = both("alone")
    with pytest.raises(DataError, match="series 'screws': 1 values are negative"):
        forecaster.predict(y=spoilt(PAST))


def test_a_series_with_negative_values_is_left_out_when_asked():
    forecaster = make(non_negative=True, on_bad="skip", train=TrainConfig(steps=0)).fit(spoilt(PAST))
    assert forecaster.fitted_ids_ == ("nails", "doors")
    assert "negative" in forecaster.skipped_["screws"]


@pytest.mark.parametrize("many", [False, True])
def test_the_compiled_stream_refuses_a_negative_value(many):
    forecaster, plain = both("alone")
    stream = StreamingForecaster.from_forecaster(forecaster)
    before = stream.forecast(1)
    rows, values = ([0, 1], [np.nan, -3.0]) if many else (1, -3.0)
    with pytest.raises(ValueError, match=r"value of row 1 is negative \(-3\)"):
        stream.update(rows, values)
    assert np.array_equal(stream.forecast(1).quantiles, before.quantiles)
    StreamingForecaster.from_forecaster(plain).update(rows, values)


def test_zeros_alone_are_forecast():
    said = make(non_negative=True).fit(np.zeros(120)).predict(level=80)
    assert np.array_equal(said, np.zeros((HORIZON, 3)))
