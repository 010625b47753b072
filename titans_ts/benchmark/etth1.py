"""ETTh1 under the long-horizon protocol: what each part of the forecaster brings, and what its memory does.

Rows 0-8639 train, 8640-11519 validate, 11520-14399 test; every column is standardised with the mean and deviation of
its training rows; every window of the test part counts, for every column. The literature's number is the row `window`:
each window is forecast from its own context and what `fit` learnt (of each column its map, its profile and the mean of
its training rows). The rows `frozen` and `updating` run through the test part as a stream, step by step, and their
neural memory has seen everything before it; in `frozen` it stands still from the end of `fit` on.

The peer is PatchTST of neuralforecast, trained on the training rows as in `ltsf`; it is run from an environment of its
own by the same command, into the same folder.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..data import load
from ..forecasting.baselines import Ridge, SeasonalNaive
from ..forecasting.forecaster import TitansForecaster
from ..forecasting.inference import PanelState
from ..forecasting.linear import fit_linear
from ..forecasting.panel import Float
from ..forecasting.training import TrainConfig
from ..models.timeseries import replace_memories
from . import ltsf
from .neural import import_peers
from .runs import Cost, Score, commit, not_measured, panel_of, require_known, require_part

MODELS = ("seasonal naive", "ridge", "linear path alone", "backbone alone", "both")
PEER = "PatchTST"
TRAIN, VALIDATION, TEST = 8640, 2880, 2880
HORIZON = 96


def standardised(folder: str | None = None) -> tuple[list[str], Float]:
    """The names of ETTh1's columns and its standardised values [14400, 7]."""
    wide = load("etth1", folder).pivot(index="ds", columns="unique_id", values="y")
    values = wide.to_numpy(dtype=np.float64)[: TRAIN + VALIDATION + TEST]
    known = values[:TRAIN]
    return [str(name) for name in wide.columns], (values - known.mean(0)) / known.std(0)


def silence(state: PanelState) -> PanelState:
    """The state with memories of zeros; with `adapt=False` they stay so."""
    return state._replace(series=replace_memories(state.series, torch.zeros_like))


def plain_ridge(past: Float, context: int) -> tuple[Ridge, float]:
    """The bar: ridge on the training rows alone, every window with the same weight, penalty 0.001 of the mean
    eigenvalue; and the CPU seconds of its fit."""
    began = time.process_time()
    panel = panel_of(past.T)
    ends = np.full(len(panel), TRAIN)
    ridge = Ridge(horizon=HORIZON, context_length=context, penalty=1e-3, validation=VALIDATION).fit(past)
    ridge.path_ = fit_linear(panel, context, HORIZON, penalties=(1e-3,), train_ends=ends)
    return ridge, time.process_time() - began


def score_windows(forecaster: Any, z: Float, context: int, begin: int, end: int, block: int = 32) -> dict[str, float]:
    """Every window forecast from its own context and what `fit` knows of its column."""
    score = Score()
    for start in range(begin, end - HORIZON + 1, block):
        origins = np.arange(start, min(start + block, end - HORIZON + 1))
        histories = np.concatenate([z[i - context : i].T for i in origins])
        truth = np.concatenate([z[i : i + HORIZON].T for i in origins])
        panel = panel_of(histories, tuple(range(z.shape[1])) * len(origins), origins.repeat(z.shape[1]))
        state = forecaster._start(panel)
        score.add(forecaster._forecast(state, np.arange(len(truth))).point, truth)
    return score.result()


def score_stream(
    forecaster: TitansForecaster,
    z: Float,
    begin: int,
    end: int,
    change: Callable[[PanelState], PanelState] | None = None,
) -> dict[str, float]:
    """Every window forecast from the state that the forecaster has reached by then, one step at a time."""
    score, rows = Score(), np.arange(z.shape[1])
    state = forecaster._start(panel_of(z[:begin].T))
    state = state if change is None else change(state)
    for origin in range(begin, end - HORIZON + 1):
        score.add(forecaster._forecast(state, rows).point, z[origin : origin + HORIZON].T)
        state = forecaster._advance(state, rows, panel_of(z[origin : origin + 1].T))
    return score.result()


def score_peer(z: Float, context: int, begin: int, end: int, seed: int) -> tuple[float, dict[str, float]]:
    """CPU seconds to train the peer on the training rows, and its errors in the same windows."""
    split = ltsf.Split(z[:end], TRAIN, begin - TRAIN)
    began = time.process_time()
    fitted = ltsf.peer(PEER, split, 24, context, HORIZON, seed)
    cpu = time.process_time() - began
    return cpu, ltsf.score_windows(fitted.say, split, fitted.context, (HORIZON,))[HORIZON].result()


def run_etth1(
    context: int,
    *,
    models: tuple[str, ...] = MODELS,
    earlier: dict[str, Any] | None = None,
    folder: str | None = None,
    seed: int = 0,
    part: str = "test",
    stream: bool = True,
    **train: Any,
) -> dict[str, Any]:
    """The rows of these models for one context, and those of others that an earlier run has; `part="validation"` leaves
    the test rows unread.

    train: fields of `TrainConfig`, for experiments; the table of the documentation uses the defaults.
    """
    order = (*MODELS, PEER)
    require_known("model", models, order)
    require_part(part)
    about = {"dataset": "etth1", "part": part, "horizon": HORIZON, "context": context, "seed": seed}
    kept = not_measured(earlier, about, "rows", lambda row: row["model"] in models, ("commit", "peak_rss_mb"))
    if PEER in models:
        import_peers(PEER)
    torch.set_num_threads(1)
    cost = Cost()
    _, z = standardised(folder)
    begin, end = (TRAIN + VALIDATION, len(z)) if part == "test" else (TRAIN, TRAIN + VALIDATION)
    past = z[: TRAIN + VALIDATION]
    rows: list[dict[str, Any]] = []

    def add(model: str, memory: str, mode: str, cpu: float, scores: dict[str, float]) -> None:
        rows.append({"model": model, "memory": memory, "mode": mode, **scores, "fit_cpu_s": round(cpu, 1)})

    def timed(forecaster: Any) -> float:
        began = time.process_time()
        forecaster.fit(past)
        return time.process_time() - began

    if "seasonal naive" in models:
        naive = SeasonalNaive(horizon=HORIZON, season_length=24)
        add("seasonal naive", "-", "window", timed(naive), score_windows(naive, z, context, begin, end))
    if "ridge" in models:
        ridge, cpu = plain_ridge(past, context)
        add("ridge", "-", "window", cpu, score_windows(ridge, z, context, begin, end))
    for name, changes in (
        ("linear path alone", {"steps": 0, "fading": False}),
        ("backbone alone", {"linear": False, "fading": False, **train}),
        ("both", train),
    ):
        if name not in models:
            continue
        # By the protocol the weights never see the validation rows.
        settings = TrainConfig(**{"validation": VALIDATION, "refit": False, **changes})
        forecaster = TitansForecaster(
            horizon=HORIZON,
            context_length=context,
            season_length=24,
            train=settings,
            point="median" if settings.steps else "mean",  # on the validation rows the median has both errors lower
            random_state=seed,
        )
        cpu = timed(forecaster)
        add(name, "on" if settings.steps else "-", "window", cpu, score_windows(forecaster, z, context, begin, end))
        if not stream or not settings.steps:
            continue
        frozen = copy.deepcopy(forecaster).set_params(adapt=False)
        add(name, "on", "updating", cpu, score_stream(forecaster, z, begin, end))
        add(name, "on", "frozen", cpu, score_stream(frozen, z, begin, end))
        add(name, "zeroed", "frozen", cpu, score_stream(frozen, z, begin, end, silence))
    if PEER in models:
        add(PEER, "-", "window", *score_peer(z, context, begin, end, seed))
    run = {"commit": commit(), "peak_rss_mb": cost.peak_rss_mb()}
    rows = [*kept, *({**row, **run} for row in rows)]
    return {**about, "rows": sorted(rows, key=lambda row: order.index(row["model"]))}


def etth1_table(result: dict[str, Any]) -> pd.DataFrame:
    """The rows of a run as a frame; the peak is that of all fits that were made together."""
    names = ["model", "memory", "mode", "mse", "mae", "fit_cpu_s", "peak_rss_mb"]
    return pd.DataFrame(result["rows"])[names].set_index("model")
