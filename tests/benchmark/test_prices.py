"""The benchmark of electricity prices, on small ones made here."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from titans_ts import TrainConfig
from titans_ts.benchmark import prices
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
    assert {"commit", "seeds", "cpu_s", "peak_rss_mb"} <= set(result)
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
    monkeypatch.setattr(prices, "run_prices", lambda folder, seeds, part: whole(folder, part=part, **settings))
    done = CliRunner().invoke(app, ["benchmark", "prices", "--part", "validation", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "change by the covariates: -" in done.output
    assert json.loads((tmp_path / "prices-validation.json").read_text())["part"] == "validation"
