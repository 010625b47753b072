"""The benchmark of series that belong together, on two small ones made here."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from titans_ts.benchmark import groups
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
