"""Clocks: how timestamps become whole steps, and back.

A series lives on integers inside the package. A clock turns its timestamps into an *ordinal* (which step) and a *phase*
(where inside the step, the same for every row of a series), so that order, gaps, duplicates and "what comes next" are
integer arithmetic for every calendar.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Int: TypeAlias = NDArray[np.int64]
Bool: TypeAlias = NDArray[np.bool_]
Located: TypeAlias = tuple[Int, Int, Bool]

MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
WEEKDAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
TICKS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9}
UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
DAY = 24 * TICKS["h"]
# pandas 3 refuses the old spellings; offsets say ME where periods say M.
OLD_SPELLING = {"H": "h", "T": "min", "S": "s", "L": "ms", "U": "us", "N": "ns", "d": "D", "b": "B", "w": "W"}
PERIOD_ALIASES = {"M": "M", "Q": "Q", "Y": "Y", "A": "Y"}
OFFSET_TO_PERIOD = {f"{business}{period}{side}": period for business in ("", "B") for period in "MQY" for side in "SE"}
SEASONS = {"M": 12, "Q": 4}


class TimeError(ValueError):
    """The time axis cannot be read: what came, what was wanted, what to do."""


class Clock(Protocol):
    """Whole steps of one frequency. Two clocks are equal when they count the same steps."""

    @property
    def freq(self) -> str | int:
        """The frequency as the user would write it."""
        ...

    def locate(self, times: pd.Index) -> Located:
        """Ordinal, phase and "lies on the grid" of every timestamp."""
        ...

    def times(self, ordinals: Int, phases: Int) -> pd.Index:
        """The timestamps of these steps; the inverse of `locate`."""
        ...


@dataclass(frozen=True)
class CountClock:
    """Integer time, or (`timed=False`) arrays, whose rows are counted 0, 1, 2, ..."""

    step: int = 1
    timed: bool = True

    @property
    def freq(self) -> int:
        """The step."""
        return self.step

    def locate(self, times: pd.Index) -> Located:
        """Floor division by the step; every phase is allowed."""
        if not is_count(times):
            raise TimeError(
                f"integer times were expected, these are {describe(times)}: keep the time column in one kind"
            )
        raw = times.to_numpy(dtype=np.int64)
        return raw // self.step, raw % self.step, np.ones(len(raw), dtype=bool)

    def times(self, ordinals: Int, phases: Int) -> pd.Index:
        """The integers of these steps."""
        return pd.Index(ordinals * self.step + phases, dtype=np.int64)


@dataclass(frozen=True)
class PeriodClock:
    """Periods: `base` is the period alias, `step` how many of them make one step."""

    base: str
    step: int = 1

    @property
    def freq(self) -> str:
        """The period alias with its multiple."""
        return self.base if self.step == 1 else f"{self.step}{self.base}"

    def locate(self, times: pd.Index) -> Located:
        """The periods' own ordinals, divided by the step."""
        if not isinstance(times, pd.PeriodIndex) or _period_base(times) != self.base:
            raise TimeError(
                f"periods of freq {self.base!r} were expected, these are {describe(times)}: keep one kind of time"
            )
        raw = times.asi8
        return raw // self.step, raw % self.step, np.ones(len(raw), dtype=bool)

    def times(self, ordinals: Int, phases: Int) -> pd.Index:
        """The periods of these steps."""
        return pd.PeriodIndex.from_ordinals(ordinals * self.step + phases, freq=self.freq)


@dataclass(frozen=True)
class DateClock:
    """Timestamps.

    `wall` rules count on the local calendar, so a day across a clock change is still one day; others are
    absolute.
    """

    freq: str
    rule: Rule
    unit: str
    tz: Any = None

    def locate(self, times: pd.Index) -> Located:
        """Ordinals by the calendar rule; the phase is what is left inside the step (a time of day)."""
        if not isinstance(times, pd.DatetimeIndex):
            raise TimeError(f"timestamps were expected, these are {describe(times)}: keep the time column in one kind")
        if (times.tz is None) != (self.tz is None):
            have, want = (zone or "no time zone" for zone in (times.tz, self.tz))
            raise TimeError(f"these timestamps have {have}, {want} was expected: use tz_localize or tz_convert first")
        local = times.tz_convert(self.tz) if self.tz is not None else times
        ordinals, phases, on_grid = self.rule.split(raw(local, self.unit, self.rule.wall))
        if UNITS[times.unit] < UNITS[self.unit]:
            on_grid = on_grid & np.asarray(times == times.as_unit(self.unit))
        return ordinals, phases, on_grid

    def times(self, ordinals: Int, phases: Int) -> pd.Index:
        """Timestamps in the clock's unit and zone; a skipped local time moves to the first one that exists."""
        index = pd.DatetimeIndex(self.rule.join(ordinals, phases).view(f"M8[{self.unit}]"))
        if self.tz is None:
            return index
        if not self.rule.wall:
            return index.tz_localize("UTC").tz_convert(self.tz)
        return index.tz_localize(self.tz, nonexistent="shift_forward", ambiguous=np.ones(len(index), dtype=bool))


class Rule(Protocol):
    """Integer arithmetic of one calendar, on counts of the clock's unit since 1970."""

    @property
    def wall(self) -> bool:
        """Counted on local wall time."""
        ...

    def split(self, raw: Int) -> Located:
        """Ordinal, phase, on the grid."""
        ...

    def join(self, ordinals: Int, phases: Int) -> Int:
        """The inverse of `split`."""
        ...


@dataclass(frozen=True)
class Steady:
    """Steps of one length. On the grid: less than `slack` after a multiple of `cycle` (weeks: the anchor's day)."""

    step: int
    origin: int
    cycle: int
    slack: int
    wall: bool

    def split(self, raw: Int) -> Located:
        """Floor division."""
        ordinals, phases = np.divmod(raw - self.origin, self.step)
        return ordinals, phases, phases % self.cycle < self.slack

    def join(self, ordinals: Int, phases: Int) -> Int:
        """Multiplication."""
        return ordinals * self.step + phases + self.origin


@dataclass(frozen=True)
class Business:
    """Steps of `count` weekdays, Monday to Friday."""

    count: int
    day: int
    wall: bool = True

    def split(self, raw: Int) -> Located:
        """Business days since 1970, which began on a Thursday."""
        days, clock = np.divmod(raw, self.day)
        dates = days.view("M8[D]")
        ordinals, rest = np.divmod(np.busday_count(np.datetime64(0, "D"), dates).astype(np.int64), self.count)
        return ordinals, rest * self.day + clock, np.is_busday(dates)

    def join(self, ordinals: Int, phases: Int) -> Int:
        """The business day counted from 1970, and the time of day."""
        rest, clock = np.divmod(phases, self.day)
        dates = np.busday_offset(np.datetime64(0, "D"), ordinals * self.count + rest, roll="forward")
        return dates.astype("M8[D]").view(np.int64) * self.day + clock


@dataclass(frozen=True)
class Monthly:
    """Steps of `cycle * count` months, on the first or last (business) day of months that are `anchor` modulo
    `cycle`."""

    cycle: int
    count: int
    anchor: int
    end: bool
    business: bool
    day: int
    wall: bool = True

    def split(self, raw: Int) -> Located:
        """Months since 1970, divided by the step."""
        days, clock = np.divmod(raw, self.day)
        months = days.view("M8[D]").astype("M8[M]").view(np.int64)
        ordinals, rest = np.divmod(months - self.anchor, self.cycle * self.count)
        return ordinals, rest * self.day + clock, (self._dates(months) == days) & (rest % self.cycle == 0)

    def join(self, ordinals: Int, phases: Int) -> Int:
        """The month, its first or last day, and the time of day."""
        rest, clock = np.divmod(phases, self.day)
        return self._dates(ordinals * self.cycle * self.count + rest + self.anchor) * self.day + clock

    def _dates(self, months: Int) -> Int:
        first = (months + self.end).view("M8[M]").astype("M8[D]")
        dates = first - np.timedelta64(1, "D") if self.end else first
        if self.business:
            dates = np.busday_offset(dates, 0, roll="backward" if self.end else "forward")
        return dates.view(np.int64)


def is_count(times: pd.Index) -> bool:
    """Plain integers (not bool)."""
    return bool(pd.api.types.is_integer_dtype(times.dtype))


def describe(times: pd.Index) -> str:
    """What a time axis is, for messages."""
    if is_count(times):
        return "integers"
    if isinstance(times, pd.PeriodIndex):
        return f"periods of freq {times.freqstr!r}"
    return f"timestamps ({times.dtype})" if isinstance(times, pd.DatetimeIndex) else f"values of dtype {times.dtype}"


def raw(times: pd.DatetimeIndex, unit: str, wall: bool) -> Int:
    """Counts of `unit` since 1970, on the local wall (`wall`) or absolute."""
    naive = (
        times.tz_localize(None)
        if wall
        else times.tz_convert("UTC").tz_localize(None)
        if times.tz is not None
        else times
    )
    counts: Int = naive.as_unit(unit).to_numpy().view(np.int64)
    return counts


def season_length(freq: str | int) -> int:
    """Rows of the usual season: a day for hours and minutes, a week for days, a year for months and quarters.

    As in GIFT-Eval, weeks and years are not seasonal (1); nor are seconds, and steps that do not divide their season.

    >>> [season_length(freq) for freq in ("h", "15min", "D", "W-SUN", "ME", "QE-DEC", "YE-DEC", 1)]
    [24, 96, 7, 1, 12, 4, 1, 1]
    """
    if isinstance(freq, int):
        return 1
    count, name, _ = _parts(freq)
    name = OLD_SPELLING.get(name, name)
    if name in ("min", "h"):
        season, step = DAY, count * TICKS[name]
    elif name in ("D", "B"):
        season, step = (7 if name == "D" else 5), count
    else:
        season, step = SEASONS.get(OFFSET_TO_PERIOD.get(name, name), 1), count
    return season // step if season % step == 0 and season > step else 1


def make_clock(times: pd.Index, steps: Bool, freq: object) -> Clock:
    """The clock of a panel's timestamps, of the declared frequency or of the most common step.

    `times` is sorted inside each series; `steps[i]` says that rows i and i + 1 belong to the same series.
    """
    if isinstance(freq, pd.offsets.BaseOffset):
        freq = freq.freqstr
    elif isinstance(freq, np.integer):
        freq = int(freq)
    if freq is not None and (isinstance(freq, bool) or not isinstance(freq, str | int)):
        raise TimeError(f"freq must be an alias such as 'h' or 'MS', an integer step, or None, got {freq!r}")
    if is_count(times):
        return _count_clock(times, steps, freq)
    if isinstance(freq, int):
        raise TimeError(
            f"freq={freq} is an integer step, but the times are {describe(times)}: "
            "pass an alias such as 'h', 'D' or 'MS'"
        )
    if isinstance(times, pd.PeriodIndex):
        return _period_clock(times, freq)
    if isinstance(times, pd.DatetimeIndex):
        return _date_clock(times, freq if freq is not None else infer(times, steps))
    raise TimeError(f"times must be timestamps, periods or integers, these are {describe(times)}")


def _count_clock(times: pd.Index, steps: Bool, freq: str | int | None) -> CountClock:
    if isinstance(freq, str):
        raise TimeError(
            f"freq={freq!r} was declared, but the times are integers: pass an integer step, or make them timestamps"
        )
    if freq is None:
        differences = np.diff(times.to_numpy(dtype=np.int64))[steps]
        positive = differences[differences > 0]
        freq = int(positive.min()) if positive.size else 1
    if freq < 1:
        raise TimeError(f"freq={freq} must be a positive step")
    return CountClock(freq)


def _period_base(times: pd.PeriodIndex) -> str:
    return str(times.freqstr).lstrip("0123456789")


def _period_clock(times: pd.PeriodIndex, freq: str | None) -> PeriodClock:
    base, step = _period_base(times), times.freq.n
    if freq is None:
        return PeriodClock(base, step)
    count, name, anchor = _parts(freq)
    name = OFFSET_TO_PERIOD.get(name, PERIOD_ALIASES.get(name, OLD_SPELLING.get(name, name)))
    have, _, have_anchor = base.partition("-")
    if name != have or (anchor and anchor != have_anchor):
        raise TimeError(f"freq={freq!r} was declared, but the times are periods of freq {times.freqstr!r}")
    return PeriodClock(base, count if count != 1 else step)


def _parts(freq: str) -> tuple[int, str, str]:
    match = re.fullmatch(r"(\d*)([A-Za-z]+)(?:-([A-Za-z]+))?", freq)
    if match is None:
        return 1, freq, ""
    return int(match[1] or 1), match[2], (match[3] or "").upper()


def _canonical(freq: str, times: pd.DatetimeIndex) -> tuple[int, str, str]:
    """Multiple, name and anchor in pandas' offset spelling; M, Q and Y become ends or starts as the data are."""
    count, name, anchor = _parts(freq)
    if name in PERIOD_ALIASES:
        local = times.tz_localize(None)
        starts = len(local) > 0 and 2 * int((local.day == 1).sum()) > len(local)
        name = PERIOD_ALIASES[name] + ("S" if starts else "E")
        if starts and (anchor or name == "QS"):
            # a period is named by its last month, a start by its first
            back = {"QS": 2, "YS": 11, "MS": 0}[name]
            anchor = MONTHS[(MONTHS.index(anchor or "DEC") - back) % 12]
        freq = f"{count}{name}{'-' + anchor if anchor else ''}"
    elif name in OLD_SPELLING:
        freq = f"{count}{OLD_SPELLING[name]}{'-' + anchor if anchor else ''}"
    try:
        offset = pd.tseries.frequencies.to_offset(freq)
    except ValueError as error:
        raise TimeError(
            f"freq={freq!r} is no frequency that pandas knows ({error}): "
            "write for example 'h', '15min', 'D', 'W-SUN' or 'MS'"
        ) from None
    return _parts(offset.freqstr)


def _date_clock(times: pd.DatetimeIndex, freq: str) -> DateClock:
    count, name, anchor = _canonical(freq, times)
    spelled = f"{count if count != 1 else ''}{name}{'-' + anchor if anchor else ''}"
    unit = times.unit
    if name in TICKS:
        step = count * TICKS[name]
        unit = next((u for u in UNITS if UNITS[u] <= UNITS[unit] and step % UNITS[u] == 0), "ns")
        step //= UNITS[unit]
        return DateClock(spelled, Steady(step, 0, step, step, wall=False), unit, times.tz)
    day = DAY // UNITS[unit]
    rule: Rule
    if name == "D":
        rule = Steady(count * day, 0, count * day, count * day, wall=True)
    elif name == "W":
        rule = Steady(
            7 * count * day, (WEEKDAYS.index(anchor or "SUN") - 3) * day, 7 * day, day, wall=True
        )  # day 0 was a Thursday
    elif name == "B":
        rule = Business(count, day)
    elif match := re.fullmatch(r"(B?)([MQY])([ES])", name):
        cycle = {"M": 1, "Q": 3, "Y": 12}[match[2]]
        month = MONTHS.index(anchor) if anchor else 11 if match[3] == "E" else 0
        rule = Monthly(cycle, count, month % cycle, match[3] == "E", match[1] == "B", day)
    else:
        raise TimeError(
            f"freq={freq!r} is not supported: steps may be ns to h, D, B, W, or the (business) start or end of months, "
            "quarters and years. Number the rows with integers instead."
        )
    return DateClock(spelled, rule, unit, times.tz)


def infer(times: pd.DatetimeIndex, steps: Bool) -> str:
    """The alias of the most common step of the panel."""
    unit = times.unit
    absolute, wall = (np.diff(raw(times, unit, wall=w))[steps] for w in (False, True))
    # On a local calendar a clock change makes one day 23 or 25 hours long: look at the wall first.
    day = DAY // UNITS[unit]
    step = most_common(wall[wall > 0])
    if step is None:
        raise TimeError("the frequency cannot be inferred from series of one row: pass freq=, for example freq='h'")
    local = times.tz_localize(None)
    if step % day:
        step = most_common(absolute[absolute > 0]) or step
        name = next(
            name for name in reversed(TICKS) if TICKS[name] >= UNITS[unit] and step % (TICKS[name] // UNITS[unit]) == 0
        )
        return _spell(step // (TICKS[name] // UNITS[unit]), name)
    days = step // day
    months = _month_alias(local, steps) if days >= 28 else None
    if months is not None:
        return months
    if days in (28, 29, 30, 31, 365, 366) and len(set(local.day)) < 4:
        raise TimeError(
            f"the rows step by months on day {local.day[0]} of the month, which has no frequency: use month starts, "
            "month ends, or periods (df['ds'] = df['ds'].dt.to_period('M'))"
        )
    if days % 7 == 0:
        weekdays = np.unique(local.day_of_week)
        return _spell(days // 7, f"W-{WEEKDAYS[weekdays[0]]}") if len(weekdays) == 1 else _spell(days, "D")
    if days == 1 and (wall == 3 * day).any() and not (local.day_of_week >= 5).any():
        return "B"
    return _spell(days, "D")


def _spell(count: int, name: str) -> str:
    return name if count == 1 else f"{count}{name}"


def _month_alias(local: pd.DatetimeIndex, steps: Bool) -> str | None:
    months = np.asarray(local.year, dtype=np.int64) * 12 + np.asarray(local.month, dtype=np.int64) - 1
    count = most_common(np.diff(months)[steps])
    dates = local.to_numpy().astype("M8[D]")
    first = dates.astype("M8[M]").astype("M8[D]")
    last = (dates.astype("M8[M]") + 1).astype("M8[D]") - np.timedelta64(1, "D")
    edges = {
        "S": dates == first,
        "E": dates == last,
        "BS": dates == np.busday_offset(first, 0, roll="forward"),
        "BE": dates == np.busday_offset(last, 0, roll="backward"),
    }
    edge = max(edges, key=lambda name: int(edges[name].sum()))
    if not count or 2 * int(edges[edge].sum()) <= len(local):
        return None
    business, side = edge[:-1], edge[-1]
    if count % 12 == 0:
        return _spell(count // 12, f"{business}Y{side}-{MONTHS[most_common(months % 12) or 0]}")
    if count % 3 == 0:
        anchor = most_common(months % 3) or 0
        return _spell(count // 3, f"{business}Q{side}-{MONTHS[anchor if side == 'S' else anchor + 9]}")
    return _spell(count, f"{business}M{side}")


def most_common(values: NDArray[Any]) -> int | None:
    """The most frequent value, the smallest of equals; None of nothing."""
    if values.size == 0:
        return None
    if (values == values.flat[0]).all():
        return int(values.flat[0])
    found, counts = np.unique(values, return_counts=True)
    return int(found[counts.argmax()])
