"""Baselines that every forecaster has to beat, with the same face.

Axes: N series, H horizon, L context, M season, Q quantile levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import NormalDist
from typing import Any, NamedTuple, TypeVar

import numpy as np

from .base import PanelForecaster
from .copula import validation_scores
from .forecast import Forecast
from .gram import PENALTIES
from .linear import LinearPath, apply_linear, fit_linear
from .panel import Float, Int, Panel, spans
from .windows import blocks, context_scale, draw, in_proportion, series_scales, windows_between

State = TypeVar("State", bound=tuple[Any, ...])

DECILES = tuple(round(0.1 * k, 1) for k in range(1, 10))
# rows of the residual sample: its quantiles move by less than 0.01 of a level with more
RESIDUAL_WINDOWS = 20_000
# contexts (seasons) of past from which the forecasts of the validation windows are made
PAST = 8


class Latest(NamedTuple):
    """The last observed value of every phase of a season `[N, M]`, when it came, and the errors of repeating it.

    NaN and row -1 stand for a phase that was never observed.

    `squares` `[N]` sums the squared differences between a value and the one before it in its phase, each divided by the
    number of seasons between the two, as a random walk from season to season has it, and `errors` `[N]` counts them.
    """

    value: Float
    when: Int
    squares: Float
    errors: Float


class SeasonalState(NamedTuple):
    """Rows so far `[N]`, and what to repeat: season by season, and (where a phase was never seen) row by row."""

    length: Int
    season: Latest
    step: Latest


class SeasonalNaive(PanelForecaster):
    """The value one season ago, with Gaussian quantiles from the errors that made in the past.

    The spread grows with the square root of the number of seasons ahead. A phase with missing values repeats its last
    observed one.

    >>> SeasonalNaive(horizon=3, season_length=2).fit(np.array([1.0, 2.0, 3.0, 5.0])).predict().tolist()
    [3.0, 5.0, 3.0]
    """

    def __init__(
        self,
        horizon: int = 24,
        freq: str | int | None = None,
        season_length: int | None = None,
        quantiles: Sequence[float] = DECILES,
        on_gap: str = "raise",
        on_duplicate: str = "raise",
        on_bad: str = "raise",
        id_col: str = "unique_id",
        time_col: str = "ds",
        target_col: str = "y",
    ) -> None:
        self.horizon = horizon
        self.freq = freq
        self.season_length = season_length
        self.quantiles = quantiles
        self.on_gap = on_gap
        self.on_duplicate = on_duplicate
        self.on_bad = on_bad
        self.id_col = id_col
        self.time_col = time_col
        self.target_col = target_col

    def _learn(self, panel: Panel) -> None:
        self.levels_ = check_levels(self.quantiles)
        ends = validation_ends(panel, 0.2, self.horizon)
        self.scores_ = validation_scores(self, panel, ends, PAST * max(self.season_length_, self.horizon))

    def _start(self, panel: Panel) -> SeasonalState:
        season, step = (nothing_yet(len(panel), length) for length in (self.season_length_, 1))
        empty = SeasonalState(np.zeros(len(panel), dtype=np.int64), season, step)
        return self._advance(empty, np.arange(len(panel)), panel)

    def _advance(self, state: SeasonalState, rows: Int, new: Panel) -> SeasonalState:
        length = state.length.copy()
        length[rows] += new.lengths
        begin = state.length[rows]
        return SeasonalState(length, repeat(state.season, rows, begin, new), repeat(state.step, rows, begin, new))

    def _append(self, state: SeasonalState, other: SeasonalState) -> SeasonalState:
        season, step = stack(state.season, other.season), stack(state.step, other.step)
        return SeasonalState(np.concatenate([state.length, other.length]), season, step)

    def _forecast(self, state: SeasonalState, rows: Int) -> Forecast:
        target = state.length[rows, None] + np.arange(self.horizon)
        phase = target % self.season_length_
        point, when = state.season.value[rows[:, None], phase], state.season.when[rows[:, None], phase]
        seasons = (target - when) // self.season_length_
        by_season, by_step = (
            each.squares[rows] / np.maximum(each.errors[rows], 1) for each in (state.season, state.step)
        )
        usable = np.isfinite(point)
        point = np.where(usable, point, state.step.value[rows])
        usable &= state.season.errors[rows, None] > 0
        variance = np.where(usable, by_season[:, None] * seasons, by_step[:, None] * (target - state.step.when[rows]))
        scores = np.array([NormalDist().inv_cdf(level) for level in self.levels_])
        return Forecast(point, point[..., None] + np.sqrt(variance)[..., None] * scores, self.levels_)

    def _recent(self, state: SeasonalState, rows: Int) -> Float:
        target = state.length[rows, None] - self.season_length_ + np.arange(self.season_length_)
        phase = target % self.season_length_
        value, when = state.season.value[rows[:, None], phase], state.season.when[rows[:, None], phase]
        return np.where(when == target, value, np.nan)


def nothing_yet(count: int, season: int) -> Latest:
    """No value was seen in any of `count` series."""
    never = np.full((count, season), -1, dtype=np.int64)
    return Latest(np.full((count, season), np.nan), never, np.zeros(count), np.zeros(count))


def repeat(latest: Latest, rows: Int, begin: Int, new: Panel) -> Latest:
    """The latest values and errors after `new`, whose series i is row `rows[i]` and goes on at step `begin[i]`."""
    season = latest.value.shape[1]
    owner = np.repeat(np.arange(len(rows)), new.lengths)
    when = spans(begin, new.lengths)
    seen = np.isfinite(new.values)
    owner, when, value = owner[seen], when[seen], new.values[seen]
    # one long table of (series, phase), the remembered values first; sorted by key it holds every phase's history in
    # order
    old_row, old_phase = np.nonzero(latest.when[rows] >= 0)
    key = np.concatenate([old_row * season + old_phase, owner * season + when % season])
    value = np.concatenate([latest.value[rows[old_row], old_phase], value])
    when = np.concatenate([latest.when[rows[old_row], old_phase], when])
    order = np.argsort(key, kind="stable")
    key, value, when = key[order], value[order], when[order]
    same = key[1:] == key[:-1]
    error = np.diff(value)[same] ** 2 / (np.diff(when)[same] / season)
    of = key[1:][same] // season
    squares, errors = latest.squares.copy(), latest.errors.copy()
    squares[rows] += np.bincount(of, error, minlength=len(rows))
    errors[rows] += np.bincount(of, minlength=len(rows))
    last = np.append(~same, True)[: len(key)]
    place = rows[key[last] // season], key[last] % season
    values, whens = latest.value.copy(), latest.when.copy()
    values[place], whens[place] = value[last], when[last]
    return Latest(values, whens, squares, errors)


class RidgeState(NamedTuple):
    """The last L rows of every series `[N, L]`; number, mean and squared deviations of all its values `[N]`."""

    context: Float
    seen: Float
    mean: Float
    squares: Float


class Ridge(PanelForecaster):
    """One linear map from the context to the horizon, shared by all series, in closed form.

    The context's mean is taken out before the map and put back after it. The penalty (relative to the mean eigenvalue
    of the Gram matrix) is the one of `linear.PENALTIES` with the least error on the last part of every series, after
    weights of the rows before; then the weights are taken of all rows. `validation` is that part: a share of each
    series, or a number of rows; a series too short for both parts only trains. `context_length=None` looks back two
    seasons or four horizons, whichever is longer, at most 512 rows or half a long series.

    The quantiles are those of the validation residuals, per step ahead, in units of the context's standard
    deviation, which follows the volatility where a fixed scale of each series would not, and scales with the data.
    A context that stands still has a tenth
    of its series' own deviation as its unit.
    """

    def __init__(
        self,
        horizon: int = 24,
        context_length: int | None = None,
        penalty: float | None = None,
        validation: float = 0.2,
        freq: str | int | None = None,
        season_length: int | None = None,
        quantiles: Sequence[float] = DECILES,
        max_windows: int | None = None,
        on_gap: str = "raise",
        on_duplicate: str = "raise",
        on_bad: str = "raise",
        id_col: str = "unique_id",
        time_col: str = "ds",
        target_col: str = "y",
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.horizon = horizon
        self.context_length = context_length
        self.penalty = penalty
        self.validation = validation
        self.freq = freq
        self.season_length = season_length
        self.quantiles = quantiles
        self.max_windows = max_windows
        self.on_gap = on_gap
        self.on_duplicate = on_duplicate
        self.on_bad = on_bad
        self.id_col = id_col
        self.time_col = time_col
        self.target_col = target_col
        self.random_state = random_state

    def _learn(self, panel: Panel) -> None:
        levels = check_levels(self.quantiles)
        context = self._context(panel)
        ends = validation_ends(panel, self.validation, self.horizon)
        fit = partial(fit_linear, panel, context, self.horizon, max_windows=self.max_windows, seed=self.random_state)
        path = fit(train_ends=ends, penalties=PENALTIES if self.penalty is None else (self.penalty,))
        self.levels_, self.context_length_, self.penalty_ = levels, context, path.penalty
        self.path_, self.residuals_ = path, residual_quantiles(path, panel, ends, levels)
        self.scores_ = validation_scores(self, panel, ends, PAST * context)
        whole = fit(penalties=(path.penalty,))
        self.path_ = replace(whole, losses=path.losses)

    def _context(self, panel: Panel) -> int:
        if self.context_length is not None:
            if self.context_length < 1:
                raise ValueError(f"context_length={self.context_length} must be 1 or more rows")
            return int(self.context_length)
        return usual_context(panel, self.season_length_, self.horizon)

    def _start(self, panel: Panel) -> RidgeState:
        zero = np.zeros(len(panel))
        empty = RidgeState(np.full((len(panel), self.context_length_), np.nan), zero, zero, zero)
        return self._advance(empty, np.arange(len(panel)), panel)

    def _advance(self, state: RidgeState, rows: Int, new: Panel) -> RidgeState:
        context, seen, mean, squares = (part.copy() for part in state)
        context[rows] = roll(state.context[rows], new)
        observed = np.isfinite(new.values)
        owner, value = np.repeat(np.arange(len(rows)), new.lengths)[observed], new.values[observed]
        # Chan, Golub and LeVeque: counts, means and squared deviations of two parts make those of the whole
        came = np.bincount(owner, minlength=len(rows)).astype(np.float64)
        new_mean = np.bincount(owner, value, minlength=len(rows)) / np.maximum(came, 1)
        new_squares = np.bincount(owner, (value - new_mean[owner]) ** 2, minlength=len(rows))
        total = np.maximum(seen[rows] + came, 1)
        shift = np.where(came > 0, new_mean - mean[rows], 0.0)
        squares[rows] += new_squares + shift**2 * seen[rows] * came / total
        mean[rows] += shift * came / total
        seen[rows] += came
        return RidgeState(context, seen, mean, squares)

    def _append(self, state: RidgeState, other: RidgeState) -> RidgeState:
        return stack(state, other)

    def _forecast(self, state: RidgeState, rows: Int) -> Forecast:
        context = state.context[rows]
        point = apply_linear(self.path_, context)
        # a series silent for a whole context is forecast by the mean of its past
        point = np.where(np.isnan(point), state.mean[rows, None], point)
        scale = context_scale(context, np.sqrt(state.squares[rows] / np.maximum(state.seen[rows], 1)))
        return Forecast(point, point[..., None] + scale[:, None, None] * self.residuals_, self.levels_)

    def _recent(self, state: RidgeState, rows: Int) -> Float:
        return state.context[rows]


def usual_context(panel: Panel, season_length: int, horizon: int) -> int:
    """Rows to look back where nobody said: two seasons or four horizons, whichever is longer, at most 512 or half of a
    long series."""
    wanted = min(512, max(2 * season_length, 4 * horizon))
    return max(1, min(wanted, int(np.quantile(panel.lengths, 0.75)) // 2))


def validation_ends(panel: Panel, validation: float, horizon: int) -> Int:
    """Where the training part of every series ends, and the validation part begins.

    `validation` is a share (below 1) or a number of rows; the part has at least one horizon. A series that would train
    on fewer than two horizons trains on all its rows.
    """
    rows = validation if validation >= 1 else np.ceil(validation * panel.lengths)
    if validation < 0:
        raise ValueError(f"validation={validation} must be a share below 1 or a number of rows")
    ends = panel.lengths - np.maximum(rows, horizon).astype(np.int64)
    return np.where((ends >= 2 * horizon) & (np.asarray(rows) > 0), ends, panel.lengths)


def residual_quantiles(path: LinearPath, panel: Panel, ends: Int, levels: tuple[float, ...]) -> Float:
    """Quantiles `[H, Q]` of the residuals after `ends`, in units of `context_scale`.

    Where nothing comes after `ends` they are those of the training rows. Windows whose context stands still say
    nothing of the spread and are left out; where all do, the spread is zero.
    """
    scales = series_scales(panel, ends)
    for begin in (ends, np.zeros_like(ends)):
        windows = windows_between(panel, path.context_length, path.horizon, begin, panel.lengths)
        residuals, owners = [], []
        for _, series, _, contexts, targets in blocks(draw(windows, RESIDUAL_WINDOWS, np.random.default_rng(0))):
            moving = context_scale(contexts, np.zeros(len(contexts))) > 0
            unit = context_scale(contexts, scales[series])[:, None]
            residuals.append(((targets - apply_linear(path, contexts)) / unit)[moving])
            owners.append(series[moving])
        if sum(map(len, residuals)):
            counted = in_proportion(panel, np.concatenate(owners))
            quantiles: Float = np.quantile(np.concatenate(residuals)[counted], levels, axis=0).T
            return quantiles
    return np.zeros((path.horizon, len(levels)))


def roll(context: Float, new: Panel) -> Float:
    """The last L rows `[N, L]` after the new ones came."""
    length = context.shape[1]
    new = new.tail(length)
    index = np.arange(length) + new.lengths[:, None]
    rolled = np.take_along_axis(context, np.minimum(index, length - 1), axis=1).ravel()
    rolled[spans(np.arange(1, len(new) + 1) * length - new.lengths, new.lengths)] = new.values
    return rolled.reshape(context.shape)


def check_levels(quantiles: Sequence[float]) -> tuple[float, ...]:
    """The quantile levels in increasing order, inside (0, 1), each once."""
    levels = tuple(sorted(float(level) for level in quantiles))
    if not levels or levels[0] <= 0 or levels[-1] >= 1 or len(set(levels)) < len(levels):
        raise ValueError(f"quantiles={tuple(quantiles)} must be different numbers between 0 and 1")
    return levels


def stack(state: State, other: State) -> State:
    """Two states of the same kind, one after the other."""
    return type(state)(*(np.concatenate(parts) for parts in zip(state, other, strict=True)))
