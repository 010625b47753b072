"""Memories, tokens and states for the laws: small, random everywhere, and never at a symmetric point.

B row, H head, T time, D model, K key, G gate.
"""

from itertools import product
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from titans_ts.core.config import MemoryConfig
from titans_ts.core.memory import NeuralMemory
from titans_ts.core.networks import layer_shapes
from titans_ts.core.ops.contract import Tokens
from titans_ts.core.state import MemoryState, leaves
from titans_ts.models.backbone import Backbone
from titans_ts.models.config import VARIANTS, BackboneConfig

DEPTHS = (1, 2, 3, 4)
M = TypeVar("M", bound=nn.Module)

# Every network with every switch of the paper's ablation.
CONFIGS = [
    MemoryConfig(
        dim=8, heads=2, expansion=2, chunk=4, conv=3, depth=depth, residual=residual,
        layer_gates=layer_gates, momentum=momentum, forgetting=forgetting,
    )
    for depth, residual, layer_gates, momentum, forgetting in product(DEPTHS, *[(False, True)] * 4)
]  # fmt: skip
NETWORKS = [config for config in CONFIGS if config.momentum and config.forgetting and config.layer_gates]


def name_of(config: Any) -> str | None:
    """What a parametrised test is called after: the network, and what is switched off."""
    if isinstance(config, BackboneConfig):
        return f"{config.variant}-{name_of(config.memory)}"
    if not isinstance(config, MemoryConfig):
        return None
    off = [word for word in ("momentum", "forgetting") if not getattr(config, word)]
    parts = [f"depth{config.depth}", *["residual"] * config.residual, *["layer_gates"] * config.layer_gates]
    op = [] if config.op == "auto" else [config.op]
    return "-".join([*parts, *(f"no_{word}" for word in off), *op])


# Every wiring with every depth of memory; windows, segments and chunks that do not divide each other.
BACKBONES = [
    BackboneConfig(
        dim=8, depth=2, variant=variant, heads=2, window=6, segment=5, dropout=0.0, residual_init=1.0,
        memory=MemoryConfig(dim=8, heads=2, expansion=2, chunk=4, conv=3, depth=depth, persistent=3),
    )
    for variant, depth in product(VARIANTS, DEPTHS)
]  # fmt: skip


def shaken(module: M, dtype: torch.dtype = torch.float64, scale: float = 0.3) -> M:
    """The module with noise on every parameter: at a fresh one, zeros and ties hide what a law should see."""
    module = module.to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module.eval()


def make_memory(config: MemoryConfig, dtype: torch.dtype = torch.float64) -> NeuralMemory:
    return shaken(NeuralMemory(config), dtype)


def make_backbone(config: BackboneConfig, dtype: torch.dtype = torch.float64) -> Backbone:
    return shaken(Backbone(config), dtype, 0.2)


def make_tokens(
    config: MemoryConfig,
    rows: int = 3,
    time: int = 11,
    *,
    theta: float = 0.3,
    grad: bool = False,
    missing: bool = False,
) -> Tokens:
    """Random tokens with queries and keys of about unit length, theta up to the given number, and gates from end to
    end."""
    heads, gates = config.heads, config.depth if config.layer_gates else 1

    def unit() -> Tensor:
        return functional.normalize(torch.randn(rows, heads, time, config.head_dim, dtype=torch.float64), dim=-1)

    def gate() -> Tensor:
        return torch.rand(rows, heads, time, gates, dtype=torch.float64)

    parts: dict[str, Tensor | None] = {
        "queries": unit(),
        "keys": 0.95 * unit(),  # at 1 exactly, rounding would decide on which side of its kink the stiffness is
        "values": torch.randn(rows, heads, time, config.head_dim, dtype=torch.float64),
        "theta": theta * gate(),
        "eta": gate() if config.momentum else None,
        "alpha": 0.5 * gate() if config.forgetting else None,
    }
    if grad:
        parts = {name: None if part is None else part.requires_grad_() for name, part in parts.items()}
    if missing:
        parts["observed"] = torch.rand(rows, time) < 0.7
    return Tokens(**parts)


def make_state(config: MemoryConfig, rows: int = 3, *, ragged: bool = False, grad: bool = False) -> MemoryState:
    """A random state: weights and momentum of anything, and with `ragged` a clock of its own for every row."""
    shapes = layer_shapes(config.head_dim, config.depth, config.expansion)

    def like(scale: float) -> tuple[Tensor, ...]:
        random = (torch.randn(rows, config.heads, i, o, dtype=torch.float64) for i, o in shapes)
        return tuple((scale * x / x.shape[-2] ** 0.5).requires_grad_(grad) for x in random)

    gates = config.depth if config.layer_gates else 1
    offset = torch.arange(rows) * 3 % config.chunk if ragged else torch.zeros(rows, dtype=torch.long)
    weights, inside = like(1.0), (offset > 0)[:, None, None]
    spent = 0.1 * (not config.exact) * inside * torch.rand(rows, config.heads, gates, dtype=torch.float64)
    anchor = (
        ()
        if config.exact
        else tuple(torch.where(inside[..., None], a, w) for a, w in zip(like(1.0), weights, strict=True))
    )
    recent = torch.zeros(rows, config.conv - 1, 3 * config.dim, dtype=torch.float64)
    return MemoryState(weights, like(0.2), anchor, spent, offset, recent)


def assert_same(left: Any, right: Any, tolerance: float = 1e-9, relative: float = 0.0) -> None:
    """Two states (or tensors) of one structure are equal to the tolerance, counted from 1 upwards."""
    pairs = list(zip(leaves(left), leaves(right), strict=True))
    for a, b in pairs:
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if not a.dtype.is_floating_point:
            assert torch.equal(a, b)
        elif a.numel():
            scale = max(1.0, b.abs().max().item())
            error = (a - b).abs().max().item()
            assert error <= max(tolerance, relative) * scale, f"{error:.2e} of {scale:.2e}"


def real_tokens(y: Tensor, lengths: Tensor) -> Tensor:
    """The outputs with zeros at the padding, which may hold anything."""
    exists = torch.arange(y.shape[1]) < lengths[:, None]
    return torch.where(exists[..., None], y, torch.zeros_like(y))
