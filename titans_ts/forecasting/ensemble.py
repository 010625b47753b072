"""Several neural corrections of one linear path, averaged: how they are learnt, moved and read.

All that is in closed form is the same for every one of them, so that an ensemble costs as many times what the network
costs, and no more. Each correction enters with the weight that the validation rows confirm of it alone.

N series, F future step, Q quantile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..models.timeseries import Prediction, SeriesState, TimeSeriesModel
from .inference import advance, prefill, state_from_tensors, state_tensors
from .panel import Panel
from .training import Batch


@dataclass(frozen=True, eq=False)
class Voice:
    """One more model beside the first, and the weight of its correction."""

    model: TimeSeriesModel
    weight: float


class Correction(NamedTuple):
    """What all models say together: the average of their weighted shifts `[N, F]`, and of their offsets `[N, F, Q]`."""

    shift: Float[Tensor, "N F"]
    offsets: Float[Tensor, "N F Q"]


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


def start_voices(voices: Sequence[Voice], panel: Panel) -> tuple[SeriesState, ...]:
    """The states of all further models after these histories."""
    return tuple(prefill(voice.model, panel) for voice in voices)


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
