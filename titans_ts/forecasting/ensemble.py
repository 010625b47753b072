"""Several neural corrections of one linear path, averaged: how they are learnt, moved and read.

All that is in closed form is the same for every one of them, so that an ensemble costs as many times what the network
costs, and no more. Each correction enters with the weight that the validation rows confirm of it alone.

N series, B row of a batch, L context, F future step, Q quantile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..models.config import TimeSeriesConfig
from ..models.timeseries import Prediction, SeriesState, TimeSeriesModel
from .inference import advance, state_from_tensors, state_tensors
from .linear import LinearPath, apply_linear
from .panel import Int, Panel
from .training import Batch, Fitted, Linear, Rows, TrainConfig, give_back, train
from .windows import series_scales

_SEEDING = Lock()


@dataclass(frozen=True, eq=False)
class Voice:
    """One more model beside the first, and the weight of its correction."""

    model: TimeSeriesModel
    weight: float


class Correction(NamedTuple):
    """What all models say together: the average of their weighted shifts `[N, F]`, and of their offsets `[N, F, Q]`."""

    shift: Float[Tensor, "N F"]
    offsets: Float[Tensor, "N F Q"]


def learn_models(
    config: TimeSeriesConfig,
    path: LinearPath | None,
    panel: Panel,
    ends: Int,
    settings: TrainConfig,
    seeds: Iterable[int],
    begun: Sequence[TimeSeriesModel],
    device: torch.device,
    *,
    time_limit: float,
    verbose: int,
) -> list[tuple[TimeSeriesModel, Fitted]]:
    """A model for every seed, trained on the rows before `ends` to correct the linear path (None: to forecast alone),
    and what training found of it. `begun`: models whose weights the first ones go on from, where they fit.
    time_limit: seconds for each."""
    rows, train_ends = rows_of(panel, ends, device), torch.from_numpy(ends).to(device)
    learnt = []
    for place, seed in enumerate(seeds):
        with _seeded(seed, device):
            model = TimeSeriesModel(config).to(device)
        if place < len(begun) and begun[place].config == config:
            model.load_state_dict(begun[place].state_dict())
        with _seeded(seed, device) if config.backbone.dropout else nullcontext():  # nothing else draws from torch's
            fitted = train(
                model,
                None if path is None else as_torch(path, panel),
                rows,
                train_ends,
                settings,
                seed=seed,
                time_limit=time_limit,
                verbose=verbose,
            )
        learnt.append((model, fitted))
        give_back()
    return learnt


def rows_of(panel: Panel, ends: Int, device: torch.device) -> Rows:
    """The panel as training wants it, errors counting in units of the rows before `ends`."""
    return Rows(
        values=torch.from_numpy(np.ascontiguousarray(panel.values)).to(device),
        starts=torch.from_numpy(panel.offsets[:-1]).to(device),
        ends=torch.from_numpy(panel.offsets[1:]).to(device),
        units=torch.from_numpy(series_scales(panel, ends)).to(device),
        weights=None if panel.weights is None else torch.from_numpy(panel.weights).to(device),
    )


def as_torch(path: LinearPath, panel: Panel) -> Linear:
    """The linear path as training wants it: contexts [B, L] of these series [B] of the panel that fitted it, before
    these of their rows [B]."""

    def linear(contexts: Tensor, series: Tensor, rows: Tensor) -> Tensor:
        owner, place = series.cpu().numpy(), rows.cpu().numpy()
        steps, usual = panel.starts[owner] + place, panel.usual_before(owner, place)
        forecast = apply_linear(path, contexts.cpu().numpy(), owner + 1, steps, usual)
        return torch.from_numpy(forecast).to(contexts.device)

    return linear


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's own generators at `seed`, and afterwards where they were; one thread at a time, for all share them."""
    with _SEEDING, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def combined(first: Prediction, weight: float, voices: Sequence[Voice], states: Sequence[SeriesState]) -> Correction:
    """The average over the first model and the others, whose states are these; that of one model is its own.

    The level and the scale are those of the window, and so the same for all.
    """
    shift, offsets = weight * first.shift.double(), first.offsets
    for voice, state in zip(voices, states, strict=True):
        said = voice.model.forecast(state)
        shift, offsets = shift + voice.weight * said.shift.double(), offsets + said.offsets
    return Correction(shift / (1 + len(voices)), offsets / (1 + len(voices)))


def averaged(batches: Sequence[Batch], weights: Sequence[float]) -> tuple[Batch, float]:
    """Forecasts of the same windows as one, and its weight.

    Validation has the same windows for every model. Where there are no validation rows each model was judged on windows
    of its own, and the first stands for all.
    """
    first = batches[0]
    if len(batches) == 1:
        return first, weights[0]
    same = all(
        torch.equal(first.series, each.series) and torch.equal(first.origin, each.origin) for each in batches[1:]
    )
    if not same:
        return first, weights[0]
    shift = torch.stack([weight * each.shift for weight, each in zip(weights, batches, strict=True)]).mean(0)
    return first._replace(shift=shift, offsets=torch.stack([each.offsets for each in batches]).mean(0)), 1.0


def advance_voices(
    voices: Sequence[Voice], states: Sequence[SeriesState], new: Panel, *, adapt: bool
) -> tuple[SeriesState, ...]:
    """Their states after the rows of `new`."""
    return tuple(advance(voice.model, state, new, adapt=adapt) for voice, state in zip(voices, states, strict=True))


def voice_tensors(voices: Sequence[Voice], states: Sequence[SeriesState]) -> dict[str, Tensor]:
    """Models and states as named tensors, for a checkpoint."""
    tensors: dict[str, Tensor] = {}
    for place, (voice, state) in enumerate(zip(voices, states, strict=True)):
        tensors |= {f"voice.{place}.model.{name}": tensor for name, tensor in voice.model.state_dict().items()}
        tensors |= {f"voice.{place}.{name}": tensor for name, tensor in state_tensors(state).items()}
    return tensors


def voices_from_tensors(
    like: TimeSeriesModel, weights: Sequence[float], tensors: dict[str, Tensor]
) -> tuple[tuple[Voice, ...], tuple[SeriesState, ...]]:
    """The inverse of `voice_tensors`, for models of the first one's shape."""
    voices, states = [], []
    for place, weight in enumerate(weights):
        head = f"voice.{place}."
        own = {name.removeprefix(head): tensor for name, tensor in tensors.items() if name.startswith(head)}
        model = TimeSeriesModel(like.config).to(next(like.parameters()).device)
        model.load_state_dict({n.removeprefix("model."): t for n, t in own.items() if n.startswith("model.")})
        voices.append(Voice(model.eval(), weight))
        states.append(state_from_tensors(model, own))
    return tuple(voices), tuple(states)
