"""What the documentation shows runs: README blocks, examples, and the doctests of the package."""

import re
import runpy
from pathlib import Path

import pytest

from titans_ts.benchmark.tables import render

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_block_of_the_readme_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})
    assert list(tmp_path.iterdir()) == []


# reconcile.py needs a data set that is not shipped: tests/examples/test_reconcile.py runs it without
EXAMPLES = [path for path in sorted((ROOT / "examples").glob("*.py")) if path.stem != "reconcile"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_prints(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_example_of_the_readme_is_not_empty():
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("name", ["README.md", "RESULTS.md"])
def test_the_tables_are_those_of_the_runs(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "<!-- table" in text
    assert render(text, ROOT / "tests" / "results") == text


PAPER = (ROOT / "PAPER.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`((?:core|models|forecasting|data|benchmark)/[\w/]+\.py)(?:: ([\w., ]+))?`", PAPER)


def test_what_the_paper_table_names_exists():
    assert len(NAMED) > 10
    for path, names in NAMED:
        code = (ROOT / "titans_ts" / path).read_text(encoding="utf-8")
        for name in names.split(", ") if names else ():
            assert re.search(rf"\b{name.split('.')[-1]}\b", code), f"{path} has no {name}"
