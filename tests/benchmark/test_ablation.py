"""The ablation, on a small set made here."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from titans_ts.benchmark import ablation, ltsf
from titans_ts.benchmark.tables import render
from titans_ts.cli import app
from titans_ts.data import describe
from titans_ts.models.config import TimeSeriesConfig
from titans_ts.models.timeseries import TimeSeriesModel

HORIZON = 6


@pytest.fixture
def toy(monkeypatch):
    """Six monthly series of 90 months under the name of a known set; the values may be changed in place."""
    random, steps = np.random.default_rng(0), np.arange(90)
    values = 50 + 10 * np.sin(2 * np.pi * (steps + np.arange(6)[:, None]) / 12) + random.normal(size=(6, 90))

    def load(name, folder):
        return pd.DataFrame({"unique_id": np.repeat(np.arange(6), 90), "y": values.ravel()})

    card = dataclasses.replace(describe("tourism_monthly"), horizon=HORIZON)
    monkeypatch.setattr(ablation, "load", load)
    monkeypatch.setattr(ablation, "describe", lambda name: card)
    return values


def test_every_variation_changes_one_part():
    default = dataclasses.asdict(ablation.DEFAULT)
    for name, config in ablation.VARIATIONS.items():
        changed = [field for field, value in dataclasses.asdict(config).items() if value != default[field]]
        inner = default["memory"]
        parts = [field for field, value in dataclasses.asdict(config)["memory"].items() if value != inner[field]]
        assert (len(changed), len(parts)) in (
            [(0, 0)] if name == "default" else [(1, 0), (1, 1 + ("chunk" in name))]
        ), name
    assert len({str(config) for config in ablation.VARIATIONS.values()}) == len(ablation.VARIATIONS) == 10


def test_the_test_rows_are_cut_off(toy, monkeypatch):
    task = ablation.make_task("tourism_monthly")
    assert [len(y) for y in task.series] == [90 - HORIZON] * 6
    assert (task.windows, task.horizon) == (1, HORIZON)
    run = ablation.run_ablation("tourism_monthly", "default", "whole", steps=1)
    toy[:, -HORIZON:] = np.nan
    assert ablation.run_ablation("tourism_monthly", "default", "whole", steps=1)["mase"] == run["mase"]
    rows = ltsf.Split(np.zeros((5000, 7)), 3000, 1000)
    monkeypatch.setattr(ltsf, "split_set", lambda name, folder, part: rows if part == "validation" else None)
    task = ablation.make_task("etth1")
    assert (len(task.series), len(task.series[0]), task.horizon, task.windows) == (7, 5000, 96, 20)
    with pytest.raises(
        ValueError, match="set 'm5' does not exist: there are 'etth1', 'weather', 'm4_hourly', 'tourism_monthly'"
    ):
        ablation.make_task("m5")


def test_a_memory_that_is_off_is_read_as_it_began():
    for variation, moves in (("default", True), ("memory off", False)):
        config = TimeSeriesConfig(
            horizon=4, context=32, patch=8, quantiles=(0.5,), backbone=ablation.VARIATIONS[variation]
        )
        model = TimeSeriesModel(config).eval()
        before = model.initial_state(1)
        with torch.no_grad():
            _, after = model.encode(torch.randn(1, 64, dtype=torch.float64), before)
        old, new = ([weight for block in state.backbone for weight in block.weights] for state in (before, after))
        same = all(torch.equal(one, other) for one, other in zip(old, new, strict=True))
        assert same != moves


def test_a_run_says_what_its_memories_do(toy):
    run = ablation.run_ablation("tourism_monthly", "default", "backbone alone", steps=8)
    assert len(run["memories"]) == ablation.DEFAULT.depth
    for block in run["memories"]:
        assert 0.3 < block["momentum"] < 0.7
        assert 2e-4 < block["forgetting"] < 5e-3
        assert block["half_life"] > 500
        assert 0 < block["read"] < 0.1
    assert [*run["reach"]] == ["1", "2", "4", "8", "all"]
    assert run["reach"]["all"] == run["reach"]["8"] == pytest.approx(run["mase"], abs=1e-5)
    assert run["reach"]["1"] != run["reach"]["8"]


def test_runs_are_written_once_and_read_again(toy, tmp_path, monkeypatch):
    arguments = ("tourism_monthly",), ("default", "memory off"), ("backbone alone",), (0,), tmp_path
    results = ablation.run_ablations(*arguments, steps=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ablation-tourism_monthly-default-backbone_alone-0-2_steps.json",
        "ablation-tourism_monthly-memory_off-backbone_alone-0-2_steps.json",
    ]
    assert results[0]["steps"] == 2
    monkeypatch.setattr(ablation, "run_ablation", lambda *_, **__: pytest.fail("it ran again"))
    assert ablation.run_ablations(*arguments, steps=2) == results
    assert len(ablation.ablation_table(results)) == 2


def test_the_command_writes_its_runs(toy, tmp_path):
    asked = [
        "--set",
        "tourism_monthly",
        "--variation",
        "momentum off",
        "--path",
        "whole",
        "--seed",
        "0",
        "--steps",
        "1",
    ]
    done = CliRunner().invoke(app, ["benchmark", "ablation", "--out", str(tmp_path), *asked])
    assert done.exit_code == 0, done.output
    assert [path.name for path in tmp_path.iterdir()] == ["ablation-tourism_monthly-momentum_off-whole-0-1_steps.json"]


def test_the_table_is_relative_to_the_default_of_the_same_seed(tmp_path):
    (tmp_path / "ablation").mkdir()
    for variation, errors in (("default", (1.0, 2.0)), ("mac", (1.1, 1.8))):
        for seed, mase in enumerate(errors):
            run = {
                "set": "etth1",
                "variation": variation,
                "path": "backbone alone",
                "seed": seed,
                "mase": mase,
                "fit_cpu_s": 9.0,
            }
            (tmp_path / "ablation" / f"ablation-{variation}-{seed}.json").write_text(json.dumps(run))
    text = render("<!-- table ablation -->\n<!-- end -->", tmp_path)
    assert "| backbone alone | default | 1.5000 ± 0.7071 |  |  |  | 9 |" in text
    assert "| backbone alone | mac | 1.0000 ± 0.1414 |  |  |  | 9 |" in text
    assert "| backbone alone | mal |  |  |  |  |  |" in text


def test_the_table_of_memories_has_a_row_a_set(toy, tmp_path):
    ablation.run_ablations(
        ("tourism_monthly",), ("default",), ("backbone alone",), (0,), tmp_path / "ablation", steps=1
    )
    text = render("<!-- table memories -->\n<!-- end -->", tmp_path)
    assert len(text.splitlines()) == 5
    assert "| tourism_monthly | 0." in text
