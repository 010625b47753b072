"""The demo: a stream that knows no future, and a table of all four forecasters."""

import numpy as np
import pandas as pd
import pytest

from titans_ts import Ridge, SeasonalNaive, TitansForecaster
from titans_ts.benchmark import demo as module
from titans_ts.benchmark.demo import draw_demo, format_table, run_demo, stream
from titans_ts.core.config import MemoryConfig
from titans_ts.core.state import leaves
from titans_ts.forecasting.training import TrainConfig
from titans_ts.models.config import BackboneConfig

HORIZON = 4
DAYS = pd.date_range("2024-01-01", periods=90, freq="D")
MODEL = BackboneConfig(
    dim=8, depth=1, heads=2, memory=MemoryConfig(dim=8, heads=2, depth=1, chunk=16, conv=2, persistent=2)
)
QUICK = TrainConfig(steps=3, batch=4, checks=1)


def frame():
    random = np.random.default_rng(0)
    y = {
        name: np.sin(np.arange(90) * 2 * np.pi / 7) * scale + random.normal(size=90)
        for name, scale in (("a", 3), ("b", 9))
    }
    parts = [pd.DataFrame({"unique_id": name, "ds": DAYS, "y": values}) for name, values in y.items()]
    return pd.concat(parts, ignore_index=True)


PAST, LATER = frame()[lambda f: f["ds"] < DAYS[70]], frame()[lambda f: f["ds"] >= DAYS[70]]


@pytest.fixture(scope="module")
def forecasters():
    titans = TitansForecaster(
        horizon=HORIZON, context_length=14, patch_length=2, model=MODEL, train=QUICK, random_state=0
    )
    return {
        "titans": titans.fit(PAST),
        "ridge": Ridge(horizon=HORIZON, context_length=14).fit(PAST),
        "naive": SeasonalNaive(horizon=HORIZON).fit(PAST),
    }


@pytest.mark.parametrize("stride", [1, 3])
def test_a_forecast_knows_nothing_of_what_comes_after_it(forecasters, stride):
    place = 9  # rows from here on change
    moved = LATER.assign(y=np.where(LATER["ds"] >= DAYS[70 + place], 100 - LATER["y"], LATER["y"]))
    one, two = stream(forecasters, LATER, HORIZON, stride), stream(forecasters, moved, HORIZON, stride)
    columns = [column for column in one if column not in ("y", "ds", "unique_id")]
    assert columns[0].startswith("titans")
    before = (one["cutoff"] <= place).to_numpy()
    pd.testing.assert_frame_equal(one.loc[before, columns], two.loc[before, columns], check_exact=True)
    behind = one["cutoff"] > place
    assert behind.any()
    for name in forecasters:
        assert (one.loc[behind, name] != two.loc[behind, name]).any()


def test_every_forecast_is_made_after_the_rows_before_it(forecasters):
    table = stream(forecasters, LATER, HORIZON, 3)
    assert sorted(table["cutoff"].unique()) == [0, 3, 6, 9, 12, 15]
    assert (table.groupby(["cutoff", "unique_id"])["ds"].min() == DAYS[70 + table["cutoff"].unique()].repeat(2)).all()
    expected = forecasters["ridge"].predict(y=frame()[lambda f: f["ds"] < DAYS[76]])
    got = table[table["cutoff"] == 6].sort_values(["unique_id", "ds"])
    np.testing.assert_allclose(got["ridge"], expected["Ridge"], rtol=1e-9)
    assert (got["y"].to_numpy() == frame()[lambda f: f["ds"].isin(DAYS[76:80])]["y"].to_numpy()).all()


def test_a_stream_leaves_the_given_forecasters_as_they_are(forecasters):
    before = {name: forecaster.predict(level=80) for name, forecaster in forecasters.items()}
    state = [leaf.clone() for leaf in leaves(forecasters["titans"]._known.state)]
    stream(forecasters, LATER, HORIZON, 5)
    for name, forecaster in forecasters.items():
        pd.testing.assert_frame_equal(forecaster.predict(level=80), before[name], check_exact=True)
    after = leaves(forecasters["titans"]._known.state)
    assert all((a.nan_to_num(7) == b.nan_to_num(7)).all() for a, b in zip(after, state, strict=True))


@pytest.fixture(scope="module")
def nile():
    """The demo with a small model: what is tested is the demo."""
    with pytest.MonkeyPatch.context() as patch:

        def small(**params):
            return TitansForecaster(**params, model=MODEL, train=QUICK)

        patch.setattr(module, "TitansForecaster", small)
        return run_demo("nile", stride=5)


def test_the_demo_compares_four_forecasters(nile):
    assert list(nile.table.index) == ["Titans updating", "Titans frozen", "Ridge", "SeasonalNaive"]
    for measure in ("mase", "crps"):
        assert np.isfinite(nile.table[measure]).all()
        assert (nile.table[measure] > 0).all()
    assert nile.forecasts["ds"].min() == nile.start
    assert len(nile.series) == 100
    own = nile.forecasts
    first = own["cutoff"] == 0
    np.testing.assert_array_equal(own.loc[first, "Titans updating"], own.loc[first, "Titans frozen"])
    updating, frozen = (own.loc[~first, f"Titans {mode}-ql0.9"] for mode in ("updating", "frozen"))
    assert not np.allclose(updating, frozen, rtol=1e-12, atol=0)


def test_the_demo_is_drawn_and_printed(nile, tmp_path):
    pytest.importorskip("matplotlib")
    draw_demo(nile, tmp_path / "forecast.png")
    assert (tmp_path / "forecast.png").read_bytes().startswith(b"\x89PNG")
    text = format_table(nile.table, "nile")
    assert text.splitlines()[0] == "nile"
    assert len(text.splitlines()) == 6


def test_a_demo_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=r"'moon'.*co2"):
        run_demo("moon")
