"""States of whole panels: `prefill` makes them from histories, `advance` moves them over new rows. Both are pure.

Panels go through in blocks of rows and of time, so that memory does not grow with the panel; by the split law the
blocks do not show in the result.

N series, B rows of one block, T time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from jaxtyping import Int as IntTensor
from torch import Tensor

from ..core.layers import last_rows
from ..core.state import join_rows, leaves, put_rows, select_rows
from ..models.timeseries import SeriesState, TimeSeriesModel
from .fading import FadingState
from .panel import Int, Panel
from .widths import WidthState

ROWS = 512  # series that go through the model together
VALUES = 2**19  # values of the windows of one pass, 4 MB; with what is computed on the way about ten times that


class PanelState(NamedTuple):
    """What is kept of every series: the model's state, which step of the clock comes next (`LOST`: that is not known,
    nor is the place of the season), its fading memories, the widths of its intervals, and what its covariates leave
    behind (nothing without covariates), and whether a value lay off the steps of its series (`Grain`)."""

    series: SeriesState
    steps: IntTensor[Tensor, " N"]
    fading: FadingState
    widths: WidthState
    loose: Bool[Tensor, " N"]
    covariates: Any = ()  # a CovariateState
    voices: tuple[SeriesState, ...] = ()  # of the further models of an ensemble


def prefill(model: TimeSeriesModel, past: Panel) -> SeriesState:
    """The state after these histories; row i is series i.

    >>> prefill(model, past).position.tolist()
    [120, 96]
    """
    return advance(model, model.initial_state(len(past)), past)


@torch.no_grad()
def advance(model: TimeSeriesModel, state: SeriesState, new: Panel, *, adapt: bool = True) -> SeriesState:
    """The state after `new`, row by row, exactly as if it had come with the past.

    Costs time in the length of `new` only. `adapt=False` moves everything on but the memories.

    >>> advance(model, prefill(model, past), later).position.tolist()
    [130, 96]
    """
    if not len(new):
        return state
    order = np.argsort(-new.lengths, kind="stable")
    parts = [_block(model, state, new, order[i : i + ROWS], adapt) for i in range(0, len(order), ROWS)]
    back = torch.from_numpy(np.argsort(order, kind="stable")).to(state.position.device)
    return select_rows(join_rows(parts), back)


def _block(model: TimeSeriesModel, state: SeriesState, new: Panel, rows: Int, adapt: bool) -> SeriesState:
    device = state.position.device
    part = select_rows(state, torch.from_numpy(rows).to(device))
    values, lengths = padded(new.select(rows), device)
    config = model.config
    step = max(1, VALUES // (len(rows) * config.context)) * config.patch
    for start in range(0, values.shape[1], step):
        piece = values[:, start : start + step]
        here = (lengths - start).clamp(0, piece.shape[1])
        if int(here.min()) == piece.shape[1]:
            _, part = model.encode(piece, part, adapt=adapt)
            continue
        alive = here.nonzero().squeeze(1)
        _, moved = model.encode(piece[alive], select_rows(part, alive), here[alive], adapt=adapt)
        part = put_rows(part, alive, moved)
    return part


def rolled(window: Tensor, new: Panel) -> Tensor:
    """Windows `[N, L]` after the rows of `new`, whose series i is row i.

    >>> rolled(torch.tensor([[1.0, 2.0]], dtype=torch.float64), past.select([0]).head(1)).shape
    torch.Size([1, 2])
    """
    values, lengths = padded(new, window.device)
    return last_rows(torch.cat([window, values], 1), window.shape[1], lengths)


def padded(panel: Panel, device: torch.device) -> tuple[Tensor, Tensor]:
    """Values [B, T] of a panel, NaN behind the end of a series, and the lengths [B]."""
    lengths = panel.lengths
    most = int(lengths.max(initial=0))
    values = np.full((len(panel), most), np.nan)
    values[np.arange(most) < lengths[:, None]] = panel.values
    return torch.from_numpy(values).to(device), torch.from_numpy(lengths).to(device)


def state_tensors(state: SeriesState) -> dict[str, Tensor]:
    """A state as named tensors, for a checkpoint."""
    return {f"state.{place}": leaf for place, leaf in enumerate(leaves(state))}


def state_from_tensors(model: TimeSeriesModel, tensors: dict[str, Tensor]) -> SeriesState:
    """The inverse of `state_tensors`; the structure is the model's own."""

    def fill(part: object, place: list[int]) -> object:
        if isinstance(part, Tensor):
            place[0] += 1
            return tensors[f"state.{place[0] - 1}"].to(part.device)
        filled = [fill(inner, place) for inner in part]  # type: ignore[attr-defined]
        return type(part)(*filled) if hasattr(part, "_fields") else tuple(filled)

    with torch.no_grad():
        return fill(model.initial_state(1), [0])  # type: ignore[return-value]
