"""A fitted forecaster for one observation after the other, in microseconds, without frames, ids and clocks.

N series of a call, F future step, Q quantile.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from ..core.config import require
from ..core.ops.fading import finish_some, take_in_some
from ..core.ops.widths import learn_some, oldest, stand_rows, waiting_rows
from .calibration import Calibration, next_to_median
from .fading import Fading, FadingState
from .forecast import Forecast
from .grain import Grain
from .inference import PanelState
from .panel import Float, Int
from .transform import Arcsinh
from .widths import WidthState, target_of

if TYPE_CHECKING:
    from ..models.fused import FusedModel, Readout
    from .forecaster import TitansForecaster


class StreamingForecaster:
    """What `TitansForecaster.update` and `predict` compute, on plain arrays and compiled whole.

    `from_forecaster` copies the weights and the states of all series; the forecaster stays as it is. Row i is series i
    of its `fitted_ids_`. Unlike everywhere else the states here are changed in place: one session, one thread.
    `panel_state` gives them back, and torch goes on exactly from there. Only the wiring "lmm" has this form.

    >>> from titans_ts.forecasting.forecaster import TitansForecaster
    >>> from titans_ts.forecasting.training import TrainConfig
    >>> y = np.sin(np.arange(300) / 4)
    >>> forecaster = TitansForecaster(horizon=8, train=TrainConfig(steps=2), random_state=0).fit(y)
    >>> stream = StreamingForecaster.from_forecaster(forecaster)
    >>> stream.update(0, math.sin(75))
    >>> bool(np.allclose(stream.forecast(0).point[0], forecaster.update(np.sin([75])).predict(), rtol=1e-4))
    True
    """

    def __init__(
        self,
        model: FusedModel,
        readout: Readout,
        fading: Fading,
        calibration: Calibration,
        held: FadingState,
        widths: WidthState,
        levels: tuple[float, ...],
        transform: Arcsinh,
        grain: Grain,
        loose: NDArray[np.bool_],
        *,
        adapt: bool = True,
        writes: bool = True,
        point: Literal["mean", "median"] = "mean",
        non_negative: bool = False,
    ) -> None:
        self.model, self.readout, self.levels = model, readout, levels
        self.writes, self.point, self.non_negative = adapt and writes, point, non_negative
        self.transform, self.grain, self._loose = transform, grain, loose
        *parts, own = (part.cpu().numpy().copy() for part in held)
        parts[2], parts[-1] = readout.seen, readout.usual  # the same arrays: an update is seen by both
        self._fading = (fading.rates, fading.weights, own, readout.known, *parts)
        shares = [getattr(calibration, name) for name in ("mean", "median", "head", "width", "lean", "bounded")]
        shares.append(point == "median")
        self._shares, self._middle = np.array(shares, dtype=np.float64), np.array(next_to_median(levels))
        self.tails = calibration.tails
        self._table = np.array(calibration.table, dtype=np.float64, order="C")
        self._habits = np.array(calibration.habits, dtype=np.float64, order="C")
        self._sizes = np.array(calibration.sizes, dtype=np.float64, order="C")
        self._widths = tuple(part.cpu().numpy().copy() for part in widths)
        self._target = target_of(levels) if adapt else None
        self._row, self._value = np.zeros(1, dtype=np.int64), np.zeros(1)
        self._waiting = np.zeros(len(own), dtype=np.int64)

    @classmethod
    def from_forecaster(cls, forecaster: TitansForecaster) -> StreamingForecaster:
        """The stream that goes on where a fitted forecaster stands."""
        from ..models.fused import FusedModel, Readout

        check_is_fitted(forecaster, "_known")
        require(
            forecaster.covariates_ is None,
            "a forecaster with covariates has no compiled form (the calendar is one): go on with its update() and "
            "predict(), or fit without.",
        )
        require(
            forecaster.joint_ is None or not forecaster.joint_.speaks,
            "a forecaster whose series are modelled jointly has no compiled form, for a forecast looks at several: "
            "go on with its update() and predict(), or fit without group= and multivariate=.",
        )
        require(
            not forecaster.voices_,
            "an ensemble has no compiled form: go on with its update() and predict(), or fit with ensemble=1.",
        )
        model, held = forecaster.model_, forecaster._known.state
        linear, profile = np.zeros((0, model.config.context * model.config.horizon)), np.zeros((1, 0))
        pull, known = np.zeros((1, 0)), np.array(forecaster.fading_.known, order="C")
        path = forecaster.linear_
        if path is not None:
            linear = np.array(path.weights, dtype=np.float64, order="C").reshape(-1, linear.shape[1])
            if path.profile is not None:
                profile = np.array(path.profile, dtype=np.float64, order="C").reshape(len(path.profile), -1)
            if path.pull is not None:
                pull = np.array(path.pull, dtype=np.float64, order="C")
        rows, steps = (part.cpu().numpy().copy() for part in (held.fading.own, held.steps))
        seen, usual = (part.cpu().numpy().copy() for part in (held.fading.counts, held.fading.usual))
        readout = Readout(linear, profile, pull, known, seen, usual, rows, steps, float(forecaster.correction_))
        with torch.no_grad():
            fused = FusedModel(model, held.series)
        return cls(
            fused,
            readout,
            forecaster.fading_,
            forecaster.calibration_,
            held.fading,
            held.widths,
            forecaster.levels_,
            forecaster.transform_,
            forecaster.grain_,
            held.loose.cpu().numpy().copy(),
            adapt=forecaster.adapt,
            writes=model.config.backbone.writes,
            point=forecaster.point,
            non_negative=forecaster.non_negative,
        )

    def __len__(self) -> int:
        return len(self.model)

    def update(self, rows: int | ArrayLike, values: float | ArrayLike) -> None:
        """The next value of each of these series, NaN where missing; no series twice in one call."""
        if isinstance(rows, (int, np.integer)):
            self._row[0], self._value[0] = rows, values
            require(bool(0 <= rows < len(self)), f"row {rows} does not exist: there are {len(self)} series.")
            require(
                not math.isinf(self._value[0]), f"the value of row {rows} is infinite: pass NaN where it is missing."
            )
            self._take_in(self._row, self._value)
            return
        places = self._checked(rows)
        numbers = np.array(values, dtype=np.float64, order="C")
        require(
            numbers.shape == places.shape, f"{len(places)} rows and values of shape {numbers.shape}: one value a row."
        )
        twice = np.flatnonzero(np.bincount(places, minlength=1) > 1)
        require(not twice.size, f"row {twice[:1]} came twice: a call takes one value of a series.")
        infinite = np.isinf(numbers)
        require(not infinite.any(), f"{infinite.sum()} values are infinite: pass NaN where a value is missing.")
        self._take_in(places, numbers)

    def _take_in(self, rows: Int, values: Float) -> None:
        if self.non_negative and (values < 0).any():
            first = int(np.flatnonzero(values < 0)[0])
            raise ValueError(
                f"the value of row {rows[first]} is negative ({values[first]:g}), and non_negative=True promises "
                "values of 0 and more: correct it, or pass NaN where it is missing."
            )
        if self.grain.speaks:
            self._loose[rows] |= self.grain.misses(values, self._fading[2][rows])
        if self.transform.moves:
            values = self.transform.forward(values, self._fading[2][rows])
        standing, told, widths = self._widths
        if self._target is None:
            told[rows] = np.minimum(told[rows] + 1, oldest(standing.shape[2], standing.shape[1]))
        else:
            own, counts = self._fading[2], self.readout.seen
            count = waiting_rows(rows, told, standing.shape[2], counts, own, self._habits, self._waiting)
            if count:
                waiting = self._waiting[:count].copy()
                stand_rows(waiting, self._spoken(waiting)[2], standing, told)
            learn_some(rows, values, self._target, standing, told, widths)
        self.model.update(rows, values, self.writes)
        take_in_some(rows, values, *self._fading)
        self.readout.steps[rows] += 1

    def forecast(self, rows: int | ArrayLike) -> Forecast:
        """Forecasts [N, F] and quantiles [N, F, Q] of these series; nothing is changed.

        They are those of `predict` at the trained levels: with `non_negative=True` and of series that come in steps
        they are cut and moved already, so that between two levels they can lie a step from what `predict` says there.
        """
        if isinstance(rows, (int, np.integer)):
            require(bool(0 <= rows < len(self)), f"row {rows} does not exist: there are {len(self)} series.")
            self._row[0] = rows
            places = self._row
        else:
            places = self._checked(rows)
        points, quantiles, _ = self._spoken(places)
        if self.transform.moves:
            points, quantiles = (self.transform.back(part, self._fading[2][places]) for part in (points, quantiles))
        if not self.non_negative and not self.grain.speaks:
            return Forecast(points, quantiles, self.levels, tails=self.tails)
        least = 0.0 if self.non_negative else -math.inf
        grid = self.grain.at(self._fading[2][places], self._loose[places])
        if grid is not None and self.point == "median":
            points = grid.moved(points, least)
        return Forecast(points, quantiles, self.levels, least, self.tails, grid).cut()

    def _spoken(self, rows: Int) -> tuple[Float, Float, Float]:
        """Forecasts [N, F] and quantiles [N, F, Q] of these rows on the scales of `transform`, and what is kept of them
        until they come due [N, F, 3]."""
        points, quantiles, scales = self.model.forecast(rows, self.readout)
        rates, weights, own, known, members, _, *held = self._fading
        standing = np.empty((*points.shape, 3))
        finish_some(
            rows, rates, weights, own, members, *held, known, self.readout.steps, self._shares, self._middle,
            self._table, self._habits, self._sizes, self._widths[2], scales, points, quantiles, standing,
        )  # fmt: skip
        return points, quantiles, standing

    def panel_state(self) -> PanelState:
        """The states of all series as `TitansForecaster` has them: a copy."""
        _, _, own, _, *held = self._fading
        steps, *parts = (torch.from_numpy(part.copy()) for part in (self.readout.steps, *held, own))
        widths = WidthState(*(torch.from_numpy(part.copy()) for part in self._widths))
        loose = torch.from_numpy(self._loose.copy())
        return PanelState(self.model.series_state(), steps, FadingState(*parts), widths, loose)

    def _checked(self, rows: ArrayLike) -> Int:
        places = np.array(
            rows, dtype=np.int64, order="C"
        )  # copies: for a read-only or strided array all would compile anew
        require(places.ndim == 1, f"rows have shape {places.shape}: pass one row or a flat list of rows.")
        if places.size:
            wrong = places[(places < 0) | (places >= len(self))]
            require(not wrong.size, f"row {wrong[:1]} does not exist: there are {len(self)} series.")
        return places
