"""Softmax attention with carried state: a sliding window, and segments with a retrieved context.

Both see their persistent tokens from everywhere, and neither sees what comes later.

B row, T time, D model, H head, K key of a head, W window, N persistent token.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from .layers import last_rows, rotate
from .pieces import Piece, agreed, noted, real


class WindowState(NamedTuple):
    """Keys and values of the last `window - 1` tokens, [B, W - 1, H, K], and how many tokens there were, [B]."""

    keys: Float[Tensor, "B W H K"]
    values: Float[Tensor, "B W H K"]
    position: Int[Tensor, " B"]


class SegmentState(NamedTuple):
    """Keys and values of the current segment, [B, S, H, K], of its tokens and of what was retrieved for them, and how
    many tokens the segment has so far, [B]."""

    keys: Float[Tensor, "B S H K"]
    values: Float[Tensor, "B S H K"]
    context_keys: Float[Tensor, "B S H K"]
    context_values: Float[Tensor, "B S H K"]
    filled: Int[Tensor, " B"]


class AttentionProjections(nn.Module):
    """What both kinds of attention share: projections and persistent keys and values.

    >>> AttentionProjections(8, 2, 3).persistent_keys(torch.zeros(4, 1, 8))[0].shape
    torch.Size([4, 2, 3, 4])
    """

    def __init__(self, dim: int, heads: int, persistent: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.persistent = nn.Parameter(torch.randn(persistent, dim)) if persistent else None

    def split(self, x: Float[Tensor, "B T D"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, H, T, K] of tokens."""
        queries, keys, values = self.project(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return queries, keys, values

    def persistent_keys(self, x: Float[Tensor, "B T D"]) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, N, K] of the persistent tokens, which have no position; N may be 0."""
        tokens = x.new_zeros(0, x.shape[-1]) if self.persistent is None else self.persistent
        _, keys, values = self.split(tokens[None])
        return keys.expand(x.shape[0], -1, -1, -1), values.expand(x.shape[0], -1, -1, -1)

    def merge(self, y: Float[Tensor, "B H T K"]) -> Float[Tensor, "B T D"]:
        """Heads side by side, through the output projection."""
        out: Tensor = self.out(y.movedim(1, 2).flatten(2))
        return out


class SlidingWindowAttention(nn.Module):
    """Every token attends to itself, the `window - 1` tokens before it and the persistent tokens (eq. 27, 31).

    Time and memory are linear in the length: long inputs go through in blocks of one window.

    >>> attention = SlidingWindowAttention(8, heads=2, window=4)
    >>> y, state = attention(torch.zeros(2, 9, 8), attention.initial_state(2))
    >>> y.shape, state.position.tolist()
    (torch.Size([2, 9, 8]), [9, 9])
    """

    def __init__(self, dim: int, *, heads: int, window: int, persistent: int = 0) -> None:
        super().__init__()
        self.window = window
        self.shared = AttentionProjections(dim, heads, persistent)

    def initial_state(self, rows: int) -> WindowState:
        """The state before the first token."""
        weight = self.shared.project.weight
        empty = weight.new_zeros(rows, self.window - 1, self.shared.heads, weight.shape[1] // self.shared.heads)
        return WindowState(empty, empty, torch.zeros(rows, dtype=torch.long, device=weight.device))

    def forward(
        self, x: Float[Tensor, "B T D"], state: WindowState, lengths: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], WindowState]:
        """Attend to the tokens before and the token itself; behind `lengths` lies padding."""
        time, past = x.shape[1], self.window - 1
        if time == 0:
            return x, state
        queries, keys, values = self.shared.split(x)
        position = state.position[:, None] + torch.arange(time, device=x.device)
        queries, keys = rotate(queries, position), rotate(keys, position)
        all_keys = torch.cat([state.keys.movedim(1, 2).to(keys.dtype), keys], 2)
        all_values = torch.cat([state.values.movedim(1, 2).to(values.dtype), values], 2)
        # Of the past - window - 1 places - only as many exist as there were tokens.
        first = (past - state.position).clamp(min=0)
        fixed_keys, fixed_values = self.shared.persistent_keys(x)

        outputs = []
        for start in range(0, time, self.window):
            width = min(self.window, time - start)
            here = slice(start, start + past + width)
            row = torch.arange(width, device=x.device)[:, None]
            column = torch.arange(past + width, device=x.device)
            band = (column >= row) & (column <= row + past)
            mask = band & (start + column >= first[:, None, None])
            mask = functional.pad(mask, (fixed_keys.shape[2], 0), value=True)
            outputs.append(
                functional.scaled_dot_product_attention(
                    queries[:, :, start : start + width],
                    torch.cat([fixed_keys, all_keys[:, :, here]], 2),
                    torch.cat([fixed_values, all_values[:, :, here]], 2),
                    mask[:, None],
                )
            )
        arrived = time if lengths is None else lengths
        new = WindowState(
            last_rows(all_keys.movedim(2, 1), past, lengths).to(state.keys.dtype),
            last_rows(all_values.movedim(2, 1), past, lengths).to(state.values.dtype),
            state.position + arrived,
        )
        return self.shared.merge(torch.cat(outputs, 2)), new


class SegmentAttention(nn.Module):
    """Causal attention inside one segment over persistent, retrieved and own tokens (eq. 22, 23).

    Token i sees what was retrieved for the tokens up to i only: the paper's picture shows a rectangle there, which lets
    token i see the queries of later tokens.

    >>> attention = SegmentAttention(8, heads=2, segment=4)
    >>> x = torch.zeros(2, 3, 8)
    >>> attention(x, x, attention.initial_state(2), Piece(0, 3, None, 0))[0].shape
    torch.Size([2, 3, 8])
    """

    def __init__(self, dim: int, *, heads: int, segment: int, persistent: int = 0) -> None:
        super().__init__()
        self.segment = segment
        self.shared = AttentionProjections(dim, heads, persistent)

    def initial_state(self, rows: int) -> SegmentState:
        """The state before the first token."""
        weight = self.shared.project.weight
        empty = weight.new_zeros(rows, self.segment, self.shared.heads, weight.shape[1] // self.shared.heads)
        filled = noted(torch.zeros(rows, dtype=torch.long, device=weight.device), 0)
        return SegmentState(empty, empty, empty, empty, filled)

    def forward(
        self, x: Float[Tensor, "B T D"], context: Float[Tensor, "B T D"], state: SegmentState, piece: Piece
    ) -> tuple[Float[Tensor, "B T D"], SegmentState]:
        """Attend within the tokens of one piece, none of which crosses the end of its row's segment."""
        time = x.shape[1]
        position = state.filled[:, None] + torch.arange(time, device=x.device)
        queries, keys, values = self.shared.split(x)
        _, context_keys, context_values = self.shared.split(context)
        queries, keys, context_keys = (rotate(part, position) for part in (queries, keys, context_keys))
        exists = real(piece, x.device)
        slot = position if exists is None else torch.where(exists, position, self.segment)

        new = []
        for old, part in zip(state[:4], (keys, values, context_keys, context_values), strict=True):
            padded = functional.pad(old, (0, 0, 0, 0, 0, 1))  # one place more takes what is not real
            index = slot[:, :, None, None].expand(-1, -1, *old.shape[2:])
            new.append(padded.scatter(1, index, part.movedim(2, 1).to(old.dtype))[:, : self.segment])
        clock = agreed(state.filled)
        furthest = int(state.filled.max()) if clock is None else clock
        places = min(self.segment, furthest + time)
        seen = torch.arange(places, device=x.device) <= position[:, :, None]
        fixed_keys, fixed_values = self.shared.persistent_keys(x)
        mask = functional.pad(torch.cat([seen, seen], -1), (fixed_keys.shape[2], 0), value=True)

        def columns(fixed: Tensor, retrieved: Tensor, own: Tensor) -> Tensor:
            parts = (part[:, :places].movedim(2, 1).to(fixed.dtype) for part in (retrieved, own))
            return torch.cat([fixed, *parts], 2)

        y = functional.scaled_dot_product_attention(
            queries, columns(fixed_keys, new[2], new[0]), columns(fixed_values, new[3], new[1]), mask[:, None]
        )
        arrived = time if piece.count is None else piece.count
        filled = (state.filled + arrived) % self.segment
        if clock is not None and piece.count is None:
            filled = noted(filled, (clock + time) % self.segment)
        return self.shared.merge(y), SegmentState(new[0], new[1], new[2], new[3], filled)
