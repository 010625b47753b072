"""The reconciliation recipe, on a small hierarchy that needs no data set."""

import runpy
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from titans_ts import Ridge, SeasonalNaive
from titans_ts.data import registry

PATH = Path(__file__).parents[2] / "examples" / "reconcile.py"
recipe = SimpleNamespace(**runpy.run_path(str(PATH)))

NAMES = ["/".join(parts) for parts in product(("N", "S"), ("east", "west"), ("fun", "work"))]
PARTS = [name.replace("east", f"{name[0]}east").replace("west", f"{name[0]}west") for name in NAMES]
SUMS, LEVEL = recipe.summing(PARTS)


def trips(quarters=60):
    """Two states of two regions each, two purposes: a season, a shared trend that wanders, and noise."""
    random = np.random.default_rng(0)
    shared = np.cumsum(random.normal(size=quarters))
    season = np.tile([3.0, 1.0, 0.0, 2.0], quarters)[:quarters]
    own = 20 + shared[:, None] + season[:, None] + 2 * random.normal(size=(quarters, len(PARTS)))
    index = pd.date_range("2000-01-01", periods=quarters, freq="QS", name="ds")
    wide = pd.DataFrame(own, index=index, columns=pd.Index(PARTS, name="unique_id"))
    return wide.melt(ignore_index=False, value_name="y").reset_index()


def test_every_node_is_the_sum_of_its_parts():
    assert LEVEL.value_counts().to_dict() == {
        "total": 1,
        "purpose": 2,
        "state": 2,
        "state, purpose": 4,
        "region": 4,
        "region, purpose": 8,
    }
    frame = recipe.add_up(trips(), SUMS)
    wide = frame.pivot(index="ds", columns="unique_id", values="y")
    np.testing.assert_allclose(wide["*/*/*"], wide[PARTS].sum(axis=1))
    np.testing.assert_allclose(wide["N/*/fun"], wide["N/Neast/fun"] + wide["N/Nwest/fun"])
    np.testing.assert_allclose(wide["*/*/work"], wide[[name for name in PARTS if name.endswith("work")]].sum(axis=1))


@pytest.fixture
def covariance():
    random = np.random.default_rng(1)
    root = random.normal(size=(len(SUMS), len(SUMS)))
    return root @ root.T + np.eye(len(SUMS))


def test_reconciled_forecasts_add_up_and_those_that_do_stay(covariance):
    base = np.random.default_rng(2).normal(size=(6, len(SUMS)))
    lowest = [SUMS.index.get_loc(name) for name in SUMS.columns]
    for got in (recipe.min_trace(base, SUMS, covariance), recipe.bottom_up(base, SUMS)):
        np.testing.assert_allclose(got, got[:, lowest] @ SUMS.to_numpy().T, atol=1e-9)
        np.testing.assert_allclose(recipe.min_trace(got, SUMS, covariance), got, atol=1e-9)
    np.testing.assert_array_equal(recipe.bottom_up(base, SUMS)[:, lowest], base[:, lowest])


def test_no_other_forecast_that_adds_up_is_nearer(covariance):
    base = np.random.default_rng(2).normal(size=(1, len(SUMS)))
    got = recipe.min_trace(base, SUMS, covariance)

    def distance(other):
        return ((other - base) @ np.linalg.solve(covariance, (other - base).T)).item()

    for seed in range(20):
        other = got + 0.1 * np.random.default_rng(seed).normal(size=(1, len(PARTS))) @ SUMS.to_numpy().T
        assert distance(got) < distance(other)


def test_with_the_true_covariance_no_level_gets_worse(covariance):
    errors = np.random.default_rng(3).multivariate_normal(np.zeros(len(SUMS)), covariance, size=4000)
    before, after = (errors**2).mean(axis=0), (recipe.min_trace(errors, SUMS, covariance) ** 2).mean(axis=0)
    assert (after < before * 1.01).all()
    assert after.mean() < 0.8 * before.mean()


def test_the_covariance_of_few_errors_is_shrunk_and_of_many_is_not(covariance):
    random = np.random.default_rng(4)
    draws = random.multivariate_normal(np.zeros(len(SUMS)), covariance, size=20_000)
    many = recipe.shrunk_covariance(draws)
    np.testing.assert_allclose(many, covariance, atol=0.05 * covariance.max())
    few = recipe.shrunk_covariance(draws[:8])
    plain = draws[:8].T @ draws[:8] / 8
    np.testing.assert_allclose(np.diag(few), np.diag(plain))
    apart = ~np.eye(len(SUMS), dtype=bool)
    assert np.abs(few[apart]).sum() < 0.7 * np.abs(plain[apart]).sum()
    assert np.linalg.eigvalsh(few).min() > 0


@pytest.mark.parametrize("forecaster", [Ridge(4, context_length=12), SeasonalNaive(4)], ids=["ridge", "naive"])
def test_the_recipe_gives_the_errors_of_every_level(forecaster):
    table = recipe.reconcile(trips(), forecaster, season_length=4, tested=3, learnt=16)
    assert list(table) == ["nodes", "base", "bottom-up", "MinT"]
    assert table.index.tolist() == [*recipe.LEVELS, "all nodes"]
    assert table["nodes"].tolist() == [1, 2, 2, 4, 4, 8, 21]
    assert table.loc["region, purpose", "base"] == table.loc["region, purpose", "bottom-up"]
    assert np.isfinite(table).all(axis=None)
    if isinstance(forecaster, SeasonalNaive):  # repeating values adds up as the values do: nothing to mend
        np.testing.assert_allclose(table["MinT"], table["base"])


def test_the_future_does_not_choose_the_weights(monkeypatch):
    y, held = trips(), []
    monkeypatch.setitem(
        recipe.reconcile.__globals__,
        "shrunk_covariance",
        lambda errors: held.append(errors) or recipe.shrunk_covariance(errors),
    )
    for shift in (0.0, 1e3):
        changed = y.copy()
        changed.loc[changed["ds"] >= changed["ds"].unique()[-4], "y"] += shift
        recipe.reconcile(changed, Ridge(4, context_length=12), season_length=4, tested=1, learnt=16)
    np.testing.assert_array_equal(*held)
    assert held[0].shape == (16, len(SUMS))


def test_without_the_data_the_registry_says_where_to_put_them(monkeypatch, tmp_path):
    monkeypatch.delenv(registry.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(registry, "_user_cache", lambda: tmp_path)
    with pytest.raises(SystemExit, match=r"'aus_tourism' is not on this machine.*Put tourism.csv"):
        runpy.run_path(str(PATH), run_name="__main__")
