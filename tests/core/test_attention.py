"""Attention with carried state against attention over everything with a mask."""

import pytest
import torch
from laws.cases import assert_same, shaken
from torch import Tensor

from titans_ts.core.attention import SegmentAttention, SlidingWindowAttention
from titans_ts.core.layers import rotate
from titans_ts.core.pieces import pieces, take


def by_hand(shared, x: Tensor, visible, context: Tensor | None = None, position: Tensor | None = None) -> Tensor:
    """Softmax attention token by token; `visible(i, j)` tells whether token i sees token j."""
    position = torch.arange(x.shape[1]).expand(x.shape[0], -1) if position is None else position
    queries, keys, values = shared.split(x)
    queries, keys = rotate(queries, position), rotate(keys, position)
    fixed_keys, fixed_values = shared.persistent_keys(x)
    if context is not None:
        _, context_keys, context_values = shared.split(context)
        context_keys = rotate(context_keys, position)
    outputs = []
    for i in range(x.shape[1]):
        places = [j for j in range(x.shape[1]) if visible(i, j)]
        seen_keys, seen_values = [fixed_keys, keys[:, :, places]], [fixed_values, values[:, :, places]]
        if context is not None:
            seen_keys.append(context_keys[:, :, places])
            seen_values.append(context_values[:, :, places])
        scores = torch.cat(seen_keys, 2) @ queries[:, :, i, :, None] / queries.shape[-1] ** 0.5
        outputs.append((scores.softmax(2) * torch.cat(seen_values, 2)).sum(2))
    return shared.merge(torch.stack(outputs, 2))


@pytest.mark.parametrize("persistent", [0, 3])
@pytest.mark.parametrize("window", [1, 4, 50])
def test_a_sliding_window_is_attention_to_the_last_tokens(window, persistent):
    attention = shaken(SlidingWindowAttention(8, heads=2, window=window, persistent=persistent))
    x = torch.randn(2, 11, 8, dtype=torch.float64)
    y, state = attention(x, attention.initial_state(2))
    assert_same(y, by_hand(attention.shared, x, lambda i, j: i - window < j <= i), 1e-12)
    assert state.position.tolist() == [11, 11]


@pytest.mark.parametrize("persistent", [0, 3])
@pytest.mark.parametrize("segment", [1, 4, 50])
def test_a_segment_is_causal_attention_to_own_and_recalled_tokens(segment, persistent):
    attention = shaken(SegmentAttention(8, heads=2, segment=segment, persistent=persistent))
    x, context = torch.randn(2, 2, 11, 8, dtype=torch.float64)
    state, outputs = attention.initial_state(2), []
    for step in pieces(state.filled, None, 11, segment):
        y, state = attention(take(x, step, 1), take(context, step, 1), state, step)
        outputs.append(y)
    position = (torch.arange(11) % segment).expand(2, -1)
    expected = by_hand(attention.shared, x, lambda i, j: j <= i and i // segment == j // segment, context, position)
    assert_same(torch.cat(outputs, 1), expected, 1e-12)


def test_absolute_positions_do_not_matter_to_a_window():
    attention = shaken(SlidingWindowAttention(8, heads=2, window=4))
    x = torch.randn(1, 9, 8, dtype=torch.float64)
    start = attention.initial_state(1)
    far = start._replace(position=torch.tensor([1_000_000]))
    y, _ = attention(x, start)
    shifted, _ = attention(x, far)
    assert_same(shifted[:, 3:], y[:, 3:], 1e-9)


def test_no_token_changes_nothing():
    attention = SlidingWindowAttention(8, heads=2, window=4)
    state = attention.initial_state(2)
    y, end = attention(torch.zeros(2, 0, 8), state)
    assert y.shape == (2, 0, 8)
    assert end is state
