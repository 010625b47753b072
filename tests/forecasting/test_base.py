"""What every forecaster owes its user, whatever its numbers are."""

import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV

from titans_ts.forecasting.base import PanelForecaster
from titans_ts.forecasting.baselines import Ridge, SeasonalNaive
from titans_ts.forecasting.door import read
from titans_ts.forecasting.metrics import weighted_quantile_loss
from titans_ts.forecasting.panel import DataError

HOURS = pd.date_range("2024-03-29", periods=72, freq="h", tz="Europe/Berlin")


def wide_frame():
    steps = np.arange(72)
    noise = np.random.default_rng(0).normal(size=(72, 2))
    return pd.DataFrame(np.sin(steps / 4)[:, None] * [1, 50] + noise, index=HOURS, columns=["a", "b"])


def long_frame():
    frame = wide_frame().melt(ignore_index=False, var_name="unique_id", value_name="y")
    return frame.rename_axis("ds").reset_index()[["unique_id", "ds", "y"]]


PAST, LATER = long_frame()[lambda f: f["ds"] < HOURS[60]], long_frame()[lambda f: f["ds"] >= HOURS[60]]


@pytest.fixture(params=[SeasonalNaive, Ridge], ids=lambda kind: kind.__name__)
def forecaster(request):
    return request.param(horizon=4)


class PanelSplit:
    """Rolling origins inside every series."""

    def split(self, X, y=None, groups=None):
        ahead = X.groupby("unique_id").cumcount(ascending=False).to_numpy()
        for origin in (8, 4):
            yield np.flatnonzero(ahead >= origin), np.flatnonzero((ahead >= origin - 4) & (ahead < origin))

    def get_n_splits(self, X=None, y=None, groups=None):
        return 2


# The frame in, the frame out


def test_the_output_has_the_columns_of_nixtla(forecaster):
    name = type(forecaster).__name__
    out = forecaster.fit(PAST).predict(level=[80, 95], quantiles=[0.1])
    assert list(out) == [
        "unique_id",
        "ds",
        name,
        *(f"{name}-{part}" for part in ("lo-95", "lo-80", "hi-80", "hi-95", "ql0.1")),
    ]
    assert out["unique_id"].tolist() == ["a"] * 4 + ["b"] * 4
    assert out["ds"].tolist() == list(HOURS[60:64]) * 2
    assert out["ds"].dtype == PAST["ds"].dtype
    assert (out[f"{name}-lo-80"] == out[f"{name}-ql0.1"]).all()


def test_every_kind_of_input_gives_the_same_numbers_in_its_own_kind(forecaster):
    name = type(forecaster).__name__
    forecaster.set_params(season_length=24)
    past = wide_frame().iloc[:60]
    expected = forecaster.fit(PAST).predict(level=80)
    columns = expected.columns[2:]
    cube = np.stack([expected[column].to_numpy().reshape(2, 4).T for column in columns], axis=-1)  # [H, N, columns]

    wide = forecaster.fit(past).predict()
    assert list(wide) == ["a", "b"]
    np.testing.assert_array_equal(wide, cube[..., 0])
    assert wide.index.equals(HOURS[60:64])
    both = forecaster.predict(level=80)
    assert list(both) == [(series, column) for series in "ab" for column in columns]
    np.testing.assert_array_equal(both.to_numpy().reshape(4, 2, 3), cube)

    np.testing.assert_array_equal(forecaster.fit(past.to_numpy()).predict(), cube[..., 0])
    np.testing.assert_array_equal(forecaster.predict(level=80), cube)

    entries = [{"target": past[c].to_numpy(), "start": HOURS[0], "item_id": c} for c in past]
    pd.testing.assert_frame_equal(forecaster.set_params(freq="h").fit(entries).predict(level=80), expected)
    pd.testing.assert_frame_equal(forecaster.set_params(freq=None).fit(read(PAST)[0]).predict(level=80), expected)

    alone = forecaster.fit(past["b"]).predict()
    assert isinstance(alone, pd.Series)
    assert alone.name == "b"
    assert list(forecaster.predict(level=80)) == list(columns)
    vector = forecaster.fit(past["b"].to_numpy()).predict()
    np.testing.assert_array_equal(vector, alone)
    assert forecaster.predict(level=80).shape == (4, 3)
    assert name == columns[0]


def test_a_wide_panel_whose_series_end_apart_is_filled_with_missing_values(forecaster):
    forecaster.fit(wide_frame().iloc[:60]).update(LATER[LATER["unique_id"] == "a"].iloc[:2])
    wide = forecaster.predict()
    assert wide.index.equals(HOURS[60:66])
    assert wide["a"].isna().tolist() == [True, True, False, False, False, False]
    assert wide["b"].isna().tolist() == [False] * 4 + [True] * 2


def test_predict_picks_series_and_steps(forecaster):
    forecaster.fit(PAST)
    full, part = forecaster.predict(), forecaster.predict(2, ids=["b"])
    assert part["ds"].tolist() == list(HOURS[60:62])
    np.testing.assert_allclose(part.iloc[:, 2], full[full["unique_id"] == "b"].iloc[:2, 2])
    assert forecaster.predict(ids="b").equals(forecaster.predict(ids=["b"]))


def test_other_histories_are_forecast_and_forgotten(forecaster):
    forecaster.fit(PAST)
    before = forecaster.predict()
    other = PAST.assign(unique_id="new " + PAST["unique_id"])
    out = forecaster.predict(y=other)
    assert out["unique_id"].unique().tolist() == ["new a", "new b"]
    np.testing.assert_array_equal(out.iloc[:, 2], before.iloc[:, 2])
    pd.testing.assert_frame_equal(forecaster.predict(), before)
    assert forecaster.fitted_ids_ == ("a", "b")
    assert isinstance(forecaster.predict(y=np.arange(30.0)), np.ndarray)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"horizon": 5}, "longer than the fitted horizon of 4"),
        ({"horizon": 0}, "1 or more"),
        ({"horizon": -1}, "1 or more"),
        ({"horizon": 2.0}, "whole number"),
        ({"horizon": True}, "whole number"),
        ({"ids": ["a", "z"]}, r"'z'.*'a', 'b'"),
        ({"ids": []}, r"'a', 'b'"),
        ({"future": PAST}, "no covariates are configured"),
        ({"level": 120}, "between 0 and 100"),
        ({"quantiles": [2]}, "between 0 and 1"),
        ({"level": "80"}, r"level='80' must be a number or several of them, such as 80 or \(80, 95\)"),
        ({"level": [80, "95"]}, r"level=\[80, '95'\] must be a number"),
        ({"quantiles": "0.1"}, r"quantiles='0.1' must be a number or several of them, such as 0.9 or \(0.1, 0.9\)"),
        ({"quantiles": print}, "quantiles=<built-in function print> must be a number"),
    ],
)
def test_a_wrong_argument_says_what_to_do(forecaster, arguments, words):
    with pytest.raises(ValueError, match=words):
        forecaster.fit(PAST).predict(**arguments)


@pytest.mark.parametrize("horizon", [0, -3, 2.5, "4", None])
def test_fit_refuses_a_horizon_that_is_none(horizon):
    with pytest.raises(ValueError, match="horizon"):
        SeasonalNaive(horizon=horizon).fit(PAST)


def test_what_fit_found_is_told(forecaster):
    forecaster.fit(PAST)
    assert (forecaster.fitted_ids_, forecaster.skipped_, forecaster.season_length_) == (("a", "b"), {}, 24)
    assert forecaster.freq_ == "h"
    assert SeasonalNaive(freq="D").fit(np.arange(9.0)).season_length_ == 7
    assert SeasonalNaive().fit(np.arange(9.0)).season_length_ == 1


# Update


def test_update_moves_on_and_returns_self(forecaster):
    assert forecaster.fit(PAST).update(LATER) is forecaster
    out = forecaster.predict()
    assert out["ds"].iloc[0] == HOURS[-1] + pd.Timedelta("1h")


def test_arrays_and_single_rows_are_updates_too(forecaster):
    values = wide_frame().to_numpy()
    forecaster.set_params(season_length=24)
    expected = forecaster.fit(wide_frame().iloc[:60]).update(wide_frame().iloc[60:]).predict()
    forecaster.fit(values[:60])
    for row in values[60:]:
        forecaster.update(row[None])
    np.testing.assert_allclose(forecaster.predict(), expected)


def test_one_row_of_all_series_is_not_one_series(forecaster):
    values = np.random.default_rng(0).normal(size=(60, 2))
    forecaster.fit(values)
    for call in (forecaster.update, forecaster.score):
        with pytest.raises(DataError, match=r"y\[None\]"):
            call(values[0])
    forecaster.update(values[0][None])
    assert forecaster._known.ends.tolist() == [60, 60]


def test_a_series_without_a_name_goes_on_and_one_with_another_name_is_refused(forecaster):
    whole = pd.Series(np.sin(np.arange(60.0)), pd.date_range("2024-01-01", periods=60), name="co2")
    twin = clone(forecaster).fit(whole[:50]).update(whole[50:])
    forecaster.fit(whole[:50])
    with pytest.raises(DataError, match="rename"):
        forecaster.update(whole[50:].rename("level"))
    forecaster.update(whole[50:].rename(None))
    assert forecaster._known.ids == ("co2",)
    pd.testing.assert_series_equal(forecaster.predict(), twin.predict())


def test_a_wrong_year_is_no_gap_to_mask(forecaster):
    seconds = pd.Series(np.arange(100.0), pd.date_range("2024-01-01", periods=100, freq="s"))
    forecaster.set_params(on_gap="mask").fit(seconds)
    with pytest.raises(DataError, match="correct the timestamps"):
        forecaster.update(pd.Series([1.0], pd.DatetimeIndex(["2025-01-01"])))


def test_levels_quantiles_and_ids_come_as_numpy_has_them_and_alone(forecaster):
    out = forecaster.fit(PAST).predict(level=np.int64(80), quantiles=np.array([0.1, 0.9]), ids="a")
    name = type(forecaster).__name__
    assert (out[f"{name}-lo-80"] == out[f"{name}-ql0.1"]).all()
    assert f"{name}-ql0.5" in forecaster.predict(quantiles=0.5)
    forecaster.fit(np.random.default_rng(0).normal(size=(60, 3)))
    np.testing.assert_array_equal(forecaster.predict(ids=2), forecaster.predict(ids=[2]))


@pytest.mark.parametrize("scale", [1e160, 1e-160])
def test_numbers_without_squares_are_refused(forecaster, scale):
    with pytest.raises(DataError, match="other units"):
        forecaster.fit(scale * np.random.default_rng(0).normal(size=60))


def test_a_tiny_value_among_others_is_a_value(forecaster):
    values = np.random.default_rng(0).normal(size=60)
    values[7] = 1e-200
    assert np.isfinite(forecaster.fit(values).update([1e-200]).predict()).all()


def test_a_new_series_begins(forecaster):
    born = LATER.assign(unique_id="c")[:12]
    forecaster.fit(PAST).update(pd.concat([LATER, born]))
    assert forecaster.fitted_ids_ == ("a", "b", "c")
    np.testing.assert_allclose(
        forecaster.predict(ids=["c"]).iloc[:, 2], forecaster.predict(y=born).iloc[:, 2], rtol=1e-12
    )


LATE = LATER[LATER["ds"] >= HOURS[63]]
BAD_UPDATES = {
    "gap": (LATE, ["'a'", "03", "3 steps are missing", "1 more series", "on_gap='mask'"]),
    "overlap": (
        long_frame()[lambda f: f["ds"] >= HOURS[57]],
        ["'a'", "3 steps are known already", "pass only rows from"],
    ),
    "one gap": (pd.concat([LATER[:12], LATE[9:]]), ["'b'", "3 steps are missing"]),
    "inner gap": (LATER.drop(index=LATER.index[15]), ["'b'", "1 steps of freq='h'"]),
    "infinite": (LATER.assign(y=np.inf), ["'a'", "infinite"]),
    "wrong zone": (LATER.assign(ds=LATER["ds"].dt.tz_localize(None)), ["no time zone", "Europe/Berlin"]),
    "half past": (LATER.assign(ds=LATER["ds"] + pd.Timedelta("30min")), ["not on the steps"]),
    "array": (np.zeros((3, 2)), ["no timestamps"]),
    "silent newcomer": (LATER[:12].assign(unique_id="c", y=np.nan), ["'c'", "no value was ever observed"]),
}


@pytest.mark.parametrize("case", BAD_UPDATES)
def test_a_bad_update_says_why_and_leaves_the_forecaster_as_it_was(forecaster, case):
    rows, words = BAD_UPDATES[case]
    before = forecaster.fit(PAST).predict(level=80)
    with pytest.raises(DataError) as caught:
        forecaster.update(rows)
    for word in words:
        assert word in str(caught.value)
    pd.testing.assert_frame_equal(forecaster.predict(level=80), before)
    forecaster.update(LATER)


def test_an_update_that_fails_inside_leaves_the_forecaster_as_it_was(forecaster, monkeypatch):
    before = forecaster.fit(PAST).predict()
    monkeypatch.setattr(type(forecaster), "_append", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        forecaster.update(pd.concat([LATER, LATER[:12].assign(unique_id="c")]))
    pd.testing.assert_frame_equal(forecaster.predict(), before)


def test_a_masked_gap_is_the_rows_with_missing_values(forecaster):
    holed = LATER.assign(y=LATER["y"].where(LATER["ds"] >= HOURS[63]))
    expected = forecaster.fit(PAST).update(holed).predict(level=80)
    got = forecaster.set_params(on_gap="mask").fit(PAST).update(LATE).predict(level=80)
    pd.testing.assert_frame_equal(got, expected)


def test_a_bad_series_of_an_update_is_skipped_when_asked(forecaster):
    rows = BAD_UPDATES["one gap"][0]
    forecaster.set_params(on_bad="skip").fit(PAST).update(rows)
    assert "3 steps are missing" in forecaster.skipped_["b"]
    ends = forecaster.predict(1).set_index("unique_id")["ds"]
    assert ends["a"] > ends["b"] == HOURS[60]


def test_a_day_whose_midnight_is_missing_goes_on():
    days = pd.date_range("2024-04-15", periods=14, freq="D").tz_localize("Africa/Cairo", nonexistent="shift_forward")
    y = pd.Series(np.arange(14.0), index=days)
    forecaster = SeasonalNaive(horizon=1).fit(y[:11])
    for row in range(11, 14):
        assert forecaster.predict().index[0] == days[row]
        forecaster.update(y[row : row + 1])


# Score


def test_score_is_minus_the_loss_of_the_forecast(forecaster):
    forecaster.fit(PAST)
    first = LATER[LATER["ds"] < HOURS[64]]
    levels = [k / 10 for k in range(1, 10)]
    forecast = forecaster.predict(quantiles=levels)
    expected = -weighted_quantile_loss(first["y"].to_numpy(), forecast.iloc[:, 3:].to_numpy(), levels)
    assert forecaster.score(first) == pytest.approx(expected)


def test_a_longer_score_rolls_and_changes_nothing(forecaster):
    before = forecaster.fit(PAST).predict()
    got = forecaster.score(LATER)
    pd.testing.assert_frame_equal(forecaster.predict(), before)
    levels, quantiles, truths = [k / 10 for k in range(1, 10)], [], []
    for step in range(60, 72, 4):
        rows = LATER[(LATER["ds"] >= HOURS[step]) & (LATER["ds"] < HOURS[step] + pd.Timedelta("4h"))]
        quantiles.append(forecaster.predict(quantiles=levels).iloc[:, 3:].to_numpy())
        truths.append(rows["y"].to_numpy())
        forecaster.update(rows)
    assert got == pytest.approx(-weighted_quantile_loss(np.concatenate(truths), np.concatenate(quantiles), levels))


def test_score_takes_ragged_rows_and_refuses_strangers(forecaster):
    forecaster.fit(PAST)
    ragged = LATER.drop(index=LATER.index[-7:])
    assert np.isfinite(forecaster.score(ragged))
    with pytest.raises(DataError, match="'c'"):
        forecaster.score(LATER[:12].assign(unique_id="c"))
    with pytest.raises(DataError, match="steps are missing"):
        forecaster.score(LATE)


# scikit-learn's rules


def test_not_fitted_is_said_the_way_sklearn_does(forecaster):
    for call in (forecaster.predict, lambda: forecaster.update(LATER), lambda: forecaster.score(LATER)):
        with pytest.raises(NotFittedError):
            call()
    with pytest.raises(NotFittedError):
        _ = forecaster.fitted_ids_


def test_the_constructor_only_stores(forecaster):
    assert set(vars(forecaster)) == set(forecaster.get_params())
    strange = type(forecaster)(horizon="never", quantiles=None, on_gap=3)
    assert strange.get_params()["horizon"] == "never"


def test_clone_and_parameters(forecaster):
    forecaster.fit(PAST)
    copy = clone(forecaster)
    assert copy.get_params() == forecaster.get_params()
    assert not hasattr(copy, "freq_")
    pd.testing.assert_frame_equal(copy.fit(PAST).predict(), forecaster.predict())


def test_fitting_again_forgets_the_first(forecaster):
    expected = clone(forecaster).fit(LATER).predict()
    pd.testing.assert_frame_equal(forecaster.fit(PAST).fit(LATER).predict(), expected)


def test_a_pickle_goes_on_as_the_original(forecaster):
    copy = pickle.loads(pickle.dumps(forecaster.fit(PAST)))
    pd.testing.assert_frame_equal(copy.update(LATER).predict(level=80), forecaster.update(LATER).predict(level=80))


def test_tags_and_display(forecaster):
    tags = forecaster.__sklearn_tags__()
    assert tags.no_validation
    assert tags.input_tags.allow_nan
    assert not tags.target_tags.required
    assert type(forecaster).__name__ in forecaster._repr_html_()
    assert type(forecaster).__name__ in repr(forecaster.fit(PAST))


def test_grid_search_runs_on_a_long_frame():
    search = GridSearchCV(
        Ridge(horizon=4), {"penalty": [1e-3, 1e3], "context_length": [24]}, cv=PanelSplit(), refit=True
    )
    search.fit(long_frame())
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.penalty_ == search.best_params_["penalty"]
    first, last = next(iter(PanelSplit().split(long_frame())))
    forecaster = Ridge(horizon=4, penalty=1e-3, context_length=24).fit(long_frame().iloc[first])
    assert search.cv_results_["split0_test_score"][0] == pytest.approx(forecaster.score(long_frame().iloc[last]))


def test_six_hooks_and_a_constructor_are_all_a_subclass_owes():
    hooks = {"_learn", "_start", "_advance", "_append", "_forecast", "_recent"}
    for kind in (SeasonalNaive, Ridge):
        overridden = {name for name in vars(kind) if name in vars(PanelForecaster) and name[0] == "_" != name[1]}
        assert overridden == hooks
