"""The panels of the competitions, on a small one made here."""

import dataclasses
import json
import sys

import numpy as np
import pandas as pd
import pytest

from titans_ts.benchmark import panels
from titans_ts.benchmark.tables import markdown, render
from titans_ts.data import describe

HORIZON = 4


@pytest.fixture
def toy(monkeypatch):
    """Thirty monthly series of 60 months under the name of a known set."""
    random, steps = np.random.default_rng(0), np.arange(60)
    parts = []
    for row in range(30):
        y = 50 + 10 * np.sin(2 * np.pi * (steps + row) / 12) + random.normal(size=60)
        ds = pd.date_range("2000-01-01", periods=60, freq="MS")
        parts.append(pd.DataFrame({"unique_id": f"T{row}", "ds": ds, "y": y}))
    frame = pd.concat(parts, ignore_index=True)
    card = dataclasses.replace(describe("m1_monthly"), horizon=HORIZON)
    monkeypatch.setattr(panels, "load", lambda name, folder: frame)
    monkeypatch.setattr(panels, "describe", lambda name: card)
    return frame


def test_the_last_horizon_is_kept_apart(toy):
    train, test = panels.split_panel("m1_monthly")
    assert (test.groupby("unique_id").size() == HORIZON).all()
    assert len(train) + len(test) == len(toy)
    assert train["ds"].max() < test["ds"].min()


def test_the_validation_part_is_the_horizon_before_the_last(toy):
    whole = panels.split_panel("m1_monthly")[0]
    train, test = panels.split_panel("m1_monthly", part="validation")
    assert pd.concat([train, test])["ds"].max() == whole["ds"].max()
    assert (test.groupby("unique_id").size() == HORIZON).all()
    with pytest.raises(ValueError, match="part='all' must be 'test' or 'validation'"):
        panels.split_panel("m1_monthly", part="all")


def test_the_largest_sets_are_sampled_by_seed(toy, monkeypatch):
    monkeypatch.setitem(panels.SAMPLED, "m4_yearly", 5)
    one, same, other = (panels.split_panel("m4_yearly", seed=seed)[0]["unique_id"].unique() for seed in (0, 0, 1))
    assert len(one) == 5
    assert list(one) == list(same)
    assert list(one) != list(other)


def test_runs_are_written_once_and_read_again(toy, tmp_path, monkeypatch):
    models = ("Ridge", "SeasonalNaive")
    results = panels.run_panels(("m1_monthly",), models, tmp_path)
    assert [run["model"] for run in results] == list(models)
    assert results[0]["mase"] < 0.9
    assert results[0]["values"] == 30 * HORIZON
    assert results[0]["series"] == 30
    assert 0 < results[0]["coverage-80"] <= 1
    assert {"commit", "peak_rss_mb", "cpu_s"} <= set(results[0])
    monkeypatch.setattr(panels, "run_panel", lambda *_, **__: pytest.fail("it ran again"))
    assert panels.run_panels(("m1_monthly",), models, tmp_path) == results
    table = panels.panels_table(results)
    assert table.loc["mean", ("mase", "Ridge")] == results[0]["mase"]


def test_the_future_does_not_reach_the_forecasts(toy, monkeypatch):
    train, test = panels.split_panel("m1_monthly")
    one = panels.run_panel("m1_monthly", "SeasonalNaive")
    monkeypatch.setattr(panels, "split_panel", lambda name, folder, seed, part: (train, test.assign(y=test["y"] + 1e6)))
    other = panels.run_panel("m1_monthly", "SeasonalNaive")
    assert other["mase"] > 1e4 * one["mase"]  # only the score moved


def test_a_missing_peer_says_how_to_get_it(toy, monkeypatch):
    monkeypatch.setitem(sys.modules, "statsforecast", None)  # as where it is not installed
    with pytest.raises(ModuleNotFoundError, match="pip install statsforecast"):
        panels.run_panel("m1_monthly", "AutoETS")


def test_a_table_is_written_between_its_marks(tmp_path):
    (tmp_path / "panels").mkdir()
    run = {"set": "m1_yearly", "model": "Ridge", "mase": 1.5, "crps": 0.25, "coverage-80": 0.5}
    (tmp_path / "panels" / "panels-m1_yearly-Ridge-0.json").write_text(json.dumps(run))
    text = render("before\n<!-- table panels -->\nold\n<!-- end -->\nafter", tmp_path)
    assert "| m1_yearly | 1.500 / 0.2500 / 50% |" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter")
    with pytest.raises(KeyError):
        render("<!-- table nothing -->\n<!-- end -->", tmp_path)
    assert markdown(["a"], []) == "| a |\n|---|"
