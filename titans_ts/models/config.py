"""The configuration of a backbone and of the time-series model around it."""

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

from ..core.config import MemoryConfig, require

Variant = Literal["lmm", "mac", "mag", "mal"]
VARIANTS: tuple[Variant, ...] = ("lmm", "mac", "mag", "mal")


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneConfig:
    """A stack of Titans blocks.

    dim, depth: width of the tokens and number of blocks.
    variant: how memory and attention are joined: "lmm" memory alone, "mac" memory as context, "mag" memory as gate,
        "mal" memory as layer (sections 3 and 4 of the paper).
    memory: the neural memory of every block; its `persistent` tokens also stand in front of the attention.
    writes: whether the memories learn from the tokens at all; off, in training as afterwards, they are read as they
        began (for experiments).
    heads: attention heads ("mac", "mag", "mal").
    window: tokens that sliding-window attention sees ("mag", "mal").
    segment: tokens of one attention segment ("mac").
    expansion: hidden width of the feed-forward layers, in multiples of dim.
    dropout: share of every block's output that is dropped in training.
    residual_init: factor on the last projections of every block and of the head at the start. At 0 the blocks begin
        silent and the model linear, which overfits a small panel later; 1 learns sooner where only the memory can help.
    checkpoint: keep only what goes into each block in training, and compute the block again in the backward pass:
        the same gradients, less memory, a forward pass more.

    >>> BackboneConfig(variant="mag").memory.dim
    64
    """

    dim: int = 64
    depth: int = 2
    variant: Variant = "lmm"
    memory: MemoryConfig = field(default_factory=lambda: MemoryConfig(dim=64, heads=2, depth=1, persistent=4))
    writes: bool = True
    heads: int = 4
    window: int = 32
    segment: int = 16
    expansion: float = 2.0
    dropout: float = 0.2
    residual_init: float = 0.0
    checkpoint: bool = False

    def __post_init__(self) -> None:
        require(self.variant in VARIANTS, f"variant={self.variant!r} must be one of {', '.join(VARIANTS)}.")
        require(
            self.memory.dim == self.dim,
            f"memory.dim={self.memory.dim} must equal dim={self.dim}: pass memory=MemoryConfig(dim={self.dim}, ...).",
        )
        for name in ("depth", "heads", "window", "segment"):
            require(getattr(self, name) >= 1, f"BackboneConfig({name}={getattr(self, name)}) must be at least 1.")
        require(self.dim % self.heads == 0, f"dim={self.dim} must be a multiple of heads={self.heads}.")
        require(0 <= self.dropout < 1, f"dropout={self.dropout} must be in [0, 1).")
        require(self.residual_init >= 0, f"residual_init={self.residual_init} cannot be negative.")


# What a variant is known by, at the sizes that forecasting on a CPU wants.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"dim": 32, "depth": 1, "heads": 2},
    "small": {"dim": 64, "depth": 2, "heads": 4},
    "base": {"dim": 128, "depth": 3, "heads": 8},
}


def preset(name: str, variant: Variant = "lmm", **changes: Any) -> BackboneConfig:
    """A backbone configuration by size: "tiny", "small" or "base"; `changes` replace single fields.

    >>> preset("tiny", "mac").memory.dim
    32
    """
    require(name in PRESETS, f"preset {name!r} does not exist: there are {', '.join(PRESETS)}.")
    sizes = PRESETS[name]
    memory = MemoryConfig(dim=sizes["dim"], heads=2, depth=1, persistent=4)
    return replace(BackboneConfig(memory=memory, variant=variant, **sizes), **changes)


# Blocks, width and heads of the paper's language models (camera-ready, table 5), by the size that names them. The width
# of the feed-forward layers is left open there: here it makes the "lmm" wiring and its embedding as large as the name.
VOCABULARY = 32_000
LANGUAGE: dict[str, dict[str, Any]] = {
    "170m": {"dim": 768, "depth": 12, "heads": 16, "expansion": 4.9375},
    "340m": {"dim": 1024, "depth": 24, "heads": 16, "expansion": 2.1875},
    "760m": {"dim": 1536, "depth": 24, "heads": 16, "expansion": 2.3125},
}


def language_preset(name: str, variant: Variant = "lmm", **changes: Any) -> BackboneConfig:
    """The backbone of a language model of the paper's sizes: "170m", "340m" or "760m"; `changes` replace single fields.

    Memory of two layers in chunks of 16, 128 persistent tokens, a window of 2,048 and segments of 512, as in the
    paper. The name counts the blocks of "lmm" and one embedding of `VOCABULARY` times `dim`, shared between input and
    output, which is the language model's and not the backbone's; the wirings with attention are larger by that.

    >>> language_preset("340m", "mag").window
    2048
    """
    require(name in LANGUAGE, f"preset {name!r} does not exist: there are {', '.join(LANGUAGE)}.")
    sizes = LANGUAGE[name]
    memory = MemoryConfig(dim=sizes["dim"], heads=sizes["heads"], depth=2, chunk=16, persistent=128)
    language = BackboneConfig(
        memory=memory, variant=variant, window=2048, segment=512, dropout=0.0, residual_init=1.0, **sizes
    )
    return replace(language, **changes)


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeSeriesConfig:
    """The time-series model around a backbone.

    horizon: steps that one forecast reaches.
    context: steps of the raw window that scale and head look at; what lies further back is the memory's.
    patch: steps of one token.
    quantiles: levels of the quantile head, increasing.
    backbone: the blocks between embedding and head.
    rank: width of the bottleneck in the head's map from all tokens to all steps. On ETTh1's validation rows 128 was
        more accurate than 16, 32, 64 and a full map (RESULTS.md).

    >>> TimeSeriesConfig(horizon=24, context=96, patch=16, quantiles=(0.1, 0.5, 0.9)).num_tokens
    6
    """

    horizon: int
    context: int
    patch: int
    quantiles: tuple[float, ...]
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    rank: int = 128

    def __post_init__(self) -> None:
        for name in ("horizon", "context", "patch", "rank"):
            require(getattr(self, name) >= 1, f"TimeSeriesConfig({name}={getattr(self, name)}) must be at least 1.")
        require(self.patch <= self.context, f"patch={self.patch} cannot be longer than context={self.context}.")
        levels = self.quantiles
        rising = all(a < b for a, b in pairwise((0.0, *levels, 1.0)))
        require(
            bool(levels) and rising,
            f"quantiles={levels} must be increasing numbers between 0 and 1.",
        )

    @property
    def num_tokens(self) -> int:
        """Tokens that cover the context: what the head sees at once."""
        return -(-self.context // self.patch)
