"""The closed-form linear path: a map from a context to the horizon, shared by all series or drawn towards each one.

It is a ridge regression on windows that are drawn by index and never held all at once, and two things besides that a
context of a day or two does not tell: how far it lies from what is usual in its series, and what the map leaves over at
every place of the season in each.

Axes: N series, M maps, W windows, B windows of one block, L context, H horizon, P places of a season. The mean of a
context is taken out before the map and put back after it, so the maps are equivariant: forecasting `c * y + d` gives
`c * forecast + d`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, pairwise
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from scipy import linalg

from ..core.config import LOST
from .panel import DataError, Float, Int, Panel, offsets_of, shorten

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
# without rows to validate on: what the validation rows of many panels choose, within a factor of ten
DEFAULT_PENALTY = 1e-3
# of penalties whose validation error differs by less than this share, the largest is taken: the calmest map
INDIFFERENCE = 1e-3
# what unequal shares of nested contexts must bring more where one horizon was judged: an average is seldom far from the
# best, and what is best on a few rows often is
DOUBT = 0.05
BLOCK_BYTES = 2**22  # of windows that are held at once, and of each of the few arrays made of them
OWN_NUMBERS = 2**24  # that the maps of single series may hold together: 128 MB
PROFILE_NUMBERS = 2**22  # and what their profiles are made of: 32 MB
JUDGED = 2048  # validation windows that choose between ways to fit, at most
GROUPS = 8  # groups of them, by which it is known how sure a choice is
SURE = 2.0  # standard errors by which a gain must exceed nothing
FEWEST = 4  # groups, and horizons of validation rows of all series, below which a gain says nothing
# of what the maps leave over at every place of the season in the past: much of it was that year's
SHARES = (0.3, 0.0, 0.5, 0.7)
# of what the distance of a context from the usual was worth in the past: what came back then need not do so again
PULLS = (0.3, 0.0, 0.5, 0.7)
STAYS = 10.0  # contexts and horizons of all series after which half of that is believed: few always seem to come back
SEASONS = 100.0  # after which a place of the season has half of that share: few say little
CROSSED_JUDGED, CROSSED_STEPS = 8192, 120  # windows, and steps of the horizon, that say what a path is averaged of
CROSSED = 2  # of so many training windows one is enough to tell, block for block, which parts a path is averaged of
LEAST = 0.01  # share below which a part is left out
ROUNDS, RATE = 2000, 2.0  # steps that find the shares, and how far one goes
REWEIGHTED, SMALL = 6, 0.05  # how often errors are weighed anew for the least absolute ones, and which count as least
THINNED = 3  # of so many steps one says as much about the shares: errors of neighbouring steps are alike


# What errors of the fit are measured in. A window's own deviation weighs a restless window down: its errors are larger
# for every map, and least squares would otherwise listen to little else.
Unit: TypeAlias = Literal["series", "window"]


class Part(NamedTuple):
    """One way to fit a map: what errors are measured in, how strongly the maps of single series are drawn to the shared
    one (infinite: there are none), how often the context is halved before, so that its last rows are left, and whether
    a whole context, never a halved one, has one input more: the distance from its mean to that of all values so far."""

    unit: Unit = "series"
    pooling: float = math.inf
    halvings: int = 0
    usual: bool = False


Mix: TypeAlias = tuple[tuple[Part, float], ...]


@dataclass(frozen=True)
class LinearPath:
    """`forecast = mean + (context - mean) @ weights[map] + (usual - mean) * pull[map] + pace * profile[row, place]`,
    weights `[M, L, H]`.

    Map 0 is the one that all series share; series `ids[i]` has row `1 + i`, and a map of its own where M is not 1.
    `usual` is the mean of all values of a series so far, with care (`apart_from`), and `pull` `[M, H]` how much of its
    distance from the context's mean is made good: what the parts of `mix` say, and the share `pulled` of what they
    leave over; None: nothing.
    `profile` `[1 + N, P, H]` holds `share` of what the maps leave over on average where a forecast begins at this place
    of the season (its step of the clock modulo P), in units of the context's `pace`, and nothing in row 0, which is for
    strangers; None: nothing anywhere. `penalty` is relative to the mean eigenvalue of the Gram matrix. `losses` holds
    the mean squared error of every penalty tried on the validation rows, each series in units of its own scale; it is
    empty when there were none. `unit` is what errors were measured in, `pooling` how strongly single maps are drawn to
    the shared one (infinite: there are none), and `blend` the shares of the maps of the whole context, its later half,
    its last quarter, and so on. A path that was averaged of parts, since its series are long, has them and their shares
    in `mix`, and its `losses` are those of the shared map in blocks of the past.
    """

    weights: Float
    penalty: float
    losses: dict[float, float]
    unit: Unit = "series"
    pooling: float = math.inf
    blend: tuple[float, ...] = (1.0,)
    ids: tuple[Hashable, ...] = ()
    share: float = 0.0
    profile: Float | None = None
    mix: Mix = ()
    pulled: float = 0.0
    pull: Float | None = None

    @property
    def season(self) -> int:
        """Places of the season that the path tells apart."""
        return 1 if self.profile is None else int(self.profile.shape[1])

    @property
    def context_length(self) -> int:
        """Rows the path looks at."""
        return int(self.weights.shape[1])

    @property
    def horizon(self) -> int:
        """Rows the path forecasts."""
        return int(self.weights.shape[2])

    @cached_property
    def places(self) -> dict[Hashable, int]:
        """The row of every series that the path was fitted to."""
        return {name: place for place, name in enumerate(self.ids, 1)}

    def rows_of(self, ids: Sequence[Hashable]) -> Int:
        """Which row each of these series has, `[N]`; strangers have row 0, that of the shared map."""
        return np.array([self.places.get(name, 0) for name in ids], dtype=np.int64)


class Windows(NamedTuple):
    """Windows by index, never by copy: `counts[i]` of series i, the first with its targets at row `first[i]`."""

    panel: Panel
    context: int
    horizon: int
    first: Int
    counts: Int
    chosen: Int | None = None  # which of all the windows, in order; None: all

    @property
    def total(self) -> int:
        """How many windows there are."""
        return int(self.counts.sum()) if self.chosen is None else len(self.chosen)


class Block(NamedTuple):
    """Some whole windows: which of all `[B]`, of which series `[B]`, the first of its rows that is a target `[B]`,
    contexts `[B, L]` (NaN before a series began) and targets `[B, H]`."""

    place: Int
    series: Int
    rows: Int
    contexts: Float
    targets: Float


class SeasonSums(NamedTuple):
    """Sums over the windows that begin at every place of the season, in each series: contexts without their means
    `[N, P, L]`, targets without those means `[N, P, H]` and the distances of these means from the usual `[N, P]`, all
    times the context's pace, the squares of that `[N, P]`, and how many windows there are `[N, P]`."""

    x: Float
    y: Float
    apart: Float
    squares: Float
    counts: Int


class PullSums(NamedTuple):
    """Sums over the windows of each series, in units of its scale: contexts without their means `[N, L]` and targets
    without those means `[N, H]`, both times the distance of the mean from the usual, and the squares of that `[N]`."""

    x: Float
    y: Float
    squares: Float


class Gram(NamedTuple):
    """Sums over windows, each times the weight of its series, of each series or (M = 1) of all: `X'X` `[M, L, L]`,
    `X'Y` `[M, L, H]`; over all, the sum of `Y²` and of the weights. The distance from the usual is one input more."""

    xx: Float
    xy: Float
    yy: float
    windows: float


def fit_linear(
    panel: Panel,
    context: int,
    horizon: int,
    *,
    penalties: Sequence[float] = PENALTIES,
    train_ends: Int | None = None,
    max_windows: int | None = None,
    units: Sequence[Unit] = ("series",),
    poolings: Sequence[float] = (math.inf,),
    blends: Sequence[tuple[float, ...]] = ((1.0,),),
    season: int = 1,
    shares: Sequence[float] = (0.0,),
    pulls: Sequence[float] = (0.0,),
    parts: Sequence[Part] = (),
    mix: Mix = (),
    seed: int | np.random.RandomState | None = None,
) -> LinearPath:
    """The ridge map of all windows whose targets end by `train_ends[i]` (an exclusive row of series i; None:
    everywhere).

    The penalty with the least squared error on the windows whose targets begin at `train_ends[i]` or later is taken (of
    several that differ by less than a thousandth, the largest); their context may reach back. Each series counts in
    units of its own standard deviation before `train_ends`, so that scale does not decide, and as often as its weight
    says. `max_windows` draws that many training windows (and as many validation windows).

    units: what errors of the fit are measured in. poolings: with a finite one every series has a map of its own, fitted
    to its windows and to the pooled windows of all, scaled to the weight of `pooling` average series: a hierarchical
    ridge. Single maps that would hold more than `OWN_NUMBERS` together are not made. blends: shares of the maps of the
    whole context, its later half, its last quarter, ...; averages of linear maps are one linear map, and err less than
    each. pulls: how much of what the distance of a context from the usual was worth is added (`with_pull`). season,
    shares: how much of what the maps leave over at every place of a season of so many steps is added, in each series
    for itself (`with_profile`); nothing where that would take more than `PROFILE_NUMBERS`. Of several units, poolings,
    blends, pulls and shares the first is taken unless the validation windows are sure of another, by squared and
    absolute error together (`Trials`): their order matters.

    parts: in long series, what the path is averaged of instead, with shares found in blocks of the whole past, the
    first part being what they are measured by (`crossed`); units, poolings and blends are left alone then. mix: parts
    and shares that are known.

    >>> from titans_ts.forecasting.clock import CountClock
    >>> steps = np.arange(100)
    >>> panel = Panel(np.sin(steps), np.array([0, 100]), ("wave",), steps[-1:], steps[:1], CountClock())
    >>> path = fit_linear(panel, context=12, horizon=3, train_ends=np.array([80]))
    >>> bool(np.abs(apply_linear(path, panel.values[None, -12:]) - np.sin([100, 101, 102])).max() < 1e-3)
    True
    """
    if not penalties or min(penalties) <= 0:
        raise ValueError(f"penalties={tuple(penalties)} must be one or more positive numbers")
    lengths = panel.lengths
    ends = lengths if train_ends is None else np.minimum(train_ends, lengths)
    scales = series_scales(panel, ends)
    random = np.random.default_rng(seed.randint(2**31) if isinstance(seed, np.random.RandomState) else seed)
    zero = np.zeros_like(lengths)
    chosen = draw(windows_between(panel, context, horizon, zero, ends), max_windows, random)
    if next(blocks(chosen), None) is None:
        raise DataError(
            f"series {panel.ids[0]!r} has {int(ends[0])} training rows, and no series ({shorten(panel.ids)}) has "
            f"one row with {horizon} observed targets after it. Fix: a shorter horizon, or longer series."
        )
    checked = draw(windows_between(panel, context, horizon, ends, lengths), max_windows, random)
    judged = draw(checked, JUDGED, np.random.default_rng(0))
    rows = (lengths - ends)[lengths > ends]
    trials = Trials(judged, scales, ends, float(rows.mean()) / horizon if rows.size else 0.0)
    small = len(panel) > 1 and len(panel) * context * max(context, horizon) <= OWN_NUMBERS
    losses: dict[float, float] = {}
    count = int(min(GROUPS, np.median(lengths) // (context + horizon)))
    if parts and not mix and count >= FEWEST:
        parts = [part for part in parts if small or part.pooling == math.inf]
        most = None if max_windows is None else max_windows // CROSSED
        mix, losses = crossed(panel, context, horizon, scales, parts, penalties, count, most)
    if mix:
        best = averaged(chosen, scales, mix, calmest(losses) if losses else penalties[0], losses)
    else:
        poolings = [value for value in poolings if small or value == math.inf] or [math.inf]
        best = tried(chosen, scales, accumulate(checked, scales), trials, penalties, units, poolings, blends)
    if any(pulls):
        plain, far = best, pull_sums(chosen, scales)
        told = panel.shares * np.maximum(ends, 0) / (context + horizon)
        sure = told.sum() / (told.sum() + STAYS)
        best = trials.best(with_pull(plain, far, share, sure, panel.shares) for share in pulls)
    if season < 2 or not any(shares) or len(panel) * season * (context + horizon) > PROFILE_NUMBERS:
        return best
    sums = season_sums(chosen, season)
    return trials.best(with_profile(best, sums, share, panel.ids) for share in shares)


def tried(
    chosen: Windows,
    scales: Float,
    held: Gram,
    trials: Trials,
    penalties: Sequence[float],
    units: Sequence[Unit],
    poolings: Sequence[float],
    blends: Sequence[tuple[float, ...]],
) -> LinearPath:
    """The path with the penalty of least error on held-out windows, and the unit, pooling and blend that the trials
    prefer."""
    paths = []
    for unit in units:
        gram = accumulate(chosen, scales, unit, own=min(poolings) < math.inf)
        shared = Gram(gram.xx.sum(0, keepdims=True), gram.xy.sum(0, keepdims=True), gram.yy, gram.windows)
        weights = solve(shared.xx[0], shared.xy[0], penalties)
        penalty, losses = choose_penalty(weights, penalties, held)
        plain = LinearPath(weights[list(penalties).index(penalty)][None], penalty, losses, unit)

        def fitted(pooling: float, gram: Gram = gram, plain: LinearPath = plain) -> LinearPath:
            return plain if pooling == math.inf else with_own_maps(plain, gram, pooling, chosen.panel)

        path = trials.best(fitted(pooling) for pooling in poolings)
        paths.append(blended(path, gram if len(path.weights) > 1 else shared, blends, trials))
    return trials.best(paths)


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


def averaged(chosen: Windows, scales: Float, mix: Mix, penalty: float, losses: dict[float, float]) -> LinearPath:
    """The path that is the average of these parts, a series without windows having what all share."""
    panel, context, single = chosen.panel, chosen.context, any(part.pooling < math.inf for part, _ in mix)
    usual = any(part.usual for part, _ in mix)
    weights = np.zeros((1 + len(panel) if single else 1, context + usual, chosen.horizon))
    for unit in dict.fromkeys(part.unit for part, _ in mix):
        parts = [(part, share) for part, share in mix if part.unit == unit]
        gram = accumulate(chosen, scales, unit, own=any(part.pooling < math.inf for part, _ in parts), usual=usual)
        for part, share in parts:
            shared = share * map_of(part, gram.xx.sum(0), gram.xy.sum(0), context, penalty)
            if part.pooling == math.inf:
                weights += shared
                continue
            weights[0] += shared
            for own, xx, xy in zip(weights[1:], *pooled(gram, part.pooling, panel.shares), strict=True):
                own += share * map_of(part, xx, xy, context, penalty)
    maps, pull = np.ascontiguousarray(weights[:, :context]), weights[:, context].copy() if usual else None
    return LinearPath(maps, penalty, losses, ids=panel.ids if single else (), mix=mix, pull=pull)


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


def with_pull(path: LinearPath, sums: PullSums, share: float, sure: float, heard: Float) -> LinearPath:
    """The path with this share of what the distance of a context from the usual adds to what it says, by least squares
    over all series, each as much as `heard` `[N]` says; sure: as much of it as the past is long. Where parts of an
    average look at that distance themselves, it is for the others.

    A context of a day or two does not tell whether its level is that of the series or a passing one.
    """
    squares = float(heard @ sums.squares)
    if not share or not squares > 0:
        return path
    single = len(path.weights) > 1
    said = np.einsum("nl,nlh->nh", sums.x, path.weights[1:]) if single else sums.x @ path.weights[0]
    pull = np.zeros_like(path.weights[:, 0]) if path.pull is None else path.pull
    sure *= 1.0 - sum(taken for part, taken in path.mix if part.usual)
    said = said + sums.squares[:, None] * (pull[1:] if single else pull)
    return replace(path, pulled=share, pull=pull + share * sure * (heard @ (sums.y - said)) / squares)


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


def with_profile(path: LinearPath, sums: SeasonSums, share: float, ids: tuple[Hashable, ...]) -> LinearPath:
    """The path with this share of what its maps leave over at every place of the season in each of the series `ids`, by
    least squares in the pace of the contexts, and with less of it the fewer windows said so."""
    if not share:
        return path
    maps = path.weights[1:] if len(path.weights) > 1 else path.weights
    sure = share * sums.counts / (sums.counts + SEASONS) / np.where(sums.squares > 0, sums.squares, np.inf)
    profile = np.zeros((1 + len(ids), *sums.y.shape[1:]))
    np.matmul(-sums.x, maps, out=profile[1:])
    profile[1:] += sums.y
    if path.pull is not None:
        pulls = path.pull[1:] if len(path.pull) > 1 else path.pull
        profile[1:] -= sums.apart[..., None] * pulls[:, None]
    profile[1:] *= sure[..., None]
    return replace(path, share=share, profile=profile, ids=ids)


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


def with_own_maps(path: LinearPath, gram: Gram, pooling: float, panel: Panel) -> LinearPath:
    """The path with maps of single series: the ridge of their own windows and of `pooling` times what an average series
    brings of all. A series without windows has the shared map."""
    maps = [solve(xx, xy, (path.penalty,))[0] for xx, xy in zip(*pooled(gram, pooling, panel.shares), strict=True)]
    return replace(path, weights=np.stack([path.weights[0], *maps]), pooling=pooling, ids=panel.ids)


def pooled(gram: Gram, pooling: float, shares: Float) -> tuple[Float, Float]:
    """`X'X` and `X'Y` of every series by itself, with `pooling` times those of an average series added, the average
    over series as often as their `shares` `[N]` say; those of all where a series has no window."""
    seen = np.einsum("nll->n", gram.xx) > 0
    share = np.where(seen, pooling / (shares[seen].sum() or 1.0), 1.0)[:, None, None]
    xx, xy = (part / shares[:, None, None] + share * part.sum(0) for part in (gram.xx, gram.xy))
    return xx, xy


def blended(path: LinearPath, gram: Gram, blends: Sequence[tuple[float, ...]], trials: Trials) -> LinearPath:
    """The path averaged with those of the later half of the context, its last quarter, ..., by the best of `blends`."""
    if max(map(len, blends)) == 1:
        return path
    xx, xy = gram.xx.sum(0, keepdims=True), gram.xy.sum(0, keepdims=True)
    if len(path.weights) > 1:
        single = pooled(gram, path.pooling, trials.windows.panel.shares)
        xx, xy = (np.concatenate(parts) for parts in zip((xx, xy), single, strict=True))
    parts = [path]
    for halvings in range(1, max(map(len, blends))):
        maps = [nested(*sums, halvings, path.penalty) for sums in zip(xx, xy, strict=True)]
        parts.append(replace(path, weights=np.stack(maps)))
    blend = trials.best_blend(parts, blends)
    weights = sum((share * part.weights for share, part in zip(blend, parts, strict=True)), np.zeros(()))
    return replace(path, weights=weights, blend=blend)


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


def map_of(part: Part, xx: Float, xy: Float, context: int, penalty: float) -> Float:
    """The map of a part `[K, H]` from sums over windows of K inputs, of which the first are the context; all others
    have weights of 0 where the part does not look at the usual."""
    if part.usual:
        return solve(xx, xy, (penalty,))[0]
    weights = np.zeros_like(xy)
    weights[:context] = nested(xx[:context, :context], xy[:context], part.halvings, penalty)
    return weights


class Trials:
    """Tells which of several paths the validation windows prefer: the one with the least squared and absolute error
    together, relative to those of the first path ever judged.

    The first of them is left only for one that gains more than `INDIFFERENCE`, and more than `SURE` standard errors of
    the gain over `GROUPS` groups of windows (stretches of time, or of series where all end at once); of several such
    for that with the least loss. What looks best on a few weeks often only suits these weeks.
    """

    def __init__(self, windows: Windows, scales: Float, ends: Int, horizons: float) -> None:
        self.windows, self.scales = windows, scales
        self.doubt = DOUBT / max(horizons, 1.0)
        self.first: Float | None = None
        series, rows = places(windows)
        self.stretches = horizons * len(np.unique(series))
        time = (rows - ends[series]) / np.maximum(windows.panel.lengths - ends, 1)[series]
        self.group = np.empty(windows.total, dtype=np.int64)
        self.group[np.argsort(time, kind="stable")] = np.arange(windows.total) * GROUPS // max(windows.total, 1)

    def best(self, paths: Iterable[LinearPath]) -> LinearPath:
        """The best of these paths, of which two at most are held at a time."""
        best, first, least = None, np.zeros(0), math.inf
        for path in paths:
            if best is not None and not self.windows.total:
                break
            loss = self.losses([path], [(1.0,)])[0]
            if best is None:
                best, first, least = path, loss, float(loss.sum())
            elif loss.sum() < least and surely_less(loss, first, self.stretches):
                best, least = path, float(loss.sum())
        if best is None:
            raise ValueError("there is no path to choose from")
        return best

    def best_blend(self, parts: list[LinearPath], blends: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
        """The best shares of the parts' forecasts; the fewer horizons are judged, the nearer to equal ones."""
        losses = [
            loss + self.doubt * sum((share - 1 / len(blend)) ** 2 for share in blend)
            for blend, loss in zip(blends, self.losses(parts, blends), strict=True)
        ]
        sure = [place for place, loss in enumerate(losses) if surely_less(loss, losses[0], self.stretches)]
        return blends[min(sure, key=lambda place: losses[place].sum(), default=0)]

    def losses(self, parts: list[LinearPath], blends: Sequence[tuple[float, ...]]) -> list[Float]:
        """Squared and absolute error together of every blend, `[G]`, each series in units of its own scale and as often
        as its weight says; nothing where no validation window is wholly observed."""
        sums, count, shares = np.zeros((len(blends), GROUPS, 2)), np.zeros(GROUPS), self.windows.panel.shares
        for place, series, rows, contexts, targets in blocks(self.windows):
            steps, usual = self.windows.panel.starts[series] + rows, self.windows.panel.usual_before(series, rows)
            said = [apply_linear(part, contexts, series + 1, steps, usual) for part in parts]
            group = self.group[place]
            count += np.bincount(group, shares[series], minlength=GROUPS)
            for number, blend in enumerate(blends):
                error = targets - sum(share * each for share, each in zip(blend, said, strict=True))
                error /= self.scales[series, None]
                for kind, size in enumerate((error**2, np.abs(error))):
                    sums[number, :, kind] += np.bincount(group, shares[series] * size.mean(axis=1), minlength=GROUPS)
        sums = sums[:, count > 0] / count[count > 0, None]
        if not count.any():
            return [np.zeros(0)] * len(blends)
        self.first = sums[0].mean(axis=0) if self.first is None else self.first
        return list((sums / np.maximum(self.first, 1e-300)).sum(axis=-1))


def surely_less(loss: Float, other: Float, stretches: float = math.inf) -> bool:
    """Whether a loss `[G]` is less than another by more than `INDIFFERENCE` and by `SURE` standard errors.

    stretches: of how many horizons the groups are made that do not overlap; below `FEWEST` nothing is sure.

    >>> one = np.ones(4)
    >>> surely_less(0.9 * one, one), surely_less(np.array([0.2, 1.1, 1.1, 1.1]), one), surely_less(0.9 * one, one, 1.0)
    (True, False, False)
    """
    count = min(len(loss), stretches)
    if count < FEWEST:
        return False
    gain = other - loss
    return bool(gain.mean() > max(INDIFFERENCE * other.mean(), SURE * gain.std(ddof=1) / count**0.5))


def apply_linear(
    path: LinearPath,
    contexts: Float,
    rows: Int | None = None,
    steps: Int | None = None,
    usual: Float | None = None,
) -> Float:
    """Forecasts `[B, H]` of contexts `[B, L]` of series that have these rows of the path `[B]` (None: of strangers),
    begin at these steps of the clock `[B]` and of which this is usual so far `[B, 2]` (`Panel.usual_before`); NaN takes
    the last value before it, and nothing but NaN stays NaN. Where the step is not known (None, or `LOST`), nor is the
    place of the season, and there is no profile; where the usual is not known (None, or NaN), nothing pulls."""
    centred, mean = centre(contexts)
    if rows is None or len(path.weights) == 1 or not rows.any():
        forecast: Float = mean[:, None] + centred @ path.weights[0]
    else:
        forecast = np.empty((len(contexts), path.horizon))
        order = np.argsort(rows, kind="stable")
        for some in np.split(order, np.flatnonzero(np.diff(rows[order])) + 1):
            forecast[some] = mean[some, None] + centred[some] @ path.weights[rows[some[0]]]
    if path.pull is not None and usual is not None:
        owner = 0 if rows is None or len(path.pull) == 1 else rows
        forecast += apart_from(usual, mean, pace(centred, contexts))[:, None] * path.pull[owner]
    if path.profile is not None and rows is not None and steps is not None:
        placed = np.where(steps < LOST // 2, 0, rows)  # the profile of strangers is nothing
        forecast += pace(centred, contexts)[:, None] * path.profile[placed, steps % path.season]
    return forecast


def apart_from(usual: Float, mean: Float, speed: Float) -> Float:
    """How far what is usual `[B, 2]` lies from the means of contexts `[B]` that move at this pace `[B]`: nothing where
    it is not known or a context stands still (no rain, which mostly goes on), and less where it lies so far away that
    the series may have left it for good.

    >>> usual = np.array([[5.0, 1.0], [5.0, 1.0], [5.0, 1.0], [5.0, 1.0], [np.nan, np.nan]])
    >>> apart_from(usual, np.array([3.0, -2.5, -9.0, 3.0, 0.0]), np.array([1.0, 1.0, 1.0, 0.0, 1.0])).tolist()
    [2.0, 3.75, 0.0, 0.0, 0.0]
    """
    from ..core.ops.fading import apart_rows

    out = np.empty(len(mean))
    apart_rows(usual, mean, out)
    return np.where(speed > 0, out, 0.0)


def pace(centred: Float, contexts: Float) -> Float:
    """How far contexts `[B, L]`, which `centre` made `centred`, move from one step to the next, on average from their
    first value on, `[B]`: more on a busy day than on a calm one, and nothing where they stand still.

    >>> contexts = np.array([[np.nan, 1.0, 3.0], [5.0, np.nan, 1.0]])
    >>> pace(centre(contexts)[0], contexts).tolist()
    [2.0, 2.0]
    """
    steps, first = np.diff(centred, axis=1), np.zeros(len(contexts), dtype=np.int64)
    np.abs(steps, out=steps)
    late = np.flatnonzero(~np.isfinite(contexts[:, 0]))
    if late.size:
        first[late] = np.isfinite(contexts[late]).argmax(axis=1)
        steps[np.arange(steps.shape[1]) < first[:, None]] = 0.0
    mean: Float = steps.sum(axis=1) / np.maximum(contexts.shape[1] - 1 - first, 1)
    return mean


def series_scales(panel: Panel, ends: Int) -> Float:
    """The standard deviation of every series' rows before `ends`, `[N]`: of all its rows where those stand still, 1
    where all do."""
    scales = deviations(panel, ends)
    scales = np.where(scales > 0, scales, deviations(panel, panel.lengths))
    return np.where(scales > 0, scales, 1.0)


def deviations(panel: Panel, ends: Int) -> Float:
    """The standard deviation of every series' rows before `ends`, `[N]`; 0 for what is constant but for rounding."""
    rows = np.repeat(np.arange(len(panel)), panel.lengths)
    inside = np.isfinite(panel.values) & (np.arange(len(panel.values)) - panel.offsets[rows] < ends[rows])
    rows, values = rows[inside], panel.values[inside]
    count = np.maximum(np.bincount(rows, minlength=len(panel)), 1)
    mean = np.bincount(rows, values, minlength=len(panel)) / count
    variance = np.bincount(rows, (values - mean[rows]) ** 2, minlength=len(panel)) / count
    scale: Float = np.sqrt(variance)
    return np.where(scale > 1e-12 * np.abs(mean), scale, 0.0)


def context_scale(contexts: Float, series_scale: Float) -> Float:
    """The standard deviation of what was observed of each context `[B]`, and at least a tenth of its series'."""
    seen = np.isfinite(contexts)
    count = np.maximum(seen.sum(axis=1), 1)
    whole = bool(seen.all())
    mean = (contexts if whole else np.where(seen, contexts, 0.0)).sum(axis=1) / count
    deviation = contexts - mean[:, None]
    deviation = deviation if whole else np.where(seen, deviation, 0.0)
    np.square(deviation, out=deviation)
    scale: Float = np.maximum(np.sqrt(deviation.sum(axis=1) / count), 0.1 * series_scale)
    return scale


def windows_between(panel: Panel, context: int, horizon: int, begin: Int, stop: Int) -> Windows:
    """All windows whose targets lie in rows `begin[i], ..., stop[i] - 1`.

    A context is whole wherever the series has that many rows before `stop`; in a shorter series it may begin before the
    first row.
    """
    room = np.where(
        stop >= context + horizon, context, np.minimum(stop - horizon, np.maximum((stop - horizon) // 2, 1))
    )
    first = np.maximum(begin, np.maximum(room, 1))
    return Windows(panel, context, horizon, first, np.maximum(stop - horizon - first + 1, 0))


def draw(windows: Windows, count: int | None, random: np.random.Generator) -> Windows:
    """At most `count` of the windows, drawn without replacement, in order."""
    if count is None or windows.total <= count:
        return windows
    return windows._replace(chosen=np.sort(random.choice(windows.total, count, replace=False, shuffle=False)))


def spread(windows: Windows, count: int) -> Windows:
    """About `count` of all the windows: of every series as many as its share, evenly over it, so that which ones does
    not depend on the order of the series."""
    if windows.total <= count:
        return windows
    wanted = -(-windows.counts * count // windows.total)
    series = np.repeat(np.arange(len(wanted)), wanted)
    number = np.arange(len(series)) - offsets_of(wanted)[series]
    place = (2 * number + 1) * windows.counts[series] // (2 * wanted[series])
    return windows._replace(chosen=offsets_of(windows.counts)[series] + place)


def in_proportion(panel: Panel, series: Int) -> Int:
    """Which windows of these series `[W]` to take, some again and others not at all, so that each counts as much as its
    series: as many as came, evenly over each series, in order.

    >>> from titans_ts.forecasting.door import read
    >>> panel = replace(read(np.eye(2))[0], weights=np.array([1.0, 0.25]))
    >>> in_proportion(panel, np.array([0, 1, 0, 1, 0, 1, 0, 1, 0, 1])).tolist()
    [0, 0, 2, 3, 4, 4, 6, 7, 8, 8]
    """
    if panel.weights is None or not len(series):
        return np.arange(len(series))
    order = np.argsort(series, kind="stable")
    behind = np.cumsum(panel.weights[series[order]])
    wanted = (np.arange(len(series)) + 0.5) / len(series) * behind[-1]
    return np.sort(order[np.searchsorted(behind, wanted)])


def blocks(windows: Windows) -> Iterator[Block]:
    """The windows with an observed context and nothing but observed targets, block after block."""
    size = max(BLOCK_BYTES // (8 * (windows.context + windows.horizon)), 1)
    every = places(windows)
    for begin in range(0, windows.total, size):
        series, rows = (part[begin : begin + size] for part in every)
        contexts, targets = cut(windows, series, rows)
        block = Block(np.arange(begin, begin + len(series)), series, rows, contexts, targets)
        whole = ~np.isnan(targets).any(axis=1)
        if np.isnan(contexts[:, -1]).any():
            whole &= ~np.isnan(contexts).all(axis=1)
        if whole.all():
            yield block
        elif whole.any():
            kept = np.flatnonzero(whole)
            yield Block(block.place[kept], series[kept], rows[kept], contexts[kept], targets[kept])


def places(windows: Windows) -> tuple[Int, Int]:
    """Of which series every window is, and at which of its rows the targets begin, `[W]`."""
    index = np.arange(windows.total) if windows.chosen is None else windows.chosen
    offsets = offsets_of(windows.counts)
    series = np.searchsorted(offsets, index, side="right") - 1
    return series, windows.first[series] + index - offsets[series]


def cut(windows: Windows, series: Int, target: Int) -> tuple[Float, Float]:
    """Contexts `[B, L]` before these rows, NaN before a series began, and targets `[B, H]` from there on."""
    panel, context = windows.panel, windows.context
    if (target < context).any():
        rows = (panel.offsets[series] + target)[:, None] + np.arange(-context, windows.horizon)
        before = rows < panel.offsets[series][:, None]
        block = np.where(before, np.nan, panel.values[np.maximum(rows, 0)])
    else:
        every = np.lib.stride_tricks.sliding_window_view(panel.values, context + windows.horizon)
        block = every[panel.offsets[series] + target - context]
    return block[:, :context], block[:, context:]


def centre(contexts: Float) -> tuple[Float, Float]:
    """Contexts without their means `[B, L]`, and the means `[B]`, that of equal values being each of them to the last
    digit; holes take the last value (at first the mean)."""
    mean = contexts.mean(axis=1)
    if np.isfinite(mean).all():  # nothing is missing
        still = np.flatnonzero(contexts[:, 0] == contexts[:, -1])
        still = still[(contexts[still] == contexts[still, :1]).all(axis=1)]
        mean[still] = contexts[still, 0]
        return contexts - mean[:, None], mean
    observed = ~np.isnan(contexts)
    count = observed.sum(axis=1)
    total = np.where(observed, contexts, 0.0).sum(axis=1)
    mean = np.divide(total, count, out=np.full(len(contexts), np.nan), where=count > 0)
    one = np.take_along_axis(contexts, observed.argmax(axis=1)[:, None], axis=1)
    mean = np.where(((contexts == one) | ~observed).all(axis=1), one[:, 0], mean)
    last = np.maximum.accumulate(np.where(observed, np.arange(contexts.shape[1]), -1), axis=1)
    filled = np.take_along_axis(contexts, np.maximum(last, 0), axis=1)
    return np.where(last < 0, 0.0, filled - mean[:, None]), mean


def only(windows: Windows, row: int | np.int64) -> Windows:
    """Those windows that are of this series."""
    begin, stop = offsets_of(windows.counts)[row : row + 2]
    if windows.chosen is None:
        return windows._replace(chosen=np.arange(begin, stop))
    return windows._replace(chosen=windows.chosen[slice(*np.searchsorted(windows.chosen, [begin, stop]))])


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
