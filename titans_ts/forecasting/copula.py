"""How the steps of a horizon hang together: learnt from validation windows, given back to simulated paths.

A forecast says of every step by itself what may come. Over the windows of the validation rows, the *scores* of the
truths (where each lay among the quantiles of its forecast, as a normal score) say which steps are high or low together.
Their ranks over the windows, step by step, are an empirical copula: uniform at every step, whatever the scores'
distribution. A path draws one window, takes its ranks, a uniformly random place inside each rank's share (a
"checkerboard"), and the value at that place of the present forecast. So a path has the dependence of the windows,
without a model of it, and at every step exactly the distribution of the forecast.

W window, H future step, Q quantile, S path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtri

from .forecast import Forecast, scores_of, values_at
from .panel import Float, Int, Panel, spans

if TYPE_CHECKING:
    from .base import PanelForecaster

MOST = 256  # windows that are kept: a correlation of such a sample errs by 0.06
FEWEST = 20  # windows below which the validation rows alone say too little


def validation_scores(forecaster: PanelForecaster, panel: Panel, ends: Int, past: int) -> Float:
    """The scores `[W, H]` of at most `MOST` windows whose forecasts begin at `ends` or later, evenly over all of them.

    Each forecast is made from the `past` rows before it, by the hooks of `forecaster`, which has learnt all but
    `scores_`. Where there are less than `FEWEST`, windows come from the later half of each series. Windows with a
    missing truth, or whose quantiles all coincide at some step, say nothing and are left out.
    """
    horizon = int(forecaster.horizon)
    later_half = np.maximum((panel.lengths - horizon) // 2, 1)
    scores = np.zeros((0, horizon))
    for begin in (np.maximum(ends, 1), np.minimum(later_half, np.maximum(ends, 1))):
        series, origin = evenly(panel, begin, horizon)
        if len(series):
            start = np.maximum(origin - past, 0)
            more, before = forecaster._company(panel, series, origin)
            rows, begin = np.concatenate([series, more]), np.concatenate([start, np.maximum(before - past, 0)])
            stop = np.concatenate([origin, before])
            state = forecaster._start_to_judge(panel.stretches(rows, begin, stop - begin))
            future, every = panel.stretches(series, origin, np.full(len(series), horizon)), np.arange(len(series))
            forecast = forecaster._forecast(state, every)
            forecast = forecaster._with_effect(forecast, state, every, forecaster._ahead_in(future))
            scores = dependence(future.values.reshape(-1, horizon), forecast.quantiles, forecast.levels)
        if len(scores) >= FEWEST:
            break
    return scores


def dependence(truth: Float, quantiles: Float, levels: tuple[float, ...]) -> Float:
    """The scores `[W, H]` of truths `[W, H]` under forecasts `[W, H, Q]`, without windows that say nothing.

    >>> spread = np.array([-1.0, 0.0, 1.0]) * np.ones((3, 2, 1))
    >>> dependence(np.array([[0.0, 1.0], [np.nan, 0.0], [1.0, 0.0]]), spread, (0.1, 0.5, 0.9)).round(2).tolist()
    [[0.0, 1.28], [1.28, 0.0]]
    """
    if len(levels) < 2:
        return np.zeros((0, truth.shape[1]))
    spread = quantiles.max(axis=-1) - quantiles.min(axis=-1)
    telling = (np.isfinite(truth) & np.isfinite(spread) & (spread > 0)).all(axis=1)
    return scores_of(truth[telling], quantiles[telling], levels)


def evenly(panel: Panel, begin: Int, horizon: int) -> tuple[Int, Int]:
    """Series and origins (rows before the forecast) of at most `MOST` windows with whole truths, evenly over all that
    begin at `begin[i]` or later."""
    counts = np.maximum(panel.lengths - horizon - begin + 1, 0)
    rows = spans(panel.offsets[:-1] + begin, counts)
    missing = np.concatenate([[0], np.cumsum(~np.isfinite(panel.values))])
    whole = missing[rows + horizon] == missing[rows]
    series, rows = np.repeat(np.arange(len(panel)), counts)[whole], rows[whole]
    some = np.unique(np.linspace(0, len(rows) - 1, MOST).round().astype(np.int64)) if len(rows) > MOST else slice(None)
    return series[some], rows[some] - panel.offsets[series[some]]


def paths(forecast: Forecast, scores: Float, streams: Int, count: int, seed: int | None) -> Float:
    """Paths `[N, count, H]` of these forecasts; series i draws from the random stream `streams[i]` of `seed`."""
    if len(forecast.levels) < 2:
        raise ValueError(
            f"paths need at least two quantiles, the forecaster has {list(forecast.levels)}: fit with "
            "quantiles=(0.1, ..., 0.9)."
        )
    if len(scores) < 2:
        raise ValueError(
            f"how the {scores.shape[1]} steps of the horizon hang together is unknown: fit() had {len(scores)} windows "
            "with whole observed truths. Fit on longer series, or with a shorter horizon."
        )
    entropy = np.random.SeedSequence(seed).entropy
    ranks, found = ranks_of(scores), []
    for quantiles, stream in zip(forecast.quantiles, streams.tolist(), strict=True):
        random = np.random.default_rng([entropy, stream])
        place = ranks[random.integers(len(ranks), size=count)] + random.random((count, ranks.shape[1]))
        drawn = ndtri(np.clip(place / len(ranks), 1e-12, 1 - 1e-12))
        found.append(values_at(quantiles, forecast.levels, drawn, forecast.tails))
    return forecast.settled(np.stack(found))


def ranks_of(scores: Float) -> Int:
    """The rank of each window at every step, `[W, H]`; equal scores in random order: they tie no steps together.

    >>> ranks_of(np.array([[0.3, 5.0], [-1.0, 6.0], [2.0, 0.1]])).tolist()
    [[1, 1], [0, 2], [2, 0]]
    """
    chance = np.random.default_rng(0).random(scores.shape)
    order = np.lexsort((chance, scores), axis=0)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(len(scores))[:, None], axis=0)
    return ranks
