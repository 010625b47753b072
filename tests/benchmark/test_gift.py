"""The GIFT-Eval configurations, on small sets made here; where the real sets are at hand, against published numbers."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from titans_ts.benchmark import gift
from titans_ts.benchmark.tables import render
from titans_ts.cli import app
from titans_ts.data import describe
from titans_ts.data.registry import ENVIRONMENT_VARIABLE

NAME = "ett1/H/short"
PUBLISHED = Path(__file__).parents[1] / "results" / "gift" / "gift-published.json"
LENGTH = 4 * 700  # 700 hours: two windows of 48


@pytest.fixture
def toy(monkeypatch):
    """Three series of quarter hours with a day's season under the name of a known set; they may be changed in place."""
    random, steps = np.random.default_rng(0), np.arange(LENGTH)
    values = 5 + np.sin(2 * np.pi * (steps + 10 * np.arange(3)[:, None]) / 96) + 0.1 * random.normal(size=(3, LENGTH))

    def load(name, folder):
        ds = np.tile(pd.date_range("2020-01-01", periods=LENGTH, freq="15min"), 3)
        return pd.DataFrame({"unique_id": np.repeat(["a", "b", "c"], LENGTH), "ds": ds, "y": values.ravel()})

    monkeypatch.setattr(gift, "load", load)
    monkeypatch.setattr(gift, "describe", lambda name: dataclasses.replace(describe("ettm1"), series=3))
    return values


def test_there_are_24_configurations():
    assert len(set(gift.CONFIGURATIONS)) == 24


def test_windows_lie_at_the_end_and_series_are_block_means(toy):
    task = gift.make_task(NAME)
    assert (task.horizon, task.windows, task.season, task.freq) == (48, 2, 24, "h")
    assert [len(y) for y in task.series] == [700] * 3
    np.testing.assert_allclose(task.series[1], toy[1].reshape(700, 4).mean(1))
    assert gift.make_task("ett1/D/short").series[0].shape == (29,)
    assert gift.make_task("ett1/15T/long").horizon == 720


def test_a_perfect_repetition_scores_as_counted_by_hand(toy):
    toy[:] = np.tile(np.repeat(np.arange(24.0), 4), LENGTH // 96 + 1)[:LENGTH]
    toy[0, -48 * 4 :] += 6.0  # one window of one series is off by six
    toy[0, -4:] = np.nan  # and its last hour is missing
    run = gift.run_gift(NAME, "SeasonalNaive")
    assert (run["series"], run["windows"], run["values"]) == (3, 2, 3 * 2 * 48 - 1)
    assert run["scaled_values"] == 0  # these series never move over a season
    toy[:, 0:96] += 1.0  # now they have moved once
    run = gift.run_gift(NAME, "SeasonalNaive")
    second = 24.0 / (700 - 48 - 24)  # the mean seasonal difference before the second window
    assert run["scaled_values"] == run["values"]
    assert run["mase"] == pytest.approx(47 * 6.0 / second / run["values"], rel=1e-6)


def test_crps_is_the_weighted_quantile_loss_and_coverage_counts_the_interval():
    truth, unit = np.array([1.0, 3.0, np.nan]), np.ones(3)
    run = gift.score_forecasts(truth, np.full((3, 9), 2.0) + np.linspace(-1.5, 0.5, 9), unit)
    assert run["coverage-80"] == 0.5
    losses = [
        2 * max(level * (y - q), (level - 1) * (y - q))
        for level, q in zip(gift.LEVELS, 2.0 + np.linspace(-1.5, 0.5, 9), strict=True)
        for y in (1.0, 3.0)
    ]
    assert run["crps"] == pytest.approx(sum(losses) / 9 / 4, abs=1e-6)


@pytest.mark.parametrize("model", gift.OURS)
def test_a_window_is_forecast_before_it_is_seen(model, toy, monkeypatch):
    monkeypatch.setattr(gift, "make_forecaster", small)
    taken = record(monkeypatch)
    gift.run_gift(NAME, model)
    first = toy.copy()
    toy[:, -48 * 4 :] += 1e3  # the second window
    gift.run_gift(NAME, model)
    toy[:] = first
    toy[:, -48 * 8 : -48 * 4] += 1e3  # the first window
    gift.run_gift(NAME, model)
    half = len(taken[0]) // 2
    np.testing.assert_array_equal(taken[1], taken[0])  # nothing saw the second window
    np.testing.assert_array_equal(taken[2][:half], taken[0][:half])
    assert np.abs(taken[2][half:] - taken[0][half:]).min() > 1  # the first window was taken in by update


make = gift.make_forecaster


def small(model, task, seed):
    forecaster = make(model, task, seed)
    return forecaster.set_params(train__steps=2, context_length=48) if model == "Titans" else forecaster


def record(monkeypatch):
    """The quantiles that are scored, but for those of frozen twins."""
    taken, score, follow, frozen = [], gift.score_forecasts, gift.follow, [False]

    def recorded(truth, quantiles, unit):
        if not frozen[0]:
            taken.append(quantiles)
        return score(truth, quantiles, unit)

    def followed(forecaster, task):
        frozen[0] = not getattr(forecaster, "adapt", True)
        return follow(forecaster, task)

    monkeypatch.setattr(gift, "score_forecasts", recorded)
    monkeypatch.setattr(gift, "follow", followed)
    return taken


def test_the_validation_part_leaves_the_test_rows_unread(toy):
    before = gift.run_gift(NAME, "Ridge", part="validation")
    toy[:, -48 * 8 :] = np.nan
    after = gift.run_gift(NAME, "Ridge", part="validation")
    assert after["mase"] == before["mase"]
    assert before["windows"] == 2
    assert [len(y) for y in gift.make_task(NAME, part="validation").series] == [700 - 96] * 3
    with pytest.raises(ValueError, match="part='all'"):
        gift.make_task(NAME, part="all")


def test_runs_are_written_once_and_read_again(toy, tmp_path, monkeypatch):
    arguments = (NAME,), ("Ridge", "SeasonalNaive"), (0, 1), tmp_path
    results = gift.run_gift_tasks(*arguments)
    names = [f"gift-ett1-H-short-{model}-test-0.json" for model in ("Ridge", "SeasonalNaive")]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert {"commit", "fit_cpu_s", "forecast_cpu_s", "peak_rss_mb", "coverage-80"} <= set(results[0])
    assert results[0]["season_length"] == 24
    monkeypatch.setattr(gift, "run_gift", lambda *_, **__: pytest.fail("it ran again"))
    assert gift.run_gift_tasks(*arguments) == results
    assert gift.gift_table(results).loc[NAME, ("mase", "Ridge")] == results[0]["mase"]


def test_unknown_names_are_named(toy):
    with pytest.raises(ValueError, match="configuration 'm5/D/short' does not exist: there are 'ett1/15T/short'"):
        gift.run_gift("m5/D/short", "Ridge")
    with pytest.raises(ValueError, match="'Prophet' does not exist"):
        gift.run_gift(NAME, "Prophet")


def leaderboard(path, lacking=()):
    """A table like that of the leaderboard: every model twice as good as the seasonal naive, whose numbers are 0.5."""
    rows = [
        {"model": model, "dataset": name, gift.MASE: size, gift.CRPS: size}
        for model, size in (("Seasonal_Naive", 0.5), *((model, 0.25) for model in gift.PUBLISHED))
        for name in (*gift.CONFIGURATIONS, "m5/D/short")
        if (model, name) not in lacking
    ]
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_published_results_become_geometric_means(tmp_path):
    read = gift.read_published(leaderboard(tmp_path / "all.csv"))
    assert read["geometric_means"]["TiRex"] == {"mase": 0.5, "crps": 0.5}
    assert read["seasonal_naive"][NAME] == {"mase": 0.5, "crps": 0.5}
    assert set(read["seasonal_naive"]) == set(gift.CONFIGURATIONS)
    with pytest.raises(ValueError, match="lacks rows of TiRex: ett1/H/short"):
        gift.read_published(leaderboard(tmp_path / "some.csv", {("TiRex", NAME)}))


def test_the_command_writes_its_runs_and_what_is_published(toy, tmp_path):
    file, out = leaderboard(tmp_path / "all.csv"), tmp_path / "out"
    asked = ["--set", NAME, "--model", "SeasonalNaive", "--published", str(file), "--out", str(out)]
    done = CliRunner().invoke(app, ["benchmark", "gift", *asked])
    assert done.exit_code == 0, done.output
    assert NAME in done.output
    assert {path.name for path in out.iterdir()} == {
        "gift-published.json",
        "gift-ett1-H-short-SeasonalNaive-test-0.json",
    }


def test_the_table_stands_beside_the_published_means_and_leaves_what_has_not_run_empty(tmp_path):
    folder = tmp_path / "gift"
    folder.mkdir()
    (folder / "gift-published.json").write_text(json.dumps(gift.read_published(leaderboard(tmp_path / "all.csv"))))
    for place, name in enumerate(gift.CONFIGURATIONS):
        run = {"configuration": name, "seed": 0, "mase": 0.4, "crps": 0.1, "coverage-80": 0.75}
        run |= {"fit_cpu_s": 1.0, "forecast_cpu_s": 1.0, "peak_rss_mb": 600 + place}
        for model in ("Ridge", "Titans") if place else ("Ridge",):
            path = folder / f"gift-{name.replace('/', '-')}-{model}-test-0.json"
            path.write_text(json.dumps({**run, "model": model}))
    text = render("<!-- table gift -->\n<!-- end -->", tmp_path)
    assert "| ett1/H/short | 0.400 / 0.1000 / 75% | 0.400 / 0.1000 / 75% |" in text
    assert f"| {gift.CONFIGURATIONS[0]} |  | 0.400 / 0.1000 / 75% |" in text
    assert "| **Ridge** | 0.800 | 0.200 |" in text
    assert "| TiRex | 0.500 | 0.500 |" in text
    assert "**Titans**" not in text  # one configuration is missing
    beside = render("<!-- table gift_beside -->\n<!-- end -->", tmp_path).splitlines()[3:-1]
    chosen = [f"| {name} | 0.500 | 0.500 |" for name in ("Chronos-2", "PatchTST", "xLSTM-Mixer")]
    assert sorted(beside) == sorted(["| **Ridge** | 0.800 | 0.200 |", *chosen])


@pytest.mark.skipif(ENVIRONMENT_VARIABLE not in os.environ, reason="no folder of larger sets is named")
@pytest.mark.parametrize("name", gift.CONFIGURATIONS)
def test_seasonal_naive_scores_what_gift_eval_publishes(name):
    """Jena's weather is another copy there, which differs by 0.04 per cent."""
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))["seasonal_naive"][name]
    near = 5e-4 if name.startswith("jena_weather") else 2e-6
    run = gift.run_gift(name, "SeasonalNaive")
    assert {measure: run[measure] for measure in published} == pytest.approx(published, rel=near, abs=2e-6)
