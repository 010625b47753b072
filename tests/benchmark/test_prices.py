"""The benchmark of electricity prices, on small ones made here."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from titans_ts import TrainConfig
from titans_ts.benchmark import neural, prices
from titans_ts.benchmark.tables import render
from titans_ts.cli import app

MARKETS = ("BE", "DE")


@pytest.fixture
def toy(monkeypatch):
    """Two markets of 40 days whose price is moved by load and wind; the data set's name stands for them."""
    random, hours = np.random.default_rng(0), np.arange(40 * 24)
    parts = []
    for place, name in enumerate(MARKETS):
        load, wind = random.normal(size=(2, len(hours)))
        y = 40 + 10 * place + 5 * np.sin(2 * np.pi * hours / 24) + 3 * load - 2 * wind + random.normal(size=len(hours))
        ds = pd.date_range("2020-01-01", periods=len(hours), freq="h")
        parts.append(pd.DataFrame({"unique_id": name, "ds": ds, "y": y, "Exogenous1": load, "Exogenous2": wind}))
    frame = pd.concat(parts, ignore_index=True)
    monkeypatch.setattr(prices, "load", lambda name, folder: frame)
    return frame


@pytest.fixture
def yesterday(monkeypatch):
    """A peer that repeats yesterday, with `Exogenous1` where it is told of it; what it was trained on and asked."""
    trained, futures = [], []

    class Yesterday:
        def predict(self, df, futr_df=None):
            said = df.groupby("unique_id").tail(24)[["unique_id", "ds", "y"]].reset_index(drop=True)
            said["ds"] += pd.Timedelta(days=1)
            if futr_df is not None:
                futures.append(futr_df)
                said = said.merge(futr_df, on=["unique_id", "ds"], validate="one_to_one")
                said["y"] += said["Exogenous1"]
            return said[["unique_id", "ds"]].assign(**{f"NHITS-{k}": said["y"] + k for k in range(-4, 5)})

    def train_peer(model, frame, freq, levels, **options):
        trained.append((frame, options))
        return Yesterday()

    monkeypatch.setattr(prices, "import_peers", lambda model: None)
    monkeypatch.setattr(neural, "train_peer", train_peer)
    return trained, futures


def quick(**params):
    return prices.run_prices(seeds=(0, 1), train=TrainConfig(steps=0), **params)


def test_the_last_fortnight_is_kept_apart(toy):
    past, later = prices.split_days(toy)
    assert (later.groupby("unique_id").size() == 14 * 24).all()
    assert len(past) + len(later) == len(toy)
    assert past["ds"].max() < later["ds"].min()
    with pytest.raises(ValueError, match="must be 'test' or 'validation'"):
        prices.split_days(toy, "train")


def test_development_never_sees_the_test_days(toy):
    past, later = prices.split_days(toy, "validation")
    first = prices.split_days(toy)[1]["ds"].min()
    assert max(past["ds"].max(), later["ds"].max()) < first


def test_covariates_that_matter_are_found_and_reported(toy, tmp_path):
    result = quick()
    assert [row["model"] for row in result["rows"]].count("Titans") == 4
    assert result["rows"][0]["relative_mae"] == 1.0
    assert result["change"]["change"] < -0.4
    assert result["change"]["low"] < result["change"]["change"] < result["change"]["high"] < -0.3
    assert len(result["change_by_seed"]) == 2
    assert {"seeds", "cpu_s"} <= set(result)
    assert all({"commit", "peak_rss_mb"} <= set(row) for row in result["rows"])
    (tmp_path / "prices-test.json").write_text(json.dumps(result))
    text = render("<!-- table prices -->\n<!-- end -->", tmp_path)
    assert "| Titans | yes | 2 |" in text
    assert f"**{result['change']['change']:+.1%}**" in text


def test_a_day_is_forecast_before_it_comes(toy):
    wild = toy.copy()
    last = wild["ds"] >= wild["ds"].max() - pd.Timedelta(hours=23)
    wild.loc[last, "y"] += 1e3
    past, later = prices.split_days(toy)
    naive = prices.SeasonalNaive(24, season_length=24).fit(past)
    said = prices.forecast_days(naive, later)
    assert said.groupby("day").size().tolist() == [48] * 14
    again = prices.forecast_days(naive, prices.split_days(wild)[1])
    assert (again["forecast"] == said["forecast"]).all()
    yesterday = later.groupby("unique_id")["y"].shift(24)
    both = later.assign(yesterday=yesterday).merge(said[["unique_id", "ds", "forecast"]], on=["unique_id", "ds"])
    assert (both["forecast"] == both["yesterday"])[both["yesterday"].notna()].all()


def test_the_peer_learns_from_the_same_rows_and_is_told_of_every_day_before_it_comes(toy, yesterday):
    trained, futures = yesterday
    past, later = prices.split_days(toy)
    naive, without, with_ = prices.run_prices(models=("NHITS",), seeds=(3,))["rows"]
    assert [row["covariates"] for row in (naive, without, with_)] == [[], [], list(prices.KNOWN)]
    assert without["mae"] == naive["mae"]
    assert (without["relative_mae"], without["seed"]) == (1.0, 3)
    assert with_["mae"] != naive["mae"]
    for (frame, options), known in zip(trained, ((), prices.KNOWN), strict=True):
        assert list(frame.columns) == ["unique_id", "ds", "y", *known, "available_mask"]
        np.testing.assert_array_equal(frame["y"], past["y"])
        assert options.get("futr_exog_list", []) == list(known)
        assert (options["h"], options["random_seed"]) == (24, 3)
    days = pd.concat(futures, ignore_index=True)
    assert list(days.columns) == ["unique_id", "ds", *prices.KNOWN]
    whole = later.drop(columns="y").sort_values(["ds", "unique_id"], ignore_index=True)
    pd.testing.assert_frame_equal(days.sort_values(["ds", "unique_id"], ignore_index=True), whole)


def test_rows_of_models_that_are_not_asked_for_are_kept_with_what_the_covariates_change(toy, yesterday):
    first = quick()
    for row in first["rows"]:
        del row["commit"], row["peak_rss_mb"]  # as one line for the whole run
    both = prices.run_prices(models=("NHITS",), seeds=(0,), earlier={**first, "commit": "before", "peak_rss_mb": 7})
    assert [row["model"] for row in both["rows"]] == [*(row["model"] for row in first["rows"]), "NHITS", "NHITS"]
    for old, new in zip(first["rows"][1:], both["rows"][1:-2], strict=True):
        assert new == {"commit": "before", "peak_rss_mb": 7, **old}
    assert both["rows"][-1]["commit"] == prices.commit()
    assert both["change"] == first["change"]
    assert both["change_by_seed"] == first["change_by_seed"]
    assert both["seeds"] == [0, 1]
    again = quick(earlier=both)
    assert again["rows"][-2:] == both["rows"][-2:]
    assert again["change"] == first["change"]


def test_a_peer_alone_has_a_table_without_the_change_of_ours(toy, yesterday, tmp_path):
    asked = ["benchmark", "prices", "--out", str(tmp_path), "--model", "NHITS", "--seed", "0", "--seed", "1"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert "change by the covariates" not in done.output
    text = render("<!-- table prices -->\n<!-- end -->", tmp_path)
    assert "| NHITS | no | 2 |" in text
    assert "| NHITS | yes | 2 |" in text
    assert "| seasonal naive, a day | no | - |" in text
    assert "change" not in text


def test_a_missing_peer_says_how_to_get_it_before_anything_is_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "neuralforecast", None)  # as where it is not installed
    monkeypatch.setattr(prices, "load", lambda *_: pytest.fail("a set was read"))
    with pytest.raises(ModuleNotFoundError, match="NHITS needs neuralforecast"):
        prices.run_prices(models=(*prices.MODELS, "NHITS"))


def test_the_interval_says_whether_a_change_is_chance():
    random = np.random.default_rng(0)
    naive = np.ones((4, 14))
    without = random.uniform(0.5, 1.5, size=(4, 14))
    chance = prices.change(random.permuted(without, axis=1), without, naive)
    assert chance["low"] < 0 < chance["high"]
    sure = prices.change(0.8 * without, without, naive)
    assert sure["low"] == sure["high"] == pytest.approx(-0.2)


def test_a_market_counts_in_units_of_its_naive_error():
    one = np.ones((2, 14))
    scale = np.array([[1.0], [1000.0]])
    worse = np.stack([0.5 * one[0], 1.5 * one[1]])
    assert prices.change(worse * scale, one * scale, one * scale)["change"] == 0


def test_the_command_prints_a_table_and_writes_the_run(toy, tmp_path, monkeypatch):
    whole = prices.run_prices
    settings = {"seeds": (0,), "train": TrainConfig(steps=0)}
    monkeypatch.setattr(
        prices, "run_prices", lambda folder, part, models, earlier, seeds: whole(folder, part=part, **settings)
    )
    done = CliRunner().invoke(app, ["benchmark", "prices", "--part", "validation", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "change by the covariates: -" in done.output
    assert done.stderr.startswith("no row of NHITS: run this command with --model NHITS and the same --out")
    assert json.loads((tmp_path / "prices-validation.json").read_text())["part"] == "validation"
