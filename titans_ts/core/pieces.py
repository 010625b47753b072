"""Cutting a ragged batch at the clocks of its rows.

Chunks and segments begin where each row's own clock says, and rows of one batch may stand at different clocks and have
different lengths. `pieces` lists the steps of a loop in which every row meets at most one boundary, `take` cuts
a tensor for one step, `join` puts the steps' outputs back in the order of the tokens. Where all rows agree, which is
the rule in training, these are plain slices.

B row, T time.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Piece:
    """One step of the loop: `width` tokens from `start`; of row b only the first `count[b]` are real.

    start: one int for all rows, or [B]. count: None when all `width` tokens are real in every row, else [B].
    index: which chunk (or segment) of the call this is, counted from 0, the one that the state stands in.
    """

    start: int | Int[Tensor, " B"]
    width: int
    count: Int[Tensor, " B"] | None
    index: int


def noted(clocks: Int[Tensor, " B"], clock: int) -> Int[Tensor, " B"]:
    """The clocks of rows that all stand at `clock`, with that noted on the tensor: nobody has to wait for the device to
    know it. Clocks are never changed in place.

    >>> agreed(noted(torch.tensor([3, 3]), 3))
    3
    """
    clocks.agreed = clock  # type: ignore[attr-defined]
    return clocks


def agreed(clocks: Int[Tensor, " B"]) -> int | None:
    """Where all rows stand; None where they do not agree.

    >>> agreed(torch.tensor([3, 3])), agreed(torch.tensor([3, 4]))
    (3, None)
    """
    clock: int | None = getattr(clocks, "agreed", None)
    if clock is None:
        here = clocks.cpu()
        clock = int(here[0]) if bool((here == here[0]).all()) else None
    return clock


def pieces(offset: Int[Tensor, " B"], lengths: Int[Tensor, " B"] | None, time: int, size: int) -> list[Piece]:
    """The steps through `time` tokens for rows that stand `offset` tokens into chunks of `size`.

    >>> [(piece.start, piece.width) for piece in pieces(torch.tensor([3, 3]), None, 6, 4)]
    [(0, 1), (1, 4), (5, 1)]
    """
    first = agreed(offset)
    if lengths is not None and bool((lengths == time).all()):
        lengths = None
    if first is not None and lengths is None:
        starts = [0, *range(size - first, time, size)] if first else list(range(0, time, size))
        return [Piece(a, b - a, None, i) for i, (a, b) in enumerate(zip(starts, [*starts[1:], time], strict=True))]
    ends = torch.full_like(offset, time) if lengths is None else lengths
    steps = []
    for index in range(int((offset + ends).max() + size - 1) // size):
        start = (index * size - offset).clamp(min=0)
        count = (torch.minimum(ends, (index + 1) * size - offset) - start).clamp(min=0)
        width = int(count.max())
        if width:
            steps.append(Piece(start.clamp(max=time - 1), width, count, index))
    return steps


def begins(piece: Piece, offset: Int[Tensor, " B"]) -> Bool[Tensor, " B"]:
    """Which rows begin a chunk with the first token of a step; `offset` is that of the whole call's start.

    >>> begins(Piece(torch.tensor([0, 0]), 2, torch.tensor([1, 2]), 0), torch.tensor([3, 0])).tolist()
    [False, True]
    """
    first = torch.ones_like(offset, dtype=torch.bool) if piece.index else offset == 0
    return first if piece.count is None else first & (piece.count > 0)


def take(x: Tensor, piece: Piece, dim: int) -> Tensor:
    """The tokens of one step, left-aligned along `dim`; what lies behind a row's count is arbitrary.

    >>> take(torch.arange(8).view(2, 4), Piece(torch.tensor([0, 2]), 2, torch.tensor([2, 2]), 0), 1)
    tensor([[0, 1],
            [6, 7]])
    """
    if isinstance(piece.start, int):
        return x.narrow(dim, piece.start, piece.width)
    index = (piece.start[:, None] + torch.arange(piece.width, device=x.device)).clamp(max=x.shape[dim] - 1)
    shape = [1] * x.dim()
    shape[0], shape[dim] = index.shape
    return torch.take_along_dim(x, index.view(shape), dim)


def real(piece: Piece, device: torch.device) -> Bool[Tensor, "B W"] | None:
    """Which tokens of a step are real, or None when all are.

    >>> real(Piece(torch.tensor([0, 0]), 2, torch.tensor([1, 2]), 0), torch.device("cpu")).tolist()
    [[True, False], [True, True]]
    """
    if piece.count is None:
        return None
    return torch.arange(piece.width, device=device) < piece.count[:, None]


def join(outputs: list[Tensor], steps: list[Piece], time: int, dim: int) -> Tensor:
    """The steps' outputs in the order of the tokens, zero where a row has no token.

    >>> steps = pieces(torch.tensor([1, 0]), None, 3, 2)
    >>> x = torch.arange(6).view(2, 3)
    >>> bool((join([take(x, step, 1) for step in steps], steps, 3, 1) == x).all())
    True
    """
    whole = torch.cat(outputs, dim)
    if steps[0].count is None:
        return whole
    rows = steps[0].count.shape[0]
    index = torch.zeros(rows, time + 1, dtype=torch.long, device=whole.device)  # the last column takes what is not real
    seen = torch.zeros(rows, time + 1, dtype=torch.bool, device=whole.device)
    column = 0
    for step in steps:
        here = torch.arange(step.width, device=whole.device)
        mask = here < step.count[:, None]  # type: ignore[index]
        target = torch.where(mask, step.start[:, None] + here, time)  # type: ignore[index]
        index.scatter_(1, target, (column + here).expand(rows, -1))
        seen.scatter_(1, target, mask)
        column += step.width
    shape = [1] * whole.dim()
    shape[0], shape[dim] = rows, time
    picked = torch.take_along_dim(whole, index[:, :time].reshape(shape), dim)
    return torch.where(seen[:, :time].reshape(shape), picked, torch.zeros((), dtype=whole.dtype, device=whole.device))
