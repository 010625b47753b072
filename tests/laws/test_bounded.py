"""Bounded: whatever comes in for however long, the state stays finite, under a bound that can be written down, and in
the same place.

Five rows at once: a constant series, nothing but zeros, a few tokens over and over, a smooth season, whose tokens turn
slowly, and noise around four centres.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from laws.cases import DEPTHS, make_tokens
from torch import Tensor

from titans_ts.core.config import MemoryConfig
from titans_ts.core.memory import NeuralMemory, largest_step, logit
from titans_ts.core.networks import layer_shapes
from titans_ts.core.ops.backends import OPS, choose, rule_of
from titans_ts.core.ops.contract import Rule, Tokens
from titans_ts.core.state import MemoryState
from titans_ts.models.backbone import Backbone
from titans_ts.models.blocks import memory_of
from titans_ts.models.config import VARIANTS, BackboneConfig

CONSTANT, ZERO, REPEATED, SEASON, CLUSTERED = range(5)
DIM, PIECES = 16, 64
TOKENS = pytest.mark.parametrize("tokens", [16384, pytest.param(65536, marks=pytest.mark.long)])


def five_series(time: int, period: int) -> Tensor:
    centres = torch.randn(4, DIM)[torch.randint(4, (time,))]
    periods = torch.tensor([24, 168, 8766 * time / 65536])  # a quarter of the run holds all of the longest
    angle = torch.arange(time, dtype=torch.float64)[:, None] * 2 * math.pi / periods
    season = torch.cat([angle.sin(), angle.cos()], 1).float() @ torch.randn(6, DIM)
    return torch.stack(
        [
            torch.randn(1, DIM).expand(time, -1),
            torch.zeros(time, DIM),
            torch.randn(period, DIM).repeat(time // period + 1, 1)[:time],
            season,
            centres + 0.1 * torch.randn(time, DIM),
        ]
    )


def largest_allowed(config: MemoryConfig, values: float) -> list[float]:
    """A bound on the norm of every layer and its momentum, for values of at most that norm.

    Deep: at an anchor a layer has the cap as its norm, so that the error e is at most the product of the caps plus the
    values; a step moves the weights by at most `budget * (1 - eta) * |delta|`, delta = 2 e at the network's output (the
    layer norm multiplies it by 1000 at worst), for the stiffness takes out whatever the layers multiply it by. The
    momentum averages such steps with weights 1 - eta, and a chunk adds it up once a token.
    Linear: with z the larger of |S| and |W| + |v|, a token at most doubles z.
    """
    rule = rule_of(config)
    caps = [rule.weight_cap * o**0.5 for _, o in layer_shapes(config.head_dim, config.depth, config.expansion)]
    if config.exact:
        return [2.0**rule.chunk * (caps[0] + values)]
    delta = 2000.0 * (1 + config.head_dim**0.5 + values) if config.residual else 2 * (math.prod(caps) + values)
    return [1.001 * (own + rule.chunk * rule.step_budget * delta) for own in caps]


class Watch:
    """What happened to the rows over the quarters of a long run."""

    def __init__(self, module: Any, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
        self.values = 0.0
        self.memories: list[MemoryState] = []
        memory = module.config if isinstance(module, NeuralMemory) else module.config.memory
        name = choose(memory)
        run = OPS[name]

        def watched(state: MemoryState, tokens: Tokens, rule: Rule) -> tuple[Tensor, MemoryState]:
            self.values = max(self.values, tokens.values.norm(dim=-1).max().item())
            return run(state, tokens, rule)

        monkeypatch.setitem(OPS, name, watched)
        outputs, norms, state = [], [], None
        with torch.no_grad():
            for part in x.split(x.shape[1] // PIECES, 1):
                y, state = module(part, state)
                assert y.isfinite().all()
                self.memories = [state] if isinstance(state, MemoryState) else [memory_of(block) for block in state]
                layers = [torch.stack([w.norm(dim=(-2, -1)), s.norm(dim=(-2, -1))]).amax((0, 2))
                          for one in self.memories for w, s in zip(one.weights, one.momentum, strict=True)]  # fmt: skip
                norms.append(torch.stack(layers))
                outputs.append(y.abs().amax((1, 2)))
        bound = torch.tensor(largest_allowed(memory, self.values)).repeat(len(self.memories))
        self.norms = torch.stack(norms).unflatten(0, (4, -1))  # [quarter, sample, layer, row]
        assert self.norms.isfinite().all()
        assert (self.norms.amax((0, 1, 3)) <= bound).all()
        self.outputs = torch.stack(outputs).unflatten(0, (4, -1)).amax(1)  # [quarter, row]

    def growth(self, row: int) -> float:
        """The largest state of the last quarter in units of the second's; below a quarter, a layer is all but empty."""
        second, last = (self.norms[quarter, :, :, row].max().item() for quarter in (1, 3))
        return last / max(second, 0.25)

    def assert_settled(self, *, noise: float) -> None:
        for row in (CONSTANT, ZERO, REPEATED):
            assert self.growth(row) <= 1.05, row
        # The season's longest period and the samples of the state do not divide each other.
        assert max(self.growth(SEASON), self.growth(CLUSTERED)) <= noise
        assert (self.outputs[3] <= 1.1 * self.outputs[1] + 1e-6).all()


@TOKENS
@pytest.mark.parametrize("depth", DEPTHS)
def test_a_memory_of_many_tokens_stays_where_it_was(depth, tokens, monkeypatch):
    memory = NeuralMemory(MemoryConfig(dim=DIM, depth=depth))
    watch = Watch(memory, five_series(tokens, 3), monkeypatch)
    watch.assert_settled(noise=1.5)
    assert watch.norms.max() < 50


@TOKENS
@pytest.mark.parametrize("depth", DEPTHS)
def test_a_residual_memory_of_many_tokens_stays_where_it_was(depth, tokens, monkeypatch):
    """Its layer norm divides by what the network puts out, so that a state makes leaps now and then, and comes back.

    How far one leaps is a matter of rounding (up to 555 in 40 seeds at depth 4), bounded by what `Watch` holds every
    state to; nine states of ten stay near 5.
    """
    memory = NeuralMemory(MemoryConfig(dim=DIM, depth=depth, residual=True))
    watch = Watch(memory, five_series(tokens, 3), monkeypatch)
    second, last = watch.norms[1].amax(1).median(0).values, watch.norms[3].amax(1).median(0).values
    assert (last <= 2 * second + 1e-3).all()
    assert (watch.outputs[3] <= 1.25 * watch.outputs[1] + 1e-6).all()
    assert watch.norms.flatten().quantile(0.9) < 15


@TOKENS
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_backbone_of_many_tokens_stays_where_it_was(variant, depth, tokens, monkeypatch):
    memory = MemoryConfig(dim=DIM, depth=depth, persistent=4)
    config = BackboneConfig(
        dim=DIM, depth=1, variant=variant, memory=memory, heads=2, window=64, segment=64, residual_init=1.0
    )
    watch = Watch(Backbone(config).eval(), five_series(tokens, 4), monkeypatch)
    watch.assert_settled(noise=1.5)
    assert watch.norms.max() < 50


ENDS = {
    "long momentum and no forgetting": (1 - 1e-4, 0.99, 1e-6),
    "no momentum and no forgetting": (1 - 1e-4, 1e-6, 1e-6),
    "no momentum and almost all forgotten": (1 - 1e-4, 1e-6, 0.99),
}


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("depth", DEPTHS)
def test_a_memory_with_its_gates_at_their_ends_stays_where_it_was(depth, residual, ends, monkeypatch):
    memory = NeuralMemory(MemoryConfig(dim=DIM, depth=depth, residual=residual))
    with torch.no_grad():
        memory.gates.bias.copy_(torch.tensor([logit(end) for end in ENDS[ends]]))
    watch = Watch(memory, five_series(4096, 2), monkeypatch)
    if residual:
        assert watch.norms.max() < 200
    else:
        assert all(watch.growth(row) <= 1.05 for row in (CONSTANT, ZERO, REPEATED))
        # A linear memory that forgets nothing solves for two tokens that are told apart by next to nothing.
        assert watch.norms.max() < (1000 if depth == 1 else 50)


@pytest.mark.parametrize("depth", DEPTHS)
def test_gates_that_swing_from_end_to_end_leave_the_state_finite(depth, monkeypatch):
    """A linear memory can resonate then, and only its cap holds it; for a deep one the budget does."""
    torch.manual_seed(3)
    memory = NeuralMemory(MemoryConfig(dim=DIM, depth=depth))
    with torch.no_grad():
        memory.gates.weight.mul_(100)
    watch = Watch(memory, five_series(8192, 4), monkeypatch)
    if depth > 1:
        assert watch.norms.max() < 50


def one_key(config: MemoryConfig, theta: float, eta: float, alpha: float, time: int) -> Tokens:
    """One unit key with the value 0, over and over; with the value 0 a linear memory is its own error."""
    tokens = make_tokens(config, 1, time)
    key = torch.nn.functional.normalize(tokens.keys[:, :, :1], dim=-1).expand_as(tokens.keys)
    gates = (torch.full_like(tokens.theta, gate) for gate in (theta, eta, alpha))
    return Tokens(key, key, torch.zeros_like(key), *gates)


def start(config: MemoryConfig) -> MemoryState:
    shapes = layer_shapes(config.head_dim, config.depth, config.expansion)
    weights = tuple(torch.randn(1, 1, i, o, dtype=torch.float64) / i**0.5 for i, o in shapes)
    none = torch.zeros(1, 1, 1, dtype=torch.float64)
    return MemoryState(
        weights, tuple(map(torch.zeros_like, weights)), weights, none, torch.zeros(1, dtype=torch.long), none
    )


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_a_deep_memory_without_its_bounds_diverges_on_a_repeated_key(depth):
    config = MemoryConfig(dim=DIM, depth=depth)
    tokens = one_key(config, 0.25, 0.5, 0.0, 4096)
    tokens = tokens._replace(values=torch.ones_like(tokens.values))
    rule = rule_of(config)

    def run(rule: Rule) -> tuple[float, float]:
        """The largest weight at the end of any chunk, and the last error."""
        torch.manual_seed(1)
        state, largest, reads = start(config), 0.0, tokens.values
        for parts in zip(*(part.split(rule.chunk, 2) for part in tokens[:6]), strict=True):
            reads, state = OPS["chunked"](state, Tokens(*parts), rule)
            largest = max(largest, *(weight.abs().nan_to_num(math.inf).max().item() for weight in state.weights))
        return largest, (reads - 1).abs().max().item()

    largest, error = run(rule)
    assert largest < 5
    assert error < 1e-6
    assert run(replace(rule, step_budget=None, weight_cap=None))[0] > 1e12
    assert run(replace(rule, step_budget=None))[0] > 100  # the cap alone brings it back, again and again


def growth_of_a_chunk(chunk: int, theta: float, eta: float, alpha: float) -> float:
    """By what the error of a frozen linear memory is multiplied in a chunk of one key: the largest eigenvalue of what
    (W, S) becomes, each token doing S <- eta S - 2 theta W_0, W <- (1 - alpha) W + S."""
    columns = []
    for first, past in ((1.0, 0.0), (0.0, 1.0)):
        weight, momentum = first, past
        for _ in range(chunk):
            momentum = eta * momentum - 2 * theta * first
            weight = (1 - alpha) * weight + momentum
        columns.append([weight, momentum])
    return float(np.abs(np.linalg.eigvals(np.array(columns))).max())


def critical(chunk: int, eta: float, alpha: float) -> float:
    """The step from which on a frozen linear memory diverges, searched for upwards from 0."""
    low, high = 0.0, 4.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if growth_of_a_chunk(chunk, middle, eta, alpha) < 1 else (low, middle)
    return low


CRITICAL = {
    (0.0, 0.001): {1: 0.9995, 4: 0.25, 16: 0.0625, 64: 0.0156, 256: 0.0039},
    (0.5, 0.001): {1: 1.50, 4: 0.223, 16: 0.0357, 64: 0.0081, 256: 0.0020},
    (0.9, 0.001): {1: 1.90, 4: 0.0369, 16: 0.0095, 64: 0.0022, 256: 0.0004},
    (0.9, 0.05): {1: 1.85, 4: 0.0558, 16: 0.0183, 64: 0.0029, 256: 0.0025},
}


@pytest.mark.parametrize(("eta", "alpha"), CRITICAL)
@pytest.mark.parametrize("chunk", [1, 4, 16, 64, 256])
def test_a_frozen_linear_memory_diverges_from_the_critical_step_on(chunk, eta, alpha):
    step = critical(chunk, eta, alpha)
    assert step == pytest.approx(CRITICAL[eta, alpha][chunk], rel=0.005, abs=6e-5)
    config = MemoryConfig(dim=8, depth=1, chunk=chunk)
    for factor, diverges in ((0.9, False), (1.1, True)):
        growth = growth_of_a_chunk(chunk, factor * step, eta, alpha)
        chunks = max(8, math.ceil(math.log(1e3) / abs(math.log(growth)))) if diverges else 40
        tokens = one_key(config, factor * step, eta, alpha, chunks * chunk)
        reads, _ = OPS["chunked"](start(config), tokens, Rule(chunk=chunk))
        sizes = reads.norm(dim=-1)[0, 0]
        first, last = sizes[: 2 * chunk].max(), sizes[-2 * chunk :].max()
        assert last > 10 * first if diverges else last <= first


def test_the_budget_of_a_linear_network_is_enough_for_every_momentum_forgetting_and_chunk():
    """Spread evenly, a budget of 1/2 is a step of `(1 - eta) / (2 chunk)`."""
    for chunk in (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256):
        for eta in (0.0, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99, 0.999):
            for alpha in (0.0, 1e-4, 0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0):
                assert growth_of_a_chunk(chunk, 0.5 * (1 - eta) / chunk, eta, alpha) <= 1 + 1e-9


def turning(config: MemoryConfig, share: float, eta: float, alpha: float, angle: float, time: int = 800) -> Tensor:
    """The errors of an exact linear memory of zeros whose key turns in a plane by an angle a token."""
    tokens = one_key(config, share, eta, alpha, time)
    turned = torch.arange(time, dtype=torch.float64) * angle
    plane = torch.eye(config.dim, dtype=torch.float64)[:2]
    keys = turned.cos()[:, None] * plane[0] + turned.sin()[:, None] * plane[1]
    tokens = tokens._replace(keys=keys.expand_as(tokens.keys), queries=keys.expand_as(tokens.keys))
    reads, _ = OPS["exact_linear"](start(config)._replace(anchor=()), tokens, Rule(chunk=64))
    return reads.norm(dim=-1)[0, 0]


MOMENTA = (0.0, 0.1, 0.3, 1 / 3, 0.5, 0.7, 0.9, 0.99, 0.999)


@pytest.mark.parametrize("eta", MOMENTA)
@pytest.mark.parametrize("alpha", [0.0, 1e-3, 0.5, 1.0])
def test_at_the_largest_step_a_linear_memory_converges_on_keys_that_turn_at_any_pace(eta, alpha):
    config = MemoryConfig(dim=4, depth=1)
    share = 0.99 * largest_step(torch.tensor(eta, dtype=torch.float64)).item()
    for angle in (0.0, 0.05, 0.18, 2 * math.pi / 24, 0.28, 0.65, math.pi / 2, 2.8):
        sizes = turning(config, share, eta, alpha, angle)
        assert sizes[-100:].max() <= 1.01 * sizes[:100].max(), angle


@pytest.mark.parametrize(("eta", "angle"), [(0.5, 0.282), (0.7, 0.287), (0.9, 0.18), (0.99, 0.058)])
def test_a_step_that_only_closes_its_own_error_diverges_on_keys_that_turn_slowly(eta, angle):
    """As those of a season do, and at a momentum of 1/2 a season of 22 steps."""
    sizes = turning(MemoryConfig(dim=4, depth=1), 0.45 * (1 - eta), eta, 0.0, angle)
    assert sizes[-1] > 1e3 * sizes[0]


def test_the_largest_step_is_what_the_circle_criterion_allows():
    """`1 + Re G >= 0` on the unit circle, G from the gradient to the weights: then no keys of unit length, and no steps
    below, can make the weights diverge."""
    z = np.exp(1j * np.linspace(1e-4, np.pi, 5000))
    for eta in MOMENTA:
        step = largest_step(torch.tensor(eta, dtype=torch.float64)).item()
        for alpha in (0.0, 1e-4, 1e-3, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0):
            loop = 2 * z / ((z - 1 + alpha) * (z - eta))
            assert (1 + step * loop.real).min() >= -1e-9
        if eta > 1 / 3:
            assert (1 + 1.05 * step * (2 * z / ((z - 1) * (z - eta))).real).min() < 0


def test_a_step_beyond_one_half_would_let_a_linear_memory_that_forgets_diverge():
    config = MemoryConfig(dim=8, depth=1)
    reads, _ = OPS["exact_linear"](
        start(config)._replace(anchor=()), one_key(config, 0.9, 0.0, 0.9, 200), Rule(chunk=64)
    )
    assert not reads.norm(dim=-1)[0, 0, -1] < 1e6
