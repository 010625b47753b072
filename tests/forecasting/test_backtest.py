"""`backtest`: the same numbers as a loop by hand, and never a row of the future."""

import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from utilsforecast.evaluation import evaluate
from utilsforecast.losses import mae, mase, scaled_crps

from titans_ts import DataError, MemoryConfig, Ridge, SeasonalNaive, TitansForecaster, TrainConfig
from titans_ts.forecasting import metrics
from titans_ts.models.config import BackboneConfig

HORIZON, STEP, WINDOWS = 4, 3, 3
SMALL = BackboneConfig(
    dim=8,
    depth=1,
    heads=2,
    window=3,
    segment=3,
    dropout=0.0,
    residual_init=1.0,
    memory=MemoryConfig(dim=8, heads=2, depth=1, expansion=2, chunk=16, conv=2, persistent=2),
)
QUICK = TrainConfig(steps=2, batch=4, checks=1)
ALONE = TrainConfig(
    linear=False, fading=False, steps=2, batch=4, checks=1
)  # the backbone forecasts alone, so its memory is heard


def titans(**params):
    sizes = {"horizon": HORIZON, "patch_length": 2, "context_length": 12, "model": SMALL, "train": QUICK}
    return TitansForecaster(**{**sizes, "season_length": 7, "random_state": 0, **params})


MAKERS = {
    "titans": titans,
    "ridge": lambda **params: Ridge(horizon=HORIZON, context_length=12, season_length=7, **params),
    "naive": lambda **params: SeasonalNaive(horizon=HORIZON, season_length=7, **params),
}


@pytest.fixture(params=MAKERS)
def make(request):
    return MAKERS[request.param]


def panel_frame(names=("id", "day", "sales")):
    """Two daily series that start and end on different days, a value missing here and there."""
    random, parts = np.random.default_rng(0), []
    for place, name in enumerate("ab"):
        rows = 70 - 9 * place
        days = pd.date_range("2024-01-01", periods=rows, freq="D") + pd.Timedelta(days=5 * place)
        y = 10.0**place * (np.sin(np.arange(rows) / 7 * 2 * np.pi) + 0.3 * random.normal(size=rows)) + 5 * place
        y[[12, rows - 6]] = np.nan
        parts.append(pd.DataFrame({names[0]: name, names[1]: days, names[2]: y}))
    return pd.concat(parts, ignore_index=True)


NAMES = {"id_col": "id", "time_col": "day", "target_col": "sales"}
FRAME = panel_frame()


def cut(frame, ahead):
    """Every series without its last rows."""
    return frame[frame.groupby("id").cumcount(ascending=False) >= ahead]


def by_hand(forecaster, refit_every, adapt, frame=FRAME, **wanted):
    """Fit, predict, update, as a user would write it with frames."""
    pages, known = [], None
    for window in range(WINDOWS):
        past = cut(frame, HORIZON + (WINDOWS - 1 - window) * STEP)
        if window == 0 or (refit_every and window % refit_every == 0):
            forecaster = clone(forecaster).set_params(**({} if adapt is None else {"adapt": adapt})).fit(past)
        else:
            forecaster.update(past[~past.index.isin(known)])
        known = past.index
        page = forecaster.predict(**wanted)
        page.insert(2, "cutoff", page["id"].map(past.groupby("id")["day"].max()))
        pages.append(page.merge(frame, how="left"))
    page = pd.concat(pages).sort_values(["id", "cutoff", "day"], ignore_index=True)
    return page[["id", "day", "cutoff", "sales", *[name for name in page if name[:2] in ("Ti", "Ri", "Se")]]]


@pytest.mark.parametrize(("refit", "every"), [(False, 0), (True, 1), (2, 2)])
@pytest.mark.parametrize("update", [True, False])
def test_it_equals_a_loop_by_hand_bit_for_bit(make, refit, every, update):
    forecaster = make(**NAMES)
    adapt = None
    if isinstance(forecaster, TitansForecaster):
        adapt = update
        forecaster.set_params(train=QUICK if every else ALONE)
    wanted = {"level": [80, 50], "quantiles": [0.3]}
    got = forecaster.backtest(FRAME, WINDOWS, STEP, refit, update, **wanted)
    pd.testing.assert_frame_equal(got, by_hand(forecaster, every, adapt, **wanted), check_exact=True)


def test_the_columns_are_those_of_nixtla(make):
    forecaster = make()
    name = type(forecaster).__name__
    frame = FRAME.rename(columns={"id": "unique_id", "day": "ds", "sales": "y"})
    got = forecaster.backtest(frame, level=[80], quantiles=[0.1])
    bands = [f"{name}-lo-80", f"{name}-hi-80", f"{name}-ql0.1"]
    assert list(got) == ["unique_id", "ds", "cutoff", "y", name, *bands]
    assert got["unique_id"].tolist() == ["a"] * 3 * HORIZON + ["b"] * 3 * HORIZON
    assert got["cutoff"].dtype == got["ds"].dtype == frame["ds"].dtype


def test_windows_are_a_horizon_apart_and_the_last_ends_with_its_series():
    got = MAKERS["naive"](**NAMES).backtest(FRAME)
    for name, own in got.groupby("id"):
        end = FRAME.loc[FRAME["id"] == name, "day"].max()
        assert own["day"].max() == end
        assert own["cutoff"].unique().tolist() == [end - pd.Timedelta(days=days) for days in (12, 8, 4)]
        ahead = (own["day"] - own["cutoff"]).dt.days
        assert ahead.tolist() == [1, 2, 3, 4] * 3


def test_what_comes_is_written_beside_the_forecast_with_its_holes():
    got = MAKERS["naive"](**NAMES).backtest(FRAME)
    both = got.merge(FRAME, on=["id", "day"])
    np.testing.assert_array_equal(both["sales_x"], both["sales_y"])
    assert both["sales_x"].isna().sum() == 2


@pytest.mark.parametrize(("refit", "window"), [(False, 0), (False, 1), (True, 1), (2, 2)])
def test_rows_after_a_cutoff_never_reach_its_forecast(make, refit, window):
    forecaster = make(**NAMES)
    ahead = FRAME.groupby("id").cumcount(ascending=False)
    changed = FRAME.copy()
    changed.loc[ahead < HORIZON + (WINDOWS - 1 - window) * STEP, "sales"] = 1e6
    name = type(forecaster).__name__
    before, after = (
        forecaster.backtest(frame, WINDOWS, STEP, refit, level=80).filter(regex=name) for frame in (FRAME, changed)
    )
    early = np.tile(np.arange(WINDOWS * HORIZON) < (window + 1) * HORIZON, 2)
    pd.testing.assert_frame_equal(before[early], after[early], check_exact=True)
    if window < WINDOWS - 1:
        assert (before[~early] != after[~early]).any(axis=None)


def test_frozen_memories_differ_from_learning_ones_and_only_for_titans(make):
    forecaster = make(**NAMES)
    if isinstance(forecaster, TitansForecaster):
        forecaster.set_params(train=ALONE)
    name = type(forecaster).__name__
    moving, frozen = (forecaster.backtest(FRAME, WINDOWS, STEP, update=update)[name] for update in (True, False))
    first = np.tile(np.arange(WINDOWS * HORIZON) < HORIZON, 2)
    np.testing.assert_array_equal(moving[first], frozen[first])
    assert (moving != frozen).any() == isinstance(forecaster, TitansForecaster)


def test_the_context_moves_on_though_the_memory_is_frozen():
    changed = FRAME.copy()
    changed.loc[changed.groupby("id").cumcount(ascending=False) == HORIZON, "sales"] += 5.0
    said = [
        titans(**NAMES).backtest(frame, WINDOWS, STEP, update=False)["TitansForecaster"] for frame in (FRAME, changed)
    ]
    assert (said[0] != said[1]).any()


def test_a_fitted_forecaster_stays_as_it_was_and_does_not_matter(make):
    forecaster = make(**NAMES)
    expected = forecaster.backtest(FRAME, WINDOWS, STEP)
    assert not hasattr(forecaster, "_known")
    forecaster.fit(FRAME)
    said, held = forecaster.predict(level=80), pickle.dumps(forecaster)
    pd.testing.assert_frame_equal(forecaster.backtest(FRAME, WINDOWS, STEP), expected, check_exact=True)
    assert pickle.dumps(forecaster) == held
    pd.testing.assert_frame_equal(forecaster.predict(level=80), said, check_exact=True)


def test_the_seed_of_a_generator_is_left_alone():
    random = np.random.RandomState(3)
    before = random.get_state()[2]
    titans(random_state=random, **NAMES).backtest(FRAME, 1)
    assert random.get_state()[2] == before


def test_other_kinds_of_data_come_back_as_a_long_frame():
    wide = FRAME[FRAME["id"] == "a"].set_index("day")[["sales"]].assign(other=lambda f: f["sales"] * 2)
    naive = SeasonalNaive(horizon=2, season_length=7)
    got = naive.backtest(wide, 2)
    assert list(got) == ["unique_id", "ds", "cutoff", "y", "SeasonalNaive"]
    assert got["unique_id"].tolist() == ["sales"] * 4 + ["other"] * 4
    assert got["ds"].iloc[-1] == wide.index[-1]
    series = naive.backtest(wide["sales"], 2)
    pd.testing.assert_frame_equal(series, got[:4], check_dtype=False)
    matrix = naive.backtest(wide.to_numpy(), 2)
    assert matrix["unique_id"].tolist() == [0] * 4 + [1] * 4
    assert matrix["cutoff"].tolist() == [65, 65, 67, 67] * 2
    np.testing.assert_array_equal(matrix["SeasonalNaive"], got["SeasonalNaive"])
    vector = naive.backtest(wide["sales"].to_numpy(), 2)
    np.testing.assert_array_equal(vector["SeasonalNaive"], got["SeasonalNaive"][:4])


def test_time_zones_and_periods_reach_the_cutoff():
    naive = SeasonalNaive(horizon=2, season_length=4)
    hours = pd.date_range("2024-03-30", periods=40, freq="h", tz="Europe/Berlin")
    got = naive.backtest(pd.Series(np.arange(40.0), index=hours), 1)
    assert got["cutoff"].tolist() == [hours[-3]] * 2
    quarters = pd.period_range("2020Q1", periods=12, freq="Q")
    frame = pd.DataFrame({"unique_id": "a", "ds": quarters, "y": np.arange(12.0)})
    assert naive.backtest(frame, 1)["cutoff"].tolist() == [quarters[-3]] * 2


def test_a_polars_frame_comes_back_as_one():
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({name: FRAME[name].to_numpy() for name in FRAME})
    got = SeasonalNaive(horizon=2, season_length=7, **NAMES).backtest(frame, 2, level=80)
    assert isinstance(got, polars.DataFrame)
    assert got.columns[:4] == ["id", "day", "cutoff", "sales"]
    assert got["cutoff"].dtype == got["day"].dtype


# What cannot be done is said


def test_a_series_too_short_is_named_with_what_to_do(make):
    short = pd.concat([FRAME, FRAME[FRAME["id"] == "b"].head(10).assign(id="c")])
    with pytest.raises(
        DataError, match=r"'c' has 10 rows, and 3 windows of 4 steps, 3 apart, take the last 10: none is"
    ):
        make(**NAMES).backtest(short, WINDOWS, STEP)
    with pytest.raises(DataError, match="Fix: fewer windows"):
        make(**NAMES).backtest(short, WINDOWS, STEP)


def test_a_series_without_a_value_before_the_first_cutoff_is_too_short():
    late = FRAME.copy()
    late.loc[(late["id"] == "b") & (late.groupby("id").cumcount(ascending=False) >= 10), "sales"] = np.nan
    with pytest.raises(DataError, match=r"series 'b' .* the 51 before hold no value"):
        SeasonalNaive(horizon=HORIZON, **NAMES).backtest(late, WINDOWS, STEP)


def test_a_series_too_short_can_be_left_out(make):
    short = pd.concat([FRAME, FRAME[FRAME["id"] == "b"].head(10).assign(id="c")])
    got = make(on_bad="skip", **NAMES).backtest(short, WINDOWS, STEP)
    assert set(got["id"]) == {"a", "b"}
    with pytest.raises(DataError, match="'c' has 10 rows"):
        make(on_bad="skip", **NAMES).backtest(short[short["id"] == "c"], WINDOWS, STEP)


@pytest.mark.parametrize(
    "wrong", [{"n_windows": 0}, {"step_size": 0}, {"refit": 0}, {"refit": 1.5}, {"n_windows": True}]
)
def test_wrong_numbers_are_refused(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        SeasonalNaive(horizon=2, **NAMES).backtest(FRAME, **wrong)


def test_progress_is_told_when_asked_for_only(capsys):
    titans(**NAMES).backtest(FRAME, 2)
    assert capsys.readouterr() == ("", "")
    titans(**NAMES, verbose=1, train=TrainConfig(steps=0)).backtest(FRAME, 2, refit=2)
    assert capsys.readouterr() == ("", "window 1/2: learnt from 115 rows\nwindow 2/2: updated to 123 rows\n")


# And then it is judged


def test_utilsforecast_evaluates_it_as_it_is():
    frame = panel_frame(("unique_id", "ds", "y")).dropna()
    frame["ds"] = frame.groupby("unique_id").cumcount()
    said = Ridge(horizon=HORIZON, season_length=7).backtest(frame, 2, quantiles=[0.1, 0.5, 0.9])
    table = evaluate(said.drop(columns="cutoff").filter(regex="^(?!.*-ql)"), metrics=[mae])
    by_hand = (said["y"] - said["Ridge"]).abs().groupby(said["unique_id"]).mean()
    np.testing.assert_allclose(table["Ridge"], by_hand)
    per_window = mae(said, ["Ridge"], cutoff_col="cutoff")
    assert len(per_window) == 2 * 2
    names = {"Ridge": [f"Ridge-ql{level}" for level in (0.1, 0.5, 0.9)]}
    assert scaled_crps(said, names, np.array([0.1, 0.5, 0.9]))["Ridge"].gt(0).all()


def test_the_metrics_of_the_package_evaluate_it_as_it_is():
    said = MAKERS["naive"](**NAMES).backtest(FRAME, 2, level=80, quantiles=[0.1, 0.5, 0.9])
    past = cut(FRAME, 2 * HORIZON)
    table = metrics.evaluate(said, past, ["SeasonalNaive"], season_length=7, level=[80], **NAMES)
    assert list(table) == ["mase", "crps", "coverage-80"]
    assert np.isfinite(table).all(axis=None)
    seen = said.dropna()
    names = {"id_col": "id", "target_col": "sales", "time_col": "day"}
    expected = mase(seen, ["SeasonalNaive"], 7, past, **names)["SeasonalNaive"].mean()
    np.testing.assert_allclose(table.loc["SeasonalNaive", "mase"], expected)


def test_levels_that_are_none_are_found_before_anything_is_fitted(monkeypatch):
    monkeypatch.setattr(SeasonalNaive, "_learn", lambda *_: pytest.fail("it was fitted"))
    naive = MAKERS["naive"](**NAMES)
    for wrong, words in (({"level": "80"}, "level='80' must be"), ({"level": 120}, "level=120.* between 0 and 100")):
        with pytest.raises(ValueError, match=words):
            naive.backtest(FRAME, 2, **wrong)
