"""The benchmark of series that belong together, on two small ones made here."""

import dataclasses
import sys

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from titans_ts.benchmark import groups, ltsf
from titans_ts.benchmark.tables import render
from titans_ts.cli import app
from titans_ts.data import describe

ROWS = 500
CLOSED = ("closed form", "closed form, joined")


@pytest.fixture
def toy(monkeypatch):
    """Two farms, of which the second has the wind of the first an hour later, under the name of a known set."""
    wind = np.random.default_rng(0).normal(size=ROWS + 1)
    values = np.column_stack([wind[1:], wind[:-1]])

    def load(name, folder):
        ids = np.repeat(["a", "b"], ROWS)
        return pd.DataFrame({"unique_id": ids, "ds": np.tile(np.arange(ROWS), 2), "y": values.T.ravel()})

    card = dataclasses.replace(describe("wind_farms"), series=2, season_length=1)
    monkeypatch.setattr(groups, "load", load)
    monkeypatch.setattr(groups, "describe", lambda name: card)
    monkeypatch.setattr(groups, "SETS", {"wind_farms": (2, 8)})
    return values


def test_the_last_fifth_is_never_read(toy):
    split = groups.split_of("wind_farms")
    assert (len(split.values), split.train, split.validation) == (400, 280, 60)
    toy[400:] = 1e9
    assert (groups.split_of("wind_farms").values == split.values).all()
    with pytest.raises(ValueError, match="set 'etth3' does not exist: there are 'wind_farms'"):
        groups.split_of("etth3")


def test_what_runs_before_another_series_halves_its_error_at_the_first_step(toy):
    alone, joined, ridge = (groups.run_groups("wind_farms", way)["scores"]["1"] for way in (*CLOSED, "ridge"))
    assert joined["mse"] < 0.7 * alone["mse"]  # of two series one is told
    assert abs(ridge["mse"] / alone["mse"] - 1) < 0.1
    assert "crps" in joined
    assert "crps" not in ridge


@pytest.fixture
def last_value(monkeypatch):
    """Peers that repeat the last value, and what they were trained on."""
    given = []
    monkeypatch.setattr(groups, "import_peers", lambda model: None)
    monkeypatch.setattr(ltsf, "fit_peer", lambda *asked: given.append(asked))
    monkeypatch.setattr(ltsf, "say_peer", lambda peer, contexts: np.repeat(contexts[:, -1:], 2, 1))
    return given


@pytest.mark.parametrize("way", groups.PEERS)
def test_a_peer_learns_from_the_training_rows_and_is_scored_in_the_same_windows(toy, last_value, way):
    made, naive = (groups.run_groups("wind_farms", each)["scores"] for each in (way, "seasonal naive"))  # a season is 1
    for steps in ("1", "2"):
        assert {name: naive[steps][name] for name in ("mse", "mae")} == made[steps]
    model, rows, context, horizon, _ = last_value[0]
    assert (model, context, horizon) == (way, 8, 2)
    np.testing.assert_array_equal(rows, groups.split_of("wind_farms").values[:280])


def test_a_peer_has_a_run_a_seed_and_stands_last(toy, last_value, tmp_path):
    ways = [part for way in ("NHITS", "ridge") for part in ("--way", way)]
    command = ["benchmark", "groups", "--out", str(tmp_path / "groups"), "--seed", "0", "--seed", "1", *ways]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert [asked[-1] for asked in last_value] == [0, 1]
    assert len(list((tmp_path / "groups").iterdir())) == 3
    lines = render("<!-- table groups -->\n<!-- end -->", tmp_path).splitlines()
    assert [line.split(" | ")[2] for line in lines if "wind_farms" in line] == ["ridge", "NHITS"] * 2


def test_a_missing_peer_says_how_to_get_it_before_anything_is_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "neuralforecast", None)  # as where it is not installed
    monkeypatch.setattr(groups, "load", lambda *_: pytest.fail("a set was read"))
    with pytest.raises(ModuleNotFoundError, match="NHITS needs neuralforecast"):
        groups.run_groups("wind_farms", "NHITS")


def test_the_command_keeps_its_runs_and_the_table_has_them(toy, tmp_path):
    ways = [part for way in (*CLOSED, "ridge") for part in ("--way", way)]
    command = ["benchmark", "groups", "--out", str(tmp_path / "groups"), *ways]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0, said.output
    assert "closed form, joined" in said.output
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "groups").iterdir()}
    assert len(before) == 3
    assert CliRunner().invoke(app, command).exit_code == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "groups").iterdir()}
    table = render("<!-- table groups -->\n<!-- end -->", tmp_path)
    assert table.count("| wind_farms | 1 |") == 3
    assert "1 of 2" in table
