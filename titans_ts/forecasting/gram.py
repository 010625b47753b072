"""Sums over windows, and what follows from them in closed form: ridge maps, and the penalty of least error.

Sums of two sets of windows add up to those of both. So one pass over the windows is enough for all series together and
each by itself, for every penalty, and for contexts that are halved.

Axes: N series, M maps, W windows, B windows of one block, L context (and one more where the distance from the usual is
an input), H horizon, P places of a season.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from scipy import linalg

from .doubt import INDIFFERENCE
from .panel import Float, Int
from .windows import Windows, apart_from, blocks, centre, context_scale, pace

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
# without rows to validate on: what the validation rows of many panels choose, within a factor of ten
DEFAULT_PENALTY = 1e-3

# What errors of the fit are measured in. A window's own deviation weighs a restless window down: its errors are larger
# for every map, and least squares would otherwise listen to little else.
Unit: TypeAlias = Literal["series", "window"]


class Gram(NamedTuple):
    """Sums over windows, each times the weight of its series, of each series or (M = 1) of all: `X'X` `[M, L, L]`,
    `X'Y` `[M, L, H]`; over all, the sum of `Y²` and of the weights. The distance from the usual is one input more."""

    xx: Float
    xy: Float
    yy: float
    windows: float


class PullSums(NamedTuple):
    """Sums over the windows of each series, in units of its scale: contexts without their means `[N, L]` and targets
    without those means `[N, H]`, both times the distance of the mean from the usual, and the squares of that `[N]`."""

    x: Float
    y: Float
    squares: Float


class SeasonSums(NamedTuple):
    """Sums over the windows that begin at every place of the season, in each series: contexts without their means
    `[N, P, L]`, targets without those means `[N, P, H]` and the distances of these means from the usual `[N, P]`, all
    times the context's pace, the squares of that `[N, P]`, and how many windows there are `[N, P]`."""

    x: Float
    y: Float
    apart: Float
    squares: Float
    counts: Int


def accumulate(
    windows: Windows,
    scales: Float,
    unit: Unit = "series",
    *,
    own: bool = False,
    every: int = 1,
    usual: bool = False,
) -> Gram:
    """The Gram of the windows, in units of each series' scale `[N]` or of each window's own, one block in memory at a
    time; `own` keeps the series apart, `every` takes the first target and every so-manieth after it, and `usual` adds
    an input, the distance of each context from the usual."""
    length, shares = windows.context + usual, windows.panel.shares
    maps, steps = len(windows.panel) if own else 1, -(-windows.horizon // every)
    xx, xy, yy, count = np.zeros((maps, length, length)), np.zeros((maps, length, steps)), 0.0, 0.0
    for series, x, y in standardised(windows, scales, unit, every, usual):
        cuts = np.flatnonzero(np.diff(series)) + 1 if own else series[:0]  # windows come series by series
        for begin, end in zip([0, *cuts], [*cuts, len(x)], strict=True):
            place = series[begin] if own else 0
            xx[place] += x[begin:end].T @ x[begin:end]
            xy[place] += x[begin:end].T @ y[begin:end]
        yy += float(np.vdot(y, y))
        count += float(shares[series].sum())
    return Gram(xx, xy, yy, count)


def standardised(
    windows: Windows, scales: Float, unit: Unit, every: int = 1, usual: bool = False
) -> Iterator[tuple[Int, Float, Float]]:
    """Of which series some windows are, and their contexts and targets (the first and every so-manieth after it)
    without the means of the contexts, in units of each series' scale `[N]` or of each window's own and as heavy as the
    series, block after block. usual: behind every context its distance from the usual."""
    for _, series, rows, contexts, targets in blocks(windows):
        centred, mean = centre(contexts)
        if usual:
            apart = apart_from(windows.panel.usual_before(series, rows), mean, pace(centred, contexts))
            centred = np.column_stack([centred, apart])
        size = scales[series] if unit == "series" else context_scale(contexts, scales[series])
        size = (size / np.sqrt(windows.panel.shares[series]))[:, None]
        yield series, centred / size, (targets[:, ::every] - mean[:, None]) / size


def gathered(windows: Windows, scales: Float, every: int, usual: bool) -> tuple[Int, Float, Float]:
    """All windows at once: of which series `[W]`, inputs `[W, L]` or `[W, L + 1]` and every so-manieth target as
    `standardised` has them."""
    size = windows.context + usual
    empty = np.zeros(0, dtype=np.int64), np.zeros((0, size)), np.zeros((0, windows.horizon))[:, ::every]
    series, contexts, targets = zip(empty, *standardised(windows, scales, "series", every, usual), strict=True)
    return np.concatenate(series), np.concatenate(contexts), np.concatenate(targets)


def pull_sums(windows: Windows, scales: Float) -> PullSums:
    """Sums of the windows by series, in units of each series' scale `[N]`."""
    panel = windows.panel
    x, y = np.zeros((len(panel), windows.context)), np.zeros((len(panel), windows.horizon))
    squares = np.zeros(len(panel))
    for _, series, rows, contexts, targets in blocks(windows):
        centred, mean = centre(contexts)
        apart = apart_from(panel.usual_before(series, rows), mean, pace(centred, contexts))
        unit = scales[series, None]
        first = np.flatnonzero(np.diff(series, prepend=-1))  # windows come series by series
        apart = apart[:, None] / unit
        x[series[first]] += np.add.reduceat(apart * (centred / unit), first)
        y[series[first]] += np.add.reduceat(apart * ((targets - mean[:, None]) / unit), first)
        squares += np.bincount(series, apart[:, 0] ** 2, minlength=len(panel))
    return PullSums(x, y, squares)


def season_sums(windows: Windows, season: int) -> SeasonSums:
    """Sums of the windows by series and place of the season."""
    shape, starts = (len(windows.panel), season), windows.panel.starts
    count = len(windows.panel) * season
    x, y = np.zeros((count, windows.context)), np.zeros((count, windows.horizon))
    apart, squares = np.zeros(count), np.zeros(count)
    counts = np.zeros(count, dtype=np.int64)
    for _, series, rows, contexts, targets in blocks(windows):
        key = series * season + (starts[series] + rows) % season
        order = np.argsort(key, kind="stable")
        key, (centred, mean) = key[order], centre(contexts[order])
        speed = pace(centred, contexts[order])
        first = np.flatnonzero(np.diff(key, prepend=-1))
        x[key[first]] += np.add.reduceat(speed[:, None] * centred, first)
        y[key[first]] += np.add.reduceat(speed[:, None] * (targets[order] - mean[:, None]), first)
        distance = apart_from(windows.panel.usual_before(series, rows)[order], mean, speed)
        apart += np.bincount(key, speed * distance, minlength=count)
        squares += np.bincount(key, speed**2, minlength=count)
        counts += np.bincount(key, minlength=count)
    sums = x.reshape(*shape, -1), y.reshape(*shape, -1), apart.reshape(shape), squares.reshape(shape)
    return SeasonSums(*sums, counts.reshape(shape))


def solve(xx: Float, xy: Float, penalties: Sequence[float]) -> list[Float]:
    """Ridge weights `[L, H]` for every penalty: `(X'X + penalty * mean eigenvalue)^-1 X'Y`."""
    level = np.trace(xx) / len(xx)
    if level <= 0.0:  # constants only: the mean is the forecast
        return [np.zeros_like(xy) for _ in penalties]
    if len(penalties) == 1:
        raised = xx.copy()
        raised.flat[:: len(xx) + 1] += penalties[0] * level
        try:
            solved: Float = linalg.cho_solve(linalg.cho_factor(raised, check_finite=False), xy, check_finite=False)
        except np.linalg.LinAlgError:  # rounding alone has taken it below zero
            solved = linalg.solve(raised, xy)
        return [solved]
    values, vectors = np.linalg.eigh(xx)
    values = np.maximum(values, 0.0)
    rotated = vectors.T @ xy
    return [vectors @ (rotated / (values + penalty * level)[:, None]) for penalty in penalties]


def nested(xx: Float, xy: Float, halvings: int, penalty: float) -> Float:
    """The map `[L, H]` of a context that is halved so often.

    A map of a shorter context is a map of the whole one whose first rows are zero, and which takes the mean of fewer
    rows: in sums over windows, `X'X` becomes `C X'X C` and `X'Y` becomes `C (X'Y - X'X m 1')`, where C takes out the
    mean of the shorter context and m = 1 / length.
    """
    if not halvings:
        return solve(xx, xy, (penalty,))[0]
    size = max(len(xx) >> halvings, 1)
    part = xx[-size:, -size:]
    left = xy[-size:] - part.mean(1, keepdims=True)
    part = part - part.mean(0) - part.mean(1, keepdims=True) + part.mean()
    own = solve(part, left - left.mean(0), (penalty,))[0]
    weights = np.zeros_like(xy)
    weights[-size:] = own + (1 - own.sum(0)) / size
    return weights


def pooled(gram: Gram, pooling: float, shares: Float) -> tuple[Float, Float]:
    """`X'X` and `X'Y` of every series by itself, with `pooling` times those of an average series added, the average
    over series as often as their `shares` `[N]` say; those of all where a series has no window."""
    seen = np.einsum("nll->n", gram.xx) > 0
    share = np.where(seen, pooling / (shares[seen].sum() or 1.0), 1.0)[:, None, None]
    xx, xy = (part / shares[:, None, None] + share * part.sum(0) for part in (gram.xx, gram.xy))
    return xx, xy


def choose_penalty(weights: list[Float], penalties: Sequence[float], held: Gram) -> tuple[float, dict[float, float]]:
    """The penalty of least squared error on held-out windows, the default where there are none, and all errors."""
    if not held.windows:
        return min(penalties, key=lambda penalty: abs(np.log(penalty / DEFAULT_PENALTY))), {}
    squares = [held.yy - 2 * np.vdot(w, held.xy[0]) + np.vdot(w, held.xx[0] @ w) for w in weights]
    count = held.windows * held.xy.shape[2]
    losses = {p: float(s) / count for p, s in zip(penalties, squares, strict=True)}
    return calmest(losses), losses


def calmest(losses: dict[float, float]) -> float:
    """The penalty of the least loss, or the largest that loses as little but for a thousandth."""
    least = min(losses.values())
    least += INDIFFERENCE * abs(least)  # a perfect fit may round below 0
    return max(penalty for penalty, loss in losses.items() if loss <= least)
