"""A stack of Titans blocks that streams exactly.

B row, T time, D model.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..core.layers import RMSNorm, SwiGLU
from .blocks import BLOCKS
from .config import BackboneConfig

BackboneState = tuple[Any, ...]


class Backbone(nn.Module):
    """Pre-norm blocks of mixer and feed-forward layer: `y, state = backbone(x, state)`.

    The output is the residual stream itself: a regression head wants its magnitude, which a last norm would remove.

    >>> import torch
    >>> backbone = Backbone(BackboneConfig(variant="mac")).eval()
    >>> x = torch.zeros(2, 9, 64)
    >>> whole, _ = backbone(x)
    >>> first, state = backbone(x[:, :5])
    >>> torch.allclose(whole[:, 5:], backbone(x[:, 5:], state)[0], atol=1e-5)
    True
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        hidden = max(1, round(config.expansion * config.dim))
        self.mixers = nn.ModuleList(BLOCKS[config.variant](config) for _ in range(config.depth))
        self.mixer_norms = nn.ModuleList(RMSNorm(config.dim) for _ in range(config.depth))
        self.feeds = nn.ModuleList(SwiGLU(config.dim, hidden) for _ in range(config.depth))
        self.feed_norms = nn.ModuleList(RMSNorm(config.dim) for _ in range(config.depth))
        self.dropout = nn.Dropout(config.dropout)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if name.endswith(("out.weight", "down.weight")):
                    weight.mul_(config.residual_init)

    def initial_state(self, rows: int) -> BackboneState:
        """The state before the first token."""
        return tuple(mixer.initial_state(rows) for mixer in self.mixers)  # type: ignore[operator]

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: BackboneState | None = None,
        observed: Bool[Tensor, "B T"] | None = None,
        lengths: Int[Tensor, " B"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], BackboneState]:
        """Outputs for every token and the state behind the last; arguments as in `NeuralMemory.forward`."""
        if state is None:
            state = self.initial_state(x.shape[0])
        if x.shape[1] == 0:
            return x, state
        new = []
        again = self.config.checkpoint and torch.is_grad_enabled()
        for place, part in enumerate(state):
            if again:
                x, part = checkpoint(self._block, place, x, part, observed, lengths, use_reentrant=False)
            else:
                x, part = self._block(place, x, part, observed, lengths)
            new.append(part)
        return x, tuple(new)

    def _block(
        self, place: int, x: Tensor, state: Any, observed: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Any]:
        mixed, state = self.mixers[place](self.mixer_norms[place](x), state, observed, lengths)
        x = x + self.dropout(mixed)
        return x + self.dropout(self.feeds[place](self.feed_norms[place](x))), state
