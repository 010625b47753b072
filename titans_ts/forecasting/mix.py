"""What the linear path of long series is averaged of: maps fitted in different ways, with shares that the past tells.

Every series is cut into blocks of time, and each block is forecast by the maps of all others (`crossed`); `shares_of`
says how the maps are best averaged, given their errors.

Axes: M maps, W windows, L context, H horizon, K blocks of time, C parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from typing import NamedTuple, TypeAlias

import numpy as np

from .doubt import FEWEST
from .gram import Gram, Unit, accumulate, calmest, gathered, nested, solve
from .panel import Float, Panel
from .windows import Windows, only, spread, windows_between

CROSSED_JUDGED, CROSSED_STEPS = 8192, 120  # windows, and steps of the horizon, that say what a path is averaged of
LEAST = 0.01  # share below which a part is left out
ROUNDS, RATE = 2000, 2.0  # steps that find the shares, and how far one goes
REWEIGHTED, SMALL = 6, 0.05  # how often errors are weighed anew for the least absolute ones, and which count as least
THINNED = 3  # of so many steps one says as much about the shares: errors of neighbouring steps are alike


class Part(NamedTuple):
    """One way to fit a map: what errors are measured in, how strongly the maps of single series are drawn to the shared
    one (infinite: there are none), how often the context is halved before, so that its last rows are left, and whether
    a whole context, never a halved one, has one input more: the distance from its mean to that of all values so far."""

    unit: Unit = "series"
    pooling: float = math.inf
    halvings: int = 0
    usual: bool = False


Mix: TypeAlias = tuple[tuple[Part, float], ...]


def crossed(
    panel: Panel,
    context: int,
    horizon: int,
    scales: Float,
    parts: Sequence[Part],
    penalties: Sequence[float],
    count: int,
    most: int | None = None,
) -> tuple[Mix, dict[float, float]]:
    """What a path is best averaged of, and the mean squared error of the first part at every penalty, each series in
    units of its own scale.

    Every series is cut into `count` blocks of time, and each block is forecast by the maps of all windows without a
    target in it: so every season of the past judges, and maps that have not seen it are judged. `most` windows are
    learnt from, about. There is nothing to say where windows are wholly observed in few blocks.
    """
    turns = in_turn(panel, context, horizon, count)
    every, usual = -(-horizon // CROSSED_STEPS), any(part.usual for part in parts)
    held = [gathered(spread(windows, CROSSED_JUDGED // count), scales, every, usual) for windows in turns[::2]]
    if sum(len(series) > 0 for series, _, _ in held) < FEWEST:
        return (), {}
    total = sum(windows.total for windows in turns)
    learnt = [spread(windows, -(-windows.total * min(most or total, total) // total)) for windows in turns]
    seen = np.sum([windows.counts for windows in learnt], axis=0) > 0
    errors = [np.repeat(-targets[None, :, ::THINNED], len(parts), axis=0) for _, _, targets in held]
    losses: dict[float, float] = {}
    for unit in dict.fromkeys(part.unit for part in parts):
        shared = all_but_one(accumulate(windows, scales, unit, every=every, usual=usual) for windows in learnt)
        if not losses:
            squares = [
                [
                    np.square(contexts[:, :context] @ weights - targets).sum()
                    for weights in solve(xx[:context, :context], xy[:context], penalties)
                ]
                for (xx, xy), (_, contexts, targets) in zip(shared, held, strict=True)
            ]
            size = sum(targets.size for _, _, targets in held)
            losses = dict(zip(penalties, (np.sum(squares, axis=0) / size).tolist(), strict=True))
        penalty = calmest(losses)
        numbers = [number for number, part in enumerate(parts) if part.unit == unit]
        for number in (n for n in numbers if parts[n].pooling == math.inf):
            for (xx, xy), (_, contexts, _), error in zip(shared, held, errors, strict=True):
                error[number] += contexts @ map_of(parts[number], xx, xy, context, penalty)[:, ::THINNED]
        numbers = [number for number in numbers if parts[number].pooling < math.inf]
        for row in np.flatnonzero(seen) if numbers else ():
            own = all_but_one(
                accumulate(only(windows, row), scales, unit, every=every, usual=usual) for windows in learnt
            )
            for (xx, xy), (all_xx, all_xy), (series, contexts, _), error in zip(own, shared, held, errors, strict=True):
                here = series == row
                for number in numbers if here.any() else ():
                    part, share = parts[number], parts[number].pooling / panel.shares[seen].sum()
                    own_xx, own_xy = xx / panel.shares[row] + share * all_xx, xy / panel.shares[row] + share * all_xy
                    weights = map_of(part, own_xx, own_xy, context, penalty)
                    error[number, here] += contexts[here] @ weights[:, ::THINNED]
    found = shares_of([error for error in errors if error.size])
    kept = found * (found >= LEAST)
    return tuple((part, float(s)) for part, s in zip(parts, kept / kept.sum(), strict=True) if s), losses


def in_turn(panel: Panel, context: int, horizon: int, count: int) -> list[Windows]:
    """The windows with all targets in the first of `count` blocks of time of every series, those that reach from it
    into the second, those of the second, and so on."""
    edges = list((panel.lengths[:, None] * np.arange(count + 1) // count).T)
    inside = [windows_between(panel, context, horizon, begin, stop) for begin, stop in pairwise(edges)]
    over = [windows_between(panel, context, horizon, e - horizon + 1, e + horizon - 1) for e in edges[1:]]
    return [*chain(*zip(inside, over, strict=True))][:-1]


def all_but_one(grams: Iterable[Gram]) -> list[tuple[Float, Float]]:
    """`X'X` and `X'Y` of all windows without a target in a block, for every block, from the Grams of the first block,
    of the windows that reach from it into the second, of the second block, and so on."""
    total = last = np.zeros(())
    sums: list[Float] = []
    for number, gram in enumerate(grams):
        one = np.concatenate([gram.xx[0], gram.xy[0]], axis=1)
        total = total + one
        if number % 2:
            sums[-1] += one
            last = one
        else:
            sums.append(one + last)
    for each in sums:
        np.subtract(total, each, out=each)
    return [(each[:, : len(each)], each[:, len(each) :]) for each in sums]


def map_of(part: Part, xx: Float, xy: Float, context: int, penalty: float) -> Float:
    """The map of a part `[K, H]` from sums over windows of K inputs, of which the first are the context; all others
    have weights of 0 where the part does not look at the usual."""
    if part.usual:
        return solve(xx, xy, (penalty,))[0]
    weights = np.zeros_like(xy)
    weights[:context] = nested(xx[:context, :context], xy[:context], part.halvings, penalty)
    return weights


def shares_of(errors: Sequence[Float]) -> Float:
    """The shares `[C]`, none below 0 and 1 together, of C maps in an average that errs less than the first map, given
    their errors in K blocks `[K][C, W, H]`.

    Those of the least squared and absolute error, on average over the blocks and relative to the first map's in each;
    the absolute one by weighing the errors anew. And then as much of the way there from the first map alone as makes
    the mean squared error and one standard error of it least: what all blocks gain by is taken whole.

    >>> one = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    >>> shares_of([one, one]).round(2).tolist(), shares_of([one, one * [[[1.0]], [[1.2]]]]).round(2).tolist()
    ([0.5, 0.5], [0.59, 0.41])
    """
    first = np.eye(len(errors[0]))[0]
    errors = [error for error in errors if error[0].any()]  # where the first map is right there is nothing to gain
    if len(errors) < 2:
        return first
    levels = [(float(np.abs(error[0]).mean()), float(np.square(error[0]).mean())) for error in errors]
    squares = np.stack(
        [
            np.tensordot(error, error, ((1, 2), (1, 2))) / (error[0].size * level)
            for error, (_, level) in zip(errors, levels, strict=True)
        ]
    )
    shares = np.full(squares.shape[1], 1 / squares.shape[1])
    for _ in range(REWEIGHTED):
        products = 2 * squares.mean(axis=0)
        for error, (level, _) in zip(errors, levels, strict=True):
            left = np.abs(np.tensordot(shares, error, 1))
            weighed = error / (np.maximum(left, SMALL * level) * level * left.size * len(errors))
            products += np.tensordot(weighed, error, ((1, 2), (1, 2)))
        products /= products.diagonal().max()
        for _ in range(ROUNDS):
            slope = products @ shares
            shares = shares * np.exp(RATE * (slope.min() - slope))
            shares /= shares.sum()
    ways = first + np.linspace(0, 1, 21)[:, None] * (shares - first)
    losses = np.einsum("wi,kij,wj->wk", ways, squares, ways)
    doubt = losses.std(axis=1, ddof=1) / len(squares) ** 0.5
    way: Float = ways[np.argmin(losses.mean(axis=1) + doubt)]
    return way
