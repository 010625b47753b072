"""Windows: where the contexts and targets that everything in closed form is fitted to and judged by come from.

They are numbered, drawn and spread by index alone, and cut a block at a time, so that they are never held all at once.
What is measured of a series or of one context before anything is fitted stands behind them: means, paces, deviations.

Axes: N series, W windows, B windows of one block, L context, H horizon.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .panel import Float, Int, Panel, offsets_of

BLOCK_BYTES = 2**22  # of windows that are held at once, and of each of the few arrays made of them


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

    >>> from dataclasses import replace
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


def only(windows: Windows, row: int | np.int64) -> Windows:
    """Those windows that are of this series."""
    begin, stop = offsets_of(windows.counts)[row : row + 2]
    if windows.chosen is None:
        return windows._replace(chosen=np.arange(begin, stop))
    return windows._replace(chosen=windows.chosen[slice(*np.searchsorted(windows.chosen, [begin, stop]))])


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
