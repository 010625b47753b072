"""The table of ETTh1, on a small set made here, with a stand-in for the peer."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from titans_ts.benchmark import etth1, ltsf
from titans_ts.benchmark.tables import render
from titans_ts.cli import app

TRAIN, VALIDATION, TEST, HORIZON, CONTEXT = 300, 100, 100, 8, 48
QUICK = ("seasonal naive", "ridge")


@pytest.fixture
def toy(monkeypatch):
    """Two columns of a daily season and noise under the set's name; the values may be changed."""
    random, steps = np.random.default_rng(0), np.arange(TRAIN + VALIDATION + TEST)
    values = np.sin(2 * np.pi * (steps[:, None] + np.arange(2)) / 24) + 0.1 * random.normal(size=(len(steps), 2))

    def load(name, folder):
        frame = {"unique_id": np.repeat(["a", "b"], len(steps)), "ds": np.tile(steps, 2), "y": values.T.ravel()}
        return pd.DataFrame(frame)

    monkeypatch.setattr(etth1, "load", load)
    for name, value in {"TRAIN": TRAIN, "VALIDATION": VALIDATION, "TEST": TEST, "HORIZON": HORIZON}.items():
        monkeypatch.setattr(etth1, name, value)
    return values


@pytest.fixture
def last_season(monkeypatch):
    """A peer that repeats the last season, and the rows that it was trained on."""
    given = []
    monkeypatch.setattr(etth1, "import_peers", lambda model: None)
    monkeypatch.setattr(ltsf, "fit_peer", lambda model, rows, *_: given.append((model, rows)))
    monkeypatch.setattr(ltsf, "say_peer", lambda peer, contexts: contexts[:, -24 : HORIZON - 24])
    return given


def run(*models, **options):
    return etth1.run_etth1(CONTEXT, models=models, **options)


def asked(out, *models):
    chosen = [part for model in models for part in ("--model", model)]
    return CliRunner().invoke(app, ["benchmark", "etth1", "--context", str(CONTEXT), "--out", str(out), *chosen])


@pytest.mark.parametrize("part", ["test", "validation"])
def test_the_peer_learns_from_the_training_rows_and_is_scored_in_the_same_windows(toy, last_season, part):
    naive, peer = run("seasonal naive", "PatchTST", part=part)["rows"]
    assert (peer["model"], peer["memory"], peer["mode"]) == ("PatchTST", "-", "window")
    assert (peer["mse"], peer["mae"]) == (naive["mse"], naive["mae"])
    model, rows = last_season[0]
    assert model == "PatchTST"
    np.testing.assert_array_equal(rows, etth1.standardised()[1][:TRAIN])


def test_the_validation_part_leaves_the_test_rows_unread(toy, last_season):
    models = (*QUICK, "PatchTST")
    one = run(*models, part="validation")["rows"]
    toy[TRAIN + VALIDATION :] = np.nan
    other = run(*models, part="validation")["rows"]
    assert [(row["mse"], row["mae"]) for row in one] == [(row["mse"], row["mae"]) for row in other]


def test_rows_of_models_that_are_not_asked_for_are_kept_with_their_commit_and_peak(toy, last_season, tmp_path):
    path = tmp_path / f"etth1-{CONTEXT}-test-0.json"
    first = run(*QUICK)
    for row in first["rows"]:
        del row["commit"], row["peak_rss_mb"]  # as one line for the whole run
    path.write_text(json.dumps({**first, "commit": "before", "peak_rss_mb": 7}))
    done = asked(tmp_path, "PatchTST")
    assert done.exit_code == 0, done.output
    assert "no row of" not in done.stderr
    *ours, peer = json.loads(path.read_text())["rows"]
    assert ours == [{"commit": "before", "peak_rss_mb": 7, **row} for row in first["rows"]]
    assert peer["model"] == "PatchTST"
    assert peer["commit"] == etth1.commit()
    assert peer["peak_rss_mb"] > 50
    last_season.clear()
    assert asked(tmp_path, *QUICK).exit_code == 0
    again = json.loads(path.read_text())["rows"]
    assert again[-1] == peer
    assert [row["commit"] for row in again[:-1]] == [etth1.commit()] * 2
    assert last_season == []


def test_a_missing_peer_says_how_to_get_it_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "neuralforecast", None)  # as where it is not installed
    monkeypatch.setattr(etth1, "load", lambda *_: pytest.fail("a set was read"))
    done = asked(tmp_path, *QUICK, "PatchTST")
    assert isinstance(done.exception, ModuleNotFoundError)
    assert "pip install neuralforecast" in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_one_line_says_how_to_get_a_row_that_is_not_there(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "neuralforecast", None)
    done = asked(tmp_path, "seasonal naive")
    assert done.exit_code == 0, done.output
    assert done.stderr.startswith("no row of PatchTST: run this command with --model PatchTST and the same --out")
    assert len(done.stderr.splitlines()) == 1


def test_the_default_is_our_own_models(toy, tmp_path, monkeypatch):
    found, result = [], run("seasonal naive")
    monkeypatch.setattr(etth1, "run_etth1", lambda context, **options: found.append(options) or result)
    assert asked(tmp_path).exit_code == 0
    assert found[0]["models"] == etth1.MODELS


def test_the_table_has_empty_cells_where_a_context_has_no_row(tmp_path):
    def row(model, mse):
        return {"model": model, "memory": "-", "mode": "window", "mse": mse, "mae": 0.4, "fit_cpu_s": 3.2}

    ours, peer = row("ridge", 0.36), row("PatchTST", 0.38)
    for context, rows in ((336, [ours]), (512, [ours, peer])):
        (tmp_path / f"etth1-{context}-test-0.json").write_text(json.dumps({"context": context, "rows": rows}))
    text = render("<!-- table etth1 -->\n<!-- end -->", tmp_path)
    assert "| ridge | - | window | 0.3600 | 0.4000 | 3 | 0.3600 | 0.4000 | 3 |" in text
    assert "| PatchTST | - | window |  |  |  | 0.3800 | 0.4000 | 3 |" in text
