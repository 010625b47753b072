"""The dual form of memories with two small layers, compiled by numba for the CPU, with its gradient.

One row and head at a time goes through all its chunks while everything of it stays in the cache. Where heads are narrow
the products are small: `tile` keeps a block of sums in registers, and what lies above the diagonal is skipped.

Compiled code is kept as that of `numba_cpu`, whose functions these kernels build on.

N chunk, R row and head together, C token of the chunk, K key, V value, I hidden unit, G gate.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from typing import Any, NamedTuple, no_type_check

import numpy as np
import torch
from jaxtyping import Bool, Float
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from .dual import Form
from .jit import kept
from .numba_cpu import FASTMATH, compiled, exponential, gelu, gelu_and_slope

TALL = 8 if binding.get_host_cpu_features().get("avx512f") else 4  # rows of a tile whose sums fill the registers


class Part(IntEnum):
    """Which part of a matrix counts, see `product`; a class, since numba compiles once for each plain constant."""

    WHOLE = 0
    BELOW = 1
    ABOVE = 2
    UNDER = 3


def tile_of(rows: int, lanes: int) -> Callable[..., None]:
    """A function that computes a tile of this size of a product, its sums in registers.

    >>> x, out = np.arange(4.0), np.zeros(2)
    >>> tile_of(2, 1)(x, 0, 2, 1, x, 0, 1, out, 0, 1, 0, 2, 0.0, 1.0)
    >>> out.tolist()
    [1.0, 3.0]
    """

    def tile(a, at_a, a_row, a_step, b, at_b, b_step, out, at_out, out_row, first, last, rest, factor):  # type: ignore[no-untyped-def]
        # What the arrays hold one after the other, whatever their shape.
        a, b, out = a.reshape(-1), b.reshape(-1), out.reshape(-1)
        for r in range(rows):
            begin = at_out + r * out_row
            for j in range(lanes):
                total = sum(a[at_a + r * a_row + k * a_step] * b[at_b + k * b_step + j] for k in range(first, last))
                out[begin + j] = factor * total + (rest * out[begin + j] if rest else 0)

    @intrinsic
    def emitted(context, a, at_a, a_row, a_step, b, at_b, b_step, out, at_out, out_row, first, last, rest, factor):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            number = context.get_data_type(signature.args[0].dtype)
            vector, whole, size = ir.VectorType(number, lanes), ir.IntType(64), signature.args[0].dtype.bitwidth // 8
            at_a, a_row, a_step, at_b, b_step, at_out, out_row, first, last, rest, factor = (
                arguments[i] for i in (1, 2, 3, 5, 6, 8, 9, 10, 11, 12, 13)
            )
            left, right, into = (
                context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (0, 4, 7)
            )

            def along(place, begin, count, step):  # type: ignore[no-untyped-def]
                return builder.gep(place, [builder.add(begin, builder.mul(count, step))])

            def lanes_at(place):  # type: ignore[no-untyped-def]
                return builder.bitcast(place, vector.as_pointer())

            def everywhere(x):  # type: ignore[no-untyped-def]
                one = builder.insert_element(ir.Constant(vector, ir.Undefined), x, ir.IntType(32)(0))
                return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), lanes), None))

            def plus_product(z, x, y):  # type: ignore[no-untyped-def]
                return builder.fadd(builder.fmul(x, y, flags=["contract"]), z, flags=["contract"])

            nothing = ir.Constant(vector, None)
            sums = [cgutils.alloca_once(builder, vector) for _ in range(rows)]
            for each in sums:
                builder.store(nothing, each)
            starts = [along(left, at_a, whole(r), a_row) for r in range(rows)]
            with cgutils.for_range_slice(builder, first, last, whole(1), whole) as (k, _):
                there = builder.load(lanes_at(along(right, at_b, k, b_step)), align=size)
                for start, each in zip(starts, sums, strict=True):
                    here = builder.load(along(start, whole(0), k, a_step), align=size)
                    builder.store(plus_product(builder.load(each), everywhere(here), there), each)
            for r, each in enumerate(sums):
                place = lanes_at(along(into, at_out, whole(r), out_row))
                old = builder.fmul(everywhere(rest), builder.load(place, align=size))
                old = builder.select(builder.fcmp_ordered("==", rest, ir.Constant(number, 0)), nothing, old)
                builder.store(plus_product(old, everywhere(factor), builder.load(each)), place, align=size)
            return context.get_dummy_value()

        n = types.intp
        return types.none(a, n, n, n, b, n, n, out, n, n, n, n, a.dtype, a.dtype), emit

    @overload(tile)
    def _(a, at_a, a_row, a_step, b, at_b, b_step, out, at_out, out_row, first, last, rest, factor):  # type: ignore[no-untyped-def]
        def run(a, at_a, a_row, a_step, b, at_b, b_step, out, at_out, out_row, first, last, rest, factor):  # type: ignore[no-untyped-def]
            emitted(a, at_a, a_row, a_step, b, at_b, b_step, out, at_out, out_row, first, last, rest, factor)

        return run

    return tile


def stay_apart() -> None:
    """Have the function that calls this compiled once, and not again wherever it is called.

    >>> stay_apart()
    """


@intrinsic
@no_type_check
def _not_inlined(context):
    @no_type_check
    def emit(context, builder, signature, arguments):
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.none(), emit


@overload(stay_apart)
@no_type_check
def _stay_apart():
    return lambda: _not_inlined()


tall_16, tall_8, tall_1 = (tile_of(TALL, lanes) for lanes in (16, 8, 1))
flat_16, flat_8, flat_1 = (tile_of(1, lanes) for lanes in (16, 8, 1))


@compiled
@no_type_check
def span(part, row, rows, depth):
    """Which of the `depth` terms of a sum count, for a tile of so many rows."""
    return row if part == Part.ABOVE else 0, min(depth, row + rows) if part == Part.BELOW else depth


@compiled
@no_type_check
def product(a, b, out, rest, factor, part):
    """out [M, N] = rest * out + factor * a [M, L] @ b [L, N]; with a rest of 0 whatever is there is overwritten.

    part: BELOW, a is lower triangular; ABOVE, upper; UNDER, of out only what is on and below the diagonal is wanted.
    A triangular a has zeros beside its diagonal, as far as the end of a tile.
    """
    stay_apart()
    rows, columns, depth = out.shape[0], out.shape[1], b.shape[0]
    row, step = a.strides[0] // a.itemsize, a.strides[1] // a.itemsize
    tiled = rows - rows % TALL
    begin = 0
    while begin < columns:
        left = columns - begin
        lanes = 16 if left >= 16 else (8 if left >= 8 else 1)
        skipped = begin - begin % TALL if part == Part.UNDER else 0
        for i in range(min(skipped, tiled), tiled, TALL):
            first, last = span(part, i, TALL, depth)
            at = i * columns + begin
            if lanes == 16:
                tall_16(a, i * row, row, step, b, begin, columns, out, at, columns, first, last, rest, factor)
            elif lanes == 8:
                tall_8(a, i * row, row, step, b, begin, columns, out, at, columns, first, last, rest, factor)
            else:
                tall_1(a, i * row, row, step, b, begin, columns, out, at, columns, first, last, rest, factor)
        for i in range(max(begin, tiled) if part == Part.UNDER else tiled, rows):
            first, last = span(part, i, 1, depth)
            at = i * columns + begin
            if lanes == 16:
                flat_16(a, i * row, row, step, b, begin, columns, out, at, columns, first, last, rest, factor)
            elif lanes == 8:
                flat_8(a, i * row, row, step, b, begin, columns, out, at, columns, first, last, rest, factor)
            else:
                flat_1(a, i * row, row, step, b, begin, columns, out, at, columns, first, last, rest, factor)
        begin += lanes


@compiled
@no_type_check
def seen(i, size):
    """How many columns of row i count, of a lower triangular [C, C]: up to the diagonal, or to the end of its tile."""
    return i + 1 if i >= size - size % TALL else i - i % TALL + TALL


@compiled
@no_type_check
def flat(x):
    """x [M, N] as one row of numbers, the same memory."""
    stay_apart()
    return x.reshape(x.size)


@compiled
@no_type_check
def copy(x, out):
    """out [M, N] = x [M, N]."""
    stay_apart()
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] = x[i, j]


@compiled
@no_type_check
def clear(x):
    """x [M, N] = 0."""
    stay_apart()
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            x[i, j] = 0


@compiled
@no_type_check
def turn(x, out):
    """out [N, M] = x [M, N], transposed."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = x[j, i]


@compiled
@no_type_check
def scale(x, by, out):
    """out [C, W] = x [C, W], every row times its number of by [C]."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] = x[i, j] * by[i]


@compiled
@no_type_check
def add_scaled(x, by, out):
    """out [C, W] += x [C, W], every row times its number of by [C]."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] += x[i, j] * by[i]


@compiled
@no_type_check
def add_dots(x, y, out):
    """out [C] += the sums of x * y [C, W] over each row."""
    for i in range(x.shape[0]):
        total = x.dtype.type(0)
        for j in range(x.shape[1]):
            total += x[i, j] * y[i, j]
        out[i] += total


@compiled
@no_type_check
def times(x, y):
    """x [C, W] *= y [C, W]."""
    x, y = flat(x), flat(y)
    for j in range(len(x)):
        x[j] *= y[j]


@compiled
@no_type_check
def plus(x, y):
    """x [C, W] += y [C, W]."""
    x, y = flat(x), flat(y)
    for j in range(len(x)):
        x[j] += y[j]


@compiled
@no_type_check
def dot(x, y):
    """The sum of x * y, both flat."""
    total = x.dtype.type(0)
    for j in range(len(x)):
        total += x[j] * y[j]
    return total


@compiled
@no_type_check
def masked(scores, mix, out):
    """out [C, C] = scores * mix, where `product` reads a lower triangular matrix."""
    size = len(scores)
    for i in range(size):
        for j in range(seen(i, size)):
            out[i, j] = scores[i, j] * mix[i, j]


@compiled
@no_type_check
def masked_gradient(scores, mix, d_mix, d_scores):
    """d_scores [C, C] from that of scores * mix to that of scores, in place; that of mix is added."""
    size = len(scores)
    for i in range(size):
        for j in range(seen(i, size)):
            d_mix[i, j] += d_scores[i, j] * scores[i, j]
            d_scores[i, j] *= mix[i, j]


@compiled
@no_type_check
def capped(weight, cap):
    """weight, flat, scaled back to a norm of at most `cap`, in place; returns the factor."""
    kind = weight.dtype.type
    factor = min(kind(1), kind(cap) / max(kind(np.sqrt(dot(weight, weight))), kind(1e-12)))
    if factor < 1:
        for j in range(len(weight)):
            weight[j] *= factor
    return factor


@compiled
@no_type_check
def capped_gradient(weight, factor, d_weight):
    """The gradient of `capped` in place; `weight` as it was scaled."""
    along = dot(d_weight, weight) / max(dot(weight, weight), weight.dtype.type(1e-24))
    for j in range(len(weight)):
        d_weight[j] = (d_weight[j] - along * weight[j]) * factor


@compiled
@no_type_check
def stiffness_of(key, act, first, second, squares, out):
    """out [C] = the stiffness of every token before it is held at 1, and squares [4, C] of what it is made of."""
    clear(squares)
    add_dots(key, key, squares[0])
    add_dots(act, act, squares[1])
    add_dots(first, first, squares[2])
    add_dots(second, second, squares[3])
    for i in range(len(out)):
        whole = squares[0, i] * squares[2, i] + squares[1, i] * squares[3, i]
        out[i] = whole / (squares[3, i] + out.dtype.type(1e-12))


@compiled
@no_type_check
def bend(x, pull, d_delta, out):
    """out = the gradient by x of delta = pull times the slope of GELU at x, all flat."""
    kind = x.dtype.type
    for j in range(len(x)):
        square = x[j] * x[j]
        square = kind(1e3) if square > kind(1e3) else square  # where the bell is zero long since, it may overflow
        bell = exponential(kind, kind(-0.5) * square) * kind(0.3989422804014327)
        out[j] = d_delta[j] * pull[j] * bell * (kind(2) - square)


@compiled
@no_type_check
def key_pass(at, keys, values, hidden, act, slope, delta, back, pull):
    """Of the keys' tokens: sums of the hidden layer, their GELU and its slope, the gradient by the output (delta), and
    the same by the hidden layer's (pull). back: scratch."""
    kind = keys.dtype.type
    none, one, two = kind(0), kind(1), kind(2)
    product(keys, at[0], hidden, none, one, Part.WHOLE)
    copy(hidden, slope)
    gelu_and_slope(flat(slope), flat(act))
    copy(values, delta)
    product(act, at[1], delta, -two, two, Part.WHOLE)
    turn(at[1], back)
    product(delta, back, pull, none, one, Part.WHOLE)


@compiled
@no_type_check
def scalars_of(eta, alpha, written, heads, g, n, r, gate):
    """gate [3, C] = eta, 1 - alpha and whether it is written, of every token; one that is not is the identity."""
    none, one = gate.dtype.type(0), gate.dtype.type(1)
    for i in range(gate.shape[1]):
        if written.size == 0 or written[n, r // heads, i]:
            gate[0, i] = eta[g, n, r, i] if eta.size else none
            gate[1, i] = one - alpha[g, n, r, i] if alpha.size else one
            gate[2, i] = one
        else:
            gate[0, i], gate[1, i], gate[2, i] = one, one, none


@compiled
@no_type_check
def unroll(gate, push, mix, carry, keep):
    """`coefficients.Recurrences` of one chunk: all of S in push [C, C + 1], mix [C, C], carry and keep [C].

    gate: as of `scalars_of`. What is above the diagonal of mix stays as it is."""
    size = len(keep)
    for i in range(size):
        eta, stay, there = gate[0, i], gate[1, i], gate[2, i]
        for j in range(i):
            push[i, j] = push[i - 1, j] * eta
            mix[i, j] = mix[i - 1, j] * stay + push[i, j] * there
        push[i, i], mix[i, i] = 1, there
        push[i, size] = push[i - 1, size] * eta if i else eta
        carry[i] = (carry[i - 1] * stay if i else 0) + push[i, size] * there
        keep[i] = keep[i - 1] * stay if i else stay


@compiled
@no_type_check
def unroll_gradient(gate, push, mix, carry, keep, d_push, d_mix, d_carry, d_keep, d_gate):
    """d_gate [2, C] = the gradient by eta and by 1 - alpha; d_push [C + 1] is that by the last row of push.

    Of d_mix, d_carry and d_keep every row becomes what it is with all that came after it."""
    size = len(keep)
    for i in range(size - 1, -1, -1):
        there = gate[2, i]
        if i + 1 < size:
            eta, stay = gate[0, i + 1], gate[1, i + 1]
            d_keep[i] += d_keep[i + 1] * stay
            d_carry[i] += d_carry[i + 1] * stay
            for j in range(size + 1):
                d_push[j] *= eta
            for j in range(i + 1):
                d_mix[i, j] += d_mix[i + 1, j] * stay
        d_push[size] += d_carry[i] * there
        for j in range(i + 1):
            d_push[j] += d_mix[i, j] * there
        if i == 0:
            d_gate[0, i], d_gate[1, i] = d_push[size], d_keep[i]
        else:
            by_eta, by_stay = d_push[size] * push[i - 1, size], d_keep[i] * keep[i - 1] + d_carry[i] * carry[i - 1]
            for j in range(i):
                by_eta += d_push[j] * push[i - 1, j]
                by_stay += d_mix[i, j] * mix[i - 1, j]
            d_gate[0, i], d_gate[1, i] = by_eta, by_stay


@no_type_check
def _forward(begin, end, flags, cap, queries, keys, values, rate, eta, alpha, written, anchor,
             weights, momentum, factors, hidden, reads, delta, stiffness, theta, out, start):  # fmt: skip
    """The rows and heads from `begin` to before `end`; the arguments are those of `dual.Dual` and what it keeps.

    flags: momentum, stiff, anchored, saving; without the last the arrays that are kept have room for one chunk."""
    kind = queries.dtype.type
    none, one = kind(0), kind(1)
    moving, stiff, anchored, saving = flags
    chunks, rows, size, width = queries.shape
    wide, gates, heads = hidden.shape[3], len(rate), rows // max(1, written.shape[1])
    gate, push = np.empty((gates, 3, size), kind), np.empty((gates, size, size + 1), kind)
    mix, carry, keep = np.zeros((gates, size, size), kind), np.empty((gates, size), kind), np.empty((gates, size), kind)
    scores, read = np.empty((size, size), kind), np.empty((size, size), kind)
    act, slope, pull = np.empty((size, wide), kind), np.empty((size, wide), kind), np.empty((size, wide), kind)
    error, scaled, part = np.empty((size, width), kind), np.empty((size, width), kind), np.empty((size, width), kind)
    squares = np.empty((4, size), kind)
    turned, turned_act, back = np.empty((width, size), kind), np.empty((wide, size), kind), np.empty((width, wide), kind)
    for r in range(begin, end):
        for n in range(chunks):
            here = n if saving else 0
            there = n + 1 if saving else 0
            w, s = (weights[0][here, r], weights[1][here, r]), (momentum[0][here, r], momentum[1][here, r])
            if n and cap > 0:
                for layer in range(2):
                    whole = flat(w[layer])
                    factors[n, layer, r] = capped(whole, kind(cap) * kind(np.sqrt(kind(w[layer].shape[1]))))
            at = (anchor[0][r], anchor[1][r]) if anchored and n == 0 else w
            if n == chunks - 1:
                for layer in range(2):
                    copy(at[layer], start[layer][r])
            for l in range(gates):
                scalars_of(eta, alpha, written, heads, l, n, r, gate[l])
                unroll(gate[l], push[l], mix[l], carry[l], keep[l])
            key, query, said = keys[n, r], queries[n, r], delta[here, r]
            key_pass(at, key, values[n, r], hidden[here, r], act, slope, said, back, pull)
            times(pull, slope)
            if stiff:
                stiffness_of(key, act, pull, said, squares, stiffness[here, r])
            for g in range(gates):
                for i in range(size):
                    theta[g, here, r, i] = rate[g, n, r, i] / (max(stiffness[here, r, i], kind(1)) if stiff else kind(1))
            g = gates - 1
            scale(pull, theta[0, here, r], pull)
            scale(said, theta[g, here, r], error)

            y, answer = reads[here, r], out[n, r]
            turn(key, turned)
            product(query, turned, scores, none, one, Part.UNDER)
            masked(scores, mix[0], read)
            scale(query, keep[0], scaled)
            product(scaled, w[0], y, none, one, Part.WHOLE)
            if moving:
                scale(query, carry[0], scaled)
                product(scaled, s[0], y, one, one, Part.WHOLE)
            product(read, pull, y, one, -one, Part.BELOW)
            copy(y, slope)
            gelu(flat(slope))
            turn(act, turned_act)
            product(slope, turned_act, scores, none, one, Part.UNDER)
            masked(scores, mix[g], read)
            product(slope, w[1], part, none, one, Part.WHOLE)
            scale(part, keep[g], answer)
            if moving:
                product(slope, s[1], part, none, one, Part.WHOLE)
                add_scaled(part, carry[g], answer)
            product(read, error, answer, one, -one, Part.BELOW)

            for layer in range(2):
                g = min(layer, gates - 1)
                old, new = flat(w[layer]), flat(weights[layer][there, r])
                if moving:
                    old_push, new_push = flat(s[layer]), flat(momentum[layer][there, r])
                    for j in range(len(old)):
                        new[j] = keep[g, -1] * old[j] + carry[g, -1] * old_push[j]
                        new_push[j] = push[g, -1, size] * old_push[j]
                else:
                    for j in range(len(old)):
                        new[j] = keep[g, -1] * old[j]
            g = gates - 1
            scale(key, mix[0, -1], scaled)
            product(scaled.T, pull, weights[0][there, r], one, -one, Part.WHOLE)
            scale(error, mix[g, -1], scaled)
            product(act.T, scaled, weights[1][there, r], one, -one, Part.WHOLE)
            if moving:
                scale(key, push[0, -1, :size], scaled)
                product(scaled.T, pull, momentum[0][there, r], one, -one, Part.WHOLE)
                scale(error, push[g, -1, :size], scaled)
                product(act.T, scaled, momentum[1][there, r], one, -one, Part.WHOLE)


@no_type_check
def _backward(begin, end, flags, cap, queries, keys, values, rate, eta, alpha, written, anchor,
              weights, momentum, factors, hidden, reads, delta, stiffness, theta,
              d_out, d_start, d_anchor, d_weights, d_momentum,
              d_queries, d_keys, d_values, d_rate, d_eta, d_alpha):  # fmt: skip
    """The gradient of `_forward`: from that of the last weights and momentum, in place, to that of the first."""
    kind = queries.dtype.type
    none, one = kind(0), kind(1)
    moving, stiff, anchored, _ = flags
    chunks, rows, size, width = queries.shape
    wide, gates, heads = hidden.shape[3], len(rate), rows // max(1, written.shape[1])
    gate, push = np.empty((gates, 3, size), kind), np.empty((gates, size, size + 1), kind)
    mix, carry, keep = np.zeros((gates, size, size), kind), np.empty((gates, size), kind), np.empty((gates, size), kind)
    scores, read, d_read = np.empty((size, size), kind), np.empty((size, size), kind), np.empty((size, size), kind)
    act, slope, pull, first = (np.empty((size, wide), kind), np.empty((size, wide), kind),
                               np.empty((size, wide), kind), np.empty((size, wide), kind))
    asked, asked_slope = np.empty((size, wide), kind), np.empty((size, wide), kind)
    d_act, d_first, d_asked, by = (np.empty((size, wide), kind), np.empty((size, wide), kind),
                                   np.empty((size, wide), kind), np.empty((size, wide), kind))
    said, error, scaled = np.empty((size, width), kind), np.empty((size, width), kind), np.empty((size, width), kind)
    part, d_error = np.empty((size, width), kind), np.empty((size, width), kind)
    thin, tall = np.empty((width, size), kind), np.empty((wide, size), kind)
    back, back_first = np.empty((width, wide), kind), np.empty((wide, width), kind)
    d_mix, d_push = np.empty((gates, size, size), kind), np.empty((gates, size + 1), kind)
    d_carry, d_keep, d_gate = np.empty((gates, size), kind), np.empty((gates, size), kind), np.empty((2, size), kind)
    quotients, d_theta, squares = np.empty(size, kind), np.empty((gates, size), kind), np.empty((4, size), kind)
    g = gates - 1
    for r in range(begin, end):
        d_w, d_s = (d_weights[0][r], d_weights[1][r]), (d_momentum[0][r], d_momentum[1][r])
        for n in range(chunks - 1, -1, -1):
            w, s = (weights[0][n, r], weights[1][n, r]), (momentum[0][n, r], momentum[1][n, r])
            here = anchored and n == 0
            at = (anchor[0][r], anchor[1][r]) if here else w
            d_at = (d_anchor[0][r], d_anchor[1][r]) if here else d_w
            for l in range(gates):
                scalars_of(eta, alpha, written, heads, l, n, r, gate[l])
                unroll(gate[l], push[l], mix[l], carry[l], keep[l])
            key, query, d_answer = keys[n, r], queries[n, r], d_out[n, r]
            d_key, d_query = d_keys[n, r], d_queries[n, r]
            key_pass(at, key, values[n, r], hidden[n, r], act, slope, said, back, pull)
            copy(pull, first)
            times(first, slope)
            scale(first, theta[0, n, r], first)
            scale(said, theta[g, n, r], error)
            copy(reads[n, r], asked_slope)
            gelu_and_slope(flat(asked_slope), flat(asked))

            # What the state after the chunk is made of.
            for l in range(gates):
                clear(d_mix[l])
            clear(d_carry)
            clear(d_keep)
            clear(d_push)
            clear(d_key)
            clear(d_act)
            clear(d_first)
            clear(d_error)
            for pushes in range(2 if moving else 1):
                low, high = (d_s[0], d_s[1]) if pushes else (d_w[0], d_w[1])
                share, d_share = (push[0, -1, :size], d_push[0, :size]) if pushes else (mix[0, -1], d_mix[0, -1])
                scale(key, share, scaled)
                product(scaled, low, d_first, one, -one, Part.WHOLE)
                turn(low, back_first)
                product(first, back_first, part, none, -one, Part.WHOLE)
                add_dots(part, key, d_share)
                add_scaled(part, share, d_key)
                share, d_share = (push[g, -1, :size], d_push[g, :size]) if pushes else (mix[g, -1], d_mix[g, -1])
                product(act, high, part, none, -one, Part.WHOLE)
                add_dots(part, error, d_share)
                add_scaled(part, share, d_error)
                scale(error, share, scaled)
                turn(high, back)
                product(scaled, back, d_act, one, -one, Part.WHOLE)
            for layer in range(2):
                l = min(layer, g)
                old, d_old = flat(w[layer]), flat(d_w[layer])
                kept_share = keep[l, -1]
                d_keep[l, -1] += dot(d_old, old)
                if moving:
                    old_push, d_old_push = flat(s[layer]), flat(d_s[layer])
                    carried, faded = carry[l, -1], push[l, -1, size]
                    d_carry[l, -1] += dot(d_old, old_push)
                    d_push[l, size] += dot(d_old_push, old_push)
                    for j in range(len(old)):
                        d_old_push[j] = faded * d_old_push[j] + carried * d_old[j]
                for j in range(len(old)):
                    d_old[j] *= kept_share

            # The read of the second layer.
            turn(act, tall)
            product(asked, tall, scores, none, one, Part.UNDER)
            masked(scores, mix[g], read)
            product(read.T, d_answer, d_error, one, -one, Part.ABOVE)
            turn(error, thin)
            product(d_answer, thin, d_read, none, -one, Part.UNDER)
            masked_gradient(scores, mix[g], d_mix[g], d_read)
            product(d_read.T, asked, d_act, one, one, Part.ABOVE)
            product(d_read, act, d_asked, none, one, Part.BELOW)
            for pushes in range(2 if moving else 1):
                turn(s[1] if pushes else w[1], back)
                share = carry[g] if pushes else keep[g]
                product(d_answer, back, by, none, one, Part.WHOLE)
                add_dots(by, asked, d_carry[g] if pushes else d_keep[g])
                add_scaled(by, share, d_asked)
                scale(d_answer, share, scaled)
                product(asked.T, scaled, d_s[1] if pushes else d_w[1], one, one, Part.WHOLE)
            # The read of the first.
            times(d_asked, asked_slope)
            turn(key, thin)
            product(query, thin, scores, none, one, Part.UNDER)
            masked(scores, mix[0], read)
            product(read.T, d_asked, d_first, one, -one, Part.ABOVE)
            turn(first, tall)
            product(d_asked, tall, d_read, none, -one, Part.UNDER)
            masked_gradient(scores, mix[0], d_mix[0], d_read)
            product(d_read.T, query, d_key, one, one, Part.ABOVE)
            product(d_read, key, d_query, none, one, Part.BELOW)
            for pushes in range(2 if moving else 1):
                turn(s[0] if pushes else w[0], back_first)
                share = carry[0] if pushes else keep[0]
                product(d_asked, back_first, part, none, one, Part.WHOLE)
                add_dots(part, query, d_carry[0] if pushes else d_keep[0])
                add_scaled(part, share, d_query)
                scale(query, share, scaled)
                product(scaled.T, d_asked, d_s[0] if pushes else d_w[0], one, one, Part.WHOLE)

            for l in range(gates):
                unroll_gradient(
                    gate[l], push[l], mix[l], carry[l], keep[l], d_push[l], d_mix[l], d_carry[l], d_keep[l], d_gate
                )
                for i in range(size):
                    if moving:
                        d_eta[l, n, r, i] = d_gate[0, i] if gate[l, 2, i] else none
                    if alpha.size:
                        d_alpha[l, n, r, i] = -d_gate[1, i] if gate[l, 2, i] else none

            # The steps: `first` and `error` were the deltas times theta; `d_first` and `d_error` become those of the deltas.
            copy(pull, first)
            times(first, slope)
            clear(d_theta)
            add_dots(d_first, first, d_theta[0])
            add_dots(d_error, said, d_theta[g])
            scale(d_first, theta[0, n, r], d_first)
            scale(d_error, theta[g, n, r], d_error)
            if stiff:
                stiffness_of(key, act, first, said, squares, quotients)
                for i in range(size):
                    quotient, moved = quotients[i], kind(0)
                    for l in range(gates):
                        moved -= d_theta[l, i] * theta[l, n, r, i]
                        d_theta[l, i] /= max(quotient, kind(1))
                    # Where the stiffness is 1 because it is held there, it does not move.
                    moved *= kind(2) / (quotient * (squares[3, i] + kind(1e-12))) if quotient >= 1 else kind(0)
                    asked_square, known = squares[0, i], squares[1, i]
                    squares[0, i], squares[1, i] = moved * squares[2, i], moved * squares[3, i]
                    squares[2, i], squares[3, i] = moved * asked_square, moved * (known - quotient)
                add_scaled(key, squares[0], d_key)
                add_scaled(act, squares[1], d_act)
                add_scaled(first, squares[2], d_first)
                add_scaled(said, squares[3], d_error)
            for l in range(gates):
                for i in range(size):
                    d_rate[l, n, r, i] = d_theta[l, i]

            # The key pass.
            if n == chunks - 1:
                for layer in range(2):
                    plus(d_at[layer], d_start[layer][r])
            bend(flat(hidden[n, r]), flat(pull), flat(d_first), flat(first))
            times(d_first, slope)
            product(d_first, at[1], d_error, one, one, Part.WHOLE)
            product(d_first.T, said, d_at[1], one, one, Part.WHOLE)
            d_value = d_values[n, r]
            for i in range(size):
                for j in range(width):
                    d_error[i, j] *= kind(2)
                    d_value[i, j] = -d_error[i, j]
            product(act.T, d_error, d_at[1], one, one, Part.WHOLE)
            turn(at[1], back)
            product(d_error, back, d_act, one, one, Part.WHOLE)
            times(d_act, slope)
            plus(first, d_act)
            product(key.T, first, d_at[0], one, one, Part.WHOLE)
            turn(at[0], back_first)
            product(first, back_first, d_key, one, one, Part.WHOLE)
            if n and cap > 0:
                for layer in range(2):
                    factor = factors[n, layer, r]
                    if factor < 1:
                        capped_gradient(flat(w[layer]), factor, flat(d_w[layer]))


forward, backward = (
    kept(kernel, fastmath=FASTMATH, error_model="numpy", nogil=True) for kernel in (_forward, _backward)
)


def shared(kernel: Callable[..., None], rows: int, *arguments: Any) -> None:
    """Run the kernel on all rows, in as many threads as torch has; of the arguments, tensors go as arrays.

    >>> shared(lambda first, last, x: print(first, last, type(x).__name__), 1, torch.ones(2))
    0 1 ndarray
    """
    as_arrays = tree_map(lambda x: x.detach().numpy() if isinstance(x, Tensor) else x, arguments)
    parts = min(torch.get_num_threads(), rows)
    if parts < 2:
        kernel(0, rows, *as_arrays)
        return
    cuts = [part * rows // parts for part in range(parts + 1)]
    with ThreadPoolExecutor(parts) as pool:
        list(pool.map(lambda first, last: kernel(first, last, *as_arrays), cuts[:-1], cuts[1:]))


class Kept(NamedTuple):
    """What the forward pass leaves to the gradient, as in `dual.Tape`, of one chunk only where there is none."""

    weights: tuple[Tensor, ...]
    momentum: tuple[Tensor, ...]
    factors: Tensor
    hidden: Tensor
    reads: Tensor
    delta: Tensor
    stiffness: Tensor
    theta: Tensor


class Scalars(NamedTuple):
    """The gates of many chunks as they come; the rate is 0 where a token is not written. None: as in `Tokens`."""

    rate: Float[Tensor, "G N R C"]
    eta: Float[Tensor, "G N R C"] | None
    alpha: Float[Tensor, "G N R C"] | None
    written: Bool[Tensor, "N B C"] | None


def scalars(rate: Tensor, eta: Tensor | None, alpha: Tensor | None, written: Tensor | None, rows: int) -> Scalars:
    """In place of `chunked.gates_of`: the kernels unroll the recurrences chunk by chunk.

    >>> scalars(torch.ones(1, 2, 1, 3), None, None, None, 1).rate.shape
    torch.Size([1, 2, 1, 3])
    """
    return Scalars(rate, eta, alpha, written)


class Fused(torch.autograd.Function):
    """`whole_chunks` as one node of the graph, in one kernel each way."""

    @staticmethod
    def forward(ctx: Any, form: Form, queries: Tensor, keys: Tensor, values: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        """Reads, then weights, momentum and the last chunk's first weights, two each."""
        gates, state = Scalars(*rest[:4]), tuple(x.contiguous() for x in rest[4:])
        weights, momentum, anchor = state[:2], state[2:4], state[4:]
        chunks, rows, size, width = queries.shape
        saving, moving = any(ctx.needs_input_grad), gates.eta is not None
        room, new, wide = chunks if saving else 1, queries.new_empty, weights[0].shape[-1]

        def since(leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            then = tuple(new(room + saving, *leaf.shape) for leaf in leaves)
            for leaf, now in zip(then, leaves, strict=True):
                leaf[0] = now
            return then

        now = since(weights)
        tape = Kept(
            weights=now,
            momentum=since(momentum) if moving else now,
            factors=new(chunks, 2, rows),
            hidden=new(room, rows, size, wide),
            reads=new(room, rows, size, wide),
            delta=new(room, rows, size, width),
            stiffness=new(room, rows, size),
            theta=new(len(gates.rate), room, rows, size),
        )
        flags, cap = (moving, form.stiff, form.anchored, saving), form.cap or 0.0
        eta, alpha = (new(0, 0, 0, 0) if gate is None else gate for gate in gates[1:3])
        written = torch.empty(0, 0, 0, dtype=torch.bool) if gates.written is None else gates.written.contiguous()
        taken = (queries, keys, values, gates.rate, eta, alpha, written, anchor or weights, *tape)
        out, start = torch.empty_like(values), tuple(torch.empty_like(x) for x in weights)
        shared(forward, rows, flags, cap, *taken, out, start)
        if saving:
            # Saved as tensors and not on the context itself: whoever checkpoints drops what is saved, and nothing else.
            flat, ctx.layout = tree_flatten(taken)
            ctx.flags, ctx.cap = flags, cap
            ctx.save_for_backward(*flat)
        ends = (leaf[-1].clone() for leaf in (*tape.weights, *tape.momentum))
        return (out, *ends, *start)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Every row and head from its last chunk to its first."""
        taken = tree_unflatten(ctx.saved_tensors, ctx.layout)
        (moving, _, anchored, _), (rate, eta, alpha) = ctx.flags, taken[3:6]
        d_out, *d_ends = (x.contiguous() for x in grads)
        d_weights, d_momentum = (tuple(x.clone() for x in d_ends[i : i + 2]) for i in (0, 2))
        d_anchor = tuple(torch.zeros_like(x) for x in d_weights)
        d_tokens = tuple(torch.empty_like(x) for x in (*taken[:3], rate, eta, alpha))
        shared(
            backward, d_out.shape[1], ctx.flags, ctx.cap, *taken,
            d_out, tuple(d_ends[4:]), d_anchor, d_weights, d_momentum, *d_tokens,
        )  # fmt: skip
        return (
            None, *d_tokens[:4], *(x if x.numel() else None for x in d_tokens[4:]), None, *d_weights,
            *(d_momentum if moving else (None, None)), *(d_anchor if anchored else ()),
        )  # fmt: skip


def fused(
    form: Form, queries: Tensor, keys: Tensor, values: Tensor, gates: Scalars, *state: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
    """`dual.whole_chunks` of a memory with two layers and no residual path."""
    leaves = [leaf for part in state for leaf in part]
    out = Fused.apply(form, queries, keys, values, *gates, *leaves)  # type: ignore[no-untyped-call]
    return out[0], out[1:3], tuple(state[1]) if gates.eta is None else out[3:5], out[5:]
