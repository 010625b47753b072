"""Rolling origins inside every series of a panel: what `PanelForecaster.backtest` does between the door and the frame.

N series, W window (origin), H future step, Q quantile.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .forecast import Forecast, Grid
from .panel import DataError, Float, Int, Panel

if TYPE_CHECKING:
    from .base import PanelForecaster
    from .layout import Layout


@dataclass(frozen=True, kw_only=True)
class Windows:
    """`count` origins in every series, `step` rows apart, the last one `horizon` rows before its end."""

    count: int
    step: int
    horizon: int

    @property
    def rows(self) -> int:
        """Rows behind the first origin."""
        return self.horizon + (self.count - 1) * self.step

    def origins(self, panel: Panel) -> Int:
        """How many rows of each series come before each origin, `[N, W]`.

        >>> from titans_ts.forecasting.clock import CountClock
        >>> panel = Panel(np.arange(9.0), np.array([0, 9]), ("a",), np.array([8]), np.array([0]), CountClock())
        >>> Windows(count=3, step=2, horizon=3).origins(panel).tolist()
        [[2, 4, 6]]
        """
        return panel.lengths[:, None] - self.horizon - self.step * np.arange(self.count)[::-1]

    def fitting(self, panel: Panel, *, skip: bool) -> Panel:
        """The series with a value before their first origin; the others are an error unless they are to be skipped."""
        past = panel.drop_tail(self.rows)
        owner = np.repeat(np.arange(len(panel)), past.lengths)
        bad = np.bincount(owner[np.isfinite(past.values)], minlength=len(panel)) == 0
        if not bad.any():
            return panel
        if skip and not bad.all():
            return panel.select(np.flatnonzero(~bad))
        first = int(np.flatnonzero(bad)[0])
        others = f" ({int(bad.sum()) - 1} more series too)" if bad.sum() > 1 else ""
        left = "none is left" if not past.lengths[first] else f"the {past.lengths[first]} before hold no value"
        raise DataError(
            f"series {panel.ids[first]!r} has {panel.lengths[first]} rows, and {self.count} windows of {self.horizon} "
            f"steps, {self.step} apart, take the last {self.rows}: {left} to learn from{others}. Fix: fewer windows "
            "(n_windows=), closer ones (step_size=) or a shorter horizon, drop such series, or leave them out with "
            "on_bad='skip' where the forecaster has it."
        )


def roll(
    work: PanelForecaster, panel: Panel, layout: Layout, windows: Windows, every: int, *, verbose: int = 0
) -> tuple[Float, Forecast]:
    """Truths `[N * W, H]` and forecasts of every origin, series after series; `work` is fitted and moved.

    It learns at the first origin and then at every `every`-th (0: never again); at the others it takes in the new rows.
    """
    origins, horizon = windows.origins(panel), windows.horizon
    every_series, said = np.arange(len(panel)), []
    for window in range(windows.count):
        seen = origins[:, window]
        learns = window == 0 or (every > 0 and window % every == 0)
        if learns:
            work._fit(panel.head(seen), layout, {})
        else:
            before = origins[:, window - 1]
            work.update(panel.stretches(every_series, before, seen - before))
        state = work._known.state
        ahead = work._ahead_in(panel.stretches(every_series, seen, np.full(len(panel), horizon)))
        said.append(work._with_effect(work._forecast(state, every_series), state, every_series, ahead))
        if verbose:
            did = "learnt from" if learns else "updated to"
            print(f"window {window + 1}/{windows.count}: {did} {int(seen.sum())} rows", file=sys.stderr)
    rows = np.repeat(every_series, windows.count)
    truths = panel.stretches(rows, origins.ravel(), np.full(len(rows), horizon)).values.reshape(-1, horizon)
    point, quantiles = (
        np.stack(parts, axis=1).reshape(len(rows), horizon, *parts[0].shape[2:])
        for parts in ([each.point for each in said], [each.quantiles for each in said])
    )
    return truths, said[0]._replace(point=point, quantiles=quantiles, grid=_together([each.grid for each in said]))


def _together(grids: list[Grid | None]) -> Grid | None:
    """The grids of all windows, a series' windows one after the other."""
    count = max((len(grid.step) for grid in grids if grid is not None), default=0)
    if not count:
        return None
    anywhere = Grid(*np.zeros((3, count)))
    parts = zip(*(anywhere if grid is None else grid for grid in grids), strict=True)
    return Grid(*(np.stack(part, axis=1).ravel() for part in parts))
