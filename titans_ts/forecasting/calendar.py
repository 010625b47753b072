"""The calendar as covariates: columns that follow from the timestamps alone, and so are always known ahead.

The effect of known covariates is a ridge regression on differences over one step and over one season (`covariates.py`).
Hours, weekdays and months are few, and each may be unlike its neighbours: every one is a column of its own, 0 or 1, and
their effects may have any shape. That they sum to one does no harm, because a constant has no differences. A day of
1440 minutes and a year of 366 days would be too many columns for what a series shows of each; they are sines and
cosines of the first few waves instead, which join the end of one day or year to the beginning of the next. The week of
the year is left out: the day of the year says the same, without a 53rd week that hardly ever comes.

All columns are at most 1 and count in one fixed unit, so that the ridge holds back what the differences tell little of
(a year, on daily rows) and not what they show (a weekday).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

# name: what pandas calls it, how many places it has, and the first of them
PLACES = {"hour": ("hour", 24, 0), "weekday": ("day_of_week", 7, 0), "month": ("month", 12, 1)}
# name: how many waves; the second is twice as fast as the first, and so on
WAVES = {"minute_of_day": 4, "dayofyear": 3}
NAMES = (*PLACES, *WAVES)


def width(names: Sequence[str]) -> int:
    """How many columns these become.

    >>> width(("weekday", "dayofyear"))
    13
    """
    return sum(PLACES[name][1] if name in PLACES else 2 * WAVES[name] for name in names)


def columns(times: pd.Index, names: Sequence[str]) -> NDArray[np.float64]:
    """The calendar of timestamps or of the beginnings of periods, on their local wall clock, `[rows, width(names)]`.

    >>> columns(pd.DatetimeIndex(["2024-01-01", "2024-01-07"]), ("weekday",)).tolist()
    [[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]]
    """
    when = times.to_timestamp() if isinstance(times, pd.PeriodIndex) else times
    found = [np.empty((len(when), 0))]
    for name in names:
        if name in PLACES:
            called, count, first = PLACES[name]
            place = np.asarray(getattr(when, called))[:, None]
            found.append((place == np.arange(first, first + count)).astype(np.float64))
            continue
        if name == "minute_of_day":
            turn = (when.hour * 60 + when.minute) / 1440
        else:
            turn = (when.day_of_year - 1) / (365 + when.is_leap_year)
        angle = 2 * np.pi * np.asarray(turn, dtype=np.float64)[:, None] * np.arange(1, WAVES[name] + 1)
        found += [np.sin(angle), np.cos(angle)]
    return np.concatenate(found, axis=1)
