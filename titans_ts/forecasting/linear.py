"""The closed-form linear path: a map from a context to the horizon, shared by all series or drawn towards each one.

It is a ridge regression on windows (`windows.py`) by their sums (`gram.py`); in long series an average of several
(`mix.py`). Two things besides that a context of a day or two does not tell: how far it lies from what is usual in its
series, and what the map leaves over at every place of the season in each. Which ways the path goes, validation windows
say (`Trials`).

Axes: N series, M maps, B windows of one block, L context, H horizon, P places of a season, G groups of windows. The
mean of a context is taken out before the map and put back after it, so the maps are equivariant: forecasting
`c * y + d` gives `c * forecast + d`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..core.config import LOST
from .doubt import FEWEST, GROUPS, JUDGED, surely_less
from .gram import (
    PENALTIES,
    Gram,
    PullSums,
    SeasonSums,
    Unit,
    accumulate,
    calmest,
    choose_penalty,
    nested,
    pooled,
    pull_sums,
    season_sums,
    solve,
)
from .mix import Mix, Part, crossed, map_of
from .panel import DataError, Float, Int, Panel, shorten
from .windows import Windows, apart_from, blocks, centre, draw, pace, places, series_scales, windows_between

# what unequal shares of nested contexts must bring more where one horizon was judged: an average is seldom far from the
# best, and what is best on a few rows often is
DOUBT = 0.05
OWN_NUMBERS = 2**24  # that the maps of single series may hold together: 128 MB
PROFILE_NUMBERS = 2**22  # and what their profiles are made of: 32 MB
# of what the maps leave over at every place of the season in the past: much of it was that year's
SHARES = (0.3, 0.0, 0.5, 0.7)
# of what the distance of a context from the usual was worth in the past: what came back then need not do so again
PULLS = (0.3, 0.0, 0.5, 0.7)
STAYS = 10.0  # contexts and horizons of all series after which half of that is believed: few always seem to come back
SEASONS = 100.0  # after which a place of the season has half of that share: few say little
CROSSED = 2  # of so many training windows one is enough to tell, block for block, which parts a path is averaged of


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


def with_own_maps(path: LinearPath, gram: Gram, pooling: float, panel: Panel) -> LinearPath:
    """The path with maps of single series: the ridge of their own windows and of `pooling` times what an average series
    brings of all. A series without windows has the shared map."""
    maps = [solve(xx, xy, (path.penalty,))[0] for xx, xy in zip(*pooled(gram, pooling, panel.shares), strict=True)]
    return replace(path, weights=np.stack([path.weights[0], *maps]), pooling=pooling, ids=panel.ids)


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
