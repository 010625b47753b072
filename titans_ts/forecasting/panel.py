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

from . import calendar
from .clock import Clock, CountClock

Float: TypeAlias = NDArray[np.float64]
Int: TypeAlias = NDArray[np.int64]


class DataError(ValueError):
    """The data break a rule: names the first offending series, the timestamps, the count and the fix."""


@dataclass(frozen=True)
class Schema:
    """Which columns of a long frame are covariates, and what the categorical ones hold.

    `categories` names the categories that `fit` saw, column by column; a column that is not in it is numeric. It is
    None until data have told. Behind the door a categorical column is one column of 0 and 1 a category. `calendar`
    names what is made of the timestamps (`calendar.py`); its columns come behind those of the known covariates.

    >>> schema = Schema(known=("price", "day"), categories={"day": ("fri", "sat")})
    >>> schema.width(schema.known), schema.numeric(schema.known).tolist()
    (3, [True, False, False])
    """

    known: tuple[str, ...] = ()
    past: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    categories: Mapping[str, tuple[Hashable, ...]] | None = None
    calendar: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All columns of the data: known, past, static."""
        return self.known + self.past + self.static

    @property
    def ahead(self) -> int:
        """How many columns are known ahead: those of the known covariates and of the calendar."""
        return self.width(self.known) + calendar.width(self.calendar)

    def sizes(self, names: Sequence[str]) -> list[int]:
        """How many columns each of these becomes."""
        return [len((self.categories or {}).get(name, (None,))) for name in names]

    def width(self, names: Sequence[str]) -> int:
        """How many columns these become together."""
        return sum(self.sizes(names))

    def numeric(self, names: Sequence[str]) -> NDArray[np.bool_]:
        """Which of the columns that these become are numbers, and not categories."""
        return np.repeat([name not in (self.categories or {}) for name in names], self.sizes(names))

    @property
    def moving_numeric(self) -> NDArray[np.bool_]:
        """Which of the columns that change with time are numbers; those of the calendar are not."""
        parts = (self.numeric(self.known), np.zeros(calendar.width(self.calendar)), self.numeric(self.past))
        return np.concatenate(parts).astype(bool)


@dataclass(frozen=True, eq=False)
class Covariates:
    """The covariates of a panel: those that change with time beside its rows, `[rows, known + calendar + past]`, and
    the static ones beside its series, `[N, static]`; NaN where nothing is known."""

    moving: Float
    static: Float
    schema: Schema

    @property
    def known(self) -> Float:
        """The columns that are known ahead, `[rows, K]`."""
        return self.moving[:, : self.schema.ahead]

    @property
    def past(self) -> Float:
        """The columns that are known up to the present only, `[rows, P]`."""
        return self.moving[:, self.schema.ahead :]

    def cut(self, rows: Int, series: Int) -> Covariates:
        """Those of these rows and series."""
        return replace(self, moving=self.moving[rows], static=self.static[series])

    def spread(self, rows: Int, count: int) -> Covariates:
        """Row i becomes row `rows[i]` of `count`; the others are NaN."""
        moving = np.full((count, self.moving.shape[1]), np.nan)
        moving[rows] = self.moving
        return replace(self, moving=moving)


@dataclass(frozen=True, eq=False)
class Panel:
    """N series in flat arrays: series i is `values[offsets[i]:offsets[i + 1]]`.

    One row is one step of `clock`, NaN where nothing was observed.

    `ends` and `phases` place the last row of each series on the clock, so the next timestamp is known without keeping
    any. `covariates` lie beside the rows, where there are any. `weights` `[N]` tell how much each series counts in what
    all of them share; None: all alike. `groups` `[N]` tell which series are modelled jointly, those of one number;
    None: each by itself.
    """

    values: Float
    offsets: Int
    ids: tuple[Hashable, ...]
    ends: Int
    phases: Int
    clock: Clock
    covariates: Covariates | None = None
    weights: Float | None = None
    groups: Int | None = None

    def __post_init__(self) -> None:
        counts, codes = (self.ids if each is None else each for each in (self.weights, self.groups))
        sizes = {len(self.ids), len(self.offsets) - 1, len(self.ends), len(self.phases), len(counts), len(codes)}
        if len(sizes) != 1 or self.offsets[0] != 0 or self.offsets[-1] != len(self.values):
            raise ValueError(
                f"ids, offsets, ends, phases, weights and groups disagree about the number of series or rows: {sizes}"
            )
        beside = self.covariates
        if beside is not None and (len(beside.moving), len(beside.static)) != (len(self.values), len(self.ids)):
            raise ValueError(
                f"covariates of {len(beside.moving)} rows and {len(beside.static)} series lie beside "
                f"{len(self.values)} rows and {len(self.ids)} series: they must be as many"
            )

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

    @property
    def shares(self) -> Float:
        """`weights`, and ones where there are none."""
        return np.ones(len(self.ids)) if self.weights is None else self.weights

    @cached_property
    def _usual(self) -> Float:
        from ..core.ops.fading import usual_before

        out = np.empty((len(self.values) + len(self), 2))
        usual_before(np.ascontiguousarray(self.values, dtype=np.float64), self.offsets, out)
        return out

    def usual_before(self, series: Int, rows: Int) -> Float:
        """Mean and variance of all that was observed of these series before these of their rows, `[W, 2]`, outliers cut
        (`core.ops.fading.accustom`); NaN where nothing was.

        >>> from titans_ts.forecasting.door import read
        >>> panel = read(np.array([[1.0, 3.0, 5.0]]).T)[0]
        >>> panel.usual_before(np.array([0, 0, 0]), np.array([0, 1, 3])).tolist()
        [[nan, nan], [1.0, 0.0], [3.0, 2.6666666666666665]]
        """
        found: Float = self._usual[self.offsets[series] + series + rows]
        return found

    def heard(self) -> Panel:
        """The series that are learnt from, those whose weight is not 0; the largest weight is 1, and equal ones none.

        >>> from titans_ts.forecasting.door import read
        >>> panel = replace(read(np.eye(3))[0], weights=np.array([4.0, 0.0, 1.0])).heard()
        >>> panel.ids, panel.weights.tolist()
        ((0, 2), [1.0, 0.25])
        """
        if self.weights is None:
            return self
        positive = self.weights[self.weights > 0]
        if not len(positive):
            raise DataError(f"every series left ({shorten(self.ids)}) has sample_weight 0: give one of them a weight.")
        weights = None if (positive == positive[0]).all() else positive / positive.max()
        return replace(self.select(np.flatnonzero(self.weights > 0)), weights=weights)

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
        rows = spans(offsets[:-1] + missing, self.lengths)
        values[rows] = self.values
        if self.covariates is None:
            return replace(self, values=values, offsets=offsets)
        beside = self.covariates.spread(rows, len(values))
        led = replace(self, values=values, offsets=offsets, covariates=beside)
        return led.with_calendar(beside.schema.calendar)

    def with_calendar(self, names: tuple[str, ...]) -> Panel:
        """The panel with this calendar among its covariates, in place of the one it had.

        >>> from titans_ts.forecasting.door import read
        >>> days = pd.date_range("2024-01-01", periods=8, freq="D")
        >>> panel = read(pd.Series(np.arange(8.0), index=days))[0].with_calendar(("weekday",))
        >>> panel.covariates.known[:, 0].tolist()
        [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
        """
        beside = self.covariates
        if not names and (beside is None or not beside.schema.calendar):
            return self
        if isinstance(self.clock, CountClock):
            raise DataError(
                f"calendar={names} needs a time axis of dates, and the rows of these series are numbered. "
                "Fix: pass timestamps or periods (a long frame, or a Series or wide frame with a time index), or leave "
                "calendar= out."
            )
        if beside is None:
            beside = Covariates(np.empty((len(self.values), 0)), np.empty((len(self), 0)), Schema(categories={}))
        times = self.clock.times(spans(self.starts, self.lengths), np.repeat(self.phases, self.lengths))
        own = beside.schema.width(beside.schema.known)
        moving = np.concatenate([beside.moving[:, :own], calendar.columns(times, names), beside.past], axis=1)
        return replace(self, covariates=replace(beside, moving=moving, schema=replace(beside.schema, calendar=names)))

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
        old = spans(offsets[: len(self)], self.lengths)
        values[old] = self.values
        begin = np.empty(len(new), dtype=np.int64)
        begin[known] = offsets[targets[known]] + self.lengths[targets[known]]
        begin[unknown] = offsets[len(self) : -1]
        came = spans(begin, new.lengths)
        values[came] = new.values
        ends = np.concatenate([self.ends, new.ends[unknown]])
        ends[targets[known]] = new.ends[known]
        phases = np.concatenate([self.phases, new.phases[unknown]])
        ids = self.ids + tuple(new.ids[i] for i in unknown)
        beside = self.covariates
        if beside is not None and new.covariates is not None:
            moving = np.empty((len(values), beside.moving.shape[1]))
            moving[old], moving[came] = beside.moving, new.covariates.moving
            static = np.concatenate([beside.static, new.covariates.static[unknown]])
            beside = replace(beside, moving=moving, static=static)
        return Panel(values, offsets, ids, ends, phases, self.clock, beside)

    def future_times(self, row: int, horizon: int) -> pd.Index:
        """The next `horizon` timestamps of one series."""
        return future_times(self.clock, self.ends[[row]], self.phases[[row]], horizon)

    def _cut(self, rows: Int, begin: Int, lengths: Int, ends: Int) -> Panel:
        kept = spans(begin, lengths)
        ids = tuple(self.ids[row] for row in rows)
        beside = None if self.covariates is None else self.covariates.cut(kept, rows)
        weights = None if self.weights is None else self.weights[rows]
        groups = None if self.groups is None else self.groups[rows]
        offsets, phases = offsets_of(lengths), self.phases[rows]
        return Panel(self.values[kept], offsets, ids, ends, phases, self.clock, beside, weights, groups)


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
