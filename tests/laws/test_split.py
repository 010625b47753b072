"""Split: one pass is any passes with the state carried over, wherever the cuts are and whatever clock a row is at."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws.cases import (
    BACKBONES,
    CONFIGS,
    NETWORKS,
    assert_same,
    make_backbone,
    make_memory,
    make_state,
    make_tokens,
    name_of,
    real_tokens,
    shaken,
)
from torch import Tensor, nn

from titans_ts.core.attention import SlidingWindowAttention
from titans_ts.core.ops.backends import OPS, choose, rule_of
from titans_ts.core.ops.contract import Tokens

TIME = 17
CUTS = st.lists(st.integers(0, 6), max_size=7)  # lengths of the pieces; what is left is the last piece
some = settings(max_examples=5, deadline=None, derandomize=True, database=None)


class WithoutMissing(nn.Module):
    """Attention with the signature of a memory: a missing observation is a token like any other to it."""

    def __init__(self, attention: SlidingWindowAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor, state: Any, observed: Tensor | None, lengths: Tensor | None) -> Any:
        return self.attention(x, self.attention.initial_state(x.shape[0]) if state is None else state, lengths)


def in_pieces(module: Any, x: Tensor, sizes: list[int], state: Any, observed: Tensor, lengths: Tensor) -> Any:
    outputs, start = [], 0
    for size in (*sizes, x.shape[1]):
        stop = min(start + size, x.shape[1])
        here = slice(start, stop)
        part, state = module(x[:, here], state, observed[:, here], (lengths - start).clamp(0, stop - start))
        outputs.append(part)
        start = stop
    return torch.cat(outputs, 1), state


def assert_splits(
    module: Any, dim: int, sizes: list[int], dtype: torch.dtype = torch.float64, relative: float = 0
) -> None:
    """From rows at clocks of their own, with missing tokens and rows that end early."""
    torch.manual_seed(sum(sizes))
    x, before = torch.randn(3, TIME, dim, dtype=dtype), torch.randn(3, 5, dim, dtype=dtype)
    observed, lengths = torch.rand(3, TIME) < 0.75, torch.tensor([TIME, 11, 2])
    with torch.no_grad():
        _, begun = module(before, None, None, torch.tensor([5, 0, 3]))
        whole, end = module(x, begun, observed, lengths)
        parts, parts_end = in_pieces(module, x, sizes, begun, observed, lengths)
    assert_same(real_tokens(parts, lengths), real_tokens(whole, lengths), relative=relative)
    assert_same(parts_end, end, relative=relative)


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_the_memory_token_by_token_is_the_memory_in_one_pass(config):
    assert_splits(make_memory(replace(config, persistent=2)), config.dim, [1] * TIME)


@pytest.mark.parametrize("op", ["auto", "reference", "numba"])
@pytest.mark.parametrize("config", NETWORKS, ids=name_of)
def test_the_memory_may_be_cut_anywhere(config, op):
    @some
    @given(CUTS)
    def anywhere(sizes):
        assert_splits(make_memory(replace(config, op=op)), config.dim, sizes)

    anywhere()


@pytest.mark.parametrize("config", NETWORKS, ids=name_of)
def test_the_memory_may_be_cut_anywhere_in_single_precision(config):
    @some
    @given(CUTS)
    def anywhere(sizes):
        assert_splits(make_memory(config, torch.float32), config.dim, sizes, torch.float32, relative=1e-5)

    anywhere()


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_a_deep_memory_of_any_chunk_may_be_cut_anywhere(chunk):
    config = replace(NETWORKS[2], chunk=chunk)
    for sizes in ([1] * TIME, [4, 3, 5], [16]):
        assert_splits(make_memory(config), config.dim, sizes)


@pytest.mark.parametrize(("window", "persistent"), [(1, 0), (2, 3), (6, 0), (6, 3), (40, 2)])
def test_sliding_window_attention_may_be_cut_anywhere(window, persistent):
    module = WithoutMissing(SlidingWindowAttention(8, heads=2, window=window, persistent=persistent))

    @some
    @given(CUTS)
    def anywhere(sizes):
        assert_splits(shaken(module), 8, sizes)

    anywhere()
    assert_splits(module, 8, [1] * TIME)


@pytest.mark.parametrize("config", BACKBONES, ids=name_of)
def test_a_backbone_may_be_cut_anywhere(config):
    @some
    @given(CUTS)
    def anywhere(sizes):
        assert_splits(make_backbone(config), config.dim, sizes)

    anywhere()
    assert_splits(make_backbone(config), config.dim, [1] * TIME)


@pytest.mark.parametrize("config", BACKBONES, ids=name_of)
def test_a_backbone_may_be_cut_anywhere_in_single_precision(config):
    for sizes in ([1] * TIME, [4, 0, 3, 5]):
        assert_splits(make_backbone(config, torch.float32), config.dim, sizes, torch.float32, relative=1e-5)


@pytest.mark.parametrize("config", [config for config in CONFIGS if config.exact], ids=name_of)
@pytest.mark.parametrize("tile", [1, 2, 5, 64])
def test_a_linear_memory_does_not_depend_on_its_tile(config, tile):
    state, tokens = make_state(config), make_tokens(config, missing=True)
    results = [OPS[choose(config)](state, tokens, replace(rule_of(config), chunk=chunk)) for chunk in (4, tile)]
    (reads, end), (other_reads, other_end) = results
    assert_same(other_reads, reads)
    assert_same((other_end.weights, other_end.momentum), (end.weights, end.momentum))


def test_a_deep_memory_does_depend_on_its_chunk():
    config = NETWORKS[2]
    state, tokens = make_state(config), make_tokens(config)
    results = [OPS[choose(config)](state, tokens, replace(rule_of(config), chunk=chunk))[0] for chunk in (4, 5)]
    assert (results[0] - results[1]).abs().max() > 1e-3


def test_every_part_of_the_carried_state_matters():
    config = NETWORKS[2]
    rule = replace(rule_of(config), step_budget=0.3)
    state, tokens = make_state(config), make_tokens(config)
    run = OPS[choose(config)]
    halves = (slice(6), slice(6, None))
    first, second = (Tokens(*(None if part is None else part[:, :, here] for part in tokens[:6])) for here in halves)
    whole, _ = run(state, tokens, rule)
    _, half = run(state, first, rule)
    assert_same(run(half, second, rule)[0], whole[:, :, 6:])
    for forgotten in (
        half._replace(anchor=half.weights),
        half._replace(spent=torch.zeros_like(half.spent)),
        half._replace(offset=torch.zeros_like(half.offset)),
        half._replace(momentum=tuple(torch.zeros_like(part) for part in half.momentum)),
    ):
        assert (run(forgotten, second, rule)[0] - whole[:, :, 6:]).abs().max() > 1e-4
