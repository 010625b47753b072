"""The exact form for linear memories: every gradient at the current weights, a tile of tokens at once.

For a linear memory the errors of a tile solve one unit-triangular system, momentum and forgetting included, so that the
result does not depend on the tile and is stable where a frozen gradient diverges. The tile is the chunk.
"""

from torch import Tensor

from ..state import MemoryState
from .chunked import chunked
from .contract import Rule, Tokens


def exact_linear(state: MemoryState, tokens: Tokens, rule: Rule) -> tuple[Tensor, MemoryState]:
    """Write and read all tokens; equal to the reference, for every chunk.

    >>> import torch
    >>> one = torch.ones(1, 1, 1, 1)
    >>> start = MemoryState((0 * one,), (0 * one,), (), one[0], torch.zeros(1, dtype=torch.long), one[0])
    >>> exact_linear(start, Tokens(one, one, 3 * one, 0.5 * one), Rule(chunk=1))[0].item()
    3.0
    """
    assert len(state.weights) == 1
    reads, end = chunked(state._replace(anchor=()), tokens, rule)
    return reads, end._replace(anchor=state.anchor)
