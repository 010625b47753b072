"""What every implementation of the update rule takes.

B row, H head, T time, K key, V value, G gate (1, or one a layer of the memory network).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..state import MemoryState


class Tokens(NamedTuple):
    """What the memory sees of its tokens.

    theta, eta, alpha: step, momentum and forget gate of every token; eta None: no momentum, and the
        state's momentum is neither read nor written; alpha None: nothing is forgotten.
    observed: False where the observation is missing: the memory stands still and time goes on. None: all observed.
    lengths: real tokens of each row; what lies behind is padding and never happened. None: all of them.
    """

    queries: Float[Tensor, "B H T K"]
    keys: Float[Tensor, "B H T K"]
    values: Float[Tensor, "B H T V"]
    theta: Float[Tensor, "B H T G"]
    eta: Float[Tensor, "B H T G"] | None = None
    alpha: Float[Tensor, "B H T G"] | None = None
    observed: Bool[Tensor, "B T"] | None = None
    lengths: Int[Tensor, " B"] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """The constants of the update rule.

    chunk: tokens between two anchors; 1 takes every gradient at the current weights (eq. 13, 14), and so does a state
        without an anchor, for which the chunk is only how many tokens are solved for at once.
    residual: the memory network is `x + LN(MLP(x))`.
    step_budget: bound on the sum of theta / (1 - eta) inside a chunk, which is what the steps have done once the
        momentum has spent itself: a step takes what the chunk has left, at most, and is divided by its `stiffness`.
        None: neither.
    weight_cap: bound on a layer's Frobenius norm at chunk starts, in units of sqrt(fan_out); without an anchor also on
        the momentum's. None: none.
    """

    chunk: int
    residual: bool = False
    step_budget: float | None = None
    weight_cap: float | None = None


def lasting(eta: Tensor) -> Tensor:
    """`1 - eta`, the share of a step's whole effect that it has at once; never quite 0, since one divides by it.

    >>> import torch
    >>> lasting(torch.tensor([0.75, 1.0])).tolist()
    [0.25, 9.999999960041972e-13]
    """
    return (1 - eta).clamp(min=1e-12)


Op = Callable[[MemoryState, Tokens, Rule], tuple[Tensor, MemoryState]]


def cap(weights: tuple[Tensor, ...], weight_cap: float | None) -> tuple[Tensor, ...]:
    """The weights, each layer scaled back to a Frobenius norm of at most `weight_cap * sqrt(fan_out)`.

    >>> import torch
    >>> cap((torch.full((1, 1, 2, 4), 10.0),), 1.0)[0].norm().item()
    2.0
    """
    if weight_cap is None:
        return weights
    capped = []
    for weight in weights:
        # The tiny number keeps the gradient of the norm finite where a layer is all zero.
        norm = (weight.square().sum((-2, -1), keepdim=True) + 1e-24).sqrt()
        capped.append(weight * (weight_cap * weight.shape[-1] ** 0.5 / norm).clamp(max=1.0))
    return tuple(capped)
