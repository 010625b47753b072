"""Values that come in steps, such as counts: so do their quantiles.

A shop that sells none or one of a part on a day will not sell 0.4 of it, and the median of what it sells is 0 as long
as most days are without a sale. Errors of many windows together know nothing of that: their quantiles lie anywhere. So
where all values of a series lie whole steps apart, and a step is wide beside their deviation, quantiles (and medians)
move to such a place: the nearest one, or down from further up where the validation rows are sure of that; nowhere if
that errs more there. A mean may lie anywhere and stays. Steps are the series' own, so that other units give the same
forecast in these units, and a series of which a value comes that lies off its places has none any more.

Axes: N series, W windows, F future step, Q quantile level.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .calibration import ENOUGH, means_in_stretches, means_of
from .doubt import surely_less
from .forecast import Grid
from .panel import Float, Int, Panel

WIDE = 0.25  # deviations of a series that its step is wide, at least: finer ones change next to nothing
CLOSE = 1e-6  # of a step, by which values may miss their place: what other units round
DIGITS = 1e-9  # and of its distance from the first place
LIFTS = (0.5, 0.25, 0.0)  # to the nearest place unless validation is sure of going down from further up


@dataclass(frozen=True, eq=False)
class Grain:
    """`step` and `base` `[1 + N]`: row 0 of strangers and then of every series of `fit`; values of a series are its
    base and whole steps, any where the step is 0. lift: added, in steps, before what is beyond a whole step is cut off.
    """

    step: Float
    base: Float
    lift: float

    @cached_property
    def speaks(self) -> bool:
        """Whether any series has steps at all."""
        return bool(self.step.any())

    def misses(self, values: Float, rows: Int) -> NDArray[np.bool_]:
        """Which of the values `[R]` of these rows `[R]` lie off the places of their series.

        >>> grain = Grain(np.array([0.0, 2.0]), np.array([0.0, 1.0]), 0.5)
        >>> grain.misses(np.array([0.5, 3.0, 4.0]), np.array([0, 1, 1])).tolist()
        [False, False, True]
        """
        step = self.step[rows]
        places = (values - self.base[rows]) / np.where(step > 0, step, 1.0)
        off = np.abs(places - np.round(places)) > CLOSE + DIGITS * np.abs(places)
        return np.asarray((step > 0) & off)

    def at(self, rows: Int, loose: NDArray[np.bool_]) -> Grid | None:
        """The places where values of these rows `[N]` can lie; None if that is everywhere. loose `[N]`: whether a value
        came that lay off them, so that values may lie anywhere."""
        if not self.speaks:
            return None
        step = np.where(loose, 0.0, self.step[rows])
        return Grid(step, self.base[rows], np.full(len(rows), self.lift)) if step.any() else None


def smooth(count: int) -> Grain:
    """So many series whose values lie anywhere."""
    return Grain(np.zeros(1 + count), np.zeros(1 + count), 0.0)


def fit_grain(
    panel: Panel, series: Int, truth: Float, quantiles: Float, levels: tuple[float, ...], scale: Float
) -> Grain:
    """The steps of every series, and the lift by which these forecasts `[W, F, Q]` of windows of `series` `[W]`, whose
    truth `[W, F]` is known, lose least, in units of `scale` `[W]`.

    >>> from titans_ts.forecasting.door import read
    >>> panel = read(np.array([[0.0, 0.0, 3.0, 6.0], [0.0, 0.7, 0.1, 3.3]]).T)[0]
    >>> truth, said = np.array([[0.0], [3.0]]), np.array([[[0.1, 1.0, 2.9]], [[0.2, 2.4, 3.4]]])
    >>> grain = fit_grain(panel, np.array([0, 0]), truth, said, (0.1, 0.5, 0.9), np.ones(2))
    >>> grain.step.tolist(), grain.lift
    ([0.0, 3.0, 0.0], 0.5)
    """
    plain = smooth(len(panel))
    steps = [step_of(panel.series(row)) for row in range(len(panel))]
    step, base = (np.array([0.0, *part]) for part in zip(*steps, strict=True))
    ways = [Grain(step, base, lift) for lift in LIFTS]
    judged = (step[1 + series] > 0) & np.isfinite(truth).any(axis=1)
    if not judged.any():
        return plain
    own, truth, quantiles, scale = 1 + series[judged], truth[judged], quantiles[judged], scale[judged]
    places, firm = (plain, *ways), np.zeros(len(own), dtype=np.bool_)
    losses = {way: lost(way.at(own, firm), truth, quantiles, levels, scale) for way in places}
    middle, *others = ways
    best = min(others, key=lambda way: float(losses[way].mean()))
    sure = surely_less(by_series(losses[best], own), by_series(losses[middle], own))
    best = best if sure and len(own) >= ENOUGH else middle
    return best if losses[best].mean() <= losses[plain].mean() else plain


def by_series(values: Float, series: Int) -> Float:
    """The mean of values `[W]` in each series, or in stretches of time where these are more.

    >>> by_series(np.array([1.0, 2.0, 4.0]), np.array([3, 7, 7])).tolist()
    [1.0, 2.0, 4.0]
    >>> by_series(np.arange(18.0), np.repeat(np.arange(9), 2)).tolist()
    [0.5, 2.5, 4.5, 6.5, 8.5, 10.5, 12.5, 14.5, 16.5]
    """
    stretched, (whole, of) = means_in_stretches(values), np.unique(series, return_inverse=True)
    return stretched if len(whole) < len(stretched) else means_of(values, of, len(whole))


def step_of(values: Float) -> tuple[float, float]:
    """The step of values `[T]` and one of them; step 0 where they do not lie whole steps apart, or close together.

    >>> step_of(np.array([2.0, 2.0, np.nan, 5.0, 8.0])), step_of(np.array([0.0, 1.0, 2.5]))
    ((3.0, 2.0), (0.0, 0.0))
    """
    seen = values[np.isfinite(values)]
    found = np.unique(seen)
    # two values are any two: only what comes back has places
    if len(found) > 2 or (len(found) == 2 and np.count_nonzero(np.diff(seen)) > 1):
        step = float(np.diff(found).min())
        places = (found - found[0]) / step
        if step >= WIDE * seen.std() and np.abs(places - np.round(places)).max() < CLOSE:
            return step, float(found[0])
    return 0.0, 0.0


def lost(grid: Grid | None, truth: Float, quantiles: Float, levels: tuple[float, ...], scale: Float) -> Float:
    """The mean quantile loss of these forecasts on the grid, in every window, `[W]`."""
    said = np.sort(quantiles, axis=-1) if grid is None else grid.moved(np.sort(quantiles, axis=-1))
    gaps = truth[..., None] - said
    losses = np.where(gaps > 0, np.array(levels) * gaps, (np.array(levels) - 1) * gaps)
    mean: Float = np.nanmean(losses, axis=(1, 2)) / scale
    return mean
