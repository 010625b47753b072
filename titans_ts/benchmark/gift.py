"""The configurations of GIFT-Eval whose data are at hand: 24 of its 97, in its protocol.

ETT 1 and 2 every 15 minutes and as means over whole hours, days and weeks; the Saugeen's daily flow and its means over
blocks of seven days and calendar months; car parts; M4 hourly; Jena's weather every 10 minutes. Columns of one set are
series of their own. The windows lie at the end and do not overlap; a forecaster is fitted once, on everything before
the first of them, forecasts a window, takes it in by `update`, and forecasts the next: its weights stay, its memory
moves on. Beside Titans walks its frozen twin, whose neural memories and widths of intervals stay as `fit` left them.
The neural peers, NHITS and PatchTST of neuralforecast, are fitted once too; their contexts move on.

MASE divides every error of the median by the mean seasonal difference of its series before the window, and averages
over all values; CRPS is the weighted quantile loss at 0.1, ..., 0.9. A missing value is not scored. Averages over
configurations are geometric means of the ratio to the seasonal naive that GIFT-Eval publishes.

With `part="validation"` as many rows as all windows have are cut off every series first, so that the same windows lie
one test part earlier.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..data import describe, load
from ..forecasting.base import PanelForecaster
from ..forecasting.baselines import Ridge, SeasonalNaive
from ..forecasting.forecaster import TitansForecaster
from ..forecasting.metrics import weighted_quantile_loss
from ..forecasting.panel import Float
from .neural import QuantilePeer
from .runs import Cost, commit, kept, require_known, require_part

OURS = ("Titans", "Ridge", "SeasonalNaive")
NEURAL = ("NHITS", "PatchTST")  # of neuralforecast, as `neural.py` says
LEVELS = tuple(round(0.1 * k, 1) for k in range(1, 10))
HORIZONS = {"10T": 48, "15T": 48, "H": 48, "D": 30, "W": 8, "M": 12}
TERMS = {"short": 1, "medium": 10, "long": 15}  # factors on the horizon
SEASONS = {"10T": 144, "15T": 96, "H": 24, "D": 1, "W": 1, "M": 12}  # that MASE is scaled by
FREQS = {"10T": "10min", "15T": "15min", "H": "h", "D": "D", "W": "W", "M": "MS"}
MOST_WINDOWS, SHARE = 20, 0.1  # at most so many windows, in at most this share of the shortest series

CONFIGURATIONS = (
    *(f"ett{n}/{f}/{t}" for n in (1, 2) for f in ("15T", "H") for t in TERMS),
    *(f"ett{n}/{f}/short" for n in (1, 2) for f in ("D", "W")),
    *(f"saugeen/{f}/short" for f in ("D", "W", "M")),
    "car_parts/M/short",
    "m4_hourly/H/short",
    *(f"jena_weather/10T/{t}" for t in TERMS),
)
# of the leaderboard, by the names it has for them
PUBLISHED = (
    *("Auto_Arima", "Auto_ETS", "Auto_Theta", "DLinear", "DeepAR", "N-BEATS", "PatchTST", "TFT", "iTransformer"),
    *("xLSTM-Mixer", "Moirai2", "TimesFM-2.5", "chronos_bolt_base", "Chronos-2", "TiRex"),
)
MASE, CRPS = "eval_metrics/MASE[0.5]", "eval_metrics/mean_weighted_sum_quantile_loss"


@dataclass(frozen=True)
class Task:
    """Series of one configuration, of any lengths, and its windows: `windows` of `horizon` steps at their ends."""

    series: list[Float]
    freq: str
    season: int
    horizon: int
    windows: int

    @property
    def scored(self) -> int:
        """Rows of every series that the windows cover."""
        return self.windows * self.horizon


def block_means(values: Float, size: int) -> Float:
    """Means over whole blocks of columns [N, T]; what is left over at the end is dropped.

    >>> block_means(np.arange(7.0)[None], 3).tolist()
    [[1.0, 4.0]]
    """
    count = values.shape[1] // size
    means: Float = values[:, : count * size].reshape(len(values), count, size).mean(2)
    return means


def window_count(shortest: int, horizon: int) -> int:
    """How many windows a configuration has whose shortest series has that many rows.

    >>> window_count(69680, 48), window_count(69680, 720), window_count(51, 12)
    (20, 10, 1)
    """
    return min(MOST_WINDOWS, max(1, int(np.ceil(SHARE * shortest / horizon))))


def make_task(name: str, folder: str | None = None, *, part: str = "test") -> Task:
    """A configuration by its name in GIFT-Eval."""
    require_known("configuration", [name], CONFIGURATIONS)
    require_part(part)
    source, step, term = name.split("/")
    known = {"ett1": "ettm1", "ett2": "ettm2", "jena_weather": "weather"}.get(source, source)
    y = load(known, folder)
    if source == "m4_hourly":
        series = [each.to_numpy(dtype=np.float64) for _, each in y.groupby("unique_id", sort=False)["y"]]
    elif step == "M" and source == "saugeen":
        series = [y.groupby(y["ds"].dt.to_period("M"))["y"].mean().to_numpy(dtype=np.float64)]
    else:
        size = {"H": 4, "D": 96, "W": 672}.get(step, 1) if source.startswith("ett") else 7 if step == "W" else 1
        series = [*block_means(y["y"].to_numpy(dtype=np.float64).reshape(describe(known).series, -1), size)]
    horizon = HORIZONS[step] * TERMS[term]
    windows = 1 if source == "m4_hourly" else window_count(min(map(len, series)), horizon)
    task = Task(series, FREQS[step], SEASONS[step], horizon, windows)
    if part == "validation":
        return Task([y[: -task.scored] for y in series], task.freq, task.season, horizon, windows)
    return task


def frame_of(task: Task, begin: list[int], end: list[int]) -> pd.DataFrame:
    """Rows `begin[i], ..., end[i] - 1` of every series as a long frame; all series start at the same time."""
    times = pd.date_range("2000-01-01", periods=max(end), freq=task.freq)
    rows = [np.arange(*each) for each in zip(begin, end, strict=True)]
    return pd.DataFrame(
        {
            "unique_id": np.repeat(np.arange(len(rows)), [len(each) for each in rows]),
            "ds": times[np.concatenate(rows)],
            "y": np.concatenate([y[each] for y, each in zip(task.series, rows, strict=True)]),
        }
    )


def season_errors(task: Task, origins: list[int]) -> Float:
    """The mean seasonal difference of every series before its origin, NaN where there is none."""

    def error(past: Float) -> float:
        moved = np.abs(past[task.season :] - past[: -task.season])
        return float(np.nanmean(moved)) if np.isfinite(moved).any() else np.nan

    return np.array([error(y[:origin]) for y, origin in zip(task.series, origins, strict=True)])


def make_forecaster(model: str, task: Task, seed: int) -> PanelForecaster | QuantilePeer:
    """One of `OURS` at its defaults, or one of `NEURAL`; seasonal naive has the season of the protocol, to be the
    published one."""
    makers: dict[str, Callable[[], PanelForecaster | QuantilePeer]] = {
        "Titans": lambda: TitansForecaster(
            task.horizon, task.freq, quantiles=LEVELS, point="median", random_state=seed
        ),
        "Ridge": lambda: Ridge(task.horizon, freq=task.freq, quantiles=LEVELS),
        "SeasonalNaive": lambda: SeasonalNaive(task.horizon, freq=task.freq, season_length=task.season),
        **{name: partial(QuantilePeer, name, task.horizon, task.freq, None, LEVELS, seed) for name in NEURAL},
    }
    require_known("model", [model], makers)
    return makers[model]()


def walk(forecaster: PanelForecaster | QuantilePeer, task: Task) -> dict[str, Any]:
    """Fit once, then forecast a window, take it in, forecast the next: scores and costs."""
    cost = Cost()
    origins = [len(y) - task.scored for y in task.series]
    forecaster.fit(frame_of(task, [0] * len(origins), origins))
    fitted = cost.cpu_s()
    twins = {}
    if isinstance(forecaster, TitansForecaster):
        frozen = copy.copy(forecaster)  # what it knows is replaced by an update, and never changed
        frozen.adapt = False
        twins["frozen"] = follow(frozen, task)
    walked = cost.cpu_s()
    scores = follow(forecaster, task)
    return {
        "series": len(task.series),
        "horizon": task.horizon,
        "windows": task.windows,
        "season_length": forecaster.season_length_,
        **scores,
        **twins,
        "fit_cpu_s": fitted,
        "forecast_cpu_s": round(cost.cpu_s() - walked, 1),
        "peak_rss_mb": cost.peak_rss_mb(),
    }


def follow(forecaster: PanelForecaster | QuantilePeer, task: Task) -> dict[str, Any]:
    """Scores of a fitted forecaster, window after window."""
    origins = [len(y) - task.scored for y in task.series]
    truths, quantiles, units = [], [], []
    for window in range(task.windows):
        if window:
            before, origins = origins, [origin + task.horizon for origin in origins]
            forecaster.update(frame_of(task, before, origins))
        said = forecaster.predict(quantiles=LEVELS)
        columns = [f"{type(forecaster).__name__}-ql{level:g}" for level in LEVELS]
        quantiles.append(said[columns].to_numpy(dtype=np.float64))
        truths.append(np.concatenate([y[o : o + task.horizon] for y, o in zip(task.series, origins, strict=True)]))
        units.append(np.repeat(season_errors(task, origins), task.horizon))
    return score_forecasts(*map(np.concatenate, (truths, quantiles, units)))


def run_gift(name: str, model: str, *, folder: str | None = None, seed: int = 0, part: str = "test") -> dict[str, Any]:
    """One model on one configuration."""
    torch.set_num_threads(1)
    task = make_task(name, folder, part=part)
    scores = walk(make_forecaster(model, task, seed), task)
    return {"configuration": name, "model": model, "seed": seed, "part": part, "commit": commit(), **scores}


def score_forecasts(truth: Float, quantiles: Float, unit: Float) -> dict[str, Any]:
    """MASE, CRPS and coverage of the 80 % interval of values [R] and their quantiles [R, Q]; a value whose series never
    moved over a season has no MASE."""
    seen = np.isfinite(truth)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.abs(truth - quantiles[:, LEVELS.index(0.5)]) / unit
    scaled = scaled[np.isfinite(scaled)]
    inside = (quantiles[seen, 0] <= truth[seen]) & (truth[seen] <= quantiles[seen, -1])
    return {
        "values": int(seen.sum()),
        "scaled_values": len(scaled),
        "mase": round(float(scaled.mean()), 6) if len(scaled) else None,
        "crps": round(weighted_quantile_loss(truth, quantiles, LEVELS), 6),
        "coverage-80": round(float(inside.mean()), 4),
    }


def run_gift_tasks(
    names: tuple[str, ...],
    models: tuple[str, ...],
    seeds: tuple[int, ...],
    out: Path,
    *,
    folder: str | None = None,
    part: str = "test",
) -> list[dict[str, Any]]:
    """Every run in a JSON file of its own; what is there already is read, not run again. Ridge and seasonal naive have
    nothing random and run once."""
    require_known("configuration", names, CONFIGURATIONS)
    require_known("model", models, (*OURS, *NEURAL))
    require_part(part)
    results = []
    for name in names:
        for model in models:
            for seed in seeds[:1] if model in ("Ridge", "SeasonalNaive") else seeds:
                path = out / f"gift-{name.replace('/', '-')}-{model}-{part}-{seed}.json"
                results.append(kept(path, partial(run_gift, name, model, folder=folder, seed=seed, part=part)))
    return results


def read_published(path: Path) -> dict[str, Any]:
    """What GIFT-Eval's table of all results (a CSV file) says of our configurations: MASE and CRPS of its seasonal
    naive on each, and of each of `PUBLISHED` the geometric means of its ratios to them."""
    table = pd.read_csv(path).drop_duplicates(["dataset", "model"]).set_index(["model", "dataset"])[[MASE, CRPS]]

    def rows(model: str) -> pd.DataFrame:
        found = table.loc[model].reindex(CONFIGURATIONS)
        if found.isna().any(axis=None):
            raise ValueError(f"{path} lacks rows of {model}: {', '.join(found.index[found.isna().any(axis=1)])}.")
        return found

    naive = rows("Seasonal_Naive")
    ratios = {model: rows(model) / naive for model in PUBLISHED}
    return {
        "source": "GIFT-Eval leaderboard, table of all results",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "seasonal_naive": {
            name: {"mase": round(float(row[MASE]), 6), "crps": round(float(row[CRPS]), 6)}
            for name, row in naive.iterrows()
        },
        "geometric_means": {
            model: {"mase": round(geometric_mean(ratio[MASE]), 4), "crps": round(geometric_mean(ratio[CRPS]), 4)}
            for model, ratio in ratios.items()
        },
    }


def geometric_means(runs: list[dict[str, Any]], naive: dict[str, dict[str, float]]) -> dict[str, float] | None:
    """Geometric means of the ratios of one model's runs to the seasonal naive; None unless every configuration ran."""
    found = {run["configuration"]: run for run in runs}
    if set(found) != set(CONFIGURATIONS):
        return None
    return {
        measure: geometric_mean(found[name][measure] / naive[name][measure] for name in CONFIGURATIONS)
        for measure in ("mase", "crps")
    }


def gift_table(results: list[dict[str, Any]]) -> pd.DataFrame:
    """MASE, CRPS and coverage of every configuration (rows) and model, means over the seeds."""
    return pd.DataFrame(results).pivot_table(
        index="configuration", columns="model", values=["mase", "crps", "coverage-80"], sort=False
    )
