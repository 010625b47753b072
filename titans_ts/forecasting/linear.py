"""The closed-form linear path: one map from a context to the horizon, shared by all series.

It is a ridge regression on windows that are drawn by index and never held all at once.

Axes: N series, W windows, B windows of one block, L context, H horizon. The mean of a context is taken out before the
map and put back after it, so the path is equivariant: forecasting `c * y + d` gives `c * forecast + d`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from .panel import DataError, Float, Int, Panel, offsets_of, shorten

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
# without rows to validate on: what the validation rows of many panels choose, within a factor of ten
DEFAULT_PENALTY = 1e-3
# of penalties whose validation error differs by less than this share, the largest is taken: the calmest map
INDIFFERENCE = 1e-3
BLOCK_BYTES = 2**24


# What errors of the fit are measured in. A window's own deviation weighs a restless window down: its errors are larger
# for every map, and least squares would otherwise listen to little else.
Unit: TypeAlias = Literal["series", "window"]


@dataclass(frozen=True)
class LinearPath:
    """`forecast = mean + (context - mean) @ weights`, weights `[L, H]`.

    `penalty` is relative to the mean eigenvalue of the Gram matrix. `losses` holds the mean squared error of every
    penalty tried on the validation rows, each series in units of its own scale; it is empty when there were none.
    """

    weights: Float
    penalty: float
    losses: dict[float, float]

    @property
    def context_length(self) -> int:
        """Rows the path looks at."""
        return int(self.weights.shape[0])

    @property
    def horizon(self) -> int:
        """Rows the path forecasts."""
        return int(self.weights.shape[1])


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


class Gram(NamedTuple):
    """Sums over windows: `X'X` `[L, L]`, `X'Y` `[L, H]`, the sum of `Y²`, and their number."""

    xx: Float
    xy: Float
    yy: float
    windows: int


def fit_linear(
    panel: Panel,
    context: int,
    horizon: int,
    *,
    penalties: Sequence[float] = PENALTIES,
    train_ends: Int | None = None,
    max_windows: int | None = None,
    unit: Unit = "series",
    seed: int | np.random.RandomState | None = None,
) -> LinearPath:
    """The ridge map of all windows whose targets end by `train_ends[i]` (an exclusive row of series i; None:
    everywhere).

    The penalty with the least squared error on the windows whose targets begin at `train_ends[i]` or later is taken (of
    several that differ by less than a thousandth, the largest); their context may reach back. Each series counts in
    units of its own standard deviation before `train_ends`, so that scale does not decide. `max_windows` draws that
    many training windows (and as many validation windows).

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

    def gram(begin: Int, stop: Int, unit: Unit) -> Gram:
        windows = windows_between(panel, context, horizon, begin, stop)
        return accumulate(draw(windows, max_windows, random), scales, unit)

    zero = np.zeros_like(lengths)
    train = gram(zero, ends, unit)
    if not train.windows:
        raise DataError(
            f"series {panel.ids[0]!r} has {int(ends[0])} training rows, and no series ({shorten(panel.ids)}) has "
            f"one row with {horizon} observed targets after it. Fix: a shorter horizon, or longer series."
        )
    weights = solve(train, penalties)
    held = gram(ends, lengths, "series")
    losses = {}
    if held.windows:
        squares = [held.yy - 2 * np.vdot(w, held.xy) + np.vdot(w, held.xx @ w) for w in weights]
        losses = {p: float(s) / (held.windows * horizon) for p, s in zip(penalties, squares, strict=True)}
        least = min(squares) + INDIFFERENCE * abs(min(squares))  # a perfect fit may round below 0
        good = [i for i in range(len(penalties)) if squares[i] <= least]
        best = max(good, key=lambda i: penalties[i])
    else:
        best = min(range(len(penalties)), key=lambda i: abs(np.log(penalties[i] / DEFAULT_PENALTY)))
    return LinearPath(weights[best], penalties[best], losses)


def apply_linear(path: LinearPath, contexts: Float) -> Float:
    """Forecasts `[B, H]` of contexts `[B, L]`; NaN takes the last value before it, and nothing but NaN stays NaN."""
    centred, mean = centre(contexts)
    forecast: Float = mean[:, None] + centred @ path.weights
    return forecast


def series_scales(panel: Panel, ends: Int) -> Float:
    """The standard deviation of every series' rows before `ends` (1 for a constant one), `[N]`."""
    rows = np.repeat(np.arange(len(panel)), panel.lengths)
    inside = np.isfinite(panel.values) & (np.arange(len(panel.values)) - panel.offsets[rows] < ends[rows])
    rows, values = rows[inside], panel.values[inside]
    count = np.maximum(np.bincount(rows, minlength=len(panel)), 1)
    mean = np.bincount(rows, values, minlength=len(panel)) / count
    variance = np.bincount(rows, (values - mean[rows]) ** 2, minlength=len(panel)) / count
    scale: Float = np.sqrt(variance)
    # a constant leaves rounding noise, which is no scale
    return np.where(scale > 1e-12 * np.abs(mean), scale, 1.0)


def context_scale(contexts: Float, series_scale: Float) -> Float:
    """The standard deviation of what was observed of each context `[B]`, and at least a tenth of its series'."""
    seen = np.isfinite(contexts)
    count = np.maximum(seen.sum(axis=1), 1)
    mean = np.where(seen, contexts, 0.0).sum(axis=1) / count
    deviation = np.where(seen, contexts - mean[:, None], 0.0)
    scale: Float = np.maximum(np.sqrt((deviation**2).sum(axis=1) / count), 0.1 * series_scale)
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


def blocks(windows: Windows) -> Iterator[tuple[Int, Float, Float]]:
    """Series `[B]`, contexts `[B, L]` (NaN before a series began) and whole targets `[B, H]`, block after block."""
    panel, context, horizon, first, counts, chosen = windows
    size = max(BLOCK_BYTES // (8 * (context + horizon)), 1)
    offsets = offsets_of(counts)
    step = np.arange(-context, horizon)
    for begin in range(0, windows.total, size):
        index = np.arange(begin, min(begin + size, windows.total))
        if chosen is not None:
            index = chosen[index]
        series = np.searchsorted(offsets, index, side="right") - 1
        target = first[series] + index - offsets[series]
        rows = (panel.offsets[series] + target)[:, None] + step
        short = target < context
        if short.any():
            before = rows < panel.offsets[series][:, None]
            block = np.where(before, np.nan, panel.values[np.maximum(rows, 0)])
        else:
            block = panel.values[rows]
        contexts, targets = block[:, :context], block[:, context:]
        whole = ~np.isnan(targets).any(axis=1) & ~np.isnan(contexts).all(axis=1)
        if whole.all():
            yield series, contexts, targets
        elif whole.any():
            yield series[whole], contexts[whole], targets[whole]


def centre(contexts: Float) -> tuple[Float, Float]:
    """Contexts without their means `[B, L]`, and the means `[B]`; holes take the last value (at first the mean)."""
    observed = ~np.isnan(contexts)
    if observed.all():
        mean = contexts.mean(axis=1)
        return contexts - mean[:, None], mean
    count = observed.sum(axis=1)
    total = np.where(observed, contexts, 0.0).sum(axis=1)
    mean = np.divide(total, count, out=np.full(len(contexts), np.nan), where=count > 0)
    last = np.maximum.accumulate(np.where(observed, np.arange(contexts.shape[1]), -1), axis=1)
    filled = np.take_along_axis(contexts, np.maximum(last, 0), axis=1)
    return np.where(last < 0, 0.0, filled - mean[:, None]), mean


def accumulate(windows: Windows, scales: Float, unit: Unit = "series") -> Gram:
    """The Gram of the windows, in units of each series' scale `[N]` or of each window's own, one block in memory at a
    time."""
    length, horizon = windows.context, windows.horizon
    xx, xy, yy, count = np.zeros((length, length)), np.zeros((length, horizon)), 0.0, 0
    for series, contexts, targets in blocks(windows):
        x, mean = centre(contexts)
        size = scales[series] if unit == "series" else context_scale(contexts, scales[series])
        x = x / size[:, None]
        y = (targets - mean[:, None]) / size[:, None]
        xx += x.T @ x
        xy += x.T @ y
        yy += float(np.vdot(y, y))
        count += len(x)
    return Gram(xx, xy, yy, count)


def solve(gram: Gram, penalties: Sequence[float]) -> list[Float]:
    """Ridge weights `[L, H]` for every penalty, from one eigendecomposition: `V (E + penalty * mean(E))^-1 V'X'Y`."""
    values, vectors = np.linalg.eigh(gram.xx)
    values = np.maximum(values, 0.0)
    level = values.mean()
    if level == 0.0:  # constants only: the mean is the forecast
        return [np.zeros_like(gram.xy) for _ in penalties]
    rotated = vectors.T @ gram.xy
    return [vectors @ (rotated / (values + penalty * level)[:, None]) for penalty in penalties]
