"""The state of a memory, and what one can do with any state.

A state is a `NamedTuple` of tensors (or of tuples of tensors, or of other states). The first axis of every tensor is
the row B, so that states can be sliced, joined and stored by row without knowing what they mean.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

S = TypeVar("S")


class MemoryState(NamedTuple):
    """Everything a memory needs to go on exactly where it stopped, at any token.

    weights, momentum: the memory network W and the past surprise S, one tensor [B, H, I, O] a layer.
    anchor: the weights at which the current chunk takes its gradients; empty for a linear memory, which has none.
    spent: the part of the step budget that the current chunk has used, [B, H, G] with G gates (1, or one a layer).
    offset: tokens of the current chunk seen so far, [B].
    recent: what the convolutions still see of the past, [B, conv - 1, 3 * dim].
    """

    weights: tuple[Float[Tensor, "B H _ _"], ...]
    momentum: tuple[Float[Tensor, "B H _ _"], ...]
    anchor: tuple[Float[Tensor, "B H _ _"], ...]
    spent: Float[Tensor, "B H G"]
    offset: Int[Tensor, " B"]
    recent: Float[Tensor, "B K D3"]


def map_state(function: Callable[..., Tensor], *states: S) -> S:
    """Apply `function` to the corresponding tensors of states of one structure.

    >>> map_state(torch.add, (torch.ones(2),), (torch.ones(2),))
    (tensor([2., 2.]),)
    """
    first = states[0]
    if isinstance(first, Tensor):
        return function(*states)  # type: ignore[return-value]
    parts = [map_state(function, *part) for part in zip(*states, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)  # type: ignore[return-value]


def leaves(state: Any) -> list[Tensor]:
    """The tensors of a state, in order.

    >>> [leaf.shape[0] for leaf in leaves((torch.ones(2), (torch.ones(3),)))]
    [2, 3]
    """
    if isinstance(state, Tensor):
        return [state]
    return [leaf for part in state for leaf in leaves(part)]


def select_rows(state: S, rows: Int[Tensor, " N"]) -> S:
    """The state of the given rows, in the given order; rows may repeat.

    >>> select_rows((torch.tensor([5, 6, 7]),), torch.tensor([2, 0]))
    (tensor([7, 5]),)
    """
    return map_state(lambda leaf: leaf.index_select(0, rows), state)


def put_rows(state: S, rows: Int[Tensor, " N"], new: S) -> S:
    """A copy of `state` in which `rows` are those of `new`.

    >>> put_rows((torch.tensor([5, 6, 7]),), torch.tensor([1]), (torch.tensor([0]),))
    (tensor([5, 0, 7]),)
    """
    return map_state(lambda leaf, part: leaf.index_copy(0, rows, part), state, new)


def join_rows(states: Sequence[S]) -> S:
    """The rows of several states, one after the other.

    >>> join_rows([(torch.tensor([5]),), (torch.tensor([6, 7]),)])
    (tensor([5, 6, 7]),)
    """
    return map_state(lambda *parts: torch.cat(parts), *states)


def where_rows(condition: Tensor, yes: tuple[Tensor, ...], no: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Row by row, the tensors of `yes` where `condition` [B] holds and those of `no` elsewhere.

    >>> where_rows(torch.tensor([True, False]), (torch.ones(2),), (torch.zeros(2),))
    (tensor([1., 0.]),)
    """
    return tuple(torch.where(condition.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in zip(yes, no, strict=True))
