"""A configuration is checked when it is made, and its error says what came and what to do."""

import dataclasses

import pytest

from titans_ts.core.config import MemoryConfig
from titans_ts.core.ops.backends import OPS, choose, rule_of

BAD = [
    ({"dim": 0}, r"dim=0\) must be at least 1"),
    ({"heads": 0}, "heads=0"),
    ({"depth": 0}, "depth=0"),
    ({"expansion": 0}, "expansion=0"),
    ({"chunk": 0}, "chunk=0"),
    ({"conv": 0}, "conv=0"),
    ({"dim": 10, "heads": 4}, "dim=10 must be a multiple of heads=4"),
    ({"depth": 5}, "1 to 4 layers"),
    ({"depth": 3, "op": "triton"}, "kernels for depth 1 and 2, and depth=3"),
    ({"persistent": -1}, "cannot be negative"),
    ({"step_budget": 0.0}, "must be positive, or None"),
    ({"weight_cap": 0.0}, "weight_cap=0.0 must be positive"),
    ({"op": "exact_linear", "depth": 2}, "needs depth=1"),
    ({"op": "exact_linear", "depth": 1, "residual": True}, "residual=False"),
    ({"op": "chunked", "depth": 1}, "depth=1 has op='exact_linear'"),
]


@pytest.mark.parametrize(("words", "message"), BAD)
def test_what_cannot_be_is_refused_in_words(words, message):
    with pytest.raises(ValueError, match=message):
        MemoryConfig(**words)


def test_a_configuration_is_frozen_and_takes_names_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MemoryConfig().dim = 3
    with pytest.raises(TypeError):
        MemoryConfig(64)
    assert MemoryConfig(dim=32) == MemoryConfig(dim=32)


@pytest.mark.parametrize(
    ("words", "op"),
    [
        ({"depth": 1}, "exact_linear"),
        ({"depth": 1, "residual": True}, "chunked"),
        ({"depth": 2}, "chunked"),
        ({"depth": 1, "op": "reference"}, "reference"),
        ({"depth": 3, "op": "chunked"}, "chunked"),
        ({"depth": 2, "op": "numba"}, "numba"),
        ({"depth": 2, "op": "triton"}, "triton"),
    ],
)
def test_the_op_is_the_configured_one_or_the_fast_one(words, op):
    assert choose(MemoryConfig(**words)) == op
    assert op in OPS


def test_a_linear_memory_has_no_budget_and_a_far_cap():
    linear, deep = rule_of(MemoryConfig(depth=1, weight_cap=2.0)), rule_of(MemoryConfig(depth=2, weight_cap=2.0))
    assert (linear.step_budget, linear.weight_cap) == (None, 2000.0)
    assert (deep.step_budget, deep.weight_cap) == (0.5, 2.0)
    assert rule_of(MemoryConfig(depth=1, residual=True)).step_budget == 0.5
