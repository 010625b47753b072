"""Intervals that go on learning after `fit`: what was said ahead is kept until it comes due, and what fell outside says
how wide the next intervals are.

Axes: N series, K forecasts that stand, F future step, G stretches of the horizon, Q quantile level.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from .panel import Float, Int, Panel

STANDING = 2  # forecasts of a series that stand at a time, half a horizon apart, or `LEAST_PAUSE` steps
STRETCHES = 4  # parts of the horizon with a width of their own: near steps err in other ways than far ones


class WidthState(NamedTuple):
    """What is kept of every series; see `core.ops.widths`. Until a series has had as many values as `fit` saw of it,
    nothing stands and the widths are those of `fit`: of the values that weights were fitted to nothing was said ahead.
    So it stays with a series that `fit` did not see, whose histories are not gone through for it.
    """

    standing: Float64[Tensor, "N K F 3"]
    told: Int64[Tensor, "N K"]
    widths: Float64[Tensor, "N G"]


def start_widths(count: int, horizon: int, device: torch.device | None = None) -> WidthState:
    """The state of so many series of which nothing was said ahead.

    >>> factors(start_widths(1, 8), 8).tolist()
    [[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]]
    """
    from ..core.ops.widths import oldest

    standing = torch.zeros(count, STANDING, horizon, 3, dtype=torch.float64, device=device)
    told = torch.full((count, STANDING), oldest(horizon, STANDING), dtype=torch.int64, device=device)
    return WidthState(standing, told, standing.new_zeros(count, min(STRETCHES, horizon)))


def target_of(levels: tuple[float, ...]) -> float | None:
    """The share of values that the outermost interval should miss; None where there is no interval around the median,
    so that nothing can be learnt.

    >>> target_of((0.1, 0.5, 0.9)).__round__(6), target_of((0.5, 0.9))
    (0.2, None)
    """
    return 1 - (levels[-1] - levels[0]) if levels[0] < 0.5 < levels[-1] else None


def factors(state: WidthState, horizon: int) -> Float:
    """The factors `[N, F]` on the intervals of every step."""
    from ..core.ops.widths import factors_rows

    out = np.empty((len(state.told), horizon))
    factors_rows(state.widths.cpu().numpy(), out)
    return out


def rows_before(new: Panel, wanted: Float) -> Int:
    """After how many of its new rows `[N]` every series has as many more observed values as are wanted.

    >>> from titans_ts.forecasting.door import read
    >>> panel = read(np.array([[1.0, 2.0, np.nan, 4.0]] * 3).T)[0]
    >>> rows_before(panel, np.array([-1.0, 3.0, 9.0])).tolist()
    [0, 4, 4]
    """
    from ..core.ops.widths import rows_before_some

    out = np.empty(len(new), dtype=np.int64)
    rows_before_some(np.ascontiguousarray(new.values, dtype=np.float64), new.offsets, wanted, out)
    return out


def until_next(state: WidthState) -> Int:
    """Steps `[N]` until every series wants its next standing forecast; 0: now, before its next value."""
    from ..core.ops.widths import until_next_rows

    out = np.empty(len(state.told), dtype=np.int64)
    until_next_rows(state.told.cpu().numpy(), state.standing.shape[2], out)
    return out


def stand(state: WidthState, rows: Int, forecasts: Float) -> WidthState:
    """The state in which these forecasts `[N, F, 3]` of some rows stand, in place of the oldest of each."""
    from ..core.ops.widths import stand_rows

    standing, told = (part.cpu().numpy().copy() for part in state[:2])
    stand_rows(rows, forecasts, standing, told)
    device = state.told.device
    return state._replace(standing=torch.from_numpy(standing).to(device), told=torch.from_numpy(told).to(device))


def learn(state: WidthState, new: Panel, target: float | None) -> WidthState:
    """The state after the rows of `new`, whose series i is row i, none of which goes beyond its next standing
    forecast; target: see `target_of`, None: what stands comes due, and nothing is learnt of it."""
    from ..core.ops.widths import learn_rows, oldest

    standing, told, widths = (part.cpu().numpy() for part in state)
    if target is None:
        told = np.minimum(told + new.lengths[:, None], oldest(standing.shape[2], STANDING))
        return state._replace(told=torch.from_numpy(told).to(state.told.device))
    told, widths = told.copy(), widths.copy()
    values = np.ascontiguousarray(new.values, dtype=np.float64)
    learn_rows(values, new.offsets, target, standing, told, widths)
    device = state.told.device
    return state._replace(told=torch.from_numpy(told).to(device), widths=torch.from_numpy(widths).to(device))
