"""Limits: what the update rule becomes where its gates are at their ends, and what no gate can break."""

from dataclasses import replace
from itertools import product

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
)
from torch import Tensor
from torch.nn import functional

from titans_ts.core.config import MemoryConfig
from titans_ts.core.memory import NeuralMemory, largest_step
from titans_ts.core.networks import recall
from titans_ts.core.ops.backends import OPS, choose, rule_of
from titans_ts.core.ops.coefficients import coefficients
from titans_ts.core.ops.contract import Rule, Tokens, cap
from titans_ts.core.state import MemoryState, leaves, map_state

EVERY_OP = [(config, op) for config in NETWORKS for op in (choose(config), "reference", "numba")]
ops = pytest.mark.parametrize(("config", "op"), EVERY_OP, ids=lambda part: name_of(part) or part)
LINEAR = next(config for config in CONFIGS if config.exact and config.momentum and config.forgetting)


def full(tokens: Tokens, **gates: float) -> Tokens:
    """The tokens with the given gates constant."""
    return tokens._replace(**{name: torch.full_like(tokens.theta, value) for name, value in gates.items()})


def still(state):
    return state._replace(momentum=tuple(torch.zeros_like(part) for part in state.momentum))


@ops
def test_without_a_step_and_without_forgetting_the_memory_is_its_first_weights(config, op):
    state, tokens = still(make_state(config)), full(make_tokens(config), theta=0.0, alpha=0.0)
    reads, end = OPS[op](state, tokens, rule_of(config))
    assert_same(end.weights, state.weights, 1e-12)
    assert_same(reads, recall(state.weights, tokens.queries, residual=config.residual), 1e-12)


@ops
def test_forgetting_everything_leaves_the_momentum_alone(config, op):
    tokens = make_tokens(config)
    alpha = tokens.alpha.clone()
    alpha[:, :, -1] = 1.0
    _, end = OPS[op](make_state(config), tokens._replace(alpha=alpha), rule_of(config))
    assert_same(end.weights, end.momentum, 1e-12)


@ops
def test_without_past_surprise_the_momentum_carried_in_does_not_matter(config, op):
    state, tokens = make_state(config), make_tokens(config)
    eta = tokens.eta.clone()
    eta[:, :, 0] = 0.0
    results = [OPS[op](each, tokens._replace(eta=eta), rule_of(config)) for each in (state, still(state))]
    assert_same(*results, 1e-12)


@ops
def test_a_constant_forget_gate_decays_the_weights_by_its_power(config, op):
    state, tokens = still(make_state(config)), full(make_tokens(config), theta=0.0, alpha=0.1)
    _, end = OPS[op](state, tokens, rule_of(config))
    assert_same(end.weights, tuple(0.9**11 * weight for weight in state.weights), 1e-12)


@pytest.mark.parametrize("op", ["exact_linear", "reference"])
def test_half_a_step_writes_the_value_exactly(op):
    tokens = full(make_tokens(LINEAR), theta=0.5, eta=0.0, alpha=0.0)
    unit = functional.normalize(tokens.keys, dim=-1)
    reads, _ = OPS[op](make_state(LINEAR), tokens._replace(keys=unit, queries=unit), rule_of(LINEAR))
    assert_same(reads, tokens.values, 1e-12)


@pytest.mark.parametrize("op", ["exact_linear", "reference"])
def test_a_linear_memory_is_affine_in_its_values(op):
    state, tokens, rule = make_state(LINEAR), make_tokens(LINEAR), rule_of(LINEAR)

    def run(values: Tensor) -> Tensor:
        return OPS[op](state, tokens._replace(values=values), rule)[0]

    left, right = torch.randn_like(tokens.values), torch.randn_like(tokens.values)
    assert_same(run(0.3 * left + 0.7 * right), 0.3 * run(left) + 0.7 * run(right), 1e-12)


def delta_rule(weight: Tensor, tokens: Tokens, *, decay_first: bool) -> Tensor:
    """The (gated) delta rule as others write it; `decay_first` measures the error at what forgetting left."""
    reads = []
    for t in range(tokens.keys.shape[2]):
        query, key, value = (part[:, :, t : t + 1] for part in tokens[:3])
        theta, alpha = tokens.theta[:, :, t : t + 1], tokens.alpha[:, :, t : t + 1]
        decayed = (1 - alpha) * weight
        seen = decayed if decay_first else weight
        weight = decayed + key.mT @ (2 * theta * (value - key @ seen))
        reads.append(query @ weight)
    return torch.cat(reads, 2)


@pytest.mark.parametrize("op", ["exact_linear", "reference"])
def test_without_momentum_a_linear_memory_is_the_delta_rule(op):
    tokens = full(make_tokens(LINEAR), eta=0.0)
    state = make_state(LINEAR)
    reads, _ = OPS[op](state, tokens, rule_of(LINEAR))
    assert_same(reads, delta_rule(state.weights[0], tokens, decay_first=False), 1e-12)
    assert (reads - delta_rule(state.weights[0], tokens, decay_first=True)).abs().max() > 1e-2
    free = full(tokens, alpha=0.0)
    reads, _ = OPS[op](state, free, rule_of(LINEAR))
    assert_same(reads, delta_rule(state.weights[0], free, decay_first=True), 1e-12)


def test_a_frozen_gradient_is_exact_for_orthogonal_keys_and_not_otherwise():
    config = replace(LINEAR, dim=16)
    state, tokens = still(make_state(config)), full(make_tokens(config, time=8), alpha=0.0, theta=0.2)
    keys = torch.linalg.qr(torch.randn_like(tokens.keys))[0]
    eta = tokens.eta.clone()
    eta[:, :, ::4] = 0.0

    def gap(tokens: Tokens) -> float:
        anchored = OPS["reference"](state._replace(anchor=state.weights), tokens, Rule(chunk=4))[0]
        return (anchored - OPS["exact_linear"](state, tokens, Rule(chunk=4))[0]).abs().max().item()

    assert gap(tokens._replace(keys=keys, eta=eta)) < 1e-12
    assert gap(tokens._replace(eta=eta)) > 1e-2
    assert gap(full(tokens._replace(keys=keys, eta=eta), alpha=0.1)) > 1e-3


@pytest.mark.parametrize("config", [config for config in NETWORKS if config.residual], ids=name_of)
def test_the_residual_memory_sees_no_constant_added_to_its_values(config):
    state, tokens = make_state(config), make_tokens(config)
    results = [OPS["chunked"](state, tokens._replace(values=tokens.values + c), rule_of(config)) for c in (0.0, 3.0)]
    assert_same(results[1], results[0], 1e-9)
    added = results[0][0] - tokens.queries
    assert added.mean(-1).abs().max() < 1e-12
    assert (added.norm(dim=-1) <= config.head_dim**0.5 + 1e-12).all()
    large = recall((*state.weights[:-1], 1e3 * state.weights[-1]), tokens.queries, residual=True) - tokens.queries
    assert_same(large.norm(dim=-1), torch.full_like(large[..., 0], config.head_dim**0.5), 1e-3)


@pytest.mark.parametrize("config", [*NETWORKS, *BACKBONES], ids=name_of)
def test_a_call_leaves_what_it_was_given_alone(config):
    module = make_backbone(config) if hasattr(config, "variant") else make_memory(config)
    x, observed = torch.randn(2, 7, config.dim, dtype=torch.float64), torch.rand(2, 7) < 0.8
    with torch.no_grad():
        _, state = module(x)
        before = [leaf.clone() for leaf in leaves((x, state, *module.parameters()))]
        first = module(x, state, observed, torch.tensor([7, 4]))
        again = module(x, state, observed, torch.tensor([7, 4]))
    assert all(torch.equal(a, b) for a, b in zip(leaves((x, state, *module.parameters())), before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(leaves(first), leaves(again), strict=True))


def test_reading_is_a_pure_function_of_weights_and_query():
    memory = make_memory(NETWORKS[2])
    weights, queries = make_state(NETWORKS[2]).weights, torch.randn(3, 5, 8, dtype=torch.float64)
    assert torch.equal(memory.lookup(weights, queries), memory.lookup(weights, queries))
    assert torch.equal(memory.lookup(weights, queries[:, 2:3]), memory.lookup(weights, queries)[:, 2:3])


def test_what_is_looked_up_is_what_the_memory_reads():
    """A lookup right after the write, at the query of the same token, is the read of that token."""
    config = replace(NETWORKS[2], conv=1, normalize=False)
    memory = make_memory(config)
    with torch.no_grad():
        memory.gate.weight.zero_()
        memory.out.weight.copy_(2 * torch.eye(8))
        memory.conv.weight.fill_(1.0)
        x = torch.randn(2, 1, 8, dtype=torch.float64)
        y, state = memory(x)
        assert_same(memory.lookup(state.weights, memory.project(x)[..., :8]), y, 1e-12)


GATE = st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1))
ROWS = st.lists(st.tuples(GATE, GATE, st.booleans()), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(ROWS)
def test_the_coefficients_are_the_recurrences_and_stay_in_their_bounds(rows):
    eta, alpha, written = (torch.tensor([[list(column)]], dtype=torch.float64) for column in zip(*rows, strict=True))
    got = coefficients(torch.ones_like(eta), eta, alpha, written[0] > 0)
    size = len(rows)
    keep, fade, carry = 1.0, 1.0, 0.0
    mix, trail = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for i, (e, a, here) in enumerate(rows):
        if here:
            fade *= e
            trail = trail * e
            trail[i] = 1.0
            keep *= 1 - a
            carry = (1 - a) * carry + fade
            mix = (1 - a) * mix + trail
        else:
            trail[i] = 1.0  # harmless: a token that does not write has a step of zero
        assert got.keep[0, 0, i].item() == pytest.approx(keep, abs=1e-12)
        assert got.carry[0, 0, i].item() == pytest.approx(carry, abs=1e-12)
        for j in range(i + 1):
            if rows[j][2]:
                assert got.mix[0, 0, i, j].item() == pytest.approx(mix[j].item(), abs=1e-12)
                assert -1e-15 <= got.mix[0, 0, i, j].item() <= i - j + 1 + 1e-12
    for j in range(size):
        if rows[j][2]:
            assert got.trail_last[0, 0, j].item() == pytest.approx(trail[j].item(), abs=1e-12)
    assert got.fade_last.item() == pytest.approx(fade, abs=1e-12)
    assert (got.mix.triu(1) == 0).all()
    everywhere = coefficients(torch.ones_like(eta), eta.clamp(max=0.9), alpha, None)
    lower = torch.ones(size, size, dtype=torch.bool).tril()
    decay, trails = (
        gate.unsqueeze(-1)
        .expand(1, 1, size, size)
        .masked_fill(~lower.tril(-1), 1.0)
        .cumprod(-2)
        .masked_fill(~lower, 0.0)
        for gate in (1 - alpha, eta.clamp(max=0.9))
    )
    assert_same(everywhere.mix, decay @ trails, 1e-12)
    assert everywhere.mix.max() <= 10 + 1e-9  # 1 / (1 - eta)


EXTREMES = (0.0, 1e-7, 0.5, 1 - 1e-7, 1.0)


@pytest.mark.parametrize("config", NETWORKS, ids=name_of)
def test_no_gate_at_any_extreme_gives_a_number_that_is_not_finite(config):
    """In single precision, forwards and backwards, every gate at every end and all of them mixed."""
    state, tokens = make_state(config), make_tokens(config)
    state = map_state(lambda leaf: leaf.float() if leaf.is_floating_point() else leaf, state)
    tokens = Tokens(*(None if part is None else part.float() for part in tokens[:6]))
    for eta, alpha in product(EXTREMES, EXTREMES):
        mixed = torch.rand_like(tokens.theta) < 0.5
        gates = full(tokens, theta=0.5, eta=eta, alpha=alpha)
        for here in (gates, gates._replace(eta=torch.where(mixed, gates.eta, 1 - gates.eta))):
            inputs = [part.clone().requires_grad_() for part in here[:6]]
            reads, end = OPS[choose(config)](state, Tokens(*inputs), rule_of(config))
            assert all(leaf.isfinite().all() for leaf in leaves((reads, end)))
            gradients = torch.autograd.grad(reads.sum() + end.weights[0].sum(), inputs)
            assert all(part.isfinite().all() for part in gradients)


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_a_memory_whose_gates_are_driven_to_their_ends_stays_finite(config):
    for ends in product((-60.0, 60.0), repeat=3):
        memory = NeuralMemory(config)
        with torch.no_grad():
            memory.gates.bias.copy_(torch.tensor(ends).repeat_interleave(memory.gates.bias.numel() // 3))
        x = torch.randn(2, 9, config.dim, requires_grad=True)
        y, state = memory(x)
        assert all(leaf.isfinite().all() for leaf in leaves((y, state)))
        wanted = (x, *memory.parameters())
        gradients = torch.autograd.grad(y.square().sum(), wanted, allow_unused=True)
        assert all(part is None or part.isfinite().all() for part in gradients)


@pytest.mark.parametrize("config", NETWORKS, ids=name_of)
def test_persistent_tokens_are_absorbed_before_the_first_token(config):
    memory = make_memory(replace(config, persistent=3))
    plain = make_memory(config)
    plain.load_state_dict({name: value for name, value in memory.state_dict().items() if name != "persistent"})
    x = torch.randn(2, 7, config.dim, dtype=torch.float64)
    with torch.no_grad():
        y, state = memory(x)
        longer, end = plain(torch.cat([memory.persistent.expand(2, -1, -1), x], 1))
        assert y.shape == x.shape
        assert_same(y, longer[:, 3:])
        assert_same(state, end)
        assert (y - plain(x)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("config", [config for config in BACKBONES if config.variant != "lmm"], ids=name_of)
def test_persistent_tokens_are_seen_by_attention_from_everywhere(config):
    block = make_backbone(config)
    x = torch.randn(1, 40, config.dim, dtype=torch.float64)
    with torch.no_grad():
        y, _ = block(x)
        block.mixers[-1].attention.shared.persistent[1] += 1.0
        assert ((block(x)[0] - y).abs().amax((0, 2)) > 1e-9).all()


@pytest.mark.parametrize("config", [config for config in NETWORKS if not config.exact], ids=name_of)
def test_the_steps_of_a_chunk_never_pass_the_budget(config):
    """The steps as they are taken, read off the momentum of a memory that forgets nothing of it."""
    rule = rule_of(config)
    state, tokens = still(make_state(config, 1)), full(make_tokens(config, 1, 4), theta=0.9, eta=0.0, alpha=0.0)
    _, end = OPS["chunked"](state, tokens, rule)
    assert (end.spent == 0).all()  # the chunk is over
    _, inside = OPS["chunked"](state, Tokens(*(part[:, :, :3] for part in tokens[:6])), rule)
    assert_same(inside.spent, torch.full_like(inside.spent, rule.step_budget), 1e-12)
    seen = Tokens(*(part[:, :, :1] for part in tokens[:6]))
    _, first = OPS["chunked"](state, seen, rule)
    assert_same(first.weights, inside.weights, 1e-12)  # the first token took all there was


@pytest.mark.parametrize("eta", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("size", [0.5, 1.0, 2.0])
def test_a_chunk_that_spends_its_budget_never_overshoots_a_repeated_key(depth, eta, size):
    """The error of one token shown over and over shrinks from chunk to chunk, however large the network is."""
    config = MemoryConfig(dim=8, heads=1, depth=depth, chunk=16)
    start = still(make_state(config, 8))
    weights = tuple(size * weight for weight in start.weights)
    tokens = full(make_tokens(config, 8, 320), theta=0.5 * (1 - eta), eta=eta, alpha=0.0)
    keys, values = (part[:, :, :1].expand_as(part) for part in (tokens.keys, tokens.values))
    here = tokens._replace(keys=keys, values=values, queries=keys)
    reads, _ = OPS["chunked"](start._replace(weights=weights, anchor=weights), here, rule_of(config))
    error = (reads - values).square().sum(-1)[:, 0]
    first = (recall(weights, keys[:, :, :1]) - values[:, :, :1]).square().sum(-1)[:, 0]
    assert (error[:, -1] < 0.05 * first[:, 0]).all()


def test_the_cap_bounds_every_layer_and_keeps_its_direction():
    weights = make_state(NETWORKS[2]).weights
    for weight, capped in zip(weights, cap(weights, 0.3), strict=True):
        norm = capped.norm(dim=(-2, -1))
        assert (norm <= 0.3 * weight.shape[-1] ** 0.5 * (1 + 1e-12)).all()
        assert_same(capped / norm[..., None, None], weight / weight.norm(dim=(-2, -1), keepdim=True), 1e-12)
    assert cap(weights, None) is weights
    assert all(torch.equal(a, b) for a, b in zip(cap(weights, 1e3), weights, strict=True))
    zero = torch.zeros(1, 1, 2, 2, requires_grad=True)
    assert torch.autograd.grad(cap((zero,), 1.0)[0].sum(), zero)[0].isfinite().all()


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_the_step_of_a_token_is_a_share_of_the_largest_that_its_momentum_allows(config, monkeypatch):
    seen = []

    def watched(state: MemoryState, tokens: Tokens, rule: Rule) -> tuple[Tensor, MemoryState]:
        seen.append(tokens)
        return OPS[choose(config)](state, tokens, rule)

    monkeypatch.setitem(OPS, "reference", watched)
    memory = make_memory(replace(config, op="reference"))
    with torch.no_grad():
        memory.gates.weight.mul_(20)
        memory(torch.randn(2, 9, config.dim, dtype=torch.float64))
        memory.gates.bias[: len(memory.gates.bias) // 3] = 1e3
        memory(torch.randn(2, 9, config.dim, dtype=torch.float64))
    for tokens in seen:
        largest = torch.tensor(0.5) if tokens.eta is None else largest_step(tokens.eta)
        assert (tokens.theta <= largest).all()
    assert (seen[1].theta == largest).all()
