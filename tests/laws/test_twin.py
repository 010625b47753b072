"""Twin: every op is the reference, in outputs, in the state it leaves and in every gradient."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from laws.cases import CONFIGS, DEPTHS, NETWORKS, assert_same, make_memory, make_state, make_tokens, name_of, shaken
from torch import Tensor

from titans_ts.core.config import MemoryConfig
from titans_ts.core.memory import NeuralMemory
from titans_ts.core.networks import gradient_factors, recall, stiffness
from titans_ts.core.ops.backends import OPS, choose, rule_of
from titans_ts.core.ops.contract import Rule, Tokens
from titans_ts.core.ops.reference import gradient, reference
from titans_ts.core.state import MemoryState, leaves


def differentiable(state: MemoryState, tokens: Tokens) -> list[Tensor]:
    found = leaves((state.weights, state.momentum, tuple(part for part in tokens if part is not None)))
    return [leaf for leaf in found if leaf.requires_grad]


def assert_twins(op: str, state: MemoryState, tokens: Tokens, rule: Rule) -> None:
    """Reads, end state, and the gradient of a random sum of both with respect to every input."""
    results = []
    wanted = differentiable(state, tokens)
    for run in (OPS[op], reference):
        reads, end = run(state, tokens, rule)
        torch.manual_seed(1)
        moving = [leaf for leaf in leaves((reads, end)) if leaf.requires_grad]
        loss = torch.stack([(leaf * torch.randn_like(leaf)).sum() for leaf in moving]).sum()
        results.append((reads, end, torch.autograd.grad(loss, wanted, allow_unused=True, retain_graph=True)))
    (reads, end, gradients), (true_reads, true_end, true_gradients) = results
    assert_same(reads, true_reads)
    assert_same(end, true_end)
    for got, true in zip(gradients, true_gradients, strict=True):
        assert (got is None) == (true is None)
        if got is not None:
            assert_same(got, true, 1e-8)


LAYOUTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "missing": {"missing": True},
    "ragged": {"lengths": torch.tensor([11, 4, 0])},
    "ragged clocks": {"ragged": True},
    "all at once": {"missing": True, "lengths": torch.tensor([6, 11, 0]), "ragged": True},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_the_op_is_the_reference(config, layout):
    options = dict(LAYOUTS[layout])
    lengths, ragged = options.pop("lengths", None), options.pop("ragged", False)
    tokens = make_tokens(config, grad=True, **options)._replace(lengths=lengths)
    assert_twins(choose(config), make_state(config, ragged=ragged, grad=True), tokens, rule_of(config))


@pytest.mark.parametrize("config", NETWORKS, ids=name_of)
@pytest.mark.parametrize("chunk", [1, 2, 7, 11, 64])
def test_the_op_is_the_reference_for_every_chunk(config, chunk):
    rule = replace(rule_of(config), chunk=chunk, step_budget=None)
    assert_twins(choose(config), make_state(config, grad=True), make_tokens(config, grad=True), rule)


@pytest.mark.parametrize(("batch", "span"), [(1, 1), (24, 10**6), (1, 40), (24, 40)])
@pytest.mark.parametrize("config", NETWORKS, ids=name_of)
def test_the_op_is_the_reference_however_its_chunks_are_batched(config, batch, span, monkeypatch):
    monkeypatch.setattr("titans_ts.core.ops.dual.BATCH", batch)
    monkeypatch.setattr("titans_ts.core.ops.chunked.SPAN", span)
    rule = replace(rule_of(config), chunk=2, weight_cap=1.5)
    state, tokens = make_state(config, grad=True), make_tokens(config, grad=True)
    assert_twins(choose(config), state, tokens, rule)
    with torch.no_grad():  # keeps no more than a batch of chunks
        for got, true in zip(*(OPS[op](state, tokens, rule) for op in (choose(config), "reference")), strict=True):
            assert_same(got, true)


@pytest.mark.parametrize("config", NETWORKS, ids=name_of)
def test_the_op_is_the_reference_where_the_cap_bites(config):
    rule = replace(rule_of(config), weight_cap=0.5)
    state, tokens = make_state(config, ragged=True, grad=True), make_tokens(config, grad=True, missing=True)
    free = reference(state, tokens, replace(rule, weight_cap=None))
    assert (reference(state, tokens, rule)[0] - free[0]).abs().max() > 1e-2
    assert_twins(choose(config), state, tokens, rule)


@pytest.mark.parametrize("config", [config for config in NETWORKS if not config.exact], ids=name_of)
def test_the_op_is_the_reference_where_the_budget_bites(config):
    rule = replace(rule_of(config), step_budget=0.2)
    state, tokens = make_state(config, ragged=True, grad=True), make_tokens(config, grad=True, missing=True)
    free = reference(state, tokens, replace(rule, step_budget=1e9))
    assert (reference(state, tokens, rule)[0] - free[0]).abs().max() > 1e-3
    assert_twins("chunked", state, tokens, rule)


@pytest.mark.parametrize("config", [config for config in NETWORKS if not config.exact], ids=name_of)
def test_a_chunk_of_one_takes_every_gradient_at_the_current_weights(config):
    rule = Rule(chunk=1, residual=config.residual)
    state, tokens = make_state(config), make_tokens(config)
    anchored, floating = (reference(s, tokens, rule) for s in (state, state._replace(anchor=())))
    assert_same((anchored[0], anchored[1].weights), (floating[0], floating[1].weights), 1e-12)
    later = reference(state, tokens, replace(rule, chunk=4))[0]
    assert (anchored[0] - later).abs().max() > 1e-3  # what an anchor does is visible


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_every_parameter_of_the_memory_has_the_reference_s_gradient(config):
    config = replace(config, persistent=3)
    torch.manual_seed(2)
    x = torch.randn(3, 11, config.dim, dtype=torch.float64)
    observed, lengths = torch.rand(3, 11) < 0.8, torch.tensor([11, 7, 3])
    memory = make_memory(config)
    twin = shaken(NeuralMemory(replace(config, op="reference")))
    twin.load_state_dict(memory.state_dict())
    results = []
    for module in (memory, twin):
        here = x.clone().requires_grad_()
        y, state = module(here, None, observed, lengths)
        y, state = module(here, state, ~observed)
        loss = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()
        loss = loss + torch.stack([w.square().sum() for w in state.weights]).sum()
        names, parameters = zip(*module.named_parameters(), strict=True)
        results.append((y, state, torch.autograd.grad(loss, (here, *parameters))))
    (y, state, gradients), (true_y, true_state, true_gradients) = results
    assert_same(y, true_y)
    assert_same(state, true_state)
    for name, got, true in zip(("x", *names), gradients, true_gradients, strict=True):
        assert_same(got, true, 1e-8)
        if name in ("gates.weight", "gates.bias"):
            theta, eta, alpha = got.abs().reshape(3, -1).amax(1)
            assert theta > 0
            assert (eta > 0) == config.momentum
            assert (alpha > 0) == config.forgetting
        else:
            assert got.abs().max() > 0, name


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("depth", DEPTHS)
def test_the_inner_gradient_is_that_of_the_loss_by_autograd_and_by_differences(depth, residual):
    config = MemoryConfig(dim=8, heads=2, depth=depth, residual=residual, expansion=2)
    weights = tuple(2 * weight for weight in make_state(config, 2).weights)
    tokens = make_tokens(config, 2, 1)

    def loss(*layers: Tensor) -> Tensor:
        return (recall(layers, tokens.keys, residual=residual) - tokens.values).square().sum()

    by_factors = [x.mT @ d for x, d in gradient_factors(weights, tokens.keys, tokens.values, residual=residual)]
    by_functional = torch.func.grad(loss, tuple(range(depth)))(*weights)
    by_reference, stiff = gradient(weights, tokens.keys, tokens.values, residual)
    for layer in range(depth):
        assert_same(by_factors[layer], by_functional[layer], 1e-11)
        assert_same(by_reference[layer], by_functional[layer], 1e-11)
        for place in ((0, 0, 0, 0), (1, 1, 2, 3), (1, 0, 3, 1)):
            shifted = []
            for sign in (1, -1):
                copy = [w.clone() for w in weights]
                copy[layer][place] += sign * 1e-6
                shifted.append(loss(*copy))
            assert by_factors[layer][place].item() == pytest.approx(
                ((shifted[0] - shifted[1]) / 2e-6).item(), rel=1e-5, abs=1e-7
            )
    factors = gradient_factors(weights, tokens.keys, tokens.values, residual=residual)
    whole = torch.stack([(x.mT @ d).square().sum((-2, -1)) for x, d in factors]).sum(0)
    assert_same(stiff, stiffness(whole, factors[-1][1].square().sum((-2, -1))), 1e-12)
    if depth > 1:
        assert (stiff > 1).any()


@pytest.mark.parametrize("config", [NETWORKS[0], NETWORKS[1], NETWORKS[2]], ids=name_of)
def test_the_gradient_of_the_op_passes_gradcheck(config):
    config = replace(config, dim=4, heads=1, chunk=3)
    state, tokens = make_state(config, 1), make_tokens(config, 1, 4, theta=0.2)
    state = state._replace(weights=tuple(2.5 * weight for weight in state.weights))  # so that the stiffness counts
    inputs = [leaf.detach().requires_grad_() for leaf in leaves((state.weights, tuple(tokens[:6])))]

    def run(*parts: Tensor) -> tuple[Tensor, ...]:
        layers = len(state.weights)
        weights = tuple(parts[:layers])
        here = state._replace(weights=weights, anchor=() if config.exact else weights)
        reads, end = OPS[choose(config)](here, Tokens(*parts[layers:]), rule_of(config))
        return reads, *end.weights, *end.momentum

    assert torch.autograd.gradcheck(partial(run), inputs, fast_mode=True)
