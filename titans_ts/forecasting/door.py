"""The door: what the user holds becomes a `Panel`, or a `DataError` says what is wrong and how to mend it.

What happens to bad data:

| case | behaviour |
|---|---|
| NaN, None in y | a missing observation, kept |
| unsorted rows | sorted |
| missing rows (a gap) | error, or NaN rows with `on_gap="mask"` |
| duplicate timestamps | error, or `on_duplicate="last"` (in the order given) or `"mean"` |
| infinite y, y that never holds a value | error |
| negative y, with `non_negative=True` | error |
| y as text, times as text | error (nothing is guessed from strings) |
| y as bool | 0 and 1; as objects that hold numbers, Decimal or None: converted |
| a missing id or timestamp, a timestamp off the grid, a wrong declared frequency | error |
| one row | accepted when the frequency is known from elsewhere (`freq=`, other series, the fitted forecaster) |
| constant series | accepted |
| time zone, integer time, periods, categorical ids | kept to the output |

Covariates, where a `Schema` names some:

| case | behaviour |
|---|---|
| text, bool, category and object columns | categories; one that `fit` did not see counts as the average one |
| all other columns | numbers |
| a missing or infinite value of a known or static covariate, an infinite one of a past covariate | error |
| a missing value of a past covariate | the last one before it counts |
| a static covariate that changes inside a series | error |
| rows that `on_gap="mask"` fills in | known covariates count as average there |
| rows that `on_duplicate` joins | the covariates of the last of them |
| anything but a long frame | error |
| a calendar alone, in any kind of input with timestamps or periods | made of them, of filled-in rows too |
| a calendar where rows are numbered | error |

With `on_bad="skip"` a series that still fails is left out and reported with its reason; when none is left, that is an
error too.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .clock import Clock, CountClock, TimeError, make_clock, most_common
from .intake import Intake, take, take_future
from .layout import Layout
from .panel import Covariates, DataError, Float, Int, Panel, Schema, future_times, offsets_of, shorten

Bool: TypeAlias = NDArray[np.bool_]

CHOICES = {"on_gap": ("raise", "mask"), "on_duplicate": ("raise", "last", "mean"), "on_bad": ("raise", "skip")}
# on_gap="mask" fills at most this many steps for one row: more is a wrong frequency or a wrong year, and would eat the
# memory.
MASK_LIMIT = 10
LARGEST = 1e100  # of values, and one by it the least: of what lies beyond there are no squares and no variance
NEGATIVE_FIX = "correct such values, make them NaN (a missing observation), or fit with non_negative=False"


def read(
    y: Any,
    *,
    freq: str | int | None = None,
    id_col: str = "unique_id",
    time_col: str = "ds",
    target_col: str = "y",
    on_gap: str = "raise",
    on_duplicate: str = "raise",
    on_bad: str = "raise",
    non_negative: bool = False,
    clock: Clock | None = None,
    known: Container[Hashable] = (),
    schema: Schema | None = None,
) -> tuple[Panel, Layout, dict[Hashable, str]]:
    """The panel in `y`, its layout, and the series left out with their reasons (`on_bad="skip"`).

    `y` is a long frame (pandas, or any eager frame that narwhals reads), a Series with a time index, a wide frame (time
    index, a column a series), a 1-D array (one series), a 2-D array `[time, series]`, an iterable of `{"target",
    "start", "item_id"}`, or a `Panel`. `clock` reads new rows on the steps of a known panel instead of finding the
    frequency; `known` ids may come with missing values only. `schema` names covariates. `non_negative` data may not
    fall below 0.

    >>> days = pd.date_range("2024-01-01", periods=3, freq="D")
    >>> panel, layout, skipped = read(pd.DataFrame({"unique_id": "a", "ds": days, "y": [1.0, None, 3.0]}))
    >>> panel.ids, panel.freq, panel.values.tolist(), panel.future_times(0, 1)[0].day
    (('a',), 'D', [1.0, nan, 3.0], 4)
    """
    policies = {"on_gap": on_gap, "on_duplicate": on_duplicate, "on_bad": on_bad}
    for name, value in policies.items():
        if value not in CHOICES[name]:
            raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, CHOICES[name]))}")
    if isinstance(y, Panel):
        if clock is not None and y.clock != clock:
            raise DataError(f"the panel steps by {y.freq!r}, {clock.freq!r} is known")
        have = None if y.covariates is None else y.covariates.schema
        if schema is not None and (
            (() if have is None else have.names) != schema.names
            or (have is not None and schema.categories is not None and have.categories != schema.categories)
        ):
            raise DataError(
                f"the panel has the covariates {shorten(have.names) if have else 'none'}, and those of the forecaster "
                f"are {shorten(schema.names)}. Fix: read the panel with them, or pass a long frame."
            )
        if non_negative and (y.values < 0).any():
            row = int(np.flatnonzero(y.values < 0)[0])
            series = int(np.searchsorted(y.offsets, row, side="right")) - 1
            raise DataError(
                f"series {y.ids[series]!r}: {y.values[row]:g} in its row {row - y.offsets[series]} is negative, and "
                f"non_negative=True promises values of 0 and more. Fix: {NEGATIVE_FIX}."
            )
        panel = y if schema is None else y.with_calendar(schema.calendar)
        return panel, Layout("long", id_col, time_col, target_col), {}
    came = take(y, id_col, time_col, target_col, freq, schema)
    sieve = _Sieve(came.ids, on_bad)
    rows = _locate(came, sieve, freq, clock)
    rows = _settle_duplicates(rows, sieve, on_duplicate)
    rows = _check_grid(rows, sieve, freq, clock, on_gap)
    rows = _check_values(rows, sieve, known, non_negative)
    if came.schema is not None:
        rows = _check_covariates(rows, sieve, came.schema)
    return _gather(rows, came.ids, came.schema), came.layout, sieve.skipped


def read_future(
    frame: Any,
    schema: Schema,
    clock: Clock,
    ids: tuple[Hashable, ...],
    ends: Int,
    phases: Int,
    steps: int,
    *,
    id_col: str = "unique_id",
    time_col: str = "ds",
    on_duplicate: str = "raise",
) -> Float:
    """The known covariates `[N, steps, K]` of these series over the `steps` after their ends, from a long frame.

    Rows of other series and of other times are left aside. Every row that is wanted must be there, with a value.
    """
    came = take_future(frame, id_col, time_col, schema)
    places = {name: row for row, name in enumerate(ids)}
    series = np.array([places.get(name, -1) for name in came.ids] + [-1], dtype=np.int64)[came.codes]
    inside = np.flatnonzero((series >= 0) & ~np.asarray(came.times.isna()))
    series, times, extras = series[inside], came.times[inside], _extras(came)[inside]
    try:
        ordinals, _, on_grid = clock.locate(times)
    except TimeError as error:
        raise DataError(f"future: {error}.") from None
    step = ordinals - ends[series] - 1
    met = on_grid & (step >= 0) & (step < steps)
    met[met] = np.asarray(clock.times(ordinals[met], phases[series[met]]) == times[met])
    series, step, extras = series[met], step[met], extras[met]
    count = np.zeros((len(ids), steps), dtype=np.int64)
    np.add.at(count, (series, step), 1)
    fix = "make_future_frame() gives every row that is wanted; fill in the columns and pass it"
    _refuse_future(count == 0, "no row", clock, ids, ends, phases, fix)
    if on_duplicate == "raise":
        _refuse_future(count > 1, "more than one row", clock, ids, ends, phases, "keep one of them")
    values = np.empty((len(ids), steps, extras.shape[1]))
    values[series, step] = extras
    for place, name in enumerate(schema.known):
        bad = ~np.isfinite(values[..., place])
        _refuse_future(bad, f"no finite value of {name!r}", clock, ids, ends, phases, f"fill in {name!r} there")
    return _one_hot(values.reshape(-1, values.shape[2]), schema, schema.known).reshape(len(ids), steps, -1)


def _refuse_future(
    bad: Bool, what: str, clock: Clock, ids: tuple[Hashable, ...], ends: Int, phases: Int, fix: str
) -> None:
    if not bad.any():
        return
    rows = np.flatnonzero(bad.any(axis=1))
    row = rows[[0]]
    wrong = future_times(clock, ends[row], phases[row], bad.shape[1])[bad[row[0]]]
    others = f" ({len(rows) - 1} more series too)" if len(rows) > 1 else ""
    raise DataError(
        f"future has {what} for series {ids[row[0]]!r} at {len(wrong)} of the {bad.shape[1]} steps to forecast "
        f"({', '.join(map(str, wrong[:3]))}{', ...' if len(wrong) > 3 else ''}){others}. Fix: {fix}."
    )


@dataclass(frozen=True)
class _Rows:
    """Rows sorted by series and time."""

    code: Int
    times: pd.Index
    ordinal: Int
    phase: Int
    on_grid: Bool
    y: Float
    clock: Clock
    extras: Float

    def keep(self, chosen: Bool | Int) -> _Rows:
        return _Rows(
            self.code[chosen],
            self.times[chosen],
            self.ordinal[chosen],
            self.phase[chosen],
            self.on_grid[chosen],
            self.y[chosen],
            self.clock,
            self.extras[chosen],
        )

    def same(self) -> Bool:
        """Whether row i + 1 belongs to the series of row i."""
        same: Bool = self.code[1:] == self.code[:-1]
        return same

    def firsts(self) -> Int:
        """The first row of every series."""
        return np.flatnonzero(np.concatenate([[True], ~self.same()]))

    def time(self, row: int) -> str:
        return str(self.times[row])


class _Sieve:
    """Raises at the first bad series, or leaves bad series out and remembers why."""

    def __init__(self, ids: list[Hashable], on_bad: str) -> None:
        self.ids = ids
        self.skips = on_bad == "skip"
        self.skipped: dict[Hashable, str] = {}

    def keep(self, codes: Int, bad: Bool, reason: Callable[[int, int], str], fix: str) -> Bool | None:
        """The rows of series without a bad row (None: nothing to drop); `reason(first bad row, how many)`."""
        if not bad.any():
            return None
        where = np.flatnonzero(bad)
        found, first, count = np.unique(codes[where], return_index=True, return_counts=True)
        if not self.skips:
            others = f" ({len(found) - 1} more series too)" if len(found) > 1 else ""
            name = f"series {self.ids[found[0]]!r}" if found[0] >= 0 else "rows without a series"
            raise DataError(f"{name}: {reason(int(where[first[0]]), int(count[0]))}{others}. Fix: {fix}.")
        for code, row, number in zip(found, where[first], count, strict=True):
            self.skipped[self.ids[code] if code >= 0 else None] = reason(int(row), int(number))
        kept: Bool = ~np.isin(codes, found)
        if not kept.any():
            reasons = "; ".join(f"{name!r}: {why}" for name, why in list(self.skipped.items())[:3])
            raise DataError(f"every series is bad, none is left: {reasons}. Fix: {fix}.")
        return kept


def show(clock: Clock, ordinal: int | np.int64, phase: int | np.int64) -> str:
    """A step's timestamp, for messages."""
    return str(clock.times(np.array([ordinal]), np.array([phase]))[0])


def _locate(came: Intake, sieve: _Sieve, freq: str | int | None, clock: Clock | None) -> _Rows:
    codes, times, y, extras = came.codes, came.times, came.y, _extras(came)
    missing = came.codes < 0
    kept = sieve.keep(
        codes,
        missing,
        lambda row, count: f"{count} rows have no id (first: row {row})",
        f"drop them, or fill {came.layout.id_col!r}",
    )
    if kept is not None:
        codes, times, y, extras = codes[kept], times[kept], y[kept], extras[kept]
    kept = sieve.keep(
        codes,
        np.asarray(times.isna()),
        lambda row, count: f"{count} rows have no timestamp (first: row {row} of {len(codes)})",
        f"drop them, or fill {came.layout.time_col!r}",
    )
    if kept is not None:
        codes, times, y, extras = codes[kept], times[kept], y[kept], extras[kept]
    counts = times.to_numpy(dtype=np.int64) if times.dtype.kind in "iu" else times.asi8
    if not _is_sorted(codes, counts):
        order = np.lexsort((counts, codes))
        codes, times, y, extras = codes[order], times[order], y[order], extras[order]
    try:
        if not came.layout.timed:
            clock = CountClock(timed=False)  # a declared frequency tells an array's season, not its times
        elif clock is None:
            clock = make_clock(times, codes[1:] == codes[:-1], freq)
        ordinals, phases, on_grid = clock.locate(times)
    except TimeError as error:
        raise DataError(f"series {came.ids[codes[0]]!r}, from {times[0]} on: {error}") from None
    on_grid = _on_grid(codes, times, ordinals, phases, on_grid, clock)
    return _Rows(codes, times, ordinals, phases, on_grid, y, clock, extras)


def _extras(came: Intake) -> Float:
    return np.empty((len(came.codes), 0)) if came.extras is None else came.extras


def _is_sorted(codes: Int, counts: Int) -> bool:
    step = np.diff(codes)
    return bool(((step > 0) | ((step == 0) & (np.diff(counts) >= 0))).all())


def _on_grid(codes: Int, times: pd.Index, ordinals: Int, phases: Int, on_grid: Bool, clock: Clock) -> Bool:
    """On the calendar's grid, and at the same place of the step as the rest of the series."""
    first = np.flatnonzero(np.concatenate([[True], codes[1:] != codes[:-1]]))
    # A local time that a clock change skips comes later than its phase says, never earlier: the least one is right.
    wall = getattr(getattr(clock, "rule", None), "wall", False)
    phase = np.minimum.reduceat(phases, first) if wall else phases[first]
    phase = np.repeat(phase, np.diff(np.append(first, len(codes))))
    odd = np.flatnonzero(on_grid & (phases != phase))
    if odd.size:
        moved = np.asarray(clock.times(ordinals[odd], phase[odd]) == times[odd]) & wall
        phases[odd[moved]] = phase[odd[moved]]
        on_grid = on_grid.copy()
        on_grid[odd[~moved]] = False
    return on_grid


def _settle_duplicates(rows: _Rows, sieve: _Sieve, on_duplicate: str) -> _Rows:
    again = np.concatenate([[False], rows.same() & (np.diff(rows.ordinal) == 0) & (np.diff(rows.phase) == 0)])
    if not again.any():
        return rows
    if on_duplicate == "raise":
        kept = sieve.keep(
            rows.code,
            again,
            lambda row, count: f"{count} rows repeat a timestamp (first: {rows.time(row)})",
            "on_duplicate='last' or 'mean', or df.drop_duplicates([id, time])",
        )
        return rows if kept is None else rows.keep(kept)
    if on_duplicate == "last":
        return rows.keep(np.append(~again[1:], True))
    first = np.flatnonzero(~again)
    observed = ~np.isnan(rows.y)
    total = np.add.reduceat(np.where(observed, rows.y, 0.0), first)
    count = np.add.reduceat(observed.astype(np.float64), first)
    once = rows.keep(first)
    mean = np.divide(total, count, out=np.full(len(first), np.nan), where=count > 0)
    extras = rows.extras[np.append(first[1:], len(rows.code)) - 1]
    return replace(once, y=mean, extras=extras)


def _check_grid(rows: _Rows, sieve: _Sieve, freq: str | int | None, clock: Clock | None, on_gap: str) -> _Rows:
    _check_frequency(rows, sieve, freq, clock, on_gap)
    step = rows.clock.freq
    kept = sieve.keep(
        rows.code,
        ~rows.on_grid,
        lambda row, count: f"{count} timestamps are not on the steps of freq={step!r} (first: {rows.time(row)})",
        "correct or drop them, or pass the right freq=",
    )
    rows = rows if kept is None else rows.keep(kept)
    jump = np.where(rows.same(), np.diff(rows.ordinal), 1)
    gaps = np.concatenate([[False], jump > 1])
    if not gaps.any():
        return rows
    missing = np.concatenate([[0], jump - 1])

    def gap(row: int, count: int) -> str:
        here = rows.code == rows.code[row]
        return (
            f"{missing[row]} steps of freq={step!r} are missing between {rows.time(row - 1)} and {rows.time(row)} "
            f"({missing[here].sum()} steps in {count} gaps)"
        )

    if on_gap == "mask":
        first = rows.firsts()
        counts = np.diff(np.append(first, len(rows.code)))
        huge = np.add.reduceat(missing, first) > MASK_LIMIT * counts + 1000
        too_far = gaps & np.repeat(huge, counts)
        kept = sieve.keep(
            rows.code, too_far, gap, "correct the timestamps or pass the right freq=; this is too much to mask"
        )
    else:
        kept = sieve.keep(
            rows.code,
            gaps,
            gap,
            f"on_gap='mask', or add the rows with NaN (utilsforecast.preprocessing.fill_gaps(df, freq={step!r}))",
        )
    return rows if kept is None else rows.keep(kept)


def _check_frequency(rows: _Rows, sieve: _Sieve, freq: str | int | None, clock: Clock | None, on_gap: str) -> None:
    """A frequency that most of the panel contradicts is wrong itself: no series is to blame."""
    same = rows.same()
    jumps = np.diff(rows.ordinal)[same]
    if not jumps.size:
        return
    usual = most_common(jumps[rows.on_grid[1:][same]]) or 0
    off_grid = int((~rows.on_grid).sum())
    sparse = on_gap == "mask" and jumps.sum() <= MASK_LIMIT * len(jumps)
    unsure = jumps.size < 3 or 2 * int((jumps == usual).sum()) <= jumps.size
    astray = 2 * off_grid > len(rows.code)
    if not astray and (usual == 1 or sparse or unsure):
        return
    row = int(np.flatnonzero(same)[0])
    source = "is known from fit" if clock is not None else "was declared" if freq is not None else "is the usual step"
    wrong = f"{int((jumps == usual).sum())} of {len(jumps)} steps are {usual} times that"
    if astray:
        wrong = f"{off_grid} of {len(rows.code)} timestamps are not on its steps"
    raise DataError(
        f"freq={rows.clock.freq!r} {source}, but {wrong}: "
        f"series {sieve.ids[rows.code[row]]!r} has {rows.time(row)} and then {rows.time(row + 1)}. "
        "Fix: pass the frequency of the data, or freq=None to infer it."
    )


def _check_values(rows: _Rows, sieve: _Sieve, known: Container[Hashable], non_negative: bool) -> _Rows:
    kept = sieve.keep(
        rows.code,
        np.isinf(rows.y),
        lambda row, count: f"{count} values are infinite (first at {rows.time(row)})",
        "replace them by NaN (a missing observation) or by a number",
    )
    rows = rows if kept is None else rows.keep(kept)
    size, first = np.abs(np.nan_to_num(rows.y)), rows.firsts()
    counts = np.diff(np.append(first, len(rows.code)))
    largest = np.maximum.reduceat(size, first) if len(first) else size
    tiny = (largest > 0) & (largest < 1 / LARGEST)
    tiny &= np.array([sieve.ids[code] not in known for code in rows.code[first]]) if tiny.any() else True
    kept = sieve.keep(
        rows.code,
        (size > LARGEST) | (np.repeat(tiny, counts) & (size > 0)),
        lambda row, count: (
            f"{count} values lie further from 0 than {LARGEST:g}, or all of them nearer than {1 / LARGEST:g} "
            f"(first: {rows.y[row]:g} at {rows.time(row)}): their squares are no numbers"
        ),
        "bring the series into other units",
    )
    rows = rows if kept is None else rows.keep(kept)
    if non_negative:
        kept = sieve.keep(
            rows.code,
            rows.y < 0,
            lambda row, count: (
                f"{count} values are negative (first: {rows.y[row]:g} at {rows.time(row)}), and non_negative=True "
                "promises values of 0 and more"
            ),
            NEGATIVE_FIX,
        )
        rows = rows if kept is None else rows.keep(kept)
    first = rows.firsts()
    counts = np.diff(np.append(first, len(rows.code)))
    empty = np.add.reduceat(np.isfinite(rows.y).astype(np.int64), first) == 0
    empty &= np.array([sieve.ids[code] not in known for code in rows.code[first]]) if empty.any() else True
    kept = sieve.keep(
        rows.code,
        np.repeat(empty, counts),
        lambda row, count: f"no value was ever observed in its {count} rows (from {rows.time(row)} on)",
        "drop the series until it has a value",
    )
    return rows if kept is None else rows.keep(kept)


def _check_covariates(rows: _Rows, sieve: _Sieve, schema: Schema) -> _Rows:
    for place, name in enumerate(schema.names):
        column = rows.extras[:, place]
        bad = np.isinf(column) if name in schema.past else ~np.isfinite(column)
        reason = partial(_say, rows, f"rows have no finite value of covariate {name!r}")
        kept = sieve.keep(rows.code, bad, reason, f"fill in {name!r} there")
        rows = rows if kept is None else rows.keep(kept)
    for place, name in list(enumerate(schema.names))[len(schema.known) + len(schema.past) :]:
        changed = np.concatenate([[False], rows.same() & (np.diff(rows.extras[:, place]) != 0)])
        reason = partial(_say, rows, f"times static covariate {name!r} changes")
        kept = sieve.keep(rows.code, changed, reason, f"give it one value, or name {name!r} in known_covariates")
        rows = rows if kept is None else rows.keep(kept)
    return rows


def _say(rows: _Rows, what: str, row: int, count: int) -> str:
    return f"{count} {what} (first at {rows.time(row)})"


def _one_hot(extras: Float, schema: Schema, names: tuple[str, ...]) -> Float:
    """The columns `names` as they are behind the door; a category that `fit` did not see is NaN everywhere."""
    columns = []
    for place, name in enumerate(names):
        column = extras[:, place, None]
        categories = (schema.categories or {}).get(name)
        if categories is not None:
            hot = (column == np.arange(len(categories))).astype(np.float64)
            column = np.where(column >= 0, hot, np.nan)
        columns.append(column)
    return np.concatenate([np.empty((len(extras), 0)), *columns], axis=1)


def _gather(rows: _Rows, ids: list[Hashable], schema: Schema | None) -> Panel:
    first = rows.firsts()
    last = np.append(first[1:], len(rows.code)) - 1
    start = rows.ordinal[first]
    offsets = offsets_of(rows.ordinal[last] - start + 1)
    place = rows.ordinal + np.repeat(offsets[:-1] - start, last - first + 1)
    values = np.full(offsets[-1], np.nan)
    values[place] = rows.y
    names = tuple(ids[code] for code in rows.code[first])
    beside = None
    if schema is not None:
        cut = len(schema.known) + len(schema.past)
        moving = _one_hot(rows.extras[:, :cut], schema, schema.known + schema.past)
        static = _one_hot(rows.extras[first, cut:], schema, schema.static)
        beside = Covariates(moving, static, replace(schema, calendar=())).spread(place, len(values))
    panel = Panel(values, offsets, names, rows.ordinal[last], rows.phase[first], rows.clock, beside)
    return panel if schema is None else panel.with_calendar(schema.calendar)
