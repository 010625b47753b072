"""A panel of series as flat arrays: what every forecaster works on.

Frames exist only at the door (`door.read`) and on the way out (`layout.Layout`).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from .clock import Clock

Float: TypeAlias = NDArray[np.float64]
Int: TypeAlias = NDArray[np.int64]


class DataError(ValueError):
    """The data break a rule: names the first offending series, the timestamps, the count and the fix."""


@dataclass(frozen=True, eq=False)
class Panel:
    """N series in flat arrays: series i is `values[offsets[i]:offsets[i + 1]]`.

    One row is one step of `clock`, NaN where nothing was observed.

    `ends` and `phases` place the last row of each series on the clock, so the next timestamp is known without keeping
    any.
    """

    values: Float
    offsets: Int
    ids: tuple[Hashable, ...]
    ends: Int
    phases: Int
    clock: Clock

    def __post_init__(self) -> None:
        sizes = {len(self.ids), len(self.offsets) - 1, len(self.ends), len(self.phases)}
        if len(sizes) != 1 or self.offsets[0] != 0 or self.offsets[-1] != len(self.values):
            raise ValueError(f"ids, offsets, ends and phases disagree about the number of series or rows: {sizes}")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def freq(self) -> str | int:
        """The frequency as the user would write it."""
        return self.clock.freq

    @property
    def lengths(self) -> Int:
        """Rows of every series."""
        return np.diff(self.offsets)

    @property
    def starts(self) -> Int:
        """Ordinal of the first row of every series."""
        return self.ends - self.lengths + 1

    @cached_property
    def rows(self) -> Mapping[Hashable, int]:
        """Which row a series id has."""
        return {name: row for row, name in enumerate(self.ids)}

    def series(self, row: int) -> Float:
        """The values of one series (a view)."""
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def select(self, rows: ArrayLike) -> Panel:
        """These series, in this order."""
        rows = np.asarray(rows, dtype=np.int64)
        lengths = self.lengths[rows]
        return self._cut(rows, self.offsets[rows], lengths, self.ends[rows])

    def tail(self, count: int | Int) -> Panel:
        """The last `count` rows of every series (all of a shorter one)."""
        lengths = np.minimum(self.lengths, count)
        return self._cut(np.arange(len(self)), self.offsets[1:] - lengths, lengths, self.ends)

    def head(self, count: int | Int) -> Panel:
        """The first `count` rows of every series (all of a shorter one)."""
        lengths = np.minimum(self.lengths, count)
        return self._cut(np.arange(len(self)), self.offsets[:-1], lengths, self.ends - self.lengths + lengths)

    def drop_head(self, count: int | Int) -> Panel:
        """Every series without its first `count` rows; it may become empty."""
        return self.tail(np.maximum(self.lengths - count, 0))

    def drop_tail(self, count: int | Int) -> Panel:
        """Every series without its last `count` rows; it may become empty."""
        return self.head(np.maximum(self.lengths - count, 0))

    def stretches(self, rows: Int, begin: Int, lengths: Int) -> Panel:
        """Stretch i has `lengths[i]` rows of series `rows[i]`, from its row `begin[i]` on; a series may occur often."""
        return self._cut(rows, self.offsets[rows] + begin, lengths, self.starts[rows] + begin + lengths - 1)

    def lead(self, missing: Int) -> Panel:
        """Every series with `missing[i]` unobserved rows before its first."""
        lengths = self.lengths + missing
        offsets = offsets_of(lengths)
        values = np.full(offsets[-1], np.nan)
        values[spans(offsets[:-1] + missing, self.lengths)] = self.values
        return replace(self, values=values, offsets=offsets)

    def extend(self, new: Panel) -> Panel:
        """The panel after `new` came: rows follow those of the same id, unknown ids become new series at the end.

        >>> from titans_ts.forecasting.clock import CountClock
        >>> panel = Panel(np.arange(3.0), np.array([0, 3]), ("a",), np.array([2]), np.array([0]), CountClock())
        >>> panel.head(1).extend(panel.tail(2)).values.tolist()
        [0.0, 1.0, 2.0]
        """
        if new.clock != self.clock:
            raise ValueError(
                f"the rows step by {new.freq!r}, the panel by {self.freq!r}: read them with the panel's clock"
            )
        targets = np.array([self.rows.get(name, -1) for name in new.ids], dtype=np.int64)
        known, unknown = np.flatnonzero(targets >= 0), np.flatnonzero(targets < 0)
        if (new.starts[known] != self.ends[targets[known]] + 1).any():
            raise ValueError(
                "every known series must be continued at its next step: fill the missing steps with NaN first"
            )
        grown = np.concatenate([self.lengths, new.lengths[unknown]])
        grown[targets[known]] += new.lengths[known]
        offsets = offsets_of(grown)
        values = np.empty(offsets[-1])
        values[spans(offsets[: len(self)], self.lengths)] = self.values
        begin = np.empty(len(new), dtype=np.int64)
        begin[known] = offsets[targets[known]] + self.lengths[targets[known]]
        begin[unknown] = offsets[len(self) : -1]
        values[spans(begin, new.lengths)] = new.values
        ends = np.concatenate([self.ends, new.ends[unknown]])
        ends[targets[known]] = new.ends[known]
        phases = np.concatenate([self.phases, new.phases[unknown]])
        ids = self.ids + tuple(new.ids[i] for i in unknown)
        return Panel(values, offsets, ids, ends, phases, self.clock)

    def future_times(self, row: int, horizon: int) -> pd.Index:
        """The next `horizon` timestamps of one series."""
        return future_times(self.clock, self.ends[[row]], self.phases[[row]], horizon)

    def _cut(self, rows: Int, begin: Int, lengths: Int, ends: Int) -> Panel:
        values = self.values[spans(begin, lengths)]
        ids = tuple(self.ids[row] for row in rows)
        return Panel(values, offsets_of(lengths), ids, ends, self.phases[rows], self.clock)


def future_times(clock: Clock, ends: Int, phases: Int, horizon: int) -> pd.Index:
    """The next `horizon` timestamps after each end, series after series, as one flat index."""
    ordinals = ends[:, None] + np.arange(1, horizon + 1)
    return clock.times(ordinals.ravel(), np.repeat(phases, horizon))


def offsets_of(lengths: Int) -> Int:
    """Where each series begins in the flat array, and where the last one ends.

    >>> offsets_of(np.array([2, 0, 3])).tolist()
    [0, 2, 2, 5]
    """
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def spans(begin: Int, lengths: Int) -> Int:
    """The indices `begin[i], begin[i] + 1, ...` (`lengths[i]` of them), one series after the other.

    >>> spans(np.array([0, 10]), np.array([2, 3])).tolist()
    [0, 1, 10, 11, 12]
    """
    before = np.cumsum(lengths) - lengths
    return np.repeat(begin - before, lengths) + np.arange(lengths.sum())


def shorten(names: Sequence[Any], limit: int = 5) -> str:
    """The first names of a list, for messages."""
    head = ", ".join(repr(name) for name in list(names)[:limit])
    return head + (f", ... ({len(names)} in all)" if len(names) > limit else "")
