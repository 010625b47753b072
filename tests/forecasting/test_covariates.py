"""Covariates: the laws of forecasting hold with them, they help where they matter, and errors say what is missing."""

import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from titans_ts import DataError, MemoryConfig, Ridge, SeasonalNaive, TitansForecaster, TrainConfig
from titans_ts.core.state import leaves
from titans_ts.forecasting.clock import CountClock
from titans_ts.forecasting.covariates import Effect, fit_covariates, running
from titans_ts.forecasting.door import read
from titans_ts.forecasting.panel import Covariates, Panel, Schema
from titans_ts.forecasting.streaming import StreamingForecaster
from titans_ts.models.config import BackboneConfig

HORIZON = 5
MEMORY = MemoryConfig(dim=8, heads=2, depth=1, expansion=2, chunk=16, conv=2, persistent=2)
SMALL = BackboneConfig(
    dim=8, depth=1, heads=2, window=3, segment=3, dropout=0.0, residual_init=1.0, memory=MEMORY
)  # blocks that speak from the start
QUICK = TrainConfig(steps=3, batch=4, checks=1)
LINEAR = TrainConfig(steps=0)
KINDS = {
    "known_covariates": ("price", "day"),
    "past_covariates": ("wind",),
    "static_covariates": ("region", "size"),
}
NONE = dict.fromkeys(KINDS, ())


def make(**params):
    defaults = {"horizon": HORIZON, "patch_length": 4, "context_length": 14, "model": SMALL, "train": QUICK}
    return TitansForecaster(**{**defaults, "random_state": 0, **KINDS, **params})


def frame_of(length=140, series=4, seed=0, price=2.0, wind=1.0):
    """Daily series that a price moves at once and a weekday lifts, and that a wind moves three days later."""
    random = np.random.default_rng(seed)
    parts = []
    for place in range(series):
        rows = length - 3 * place
        steps = np.arange(rows)
        paid, blown = random.normal(size=rows), random.normal(size=rows)
        ds = pd.date_range(pd.Timestamp("2024-01-01") + pd.Timedelta(days=3 * place), periods=rows, freq="D")
        day = np.where(ds.day_of_week >= 5, "weekend", "workday")
        later = np.concatenate([np.zeros(3), blown[:-3]])
        y = np.sin(2 * np.pi * steps / 7) + 0.2 * random.normal(size=rows)
        y = 10.0**place * (y + price * paid + wind * later + 0.5 * (day == "weekend")) + 5 * place
        static = {"region": "north" if place % 2 else "south", "size": float(place)}
        parts.append(
            pd.DataFrame(
                {"unique_id": "abcdef"[place], "ds": ds, "y": y, "price": paid, "day": day, "wind": blown, **static}
            )
        )
    return pd.concat(parts, ignore_index=True)


def split(frame, cut):
    ahead = frame.groupby("unique_id").cumcount(ascending=False)
    return frame[ahead >= cut].reset_index(drop=True), frame[ahead < cut].reset_index(drop=True)


WHOLE = frame_of()
PAST, LATER = split(WHOLE, 2 * HORIZON)
NEXT = LATER.groupby("unique_id").head(HORIZON).reset_index(drop=True)
FUTURE = NEXT[["unique_id", "ds", "price", "day"]]


@pytest.fixture(scope="module")
def fitted():
    forecaster = make(train=LINEAR).fit(PAST)
    assert forecaster.covariates_.effect.share > 0
    assert forecaster.covariates_.share > 0
    return forecaster


@pytest.fixture(scope="module")
def trained():
    forecaster = make().fit(PAST)
    forecaster.correction_ = 0.5  # so that the backbone is heard
    return forecaster


def values(said):
    return said.drop(columns=["unique_id", "ds"]).to_numpy()


def error(said, truth):
    both = truth.merge(said, on=["unique_id", "ds"], validate="one_to_one")
    scale = both.groupby("unique_id")["y"].transform(lambda y: 10.0 ** ("abcdef".index(y.name)))
    return float(((both["y"] - both["TitansForecaster"]).abs() / scale).mean())


# ---- laws


def test_an_update_equals_the_past_with_the_new_rows(trained):
    moved = pickle.loads(pickle.dumps(trained)).update(NEXT)
    behind = WHOLE.merge(moved.make_future_frame(), on=["unique_id", "ds"])
    once = trained.predict(y=pd.concat([PAST, NEXT]), future=behind, level=80)
    pd.testing.assert_frame_equal(moved.predict(future=behind, level=80), once, rtol=1e-6)


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_stranger_is_the_same_row_by_row_and_at_once(fitted, pieces):
    other = WHOLE[WHOLE["unique_id"] == "a"].assign(unique_id="new")
    first, rest = other[:60], other[60:100]
    moved = pickle.loads(pickle.dumps(fitted)).update(first)
    for begin in range(0, len(rest), -(-len(rest) // pieces)):
        moved.update(rest[begin : begin - (-len(rest) // pieces)])
    at_once = fitted.predict(y=other[:100], future=other)
    pd.testing.assert_frame_equal(moved.predict(ids="new", future=other), at_once, rtol=1e-9)
    share = moved.covariates_.ahead(moved._known.state.covariates, np.zeros((5, 1, 3)))
    assert abs(share[-1]) > 0  # the shared effect speaks


def test_a_series_alone_is_the_series_in_the_batch(trained):
    together = trained.predict(future=FUTURE, level=80)
    for name in trained.fitted_ids_:
        alone = trained.predict(y=PAST[PAST["unique_id"] == name], future=FUTURE, level=80)
        part = together[together["unique_id"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(alone, part, rtol=1e-5, atol=1e-4, check_dtype=False)


def test_the_order_of_the_rows_and_series_does_not_show():
    shuffled = PAST.sample(frac=1.0, random_state=0)
    one, other = (make(train=LINEAR).fit(frame) for frame in (PAST, shuffled))
    said, again = one.predict(future=FUTURE), other.predict(future=FUTURE.sample(frac=1.0, random_state=1))
    again = again.sort_values(["unique_id", "ds"], ignore_index=True)
    pd.testing.assert_frame_equal(said, again, rtol=1e-7)


@pytest.mark.parametrize(("factor", "shift"), [(3.0, 100.0), (1e-3, -5.0)])
def test_forecasts_follow_the_units_of_the_values(factor, shift):
    moved = PAST.assign(y=factor * PAST["y"] + shift)
    said = make(train=LINEAR).fit(PAST).predict(future=FUTURE, level=80)
    again = make(train=LINEAR).fit(moved).predict(future=FUTURE, level=80)
    np.testing.assert_allclose(values(again), factor * values(said) + shift, rtol=1e-6, atol=1e-6 * abs(shift))


def test_forecasts_do_not_depend_on_the_units_of_the_covariates():
    def changed(frame):
        return frame.assign(price=1000 * frame["price"] + 7, wind=0.01 * frame["wind"] - 3)

    said = make(train=LINEAR).fit(PAST).predict(future=FUTURE)
    wind_free = FUTURE.assign(price=1000 * FUTURE["price"] + 7)
    again = make(train=LINEAR).fit(changed(PAST)).predict(future=wind_free)
    np.testing.assert_allclose(values(again), values(said), rtol=1e-6)


def test_what_lies_behind_the_horizon_and_in_other_series_does_not_matter(fitted):
    wild = WHOLE.assign(price=WHOLE["price"].where(WHOLE["ds"] <= NEXT["ds"].max(), 1e6))
    stranger = NEXT.assign(unique_id="nobody", price=np.nan)
    said = fitted.predict(future=FUTURE)
    assert fitted.predict(future=pd.concat([wild, stranger])[["unique_id", "ds", "price", "day"]]).equals(said)


def test_a_covariate_moves_the_forecast_of_its_own_step_only(fitted):
    moved = FUTURE.copy()
    place = moved.index[moved["unique_id"] == "b"][2]
    moved.loc[place, "price"] += 1.0
    change = fitted.predict(future=moved)["TitansForecaster"] - fitted.predict(future=FUTURE)["TitansForecaster"]
    assert change[place] == pytest.approx(20.0, rel=0.1)  # the price counts twice, in units of 10
    assert (change.drop(place) == 0).all()


def test_shorter_horizons_are_the_first_steps(fitted):
    short = fitted.predict(2, future=FUTURE.groupby("unique_id").head(2))
    long = fitted.predict(future=FUTURE).groupby("unique_id").head(2).reset_index(drop=True)
    pd.testing.assert_frame_equal(short, long)


def test_predict_changes_nothing(trained):
    before = [leaf.clone() for leaf in leaves(trained._known.state)]
    said = trained.predict(future=FUTURE)
    trained.predict(y=PAST, future=FUTURE)
    assert trained.predict(future=FUTURE).equals(said)
    for old, new in zip(before, leaves(trained._known.state), strict=True):
        assert torch.equal(old.nan_to_num(), new.nan_to_num())


def test_saved_pickled_and_loaded_forecasters_say_the_same(trained, tmp_path):
    trained.save(tmp_path / "saved")
    copies = [TitansForecaster.load(tmp_path / "saved"), pickle.loads(pickle.dumps(trained))]
    said = trained.predict(future=FUTURE, level=80)
    behind = WHOLE.drop(columns="y")
    later = pickle.loads(pickle.dumps(trained)).update(NEXT).predict(future=behind)
    for copy in copies:
        assert copy.predict(future=FUTURE, level=80).equals(said)
        assert copy.get_params()["known_covariates"] == ("price", "day")
        assert copy.covariates_.effect == trained.covariates_.effect
        assert copy.covariates_.schema == trained.covariates_.schema
        assert copy.update(NEXT).predict(future=behind).equals(later)


def test_a_clone_keeps_the_columns_and_forgets_the_rest(fitted):
    other = clone(fitted)
    assert other.get_params()["past_covariates"] == ("wind",)
    with pytest.raises(NotFittedError):
        other.predict(future=FUTURE)
    assert other.fit(PAST).predict(future=FUTURE).equals(fitted.predict(future=FUTURE))


def test_the_score_is_that_of_the_forecasts_with_the_covariates_that_came(fitted):
    scored = fitted.score(NEXT)
    assert fitted.score(LATER) == pytest.approx(scored, rel=0.5)
    useless = NEXT.assign(price=NEXT["price"].to_numpy()[::-1])
    assert fitted.score(useless) < 1.5 * scored


def test_without_covariates_no_number_changes():
    plain = PAST[["unique_id", "ds", "y"]]
    one, other = make(**NONE).fit(plain), make(**NONE).fit(PAST)
    assert one.covariates_ is None
    assert one._known.state.covariates == ()
    assert one.predict(level=80).equals(other.predict(level=80))


# ---- use


def test_covariates_that_matter_lower_the_error_by_a_lot():
    plain = error(make(train=LINEAR, **NONE).fit(PAST).predict(), NEXT)
    known = error(make(train=LINEAR, **{**NONE, "known_covariates": ("price",)}).fit(PAST).predict(future=NEXT), NEXT)
    whole = error(make(train=LINEAR).fit(PAST).predict(future=FUTURE), NEXT)
    assert known < 0.7 * plain
    assert whole < 0.5 * plain


def test_a_past_covariate_that_leads_is_found_and_narrows_the_intervals():
    leads = frame_of(length=300, price=0.0, wind=3.0)
    past, later = split(leads, HORIZON)
    plain = make(train=LINEAR, **NONE).fit(past)
    wind = make(train=LINEAR, **{**NONE, "past_covariates": ("wind",)}).fit(past)
    assert wind.covariates_.share > 0
    widths = wind.calibration_.table[:, -1] - wind.calibration_.table[:, 0]
    assert widths[:3].max() < 0.6 * widths[3:].min()  # three days ahead the wind is known no more

    def first_three(forecaster):
        return forecaster.predict(level=80).groupby("unique_id").head(3)

    truth = later.groupby("unique_id").head(3)
    assert error(first_three(wind), truth) < 0.5 * error(first_three(plain), truth)
    widths = [
        said["TitansForecaster-hi-80"] - said["TitansForecaster-lo-80"] for said in map(first_three, (wind, plain))
    ]
    assert (widths[0] < 0.5 * widths[1]).all()


def test_static_covariates_tell_series_apart_that_look_alike(monkeypatch):
    random, parts = np.random.default_rng(0), []
    for place in range(40):
        kind, drift = ("rises", 0.5) if place % 2 else ("falls", -0.5)
        ds = pd.date_range("2024-01-01", periods=120, freq="D")
        y = np.cumsum(drift + random.normal(size=120))  # four rows do not tell which way it drifts
        parts.append(pd.DataFrame({"unique_id": f"s{place}", "ds": ds, "y": y, "kind": kind}))
    past, later = split(pd.concat(parts, ignore_index=True), 8)
    # the fading memories know the drift of each series already, and so does the mean of what came before
    monkeypatch.setattr("titans_ts.forecasting.forecaster.PULLS", (0.0,))
    monkeypatch.setattr("titans_ts.forecasting.forecaster.PARTS", ())
    params = {**NONE, "train": replace(LINEAR, fading=False), "horizon": 8, "context_length": 4}
    plain = make(**params).fit(past).predict()
    kind = make(**{**params, "static_covariates": ("kind",)}).fit(past)
    assert kind.covariates_.share > 0

    def missed(said):
        return (said["TitansForecaster"] - later["y"].to_numpy()).abs().mean()

    assert missed(kind.predict()) < 0.95 * missed(plain)


@pytest.mark.parametrize("seed", range(3))
def test_useless_covariates_change_little(seed):
    random = np.random.default_rng(seed)
    noise = WHOLE.assign(price=random.normal(size=len(WHOLE)), wind=random.normal(size=len(WHOLE)))
    past, later = split(noise, 2 * HORIZON)
    truth = later.groupby("unique_id").head(HORIZON)
    plain = error(make(train=LINEAR, **NONE).fit(past).predict(), truth)
    useless = {**NONE, "known_covariates": ("price",), "past_covariates": ("wind",)}
    assert error(make(train=LINEAR, **useless).fit(past).predict(future=later), truth) < 1.05 * plain


def test_a_spike_does_not_decide_the_effect():
    spiky = PAST.copy()
    spiky.loc[spiky.index[spiky["unique_id"] == "a"][50], "y"] += 500.0
    effects = [
        make(train=LINEAR, **{**NONE, "known_covariates": ("price",)}).fit(frame).covariates_ for frame in (PAST, spiky)
    ]
    calm, wild = (path.weights[1, 0] * path.deviations[1, 0] / path.deviations[1, 1] for path in effects)
    assert calm == pytest.approx(2.0, rel=0.1)
    assert wild == pytest.approx(calm, rel=0.15)


def test_levels_and_seasons_are_not_mistaken_for_effects():
    steps = np.arange(200)
    ds = pd.date_range("2024-01-01", periods=200, freq="D")
    y = 0.05 * steps + 3 * np.sin(2 * np.pi * steps / 7)
    trend = pd.DataFrame({"unique_id": "a", "ds": ds, "y": y + 0.1 * np.random.default_rng(0).normal(size=200)})
    trend["clock"] = np.random.default_rng(1).normal(size=200) + 0.05 * steps  # shares the trend only
    panel, _, _ = read(trend, schema=Schema(known=("clock",)))
    path = fit_covariates(panel, np.array([160]), 28, 7, 7)
    assert abs(path.weights).max() < 0.05


def test_categories_count_whatever_type_says_them():
    kinds = {
        "text": WHOLE["day"],
        "bool": WHOLE["day"] == "weekend",
        "object": (WHOLE["day"] == "weekend").astype(object),
        "category": WHOLE["day"].astype("category"),
    }
    said = []
    for column in kinds.values():
        frame = WHOLE.assign(day=column)
        past, later = split(frame, HORIZON)
        forecaster = make(train=LINEAR, **{**NONE, "known_covariates": ("day",)}).fit(past)
        assert forecaster.covariates_.width == 2
        said.append(forecaster.predict(future=later)["TitansForecaster"])
    for other in said[1:]:
        np.testing.assert_allclose(other, said[0], rtol=1e-9)


def test_a_category_that_fit_did_not_see_counts_as_the_average(fitted):
    path = fitted.covariates_
    holiday = fitted.predict(future=FUTURE.assign(day="holiday"))
    state = fitted._known.state.covariates
    centre = path.centres[state.rows.numpy()][:, 1:4]  # of price and the two days
    average = np.stack([centre] * HORIZON, axis=1)
    average[..., 0] = FUTURE["price"].to_numpy().reshape(-1, HORIZON)
    base = fitted.predict(future=FUTURE)["TitansForecaster"].to_numpy().reshape(-1, HORIZON)
    known = fitted._read_ahead(FUTURE, fitted._known, np.arange(4), HORIZON)
    expected = base - path.ahead(state, known) + path.ahead(state, average)
    np.testing.assert_allclose(holiday["TitansForecaster"], expected.ravel(), rtol=1e-9)


def test_integer_time_and_gaps_work_too():
    counted = WHOLE.assign(ds=2 * WHOLE.groupby("unique_id").cumcount())
    past, later = split(counted, HORIZON)
    holes = past.drop(index=past.index[[20, 21, 170]])
    forecaster = make(train=LINEAR, on_gap="mask", freq=2, season_length=7).fit(holes)
    frame = forecaster.make_future_frame()
    assert frame["ds"].tolist() == later["ds"].tolist()
    whole = make(train=LINEAR, freq=2, season_length=7).fit(past)
    assert error(forecaster.predict(future=later), later) < 1.1 * error(whole.predict(future=later), later)
    forecaster.update(later.groupby("unique_id").tail(HORIZON - 2))  # two steps are masked
    assert forecaster.make_future_frame(1)["ds"].tolist() == (later.groupby("unique_id")["ds"].max() + 2).tolist()


def test_a_past_covariate_may_be_missing(fitted):
    holes = PAST.assign(wind=PAST["wind"].where(PAST.index % 3 > 0))
    said = make(train=LINEAR).fit(holes).predict(future=FUTURE)
    assert np.isfinite(values(said)).all()
    assert np.isfinite(values(fitted.predict(y=holes, future=FUTURE))).all()


def test_short_series_without_validation_rows_use_the_effect():
    short = WHOLE.groupby("unique_id").head(16).reset_index(drop=True)
    past, later = split(short, HORIZON)
    forecaster = make(train=LINEAR, context_length=4, past_covariates=(), static_covariates=()).fit(past)
    assert np.isfinite(values(forecaster.predict(future=later, level=80))).all()
    assert forecaster.covariates_.effect == Effect(lags=forecaster.covariates_.effect.lags)


def test_frames_of_polars_bring_covariates(fitted):
    polars = pytest.importorskip("polars")
    past, future = (polars.from_pandas(frame) for frame in (PAST, FUTURE))
    said = make(train=LINEAR).fit(past).predict(future=future)
    np.testing.assert_allclose(said["TitansForecaster"].to_numpy(), fitted.predict(future=FUTURE)["TitansForecaster"])


# ---- the rows to fill in


def test_the_future_frame_has_the_rows_that_predict_forecasts(fitted):
    frame = fitted.make_future_frame()
    said = fitted.predict(future=frame.merge(FUTURE, on=["unique_id", "ds"]))
    assert frame.equals(said[["unique_id", "ds"]])
    assert fitted.make_future_frame(2).equals(
        said.groupby("unique_id").head(2)[["unique_id", "ds"]].reset_index(drop=True)
    )
    assert fitted.make_future_frame(1, y=PAST, ids=["b"])["unique_id"].tolist() == ["b"]
    with pytest.raises(ValueError, match="longer than the fitted horizon"):
        fitted.make_future_frame(HORIZON + 1)


@pytest.mark.parametrize("forecaster", [SeasonalNaive(HORIZON), Ridge(HORIZON)])
def test_every_forecaster_has_a_future_frame(forecaster):
    zoned = PAST.assign(ds=PAST["ds"].dt.tz_localize("Europe/Berlin"))
    for frame in (PAST, zoned, PAST.rename(columns={"unique_id": "id"})):
        fitted = clone(forecaster).set_params(id_col="id" if "id" in frame else "unique_id").fit(frame)
        said = fitted.predict()
        assert fitted.make_future_frame().equals(said[said.columns[:2]])
    wide = PAST.pivot(index="ds", columns="unique_id", values="y").dropna()
    assert list(clone(forecaster).fit(wide).make_future_frame(2).columns) == ["unique_id", "ds"]
    with pytest.raises(NotFittedError):
        clone(forecaster).make_future_frame()


# ---- what is missing is said


def bad_future(change):
    return change(FUTURE.copy())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda frame: None, r"needs future=.*'price', 'day' of the next 5 steps.*make_future_frame\(5\)"),
        (lambda frame: frame.drop(columns="price"), r"no column 'price'.*columns are 'unique_id', 'ds', 'day'"),
        (
            lambda frame: frame[frame["unique_id"] != "b"],
            r"no row for series 'b' at 5 of the 5 steps.*make_future_frame",
        ),
        (lambda frame: frame.drop(index=7), r"no row for series 'b' at 1 of the 5 steps to forecast \(2024-05-12"),
        (lambda frame: pd.concat([frame, frame[3:4]]), r"more than one row for series 'a' at 1 of the 5 steps"),
        (
            lambda frame: frame.assign(price=frame["price"].where(frame.index != 3)),
            r"no finite value of 'price' for series 'a' at 1 of the 5 steps to forecast \(2024-05-13.*fill in 'price'",
        ),
        (lambda frame: frame.assign(day=None), r"no finite value of 'day' for series 'a' at 5 .*3 more series"),
        (lambda frame: frame.assign(ds=frame["ds"] + pd.Timedelta(hours=1)), r"no row for series 'a' at 5 of the 5"),
        (lambda frame: frame.assign(ds=frame["ds"].dt.tz_localize("UTC")), "no time zone was expected"),
        (lambda frame: frame.assign(ds=range(20)), "timestamps were expected"),
        (lambda frame: frame.to_numpy(), "future is a ndarray.*make_future_frame"),
        (lambda frame: frame.assign(price="cheap"), "'price' holds text such as 'cheap', not numbers"),
    ],
)
def test_a_future_that_does_not_do_says_why(fitted, change, words):
    with pytest.raises(ValueError, match=f"(?s){words}"):
        fitted.predict(future=bad_future(change))


@pytest.mark.parametrize("method", ["predict", "simulate"])
def test_a_future_that_is_missing_is_wanted_by_the_method_that_was_called(fitted, method):
    with pytest.raises(ValueError, match=rf"^{method}\(\) needs future=.*, {method}\(future=frame\)"):
        getattr(fitted, method)()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda frame: frame.drop(columns="wind"), r"no column 'wind', which covariates are configured on"),
        (
            lambda frame: frame.assign(price=frame["price"].where(frame.index != 3)),
            r"series 'a': 1 rows have no finite value of covariate 'price' \(first at 2024-01-04.*fill in 'price'",
        ),
        (lambda frame: frame.assign(wind=np.inf), r"no finite value of covariate 'wind'.*3 more series"),
        (lambda frame: frame.assign(size=np.nan), r"no finite value of covariate 'size'"),
        (
            lambda frame: frame.assign(size=frame["size"] + (frame.index == 9)),
            r"series 'a': 2 times static covariate 'size' changes \(first at 2024-01-10.*known_covariates",
        ),
        (lambda frame: frame.assign(price=frame["ds"]), r"covariate 'price' has dtype datetime64.*make it numbers"),
        (lambda frame: frame.assign(day=frame["ds"].astype(str) + frame["unique_id"]), "categories, 256 at most"),
        (lambda frame: frame.pivot(index="ds", columns="unique_id", values="y"), "a wide came.*only a long frame"),
        (lambda frame: frame["y"].to_numpy(), "a vector came, but covariates are configured"),
        (lambda frame: frame.set_index("ds")["y"][:100], "a series came, but covariates are configured"),
        (
            lambda frame: [{"target": [1.0] * 30, "start": pd.Period("2024-01-01", "D")}],
            "GluonTS entries came, but covariates are configured",
        ),
        (lambda frame: read(frame)[0], "the panel has the covariates none"),
    ],
)
def test_a_panel_that_does_not_do_says_why(change, words):
    with pytest.raises(DataError, match=f"(?s){words}"):
        make(train=LINEAR).fit(change(PAST.copy()))


def test_a_bad_covariate_skips_its_series_where_asked():
    holes = PAST.assign(price=PAST["price"].where(PAST["unique_id"] != "b"))
    forecaster = make(train=LINEAR, on_bad="skip").fit(holes)
    assert forecaster.fitted_ids_ == ("a", "c", "d")
    assert "'price'" in forecaster.skipped_["b"]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"known_covariates": "price"}, r"known_covariates='price' is one string: pass \('price',\)"),
        ({"known_covariates": ("price", "wind")}, "'wind' is named more than once"),
        ({"past_covariates": ("y",)}, "'y' is the id, the time or the value"),
        ({"train": TrainConfig(steps=1, linear=False)}, "correct the linear path: leave it on"),
    ],
)
def test_parameters_that_do_not_go_together_say_why(params, words):
    with pytest.raises(ValueError, match=words):
        make(**params).fit(PAST)


def test_an_update_that_changes_a_static_covariate_is_refused_whole(fitted):
    forecaster = pickle.loads(pickle.dumps(fitted))
    before = forecaster._known
    with pytest.raises(DataError, match=r"series 'c': static covariate 'region' is not what it was before"):
        forecaster.update(NEXT.assign(region=NEXT["region"].where(NEXT["unique_id"] != "c", "north")))
    with pytest.raises(DataError, match=r"no column 'price', 'wind'"):
        forecaster.update(NEXT.drop(columns=["price", "wind"]))
    assert forecaster._known is before


def test_future_without_known_covariates_is_refused():
    forecaster = make(train=LINEAR, **{**NONE, "past_covariates": ("wind",)}).fit(PAST)
    with pytest.raises(ValueError, match="no covariates are configured"):
        forecaster.predict(future=FUTURE)


def test_the_compiled_stream_refuses_covariates(fitted):
    with pytest.raises(ValueError, match="a forecaster with covariates has no compiled form"):
        StreamingForecaster.from_forecaster(fitted)


# ---- pieces


def test_covariates_stay_beside_their_rows_whatever_is_cut():
    rows, static = np.arange(7.0), np.array([[1.0], [2.0]])
    beside = Covariates(
        np.column_stack([10 * rows, 100 * rows]), static, Schema(known=("a",), past=("b",), static=("s",))
    )
    ends, zero = np.array([2, 3]), np.zeros(2, dtype=np.int64)
    panel = Panel(rows, np.array([0, 3, 7]), ("x", "y"), ends, zero, CountClock(), beside)
    for part in (panel.head(2), panel.tail(1), panel.drop_head(1), panel.select([1, 0]), panel.drop_tail(2)):
        assert (part.covariates.known[:, 0] == 10 * part.values).all()
        assert (part.covariates.past[:, 0] == 100 * part.values).all()
        assert part.covariates.static[:, 0].tolist() == [{"x": 1.0, "y": 2.0}[name] for name in part.ids]
    assert (panel.head(2).extend(panel.drop_head(2)).covariates.moving == beside.moving).all()
    born = panel.select([0]).extend(panel.select([1]))
    assert (born.covariates.moving == beside.moving).all()
    assert (born.covariates.static == static).all()
    led = panel.lead(np.array([1, 0]))
    assert np.isnan(led.covariates.moving[0]).all()
    assert (led.covariates.moving[1:] == beside.moving).all()
    with pytest.raises(ValueError, match="must be as many"):
        replace(panel, covariates=beside.cut(np.arange(3), np.arange(1)))


def test_running_sums_do_not_depend_on_how_rows_come():
    rows = np.random.default_rng(0).normal(size=(50, 3)) + 1e6
    rows[::7, 1] = np.nan
    before, behind = running(np.zeros((4, 3)), rows)
    _, half = running(np.zeros((4, 3)), rows[:20])
    again, last = running(half, rows[20:])
    assert (again == before[20:]).all()
    assert (last == behind).all()
