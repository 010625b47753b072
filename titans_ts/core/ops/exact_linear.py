"""The exact form for linear memories: every gradient at the current weights, a tile of tokens at once.

For a linear memory the errors of a tile solve one unit-triangular system, momentum and forgetting included, so that the
result does not depend on the tile and is stable where a frozen gradient diverges. The tile is the chunk.

B row, H head, C token of the tile, K key, V value.
"""

import torch
from torch import Tensor

from ..pieces import Piece, begins, join, pieces, real, take
from ..state import MemoryState, where_rows
from .coefficients import Coefficients, coefficients
from .contract import Rule, Tokens, cap


def exact_linear(state: MemoryState, tokens: Tokens, rule: Rule) -> tuple[Tensor, MemoryState]:
    """Write and read all tokens; equal to the reference, for every chunk.

    >>> one = torch.ones(1, 1, 1, 1)
    >>> start = MemoryState((0 * one,), (0 * one,), (), one[0], torch.zeros(1, dtype=torch.long), one[0])
    >>> exact_linear(start, Tokens(one, one, 3 * one, 0.5 * one), Rule(chunk=1))[0].item()
    3.0
    """
    time = tokens.keys.shape[2]
    steps = pieces(state.offset, tokens.lengths, time, rule.chunk)
    weights, momentum = state.weights, state.momentum
    reads = []
    for step in steps:
        starts = begins(step, state.offset)
        weights = where_rows(starts, cap(weights, rule.weight_cap), weights)
        momentum = where_rows(starts, cap(momentum, rule.weight_cap), momentum)
        read, weights, momentum = one_tile(weights, momentum, tokens, step)
        reads.append(read)
    out = join(reads, steps, time, 2) if reads else torch.zeros_like(tokens.values)
    arrived = time if tokens.lengths is None else tokens.lengths
    return out, state._replace(weights=weights, momentum=momentum, offset=(state.offset + arrived) % rule.chunk)


def one_tile(
    weights: tuple[Tensor, ...], momentum: tuple[Tensor, ...], tokens: Tokens, step: Piece
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Reads of one tile, and the weights and momentum behind it.

    The true error of token j is `e_j = k_j M_{j-1} - v_j`, and M_{j-1} is linear in the errors before j. With mix, keep
    and carry shifted by one token this reads `(I + A) E = keep K M_0 + carry K S_0 - V`, A strictly lower triangular.

    >>> one = torch.ones(1, 1, 1, 1)
    >>> one_tile((0 * one,), (0 * one,), Tokens(one, one, one, one), Piece(0, 1, None, 0))[1][0].item()
    2.0
    """
    (weight,), (push,) = weights, momentum
    queries, keys, values = (take(x, step, 2) for x in tokens[:3])
    theta = take(tokens.theta, step, 2)[..., 0]
    eta = None if tokens.eta is None else take(tokens.eta, step, 2)[..., 0]
    alpha = None if tokens.alpha is None else take(tokens.alpha, step, 2)[..., 0]
    written = written_of(step, tokens)
    if written is not None:
        theta = theta * written[:, None]
    gate = coefficients(theta, eta, alpha, written)

    def before(x: Tensor, first: float) -> Tensor:
        return torch.cat([torch.full_like(x[:, :, :1], first), x[:, :, :-1]], 2)

    system = (keys @ keys.mT) * before(gate.mix, 0.0) * (2 * theta).unsqueeze(-2)
    right = before(gate.keep, 1.0).unsqueeze(-1) * (keys @ weight) - values
    if gate.carry is not None:
        right = right + before(gate.carry, 0.0).unsqueeze(-1) * (keys @ push)
    # The solver reads the strict lower triangle only and takes the diagonal as ones.
    deltas = 2 * torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    read = read_layer(gate, theta, queries, weight, push, keys, deltas)
    weight, push = write_layer(gate, theta, weight, push, keys, deltas)
    return read, (weight,), (push,)


def written_of(step: Piece, tokens: Tokens) -> Tensor | None:
    """Which tokens of a step write, [B, C]: those that are real and observed. None: all of them.

    >>> one = torch.ones(1, 1, 2, 1)
    >>> written_of(Piece(0, 2, None, 0), Tokens(one, one, one, one, observed=torch.tensor([[True, False]]))).tolist()
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
