"""Panels of the forecasting competitions: fit on all but the last horizon, forecast it, compare with the peers.

The peers are AutoETS, AutoTheta and AutoARIMA of statsforecast, which wants pandas below 3, and NHITS and PatchTST of
neuralforecast, which brings Lightning and Ray along (`neural.py` says how they are trained). They are run from
environments of their own, by the same command, and their numbers come together in one folder of JSON files.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..data import describe, load
from ..forecasting.baselines import Ridge, SeasonalNaive
from ..forecasting.forecaster import TitansForecaster
from ..forecasting.metrics import evaluate
from .neural import QuantilePeer
from .runs import Cost, commit, kept, require_known, require_part

SETS = (
    *(f"{source}_{step}" for source in ("m1", "m3", "tourism") for step in ("yearly", "quarterly", "monthly")),
    "m4_yearly",
    "m4_hourly",
)
OURS = ("Titans", "Ridge", "SeasonalNaive")
PEERS = ("AutoETS", "AutoTheta", "AutoARIMA")
NEURAL = ("NHITS", "PatchTST")
LEVELS = tuple(round(0.1 * k, 1) for k in range(1, 10))
FEWEST = 11  # rows that a series must keep to be learnt from on the validation part: ETS refuses fewer
# a thousand series of M4 yearly, by seed; forty of M4 hourly, since AutoARIMA needs minutes for each ten of them
SAMPLED = {"m4_yearly": 1000, "m4_hourly": 40}


def split_panel(
    name: str, folder: str | None = None, *, seed: int = 0, part: str = "test"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All but the last horizon of every series, and the last horizon; of the largest sets a sample by seed.

    `part="validation"` leaves the last horizon unread and takes the one before it; series that would keep less than a
    horizon and two rows, or than `FEWEST` rows, are left out.
    """
    require_part(part)
    y, horizon = load(name, folder), int(describe(name).horizon or 1)
    if name in SAMPLED:
        ids = y["unique_id"].unique()
        y = y[y["unique_id"].isin(np.random.default_rng(seed).choice(ids, SAMPLED[name], replace=False))]
    if part == "validation":
        rows = y.groupby("unique_id")["y"].transform("size")
        y = y[
            (y.groupby("unique_id").cumcount(ascending=False) >= horizon)
            & (rows >= 2 * horizon + max(horizon + 2, FEWEST))
        ]
    left = y.groupby("unique_id").cumcount(ascending=False)
    return y[left >= horizon].reset_index(drop=True), y[left < horizon].reset_index(drop=True)


def forecast_fitted(model: str, train: pd.DataFrame, horizon: int, season: int, freq: str, seed: int) -> pd.DataFrame:
    """Forecasts of one of `OURS` or `NEURAL`, with the quantiles of `LEVELS`, columns `model` and `model-ql<level>`."""
    makers: dict[str, Callable[[], Any]] = {
        "Titans": lambda: TitansForecaster(horizon, freq, season, point="median", random_state=seed),
        "Ridge": lambda: Ridge(horizon, freq=freq, season_length=season),
        "SeasonalNaive": lambda: SeasonalNaive(horizon, freq=freq, season_length=season),
        **{name: partial(QuantilePeer, name, horizon, freq, season, LEVELS, seed) for name in NEURAL},
    }
    forecaster = makers[model]().fit(train)
    said: pd.DataFrame = forecaster.predict(quantiles=LEVELS)
    return said.rename(columns=lambda column: column.replace(type(forecaster).__name__, model, 1))


def forecast_peer(model: str, train: pd.DataFrame, horizon: int, season: int, freq: str) -> pd.DataFrame:
    """Forecasts of one of `PEERS`: its point, and the quantiles of `LEVELS` from its intervals."""
    try:
        from statsforecast import StatsForecast, models
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{model} needs statsforecast, which wants pandas below 3: pip install statsforecast titans-ts in an "
            "environment of its own, and run this command there with the same --out."
        ) from error
    peer = StatsForecast([getattr(models, model)(season_length=season)], freq=freq)
    widths = [20, 40, 60, 80]
    said = peer.forecast(df=train, h=horizon, level=widths)
    for width in widths:
        for side, level in (("lo", 0.5 - width / 200), ("hi", 0.5 + width / 200)):
            said[f"{model}-ql{level:g}"] = said.pop(f"{model}-{side}-{width}")
    said[f"{model}-ql0.5"] = said[model]
    return pd.DataFrame(said)


def run_panel(name: str, model: str, *, folder: str | None = None, seed: int = 0, part: str = "test") -> dict[str, Any]:
    """One model on one set: MASE (mean over the series), CRPS, coverage of the 80 % interval, CPU seconds."""
    require_known("set", [name], SETS)
    require_known("model", [model], (*OURS, *PEERS, *NEURAL))
    card = describe(name)
    train, test = split_panel(name, folder, seed=seed, part=part)
    horizon, season = int(card.horizon or 1), card.season_length
    cost = Cost()
    if model not in PEERS:
        said = forecast_fitted(model, train, horizon, season, card.freq, seed)
    else:
        said = forecast_peer(model, train, horizon, season, card.freq)
    cpu, peak = cost.cpu_s(), cost.peak_rss_mb()
    scored = test.merge(said, on=["unique_id", "ds"], how="left", validate="one_to_one")
    lacking = scored[model].isna().sum()
    if lacking:
        raise ValueError(f"{model} left {lacking} of {len(scored)} values of {name} without a forecast.")
    scored[f"{model}-lo-80"], scored[f"{model}-hi-80"] = scored[f"{model}-ql0.1"], scored[f"{model}-ql0.9"]
    row = evaluate(scored, train, [model], season_length=season, level=[80]).iloc[0]
    return {
        "set": name,
        "part": part,
        "model": model,
        "series": int(test["unique_id"].nunique()),
        "values": len(scored),
        "mase": round(float(row["mase"]), 4),
        "crps": round(float(row["crps"]), 5),
        "coverage-80": round(float(row["coverage-80"]), 4),
        "cpu_s": cpu,
        "peak_rss_mb": peak,
        "seed": seed,
        "commit": commit(),
    }


def run_panels(
    sets: tuple[str, ...],
    models: tuple[str, ...],
    out: Path,
    *,
    folder: str | None = None,
    seed: int = 0,
    part: str = "test",
) -> list[dict[str, Any]]:
    """Every model on every set, each in a JSON file of its own; what is there already is read, not run again."""
    require_known("set", sets, SETS)
    require_known("model", models, (*OURS, *PEERS, *NEURAL))
    require_part(part)
    results = []
    for name in sets:
        for model in models:
            run = partial(run_panel, name, model, folder=folder, seed=seed, part=part)
            middle = "" if part == "test" else f"{part}-"
            results.append(kept(out / f"panels-{name}-{model}-{middle}{seed}.json", run))
    return results


def panels_table(results: list[dict[str, Any]]) -> pd.DataFrame:
    """MASE and CRPS of every set (rows) and model, and the mean over the sets that all models have."""
    frame = pd.DataFrame(results)
    wide = frame.pivot(index="set", columns="model", values=["mase", "crps", "coverage-80"]).reindex(
        [name for name in SETS if name in set(frame["set"])]
    )
    wide.loc["mean"] = wide.dropna().mean()
    return wide
