"""Learning the weights: sequences drawn by index, a forecast from every patch of each, validation on later rows.

B row (sequence), T step, S forecast origin, F future step, Q quantile.
"""

import copy
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.config import require
from ..models.timeseries import TimeSeriesModel

Linear = Callable[[Tensor], Tensor]  # contexts [B, L], NaN where missing, to forecasts [B, F]; both float64


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How `fit` learns.

    linear: start from the closed-form ridge forecast and let the backbone correct it; off: the backbone forecasts alone.
    steps: optimiser steps of the backbone; 0 leaves the linear path alone.
    batch: sequences a step. sequence: steps of one, in multiples of the context: more than one, so that the memory learns
        to live with a past longer than the window.
    learning_rate, weight_decay: of AdamW; the rate warms up over a tenth of the steps and falls to zero as a cosine.
    validation: last rows of every series that choose the ridge penalty, the stopping step and the weight of the backbone's
        correction: a share of the rows when below 1, else a number of rows.
    checks: how often the validation rows are looked at.
    average: decay of the moving average of the weights that is validated and kept.

    >>> TrainConfig(steps=0).linear
    True
    """

    linear: bool = True
    steps: int = 600
    batch: int = 16
    sequence: float = 3.0
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    validation: float = 0.2
    checks: int = 12
    average: float = 0.98

    def __post_init__(self) -> None:
        require(self.linear or self.steps > 0, "linear=False with steps=0 leaves nothing that could forecast.")
        require(self.batch >= 1 and self.checks >= 1, "batch and checks must be at least 1.")
        require(self.sequence >= 1, f"sequence={self.sequence} contexts: a sequence must hold at least one context.")
        require(self.learning_rate > 0, f"learning_rate={self.learning_rate} must be positive.")
        require(0 <= self.average < 1, f"average={self.average} must be in [0, 1).")
        require(self.validation >= 0, f"validation={self.validation} must be a share or a number of rows.")


class Rows(NamedTuple):
    """Flat series on the device: `values` float64 with NaN, `starts` and `ends` [N] of each series, `units` [N] the
    scale in which its errors count."""

    values: Tensor
    starts: Tensor
    ends: Tensor
    units: Tensor


class Batch(NamedTuple):
    """Forecast origins of one batch of sequences, flattened to [B * S].

    base: where the forecast starts, [_, F]: the linear forecast or the window's level. truth: NaN where unknown.
    """

    base: Tensor
    shift: Tensor
    offsets: Tensor
    scale: Tensor
    truth: Tensor
    unit: Tensor


def forecast_batch(
    model: TimeSeriesModel,
    linear: Linear | None,
    rows: Rows,
    series: Tensor,
    begin: Tensor,
    end: Tensor,
    first_origin: Tensor,
    generator: torch.Generator,
    length: int,
) -> Batch:
    """Forecasts from every patch of the sequences `[begin, end)` of `series`, at a random place before the next patch.

    Only origins at or behind `first_origin` (a step of the series) are kept; nothing behind `rows.ends` is seen.
    """
    config = model.config
    patch, horizon, context = config.patch, config.horizon, config.context
    reach = length + patch + horizon
    index = begin[:, None] + torch.arange(reach, device=begin.device)
    size = rows.ends - rows.starts
    inside = index < size[series][:, None]
    flat = (rows.starts[series][:, None] + index).clamp(max=len(rows.values) - 1)
    values = torch.where(inside, rows.values[flat], torch.full_like(rows.values[:1], torch.nan))

    encoded, _ = model.encode(values[:, :length], model.initial_state(len(series)), end - begin)
    number = encoded.outputs.shape[1]
    token = torch.arange(1, number + 1, device=begin.device).expand(len(series), -1)
    arrived = torch.randint(patch, token.shape, generator=generator, device="cpu").to(begin.device)
    origin = token * patch + arrived
    kept = (token <= encoded.counts[:, None]) & (begin[:, None] + origin >= first_origin[:, None])
    kept &= begin[:, None] + origin < size[series][:, None]

    nan = values.new_full((len(series), context), torch.nan)
    both = torch.cat([nan, values], 1)
    prediction = model.forecast_at(both, encoded, token, arrived)
    ahead = origin.flatten(1)[..., None] + torch.arange(horizon, device=begin.device)
    truth = values.gather(1, ahead.flatten(1).clamp(max=reach - 1)).view(-1, horizon)
    rows_of = kept.flatten().nonzero().squeeze(1)
    if linear is None:
        base = prediction.level.unsqueeze(-1).expand(-1, horizon)[rows_of]
    else:
        windows = both.unfold(1, context, 1)[torch.arange(len(series))[:, None], origin].flatten(0, 1)
        base = linear(windows[rows_of])
        base = torch.where(base.isnan(), prediction.level[rows_of].unsqueeze(-1), base)
    unit = rows.units[series][:, None].expand_as(token).flatten()
    return Batch(
        base,
        prediction.shift[rows_of],
        prediction.offsets[rows_of],
        prediction.scale[rows_of],
        truth[rows_of],
        unit[rows_of],
    )


def losses(batch: Batch, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error of the expected value, and pinball loss of the quantiles around it, both in units of the series.

    The quantiles learn around a fixed expected value, so that the two losses do not pull at each other.
    """
    dtype = batch.shift.dtype
    known = ~batch.truth.isnan()
    left = ((batch.truth - batch.base) / batch.unit.unsqueeze(-1)).nan_to_num().to(dtype)
    ratio = (batch.scale / batch.unit).to(dtype).unsqueeze(-1)
    error = left - ratio * batch.shift
    count = known.sum().clamp(min=1)
    squared = (error.square() * known).sum() / count
    gap = error.detach().unsqueeze(-1) - ratio.unsqueeze(-1) * batch.offsets
    pinball = (torch.maximum(levels * gap, (levels - 1) * gap) * known.unsqueeze(-1)).sum() / count
    return squared, pinball / len(levels)


def confirmed_weight(batches: list[Batch]) -> float:
    """The share of the correction, between 0 and 1, that fits the validation rows best: 0 where it does not help.

    >>> one = torch.ones(1, 1)
    >>> confirmed_weight([Batch(0 * one, one, one[None], one[0], 0.25 * one, one[0])])
    0.25
    """
    top = bottom = 0.0
    for batch in batches:
        known = ~batch.truth.isnan()
        unit = batch.unit.unsqueeze(-1)
        left = ((batch.truth - batch.base) / unit)[known]
        said = (batch.scale.unsqueeze(-1) * batch.shift / unit)[known]
        top += float((left * said).sum())
        bottom += float(said.square().sum())
    return min(1.0, max(0.0, top / bottom)) if bottom > 0 else 0.0


class Fitted(NamedTuple):
    """What training found: the weight of the correction, per validation check (step, loss), and whether it trained."""

    weight: float
    history: list[tuple[int, float]]
    trained: bool


def train(
    model: TimeSeriesModel,
    linear: Linear | None,
    rows: Rows,
    train_ends: Tensor,
    config: TrainConfig,
    *,
    seed: int,
    time_limit: float | None = None,
    verbose: int = 0,
) -> Fitted:
    """Fit the model in place on the rows before `train_ends` (a step of each series) and keep what validation confirms.

    With a linear path the model learns the linear path's errors; its correction then enters with the weight that suits
    the validation rows best. Nothing behind `rows.ends` is seen.
    """
    started = time.monotonic()
    shape = model.config
    length = math.ceil(config.sequence * shape.context / shape.patch) * shape.patch
    before = rows._replace(ends=rows.starts + train_ends)
    last = (train_ends - shape.horizon).clamp(min=0)  # the last step a sequence may end at, with a whole target behind
    usable = (last >= shape.patch).nonzero().squeeze(1)
    if not len(usable) or not config.steps:
        return Fitted(0.0, [], False)
    odds = last[usable].double()
    generator = torch.Generator().manual_seed(seed)
    levels = torch.tensor(shape.quantiles, dtype=model.dtype, device=rows.values.device)
    checks = list(validation_sequences(rows, train_ends, length, shape.patch, shape.horizon))

    decay = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99))
    average = copy.deepcopy(model)
    best, best_loss, history = copy.deepcopy(model.state_dict()), math.inf, []
    every = max(1, config.steps // config.checks)
    for step in range(1, config.steps + 1):
        rate = min(step / (0.1 * config.steps), 1.0) * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * rate
        series = usable[torch.multinomial(odds, config.batch, replacement=True, generator=generator)]
        share = torch.rand(config.batch, generator=generator, dtype=torch.float64).to(last.device)
        begin = (share * ((last[series] - length).clamp(min=0) + 1)).long()
        end = torch.minimum(begin + length, train_ends[series] - 1)
        counts = (end - begin) // shape.patch
        first = begin + shape.patch * torch.minimum(torch.full_like(counts, shape.num_tokens), (counts + 1) // 2)
        model.train()
        batch = forecast_batch(model, linear, before, series, begin, end, first, generator, length)
        squared, pinball = losses(batch, levels)
        optimizer.zero_grad(set_to_none=True)
        (squared + pinball).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        move_average(average, model, min(config.average, step / (step + 10)))

        out_of_time = time_limit is not None and time.monotonic() - started > time_limit
        if step % every == 0 or step == config.steps or out_of_time:
            if checks:
                _, loss = validate(average, linear, rows, checks, levels, length, config.linear)
                history.append((step, loss))
                if loss < best_loss:
                    best, best_loss = copy.deepcopy(average.state_dict()), loss
            else:
                best = copy.deepcopy(average.state_dict())
            if verbose:
                shown = f"validation {history[-1][1]:.4f}" if checks else "no validation rows"
                print(f"step {step}/{config.steps}  train {float(squared.detach()):.4f}  {shown}", file=sys.stderr)
        if out_of_time:
            break
    model.load_state_dict(best)
    model.eval()
    if not config.linear:
        return Fitted(1.0, history, True)
    weight, _ = validate(model, linear, rows, checks, levels, length, True) if checks else (0.0, math.nan)
    return Fitted(weight, history, True)


def move_average(average: TimeSeriesModel, model: TimeSeriesModel, decay: float) -> None:
    """Move the averaged weights a little towards the model's."""
    with torch.no_grad():
        for kept, new in zip(average.parameters(), model.parameters(), strict=True):
            kept.lerp_(new, 1 - decay)


@torch.no_grad()
def validate(
    model: TimeSeriesModel,
    linear: Linear | None,
    rows: Rows,
    checks: list[tuple[Tensor, Tensor, Tensor, Tensor]],
    levels: Tensor,
    length: int,
    shrink: bool,
) -> tuple[float, float]:
    """The weight of the correction that validation confirms, and the loss with that weight; always the same origins."""
    model.eval()
    generator = torch.Generator().manual_seed(0)
    batches = [forecast_batch(model, linear, rows, *check, generator, length) for check in checks]
    weight = confirmed_weight(batches) if shrink else 1.0
    total = count = 0.0
    for batch in batches:
        squared, pinball = losses(batch._replace(shift=weight * batch.shift), levels)
        total += float(squared + pinball) * len(batch.truth)
        count += len(batch.truth)
    return weight, total / max(count, 1.0)


def validation_sequences(
    rows: Rows, train_ends: Tensor, length: int, patch: int, horizon: int, batch: int = 32, most: int = 256
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Batches (series, begin, end, first origin) whose origins cover the rows behind `train_ends`, at most `most`."""
    size = rows.ends - rows.starts
    found = []
    for series in range(len(size)):
        low, high = int(train_ends[series]), int(size[series]) - 1
        stride = max(patch, length // 2)
        ends = range(min(low + stride, high), high + 1, stride) if high >= low and low >= patch else range(0)
        found += [(series, max(0, end - length), end, max(low, end - stride)) for end in ends]
    if len(found) > most:
        found = [found[i] for i in np.linspace(0, len(found) - 1, most).round().astype(int)]
    table = torch.tensor(found, dtype=torch.long, device=size.device).view(-1, 4)
    for part in table.split(batch):
        if len(part):
            yield part[:, 0], part[:, 1], part[:, 2], part[:, 3]
