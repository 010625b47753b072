"""Small parts that carry no state of their own, and the convolution and rotation that carry a little.

B row, T time, D model, H head.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis with a learned scale.

    >>> RMSNorm(4)(torch.full((1, 4), 3.0)).round().tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        """The normed and scaled tokens."""
        return functional.rms_norm(x, x.shape[-1:], self.scale.to(x.dtype), 1e-6)


class SwiGLU(nn.Module):
    """Gated feed-forward layer, `down(silu(gate(x)) * up(x))`.

    >>> SwiGLU(4, 8)(torch.ones(2, 4)).shape
    torch.Size([2, 4])
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        """Every token by itself."""
        gate, value = self.up(x).chunk(2, -1)
        out: Tensor = self.down(functional.silu(gate) * value)
        return out


class CausalConv(nn.Module):
    """Causal depthwise convolution whose state is the last `taps - 1` inputs of each row.

    It starts as the identity plus a little of the tokens before, so that a fresh model sees its own token first.

    >>> conv = CausalConv(2, 4)
    >>> x = torch.ones(1, 5, 2)
    >>> whole, _ = conv(x, conv.blank(1, x))
    >>> first, recent = conv(x[:, :3], conv.blank(1, x))
    >>> torch.allclose(whole, torch.cat([first, conv(x[:, 3:], recent)[0]], 1))
    True
    """

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        weight = torch.randn(channels, 1, taps) / taps
        weight[:, :, -1] += 1.0
        self.weight = nn.Parameter(weight)
        self.taps = taps

    def blank(self, rows: int, like: Tensor) -> Float[Tensor, "B K D"]:
        """The state before the first token: zeros."""
        return like.new_zeros(rows, self.taps - 1, self.weight.shape[0])

    def forward(
        self, x: Float[Tensor, "B T D"], recent: Float[Tensor, "B K D"], lengths: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B K D"]]:
        """The mixed tokens, and what the next call still sees of these."""
        both = torch.cat([recent.to(x.dtype), x], 1)
        out = functional.conv1d(both.mT, self.weight.to(x.dtype), groups=both.shape[-1]).mT
        return out, last_rows(both, self.taps - 1, lengths)


def last_rows(
    x: Float[Tensor, "B T *shape"], size: int, lengths: Int[Tensor, " B"] | None
) -> Float[Tensor, "B K *shape"]:
    """The last `size` entries along axis 1 of `x`, whose first `size` entries are the past, before each row's padding.

    >>> last_rows(torch.arange(5.0).view(1, 5, 1), 2, torch.tensor([1]))[..., 0].tolist()
    [[1.0, 2.0]]
    """
    if lengths is None:
        return x[:, x.shape[1] - size :]
    index = lengths[:, None] + torch.arange(size, device=x.device)
    return torch.take_along_dim(x, index.view(*index.shape, *[1] * (x.dim() - 2)), 1)


def rotate(x: Float[Tensor, "B H T K"], position: Int[Tensor, "B T"]) -> Float[Tensor, "B H T K"]:
    """Rotary position embedding (base 10,000, halves paired) at absolute positions.

    Angles are computed in float64: in float32 a position of ten million has lost its last digits.

    >>> rotate(torch.ones(1, 1, 1, 2), torch.zeros(1, 1, dtype=torch.long)).tolist()
    [[[[1.0, 1.0]]]]
    """
    half = x.shape[-1] // 2
    frequency = 10_000.0 ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
    angle = position[:, None, :, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, first * sin + second * cos, rest], -1)
