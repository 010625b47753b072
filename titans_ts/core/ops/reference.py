"""The definition of the update rule, one token at a time; every other op equals this one."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..networks import normalize, recall, stiffness
from ..state import MemoryState, where_rows
from .contract import Rule, Tokens, cap, lasting


def gradient(
    weights: tuple[Tensor, ...], key: Tensor, value: Tensor, residual: bool
) -> tuple[tuple[Tensor, ...], Float[Tensor, "B H"]]:
    """The gradient of eq. 12's loss with respect to the memory's weights, by autograd, and its stiffness.

    >>> surprise, stiff = gradient((torch.zeros(1, 1, 1, 1),), torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), False)
    >>> surprise[0].item(), stiff.item()
    (-2.0, 1.0)
    """
    outer = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = tuple(w if outer and w.requires_grad else w.detach().requires_grad_() for w in weights)
        output = recall(leaves, key)
        prediction = key + normalize(output)[0] if residual else output
        loss = (prediction - value).square().sum()
        *surprise, delta = torch.autograd.grad(loss, (*leaves, output), create_graph=outer)
    whole = torch.stack([part.square().sum((-2, -1)) for part in surprise]).sum(0)
    return tuple(surprise), stiffness(whole, delta.square().sum((-2, -1)))


def reference(state: MemoryState, tokens: Tokens, rule: Rule) -> tuple[Tensor, MemoryState]:
    """Write and read token by token: eq. 13 and 14 with the gradient at the chunk's anchor, then eq. 15.

    A state without an anchor, which is that of a linear memory, takes every gradient at the current weights.

    >>> from titans_ts.core.ops.contract import Rule, Tokens
    >>> one = torch.ones(1, 1, 1, 1)
    >>> start = MemoryState((0 * one,), (0 * one,), (), one[0], torch.zeros(1, dtype=torch.long), one[0])
    >>> reference(start, Tokens(one, one, 3 * one, 0.5 * one), Rule(chunk=1))[0].item()
    3.0
    """
    weights, momentum, anchor, spent, offset, _ = state
    rows, _, time, _ = tokens.keys.shape
    ones = torch.ones(rows, dtype=torch.bool, device=offset.device)
    reads = []
    for t in range(time):
        exists = ones if tokens.lengths is None else t < tokens.lengths
        written = exists if tokens.observed is None else exists & tokens.observed[:, t]
        starts = exists & (offset == 0)
        weights = where_rows(starts, cap(weights, rule.weight_cap), weights)
        if anchor:
            anchor = where_rows(starts, weights, anchor)
        else:
            momentum = where_rows(starts, cap(momentum, rule.weight_cap), momentum)
        spent = torch.where(starts[:, None, None], torch.zeros_like(spent), spent)

        theta = tokens.theta[:, :, t]
        surprise, stiff = gradient(
            anchor or weights, tokens.keys[:, :, t : t + 1], tokens.values[:, :, t : t + 1], rule.residual
        )
        if rule.step_budget is not None:
            share = torch.ones_like(theta) if tokens.eta is None else lasting(tokens.eta[:, :, t])
            granted = torch.minimum(theta / share, rule.step_budget - spent)
            spent = torch.where(written[:, None, None], spent + granted, spent)
            theta = granted * share / stiff.unsqueeze(-1)

        pushed, moved = [], []
        for layer in range(len(weights)):
            gate = min(layer, theta.shape[-1] - 1)
            step = theta[:, :, gate, None, None]
            alpha = 0.0 if tokens.alpha is None else tokens.alpha[:, :, t, gate, None, None]
            push = -step * surprise[layer]
            if tokens.eta is not None:
                push = tokens.eta[:, :, t, gate, None, None] * momentum[layer] + push
            moved.append((1 - alpha) * weights[layer] + push)
            pushed.append(push if tokens.eta is not None else momentum[layer])
        # A missing or padded step is the identity: with theta = 0 alone the momentum would still push the weights.
        momentum = where_rows(written, tuple(pushed), momentum)
        weights = where_rows(written, tuple(moved), weights)

        offset = torch.where(exists, (offset + 1) % rule.chunk, offset)
        read = recall(weights, tokens.queries[:, :, t : t + 1], residual=rule.residual)
        reads.append(torch.where(exists[:, None, None, None], read, torch.zeros_like(read)))

    anchor, spent = at_rest(weights, anchor, spent, offset)
    out = MemoryState(weights, momentum, anchor, spent, offset, state.recent)
    return torch.cat(reads, 2), out


def at_rest(
    weights: tuple[Tensor, ...], anchor: tuple[Tensor, ...], spent: Tensor, offset: Tensor
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Anchor and spent budget as they are stored: between two chunks they are the weights and nothing.

    >>> w = (torch.ones(1, 1, 1, 1),)
    >>> at_rest(w, (0 * w[0],), torch.ones(1, 1, 1), torch.zeros(1))[1].item()
    0.0
    """
    between = offset == 0
    anchor = where_rows(between, weights, anchor) if anchor else ()
    return anchor, torch.where(between[:, None, None], torch.zeros_like(spent), spent)
