"""The memory once more, in numpy and plain loops, written from the equations and from nothing else.

One head of one row: `weights` is a list of matrices, tokens come one at a time, and a gradient is a sum over indices.
"""

from math import erf, exp, pi, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def gelu(x: float) -> float:
    return x * (1 + erf(x / sqrt(2))) / 2


def gelu_derivative(x: float) -> float:
    return (1 + erf(x / sqrt(2))) / 2 + x * exp(-x * x / 2) / sqrt(2 * pi)


def layer_norm(z: Array) -> Array:
    return (z - z.mean()) / sqrt(((z - z.mean()) ** 2).mean() + 1e-6)


def layer_norm_jacobian(z: Array) -> Array:
    """d out_i / d z_j, entry by entry."""
    n, mean = len(z), z.mean()
    s = sqrt(((z - mean) ** 2).mean() + 1e-6)
    jacobian = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            jacobian[i, j] = ((i == j) - 1 / n) / s - (z[i] - mean) * (z[j] - mean) / (n * s**3)
    return jacobian


def run(weights: list[Array], x: Array) -> tuple[list[Array], Array]:
    """What every layer takes in, and what the last one puts out."""
    inputs = [x]
    for weight in weights[:-1]:
        inputs.append(np.array([gelu(z) for z in inputs[-1] @ weight]))
    return inputs, inputs[-1] @ weights[-1]


def read(weights: list[Array], query: Array, residual: bool) -> Array:
    """Equation 15."""
    out = run(weights, query)[1]
    return query + layer_norm(out) if residual else out


def surprise(weights: list[Array], key: Array, value: Array, residual: bool) -> tuple[list[Array], float]:
    """The gradient of `|M(key) - value|^2` (equation 12) by the chain rule, and |gradient|^2 / |d loss / d
    output|^2."""
    inputs, out = run(weights, key)
    slope = 2 * (key + layer_norm(out) - value) @ layer_norm_jacobian(out) if residual else 2 * (out - value)
    at_output = slope
    gradients = []
    for layer in reversed(range(len(weights))):
        gradients.insert(0, np.outer(inputs[layer], slope))
        if layer:
            before = inputs[layer - 1] @ weights[layer - 1]
            slope = (weights[layer] @ slope) * np.array([gelu_derivative(z) for z in before])
    square = sum(float((gradient**2).sum()) for gradient in gradients)
    return gradients, square / (float((at_output**2).sum()) + 1e-12)


def memorize(
    weights: list[Array], momentum: list[Array], queries: Array, keys: Array, values: Array,
    theta: Array, eta: Array, alpha: Array, chunk: int,
    residual: bool = False, budget: float | None = None, cap: float | None = None, average: bool = False,
) -> tuple[Array, list[Array], list[Array]]:  # fmt: skip
    """Equations 13 to 15. theta, eta, alpha [T, layers]. `average`: the loss is a mean over features, not a sum."""
    weights, momentum = [w.copy() for w in weights], [s.copy() for s in momentum]
    reads: list[Any] = []
    spent = np.zeros(len(weights))
    anchor: list[Array] = []
    for t in range(len(keys)):
        if t % chunk == 0:
            spent[:] = 0
            if cap is not None:
                norms = [np.sqrt((w**2).sum()) for w in weights]
                weights = [w * min(1, cap * sqrt(w.shape[1]) / n) for w, n in zip(weights, norms, strict=True)]
            anchor = [w.copy() for w in weights]
        gradients, stiffness = surprise(anchor, keys[t], values[t], residual)
        for i in range(len(weights)):
            step = theta[t, i] / (len(values[t]) if average else 1)
            if budget is not None:
                whole = min(step / (1 - eta[t, i]), budget - spent[i])
                spent[i] += whole
                step = whole * (1 - eta[t, i]) / max(1.0, stiffness)
            momentum[i] = eta[t, i] * momentum[i] - step * gradients[i]
            weights[i] = (1 - alpha[t, i]) * weights[i] + momentum[i]
        reads.append(read(weights, queries[t], residual))
    return np.array(reads), weights, momentum
