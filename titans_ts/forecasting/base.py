"""What every forecaster shares: frames in, frames out, and the rules in between. A subclass brings only the numbers.

A subclass stores its constructor parameters (those annotated on `PanelForecaster`, and its own) and has six hooks. All
but `_learn` are pure: states go in and come out, row i of a state is series i.

| hook | promise |
|---|---|
| `_learn(panel)` | learns what all series share into attributes that end in `_`, `scores_` (`copula.py`) among them |
| `_start(panel) -> state` | the state after these histories |
| `_advance(state, rows, new) -> state` | the whole state after `new` came, whose series i is row `rows[i]` |
| `_append(state, other) -> state` | the rows of `other` after those of `state` |
| `_forecast(state, rows) -> Forecast` | those rows, over the whole fitted horizon, at the trained quantile levels |
| `_recent(state, rows) -> values` | the last values `[N, T]` that the state holds of those rows, NaN where unknown |

What the series share is learnt from each as much as `panel.weights` says (`Panel.shares`). A forecaster with covariates
has two more hooks: `_schema(fitted)` names their columns and the calendar, and `_effect(state, rows, ahead)` says what
known covariates `ahead` `[N, F, K]` add to the forecast of every step. One that reads the clock has `_displaced(state,
rows)`, for arrays of which nobody knows at which step they begin. One that models series jointly has `_joined(panel, y)
-> (panel, reasons)`, which says what belongs together (`Panel.groups`) and which series were left on their own, and
`_company(panel, series, origin) -> (series, origin)`: the states that forecasts behind these rows look at besides.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from typing import Any, NoReturn, Self, SupportsFloat

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted

from . import calendar
from .backtest import Windows, roll
from .clock import Clock, CountClock, season_length
from .copula import paths
from .door import read, read_future, show
from .forecast import Forecast, interval_levels, quantiles_at
from .intake import weights_of
from .layout import Layout
from .metrics import weighted_quantile_loss
from .panel import DataError, Float, Int, Panel, Schema, future_times, shorten
from .plotting import draw

MOST_PLOTTED = 4  # series that a picture shows where none were named
MOST_MASKED = 100_000  # unobserved steps before new rows that on_gap="mask" fills: more is a wrong year


@dataclass(frozen=True, eq=False)
class Known:
    """What a forecaster knows of its series: ids, ends on the clock, state. Replaced whole, never changed."""

    ids: tuple[Hashable, ...]
    ends: Int
    phases: Int
    clock: Clock
    state: Any

    @cached_property
    def rows(self) -> Mapping[Hashable, int]:
        """Which row of the state a series has."""
        return {name: row for row, name in enumerate(self.ids)}


class PanelForecaster(BaseEstimator):  # type: ignore[misc, unused-ignore]
    """Fit, predict, update and score panels; see the module for the hooks.

    Rows of a panel are not exchangeable, so scikit-learn's rules hold wherever they speak of parameters, cloning,
    fitting, tags, display, pickling and search (with a splitter that cuts every series in time), and its array checks
    do not apply.
    """

    horizon: int
    freq: str | int | None
    season_length: int | None
    quantiles: Sequence[float]
    on_gap: str
    on_duplicate: str
    id_col: str
    time_col: str
    target_col: str

    freq_: str | int
    season_length_: int
    skipped_: dict[Hashable, str]
    scores_: Float
    _known: Known
    _layout: Layout

    # Hooks

    def _learn(self, panel: Panel) -> None:
        raise NotImplementedError

    def _start(self, panel: Panel) -> Any:
        raise NotImplementedError

    def _start_to_judge(self, panel: Panel) -> Any:
        """`_start`, where only forecasts are wanted of the state: as much of it as they are made from will do."""
        return self._start(panel)

    def _displaced(self, state: Any, rows: Int) -> Any:
        """The state where nobody knows at which steps of the clock these rows of it began; the same for most."""
        return state

    def _advance(self, state: Any, rows: Int, new: Panel) -> Any:
        raise NotImplementedError

    def _append(self, state: Any, other: Any) -> Any:
        raise NotImplementedError

    def _forecast(self, state: Any, rows: Int) -> Forecast:
        raise NotImplementedError

    def _recent(self, state: Any, rows: Int) -> Float:
        raise NotImplementedError

    def _schema(self, fitted: bool) -> Schema | None:
        return None

    def _joined(self, panel: Panel, y: Any) -> tuple[Panel, dict[Hashable, str]]:
        return panel, {}

    def _company(self, panel: Panel, series: Int, origin: Int) -> tuple[Int, Int]:
        return series[:0], origin[:0]

    def _effect(self, state: Any, rows: Int, ahead: Float) -> Float:
        raise NotImplementedError

    # The public surface

    def fit(self, y: Any, X: object = None, sample_weight: Any = None) -> Self:
        """Learn from the panel `y` and remember where each series ends; `X` is ignored (searches pass it).

        `y` is a long frame, a Series or wide frame with a time index, a 1-D or 2-D array `[time, series]`, or an
        iterable of GluonTS entries.

        `sample_weight` says how much each series counts in what all of them share: a dict or a pandas Series by id, or
        one number a series in the order of `fitted_ids_`. Its errors count that many times, wherever a fit or a choice
        sums over series; a series of weight 2 is as good as two alike. Only the ratios matter. A series of weight 0 is
        forecast, as one that `fit` did not see, and not learnt from. What a series has for itself (its state, its own
        map) does not depend on its weight, but for how it is drawn to the others.

        >>> from titans_ts import Ridge
        >>> y = np.column_stack([np.sin(np.arange(60)), np.arange(60) % 7])
        >>> alone, both = Ridge(horizon=3).fit(y[:, 0]), Ridge(horizon=3).fit(y, sample_weight=[1, 0])
        >>> bool(np.allclose(both.predict()[:, 0], alone.predict()))
        True
        """
        _whole(self.horizon, "horizon")
        panel, layout, skipped = self._read(y)
        panel, alone = self._joined(panel, y)
        return self._fit(_weighted(panel, sample_weight), layout, {**skipped, **alone})

    def predict(
        self,
        horizon: int | None = None,
        y: Any = None,
        quantiles: Iterable[float] | None = None,
        level: float | Iterable[float] | None = None,
        future: Any = None,
        ids: Iterable[Hashable] | None = None,
    ) -> Any:
        """Forecasts in the kind of the data that came (`Layout` has the table); nothing is changed.

        The point forecast's column has the class's name, `quantiles=(0.1,)` adds `<name>-ql0.1`, `level=(80,)` adds
        `<name>-lo-80` and `<name>-hi-80`. `y=` forecasts these histories instead, with what was learnt, and forgets
        them; of an array shorter than what is known nobody can say where in the season it lies, so that it does without
        the seasonal profile. `ids=` picks series. `future=` is a long frame with the known covariates of every step to
        forecast, whose rows `make_future_frame` gives.
        """
        check_is_fitted(self, "_known")
        steps = self._steps(horizon)
        known, layout = self._histories(y)
        rows = _rows_of(known, ids)
        ahead = self._read_ahead(future, known, rows, steps)
        forecast = self._forecast(known.state, rows)
        forecast = forecast._replace(point=forecast.point[:, :steps], quantiles=forecast.quantiles[:, :steps])
        forecast = self._with_effect(forecast, known.state, rows, ahead)
        times = future_times(known.clock, known.ends[rows], known.phases[rows], steps)
        return layout.write(tuple(known.ids[row] for row in rows), times, self._columns(forecast, quantiles, level))

    def make_future_frame(
        self, horizon: int | None = None, y: Any = None, ids: Iterable[Hashable] | None = None
    ) -> Any:
        """The rows that `predict` with the same arguments forecasts, as a long frame of id and time: fill in the known
        covariates and pass it as `future=`.

        >>> from titans_ts.forecasting.baselines import SeasonalNaive
        >>> SeasonalNaive(horizon=2).fit(np.arange(3.0)).make_future_frame()
           unique_id  ds
        0          0   3
        1          0   4
        """
        check_is_fitted(self, "_known")
        steps = self._steps(horizon)
        known: Known | Panel = self._known
        layout = self._layout
        if y is not None:
            known, layout, _ = self._read(y, clock=known.clock)
        rows = _rows_of(known, ids)
        layout = layout if layout.kind in ("long", "native") else replace(layout, kind="long")
        times = future_times(known.clock, known.ends[rows], known.phases[rows], steps)
        return layout.write(tuple(known.ids[row] for row in rows), times, {})

    def update(self, y_new: Any) -> Self:
        """Take in the rows that follow: time and memory grow with the new rows only. All of them are taken, or none.

        Every series must go on at its next step; a new id begins a new series; series without new rows stay as they
        are.
        """
        check_is_fitted(self, "_known")
        known = self._known
        new, skipped = self._read_on(y_new, known)
        targets = np.array([known.rows.get(name, -1) for name in new.ids], dtype=np.int64)
        old, fresh = np.flatnonzero(targets >= 0), np.flatnonzero(targets < 0)
        state, ids, ends, phases = known.state, known.ids, known.ends, known.phases
        if old.size:
            state = self._advance(state, targets[old], new.select(old))
            ends = ends.copy()
            ends[targets[old]] = new.ends[old]
        if fresh.size:
            born = new.select(fresh)
            state = self._append(state, self._start(born))
            ids, ends, phases = ids + born.ids, np.concatenate([ends, born.ends]), np.concatenate([phases, born.phases])
        self._known, self.skipped_ = Known(ids, ends, phases, known.clock, state), {**self.skipped_, **skipped}
        return self

    def score(self, y: Any, X: object = None) -> float:
        """Minus the scaled CRPS of the rows `y` that follow what is known (larger is better); nothing is changed.

        Rows beyond the horizon are forecast after the rows before them came. The CRPS is twice the quantile loss
        averaged over the trained levels, divided by the mean of `|y|` over the whole panel (the weighted quantile loss
        of GluonTS and GIFT-Eval): a series of zeros cannot spoil it, and a large series counts more than a small one.
        """
        check_is_fitted(self, "_known")
        new, _ = self._read_on(y, self._known)
        strangers = [name for name in new.ids if name not in self._known.rows]
        if strangers:
            raise DataError(
                f"series {shorten(strangers)} cannot be scored: no history is known. "
                "Fix: update() with their past, or drop them."
            )
        rows = np.array([self._known.rows[name] for name in new.ids], dtype=np.int64)
        state, truths, forecasts = self._known.state, [], []
        while True:
            now = new.head(self.horizon)
            forecast = self._with_effect(self._forecast(state, rows), state, rows, self._ahead_in(now))
            inside = np.arange(self.horizon) < now.lengths[:, None]
            truths.append(now.values)
            forecasts.append(forecast.cut().quantiles[inside])
            more = np.flatnonzero(new.lengths > self.horizon)
            if not more.size:
                break
            state = self._advance(state, rows[more], now.select(more))
            rows, new = rows[more], new.select(more).drop_head(self.horizon)
        return -weighted_quantile_loss(np.concatenate(truths), np.concatenate(forecasts), forecast.levels)

    def backtest(
        self,
        y: Any,
        n_windows: int = 3,
        step_size: int | None = None,
        refit: bool | int = False,
        update: bool = True,
        level: float | Iterable[float] | None = None,
        quantiles: Iterable[float] | None = None,
        sample_weight: Any = None,
    ) -> Any:
        """What this forecaster would have said at the last `n_windows` origins of every series, beside what came.

        The origins are `step_size` (None: the horizon) apart, and the horizon of the last one ends with its series. The
        frame has the columns of Nixtla's `cross_validation`: id, time, `cutoff` (the last timestamp that the forecast
        knew), `y`, `<name>`, and those that `level` and `quantiles` add in `predict`; origin by origin inside each
        series. Frames of other libraries come back in theirs; Series, wide frames and arrays as a long pandas frame. A
        step without an observation has `y` NaN.

        `refit=False` learns once, on the rows before the first origin; `True` learns anew at each, an integer k at
        every k-th. In between the rows that came are taken in as `update` does; with `update=False` the neural
        memories and the widths of intervals stand still meanwhile and all else moves on (without them that is the
        same). A copy does the work: this
        forecaster, fitted or not, stays as it is, and nothing it has learnt is used. `sample_weight` is that of `fit`.
        `verbose=1` prints a line a window to stderr.

        A series that has no value before the first origin is an error, or is left out with `on_bad="skip"`.

        >>> from titans_ts import SeasonalNaive
        >>> SeasonalNaive(horizon=1, season_length=2).backtest(np.array([1.0, 2.0, 3.0, 5.0, 4.0]), n_windows=2)
           unique_id  ds  cutoff    y  SeasonalNaive
        0          0   3       2  5.0            2.0
        1          0   4       3  4.0            3.0
        """
        _whole(self.horizon, "horizon")
        windows = Windows(
            count=_whole(n_windows, "n_windows", "windows"),
            step=self.horizon if step_size is None else _whole(step_size, "step_size"),
            horizon=int(self.horizon),
        )
        every = int(refit) if isinstance(refit, bool) else _whole(refit, "refit", "windows")
        self._wanted(quantiles, level)  # what is wrong there is found before anything is fitted
        panel, layout, _ = self._read(y)
        panel = _weighted(self._joined(panel, y)[0], sample_weight)
        panel, work = windows.fitting(panel, skip=getattr(self, "on_bad", "raise") == "skip"), clone(self)
        if not update and hasattr(work, "adapt"):
            work.adapt = False
        truths, forecast = roll(work, panel, layout, windows, every, verbose=getattr(self, "verbose", 0))
        columns = {self.target_col: truths, **self._columns(forecast, quantiles, level)}
        cutoffs = (panel.ends[:, None] - panel.lengths[:, None] + windows.origins(panel)).ravel()
        phases = np.repeat(panel.phases, windows.count)
        ids = tuple(name for name in panel.ids for _ in range(windows.count))
        times = future_times(panel.clock, cutoffs, phases, windows.horizon)
        origins = panel.clock.times(np.repeat(cutoffs, windows.horizon), np.repeat(phases, windows.horizon))
        return layout.long.write_windows(ids, times, origins, columns)

    def simulate(
        self,
        n_paths: int = 100,
        horizon: int | None = None,
        y: Any = None,
        ids: Iterable[Hashable] | None = None,
        seed: int | None = None,
        future: Any = None,
    ) -> Any:
        """Paths that the series might take, whose steps belong together; nothing is changed.

        The frame has the columns of Nixtla's `simulate`: id, time, `sample_id` (0, 1, ...) and `<name>`; path by path
        inside each series. Frames of other libraries come back in theirs; Series, wide frames and arrays as a long
        pandas frame.

        At every step the paths have the quantiles of `predict`. How the steps hang together is drawn from the
        validation windows: `fit` keeps of a few hundred of them where each truth lay among the quantiles of its
        forecast, and a path takes those places of one window, by rank, from step to step (an empirical copula;
        `copula.py`). Where the validation rows have less than 20 windows, those of the later half of each series are
        taken. The series are drawn independently of each other.

        The same `seed` gives a series the same paths, whichever `ids` are asked for and however far they go; None draws
        new ones each time. `y=` continues these histories instead, and `future=` brings known covariates, as in
        `predict`.

        >>> from titans_ts import Ridge
        >>> sample = Ridge(horizon=3).fit(np.sin(np.arange(99.0))).simulate(2, seed=0)
        >>> list(sample), sample["sample_id"].tolist()
        (['unique_id', 'ds', 'sample_id', 'Ridge'], [0, 0, 0, 1, 1, 1])
        """
        check_is_fitted(self, "_known")
        count, steps = _whole(n_paths, "n_paths", "paths"), self._steps(horizon)
        known, layout = self._histories(y)
        rows = _rows_of(known, ids)
        forecast = self._forecast(known.state, rows)
        ahead = self._read_ahead(future, known, rows, steps, by="simulate")
        if ahead is not None:  # drawn over the whole horizon, so that shorter paths are the beginnings of longer ones
            ahead = np.pad(ahead, ((0, 0), (0, self.horizon - steps), (0, 0)), mode="edge")
        forecast = self._with_effect(forecast, known.state, rows, ahead)
        values = paths(forecast, self.scores_, rows, count, seed)[..., :steps]
        names = tuple(known.ids[row] for row in rows for _ in range(count))
        times = future_times(
            known.clock, np.repeat(known.ends[rows], count), np.repeat(known.phases[rows], count), steps
        )
        sample = np.tile(np.repeat(np.arange(count), steps), len(rows))
        columns = {"sample_id": sample, type(self).__name__: values.reshape(-1, steps)}
        return layout.long.write(names, times, columns)

    def plot(
        self,
        ids: Iterable[Hashable] | None = None,
        history: int | None = None,
        level: float | Iterable[float] | None = (80,),
        ax: Any = None,
    ) -> Any:
        """A picture of the last values and the forecast of each of these series, with its intervals; the figure.

        ids: the series, one below the other; None: the first four. history: how many of the last values to show, at
        most as many as the state holds (the context; a season for `SeasonalNaive`); None: all of those. level: the
        intervals in per cent; None: none. ax: a matplotlib `Axes`, or one for each series, to draw into; None: a new
        figure, which pyplot never hears of.
        """
        check_is_fitted(self, "_known")
        schema = self._schema(fitted=True)
        if schema is not None and schema.ahead:
            raise ValueError(
                "plot() shows what the state holds, and with known covariates or a calendar that is the series without "
                "their effect: draw what predict() gives beside your own data instead."
            )
        known = self._known
        rows = np.arange(len(known.ids))[:MOST_PLOTTED] if ids is None else _rows_of(known, ids)
        recent = self._recent(known.state, rows)
        if history is not None:
            recent = recent[:, -_whole(history, "history") :]
        forecast = self._with_effect(self._forecast(known.state, rows), known.state, rows, None)
        before = future_times(known.clock, known.ends[rows] - recent.shape[1], known.phases[rows], recent.shape[1])
        after = future_times(known.clock, known.ends[rows], known.phases[rows], self.horizon)
        return draw(
            [known.ids[row] for row in rows],
            (before, recent),
            (after, forecast),
            _listed(level, "level"),
            labels=(self.time_col, self.target_col, type(self).__name__),
            ax=ax,
        )

    @property
    def fitted_ids_(self) -> tuple[Hashable, ...]:
        """The ids of the known series, in the order they came."""
        check_is_fitted(self, "_known")
        return self._known.ids

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.no_validation = True
        tags.target_tags.required = False
        tags.input_tags.two_d_array = False
        tags.input_tags.allow_nan = True
        tags.non_deterministic = False
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_known")

    # Behind it

    def _fit(self, panel: Panel, layout: Layout, skipped: dict[Hashable, str]) -> Self:
        before = self.__dict__.copy()
        try:
            self._prepare(panel, layout, skipped)
            self._learn(panel.heard())
            self._known = Known(panel.ids, panel.ends, panel.phases, panel.clock, self._start(panel))
        except BaseException:
            self.__dict__ = before
            raise
        return self

    def _histories(self, y: Any) -> tuple[Known, Layout]:
        """The series to forecast: the known ones, or those of `y` with what was learnt."""
        if y is None:
            return self._known, self._layout
        panel, layout, _ = self._read(y, clock=self._known.clock)
        state = self._start(panel)
        if isinstance(panel.clock, CountClock) and not panel.clock.timed:
            # rows without timestamps that are fewer than those known cannot begin where those began
            ends = dict(zip(self._known.ids, self._known.ends.tolist(), strict=True))
            known = np.array([ends.get(name, -1) for name in panel.ids])
            state = self._displaced(state, np.flatnonzero(panel.ends < known))
        return Known(panel.ids, panel.ends, panel.phases, panel.clock, state), layout

    def _read(
        self, y: Any, clock: Clock | None = None, known: Container[Hashable] = ()
    ) -> tuple[Panel, Layout, dict[Hashable, str]]:
        return read(
            y,
            freq=self.freq if clock is None else clock.freq,
            id_col=self.id_col,
            time_col=self.time_col,
            target_col=self.target_col,
            on_gap=self.on_gap,
            on_duplicate=self.on_duplicate,
            on_bad=getattr(self, "on_bad", "raise"),
            non_negative=getattr(self, "non_negative", False),
            clock=clock,
            known=known,
            schema=self._schema(fitted=clock is not None),
        )

    def _read_ahead(self, future: Any, known: Known, rows: Int, steps: int, by: str = "predict") -> Float | None:
        """The known covariates and the calendar of the steps to forecast, `[N, F, K]`; None without any. by: the method
        that was called."""
        schema = self._schema(fitted=True)
        given = self._read_future(future, schema, known, rows, steps, by)
        if schema is None or not schema.calendar:
            return given
        times = future_times(known.clock, known.ends[rows], known.phases[rows], steps)
        dates = calendar.columns(times, schema.calendar).reshape(len(rows), steps, -1)
        return dates if given is None else np.concatenate([given, dates], axis=2)

    def _read_future(
        self, future: Any, schema: Schema | None, known: Known, rows: Int, steps: int, by: str
    ) -> Float | None:
        """The known covariates in `future=`; None without such covariates."""
        if schema is None or not schema.known:
            if future is not None:
                raise ValueError(
                    "future= came, but no covariates are configured to come with it: leave it out, or fit with "
                    "known_covariates="
                )
            return None
        if future is None:
            raise ValueError(
                f"{by}() needs future=: the known covariates {shorten(schema.known)} of the next {steps} steps. "
                f"Fix: frame = forecaster.make_future_frame({steps}), fill in these columns, {by}(future=frame)."
            )
        return read_future(
            future,
            schema,
            known.clock,
            tuple(known.ids[row] for row in rows),
            known.ends[rows],
            known.phases[rows],
            steps,
            id_col=self.id_col,
            time_col=self.time_col,
            on_duplicate=self.on_duplicate,
        )

    def _ahead_in(self, new: Panel) -> Float | None:
        """The known covariates of rows that have come, as `_read_ahead` gives them; NaN behind the last row."""
        schema = self._schema(fitted=True)
        if schema is None or not schema.ahead or new.covariates is None:
            return None
        ahead = np.full((len(new), self.horizon, new.covariates.known.shape[1]), np.nan)
        ahead[np.arange(self.horizon) < new.lengths[:, None]] = new.covariates.known
        return ahead

    def _with_effect(self, forecast: Forecast, state: Any, rows: Int, ahead: Float | None) -> Forecast:
        """The forecast with what the known covariates add, and, where data cannot be negative, not below 0."""
        point, quantiles = forecast.point, forecast.quantiles
        if ahead is not None:
            effect = self._effect(state, rows, ahead)
            point, quantiles = point + effect, quantiles + effect[..., None]
        least = 0.0 if getattr(self, "non_negative", False) else -np.inf
        return forecast._replace(point=np.maximum(point, least), quantiles=quantiles, least=least)

    def _prepare(self, panel: Panel, layout: Layout, skipped: dict[Hashable, str]) -> None:
        """The attributes that `_learn` may count on."""
        self.freq_ = panel.freq
        declared = self.freq if isinstance(self.freq, str) and not layout.timed else panel.freq
        self.season_length_ = (
            season_length(declared) if self.season_length is None else _whole(self.season_length, "season_length")
        )
        self.skipped_ = skipped
        self._layout = layout

    def _steps(self, horizon: int | None) -> int:
        if horizon is None:
            return self.horizon
        steps = _whole(horizon, "horizon")
        if steps > self.horizon:
            raise ValueError(
                f"horizon={steps} is longer than the fitted horizon of {self.horizon}: fit with horizon={steps} or more"
            )
        return steps

    def _wanted(self, quantiles: Iterable[float] | None, level: float | Iterable[float] | None) -> dict[str, float]:
        """The quantiles that are asked for, by the names of their columns."""
        name = type(self).__name__
        intervals = sorted(_listed(level, "level"))
        wanted = {f"{name}-lo-{width:g}": interval_levels(width)[0] for width in reversed(intervals)}
        wanted |= {f"{name}-hi-{width:g}": interval_levels(width)[1] for width in intervals}
        wanted |= {f"{name}-ql{quantile:g}": quantile for quantile in _listed(quantiles, "quantiles")}
        return wanted

    def _columns(
        self, forecast: Forecast, quantiles: Iterable[float] | None, level: float | Iterable[float] | None
    ) -> dict[str, Float]:
        name, wanted = type(self).__name__, self._wanted(quantiles, level)
        columns = {name: forecast.point}
        if wanted:
            values = quantiles_at(forecast, list(wanted.values()))
            columns |= {column: values[..., place] for place, column in enumerate(wanted)}
        return columns

    def _read_on(self, y_new: Any, known: Known) -> tuple[Panel, dict[Hashable, str]]:
        """Rows that go on where every known series ended (missing steps filled with NaN under on_gap="mask")."""
        new, layout, skipped = self._read(y_new, known.clock, known.rows)
        new = _meant(new, layout, known, self._layout)
        if not layout.timed:
            new = _place(new, known)
        targets = np.array([known.rows.get(name, -1) for name in new.ids], dtype=np.int64)
        old = np.flatnonzero(targets >= 0)
        missing = np.zeros(len(new), dtype=np.int64)
        missing[old] = new.starts[old] - known.ends[targets[old]] - 1
        bad = (missing < 0) | (missing > MOST_MASKED) if self.on_gap == "mask" else missing != 0
        moved = old[new.phases[old] != known.phases[targets[old]]]
        # a series whose first new row falls on a clock change may look moved: what counts is the timestamp
        shown = new.clock.times(new.starts[moved], new.phases[moved]) != known.clock.times(
            new.starts[moved], known.phases[targets[moved]]
        )
        bad[moved[np.asarray(shown)]] = True
        if bad.any():
            if getattr(self, "on_bad", "raise") == "raise":
                _refuse(new, known, int(np.flatnonzero(bad)[0]), missing, int(bad.sum()))
            skipped |= {new.ids[row]: _why(new, known, row, missing)[0] for row in np.flatnonzero(bad).tolist()}
            if bad.all():
                _refuse(new, known, 0, missing, len(bad))
            new, missing = new.select(np.flatnonzero(~bad)), missing[~bad]
        return (new.lead(missing) if missing.any() else new), skipped


def _weighted(panel: Panel, sample_weight: Any) -> Panel:
    return panel if sample_weight is None else replace(panel, weights=weights_of(sample_weight, panel.ids))


def _meant(new: Panel, layout: Layout, known: Known, fitted: Layout) -> Panel:
    """The new rows under the ids they are meant for: a Series without a name goes on where the only known one ended."""
    if layout.kind == "vector" and len(known.ids) > 1:
        raise DataError(
            f"a 1-D array of {int(new.lengths[0])} values came, and {len(known.ids)} series are known: it would be one "
            "series. Fix: pass a 2-D array [time, series]; one row of all series is y[None]."
        )
    if layout.kind != "series" or fitted.kind != "series" or len(known.ids) > 1 or new.ids == known.ids:
        return new
    if layout.name is None:
        return replace(new, ids=known.ids)
    raise DataError(
        f"a Series named {layout.name!r} came, and the known one is {known.ids[0]!r}. Fix: rename it "
        f"(y.rename({known.ids[0]!r})); several series come as a long or a wide frame."
    )


def _place(new: Panel, known: Known) -> Panel:
    """Arrays have no time: their rows follow the last known ones."""
    if not isinstance(known.clock, CountClock):
        raise DataError(
            "an array has no timestamps, but the forecaster was fitted on data that have. "
            "Fix: pass the kind that fit() had."
        )
    rows = [known.rows.get(name) for name in new.ids]
    ends = np.array([-1 if row is None else known.ends[row] for row in rows], dtype=np.int64) + new.lengths
    phases = np.array([0 if row is None else known.phases[row] for row in rows], dtype=np.int64)
    return Panel(new.values, new.offsets, new.ids, ends, phases, known.clock)


def _why(new: Panel, known: Known, row: int, missing: Int) -> tuple[str, str]:
    """What is wrong with the rows that came for a known series, and the fix."""
    old = known.rows[new.ids[row]]
    first, last = (
        show(new.clock, new.starts[row], new.phases[row]),
        show(known.clock, known.ends[old], known.phases[old]),
    )
    following = show(known.clock, known.ends[old] + 1, known.phases[old])
    count = int(missing[row])
    if count > MOST_MASKED:
        return (
            f"the new rows start at {first}, but the series ended at {last}: {count} steps are missing, and at most "
            f"{MOST_MASKED} are taken as unobserved",
            "correct the timestamps, or fit() again",
        )
    if count > 0:
        return (
            f"the new rows start at {first}, but the series ended at {last}: "
            f"{count} steps are missing (next: {following})",
            "pass them as rows with NaN, set on_gap='mask', or fit() again",
        )
    if count < 0:
        return (
            f"the new rows start at {first}, but the series is known up to {last}: "
            f"{-count} steps are known already (next: {following})",
            f"pass only rows from {following} on",
        )
    return (
        f"the new rows start at {first}, which is not on the steps of the series (next: {following})",
        "correct the timestamps",
    )


def _refuse(new: Panel, known: Known, row: int, missing: Int, count: int) -> NoReturn:
    reason, fix = _why(new, known, row, missing)
    others = f" ({count - 1} more series too)" if count > 1 else ""
    raise DataError(f"series {new.ids[row]!r}: {reason}{others}. Fix: {fix}.")


def _rows_of(known: Known | Panel, ids: Iterable[Hashable] | None) -> Int:
    if ids is None:
        return np.arange(len(known.ids))
    wanted = list(ids) if isinstance(ids, Iterable) and not isinstance(ids, str) else [ids]
    strangers = [name for name in wanted if name not in known.rows]
    if strangers or not wanted:
        raise ValueError(f"ids={shorten(strangers) or '[]'} are not known: the series are {shorten(known.ids)}")
    return np.array([known.rows[name] for name in wanted], dtype=np.int64)


def _whole(value: object, name: str, what: str = "steps") -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of {what}, 1 or more")
    return int(value)


def _listed(given: Any, name: str) -> list[float]:
    if given is None:
        return []
    numbers = list(given) if isinstance(given, Iterable) and not isinstance(given, str | bytes) else [given]
    if not all(isinstance(one, SupportsFloat) for one in numbers):
        example = "80 or (80, 95)" if name == "level" else "0.9 or (0.1, 0.9)"
        raise ValueError(f"{name}={given!r} must be a number or several of them, such as {example}")
    return [float(one) for one in numbers]
