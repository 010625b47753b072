"""What the validation rows make of several forecasts: one point forecast, and intervals that cover what they say.

Axes: N series, W windows, F future step, P places of the season, Q quantile level.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from statistics import NormalDist
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..core.config import LOST
from .doubt import FEWEST, GROUPS, surely_less
from .linear import PROFILE_NUMBERS
from .panel import Float, Int, Panel
from .windows import series_scales

Intervals: TypeAlias = Literal["auto", "conformal", "head"]

SHARES = tuple(k / 10 for k in range(11))  # of the fading memories in the point forecast
UNDECIDED = 0.5  # their share before anything was validated
SHORT = 0.75  # the same where less than `FEWEST` horizons can be: what is short knows itself better than its neighbours
# how much a share costs that is far from that one, where one horizon was validated: the other forecast was chosen on
# the same rows and looks better there than it is
DOUBT = 0.2
PARTS = (0.0, 0.5)  # of the head's quantiles: it is silent where a window stands still, and may not speak alone
OWN_DOUBT = 5.0  # the same for the share of one series, and what is far from that of all
JUDGES = 8  # windows of one series from which on it has a share of its own
LEAST = 0.5  # of the mean unit of a series is the least that one of its windows has: calm does not last
STRETCH = 1.3  # how much wider intervals are made, at most, to cover as much where series stood still
STILL = 0.4  # of it, and less: the series has stood still for so long that its next move says little about all others
LEAN = (
    0.7  # of how far the median of the errors lies from their mean, in the median: they are skewed, or were by chance
)
DAYS = 10.0  # seasons after which a place of the season has half of the size that its errors had there
# how far units are drawn to the deviation of all values of a series: a wild window need not be followed by a wild one
DRAWS = (0.0, 0.3, 0.5, 0.7)
THINNED = 16  # steps of the horizon by which that is chosen, about, where it is longer
OWN = 1.0  # horizons behind the first whose errors say as much about a series as those of all series do
NORMAL_SIZE = (np.pi / 2) ** 0.5  # deviation of a normal distribution whose mean size is one
FEW = 1.4  # (1 + FEW / n) is about how much wider the 80 % interval of Student's t with n degrees is than a normal one
BEYOND, FARTHEST = (
    0.25,
    4.0,
)  # of the errors beyond the outermost level that tell how far they go on, and how far at most
TAILED = 20.0  # windows that are believed by half in that
ENOUGH = 50.0  # windows that say as much about the errors of one step as those of all steps together do


class Judged(NamedTuple):
    """Forecasts of windows whose future is known, in the order of time.

    series `[W]`: which of the N series each window is of. truth `[W, F]`, NaN where unknown; main: the linear path with
    its correction; fading: of the fading memories; ripe `[W]`: how much those have seen by then, see `Fading.ripe`;
    head: the head's quantiles around `main` `[W, F, Q]`, None where there is no trained head; unit `[W]`: what errors
    are expected to grow with in each window, see `error_unit`; surprise `[W]`: the mean one of the fading memories by
    then; deviation `[W]`: that of all values of the series by then, 0 where unknown; bounds `[W, 2]`: what each does
    not go beyond, see `Fading.ahead`; steps `[W]`: the step of the clock at which it begins; scale `[W]`: what the
    errors of each series are counted in. horizons: how many of them a series has
    behind its training rows; 0 where the windows are training rows themselves.
    """

    series: Int
    truth: Float
    main: Float
    fading: Float
    ripe: Float
    head: Float | None
    unit: Float
    surprise: Float
    deviation: Float
    bounds: Float
    steps: Int
    scale: Float
    horizons: float


class Spoken(NamedTuple):
    """Mean and median `[N, F]` and quantiles `[N, F, Q]`.

    ends `[N, F, 2]`: how far the outermost of these would lie below and above the median with the widths of `fit`; 0 in
    a series that has an edge, where widths do not learn.
    """

    mean: Float
    median: Float
    quantiles: Float
    ends: Float

    @property
    def standing(self) -> Float:
        """What is kept of it until it comes due, `[N, F, 3]` (`WidthState.standing`)."""
        return np.concatenate([self.median[..., None], self.ends], axis=-1)


@dataclass(frozen=True, eq=False)
class Calibration:
    """How the parts of a forecast are put together.

    mean, median: share of the head's median, where it lies off what the head expects, in the mean and in the median.
    head: share of the head's quantiles around its median, the rest are those of `table`. width: factor on the former.
    table `[F, Q]`: quantiles of the errors of each step around their median, in units of `error_unit`. habits `[1 + N,
    4]`, first of strangers and then of every series of `fit`: how large its errors are in that unit, relative to those
    of all series, the least that the unit is, in mean surprises of the series so far, the share of ripe fading memories
    in its forecasts, how far the unit is drawn to the deviation of the series, and how many of its values were seen by
    `fit`, behind which the widths of its intervals learn. sizes `[1 + N, P]`: how large errors are at every place of
    the season, relative to all places. tails: how much further than the normal curve errors reach beyond the outermost
    levels, below and above. lean: how far the median lies off where the parts above put it, in the same units: where
    data are skewed. bounded: whether forecasts end where the series stood often (`Fading.ahead`).
    """

    mean: float
    median: float
    head: float
    width: float
    table: Float
    habits: Float = field(default_factory=lambda: np.array([[1.0, 0.0, 0.0, 0.0, 0.0]]))
    sizes: Float = field(default_factory=lambda: np.ones((1, 1)))
    lean: float = 0.0
    bounded: bool = False
    tails: tuple[float, float] = (1.0, 1.0)

    def spoken(
        self,
        main: Float,
        fading: Float,
        ripe: Float,
        head: Float | None,
        unit: Float,
        surprise: Float,
        deviation: Float,
        bounds: Float,
        rows: Int,
        steps: Int,
        levels: tuple[float, ...],
        factors: Float,
    ) -> Spoken:
        """The forecasts; where main or fading says nothing, of the other alone.

        rows `[N]`: the row of `habits` of each series; it is that of its rates (`FadingState.own`). steps `[N]`: the
        steps of the clock at which the forecasts begin, `LOST` where that is not known. factors `[N, F]` on the
        intervals: what was learnt since (`widths`).
        """
        unit = own_unit(unit, surprise, deviation, self.habits[rows])[:, None]
        unit = unit * sizes_at(self.sizes, rows, steps, main.shape[1])
        middle = 0.0 if head is None else at_median(head, levels)
        share = (self.habits[rows, 2] * ripe)[:, None]
        mean, median = (mixed(main + part * middle, fading, share) for part in (self.mean, self.median))
        median = median + self.lean * unit
        offsets = unit[..., None] * self.table
        if head is not None and self.head:
            offsets = self.head * self.width * around_median(head, levels) + (1 - self.head) * offsets
        free = (np.isinf(bounds[:, :1]) & np.isinf(bounds[:, 1:]))[..., None]
        ends = np.where(free, np.stack([-offsets[..., 0], offsets[..., -1]], axis=-1), 0.0)
        quantiles = median[..., None] + factors[..., None] * offsets
        if not self.bounded:
            return Spoken(mean, median, quantiles, ends)
        low, high = bounds.T[..., None]
        mean, median = np.clip(mean, low, high), np.clip(median, low, high)
        quantiles = np.clip(quantiles, low[..., None], high[..., None])
        return Spoken(mean, median, quantiles, ends)


def mixed(main: Float, fading: Float, share: Float) -> Float:
    """`main` and this share of `fading`; the one of them that is known where the other is not."""
    both = main + share * (fading - main)
    return np.where(np.isnan(both), np.where(np.isnan(main), fading, main), both)


def at_median(quantiles: Float, levels: tuple[float, ...]) -> Float:
    """The median of quantiles `[..., Q]`, between the two levels next to it; 0 where all lie on one side of it.

    >>> float(at_median(np.array([0.0, 4.0]), (0.4, 0.6)))
    2.0
    """
    low, high, first, second = next_to_median(levels)
    return quantiles[..., int(low)] * first + quantiles[..., int(high)] * second


def next_to_median(levels: tuple[float, ...]) -> tuple[float, float, float, float]:
    """The places of the levels on both sides of the median, and the shares of the two, linear in normal scores; no
    shares where all levels lie on one side.

    >>> next_to_median((0.1, 0.5, 0.9))
    (0.0, 1.0, 0.0, 1.0)
    >>> next_to_median((0.8, 0.9))
    (0.0, 0.0, 0.0, 0.0)
    """
    right = int(np.searchsorted(levels, 0.5))
    if right == len(levels) or (right == 0 and levels[0] != 0.5):
        return 0.0, 0.0, 0.0, 0.0
    if levels[right] == 0.5:
        return max(right - 1.0, 0.0), float(right), 0.0, 1.0
    low, high = (NormalDist().inv_cdf(level) for level in levels[right - 1 : right + 1])
    return right - 1.0, float(right), high / (high - low), -low / (high - low)


def around_median(quantiles: Float, levels: tuple[float, ...]) -> Float:
    """Quantiles `[..., Q]` without their median."""
    return quantiles - at_median(quantiles, levels)[..., None]


def season_scales(panel: Panel, ends: Int, season: int) -> Float:
    """The mean absolute difference of values a season apart before `ends`, of every series (of all its rows where none
    moves before, its deviation where none ever does): the unit of MASE."""
    scales = series_scales(panel, ends)
    for row, end in enumerate(ends.tolist()):
        for values in (panel.series(row)[:end], panel.series(row)):
            moves = np.abs(values[season:] - values[:-season])
            moves = moves[np.isfinite(moves)]
            if moves.any():
                scales[row] = moves.mean()
                break
    return scales


def error_unit(deviation: Float, surprise: Float) -> Float:
    """What the errors of a forecast are expected to grow with `[N]`: the geometric mean of the deviation of the window
    and of the mean surprise of the fading memories, which follows the noise alone.

    >>> error_unit(np.array([4.0, 0.0]), np.array([1.0, 3.0])).round(6).tolist()
    [2.0, 3.0]
    """
    unit: Float = np.sqrt(np.maximum(deviation, surprise)) * np.sqrt(surprise)
    return unit


def own_unit(unit: Float, surprise: Float, deviation: Float, habits: Float) -> Float:
    """What the errors of windows with these units `[W]` are expected to grow with; surprise `[W]`: the mean surprise so
    far, deviation `[W]`: that of all values so far, `habits` `[W, 5]`: the row of `Calibration.habits` of each its
    series.

    >>> habits = np.array([[0.5, 2.0, 0.0, 0.0, 0.0], [0.5, 2.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.5, 0.0]])
    >>> own_unit(np.array([4.0, 1.0, 4.0]), np.array([1.0, 1.0, 1.0]), np.array([9.0, 9.0, 9.0]), habits).tolist()
    [2.0, 1.0, 6.0]
    """
    result: Float = habits[:, 0] * np.maximum(drawn(unit, deviation, habits[:, 3]), habits[:, 1] * surprise)
    return result


def drawn(unit: Float, deviation: Float, share: Float | float) -> Float:
    """Units `[W]` that are drawn to these deviations `[W]` by this share, on the scale of logarithms; as they are where
    either is 0."""
    both = (unit > 0) & (deviation > 0)
    return np.where(both, unit ** (1 - share) * deviation**share, unit)


def calibrate(
    judged: Judged,
    levels: tuple[float, ...],
    intervals: Intervals = "auto",
    point: Literal["mean", "median"] = "mean",
    *,
    earlier: Judged | None = None,
    count: int | None = None,
    season: int = 1,
    mix: bool = True,
) -> Calibration:
    """The mixture with the least error, and quantiles that cover what they say, on these windows.

    The table holds the quantiles of the errors (split conformal prediction, each step for itself) in a unit that is
    scaled to the size of each series' own errors. The head's quantiles are made as wide as its errors are. intervals:
    "conformal" takes the table alone, "head" the head alone, "auto" the mean of both where that has less pinball loss
    than the table; the table is judged crosswise, each half of the windows by that of the other half. point: which
    errors choose the shares of the forecast that is asked for, squared and absolute ones together ("mean") or the
    absolute ones. earlier: windows of the training rows, whose errors tell as well how large errors are: a validation
    part that was calm, or restless, is not the whole of a series. count: how many series there are; None: as many as
    have windows. season: steps of the season, at each place of which errors have a size of their own, unless that were
    more than `PROFILE_NUMBERS` numbers. mix: whether the fading memories may take part.
    """
    count = int(judged.series.max(initial=-1)) + 1 if count is None else count
    habits = np.tile([1.0, 0.0, 0.0, 0.0, 0.0], (1 + count, 1))
    moving = (judged.unit > 0) & np.isfinite(judged.truth).any(1)  # who stands still is forecast without an error
    truth, main, fading, ripe, scale = (
        part[moving] for part in (judged.truth, judged.main, judged.fading, judged.ripe, judged.scale)
    )
    if not moving.any():
        habits[:, 2] = SHORT if mix else 0.0
        table = error_table(truth, judged.unit[moving], levels)
        return Calibration(0.0, 0.0, 0.0, 1.0, table, habits, np.ones((1 + count, 1)))
    head = None if judged.head is None else judged.head[moving]
    mean = median = 0.0
    if head is not None:
        middle = main + at_median(head, levels)
        errors_of = partial(stretches, truth, scale=scale)
        mean, median = (float(surely_less(errors_of(middle, power=p), errors_of(main, power=p))) for p in (2, 1))
    centres = [main if not share else middle for share in (mean, median)]
    powers, chosen = ((1,), centres[1]) if point == "median" else ((1, 2), centres[0])
    series, steps = judged.series[moving], judged.steps[moving]
    restless = np.stack([judged.unit, judged.surprise, judged.deviation])[:, moving]
    if mix:
        common = mixed_share(truth, chosen, fading, ripe, scale, judged.horizons, powers)
        habits[0, 2] = common
        habits[1:, 2] = own_shares(common, truth, chosen, fading, ripe, series, count, judged.horizons, powers)

    share = (habits[1 + series, 2] * ripe)[:, None]
    of_mean, of_median = (mixed(centre, fading, share) for centre in centres)
    skewed, errors = truth - of_mean, truth - of_median
    if earlier is not None:
        share = (habits[1 + earlier.series, 2] * earlier.ripe)[:, None]
        before = earlier.truth - mixed(earlier.main, earlier.fading, share)
        skewed, errors = np.concatenate([skewed, before]), np.concatenate([errors, before])
        series, steps = np.concatenate([series, earlier.series]), np.concatenate([steps, earlier.steps])
        restless = np.concatenate([restless, [earlier.unit, earlier.surprise, earlier.deviation]], axis=1)
        scale = np.concatenate([scale, earlier.scale])
    seen = np.asarray(np.isfinite(errors).any(axis=1))
    whose = Restless(series, restless[0], restless[1], restless[2], seen)
    habits[:, 3] = own_draws(errors, whose, scale, len(of_mean), count, judged.horizons, levels)
    habits[:, 1] = least_units(whose, habits[1 + series, 3], count)
    unit = own_unit(whose.unit, whose.surprise, whose.deviation, habits[1 + series])
    telling = seen & (unit > STILL * means_of(unit[seen], series[seen], count)[series])
    habits[1:, 0] = own_sizes(errors[telling] / unit[telling, None], series[telling], count, judged.horizons)
    unit = unit * habits[1 + series, 0]
    sizes = seasonal_sizes(errors[telling], unit[telling], series[telling], steps[telling], count, season)
    place = sizes_at(sizes, 1 + series, steps, errors.shape[1])
    whole = unit[:, None] * place
    lean = leaning(errors[telling], skewed[telling], whole[telling], scale[telling])
    errors = errors - lean * whole
    bounded = not_worse(judged.truth[moving], of_median + lean * whole[: len(of_median)], judged.bounds[moving], scale)
    made = partial(Calibration, mean, median, habits=habits, sizes=sizes, lean=lean, bounded=bounded)
    # Windows that stood still do not tell how large errors are, but intervals cover them too.
    table = covering_table(errors[telling] / place[telling], unit[telling], levels)
    table = table * min(max(covering(errors, whole[..., None] * table[:, [0, -1]], levels), 1.0), STRETCH)
    made = partial(made, tails=tails_of(errors[telling] / whole[telling], table, levels))
    if head is None or intervals == "conformal":
        return made(0.0, 1.0, table)

    # There are heads in the later windows alone: they are as wide as these want it, and then narrower by what these
    # are more restless than all windows.
    later = np.flatnonzero(telling[: len(head)])
    around, scale = around_median(head[later], levels), scale[later]
    del head  # as large as `around`
    errors, whole, unit, place = errors[later], whole[later], unit[later], place[later]
    offsets = whole[..., None] * table
    wilder = 1.0 if earlier is None else covering(errors, offsets, levels)
    width = covering(errors, around, levels)
    if intervals == "head":
        return made(1.0, width / wilder, table)
    half = len(later) // 2
    if not half:
        return made(0.0, 1.0, table)
    tables = [
        covering_table(errors[part] / place[part], unit[part], levels) for part in (slice(half, None), slice(half))
    ]
    cross = np.repeat(np.stack(tables), [half, len(later) - half], axis=0) * whole[..., None]
    best = min(
        PARTS,
        key=lambda part: pinball(
            errors / scale[:, None],
            ((part * width * around[..., q] + (1 - part) * cross[..., q]) / scale[:, None] for q in range(len(levels))),
            levels,
        ),
    )
    both = covering(errors, best * width * around + (1 - best) * wilder * offsets, levels) if best else 1.0
    return made(best, both * width / wilder, both * table)


class Restless(NamedTuple):
    """What the errors of windows `[W]` of these series may grow with, as in `Judged`, and of which windows they are
    known."""

    series: Int
    unit: Float
    surprise: Float
    deviation: Float
    seen: NDArray[np.bool_]


def least_units(whose: Restless, share: Float | float, count: int) -> Float:
    """The least that the units of so many series are, drawn by this share, in their mean surprises, `[1 + N]`. Who was
    not judged is as the others are."""
    seen, least = whose.seen, np.zeros(1 + count)
    unit = drawn(whose.unit, whose.deviation, share)[seen]
    usual = means_of(whose.surprise[seen], whose.series[seen], count)
    least[1:] = LEAST * means_of(unit, whose.series[seen], count) / np.where(usual > 0, usual, np.inf)
    known = least > 0
    least[~known] = np.median(least[known]) if known.any() else 0.0
    return least


def own_draws(
    errors: Float, whose: Restless, scale: Float, judged: int, count: int, horizons: float, levels: tuple[float, ...]
) -> Float:
    """How far the units of each series are drawn to its deviation, `[1 + N]`: by the share that surely has the least
    quantile loss in the first `judged` windows, one for all series, and then another where one of them is sure of it.

    Each half of these windows is judged by the errors of the other half and of all windows behind them.
    """
    shares, thin = np.zeros(1 + count), errors[:, :: max(1, errors.shape[1] // THINNED)]
    whose = whose._replace(seen=np.asarray(np.isfinite(thin).any(axis=1)))
    rows = np.flatnonzero(whose.seen[:judged])
    if min(len(rows), horizons) < FEWEST or not (whose.deviation > 0).any():
        return shares
    losses = {draw: crosswise(thin, whose, draw, scale, judged, count, horizons, levels)[rows] for draw in DRAWS}

    def best(some: Int, now: float) -> float:
        stretched = {draw: means_in_stretches(loss[some]) for draw, loss in losses.items()}
        sure = [draw for draw in DRAWS if draw != now and surely_less(stretched[draw], stretched[now], horizons)]
        return min(sure, key=lambda draw: float(stretched[draw].mean()), default=now)

    shares[:] = best(np.arange(len(rows)), 0.0)
    order = np.argsort(whose.series[rows], kind="stable")
    for some in np.split(order, np.flatnonzero(np.diff(whose.series[rows][order])) + 1):
        if len(some) >= 2 * GROUPS:
            shares[1 + whose.series[rows[some[0]]]] = best(some, shares[0])
    return shares


def means_in_stretches(values: Float) -> Float:
    """The mean of values `[W]` in every stretch of windows, `[G]`.

    >>> means_in_stretches(np.repeat(np.arange(8.0), 3)).tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    """
    return np.array([part.mean() for part in np.array_split(values, min(GROUPS, len(values)))])


def crosswise(
    errors: Float,
    whose: Restless,
    draw: float,
    scale: Float,
    judged: int,
    count: int,
    horizons: float,
    levels: tuple[float, ...],
) -> Float:
    """The quantile loss `[judged]`, in scales `[W]` of the series, of intervals with units drawn by this share: of each
    half of the judged windows by the errors `[W, F]` of all others."""
    least = least_units(whose, draw, count)[1 + whose.series]
    unit = np.maximum(drawn(whose.unit, whose.deviation, draw), least * whose.surprise)
    telling = whose.seen & (unit > STILL * means_of(unit[whose.seen], whose.series[whose.seen], count)[whose.series])
    half, losses = judged // 2, np.full(judged, np.nan)
    for part in (slice(0, half), slice(half, judged)):
        others = telling.copy()
        others[part] = False
        sizes = own_sizes(errors[others] / unit[others, None], whose.series[others], count, horizons)[whose.series]
        table = covering_table(errors[others], (unit * sizes)[others], levels)
        gaps = errors[part, :, None] - (unit * sizes)[part, None, None] * table
        lost = np.where(gaps > 0, np.array(levels) * gaps, (np.array(levels) - 1) * gaps).mean(axis=2)
        seen = whose.seen[part]
        losses[part][seen] = np.nanmean(lost[seen], axis=1) / scale[part][seen]
    return losses


def seasonal_sizes(errors: Float, unit: Float, series: Int, steps: Int, count: int, season: int) -> Float:
    """`Calibration.sizes` of so many series: how large their errors `[W, F]` in units `[W]` are at every place of the
    season, and the nearer to 1 the fewer seasons said so.

    The sun does not shine at night: there are hours of hardly any error, and a load errs most where people wake up.
    """
    if season < 2 or not len(errors) or (1 + count) * season > PROFILE_NUMBERS:
        return np.ones((1 + count, 1))
    relative = np.abs(errors) / unit[:, None]
    seen = np.isfinite(relative)
    usual = np.where(seen, relative, 0.0).sum(0) / np.maximum(seen.sum(0), 1)
    relative = (relative / np.where(usual > 0, usual, 1.0))[seen]
    ahead = (steps[:, None] + np.arange(errors.shape[1]))[seen]
    owner = np.broadcast_to(series[:, None], seen.shape)[seen]
    rows = np.unique((ahead - ahead.min()) * count + owner) % count
    seasons = np.bincount(rows, minlength=count)[:, None] / season
    mean = means_of(relative, owner * season + ahead % season, count * season).reshape(count, season)
    whole = means_of(relative, owner, count)[:, None]
    told = (mean > 0) & (whole > 0)
    ratio = np.where(told, np.maximum(mean / np.where(told, whole, 1.0), 1e-2), 1.0)
    return np.concatenate([np.ones((1, season)), ratio ** (seasons / (seasons + DAYS))])


def sizes_at(sizes: Float, rows: Int, steps: Int, horizon: int) -> Float:
    """The sizes `[W, F]` of these rows at the places of the season from these steps on; 1 where a step is `LOST`.

    >>> sizes_at(np.array([[1.0, 1.0], [0.5, 2.0]]), np.array([1, 1]), np.array([3, LOST]), 3).tolist()
    [[2.0, 0.5, 2.0], [1.0, 1.0, 1.0]]
    """
    ahead = steps[:, None] + np.arange(horizon)
    return np.where(steps[:, None] < LOST // 2, 1.0, sizes[rows[:, None], ahead % sizes.shape[1]])


def leaning(errors: Float, skewed: Float, unit: Float, scale: Float) -> float:
    """How far the median of errors `[W, F]` in units `[W, F]` lies from the mean of `skewed` ones, those of the mean
    forecast, where that surely lessens absolute errors, in units of the scale `[W]` of each series; else 0.

    Not its distance from 0: which way forecasts erred over a short while is chance, and moves both.
    """
    seen = np.isfinite(errors) & (unit > 0)
    weight = np.where(seen, unit / scale[:, None], 0.0)
    if not weight.any():
        return 0.0
    ratio, weights = (errors / np.where(unit > 0, unit, 1.0))[seen], weight[seen]
    order = np.argsort(ratio, kind="stable")
    behind = np.cumsum(weights[order])
    middle = ratio[order][np.searchsorted(behind, behind[-1] / 2)]
    mean = np.where(seen, skewed / scale[:, None], 0.0).sum() / behind[-1]
    lean = LEAN * float(middle - mean)
    losses = [stretches(errors, part * unit, scale, 1) for part in (lean, 0.0)]
    return lean if surely_less(losses[0], losses[1]) else 0.0


def not_worse(truth: Float, point: Float, bounds: Float, scale: Float) -> bool:
    """Whether point forecasts `[W, F]` that end at bounds `[W, 2]` err no more than those that do not."""
    low, high = bounds.T[..., None]
    cut = np.nansum(np.abs(truth - np.clip(point, low, high)) / scale[: len(truth), None])
    return bool(cut <= np.nansum(np.abs(truth - point) / scale[: len(truth), None]))


def covering_table(errors: Float, unit: Float, levels: tuple[float, ...]) -> Float:
    """`error_table`, as wide as it takes to cover these errors."""
    table = error_table(errors, unit, levels)
    return table * covering(errors, unit[:, None, None] * table[:, [0, -1]], levels)


def means_of(values: Float, series: Int, count: int) -> Float:
    """The mean of the values `[W]` of every series `[N]`, 0 where there are none.

    >>> means_of(np.array([1.0, 2.0, 4.0]), np.array([0, 2, 2]), 3).tolist()
    [1.0, 0.0, 3.0]
    """
    sums = np.bincount(series, values, minlength=count)
    result: Float = sums / np.maximum(np.bincount(series, minlength=count), 1)
    return result


def own_sizes(errors: Float, series: Int, count: int, horizons: float) -> Float:
    """How large the errors `[W, F]` of every series are, relative to those of all, `[N]`; the fewer `horizons` were
    validated, the nearer to 1. One says nothing: whether a series is restless, or only was so then."""
    sizes, seen = np.abs(errors), np.isfinite(errors)
    steps = np.where(seen, sizes, 0.0).sum(0) / np.maximum(seen.sum(0), 1)
    relative = np.where(seen, sizes / np.where(steps > 0, steps, 1.0), 0.0).sum(1) / np.maximum(seen.sum(1), 1)
    windows = np.bincount(series, minlength=count)
    whole = relative.mean() if len(relative) else 0.0
    if not whole > 0:
        return np.ones(count)
    own = np.where(windows > 0, np.maximum(means_of(relative, series, count) / whole, 1e-3), 1.0)
    weight = np.maximum(np.minimum(windows, horizons) - 1, 0)
    result: Float = own ** (weight / (weight + OWN))
    return result


def covering(errors: Float, offsets: Float, levels: tuple[float, ...]) -> float:
    """The factor on offsets `[W, F, Q]`, of which the first and the last are read, with which the outermost interval
    holds as many errors `[W, F]` as it says.

    1 where the levels lie on one side of the median. Where windows are few it is nearer to 1, and larger by what
    Student intervals exceed normal ones by: few errors say little about how large others are.

    >>> covering(np.array([[-2.0, 2.0]] * 1000), np.tile([-1.0, 1.0], (1000, 2, 1)), (0.1, 0.9)).__round__(1)
    2.0
    """
    if not levels[0] < 0.5 < levels[-1]:
        return 1.0
    side = np.where(errors > 0, offsets[..., -1], -offsets[..., 0])
    telling = np.isfinite(errors) & (side > 0)
    windows = float(telling.any(1).sum())
    if not windows:
        return 1.0
    ratio = float(np.quantile(np.abs(errors[telling]) / side[telling], levels[-1] - levels[0]))
    return float((max(ratio, 1e-3) * (1 + FEW / windows)) ** (windows / (windows + FEW)))


def tails_of(errors: Float, table: Float, levels: tuple[float, ...]) -> tuple[float, float]:
    """How many times as far as the line through the two outermost quantiles `[F, Q]` errors `[W, F]` reach beyond them,
    below and above: where a quarter of those beyond go on. Few windows say little.

    >>> errors, levels = np.random.default_rng(0).standard_t(3, size=(20_000, 1)), (0.1, 0.5, 0.9)
    >>> table = np.quantile(errors, levels, axis=0).T
    >>> [round(tail, 1) for tail in tails_of(errors, table, levels)]
    [1.9, 1.8]
    """
    if len(levels) < 2:
        return 1.0, 1.0
    score, believed, found = NormalDist().inv_cdf, len(errors) / (len(errors) + TAILED), []
    for sign, outer, inner in ((-1.0, 0, 1), (1.0, -1, -2)):
        share = min(levels[0], 1 - levels[0]) if outer == 0 else min(levels[-1], 1 - levels[-1])
        slope = (table[:, outer] - table[:, inner]) / (score(levels[outer]) - score(levels[inner]))
        steps = slope > 0
        beyond = sign * (errors[:, steps] - table[steps, outer]) / slope[steps]
        beyond = beyond[np.isfinite(beyond)]
        line = abs(score(BEYOND * share) - score(share))
        tail = float(np.quantile(beyond, 1 - BEYOND * share)) / line if beyond.size else 1.0
        found.append(1.0 + believed * (min(max(tail, 1.0), FARTHEST) - 1.0))
    return found[0], found[1]


def stretches(truth: Float, point: Float, scale: Float, power: int) -> Float:
    """The mean error of a forecast, absolute (1) or squared (2), in every stretch of windows, `[G]`."""
    sizes = (np.abs(truth - point) / scale[:, None]) ** power
    sums, counts = np.nansum(sizes, axis=1), np.isfinite(sizes).sum(axis=1)
    parts = zip(np.array_split(sums, GROUPS), np.array_split(counts, GROUPS), strict=True)
    return np.array([total.sum() / count.sum() for total, count in parts if count.sum()])


def mixed_share(
    truth: Float,
    main: Float,
    fading: Float,
    ripe: Float,
    scale: Float,
    horizons: float,
    powers: tuple[int, ...] = (1, 2),
) -> float:
    """The share of the fading memories with the least error, absolute (1), squared (2) or the mean of both, relative to
    none; `UNDECIDED` or `SHORT` where nothing says otherwise, and the nearer to it the less was validated."""
    step = ripe[:, None] * (fading - main)
    known = ~(np.isnan(truth) | np.isnan(step))
    undecided = SHORT if horizons < FEWEST else UNDECIDED
    if not known.any() or not horizons:
        return undecided
    size = np.broadcast_to(scale[:, None], known.shape)[known]
    error, step = (truth - main)[known] / size, step[known] / size
    losses = [np.array([(np.abs(error - s * step) ** p).mean() for p in powers]) for s in SHARES]
    first = np.maximum(losses[0], 1e-300)
    doubt = DOUBT / max(horizons, 1.0)
    costs = [
        float((loss / first).mean()) + doubt * (s - undecided) ** 2 for s, loss in zip(SHARES, losses, strict=True)
    ]
    return SHARES[int(np.argmin(costs))]


def own_shares(
    common: float,
    truth: Float,
    main: Float,
    fading: Float,
    ripe: Float,
    series: Int,
    count: int,
    horizons: float,
    powers: tuple[int, ...],
) -> Float:
    """`mixed_share` of every series by itself `[N]`, the nearer to the common one the less was validated; the common
    one where there are fewer than `JUDGES` windows."""
    step = ripe[:, None] * (fading - main)
    known = ~(np.isnan(truth) | np.isnan(step))
    error, step = np.where(known, truth - main, 0.0), np.where(known, step, 0.0)

    def losses(share: float) -> list[Float]:
        left = np.abs(error - share * step)
        return [np.bincount(series, (left**power).sum(1), minlength=count).astype(np.float64) for power in powers]

    first = [np.maximum(loss, 1e-300) for loss in losses(common)]
    doubt = OWN_DOUBT / max(horizons, 1.0)
    costs = [
        np.mean([loss / whole for loss, whole in zip(losses(s), first, strict=True)], axis=0)
        + doubt * (s - common) ** 2
        for s in SHARES
    ]
    told = np.bincount(series[known.any(1)], minlength=count) >= JUDGES
    return np.where(told, np.array(SHARES)[np.argmin(costs, axis=0)], common)


def error_table(errors: Float, unit: Float, levels: tuple[float, ...]) -> Float:
    """Quantiles `[F, Q]` of errors `[W, F]` in units `[W]`, as split conformal prediction takes them, around their
    median: which way a forecast erred over a short while, in many series at once, is chance.

    Where windows are few, a step has the quantiles of all steps, as wide as its own errors, and all are wider by what
    the quantiles of Student's distribution exceed the normal ones by. Without any window they are normal ones.
    """
    steps, normal = errors.shape[1], np.array([NormalDist().inv_cdf(level) for level in levels])
    scaled = errors / np.where(unit > 0, unit, 1.0)[:, None]
    seen = np.isfinite(scaled) & (unit > 0)[:, None]
    windows = int(seen.any(1).sum())
    if not windows:
        return np.tile(normal, (steps, 1))

    def quantiles(values: Float) -> Float:
        found: Float = np.quantile(values, (*levels, 0.5), method="weibull")
        return found[:-1] - found[-1]

    counts = seen.sum(0)
    size = np.where(seen, np.abs(scaled), 0.0).sum(0) / np.maximum(counts, 1)
    if not counts.all():  # steps that no window reaches are as wide as the nearest that one does
        reached = np.flatnonzero(counts)
        size = size[reached[np.abs(np.arange(steps)[:, None] - reached).argmin(1)]]
    every = (scaled / np.where(size > 0, size, 1.0))[seen]
    weight = len(every) / (len(every) + ENOUGH)
    pooled = size[:, None] * (weight * quantiles(every) + (1 - weight) * NORMAL_SIZE * normal)
    own = np.stack([quantiles(scaled[seen[:, f], f]) if counts[f] else pooled[f] for f in range(steps)])
    share = (counts / (counts + ENOUGH))[:, None]
    table: Float = (1 + FEW / windows) * (share * own + (1 - share) * pooled)
    return table


def pinball(errors: Float, offsets: Iterable[Float], levels: tuple[float, ...]) -> float:
    """The mean quantile loss of offsets `[W, F]`, one for each level, around a forecast that erred by `[W, F]`.

    >>> pinball(np.array([[2.0]]), [np.array([[0.0]])], (0.5,))
    1.0
    """
    gaps = ((level, errors - offset) for level, offset in zip(levels, offsets, strict=True))
    return sum(float(np.nanmean(np.maximum(level * gap, (level - 1) * gap))) for level, gap in gaps) / len(levels)
