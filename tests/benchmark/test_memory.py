"""The benchmark of the memory: both sides compute the same, and a run says what it measured."""

import json
import os
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from titans_ts.benchmark import memory
from titans_ts.benchmark.memory import CASES, Case, SameMemory, measure, operations, peer_module, run_memory
from titans_ts.benchmark.runs import commit
from titans_ts.cli import app

SAME = [case for case in CASES if case.same]


SMALL = [replace(case, rows=min(case.rows, 2), tokens=100, dim=16, refresh=32) for case in SAME]
WIDE = Case(name="width 64, compiled kernels", heads=4, rows=2, tokens=256)


@pytest.mark.parametrize("case", [*SMALL, WIDE], ids=lambda case: case.name)
def test_both_sides_compute_the_same_with_the_same_gradients(case):
    pytest.importorskip("titans_pytorch")
    theirs = peer_module(case).double()
    ours = SameMemory(case).double()
    ours.copy(theirs)
    x = torch.randn(case.rows, case.tokens, case.dim, dtype=torch.float64, requires_grad=True)
    mine, peers = zip(*ours.counterparts(theirs), strict=True)
    assert set(mine) == set(ours.parameters())
    results = []
    for y, parameters in ((ours(x), [[each] for each in mine]), (theirs(x)[0], peers)):
        weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        gradients = iter(
            torch.autograd.grad((y * weight).sum(), [x, *(part for parts in parameters for part in parts)])
        )
        results.append([y, next(gradients), *(torch.cat([next(gradients) for _ in parts]) for parts in parameters)])
    for got, true in zip(*results, strict=True):
        assert true.any()
        assert (got - true).abs().max() < 1e-9 * true.abs().max().clamp(min=1)


def test_operations_are_those_of_the_formulas():
    assert operations(Case(name="linear", depth=1)) == 10 * 64**2 + 4 * 64 * 64 + 2 * 64**2
    assert operations(Case(name="heads", heads=4)) == 4 * (22 * 16 * 64 + 4 * 64 * 80 + 2 * 64**2)


def test_a_measurement_has_times_and_memory(monkeypatch):
    monkeypatch.setattr("titans_ts.benchmark.memory.FRESH_SECONDS", 0.0)
    found = measure(Case(name="small", dim=8, tokens=8, refresh=4), "ours")
    assert found["both_s"] > 0
    assert found["product_gflops"] > 0


def test_without_the_peer_a_run_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("titans_ts.benchmark.memory.peer_version", lambda: None)
    said = []
    run = run_memory([Case(name="small", dim=8, tokens=8, refresh=4)], said.append)
    assert "pip install titans-pytorch" in said[0]
    assert "forward_ratio" not in run["rows"][0]


def test_a_run_of_some_cases_keeps_the_others_that_the_file_holds(tmp_path, monkeypatch):
    measured = []

    def compare(case, peer):
        measured.append(case.name)
        return {"name": case.name, "forward_us": float(len(measured))}

    monkeypatch.setattr(memory, "compare", compare)
    monkeypatch.setattr(memory, "line_of", lambda row: row["name"])

    def command(*arguments):
        done = CliRunner().invoke(app, ["benchmark", "memory", "--out", str(tmp_path), *arguments])
        return json.loads((tmp_path / "memory.json").read_text()), done

    whole, _ = command()
    names = [case.name for case in CASES]
    assert [row["name"] for row in whole["rows"]] == names
    assert f"{os.cpu_count()} cores" in whole["machine"]
    (tmp_path / "memory.json").write_text(json.dumps({**whole, "commit": "before"}))
    again, _ = command("--case", "depth 1")
    assert measured[len(CASES) :] == ["depth 1, frozen", "depth 1, exact"]
    assert [row["name"] for row in again["rows"]] == names
    assert again["commit"] == commit()
    for old, new in zip(whole["rows"], again["rows"], strict=True):
        if new["name"].startswith("depth 1"):
            assert new["forward_us"] > len(CASES)
            assert "commit" not in new
        else:
            assert new == {**old, "commit": "before"}
    (tmp_path / "memory.json").write_text(json.dumps({**whole, "machine": ""}))
    kept, refused = command("--case", "depth 1")
    assert f"{len(CASES) - 2} rows that this run does not measure, of machine=''" in str(refused.exception)
    assert kept["rows"] == whole["rows"]
    assert len(measured) == len(CASES) + 2  # it was found before anything was measured
    assert command()[0]["machine"] == whole["machine"]


def test_a_case_that_does_not_exist_is_said():
    from titans_ts.cli import memory as command

    with pytest.raises(ValueError, match="no case begins with"):
        command(case=["nothing"], out=None)
