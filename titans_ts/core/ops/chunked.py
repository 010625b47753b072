"""The dual form of the update rule for deep memories: matrix products over chunks, never a weight per token.

Every gradient of a layer is rank one, `input_t^T delta_t`, so that reading the weights of every token of a chunk takes
a masked matrix product (eq. 17 and 18, extended to deep networks, momentum and forgetting together).

B row, H head, C token of the chunk, K key, V value, G gate.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ..networks import gradient_factors, normalize, stiffness
from ..pieces import Piece, begins, join, pieces, real, take
from ..state import MemoryState, where_rows
from .coefficients import Coefficients, coefficients
from .contract import Rule, Tokens, cap, lasting
from .reference import at_rest


def chunked(state: MemoryState, tokens: Tokens, rule: Rule) -> tuple[Tensor, MemoryState]:
    """Write and read all tokens, chunk by chunk; equal to the reference for every network and chunk length.

    >>> from titans_ts.core.ops.contract import Rule, Tokens
    >>> one = torch.ones(1, 1, 1, 1)
    >>> two, clock = (one, one), torch.zeros(1, dtype=torch.long)
    >>> start = MemoryState(two, two, two, 0 * one[0], clock, one[0])
    >>> chunked(start, Tokens(one, one, 3 * one, 0.1 * one), Rule(chunk=4))[0].shape
    torch.Size([1, 1, 1, 1])
    """
    time = tokens.keys.shape[2]
    steps = pieces(state.offset, tokens.lengths, time, rule.chunk)
    reads = []
    for step in steps:
        read, state = one_chunk(state, tokens, rule, step)
        reads.append(read)
    arrived = time if tokens.lengths is None else tokens.lengths
    offset = (state.offset + arrived) % rule.chunk
    anchor, spent = at_rest(state.weights, state.anchor, state.spent, offset)
    out = join(reads, steps, time, 2) if reads else torch.zeros_like(tokens.values)
    return out, state._replace(anchor=anchor, spent=spent, offset=offset)


def one_chunk(state: MemoryState, tokens: Tokens, rule: Rule, step: Piece) -> tuple[Tensor, MemoryState]:
    """Reads and state after one step of `pieces`; the offset stays that of the whole call's start.

    >>> one = torch.ones(1, 1, 1, 1)
    >>> two, clock = (one, one), torch.zeros(1, dtype=torch.long)
    >>> start = MemoryState(two, two, two, 0 * one[0], clock, one[0])
    >>> one_chunk(start, Tokens(one, one, one, 0 * one), Rule(chunk=4), Piece(0, 1, None, 0))[1].spent.item()
    0.0
    """
    weights, momentum, anchor, spent = state.weights, state.momentum, state.anchor, state.spent
    queries, keys, values = (take(x, step, 2) for x in tokens[:3])
    theta = take(tokens.theta, step, 2)
    eta = None if tokens.eta is None else take(tokens.eta, step, 2)
    alpha = None if tokens.alpha is None else take(tokens.alpha, step, 2)
    written = written_in(step, tokens)
    starts = begins(step, state.offset)
    weights = where_rows(starts, cap(weights, rule.weight_cap), weights)
    anchor = where_rows(starts, weights, anchor)
    spent = torch.where(starts[:, None, None], torch.zeros_like(spent), spent)

    if written is not None:
        theta = theta * written[:, None, :, None]
    factors = gradient_factors(anchor, keys, values, residual=rule.residual)
    if rule.step_budget is not None:
        share = torch.ones_like(theta) if eta is None else lasting(eta)
        total = (spent.unsqueeze(2) + (theta / share).cumsum(2)).clamp(max=rule.step_budget)
        granted = total.diff(dim=2, prepend=spent.unsqueeze(2))
        spent = total[:, :, -1]
        squares = [inputs.square().sum(-1) * deltas.square().sum(-1) for inputs, deltas in factors]
        stiff = stiffness(torch.stack(squares).sum(0), factors[-1][1].square().sum(-1))
        theta = granted * share / stiff.unsqueeze(-1)

    gates = [
        coefficients(
            theta[..., g], None if eta is None else eta[..., g], None if alpha is None else alpha[..., g], written
        )
        for g in range(theta.shape[-1])
    ]
    x = queries
    moved, pushed = [], []
    for layer, (inputs, deltas) in enumerate(factors):
        g = min(layer, len(gates) - 1)
        if layer:
            x = functional.gelu(x)
        x = read_layer(gates[g], theta[..., g], x, weights[layer], momentum[layer], inputs, deltas)
        weight, push = write_layer(gates[g], theta[..., g], weights[layer], momentum[layer], inputs, deltas)
        moved.append(weight)
        pushed.append(push)
    read = queries + normalize(x)[0] if rule.residual else x
    return read, state._replace(weights=tuple(moved), momentum=tuple(pushed), anchor=anchor, spent=spent)


def written_in(step: Piece, tokens: Tokens) -> Tensor | None:
    """Which tokens of a step write, [B, C]: those that are real and observed. None: all of them.

    >>> one = torch.ones(1, 1, 2, 1)
    >>> written_in(Piece(0, 2, None, 0), Tokens(one, one, one, one, observed=torch.tensor([[True, False]]))).tolist()
    [[True, False]]
    """
    exists = real(step, tokens.keys.device)
    if tokens.observed is None:
        return exists
    observed = take(tokens.observed, step, 1)
    return observed if exists is None else exists & observed


def read_layer(
    gate: Coefficients, theta: Tensor, x: Tensor, weight: Tensor, momentum: Tensor, inputs: Tensor, deltas: Tensor
) -> Tensor:
    """`x_i W_i` for every token i of the chunk, W_i being the layer's weights after token i.

    >>> one = torch.ones(1, 1, 1, 1)
    >>> read_layer(coefficients(one[0], None, None, None), one[0], one, one, one, one, one).item()
    0.0
    """
    out = gate.keep.unsqueeze(-1) * (x @ weight)
    if gate.carry is not None:
        out = out + gate.carry.unsqueeze(-1) * (x @ momentum)
    return out - ((x @ inputs.mT) * gate.mix * theta.unsqueeze(-2)) @ deltas


def write_layer(
    gate: Coefficients, theta: Tensor, weight: Tensor, momentum: Tensor, inputs: Tensor, deltas: Tensor
) -> tuple[Tensor, Tensor]:
    """The layer's weights and momentum after the last token of the chunk.

    >>> one = torch.ones(1, 1, 1, 1)
    >>> write_layer(coefficients(one[0], None, None, None), one[0], 3 * one, one, one, one)[0].item()
    2.0
    """
    moved = (
        gate.keep[..., -1, None, None] * weight - (inputs * (gate.mix[..., -1, :] * theta).unsqueeze(-1)).mT @ deltas
    )
    if gate.carry is None or gate.fade_last is None or gate.trail_last is None:
        return moved, momentum
    moved = moved + gate.carry[..., -1, None, None] * momentum
    pushed = gate.fade_last[..., None, None] * momentum - (inputs * (gate.trail_last * theta).unsqueeze(-1)).mT @ deltas
    return moved, pushed
