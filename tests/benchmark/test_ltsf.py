"""The long-horizon protocol, on a small set made here; where the real sets are at hand, against published numbers."""

import dataclasses
import json
import os
import sys

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from titans_ts.benchmark import ltsf
from titans_ts.benchmark.runs import Score
from titans_ts.benchmark.tables import render
from titans_ts.cli import app
from titans_ts.data import describe
from titans_ts.data.registry import ENVIRONMENT_VARIABLE
from titans_ts.forecasting.forecast import Forecast

TRAIN, VALIDATION, TEST = 260, 60, 60
HORIZONS = (4, 12)
SEASON = 12


@pytest.fixture
def toy(monkeypatch):
    """Three columns of a season and noise under the name of a known set; the values may be changed in place."""
    random, steps = np.random.default_rng(0), np.arange(TRAIN + VALIDATION + TEST + 7)
    values = (
        5 + np.sin(2 * np.pi * (steps[:, None] + np.arange(3)) / SEASON) + 0.1 * random.normal(size=(len(steps), 3))
    )

    def load(name, folder):
        ids = np.repeat(["a", "b", "c"], len(values))
        return pd.DataFrame({"unique_id": ids, "ds": np.tile(steps, 3), "y": values.T.ravel()})

    card = dataclasses.replace(describe("etth1"), series=3, season_length=SEASON)
    monkeypatch.setattr(ltsf, "load", load)
    monkeypatch.setattr(ltsf, "describe", lambda name: card)
    monkeypatch.setattr(ltsf, "ROWS", {"etth1": (TRAIN, VALIDATION, TEST)})
    monkeypatch.setattr(ltsf, "HORIZONS", HORIZONS)
    return values


def run(model="Ridge", context=24, **options):
    return ltsf.run_ltsf("etth1", model, context, **options)


@pytest.mark.parametrize("horizon", [96, 192, 336, 720])
@pytest.mark.parametrize(("name", "rows", "test"), [("etth2", 17420, 2880), ("ettm1", 69680, 11520)])
def test_every_window_of_the_test_rows_counts(name, rows, test, horizon):
    train, validation, tested = ltsf.rows_of(name, rows)
    assert (train, validation, tested) == (3 * test, test, test)
    split = ltsf.Split(np.zeros((train + validation + tested, 1)), train, validation)
    score = ltsf.score_windows(lambda contexts, columns, rows: np.zeros((len(contexts), horizon)), split, 8, (horizon,))
    assert score[horizon].count == (test - horizon + 1) * horizon


def test_the_columns_are_standardised_by_their_training_rows(toy):
    split = ltsf.split_set("etth1")
    assert split.values.shape == (TRAIN + VALIDATION + TEST, 3)
    np.testing.assert_allclose(split.values[:TRAIN].mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(split.values[:TRAIN].std(0), 1)
    np.testing.assert_allclose(split.values * toy[:TRAIN].std(0) + toy[:TRAIN].mean(0), toy[: len(split.values)])


def test_a_window_is_forecast_from_the_rows_right_before_it(toy):
    split, asked = ltsf.split_set("etth1"), []

    def say(contexts, columns, rows):
        asked.append((contexts, columns, rows))
        return np.zeros((len(contexts), 12))

    scores = ltsf.score_windows(say, split, 24, HORIZONS)
    contexts, columns, rows = (np.concatenate(parts) for parts in zip(*asked, strict=True))
    assert len(contexts) == 3 * (TEST - 4 + 1)
    for place in (0, 1, 2, 3, len(contexts) - 1):
        origin, column = TRAIN + VALIDATION + place // 3, place % 3
        assert (columns[place], rows[place]) == (column, origin)
        np.testing.assert_array_equal(contexts[place], split.values[origin - 24 : origin, column])
    truth = np.concatenate([split.values[o : o + 12] for o in range(TRAIN + VALIDATION, len(split.values) - 11)])
    assert scores[12].count == truth.size
    assert scores[12].squared == pytest.approx((truth**2).sum())


def test_coverage_counts_the_truths_inside_the_interval():
    score, levels = Score(), (0.1, 0.5, 0.9)
    truth = np.array([0.0, 3.0])
    score.add(np.zeros(2), truth)
    score.add_quantiles(np.tile([-1.0, 0.0, 1.0], (2, 1)), levels, truth)
    # pinball of 0: .1 + 0 + .1; of 3: .4 + 1.5 + 1.8; twice their mean over the levels, over the size 3
    assert score.result() == {"mse": 4.5, "mae": 1.5, "coverage-80": 0.5, "crps": round(2 * 3.9 / 3 / 3, 4)}


def test_a_shorter_horizon_is_the_beginning_of_the_forecast(toy):
    toy[:] = np.sin(2 * np.pi * np.arange(len(toy)) / SEASON)[:, None]
    scores = run("SeasonalNaive")["scores"]
    assert all(scores[str(h)]["mse"] == scores[str(h)]["mae"] == 0.0 for h in HORIZONS)


def test_a_run_says_what_weight_the_correction_has(toy, monkeypatch):
    fitted, fit = [], ltsf.titans
    monkeypatch.setattr(ltsf, "TrainConfig", lambda **fields: ltsf_train(steps=2, checks=1, **fields))
    monkeypatch.setitem(ltsf.FIT, "Titans", lambda *given: fitted.append(fit(*given)) or fitted[-1])
    monkeypatch.setattr(ltsf, "score_stream", lambda forecaster, *_: {})
    assert run("Titans")["correction"] == round(fitted[0].forecaster.correction_, 4)
    assert "correction" not in run("Ridge")


@pytest.mark.parametrize("model", ["Ridge", "SeasonalNaive", "Titans"])
def test_no_test_row_reaches_a_forecast(model, toy, monkeypatch):
    said = []
    score = ltsf.score_windows

    def recorded(say, split, context, horizons):
        columns = np.arange(3)
        answer = say(split.values[split.begin - context : split.begin].T, columns, np.full(3, split.begin))
        said.append(answer.point if isinstance(answer, Forecast) else answer)
        return score(say, split, context, horizons)

    monkeypatch.setattr(ltsf, "score_windows", recorded)
    monkeypatch.setattr(ltsf, "TrainConfig", lambda **fields: ltsf_train(steps=2, checks=1, **fields))
    run(model)
    toy[TRAIN + VALIDATION :] = 1e6
    run(model)
    np.testing.assert_array_equal(said[0], said[1])


ltsf_train = ltsf.TrainConfig


def test_the_weights_of_ridge_are_those_of_the_training_rows(toy):
    split = ltsf.split_set("etth1")
    noisy = split.values.copy()
    noisy[TRAIN : split.begin] *= 1 + 1e-6
    contexts = split.values[-24:].T
    one, other = (
        ltsf.ridge(dataclasses.replace(split, values=values), SEASON, 24, 12, 0)[0](contexts, None, None)
        for values in (split.values, noisy)
    )
    np.testing.assert_array_equal(one, other)


def test_the_validation_part_leaves_the_test_rows_unread(toy):
    before = run(part="validation")
    toy[TRAIN + VALIDATION :] = np.nan
    after = run(part="validation")
    assert after["scores"] == before["scores"]
    assert before["windows"] == {"4": VALIDATION - 3, "12": VALIDATION - 11}
    split = ltsf.split_set("etth1", part="validation")
    assert (split.train, split.validation, len(split.values)) == (TRAIN - VALIDATION, VALIDATION, TRAIN + VALIDATION)
    with pytest.raises(ValueError, match="part='all'"):
        run(part="all")


def test_runs_are_written_once_and_read_again(toy, tmp_path, monkeypatch, capsys):
    arguments = ("etth1",), ("Ridge", "SeasonalNaive"), (24, None), (0, 1), tmp_path
    results = ltsf.run_ltsf_sets(*arguments)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "ltsf-etth1-24-Ridge-test-0.json",
        "ltsf-etth1-free-Ridge-test-0.json",
        "ltsf-etth1-season-SeasonalNaive-test-0.json",
    ]
    assert "ltsf-etth1-free-Ridge-test-0" in capsys.readouterr().err
    assert [each["context_length"] for each in results] == [24, 48, SEASON]
    assert {"commit", "fit_cpu_s", "score_cpu_s", "peak_rss_mb"} <= set(results[0])
    assert results[0]["windows"] == {"4": TEST - 3, "12": TEST - 11}
    assert results[0]["scores"]["12"]["mse"] < results[2]["scores"]["12"]["mse"]
    monkeypatch.setattr(ltsf, "run_ltsf", lambda *_, **__: pytest.fail("it ran again"))
    assert ltsf.run_ltsf_sets(*arguments) == results
    assert list(ltsf.ltsf_table(results).columns.get_level_values("horizon")) == [4, 12, 4, 12]


def test_the_command_writes_its_runs_and_shows_them(toy, tmp_path):
    asked = ["--set", "etth1", "--model", "Ridge", "--context", "24", "--context", "free", "--part", "validation"]
    done = CliRunner().invoke(app, ["benchmark", "ltsf", "--out", str(tmp_path), *asked])
    assert done.exit_code == 0, done.output
    assert "Ridge" in done.output
    assert {path.name for path in tmp_path.iterdir()} == {
        "ltsf-etth1-24-Ridge-validation-0.json",
        "ltsf-etth1-free-Ridge-validation-0.json",
    }


def test_an_unknown_model_is_named(toy):
    with pytest.raises(ValueError, match="'Prophet' does not exist"):
        run("Prophet")


def test_a_missing_peer_says_how_to_get_it(toy, monkeypatch):
    monkeypatch.setitem(sys.modules, "neuralforecast", None)  # as where it is not installed
    with pytest.raises(ModuleNotFoundError, match="pip install neuralforecast"):
        run("PatchTST")


def test_a_peer_is_trained_on_the_training_rows_alone(toy, monkeypatch):
    given = []
    monkeypatch.setattr(ltsf, "fit_peer", lambda model, rows, context, horizon, seed: given.append((rows, context)))
    monkeypatch.setattr(ltsf, "say_peer", lambda peer, contexts: np.repeat(contexts[:, -1:], 12, 1))
    made = run("PatchTST", None)
    rows, context = given[0]
    np.testing.assert_array_equal(rows, ltsf.split_set("etth1").values[:TRAIN])
    assert made["context_length"] == context == 48


def test_the_table_has_means_spreads_published_numbers_and_empty_cells(tmp_path):
    (tmp_path / "ltsf").mkdir()
    for seed, mse in ((0, 0.1), (1, 0.3)):
        scores = {str(h): {"mse": mse, "mae": 0.5} for h in ltsf.HORIZONS}
        costs = {"fit_cpu_s": 10.0, "score_cpu_s": 2.0, "peak_rss_mb": 500 + seed}
        made = {"set": "etth1", "model": "Titans", "context": 96, "seed": seed, "scores": scores, **costs}
        (tmp_path / "ltsf" / f"ltsf-etth1-96-Titans-test-{seed}.json").write_text(json.dumps(made))
    text = render("<!-- table ltsf -->\n<!-- end -->", tmp_path)
    assert "| etth1 | 96 | 0.2000 / 0.5000 |" in text
    assert "| etth1 | mean | 0.2000 ± 0.1414 / 0.5000 ± 0.0000 |" in text
    assert "| weather | 96 |  |" in text
    assert "| peak, MB |  | 501 |" in text
    assert "| etth1 | 0.2000 ± 0.1414 / 0.5000 ± 0.0000 | 0.420 / 0.421 |" in text
    assert render("<!-- table ltsf -->\n<!-- end -->", tmp_path / "nothing").count("etth1") == 11


# the error of repeating the last value, horizon 96: Zeng et al. 2023, "Are Transformers Effective for Time Series
# Forecasting?", table 2
REPEATED = {
    "etth1": (1.294, 0.713),
    "etth2": (0.432, 0.422),
    "ettm1": (1.214, 0.665),
    "ettm2": (0.266, 0.328),
    "weather": (0.259, 0.254),
}


@pytest.mark.skipif(ENVIRONMENT_VARIABLE not in os.environ, reason="no folder of larger sets is named")
@pytest.mark.parametrize("name", REPEATED)
def test_repeating_the_last_value_errs_as_published(name):
    split = ltsf.split_set(name)
    score = ltsf.score_windows(lambda contexts, columns, rows: np.repeat(contexts[:, -1:], 96, 1), split, 1, (96,))[96]
    assert (score.result()["mse"], score.result()["mae"]) == pytest.approx(REPEATED[name], abs=1.1e-3)
