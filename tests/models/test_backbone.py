"""Backbones: their configuration, their parts and their state."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from laws.cases import BACKBONES, name_of

import titans_ts
from titans_ts.core.config import MemoryConfig
from titans_ts.core.memory import NeuralMemory
from titans_ts.core.state import MemoryState, leaves
from titans_ts.models.backbone import Backbone
from titans_ts.models.blocks import BLOCKS, MemoryAsContext, change_memory, memory_of
from titans_ts.models.config import PRESETS, VARIANTS, BackboneConfig, preset

ROOT = Path(titans_ts.__file__).parents[1]

BAD = [
    ({"dim": 32}, r"memory.dim=64 must equal dim=32: pass memory=MemoryConfig\(dim=32"),
    ({"depth": 0}, r"depth=0\) must be at least 1"),
    ({"heads": 0}, "heads=0"),
    ({"window": 0}, "window=0"),
    ({"segment": 0}, "segment=0"),
    ({"heads": 5}, "dim=64 must be a multiple of heads=5"),
    ({"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
    ({"dropout": -0.1}, "dropout=-0.1"),
    ({"residual_init": -1.0}, "residual_init=-1.0 cannot be negative"),
]


@pytest.mark.parametrize(("words", "message"), BAD)
def test_what_cannot_be_is_refused_in_words(words, message):
    with pytest.raises(ValueError, match=message):
        BackboneConfig(**words)


def test_a_variant_that_does_not_exist_is_refused_in_words():
    """In a process of its own: here the shape checks refuse it before the configuration does."""
    program = "from titans_ts.models.config import BackboneConfig; BackboneConfig(variant='mca')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert "ValueError: variant='mca' must be one of lmm, mac, mag, mal." in done.stderr


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_model_that_runs(name, variant):
    config = preset(name, variant)
    assert (config.dim, config.depth, config.heads) == tuple(PRESETS[name].values())
    assert config.memory.dim == config.dim
    y, state = Backbone(config)(torch.randn(1, 3, config.dim))
    assert y.shape == (1, 3, config.dim)
    assert len(state) == config.depth


def test_a_preset_takes_changes_and_knows_its_names():
    assert preset("tiny", "mag", window=7, dropout=0.1).window == 7
    with pytest.raises(ValueError, match="preset 'huge' does not exist: there are tiny, small, base"):
        preset("huge")
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("tiny").dim = 3


def test_every_variant_has_a_block():
    assert tuple(BLOCKS) == VARIANTS


@pytest.mark.parametrize("config", BACKBONES, ids=name_of)
def test_parameters_have_the_shapes_of_the_configuration(config):
    shapes = {name: tuple(value.shape) for name, value in Backbone(config).named_parameters()}
    dim, hidden = config.dim, 2 * config.dim
    for layer in range(config.depth):
        assert shapes[f"mixers.{layer}.memory.project.weight"] == (3 * dim, dim)
        assert shapes[f"mixer_norms.{layer}.scale"] == shapes[f"feed_norms.{layer}.scale"] == (dim,)
        assert shapes[f"feeds.{layer}.up.weight"] == (2 * hidden, dim)
        assert shapes[f"feeds.{layer}.down.weight"] == (dim, hidden)
        attention = config.variant != "lmm"
        assert (f"mixers.{layer}.attention.shared.project.weight" in shapes) == attention
        assert (f"mixers.{layer}.attention.shared.persistent" in shapes) == attention
        assert (f"mixers.{layer}.gate.out.weight" in shapes) == (config.variant in ("mac", "mag"))
        assert (f"mixers.{layer}.query.weight" in shapes) == (config.variant == "mac")
        # The segment's attention sees the persistent tokens already; its memory does not write them again.
        assert (f"mixers.{layer}.memory.persistent" in shapes) == (config.variant != "mac")


@pytest.mark.parametrize("config", BACKBONES, ids=name_of)
def test_every_parameter_takes_part(config):
    model = Backbone(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    y, _ = model(torch.randn(2, 23, config.dim))
    (y * torch.randn_like(y)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("config", BACKBONES, ids=name_of)
def test_the_memory_of_a_state_can_be_changed_and_nothing_else(config):
    model = Backbone(config)
    _, state = model(torch.randn(2, 7, config.dim))
    for part in state:
        memory = memory_of(part)
        assert isinstance(memory, MemoryState)
        again = change_memory(part, lambda leaf: leaf)
        assert type(again) is type(part)
        assert all(torch.equal(a, b) for a, b in zip(leaves(again), leaves(part), strict=True))
        emptied = memory_of(change_memory(part, torch.zeros_like))
        assert not any(leaf.any() for leaf in (*emptied.weights, *emptied.momentum, *emptied.anchor))
        assert torch.equal(emptied.recent, memory.recent)
        assert memory_of(part) is memory


def test_what_memory_as_context_retrieves_from_is_emptied_too():
    config = next(config for config in BACKBONES if config.variant == "mac")
    model = Backbone(config)
    _, state = model(torch.randn(2, 30, config.dim))
    emptied = change_memory(state[0], torch.zeros_like)
    assert any(leaf.any() for leaf in state[0].context)
    assert not any(leaf.any() for leaf in emptied.context)


def test_another_memory_in_the_state_changes_what_comes_out():
    config = BACKBONES[-3]
    model = Backbone(config)
    with torch.no_grad():
        _, state = model(torch.randn(2, 30, config.dim))
        x = torch.randn(2, 5, config.dim)
        other = tuple(change_memory(part, lambda leaf: leaf.roll(1, 0)) for part in state)
        assert (model(x, other)[0] - model(x, state)[0]).abs().max() > 1e-4


def test_no_token_changes_nothing():
    model = Backbone(BACKBONES[0])
    state = model.initial_state(2)
    y, end = model(torch.zeros(2, 0, 8), state)
    assert y.shape == (2, 0, 8)
    assert end is state


@pytest.mark.parametrize("variant", VARIANTS)
def test_dropout_is_for_training_only(variant):
    memory = MemoryConfig(dim=8, depth=1)
    config = BackboneConfig(dim=8, depth=1, heads=2, variant=variant, memory=memory, dropout=0.5, residual_init=1.0)
    model = Backbone(config)
    x = torch.randn(1, 6, 8)
    assert not torch.equal(model(x)[0], model(x)[0])
    model.eval()
    assert torch.equal(model(x)[0], model(x)[0])


def test_the_context_of_a_segment_is_the_memory_as_the_segment_began():
    config = next(config for config in BACKBONES if config.variant == "mac" and config.memory.depth == 2)
    block = MemoryAsContext(config)
    x = torch.randn(1, 12, config.dim)
    with torch.no_grad():
        _, state = block(x[:, :5], block.initial_state(1), None, None)  # one segment
        begun = state.memory.weights
        _, state = block(x[:, 5:7], state, None, None)
        _, state = block(x[:, 7:8], state, None, None)
        assert all(torch.equal(a, b) for a, b in zip(state.context, begun, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(state.memory.weights, begun, strict=True))
        _, state = block(x[:, 8:11], state, None, None)  # the next segment begins with the third of these
        assert not all(torch.equal(a, b) for a, b in zip(state.context, begun, strict=True))
        assert state.segment.filled.tolist() == [1]


def test_a_model_is_its_parameters_and_nothing_else():
    model = Backbone(BACKBONES[5])
    twin = Backbone(BACKBONES[5])
    twin.load_state_dict(model.state_dict())
    x = torch.randn(2, 9, 8)
    assert torch.equal(twin(x)[0], model(x)[0])
    assert dict(model.named_buffers()) == {}
    assert not any(isinstance(value, MemoryState) for module in model.modules() for value in vars(module).values())
    assert any(isinstance(module, NeuralMemory) for module in model.modules())
