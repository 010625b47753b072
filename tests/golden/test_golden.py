"""Numbers worked out by hand or by an independent programme, and an oracle that shares no line with the package."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from golden import oracle
from laws.cases import CONFIGS, NETWORKS, make_state, make_tokens, name_of
from torch import Tensor

from titans_ts.core.ops.backends import OPS
from titans_ts.core.ops.coefficients import coefficients
from titans_ts.core.ops.contract import Rule, Tokens
from titans_ts.core.state import MemoryState

F64 = torch.float64


def sequence(rows: list[Any]) -> Tensor:
    """[T, ...] as the [1, 1, T, ...] of one row and one head."""
    return torch.tensor(rows, dtype=F64)[None, None]


def start(weights: list[Any], *, anchored: bool = True) -> MemoryState:
    layers = tuple(torch.tensor(weight, dtype=F64)[None, None] for weight in weights)
    still = tuple(torch.zeros_like(layer) for layer in layers)
    none = torch.zeros(1, 1, 1, dtype=F64)
    return MemoryState(layers, still, layers if anchored else (), none, torch.zeros(1, dtype=torch.long), none)


# A linear memory of width 2 that is shown one key with the value 2 and then with the value 4.
HAND = [(0.0, 1, 2.0, 4.0), (0.0, 2, 2.0, 6.0), (0.5, 1, 2.0, 5.0), (0.5, 2, 2.0, 7.0)]


def hand_tokens(eta: float, *, momentum: bool = True) -> Tokens:
    key = sequence([[1.0, 0.0], [1.0, 0.0]])
    half = sequence([[0.5], [0.5]])
    etas = sequence([[eta], [eta]]) if momentum else None
    return Tokens(key, key, sequence([[2.0, 0.0], [4.0, 0.0]]), half, etas, 0 * half)


@pytest.mark.parametrize("op", ["reference", "chunked", "numba"])
@pytest.mark.parametrize(("eta", "chunk", "first", "second"), HAND)
def test_two_writes_of_one_key_give_the_numbers_worked_out_by_hand(op, eta, chunk, first, second):
    reads, _ = OPS[op](start([[[0.0, 0.0], [0.0, 0.0]]]), hand_tokens(eta), Rule(chunk=chunk))
    assert reads[0, 0, :, 0].tolist() == pytest.approx([first, second], abs=1e-12)


@pytest.mark.parametrize("op", ["reference", "exact_linear", "numba"])
@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize(("eta", "second"), [(0.0, 4.0), (0.5, 5.0)])
def test_without_an_anchor_the_same_two_writes_do_not_depend_on_the_chunk(op, chunk, eta, second):
    reads, _ = OPS[op](start([[[0.0, 0.0], [0.0, 0.0]]], anchored=False), hand_tokens(eta), Rule(chunk=chunk))
    assert reads[0, 0, :, 0].tolist() == pytest.approx([2.0, second], abs=1e-12)


def test_no_momentum_is_a_momentum_of_zero():
    for op in ("reference", "exact_linear"):
        state = start([[[0.0, 0.0], [0.0, 0.0]]], anchored=False)
        reads, _ = OPS[op](state, hand_tokens(0.0, momentum=False), Rule(chunk=1))
        assert reads[0, 0, :, 0].tolist() == pytest.approx([2.0, 4.0], abs=1e-12)


NETWORK = [
    [[0.1, 0.2, 0.3], [-0.3, 0.1, 0.2]],
    [[0.2, -0.1], [0.4, 0.3], [-0.5, 0.6]],
]
FOUR = Tokens(
    queries=sequence([[1, 0], [0.6, 0.8], [0, 1], [0.8, -0.6]]),
    keys=sequence([[0.8, 0.6], [1, 0], [0, 1], [0.6, -0.8]]),
    values=sequence([[1, -1], [0.5, 2], [-1, 0.3], [0.2, 0.7]]),
    theta=sequence([[0.1], [0.05], [0.2], [0.1]]),
    eta=sequence([[0.5], [0.9], [0.2], [0.7]]),
    alpha=sequence([[0.01], [0.1], [0.0], [0.05]]),
)
READS = {
    1: [
        [0.0279476454, 0.0688710490], [0.0457819429, 0.0339680182],
        [-0.0237943314, 0.0184583284], [0.0903625559, 0.0248494132],
    ],
    2: [
        [0.0279476454, 0.0688710490], [0.0452929758, 0.0358054990],
        [-0.0236247735, 0.0192184158], [0.0889884822, 0.0261205323],
    ],
    4: [
        [0.0279476454, 0.0688710490], [0.0452929758, 0.0358054990],
        [-0.0367707332, 0.0370365474], [0.0990750651, 0.0137025495],
    ],
}  # fmt: skip
LAST = {1: [0.1218581411, 0.2620199201, 0.0245196067], 4: [0.1203263703, 0.2679852922, 0.0446777216]}


@pytest.mark.parametrize("op", ["reference", "chunked", "numba"])
@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_a_small_network_reads_the_golden_values_after_each_write(op, chunk):
    reads, state = OPS[op](start(NETWORK), FOUR, Rule(chunk=chunk))
    torch.testing.assert_close(reads[0, 0], torch.tensor(READS[chunk], dtype=F64), atol=1e-9, rtol=0)
    if chunk in LAST:
        assert state.weights[0][0, 0, 0].tolist() == pytest.approx(LAST[chunk], abs=1e-9)


def test_the_coefficients_of_three_tokens_are_those_worked_out_by_hand():
    alpha, eta = (torch.tensor([[x]], dtype=F64) for x in ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7]))
    got = coefficients(torch.ones_like(eta), eta, alpha, None)
    assert got.keep[0, 0].tolist() == pytest.approx([0.9, 0.72, 0.504])
    assert got.carry[0, 0].tolist() == pytest.approx([0.5, 0.7, 0.7])
    assert got.fade_last.item() == pytest.approx(0.21)
    assert got.trail_last[0, 0].tolist() == pytest.approx([0.42, 0.7, 1.0])
    torch.testing.assert_close(got.mix[0, 0], torch.tensor([[1, 0, 0], [1.4, 1, 0], [1.4, 1.4, 1]], dtype=F64))


def by_oracle(
    state: MemoryState, tokens: Tokens, rule: Rule, **choices: Any
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Every row and head through the oracle; stacked again as reads, weights and momentum."""
    rows, heads, time, _ = tokens.keys.shape
    layers = len(state.weights)

    def gate(part: Tensor | None, b: int, h: int) -> Any:
        return np.zeros((time, layers)) if part is None else part[b, h].expand(time, layers).numpy()

    results = [
        oracle.memorize(
            [w[b, h].numpy() for w in state.weights], [s[b, h].numpy() for s in state.momentum],
            *(part[b, h].numpy() for part in tokens[:3]),
            *(gate(part, b, h) for part in (tokens.theta, tokens.eta, tokens.alpha)),
            chunk=rule.chunk, residual=rule.residual, budget=rule.step_budget, cap=rule.weight_cap, **choices,
        )
        for b, h in product(range(rows), range(heads))
    ]  # fmt: skip

    def stack(parts: list[Any]) -> Tensor:
        return torch.from_numpy(np.stack(parts)).unflatten(0, (rows, heads))

    reads = stack([result[0] for result in results])
    return reads, *([stack([r[k][i] for r in results]) for i in range(layers)] for k in (1, 2))


def assert_like_the_oracle(config, rule, *, theta=0.3, anchored=True):
    state, tokens = make_state(config, 2), make_tokens(config, 2, 7, theta=theta)
    if not anchored:
        state = state._replace(anchor=())
    elif config.exact:
        state = state._replace(anchor=state.weights)
    reads, end = OPS["reference"](state, tokens, rule)
    expected = by_oracle(state, tokens, rule)
    torch.testing.assert_close(reads, expected[0], atol=1e-12, rtol=1e-12)
    moved = end.momentum if config.momentum else expected[2]
    for got, wanted in zip((*end.weights, *moved), (*expected[1], *expected[2]), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_the_reference_is_the_oracle_of_plain_loops(config):
    assert_like_the_oracle(config, Rule(chunk=3, residual=config.residual))


@pytest.mark.parametrize("config", NETWORKS, ids=name_of)
def test_the_reference_is_the_oracle_where_every_gradient_is_taken_at_the_current_weights(config):
    assert_like_the_oracle(config, Rule(chunk=1, residual=config.residual))


@pytest.mark.parametrize("config", NETWORKS, ids=name_of)
def test_the_reference_is_the_oracle_where_budget_and_cap_bite(config):
    assert_like_the_oracle(config, Rule(chunk=4, residual=config.residual, step_budget=0.5, weight_cap=0.7), theta=0.9)


def test_the_mean_over_features_is_the_sum_with_a_smaller_step():
    config = NETWORKS[2]
    state, tokens = make_state(config, 1), make_tokens(config, 1)
    rule = Rule(chunk=4, residual=config.residual)
    mean = by_oracle(state, tokens._replace(theta=tokens.theta * config.head_dim), rule, average=True)
    torch.testing.assert_close(OPS["reference"](state, tokens, rule)[0], mean[0], atol=1e-12, rtol=1e-12)
