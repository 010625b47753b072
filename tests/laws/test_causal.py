"""Causal: what was put out at t does not move, to the last bit, whatever comes after t."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from laws.cases import BACKBONES, NETWORKS, make_backbone, make_memory, name_of, real_tokens, shaken
from torch import Tensor
from torch.nn import functional

from titans_ts.core.layers import rotate
from titans_ts.models.blocks import MemoryAsContext

TIME = 19  # a multiple of no chunk, window or segment of the cases
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
ODD = (1, 5, 0, 3, 7, 2, 1)  # pieces of a stream; together TIME


def make(config: Any, dtype: torch.dtype) -> Any:
    return make_backbone(config, dtype) if hasattr(config, "variant") else make_memory(config, dtype)


def stream(module: Any, x: Tensor) -> Tensor:
    outputs, state = [], None
    for part in x.split(ODD, 1):
        y, state = module(part, state)
        outputs.append(y)
    return torch.cat(outputs, 1)


def futures(x: Tensor) -> tuple[Tensor, Tensor]:
    """For one series [T, D] every other future: from every t on other numbers, huge ones or zeros, or only the last
    token
    changed; with the t of each, one row each."""
    edited, since = [], []
    for t in range(1, len(x)):
        for new in (torch.randn_like(x), 1e9 * torch.randn_like(x), torch.zeros_like(x)):
            edited.append(torch.cat([x[:t], new[t:]]))
            since.append(t)
    edited.append(torch.cat([x[:-1], x[-1:] + 1]))
    return torch.stack(edited), torch.tensor([*since, len(x) - 1])


def assert_causal(run: Callable[[Tensor], Tensor], x: Tensor) -> None:
    edited, since = futures(x)
    with torch.no_grad():
        # The same number of rows, so that every product is cut into the same blocks.
        y, other = run(x.expand_as(edited).contiguous()), run(edited)
    past = torch.arange(len(x)) < since[:, None]
    same = (y == other).all(-1)
    assert same[past].all(), f"moved at (row, token) {(~same & past).nonzero()[:5].tolist()}"
    assert not same[torch.arange(len(since)), since].any()  # the token that was edited answers


@PRECISIONS
@pytest.mark.parametrize("config", [*NETWORKS, *BACKBONES], ids=name_of)
def test_no_output_moves_when_any_future_token_does(config, dtype):
    module = make(config, dtype)
    assert_causal(lambda x: module(x)[0], torch.randn(TIME, config.dim, dtype=dtype))


@PRECISIONS
@pytest.mark.parametrize("config", [*NETWORKS, *BACKBONES], ids=name_of)
def test_no_output_of_a_stream_moves_when_any_future_token_does(config, dtype):
    module = make(config, dtype)
    assert_causal(lambda x: stream(module, x), torch.randn(TIME, config.dim, dtype=dtype))


@pytest.mark.parametrize("config", [*NETWORKS, *BACKBONES], ids=name_of)
def test_no_output_of_a_ragged_batch_moves_when_a_future_mask_does(config):
    module, x = make(config, torch.float64), torch.randn(3, TIME, config.dim, dtype=torch.float64)
    observed, lengths = torch.rand(3, TIME) < 0.8, torch.tensor([TIME, 12, 7])
    with torch.no_grad():
        _, state = module(torch.randn_like(x), None, None, torch.tensor([2, 0, 7]))
        y = real_tokens(module(x, state, observed, lengths)[0], lengths)
        for t in (1, 4, 6):
            other, future = observed.clone(), x.clone()
            other[:, t:], future[:, t:] = ~other[:, t:], 1e3
            got = real_tokens(module(future, state, other, lengths)[0], lengths)
            assert torch.equal(got[:, :t], y[:, :t])


# What the equations of memory as context say when they are taken at their word, on one segment.


def literal(block: MemoryAsContext, x: Tensor, *, rectangle: bool, end_of_segment: bool) -> Tensor:
    """One segment from the start: eq. 22 with every recalled token in sight, eq. 25 with the memory after it."""
    state, shared = block.initial_state(x.shape[0]), block.attention.shared
    time = x.shape[1]
    recalled = block.retrieved(block.memory.lookup(state.context, block.query(x)))
    position = torch.arange(time).expand(x.shape[0], -1)
    queries, keys, values = shared.split(x)
    _, context_keys, context_values = shared.split(recalled)
    queries, keys, context_keys = (rotate(part, position) for part in (queries, keys, context_keys))
    fixed_keys, fixed_values = shared.persistent_keys(x)
    causal = torch.ones(time, time, dtype=torch.bool).tril()
    fixed = torch.ones(time, fixed_keys.shape[2], dtype=torch.bool)
    mask = torch.cat([fixed, torch.ones_like(causal) if rectangle else causal, causal], 1)
    attended = x + shared.merge(
        functional.scaled_dot_product_attention(
            queries,
            torch.cat([fixed_keys, context_keys, keys], 2),
            torch.cat([fixed_values, context_values, values], 2),
            mask,
        )
    )
    read, memory = block.memory(attended, state.memory)
    if end_of_segment:
        read = block.memory.lookup(memory.weights, attended)
    return block.gate(attended, read)


@pytest.mark.parametrize("depth", [1, 2])
def test_memory_as_context_taken_literally_would_see_the_future_twice(depth):
    config = replace(next(c for c in BACKBONES if c.variant == "mac" and c.memory.depth == depth), segment=TIME)
    block = shaken(MemoryAsContext(config))
    x = torch.randn(2, TIME, config.dim, dtype=torch.float64)
    edited = torch.cat([x[:, :-1], torch.randn_like(x[:, -1:])], 1)

    def moved(**words: bool) -> float:
        before, after = (literal(block, each, **words)[:, :-1] for each in (x, edited))
        return (after - before).abs().max().item()

    with torch.no_grad():
        y, _ = block(x, block.initial_state(2), None, None)
        assert (literal(block, x, rectangle=False, end_of_segment=False) - y).abs().max() < 1e-10
        assert moved(rectangle=False, end_of_segment=False) == 0
        assert moved(rectangle=True, end_of_segment=False) > 1e-4
        assert moved(rectangle=False, end_of_segment=True) > 1e-4
