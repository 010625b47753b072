"""The demo: fit on the first part of a real series, then forecast and learn through the last part as it comes in."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from ..data import describe, load
from ..forecasting.base import PanelForecaster
from ..forecasting.baselines import Ridge, SeasonalNaive
from ..forecasting.forecaster import TitansForecaster
from ..forecasting.metrics import evaluate

LEVELS = tuple(round(0.1 * k, 1) for k in range(1, 10))
COLOURS = {
    "Titans updating": "tab:blue",
    "Titans frozen": "tab:cyan",
    "Ridge": "tab:orange",
    "SeasonalNaive": "tab:gray",
}
# Series shipped with the package, each with a horizon of about its season.
HORIZONS = {"co2": 26, "elnino": 12, "sunspots": 11, "nile": 10, "macrodata": 8}


class Demo(NamedTuple):
    """The table (one row a forecaster: mase, crps, coverage-80), every forecast behind it, and the series."""

    table: pd.DataFrame
    forecasts: pd.DataFrame
    series: pd.DataFrame
    start: pd.Timestamp


def stream(forecasters: dict[str, PanelForecaster], later: pd.DataFrame, horizon: int, stride: int = 1) -> pd.DataFrame:
    """Forecasts of fitted forecasters every `stride` steps of `later`, each from what had come in until then.

    One long frame of `unique_id, ds, cutoff, y` and the columns of every forecaster under its name in `forecasters`.
    The forecasters given are left as they are.

    >>> from titans_ts.data import load
    >>> y = load("nile")
    >>> naive = SeasonalNaive(horizon=5).fit(y[:80])
    >>> stream({"naive": naive}, y[80:], horizon=5, stride=5)["cutoff"].nunique()
    4
    """
    moving = {name: copy.deepcopy(forecaster) for name, forecaster in forecasters.items()}
    times = pd.Index(later["ds"].unique()).sort_values()
    truth = later[["unique_id", "ds", "y"]]
    pages = []
    for place in range(0, len(times) - horizon + 1, stride):
        page = truth[truth["ds"].isin(times[place : place + horizon])]
        for name, forecaster in moving.items():
            said = forecaster.predict(horizon, quantiles=LEVELS)
            own = type(forecaster).__name__
            said.columns = [str(column).replace(own, name, 1) for column in said.columns]
            page = page.merge(said, on=["unique_id", "ds"])
        pages.append(page.assign(cutoff=place))
        arrived = later[later["ds"].isin(times[place : place + stride])]
        for forecaster in moving.values():
            forecaster.update(arrived)
    return pd.concat(pages, ignore_index=True)


def run_demo(name: str = "elnino", *, seed: int = 0, stride: int | None = None, verbose: int = 0) -> Demo:
    """Fit on the first 80 % of a shipped data set and stream the rest; nothing is written.

    `stride`: steps between two forecasts; None: a quarter of the horizon.
    """
    if name not in HORIZONS:
        raise ValueError(f"there is no demo of {name!r}: choose one of {', '.join(HORIZONS)}.")
    horizon, season = HORIZONS[name], describe(name).season_length
    y = load(name)
    times = pd.Index(y["ds"].unique()).sort_values()
    start = times[round(0.8 * len(times))]
    past, later = y[y["ds"] < start], y[y["ds"] >= start]
    titans = TitansForecaster(horizon=horizon, season_length=season, random_state=seed, verbose=verbose).fit(past)
    forecasters: dict[str, PanelForecaster] = {
        "Titans updating": titans,
        "Titans frozen": copy.deepcopy(titans).set_params(adapt=False),
        "Ridge": Ridge(horizon=horizon, season_length=season).fit(past),
        "SeasonalNaive": SeasonalNaive(horizon=horizon, season_length=season).fit(past),
    }
    forecasts = stream(forecasters, later, horizon, stride or max(1, horizon // 4))
    scored = forecasts.drop(columns="cutoff")
    for model in forecasters:
        scored[f"{model}-lo-80"], scored[f"{model}-hi-80"] = scored[f"{model}-ql0.1"], scored[f"{model}-ql0.9"]
    table = evaluate(scored, past, list(forecasters), season_length=season, level=[80])
    return Demo(table, forecasts, y, start)


def draw_demo(demo: Demo, path: Path, models: Sequence[str] = ("Titans updating", "Ridge")) -> None:
    """One picture: the end of the series with the forecasts that do not overlap, and their 80 % intervals."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pictures need matplotlib: pip install 'titans-ts[plot]'") from error
    name = demo.series["unique_id"].iloc[0]
    series = demo.series[demo.series["unique_id"] == name].set_index("ds")["y"]
    own = demo.forecasts[demo.forecasts["unique_id"] == name]
    length = int((own["cutoff"] == own["cutoff"].iloc[0]).sum())
    figure = Figure(figsize=(11, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=[2, 1])
    shown = series[series.index >= series.index[max(0, series.index.searchsorted(demo.start) - 2 * length)]]
    top.plot(shown.index, shown, color="black", linewidth=1, label=str(name))
    top.axvline(demo.start, color="gray", linestyle=":", label="end of fit")
    for model in models:
        next_free, colour = -1, COLOURS[model]
        for cutoff, page in own.groupby("cutoff"):
            if cutoff < next_free:
                continue
            next_free = cutoff + length
            label = model if cutoff == own["cutoff"].iloc[0] else None
            top.plot(page["ds"], page[model], color=colour, linewidth=1.2, label=label)
            if model == models[0]:
                low, high = page[f"{model}-ql0.1"], page[f"{model}-ql0.9"]
                top.fill_between(page["ds"], low, high, color=colour, alpha=0.2, linewidth=0)
    top.set_title(f"{name}: forecasts of {length} steps while the series comes in, with 80 % intervals")
    top.legend(loc="best", frameon=False)
    for model in demo.table.index:
        missed = (own[model] - own["y"]).abs().groupby(own["cutoff"]).mean()
        when = own.groupby("cutoff")["ds"].min()
        bottom.plot(when, missed.rolling(8, min_periods=1).mean(), color=COLOURS[model], label=model)
    bottom.set_ylabel("absolute error,\nmean of 8 forecasts")
    bottom.legend(loc="best", frameon=False, ncols=4)
    figure.savefig(path, dpi=110)


def format_table(table: pd.DataFrame, title: str) -> str:
    """A small text table with one title line.

    >>> print(format_table(pd.DataFrame({"mase": [0.5]}, index=["Ridge"]), "nile"))
    nile
              mase
    Ridge  0.50000
    """
    shown = table.rename_axis(None).to_string(float_format="{:.5f}".format)
    return f"{title}\n{shown}"
