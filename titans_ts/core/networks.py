"""The memory network M: forward pass and the rank-one factors of its gradient.

B row, H head, T time, I and O input and output width of a layer.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-6  # under the square root of the layer norm, as in the numerical specification


def layer_shapes(head_dim: int, depth: int, expansion: int) -> list[tuple[int, int]]:
    """(input, output) widths of the layers of a memory network.

    >>> layer_shapes(8, 2, 4)
    [(8, 32), (32, 8)]
    """
    return list(pairwise([head_dim, *[expansion * head_dim] * (depth - 1), head_dim]))


def normalize(z: Tensor) -> tuple[Tensor, Tensor]:
    """Layer norm without learned parameters, and the standard deviation it divided by.

    >>> normalize(torch.tensor([[1.0, 3.0]]))[0].round().tolist()
    [[-1.0, 1.0]]
    """
    deviation = (z.var(-1, keepdim=True, unbiased=False) + EPSILON).sqrt()
    return (z - z.mean(-1, keepdim=True)) / deviation, deviation


def recall(
    weights: Sequence[Float[Tensor, "B H _ _"]], queries: Float[Tensor, "B H T K"], *, residual: bool = False
) -> Float[Tensor, "B H T V"]:
    """Read the memory at the queries: a forward pass that writes nothing (eq. 15).

    >>> recall([torch.eye(2).view(1, 1, 2, 2)], torch.ones(1, 1, 3, 2)).shape
    torch.Size([1, 1, 3, 2])
    """
    x = queries
    for layer, weight in enumerate(weights):
        x = (functional.gelu(x) if layer else x) @ weight
    return queries + normalize(x)[0] if residual else x


def gelu_slope(x: Tensor) -> Tensor:
    """The derivative of the exact (erf) GELU.

    >>> gelu_slope(torch.zeros(1)).tolist()
    [0.5]
    """
    return 0.5 * (1 + torch.erf(x * 0.7071067811865476)) + x * torch.exp(-0.5 * x * x) * 0.3989422804014327


def output_delta(
    sums: Float[Tensor, "*shape V"], keys: Float[Tensor, "*shape V"], values: Float[Tensor, "*shape V"]
) -> Float[Tensor, "*shape V"]:
    """The gradient of `|keys + LN(sums) - values|^2` with respect to the sums.

    >>> output_delta(torch.tensor([1.0, 3.0]), torch.zeros(2), torch.zeros(2)).round(decimals=3).tolist()
    [-0.0, 0.0]
    """
    unit, deviation = normalize(sums)
    delta = 2 * (keys + unit - values)
    return (delta - delta.mean(-1, keepdim=True) - unit * (delta * unit).mean(-1, keepdim=True)) / deviation


def gradient_factors(
    weights: Sequence[Float[Tensor, "B H _ _"]],
    keys: Float[Tensor, "B H T K"],
    values: Float[Tensor, "B H T V"],
    *,
    residual: bool = False,
) -> list[tuple[Float[Tensor, "B H T _"], Float[Tensor, "B H T _"]]]:
    """(input, delta) of every layer, with which the gradient of eq. 12's loss for token t is `input_t^T delta_t`.

    The loss is `|M(k) - v|^2` without the 1/2, hence the factor 2.

    >>> [(x.shape[-1], d.shape[-1]) for x, d in gradient_factors(
    ...     [torch.ones(1, 1, 2, 8), torch.ones(1, 1, 8, 2)], torch.ones(1, 1, 5, 2), torch.ones(1, 1, 5, 2))]
    [(2, 8), (8, 2)]
    """
    inputs: list[Tensor] = [keys]
    sums: list[Tensor] = []
    for layer, weight in enumerate(weights):
        if layer:
            inputs.append(functional.gelu(sums[-1]))
        sums.append(inputs[-1] @ weight)
    deltas = [output_delta(sums[-1], keys, values) if residual else 2 * (sums[-1] - values)]
    for layer in range(len(weights) - 1, 0, -1):
        deltas.append((deltas[-1] @ weights[layer].mT) * gelu_slope(sums[layer - 1]))
    return list(zip(inputs, reversed(deltas), strict=True))


def stiffness(gradient_square: Tensor, delta_square: Tensor) -> Tensor:
    """The factor by which a token's own step is to be divided, `|gradient|^2 / |delta|^2`, at least 1.

    gradient_square: of the loss with respect to all weights. delta_square: with respect to the network's output.

    The quotient is the curvature that the step meets: the output moves by `theta * quotient * |delta|` along delta. It
    is 1 for a linear memory with unit keys, and grows with the square of the network's Jacobian, so that a step which
    is safe for a fresh network is not safe for one that has grown.

    >>> stiffness(torch.tensor([1.0, 8.0]), torch.tensor([2.0, 2.0])).tolist()
    [1.0, 4.0]
    """
    return (gradient_square / (delta_square + 1e-12)).clamp(min=1.0)
