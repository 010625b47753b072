"""The long-horizon protocol: ETT and Weather, four horizons, one model for all of them.

Every column is standardised with the mean and deviation of its training rows. The weights are learnt on the training
rows, every choice is made on the validation rows after them, and every window of the test rows counts, for every column
and with stride 1: a test part of R rows has R - h + 1 windows of horizon h. Each window is forecast from its own
context, which may reach back into the validation rows, and from what `fit` learnt: Titans also knows of which column it
is, and so its map, its profile and the mean of its training rows. One model forecasts 720 steps, and shorter horizons
are the beginnings of its forecasts. The point forecast is the mean, for every set.

Titans is also followed through the rows that are scored, as it would be used: every row comes in by `update`, and every
eighth it forecasts. What it learns of a forecast it learns as its rows come. Beside it walks its frozen twin, whose
neural memories and widths stay as `fit` left them.

With `part="validation"` everything moves one part earlier and the test rows are cut off when the set is read: the
validation rows are scored, and the last training rows, as many as those of validation, take their place.

The peers are PatchTST, DLinear and NLinear of neuralforecast, which are run from an environment of its own by the same
command, into the same folder.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from ..data import describe, load
from ..forecasting.base import PanelForecaster
from ..forecasting.baselines import SeasonalNaive, usual_context
from ..forecasting.forecast import Forecast
from ..forecasting.forecaster import TitansForecaster
from ..forecasting.linear import apply_linear, fit_linear
from ..forecasting.panel import Float, Int
from ..forecasting.training import TrainConfig
from .neural import fit_peer, say_peer
from .runs import Cost, Score, commit, kept, panel_of, require_known, require_part

SETS = ("etth1", "etth2", "ettm1", "ettm2", "weather")
HORIZONS = (96, 192, 336, 720)
OURS = ("Titans", "Ridge", "SeasonalNaive")
PEERS = ("PatchTST", "DLinear", "NLinear")
ROWS = {"etth1": (8640, 2880, 2880), "etth2": (8640, 2880, 2880)}
ROWS |= {"ettm1": (34560, 11520, 11520), "ettm2": (34560, 11520, 11520)}
EVERY = 8  # rows from one forecast of a stream to the next
WINDOWS = 128  # windows forecast together: more are no faster for short contexts, and slower for long ones

# contexts [B, L] of the columns [B] before these rows [B] to forecasts [B, H], with quantiles or without
Say = Callable[[Float, Int, Int], Forecast | Float]


@dataclass(frozen=True)
class Split:
    """Standardised rows `values` [T, N]: `train` to learn from, as many as `validation` to choose by, the rest to
    score."""

    values: Float
    train: int
    validation: int

    @property
    def begin(self) -> int:
        """The first row that is scored."""
        return self.train + self.validation


class Fitted(NamedTuple):
    """How a model speaks about contexts, how long these are, and the forecaster that goes on learning, if it does."""

    say: Say
    context: int
    forecaster: TitansForecaster | None = None


def rows_of(name: str, count: int) -> tuple[int, int, int]:
    """Rows to train on, to validate on and to test on, of the `count` rows of a set.

    >>> rows_of("weather", 52696)
    (36887, 5270, 10539)
    """
    train, test = int(0.7 * count), int(0.2 * count)
    return ROWS.get(name, (train, count - train - test, test))


def split_set(name: str, folder: str | None = None, *, part: str = "test") -> Split:
    """A set under the protocol; with `part="validation"` without a single test row."""
    require_known("set", [name], SETS)
    require_part(part)
    values = load(name, folder)["y"].to_numpy(dtype=np.float64).reshape(describe(name).series, -1).T
    train, validation, test = rows_of(name, len(values))
    if part == "validation":
        train, test = train - validation, validation
    known = values[:train]
    values = (values[: train + validation + test] - known.mean(0)) / known.std(0)
    return Split(values, train, validation)


def score_windows(say: Say, split: Split, context: int, horizons: tuple[int, ...]) -> dict[int, Score]:
    """Every window forecast from its context and what `fit` knows; each horizon is the beginning of one forecast."""
    z, end = split.values, len(split.values)
    scores = {horizon: Score() for horizon in horizons}
    columns, longest = z.shape[1], max(horizons)
    padded = np.concatenate([z, np.full((longest, columns), np.nan)])
    size = max(1, WINDOWS // columns)
    last = end - min(horizons) + 1
    for start in range(split.begin, last, size):
        origins = np.arange(start, min(start + size, last))
        contexts, truths = (
            padded[origins[:, None] + np.arange(*steps)].transpose(0, 2, 1) for steps in ((-context, 0), (0, longest))
        )
        said = say(contexts.reshape(-1, context), np.tile(np.arange(columns), len(origins)), origins.repeat(columns))
        point = (said.point if isinstance(said, Forecast) else said).reshape(truths.shape)
        for horizon, score in scores.items():
            whole = origins + horizon <= end
            truth = truths[whole, :, :horizon]
            score.add(point[whole, :, :horizon], truth)
            if isinstance(said, Forecast):
                quantiles = said.cut().quantiles.reshape(*truths.shape, -1)[whole, :, :horizon]
                score.add_quantiles(quantiles, said.levels, truth)
    return scores


def score_stream(
    forecaster: TitansForecaster, adapt: bool, split: Split, horizons: tuple[int, ...]
) -> dict[int, Score]:
    """Forecasts at every eighth of the scored rows, which come in between; the forecaster stays as it is."""
    z, end, columns, longest = split.values, len(split.values), split.values.shape[1], max(horizons)
    work, scores = copy.copy(forecaster), {horizon: Score() for horizon in horizons}
    work.adapt = adapt
    for origin in range(split.begin, end - min(horizons) + 1, EVERY):
        if origin > split.begin:
            work.update(z[origin - EVERY : origin])
        said = work._forecast(work._known.state, np.arange(columns))
        truth = z[origin : origin + longest].T
        for horizon, score in scores.items():
            if origin + horizon <= end:
                score.add(said.point[:, :horizon], truth[:, :horizon])
                score.add_quantiles(said.cut().quantiles[:, :horizon], said.levels, truth[:, :horizon])
    return scores


def say_by(forecaster: PanelForecaster) -> Say:
    """How one of our forecasters speaks about contexts."""

    def say(contexts: Float, columns: Int, rows: Int) -> Forecast:
        panel = panel_of(contexts, tuple(columns.tolist()), rows)
        return forecaster._forecast(forecaster._start(panel), np.arange(len(panel)))

    return say


def titans(split: Split, season: int, context: int | None, horizon: int, seed: int) -> Fitted:
    """The forecaster at its defaults; its weights never see the validation rows."""
    forecaster = TitansForecaster(
        horizon=horizon,
        context_length=context,
        season_length=season,
        train=TrainConfig(validation=split.validation, refit=False),
        point="mean",
        random_state=seed,
    ).fit(split.values[: split.begin])
    return Fitted(say_by(forecaster), forecaster.context_length_, forecaster)


def ridge(split: Split, season: int, context: int | None, horizon: int, seed: int) -> Fitted:
    """One closed-form map of the training rows, its penalty chosen on the validation rows."""
    panel = panel_of(split.values[: split.begin].T)
    context = usual_context(panel, season, horizon) if context is None else context
    path = fit_linear(panel, context, horizon, train_ends=np.full(len(panel), split.train))
    return Fitted(lambda contexts, columns, rows: apply_linear(path, contexts), context)


def seasonal_naive(split: Split, season: int, context: int | None, horizon: int, seed: int) -> Fitted:
    """The value one season ago; its context is a season, whatever was asked."""
    fitted = SeasonalNaive(horizon=horizon, season_length=season).fit(split.values[: split.begin])
    return Fitted(say_by(fitted), season)


def peer(model: str, split: Split, season: int, context: int | None, horizon: int, seed: int) -> Fitted:
    """A neural peer, trained on the training rows for a fixed number of steps."""
    context = usual_context(panel_of(split.values[: split.begin].T), season, horizon) if context is None else context
    fitted = fit_peer(model, split.values[: split.train], context, horizon, seed)
    return Fitted(lambda contexts, columns, rows: say_peer(fitted, contexts), context)


FIT: dict[str, Callable[[Split, int, int | None, int, int], Fitted]] = {
    "Titans": titans,
    "Ridge": ridge,
    "SeasonalNaive": seasonal_naive,
    **{model: partial(peer, model) for model in PEERS},
}


def run_ltsf(
    name: str,
    model: str,
    context: int | None,
    *,
    folder: str | None = None,
    seed: int = 0,
    part: str = "test",
) -> dict[str, Any]:
    """One model on one set: fitted once, scored at every horizon. `context=None` is the forecaster's own."""
    require_known("model", [model], FIT)
    torch.set_num_threads(1)
    split = split_set(name, folder, part=part)
    season, longest = describe(name).season_length, max(HORIZONS)
    cost = Cost()
    fitted = FIT[model](split, season, context, longest, seed)
    fit_cpu_s = cost.cpu_s()
    scores = score_windows(fitted.say, split, fitted.context, HORIZONS)
    score_cpu_s = round(cost.cpu_s() - fit_cpu_s, 1)
    own = fitted.forecaster
    streams = {} if own is None else {"learning": (own, True), "frozen": (own, False)}
    followed = {way: score_stream(*each, split, HORIZONS) for way, each in streams.items()}
    return {
        "set": name,
        "model": model,
        "context": "free" if context is None else context,
        "context_length": fitted.context,
        "seed": seed,
        "part": part,
        "commit": commit(),
        "series": split.values.shape[1],
        "windows": {str(h): len(split.values) - split.begin - h + 1 for h in HORIZONS},
        "scores": {str(h): score.result() for h, score in scores.items()},
        **{way: {str(h): score.result() for h, score in each.items()} for way, each in followed.items()},
        **({} if own is None else {"correction": round(own.correction_, 4)}),  # the weight that the backbone has
        "fit_cpu_s": fit_cpu_s,
        "score_cpu_s": score_cpu_s,
        "peak_rss_mb": cost.peak_rss_mb(),
    }


def run_ltsf_sets(
    sets: tuple[str, ...],
    models: tuple[str, ...],
    contexts: tuple[int | None, ...],
    seeds: tuple[int, ...],
    out: Path,
    *,
    folder: str | None = None,
    part: str = "test",
) -> list[dict[str, Any]]:
    """Every run in a JSON file of its own; what is there already is read, not run again.

    Ridge has nothing random and runs once a context, seasonal naive once a set.
    """
    require_known("set", sets, SETS)
    require_known("model", models, FIT)
    require_part(part)
    results = []
    for name in sets:
        for model in models:
            for context in contexts[:1] if model == "SeasonalNaive" else contexts:
                for seed in seeds[:1] if model in ("Ridge", "SeasonalNaive") else seeds:
                    shown = "season" if model == "SeasonalNaive" else "free" if context is None else context
                    path = out / f"ltsf-{name}-{shown}-{model}-{part}-{seed}.json"
                    run = partial(run_ltsf, name, model, context, folder=folder, seed=seed, part=part)
                    results.append(kept(path, run))
    return results


def ltsf_table(results: list[dict[str, Any]]) -> pd.DataFrame:
    """MSE and MAE of every set, context and model (rows) at every horizon, means over the seeds."""
    rows = [
        {"set": run["set"], "context": str(run["context"]), "model": run["model"], "horizon": int(horizon), **score}
        for run in results
        for horizon, score in run["scores"].items()
    ]
    return pd.DataFrame(rows).pivot_table(
        index=["set", "context", "model"], columns="horizon", values=["mse", "mae"], sort=False
    )
