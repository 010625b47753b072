"""A scale on which skewed series are less skewed.

A river mostly lies near its least flow and now and then far above it, and so do rain, sales and prices with spikes: its
errors grow with its level, and least squares hears little but the spikes. Where validation is sure that it helps, such
a series is learnt as `arcsinh((y - edge) / size)`, which is nearly linear close to its edge and logarithmic far from
it, and has a value for everything, beyond the edge too. Edge and size are the series' own, so that other units give the
same forecast in these units. Quantiles and medians come back as they are. A mean does not: what lies between it and
the median is the far end of the quantiles, which is what is known least, and so it is for forecasts of medians alone.

Axes: N series, W windows, F future step, G stretch of time, Q quantile level.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist

import numpy as np

from .doubt import FEWEST, GROUPS, surely_less
from .gram import DEFAULT_PENALTY, accumulate, solve
from .panel import Float, Int, Panel
from .windows import blocks, centre, spread, windows_between

SIDES = (0.0, 1.0)  # the edge is the least value of a series, or the greatest
BENDS = (1.0, 4.0)  # how often the distance of the median from the edge is larger than the size
SKEWED = 0.1  # deviations that the mean lies from the median, away from the edge, at least
GAIN = 0.97  # of the errors, at most, are left where a series is bent: what pays little is not worth a scale
NEAR = 0.25  # deviations that the median lies from the edge, at least: half of the values may be the edge itself
FARTHEST = 80.0  # of the new scale, that is brought back: more is no number for long
SEEN, JUDGED = 4096, 2048  # windows to learn from, and to judge by
STEPS = 24  # of the horizon, that tell
LEVELS = (0.1, 0.5, 0.9)  # of the quantiles that judge


@dataclass(frozen=True, eq=False)
class Arcsinh:
    """`edge` and `size` `[1 + N]`: row 0 of strangers, which stay as they are, and then of the series `ids`; an
    infinite size leaves a series as it is.

    >>> bent = Arcsinh(np.array([0.0, 1.0]), np.array([np.inf, 2.0]), ("river",))
    >>> there = bent.forward(np.array([7.0, 7.0]), np.array([0, 1]))
    >>> there.round(3).tolist(), bent.back(there, np.array([0, 1])).round(6).tolist()
    ([7.0, 1.818], [7.0, 7.0])
    """

    edge: Float
    size: Float
    ids: tuple[Hashable, ...]

    @cached_property
    def places(self) -> dict[Hashable, int]:
        """The row of every series."""
        return {name: place for place, name in enumerate(self.ids, 1)}

    @cached_property
    def moves(self) -> bool:
        """Whether any series is bent at all."""
        return bool(np.isfinite(self.size).any())

    def forward(self, values: Float, rows: Int) -> Float:
        """Values `[R]` of these rows `[R]` on the new scale."""
        edge, size = self.edge[rows], self.size[rows]
        bent = np.arcsinh((values - edge) / np.where(np.isfinite(size), size, 1.0))
        return np.where(np.isfinite(size), bent, values)

    def back(self, values: Float, rows: Int) -> Float:
        """Values `[R, ...]` of these rows `[R]` on their own scale."""
        shape = (-1,) + (1,) * (values.ndim - 1)
        edge, size = self.edge[rows].reshape(shape), self.size[rows].reshape(shape)
        if not np.isfinite(size).any():
            return values
        there = np.sinh(np.clip(np.where(np.isfinite(size), values, 0.0), -FARTHEST, FARTHEST))
        return np.where(np.isfinite(size), edge + np.where(np.isfinite(size), size, 1.0) * there, values)

    def of(self, panel: Panel) -> Panel:
        """The panel on the new scale."""
        if not self.moves:
            return panel
        rows = np.array([self.places.get(name, 0) for name in panel.ids], dtype=np.int64)
        return replace(panel, values=self.forward(panel.values, np.repeat(rows, panel.lengths)))


def plain(ids: tuple[Hashable, ...]) -> Arcsinh:
    """Every series as it is."""
    return Arcsinh(np.zeros(1 + len(ids)), np.full(1 + len(ids), np.inf), ids)


def fit_arcsinh(panel: Panel, ends: Int, context: int, horizon: int) -> Arcsinh:
    """The scales of all series: bent where the rows before `ends` are skewed and the forecasts of a ridge map for the
    rows behind them surely have less quantile loss.

    >>> from titans_ts.forecasting.door import read
    >>> level = np.random.default_rng(0).normal(size=600)
    >>> for row in range(1, 600):
    ...     level[row] += 0.9 * level[row - 1]
    >>> panel = read(np.stack([np.exp(level), level, -np.exp(level)], axis=1))[0]
    >>> np.isfinite(fit_arcsinh(panel, np.full(3, 480), 24, 4).size).tolist()
    [False, True, False, True]
    """
    held = panel.lengths - ends
    straight = plain(panel.ids)
    low, middle, high, skew, deviation = shapes(panel, ends)
    told = (held >= FEWEST * horizon) & (deviation > 0)
    if not told.any() or not (np.abs(skew[told]) > SKEWED).any():
        return straight
    edges, sizes = straight.edge.copy(), straight.size.copy()
    before = judge(panel, straight, ends, context, horizon)
    whole = np.maximum(before.mean(axis=1), 1e-300)
    least = np.full(len(panel), GAIN)
    for side in SIDES:
        tried = told & ((skew if side == 0.0 else -skew) > SKEWED)
        for bend in BENDS if tried.any() else ():
            edge = low if side == 0.0 else high
            size = np.where(tried, np.maximum(np.abs(middle - edge), NEAR * deviation) / bend, np.inf)
            way = Arcsinh(np.concatenate([[0.0], edge]), np.concatenate([[np.inf], size]), panel.ids)
            after = judge(panel, way, ends, context, horizon)
            loss = after.mean(axis=1) / whole
            for row in np.flatnonzero(tried & (loss < least)):
                seen = before[row] > 0  # relative to each stretch: one flood is not to decide
                left = after[row, seen] / before[row, seen]
                if surely_less(left, np.ones_like(left), held[row] / horizon):
                    edges[1 + row], sizes[1 + row] = edge[row], size[row]
                    least[row] = loss[row]
    return Arcsinh(edges, sizes, panel.ids)


def shapes(panel: Panel, ends: Int) -> tuple[Float, Float, Float, Float, Float]:
    """Least value, median, greatest value, how far the mean lies above the median in deviations, and the deviation of
    the rows of every series before `ends`, `[N]` each; 0 where nothing was observed."""
    out = np.zeros((5, len(panel)))
    for row, end in enumerate(ends.tolist()):
        values = panel.series(row)[:end]
        values = values[np.isfinite(values)]
        if values.size and (deviation := float(values.std())) > 0:
            middle = float(np.median(values))
            out[:, row] = values.min(), middle, values.max(), (values.mean() - middle) / deviation, deviation
    return out[0], out[1], out[2], out[3], out[4]


def judge(panel: Panel, way: Arcsinh, ends: Int, context: int, horizon: int) -> Float:
    """The mean loss of a shared ridge map on this scale in every stretch of time behind `ends`, `[N, G]`, 0 where no
    window is: that of its median, and of what covers 80 % of normal errors around it."""
    bent, every = way.of(panel), -(-horizon // STEPS)
    learnt = spread(windows_between(bent, context, horizon, np.zeros_like(ends), ends), SEEN)
    gram = accumulate(learnt, np.maximum(shapes(bent, ends)[4], 1e-300), every=every)
    weights = solve(gram.xx[0], gram.xy[0], (DEFAULT_PENALTY,))[0]
    judged = spread(windows_between(bent, context, horizon, ends, bent.lengths), JUDGED)
    parts = []
    for _, series, rows, contexts, targets in blocks(judged):
        centred, level = centre(contexts)
        parts.append((series, rows, level[:, None] + centred @ weights, targets[:, ::every]))
    if not parts:
        return np.zeros((len(panel), GROUPS))
    series, rows, said, truth = (np.concatenate(each) for each in zip(*parts, strict=True))
    row, counts = 1 + series, np.maximum(np.bincount(series, minlength=len(panel)), 1)
    squares = np.stack([np.bincount(series, step, minlength=len(panel)) for step in ((truth - said) ** 2).T], axis=1)
    spreads = np.sqrt(squares / counts[:, None])[series]
    truth = way.back(truth, row)
    losses = np.zeros(truth.shape)
    for share in LEVELS:
        error = truth - way.back(said + NormalDist().inv_cdf(share) * spreads, row)
        losses += np.maximum(share * error, (share - 1) * error)
    place = (rows - ends[series]) / np.maximum(panel.lengths - ends, 1)[series]
    key = series * GROUPS + np.clip((GROUPS * place).astype(np.int64), 0, GROUPS - 1)
    size = len(panel) * GROUPS
    sums = np.bincount(key, losses.mean(axis=1), minlength=size)
    means: Float = (sums / np.maximum(np.bincount(key, minlength=size), 1)).reshape(len(panel), GROUPS)
    return means
