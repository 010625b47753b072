"""What training costs, on a small set made here: each fit in this process, and without the peer."""

import dataclasses
import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from titans_ts.benchmark import ltsf, train
from titans_ts.benchmark.runs import commit
from titans_ts.benchmark.tables import render
from titans_ts.cli import app
from titans_ts.data import describe

ROWS = (260, 60, 60)
OURS = ("linear path off", "linear path on", "linear path alone")


@pytest.fixture
def toy(monkeypatch):
    """Two columns of a season and noise as the set, short ladders, fits in this process; the values may be changed."""
    random, steps = np.random.default_rng(0), np.arange(sum(ROWS))
    values = np.sin(2 * np.pi * (steps[:, None] + np.arange(2)) / 12) + 0.1 * random.normal(size=(len(steps), 2))

    def load(name, folder):
        frame = {"unique_id": np.repeat(["a", "b"], len(values)), "ds": np.tile(steps, 2), "y": values.T.ravel()}
        return pd.DataFrame(frame)

    card = dataclasses.replace(describe("etth1"), series=2, season_length=12)
    for module in (ltsf, train):
        monkeypatch.setattr(module, "describe", lambda name: card)
    monkeypatch.setattr(ltsf, "load", load)
    monkeypatch.setattr(ltsf, "ROWS", {"etth1": ROWS})
    for name, value in {"HORIZON": 4, "CONTEXT": 24, "FIRST": (100, 50)}.items():
        monkeypatch.setattr(train, name, value)
    monkeypatch.setattr(train, "LADDERS", {**dict.fromkeys(OURS[:2], (2,)), OURS[2]: (0,), "PatchTST": (5,)})
    monkeypatch.setattr(train, "in_own_process", lambda _, rung: train.measure(train.Rung(**json.loads(rung))))
    return values


@pytest.fixture
def last_value(monkeypatch):
    """A peer that repeats the last value, and what it was trained on."""
    given = []

    class Network(torch.nn.Linear):
        def forward(self, windows):
            return super().forward(windows["insample_y"][..., 0])

    def fit(model, rows, context, horizon, seed, **changes):
        given.append((rows, changes))
        return Network(context, horizon)

    monkeypatch.setattr(train, "import_peers", lambda model: None)
    monkeypatch.setattr(train, "fit_peer", fit)
    monkeypatch.setattr(train, "say_peer", lambda peer, contexts: np.repeat(contexts[:, -1:], 4, 1))
    return given


def test_every_rung_is_a_fit_with_its_errors_and_costs(toy, last_value):
    rows = train.run_train(say=lambda line: None)["rows"]
    assert [(row["learner"], row["steps"]) for row in rows] == [
        *((name, 2) for name in OURS[:2]),
        (OURS[2], 0),
        ("PatchTST", 5),
    ]
    for row in rows:
        assert row["fit_cpu_s"] >= 0
        assert row["peak_rss_mb"] > 50
    split = ltsf.split_set("etth1")
    by_hand = ltsf.score_windows(lambda contexts, *_: np.repeat(contexts[:, -1:], 4, 1), split, 24, (4,))[4].result()
    assert rows[-1]["mse"] == by_hand["mse"]
    assert rows[-2]["mse"] < by_hand["mse"] / 4


def test_a_rung_with_steps_has_the_rate_of_what_its_network_was_asked_for(toy, last_value, monkeypatch):
    monkeypatch.setattr(
        train, "LADDERS", {OURS[0]: (2, 6), OURS[1]: (2,), OURS[2]: (0,), "PatchTST": (5,), "Ridge": (0,)}
    )
    *ours, alone, peer, ridge = train.run_train(say=lambda line: None)["rows"]
    assert not {"operations", "gflops"} & (alone.keys() | ridge.keys())
    assert peer["operations"] == 5 * 3 * 2 * 128 * 24 * 4  # steps, passes, windows of a step, context, horizon
    assert 0 < ours[0]["operations"] < ours[1]["operations"]
    for row in ours:
        assert row["gflops"] == pytest.approx(row["operations"] / row["fit_cpu_s"] / 1e9, abs=1e-3)
    again = train.run_train(learners=OURS[1:2], say=lambda line: None)["rows"]
    assert again[0]["operations"] == ours[2]["operations"]


def test_the_peer_is_trained_on_the_training_rows_for_the_steps_of_its_rung(toy, last_value):
    train.run_train(learners=("PatchTST",), say=lambda line: None)
    rows, changes = last_value[-1]
    np.testing.assert_array_equal(rows, ltsf.split_set("etth1").values[: ROWS[0]])
    assert changes["max_steps"] == 5


def test_the_validation_part_leaves_the_test_rows_unread(toy):
    one, other = [], []
    for found in (one, other):
        rows = train.run_train(learners=OURS[2:], part="validation", say=lambda line: None)["rows"]
        found.extend((row["mse"], row["mae"]) for row in rows)
        toy[sum(ROWS[:2]) :] = np.nan
    assert one == other
    with pytest.raises(ValueError, match="part='all'"):
        train.run_train(learners=OURS[2:], part="all")


def test_fits_that_stand_in_the_file_are_kept(toy, tmp_path, monkeypatch):
    path = tmp_path / "train.json"
    first = train.run_train(path, learners=OURS[2:], say=lambda line: None)
    assert json.loads(path.read_text())["rows"] == first["rows"]
    monkeypatch.setattr(train, "in_own_process", lambda *_: pytest.fail("it ran again"))
    assert train.run_train(path, learners=OURS[2:])["rows"] == first["rows"]
    with pytest.raises(ValueError, match="holds another run"):
        train.run_train(path, learners=OURS[2:], part="validation")


def test_a_fresh_run_measures_all_and_keeps_no_fit_of_before(toy, tmp_path):
    path = tmp_path / "train.json"
    train.run_train(path, learners=OURS[2:], say=lambda line: None)
    old = json.loads(path.read_text())
    old["rows"] = [{**old["rows"][0], "commit": "before"}, {**old["rows"][0], "learner": "Ridge", "commit": "before"}]
    path.write_text(json.dumps(old))
    command = ["benchmark", "train", "--learner", OURS[2], "--out", str(tmp_path)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert [row["commit"] for row in json.loads(path.read_text())["rows"]] == 2 * ["before"]
    done = CliRunner().invoke(app, [*command, "--fresh"])
    assert done.exit_code == 0, done.output
    rows = json.loads(path.read_text())["rows"]
    assert [(row["learner"], row["commit"]) for row in rows] == [(OURS[2], commit())]


def test_a_missing_peer_says_how_to_get_it_before_anything_is_fitted(toy, monkeypatch):
    monkeypatch.setitem(sys.modules, "neuralforecast", None)  # as where it is not installed
    monkeypatch.setattr(train, "in_own_process", lambda *_: pytest.fail("something was fitted"))
    with pytest.raises(ModuleNotFoundError, match="pip install neuralforecast"):
        train.run_train()
    with pytest.raises(ValueError, match="'Prophet' does not exist"):
        train.run_train(learners=("Prophet",))


def test_the_command_prints_the_rungs_and_writes_them(toy, tmp_path):
    done = CliRunner().invoke(app, ["benchmark", "train", "--learner", OURS[2], "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "reaches first" in done.output
    assert (tmp_path / "train.json").exists()


def test_the_table_shows_the_cheapest_fit_that_reaches_the_target(tmp_path):
    def row(learner, steps, mse, cpu, **more):
        costs = {"fit_cpu_s": cpu, "peak_rss_mb": 900, "rise_mb": 300}
        return {"learner": learner, "steps": steps, "seed": 0, "mse": mse, "mae": 0.4, **costs, **more}

    rows = [row("linear path off", 20, 0.38, 5.0), row("linear path off", 40, 0.374, 10.0, gflops=1.25)]
    rows += [
        row("linear path off", 80, 0.37, 20.0),
        row("PatchTST", 200, 0.375, 40.0),
        row("SeasonalNaive", 0, 0.5, 0.1),
    ]
    (tmp_path / "train.json").write_text(json.dumps({"target": 0.375, "rows": rows}))
    text = render("<!-- table train -->\n<!-- end -->", tmp_path)
    assert (
        "| linear path off | 20, 40, 80 | 40 steps | 0.3740 | 0.4000 | 10.0 | 25% | 900 | 300 | 1.25 | 0.3700 | 20.0 |"
        in text
    )
    assert "| SeasonalNaive | - | not reached | 0.5000 | 0.4000 | 0.1 |  | 900 | 300 |  | 0.5000 |" in text
    assert "commits" not in text
    for place, each in enumerate(rows):
        each["commit"] = "4b1d" if place < 2 else "7c50"
    (tmp_path / "train.json").write_text(json.dumps({"target": 0.375, "rows": rows}))
    text = render("<!-- table train -->\n<!-- end -->", tmp_path)
    said = "4b1d (linear path off 20/40); 7c50 (linear path off 80, PatchTST 200, SeasonalNaive)"
    assert f"\n\nNot one run, but of several commits: {said}.\n<!-- end -->" in text
