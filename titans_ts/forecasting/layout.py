"""Layouts: the kind of data the user gave, remembered so that forecasts go back in the same kind."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import narwhals as nw
import numpy as np
import pandas as pd
from numpy.typing import NDArray

Column: TypeAlias = NDArray[Any]
Kind: TypeAlias = Literal["long", "native", "series", "wide", "vector", "matrix"]


@dataclass(frozen=True)
class Layout:
    """The kind and the names of an input.

    | kind | input | what `write` gives back |
    |---|---|---|
    | long | long pandas frame, GluonTS entries, a `Panel` | long frame: id, time, one column a forecast column |
    | native | long frame of another library (polars, ...) | the same in that library |
    | series | pandas Series | Series; a frame when there are several forecast columns |
    | wide | pandas frame, a column a series | the same columns; several forecast columns are a second column level |
    | vector | 1-D array | `[H]`; `[H, columns]` when there are several |
    | matrix | 2-D array `[time, series]` | `[H, N]`; `[H, N, columns]` when there are several |
    """

    kind: Kind
    id_col: str = "unique_id"
    time_col: str = "ds"
    target_col: str = "y"
    id_dtype: Any = None
    time_dtype: Any = None
    name: Hashable = None
    index_name: Hashable = None
    backend: Any = field(default=None, compare=False)

    @property
    def timed(self) -> bool:
        """Whether the input had timestamps of its own (arrays have none)."""
        return self.kind not in ("vector", "matrix")

    @property
    def long(self) -> Layout:
        """The same names as a long frame, in the library it came from."""
        return self if self.kind in ("long", "native") else replace(self, kind="long")

    def write(self, ids: tuple[Hashable, ...], times: pd.Index, columns: Mapping[str, Column]) -> Any:
        """Forecast columns `[N, H]` in the layout's kind; `times` is flat, series after series."""
        writer = {"long": self._long, "native": self._native, "series": self._series, "wide": self._wide}
        if self.kind in writer:
            return writer[self.kind](ids, times, columns)
        stacked = np.stack(list(columns.values()), axis=-1).transpose(1, 0, 2)
        if self.kind == "vector":
            stacked = stacked[:, 0] if len(ids) == 1 else stacked
        return stacked[..., 0] if len(columns) == 1 else stacked

    def write_windows(
        self, ids: tuple[Hashable, ...], times: pd.Index, cutoffs: pd.Index, columns: Mapping[str, Column]
    ) -> Any:
        """A long frame with a column `cutoff` between the times and the forecast columns; `cutoffs` is flat as `times`
        is."""
        frame = nw.from_native(self.write(ids, times, columns))
        cutoff = nw.from_native(self.write(ids, cutoffs, {}))[self.time_col].alias("cutoff")
        return frame.with_columns(cutoff).select(self.id_col, self.time_col, "cutoff", *columns).to_native()

    def _long(self, ids: tuple[Hashable, ...], times: pd.Index, columns: Mapping[str, Column]) -> pd.DataFrame:
        horizon = len(times) // len(ids) if ids else 0
        names = id_series(ids, self.id_dtype)
        frame = {self.id_col: names.repeat(horizon).reset_index(drop=True), self.time_col: pd.Series(times)}
        return pd.DataFrame(frame | {name: values.ravel() for name, values in columns.items()})

    def _native(self, ids: tuple[Hashable, ...], times: pd.Index, columns: Mapping[str, Column]) -> Any:
        horizon = len(times) // len(ids) if ids else 0
        zone = getattr(times, "tz", None)
        naive = times.tz_convert("UTC").tz_localize(None) if zone is not None else times
        data: dict[str, Any] = {
            self.id_col: [name for name in ids for _ in range(horizon)],
            self.time_col: naive.to_numpy(),
        }
        data |= {name: values.ravel() for name, values in columns.items()}
        frame = nw.from_dict(data, backend=self.backend)
        when = nw.col(self.time_col)
        when = (
            when.dt.replace_time_zone("UTC").dt.convert_time_zone(str(zone))
            if zone is not None
            else when.cast(self.time_dtype)
        )
        casts = [when, nw.col(self.id_col).cast(self.id_dtype)] if _holds(self.id_dtype, ids) else [when]
        return frame.with_columns(*casts).to_native()

    def _series(
        self, ids: tuple[Hashable, ...], times: pd.Index, columns: Mapping[str, Column]
    ) -> pd.Series | pd.DataFrame:
        if len(ids) != 1:
            return self._wide(ids, times, columns)
        index = times.rename(self.index_name)
        if len(columns) > 1:
            return pd.DataFrame({name: values[0] for name, values in columns.items()}, index=index)
        return pd.Series(next(iter(columns.values()))[0], index=index, name=self.name)

    def _wide(self, ids: tuple[Hashable, ...], times: pd.Index, columns: Mapping[str, Column]) -> pd.DataFrame:
        horizon = len(times) // len(ids) if ids else 0
        head = pd.Index(id_series(ids, self.id_dtype), name=self.name)
        index, place = times[:horizon], np.tile(np.arange(horizon), len(ids))
        counts = times.to_numpy() if times.dtype == np.int64 else times.asi8
        if (counts.reshape(len(ids), horizon) != counts[:horizon]).any():  # the series end at different times
            index = times.unique().sort_values()
            place = index.get_indexer(times)
        column = np.repeat(np.arange(len(ids)), horizon)
        blocks = []
        for values in columns.values():
            block = np.full((len(index), len(ids)), np.nan)
            block[place, column] = values.ravel()
            blocks.append(block)
        index = index.rename(self.index_name)
        if len(columns) == 1:
            return pd.DataFrame(blocks[0], index=index, columns=head)
        both = pd.MultiIndex.from_product([head, list(columns)], names=[self.name, None])
        return pd.DataFrame(np.stack(blocks, axis=2).reshape(len(index), -1), index=index, columns=both)


def id_series(ids: tuple[Hashable, ...], dtype: Any) -> pd.Series:
    """The ids as a column of `dtype`, or of the inferred type where `dtype` cannot hold them (a new category, say)."""
    if isinstance(dtype, pd.CategoricalDtype) and not set(ids) <= set(dtype.categories):
        dtype = None
    values = np.empty(len(ids), dtype=object)
    values[:] = ids
    column = pd.Series(values)
    try:
        return column.astype(dtype) if dtype is not None else column.infer_objects()
    except (TypeError, ValueError):
        return column.infer_objects()


def _holds(dtype: Any, ids: tuple[Hashable, ...]) -> bool:
    """Whether a column of this narwhals type can hold the ids (a new id need not be among an enumeration's
    categories)."""
    if isinstance(dtype, nw.Enum):
        return set(ids) <= set(dtype.categories)
    return dtype.is_integer() or all(isinstance(name, str) for name in ids)
