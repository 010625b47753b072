"""Electricity prices with the day-ahead forecasts of load and generation: what covariates that are known ahead bring.

Four European markets, hourly. Everything before the last 14 days fits; from then on every midnight the next 24 hours
are forecast, with the covariates of these hours and without, and then the day itself comes in (`update`).

The peer is NHITS of neuralforecast, with the covariates and without; it is run from an environment of its own by the
same command, into the same folder.

Axes: M markets, D days.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..data import load
from ..forecasting.base import PanelForecaster
from ..forecasting.baselines import Ridge, SeasonalNaive
from ..forecasting.forecaster import TitansForecaster
from ..forecasting.panel import Float
from .neural import QuantilePeer, import_peers
from .runs import Cost, commit, not_measured, require_known, require_part

DAYS, HORIZON = 14, 24
KNOWN = ("Exogenous1", "Exogenous2")
SEEDS = (0, 1, 2, 3, 4)
NAIVE = "seasonal naive, a day"
MODELS = (NAIVE, "seasonal naive, a week", "ridge", "Titans")
PEER = "NHITS"
LEVELS = tuple(round(0.1 * k, 1) for k in range(1, 10))
DRAWS = 10_000  # of the bootstrap


def split_days(y: pd.DataFrame, part: str = "test") -> tuple[pd.DataFrame, pd.DataFrame]:
    """All but the last 14 days of every market, and these days; `part="validation"` first drops the test days.

    >>> hours = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2020-01-01", periods=40 * 24, freq="h")})
    >>> [len(part) // 24 for part in split_days(hours, "validation")]
    [12, 14]
    """
    require_part(part)
    left = y.groupby("unique_id").cumcount(ascending=False)
    behind = 0 if part == "test" else DAYS * HORIZON
    inside = (left >= behind) & (left < behind + DAYS * HORIZON)
    return y[left >= behind + DAYS * HORIZON].reset_index(drop=True), y[inside].reset_index(drop=True)


def forecast_days(
    forecaster: PanelForecaster | QuantilePeer, later: pd.DataFrame, known: tuple[str, ...] = ()
) -> pd.DataFrame:
    """Forecasts of every day of `later` from what came before it: `unique_id, ds, y, day, forecast, low, high`. The
    forecaster given is left as it is."""
    moving, name = copy.deepcopy(forecaster), type(forecaster).__name__
    day = later.groupby("unique_id").cumcount() // HORIZON
    pages = []
    for number, page in later.groupby(day):
        future = page[["unique_id", "ds", *known]] if known else None
        said = moving.predict(quantiles=LEVELS, future=future)
        said = said.rename(columns={name: "forecast", f"{name}-ql0.1": "low", f"{name}-ql0.9": "high"})
        said = said[["unique_id", "ds", "forecast", "low", "high"]]
        scored = page[["unique_id", "ds", "y"]].merge(said, on=["unique_id", "ds"], validate="one_to_one")
        if len(scored) != len(page):
            raise ValueError(f"{name} left {len(page) - len(scored)} of {len(page)} hours of day {number} out.")
        pages.append(scored.assign(day=number))
        moving.update(page)
    return pd.concat(pages, ignore_index=True)


def daily_errors(said: pd.DataFrame) -> pd.DataFrame:
    """Mean absolute error of every market (rows) and day (columns)."""
    return (said["y"] - said["forecast"]).abs().groupby([said["unique_id"], said["day"]]).mean().unstack()


def change(with_: Float, without: Float, naive: Float, *, seed: int = 0) -> dict[str, float]:
    """The relative change in error from `without` to `with_`, and the 80 % interval of it over markets and days.

    All are errors `[M, D]`; a market counts in units of the mean error of `naive`. The bootstrap draws markets and then
    days of each, with replacement.

    >>> errors = np.ones((4, 14))
    >>> change(0.5 * errors, errors, errors)
    {'change': -0.5, 'low': -0.5, 'high': -0.5}
    """
    unit = naive.mean(axis=1, keepdims=True)
    with_, without = with_ / unit, without / unit
    random = np.random.default_rng(seed)
    market = random.integers(len(unit), size=(DRAWS, len(unit), 1))
    day = random.integers(with_.shape[1], size=(DRAWS, len(unit), with_.shape[1]))
    drawn = with_[market, day].mean(axis=(1, 2)) / without[market, day].mean(axis=(1, 2)) - 1
    low, high = np.quantile(drawn, (0.1, 0.9))
    return {
        "change": round(float(with_.mean() / without.mean() - 1), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
    }


def make_forecaster(
    model: str, seed: int, known: tuple[str, ...], params: dict[str, Any]
) -> PanelForecaster | QuantilePeer:
    """One of `MODELS` or the peer; params: of `TitansForecaster`."""
    if model == PEER:
        return QuantilePeer(PEER, HORIZON, "h", 24, LEVELS, seed, known)
    if model == "Titans":
        # The median has the least absolute error.
        params = {"point": "median", "random_state": seed, "known_covariates": known, **params}
        return TitansForecaster(HORIZON, season_length=24, **params)
    if model == "ridge":
        return Ridge(HORIZON, season_length=24)
    return SeasonalNaive(HORIZON, season_length=24 if model == NAIVE else 168)


def run_prices(
    folder: str | None = None,
    *,
    models: tuple[str, ...] = MODELS,
    earlier: dict[str, Any] | None = None,
    seeds: tuple[int, ...] = SEEDS,
    part: str = "test",
    **params: Any,
) -> dict[str, Any]:
    """These forecasters on all markets, beside the naive one that gives the unit, and those of others that an earlier
    run has; `part="validation"` leaves the test days unread.

    params: of `TitansForecaster`, for experiments; the table of the documentation uses the defaults.
    """
    order = (*MODELS, PEER)
    require_known("model", models, order)
    require_part(part)
    about = {"dataset": "power_prices", "part": part, "days": DAYS, "horizon": HORIZON}
    models = tuple(model for model in order if model in (NAIVE, *models))
    kept = not_measured(earlier, about, "rows", lambda row: row["model"] in models, ("commit", "peak_rss_mb"))
    if PEER in models:
        import_peers(PEER)
    torch.set_num_threads(1)
    cost = Cost()
    past, later = split_days(load("power_prices", folder), part)
    cases: list[tuple[str, int | None, tuple[str, ...]]] = []
    for model in models:
        if model in ("Titans", PEER):
            cases += [(model, seed, known) for known in ((), KNOWN) for seed in seeds]
        else:
            cases.append((model, None, ()))
    rows: list[dict[str, Any]] = []
    errors: dict[tuple[str, bool], list[Float]] = {}
    for model, seed, known in cases:
        forecaster = make_forecaster(model, seed or 0, known, params)
        began = time.process_time()
        forecaster.fit(past)
        fitted = time.process_time()
        said = forecast_days(forecaster, later, known)
        table = daily_errors(said)
        errors.setdefault((model, bool(known)), []).append(table.to_numpy())
        inside = (said["y"] >= said["low"]) & (said["y"] <= said["high"])
        row: dict[str, Any] = {"model": model, "covariates": list(known), "seed": seed}
        row |= {"mae": {str(name): round(float(mae), 4) for name, mae in table.mean(axis=1).items()}}
        row |= {"coverage-80": round(float(inside.mean()), 4), "fit_cpu_s": round(fitted - began, 2)}
        rows.append(row | {"stream_cpu_s": round(time.process_time() - fitted, 2)})
    naive = errors[NAIVE, False][0]
    for row, each in zip(rows, [each for key in errors for each in errors[key]], strict=True):
        row["relative_mae"] = round(float((each.mean(axis=1) / naive.mean(axis=1)).mean()), 4)
    run = {"commit": commit(), "peak_rss_mb": cost.peak_rss_mb()}
    rows = sorted([*kept, *({**row, **run} for row in rows)], key=lambda row: order.index(row["model"]))
    return {
        **about,
        "seeds": sorted({row["seed"] for row in rows if row["seed"] is not None}),
        "cpu_s": round(sum(row["fit_cpu_s"] + row["stream_cpu_s"] for row in rows), 1),
        "rows": rows,
        **changes(errors, naive, earlier),
    }


def changes(
    errors: dict[tuple[str, bool], list[Float]], naive: Float, earlier: dict[str, Any] | None
) -> dict[str, Any]:
    """What the covariates change for Titans; where it was not measured what an earlier run says of it, if one does."""
    if ("Titans", True) not in errors:
        return {name: earlier[name] for name in ("change", "change_by_seed") if earlier and name in earlier}
    with_, without = errors["Titans", True], errors["Titans", False]
    return {
        # the errors of the seeds are averaged before days and markets are drawn
        "change": change(np.mean(with_, axis=0), np.mean(without, axis=0), naive),
        "change_by_seed": [change(a, b, naive)["change"] for a, b in zip(with_, without, strict=True)],
    }


def prices_table(result: dict[str, Any]) -> pd.DataFrame:
    """A row a forecaster, its seeds averaged: mean absolute error by market and relative to the seasonal naive one."""
    found: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for row in result["rows"]:
        found.setdefault((row["model"], bool(row["covariates"])), []).append(row)
    rows = []
    for (model, known), runs in found.items():
        shown = {"forecaster": model, "covariates": "yes" if known else "no", "seeds": len(runs)}
        for market in runs[0]["mae"]:
            shown[market] = np.mean([run["mae"][market] for run in runs])
        for name in ("relative_mae", "coverage-80", "fit_cpu_s"):
            shown[name] = np.mean([run[name] for run in runs])
        rows.append(shown)
    return pd.DataFrame(rows)
