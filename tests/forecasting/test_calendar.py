"""The calendar: columns made of the timestamps, which help where it matters and ask nothing of the user."""

import pickle

import numpy as np
import pandas as pd
import pytest

from titans_ts import DataError, TitansForecaster, TrainConfig
from titans_ts.forecasting import calendar
from titans_ts.forecasting.door import read
from titans_ts.forecasting.streaming import StreamingForecaster

HORIZON = 9
LINEAR = TrainConfig(steps=0)
WEEK = np.array([0.0, 3.0, -2.0, 5.0, -4.0, 2.0, -6.0])


def make(**params):
    defaults = {"calendar": ("weekday",), "season_length": 5, "context_length": 6, "train": LINEAR}
    return TitansForecaster(HORIZON, random_state=0, **{**defaults, **params})


def frame_of(length=250, series=3, seed=0, price_effect=2.0):
    """Daily walks of different scale that each weekday lifts or lowers, and a price too."""
    random, parts = np.random.default_rng(seed), []
    for place in range(series):
        ds = pd.date_range(pd.Timestamp("2023-01-02") + pd.Timedelta(days=place), periods=length, freq="D")
        price = random.normal(size=length)
        y = 0.3 * np.cumsum(random.normal(size=length)) + WEEK[ds.day_of_week] + price_effect * price
        y = 10.0**place * (y + random.normal(size=length))
        parts.append(pd.DataFrame({"unique_id": "abc"[place], "ds": ds, "y": y, "price": price}))
    return pd.concat(parts, ignore_index=True)


WHOLE = frame_of()
AHEAD = WHOLE.groupby("unique_id").cumcount(ascending=False)
PAST, LATER = WHOLE[AHEAD >= 2 * HORIZON], WHOLE[AHEAD < 2 * HORIZON]
NEXT = LATER.groupby("unique_id").head(HORIZON)
ONE = WHOLE[WHOLE["unique_id"] == "a"].set_index("ds")["y"]


@pytest.fixture(scope="module")
def fitted():
    forecaster = make().fit(PAST)
    assert forecaster.covariates_.effect.share > 0
    return forecaster


def copy_of(forecaster):
    return pickle.loads(pickle.dumps(forecaster))


def error(frame):
    """The mean absolute error, each series in units of its scale."""
    scale = frame["unique_id"].map({"a": 1.0, "b": 10.0, "c": 100.0})
    return float(((frame["y"] - frame["TitansForecaster"]).abs() / scale).mean())


# What it is for


def test_a_strong_weekday_is_forecast_better_with_the_calendar():
    weekly = frame_of(price_effect=0.0)
    with_it, without = (error(make(calendar=names).backtest(weekly, n_windows=4)) for names in (("weekday",), ()))
    assert with_it < 0.8 * without


def test_the_effect_is_that_of_the_weekdays(fitted):
    weights = fitted.covariates_.weights[0] / 0.5
    found = weights - weights.mean()
    unit = (PAST.groupby("unique_id")["y"].std() / [1.0, 10.0, 100.0]).mean()
    np.testing.assert_allclose(found * unit, WEEK - WEEK.mean(), atol=1.5)


def test_a_calendar_that_tells_nothing_changes_nothing():
    noise = pd.Series(np.random.default_rng(1).normal(size=250), pd.date_range("2023-01-02", periods=250, freq="D"))
    with_it, without = (make(calendar=names).fit(noise) for names in (("weekday", "month"), ()))
    assert with_it.covariates_.effect.share == 0
    assert np.array_equal(with_it.predict(level=80), without.predict(level=80))


def test_a_smooth_day_of_the_year_helps_weeks():
    weeks = pd.date_range("2014-01-05", periods=420, freq="W-SUN")
    noise = np.random.default_rng(0).normal(size=420)
    year = 6 * np.sin(2 * np.pi * weeks.day_of_year / 365) + 3 * np.cos(4 * np.pi * weeks.day_of_year / 365)
    y = pd.Series(year + noise, weeks)
    errors = []
    for names in (("dayofyear",), ()):
        said = make(calendar=names, season_length=1).backtest(y, n_windows=6)
        errors.append((said["y"] - said["TitansForecaster"]).abs().mean())
    assert errors[0] < 0.8 * errors[1]


# Nothing is asked of the user


def test_predict_needs_no_future_and_any_kind_of_input_will_do(fitted):
    long = fitted.predict()
    series = make().fit(ONE[: -2 * HORIZON]).predict()
    wide = make().fit(ONE[: -2 * HORIZON].rename("a").to_frame()).predict()
    alone = make().fit(PAST[PAST["unique_id"] == "a"]).predict()
    assert len(long) == 3 * HORIZON
    for said in (wide["a"], series):
        np.testing.assert_array_equal(said, alone["TitansForecaster"])


def test_a_panel_will_do_too(fitted):
    panel = read(PAST)[0]
    pd.testing.assert_frame_equal(make().fit(panel).predict(), fitted.predict())


def test_the_user_s_own_covariates_stand_beside_it():
    both, own = (make(known_covariates=("price",), calendar=names).fit(PAST) for names in (("weekday",), ()))
    future = both.make_future_frame()
    assert list(future) == ["unique_id", "ds"]
    future = future.merge(WHOLE, on=["unique_id", "ds"]).drop(columns="y")
    errors = [error(each.predict(future=future).merge(NEXT, on=["unique_id", "ds"])) for each in (both, own)]
    assert errors[0] < 0.8 * errors[1]
    assert errors[0] < 0.8 * error(make().fit(PAST).predict().merge(NEXT, on=["unique_id", "ds"]))
    with pytest.raises(ValueError, match=r"needs future=.*'price'"):
        both.predict()


def test_past_and_static_covariates_stand_beside_it():
    data = WHOLE.assign(wind=WHOLE["price"], size=WHOLE["unique_id"].map({"a": 1.0, "b": 2.0, "c": 3.0}))
    forecaster = make(past_covariates=("wind",), static_covariates=("size",)).fit(data[AHEAD >= 2 * HORIZON])
    plain = make().fit(PAST)
    np.testing.assert_allclose(forecaster.covariates_.weights, plain.covariates_.weights)
    assert forecaster.update(data[AHEAD < 2 * HORIZON]).predict().notna().all(axis=None)


def test_future_is_refused_where_the_calendar_is_all(fitted):
    with pytest.raises(ValueError, match=r"future= came, but no covariates are configured to come with it"):
        fitted.predict(future=NEXT)


# The laws hold


def test_an_update_equals_the_past_with_the_new_rows(fitted):
    moved = copy_of(fitted).update(NEXT)
    at_once = fitted.predict(y=pd.concat([PAST, NEXT]), level=80)
    pd.testing.assert_frame_equal(moved.predict(level=80), at_once, rtol=1e-6)
    again = make(train=TrainConfig(steps=0, refit=False)).fit(PAST)
    step_by_step = copy_of(again)
    for step in range(HORIZON):
        step_by_step.update(NEXT.groupby("unique_id").nth(step))
    pd.testing.assert_frame_equal(step_by_step.predict(), again.update(NEXT).predict(), rtol=1e-6)


def test_save_and_load_give_the_same_numbers(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    loaded = TitansForecaster.load(tmp_path / "model")
    assert loaded.calendar == ("weekday",)
    pd.testing.assert_frame_equal(loaded.predict(level=80), fitted.predict(level=80))
    moved, other = (copy_of(each).update(NEXT) for each in (loaded, fitted))
    pd.testing.assert_frame_equal(moved.predict(), other.predict())


def test_paths_and_scores_know_the_calendar(fitted):
    paths = fitted.simulate(400, seed=0).groupby(["unique_id", "ds"], sort=False)["TitansForecaster"].median()
    said = fitted.predict(quantiles=[0.5])["TitansForecaster-ql0.5"]
    moves = said.groupby(np.repeat(np.arange(3), HORIZON)).std().to_numpy().repeat(HORIZON)
    np.testing.assert_allclose((paths.to_numpy() - said) / moves, 0.0, atol=0.3)
    assert fitted.score(NEXT) > make(calendar=()).fit(PAST).score(NEXT)


def test_masked_rows_have_their_calendar():
    gone = (PAST.index % 11 == 5) & PAST["unique_id"].duplicated() & PAST["unique_id"].duplicated(keep="last")
    masked = make(on_gap="mask").fit(PAST[~gone])
    filled = make().fit(PAST.assign(y=PAST["y"].where(~gone)))
    np.testing.assert_allclose(masked.covariates_.weights, filled.covariates_.weights)
    later = NEXT.groupby("unique_id").tail(HORIZON - 2)  # two rows are missing before the first
    masked.update(later)
    filled.update(NEXT.assign(y=NEXT["y"].where(NEXT.index.isin(later.index))))
    pd.testing.assert_frame_equal(masked.predict(), filled.predict())
    stranger = WHOLE[WHOLE["unique_id"] == "a"].assign(unique_id="new").iloc[:60]
    begun, missing, went_on = stranger[:20], stranger[20:24].assign(y=np.nan), stranger[24:]
    masked.update(begun).update(went_on)
    filled.update(begun).update(pd.concat([missing, went_on]))
    pd.testing.assert_frame_equal(masked.predict(ids="new"), filled.predict(ids="new"), rtol=1e-9)


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_the_columns_are_those_of_the_user_s_own_clock(zone):
    hours = pd.date_range("2024-03-29 22:00", periods=96, freq="h", tz=zone)
    panel = read(pd.Series(np.arange(96.0), hours))[0].with_calendar(("hour", "weekday", "month"))
    places = np.split(panel.covariates.known, [24, 31], axis=1)
    for found, wanted in zip(places, (hours.hour, hours.day_of_week, hours.month - 1), strict=True):
        assert (found.sum(axis=1) == 1).all()
        assert found.argmax(axis=1).tolist() == list(wanted)


def test_waves_close_at_midnight_and_at_the_turn_of_the_year():
    steps = pd.date_range("2023-12-31 23:45", periods=3, freq="15min")
    for name, close in (("minute_of_day", 0.3), ("dayofyear", 0.06)):
        found = calendar.columns(steps, (name,))
        assert found.shape == (3, calendar.width((name,)))
        assert 0 < np.abs(np.diff(found, axis=0)).max() < close
    assert calendar.columns(pd.DatetimeIndex(["2024-12-31"]), ("dayofyear",))[0, 0] < 0  # the 366th day


def test_periods_begin_where_they_begin():
    months = pd.period_range("2020-01", periods=72, freq="M")
    y = pd.Series(np.tile(np.arange(12.0) ** 2, 6) + np.random.default_rng(0).normal(size=72), months)
    forecaster = make(calendar=("month",), season_length=1, context_length=5).fit(y)
    assert forecaster.covariates_.effect.share > 0
    np.testing.assert_allclose(forecaster.predict(), np.arange(9.0) ** 2, atol=9)


# What is refused


@pytest.mark.parametrize("y", [np.arange(99.0), pd.Series(np.arange(99.0)), WHOLE.assign(ds=WHOLE.index % 250)])
def test_numbered_rows_have_no_calendar(y):
    with pytest.raises(DataError, match=r"calendar=\('weekday',\) needs a time axis of dates.*Fix: pass timestamps"):
        make().fit(y)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("weekday", r"calendar='weekday' is one string"),
        (("weekday", "moon"), r"'moon' is not among 'hour', 'weekday', 'month', 'minute_of_day', 'dayofyear'"),
        (("hour", "hour"), "names something twice"),
    ],
)
def test_a_wrong_calendar_says_what_is_wanted(names, words):
    with pytest.raises(ValueError, match=words):
        make(calendar=names).fit(PAST)


def test_what_the_calendar_cannot_do_is_said(fitted):
    with pytest.raises(ValueError, match="no compiled form"):
        StreamingForecaster.from_forecaster(fitted)
    with pytest.raises(ValueError, match="series without their effect"):
        fitted.plot()
