"""`datasets/`: the files, their cards and where they come from."""

import hashlib
import runpy
from pathlib import Path

import pytest

from titans_ts.data import describe, load

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "datasets"
SHIPPED = sorted(path.stem for path in FOLDER.glob("*.csv"))


@pytest.fixture(scope="module")
def rebuilt() -> dict[str, bytes]:
    pytest.importorskip("statsmodels")
    return runpy.run_path(str(ROOT / "tests" / "tools" / "make_datasets.py"))["build"]()


def test_the_five_sets_are_there():
    assert SHIPPED == ["co2", "elnino", "macrodata", "nile", "sunspots"]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_generator_writes_the_same_bytes(name, rebuilt):
    assert rebuilt[f"{name}.csv"] == (FOLDER / f"{name}.csv").read_bytes()


@pytest.mark.parametrize("name", SHIPPED)
def test_the_manifest_has_the_hash_of_the_file(name):
    assert describe(name).sha256 == hashlib.sha256((FOLDER / describe(name).file).read_bytes()).hexdigest()


@pytest.mark.parametrize("name", SHIPPED)
def test_the_card_table_tells_what_the_file_holds(name):
    frame, card = load(name, folder=FOLDER), describe(name)
    series = frame["unique_id"].nunique()
    (line,) = [
        line for line in (FOLDER / "README.md").read_text(encoding="utf-8").splitlines() if f"`{name}.csv`" in line
    ]
    assert f"| {series} x {len(frame) // series} |" in line
    assert f"(`{card.freq}`)" in line
    assert f"| {frame['y'].isna().sum()} |" in line
    assert line.rstrip(" |").endswith(card.licence)


def test_only_the_co2_set_has_missing_weeks_and_keeps_them():
    missing = {name: int(load(name)["y"].isna().sum()) for name in SHIPPED}
    assert missing == {"co2": 59, "elnino": 0, "macrodata": 0, "nile": 0, "sunspots": 0}


def test_the_folder_holds_bytes_and_cards_only():
    assert {path.suffix for path in FOLDER.rglob("*") if path.is_file()} <= {".csv", ".gz", ".md"}


def test_what_is_larger_than_100_kb_is_compressed():
    assert [path.name for path in FOLDER.glob("*.csv") if path.stat().st_size > 100_000] == []
