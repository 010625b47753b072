"""The four ways of the paper to join memory and attention, side by side.

Every block has `initial_state(rows)` and `forward(x, state, observed, lengths) -> (y, state)`, is causal, and gives the
same result for every split of its input.

B row, T time, D model.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..core.attention import SegmentAttention, SegmentState, SlidingWindowAttention, WindowState
from ..core.layers import RMSNorm
from ..core.memory import NeuralMemory
from ..core.pieces import join, pieces, take
from ..core.state import MemoryState, where_rows
from .config import BackboneConfig


class HybridState(NamedTuple):
    """State of a block with a memory and sliding-window attention."""

    memory: MemoryState
    attention: WindowState


class ContextState(NamedTuple):
    """State of memory as context: the memory, its weights as the current segment began, and the segment."""

    memory: MemoryState
    context: tuple[Tensor, ...]
    segment: SegmentState


class Gate(nn.Module):
    """Attention gated by the memory's read: both normalised with learned scales, `out(a * sigmoid(m))` (section 4.2).

    >>> import torch
    >>> Gate(4)(torch.ones(1, 2, 4), torch.ones(1, 2, 4)).shape
    torch.Size([1, 2, 4])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attention = RMSNorm(dim)
        self.memory = RMSNorm(dim)
        self.out = nn.Linear(dim, dim, bias=False)
        with torch.no_grad():
            # The sigmoid of nothing lets half through. With scales of two attention starts whole, and what the memory
            # reads opens and closes the gate from the first step of training on.
            self.attention.scale.fill_(2.0)
            self.memory.scale.fill_(2.0)

    def forward(self, attention: Float[Tensor, "B T D"], memory: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Gate what attention made of the tokens by what the memory read."""
        out: Tensor = self.out(self.attention(attention) * self.memory(memory).sigmoid())
        return out


class MemoryOnly(nn.Module):
    """LMM: the memory is the only thing that mixes tokens.

    >>> import torch
    >>> block = MemoryOnly(BackboneConfig())
    >>> block(torch.zeros(1, 3, 64), block.initial_state(1), None, None)[0].shape
    torch.Size([1, 3, 64])
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.memory = NeuralMemory(config.memory)

    def initial_state(self, rows: int) -> MemoryState:
        """The state before the first token."""
        return self.memory.initial_state(rows)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: MemoryState,
        observed: Bool[Tensor, "B T"] | None,
        lengths: Int[Tensor, " B"] | None,
    ) -> tuple[Float[Tensor, "B T D"], MemoryState]:
        """Outputs for every token and the state behind the last; arguments as in `NeuralMemory.forward`."""
        out: tuple[Tensor, MemoryState] = self.memory(x, state, observed, lengths)
        return out


class MemoryAsGate(nn.Module):
    """MAG: sliding-window attention, gated by the memory's read of the same tokens (eq. 26 to 28).

    >>> import torch
    >>> block = MemoryAsGate(BackboneConfig())
    >>> block(torch.zeros(1, 3, 64), block.initial_state(1), None, None)[0].shape
    torch.Size([1, 3, 64])
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.memory = NeuralMemory(config.memory)
        self.attention = SlidingWindowAttention(
            config.dim, heads=config.heads, window=config.window, persistent=config.memory.persistent
        )
        self.gate = Gate(config.dim)

    def initial_state(self, rows: int) -> HybridState:
        """The state before the first token."""
        return HybridState(self.memory.initial_state(rows), self.attention.initial_state(rows))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: HybridState,
        observed: Bool[Tensor, "B T"] | None,
        lengths: Int[Tensor, " B"] | None,
    ) -> tuple[Float[Tensor, "B T D"], HybridState]:
        """Outputs for every token and the state behind the last; arguments as in `NeuralMemory.forward`."""
        attended, attention = self.attention(x, state.attention, lengths)
        read, memory = self.memory(x, state.memory, observed, lengths)
        return self.gate(attended, read), HybridState(memory, attention)


class MemoryAsLayer(nn.Module):
    """MAL: sliding-window attention over what the memory made of the tokens (eq. 29 to 31).

    The camera-ready stacks the two like Samba, each with its residual path; so does this block.

    >>> import torch
    >>> block = MemoryAsLayer(BackboneConfig())
    >>> block(torch.zeros(1, 3, 64), block.initial_state(1), None, None)[0].shape
    torch.Size([1, 3, 64])
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.memory = NeuralMemory(config.memory)
        self.norm = RMSNorm(config.dim)
        self.attention = SlidingWindowAttention(
            config.dim, heads=config.heads, window=config.window, persistent=config.memory.persistent
        )

    def initial_state(self, rows: int) -> HybridState:
        """The state before the first token."""
        return HybridState(self.memory.initial_state(rows), self.attention.initial_state(rows))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: HybridState,
        observed: Bool[Tensor, "B T"] | None,
        lengths: Int[Tensor, " B"] | None,
    ) -> tuple[Float[Tensor, "B T D"], HybridState]:
        """Outputs for every token and the state behind the last; arguments as in `NeuralMemory.forward`."""
        read, memory = self.memory(x, state.memory, observed, lengths)
        attended, attention = self.attention(self.norm(x + read), state.attention, lengths)
        return read + attended, HybridState(memory, attention)


class MemoryAsContext(nn.Module):
    """MAC: what the memory recalls stands beside the segment in its attention (eq. 21 to 25).

    The literal equations see the future twice. Here a token sees what was retrieved for itself and the tokens before
    it only (eq. 22), and the memory that gates the output is read token by token, each after its own write, instead of
    after the whole segment's (eq. 25). Attention has a residual path of its own: what is written then holds the token
    itself from the first step of training on.

    >>> import torch
    >>> block = MemoryAsContext(BackboneConfig())
    >>> block(torch.zeros(1, 3, 64), block.initial_state(1), None, None)[0].shape
    torch.Size([1, 3, 64])
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.segment = config.segment
        self.memory = NeuralMemory(replace(config.memory, persistent=0))
        self.query = nn.Linear(config.dim, config.dim, bias=False)
        with torch.no_grad():
            self.query.weight.copy_(self.memory.project.weight[: config.dim])  # asks as the memory itself does
        self.retrieved = RMSNorm(config.dim)
        self.attention = SegmentAttention(
            config.dim, heads=config.heads, segment=config.segment, persistent=config.memory.persistent
        )
        self.gate = Gate(config.dim)

    def initial_state(self, rows: int) -> ContextState:
        """The state before the first token."""
        memory = self.memory.initial_state(rows)
        return ContextState(memory, memory.weights, self.attention.initial_state(rows))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: ContextState,
        observed: Bool[Tensor, "B T"] | None,
        lengths: Int[Tensor, " B"] | None,
    ) -> tuple[Float[Tensor, "B T D"], ContextState]:
        """Outputs for every token and the state behind the last; arguments as in `NeuralMemory.forward`."""
        memory, context, segment = state
        steps = pieces(segment.filled, lengths, x.shape[1], self.segment)
        outputs = []
        for step in steps:
            begins = segment.filled == 0
            if step.count is not None:
                begins = begins & (step.count > 0)
            context = where_rows(begins, memory.weights, context)
            tokens = take(x, step, 1)
            retrieved = self.retrieved(self.memory.lookup(context, self.query(tokens)))
            attended, segment = self.attention(tokens, retrieved, segment, step)
            attended = tokens + attended
            seen = None if observed is None else take(observed, step, 1)
            read, memory = self.memory(attended, memory, seen, step.count)
            outputs.append(self.gate(attended, read))
        y = join(outputs, steps, x.shape[1], 1) if outputs else x
        return y, ContextState(memory, context, segment)


BLOCKS: dict[str, Any] = {
    "lmm": MemoryOnly,
    "mac": MemoryAsContext,
    "mag": MemoryAsGate,
    "mal": MemoryAsLayer,
}


def memory_of(state: Any) -> MemoryState:
    """The memory inside the state of any block.

    >>> block = MemoryAsGate(BackboneConfig())
    >>> memory_of(block.initial_state(2)).offset.tolist()
    [4, 4]
    """
    return state if isinstance(state, MemoryState) else state.memory


def change_memory(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The state of any block with `change` applied to everything that its memory has learnt: weights, momentum,
    anchor, and the weights that a segment retrieves from.

    >>> import torch
    >>> block = MemoryOnly(BackboneConfig())
    >>> change_memory(block.initial_state(2), torch.zeros_like).weights[0].abs().max().item()
    0.0
    """
    memory = memory_of(state)
    parts = (tuple(map(change, part)) for part in (memory.weights, memory.momentum, memory.anchor))
    weights, momentum, anchor = parts
    memory = memory._replace(weights=weights, momentum=momentum, anchor=anchor)
    if isinstance(state, MemoryState):
        return memory
    if isinstance(state, ContextState):
        return state._replace(memory=memory, context=tuple(map(change, state.context)))
    return state._replace(memory=memory)
