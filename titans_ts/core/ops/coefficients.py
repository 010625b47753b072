"""The scalars of a chunk: how much of every earlier state and gradient is left at every token.

B row, H head, C token of the chunk, R row and head together.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable


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


def _columns(gate: Tensor | None) -> tuple[Tensor, ...]:
    """The gate of every token as a column, or nothing."""
    return () if gate is None else gate.unsqueeze(-1).unbind(1)


class Recurrences(torch.autograd.Function):
    """`S_i = eta_i S_{i-1} + e_i` and `W_i = stay_i W_{i-1} + written_i S_i` for all rows, every source a column.

    The columns are the tokens, then the state's momentum, then its weights: what is left of each at token i. Steps of
    products only: no logarithm loses digits, no quotient overflows, and a gate may be exactly 0.
    """

    @staticmethod
    def forward(ctx: Any, eta: Tensor | None, stay: Tensor | None, written: Tensor | None) -> tuple[Tensor, ...]:
        """The columns of W (tokens [R, C, C], momentum and weights [R, C]), then the last of S, [R, C + 2].

        `eta`, `stay` and `written` are [R, C], None: 0, 1 and 1 everywhere.
        """
        like = eta if eta is not None else stay
        assert like is not None
        rows, size = like.shape
        sources = torch.eye(size, size + 2, dtype=like.dtype, device=like.device)
        push = like.new_empty(rows, size, size + 2) if eta is not None else sources.expand(rows, -1, -1)
        weight = like.new_empty(rows, size, size + 2)
        before, past = like.new_zeros(2, rows, size + 2)
        before[:, size], past[:, size + 1] = 1, 1
        etas, stays = _columns(eta), _columns(stay)
        for i, (source, here, there) in enumerate(zip(sources.unbind(), push.unbind(1), weight.unbind(1), strict=True)):
            if etas:
                before = torch.addcmul(source, before, etas[i], out=here)
            added = here if written is None else here * written[:, i, None]
            past = torch.addcmul(added, past, stays[i], out=there) if stays else torch.add(added, past, out=there)
        ctx.save_for_backward(eta, stay, written, weight, push)
        return weight[..., :size], weight[..., size], weight[..., size + 1], push[:, -1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """The same recurrences from the last token to the first."""
        eta, stay, written, weight, push = ctx.saved_tensors
        size = weight.shape[1]
        d_weight = torch.empty_like(weight)
        d_weight[..., :size], d_weight[..., size], d_weight[..., size + 1] = grads[:3]
        stays, here = _columns(stay), d_weight.unbind(1)
        for i in range(size - 2, -1, -1):
            if stays:
                here[i].addcmul_(here[i + 1], stays[i + 1])
            else:
                here[i].add_(here[i + 1])
        d_stay = None
        if stay is not None:
            d_stay = torch.cat([d_weight[:, :1, size + 1], (d_weight[:, 1:] * weight[:, :-1]).sum(-1)], 1)
        if eta is None:
            return None, d_stay, None
        d_push = d_weight if written is None else d_weight.mul_(written.unsqueeze(-1))
        d_push[:, -1] += grads[3]
        etas, here = _columns(eta), d_push.unbind(1)
        for i in range(size - 2, -1, -1):
            here[i].addcmul_(here[i + 1], etas[i + 1])
        d_eta = torch.cat([d_push[:, :1, size], (d_push[:, 1:] * push[:, :-1]).sum(-1)], 1)
        return d_eta, d_stay, None


Recur = Callable[[Tensor | None, Tensor | None, Tensor | None], tuple[Tensor, ...]]  # as `recurrences`


def recurrences(eta: Tensor | None, stay: Tensor | None, written: Tensor | None) -> tuple[Tensor, ...]:
    """What `Recurrences.forward` says.

    >>> [x.tolist() for x in recurrences(None, torch.tensor([[0.5, 0.5]]), None)[1:3]]
    [[[0.0, 0.0]], [[0.5, 0.25]]]
    """
    out: tuple[Tensor, ...] = Recurrences.apply(eta, stay, written)  # type: ignore[no-untyped-call]
    return out


def coefficients(
    theta: Float[Tensor, "B H C"],
    eta: Float[Tensor, "B H C"] | None,
    alpha: Float[Tensor, "B H C"] | None,
    written: Bool[Tensor, "B C"] | None,
    recur: Recur = recurrences,
) -> Coefficients:
    """The closed form of a chunk's recurrences; a token that is not `written` is the identity.

    >>> eta, alpha = torch.tensor([[[0.5, 0.6, 0.7]]]), torch.tensor([[[0.1, 0.2, 0.3]]])
    >>> coefficients(eta, eta, alpha, None).mix[0, 0].mul(10).round().int().tolist()
    [[10, 0, 0], [14, 10, 0], [14, 14, 10]]
    """
    size = theta.shape[-1]
    if eta is None and alpha is None:
        lower = torch.ones(size, size, dtype=theta.dtype, device=theta.device).tril()
        return Coefficients(torch.ones_like(theta), None, lower.expand(*theta.shape, size), None, None)
    stay = None if alpha is None else 1 - alpha
    mask = None
    if written is not None:
        there = written[:, None].expand(theta.shape)
        eta = None if eta is None else torch.where(there, eta, 1.0)
        stay = None if stay is None else torch.where(there, stay, 1.0)
        mask = None if eta is None else there.flatten(0, 1).to(theta.dtype)
    eta_rows, stay_rows = (None if x is None else x.flatten(0, 1) for x in (eta, stay))
    found = recur(eta_rows, stay_rows, mask)
    mix, carry, keep, push = (part.unflatten(0, theta.shape[:2]) for part in found)
    if eta is None:
        return Coefficients(keep, None, mix, None, None)
    return Coefficients(keep, carry, mix, push[..., size], push[..., :size])
