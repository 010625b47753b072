"""Twin, for the streaming form: the op that numba compiles is the reference, in outputs and in the state it leaves."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from laws.cases import CONFIGS, NETWORKS, assert_same, make_memory, make_state, make_tokens, name_of
from torch import Tensor

from titans_ts.core.config import MemoryConfig
from titans_ts.core.memory import NeuralMemory
from titans_ts.core.ops import numba_cpu
from titans_ts.core.ops.backends import OPS, rule_of
from titans_ts.core.ops.contract import Rule, Tokens
from titans_ts.core.ops.reference import reference
from titans_ts.core.state import MemoryState, leaves, map_state

LAYOUTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "missing": {"missing": True},
    "ragged": {"lengths": torch.tensor([11, 4, 0])},
    "ragged clocks": {"ragged": True},
    "all at once": {"missing": True, "lengths": torch.tensor([6, 11, 0]), "ragged": True},
}


def case(config: MemoryConfig, layout: str) -> tuple[MemoryState, Tokens]:
    options = dict(LAYOUTS[layout])
    lengths, ragged = options.pop("lengths", None), options.pop("ragged", False)
    return make_state(config, ragged=ragged), make_tokens(config, **options)._replace(lengths=lengths)


def single(state: MemoryState, tokens: Tokens) -> tuple[MemoryState, Tokens]:
    def cast(leaf: Tensor) -> Tensor:
        return leaf.float() if leaf.is_floating_point() else leaf

    return map_state(cast, state), Tokens(*(None if part is None else cast(part) for part in tokens))


def assert_twins(state: MemoryState, tokens: Tokens, rule: Rule) -> None:
    assert_same(OPS["numba"](state, tokens, rule), reference(state, tokens, rule))


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float32, 5e-7), (torch.float64, 1e-13)], ids=str)
def test_the_activations_are_torch_s(dtype, digits):
    far = torch.tensor([0.0, -0.0, 40.0, -40.0, 200.0, -200.0, 1e15, -1e15, float("nan")], dtype=torch.float64)
    x = torch.cat([torch.linspace(-12, 12, 4001, dtype=torch.float64), far]).to(dtype)
    exact = x.double().clone().requires_grad_()
    true = torch.nn.functional.gelu(exact)
    true.sum().backward()
    said, slope, gelu, gate = torch.empty_like(x), x.clone(), x.clone(), x.clone()
    numba_cpu.gelu_and_slope(slope.numpy(), said.numpy())
    numba_cpu.gelu(gelu.numpy())
    numba_cpu.sigmoid(gate.numpy())
    for got, wanted in ((said, true), (gelu, true), (slope, exact.grad), (gate, torch.sigmoid(exact))):
        assert torch.allclose(got.double(), wanted, rtol=digits, atol=digits, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_numba_is_the_reference(config, layout):
    assert_twins(*case(config, layout), rule_of(config))


@pytest.mark.parametrize("config", NETWORKS, ids=name_of)
@pytest.mark.parametrize("changes", [{"chunk": 1}, {"chunk": 7, "step_budget": None}, {"chunk": 64}], ids=str)
def test_numba_is_the_reference_for_every_chunk(config, changes):
    assert_twins(*case(config, "missing"), replace(rule_of(config), **changes))


@pytest.mark.parametrize("config", NETWORKS, ids=name_of)
def test_numba_is_the_reference_where_cap_and_budget_bite(config):
    rule = replace(rule_of(config), weight_cap=0.5, step_budget=None if config.exact else 0.2)
    state, tokens = case(config, "all at once")
    free = reference(state, tokens, replace(rule, weight_cap=None))
    assert (reference(state, tokens, rule)[0] - free[0]).abs().max() > 1e-2
    assert_twins(state, tokens, rule)
    assert_twins(state, tokens, replace(rule, weight_cap=None))


@pytest.mark.parametrize("config", [config for config in NETWORKS if not config.exact], ids=name_of)
def test_numba_is_the_reference_without_an_anchor(config):
    state, tokens = case(config, "missing")
    assert_twins(state._replace(anchor=()), tokens, rule_of(config))


@pytest.mark.parametrize("config", NETWORKS, ids=name_of)
def test_numba_is_the_reference_in_single_precision(config):
    state, tokens = single(*case(config, "all at once"))
    results = [OPS[op](state, tokens, rule_of(config)) for op in ("numba", "reference")]
    assert results[0][0].dtype == torch.float32
    assert_same(*results, relative=1e-3 if config.residual else 1e-5)


@pytest.mark.parametrize("config", NETWORKS, ids=name_of)
def test_numba_token_by_token_is_numba_at_once_to_the_last_bit(config):
    state, tokens = case(config, "ragged clocks")
    whole, end = OPS["numba"](state, tokens, rule_of(config))
    reads = []
    for t in range(whole.shape[2]):
        one = Tokens(*(part[:, :, t : t + 1] for part in tokens[:6]))
        read, state = OPS["numba"](state, one, rule_of(config))
        reads.append(read)
    assert torch.equal(torch.cat(reads, 2), whole)
    assert all(torch.equal(a, b) for a, b in zip(leaves(state), leaves(end), strict=True))


@pytest.mark.parametrize("config", NETWORKS[:2], ids=name_of)
def test_numba_leaves_what_came_in_as_it_was(config):
    state, tokens = case(config, "all at once")
    before = [leaf.clone() for leaf in leaves(state)]
    OPS["numba"](state, tokens, rule_of(config))
    assert all(torch.equal(a, b) for a, b in zip(leaves(state), before, strict=True))


@pytest.mark.parametrize("config", NETWORKS[1:3], ids=name_of)
def test_numba_gives_the_same_on_any_number_of_threads(config, monkeypatch):
    state, tokens = case(config, "all at once")
    alone = OPS["numba"](state, tokens, rule_of(config))
    monkeypatch.setattr(numba_cpu, "threads", lambda items: 4)
    shared = OPS["numba"](state, tokens, rule_of(config))
    assert all(torch.equal(a, b) for a, b in zip(leaves(shared), leaves(alone), strict=True))


@pytest.mark.parametrize("config", NETWORKS, ids=name_of)
def test_a_memory_on_numba_is_the_memory(config):
    config = replace(config, persistent=3)
    memory = make_memory(config)
    other = NeuralMemory(replace(config, op="numba")).double()
    other.load_state_dict(memory.state_dict())
    x, observed = torch.randn(3, 11, config.dim, dtype=torch.float64), torch.rand(3, 11) < 0.8
    lengths = torch.tensor([11, 7, 3])
    state = memory.initial_state(3)
    with torch.no_grad():  # a state that was made with gradients is no obstacle here
        assert_same(other(x, state, observed, lengths)[1], memory(x, state, observed, lengths)[1])
        assert_same(other(x)[0], memory(x)[0])


def test_numba_refuses_what_it_cannot_do():
    config = NETWORKS[2]
    memory = NeuralMemory(replace(config, op="numba"))
    with pytest.raises(ValueError, match=r"no gradients: call it under torch.no_grad\(\)"):
        memory(torch.zeros(1, 3, config.dim))
    state, tokens = case(config, "whole")
    with pytest.raises(ValueError, match=r"float32 or float64 throughout, and got torch.float32, torch.float64"):
        OPS["numba"](state, tokens._replace(keys=tokens.keys.float()), rule_of(config))
