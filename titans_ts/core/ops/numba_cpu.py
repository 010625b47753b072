"""The streaming form of the update rule, compiled by numba for the CPU: token by token, for inference only.

The layers of one row and head lie one after the other in one flat array, so that one kernel serves every depth, and a
token passes over each weight as seldom as can be: momentum, forgetting and the read of the query are one sweep.

Compiled code is kept beside this file, or in numba's cache folder of the user where that cannot be written. numba
looks at the file of a kernel only: `numba_dual.py` and `models/fused.py` build on the kernels here and are to be saved
again with them.

B row, H head, P row and head, T time, K key or value, G gate, N weight of all layers, W width of all layers.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar, no_type_check

import numpy as np
import torch
from llvmlite import ir
from numba import get_num_threads, prange, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numpy.typing import NDArray
from torch import Tensor

from ..config import require
from ..state import MemoryState, leaves
from .contract import Rule, Tokens
from .jit import kept
from .reference import at_rest

F = TypeVar("F", bound=Callable[..., Any])

# Sums may be taken in any order and products fused, which is what makes them fast; NaN and infinity stay what they are.
FASTMATH = {"reassoc", "contract", "nsz"}
PARALLEL = 64  # rows and heads from which on threads pay for themselves


def compiled(function: F) -> F:
    """The function, compiled when it is first called and kept on disk.

    >>> compiled(threads).__name__
    'threads'
    """
    return kept(function, fastmath=FASTMATH, error_model="numpy")


# Kernels. What they write into comes last; numbers of their own have the type of the arrays, float32 or float64.


def power_of_two(x: Any) -> Any:
    """2 ** x for a whole number x from -126 on, of a float type.

    >>> float(power_of_two(np.float32(-3)))
    0.125
    """
    return type(x)(2) ** x


@overload(power_of_two)
@no_type_check
def _power_by_bits(x):
    if x == types.float32:
        return lambda x: np.int32((np.int32(x) + np.int32(127)) << np.int32(23)).view(np.float32)
    return lambda x: np.int64((np.int64(x) + np.int64(1023)) << np.int64(52)).view(np.float64)


def fetch(x: Any, place: int) -> None:
    """Have the cache line of x [N] at this place brought nearer, while something else is computed.

    >>> fetch(np.zeros(3), 1)
    """


@intrinsic
@no_type_check
def _fetch_line(context, x, place):
    @no_type_check
    def emit(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        address = builder.bitcast(builder.gep(array.data, [arguments[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [address, number(0), number(2), number(1)])  # to read, as far as the second cache, data
        return context.get_dummy_value()

    return types.none(x, types.intp), emit


@overload(fetch)
@no_type_check
def _fetch(x, place):
    return lambda x, place: _fetch_line(x, place)


# `math.exp` and `math.erf` are a call for each number. These are sums and products alone, of many numbers at once.


@compiled
@no_type_check
def exponential(kind, x):
    """exp(x) of a number x <= 0 of this type, to its last digits; below -87 it stays what it is there."""
    x = kind(-87) if x < kind(-87) else x
    whole = np.floor(x * kind(1.4426950408889634) + kind(0.5))
    r = (x - whole * kind(0.693359375)) + whole * kind(2.1219444005469057e-4)
    p = kind(1 / 39916800) * r + kind(1 / 3628800)
    p = (p * r + kind(1 / 362880)) * r + kind(1 / 40320)
    p = (p * r + kind(1 / 5040)) * r + kind(1 / 720)
    p = (p * r + kind(1 / 120)) * r + kind(1 / 24)
    p = (p * r + kind(1 / 6)) * r + kind(0.5)
    return ((p * r + kind(1)) * r + kind(1)) * power_of_two(whole)


@compiled
@no_type_check
def normal_share(kind, x, bell):
    """The standard normal distribution's share below x, where bell = exp(-x * x / 2).

    The tail is bell * t / 2 times a polynomial in 2 t - 1 with t = 2 / (2 + |x| / sqrt(2)): a Chebyshev fit to what
    `scipy.special.erfcx` says, off by 3e-14 of the whole at most."""
    t = kind(1) / (kind(1) + kind(0.3535533905932738) * abs(x))
    s = t + t - kind(1)
    p = kind(-1.125220597987321e-07) * s + kind(2.34058029073346e-07)
    p = (p * s + kind(5.738951097909118e-07)) * s + kind(-2.004063900892178e-06)
    p = (p * s + kind(-4.642573543039127e-08)) * s + kind(8.125501616267969e-06)
    p = (p * s + kind(-1.121593678075531e-05)) * s + kind(-1.707047305753024e-05)
    p = (p * s + kind(7.23964619685537e-05)) * s + kind(-1.719826287425555e-05)
    p = (p * s + kind(-0.0003315796307692053)) * s + kind(0.0004186525985605413)
    p = (p * s + kind(0.00154531258469296)) * s + kind(-0.00323959325165116)
    p = (p * s + kind(-0.01075533145386636)) * s + kind(0.01822111580036686)
    p = (p * s + kind(0.1397360462933735)) * s + kind(0.343580342206045)
    tail = kind(0.5) * bell * t * (p * s + kind(0.5107913526209356))
    return tail if x < kind(0) else kind(1) - tail


@compiled
@no_type_check
def sigmoid(x):
    """x [W] through the logistic function, in place and without overflow."""
    kind = x.dtype.type
    for j in range(len(x)):
        small = exponential(kind, -abs(x[j]))
        x[j] = (small if x[j] < kind(0) else kind(1)) / (kind(1) + small)


@compiled
@no_type_check
def gelu(x):
    """x [W] through the exact GELU, in place."""
    kind = x.dtype.type
    for j in range(len(x)):
        x[j] *= normal_share(kind, x[j], exponential(kind, kind(-0.5) * x[j] * x[j]))


@compiled
@no_type_check
def gelu_and_slope(x, out):
    """out [W] = the exact GELU of x [W], and x becomes its derivative there."""
    kind = x.dtype.type
    for j in range(len(x)):
        bell = exponential(kind, kind(-0.5) * x[j] * x[j])
        share = normal_share(kind, x[j], bell)
        out[j] = x[j] * share
        x[j] = share + x[j] * bell * kind(0.3989422804014327)


@compiled
@no_type_check
def square_sum(x):
    """The sum of the squares of x [W]."""
    total = x.dtype.type(0)
    for j in range(len(x)):
        total += x[j] * x[j]
    return total


@compiled
@no_type_check
def through(weights, x, out):
    """out [O] = x [I] @ weights [I O], flat: the weights of a memory."""
    inputs, outputs = len(x), len(out)
    out[:] = x.dtype.type(0)
    whole = inputs - inputs % 4
    for i in range(0, whole, 4):
        a, b, c, d = x[i], x[i + 1], x[i + 2], x[i + 3]
        row = weights[i * outputs : (i + 1) * outputs]
        row_b = weights[(i + 1) * outputs : (i + 2) * outputs]
        row_c = weights[(i + 2) * outputs : (i + 3) * outputs]
        row_d = weights[(i + 3) * outputs : (i + 4) * outputs]
        for j in range(outputs):
            out[j] += a * row[j] + b * row_b[j] + c * row_c[j] + d * row_d[j]
    for i in range(whole, inputs):
        a = x[i]
        row = weights[i * outputs : (i + 1) * outputs]
        for j in range(outputs):
            out[j] += a * row[j]


@compiled
@no_type_check
def through_rows(weights, x, out):
    """out [O] = weights [O I], flat, @ x [I]: the weights of a torch layer."""
    inputs = len(x)
    for j in range(len(out)):
        row = weights[j * inputs : (j + 1) * inputs]
        total = x.dtype.type(0)
        for i in range(inputs):
            total += x[i] * row[i]
        out[j] = total


@compiled
@no_type_check
def shrink(weights, widths, cap):
    """weights [N], each layer scaled back to a norm of at most `cap * sqrt(fan_out)`."""
    kind = weights.dtype.type
    begin = 0
    for layer in range(len(widths) - 1):
        end = begin + widths[layer] * widths[layer + 1]
        norm = math.sqrt(square_sum(weights[begin:end]) + kind(1e-24))
        factor = kind(cap) * kind(math.sqrt(kind(widths[layer + 1]))) / norm
        if factor < 1:
            for i in range(begin, end):
                weights[i] *= factor
        begin = end


@compiled
@no_type_check
def standardize(x):
    """x [W] through the layer norm without learned scale, in place; returns the deviation it was divided by."""
    kind = x.dtype.type
    size = kind(len(x))
    mean, variance = kind(0), kind(0)
    for j in range(len(x)):
        mean += x[j]
    mean /= size
    for j in range(len(x)):
        x[j] -= mean
        variance += x[j] * x[j]
    deviation = kind(math.sqrt(variance / size + kind(1e-6)))
    for j in range(len(x)):
        x[j] /= deviation
    return deviation


@compiled
@no_type_check
def gradient(weights, widths, residual, key, value, x, z, d):
    """Inputs x and deltas d of every layer for one token; returns the token's stiffness.

    A layer's input lies in x at the sum of the widths before it, its delta in d at that of the layer after. z holds, at
    the places of x, the slopes of the hidden layers and what the network says.
    """
    kind = weights.dtype.type
    two, size = kind(2), kind(len(key))
    layers = len(widths) - 1
    here, begin = 0, 0
    x[: len(key)] = key
    for layer in range(layers):
        there = here + widths[layer]
        over, end = there + widths[layer + 1], begin + widths[layer] * widths[layer + 1]
        through(weights[begin:end], x[here:there], z[there:over])
        if layer + 1 < layers:
            gelu_and_slope(z[there:over], x[there:over])
        here, begin = there, end

    said, delta = z[here : here + len(value)], d[here : here + len(value)]
    if residual:
        for j in range(len(value)):
            delta[j] = said[j]
        deviation = standardize(delta)
        mean, along = kind(0), kind(0)
        for j in range(len(value)):
            unit = delta[j]
            error = two * (key[j] + unit - value[j])
            mean += error
            along += error * unit
        mean, along = mean / size, along / size
        for j in range(len(value)):
            unit = delta[j]
            delta[j] = (two * (key[j] + unit - value[j]) - mean - unit * along) / deviation
    else:
        for j in range(len(value)):
            delta[j] = two * (said[j] - value[j])
    last = square_sum(delta)
    whole = kind(0)
    for back in range(layers):
        layer = layers - 1 - back
        there, over = here, here + widths[layer + 1]
        here -= widths[layer]
        begin -= widths[layer] * widths[layer + 1]
        whole += square_sum(x[here:there]) * square_sum(d[there:over])
        if layer:
            end = begin + widths[layer] * widths[layer + 1]
            through_rows(weights[begin:end], d[there:over], d[here:there])
            for j in range(here, there):
                d[j] *= z[j]
    return max(kind(1), whole / (last + kind(1e-12)))


@compiled
@no_type_check
def rewrite(weights, momentum, x, d, query, step, eta, alpha, pushes, ahead, out):
    """One layer's weights and momentum [I O], flat, after the token, and out [O] = query [I] @ the new weights.

    ahead: what is fetched meanwhile."""
    kind = weights.dtype.type
    outputs = len(d)
    keep = kind(1) - alpha
    line, share = 64 // weights.itemsize, len(ahead) // len(x)
    out[:] = kind(0)
    for i in range(len(x)):
        pull, ask = -step * x[i], query[i]
        for j in range(i * share, (i + 1) * share, line):
            fetch(ahead, j)
        w = weights[i * outputs : (i + 1) * outputs]
        if pushes:
            s = momentum[i * outputs : (i + 1) * outputs]
            for j in range(outputs):
                push = eta * s[j] + pull * d[j]
                s[j] = push
                new = keep * w[j] + push
                w[j] = new
                out[j] += ask * new
        else:
            for j in range(outputs):
                new = keep * w[j] + pull * d[j]
                w[j] = new
                out[j] += ask * new


@compiled
@no_type_check
def token(flags, limits, widths, query, key, value, theta, eta, alpha, starts, written,
          weights, momentum, anchor, spent, ahead, work, read):  # fmt: skip
    """One token of one row and head: its write, unless it is not `written`, and its read [K].

    flags: residual, anchored, momentum, forgetting. limits: step budget and weight cap, negative where there is none.
    widths: of the memory's layers. theta, eta, alpha, spent: [G]. weights, momentum, anchor: [N]; without an anchor
    the weights take its place. starts: the token begins a chunk. ahead: state of whoever comes next, fetched
    meanwhile, a multiple of N or nothing. work: [4 W + G].
    """
    kind = weights.dtype.type
    residual, anchored, pushes, forgets = flags[0], flags[1], flags[2], flags[3]
    layers, gates, size, times = len(widths) - 1, len(theta), widths.sum(), len(ahead) // len(weights)
    x, z, d, y = work[:size], work[size : 2 * size], work[2 * size : 3 * size], work[3 * size : 4 * size]
    steps = work[4 * size : 4 * size + gates]
    if starts:
        if limits[1] >= 0:
            shrink(weights, widths, limits[1])
            if not anchored:
                shrink(momentum, widths, limits[1])
        if anchored:
            anchor[:] = weights
        spent[:] = kind(0)

    if written:
        stiff = gradient(anchor, widths, residual, key, value, x, z, d)
        for g in range(gates):
            steps[g] = theta[g]
            if limits[0] >= 0:
                share = max(kind(1) - eta[g], kind(1e-12)) if pushes else kind(1)
                granted = min(theta[g] / share, kind(limits[0]) - spent[g])
                spent[g] += granted
                steps[g] = granted * share / stiff

    here, begin = 0, 0
    y[: len(query)] = query
    for layer in range(layers):
        there = here + widths[layer]
        over, end = there + widths[layer + 1], begin + widths[layer] * widths[layer + 1]
        if layer:
            gelu(y[here:there])
        if written:
            g = min(layer, gates - 1)
            rewrite(
                weights[begin:end], momentum[begin:end], x[here:there], d[there:over], y[here:there],
                steps[g], eta[g], alpha[g] if forgets else kind(0), pushes, ahead[times * begin : times * end],
                y[there:over],
            )  # fmt: skip
        else:
            through(weights[begin:end], y[here:there], y[there:over])
        here, begin = there, end
    if residual:
        standardize(y[here : here + len(query)])
        for j in range(len(query)):
            read[j] = query[j] + y[here + j]
    else:
        read[:] = y[here : here + len(query)]


@compiled
@no_type_check
def some_rows(first, last, flags, limits, widths, chunk, heads, lengths, observed, clock, queries, keys, values,
              theta, eta, alpha, weights, momentum, anchor, spent, work, reads):  # fmt: skip
    """All tokens of the rows and heads from `first` to before `last`; the arguments are those of `numba_cpu`."""
    for p in range(first, last):
        b = p // heads
        offset = clock[b]
        base = anchor[p] if flags[1] else weights[p]
        for t in range(lengths[b]):
            token(
                flags, limits, widths, queries[p, t], keys[p, t], values[p, t], theta[p, t], eta[p, t], alpha[p, t],
                offset == 0, observed[b, t], weights[p], momentum[p], base, spent[p],
                weights[p, :0], work, reads[p, t],
            )  # fmt: skip
            offset = (offset + 1) % chunk


@no_type_check
def _all_rows(parts, flags, limits, widths, chunk, heads, lengths, observed, clock, queries, keys, values,
              theta, eta, alpha, weights, momentum, anchor, spent, work, reads):  # fmt: skip
    total = len(weights)
    for part in prange(parts):
        some_rows(
            part * total // parts, (part + 1) * total // parts, flags, limits, widths, chunk, heads, lengths, observed,
            clock, queries, keys, values, theta, eta, alpha, weights, momentum, anchor, spent, work[part], reads,
        )  # fmt: skip


all_rows = kept(_all_rows, parallel=True)


def threads(items: int) -> int:
    """How many threads share this many rows and heads.

    >>> threads(1)
    1
    """
    return 1 if items < PARALLEL else min(get_num_threads(), items)


def numba_cpu(state: MemoryState, tokens: Tokens, rule: Rule) -> tuple[Tensor, MemoryState]:
    """Write and read all tokens; equal to the reference for every network, without gradients.

    >>> one = torch.ones(1, 1, 1, 1)
    >>> start = MemoryState((0 * one,), (0 * one,), (), one[0], torch.zeros(1, dtype=torch.long), one[0])
    >>> numba_cpu(start, Tokens(one, one, 3 * one, 0.5 * one), Rule(chunk=1))[0].item()
    3.0
    """
    refuse(state, tokens)
    rows, heads, time, _ = tokens.keys.shape
    weights, momentum = flat(state.weights), flat(state.momentum)
    anchor = flat(state.anchor) if state.anchor else weights[:0]
    shapes = [weight.shape[2:] for weight in state.weights]
    widths = np.array([shapes[0][0], *(shape[1] for shape in shapes)])
    flags = np.array([rule.residual, bool(state.anchor), tokens.eta is not None, tokens.alpha is not None])
    limits = np.array([-1.0 if limit is None else limit for limit in (rule.step_budget, rule.weight_cap)])
    queries, keys, values, theta = (by_head(part) for part in tokens[:4])
    eta, alpha = (theta if part is None else by_head(part) for part in (tokens.eta, tokens.alpha))
    spent = state.spent.flatten(0, 1).clone().numpy()
    lengths = np.full(rows, time) if tokens.lengths is None else tokens.lengths.clamp(0, time).numpy()
    observed = np.ones((rows, time), dtype=bool) if tokens.observed is None else tokens.observed.contiguous().numpy()
    clock = state.offset.contiguous().numpy()
    reads = np.zeros_like(values)

    parts = threads(rows * heads)
    work = np.empty((parts, 4 * int(widths.sum()) + theta.shape[-1]), dtype=values.dtype)
    arguments = (flags, limits, widths, rule.chunk, heads, lengths, observed, clock, queries, keys, values,
                 theta, eta, alpha, weights, momentum, anchor, spent)  # fmt: skip
    if parts == 1:
        some_rows(0, rows * heads, *arguments, work[0], reads)
    else:
        all_rows(parts, *arguments, work, reads)

    layers = [layered(part, heads, shapes) for part in (weights, momentum, anchor)]
    offset = (state.offset + torch.from_numpy(lengths)) % rule.chunk
    left = torch.from_numpy(spent).unflatten(0, (rows, heads))
    last, left = at_rest(layers[0], layers[2] if state.anchor else (), left, offset)
    new = MemoryState(layers[0], layers[1], last, left, offset, state.recent)
    return torch.from_numpy(reads).unflatten(0, (rows, heads)), new


def refuse(state: MemoryState, tokens: Tokens) -> None:
    """Raise `ValueError` for what this op cannot do: gradients, other devices, other precisions.

    >>> one = torch.ones(1, 1, 1, 1)
    >>> refuse(MemoryState((one,), (one,), (), one[0], one[0, 0, 0], one[0]), Tokens(one, one, one, one))
    """
    parts = [*leaves((state.weights, state.momentum, state.anchor)), *(part for part in tokens if part is not None)]
    require(
        not (torch.is_grad_enabled() and any(part.requires_grad for part in parts)),
        "op='numba' computes no gradients: call it under torch.no_grad(), or train with op='auto'.",
    )
    require(
        all(part.device.type == "cpu" for part in parts),
        f"op='numba' runs on the CPU and the state is on {state.spent.device}: use op='auto' there.",
    )
    kinds = {part.dtype for part in parts if part.is_floating_point()}
    require(
        len(kinds) == 1 and kinds <= {torch.float32, torch.float64},
        f"op='numba' wants float32 or float64 throughout, and got {', '.join(sorted(map(str, kinds)))}.",
    )


def flat(layers: tuple[Tensor, ...]) -> NDArray[Any]:
    """A copy of the layers [B, H, I, O] as one array [P, N].

    >>> flat((torch.ones(2, 1, 3, 4), torch.ones(2, 1, 4, 3))).shape
    (2, 24)
    """
    whole: NDArray[Any] = torch.cat([layer.detach().flatten(2) for layer in layers], -1).flatten(0, 1).numpy()
    return whole


def by_head(part: Tensor) -> NDArray[Any]:
    """[B, H, T, K] as [P, T, K] in one piece.

    >>> by_head(torch.ones(2, 3, 4, 5)).shape
    (6, 4, 5)
    """
    whole: NDArray[Any] = part.detach().flatten(0, 1).contiguous().numpy()
    return whole


def layered(whole: NDArray[Any], heads: int, shapes: list[torch.Size]) -> tuple[Tensor, ...]:
    """The inverse of `flat`.

    >>> [part.shape for part in layered(np.ones((2, 24)), 1, [torch.Size((3, 4)), torch.Size((4, 3))])]
    [torch.Size([2, 1, 3, 4]), torch.Size([2, 1, 4, 3])]
    """
    parts = torch.from_numpy(whole).unflatten(0, (-1, heads)) if len(whole) else torch.zeros(0, heads, whole.shape[1])
    split = parts.split([shape.numel() for shape in shapes], -1)
    return tuple(part.unflatten(-1, shape).contiguous() for part, shape in zip(split, shapes, strict=True))
