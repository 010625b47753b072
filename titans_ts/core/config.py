"""The configuration of one neural memory."""

from dataclasses import dataclass
from typing import Literal

LOST = -(2**62)  # a step of a clock that is not known; however far it moves on, it stays below half of that

OpName = Literal["auto", "reference", "chunked", "exact_linear", "numba", "triton"]


def require(condition: bool, message: str) -> None:
    """Raise `ValueError(message)` unless `condition` holds.

    >>> require(1 < 2, "never shown")
    """
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryConfig:
    """What a `NeuralMemory` is made of. Every part of the paper's ablation is a switch here.

    dim: width of the tokens that go in and come out.
    heads: independent memories, each `dim // heads` wide.
    depth: layers of the memory network; 1 is a linear memory, which is trained and streamed with exact per-token
        gradients; 2 to 4 are GELU networks, whose gradients are anchored at the start of each chunk.
    expansion: hidden width of a deep memory, in multiples of the head width (camera-ready: 4).
    residual: the camera-ready's `M(x) = x + LN(MLP(x))` (layer norm without learned scale) instead of `MLP(x)`.
    chunk: tokens between two anchors of a deep memory (a hyperparameter of the function, not only of its speed:
        the paper uses 16); for a linear memory only the tile of the solver, without effect on the result.
    conv: taps of the causal depthwise convolution on queries, keys and values; 1 switches it off.
    momentum, forgetting: past surprise (eta) and the forget gate (alpha); off means 0 everywhere.
    layer_gates: separate theta, eta and alpha for each layer of the memory network (camera-ready, appendix B.3).
    persistent: learned tokens that every memory absorbs before its first real token (eq. 19).
    normalize: RMS norm over each head's read before the output gate; off keeps the read's magnitude, which
        regression wants and classification does not.
    step_budget: largest sum of the steps theta inside one chunk of a deep memory, each divided by its token's
        `stiffness`. A frozen gradient of a repeated key adds up over the chunk: at 0.5 the chunk closes the whole error
        of such a key, and once the sum passes 1 it diverges. None: neither the sum is bounded nor the steps divided
        (for experiments). Linear memories need none.
    weight_cap: a deep memory's layer is scaled back at chunk starts to a Frobenius norm of at most
        `weight_cap * sqrt(fan_out)`, `weight_cap` times that of a fresh layer: with the budget it makes the state
        bounded whatever comes in. A linear memory is capped at a thousand times that, which is for the worst only.
    op: which implementation runs; "auto" takes `exact_linear` where it is exact and `chunked` otherwise. On a CPU
        `chunked` has kernels for memories of 2 layers and heads up to 128 wide, which compile for seconds at the first
        call that is large enough for them, and are kept on disk.
        "numba" streams token by token on the CPU, computes no gradients, and compiles when it is first called.
        "triton" is for CUDA devices and memories of 1 and 2 layers in float32, as large as fit on the chip: kernels
        that are checked in Triton's interpreter, and in part on a GPU.

    >>> MemoryConfig(dim=32, heads=2, depth=1).head_dim
    16
    """

    dim: int = 64
    heads: int = 1
    depth: int = 2
    expansion: int = 4
    residual: bool = False
    chunk: int = 64
    conv: int = 4
    momentum: bool = True
    forgetting: bool = True
    layer_gates: bool = False
    persistent: int = 0
    normalize: bool = True
    step_budget: float | None = 0.5
    weight_cap: float = 4.0
    op: OpName = "auto"

    def __post_init__(self) -> None:
        for name in ("dim", "heads", "depth", "expansion", "chunk", "conv"):
            require(getattr(self, name) >= 1, f"MemoryConfig({name}={getattr(self, name)}) must be at least 1.")
        require(self.dim % self.heads == 0, f"dim={self.dim} must be a multiple of heads={self.heads}.")
        require(self.depth <= 4, f"depth={self.depth}: memories of 1 to 4 layers are supported.")
        require(self.persistent >= 0, f"persistent={self.persistent} cannot be negative.")
        budget = self.step_budget
        require(budget is None or budget > 0, f"step_budget={budget} must be positive, or None for no bound.")
        require(self.weight_cap > 0, f"weight_cap={self.weight_cap} must be positive.")
        if self.op == "exact_linear":
            require(self.exact, "op='exact_linear' needs depth=1 and residual=False: only then is the loss quadratic.")
        require(
            self.op != "triton" or self.depth <= 2,
            f"op='triton' has kernels for depth 1 and 2, and depth={self.depth}: use op='auto'.",
        )
        if self.op == "chunked":
            require(not self.exact, "op='chunked' is for deep or residual memories; depth=1 has op='exact_linear'.")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim // self.heads

    @property
    def exact(self) -> bool:
        """Whether the memory takes every gradient at the current weights (linear) instead of at an anchor."""
        return self.depth == 1 and not self.residual
