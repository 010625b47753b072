"""The scalars of a chunk in closed form: how much of every earlier state and gradient is left at every token.

B row, H head, C token of the chunk.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

TINY = 1e-30  # stands for a gate of exactly 0 in the logarithm: a factor of 1e-30 is zero to any precision used here


class Coefficients(NamedTuple):
    """With W the weights and S the momentum, and g_j the gradient of token j, at token i of the chunk

        W_i = keep_i W_0 + carry_i S_0 - sum_{j<=i} mix_ij theta_j g_j
        S_i = fade_i S_0 - sum_{j<=i} trail_ij theta_j g_j

    which is eq. 16 with momentum. Of fade and trail only the last row is kept, all that the state needs. Without
    momentum carry, fade_last and trail_last are None, and S is not tracked.
    """

    keep: Float[Tensor, "B H C"]
    carry: Float[Tensor, "B H C"] | None
    mix: Float[Tensor, "B H C C"]
    fade_last: Float[Tensor, "B H"] | None
    trail_last: Float[Tensor, "B H C"] | None


def products(log_gates: Float[Tensor, "*shape C"]) -> Float[Tensor, "*shape C C"]:
    """`prod_{j<l<=i} gate_l` for i >= j, zero above the diagonal.

    Each entry sums its own logarithms: a difference of long cumulative sums would lose digits, and a quotient of
    cumulative products overflows.

    >>> products(torch.tensor([0.5, 0.5]).log())
    tensor([[1.0000, 0.0000],
            [0.5000, 1.0000]])
    """
    size = log_gates.shape[-1]
    lower = torch.ones(size, size, dtype=torch.bool, device=log_gates.device).tril()
    steps = log_gates.unsqueeze(-1).expand(*log_gates.shape, size).masked_fill(~lower.tril(-1), 0.0)
    return steps.cumsum(-2).exp().masked_fill(~lower, 0.0)


def coefficients(
    theta: Float[Tensor, "B H C"],
    eta: Float[Tensor, "B H C"] | None,
    alpha: Float[Tensor, "B H C"] | None,
    written: Bool[Tensor, "B C"] | None,
) -> Coefficients:
    """The closed form of a chunk's recurrences; a token that is not `written` is the identity.

    >>> eta, alpha = torch.tensor([[[0.5, 0.6, 0.7]]]), torch.tensor([[[0.1, 0.2, 0.3]]])
    >>> coefficients(eta, eta, alpha, None).mix[0, 0].mul(10).round().int().tolist()
    [[10, 0, 0], [14, 10, 0], [14, 14, 10]]
    """
    size = theta.shape[-1]
    mask = None if written is None else written[:, None]
    if alpha is None:
        keep = torch.ones_like(theta)
        decay = torch.ones(size, size, dtype=theta.dtype, device=theta.device).tril().expand(*theta.shape, size)
    else:
        log_keep = torch.log((1 - alpha).clamp(min=TINY))
        if mask is not None:
            log_keep = torch.where(mask, log_keep, torch.zeros_like(log_keep))
        keep, decay = log_keep.cumsum(-1).exp(), products(log_keep)
    if eta is None:
        return Coefficients(keep, None, decay, None, None)
    log_eta = torch.log(eta.clamp(min=TINY))
    if mask is not None:
        log_eta = torch.where(mask, log_eta, torch.zeros_like(log_eta))
        decay = decay * mask[..., None, :]  # only a written token adds its momentum to the weights
    fade, trail = log_eta.cumsum(-1).exp(), products(log_eta)
    carry = (decay @ fade.unsqueeze(-1)).squeeze(-1)
    return Coefficients(keep, carry, decay @ trail, fade[..., -1], trail[..., -1, :])
