"""Useful arithmetic, counted: operations that a result cannot do without, whichever side computes it, and however.

A multiplication and an addition are two operations. Linear layers, convolutions and memories count; norms, activations,
the scales of windows, closed forms, and what a side computes twice do not, so that a rate is a little less than what
the machine does. Backward counts as twice forward.

B row, T time, D model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode

from ..core.config import MemoryConfig
from ..core.layers import CausalConv
from ..core.memory import NeuralMemory
from ..core.networks import layer_shapes


def by_chunks(memory: MemoryConfig) -> int:
    """Operations of one token's forward pass in all heads of a memory that is computed chunk by chunk: the key through
    the network and its error back, the query at weights and momentum, their update, and the products of a chunk's
    tokens with each other.

    >>> by_chunks(MemoryConfig(dim=64, depth=2))
    450560
    """
    sizes, widths = _sizes(memory)
    one = 10 * sum(sizes) + 2 * sum(sizes[1:]) + 2 * memory.chunk * widths + 2 * memory.chunk**2
    return memory.heads * one


def by_tokens(memory: MemoryConfig) -> int:
    """Operations of one token in all heads of a memory that is written and read token by token: the key through the
    network and its error back, weights and momentum (eq. 13 and 14), and the query at the new weights.

    >>> by_tokens(MemoryConfig(dim=2, depth=1))
    36
    """
    sizes, _ = _sizes(memory)
    rewritten = 5 if memory.momentum else 3
    return memory.heads * ((4 + rewritten) * sum(sizes) + 2 * sum(sizes[1:]))


def _sizes(memory: MemoryConfig) -> tuple[list[int], int]:
    """Weights of every layer of one head, and the sum of all their widths."""
    shapes = layer_shapes(memory.head_dim, memory.depth, memory.expansion)
    return [i * o for i, o in shapes], sum(i + o for i, o in shapes)


class Useful:
    """Counts the operations of all modules that are called while this is entered.

    memory: what a token costs in a memory.

    >>> with Useful() as useful, torch.no_grad():
    ...     _ = nn.Linear(3, 5)(torch.zeros(7, 3))
    >>> useful.operations
    210
    """

    def __init__(self, memory: Callable[[MemoryConfig], int] = by_chunks) -> None:
        self.memory, self.operations = memory, 0

    def __enter__(self) -> Useful:
        self._hook = register_module_forward_hook(self._count)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hook.remove()

    def _count(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        passes = 3 if torch.is_grad_enabled() else 1
        if isinstance(module, nn.Linear):
            self.operations += passes * 2 * arguments[0].numel() * module.out_features
        elif isinstance(module, CausalConv):
            self.operations += passes * 2 * arguments[0].numel() * module.taps
        elif isinstance(module, NeuralMemory):
            rows, time = arguments[0].shape[:2]
            memory = replace(module.config, chunk=max(1, min(module.config.chunk, time)))  # no chunk is longer
            self.operations += passes * rows * time * self.memory(memory)


def products(call: Callable[[], object]) -> int:
    """Operations of the forward pass of anything, by torch's own count of its products.

    >>> products(lambda: torch.zeros(2, 3) @ torch.zeros(3, 5))
    60
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        call()
    return counted.get_total_flops()


def gflops(operations: float, seconds: float) -> float:
    """Operations a nanosecond.

    >>> gflops(3e9, 2.0)
    1.5
    """
    return round(operations / seconds / 1e9, 3)
