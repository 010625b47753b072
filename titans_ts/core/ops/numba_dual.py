"""The dual form of memories with two small layers, compiled by numba for the CPU, with its gradient.

One row and head at a time goes through all its chunks, and what it needs stays in the cache: of its tokens only the
sums of the hidden layers are kept for the gradient. Its products are too small for a library of linear algebra:
`tile_of` has a block of sums in registers, and what lies above the diagonal of a chunk is skipped.

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
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from .dual import Form
from .jit import kept
from .numba_cpu import FASTMATH, F, exponential, gelu, gelu_and_slope

TALL = 8 if binding.get_host_cpu_features().get("avx512f") else 4  # rows of a tile whose sums fill the registers


def inside(function: F) -> F:
    """The function, compiled when a kernel that calls it is, for kernels only.

    >>> inside(stay_apart).__name__
    'stay_apart'
    """
    return kept(function, fastmath=FASTMATH, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)


class Part(IntEnum):
    """Which part of a matrix counts, see `product`; a class, since numba compiles once for each plain constant."""

    WHOLE = 0
    BELOW = 1
    ABOVE = 2
    UNDER = 3


@no_type_check
def tile_of(rows: int, lanes: int) -> Callable[..., None]:
    """A function that computes a tile of this size of a product, its sums in registers.

    >>> x, out = np.arange(4.0), np.zeros(2)
    >>> tile_of(2, 1)(x, 0, 2, 1, x, 0, 1, out, 0, 1, 0, 2, 0.0, 1.0)
    >>> out.tolist()
    [1.0, 3.0]
    """

    def tile(a, at_a, a_row, a_step, b, at_b, b_step, out, at_out, out_row, first, last, rest, factor):
        a, b, out = a.ravel("K"), b.reshape(-1), out.reshape(-1)  # places are counted as the numbers lie
        for r in range(rows):
            begin = at_out + r * out_row
            for j in range(begin, begin + lanes):
                there = at_b + j - begin
                total = sum(a[at_a + r * a_row + k * a_step] * b[there + k * b_step] for k in range(first, last))
                out[j] = factor * total + (rest * out[j] if rest else 0)

    @intrinsic
    def emitted(context, a, at_a, a_row, a_step, b, at_b, b_step, out, at_out, out_row, first, last, rest, factor):
        def emit(context, builder, signature, arguments):
            kind = signature.args[0].dtype
            number, whole, size = context.get_data_type(kind), ir.IntType(64), kind.bitwidth // 8
            vector, nothing = ir.VectorType(number, lanes), ir.Constant(ir.VectorType(number, lanes), None)
            left, right, into = (
                context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (0, 4, 7)
            )
            at_a, a_row, a_step, at_b, b_step, at_out, out_row, first, last, rest, factor = (
                arguments[i] for i in (1, 2, 3, 5, 6, 8, 9, 10, 11, 12, 13)
            )

            def along(data, begin, count, step):
                return builder.gep(data, [builder.add(begin, builder.mul(count, step))])

            def lanes_at(data, begin, count, step):
                return builder.bitcast(along(data, begin, count, step), vector.as_pointer())

            def everywhere(x):
                one = builder.insert_element(ir.Constant(vector, ir.Undefined), x, ir.IntType(32)(0))
                return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), lanes), None))

            def plus_product(total, x, y):
                return builder.fadd(builder.fmul(x, y, flags=["contract"]), total, flags=["contract"])

            sums = [cgutils.alloca_once(builder, vector) for _ in range(rows)]
            for each in sums:
                builder.store(nothing, each)
            starts = [along(left, at_a, whole(r), a_row) for r in range(rows)]
            with cgutils.for_range_slice(builder, first, last, whole(1), whole) as (k, _):
                there = builder.load(lanes_at(right, at_b, k, b_step), align=size)
                for start, each in zip(starts, sums, strict=True):
                    here = everywhere(builder.load(along(start, whole(0), k, a_step), align=size))
                    builder.store(plus_product(builder.load(each), here, there), each)
            overwritten = builder.fcmp_ordered("==", rest, ir.Constant(number, 0))
            for r, each in enumerate(sums):
                place = lanes_at(into, at_out, whole(r), out_row)
                old = builder.fmul(everywhere(rest), builder.load(place, align=size))
                old = builder.select(overwritten, nothing, old)
                builder.store(plus_product(old, everywhere(factor), builder.load(each)), place, align=size)
            return context.get_dummy_value()

        n = types.intp
        return types.none(a, n, n, n, b, n, n, out, n, n, n, n, a.dtype, a.dtype), emit

    @overload(tile)
    def _tile(a, at_a, a_row, a_step, b, at_b, b_step, out, at_out, out_row, first, last, rest, factor):
        def run(a, at_a, a_row, a_step, b, at_b, b_step, out, at_out, out_row, first, last, rest, factor):
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


_tall_16, _tall_8, _tall_1 = (tile_of(TALL, lanes) for lanes in (16, 8, 1))
_flat_16, _flat_8, _flat_1 = (tile_of(1, lanes) for lanes in (16, 8, 1))


@inside
@no_type_check
def span(part, row, rows, depth):
    """Which of the `depth` terms of a sum count, for a tile of so many rows."""
    return row if part == Part.ABOVE else 0, min(depth, row + rows) if part == Part.BELOW else depth


@inside
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
                _tall_16(a, i * row, row, step, b, begin, columns, out, at, columns, first, last, rest, factor)
            elif lanes == 8:
                _tall_8(a, i * row, row, step, b, begin, columns, out, at, columns, first, last, rest, factor)
            else:
                _tall_1(a, i * row, row, step, b, begin, columns, out, at, columns, first, last, rest, factor)
        for i in range(max(begin, tiled) if part == Part.UNDER else tiled, rows):
            first, last = span(part, i, 1, depth)
            at = i * columns + begin
            if lanes == 16:
                _flat_16(a, i * row, row, step, b, begin, columns, out, at, columns, first, last, rest, factor)
            elif lanes == 8:
                _flat_8(a, i * row, row, step, b, begin, columns, out, at, columns, first, last, rest, factor)
            else:
                _flat_1(a, i * row, row, step, b, begin, columns, out, at, columns, first, last, rest, factor)
        begin += lanes


@inside
@no_type_check
def seen(i, size):
    """How many columns of row i count, of a lower triangular [C, C]: up to the diagonal, or to the end of its tile."""
    return i + 1 if i >= size - size % TALL else i - i % TALL + TALL


@inside
@no_type_check
def flat(x):
    """x [M, N] as one row of numbers, the same memory."""
    stay_apart()
    return x.reshape(x.size)


@inside
@no_type_check
def copy(x, out):
    """out [M, N] = x [M, N]."""
    stay_apart()
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] = x[i, j]


@inside
@no_type_check
def clear(x):
    """x [M, N] = 0."""
    stay_apart()
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            x[i, j] = 0


@inside
@no_type_check
def turn(x, out):
    """out [N, M] = x [M, N], transposed."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = x[j, i]


@inside
@no_type_check
def scale(x, by, out):
    """out [C, W] = x [C, W], every row times its number of by [C]."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] = x[i, j] * by[i]


@inside
@no_type_check
def add_scaled(x, by, out):
    """out [C, W] += x [C, W], every row times its number of by [C]."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] += x[i, j] * by[i]


@inside
@no_type_check
def add_dots(x, y, out):
    """out [C] += the sums of x * y [C, W] over each row."""
    for i in range(x.shape[0]):
        total = x.dtype.type(0)
        for j in range(x.shape[1]):
            total += x[i, j] * y[i, j]
        out[i] += total


@inside
@no_type_check
def times(x, y):
    """x [C, W] *= y [C, W]."""
    x, y = flat(x), flat(y)
    for j in range(len(x)):
        x[j] *= y[j]


@inside
@no_type_check
def plus(x, y):
    """x [C, W] += y [C, W]."""
    x, y = flat(x), flat(y)
    for j in range(len(x)):
        x[j] += y[j]


@inside
@no_type_check
def dot(x, y):
    """The sum of x * y, both flat."""
    total = x.dtype.type(0)
    for j in range(len(x)):
        total += x[j] * y[j]
    return total


@inside
@no_type_check
def masked(scores, mix, out):
    """out [C, C] = scores * mix, where `product` reads a lower triangular matrix."""
    size = len(scores)
    for i in range(size):
        for j in range(seen(i, size)):
            out[i, j] = scores[i, j] * mix[i, j]


@inside
@no_type_check
def masked_gradient(scores, mix, d_mix, d_scores):
    """d_scores [C, C] from that of scores * mix to that of scores, in place; that of mix is added."""
    size = len(scores)
    for i in range(size):
        for j in range(seen(i, size)):
            d_mix[i, j] += d_scores[i, j] * scores[i, j]
            d_scores[i, j] *= mix[i, j]


@inside
@no_type_check
def capped(weight, cap):
    """weight, flat, scaled back to a norm of at most `cap`, in place; returns the factor."""
    kind = weight.dtype.type
    factor = min(kind(1), kind(cap) / max(kind(np.sqrt(dot(weight, weight))), kind(1e-12)))
    if factor < 1:
        for j in range(len(weight)):
            weight[j] *= factor
    return factor


@inside
@no_type_check
def capped_gradient(weight, factor, d_weight):
    """The gradient of `capped` in place; `weight` as it was scaled."""
    if factor < 1:
        along = dot(d_weight, weight) / max(dot(weight, weight), weight.dtype.type(1e-24))
        for j in range(len(weight)):
            d_weight[j] = (d_weight[j] - along * weight[j]) * factor


@inside
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


@inside
@no_type_check
def bend(x, pull, d_delta, out):
    """out = the gradient by x of delta = pull times the slope of GELU at x, all flat."""
    kind = x.dtype.type
    for j in range(len(x)):
        square = x[j] * x[j]
        square = kind(1e3) if square > kind(1e3) else square  # where the bell is zero long since, it may overflow
        bell = exponential(kind, kind(-0.5) * square) * kind(0.3989422804014327)
        out[j] = d_delta[j] * pull[j] * bell * (kind(2) - square)


@inside
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


@inside
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


@inside
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


class Given(NamedTuple):
    """What a run of chunks takes besides the state it starts from. The rate is 0 where a token is not written; eta,
    alpha and written are empty where there is no momentum, nothing is forgotten, all is written. anchor: [R, K, I] and
    [R, I, V]."""

    queries: Float[Tensor, "N R C K"]
    keys: Float[Tensor, "N R C K"]
    values: Float[Tensor, "N R C V"]
    rate: Float[Tensor, "G N R C"]
    eta: Float[Tensor, "G N R C"]
    alpha: Float[Tensor, "G N R C"]
    written: Bool[Tensor, "N B C"]
    anchor: tuple[Tensor, ...]


class Kept(NamedTuple):
    """What the forward pass leaves to the gradient, as in `dual.Tape`; where there is none, of one chunk only. weights
    and momentum: of both layers, [N + 1, R, K, I] and [N + 1, R, I, V]. reads: the hidden sums of the queries."""

    weights: tuple[Tensor, ...]
    momentum: tuple[Tensor, ...]
    factors: Float[Tensor, "N R 2"]
    hidden: Float[Tensor, "N R C I"]
    reads: Float[Tensor, "N R C I"]
    delta: Float[Tensor, "N R C V"]
    stiffness: Float[Tensor, "N R C"]
    theta: Float[Tensor, "G N R C"]


class Does(NamedTuple):
    """What there is to do: `Form`, and whether a gradient follows. cap: 0, there is none."""

    momentum: bool
    stiff: bool
    anchored: bool
    saving: bool
    cap: float


class Shares(NamedTuple):
    """The scalars of one chunk, see `unroll`."""

    gate: NDArray[Any]
    push: NDArray[Any]
    mix: NDArray[Any]
    carry: NDArray[Any]
    keep: NDArray[Any]


class Room(NamedTuple):
    """Scratch for a layer that takes I numbers to O. scaled and part: [C, I]; turned: [I, C]; turned_error: [O, C];
    back: [O, I]; scores, read and d_read: [C, C]."""

    scaled: NDArray[Any]
    part: NDArray[Any]
    turned: NDArray[Any]
    turned_error: NDArray[Any]
    back: NDArray[Any]
    scores: NDArray[Any]
    read: NDArray[Any]
    d_read: NDArray[Any]


@inside
@no_type_check
def shares_of(like, gates, size):
    """`Shares` of so many gates [G, ...], mix with its zeros above the diagonal."""
    kind = like.dtype
    return Shares(
        np.empty((gates, 3, size), kind), np.empty((gates, size, size + 1), kind), np.zeros((gates, size, size), kind),
        np.empty((gates, size), kind), np.empty((gates, size), kind),
    )  # fmt: skip


@inside
@no_type_check
def room_of(like, size, inputs, outputs):
    """`Room` of this type."""
    kind = like.dtype
    return Room(
        np.empty((size, inputs), kind), np.empty((size, inputs), kind), np.empty((inputs, size), kind),
        np.empty((outputs, size), kind), np.empty((outputs, inputs), kind),
        np.empty((size, size), kind), np.empty((size, size), kind), np.empty((size, size), kind),
    )  # fmt: skip


@inside
@no_type_check
def unroll_all(given, n, r, shares):
    """`unroll` of every gate."""
    heads = given.keys.shape[1] // max(1, given.written.shape[1])
    for g in range(len(given.rate)):
        scalars_of(given.eta, given.alpha, given.written, heads, g, n, r, shares.gate[g])
        unroll(shares.gate[g], shares.push[g], shares.mix[g], shares.carry[g], shares.keep[g])


@inside
@no_type_check
def read_layer(x, inputs, error, weight, push, moving, shares, g, room, out):
    """out [C, O] = x [C, I] through every token's own weights."""
    none, one = x.dtype.type(0), x.dtype.type(1)
    turn(inputs, room.turned)
    product(x, room.turned, room.scores, none, one, Part.UNDER)
    masked(room.scores, shares.mix[g], room.read)
    scale(x, shares.keep[g], room.scaled)
    product(room.scaled, weight, out, none, one, Part.WHOLE)
    if moving:
        scale(x, shares.carry[g], room.scaled)
        product(room.scaled, push, out, one, one, Part.WHOLE)
    product(room.read, error, out, one, -one, Part.BELOW)


@inside
@no_type_check
def read_gradient(x, inputs, error, weight, push, moving, shares, g, room, d_out,
                  d_x, d_inputs, d_error, d_weight, d_push, d_mix, d_carry, d_keep):  # fmt: skip
    """The gradient of `read_layer`: d_x [C, I] is written, all others are added to."""
    none, one = x.dtype.type(0), x.dtype.type(1)
    turn(inputs, room.turned)
    product(x, room.turned, room.scores, none, one, Part.UNDER)
    masked(room.scores, shares.mix[g], room.read)
    product(room.read.T, d_out, d_error, one, -one, Part.ABOVE)
    turn(error, room.turned_error)
    product(d_out, room.turned_error, room.d_read, none, -one, Part.UNDER)
    masked_gradient(room.scores, shares.mix[g], d_mix[g], room.d_read)
    product(room.d_read.T, x, d_inputs, one, one, Part.ABOVE)
    product(room.d_read, inputs, d_x, none, one, Part.BELOW)
    for pushes in range(2 if moving else 1):
        share, d_share = (shares.carry[g], d_carry[g]) if pushes else (shares.keep[g], d_keep[g])
        turn(push if pushes else weight, room.back)
        product(d_out, room.back, room.part, none, one, Part.WHOLE)
        add_dots(room.part, x, d_share)
        add_scaled(room.part, share, d_x)
        scale(x, share, room.scaled)
        product(room.scaled.T, d_out, d_push if pushes else d_weight, one, one, Part.WHOLE)


@inside
@no_type_check
def update(x, error, weight, push, moving, shares, g, room, moved, pushed):
    """Weights and momentum of a layer after the chunk, which may be where those before it are."""
    one, last, size = x.dtype.type(1), shares.push[g, -1], len(x)
    keep, carry, fade = shares.keep[g, -1], shares.carry[g, -1], last[size]
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            if moving:
                moved[i, j] = keep * weight[i, j] + carry * push[i, j]
                pushed[i, j] = fade * push[i, j]
            else:
                moved[i, j] = keep * weight[i, j]
    scale(x, shares.mix[g, -1], room.scaled)
    product(room.scaled.T, error, moved, one, -one, Part.WHOLE)
    if moving:
        scale(x, last[:size], room.scaled)
        product(room.scaled.T, error, pushed, one, -one, Part.WHOLE)


@inside
@no_type_check
def update_gradient(x, error, weight, push, moving, shares, g, room,
                    d_weight, d_push, d_x, d_error, d_last, d_mix, d_carry, d_keep):  # fmt: skip
    """The gradient of `update`: d_weight and d_push from those after the chunk to those before it, all others are added
    to. d_last [C + 1]: that by the last row of the shares' push."""
    none, one, last, size = x.dtype.type(0), x.dtype.type(1), shares.push[g, -1], len(x)
    for pushes in range(2 if moving else 1):
        share, d_share = (last[:size], d_last[g, :size]) if pushes else (shares.mix[g, -1], d_mix[g, -1])
        d_leaf = d_push if pushes else d_weight
        scale(x, share, room.scaled)
        product(room.scaled, d_leaf, d_error, one, -one, Part.WHOLE)
        turn(d_leaf, room.back)
        product(error, room.back, room.part, none, -one, Part.WHOLE)
        add_dots(room.part, x, d_share)
        add_scaled(room.part, share, d_x)
    keep, carry, fade = shares.keep[g, -1], shares.carry[g, -1], last[size]
    by_keep, by_carry, by_fade = none, none, none
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            by_keep += d_weight[i, j] * weight[i, j]
            if moving:
                by_carry += d_weight[i, j] * push[i, j]
                by_fade += d_push[i, j] * push[i, j]
                d_push[i, j] = fade * d_push[i, j] + carry * d_weight[i, j]
            d_weight[i, j] *= keep
    d_keep[g, -1] += by_keep
    d_carry[g, -1] += by_carry
    d_last[g, size] += by_fade


@inside
@no_type_check
def stiffness_gradient(key, act, inner, delta, theta, squares, d_theta, d_key, d_act, d_inner, d_delta):
    """d_theta [G, C] from that of the steps as they were taken to that of the rate; the others are added to."""
    kind = key.dtype.type
    quotients = np.empty(len(key), kind)
    stiffness_of(key, act, inner, delta, squares, quotients)
    for i in range(len(key)):
        quotient, moved = quotients[i], kind(0)
        for g in range(len(theta)):
            moved -= d_theta[g, i] * theta[g, i]
            d_theta[g, i] /= max(quotient, kind(1))
        # Where the stiffness is 1 because it is held there, it does not move.
        moved *= kind(2) / (quotient * (squares[3, i] + kind(1e-12))) if quotient >= 1 else kind(0)
        by_key, by_act = moved * squares[2, i], moved * squares[3, i]
        squares[2, i], squares[3, i] = moved * squares[0, i], moved * (squares[1, i] - quotient)
        squares[0, i], squares[1, i] = by_key, by_act
    add_scaled(key, squares[0], d_key)
    add_scaled(act, squares[1], d_act)
    add_scaled(inner, squares[2], d_inner)
    add_scaled(delta, squares[3], d_delta)


@no_type_check
def _forward(begin, end, does, given, kept, out, start):
    """The rows and heads from `begin` to before `end`: reads, and the weights that the last chunk starts with."""
    kind = out.dtype.type
    none, one, two = kind(0), kind(1), kind(2)
    chunks, _, size, width = given.keys.shape
    hidden, gates, moving = kept.hidden.shape[3], len(given.rate), does.momentum
    act, slope, inner = np.empty((size, hidden), kind), np.empty((size, hidden), kind), np.empty((size, hidden), kind)
    outer, squares = np.empty((size, out.shape[3]), kind), np.empty((4, size), kind)
    below, above = room_of(out, size, width, hidden), room_of(out, size, hidden, out.shape[3])
    shares, bottom, top = shares_of(out, gates, size), min(0, gates - 1), gates - 1
    for r in range(begin, end):
        for n in range(chunks):
            here, there = (n, n + 1) if does.saving else (0, 0)
            first, second = kept.weights[0][here, r], kept.weights[1][here, r]
            push, push_second = kept.momentum[0][here, r], kept.momentum[1][here, r]
            if n and does.cap > 0:
                kept.factors[n, r, 0] = capped(flat(first), kind(does.cap) * kind(np.sqrt(kind(hidden))))
                kept.factors[n, r, 1] = capped(flat(second), kind(does.cap) * kind(np.sqrt(kind(out.shape[3]))))
            apart = does.anchored and n == 0
            at, at_second = (given.anchor[0][r], given.anchor[1][r]) if apart else (first, second)
            if n == chunks - 1:
                copy(at, start[0][r])
                copy(at_second, start[1][r])
            unroll_all(given, n, r, shares)

            # The keys.
            key, sums, delta = given.keys[n, r], kept.hidden[here, r], kept.delta[here, r]
            product(key, at, sums, none, one, Part.WHOLE)
            copy(sums, slope)
            gelu_and_slope(flat(slope), flat(act))
            copy(given.values[n, r], delta)
            product(act, at_second, delta, -two, two, Part.WHOLE)
            turn(at_second, above.back)
            product(delta, above.back, inner, none, one, Part.WHOLE)
            times(inner, slope)

            # Their steps.
            if does.stiff:
                stiffness_of(key, act, inner, delta, squares, kept.stiffness[here, r])
            for g in range(gates):
                for i in range(size):
                    divisor = max(kept.stiffness[here, r, i], one) if does.stiff else one
                    kept.theta[g, here, r, i] = given.rate[g, n, r, i] / divisor
            scale(inner, kept.theta[bottom, here, r], inner)
            scale(delta, kept.theta[top, here, r], outer)

            # The queries.
            reads = kept.reads[here, r]
            read_layer(given.queries[n, r], key, inner, first, push, moving, shares, bottom, below, reads)
            copy(reads, slope)
            gelu(flat(slope))
            read_layer(slope, act, outer, second, push_second, moving, shares, top, above, out[n, r])

            update(
                key, inner, first, push, moving, shares, bottom, below,
                kept.weights[0][there, r], kept.momentum[0][there, r],
            )  # fmt: skip
            update(
                act, outer, second, push_second, moving, shares, top, above,
                kept.weights[1][there, r], kept.momentum[1][there, r],
            )  # fmt: skip


@no_type_check
def _backward(begin, end, does, given, kept, d_out, d_start, d_given, d_weights, d_momentum):
    """The gradient of `_forward`: d_weights and d_momentum from those of the last to those of the first; d_given is
    written, its anchor added to."""
    kind = d_out.dtype.type
    none, one, two = kind(0), kind(1), kind(2)
    chunks, _, size, width = given.keys.shape
    hidden, gates, moving = kept.hidden.shape[3], len(given.rate), does.momentum
    act, slope, pull, inner = (
        np.empty((size, hidden), kind),
        np.empty((size, hidden), kind),
        np.empty((size, hidden), kind),
        np.empty((size, hidden), kind),
    )
    asked, asked_slope, d_asked, d_act, d_inner = (
        np.empty((size, hidden), kind), np.empty((size, hidden), kind), np.empty((size, hidden), kind),
        np.empty((size, hidden), kind), np.empty((size, hidden), kind),
    )  # fmt: skip
    outer, d_outer = np.empty((size, d_out.shape[3]), kind), np.empty((size, d_out.shape[3]), kind)
    squares, d_theta, d_gate = np.empty((4, size), kind), np.empty((gates, size), kind), np.empty((2, size), kind)
    d_mix, d_last = np.empty((gates, size, size), kind), np.empty((gates, size + 1), kind)
    d_carry, d_keep = np.empty((gates, size), kind), np.empty((gates, size), kind)
    below, above = room_of(d_out, size, width, hidden), room_of(d_out, size, hidden, d_out.shape[3])
    shares, bottom, top = shares_of(d_out, gates, size), min(0, gates - 1), gates - 1
    for r in range(begin, end):
        d_first, d_second, d_push, d_push_second = d_weights[0][r], d_weights[1][r], d_momentum[0][r], d_momentum[1][r]
        for n in range(chunks - 1, -1, -1):
            first, second = kept.weights[0][n, r], kept.weights[1][n, r]
            push, push_second = kept.momentum[0][n, r], kept.momentum[1][n, r]
            apart = does.anchored and n == 0
            at, at_second = (given.anchor[0][r], given.anchor[1][r]) if apart else (first, second)
            d_at, d_at_second = (d_given.anchor[0][r], d_given.anchor[1][r]) if apart else (d_first, d_second)
            key, query, delta, theta = given.keys[n, r], given.queries[n, r], kept.delta[n, r], kept.theta[:, n, r]
            d_key = d_given.keys[n, r]
            unroll_all(given, n, r, shares)
            copy(kept.hidden[n, r], slope)
            gelu_and_slope(flat(slope), flat(act))
            turn(at_second, above.back)
            product(delta, above.back, pull, none, one, Part.WHOLE)
            copy(pull, inner)
            times(inner, slope)
            scale(inner, theta[bottom], inner)
            scale(delta, theta[top], outer)
            copy(kept.reads[n, r], asked_slope)
            gelu_and_slope(flat(asked_slope), flat(asked))

            clear(d_key)
            clear(d_act)
            clear(d_inner)
            clear(d_outer)
            clear(d_last)
            clear(d_carry)
            clear(d_keep)
            for g in range(gates):
                clear(d_mix[g])
            update_gradient(key, inner, first, push, moving, shares, bottom, below,
                            d_first, d_push, d_key, d_inner, d_last, d_mix, d_carry, d_keep)  # fmt: skip
            update_gradient(act, outer, second, push_second, moving, shares, top, above,
                            d_second, d_push_second, d_act, d_outer, d_last, d_mix, d_carry, d_keep)  # fmt: skip
            read_gradient(asked, act, outer, second, push_second, moving, shares, top, above, d_out[n, r],
                          d_asked, d_act, d_outer, d_second, d_push_second, d_mix, d_carry, d_keep)  # fmt: skip
            times(d_asked, asked_slope)
            read_gradient(query, key, inner, first, push, moving, shares, bottom, below, d_asked,
                          d_given.queries[n, r], d_key, d_inner, d_first, d_push, d_mix, d_carry, d_keep)  # fmt: skip
            for g in range(gates):
                unroll_gradient(shares.gate[g], shares.push[g], shares.mix[g], shares.carry[g], shares.keep[g],
                                d_last[g], d_mix[g], d_carry[g], d_keep[g], d_gate)  # fmt: skip
                for i in range(size):
                    there = shares.gate[g, 2, i]
                    if moving:
                        d_given.eta[g, n, r, i] = d_gate[0, i] * there
                    if given.alpha.size:
                        d_given.alpha[g, n, r, i] = -d_gate[1, i] * there

            # The steps: `d_inner` and `d_outer` become the gradients by the deltas.
            copy(pull, inner)
            times(inner, slope)
            clear(d_theta)
            add_dots(d_inner, inner, d_theta[bottom])
            add_dots(d_outer, delta, d_theta[top])
            scale(d_inner, theta[bottom], d_inner)
            scale(d_outer, theta[top], d_outer)
            if does.stiff:
                stiffness_gradient(key, act, inner, delta, theta, squares, d_theta, d_key, d_act, d_inner, d_outer)
            copy(d_theta, d_given.rate[:, n, r])

            # The keys.
            if n == chunks - 1:
                plus(d_at, d_start[0][r])
                plus(d_at_second, d_start[1][r])
            d_sums = inner
            bend(flat(kept.hidden[n, r]), flat(pull), flat(d_inner), flat(d_sums))
            times(d_inner, slope)
            product(d_inner, at_second, d_outer, one, one, Part.WHOLE)
            product(d_inner.T, delta, d_at_second, one, one, Part.WHOLE)
            d_value = d_given.values[n, r]
            for i in range(size):
                for j in range(d_outer.shape[1]):
                    d_outer[i, j] *= two
                    d_value[i, j] = -d_outer[i, j]
            product(act.T, d_outer, d_at_second, one, one, Part.WHOLE)
            turn(at_second, above.back)
            product(d_outer, above.back, d_act, one, one, Part.WHOLE)
            times(d_act, slope)
            plus(d_sums, d_act)
            product(key.T, d_sums, d_at, one, one, Part.WHOLE)
            turn(at, below.back)
            product(d_sums, below.back, d_key, one, one, Part.WHOLE)
            if n and does.cap > 0:
                capped_gradient(flat(first), kept.factors[n, r, 0], flat(d_first))
                capped_gradient(flat(second), kept.factors[n, r, 1], flat(d_second))


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


class InKernels(torch.autograd.Function):
    """`whole_chunks` as one node of the graph, in one kernel each way."""

    @staticmethod
    def forward(ctx: Any, form: Form, *tensors: Any) -> tuple[Tensor, ...]:
        """Reads, then weights, momentum and the last chunk's first weights, two each."""
        queries, keys, values, rate, eta, alpha, written, *rest = tensors
        state = tuple(x.contiguous() for x in rest)
        weights, momentum = state[:2], state[2:4]
        chunks, rows, size, _ = queries.shape
        new, wide, saving = queries.new_empty, weights[0].shape[-1], any(ctx.needs_input_grad)
        does = Does(eta is not None, form.stiff, form.anchored, saving, form.cap or 0.0)
        given = Given(
            queries, keys, values, rate,
            eta=new(0, 0, 0, 0) if eta is None else eta,
            alpha=new(0, 0, 0, 0) if alpha is None else alpha,
            written=torch.empty(0, 0, 0, dtype=torch.bool) if written is None else written.contiguous(),
            anchor=state[4:] or weights,
        )  # fmt: skip
        room = chunks if saving else 1

        def since(leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            then = tuple(new(room + saving, *leaf.shape) for leaf in leaves)
            for leaf, now in zip(then, leaves, strict=True):
                leaf[0] = now
            return then

        moved = since(weights)
        tape = Kept(
            weights=moved,
            momentum=since(momentum) if does.momentum else moved,  # which are then not looked at
            factors=new(chunks, rows, 2),
            hidden=new(room, rows, size, wide),
            reads=new(room, rows, size, wide),
            delta=new(room, rows, size, values.shape[-1]),
            stiffness=new(room, rows, size),
            theta=new(len(rate), room, rows, size),
        )
        out, start = torch.empty_like(values), tuple(torch.empty_like(x) for x in weights)
        shared(forward, rows, does, given, tape, out, start)
        if saving:
            # Saved as tensors and not on the context itself: whoever checkpoints drops what is saved, and nothing else.
            flat, ctx.layout = tree_flatten((given, tape))
            ctx.does = does
            ctx.save_for_backward(*flat)
        return (out, *(leaf[-1].clone() for leaf in (*tape.weights, *tape.momentum)), *start)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Every row and head from its last chunk to its first."""
        given, tape = tree_unflatten(ctx.saved_tensors, ctx.layout)
        d_out, *d_ends = (x.contiguous() for x in grads)
        d_weights, d_momentum = (tuple(x.clone() for x in d_ends[i : i + 2]) for i in (0, 2))
        d_anchor = tuple(torch.zeros_like(x) for x in d_weights)
        d_given = tree_map(torch.empty_like, given)._replace(anchor=d_anchor)
        shared(
            backward, d_out.shape[1], ctx.does, given, tape, d_out, tuple(d_ends[4:]), d_given, d_weights, d_momentum
        )
        d_gates = (x if x.numel() else None for x in (d_given.eta, d_given.alpha))
        d_state = (*d_weights, *(d_momentum if ctx.does.momentum else (None, None)))
        return (None, *d_given[:4], *d_gates, None, *d_state, *(d_anchor if ctx.does.anchored else ()))


def scalars(*gates: Any) -> tuple[Any, ...]:
    """In place of `chunked.gates_of`: the kernels take rate, eta, alpha and what is written as they come.

    >>> scalars(torch.ones(1, 2, 1, 3), None, None, None, 1)[1:]
    (None, None, None)
    """
    return gates[:4]


def in_kernels(
    form: Form, queries: Tensor, keys: Tensor, values: Tensor, gates: tuple[Any, ...], *state: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
    """`dual.whole_chunks` of a memory with two layers and no residual path.

    >>> in_kernels.__name__
    'in_kernels'
    """
    leaves = [leaf for part in state for leaf in part]
    out = InKernels.apply(form, queries, keys, values, *gates, *leaves)  # type: ignore[no-untyped-call]
    return out[0], out[1:3], tuple(state[1]) if gates[1] is None else out[3:5], out[5:]
