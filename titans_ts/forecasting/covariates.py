"""Covariates: an additive effect of those that are known ahead, and a map from the others to what the linear path
leaves over. Both in closed form, both confirmed on validation rows.

Axes: N series, M maps (0 is shared, 1 + i is that of the i-th series of `fit`), C columns (the values, then the known,
then the past covariates), K known, P past, S static columns, W rows of past covariates that are looked back on, H
horizon, G groups of validation windows. The calendar (`calendar.py`) is among the known covariates.

The effect. A value is what the rest of the forecaster sees, plus `unit * sum_k weight_k * z_k`: z are the covariates of
the same step, standardised, and the unit is the deviation of the series, so that forecasting `c * y + d` gives
`c * forecast + d`. The weights are a ridge regression on differences over one step and over one season, in which levels
and seasons cancel and cannot be mistaken for effects. A leap of the series that no covariate explains (a spike of a
price) counts in proportion to its size only, and not to its square (Huber 1964): least squares would listen to little
else.

The map. What the linear path leaves over is regressed on the last W rows of the past covariates and on the static ones,
in units of the context.

A series that `fit` did not see has the shared weights, and is standardised by the mean and the deviation of all rows
before each step. These are sums that its state carries, so that rows one by one and rows at once give the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float as FloatTensor
from jaxtyping import Int as IntTensor
from numpy.typing import NDArray
from torch import Tensor

from ..core.state import map_state
from .gram import DEFAULT_PENALTY, PENALTIES, solve
from .linear import LinearPath, apply_linear, fit_linear
from .panel import Covariates, Float, Int, Panel, Schema, spans
from .windows import blocks, context_scale, cut, draw, series_scales, windows_between

HUBER = 1.5  # standard deviations up to which an error counts squared
ROUNDS = 4  # of weighting: more change the third digit of the weights
# what a column of 0 and 1, or of the calendar, is divided by: a rare category must not weigh more for being rare
DUMMY = 0.5
SEEN = 8192  # windows that fit the linear path and the map while one chooses
JUDGED = 2048  # validation windows that choose, at most
GROUPS = 8  # stretches of time that the validation windows are divided into
SURE = 1.0  # standard errors by which a gain must exceed nothing
LOOK_BACK = 64  # rows of past covariates that the map sees, at most
POOLINGS = (0.25, math.inf, 0.0, 1.0)  # how strongly the weights of single series are drawn to the shared ones
RIDGES = (0.1, 1.0, 0.01)  # relative to the mean eigenvalue
SHARES = (1.0, 0.5)


# the arrays of a `CovariatePath`
NUMBERS = (
    "centres",
    "deviations",
    "weights",
    "static_centre",
    "static_deviation",
    "residual",
)


class CovariateState(NamedTuple):
    """What is kept of every series.

    rows: its map. sums: of every column the number of values, the first of them, and the sum and the sum of squares of
    their distances from it; only series without a map of their own have them. recent: the last rows of the past
    covariates, standardised. static: the static covariates.
    """

    rows: IntTensor[Tensor, " N"]
    sums: FloatTensor[Tensor, "N 4 C"]
    recent: FloatTensor[Tensor, "N W P"]
    static: FloatTensor[Tensor, "N S"]


@dataclass(frozen=True)
class Effect:
    """How the effect of the known covariates was fitted.

    `lags` are those of the differences, `penalty` relative to the mean eigenvalue, `pooling` how strongly the
    weights of single series are drawn to the shared ones (infinite: they are equal), `share` what they were multiplied
    with in the end; 0: the validation rows do not confirm any effect. `gain` is the part of the squared and of the
    absolute error of the validation rows that it takes away.
    """

    lags: tuple[int, ...] = (1,)
    pooling: float = POOLINGS[0]
    penalty: float = RIDGES[0]
    share: float = 1.0
    gain: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, eq=False)
class CovariatePath:
    """The fitted effect and map, without any series' state.

    centres, deviations: `[M, C]`, of every series that `fit` saw (map 0 has none). weights: `[M, K]`, of the effect.
    static_centre, static_deviation: `[S]`. residual: `[W * P + S, H]`, the map, times the share that validation
    confirms.
    """

    schema: Schema
    ids: tuple[Hashable, ...]
    centres: Float
    deviations: Float
    weights: Float
    static_centre: Float
    static_deviation: Float
    residual: Float
    look_back: int
    effect: Effect = field(default_factory=Effect)
    penalty: float = DEFAULT_PENALTY
    share: float = 0.0

    @cached_property
    def places(self) -> Mapping[Hashable, int]:
        """The map of every series that `fit` saw."""
        return {name: place for place, name in enumerate(self.ids, 1)}

    @property
    def width(self) -> int:
        """Columns of known covariates."""
        return int(self.weights.shape[1])

    @property
    def numeric(self) -> NDArray[np.bool_]:
        """Which of the C columns are numbers, and not categories."""
        return numeric_columns(self.schema)

    def without_effect(self, panel: Panel) -> Panel:
        """The panel that the rest of the forecaster sees."""
        return self.advance(self.start(panel), panel)[0]

    def start(self, panel: Panel, device: torch.device | str = "cpu") -> CovariateState:
        """The state of these series before their first row."""
        columns, count = self.centres.shape[1], len(panel)
        state = CovariateState(
            rows=torch.tensor([self.places.get(name, 0) for name in panel.ids], dtype=torch.long),
            sums=torch.zeros(count, 4, columns, dtype=torch.float64),
            recent=torch.full((count, self.look_back, columns - 1 - self.width), torch.nan, dtype=torch.float64),
            static=torch.from_numpy(covariates_of(panel).static.copy()),
        )
        return map_state(lambda leaf: leaf.to(device), state)

    def advance(self, state: CovariateState, new: Panel) -> tuple[Panel, CovariateState]:
        """The new rows without the effect, and the state behind them."""
        rows, lengths, device = state.rows.cpu().numpy(), new.lengths, state.rows.device
        moving = np.column_stack([new.values, covariates_of(new).moving])
        owner = np.repeat(np.arange(len(new)), lengths)
        centre, deviation = self.centres[rows][owner], self.deviations[rows][owner]
        sums = state.sums.cpu().numpy().copy()
        for place in np.flatnonzero(rows == 0):
            own = slice(new.offsets[place], new.offsets[place + 1])
            before, sums[place] = running(sums[place], moving[own])
            centre[own], deviation[own] = moments(before, self.numeric)
        standard = standardised(moving[:, 1:], centre[:, 1:], deviation[:, 1:])
        known, past = standard[:, : self.width], standard[:, self.width :]
        effect = deviation[:, 0] * (np.nan_to_num(known) * self.weights[rows][owner]).sum(axis=1)
        recent = roll(state.recent.cpu().numpy(), past, new)
        moved = state._replace(sums=torch.from_numpy(sums).to(device), recent=torch.from_numpy(recent).to(device))
        return replace(new, values=new.values - effect, covariates=None), moved

    def moments(self, state: CovariateState) -> tuple[Float, Float]:
        """Centre and deviation `[N, C]` that the next rows of these series are standardised with."""
        rows = state.rows.cpu().numpy()
        so_far = moments(state.sums.cpu().numpy(), self.numeric)
        seen = (rows > 0)[:, None]
        return np.where(seen, self.centres[rows], so_far[0]), np.where(seen, self.deviations[rows], so_far[1])

    def ahead(self, state: CovariateState, covariates: Float) -> Float:
        """What the known covariates `[N, F, K]` of the next steps add to the series, `[N, F]`."""
        centre, deviation = self.moments(state)
        inside = slice(1, 1 + self.width)
        z = standardised(covariates, centre[:, None, inside], deviation[:, None, inside])
        weights = self.weights[state.rows.cpu().numpy()][:, None]
        return deviation[:, :1] * (np.nan_to_num(z) * weights).sum(axis=2)

    def left_over(self, state: CovariateState, contexts: Float) -> Float:
        """What the map adds to the linear path's forecasts from these contexts, `[N, H]`."""
        unit = context_scale(contexts, self.moments(state)[1][:, 0])
        features = self.features(state.recent.cpu().numpy(), state.static.cpu().numpy())
        return unit[:, None] * (features @ self.residual)

    def features(self, recent: Float, static: Float) -> Float:
        """Input of the map, `[N, W * P + S]`: what is missing is the last value before it, or the average."""
        place = np.arange(recent.shape[1])[:, None]
        last = np.maximum.accumulate(np.where(np.isnan(recent), -1, place), axis=1)
        held = np.where(last < 0, 0.0, np.take_along_axis(recent, np.maximum(last, 0), axis=1))
        z = np.nan_to_num(standardised(static, self.static_centre, self.static_deviation))
        return np.concatenate([held.reshape(len(recent), -1), z], axis=1)


def covariates_of(panel: Panel) -> Covariates:
    """The covariates of a panel that must have some."""
    if panel.covariates is None:
        raise ValueError("the forecaster has covariates and this panel has none: read it with the forecaster's schema")
    return panel.covariates


def standardised(values: Float, centre: Float, deviation: Float) -> Float:
    """`(values - centre) / deviation`, 0 where nothing varies."""
    return np.where(deviation > 0, (values - centre) / np.where(deviation > 0, deviation, 1.0), 0.0)


def running(sums: Float, rows: Float) -> tuple[Float, Float]:
    """The sums `[T, 4, C]` before every one of the `rows` `[T, C]`, and `[4, C]` behind the last.

    >>> before, behind = running(np.zeros((4, 1)), np.array([[3.0], [5.0]]))
    >>> before[1, :, 0].tolist(), behind[:, 0].tolist()
    ([1.0, 3.0, 0.0, 0.0], [2.0, 3.0, 2.0, 4.0])
    """
    seen = np.isfinite(rows)
    count = sums[0] + np.cumsum(seen, axis=0)
    first = np.where(seen.any(axis=0), np.take_along_axis(rows, seen.argmax(axis=0)[None], axis=0)[0], 0.0)
    first = np.where(sums[0] > 0, sums[1], first)
    shift = np.where(seen, rows - first, 0.0)
    total = np.cumsum(np.concatenate([sums[2][None], shift]), axis=0)
    square = np.cumsum(np.concatenate([sums[3][None], shift**2]), axis=0)
    count = np.concatenate([sums[0][None], count])
    whole = np.stack([count, np.where(count > 0, first, 0.0), total, square], axis=1)
    return whole[:-1], whole[-1]


def numeric_columns(schema: Schema) -> NDArray[np.bool_]:
    """Which columns are numbers, and not categories, `[C]`."""
    return np.append(True, schema.moving_numeric)


def moments(sums: Float, numeric: NDArray[np.bool_]) -> tuple[Float, Float]:
    """Mean and standard deviation of sums `[..., 4, C]`, 0 and 0 where there was nothing; categories have `DUMMY`."""
    count = np.maximum(sums[..., 0, :], 1.0)
    shift = sums[..., 2, :] / count
    variance = np.maximum(sums[..., 3, :] / count - shift**2, 0.0)
    centre = sums[..., 1, :] + shift
    deviation = np.sqrt(variance)
    # a constant leaves rounding noise, which is no deviation
    return centre, np.where(numeric, np.where(deviation > 1e-9 * np.abs(centre), deviation, 0.0), DUMMY)


def roll(recent: Float, past: Float, new: Panel) -> Float:
    """The last W rows `[N, W, P]` after those of `new` came."""
    length = recent.shape[1]
    lengths = np.minimum(new.lengths, length)
    index = np.arange(length) + lengths[:, None]
    rolled = np.take_along_axis(recent, np.minimum(index, length - 1)[..., None], axis=1)
    owner = np.repeat(np.arange(len(new)), lengths)
    place = spans(length - lengths, lengths)
    rolled[owner, place] = past[spans(new.offsets[1:] - lengths, lengths)]
    return rolled


# Fitting


def fit_covariates(panel: Panel, ends: Int, context: int, horizon: int, season: int) -> CovariatePath:
    """The effect of the known covariates, of the rows before `ends`, as the rows from there on choose; no map yet.

    Judged is what the linear path of the series without the effect leaves over. The first pooling, penalty and share
    are left for others only where these lower squared and absolute error alike, by more than `SURE` standard errors
    over stretches of time; and there is no effect at all unless it does so to the series as it is. Without rows to
    validate on the first of each is taken.

    >>> from titans_ts.forecasting.clock import CountClock
    >>> x, noise = np.random.default_rng(0).normal(size=(2, 200))
    >>> beside = Covariates(x[:, None], np.zeros((1, 0)), Schema(known=("x",)))
    >>> steps = np.arange(200)
    >>> panel = Panel(noise + 3 * x, np.array([0, 200]), ("a",), steps[-1:], steps[:1], CountClock(), beside)
    >>> path = fit_covariates(panel, np.array([150]), context=12, horizon=3, season=1)
    >>> ahead = path.ahead(path.start(panel), np.array([[[1.0], [2.0]]]))
    >>> bool(2.5 < ahead[0, 1] - ahead[0, 0] < 3.2)
    True
    """
    plain = unfitted(panel, ends)
    if not plain.width:
        return plain
    how = Effect((1, season) if season > 1 and np.median(ends) > 2 * season else (1,))
    before = judge(panel, panel, ends, context, horizon)
    if not len(before):
        return with_weights(plain, panel, ends, how)

    def tried(how: Effect) -> Float:
        return judge(with_weights(plain, panel, ends, how).without_effect(panel), panel, ends, context, horizon)

    after = tried(how)
    changes: list[dict[str, Any]] = [{"pooling": value} for value in POOLINGS[1:] if len(panel) > 1]
    changes += [{"penalty": value} for value in RIDGES[1:]] + [{"share": value} for value in SHARES[1:]]
    for change in changes:
        other = replace(how, **change)
        errors = tried(other)
        if confirmed(after, errors):
            how, after = other, errors
    if not confirmed(before, after):
        return replace(plain, effect=replace(how, share=0.0))
    squared, absolute = 1 - ratio(before, after)
    return with_weights(plain, panel, ends, replace(how, gain=(float(squared), float(absolute))))


def refitted(path: CovariatePath, panel: Panel) -> CovariatePath:
    """The same choices, fitted to all rows; the map is that of before."""
    whole = replace(unfitted(panel, panel.lengths), residual=path.residual)
    whole = replace(whole, penalty=path.penalty, share=path.share, effect=path.effect)
    return with_weights(whole, panel, panel.lengths, path.effect) if path.width and path.effect.share else whole


def unfitted(panel: Panel, ends: Int) -> CovariatePath:
    """Centres and deviations of the rows before `ends`; no effect and no map."""
    beside = covariates_of(panel)
    moving = np.column_stack([panel.values, beside.moving])
    numeric = numeric_columns(beside.schema)
    zero = np.zeros((4, moving.shape[1]))
    sums = [
        zero,
        *(running(zero, moving[begin : begin + end])[1] for begin, end in zip(panel.offsets[:-1], ends, strict=True)),
    ]
    centres, deviations = moments(np.stack(sums), numeric)
    static_numeric = beside.schema.numeric(beside.schema.static)
    spread = np.where(static_numeric, beside.static.std(axis=0), DUMMY)
    return CovariatePath(
        schema=beside.schema,
        ids=panel.ids,
        centres=centres,
        deviations=deviations,
        weights=np.zeros((len(centres), beside.known.shape[1])),
        static_centre=beside.static.mean(axis=0),
        static_deviation=spread,
        residual=np.zeros((0, 0)),
        look_back=0,
    )


def with_weights(path: CovariatePath, panel: Panel, ends: Int, how: Effect) -> CovariatePath:
    """The path with the effect fitted to the rows before `ends`."""
    parts = [list(differences(path, panel, covariates_of(panel).known, ends, lag)) for lag in how.lags]
    width, count = path.width, len(panel)
    weights, counts = np.zeros((1 + count, width)), panel.shares[:, None, None]
    for turn in range(ROUNDS):
        xx, xy = np.zeros((count, width, width)), np.zeros((count, width, 1))
        for each in parts:
            for row, (z, y) in enumerate(each):
                heard = trust(y - z @ weights[1 + row], robust=turn > 0)
                xx[row] += (z.T * heard) @ z
                xy[row, :, 0] += (z.T * heard) @ y
        every = (counts * xx).sum(0), (counts * xy).sum(0)
        weights[:] = solve(*every, (how.penalty,))[0][:, 0]
        if how.pooling < math.inf:
            moving = np.einsum("nkk->n", xx) > 0
            shared = how.pooling / (panel.shares[moving].sum() or 1.0)
            for row in np.flatnonzero(moving).tolist():
                own = xx[row] + shared * every[0], xy[row] + shared * every[1]
                weights[1 + row] = solve(*own, (how.penalty,))[0][:, 0]
    return replace(path, weights=how.share * weights, effect=how)


def differences(path: CovariatePath, panel: Panel, known: Float, ends: Int, lag: int) -> Iterator[tuple[Float, Float]]:
    """Of every series the standardised known covariates `[T, K]` and values `[T]` before `ends`, minus those `lag` rows
    before; rows without both values are left out."""
    moving = np.column_stack([panel.values, known])
    for row, (begin, end) in enumerate(zip(panel.offsets[:-1], ends, strict=True)):
        own = moving[begin : begin + end]
        z = standardised(own, path.centres[1 + row, : own.shape[1]], path.deviations[1 + row, : own.shape[1]])
        z[:, 1:] = np.nan_to_num(z[:, 1:])
        moved = z[lag:] - z[:-lag]
        moved = moved[np.isfinite(moved[:, 0])]
        yield moved[:, 1:], moved[:, 0]


def trust(errors: Float, robust: bool = True) -> Float:
    """The weights of errors in least squares: one over their usual square, and less for unusual ones (Huber)."""
    if not len(errors):
        return errors
    square = max(float((errors**2).mean()), 1e-300)
    if not robust:
        return np.full(len(errors), 1 / square)
    usual = max(float(np.median(np.abs(errors))) / 0.6745, 0.1 * math.sqrt(square))
    weights: Float = 1 / np.maximum(np.abs(errors) / (HUBER * usual), 1.0) / usual**2
    return weights


def judge(panel: Panel, raw: Panel, ends: Int, context: int, horizon: int) -> Float:
    """Mean squared and absolute error `[G, 2]` of the panel's own linear path on the windows after `ends`, in units of
    the raw series; a row a stretch of time."""
    path = fit_linear(panel, context, horizon, penalties=(DEFAULT_PENALTY,), train_ends=ends, max_windows=SEEN, seed=0)
    windows = windows_between(panel, context, horizon, ends, panel.lengths)
    errors = [
        (series, rows, targets - apply_linear(path, contexts))
        for _, series, rows, contexts, targets in blocks(draw(windows, JUDGED, np.random.default_rng(0)))
    ]
    return grouped(errors, raw, ends)


def grouped(errors: Sequence[tuple[Int, Int, Float]], raw: Panel, ends: Int) -> Float:
    """Mean squared and absolute error `[G, 2]` of windows of `series` `[B]`, their targets from `rows` `[B]` on; each
    counts as much as its series."""
    units = series_scales(raw, ends)
    sums, count = np.zeros((GROUPS, 2)), np.zeros(GROUPS)
    for series, rows, error in errors:
        place = (rows - ends[series]) / np.maximum(raw.lengths - ends, 1)[series]
        group = np.clip((GROUPS * place).astype(np.int64), 0, GROUPS - 1)
        left = error / units[series, None]
        for column, value in enumerate(((left**2).mean(axis=1), np.abs(left).mean(axis=1))):
            sums[:, column] += np.bincount(group, raw.shares[series] * value, minlength=GROUPS)
        count += np.bincount(group, raw.shares[series], minlength=GROUPS)
    return sums[count > 0] / count[count > 0, None]


def ratio(before: Float, after: Float) -> Float:
    """Squared and absolute error relative to those before, `[2]`."""
    return after.mean(axis=0) / np.maximum(before.mean(axis=0), 1e-300)


def confirmed(before: Float, after: Float) -> bool:
    """Whether both errors fall by more than `SURE` standard errors of the gain over the stretches of time.

    >>> confirmed(np.ones((4, 2)), np.full((4, 2), 0.9)), confirmed(np.ones((4, 2)), np.ones((4, 2)))
    (True, False)
    """
    doubt = (after - before).std(axis=0, ddof=1) / len(before) ** 0.5 if len(before) > 1 else 0.0
    return bool(((after - before).mean(axis=0) + SURE * doubt < 0).all())


# The map


def with_map(
    path: CovariatePath,
    linear: LinearPath,
    panel: Panel,
    beside: Covariates,
    ends: Int,
    season: int,
    *,
    confirm: bool = True,
) -> CovariatePath:
    """The path with a map from past and static covariates to what the linear path leaves over of `panel`, fitted to the
    rows before `ends`; its penalty and its share are those that the rows behind confirm, like an effect's.

    panel: the values without the effect. beside: its covariates. confirm: False keeps penalty and share as they are.
    """
    schema, lengths = path.schema, panel.lengths
    if not schema.past and not schema.static:
        return path
    width = path.centres.shape[1] - 1 - path.width
    look_back = min(LOOK_BACK, linear.context_length, max(season, linear.horizon)) if width else 0
    path = replace(path, look_back=look_back, residual=np.zeros((0, linear.horizon)))
    past = past_windows(path, panel, beside)
    units = path.deviations[1:, 0]
    own = linear.rows_of(panel.ids)

    def read(begin: Int, stop: Int, most: int) -> Iterator[tuple[Int, Int, Float, Float, Float]]:
        """Series, rows, input of the map, what the linear path leaves over, and the unit of that."""
        windows = windows_between(panel, linear.context_length, linear.horizon, begin, stop)
        for _, series, rows, contexts, targets in blocks(draw(windows, most, np.random.default_rng(0))):
            unit = context_scale(contexts, units[series])[:, None]
            x = path.features(past(series, panel.offsets[series] + rows), beside.static[series])
            steps, usual = panel.starts[series] + rows, panel.usual_before(series, rows)
            yield series, rows, x, targets - apply_linear(linear, contexts, own[series], steps, usual), unit

    size = look_back * width + len(path.static_centre)
    xx, xy = np.zeros((size, size)), np.zeros((size, linear.horizon))
    for series, _, x, left, unit in read(np.zeros_like(lengths), ends, SEEN):
        heard = panel.shares[series] * x.T
        xx += heard @ x
        xy += heard @ np.where(unit > 0, left / np.where(unit > 0, unit, 1.0), 0.0)
    if not confirm:
        return replace(path, residual=path.share * solve(xx, xy, (path.penalty,))[0])
    judged = list(read(ends, lengths, JUDGED))
    if not judged:
        return replace(path, residual=np.zeros((size, linear.horizon)))
    before = grouped([(series, rows, left) for series, rows, _, left, _ in judged], panel, ends)
    best, least = (DEFAULT_PENALTY, 0.0, np.zeros((size, linear.horizon))), 1.0
    for penalty, weights in zip(PENALTIES, solve(xx, xy, PENALTIES), strict=True):
        for share in (0.25, 0.5, 0.75, 1.0):
            after = grouped(
                [(s, rows, left - share * unit * (x @ weights)) for s, rows, x, left, unit in judged], panel, ends
            )
            if confirmed(before, after) and ratio(before, after).mean() < least:
                best, least = (penalty, share, share * weights), float(ratio(before, after).mean())
    penalty, share, residual = best
    return replace(path, penalty=penalty, share=share, residual=residual)


def left_over_at(
    path: CovariatePath, panel: Panel, beside: Covariates, context: int
) -> Callable[[Int, Int], Float] | None:
    """A function of series `[W]` and numbers of their rows `[W]` to what the map adds to the forecasts behind them,
    `[W, H]`; None where there is no map. panel: the values without the effect. beside: its covariates."""
    if not path.share:
        return None
    past = past_windows(path, panel, beside)

    def more(series: Int, origins: Int) -> Float:
        windows = windows_between(panel, context, path.residual.shape[1], panel.lengths, panel.lengths)
        contexts, _ = cut(windows._replace(horizon=0), series, origins)
        unit = context_scale(contexts, path.deviations[1:, 0][series])
        features = path.features(past(series, panel.offsets[series] + origins), beside.static[series])
        return unit[:, None] * (features @ path.residual)

    return more


def past_windows(path: CovariatePath, panel: Panel, beside: Covariates) -> Callable[[Int, Int], Float]:
    """A function of series `[B]` and rows `[B]` to the standardised past covariates before those rows, `[B, W, P]`."""
    owner = np.repeat(np.arange(len(panel)), panel.lengths)
    columns = slice(1 + path.width, None)
    z = standardised(
        beside.past,
        path.centres[1:, columns][owner],
        path.deviations[1:, columns][owner],
    )

    def look(series: Int, rows: Int) -> Float:
        index = rows[:, None] + np.arange(-path.look_back, 0)
        before = index < panel.offsets[series][:, None]
        return np.where(before[..., None], np.nan, z[np.maximum(index, 0)])

    return look


# Saving


def path_tensors(path: CovariatePath) -> dict[str, Tensor]:
    """The numbers of a path, for a checkpoint."""
    return {f"covariates.{name}": torch.from_numpy(np.ascontiguousarray(getattr(path, name))) for name in NUMBERS}
