"""Inert: what is padding never happened, and what is missing teaches the memory nothing while time goes on."""

from typing import Any

import pytest
import torch
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
)
from torch import Tensor

from titans_ts.core.ops.backends import OPS, choose, rule_of
from titans_ts.core.state import leaves, map_state
from titans_ts.models.blocks import memory_of

TIME = 9
EVERY_OP = [(config, op) for config in CONFIGS for op in (choose(config), "reference", "numba")]


def memories(config: Any, state: Any) -> list[Any]:
    return [memory_of(part) for part in (state if hasattr(config, "variant") else (state,))]


def make(config: Any) -> Any:
    return make_backbone(config) if hasattr(config, "variant") else make_memory(config)


def begun(module: Any, config: Any) -> Any:
    """A state in the middle of things, another clock in every row."""
    with torch.no_grad():
        return module(torch.randn(3, 7, config.dim, dtype=torch.float64), None, None, torch.tensor([7, 2, 5]))[1]


@pytest.mark.parametrize(("config", "op"), EVERY_OP, ids=lambda part: name_of(part) or part)
def test_a_token_that_is_padding_changes_nothing_at_all(config, op):
    state, tokens = make_state(config, ragged=True), make_tokens(config, theta=0.9)
    lengths = torch.tensor([0, 4, 11])
    _, end = OPS[op](state, tokens._replace(lengths=lengths), rule_of(config))
    stands = map_state(lambda leaf: leaf[:1], state)
    assert all(
        torch.equal(a, b) for a, b in zip(leaves(map_state(lambda leaf: leaf[:1], end)), leaves(stands), strict=True)
    )
    for row, length in enumerate(lengths.tolist()):
        cut = type(tokens)(*(None if part is None else part[row : row + 1, :, :length] for part in tokens[:6]))
        if length:
            alone = OPS[op](map_state(lambda leaf, row=row: leaf[row : row + 1], state), cut, rule_of(config))[1]
            assert_same(map_state(lambda leaf, row=row: leaf[row : row + 1], end), alone, 1e-12)


@pytest.mark.parametrize("config", [*NETWORKS, *BACKBONES], ids=name_of)
def test_padding_is_the_identity_on_outputs_and_on_the_whole_state(config):
    module, lengths = make(config), torch.tensor([6, 0, 9])
    state, x = begun(module, config), torch.randn(3, TIME, config.dim, dtype=torch.float64)
    with torch.no_grad():
        y, end = module(x, state, None, lengths)
        longer = torch.cat([x, 1e3 * torch.randn(3, 5, config.dim, dtype=torch.float64)], 1)
        y_longer, end_longer = module(longer, state, None, lengths)
        noise = torch.where(torch.arange(TIME)[:, None] < lengths[:, None, None], x, 1e3 * torch.randn_like(x))
        y_noise, end_noise = module(noise, state, None, lengths)
    assert_same(end_longer, end, 1e-12)
    assert all(torch.equal(a, b) for a, b in zip(leaves(end_noise), leaves(end), strict=True))
    for row, length in enumerate(lengths.tolist()):
        assert_same(y_longer[row, :length], y[row, :length], 1e-12)
        assert torch.equal(y_noise[row, :length], y[row, :length])
    for before, after in zip(leaves(state), leaves(end), strict=True):
        assert torch.equal(after[1], before[1])  # a row without tokens, its clock included


@pytest.mark.parametrize(("config", "op"), EVERY_OP, ids=lambda part: name_of(part) or part)
def test_a_missing_token_leaves_weights_and_momentum_and_moves_the_clock(config, op):
    state, tokens = make_state(config, ragged=True), make_tokens(config, time=1, theta=0.9)
    missing = tokens._replace(observed=torch.zeros(3, 1, dtype=torch.bool))
    _, end = OPS[op](state, missing, rule_of(config))
    _, seen = OPS[op](state, tokens, rule_of(config))
    for before, after in zip((*state.weights, *state.momentum), (*end.weights, *end.momentum), strict=True):
        assert torch.equal(after, before)
    assert torch.equal(end.offset, (state.offset + 1) % config.chunk)
    assert torch.equal(end.offset, seen.offset)
    assert all((a != b).any() for a, b in zip(state.weights, seen.weights, strict=True))


@pytest.mark.parametrize("config", NETWORKS, ids=name_of)
def test_what_a_missing_token_holds_never_reaches_the_memory(config):
    state, tokens = make_state(config, ragged=True), make_tokens(config, missing=True)
    hidden = ~tokens.observed[:, None, :, None]
    other = tokens._replace(
        keys=torch.where(hidden, 1e3 * torch.randn_like(tokens.keys), tokens.keys),
        values=torch.where(hidden, 1e3 * torch.randn_like(tokens.values), tokens.values),
        theta=torch.where(hidden, torch.rand_like(tokens.theta), tokens.theta),
        eta=torch.where(hidden, torch.rand_like(tokens.eta), tokens.eta),
        alpha=torch.where(hidden, torch.rand_like(tokens.alpha), tokens.alpha),
    )
    for op in (choose(config), "reference", "numba"):
        reads, end = OPS[op](state, tokens, rule_of(config))
        other_reads, other_end = OPS[op](state, other, rule_of(config))
        assert torch.equal(other_reads, reads)
        assert all(torch.equal(a, b) for a, b in zip(leaves(other_end), leaves(end), strict=True))


@pytest.mark.parametrize("config", [*NETWORKS, *BACKBONES], ids=name_of)
def test_a_gap_stands_still_in_the_memory_and_goes_on_everywhere_else(config):
    module = make(config)
    state, x = begun(module, config), torch.randn(3, TIME, config.dim, dtype=torch.float64)
    with torch.no_grad():
        _, gap = module(x, state, torch.zeros(3, TIME, dtype=torch.bool))
        _, seen = module(x, state)
    for before, after, moved in zip(*(memories(config, part) for part in (state, gap, seen)), strict=True):
        for a, b, c in zip(before.weights, after.weights, moved.weights, strict=True):
            assert torch.equal(a, b)
            assert not torch.equal(b, c)
        assert all(torch.equal(a, b) for a, b in zip(before.momentum, after.momentum, strict=True))
        assert torch.equal(after.offset, moved.offset)
        assert not torch.equal(after.offset, before.offset)
    if hasattr(config, "variant"):
        first_gap, first_seen = gap[0], seen[0]
        if config.variant != "mac":  # whose memory sees the tokens through an attention that recalled other things
            assert torch.equal(memory_of(first_gap).recent, memory_of(first_seen).recent)
        if hasattr(first_gap, "attention"):
            assert torch.equal(first_gap.attention.position, first_seen.attention.position)
            if config.variant == "mag":
                assert_same(first_gap.attention, first_seen.attention)
        if hasattr(first_gap, "segment"):
            assert torch.equal(first_gap.segment.filled, first_seen.segment.filled)
            assert not torch.equal(first_gap.segment.keys, state[0].segment.keys)
    else:
        assert torch.equal(gap.recent, seen.recent)


@pytest.mark.parametrize("config", NETWORKS, ids=name_of)
def test_a_gap_is_not_the_series_with_the_row_deleted(config):
    """Time that passes ends a chunk; rows that never were do not. A linear memory has no chunk to end, but still the
    convolution, and so does everything with a position."""
    module = make_memory(config)
    x = torch.randn(1, TIME, config.dim, dtype=torch.float64)
    observed = torch.ones(1, TIME, dtype=torch.bool)
    observed[:, 3:5] = False
    with torch.no_grad():
        gap, _ = module(x, None, observed)
        deleted, _ = module(torch.cat([x[:, :3], x[:, 5:]], 1))
    assert (gap[:, 5:] - deleted[:, 3:]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("config", "op"),
    [(config, op) for config, op in EVERY_OP if config.momentum or config.forgetting],
    ids=lambda part: name_of(part) or part,
)
def test_a_step_of_zero_alone_would_move_the_memory(config, op):
    state, tokens = make_state(config), make_tokens(config)
    _, end = OPS[op](state, tokens._replace(theta=torch.zeros_like(tokens.theta)), rule_of(config))
    for before, after in zip(state.weights, end.weights, strict=True):
        assert (after - before).norm() > 0.05 * before.norm()


def test_a_padded_step_with_theta_and_alpha_zero_and_eta_one_is_no_way_to_pad():
    config = NETWORKS[2]
    state, tokens = make_state(config), make_tokens(config, time=1)
    nothing, everything = torch.zeros_like(tokens.theta), torch.ones_like(tokens.theta)
    _, end = OPS["chunked"](state, tokens._replace(theta=nothing, alpha=nothing, eta=everything), rule_of(config))
    for before, push, after in zip(state.weights, state.momentum, end.weights, strict=True):
        assert_same(after, before + push, 1e-12)


def test_a_padded_row_may_hold_any_finite_number():
    config = NETWORKS[2]
    module = make_memory(config)
    x = torch.randn(2, TIME, config.dim, dtype=torch.float64)
    filled = x.clone()
    filled[0, 4:] = 1e100
    with torch.no_grad():
        results = [module(each, None, None, torch.tensor([4, TIME])) for each in (x, filled)]
    assert torch.equal(results[0][0][0, :4], results[1][0][0, :4])
    state: list[list[Tensor]] = [leaves(result[1]) for result in results]
    assert all(torch.equal(a, b) for a, b in zip(*state, strict=True))
