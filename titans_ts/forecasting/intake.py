"""Intake: every kind of input as the same four flat columns. Only types are checked here; `door.read` does the rest."""

from __future__ import annotations

import datetime
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd

from .clock import TimeError, make_clock
from .layout import Layout
from .panel import DataError, Float, Int, Schema, shorten, spans

MOST_CATEGORIES = 256  # of one column: each is a column of its own behind the door
KINDS = "a long frame, a Series, a wide frame, a 1-D or 2-D array, or an iterable of {'target', 'start', 'item_id'}"


@dataclass(frozen=True)
class Intake:
    """Rows as they came: series code (-1: no id), timestamp, value; `ids[code]` is the series' id.

    extras: the covariates `[rows, columns of the schema]`: numbers, and places in the list of categories (-1: one that
    `fit` did not see); NaN where missing.
    """

    codes: Int
    ids: list[Hashable]
    times: pd.Index
    y: Float
    layout: Layout
    schema: Schema | None = None
    extras: Float | None = None


def take(
    y: Any, id_col: str, time_col: str, target_col: str, freq: str | int | None, schema: Schema | None = None
) -> Intake:
    """The rows of `y`, whatever it is, and the covariates of `schema` in it."""
    names = (id_col, time_col, target_col)
    if isinstance(y, pd.DataFrame):
        came = _take_wide(y, names) if _is_wide(y, names) else _take_long(y, names)
    elif isinstance(y, pd.Series):
        came = _take_series(y, names)
    elif isinstance(y, np.ndarray):
        came = _take_array(y, names)
    elif isinstance(frame := nw.from_native(y, pass_through=True), nw.DataFrame):
        came = _take_native(frame, names)
    elif isinstance(frame, nw.LazyFrame):
        raise DataError("a lazy frame has no rows yet. Fix: call .collect() first.")
    elif isinstance(y, Iterable) and not isinstance(y, str | bytes | Mapping):
        entries = list(y)
        if entries and not isinstance(entries[0], Mapping):
            came = _take_array(np.asarray(entries), names)
        else:
            came = _take_entries(entries, names, freq)
    else:
        raise DataError(f"y is a {type(y).__name__}. Fix: pass {KINDS}.")
    if not len(came.codes):
        raise DataError("y has no rows. Fix: pass at least one observed row a series.")
    return came if schema is None else with_covariates(came, y, schema)


def take_future(frame: Any, id_col: str, time_col: str, schema: Schema) -> Intake:
    """The rows of a frame of known covariates: as `take`, without values."""
    names = (id_col, time_col, None)
    if isinstance(frame, pd.DataFrame):
        came = _take_long(frame, names)
    elif isinstance(native := nw.from_native(frame, pass_through=True), nw.DataFrame):
        came = _take_native(native, names)
    else:
        raise DataError(
            f"future is a {type(frame).__name__}. Fix: pass a long frame with {id_col!r}, {time_col!r} and the columns "
            f"{shorten(schema.known)}; make_future_frame() gives its rows."
        )
    return with_covariates(came, frame, Schema(known=schema.known, categories=schema.categories))


def with_covariates(came: Intake, frame: Any, schema: Schema) -> Intake:
    """The same rows with the columns of `schema`; where it has no categories yet, with those of the data."""
    if not schema.names:  # a calendar alone, which any kind of input has
        return replace(came, schema=replace(schema, categories={}), extras=np.empty((len(came.codes), 0)))
    if came.layout.kind not in ("long", "native") or not isinstance(
        native := nw.from_native(frame, pass_through=True, eager_only=True), nw.DataFrame
    ):
        kind = "GluonTS entries" if came.layout.kind == "long" else f"a {came.layout.kind}"
        raise DataError(
            f"{kind} came, but covariates are configured ({shorten(schema.names)}), and only a long frame has columns "
            "for them. Fix: pass a long frame with an id, a time, a value and the covariates' columns."
        )
    absent = [name for name in schema.names if name not in native.columns]
    if absent:
        raise DataError(
            f"no column {shorten(absent)}, which covariates are configured on: the columns are "
            f"{shorten(native.columns, 12)}. Fix: add it, or correct known_covariates=, past_covariates= and "
            "static_covariates=."
        )
    extras, categories = np.empty((len(came.codes), len(schema.names))), dict(schema.categories or {})
    for place, name in enumerate(schema.names):
        column = frame[name] if isinstance(frame, pd.DataFrame) else pd.Series(native[name].to_list())
        if isinstance(column, pd.DataFrame):
            raise DataError(f"column {name!r} occurs more than once. Fix: keep one of them.")
        if schema.categories is None and categorical(column, name):
            categories[name] = categories_of(column, name)
        extras[:, place] = codes_of(column, categories[name]) if name in categories else numbers(column, name)
    return replace(came, schema=replace(schema, categories=categories), extras=extras)


def categorical(column: pd.Series, name: str) -> bool:
    """Whether a column holds categories: text, bool, category and object columns do, numbers do not."""
    kind = column.dtype
    if pd.api.types.is_datetime64_any_dtype(kind) or isinstance(kind, pd.PeriodDtype) or kind.kind == "m":
        raise DataError(
            f"covariate {name!r} has dtype {kind}. Fix: make it numbers (df[{name!r}].dt.dayofyear) or text."
        )
    return pd.api.types.is_bool_dtype(kind) or not pd.api.types.is_numeric_dtype(kind)


def categories_of(column: pd.Series, name: str) -> tuple[Hashable, ...]:
    """The different values of a column in the order of their spelling, so that the order of the rows does not show."""
    found = sorted(column.dropna().unique().tolist(), key=str)
    if len(found) > MOST_CATEGORIES:
        raise DataError(
            f"covariate {name!r} has {len(found)} categories, {MOST_CATEGORIES} at most are taken. "
            "Fix: join the rare ones, or make it numbers."
        )
    return tuple(found)


def codes_of(column: pd.Series, categories: tuple[Hashable, ...]) -> Float:
    """Places in the list of categories, -1 for one that is not in it, NaN where missing. One that was text and comes as
    a number, or the other way, is the same if it is spelled the same: a file of nothing but 1 and 2 has no text.

    >>> codes_of(pd.Series(["b", None, "c"]), ("a", "b")).tolist()
    [1.0, nan, -1.0]
    >>> codes_of(pd.Series([2.0, 1.0]), ("1", "2")).tolist()
    [1.0, 0.0]
    """
    places: dict[Hashable, float] = {}
    for place, category in enumerate(categories):
        places.setdefault(spelled(category), float(place))
    places |= {category: float(place) for place, category in enumerate(categories)}
    missing = column.isna()
    return np.array(
        [
            np.nan if gone else places.get(value, places.get(spelled(value), -1.0))
            for value, gone in zip(column, missing, strict=True)
        ],
        dtype=np.float64,
    )


def spelled(value: Hashable) -> str:
    """A category as text; a whole number has no decimals, for a column with holes makes floats of whole numbers.

    >>> spelled(2.0), spelled("2"), spelled(True)
    ('2', '2', 'True')
    """
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def numbers(values: Any, name: str) -> Float:
    """A column as float64, NaN where nothing was observed; text is refused."""
    fix = f"Fix: df[{name!r}] = pd.to_numeric(df[{name!r}])."
    column = values if isinstance(values, pd.Series) else pd.Series(values)
    kind = column.dtype
    if isinstance(kind, pd.StringDtype):
        raise DataError(f"{name!r} holds text such as {next(iter(column.dropna()), '')!r}, not numbers. {fix}")
    if kind.kind == "O" and not isinstance(kind, pd.CategoricalDtype):
        missing = np.asarray(column.isna())
        for value in column[~missing]:
            if isinstance(value, str | bytes):
                raise DataError(f"{name!r} holds text such as {value!r}, not numbers. {fix}")
            if isinstance(value, complex) or not hasattr(value, "__float__"):
                raise DataError(f"{name!r} holds {value!r} ({type(value).__name__}), not numbers. {fix}")
        return np.array(
            [np.nan if gone else float(value) for value, gone in zip(column, missing, strict=True)], dtype=np.float64
        )
    if not (pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_bool_dtype(kind)) or pd.api.types.is_complex_dtype(
        kind
    ):
        raise DataError(f"{name!r} has dtype {kind}, numbers are needed. {fix}")
    return np.array(column.to_numpy(dtype=np.float64, na_value=np.nan), dtype=np.float64)


def time_axis(values: Any, name: str) -> pd.Index:
    """A time column or index as a DatetimeIndex, a PeriodIndex or int64 (NaT where there is none); text is refused."""
    index = values if isinstance(values, pd.Index) else pd.Index(values)
    if isinstance(index, pd.DatetimeIndex | pd.PeriodIndex):
        return index
    if isinstance(index, pd.MultiIndex):
        raise DataError(
            f"the index has {index.nlevels} levels {list(index.names)}. Fix: y.reset_index() gives a long frame."
        )
    missing = np.asarray(index.isna())
    present = index[~missing]
    example = present[0] if len(present) else None
    if isinstance(example, str):
        raise DataError(
            f"{name} holds text such as {example!r}, not timestamps. Fix: df['ds'] = pd.to_datetime(df['ds'])."
        )
    if pd.api.types.is_bool_dtype(index.dtype):
        raise DataError(f"{name} holds True and False, not timestamps. Fix: pass timestamps, periods or integers.")
    if pd.api.types.is_integer_dtype(index.dtype) and not missing.any():
        return pd.Index(index.to_numpy(dtype=np.int64))
    if pd.api.types.is_numeric_dtype(index.dtype):
        raise DataError(
            f"{name} holds {index.dtype} numbers ({int(missing.sum())} of them missing), not timestamps. "
            "Fix: pass timestamps, periods or whole numbers without gaps in the column."
        )
    if example is None or isinstance(example, datetime.date):
        try:
            return pd.DatetimeIndex(pd.to_datetime(index))
        except (TypeError, ValueError) as error:
            raise DataError(f"{name} cannot be read ({error}). Fix: bring all timestamps into one zone.") from None
    if isinstance(example, pd.Period):
        return pd.PeriodIndex(index)
    raise DataError(
        f"{name} holds {type(example).__name__} values such as {example!r}. Fix: pass timestamps, periods or integers."
    )


def weights_of(sample_weight: Any, ids: Sequence[Hashable]) -> Float:
    """How much each series counts, `[N]`: from a dict or a pandas Series by id, or from one number a series in order.

    >>> weights_of({"a": 2, "b": 0, "c": 1}, ("b", "a")).tolist()
    [0.0, 2.0]
    """
    given: Any = sample_weight
    if isinstance(given, pd.Series | Mapping):
        by_id = dict(given.items())
        absent = [name for name in ids if name not in by_id]
        if absent or len(by_id) < len(given):
            wrong = f"has no weight of series {shorten(absent)}" if absent else "has more than one weight of a series"
            raise DataError(f"sample_weight {wrong}. Fix: give every series one, and 0 to those not to learn from.")
        given = [by_id[name] for name in ids]
    if np.ndim(given) != 1 or len(given) != len(ids):
        raise DataError(
            f"sample_weight has shape {np.shape(given)}, and there are {len(ids)} series ({shorten(ids)}). "
            "Fix: pass one weight a series, by id (a dict or a pandas Series) or in this order."
        )
    weights = numbers(given, "sample_weight")
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if bad.size:
        others = f" ({bad.size - 1} more series too)" if bad.size > 1 else ""
        raise DataError(
            f"series {ids[bad[0]]!r}: its sample_weight is {weights[bad[0]]:g}{others}. "
            "Fix: pass a number of 0 or more."
        )
    if not weights.any():
        raise DataError("every sample_weight is 0: nothing could be learnt. Fix: give some series a weight above 0.")
    return weights


def groups_of(
    y: Any, ids: Sequence[Hashable], id_col: str, column: str, *, skip: bool = False
) -> tuple[Int, dict[Hashable, str]]:
    """Which group each of these series of a long frame is in `[N]`, numbered as they come, and with `skip` those whose
    column has more than one value, with the reason; they, and series without a value there, are on their own.

    >>> frame = pd.DataFrame({"unique_id": ["a", "b", "c", "a"], "shop": ["x", None, "x", "x"]})
    >>> groups_of(frame, ("a", "b", "c"), "unique_id", "shop")[0].tolist()
    [0, 1, 0]
    """
    native = nw.from_native(y, pass_through=True, eager_only=True)
    if not isinstance(native, nw.DataFrame) or id_col not in native.columns:
        raise DataError(
            f"group={column!r} names a column of a long frame, and what came is none ({type(y).__name__}). "
            "Fix: pass a long frame, or multivariate=True, which joins all series of any kind of input."
        )
    if column not in native.columns:
        raise DataError(
            f"no column {column!r}, which group= names: the columns are {shorten(native.columns, 12)}. "
            "Fix: add it, or correct group=."
        )
    names, values = (y[c] if isinstance(y, pd.DataFrame) else pd.Index(native[c].to_list()) for c in (id_col, column))
    if isinstance(values, pd.DataFrame):
        raise DataError(f"column {column!r} occurs more than once. Fix: keep one of them.")
    codes, found = factorize(names, id_col)
    told, _ = factorize(values, column)
    inside = np.flatnonzero((codes >= 0) & (told >= 0))
    least, most = np.full(len(found), np.iinfo(np.int64).max), np.full(len(found), -1)
    np.minimum.at(least, codes[inside], told[inside])
    np.maximum.at(most, codes[inside], told[inside])
    wanted = dict(zip(found, range(len(found)), strict=True))
    rows = np.array([wanted[name] for name in ids], dtype=np.int64)
    torn = rows[(most[rows] >= 0) & (least[rows] != most[rows])]
    reason = f"column {column!r}, which group= names, has more than one value"
    if len(torn) and not skip:
        others = f" ({len(torn) - 1} more series too)" if len(torn) > 1 else ""
        raise DataError(
            f"series {found[torn[0]]!r}: {reason}{others}. Fix: give it one, or leave such series on their own with "
            "on_bad='skip'."
        )
    alone = (most[rows] < 0) | np.isin(rows, torn)
    own = np.where(alone, most.max(initial=0) + 1 + np.arange(len(rows)), most[rows])
    groups = np.asarray(pd.factorize(own)[0], dtype=np.int64)
    return groups, {found[row]: f"on its own: {reason}" for row in torn.tolist()}


def factorize(values: Any, name: str) -> tuple[Int, list[Hashable]]:
    """Codes in the order of first appearance (-1 for a missing id) and the ids."""
    try:
        codes, found = pd.factorize(values)
    except TypeError as error:
        raise DataError(f"{name!r} holds ids that cannot be hashed ({error}). Fix: use text or integers.") from None
    return np.asarray(codes, dtype=np.int64), list(found.tolist())


def _is_wide(frame: pd.DataFrame, names: tuple[str, str, str]) -> bool:
    """No long column anywhere, numbers only, and (unless the rows are only counted) a time index."""
    if any(name in frame.columns for name in names) or not frame.shape[1]:
        return False
    if names[0] in frame.index.names or frame.index.nlevels > 1:
        return False
    if isinstance(frame.index, pd.DatetimeIndex | pd.PeriodIndex) or frame.columns.nlevels > 1:
        return True
    return all(pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes)


def _missing_columns(absent: list[str], present: list[Any], levels: list[Any]) -> DataError:
    fix = f"rename it, or say id_col=, time_col=, target_col=; one series alone may have df.assign({absent[0]}='a')"
    if any(name in levels for name in absent):
        fix = "df.reset_index()"
    return DataError(f"no column {shorten(absent)}: the columns are {shorten(present, 12)}. Fix: {fix}.")


def _take_long(frame: pd.DataFrame, names: tuple[str, str, str | None]) -> Intake:
    id_col, time_col, target_col = names
    wanted = [name for name in names if name is not None]
    absent = [name for name in wanted if name not in frame.columns]
    if absent:
        raise _missing_columns(absent, list(frame.columns), list(frame.index.names))
    twice = [name for name in wanted if isinstance(frame[name], pd.DataFrame)]
    if twice:
        raise DataError(f"column {twice[0]!r} occurs more than once. Fix: keep one of them.")
    codes, ids = factorize(frame[id_col], id_col)
    layout = Layout("long", id_col, time_col, target_col or "y", id_dtype=frame[id_col].dtype)
    y = np.zeros(len(frame)) if target_col is None else numbers(frame[target_col], target_col)
    return Intake(codes, ids, time_axis(frame[time_col], repr(time_col)), y, layout)


def _take_native(frame: nw.DataFrame[Any], names: tuple[str, str, str | None]) -> Intake:
    id_col, time_col, target_col = names
    absent = [name for name in names if name is not None and name not in frame.columns]
    if absent:
        raise _missing_columns(absent, list(frame.columns), [])
    codes, ids = factorize(pd.Index(frame[id_col].to_list(), dtype=object, tupleize_cols=False), id_col)
    when = frame[time_col]
    kind = when.dtype
    if kind == nw.Date:
        when = when.cast(nw.Datetime("us"))
    if isinstance(when.dtype, nw.Datetime):
        unit, zone = when.dtype.time_unit, when.dtype.time_zone
        moments = when.dt.timestamp("us" if unit == "s" else unit)
        counts = moments.fill_null(np.iinfo(np.int64).min).to_numpy().astype(np.int64)
        times = pd.DatetimeIndex(counts.view(f"M8[{'us' if unit == 's' else unit}]"))
        times = times.tz_localize("UTC").tz_convert(zone) if zone is not None else times
    else:
        times = time_axis(pd.Index(when.to_list()), repr(time_col))
    layout = Layout(
        "native",
        id_col,
        time_col,
        target_col or "y",
        id_dtype=frame[id_col].dtype,
        time_dtype=kind,
        backend=frame.implementation,
    )
    if target_col is None:
        return Intake(codes, ids, times, np.zeros(len(frame)), layout)
    target = frame[target_col]
    if target.dtype.is_numeric() and not target.dtype.is_decimal():
        y = target.cast(nw.Float64).fill_null(np.nan).to_numpy().astype(np.float64)
    else:
        y = numbers(target.to_list(), target_col)
    return Intake(codes, ids, times, y, layout)


def _take_series(series: pd.Series, names: tuple[str, str, str]) -> Intake:
    name = series.name if series.name is not None else 0
    layout = Layout("series", *names, name=series.name, index_name=series.index.name)
    times = time_axis(series.index, "the index")
    return Intake(
        np.zeros(len(series), dtype=np.int64), [name], times, numbers(series, str(series.name or "y")), layout
    )


def _take_wide(frame: pd.DataFrame, names: tuple[str, str, str]) -> Intake:
    heads = frame.columns
    if heads.nlevels > 1:
        raise DataError(f"the columns have {heads.nlevels} levels. Fix: one level, one column a series.")
    if not heads.is_unique:
        raise DataError(
            f"column {heads[heads.duplicated()][0]!r} occurs more than once. Fix: give every series its own name."
        )
    times = time_axis(frame.index, "the index")
    y = np.concatenate([numbers(frame.iloc[:, place], str(name)) for place, name in enumerate(heads)])
    layout = Layout("wide", *names, id_dtype=heads.dtype, name=heads.name, index_name=frame.index.name)
    codes = np.repeat(np.arange(len(heads), dtype=np.int64), len(times))
    return Intake(codes, heads.tolist(), times[np.tile(np.arange(len(times)), len(heads))], y, layout)


def _take_array(array: Any, names: tuple[str, str, str]) -> Intake:
    if array.ndim not in (1, 2):
        raise DataError(f"an array of shape {array.shape} came. Fix: one series as [time], several as [time, series].")
    columns = array[:, None] if array.ndim == 1 else array
    length, count = columns.shape
    y = numbers(columns.T.ravel(), "y")
    codes = np.repeat(np.arange(count, dtype=np.int64), length)
    layout = Layout("vector" if array.ndim == 1 else "matrix", *names)
    return Intake(codes, list(range(count)), pd.Index(np.tile(np.arange(length, dtype=np.int64), count)), y, layout)


def _take_entries(entries: list[Mapping[str, Any]], names: tuple[str, str, str], freq: str | int | None) -> Intake:
    """A GluonTS data set: a target, where it starts, and an id (or its place in the data set)."""
    if not entries:
        raise DataError("y has no entries. Fix: pass at least one series.")
    for place, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or not {"target", "start"} <= set(entry):
            have = shorten(list(entry)) if isinstance(entry, Mapping) else type(entry).__name__
            raise DataError(
                f"entry {place} has {have}. Fix: give every entry a 'target' and a 'start' (and an 'item_id')."
            )
        if np.ndim(entry["target"]) != 1:
            raise DataError(
                f"entry {place} has a target of shape {np.shape(entry['target'])}. "
                "Fix: one entry a series, target [time]."
            )
    ids: list[Hashable] = [entry.get("item_id", place) for place, entry in enumerate(entries)]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise DataError(f"series {twice!r} occurs {ids.count(twice)} times. Fix: give every entry its own 'item_id'.")
    lengths = np.array([len(entry["target"]) for entry in entries], dtype=np.int64)
    y = np.concatenate([numbers(entry["target"], "target") for entry in entries])
    codes = np.repeat(np.arange(len(entries), dtype=np.int64), lengths)
    times = _entry_times([entry["start"] for entry in entries], lengths, freq)
    return Intake(codes, ids, times, y, Layout("long", *names))


def _entry_times(starts: list[Any], lengths: Int, freq: str | int | None) -> pd.Index:
    kinds = {type(start) for start in starts}
    if kinds == {pd.Period}:
        step = {start.freqstr for start in starts}
        if len(step) > 1:
            raise DataError(
                f"the entries start in periods of several frequencies {sorted(step)}. Fix: one data set a frequency."
            )
        ordinals = np.array([start.ordinal for start in starts], dtype=np.int64)
        rows = spans(np.zeros(len(lengths), dtype=np.int64), lengths)
        return pd.PeriodIndex.from_ordinals(np.repeat(ordinals, lengths) + rows * starts[0].freq.n, freq=starts[0].freq)
    if not all(issubclass(kind, datetime.datetime | np.datetime64) for kind in kinds):
        raise DataError(f"'start' is {starts[0]!r}. Fix: pd.Period(start, freq) or pd.Timestamp(start).")
    if freq is None:
        raise DataError(
            "entries that start at a timestamp do not tell their frequency. "
            "Fix: pass freq=, or start them with a pd.Period."
        )
    begin = pd.DatetimeIndex([pd.Timestamp(start) for start in starts])
    try:
        clock = make_clock(begin, np.zeros(len(begin) - 1, dtype=bool), freq)
    except TimeError as error:
        raise DataError(f"{error}.") from None
    ordinals, phases, on_grid = clock.locate(begin)
    if not on_grid.all():
        place = int(np.flatnonzero(~on_grid)[0])
        raise DataError(
            f"entry {place} starts at {starts[place]}, which is not on the steps of freq={clock.freq!r}. "
            "Fix: correct either."
        )
    return clock.times(spans(ordinals, lengths), np.repeat(phases, lengths))
