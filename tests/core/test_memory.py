"""The memory as a layer: what it takes, what it refuses, and what it starts from."""

import pytest
import torch

from titans_ts.core.config import MemoryConfig
from titans_ts.core.memory import FORGET, MOMENTUM, NeuralMemory, largest_step, logit
from titans_ts.core.state import leaves

CONFIG = MemoryConfig(dim=8, heads=2, depth=2, expansion=2, chunk=4, persistent=3)


def test_tokens_of_another_width_are_refused_in_words():
    with pytest.raises(ValueError, match=r"x has shape \(2, 5, 7\); NeuralMemory\(dim=8\) wants \[rows, time, 8\]"):
        NeuralMemory(CONFIG)(torch.zeros(2, 5, 7))


def test_the_state_of_other_rows_is_refused_in_words():
    memory = NeuralMemory(CONFIG)
    _, state = memory(torch.zeros(2, 5, 8))
    with pytest.raises(ValueError, match="the state has 2 rows and x has 3"):
        memory(torch.zeros(3, 5, 8), state)


def test_no_token_changes_nothing():
    memory = NeuralMemory(CONFIG)
    state = memory.initial_state(2)
    y, end = memory(torch.zeros(2, 0, 8), state)
    assert y.shape == (2, 0, 8)
    assert end is state


def test_every_tensor_of_the_state_has_the_shape_it_says():
    _, state = NeuralMemory(CONFIG)(torch.randn(5, 6, 8))
    assert [tuple(weight.shape) for weight in state.weights] == [(5, 2, 4, 8), (5, 2, 8, 4)]
    assert (
        [part.shape for part in state.momentum]
        == [part.shape for part in state.anchor]
        == [w.shape for w in state.weights]
    )
    assert state.spent.shape == (5, 2, 1)
    assert state.recent.shape == (5, 3, 24)
    assert state.offset.tolist() == [(3 + 6) % 4] * 5
    gated = NeuralMemory(MemoryConfig(dim=8, heads=2, depth=3, layer_gates=True)).initial_state(1)
    assert gated.spent.shape == (1, 2, 3)
    assert NeuralMemory(MemoryConfig(dim=8, depth=1)).initial_state(1).anchor == ()


def test_a_state_can_be_written_without_touching_its_neighbours():
    """Rows that start from one state share no memory that an assignment could reach through."""
    memory = NeuralMemory(CONFIG)
    with torch.no_grad():
        _, state = memory(torch.randn(2, 3, 8))
    state.weights[0][0].zero_()
    assert state.weights[0][1].abs().max() > 0
    assert memory.initial[0].abs().max() > 0


def test_parameters_have_the_shapes_of_the_configuration():
    shapes = {name: tuple(value.shape) for name, value in NeuralMemory(CONFIG).named_parameters()}
    assert shapes == {
        "persistent": (3, 8),
        "project.weight": (24, 8),
        "conv.weight": (24, 1, 4),
        "gates.weight": (6, 8),
        "gates.bias": (6,),
        "initial.0": (2, 4, 8),
        "initial.1": (2, 8, 4),
        "norm.scale": (4,),
        "gate.weight": (8, 8),
        "out.weight": (8, 8),
    }
    assert NeuralMemory(MemoryConfig(dim=8, depth=1)).persistent is None


@pytest.mark.parametrize("depth", [1, 2])
def test_a_fresh_memory_forgets_and_remembers_as_documented(depth):
    memory = NeuralMemory(MemoryConfig(dim=8, heads=2, depth=depth, chunk=64))
    theta, eta, alpha = memory.gates.bias.sigmoid().view(3, -1)
    assert eta.tolist() == pytest.approx([MOMENTUM] * 2)
    assert alpha.tolist() == pytest.approx([FORGET] * 2)
    step = theta * largest_step(eta)
    # A linear memory takes nine tenths of what it may, a deep one spends its budget of 1/2 evenly over the chunk.
    assert (step / (1 - eta)).tolist() == pytest.approx([0.3 if depth == 1 else 0.5 / 64] * 2)
    assert logit(0.25) == pytest.approx(-logit(0.75))


def test_a_chunk_of_one_streams_too():
    memory = NeuralMemory(MemoryConfig(dim=8, depth=2, chunk=1))
    _, state = memory(torch.randn(1, 2, 8))
    _, state = memory(torch.randn(1, 2, 8), state)
    assert len(state.anchor) == 2
    assert all(leaf.isfinite().all() for leaf in leaves(state))


def test_nothing_but_parameters_is_kept_in_the_module():
    memory = NeuralMemory(CONFIG)
    before = {name: value.clone() for name, value in memory.state_dict().items()}
    memory(torch.randn(2, 9, 8))
    assert dict(memory.named_buffers()) == {}
    assert all(torch.equal(value, before[name]) for name, value in memory.state_dict().items())
