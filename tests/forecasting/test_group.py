"""Series modelled jointly: the laws hold, a leading member is found and nothing else changes, and errors say what is
missing."""

import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone

from titans_ts import MemoryConfig, TitansForecaster, TrainConfig
from titans_ts.core.config import LOST
from titans_ts.core.state import leaves, map_state
from titans_ts.forecasting import joint as module
from titans_ts.forecasting.door import read
from titans_ts.forecasting.intake import groups_of
from titans_ts.forecasting.joint import blocks_of, contexts_at, find, shifted, telling
from titans_ts.forecasting.streaming import StreamingForecaster
from titans_ts.models.config import BackboneConfig

HORIZON = 3
MEMORY = MemoryConfig(dim=8, heads=2, depth=1, expansion=2, chunk=16, conv=2, persistent=2)
SMALL = BackboneConfig(dim=8, depth=1, heads=2, window=3, segment=3, dropout=0.0, residual_init=1.0, memory=MEMORY)
QUICK = TrainConfig(steps=3, batch=4, checks=1)
LINEAR = TrainConfig(steps=0)
SCALES = {"lead": 1.0, "late": 10.0, "loner": 1e-2, "other": 1.0}
LEAD = 3  # steps by which "lead" runs before "late", which is in its group


def make(**params):
    defaults = {"horizon": HORIZON, "patch_length": 4, "context_length": 16, "model": SMALL, "train": LINEAR}
    return TitansForecaster(**{**defaults, "group": "shop", "random_state": 0, **params})


def wander(random, count, keeps=0.6):
    steps = random.normal(size=count)
    for place in range(1, count):
        steps[place] += keeps * steps[place - 1]
    return steps


def frame_of(length=500, seed=0):
    """Daily series of two shops. "late" repeats what "lead" was three days before, "loner" is in their shop and goes
    its own way, "other" repeats "lead" as well, from another shop."""
    random = np.random.default_rng(seed)
    lead = wander(random, length + LEAD)
    moves = {"lead": lead[LEAD:], "late": lead[:-LEAD], "loner": wander(random, length), "other": lead[:-LEAD]}
    parts = []
    for place, (name, own) in enumerate(moves.items()):
        begin = 7 * place
        y = 5 * place + SCALES[name] * (own + 0.3 * random.normal(size=length))[begin:]
        ds = pd.date_range("2022-01-01", periods=length, freq="D")[begin:]
        shop = "south" if name == "other" else "north"
        parts.append(pd.DataFrame({"unique_id": name, "ds": ds, "y": y, "shop": shop}))
    return pd.concat(parts, ignore_index=True)


def split(frame, cut):
    ahead = frame.groupby("unique_id").cumcount(ascending=False)
    return frame[ahead >= cut].reset_index(drop=True), frame[ahead < cut].reset_index(drop=True)


WHOLE = frame_of()
PAST, LATER = split(WHOLE, 30)
NAME = "TitansForecaster"


@pytest.fixture(scope="module")
def fitted():
    return make().fit(PAST)


@pytest.fixture(scope="module")
def trained():
    forecaster = make(train=QUICK).fit(PAST)
    assert forecaster.joint_.shares[2] > 0
    forecaster.correction_ = 0.5  # so that the backbone is heard
    forecaster.model_.double()
    state = map_state(
        lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, forecaster._start(read(PAST)[0])
    )
    forecaster._known = replace(forecaster._known, state=state)
    return forecaster


def copied(forecaster):
    return pickle.loads(pickle.dumps(forecaster))


def deaf(forecaster):
    """The same forecaster, of which no series listens to another."""
    other = copied(forecaster)
    other.joint_ = None
    return other


def values(said, name=None):
    said = said if name is None else said[said["unique_id"] == name]
    return said.drop(columns=["unique_id", "ds"]).to_numpy()


def errors(forecaster, frame=WHOLE, windows=15):
    """Mean squared error of every series over the last windows, in units of each."""
    told = forecaster.backtest(frame, n_windows=windows)
    left = (told["y"] - told[NAME]) / told["unique_id"].map(SCALES)
    return left.pow(2).groupby(told["unique_id"]).mean()


# ---- use


def test_a_leading_member_lowers_the_error_by_a_wide_margin_and_nobody_elses_rises():
    with_, without = errors(make()), errors(make(group=None))
    assert with_["late"] < 0.35 * without["late"]
    others = ["lead", "loner", "other"]  # nobody tells them anything: "lead" is not in the shop of "other"
    assert (with_[others] < 1.03 * without[others]).all()


def test_a_series_listens_to_its_own_group_alone(fitted):
    assert fitted.joint_.members[1 + fitted.fitted_ids_.index("other")].tolist() == [0, 0]
    assert sorted(fitted.joint_.members[1 + fitted.fitted_ids_.index("late")].tolist()) == [1, 3]


def test_all_columns_of_a_wide_frame_are_one_group_where_asked():
    wide = WHOLE.pivot(index="ds", columns="unique_id", values="y").dropna()
    said = {}
    for joint in (False, True):
        forecaster = make(group=None, multivariate=joint)
        told = forecaster.backtest(wide, n_windows=15)
        left = (told["y"] - told[NAME]) / told["unique_id"].map(SCALES)
        said[joint] = left.pow(2).groupby(told["unique_id"]).mean()
    assert (said[True][["late", "other"]] < 0.4 * said[False][["late", "other"]]).all()
    assert said[True]["loner"] == pytest.approx(said[False]["loner"], rel=0.01)
    forecast = make(group=None, multivariate=True).fit(wide).predict()
    assert list(forecast.columns) == list(wide.columns)


def test_a_leading_member_narrows_the_intervals():
    widths = []
    for group in (None, "shop"):
        said = make(group=group).fit(PAST).predict(level=80)
        late = said[said["unique_id"] == "late"]
        widths.append((late[f"{NAME}-hi-80"] - late[f"{NAME}-lo-80"]).mean())
    assert widths[1] < 0.8 * widths[0]


@pytest.mark.parametrize("seed", range(3))
def test_members_that_tell_nothing_cost_nothing(seed):
    random = np.random.default_rng(seed)
    y = np.column_stack([wander(random, 400) for _ in range(5)])
    plain, joined = (
        ((told["y"] - told[NAME]) ** 2).mean()
        for told in (make(group=None, multivariate=m).backtest(y, n_windows=10) for m in (False, True))
    )
    assert joined < 1.01 * plain


def test_short_series_are_left_alone():
    short = WHOLE.groupby("unique_id").head(40)
    joined, plain = (make(group=group).fit(short) for group in ("shop", None))
    assert not joined.joint_.speaks
    assert joined.predict().equals(plain.predict())


def test_of_many_members_the_one_that_tells_is_found():
    random = np.random.default_rng(0)
    y = np.column_stack([wander(random, 600) for _ in range(40)])
    y[2:, 7] = 0.3 * y[2:, 7] + y[:-2, 31]
    forecaster = make(group=None, multivariate=True).fit(y)
    assert forecaster.joint_.members[1 + 7, 0] == 1 + 31
    assert forecaster.joint_.members.shape[1] == module.MEMBERS
    assert forecaster.joint_.shares[1 + 7] > 0


def test_more_members_than_are_compared_are_sifted_first(monkeypatch):
    random = np.random.default_rng(0)
    y = np.column_stack([wander(random, 600) for _ in range(12)])
    y[2:, :8] = 0.3 * y[2:, :8] + y[:-2, [11]]
    monkeypatch.setattr(module, "CANDIDATES", 3)
    forecaster = make(group=None, multivariate=True).fit(y)
    assert (forecaster.joint_.members[1:9, 0] == 1 + 11).all()


def test_maps_that_would_hold_too_much_are_not_made(monkeypatch):
    monkeypatch.setattr(module, "OWN_NUMBERS", 100)
    joined = make().fit(PAST)
    assert not joined.joint_.speaks
    assert joined.predict().equals(make(group=None).fit(PAST).predict())


# ---- laws


def test_an_update_equals_the_past_with_the_new_rows(trained):
    for cut in (1, 7, 30):
        new = LATER.groupby("unique_id").head(cut)
        moved = copied(trained).update(new)
        once = trained.predict(y=pd.concat([PAST, new]), level=80)
        np.testing.assert_allclose(values(moved.predict(level=80)), values(once), rtol=1e-9, atol=1e-11)


def test_updates_row_by_row_and_series_by_series_end_where_one_update_does(trained):
    once, days, series = (copied(trained) for _ in range(3))
    once.update(LATER)
    for _, day in LATER.groupby("ds"):
        days.update(day)
    for _, own in LATER.groupby("unique_id"):
        series.update(own)
    for other in (days, series):
        np.testing.assert_allclose(values(other.predict()), values(once.predict()), rtol=1e-9, atol=1e-11)


def test_predict_changes_nothing(trained):
    before = [leaf.clone() for leaf in leaves(trained._known.state)]
    said = trained.predict(level=80)
    trained.predict(y=WHOLE)
    trained.score(LATER)
    assert trained.predict(level=80).equals(said)
    for old, new in zip(before, leaves(trained._known.state), strict=True):
        assert torch.equal(old.nan_to_num(), new.nan_to_num())


def test_one_member_asked_for_alone_is_the_member_among_all(trained):
    together = trained.predict(level=80)
    for name in SCALES:
        np.testing.assert_allclose(
            values(trained.predict(ids=[name], level=80)), values(together, name), rtol=1e-9, atol=1e-11
        )


def test_a_group_alone_is_the_group_in_the_panel(trained):
    alone = trained.predict(y=PAST[PAST["shop"] == "north"])
    together = trained.predict(y=PAST)
    np.testing.assert_allclose(values(alone), values(together[: len(alone)]), rtol=1e-9, atol=1e-11)


def test_the_order_of_the_series_does_not_show(trained):
    turned = PAST.sort_values(["unique_id", "ds"], ascending=[False, True], ignore_index=True)
    one, other = trained.predict(y=PAST), trained.predict(y=turned)
    fresh, again = (make().fit(frame).predict() for frame in (PAST, turned))
    for name in SCALES:
        np.testing.assert_allclose(values(other, name), values(one, name), rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(values(again, name), values(fresh, name), rtol=1e-7)


@pytest.mark.parametrize(("factor", "shift"), [(3.0, 100.0), (1e-3, -5.0)])
def test_forecasts_follow_the_units_of_the_whole_panel(fitted, factor, shift):
    moved = PAST.assign(y=factor * PAST["y"] + shift)
    said = fitted.predict(level=80)
    for again in (make().fit(moved).predict(level=80), fitted.predict(y=moved, level=80)):
        np.testing.assert_allclose(values(again), factor * values(said) + shift, rtol=1e-6, atol=1e-6 * abs(shift))


def test_the_units_of_one_member_do_not_change_the_forecasts_of_the_others(fitted):
    moved = PAST.assign(y=PAST["y"].where(PAST["unique_id"] != "lead", 50 * PAST["y"] - 7))
    said, again = fitted.predict(), make().fit(moved).predict()
    np.testing.assert_allclose(values(again, "late"), values(said, "late"), rtol=1e-7)
    np.testing.assert_allclose(values(again, "lead"), 50 * values(said, "lead") - 7, rtol=1e-7)


def test_a_forecast_sees_nothing_of_a_member_that_is_later_than_its_own_last_row(fitted):
    ends = PAST[(PAST["unique_id"] != "late") | (PAST["ds"] <= PAST["ds"].max() - pd.Timedelta(days=4))]
    last = ends.loc[ends["unique_id"] == "late", "ds"].max()
    wild = ends.assign(y=ends["y"].where(ends["ds"] <= last, ends["y"] + 1e3))
    one, other = (fitted.predict(y=frame) for frame in (ends, wild))
    assert (values(one, "late") == values(other, "late")).all()
    seen = ends.assign(y=ends["y"].where((ends["unique_id"] != "lead") | (ends["ds"] != last), ends["y"] + 1.0))
    assert np.abs(values(fitted.predict(y=seen), "late") - values(one, "late")).max() > 1  # this it sees


def test_a_member_that_has_run_ahead_tells_what_it_told_at_the_time(fitted):
    ahead = copied(fitted).update(LATER[LATER["unique_id"] == "lead"].head(4))
    told, heard, alone = (values(f.predict(), "late") for f in (fitted, ahead, deaf(fitted)))
    assert np.abs(told - alone).max() > 5
    assert np.abs(heard - told).max() < 0.2 * np.abs(told - alone).max()  # four of sixteen rows were given up


def test_a_member_that_lags_tells_what_it_has(fitted):
    alone, two = deaf(fitted), PAST[PAST["unique_id"].isin(["lead", "late"])]

    def change(days):
        """How much the group adds to the forecast of "late", step by step, where "lead" is so many days behind."""
        begins = PAST["ds"].max() - pd.Timedelta(days=days)
        lags = two[(two["unique_id"] != "lead") | (two["ds"] <= begins)]
        return (values(fitted.predict(y=lags), "late") - values(alone.predict(y=lags), "late"))[:, 0]

    assert np.abs(change(0)).max() > 1
    np.testing.assert_allclose(
        change(2)[0], change(0)[0], atol=0.35 * np.abs(change(0)).max()
    )  # known three days ahead
    assert np.abs(change(40)).max() == 0  # longer than it is remembered


def test_a_missing_value_says_nothing_and_the_others_go_on(fitted):
    last = PAST["ds"].max()
    holes = PAST.assign(y=PAST["y"].where((PAST["unique_id"] != "lead") | (PAST["ds"] < last - pd.Timedelta(days=1))))
    gone = PAST[(PAST["unique_id"] != "lead") | (PAST["ds"] < last - pd.Timedelta(days=1))]
    one, other = fitted.predict(y=holes), fitted.predict(y=gone)
    close = {"rtol": 2e-2, "atol": 0.5}  # a member without its last rows holds two more of before
    np.testing.assert_allclose(values(one, "late"), values(other, "late"), **close)
    assert np.isfinite(values(one)).all()


def test_a_member_that_is_not_there_leaves_the_others_on_their_own(fitted):
    late = PAST[PAST["unique_id"] == "late"]
    assert fitted.predict(y=late).equals(deaf(fitted).predict(y=late))
    assert np.abs(values(fitted.predict(y=PAST), "late") - values(fitted.predict(y=late))).max() > 1


def test_a_member_that_went_wild_moves_the_others_within_bounds(fitted):
    wild = PAST.assign(y=PAST["y"].where((PAST["unique_id"] != "lead") | (PAST["ds"] < PAST["ds"].max()), 1e9))
    change = np.abs(values(fitted.predict(y=wild), "late") - values(fitted.predict(y=PAST), "late"))
    deviation = PAST.loc[PAST["unique_id"] == "late", "y"].tail(16).std(ddof=0)
    assert change.max() < 2 * module.LIMIT * deviation


def test_strangers_are_forecast_by_themselves(fitted):
    moved, plain = (
        copied(f).update(WHOLE[WHOLE["unique_id"] == "lead"].head(90).assign(unique_id="new"))
        for f in (fitted, deaf(fitted))
    )
    assert (values(moved.predict(), "new") == values(plain.predict(), "new")).all()
    assert (values(moved.predict(), "late") == values(fitted.predict(), "late")).all()


def test_update_and_predict_need_no_group_column(fitted):
    new = LATER.groupby("unique_id").head(5)
    one, other = copied(fitted).update(new), copied(fitted).update(new.drop(columns="shop"))
    assert one.predict().equals(other.predict())
    assert fitted.predict(y=PAST.drop(columns="shop")).equals(fitted.predict(y=PAST))


def test_saved_pickled_and_loaded_forecasters_say_the_same(tmp_path):
    forecaster = make(train=QUICK).fit(PAST)
    forecaster.save(tmp_path / "saved")
    later = copied(forecaster).update(LATER)
    for copy in (TitansForecaster.load(tmp_path / "saved"), copied(forecaster)):
        assert copy.get_params()["group"] == "shop"
        assert copy.predict(level=80).equals(forecaster.predict(level=80))
        assert copy.update(LATER).predict(level=80).equals(later.predict(level=80))
        assert copy.simulate(5, seed=1).equals(later.simulate(5, seed=1))


def test_a_clone_keeps_the_group_and_learns_the_same(fitted):
    other = clone(fitted)
    assert (other.group, other.multivariate) == ("shop", False)
    assert other.fit(PAST).predict().equals(fitted.predict())
    assert other.set_params(group=None).fit(PAST).joint_ is None


def test_without_groups_no_number_changes():
    plain = make(group=None).fit(PAST.drop(columns="shop"))
    assert plain.joint_ is None
    assert plain.predict(level=80).equals(make(group=None).fit(PAST).predict(level=80))


def test_the_backtest_is_what_updates_would_have_said():
    told = make().backtest(WHOLE, n_windows=3)
    forecaster = make().fit(split(WHOLE, 3 * HORIZON)[0])
    for window in range(3):
        begin, end = (3 - window) * HORIZON, (2 - window) * HORIZON
        cutoff = split(WHOLE, begin)[0].groupby("unique_id")["ds"].max()
        page = told[told["cutoff"] == told["unique_id"].map(cutoff)]
        np.testing.assert_allclose(page[NAME], forecaster.predict()[NAME], rtol=1e-12)
        forecaster.update(split(split(WHOLE, end)[0], HORIZON)[1])


def test_the_score_is_better_with_the_group():
    longer = LATER.groupby("unique_id").head(30)
    assert make().fit(PAST).score(longer) > make(group=None).fit(PAST).score(longer)


def test_groups_go_with_covariates():
    random = np.random.default_rng(1)
    frame = WHOLE.assign(price=random.normal(size=len(WHOLE)))
    frame["y"] += 2 * frame["unique_id"].map(SCALES) * frame["price"]
    past, later = split(frame, HORIZON)
    future = later.drop(columns="y")
    both, price = (make(known_covariates=("price",), group=group).fit(past) for group in ("shop", None))
    assert both.joint_.shares[2] > 0
    assert both.covariates_.effect.share > 0
    one, other = both.predict(future=future), price.predict(future=future)
    assert np.abs(values(one, "late") - values(other, "late")).max() > 0.5
    moved = copied(both).update(later)
    again = both.predict(y=frame, future=moved.make_future_frame().assign(price=0.0))
    np.testing.assert_allclose(
        values(moved.predict(future=moved.make_future_frame().assign(price=0.0))), values(again), rtol=1e-6
    )


def test_an_array_that_was_cut_is_still_joined():
    y = WHOLE.pivot(index="ds", columns="unique_id", values="y").dropna().to_numpy()[:, :3]  # late, lead, loner
    forecaster = make(group=None, multivariate=True, season_length=7).fit(y)
    assert forecaster.joint_.shares[1] > 0
    part = y[-60:]
    assert np.abs(forecaster.predict(y=part)[:, 0] - deaf(forecaster).predict(y=part)[:, 0]).max() > 1
    steps = forecaster._displaced(forecaster._start(read(part)[0]), np.arange(3)).steps
    assert (steps < LOST // 2).all()
    assert len(set(steps.tolist())) == 1


def test_a_series_of_weight_zero_neither_listens_nor_is_listened_to():
    weights = {"lead": 0, "late": 1, "loner": 1, "other": 1}
    joined = make().fit(PAST, sample_weight=weights)
    assert not joined.joint_.speaks
    assert joined.predict().equals(make(group=None).fit(PAST, sample_weight=weights).predict())


def test_a_frame_of_polars_brings_groups():
    polars = pytest.importorskip("polars")
    said = make().fit(polars.from_pandas(PAST)).predict()
    np.testing.assert_allclose(said[NAME].to_numpy(), make().fit(PAST).predict()[NAME].to_numpy())


def test_a_picture_and_paths_are_made(fitted):
    pytest.importorskip("matplotlib")
    assert len(fitted.plot(ids=["late"]).axes) == 1
    paths = fitted.simulate(20, seed=0)
    assert len(paths) == 20 * 4 * HORIZON
    assert fitted.simulate(20, seed=0, ids=["late"])[NAME].equals(
        paths.loc[paths["unique_id"] == "late", NAME].reset_index(drop=True)
    )


# ---- what is missing is said


@pytest.mark.parametrize(
    ("params", "change", "words"),
    [
        (
            {"group": "town"},
            lambda f: f,
            "no column 'town', which group= names: the columns are 'unique_id', 'ds', 'y'",
        ),
        ({"group": "y"}, lambda f: f, "group='y' is the id, the time or the value"),
        ({"multivariate": True}, lambda f: f, "pass one of the two"),
        ({"train": TrainConfig(steps=1, linear=False)}, lambda f: f, "leave it on"),
        (
            {},
            lambda f: f.pivot(index="ds", columns="unique_id", values="y"),
            "names a column of a long frame.*multivari",
        ),
        ({}, lambda f: f["y"].to_numpy(), "names a column of a long frame"),
        ({}, lambda f: read(f)[0], "the panel has no groups"),
        (
            {},
            lambda f: f.assign(shop=f["shop"].where(f.index != 3, "west")),
            "series 'lead': column 'shop', which group= names, has more than one value.*on_bad='skip'",
        ),
    ],
)
def test_a_group_that_does_not_do_says_why(params, change, words):
    with pytest.raises(ValueError, match=f"(?s){words}"):
        make(**params).fit(change(PAST.copy()))


def test_series_without_a_group_are_on_their_own():
    nobody = PAST.assign(shop=PAST["shop"].where(PAST["unique_id"] != "lead"))
    assert not make().fit(nobody).joint_.speaks
    torn = PAST.assign(shop=PAST["shop"].where((PAST["unique_id"] != "lead") | (PAST.index > 3), "west"))
    forecaster = make(on_bad="skip").fit(torn)
    assert "more than one value" in forecaster.skipped_["lead"]
    assert forecaster.fitted_ids_ == tuple(SCALES)
    assert not forecaster.joint_.speaks


def test_one_series_alone_is_a_group_of_one():
    y = WHOLE.loc[WHOLE["unique_id"] == "lead", "y"].to_numpy()
    joined, plain = (make(group=None, multivariate=m).fit(y).predict() for m in (True, False))
    assert (joined == plain).all()


def test_the_compiled_stream_refuses_groups(fitted):
    with pytest.raises(ValueError, match="modelled jointly has no compiled form"):
        StreamingForecaster.from_forecaster(fitted)


# ---- pieces


def test_groups_are_numbered_as_their_series_come():
    frame = pd.DataFrame({"unique_id": list("bacba"), "shop": ["x", None, "y", "x", None]})
    assert groups_of(frame, ("a", "b", "c"), "unique_id", "shop") == (pytest.approx([0, 1, 2]), {})
    assert groups_of(frame.assign(shop="z"), ("c", "b"), "unique_id", "shop")[0].tolist() == [0, 0]


def test_the_state_at_the_time_is_found_else_the_next_later_else_the_last_before():
    steps, own = np.array([4, 8, 6, 3]), np.array([2, 2, 2, 1])
    members = np.array([[2], [2], [2], [2], [1], [0]])
    at = np.array([6, 5, 9, 1, 4, 4])
    assert find(steps, own, members, at)[:, 0].tolist() == [2, 2, 1, 0, 3, -1]


def test_windows_move_by_the_clock_and_never_see_what_came_later():
    windows = np.arange(1.0, 5.0)[None, None]
    for ahead in range(-6, 7):
        expected = [step + 4 - ahead if 1 <= step + 4 - ahead <= 4 else np.nan for step in range(-3, 1)]
        np.testing.assert_array_equal(shifted(windows, np.array([[ahead]]))[0, 0], expected)


def test_contexts_by_the_clock_stay_inside_their_series():
    panel = read(pd.DataFrame({"unique_id": list("aaabb"), "ds": [1, 2, 3, 2, 3], "y": [1.0, 2, 3, 20, 30]}))[0]
    found = contexts_at(panel, np.array([0, 1, 1, -1]), np.array([3, 3, 6, 3]) + panel.starts[0] - 1, 2)
    np.testing.assert_array_equal(found, [[1, 2], [np.nan, 20], [np.nan, np.nan], [np.nan, np.nan]])


def test_the_member_that_tells_most_comes_first():
    forecaster = make().fit(PAST)
    panel = read(PAST)[0]
    task = module.Task(panel, forecaster.linear_, None, np.ones(4))
    inside = np.arange(3)
    found = telling(task, panel.lengths, inside, blocks_of(panel, panel.lengths, inside), 16, 2)
    assert found[1, 0] == 0
    assert found.shape == (3, 2)
