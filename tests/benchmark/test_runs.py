"""Runs as files: whole or not there, and what is asked for is looked at before anything runs."""

import json
import os

import pytest
import typer
from typer.testing import CliRunner

from titans_ts.benchmark import ablation, etth1, gift, groups, ltsf, panels, prices
from titans_ts.benchmark.runs import kept, not_measured, read_json, write_json
from titans_ts.cli import app
from titans_ts.models.config import VARIANTS

LTSF_MODELS = (*ltsf.OURS, *ltsf.PEERS)
PANEL_MODELS = (*panels.OURS, *panels.PEERS, *panels.NEURAL)
# the option of each benchmark, what there is, and a few of it that another benchmark has
CHOICES = {
    ("etth1", "--model"): (*etth1.MODELS, etth1.PEER),
    ("prices", "--model"): (*prices.MODELS, prices.PEER),
    ("ltsf", "--set"): ltsf.SETS,
    ("ltsf", "--model"): LTSF_MODELS,
    ("gift", "--set"): gift.CONFIGURATIONS,
    ("gift", "--model"): (*gift.OURS, *gift.NEURAL),
    ("panels", "--set"): panels.SETS,
    ("panels", "--model"): PANEL_MODELS,
    ("ablation", "--set"): ablation.SETS,
    ("ablation", "--variation"): tuple(ablation.VARIATIONS),
    ("ablation", "--path"): tuple(ablation.PATHS),
    ("groups", "--set"): tuple(groups.SETS),
    ("groups", "--way"): groups.ALL,
}


@pytest.fixture
def blind(monkeypatch):
    """No set can be read: a mistake that is only found in a run fails."""
    for module in (ablation, etth1, gift, groups, ltsf, panels, prices):
        monkeypatch.setattr(module, "load", lambda *_: pytest.fail("a set was read"))


def asked(*arguments):
    return CliRunner().invoke(app, ["benchmark", *map(str, arguments)])


@pytest.mark.usefixtures("blind")
@pytest.mark.parametrize("case", CHOICES, ids=" ".join)
def test_a_wrong_choice_is_found_before_anything_runs_and_all_right_ones_are_named(case, tmp_path):
    command, option = case
    done = asked(command, "--out", tmp_path, option, CHOICES[case][0], option, "co2")  # a set, but none of theirs
    assert isinstance(done.exception, ValueError)
    said = str(done.exception)
    assert "'co2' does not exist: there are " in said
    assert said.endswith(", ".join(map(repr, CHOICES[case])) + ".")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("blind")
@pytest.mark.parametrize("command", ["etth1", "ltsf", "gift", "panels", "prices"])
def test_a_wrong_part_is_found_before_anything_is_read(command, tmp_path):
    done = asked(command, "--out", tmp_path, "--part", "all")
    assert isinstance(done.exception, ValueError)
    assert "part='all' must be 'test' or 'validation'" in str(done.exception)


@pytest.mark.usefixtures("blind")
@pytest.mark.parametrize("length", ["foo", "0", "-1", "9.5", ""])
def test_a_context_that_is_none_says_which_option_and_what_is_wanted(length, tmp_path):
    done = asked("ltsf", "--out", tmp_path, f"--context={length}")
    assert isinstance(done.exception, ValueError)
    assert f"--context {length!r} must be a whole number of rows, 1 or more, or 'free'" in str(done.exception)


def test_single_runs_name_what_there_is():
    with pytest.raises(ValueError, match="variation 'mad' does not exist: there are 'default', 'mac'"):
        ablation.run_ablation("etth1", "mad", "whole")
    with pytest.raises(ValueError, match="path 'half' does not exist: there are 'backbone alone', 'whole'"):
        ablation.run_ablation("etth1", "mac", "half")
    with pytest.raises(ValueError, match="way 'alone' does not exist: there are 'closed form', 'closed form, joined'"):
        groups.run_groups("etth1", "alone")
    with pytest.raises(ValueError, match="set 'm5' does not exist: there are 'm1_yearly'"):
        panels.run_panel("m5", "Ridge")
    with pytest.raises(ValueError, match="set 'co2' does not exist: there are 'etth1'"):
        ltsf.run_ltsf("co2", "Ridge", None)


HELP = {case: names for case, names in CHOICES.items() if case not in (("gift", "--set"), ("panels", "--set"))}


@pytest.mark.parametrize("case", [*HELP, ("recall", "--variant")], ids=" ".join)
def test_the_help_names_every_choice(case):
    command, option = case
    found = typer.main.get_command(app).commands["benchmark"].commands[command].params
    text = next(each.help for each in found if option in each.opts)
    for name in HELP.get(case, VARIANTS):
        assert name in text


def test_a_run_that_is_stopped_while_it_is_written_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_json({"mse": 1.0}, path)
    with monkeypatch.context() as patched:
        patched.setattr(json, "dumps", lambda *_, **__: pytest.fail("stopped before"))
        with pytest.raises(pytest.fail.Exception):
            write_json({"mse": 2.0}, path)
    assert read_json(path) == {"mse": 1.0}

    def stopped(source, target):
        assert json.loads(source.read_text()) == {"mse": 2.0}  # the whole run stands beside
        raise KeyboardInterrupt

    monkeypatch.setattr(type(path), "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_json({"mse": 2.0}, path)
    assert read_json(path) == {"mse": 1.0}
    assert os.listdir(tmp_path) == ["run.json"]


@pytest.mark.parametrize("torn", ["", '{"mse": 1.', "\ufeff"])
def test_a_file_that_is_not_whole_is_named_with_what_to_do(torn, tmp_path):
    path = tmp_path / "run.json"
    path.write_text(torn)
    with pytest.raises(ValueError, match=r"run\.json holds no whole run .*: delete it, and it is measured again"):
        kept(path, lambda: pytest.fail("it ran"))
    path.unlink()
    assert kept(path, lambda: {"mse": 1.0}) == {"mse": 1.0}


def test_rows_of_another_machine_are_not_put_beside_new_ones():
    old = {"commit": "a", "machine": "one", "rows": [{"n": 1}, {"n": 2, "commit": "b"}, {"n": 3}]}
    left = not_measured(old, {"machine": "one"}, "rows", lambda row: row["n"] == 3)
    assert left == [{"n": 1, "commit": "a"}, {"n": 2, "commit": "b"}]
    told = not_measured(old, {}, "rows", lambda row: row["n"] != 2, ("commit", "machine"))
    assert told == [{"n": 2, "commit": "b", "machine": "one"}]
    with pytest.raises(ValueError, match=r"2 rows .* machine='one', and here it is 'two': choose another --out"):
        not_measured(old, {"machine": "two"}, "rows", lambda row: row["n"] == 3)
    assert not_measured(old, {"machine": "two"}, "rows", lambda row: True) == []
    assert not_measured(None, {"machine": "two"}, "rows", lambda row: False) == []
