"""Pictures of forecasts. matplotlib is imported when one is drawn; pyplot, which remembers figures, never is."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .forecast import Forecast, interval_levels, quantiles_at
from .panel import Float

# Okabe and Ito's blue: told from black by every kind of colour vision, and in grey print
PAST, FUTURE = "black", "#0072B2"


def draw(
    ids: Sequence[Hashable],
    past: tuple[pd.Index, Float],
    future: tuple[pd.Index, Forecast],
    levels: Sequence[float],
    *,
    labels: tuple[str, str, str],
    ax: Any = None,
) -> Any:
    """The figure with values `[N, T]` and forecasts of these series; times are flat, series after series.

    labels: of the time axis, of the values, and the name of the forecast. ax: where to draw; None: a new figure.
    """
    try:
        from matplotlib import dates
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("plot() needs matplotlib: pip install 'titans-ts[plot]'") from error
    if ax is None:
        figure = Figure(figsize=(9, 0.6 + 2.6 * len(ids)), layout="constrained")
        axes = list(figure.subplots(len(ids), 1, squeeze=False)[:, 0])
    else:
        axes = list(ax) if isinstance(ax, Iterable) else [ax]
    if len(axes) != len(ids):
        raise ValueError(f"{len(axes)} axes came for {len(ids)} series: pass as many, or name the series with ids=")
    (before, values), (after, forecast) = past, future
    time_label, value_label, name = labels
    before_NT, after_NH = (axis_times(times).reshape(len(ids), -1) for times in (before, after))
    for row, axis in enumerate(axes):
        begun = int(np.isfinite(values[row]).argmax())  # what lies before the series began is no part of the picture
        axis.plot(before_NT[row, begun:], values[row, begun:], color=PAST, linewidth=1.2, label="observed")
        for place, level in enumerate(sorted(levels, reverse=True)):
            low, high = quantiles_at(forecast, interval_levels(level))[row].T
            shade = 0.15 + 0.2 * place / len(levels)
            axis.fill_between(
                after_NH[row], low, high, color=FUTURE, alpha=shade, linewidth=0, label=f"{level:g} % interval"
            )
        axis.plot(after_NH[row], forecast.point[row], color=FUTURE, linewidth=1.6, linestyle="--", label=name)
        if np.issubdtype(after_NH.dtype, np.datetime64):
            locator: Any = dates.AutoDateLocator()  # type: ignore[no-untyped-call, unused-ignore]
            axis.xaxis.set_major_locator(locator)
            axis.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))  # type: ignore[no-untyped-call, unused-ignore]
        axis.set(title=str(ids[row]), xlabel=time_label, ylabel=value_label)
        axis.legend(loc="best")
    return axes[0].figure


def axis_times(times: pd.Index) -> Any:
    """Timestamps as matplotlib has them: periods by their starts, zones by their local wall time.

    >>> axis_times(pd.period_range("2024Q1", periods=2, freq="Q")).astype("M8[D]").tolist()
    [datetime.date(2024, 1, 1), datetime.date(2024, 4, 1)]
    """
    if isinstance(times, pd.PeriodIndex):
        times = times.to_timestamp()
    if isinstance(times, pd.DatetimeIndex) and times.tz is not None:
        times = times.tz_localize(None)
    return times.to_numpy()
