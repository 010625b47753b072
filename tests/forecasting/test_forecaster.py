"""`TitansForecaster`: the laws, whatever data come in, and what its user may count on around them."""

import copy
import functools
import json
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from laws.cases import shaken
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV

from titans_ts import DataError, TitansForecaster
from titans_ts.core.config import LOST, MemoryConfig
from titans_ts.core.state import leaves, map_state
from titans_ts.forecasting import ensemble, judging, training
from titans_ts.forecasting import forecaster as module
from titans_ts.forecasting.baselines import validation_ends
from titans_ts.forecasting.door import read
from titans_ts.forecasting.training import (
    Batch,
    Rows,
    Sequences,
    TrainConfig,
    confirmed_weight,
    errors_left,
    forecast_batch,
    groups_of,
    validation_batches,
    validation_sequences,
)
from titans_ts.models.blocks import memory_of
from titans_ts.models.config import VARIANTS, BackboneConfig
from titans_ts.models.timeseries import TimeSeriesModel

HORIZON = 5
LEVELS = [80, 95]
SERIES = ("a", "b", "c")
MEMORY = MemoryConfig(dim=8, heads=2, depth=1, expansion=2, chunk=16, conv=2, persistent=2)
SMALL = BackboneConfig(
    dim=8, depth=1, heads=2, window=3, segment=3, dropout=0.0, residual_init=1.0, memory=MEMORY
)  # blocks that speak from the start
DEEP = replace(SMALL, memory=replace(MEMORY, depth=2, chunk=3))
QUICK = TrainConfig(steps=3, batch=4, checks=1)
LINEAR = TrainConfig(steps=0)


def make(**params):
    defaults = {"horizon": HORIZON, "patch_length": 4, "context_length": 14, "model": SMALL, "train": QUICK}
    return TitansForecaster(**{**defaults, "random_state": 0, **params})


def panel_frame(length=100, holes=True):
    """Three seasonal daily series that end together, of different scale, level and length, some values missing."""
    random = np.random.default_rng(0)
    parts = []
    for place, name in enumerate(SERIES):
        rows = length - 11 * place
        steps = np.arange(rows)
        y = 10.0**place * (np.sin(2 * np.pi * steps / 7) + 0.3 * random.normal(size=rows)) + 5 * place
        if holes:
            y[random.choice(np.arange(10, rows - 2), 5, replace=False)] = np.nan
        start = pd.Timestamp("2024-01-01") + pd.Timedelta(days=11 * place)
        parts.append(pd.DataFrame({"unique_id": name, "ds": pd.date_range(start, periods=rows, freq="D"), "y": y}))
    return pd.concat(parts, ignore_index=True)


def split(frame, cut):
    ahead = frame.groupby("unique_id").cumcount(ascending=False)
    return frame[ahead >= cut], frame[ahead < cut]


WHOLE = panel_frame()
PAST, LATER = split(WHOLE, 30)
ONE = WHOLE[WHOLE["unique_id"] == "a"].reset_index(drop=True)


def numbers(forecast, ids=SERIES):
    """The forecast columns, series in a fixed order, [N * H, columns]."""
    return np.concatenate([forecast[forecast["unique_id"] == name].iloc[:, 2:].to_numpy() for name in ids])


def close(got, expected, tolerance):
    """Equal to the tolerance, in units of the largest number of each series."""
    for one, two in zip(np.split(got, len(SERIES)), np.split(expected, len(SERIES)), strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=tolerance * np.abs(two).max())


@functools.cache
def _fitted(variant, deep):
    forecaster = make(variant=variant, model=DEEP if deep else SMALL).fit(PAST)
    shaken(forecaster.model_, torch.float32, 0.1)  # three steps of training leave the memory almost silent
    forecaster.correction_ = 0.7
    forecaster._known = replace(forecaster._known, state=forecaster._start(read(PAST)[0]))
    return pickle.dumps(forecaster)


def fitted(variant="lmm", deep=False):
    """A fresh copy of a forecaster that was fitted on PAST once, with a correction that matters."""
    torch.manual_seed(0)
    return pickle.loads(_fitted(variant, deep))


def in_float64(forecaster, past=PAST):
    """The forecaster computing in float64, restarted from its past."""
    forecaster.model_.double()
    forecaster._known = replace(forecaster._known, state=forecaster._start(read(past)[0]))
    return forecaster


@pytest.fixture(params=[(variant, False) for variant in VARIANTS] + [("lmm", True), ("mac", True)], ids=str)
def forecaster(request):
    return fitted(*request.param)


def weights(forecaster):
    return list(forecaster.model_.state_dict().values())


def memories(forecaster):
    parts = [memory_of(part) for part in forecaster._known.state.series.backbone]
    return [leaf for part in parts for leaf in (*part.weights, *part.momentum)]


def equal(left, right):
    """Bit for bit, NaN in the same places."""
    return all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(left, right, strict=True))


# Update


@pytest.mark.parametrize("cut", [1, 6, 30])
def test_update_equals_a_longer_history_for_the_same_weights(forecaster, cut):
    past, later = split(WHOLE, cut)
    in_float64(forecaster, past)
    forecaster._known = replace(forecaster._known, ends=read(past)[0].ends)
    whole = forecaster.predict(y=WHOLE, level=LEVELS)
    updated = forecaster.update(later).predict(level=LEVELS)
    assert (whole["ds"] == updated["ds"]).all()
    close(numbers(updated), numbers(whole), 1e-9)


def test_update_equals_a_longer_history_in_float32_too(forecaster):
    whole = forecaster.predict(y=WHOLE, level=LEVELS)
    close(numbers(forecaster.update(LATER).predict(level=LEVELS)), numbers(whole), 1e-5)


def test_any_cuts_of_the_new_rows_give_the_same(forecaster):
    in_float64(forecaster)
    twin = pickle.loads(pickle.dumps(forecaster))
    at_once = forecaster.update(LATER).predict(level=LEVELS)
    for _, days in LATER.groupby(np.searchsorted([1, 2, 6, 7, 19], (LATER["ds"] - LATER["ds"].min()).dt.days, "right")):
        twin.update(days)
    close(numbers(twin.predict(level=LEVELS)), numbers(at_once), 1e-9)
    assert equal([twin._known.state.series.position], [forecaster._known.state.series.position])


def test_two_identical_streams_are_equal_bit_for_bit(forecaster):
    twin = pickle.loads(pickle.dumps(forecaster))
    for _, day in LATER.iloc[:60].groupby("ds"):
        forecaster.update(day)
        forecaster.predict(level=80)  # looking changes nothing
        twin.update(day)
    assert equal(leaves(forecaster._known.state), leaves(twin._known.state))
    pd.testing.assert_frame_equal(forecaster.predict(level=LEVELS), twin.predict(level=LEVELS), check_exact=True)


def test_update_learns_in_the_memory_and_leaves_the_trained_weights_alone(forecaster):
    before, memory, correction = [w.clone() for w in weights(forecaster)], memories(forecaster), forecaster.correction_
    forecaster.update(LATER)
    assert equal(weights(forecaster), before)
    assert forecaster.correction_ == correction
    assert not any(torch.equal(a, b) for a, b in zip(memories(forecaster), memory, strict=True))


def test_without_adapt_update_moves_the_windows_and_not_the_memories(forecaster):
    ragged = LATER[(LATER["unique_id"] != "c") | (LATER["ds"] < LATER["ds"].max())]
    adapting = pickle.loads(pickle.dumps(forecaster)).update(ragged)
    before = forecaster._known.state
    memory = memories(forecaster)
    forecaster.set_params(adapt=False).update(ragged)
    assert equal(memories(forecaster), memory)
    assert equal([forecaster._known.state.series.window], [adapting._known.state.series.window])
    assert (forecaster._known.state.series.position - before.series.position).tolist() == [30, 30, 29]
    one, two = forecaster.predict(), adapting.predict()
    assert one["ds"].equals(two["ds"])
    assert np.abs(numbers(one) - numbers(two)).max() > 1e-6


def test_a_missing_value_is_time_that_passed_and_not_a_row_that_never_was(forecaster):
    in_float64(forecaster)
    twin = pickle.loads(pickle.dumps(forecaster))
    first = LATER["ds"].min() + pd.Timedelta("8D")
    told = forecaster.update(LATER.assign(y=LATER["y"].where(LATER["ds"] >= first))).predict(level=80)
    masked = twin.set_params(on_gap="mask").update(LATER[LATER["ds"] >= first]).predict(level=80)
    pd.testing.assert_frame_equal(masked, told, check_exact=True)
    closed = PAST.assign(ds=PAST["ds"] + pd.Timedelta("8D"))  # the 8 days taken out instead
    deleted = forecaster.predict(y=pd.concat([closed, LATER[LATER["ds"] >= first]]), level=80)
    assert deleted["ds"].equals(told["ds"])
    assert np.abs(numbers(deleted) / numbers(told) - 1).max() > 1e-3


def test_a_series_silent_for_more_than_a_context_is_forecast_around_its_level(forecaster):
    high = WHOLE.assign(y=WHOLE["y"] + 1000)
    silent = high.assign(y=high["y"].where(high["ds"] <= PAST["ds"].max()))  # for 30 days
    out = numbers(forecaster.predict(y=silent, level=80))
    assert np.isfinite(out).all()
    assert (np.abs(out - 1000) < 500).all()
    again = forecaster.update(LATER.assign(y=np.nan)).predict(level=80)
    assert np.isfinite(numbers(again)).all()
    assert np.isfinite(numbers(forecaster.update(LATER.assign(ds=LATER["ds"] + pd.Timedelta("30D"))).predict())).all()


# Read-only


def test_predict_twice_is_the_same_and_changes_no_update(forecaster):
    untouched = pickle.loads(pickle.dumps(forecaster)).update(LATER)
    once = forecaster.predict(level=LEVELS)
    forecaster.predict(2, y=WHOLE, quantiles=[0.5], ids=["b"])
    forecaster.score(LATER)
    pd.testing.assert_frame_equal(forecaster.predict(level=LEVELS), once, check_exact=True)
    forecaster.update(LATER)
    assert equal(leaves(forecaster._known.state), leaves(untouched._known.state))
    pd.testing.assert_frame_equal(forecaster.predict(), untouched.predict(), check_exact=True)


# Order, units


def test_the_order_of_the_series_is_the_order_of_the_forecasts(forecaster):
    in_float64(forecaster)
    expected = forecaster.predict(y=WHOLE, level=LEVELS)
    shuffled = pd.concat([WHOLE[WHOLE["unique_id"] == name].sample(frac=1, random_state=3) for name in "cab"])
    out = forecaster.predict(y=shuffled, level=LEVELS)
    assert out["unique_id"].unique().tolist() == ["c", "a", "b"]
    close(numbers(out), numbers(expected), 1e-9)


def test_a_series_alone_is_the_series_in_the_panel(forecaster):
    in_float64(forecaster)
    panel = forecaster.predict(y=WHOLE, level=LEVELS)
    alone = [forecaster.predict(y=WHOLE[WHOLE["unique_id"] == name], level=LEVELS) for name in SERIES]
    close(numbers(pd.concat(alone)), numbers(panel), 1e-9)
    close(numbers(pd.concat([forecaster.predict(ids=[name]) for name in SERIES])), numbers(forecaster.predict()), 1e-9)


def test_an_array_that_was_cut_does_without_the_profile_of_the_season():
    random, steps = np.random.default_rng(0), np.arange(900)
    y = random.normal(size=900) + 6 * (steps % 7 == 3)
    forecaster = make(horizon=5, season_length=7, context_length=4, train=TrainConfig(steps=0, fading=False)).fit(y)
    assert forecaster.linear_.share
    longer = np.append(y, 0.0)
    for history in (y, longer):
        state = forecaster._histories(history)[0].state
        assert state.fading.own.tolist() == [1]
        assert (state.steps > LOST).all()
    assert (forecaster._histories(y[5:])[0].state.steps == LOST).all()
    for begin in range(1, 8):
        bare = make(horizon=5).set_params(**forecaster.get_params(deep=False))
        bare.__dict__.update(forecaster.__dict__)
        bare.linear_ = replace(forecaster.linear_, profile=None)
        np.testing.assert_array_equal(forecaster.predict(y=y[begin:]), bare.predict(y=y[begin:]))
        assert (forecaster.predict(y=y) != bare.predict(y=y)).all()


def test_dates_before_1970_have_a_place_in_the_season():
    random, steps = np.random.default_rng(0), np.arange(900)
    y = random.normal(size=900) * (1 + 3 * (steps % 7 == 2)) + 6 * (steps % 7 == 3)
    train = TrainConfig(steps=0, fading=False)
    said = []
    for begin in ("2000-01-03", "1940-01-01", "1969-01-06"):  # Mondays
        series = pd.Series(y, pd.date_range(begin, periods=900, freq="D"))
        forecaster = make(horizon=5, context_length=4, train=train).fit(series)
        assert forecaster.linear_.share
        assert np.ptp(forecaster.calibration_.sizes[1]) > 0.5
        said.append(forecaster.predict(level=80).to_numpy(dtype=float))
    np.testing.assert_allclose(said[1], said[0], rtol=1e-9)
    np.testing.assert_allclose(said[2], said[0], rtol=1e-9)


def test_the_order_of_the_series_does_not_change_the_intervals(monkeypatch):
    seen, calibrate = [], module.calibrate
    monkeypatch.setattr(module, "calibrate", lambda *a, **k: seen.append(k["earlier"]) or calibrate(*a, **k))
    past = panel_frame(600, holes=False)
    other = pd.concat([past[past["unique_id"] == name] for name in reversed(SERIES)])
    forward, backward = (
        make(context_length=12, train=TrainConfig(steps=0, validation=30)).fit(y).predict(level=80, ids=list(SERIES))
        for y in (past, other)
    )
    assert len(seen) == 2
    for trained in seen:  # some of the training windows tell how large errors are, not all
        assert 20 < len(trained.series) < 300
    close(numbers(backward), numbers(forward), 1e-9)


@pytest.mark.parametrize(("factor", "shift"), [(1e3, -7e3), (1e12, 0), (1e-12, 0), (0.01, 100)])
def test_units_pass_through(forecaster, factor, shift):
    in_float64(forecaster)
    expected = factor * numbers(forecaster.predict(y=WHOLE, level=LEVELS)) + shift
    other = numbers(forecaster.predict(y=WHOLE.assign(y=factor * WHOLE["y"] + shift), level=LEVELS))
    close(other, expected, 1e-9)


@pytest.mark.parametrize("what", ["a spike", "another level", "a spike in fit"])
def test_what_is_usual_does_not_spoil_a_stream_that_leaves_it(what, monkeypatch):
    random, y = np.random.default_rng(0), np.zeros((1500, 6))
    for row in range(1, len(y)):
        y[row] = 0.95 * y[row - 1] + 0.3 * random.normal(size=6)
    changed = y.copy()
    if what == "another level":
        changed[1200:] += 20
    else:
        changed[1200 if what == "a spike" else 700] = 1e6
    errors = []
    for pulls, parts in ((module.PULLS, module.PARTS), ((0.0,), module.PARTS[:7])):
        monkeypatch.setattr(module, "PULLS", pulls)
        monkeypatch.setattr(module, "PARTS", parts)
        fitted = make(horizon=24, context_length=48, season_length=1, train=LINEAR).fit(changed[:1200])
        said, at = [], 1200
        for until in range(1300, 1480, 20):
            fitted = fitted.update(changed[at:until])
            said.append(np.abs(fitted.predict() - changed[until : until + 24]).mean())
            at = until
        errors.append(np.mean(said))
    assert errors[0] < 1.1 * errors[1]


def test_a_fit_in_other_units_is_the_fit_in_these_units():
    expected = numbers(make().fit(PAST).predict(level=LEVELS))
    got = numbers(make().fit(PAST.assign(y=1024 * PAST["y"])).predict(level=LEVELS))
    close(got, 1024 * expected, 1e-6)


# Bounded


@pytest.mark.parametrize("case", [*((variant, False) for variant in VARIANTS), ("lmm", True)], ids=str)
def test_a_very_long_series_leaves_forecasts_finite_and_bounded(case, monkeypatch):
    model = replace(SMALL, segment=16, window=8, memory=replace(MEMORY, depth=1 + case[1]))
    forecaster = make(variant=case[0], model=model, patch_length=32, context_length=64).fit(PAST)
    shaken(forecaster.model_, torch.float32, 0.1)
    forecaster.correction_ = 1.0
    states, start = [], forecaster._start
    monkeypatch.setattr(forecaster, "_start", lambda panel: states.append(start(panel)) or states[-1])
    random = np.random.default_rng(0)
    steps = np.arange(65_536)
    clusters = np.where(steps // 1000 % 2, 7.0, -7.0) + 1e-3 * random.normal(size=len(steps))
    y = np.stack([np.full(len(steps), 123.456), np.zeros(len(steps)), 1e6 * np.sin(steps * np.pi / 8), clusters], 1)
    days = pd.date_range("1900-01-01", periods=len(steps), freq="D")
    forecaster.adapt = False  # the memories of a history learn all the same, and no forecast is put by every other row
    out = forecaster.predict(y=pd.DataFrame(y, index=days, columns=list("abcd")), level=80).to_numpy().reshape(5, 4, 3)
    np.testing.assert_allclose(out[:, 0], 123.456, rtol=1e-12)
    assert (out[:, 1] == 0).all()
    assert (np.abs(out[:, 2]) < 1e7).all()
    assert (np.abs(out[:, 3]) < 70).all()
    assert out[:, 2].std() > 0
    memory = [leaf for part in states[0].series.backbone for leaf in memory_of(part).weights + memory_of(part).momentum]
    assert states[0].series.position.tolist() == [65_536] * 4
    assert all(leaf.isfinite().all() and leaf.abs().max() < 100 for leaf in memory)


# Round trip

DAYS = pd.date_range("2024-03-20", periods=60, freq="D")
WAVE = np.sin(np.arange(60) / 3) + 0.1 * np.random.default_rng(5).normal(size=60)


def wide(index=DAYS):
    return pd.DataFrame({"a": WAVE, "b": 50 - 3 * WAVE}, index=index)


def long(index=DAYS, ids=("a", "b")):
    frame = pd.DataFrame({"ds": [*index, *index], "y": wide().to_numpy().T.ravel()})
    column = pd.Series([None] * 120, dtype=object)
    column[:] = [name for name in ids for _ in range(60)]
    return frame.assign(unique_id=column.infer_objects())[["unique_id", "ds", "y"]]


def entries(data):
    return [{"target": data[name].to_numpy(), "start": pd.Period(data.index[0], "D"), "item_id": name} for name in "ab"]


BERLIN = pd.date_range("2024-03-29", periods=60, freq="h", tz="Europe/Berlin")  # over a clock change
MONTHS = pd.period_range("2020-01", periods=60, freq="M")
KINDS = {
    "long": long(),
    "long with a time zone": long(BERLIN),
    "long with periods": long(MONTHS),
    "long with whole numbers": long(range(100, 700, 10)),
    "seconds": long(DAYS.as_unit("s")),
    "series": wide()["a"],
    "series without a name": pd.Series(WAVE, index=MONTHS),
    "wide": wide(),
    "wide with a time zone": wide(BERLIN),
    "wide with whole numbers": wide(pd.RangeIndex(60)),
    "vector": WAVE,
    "matrix": wide().to_numpy(),
    "entries": wide(),
}


def cut(name, begin, end):
    """Rows `begin` to `end` of every series of `KINDS[name]`."""
    data = KINDS[name]
    if name.startswith("long") or name == "seconds":
        place = data.groupby("unique_id").cumcount()
        return data[(place >= begin) & (place < end)]
    return entries(data.iloc[begin:end]) if name == "entries" else data[begin:end]


def assert_identical(left, right):
    assert type(left) is type(right)
    if isinstance(left, pd.DataFrame):
        pd.testing.assert_frame_equal(left, right, check_exact=True, check_freq=False)
    elif isinstance(left, pd.Series):
        pd.testing.assert_series_equal(left, right, check_exact=True, check_freq=False)
    else:
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("name", KINDS)
def test_a_saved_forecaster_goes_on_bit_for_bit(name, tmp_path):
    forecaster = make(horizon=3).fit(cut(name, 0, 50))
    forecaster.save(tmp_path / "saved")
    loaded = TitansForecaster.load(tmp_path / "saved")
    first = forecaster.predict()
    assert_identical(loaded.predict(), first)
    assert_identical(loaded.predict(2, level=LEVELS), forecaster.predict(2, level=LEVELS))
    for begin, end in ((50, 51), (51, 60)):
        forecaster.update(cut(name, begin, end))
        loaded.update(cut(name, begin, end))
    assert_identical(loaded.predict(level=LEVELS), forecaster.predict(level=LEVELS))
    assert equal(leaves(loaded._known.state), leaves(forecaster._known.state))
    assert not np.array_equal(np.asarray(forecaster.predict())[..., -1], np.asarray(first)[..., -1])


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_has_the_same_numbers_and_goes_back_in_its_own(name):
    data = cut(name, 0, 50)
    same = WAVE if name in ("series", "series without a name", "vector") else KINDS["matrix"]
    expected = make(season_length=7).fit(same[:50]).predict()
    out = make(season_length=7).fit(data).predict()
    assert isinstance(out, pd.DataFrame if name == "entries" else type(data))
    if isinstance(out, pd.DataFrame) and "unique_id" in out:
        out = out["TitansForecaster"].to_numpy().reshape(2, HORIZON).T
    np.testing.assert_array_equal(np.asarray(out), expected)


@pytest.mark.parametrize(
    "ids",
    [
        ("ü/ß 😀", "line\nbreak"),
        ("", " "),
        ("model.embed", "state.0"),
        ("1", 1),
        (3, -1),
        (np.int64(7), np.int64(8)),
        (1.5, float("inf")),
        (True, False),
        (("a", 1), ("b", (2, "c"))),
        (pd.Timestamp("2024-01-01"), pd.Timestamp("2024-01-02")),
        (pd.Timestamp("2024-01-01", tz="Europe/Berlin"), pd.Timestamp("2024-07-01", tz="Europe/Berlin")),
    ],
    ids=str,
)
def test_any_id_comes_back(ids, tmp_path):
    past, later = split(long(ids=ids), 3)
    forecaster = make(train=LINEAR).fit(past)
    forecaster.save(tmp_path)
    loaded = TitansForecaster.load(tmp_path)
    assert loaded.fitted_ids_ == ids
    assert list(map(type, loaded.fitted_ids_)) == list(map(type, forecaster.fitted_ids_))
    assert_identical(loaded.update(later).predict(), forecaster.update(later).predict())
    assert len(loaded.fitted_ids_) == 2


def test_an_id_that_cannot_be_written_is_refused_and_the_old_file_stays(tmp_path):
    fitted().save(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(TypeError, match="only strings, numbers and timestamps"):
        make(train=LINEAR).fit(long(ids=(pd.Timedelta("1D"), pd.Timedelta("2D")))).save(tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "weights.safetensors"]


def test_every_parameter_comes_back(tmp_path):
    params = {
        "horizon": np.int64(3),
        "freq": pd.offsets.Day(),
        "season_length": np.int32(7),
        "quantiles": np.array([0.25, 0.5]),
        "point": "median",
        "variant": "mag",
        "time_limit": np.float32(60),
        "on_gap": "mask",
    }
    forecaster = make(**params).fit(cut("long", 0, 50))
    forecaster.save(tmp_path)
    loaded = TitansForecaster.load(tmp_path)
    expected = forecaster.get_params() | {"freq": "D", "quantiles": (0.25, 0.5)}
    assert loaded.get_params() == expected
    assert (loaded.freq_, loaded.season_length_, loaded.skipped_, loaded.history_, loaded.context_length_) == (
        forecaster.freq_,
        forecaster.season_length_,
        forecaster.skipped_,
        forecaster.history_,
        forecaster.context_length_,
    )
    assert_identical(loaded.predict(), forecaster.predict())
    assert_identical(loaded.fit(cut("long", 0, 50)).predict(), forecaster.predict())


@pytest.mark.parametrize("train", [LINEAR, replace(QUICK, linear=False)], ids=["linear", "model"])
def test_half_a_forecaster_comes_back_too(train, tmp_path):
    forecaster = make(train=train).fit(PAST)
    forecaster.save(tmp_path)
    assert_identical(TitansForecaster.load(tmp_path).predict(level=LEVELS), forecaster.predict(level=LEVELS))


def test_a_restart_in_the_middle_of_a_stream_is_no_event(forecaster, tmp_path):
    twin = pickle.loads(pickle.dumps(forecaster))
    for place, (_, day) in enumerate(LATER.iloc[:60].groupby("ds")):
        forecaster.update(day)
        twin.update(day)
        if place % 7 == 3:
            twin.save(tmp_path)
            twin = TitansForecaster.load(tmp_path)
    pd.testing.assert_frame_equal(twin.predict(level=LEVELS), forecaster.predict(level=LEVELS), check_exact=True)


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    forecaster = fitted()
    with pytest.raises(FileExistsError, match=r"thesis\.tex"):
        forecaster.save(tmp_path)
    with pytest.raises(FileExistsError, match="is a file"):
        forecaster.save(tmp_path / "thesis.tex")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_is_no_checkpoint_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no saved forecaster"):
        TitansForecaster.load(tmp_path)
    fitted().save(tmp_path)
    torn = (tmp_path / "weights.safetensors").read_bytes()[:-100]
    (tmp_path / "weights.safetensors").write_bytes(torn)
    with pytest.raises(ValueError, match="damaged"):
        TitansForecaster.load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        TitansForecaster.load(tmp_path)


# scikit-learn's rules


def test_not_fitted_is_said_the_way_sklearn_does(tmp_path):
    forecaster = make()
    calls = [
        forecaster.predict,
        lambda: forecaster.update(LATER),
        lambda: forecaster.score(LATER),
        lambda: forecaster.save(tmp_path / "saved"),
        lambda: forecaster.fitted_ids_,
    ]
    for call in calls:
        with pytest.raises(NotFittedError):
            call()
    assert not (tmp_path / "saved").exists()


def test_the_constructor_only_stores():
    assert set(vars(make())) == set(make().get_params())
    strange = TitansForecaster(horizon="never", quantiles=None, model=3, train="hard", device=None)
    assert (strange.horizon, strange.quantiles, strange.model, strange.train) == ("never", None, 3, "hard")


def test_a_clone_fits_to_the_same_numbers_and_starts_unfitted():
    forecaster = make().fit(PAST)
    copy = clone(forecaster)
    assert copy.get_params() == forecaster.get_params()
    assert not hasattr(copy, "model_")
    pd.testing.assert_frame_equal(copy.fit(PAST).predict(level=80), forecaster.predict(level=80), check_exact=True)


def test_a_pickle_goes_on_as_the_original(forecaster):
    copy = pickle.loads(pickle.dumps(forecaster))
    pd.testing.assert_frame_equal(copy.update(LATER).predict(), forecaster.update(LATER).predict(), check_exact=True)


def test_parameters_inside_configurations_can_be_set():
    forecaster = make(model=None, train=None)
    forecaster.set_params(model__memory__depth=2, model__depth=1, train__steps=7, horizon=3)
    assert (forecaster.model.memory.depth, forecaster.model.depth, forecaster.horizon) == (2, 1, 3)
    assert forecaster.model == replace(BackboneConfig(), depth=1, memory=replace(BackboneConfig().memory, depth=2))
    assert forecaster.train == TrainConfig(steps=7)
    forecaster.set_params(model=SMALL, model__variant="mal")
    assert forecaster.model == replace(SMALL, variant="mal")
    assert SMALL.variant == "lmm"


def test_parameters_that_only_hold_together_are_set_together():
    for names in (("model__dim", "model__memory__dim"), ("model__memory__dim", "model__dim")):
        forecaster = make().set_params(**dict.fromkeys(names, 16))
        assert (forecaster.model.dim, forecaster.model.memory.dim) == (16, 16)
    with pytest.raises(ValueError, match=r"memory\.dim=8 must equal dim=16"):
        make().set_params(model__dim=16)


def test_a_parameter_that_does_not_exist_is_named_and_nothing_changes():
    forecaster = make()
    for name in ("model__wings", "model__memory__wings", "train__wings", "wings"):
        with pytest.raises(ValueError, match="'wings'"):
            forecaster.set_params(**{"train__steps": 99, name: 2})
    assert (forecaster.model, forecaster.train) == (SMALL, QUICK)


class PanelSplit:
    """Rolling origins inside every series."""

    def split(self, X, y=None, groups=None):
        ahead = X.groupby("unique_id").cumcount(ascending=False).to_numpy()
        for origin in (10, 5):
            yield np.flatnonzero(ahead >= origin), np.flatnonzero((ahead >= origin - 5) & (ahead < origin))

    def get_n_splits(self, X=None, y=None, groups=None):
        return 2


def test_grid_search_reaches_into_the_configurations():
    space = {"model__memory__depth": [1, 2], "train__steps": [2, 3]}
    search = GridSearchCV(make(), space, cv=PanelSplit(), error_score="raise").fit(PAST)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    best = search.best_estimator_
    assert best.model.memory.depth == search.best_params_["model__memory__depth"]
    assert best.history_[-1][0] == search.best_params_["train__steps"]
    assert len(best.predict()) == 3 * HORIZON
    first, last = next(iter(PanelSplit().split(PAST)))
    forecaster = make().set_params(model__memory__depth=2, train__steps=3).fit(PAST.iloc[first])
    assert search.cv_results_["split0_test_score"][3] == pytest.approx(forecaster.score(PAST.iloc[last]))


def test_it_shows_itself():
    assert "TitansForecaster" in make()._repr_html_()
    assert "TitansForecaster" in fitted()._repr_html_()
    assert repr(make(horizon=7)).startswith("TitansForecaster(")
    assert "horizon=7" in repr(make(horizon=7))


# Randomness


def test_a_seed_gives_the_same_numbers_and_another_gives_others():
    one, same, other = (make(random_state=seed, model=replace(SMALL, dropout=0.2)).fit(PAST) for seed in (1, 1, 2))
    assert equal(weights(one), weights(same))
    assert equal(leaves(one._known.state), leaves(same._known.state))
    assert one.history_ == same.history_
    pd.testing.assert_frame_equal(one.predict(level=80), same.predict(level=80), check_exact=True)
    assert not equal(weights(one), weights(other))
    generator = np.random.RandomState(1)
    first, second = (make(random_state=generator, model=one.model).fit(PAST) for _ in range(2))
    assert equal(weights(first), weights(one))
    assert not equal(weights(first), weights(second))


def test_no_global_generator_is_read_or_moved():
    forecaster = make(model=replace(SMALL, dropout=0.2))
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before, legacy = torch.random.get_rng_state(), np.random.get_state()  # noqa: NPY002
    one = weights(forecaster.fit(PAST))
    forecaster.update(LATER).predict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (np.random.get_state()[1] == legacy[1]).all()  # noqa: NPY002
    torch.manual_seed(2)
    assert equal(weights(forecaster.fit(PAST)), one)


def test_fits_in_threads_give_the_numbers_of_one_after_the_other(monkeypatch):
    class Slow(TimeSeriesModel):
        def __init__(self, config):
            time.sleep(0.02)  # all threads are here at once
            super().__init__(config)

    monkeypatch.setattr(ensemble, "TimeSeriesModel", Slow)

    def fit(seed):
        dropout = 0.3 * (seed % 2)
        return weights(make(random_state=seed, model=replace(SMALL, dropout=dropout)).fit(PAST))

    with ThreadPoolExecutor(1) as pool:
        expected = list(pool.map(fit, range(4)))
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(fit, range(4)))
    for one, two in zip(got, expected, strict=True):
        assert equal(one, two)


# Quiet


def test_nothing_is_printed_and_nothing_is_written_but_what_is_asked(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    forecaster = make().fit(PAST)
    forecaster.update(LATER).predict(level=80)
    forecaster.score(LATER.assign(ds=LATER["ds"] + pd.Timedelta("30D")))
    assert list(tmp_path.iterdir()) == []
    forecaster.save("saved")
    TitansForecaster.load("saved").predict()
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["config.json", "weights.safetensors"]
    assert capfd.readouterr() == ("", "")


def test_progress_goes_to_stderr(capfd):
    make(verbose=1, train=replace(QUICK, checks=3)).fit(PAST)
    out, err = capfd.readouterr()
    assert out == ""
    assert [line.split()[:2] for line in err.splitlines()] == [["step", f"{step}/3"] for step in (1, 2, 3)]
    assert all("validation" in line for line in err.splitlines())


# Learning


def test_a_time_limit_stops_learning_and_leaves_a_forecaster():
    started = time.monotonic()
    forecaster = make(time_limit=0.3, train=TrainConfig(steps=3000, batch=4)).fit(PAST)
    assert time.monotonic() - started < 20
    assert 1 <= forecaster.history_[-1][0] < 3000
    assert np.isfinite(numbers(forecaster.predict(level=80))).all()
    assert np.isfinite(numbers(make(time_limit=0).fit(PAST).predict())).all()


def test_the_time_before_the_optimiser_counts(monkeypatch):
    seconds, given, true = [0.0], [], ensemble.train

    def slow(*arguments, **options):
        seconds[0] += 40.0
        return fit_linear(*arguments, **options)

    def trained(*arguments, time_limit, **options):
        given.append(time_limit)
        return true(*arguments, time_limit=time_limit, **options)

    fit_linear = module.fit_linear
    monkeypatch.setattr(module, "fit_linear", slow)
    monkeypatch.setattr(module.time, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(ensemble, "train", trained)
    make(time_limit=100.0).fit(PAST)
    make(time_limit=100, ensemble=3).fit(PAST)
    make(time_limit=30).fit(PAST)
    make().fit(PAST)
    assert given == [60.0, 20.0, 20.0, 20.0, -10.0, np.inf]


@pytest.mark.parametrize("limit", ["x", "60", -1, -1e-9, float("nan"), True, 1j, (60,)])
def test_a_time_limit_that_is_none_is_refused(limit):
    with pytest.raises(ValueError, match=r"time_limit=.* must be a number of seconds, 0 or more, or None"):
        make(time_limit=limit).fit(PAST)


@pytest.mark.parametrize("series", [1, 3])
@pytest.mark.parametrize("rows", [2, 3])
def test_where_nothing_can_be_learnt_no_step_is_made_and_that_is_said(rows, series, monkeypatch, capfd):
    y = np.random.default_rng(0).normal(size=(rows, series))
    params = {"horizon": 1, "patch_length": 1, "context_length": 4, "train": TrainConfig(steps=3), "verbose": 1}
    monkeypatch.setattr(training, "forecast_batch", lambda *_: pytest.fail("it trained"))
    forecaster = make(**params).fit(y)
    assert capfd.readouterr().err == "no step: no series has 3 rows to train on\n"
    assert (forecaster.history_, forecaster.correction_) == ([], 0.0)
    linear = make(**{**params, "train": LINEAR}).fit(y)
    assert capfd.readouterr().err == ""  # nobody asked for a step
    np.testing.assert_array_equal(forecaster.predict(level=80), linear.predict(level=80))


def test_two_rows_before_a_horizon_are_learnt_from():
    y = np.random.default_rng(0).normal(size=(6, 4))
    settings = TrainConfig(steps=6, validation=0)
    forecaster = make(horizon=5, patch_length=1, context_length=4, intervals="head", train=settings).fit(y)
    assert np.isfinite(forecaster.predict(level=80)).all()
    other = make(horizon=5, patch_length=1, context_length=4, intervals="head", train=replace(settings, steps=1)).fit(y)
    assert (forecaster.predict(level=80) != other.predict(level=80)).any()


def test_the_shortest_series_that_can_be_learnt_from_is(capfd):
    y = np.random.default_rng(0).normal(size=4)
    make(horizon=1, patch_length=1, context_length=4, verbose=1).fit(y)
    assert capfd.readouterr().err.startswith("step 3/3")


def test_a_warm_start_goes_on_and_a_cold_one_begins_anew():
    forecaster = make().fit(PAST)
    before = [w.clone() for w in weights(forecaster)]
    still = replace(QUICK, steps=1, learning_rate=1e-12)
    warm = clone(forecaster).set_params(train=still, warm_start=True)
    warm.model_ = forecaster.model_
    distance = [float((a - b).abs().max()) for a, b in zip(weights(warm.fit(WHOLE)), before, strict=True)]
    assert max(distance) < 1e-9
    cold = weights(clone(forecaster).set_params(train=still).fit(WHOLE))
    assert not equal(cold, before)
    assert equal(weights(forecaster), before)  # the weights it began from are not written to


def test_a_warm_start_on_another_shape_begins_anew():
    forecaster = make(warm_start=True).fit(PAST)
    forecaster.set_params(horizon=3).fit(PAST)
    assert len(forecaster.predict()) == 9


def test_the_validation_rows_do_not_train_the_model():
    """Without a linear path they choose the penalty of the map that the head starts at, and when to stop."""
    panel = read(PAST)[0]
    ends = validation_ends(panel, QUICK.validation, HORIZON)
    place = PAST.groupby("unique_id").cumcount().to_numpy()
    behind = place >= np.repeat(ends, panel.lengths)
    assert behind.any()
    moved = PAST.assign(y=np.where(behind, 1.001 * PAST["y"], PAST["y"]))
    alone = replace(QUICK, linear=False)
    one, two = make(train=alone).fit(PAST), make(train=alone).fit(moved)
    assert one.history_[-1][1] != two.history_[-1][1]  # they are looked at
    assert equal(weights(one), weights(two))
    earlier = PAST.assign(y=np.where(place < 40, PAST["y"] + place % 3, PAST["y"]))
    assert not equal(weights(make(train=alone).fit(earlier)), weights(one))


def test_the_head_starts_at_the_ridge_map_of_what_the_blocks_say():
    """Silent blocks leave the embedded values: after one tiny step the model still forecasts like ridge on them."""
    steps = np.arange(400)
    y = np.sin(2 * np.pi * steps / 7) + 0.5 * np.sin(2 * np.pi * steps / 11)
    still = replace(QUICK, linear=False, steps=1, learning_rate=1e-9)
    whole = BackboneConfig(dim=8, depth=1, memory=replace(SMALL.memory, dim=8), dropout=0.0)
    forecaster = make(train=still, model=whole, context_length=24).fit(y[:380])
    error = np.abs(forecaster.predict() - y[380 : 380 + HORIZON]).max()
    assert error < 0.1
    untrained = make(train=replace(still, validation=0), model=whole, context_length=24).fit(y[:380])
    assert np.abs(untrained.predict() - y[380 : 380 + HORIZON]).max() > 0.5


def test_beside_a_linear_path_the_validation_rows_choose_its_penalty_and_nothing_else():
    place = PAST.groupby("unique_id").cumcount(ascending=False)
    moved = PAST.assign(y=np.where(place < 2, PAST["y"] * 1.01, PAST["y"]))
    one, two = make().fit(PAST), make().fit(moved)
    assert one.linear_.penalty == two.linear_.penalty
    assert one.history_ != two.history_
    assert equal(weights(one), weights(two))


def some_batch(gain, generator):
    """Errors of size one that the whole correction shrinks to `1 - gain`."""
    left = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    one = torch.ones(20, dtype=torch.float64)
    return Batch(torch.zeros_like(left), gain * left, left[..., None], one, left, one, one, one)


def test_a_correction_enters_only_where_its_gain_is_beyond_doubt():
    generator = torch.Generator().manual_seed(0)

    def weight(*gains):
        return confirmed_weight([[some_batch(gain, generator)] for gain in gains])

    assert weight(*[0.5] * 8) == 1.0
    assert weight(*[-0.5] * 8) == 0.0
    assert weight(*[2.0] * 8) == 0.5  # it speaks twice too loud
    assert weight(0.9, -0.3, -0.3, -0.3, 0.9, -0.3, -0.3, -0.3) == 0.0  # where it helps, it may be by chance
    assert weight(0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, -0.1) > 0.5
    small = [[some_batch(0.03, generator)] for _ in range(8)]
    assert 0 < confirmed_weight(small, horizons=1.0) < confirmed_weight(small) == 1.0  # little was validated
    # squared error gains where absolute error loses: not taken
    outliers = [[Batch(*(part.clone() for part in some_batch(0.0, generator)))] for _ in range(8)]
    for group in outliers:
        truth = torch.cat([torch.full((1, 3), 10.0), torch.zeros(19, 3)]).double()
        group[0] = group[0]._replace(truth=truth, shift=torch.ones(20, 3, dtype=torch.float64))
    half, none = errors_left(outliers, [0.5, 0.0]).mean(1)[:, 0, 0]
    assert half < none
    assert confirmed_weight(outliers) == 0.0


def test_validation_groups_hold_every_sequence_once_in_the_order_of_time():
    random = np.random.default_rng(0)
    rows = rows_of(*(random.normal(size=n) for n in (400, 300, 350)))
    ends = torch.tensor([200, 250, 100])
    checks = validation_sequences(rows, ends, 20, 5)
    groups = groups_of(checks, rows, ends)
    assert len(groups) >= 8
    assert max(len(group.series) for group in groups) <= 16
    share = [(group.first - ends[group.series]) / (rows.ends - rows.starts - ends)[group.series] for group in groups]
    assert all(a.max() <= b.min() for a, b in pairwise(share))
    seen = sorted((int(s), int(f)) for group in groups for s, f in zip(group.series, group.first, strict=True))
    assert seen == sorted(zip(checks.series.tolist(), checks.first.tolist(), strict=True))


def test_bare_contexts_end_where_forecasts_begin_and_bring_one_forecast_each():
    model = fitted().model_
    rows = rows_of(*(np.random.default_rng(place).normal(size=n) for place, n in enumerate((400, 300))))
    patch, size = model.config.patch, -(-model.config.context // model.config.patch) * model.config.patch
    checks = validation_sequences(rows, torch.tensor([200, 100]), 2 * size, patch)
    bare = training.bare_contexts(checks, size, patch)
    assert (bare.end - bare.begin == size).all()
    for series, first in zip(checks.series, checks.first, strict=True):
        assert first in bare.end[bare.series == series]
    assert (bare.first == bare.end).all()
    with torch.no_grad():
        batch = forecast_batch(model, None, rows, bare, size, torch.Generator().manual_seed(0))
    assert len(batch.truth) == (bare.end < (rows.ends - rows.starts)[bare.series]).sum()
    assert bare.state is None


def test_short_validation_parts_are_judged_from_bare_contexts_too_and_never_before_they_begin():
    checks = Sequences(*(torch.tensor([value]) for value in (0, 0, 23, 21)))
    bare = training.bare_contexts(checks, 24, 8)
    assert bare.end.tolist() == [21]
    assert (bare.first >= 21).all()
    long = rows_of(np.random.default_rng(0).normal(size=200))
    some = training.bare_contexts(validation_sequences(long, torch.tensor([176]), 48, 8), 24, 8)
    assert some.end.tolist()[0] == 176
    assert len(some.end) >= 2


def test_a_correction_of_which_nothing_is_known_is_none():
    nothing = some_batch(1.0, torch.Generator().manual_seed(0))
    nothing = nothing._replace(truth=torch.full_like(nothing.truth, torch.nan))
    assert confirmed_weight([[nothing]] * 8) == 0.0
    assert confirmed_weight([[some_batch(0.5, torch.Generator().manual_seed(0))]] * 3) == 0.0  # too few groups


def rows_of(*series):
    values = torch.from_numpy(np.concatenate(series))
    ends = torch.tensor([len(one) for one in series]).cumsum(0)
    starts = ends - torch.tensor([len(one) for one in series])
    return Rows(values, starts, ends, torch.ones(len(series), dtype=torch.float64))


def test_a_batch_sees_nothing_at_or_behind_the_end_of_its_series():
    model = fitted().model_
    random = np.random.default_rng(0)
    one, two, behind = random.normal(size=60), random.normal(size=50), random.normal(size=50)
    ends = torch.tensor([40, 90])  # of the first series 20 rows are not there yet

    def batch(first, second):
        rows = rows_of(first, second)._replace(ends=ends)
        every = torch.arange(0, 40, 4)
        sequences = Sequences(torch.zeros_like(every), every, torch.full_like(every, 39), every)
        return forecast_batch(model, None, rows, sequences, 24, torch.Generator().manual_seed(0))

    with torch.no_grad():
        expected, got = batch(one, two), batch(np.concatenate([one[:40], behind[:20]]), behind)
        other = batch(np.concatenate([one[:39], [7.0], one[40:]]), two)
    assert len(expected.truth) > 30
    assert equal(expected, got)
    assert expected.truth.isnan().any()
    assert not equal(expected, other)


def test_training_sees_nothing_behind_the_ends_it_is_given():
    config = make().fit(PAST).model_.config
    random = np.random.default_rng(0)
    one, two, behind = random.normal(size=80), random.normal(size=70), random.normal(size=70)
    ends, settings = torch.tensor([60, 50]), replace(QUICK, steps=5)

    def trained(first, second):
        torch.manual_seed(0)
        model = TimeSeriesModel(config)
        rows = rows_of(first, second)
        training.train(model, None, rows, ends, settings, seed=0)
        return list(model.state_dict().values())

    expected = trained(one, two)
    assert equal(trained(np.concatenate([one[:60], behind[:20]]), np.concatenate([two[:50], behind[:20]])), expected)
    assert not equal(trained(np.concatenate([one[:59], [7.0], one[60:]]), two), expected)


def test_the_last_look_at_the_validation_rows_is_at_the_weights_that_are_kept(monkeypatch):
    config = make().fit(PAST).model_.config
    torch.manual_seed(0)
    model = TimeSeriesModel(config)
    random = np.random.default_rng(0)
    rows, ends = rows_of(random.normal(size=120), random.normal(size=110)), torch.tensor([80, 70])
    looks = []

    def look(model, linear, rows, checks, length):
        looks.append((model, checks, length))
        return validation_batches(model, linear, rows, checks, length)

    monkeypatch.setattr(training, "validation_batches", look)
    found = training.train(model, None, rows, ends, replace(QUICK, steps=4, checks=2, learning_rate=1e-3), seed=0)
    *_, (_, checks, length) = looks
    anew = validation_batches(model, None, rows, checks, length)
    expected = training.thinned([remembering for _, remembering in anew], 10**6)
    assert found.judged is not None
    assert equal(found.judged, expected)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_judging_starts_as_far_as_forecasts_are_made_from_it(weight):
    forecaster = make(season_length=7).fit(PAST)
    forecaster.correction_ = weight
    forecaster.calibration_ = replace(forecaster.calibration_, head=0.0, mean=0.0, median=0.0)
    panel = read(PAST)[0]
    every = np.arange(len(panel))
    whole, short = (
        forecaster._forecast(start(panel), every) for start in (forecaster._start, forecaster._start_to_judge)
    )
    np.testing.assert_allclose(short.quantiles, whole.quantiles, rtol=1e-9)
    np.testing.assert_allclose(short.point, whole.point, rtol=1e-9)


# A fit or update that fails


@pytest.mark.parametrize(("home", "culprit"), [(ensemble, "train"), (module, "advance")], ids=["train", "advance"])
def test_a_fit_that_fails_leaves_the_forecaster_as_it_was(home, culprit, monkeypatch):
    forecaster = make(season_length=7).fit(PAST)
    before, attributes = forecaster.predict(level=80), set(vars(forecaster))
    monkeypatch.setattr(home, culprit, lambda *args, **kwargs: 1 / 0)
    forecaster.set_params(season_length=None)
    with pytest.raises(ZeroDivisionError):
        forecaster.fit(wide(BERLIN))
    monkeypatch.undo()
    assert set(vars(forecaster)) == attributes
    assert (forecaster.freq_, forecaster.season_length_, forecaster.fitted_ids_) == ("D", 7, SERIES)
    pd.testing.assert_frame_equal(forecaster.predict(level=80), before, check_exact=True)
    forecaster.update(LATER)


def test_data_that_cannot_be_fitted_leave_the_forecaster_as_it_was():
    forecaster = make().fit(PAST)
    before = forecaster.predict(level=80)
    for bad in (np.ones(3), PAST.assign(y=np.inf), wide().iloc[:3]):
        with pytest.raises(DataError):
            forecaster.fit(bad)
    pd.testing.assert_frame_equal(forecaster.predict(level=80), before, check_exact=True)


def test_a_first_fit_that_fails_leaves_it_unfitted():
    forecaster = make()
    with pytest.raises(DataError):
        forecaster.fit(np.ones(1))
    assert set(vars(forecaster)) == set(forecaster.get_params())
    with pytest.raises(NotFittedError):
        forecaster.predict()


def test_an_update_that_fails_inside_leaves_the_forecaster_as_it_was(monkeypatch):
    forecaster = fitted()
    before, state = forecaster.predict(), forecaster._known.state
    monkeypatch.setattr(module, "put_rows", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        forecaster.update(LATER)
    assert forecaster._known.state is state
    pd.testing.assert_frame_equal(forecaster.predict(), before, check_exact=True)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"horizon": 6}, "longer than the fitted horizon of 5"),
        ({"horizon": 0}, "1 or more"),
        ({"horizon": 2.0}, "whole number"),
        ({"ids": ["a", "z"]}, r"'z'.*'a', 'b', 'c'"),
        ({"ids": []}, r"'a', 'b', 'c'"),
        ({"future": LATER}, "no covariates are configured"),
        ({"level": 120}, "between 0 and 100"),
        ({"quantiles": [0.0]}, "between 0 and 1"),
    ],
)
def test_a_wrong_argument_says_what_to_do(arguments, words):
    with pytest.raises(ValueError, match=words):
        fitted().predict(**arguments)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"horizon": 0}, "horizon=0"),
        ({"quantiles": (0.5, 0.5)}, "quantiles"),
        ({"quantiles": (0.5, 1.5)}, "quantiles"),
        ({"point": "mode"}, "'mean' or 'median'"),
        ({"context_length": 0}, "context_length=0"),
        ({"patch_length": 15}, "between 1 and context_length=14"),
        ({"on_short": "cry"}, "'pad', 'skip' or 'raise'"),
        ({"on_gap": "cry"}, "on_gap='cry'"),
        ({"season_length": 0}, "season_length=0"),
    ],
)
def test_a_wrong_parameter_says_what_to_do(params, words):
    with pytest.raises(ValueError, match=words):
        make(**params).fit(PAST)


def test_a_horizon_set_after_fit_asks_for_another_fit():
    forecaster = fitted().set_params(horizon=HORIZON + 3)
    with pytest.raises(ValueError, match="horizon=8 was set after fit"):
        forecaster.predict()
    assert len(forecaster.fit(PAST).predict()) == 3 * (HORIZON + 3)


def test_the_median_is_the_middle_quantile():
    median = fitted().set_params(point="median").predict(quantiles=[0.5])
    assert (median["TitansForecaster"] == median["TitansForecaster-ql0.5"]).all()
    mean = fitted().predict(quantiles=[0.5])
    assert (mean["TitansForecaster-ql0.5"] == median["TitansForecaster-ql0.5"]).all()
    skewed = copy.deepcopy(fitted())
    habits = skewed.calibration_.habits * [1.0, 1.0, 0.0, 1.0, 1.0]  # without fading memories
    skewed.calibration_ = replace(skewed.calibration_, mean=0.0, median=1.0, habits=habits)
    apart = skewed.predict()["TitansForecaster"] - skewed.set_params(point="median").predict()["TitansForecaster"]
    assert (apart.abs() > 1e-6).all()


def test_quantiles_at_any_level_are_in_order_and_those_trained_are_exact():
    levels = [0.001, 0.05, 0.1, 0.15, 0.5, 0.85, 0.9, 0.95, 0.999]
    out = fitted().predict(quantiles=levels, level=80)
    values = out[[f"TitansForecaster-ql{level:g}" for level in levels]].to_numpy()
    assert (np.diff(values, axis=1) > 0).all()
    assert (out["TitansForecaster-lo-80"] == out["TitansForecaster-ql0.1"]).all()
    wide_levels = make(quantiles=(0.9, 0.1)).fit(PAST)
    assert wide_levels.levels_ == (0.1, 0.9)
    assert np.isfinite(numbers(wide_levels.predict(level=[50, 99]))).all()
    one = make(quantiles=(0.5,)).fit(PAST)
    assert "TitansForecaster-ql0.5" in one.predict(quantiles=0.5)
    with pytest.raises(ValueError, match="only trained one"):
        one.predict(level=80)


# Tiny and extreme data


def test_one_row_among_other_series_is_a_series():
    born = pd.DataFrame({"unique_id": ["new"], "ds": [PAST["ds"].max()], "y": [42.0]})
    forecaster = make().fit(pd.concat([PAST, born]))
    out = forecaster.predict(level=80)
    assert (out.loc[out["unique_id"] == "new"].iloc[:, 2:] == 42.0).all(axis=None)
    update = fitted().update(pd.concat([LATER, born.assign(ds=LATER["ds"].max())]))
    assert update.predict(ids=["new"])["TitansForecaster"].tolist() == [42.0] * HORIZON


@pytest.mark.parametrize("length", [6, 12, 30])
@pytest.mark.parametrize("train", [QUICK, LINEAR, replace(QUICK, linear=False)], ids=["both", "linear", "model"])
def test_a_short_series_alone_is_forecast(length, train):
    y = 10 + WAVE[:length]
    out = make(context_length=None, patch_length=None, train=train).fit(y).predict(quantiles=[0.1, 0.5, 0.9])
    assert out.shape == (HORIZON, 4)
    assert np.isfinite(out).all()
    assert (np.diff(out[:, 1:]) >= 0).all()
    assert (np.abs(out - y.mean()) < 10).all()


def test_too_little_to_learn_from_says_so():
    with pytest.raises(DataError, match=r"1 training rows.*shorter horizon"):
        make().fit(np.array([3.0]))
    with pytest.raises(ValueError, match="no series is long enough"):
        make(train=replace(QUICK, linear=False), context_length=None, patch_length=4).fit(WAVE[:8])


@pytest.mark.parametrize("constant", [0.0, 5.0, 123.456, -1e12 / 3])
@pytest.mark.parametrize("train", [QUICK, LINEAR, replace(QUICK, linear=False)], ids=["both", "linear", "model"])
def test_constants_go_on(constant, train):
    out = make(train=train).fit(np.full(60, constant)).predict(quantiles=[0.01, 0.5, 0.99])
    np.testing.assert_allclose(out, constant, rtol=1e-12, atol=0)


def test_a_constant_among_others_goes_on():
    frame = WHOLE.assign(y=WHOLE["y"].where(WHOLE["unique_id"] != "b", 7.0))
    forecaster = make().fit(frame)
    out = forecaster.predict(level=80)
    np.testing.assert_allclose(numbers(out, "b"), 7.0, rtol=1e-12)
    assert np.abs(numbers(out, "a")).max() > 0.1


@pytest.mark.parametrize("size", [1e12, 1e-12])
def test_huge_and_tiny_values_are_forecast_like_others(size):
    expected = make().fit(PAST)
    forecaster = make().fit(PAST.assign(y=size * PAST["y"]))
    close(numbers(forecaster.predict(level=80)), size * numbers(expected.predict(level=80)), 1e-4)
    forecaster.update(LATER.assign(y=size * LATER["y"]))
    close(numbers(forecaster.predict()), size * numbers(expected.update(LATER).predict()), 1e-4)


def test_a_linear_path_alone_and_a_model_alone_are_what_they_say():
    linear, model = make(train=LINEAR).fit(PAST), make(train=replace(QUICK, linear=False)).fit(PAST)
    assert (linear.correction_, linear.history_) == (0.0, [])
    assert (model.linear_, model.correction_) == (None, 1.0)
    scrambled = pickle.loads(pickle.dumps(linear))
    scrambled._known = replace(scrambled._known, state=map_state(torch.clone, scrambled._known.state))
    shaken(scrambled.model_, torch.float32)
    np.testing.assert_array_equal(numbers(scrambled.predict(level=80)), numbers(linear.predict(level=80)))
    assert not np.allclose(numbers(model.predict()), numbers(linear.predict()))


# Series too short, series too bad


def short_frame():
    return pd.concat([PAST, PAST[PAST["unique_id"] == "a"].tail(8).assign(unique_id="short", y=WAVE[:8])])


def test_a_short_series_is_padded_skipped_or_refused():
    padded = make(on_short="pad").fit(short_frame())
    skipping = make(on_short="skip").fit(short_frame())
    for forecaster in (padded, skipping):
        assert forecaster.fitted_ids_ == (*SERIES, "short")
        assert np.isfinite(numbers(forecaster.predict(), ["short"])).all()
    assert padded.skipped_ == {}
    assert list(skipping.skipped_) == ["short"]
    assert "8 rows" in skipping.skipped_["short"]
    alone = make().fit(PAST)
    assert equal(weights(skipping), weights(alone))  # not learnt from
    assert (skipping.linear_.weights == alone.linear_.weights).all()
    assert (padded.linear_.weights != alone.linear_.weights).any()
    with pytest.raises(DataError, match=r"'short' has 8 rows.*on_short='pad'"):
        make(on_short="raise").fit(short_frame())
    make(on_short="raise").fit(PAST)


def bad_panel():
    spoilt = {
        "infinite": ONE.assign(y=ONE["y"].where(ONE.index != 50, np.inf)),
        "twice": pd.concat([ONE, ONE.iloc[40:41]]),
        "gap": ONE.drop(index=range(30, 33)),
        "silent": ONE.assign(y=np.nan),
    }
    return pd.concat([WHOLE, *(frame.assign(unique_id=name) for name, frame in spoilt.items())])


def test_one_bad_series_never_stops_the_panel_when_asked():
    words = {"infinite": "1 values are infinite", "twice": "repeat a timestamp", "gap": "3 steps", "silent": "no value"}
    forecaster = make(on_bad="skip").fit(bad_panel())
    assert set(forecaster.skipped_) == set(words)
    for name, word in words.items():
        assert word in forecaster.skipped_[name]
    pd.testing.assert_frame_equal(forecaster.predict(level=80), make().fit(WHOLE).predict(level=80), check_exact=True)
    for name, word in words.items():
        with pytest.raises(DataError, match=f"{name}.*{word}"):
            make().fit(bad_panel()[lambda f, name=name: f["unique_id"].isin(["b", name])])


def test_skipped_series_are_remembered_on_disk(tmp_path):
    forecaster = make(on_bad="skip").fit(bad_panel())
    forecaster.save(tmp_path)
    assert TitansForecaster.load(tmp_path).skipped_ == forecaster.skipped_


REFUSED = {
    "gap": (ONE.drop(index=[20, 21]), ["'a'", "2 steps", "on_gap='mask'"]),
    "duplicate": (pd.concat([ONE, ONE.iloc[7:8]]), ["'a'", "repeat a timestamp", "on_duplicate="]),
    "infinite": (ONE.assign(y=ONE["y"].where(ONE.index != 9, -np.inf)), ["'a'", "infinite", "NaN"]),
    "empty": (ONE.iloc[:0], ["no rows"]),
    "never observed": (ONE.assign(y=np.nan), ["'a'", "no value was ever observed"]),
    "text": (ONE.assign(y="three"), ["'y'"]),
    "times as text": (ONE.assign(ds=ONE["ds"].astype(str)), ["'ds'"]),
    "no target column": (ONE.drop(columns="y"), ["'y'"]),
    "a scalar": (3.0, ["float"]),
    "three axes": (np.zeros((2, 2, 2)), ["(2, 2, 2)"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_data_are_refused_with_a_reason_everywhere(case):
    data, words = REFUSED[case]
    forecaster = fitted()
    before = forecaster.predict()
    for call in (make().fit, lambda bad: forecaster.predict(y=bad), forecaster.update):
        with pytest.raises(DataError) as caught:
            call(data)
        if call != forecaster.update or case not in ("never observed",):
            for word in words:
                assert word in str(caught.value), str(caught.value)
    pd.testing.assert_frame_equal(forecaster.predict(), before, check_exact=True)


def test_a_wrong_frequency_and_a_wrong_zone_are_refused():
    with pytest.raises(DataError, match="freq="):
        make(freq="h").fit(ONE)
    hourly = ONE.assign(ds=pd.date_range("2024-01-01", periods=len(ONE), freq="h"))
    for bad in (hourly, ONE.iloc[::2]):
        with pytest.raises(DataError, match="freq='D' is known from fit"):
            fitted().predict(y=bad)
    with pytest.raises(DataError, match="zone"):
        fitted().update(LATER.assign(ds=LATER["ds"].dt.tz_localize("UTC")))
    with pytest.raises(DataError, match="3 steps are missing"):
        fitted().update(LATER[LATER["ds"] > LATER["ds"].min() + pd.Timedelta("2D")])
    with pytest.raises(DataError, match="known already"):
        fitted().update(WHOLE)


def test_what_is_only_untidy_is_read():
    expected = make(train=LINEAR).fit(ONE).predict()
    untidy = {
        "unsorted": ONE.sample(frac=1, random_state=0),
        "numbers as objects": ONE.assign(y=ONE["y"].astype(object)),
        "None for missing": ONE.assign(y=ONE["y"].astype(object).where(ONE["y"].notna(), None)),
        "an index of anything": ONE.set_index(pd.Index(np.arange(100) % 3)),
        "more columns": ONE.assign(weather="rain"),
    }
    for data in untidy.values():
        assert_identical(make(train=LINEAR).fit(data).predict(), expected)
    for policy in ("last", "mean"):
        twice = pd.concat([ONE, ONE.iloc[50:60]])
        assert_identical(make(train=LINEAR, on_duplicate=policy).fit(twice).predict(), expected)
    holed = ONE[~ONE.index.isin([20, 21])]
    missing = ONE.assign(y=ONE["y"].where(~ONE.index.isin([20, 21])))
    masked = make(train=LINEAR, on_gap="mask").fit(holed).predict()
    assert_identical(masked, make(train=LINEAR).fit(missing).predict())


def test_other_histories_are_forecast_and_forgotten():
    forecaster = fitted()
    before, known = forecaster.predict(), forecaster._known
    out = forecaster.predict(y=WHOLE.assign(unique_id="new " + WHOLE["unique_id"]))
    assert out["unique_id"].unique().tolist() == ["new a", "new b", "new c"]
    pd.testing.assert_frame_equal(forecaster.predict(), before, check_exact=True)
    assert forecaster._known is known


def test_new_rows_bring_new_series_and_leave_silent_ones():
    forecaster = fitted()
    born = LATER[LATER["unique_id"] == "b"].assign(unique_id="d")
    rows = pd.concat([LATER[LATER["unique_id"] == "a"], born])
    before = forecaster.predict(level=80)
    expected = fitted().predict(y=born, level=80)
    out = forecaster.update(rows).predict(level=80)
    assert forecaster.fitted_ids_ == (*SERIES, "d")
    np.testing.assert_allclose(numbers(out, ["d"]), numbers(expected, ["d"]), atol=1e-4)
    np.testing.assert_allclose(numbers(out, ["b", "c"]), numbers(before, ["b", "c"]), atol=1e-4)
    assert out[out["unique_id"] == "a"]["ds"].min() == LATER["ds"].max() + pd.Timedelta("1D")


def test_nothing_observed_in_the_validation_rows_leaves_intervals_as_wide_as_the_training_rows_say():
    y = np.random.default_rng(0).normal(size=200)
    y[-50:] = np.nan
    for steps in (0, 2):
        forecaster = make(on_gap="mask", train=TrainConfig(steps=steps, validation=0.2)).fit(y)
        said = forecaster.predict(level=80)
        assert ((said[:, 2] - said[:, 1]) > 1.0).all()


def test_the_head_s_intervals_need_a_trained_head():
    with pytest.raises(ValueError, match="intervals='head' needs a trained head"):
        make(intervals="head", train=TrainConfig(steps=0)).fit(PAST)
    trained = make(intervals="head").fit(PAST)
    assert trained.calibration_.head == 1.0
    assert make(intervals="conformal").fit(PAST).calibration_.head == 0.0


def test_a_series_that_begins_with_zeros_obeys_other_units_too():
    random = np.random.default_rng(0)
    y = random.normal(size=(200, 3)) + np.sin(np.arange(200) / 3)[:, None]
    y[:160, 2], y[160:, 2] = 0.0, random.poisson(5, size=40)
    linear = TrainConfig(steps=0)
    one, other = make(train=linear).fit(y).predict(), make(train=linear).fit(1024 * y).predict() / 1024
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("length", "told"), [(600, True), (100, False)])
def test_training_rows_of_long_series_tell_too_how_wide_intervals_are(length, told, monkeypatch):
    calm = np.arange(length) < 0.8 * length
    y = np.sin(2 * np.pi * np.arange(length) / 7) + np.random.default_rng(0).normal(size=length) * np.where(
        calm, 0.1, 1
    )
    one = make(train=LINEAR).fit(y)
    monkeypatch.setattr(judging, "LONG", float("inf"))
    other = make(train=LINEAR).fit(y)
    widths = [np.ptp(each.predict(level=80)[:, -2:], axis=1).mean() for each in (one, other)]
    if told:
        assert 0.2 < widths[0] / widths[1] < 0.8
    else:
        assert widths[0] == widths[1]


def test_the_parts_of_the_linear_path_are_learnt_again_saved_and_loaded(tmp_path):
    y = np.sin(np.arange(400)[:, None] / np.array([2.0, 3.0])) + np.random.default_rng(0).normal(size=(400, 2)) / 3
    forecaster = make(train=LINEAR).fit(y)
    path = forecaster.linear_
    assert sum(share for _, share in path.mix) == pytest.approx(1)
    assert path.losses
    forecaster.save(tmp_path / "model")
    loaded = TitansForecaster.load(tmp_path / "model")
    assert loaded.linear_.mix == path.mix
    np.testing.assert_array_equal(loaded.predict(), forecaster.predict())
