"""What the validation rows make of several forecasts: one point forecast, and intervals that cover what they say.

Axes: W windows, F future step, Q quantile level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from .linear import series_scales
from .panel import Float, Int, Panel

Intervals: TypeAlias = Literal["auto", "conformal", "head"]

SHARES = tuple(k / 10 for k in range(11))  # of the fading memories in the point forecast
UNDECIDED = 0.5  # their share before anything was validated
# how much a share costs that is far from that one, where one horizon was validated: the other forecast was chosen on
# the same rows and looks better there than it is
DOUBT = 0.2
WIDTHS = tuple(2 ** (k / 4) for k in range(-8, 17))  # factors on the head's quantiles
ENOUGH = 50.0  # windows that say as much about the errors of one step as those of all steps together do


class Judged(NamedTuple):
    """Forecasts of windows whose future is known, in the order of time.

    truth `[W, F]`, NaN where unknown; main: the linear path with its correction; fading: of the fading memories; head:
    the head's quantiles around `main` `[W, F, Q]`, None where there is no trained head; unit `[W]`: what errors are
    expected to grow with in each window, see `error_unit`; scale `[W]`: what the errors of each series are counted in.
    horizons: how many of them a series has behind its training rows; 0 where the windows are training rows themselves.
    """

    truth: Float
    main: Float
    fading: Float
    head: Float | None
    unit: Float
    scale: Float
    horizons: float


@dataclass(frozen=True, eq=False)
class Calibration:
    """How the parts of a forecast are put together.

    median: share of the head's median, where it lies off its mean, in the median. fading: share of the fading memories
    in mean and median. head: share of the head's quantiles around its median, the rest are those of `table`. width:
    factor on the former. table `[F, Q]`: quantiles of the errors of each step around their median, in units of
    `error_unit`.
    """

    median: float
    fading: float
    head: float
    width: float
    table: Float

    def forecast(
        self, main: Float, fading: Float, head: Float | None, unit: Float, levels: tuple[float, ...]
    ) -> tuple[Float, Float, Float]:
        """Mean and median `[N, F]` and quantiles `[N, F, Q]`; where main or fading says nothing, of the other alone."""
        middle = median_of(main, head, levels, self.median)
        mean, median = mixed(main, fading, self.fading), mixed(middle, fading, self.fading)
        offsets = unit[:, None, None] * self.table
        if head is not None and self.head:
            offsets = self.head * self.width * around_median(head, levels) + (1 - self.head) * offsets
        return mean, median, median[..., None] + offsets


def mixed(main: Float, fading: Float, share: float) -> Float:
    """`main` and this share of `fading`; the one of them that is known where the other is not."""
    both = main + share * (fading - main)
    return np.where(np.isnan(both), np.where(np.isnan(main), fading, main), both)


def median_of(main: Float, head: Float | None, levels: tuple[float, ...], share: float = 1.0) -> Float:
    """`main` `[N, F]`, moved by this share of the median of the head's quantiles `[N, F, Q]` around it."""
    return main if head is None or not share else main + share * at_median(head, levels)


def at_median(quantiles: Float, levels: tuple[float, ...]) -> Float:
    """The median of quantiles `[..., Q]`, between the two levels next to it.

    >>> float(at_median(np.array([0.0, 4.0]), (0.4, 0.6)))
    2.0
    """
    low, high, share = next_to_median(levels)
    return quantiles[..., int(low)] * (1 - share) + quantiles[..., int(high)] * share


def next_to_median(levels: tuple[float, ...]) -> tuple[float, float, float]:
    """The places of the levels on both sides of the median, and the share of the second; the outermost level where all
    lie on one side.

    >>> next_to_median((0.1, 0.5, 0.9))
    (0.0, 1.0, 1.0)
    """
    if len(levels) == 1:
        return 0.0, 0.0, 0.0
    right = int(np.clip(np.searchsorted(levels, 0.5), 1, len(levels) - 1))
    share = (0.5 - levels[right - 1]) / (levels[right] - levels[right - 1])
    return right - 1.0, float(right), float(np.clip(share, 0.0, 1.0))


def around_median(quantiles: Float, levels: tuple[float, ...]) -> Float:
    """Quantiles `[..., Q]` without their median."""
    return quantiles - at_median(quantiles, levels)[..., None]


def season_scales(panel: Panel, ends: Int, season: int) -> Float:
    """The mean absolute difference of values a season apart before `ends`, of every series (its deviation where none
    moves): the unit of MASE."""
    scales = series_scales(panel, ends)
    for row, end in enumerate(ends.tolist()):
        values = panel.series(row)[:end]
        moves = np.abs(values[season:] - values[:-season])
        moves = moves[np.isfinite(moves)]
        if moves.any():
            scales[row] = moves.mean()
    return scales


def error_unit(deviation: Float, surprise: Float) -> Float:
    """What the errors of a forecast are expected to grow with `[N]`: the geometric mean of the deviation of the window
    and of the mean surprise of the fading memories, which follows the noise alone.

    >>> error_unit(np.array([4.0, 0.0]), np.array([1.0, 3.0])).tolist()
    [2.0, 3.0]
    """
    unit: Float = np.sqrt(np.maximum(deviation, surprise) * surprise)
    return unit


def calibrate(
    judged: Judged,
    levels: tuple[float, ...],
    intervals: Intervals = "auto",
    point: Literal["mean", "median"] = "mean",
    *,
    mix: bool = True,
) -> Calibration:
    """The mixture with the least error, and the quantiles with the least pinball loss, on these windows.

    The table is judged crosswise, each half of the windows by that of the other half. intervals: "conformal" takes the
    table alone (split conformal prediction, each step for itself), "head" the head's quantiles alone. point: which
    errors choose the share of the fading memories, squared and absolute ones together or the absolute ones. mix:
    whether they may take part.
    """
    moving = judged.unit > 0  # a series that stands still is forecast without an error, and has no unit
    if moving.any():
        truth, main, fading, head, unit, scale, horizons = judged
        head = None if head is None else head[moving]
        judged = Judged(truth[moving], main[moving], fading[moving], head, unit[moving], scale[moving], horizons)
    middle = median_of(judged.main, judged.head, levels)
    median = 1.0 if error_of(judged, middle) < error_of(judged, judged.main) else 0.0
    judged = judged._replace(main=middle if median else judged.main)
    share = mixed_share(judged, (1,) if point == "median" else (1, 2)) if mix else 0.0
    errors = judged.truth - mixed(judged.main, judged.fading, share)
    table = error_table(errors, judged.unit, levels)
    if judged.head is None or intervals == "conformal":
        return Calibration(median, share, 0.0, 1.0, table)
    size = judged.scale[:, None]
    scaled, head = errors / size, around_median(judged.head, levels) / size[..., None]
    width = min(WIDTHS, key=lambda factor: pinball(scaled, factor * head, levels))
    if intervals == "head":
        return Calibration(median, share, 1.0, width, table)
    own = width * head
    half = len(errors) // 2
    tables = [error_table(errors[other], judged.unit[other], levels) for other in (slice(half, None), slice(half))]
    cross = (
        np.repeat(np.stack(tables), [half, len(errors) - half], axis=0) * (judged.unit / judged.scale)[:, None, None]
    )
    best = min((0.0, 0.5, 1.0), key=lambda part: pinball(scaled, part * own + (1 - part) * cross, levels))
    return Calibration(median, share, best, width, table)


def error_of(judged: Judged, point: Float) -> float:
    """Squared and absolute error of a forecast, relative to those of `main`."""
    own, before = (np.abs(judged.truth - each) / judged.scale[:, None] for each in (point, judged.main))
    ratios = (np.nansum(own**p) / max(np.nansum(before**p), 1e-300) for p in (1, 2))
    return float(sum(ratios))


def mixed_share(judged: Judged, powers: tuple[int, ...] = (1, 2)) -> float:
    """The share of the fading memories with the least error, absolute (1), squared (2) or the mean of both, relative to
    none; half where nothing says otherwise, and the nearer to it the less was validated."""
    known = ~(np.isnan(judged.truth) | np.isnan(judged.main) | np.isnan(judged.fading))
    if not known.any() or not judged.horizons:
        return UNDECIDED
    unit = np.broadcast_to(judged.scale[:, None], known.shape)[known]
    error = (judged.truth[known] - judged.main[known]) / unit
    step = (judged.fading[known] - judged.main[known]) / unit
    losses = [np.array([(np.abs(error - s * step) ** p).mean() for p in powers]) for s in SHARES]
    first = np.maximum(losses[0], 1e-300)
    doubt = DOUBT / max(judged.horizons, 1.0)
    costs = [
        float((loss / first).mean()) + doubt * (s - UNDECIDED) ** 2 for s, loss in zip(SHARES, losses, strict=True)
    ]
    return SHARES[int(np.argmin(costs))]


def error_table(errors: Float, unit: Float, levels: tuple[float, ...]) -> Float:
    """Quantiles `[F, Q]` of errors `[W, F]` in units `[W]`, as conformal prediction takes them: a little outside of
    those of the sample, and the more so the fewer windows there are. They are taken around their median: which way a
    forecast erred over a short while, in many series at once, is chance.

    Where windows are few, a step has the quantiles of all steps, as wide as its own errors.
    """
    moving = unit > 0
    scaled = errors[moving] / unit[moving, None]
    steps = errors.shape[1]
    seen = np.isfinite(scaled)
    if not seen.any():
        return np.zeros((steps, len(levels)))
    counts = seen.sum(0)
    size = np.where(seen, np.abs(scaled), 0.0).sum(0) / np.maximum(counts, 1)
    if not counts.all():  # steps that no window reaches are as wide as the nearest that one does
        reached = np.flatnonzero(counts)
        size = size[reached[np.abs(np.arange(steps)[:, None] - reached).argmin(1)]]
    safe = np.where(size > 0, size, 1.0)
    shape = np.quantile((scaled / safe)[seen], levels, method="weibull")
    pooled = size[:, None] * shape
    own = np.stack(
        [np.quantile(scaled[seen[:, f], f], levels, method="weibull") if counts[f] else pooled[f] for f in range(steps)]
    )
    weight = (counts / (counts + ENOUGH))[:, None]
    return around_median(weight * own + (1 - weight) * pooled, levels)


def pinball(errors: Float, offsets: Float, levels: tuple[float, ...]) -> float:
    """The mean quantile loss of offsets `[W, F, Q]` around a forecast that erred by `[W, F]`.

    >>> pinball(np.array([[2.0]]), np.array([[[0.0]]]), (0.5,))
    1.0
    """
    at = np.asarray(levels)
    gap = errors[..., None] - offsets
    return float(np.nanmean(np.maximum(at * gap, (at - 1) * gap)))
