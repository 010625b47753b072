"""Learning the weights: sequences drawn by index, a forecast from every patch of each, validation on later rows.

B row (sequence), T step, S forecast origin, F future step, Q quantile.
"""

import contextlib
import copy
import ctypes
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.config import require
from ..core.state import join_rows, map_state, select_rows
from ..models.timeseries import Encoded, SeriesState, TimeSeriesModel, windows_at
from .adamw import AdamW
from .gram import PENALTIES, Gram, choose_penalty, solve

# contexts [B, L], NaN where missing, of series [B] before these of their rows [B] to forecasts [B, F]; float64
Linear = Callable[[Tensor, Tensor, Tensor], Tensor]

REMEMBER = 40  # steps between two passes that renew the memories with which sequences begin
STARTING = 24  # batches of sequences from which the head's first map is computed
FINE = 0.25  # of the learning rate, where the head starts at that map: steps made for chance would only lose it
BARE = 4  # times as many sequences where each is one context and brings one forecast
ORIGINS = 1024  # forecasts that one optimiser step learns from, at most: neighbours say nearly the same
SAID = 2**21  # quantiles that one step, one validation pass or the judging of a fit holds, at most: 8 MB
REMEMBERED = 64  # series of such a pass
CHECKED = 192  # validation sequences, at most
PAST = 8  # sequences of past that validation remembers
STRIDE = 4  # patches between two bare contexts of a validation sequence, at most
FEWEST = 4  # groups below which a gain over them says nothing
GROUPS, GROUP = 8, 16  # validation sequences come in so many groups, or in more of at most so many sequences
DOUBT = 0.05  # what the whole correction must bring more where one horizon was validated
COMPARED = 2**18  # values of a group of validation forecasts that judge the correction, at most
SURE = 2.0  # standard errors by which a gain must exceed nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How `fit` learns.

    linear: start from the closed-form ridge forecast and let the backbone correct it; off: the backbone forecasts
        alone.
    fading: let the fading memories into the forecast, by the share that the validation rows say.
    steps: optimiser steps of the backbone; 0 leaves the linear path alone.
    batch: sequences a step. sequence: steps of one, in multiples of the context: more than one, so that the memory
        learns to live with a past longer than the window.
    learning_rate, weight_decay: of AdamW; the rate warms up over a tenth of the steps and falls to zero as a cosine.
        Without the linear path a quarter of it is used, since the head then starts at a closed-form map.
    validation: last rows of every series that choose the ridge penalty, the stopping step, the weight of the backbone's
        correction, the share of the fading memories, the effect of covariates and the quantiles: a share of the rows
        when below 1, else a number of rows.
    checks: how often the validation rows are looked at.
    average: decay of the moving average of the weights that is validated and kept.
    refit: fit all that is in closed form (linear path, fading memories, covariates) again on all rows, the validation
        rows included, once the choices are made. Off where a
        protocol keeps the weights from seeing them, as the long-horizon literature's does.

    >>> TrainConfig(steps=0).linear
    True
    """

    linear: bool = True
    fading: bool = True
    steps: int = 150
    batch: int = 32
    sequence: float = 2.0
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    validation: float = 0.2
    checks: int = 6
    average: float = 0.99
    refit: bool = True

    def __post_init__(self) -> None:
        require(self.linear or self.steps > 0, "linear=False with steps=0 leaves nothing that could forecast.")
        require(self.steps >= 0, f"steps={self.steps} must be 0 or more.")
        require(self.batch >= 1 and self.checks >= 1, "batch and checks must be at least 1.")
        require(self.sequence >= 1, f"sequence={self.sequence} contexts: a sequence must hold at least one context.")
        require(self.learning_rate > 0, f"learning_rate={self.learning_rate} must be positive.")
        require(0 <= self.average < 1, f"average={self.average} must be in [0, 1).")
        require(self.validation >= 0, f"validation={self.validation} must be a share or a number of rows.")


class Rows(NamedTuple):
    """Flat series on the device: `values` float64 with NaN, `starts` and `ends` [N] of each series, `units` [N] the
    scale in which its errors count, and `weights` [N] how often they do; None: all alike."""

    values: Tensor
    starts: Tensor
    ends: Tensor
    units: Tensor
    weights: Tensor | None = None


class Batch(NamedTuple):
    """Forecast origins of one batch of sequences, flattened to [B * S].

    base: where the forecast starts, [_, F]: the linear forecast or the window's level. truth: NaN where unknown.
    series, origin: of which series, and after how many of its steps.
    """

    base: Tensor
    shift: Tensor
    offsets: Tensor
    scale: Tensor
    truth: Tensor
    unit: Tensor
    series: Tensor
    origin: Tensor


class Sequences(NamedTuple):
    """Stretches `[begin, end)` of `series`, [B] each, in steps of the series; only forecasts from `first` on count.

    state: what the model remembers at `begin`, a multiple of the patch; None: nothing.
    """

    series: Tensor
    begin: Tensor
    end: Tensor
    first: Tensor
    state: SeriesState | None = None


def forecast_batch(
    model: TimeSeriesModel,
    linear: Linear | None,
    rows: Rows,
    sequences: Sequences,
    length: int,
    generator: torch.Generator,
    most: int | None = None,
) -> Batch:
    """Forecasts from every patch of the sequences, of at most `length` steps, at a random place before the next patch;
    from `most` of them by chance where there are more.

    Nothing at or behind `rows.ends` is seen.
    """
    horizon, context = model.config.horizon, model.config.context
    series, state = sequences.series, sequences.state
    state = model.initial_state(len(series)) if state is None else state
    values, encoded = read_sequences(model, rows, sequences, state, length)
    row, token, arrived = origins_of(model, rows, sequences, encoded, generator)
    if most is not None and len(row) > most:
        some = torch.randperm(len(row), generator=generator)[:most].to(row.device)
        row, token, arrived = row[some], token[some], arrived[some]
    origin = token * model.config.patch + arrived

    said = model.forecast_at(values, state, encoded, row, token, arrived)
    truth = windows_at(values, row, origin + horizon, horizon)
    base = said.level.unsqueeze(-1).expand(-1, horizon)
    steps = sequences.begin[row] + origin
    if linear is not None:
        both = torch.cat([state.window, values], 1)
        straight = linear(windows_at(both, row, context + origin, context), series[row], steps)
        base = torch.where(straight.isnan(), base, straight)
    return Batch(base, said.shift, said.offsets, said.scale, truth, rows.units[series[row]], series[row], steps)


def read_sequences(
    model: TimeSeriesModel, rows: Rows, sequences: Sequences, state: SeriesState, length: int
) -> tuple[Tensor, Encoded]:
    """Values of the sequences and of a patch and a horizon behind them, NaN from the end of the rows on, and what the
    model makes of at most `length` of them."""
    series, begin, end = sequences[:3]
    index = begin[:, None] + torch.arange(length + model.config.patch + model.config.horizon, device=begin.device)
    size = rows.ends[series] - rows.starts[series]
    flat = (rows.starts[series][:, None] + index).clamp(max=len(rows.values) - 1)
    values = torch.where(index < size[:, None], rows.values[flat], torch.full_like(rows.values[:1], torch.nan))
    return values, model.encode(values[:, :length], state, (end - begin).clamp(max=length))[0]


def origins_of(
    model: TimeSeriesModel, rows: Rows, sequences: Sequences, encoded: Encoded, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Where forecasts begin: row, complete tokens, and values since the last of them, [S] each. Once after every patch,
    at a random place before the next one; without a generator right at the end of the patch."""
    series, begin, _, first = sequences[:4]
    patch = model.config.patch
    token = torch.arange(1, encoded.outputs.shape[1] + 1, device=begin.device).expand(len(series), -1)
    arrived = torch.zeros_like(token)
    if generator is not None:
        arrived = torch.randint(patch, token.shape, generator=generator).to(begin.device)
    step = begin[:, None] + token * patch + arrived
    kept = (token <= encoded.counts[:, None]) & (step >= first[:, None])
    row, place = (kept & (step < (rows.ends - rows.starts)[series][:, None])).nonzero(as_tuple=True)
    return row, token[row, place], arrived[row, place]


def losses(batch: Batch, levels: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Squared error of the expected value, and pinball loss of the quantiles around it, both in units of the series,
    with these weights of the series; training needs none, for it draws the series by them.

    The quantiles learn around a fixed expected value, so that the two losses do not pull at each other.
    """
    dtype = batch.shift.dtype
    known = ~batch.truth.isnan()
    if weights is not None:
        known = known * weights[batch.series].unsqueeze(-1).to(dtype)
    left = ((batch.truth - batch.base) / batch.unit.unsqueeze(-1)).nan_to_num().to(dtype)
    ratio = (batch.scale / batch.unit).to(dtype).unsqueeze(-1)
    error = left - ratio * batch.shift
    count = known.sum().clamp(min=1e-12)
    squared = (error.square() * known).sum() / count
    gap = error.detach().unsqueeze(-1) - ratio.unsqueeze(-1) * batch.offsets
    slope = torch.where(gap < 0, levels - 1, levels)
    pinball = gap.mul_(slope).mul_(known.unsqueeze(-1)).sum() / count  # in place: nothing is as large as the quantiles
    return squared, pinball / len(levels)


def confirmed_weight(
    parts: list[list[Batch]], horizons: float = math.inf, series_weights: Tensor | None = None
) -> float:
    """The share of the correction, between 0 and 1, that the validation rows confirm.

    parts: the validation rows in groups, each forecast in one or more ways (from bare contexts, with a memory).
    In every way the correction must lower squared and absolute error alike, on average over the groups by more than
    `SURE` standard errors of that average. Of the shares that do, in steps of a twentieth, the one with the least mean
    of all errors relative to no correction, and a cost that falls with the number of `horizons` that were validated:
    the steps of training were chosen on the same rows. 0 where none does: a correction that only seems to help is worth
    less than none; and where there are less than `FEWEST` groups, or nothing is known.

    >>> one = torch.ones(1, 1)
    >>> confirmed_weight(4 * [[Batch(0 * one, one, one[None], one[0], 0.25 * one, *one.expand(3, 1))]])
    0.25
    """
    weights = [step / 20 for step in range(21)]
    errors = errors_left(parts, weights, series_weights)
    level = errors[0].mean(0)
    if len(parts) < FEWEST or not (level > 0).all():
        return 0.0
    best, least, doubt_of_all = 0.0, 1.0, DOUBT / max(horizons, 1.0)
    for weight, after in zip(weights[1:], errors[1:], strict=True):
        cost = doubt_of_all * weight**2
        ratio = after.mean(0) / level
        doubt = (after - errors[0]).std(0) / len(parts) ** 0.5 / level
        if (ratio + SURE * doubt < 1).all() and ratio.mean() + cost < least:
            best, least = weight, float(ratio.mean()) + cost
    return best


def errors_left(parts: list[list[Batch]], weights: Sequence[float], series_weights: Tensor | None = None) -> Tensor:
    """Mean squared and absolute error with these shares of the correction, [weight, group, way, 2]; groups and ways
    without a known value are 0. Of more than `COMPARED` values of one group an even selection counts. Values count as
    often as the weight of their series says.

    >>> one = torch.ones(1, 1)
    >>> errors_left([[Batch(0 * one, one, one[None], one[0], one, *one.expand(3, 1))]], [0.5])
    tensor([[[[0.2500, 0.5000]]]], dtype=torch.float64)
    """

    def errors(batch: Batch) -> Tensor:
        left = (batch.truth - batch.base) / batch.unit.unsqueeze(-1)
        known = (~left.isnan()).flatten().nonzero().squeeze(1)
        known = known[:: max(1, len(known) // COMPARED)]
        step = batch.shift.flatten()[known] * (batch.scale / batch.unit)[known // left.shape[1]]
        row, left = known // left.shape[1], left.flatten()[known]
        counts = torch.ones_like(left) if series_weights is None else series_weights[batch.series[row]].to(left)
        sums = [[(counts * (left - weight * step).abs() ** power).sum() for power in (2, 1)] for weight in weights]
        return torch.tensor(sums, dtype=torch.float64) / max(float(counts.sum()), 1e-300)

    return torch.stack([torch.stack([errors(batch) for batch in group], 1) for group in parts], 1)


class Fitted(NamedTuple):
    """What training found: the weight of the correction that validation confirms, per validation check (step, loss),
    and forecasts of validation rows with the memory of what came before them (of training rows where there are no
    others), in the order of time; None where nothing was trained."""

    weight: float
    history: list[tuple[int, float]]
    judged: Batch | None


def train(
    model: TimeSeriesModel,
    linear: Linear | None,
    rows: Rows,
    train_ends: Tensor,
    config: TrainConfig,
    *,
    seed: int,
    time_limit: float = math.inf,
    verbose: int = 0,
) -> Fitted:
    """Fit the model in place on the rows before `train_ends` (a step of each series) and keep what validation confirms.

    With a linear path the model learns the linear path's errors; its correction then enters with the weight that suits
    the validation rows best. Nothing behind `rows.ends` is seen. time_limit: seconds after which it stops, behind
    one step at least.
    """
    started = time.monotonic()
    shape = model.config
    length = math.ceil(config.sequence * shape.context / shape.patch) * shape.patch
    before = rows._replace(ends=rows.starts + train_ends)
    last = (train_ends - shape.horizon).clamp(min=0)  # behind it no origin has a whole target
    usable = (last >= shape.patch).nonzero().squeeze(1)
    if not config.steps:
        return Fitted(0.0, [], None)
    # The window of a single value has no scale, and so no gradient: beside a linear path such a model says nothing.
    least = 1 if linear is None else 3  # rows, of which no forecast knows the last
    if not (train_ends[usable] >= least).any():
        if verbose:
            rows_wanted = max(shape.patch + shape.horizon, least)
            print(f"no step: no series has {rows_wanted} rows to train on", file=sys.stderr)
        return Fitted(0.0, [], None)
    generator = torch.Generator().manual_seed(seed)
    levels = torch.tensor(shape.quantiles, dtype=model.dtype, device=rows.values.device)
    checks = groups_of(validation_sequences(rows, train_ends, length, shape.patch), rows, train_ends)

    affordable = SAID // (shape.horizon * len(shape.quantiles))
    origins = min(ORIGINS, max(64, affordable))
    warm = shape.num_tokens * shape.patch
    bare = math.ceil(shape.context / shape.patch) * shape.patch
    decays = ((p, config.weight_decay if p.dim() >= 2 else 0.0) for p in model.parameters())
    optimizer = AdamW(decays, betas=(0.9, 0.99))
    peak = config.learning_rate
    if linear is None and checks:
        peak *= FINE
        sampled = [
            draw(usable, last, train_ends, length, warm, config.batch, generator, rows.weights) for _ in range(STARTING)
        ]
        start_head(model, before, sampled, rows, checks, length)
    average = copy.deepcopy(model)
    best, best_loss, history, parts = copy.deepcopy(model.state_dict()), math.inf, [], None
    every = max(1, config.steps // config.checks)
    for step in range(1, config.steps + 1):
        rate = min(step / (0.1 * config.steps), 1.0) * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        if step % REMEMBER == 1:
            memories = remember(average, before, usable, last, length, generator)
        if step % 2 and memories is not None:
            drawn = any_of(memories, config.batch, generator, rows.weights)
            sequences, size = map_state(lambda part, drawn=drawn: part[drawn], memories), length
        elif step % 4:
            size = length
            sequences = draw(usable, last, train_ends, size, warm, config.batch, generator, rows.weights)
        else:
            size = bare
            sequences = draw(usable, last, train_ends, size, warm, BARE * config.batch, generator, rows.weights)
            sequences = only_last(sequences, shape.patch)
        model.train()
        batch = forecast_batch(model, linear, before, sequences, size, generator, origins)
        squared, pinball = losses(batch, levels)
        del batch  # with its quantiles, before the next one
        optimizer.zero_grad()
        (squared + pinball).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(peak * rate)
        move_average(average, model, min(config.average, step / (step + 10)))

        out_of_time = time.monotonic() - started > time_limit
        if step % every == 0 or step == config.steps or out_of_time:
            if checks:
                said = validation_batches(average, linear, rows, checks, length)
                loss = validation_loss(said, linear is not None, levels, rows.weights)
                history.append((step, loss))
                if loss < best_loss:
                    best, best_loss = copy.deepcopy(average.state_dict()), loss
                    parts = said if step == config.steps or out_of_time else None
                del said
            else:
                best = copy.deepcopy(average.state_dict())
            if verbose:
                shown = f"validation {history[-1][1]:.4f}" if history else "no validation rows"
                print(f"step {step}/{config.steps}  train {float(squared.detach()):.4f}  {shown}", file=sys.stderr)
        if out_of_time:
            break
    model.load_state_dict(best)
    model.eval()
    weight = 1.0 if linear is None else 0.0
    if not checks:
        count = max(config.batch, min(CHECKED, len(usable)))
        sequences = draw(usable, last, train_ends, length, warm, count, generator)
        with torch.no_grad():
            return Fitted(weight, history, forecast_batch(model, linear, before, sequences, length, generator, origins))
    if parts is None:  # else the last look was at these very weights
        parts = validation_batches(model, linear, rows, checks, length)
    held = (rows.ends - rows.starts - train_ends).double()
    if linear is not None:
        weight = confirmed_weight(parts, float(held[held > 0].mean()) / shape.horizon, rows.weights)
    most = min(4 * ORIGINS, max(256, affordable))
    return Fitted(weight, history, thinned([remembering for _, remembering in parts], most))


def thinned(batches: list[Batch], most: int) -> Batch:
    """The batches as one, of which at most `most` forecasts are kept, evenly spaced."""
    whole = sum(len(batch.truth) for batch in batches)
    kept = torch.linspace(0, whole - 1, min(whole, most)).round().long()
    parts, start = [], 0
    for batch in batches:
        place = kept[(kept >= start) & (kept < start + len(batch.truth))].to(batch.truth.device) - start
        parts.append([field[place] for field in batch])
        start += len(batch.truth)
    return Batch(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


@torch.no_grad()
def start_head(
    model: TimeSeriesModel, before: Rows, drawn: list[Sequences], rows: Rows, checks: list[Sequences], length: int
) -> None:
    """Start the head at the ridge map from what the untrained blocks make of the sequences to what comes after them.

    Gradient descent finds that map, a good forecast already, only slowly. The penalty is the best one on the validation
    rows. The map is brought to the rank of the head's bottleneck by the directions in which its forecasts vary most.
    """
    model.eval()
    gram = head_gram(model, before, drawn, length)
    weights = solve(gram.xx[0], gram.xy[0], PENALTIES)
    penalty, _ = choose_penalty(weights, PENALTIES, head_gram(model, rows, checks, length, rows.weights))
    best = weights[PENALTIES.index(penalty)]
    rank = min(model.config.rank, best.shape[1])
    directions = np.linalg.eigh(best.T @ gram.xx[0] @ best)[1][:, -rank:]
    narrow, far = model.narrow.weight, model.far.weight
    into, out = (torch.from_numpy(part).to(far) for part in ((best @ directions).T, directions))
    balance = (out.norm() / into.norm().clamp(min=1e-12)).sqrt()  # so that both layers move at like speed
    far.zero_()
    narrow[:rank], far[:, :rank] = balance * into, out / balance


def head_gram(
    model: TimeSeriesModel, rows: Rows, sequences: list[Sequences], length: int, weights: Tensor | None = None
) -> Gram:
    """Sums for the ridge map from the last tokens' outputs to the values after them, in units of each series, times
    these weights of the series, if they were not drawn by them."""
    config = model.config
    ahead, size = config.horizon + config.patch, config.num_tokens * config.backbone.dim
    xx, xy, yy, count = np.zeros((1, size, size)), np.zeros((1, size, ahead)), 0.0, 0
    for some in sequences:
        state = model.initial_state(len(some.series))
        values, encoded = read_sequences(model, rows, some, state, length)
        row, token, arrived = origins_of(model, rows, some, encoded, None)
        tokens, level, scale = model.present(*model.seen_at(values, state, encoded, row, token, arrived))
        truth = windows_at(values, row, token * config.patch + ahead, ahead)
        unit = rows.units[some.series[row]].unsqueeze(-1)
        if weights is not None:
            unit = unit / weights[some.series[row]].sqrt().unsqueeze(-1)
        whole = ~truth.isnan().any(1)
        x = (tokens.flatten(1).double() * (scale.unsqueeze(-1) / unit))[whole].cpu().numpy()
        y = ((truth - level.unsqueeze(-1)) / unit)[whole].cpu().numpy()
        xx[0] += x.T @ x
        xy[0] += x.T @ y
        yy += float(np.vdot(y, y))
        count += len(x)
    return Gram(xx, xy, yy, count)


def any_of(sequences: Sequences, count: int, generator: torch.Generator, weights: Tensor | None) -> Tensor:
    """Which of the sequences to take, [count], at random and by these weights of their series."""
    if weights is None:
        drawn = torch.randint(len(sequences.series), (count,), generator=generator)
    else:
        drawn = torch.multinomial(weights[sequences.series].cpu(), count, replacement=True, generator=generator)
    return drawn.to(sequences.series.device)


def draw(
    usable: Tensor,
    last: Tensor,
    ends: Tensor,
    length: int,
    warm: int,
    count: int,
    generator: torch.Generator,
    weights: Tensor | None = None,
) -> Sequences:
    """Random sequences that begin without a memory, series in proportion to their rows, times these weights.

    Their forecasts count once the head's tokens are all there, or from the middle of a shorter sequence on.
    """
    chances = last[usable].double() if weights is None else last[usable] * weights[usable]
    series = usable[torch.multinomial(chances.cpu(), count, replacement=True, generator=generator)]
    share = torch.rand(count, generator=generator, dtype=torch.float64).to(last.device)
    begin = (share * ((last[series] - length).clamp(min=0) + 1)).long()
    end = torch.minimum(begin + length, ends[series] - 1)
    return Sequences(series, begin, end, begin + ((end - begin) // 2).clamp(max=warm))


def only_last(sequences: Sequences, patch: int) -> Sequences:
    """The same sequences, with forecasts from behind their last whole patch alone."""
    return sequences._replace(first=sequences.begin + (sequences.end - sequences.begin) // patch * patch)


@torch.no_grad()
def remember(
    model: TimeSeriesModel, rows: Rows, usable: Tensor, last: Tensor, length: int, generator: torch.Generator
) -> Sequences | None:
    """Sequences that begin with a memory: a pass through some whole series, cut at a random place and then every
    `length` steps. None where no series is longer than one sequence.

    Without them a model has only seen memories of `length` steps, and a stream of thousands is strange to it.
    """
    model.eval()
    patch = model.config.patch
    long = usable[last[usable] > length]
    if not len(long):
        return None
    series = long[torch.randperm(len(long), generator=generator)[:REMEMBERED].to(long.device)]
    first = patch * int(torch.randint(1, length // patch + 1, (1,), generator=generator))
    state, begin, found = model.initial_state(len(series)), 0, []
    while len(series):
        step = first if begin == 0 else length
        index = rows.starts[series][:, None] + begin + torch.arange(step, device=series.device)
        _, state = model.encode(rows.values[index], state)
        begin += step
        alive = (last[series] > begin + patch).nonzero().squeeze(1)
        series, state = series[alive], select_rows(state, alive)
        start = torch.full_like(series, begin)
        end = torch.minimum(start + length, rows.ends[series] - rows.starts[series] - 1)
        found.append(Sequences(series, start, end, start, state))
        whole = (end - start == length).nonzero().squeeze(1)
        series, state = series[whole], select_rows(state, whole)
    return join_rows(found)


def move_average(average: TimeSeriesModel, model: TimeSeriesModel, decay: float) -> None:
    """Move the averaged weights a little towards the model's."""
    with torch.no_grad():
        for kept, new in zip(average.parameters(), model.parameters(), strict=True):
            kept.lerp_(new, 1 - decay)


def validation_loss(
    parts: list[list[Batch]], shrink: bool, levels: Tensor, series_weights: Tensor | None = None
) -> float:
    """Squared error and pinball loss of the validation rows, with the correction at its confirmed weight if it may
    shrink."""
    weight = confirmed_weight(parts, series_weights=series_weights) if shrink else 1.0
    total = count = 0.0
    for batch in chain(*parts):
        squared, pinball = losses(batch._replace(shift=weight * batch.shift), levels, series_weights)
        size = len(batch.truth) if series_weights is None else float(series_weights[batch.series].sum())
        total += float(squared + pinball) * size
        count += size
    return total / max(count, 1e-12)


@torch.no_grad()
def validation_batches(
    model: TimeSeriesModel, linear: Linear | None, rows: Rows, checks: list[Sequences], length: int
) -> list[list[Batch]]:
    """Forecasts of the validation rows, always from the same origins: for every group of sequences from single contexts
    that nothing came before, and with the memory of what came before each."""
    model.eval()
    generator = torch.Generator().manual_seed(0)

    config = model.config
    most = max(16, SAID // (config.horizon * len(config.quantiles) * max(len(checks), 1)))

    bare = math.ceil(config.context / config.patch) * config.patch

    def say(sequences: Sequences, size: int) -> Batch:
        return forecast_batch(model, linear, rows, sequences, size, generator, most)

    return [
        [say(bare_contexts(group, bare, config.patch), bare), say(with_past(model, rows, group, length), length)]
        for group in checks
    ]


def bare_contexts(sequences: Sequences, size: int, patch: int) -> Sequences:
    """Single contexts of `size` steps that end where some of the sequences' forecasts begin: every `STRIDE` patches,
    and nearer together in short sequences. What does not count in the sequences does not count here."""
    series, _, end, first = sequences[:4]
    stride = patch * ((end - first) // (STRIDE * patch)).clamp(1, STRIDE)
    ends = first[:, None] + stride[:, None] * torch.arange(int(((end - first) // stride).max()) + 1, device=end.device)
    row, place = ((ends <= end[:, None]) & (ends >= patch)).nonzero(as_tuple=True)
    end = ends[row, place]
    bare = only_last(Sequences(series[row], (end - size).clamp(min=0), end, end), patch)
    return bare._replace(first=torch.maximum(bare.first, first[row]))


def with_past(model: TimeSeriesModel, rows: Rows, sequences: Sequences, length: int) -> Sequences:
    """The sequences with what the model remembers of up to `PAST` sequences before them."""
    patch = model.config.patch
    begin = sequences.begin // patch * patch
    past = begin.clamp(max=PAST * length // patch * patch)
    most = int(past.max())
    index = (begin - past)[:, None] + torch.arange(most, device=begin.device)
    flat = (rows.starts[sequences.series][:, None] + index).clamp(max=len(rows.values) - 1)
    state = model.initial_state(len(begin))
    for start in range(0, most, length):
        piece = rows.values[flat[:, start : start + length]]
        _, state = model.encode(piece, state, (past - start).clamp(0, piece.shape[1]))
    return sequences._replace(begin=begin, state=state)


def validation_sequences(rows: Rows, train_ends: Tensor, length: int, patch: int) -> Sequences:
    """Sequences whose forecasts begin at `train_ends` and later and cover what is left, at most `CHECKED` of them."""
    sizes = (rows.ends - rows.starts).tolist()
    stride = max(patch, length // 2 // patch * patch)
    found = []
    for series, (low, size) in enumerate(zip(train_ends.tolist(), sizes, strict=True)):
        for first in range(low, size, stride) if low >= patch else ():
            end = min(first + stride, size - 1)
            begin = max(0, (end - length) // patch * patch)
            found.append((series, begin, end, first))
    if len(found) > CHECKED:
        found = [found[i] for i in np.linspace(0, len(found) - 1, CHECKED).round().astype(int)]
    table = torch.tensor(found, dtype=torch.long, device=train_ends.device).view(-1, 4)
    return Sequences(table[:, 0], table[:, 1], table[:, 2], table[:, 3])


def groups_of(checks: Sequences, rows: Rows, train_ends: Tensor) -> list[Sequences]:
    """The validation sequences in groups of equal size, in the order of time: of when each begins in the validation
    rows of its series."""
    if not len(checks.series):
        return []
    place = (checks.first - train_ends[checks.series]) / (rows.ends - rows.starts - train_ends)[checks.series]
    count = max(min(GROUPS, len(place)), -(-len(place) // GROUP))
    groups = []
    for group in place.argsort(stable=True).tensor_split(count):
        series, begin, end, first = (field[group] for field in checks[:4])
        groups.append(Sequences(series, begin, end, first))
    return groups


def give_back() -> None:
    """Hand what is freed but kept by the allocator back to the system, where it can be asked to (glibc).

    It keeps blocks of megabytes for as long as anything small lies behind them: after training a third of what the
    process holds.

    >>> give_back()
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
