"""Forecasts of windows whose truth is known, part by part, as `calibrate` wants them: of validation rows, by the models
where these were judged there and else by the linear path alone, and of training rows, where series are long.

W windows, H horizon, L context, Q quantile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from ..core.config import require
from ..models.timeseries import TimeSeriesModel, window_scale
from .calibration import Judged, error_unit
from .doubt import JUDGED
from .ensemble import averaged
from .fading import Fading
from .joint import More
from .linear import LinearPath, apply_linear
from .panel import Float, Int, Panel
from .training import Batch, Fitted
from .windows import cut, in_proportion, places, spread, windows_between

BY_HEART = 20  # windows for each row of the context, below which a linear path fits them better than it forecasts
LONG = 8  # the same in one series, from which on the errors of its training rows tell how large errors are
BEFORE = 2  # windows of training rows that tell so, for each one of validation rows


class Said(NamedTuple):
    """Forecasts [W, H] of series [W] behind some number of their rows [W] in the order of time, what came, the head's
    quantiles around them [W, H, Q] (None without a trained head), and the deviations of the windows [W]."""

    series: Int
    origins: Int
    truth: Float
    main: Float
    head: Float | None
    deviation: Float

    def at(self, rows: Int) -> Said:
        """These of the forecasts."""
        series, origins, truth, main, head, deviation = self
        head = None if head is None else head[rows]
        return Said(series[rows], origins[rows], truth[rows], main[rows], head, deviation[rows])


def said_by_linear(path: LinearPath, panel: Panel, begin: Int, stop: Int, most: int = JUDGED) -> Said:
    """Forecasts of the linear path alone for rows `begin[i], ..., stop[i] - 1`, or for all rows where those are none:
    of about `most` windows."""
    windows = windows_between(panel, path.context_length, path.horizon, begin, stop)
    if not windows.total:
        windows = windows_between(panel, path.context_length, path.horizon, np.zeros_like(begin), panel.lengths)
    series, origins = places(spread(windows, most))
    order = np.argsort(origins / panel.lengths[series], kind="stable")
    series, origins = series[order], origins[order]
    contexts, truth = cut(windows, series, origins)
    rows, steps = path.rows_of(panel.ids)[series], panel.starts[series] + origins
    main = apply_linear(path, contexts, rows, steps, panel.usual_before(series, origins))
    return Said(series, origins, truth, main, None, window_scale(torch.from_numpy(contexts))[1].numpy())


def said_by_model(batch: Batch, weight: float) -> Said:
    """Forecasts of the model, with this weight of its correction."""
    numbers = (batch.base, batch.shift, batch.scale, batch.truth)
    base, shift, scale, truth = (part.double().cpu().numpy() for part in numbers)
    series, origins, offsets = (part.cpu().numpy() for part in (batch.series, batch.origin, batch.offsets))
    return Said(series, origins, truth, base + weight * scale[:, None] * shift, scale[:, None, None] * offsets, scale)


def said_in_validation(
    learnt: Sequence[tuple[TimeSeriesModel, Fitted]], path: LinearPath, panel: Panel, ends: Int, linear: bool
) -> Said:
    """Forecasts of the rows behind `ends`: of all models together if each was judged, else of the linear path alone
    (`linear`: whether it forecasts), and of earlier rows where nothing was observed there."""
    said, heads = None, [fitted.judged for _, fitted in learnt if fitted.judged is not None]
    if len(heads) == len(learnt):
        said = said_by_model(*averaged(heads, [fitted.weight for _, fitted in learnt]))
    if said is None or not np.isfinite(said.truth).any():
        require(
            linear or said is not None,
            "no series is long enough to train on: leave the linear path on (train__linear).",
        )
        said = said_by_linear(path, panel, ends, panel.lengths)
        if not np.isfinite(said.truth).any():  # nothing was observed in the validation rows
            said = said_by_linear(path, panel, np.zeros_like(ends), panel.lengths)
    return said


def said_before(said: Said, path: LinearPath, panel: Panel, ends: Int) -> Said | None:
    """Forecasts of the linear path for the rows before `ends`, if series are long enough for these to tell how large
    errors are, and `said` is of rows behind."""
    long = np.maximum(ends - path.horizon, 0).mean() >= LONG * path.context_length
    if not long or not (said.origins >= ends[said.series]).any():
        return None
    before = said_by_linear(path, panel, np.zeros_like(ends), ends, min(BEFORE * len(said.series), JUDGED))
    return before.at(in_proportion(panel, before.series))


def judge(said: Said, fading: Fading, more: More | None, panel: Panel, scales: Float, horizons: float) -> Judged:
    """These forecasts, with what `more` adds to them, beside those of the fading memories."""
    slow, ripe, surprise, bounds = fading.at(panel, said.series, said.origins, said.truth.shape[1])
    main = said.main if more is None else said.main + more(said.series, said.origins)
    unit = error_unit(said.deviation, surprise)
    deviation = np.sqrt(np.nan_to_num(panel.usual_before(said.series, said.origins)[:, 1]))
    steps, scale = panel.starts[said.series] + said.origins, scales[said.series]
    return Judged(
        said.series, said.truth, main, slow, ripe, said.head, unit, surprise, deviation, bounds, steps, scale, horizons
    )  # fmt: skip


def validated_horizons(said: Said, panel: Panel, ends: Int, context: int) -> float:
    """How many horizons the validation rows of a series are long, on average over the series that have some.

    Where the forecasts are of training rows, those stand in for one horizon if there are so many that the linear path
    cannot have learnt them by heart, and else for none.
    """
    horizon = said.truth.shape[1]
    later = said.origins >= ends[said.series]
    if (np.isfinite(said.truth).any(1) & later).any():
        return float((panel.lengths - ends)[panel.lengths > ends].mean()) / horizon
    return float(np.maximum(panel.lengths - horizon, 0).sum() >= BY_HEART * context)


def together(one: More | None, other: More) -> More:
    """What both add."""
    return other if one is None else lambda series, origins: one(series, origins) + other(series, origins)
