"""Twin, for the compiled form of the training op: `chunked` is the reference there too, with every gradient."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from laws.cases import CONFIGS, assert_same, make_memory, make_state, make_tokens, name_of
from laws.test_twin import LAYOUTS, assert_twins, differentiable
from numba import njit
from numba.core.config import DISABLE_JIT
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from titans_ts.core.config import MemoryConfig
from titans_ts.core.ops import numba_dual
from titans_ts.core.ops.backends import OPS, rule_of
from titans_ts.core.ops.chunked import ALONE, fits
from titans_ts.core.ops.contract import Tokens
from titans_ts.core.ops.numba_dual import Part, product
from titans_ts.core.state import MemoryState, leaves, map_state

TWO = [config for config in CONFIGS if config.depth == 2 and not config.residual]
NETWORKS = [config for config in TWO if config.momentum and config.forgetting]
WIDE = replace(NETWORKS[1], dim=48, heads=2, expansion=3, chunk=19)  # tiles of every size, and what they leave over


@pytest.fixture
def runs(monkeypatch) -> list[int]:
    """Small calls take the kernels, too; how many rows every launch had."""
    monkeypatch.setattr("titans_ts.core.ops.chunked.WORTH", 0)
    seen: list[int] = []
    shared = numba_dual.shared

    def counted(kernel: Callable[..., None], rows: int, *arguments: Any) -> None:
        seen.append(rows)
        shared(kernel, rows, *arguments)

    monkeypatch.setattr(numba_dual, "shared", counted)
    return seen


def case(config: MemoryConfig, layout: str, time: int = 11, grad: bool = True) -> tuple[MemoryState, Tokens]:
    options = dict(LAYOUTS[layout])
    lengths, ragged = options.pop("lengths", None), options.pop("ragged", False)
    tokens = make_tokens(config, time=time, grad=grad, **options)
    lengths = None if lengths is None else lengths * time // 11
    return make_state(config, ragged=ragged, grad=grad), tokens._replace(lengths=lengths)


def cast(state: MemoryState, tokens: Tokens, dtype: torch.dtype) -> tuple[MemoryState, Tokens]:
    def one(leaf: Tensor) -> Tensor:
        return leaf.detach().to(dtype) if leaf.is_floating_point() else leaf

    parts = (None if part is None else one(part) for part in tokens)
    return map_state(one, state), Tokens(*parts)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("config", TWO, ids=name_of)
def test_the_kernels_are_the_reference(config, layout, runs):
    assert_twins("chunked", *case(config, layout), rule_of(config))
    assert runs


@pytest.mark.parametrize("changes", [{"chunk": 1}, {"chunk": 7, "step_budget": None}, {"chunk": 64}], ids=str)
@pytest.mark.parametrize("config", NETWORKS, ids=name_of)
def test_the_kernels_are_the_reference_for_every_chunk(config, changes, runs):
    assert_twins("chunked", *case(config, "missing"), replace(rule_of(config), **changes))
    assert runs


WIDER = pytest.param(
    replace(WIDE, dim=128, heads=1, expansion=4),
    marks=pytest.mark.skipif(DISABLE_JIT, reason="takes minutes without the compiler"),
)


@pytest.mark.parametrize("config", [replace(WIDE, dim=16, expansion=4, chunk=24), WIDE, WIDER], ids=["8", "24", "128"])
def test_the_kernels_are_the_reference_for_wide_heads_and_long_chunks(config, runs):
    assert_twins("chunked", *case(config, "all at once", 50), rule_of(config))
    assert runs


@pytest.mark.parametrize("config", NETWORKS, ids=name_of)
def test_the_kernels_are_the_reference_where_cap_and_budget_bite(config, runs):
    rule = replace(rule_of(config), weight_cap=0.5, step_budget=0.2)
    state, tokens = case(config, "all at once")
    free = OPS["reference"](state, tokens, replace(rule, weight_cap=None, step_budget=None))
    assert (OPS["reference"](state, tokens, rule)[0] - free[0]).abs().max() > 1e-2
    assert_twins("chunked", state, tokens, rule)
    assert runs


@pytest.mark.parametrize("span", [1, 40])
def test_the_kernels_are_the_reference_in_runs_of_any_length(span, runs, monkeypatch):
    monkeypatch.setattr("titans_ts.core.ops.chunked.SPAN", span)
    assert_twins("chunked", *case(NETWORKS[0], "missing"), rule_of(NETWORKS[0]))
    assert runs


@pytest.mark.parametrize("layout", ["whole", "all at once"])
def test_without_gradients_the_kernels_keep_nothing_and_say_the_same(layout, runs):
    state, tokens = case(NETWORKS[1], layout)
    with_gradients = OPS["chunked"](state, tokens, rule_of(NETWORKS[1]))
    still, seen = cast(state, tokens, torch.float64)
    before = [leaf.clone() for leaf in leaves(still)]
    without = OPS["chunked"](still, seen, rule_of(NETWORKS[1]))
    assert all(torch.equal(a, b) for a, b in zip(leaves(with_gradients), leaves(without), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(leaves(still), before, strict=True))


def test_the_state_carries_on_between_calls(runs):
    state, tokens = case(NETWORKS[1], "missing", grad=False)
    whole, end = OPS["chunked"](state, tokens, rule_of(NETWORKS[1]))
    reads = []
    for first, last in ((0, 3), (3, 4), (4, 11)):
        parts = [None if part is None else part[:, :, first:last] for part in tokens[:6]]
        assert tokens.observed is not None
        piece = Tokens(*parts, observed=tokens.observed[:, first:last])
        read, state = OPS["chunked"](state, piece, rule_of(NETWORKS[1]))
        reads.append(read)
    assert_same((torch.cat(reads, 2), state), (whole, end), 1e-12)


def test_single_precision_is_near(runs):
    state, tokens = cast(*case(WIDE, "missing", 50), torch.float32)
    results = [OPS[op](state, tokens, rule_of(WIDE)) for op in ("chunked", "reference")]
    assert runs
    assert results[0][0].dtype == torch.float32
    assert_same(*results, relative=1e-5)


def test_any_number_of_threads_gives_the_same(runs, monkeypatch):
    state, tokens = case(NETWORKS[1], "all at once")
    results = []
    for threads in (1, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        reads, end = OPS["chunked"](state, tokens, rule_of(NETWORKS[1]))
        gradients = torch.autograd.grad(reads.sum(), differentiable(state, tokens), retain_graph=True)
        results.append([*leaves((reads, end)), *gradients])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_whoever_checkpoints_has_the_same_gradients(runs):
    memory = make_memory(replace(NETWORKS[0], persistent=3))
    x = torch.randn(3, 11, 8, dtype=torch.float64, requires_grad=True)
    plain = torch.autograd.grad(memory(x)[0].sum(), (x, *memory.parameters()))
    again = torch.autograd.grad(
        checkpoint(lambda x: memory(x)[0], x, use_reentrant=False).sum(), (x, *memory.parameters())
    )
    assert runs
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_other_settings_go_without_the_kernels(monkeypatch):
    config = NETWORKS[0]
    state, tokens = case(config, "whole", grad=False)
    rule = rule_of(config)
    assert not fits(state, tokens, rule)  # too few tokens
    monkeypatch.setattr("titans_ts.core.ops.chunked.WORTH", 0)
    assert fits(state, tokens, rule)
    assert fits(*cast(state, tokens, torch.float32), rule)
    assert not fits(*cast(state, tokens, torch.bfloat16), rule)
    assert not fits(*cast(state, tokens, torch.float16), rule)
    assert not fits(cast(state, tokens, torch.float32)[0], tokens, rule)
    assert not fits(state, tokens, replace(rule, residual=True))
    assert not fits(state._replace(anchor=()), tokens, rule)
    for other in (replace(config, depth=3), replace(config, dim=258), replace(config, expansion=129)):
        assert not fits(*case(other, "whole", grad=False), rule)
    rows = state.weights[0].shape[:2].numel()
    for threads, worth in ((ALONE * rows, True), (ALONE * rows + 1, False)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert fits(state, tokens, rule) is worth


@njit
def multiply(a, b, out, rest, factor, part):
    product(a, b, out, rest, factor, part)


@pytest.mark.parametrize("part", Part)
@pytest.mark.parametrize("size", [1, 8, 19])
def test_a_product_is_a_product(part, size):
    a, b = np.random.default_rng(0).standard_normal((2, size, size))
    if part in (Part.BELOW, Part.ABOVE):
        a = np.tril(a) if part == Part.BELOW else np.tril(a).T
    wanted = np.tril if part == Part.UNDER else np.asarray
    for rest in (0.0, 0.5):
        out = np.full((size, size), np.nan if rest == 0 else 3.0)
        multiply(a, b, out, rest, -2.0, part)
        assert np.allclose(wanted(out), wanted((rest * 3.0 if rest else 0.0) - 2.0 * a @ b), rtol=0, atol=1e-12)
