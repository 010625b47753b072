"""The dual form with the state kept on chip: Triton kernels in which one program takes one row and head through all its
chunks, weights and momentum in its registers from the first token to the last.

What is cheap or the business of clocks stays in torch and is that of `chunked`: cutting at the clocks, caps and budgets
before the first chunk. The scalars of the recurrences (`coefficients`) are a small kernel for all chunks at once. The
others are `dual.whole_chunks`: all chunks in one launch where the rows agree on their clocks and lengths, and otherwise
a launch a chunk.

A chunk of C tokens, every token's keep, carry, theta and last row of mix and trail a column [C 1], mix [C C]; k, v, q,
y [C K]; W, S [K K]. Linear memory:

    d = 2 (k A - v)                                  A the anchor; the error of a frozen gradient
    d = 2 e, (I + L) e = keep' k W + carry' k S - v  the exact form: L = (k k^T) * mix' * 2 theta^T, and ' is
                                                     the token before (row after row, for powers of L lose digits)
    e = theta d                                      divided by the stiffness where there is a step budget
    y = keep (q W) + carry (q S) - ((q k^T) * mix) e
    W <- keep_C W + carry_C S - (k * mix_C)^T e      S <- fade S - (k * trail)^T e

A memory with one hidden layer has W, S [K J] and [J K], and the same sums for both layers. Its kernels cut the hidden
layer into slices, a program each, so that few rows fill a large chip and no program holds more than its registers can
(`triton_deep`).

The gradient is a kernel too: from the last chunk to the first, with dW and dS on chip. That of a linear memory reads W
and S of every chunk's start, which the forward pass left in memory. A hidden layer's are too large to be left there for
all chunks: its forward pass leaves nothing, and the backward pass computes the states of its run once more. What the
queries read has no order, and its gradient is `dual`'s products over all chunks at once. A residual memory is computed
once more by `dual` altogether.

Products are sums of three products of tensor cores with 11 bits each (`input_precision="tf32x3"`), about as good as
float32. Sizes are padded to powers of two from 16 on, and what is padded is zero.

They are checked in the interpreter, compiled, and held to the reference on a GPU (RESULTS.md, "On a GPU").

B row, H head, N chunk, R row and head together, C token of the chunk, K key or value, J hidden, G gate.
"""

from collections.abc import Sequence
from functools import cache, partial
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ..config import require
from ..state import MemoryState, leaves
from .chunked import gates_of, in_runs
from .coefficients import Recurrences
from .contract import Rule, Tokens
from .dual import Dual, Form, Gates, Tape, _gate_of, _read, _read_gradient
from .sizes import ON_CHIP, SLICES, Cut, cut_of, on_chip, padded
from .triton_deep import deep_backward, deep_forward, gates_at, output_delta, product, read, updated

LONGEST = 2**16  # chunks of one launch of a linear memory
SPAN = 4096  # chunks of all rows and heads in one launch of a deep one, whose states the backward pass holds at once
WARPS = 8  # of a program; on an H200 the gradient of a deep memory takes a third more time with 4,
WARPS_THERE = 4  # and its way there with 8 takes a sixth more


@triton.jit
@no_type_check
def shrunk(weight, bound):
    """The factor that scales a weight back to the Frobenius norm `bound`, at most 1."""
    norm = tl.sqrt(tl.sum(tl.sum(weight * weight, 1), 0))
    return tl.minimum(bound / tl.maximum(norm, 1e-12), 1.0)


@triton.jit
@no_type_check
def solved(system, right, size, C: tl.constexpr):
    """x of (I + system) x = right, where only what lies below the diagonal is not zero."""
    rows = tl.arange(0, C)
    x = right
    for i in range(1, size):
        here = (rows == i)[:, None]
        line = tl.sum(tl.where(here, system, 0.0), 0)
        x = tl.where(here, x - tl.sum(line[:, None] * x, 0)[None, :], x)
    return x


@triton.jit
@no_type_check
def solved_transposed(system, right, size, C: tl.constexpr):
    """x of (I + system)^T x = right, from the last row to the first."""
    rows = tl.arange(0, C)
    x = right
    for back in range(1, size):
        i = size - 1 - back
        line = tl.sum(tl.where((rows == i)[None, :], system, 0.0), 1)
        x = tl.where((rows == i)[:, None], x - tl.sum(line[:, None] * x, 0)[None, :], x)
    return x


@triton.jit
@no_type_check
def gates_before(keep, carry, mix, here, size, C: tl.constexpr, MOVING: tl.constexpr):
    """keep, carry [C] and mix [C C] of the token before; before the first the state is whole."""
    c = tl.arange(0, C)
    inside = (c >= 1) & (c < size)
    keeps = tl.load(keep + here * size + c - 1, mask=inside, other=1.0)
    carries = keeps
    if MOVING:
        carries = tl.load(carry + here * size + c - 1, mask=inside, other=0.0)
    pairs = here * size * size + (c[:, None] - 1) * size + c[None, :]
    mixes = tl.load(mix + pairs, mask=inside[:, None] & (c < size)[None, :], other=0.0)
    return keeps, carries, mixes


@triton.jit(do_not_specialize=["chunks", "rows", "size"])
@no_type_check
def linear_forward(
    queries, keys, values, rate, keep, carry, mix, fade, trail, weights, momentum, anchor,
    reads, moved, pushed, start, deltas, kept_weights, kept_momentum, factors,
    chunks, rows, size, C: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr, CAP: tl.constexpr,
    RESIDUAL: tl.constexpr, STIFF: tl.constexpr, ANCHORED: tl.constexpr, EXACT: tl.constexpr, MOVING: tl.constexpr,
    SAVING: tl.constexpr,
):  # fmt: skip
    """All chunks of one row and head of a linear memory. SAVING: leave deltas, states and caps to the gradient."""
    row = tl.program_id(0)
    c, k = tl.arange(0, C), tl.arange(0, K)
    wide = (k < WIDTH)[None, :]
    token, is_token = c[:, None] * WIDTH + k[None, :], (c < size)[:, None] & wide
    cell, is_cell = k[:, None] * WIDTH + k[None, :], (k < WIDTH)[:, None] & wide
    mine = row.to(tl.int64) * WIDTH * WIDTH + cell
    weight = tl.load(weights + mine, mask=is_cell, other=0.0)
    push = weight
    if MOVING:
        push = tl.load(momentum + mine, mask=is_cell, other=0.0)
    for n in range(chunks):
        here = row.to(tl.int64) + n * rows
        at_token, at_cell = here * size * WIDTH + token, here * WIDTH * WIDTH + cell
        if CAP is not None:
            factor = tl.where(n > 0, shrunk(weight, CAP), 1.0)
            weight *= factor
            if SAVING:
                tl.store(factors + 2 * here, factor)
            if EXACT and MOVING:
                factor = tl.where(n > 0, shrunk(push, CAP), 1.0)
                push *= factor
                if SAVING:
                    tl.store(factors + 2 * here + 1, factor)
        if SAVING:
            tl.store(kept_weights + at_cell, weight, mask=is_cell)
            if MOVING:
                tl.store(kept_momentum + at_cell, push, mask=is_cell)
        base = weight
        if ANCHORED:  # noqa: SIM102 (this one is decided when the kernel is compiled, the other when it runs)
            if n == 0:
                base = tl.load(anchor + mine, mask=is_cell, other=0.0)
        if n == chunks - 1:
            tl.store(start + mine, base, mask=is_cell)

        key = tl.load(keys + at_token, mask=is_token, other=0.0)
        value = tl.load(values + at_token, mask=is_token, other=0.0)
        theta = tl.load(rate + here * size + c, mask=c < size, other=0.0)
        if EXACT:
            keep_0, carry_0, mix_0 = gates_before(keep, carry, mix, here, size, C, MOVING)
            right = keep_0[:, None] * product(key, weight) - value
            if MOVING:
                right += carry_0[:, None] * product(key, push)
            system = product(key, tl.trans(key)) * mix_0 * (2 * theta)[None, :]
            delta = 2 * solved(system, right, size, C)
        else:
            delta = output_delta(product(key, base), key, value, wide, WIDTH, RESIDUAL)
        if SAVING:
            tl.store(deltas + at_token, delta, mask=is_token)
        if STIFF:
            square = tl.sum(delta * delta, 1)
            theta /= tl.maximum(tl.sum(key * key, 1) * square / (square + 1e-12), 1.0)
        error = theta[:, None] * delta

        keep_c, carry_c, mix_c, keep_n, carry_n, mix_n, fade_n, trail_n = gates_at(
            keep, carry, mix, fade, trail, here, size, C, MOVING
        )
        query = tl.load(queries + at_token, mask=is_token, other=0.0)
        y = read(query, key, error, weight, push, keep_c, carry_c, mix_c, MOVING)
        tl.store(reads + at_token, y, mask=is_token)
        weight, push = updated(key, error, weight, push, keep_n, carry_n, mix_n, fade_n, trail_n, MOVING)
    tl.store(moved + mine, weight, mask=is_cell)
    if MOVING:
        tl.store(pushed + mine, push, mask=is_cell)


@triton.jit(do_not_specialize=["chunks", "rows", "size"])
@no_type_check
def linear_backward(
    queries, keys, rate, keep, carry, mix, fade, trail, anchor, deltas, kept_weights, kept_momentum, factors,
    d_reads, d_moved, d_pushed, d_start,
    d_queries, d_keys, d_values, d_rate, d_keep, d_carry, d_mix, d_fade, d_trail, d_weights, d_momentum, d_anchor,
    chunks, rows, size, C: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr, STIFF: tl.constexpr,
    CAPPED: tl.constexpr, ANCHORED: tl.constexpr, EXACT: tl.constexpr, MOVING: tl.constexpr,
):  # fmt: skip
    """The gradient of `linear_forward`, chunk by chunk from the last; what was cheap is computed again."""
    row = tl.program_id(0)
    c, k = tl.arange(0, C), tl.arange(0, K)
    wide = (k < WIDTH)[None, :]
    inside = c < size
    token, is_token = c[:, None] * WIDTH + k[None, :], inside[:, None] & wide
    cell, is_cell = k[:, None] * WIDTH + k[None, :], (k < WIDTH)[:, None] & wide
    mine = row.to(tl.int64) * WIDTH * WIDTH + cell
    at_last = c == size - 1
    d_weight = tl.load(d_moved + mine, mask=is_cell, other=0.0)
    d_push = d_weight
    if MOVING:
        d_push = tl.load(d_pushed + mine, mask=is_cell, other=0.0)
    for back in range(chunks):
        n = chunks - 1 - back
        here = row.to(tl.int64) + n * rows
        at_token, at_cell = here * size * WIDTH + token, here * WIDTH * WIDTH + cell
        weight = tl.load(kept_weights + at_cell, mask=is_cell, other=0.0)
        push = weight
        if MOVING:
            push = tl.load(kept_momentum + at_cell, mask=is_cell, other=0.0)
        key = tl.load(keys + at_token, mask=is_token, other=0.0)
        delta = tl.load(deltas + at_token, mask=is_token, other=0.0)
        rates = tl.load(rate + here * size + c, mask=inside, other=0.0)
        key_square, square = tl.sum(key * key, 1), tl.sum(delta * delta, 1)
        quotient = key_square * square / (square + 1e-12)
        theta = rates
        if STIFF:
            theta = rates / tl.maximum(quotient, 1.0)
        error = theta[:, None] * delta
        keep_c, carry_c, mix_c, keep_n, carry_n, mix_n, fade_n, trail_n = gates_at(
            keep, carry, mix, fade, trail, here, size, C, MOVING
        )

        # The reads: y = keep (q W) + carry (q S) - ((q k^T) * mix) e.
        query = tl.load(queries + at_token, mask=is_token, other=0.0)
        d_y = tl.load(d_reads + at_token, mask=is_token, other=0.0)
        scores = product(query, tl.trans(key))
        d_score = product(d_y, tl.trans(error))
        d_error = -product(tl.trans(scores * mix_c), d_y)
        d_mixes = -d_score * scores
        d_score *= mix_c
        d_key = -product(tl.trans(d_score), query)
        part = product(d_y, tl.trans(weight))
        d_query = keep_c[:, None] * part - product(d_score, key)
        d_keeps = tl.sum(part * query, 1)
        more_weight = product(tl.trans(query * keep_c[:, None]), d_y)
        if MOVING:
            part = product(d_y, tl.trans(push))
            d_query += carry_c[:, None] * part
            d_carries = tl.sum(part * query, 1)
            more_push = product(tl.trans(query * carry_c[:, None]), d_y)
        tl.store(d_queries + at_token, d_query, mask=is_token)

        # The update: W <- keep W + carry S - (k * mix)^T e, and S <- fade S - (k * trail)^T e.
        part = product(error, tl.trans(d_weight))
        d_error -= product(key * mix_n[:, None], d_weight)
        d_key -= part * mix_n[:, None]
        d_mixes -= tl.where(at_last[:, None], tl.sum(part * key, 1)[None, :], 0.0)
        d_keeps += tl.where(at_last, tl.sum(tl.sum(d_weight * weight, 1), 0), 0.0)
        if MOVING:
            part = product(error, tl.trans(d_push))
            d_error -= product(key * trail_n[:, None], d_push)
            d_key -= part * trail_n[:, None]
            tl.store(d_trail + here * size + c, -tl.sum(part * key, 1), mask=inside)
            d_carries += tl.where(at_last, tl.sum(tl.sum(d_weight * push, 1), 0), 0.0)
            tl.store(d_fade + here, tl.sum(tl.sum(d_push * push, 1), 0))
            d_push = fade_n * d_push + carry_n * d_weight + more_push
        d_weight = keep_n * d_weight + more_weight

        # The steps: e = theta d, and theta is divided by the stiffness where that is above 1.
        d_theta = tl.sum(d_error * delta, 1)
        d_delta = d_error * theta[:, None]
        d_rates = d_theta
        if STIFF:
            d_rates = d_theta / tl.maximum(quotient, 1.0)
            d_whole = tl.where(quotient >= 1, -d_rates * theta, 0.0) / (square + 1e-12)
            d_key += key * (2 * d_whole * square)[:, None]
            d_delta += delta * (2 * d_whole * (key_square - quotient))[:, None]

        # The errors.
        if EXACT:
            keep_0, carry_0, mix_0 = gates_before(keep, carry, mix, here, size, C, MOVING)
            next_one = (c[:, None] + 1 == c[None, :]).to(key.dtype)  # x -> x of the token behind
            products = product(key, tl.trans(key))
            system = products * mix_0 * (2 * rates)[None, :]
            d_right = 2 * solved_transposed(system, d_delta, size, C)
            tl.store(d_values + at_token, -d_right, mask=is_token)
            part = product(d_right, tl.trans(weight))
            d_key += part * keep_0[:, None]
            d_keeps += tl.sum(next_one * tl.sum(part * key, 1)[None, :], 1)
            d_weight += product(tl.trans(key * keep_0[:, None]), d_right)
            if MOVING:
                part = product(d_right, tl.trans(push))
                d_key += part * carry_0[:, None]
                d_carries += tl.sum(next_one * tl.sum(part * key, 1)[None, :], 1)
                d_push += product(tl.trans(key * carry_0[:, None]), d_right)
            d_system = -0.5 * product(d_right, tl.trans(delta))
            d_mixes += product(next_one, d_system * products * (2 * rates)[None, :])
            d_system *= mix_0
            d_rates += 2 * tl.sum(d_system * products, 0)
            d_system *= (2 * rates)[None, :]
            d_key += product(d_system + tl.trans(d_system), key)
            if n == chunks - 1:
                d_weight += tl.load(d_start + mine, mask=is_cell, other=0.0)
        else:
            d_sums = 2 * d_delta
            tl.store(d_values + at_token, -d_sums, mask=is_token)
            d_base = product(tl.trans(key), d_sums)
            if n == chunks - 1:
                d_base += tl.load(d_start + mine, mask=is_cell, other=0.0)
            base = weight
            if ANCHORED:  # noqa: SIM102
                if n == 0:
                    base = tl.load(anchor + mine, mask=is_cell, other=0.0)
                    tl.store(d_anchor + mine, d_base, mask=is_cell)
                    d_base = tl.zeros_like(d_base)
            d_weight += d_base
            d_key += product(d_sums, tl.trans(base))
        tl.store(d_keys + at_token, d_key, mask=is_token)
        tl.store(d_rate + here * size + c, d_rates, mask=inside)
        tl.store(d_keep + here * size + c, d_keeps, mask=inside)
        pairs = here * size * size + c[:, None] * size + c[None, :]
        tl.store(d_mix + pairs, d_mixes, mask=inside[:, None] & inside[None, :])
        if MOVING:
            tl.store(d_carry + here * size + c, d_carries, mask=inside)

        # The cap: w <- factor w, and the factor hangs on the norm where it is below 1. `weight` is the scaled one.
        if CAPPED:
            factor = tl.load(factors + 2 * here)
            d_weight = uncapped(weight, factor, d_weight)
            if EXACT and MOVING:
                factor = tl.load(factors + 2 * here + 1)
                d_push = uncapped(push, factor, d_push)
    tl.store(d_weights + mine, d_weight, mask=is_cell)
    if MOVING:
        tl.store(d_momentum + mine, d_push, mask=is_cell)


@triton.jit
@no_type_check
def uncapped(weight, factor, d_weight):
    """The gradient before the cap of that behind it."""
    along = tl.sum(tl.sum(d_weight * weight, 1), 0) / tl.maximum(tl.sum(tl.sum(weight * weight, 1), 0), 1e-24)
    return factor * (d_weight - tl.where(factor < 1, along, 0.0) * weight)


@triton.jit(do_not_specialize=["rows", "size"])
@no_type_check
def recurrences_forward(
    eta, stay, written, weight, push, rows, size, ROWS: tl.constexpr, WIDE: tl.constexpr, MASKED: tl.constexpr
):
    """`Recurrences.forward` of some chunks of any rows and heads: every source of their tokens a column."""
    row, column = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None], tl.arange(0, WIDE)[None, :]
    there = row < rows
    real = there & (column < size + 2)
    kind = eta.dtype.element_ty
    before = tl.zeros([ROWS, WIDE], kind) + (column == size).to(kind)
    past = tl.zeros([ROWS, WIDE], kind) + (column == size + 1).to(kind)
    for i in range(size):
        at = row * size + i
        before = before * tl.load(eta + at, mask=there, other=0.0) + (column == i).to(kind)
        added = before
        if MASKED:
            added = before * tl.load(written + at, mask=there, other=0.0)
        past = past * tl.load(stay + at, mask=there, other=0.0) + added
        tl.store(push + at * (size + 2) + column, before, mask=real)
        tl.store(weight + at * (size + 2) + column, past, mask=real)


@triton.jit(do_not_specialize=["rows", "size"])
@no_type_check
def recurrences_backward(
    eta, stay, written, weight, push, d_mix, d_carry, d_keep, d_last, d_eta, d_stay, rows, size,
    ROWS: tl.constexpr, WIDE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The same from the last token to the first."""
    row, column = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None], tl.arange(0, WIDE)[None, :]
    there = row < rows
    real = there & (column < size + 2)
    kind = eta.dtype.element_ty
    d_past = tl.zeros([ROWS, WIDE], kind)
    d_before = tl.load(d_last + row * (size + 2) + column, mask=real, other=0.0)
    for back in range(size):
        i = size - 1 - back
        at = row * size + i
        d_past += tl.load(d_mix + at * size + column, mask=there & (column < size), other=0.0)
        d_past += tl.where(column == size, tl.load(d_carry + at, mask=there, other=0.0), 0.0)
        d_past += tl.where(column == size + 1, tl.load(d_keep + at, mask=there, other=0.0), 0.0)
        added = d_past
        if MASKED:
            added = d_past * tl.load(written + at, mask=there, other=0.0)
        d_before += added
        # Before the first token the weights and the momentum are the state's own.
        behind = row * size + tl.maximum(i - 1, 0)
        earlier = tl.load(weight + behind * (size + 2) + column, mask=real, other=0.0)
        earlier = tl.where(column * 0 + i > 0, earlier, (column == size + 1).to(kind))
        tl.store(d_stay + at, tl.sum(d_past * earlier, 1)[:, None], mask=there)
        earlier = tl.load(push + behind * (size + 2) + column, mask=real, other=0.0)
        earlier = tl.where(column * 0 + i > 0, earlier, (column == size).to(kind))
        tl.store(d_eta + at, tl.sum(d_before * earlier, 1)[:, None], mask=there)
        d_past *= tl.load(stay + at, mask=there, other=0.0)
        d_before *= tl.load(eta + at, mask=there, other=0.0)


# What stands around the kernels.

INTERPRETED = not isinstance(product, triton.JITFunction)  # TRITON_INTERPRET=1 when triton was imported
DEVICE = "cpu" if INTERPRETED else "cuda"


def bound(form: Form, width: int) -> float | None:
    """The largest Frobenius norm of a layer with so many outputs at a chunk's start.

    >>> bound(Form(layers=1, cap=2.0), 16)
    8.0
    """
    return None if form.cap is None else form.cap * width**0.5


def in_kernels(
    form: Form,
    queries: Float[Tensor, "N R C K"],
    keys: Float[Tensor, "N R C K"],
    values: Float[Tensor, "N R C K"],
    gates: Gates,
    weights: Sequence[Float[Tensor, "R _ _"]],
    momentum: Sequence[Float[Tensor, "R _ _"]],
    anchor: Sequence[Float[Tensor, "R _ _"]] = (),
) -> tuple[Float[Tensor, "N R C K"], tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
    """`dual.whole_chunks` in one launch.

    >>> x, w, g = (torch.ones(shape, device=DEVICE) for shape in ((1, 1, 1, 1), (1, 1, 1), (1, 1, 1, 1)))
    >>> gates = Gates(0.5 * g, g, None, g[..., None], None, None)
    >>> reads, (end,), _, _ = in_kernels(Form(layers=1), x, x, 3 * x, gates, [w], [w])
    >>> reads.item(), end.item()
    (3.0, 3.0)
    """
    layers = form.layers
    node = ByTorch if form.residual else Linear if layers == 1 else Deep
    parts = (*gates, *weights, *momentum, *anchor)
    out = node.apply(form, queries, keys, values, *(None if x is None else x.contiguous() for x in parts))  # type: ignore[no-untyped-call]
    moved, pushed, start = (tuple(out[1 + i * layers : 1 + (i + 1) * layers]) for i in range(3))
    return out[0], moved, pushed, start


class Linear(torch.autograd.Function):
    """`in_kernels` for a linear memory without residual: a kernel there and a kernel back."""

    @staticmethod
    def forward(ctx: Any, form: Form, *parts: Any) -> tuple[Tensor, ...]:
        """Reads, weights and momentum after the last chunk, and the weights it took its gradients at."""
        saving = any(ctx.needs_input_grad)
        out, tape = launch_linear(form, parts, saving)
        if saving:
            ctx.form = form
            ctx.save_for_backward(*parts, *tape)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """One launch, which writes every gradient."""
        form: Form = ctx.form
        count = 12 if form.anchored else 11
        parts, tape = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        found = [None if part is None else torch.empty_like(part) for part in parts]
        queries, keys, _, *gates = parts[:9]
        chunks, rows, size, width = queries.shape
        moving = gates[2] is not None
        none = queries.new_empty(0)
        anchor, d_anchor = (parts[11], found[11]) if form.anchored else (none, none)
        linear_backward[(rows,)](
            queries, keys, *(none if x is None else x for x in (*gates, anchor, *tape)),
            *(grad.contiguous() for grad in grads), *(none if x is None else x for x in (*found[:11], d_anchor)),
            chunks, rows, size, C=padded(size), K=padded(width), WIDTH=width, STIFF=form.stiff,
            CAPPED=form.cap is not None, ANCHORED=form.anchored, EXACT=form.exact, MOVING=moving, num_warps=WARPS,
        )  # fmt: skip
        if not moving:
            found[10] = grads[2]  # momentum that is neither read nor written goes through as it came
        return None, *found


class Deep(torch.autograd.Function):
    """`in_kernels` for a memory with one hidden layer and no residual: a kernel there; on the way back the same kernel,
    which then keeps the states, `dual`'s products of the reads, and a kernel of its own."""

    @staticmethod
    def forward(ctx: Any, form: Form, *parts: Any) -> tuple[Tensor, ...]:
        """As that of `Linear`, layer by layer."""
        ctx.form = form
        ctx.save_for_backward(*parts)
        return launch_deep(form, parts)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """States, reads and their gradients, then the keys from the last chunk to the first."""
        return None, *deep_gradient(ctx.form, ctx.saved_tensors, grads)


class ByTorch(torch.autograd.Function):
    """`in_kernels` for a residual memory: a kernel there; `dual` computes it again on the way back."""

    @staticmethod
    def forward(ctx: Any, form: Form, *parts: Any) -> tuple[Tensor, ...]:
        """As that of `Linear`, layer by layer."""
        ctx.form = form
        ctx.save_for_backward(*parts)
        return launch_linear(form, parts, False)[0] if form.layers == 1 else launch_deep(form, parts)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """The gradient of `Dual`, at the cost of its forward pass besides."""
        wanted = ctx.needs_input_grad[1:]
        leaves = [
            None if part is None else part.detach().requires_grad_(want)
            for part, want in zip(ctx.saved_tensors, wanted, strict=True)
        ]
        with torch.enable_grad():
            out = Dual.apply(ctx.form, *leaves)  # type: ignore[no-untyped-call]
        into = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
        found = iter(torch.autograd.grad(out, into, grads))
        return None, *(next(found) if want else None for want in wanted)


class Recurred(torch.autograd.Function):
    """`Recurrences` as a kernel there and a kernel back, instead of a few launches a token of the chunk."""

    @staticmethod
    def forward(ctx: Any, eta: Tensor, stay: Tensor, written: Tensor | None) -> tuple[Tensor, ...]:
        """The columns of W and the last of S, as `Recurrences` gives them."""
        rows, size = eta.shape
        eta, stay = eta.contiguous(), stay.contiguous()
        written = None if written is None else written.contiguous()
        weight, push = eta.new_empty(2, rows, size, size + 2)
        together = padded(rows) if INTERPRETED else 8
        recurrences_forward[(-(-rows // together),)](
            eta, stay, eta if written is None else written, weight, push, rows, size, ROWS=together,
            WIDE=padded(size + 2), MASKED=written is not None,
        )  # fmt: skip
        ctx.save_for_backward(eta, stay, written, weight, push)
        return weight[..., :size], weight[..., size], weight[..., size + 1], push[:, -1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """One launch."""
        eta, stay, written, weight, push = ctx.saved_tensors
        rows, size = eta.shape
        d_eta, d_stay = torch.empty_like(eta), torch.empty_like(stay)
        together = padded(rows) if INTERPRETED else 8
        recurrences_backward[(-(-rows // together),)](
            eta, stay, eta if written is None else written, weight, push, *(grad.contiguous() for grad in grads),
            d_eta, d_stay, rows, size, ROWS=together, WIDE=padded(size + 2), MASKED=written is not None,
        )  # fmt: skip
        return d_eta, d_stay, None


def recurred(eta: Tensor | None, stay: Tensor | None, written: Tensor | None) -> tuple[Tensor, ...]:
    """`Recurrences` of the same arguments; without momentum or without forgetting it is that itself.

    >>> gate = torch.full((1, 1), 0.5, device=DEVICE)
    >>> [x.tolist() for x in recurred(gate, gate, None)[1:3]]
    [[[0.5]], [[0.5]]]
    """
    node = Recurrences if eta is None or stay is None else Recurred
    out: tuple[Tensor, ...] = node.apply(eta, stay, written)  # type: ignore[no-untyped-call]
    return out


def launch_linear(form: Form, parts: Sequence[Any], saving: bool) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What `linear_forward` makes of the arguments of `in_kernels`, and with `saving` what it left to the gradient.

    >>> x, w, g = (torch.ones(shape, device=DEVICE) for shape in ((1, 1, 1, 1), (1, 1, 1), (1, 1, 1, 1)))
    >>> parts = (x, x, 3 * x, 0.5 * g, g, None, g[..., None], None, None, w, w)
    >>> launch_linear(Form(layers=1), parts, False)[0][0].item()
    3.0
    """
    queries, keys, values, *gates = parts[:9]
    weights, momentum = parts[9:11]
    chunks, rows, size, width = queries.shape
    moving = gates[2] is not None
    none = queries.new_empty(0)
    out = (torch.empty_like(queries), torch.empty_like(weights), momentum.clone(), torch.empty_like(weights))
    kept = (chunks, rows, width, width)
    tape = (
        torch.empty_like(values) if saving else none,
        values.new_empty(kept) if saving else none,
        values.new_empty(kept) if saving and moving else none,
        values.new_empty(chunks, rows, 2) if saving and form.cap is not None else none,
    )
    linear_forward[(rows,)](
        queries, keys, values, *(none if gate is None else gate for gate in gates), weights, momentum,
        parts[11] if form.anchored else none, *out, *tape, chunks, rows, size, C=padded(size), K=padded(width),
        WIDTH=width, CAP=bound(form, width), RESIDUAL=form.residual, STIFF=form.stiff, ANCHORED=form.anchored,
        EXACT=form.exact, MOVING=moving, SAVING=saving, num_warps=WARPS,
    )  # fmt: skip
    return out, tape


def cut_here(width: int, hidden: int) -> Cut:
    """`cut_of`; in the interpreter, which runs one program after the other so that none can wait for another, uncut.

    >>> cut_here(16, 64)
    Cut(width=64, split=1, parts=1)
    """
    return Cut(padded(hidden), 1, 1) if INTERPRETED else cut_of(width, hidden)


@cache
def programs(device: torch.device) -> int:
    """How many programs of any of these kernels run at once for certain: one on a multiprocessor."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def at_once(cut: Cut, rows: int, device: torch.device) -> int:
    """Rows of one launch: where programs wait for each other, as many as run at once.

    >>> at_once(Cut(16, 1, 1), 5, torch.device("cpu"))
    5
    """
    return rows if cut.split == 1 else max(1, programs(device) // cut.split)


def exchange(cut: Cut, like: Tensor, *shape: int) -> Tensor:
    """Where programs leave their parts for each other, all of it empty; nothing where none has to.

    >>> exchange(Cut(16, 2, 2), torch.ones(1), 3).tolist(), exchange(Cut(16, 1, 1), torch.ones(1), 3).shape
    ([-1, -1, -1], torch.Size([0]))
    """
    if cut.split == 1:
        return like.new_empty(0)
    return torch.full(shape, -1, dtype=torch.int32, device=like.device)


def launched(kernel: Any, warps: int, cut: Cut, rows: int, device: torch.device, *given: Any, **sizes: Any) -> None:
    """Run a kernel of `triton_deep` for all rows, as many at a time as run at once.

    >>> class Said:
    ...     def __getitem__(self, grid):
    ...         return lambda *given, **sizes: print(grid, given, sizes["num_warps"])
    >>> launched(Said(), 4, Cut(16, 1, 1), 5, torch.device("cpu"), "before", 3, 16)
    (5,) ('before', 0, 3, 5, 16) 4
    """
    together = at_once(cut, rows, device)
    # A cooperative launch is one whose programs all run at once, or an error.
    options = {"num_warps": warps, **({"launch_cooperative_grid": True} if cut.split > 1 else {})}
    *before, chunks, size = given
    for first in range(0, rows, together):
        grid = (min(together, rows - first) * cut.split,)
        kernel[grid](*before, first, chunks, rows, size, SPLIT=cut.split, PARTS=cut.parts, **sizes, **options)


def launch_deep(form: Form, parts: Sequence[Any], saving: bool = False) -> tuple[tuple[Tensor, ...], Tape | None]:
    """What `deep_forward` makes of the arguments of `in_kernels`; with `saving` it reads nothing and keeps what the
    gradient needs.

    >>> x, w, g = (torch.ones(shape, device=DEVICE) for shape in ((1, 1, 1, 1), (1, 1, 1), (1, 1, 1, 1)))
    >>> parts = (x, x, x, 0 * g, g, None, g[..., None], None, None, w, w, w, w)
    >>> launch_deep(Form(layers=2), parts)[0][0].item()
    0.8413447141647339
    """
    queries, keys, values, *gates = parts[:9]
    state = parts[9:13]
    chunks, rows, size, width = queries.shape
    hidden, moving = state[0].shape[-1], gates[2] is not None
    cut, new = cut_here(width, hidden), queries.new_empty
    none, tile = new(0), padded(size)
    ends = [
        *(torch.empty_like(x) for x in state[:2]),
        *(x.clone() for x in state[2:]),
        *map(torch.empty_like, state[:2]),
    ]
    tape: list[Tensor] = [none] * 10
    if saving:
        kept = [new(chunks, *x.shape) for x in state[:2]]
        pushes = [new(chunks, *x.shape) if moving else none for x in state[2:]]
        inner = [new(chunks, rows, size, hidden) for _ in range(2)]
        theta = torch.empty_like(gates[0])
        tape = [*kept, *pushes, *inner, torch.empty_like(values), theta, new(chunks, rows, size), new(chunks, rows, 2)]
    reads = none if saving else new(cut.split, chunks, rows, size, width)
    places = ((tile, padded(width)), (tile,), (2,))
    launched(
        deep_forward, WARPS_THERE, cut, rows, queries.device,
        queries, keys, values, *(none if gate is None else gate for gate in gates), *state,
        *(parts[13:15] if form.anchored else (none, none)), reads, *ends, *tape,
        *(exchange(cut, queries, chunks, rows, cut.split, *place) for place in places), chunks, size,
        C=tile, K=padded(width), WIDTH=width, J=cut.width, HIDDEN=hidden, CAP_1=bound(form, hidden),
        CAP_2=bound(form, width), RESIDUAL=form.residual, STIFF=form.stiff, ANCHORED=form.anchored, MOVING=moving,
        GATES=gates[0].shape[0], SAVING=saving,
    )  # fmt: skip
    if not saving:
        return (reads[0] if cut.split == 1 else reads.sum(0), *ends), None
    scores = [new(chunks, rows, size, size) for _ in range(2)]
    narrow = {1: (torch.empty_like(values), torch.empty_like(values))} if width < hidden else {}
    *_, delta, theta, quotient, factors = tape
    held = Tape(
        weights=tape[:2], momentum=tape[2:4], hidden=[tape[4]], pull=[tape[5]], delta=delta,
        reads=[torch.empty_like(tape[4])], scores=scores, system=none, parts=narrow, theta=theta, stiffness=quotient,
        factors={(0, 0, False): factors},
    )  # fmt: skip
    return (none, *ends), held


def deep_gradient(form: Form, parts: Sequence[Any], grads: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradient with respect to the arguments of `in_kernels`, of the gradient with respect to what it returns.

    >>> x, w, g = (torch.ones(shape, device=DEVICE) for shape in ((1, 1, 1, 1), (1, 1, 1), (1, 1, 1, 1)))
    >>> parts = (x, x, x, 0 * g, g, None, g[..., None], None, None, w, w, w, w)
    >>> found = deep_gradient(Form(layers=2), parts, (x, *[0 * w] * 6))
    >>> round(found[0].item(), 4)  # the slope of the GELU at 1
    1.0833
    """
    queries, keys = parts[:2]
    gates, state = Gates(*parts[3:9]), parts[9:13]
    chunks, rows, size, width = queries.shape
    hidden, moving = state[0].shape[-1], gates.carry is not None
    cut, new = cut_here(width, hidden), queries.new_empty
    none, tile = new(0), padded(size)
    grads = [grad.contiguous() for grad in grads]
    tape = launch_deep(form, parts, saving=True)[1]
    assert tape is not None
    here = slice(0, chunks)
    inputs = [keys, functional.gelu(tape.hidden[0])]
    slope = torch.ops.aten.gelu_backward(tape.pull[0], tape.hidden[0])
    errors = [
        delta * tape.theta[_gate_of(layer, gates)].unsqueeze(-1) for layer, delta in enumerate((slope, tape.delta))
    ]
    _read(gates, tape, 0, chunks, 0, queries, inputs, errors, torch.empty_like(queries))
    d_query = torch.empty_like(queries)
    d_gates = Gates(*(None if gate is None else torch.zeros_like(gate) for gate in gates))  # type: ignore[arg-type]
    d_inputs, d_errors, d_reads, d_pushes = _read_gradient(
        gates, d_gates, tape, here, queries, inputs, errors, grads[0], d_query
    )
    del inputs, errors, slope

    d_keys, d_values = new(cut.split, chunks, rows, size, width), torch.empty_like(queries)
    d_rate = new(2, chunks, rows, size)
    d_mix, d_trail = new(2, cut.split, 2, chunks, rows, size)
    d_sums = new(cut.split, 2, chunks, rows, 3, width)
    d_state = [torch.empty_like(x) for x in state]
    d_anchor = [torch.empty_like(x) for x in state[:2]] if form.anchored else []
    steps, square = (chunks, rows, cut.split), (tile, padded(width))
    launched(
        deep_backward, WARPS, cut, rows, queries.device,
        keys, *(none if gate is None else gate for gate in gates), *(parts[13:15] if form.anchored else (none, none)),
        *tape.weights, *tape.momentum, *tape.hidden, *tape.pull, tape.delta, tape.theta, tape.stiffness,
        tape.factors[0, 0, False], *d_inputs, *d_errors, *d_reads, *(d_pushes if moving else (none, none)), *grads[1:],
        d_keys, d_values, d_rate, d_mix, d_trail, d_sums, *d_state, *(d_anchor or (none, none)),
        exchange(cut, queries, *steps, *square), exchange(cut, queries, 2, *steps, tile),
        exchange(cut, queries, *steps, *square), exchange(cut, queries, *steps, 4), chunks, size,
        C=tile, K=padded(width), WIDTH=width, J=cut.width, HIDDEN=hidden, CAPPED=form.cap is not None,
        STIFF=form.stiff, ANCHORED=form.anchored, MOVING=moving, GATES=gates.rate.shape[0],
    )  # fmt: skip

    def by_gate(x: Tensor) -> Tensor:
        return x if gates.rate.shape[0] == 2 else x.sum(0, keepdim=True)

    d_gates.rate.copy_(by_gate(d_rate))
    d_gates.mix[..., -1, :] += by_gate(d_mix.sum(0))
    keep, carry, fade = by_gate(d_sums.sum((0, -1))).unbind(-1)
    d_gates.keep[..., -1] += keep
    if d_gates.carry is not None and d_gates.fade is not None and d_gates.trail is not None:
        d_gates.carry[..., -1] += carry
        d_gates.fade.copy_(fade)
        d_gates.trail.copy_(by_gate(d_trail.sum(0)))
    else:
        d_state[2:] = grads[3:5]  # momentum that is neither read nor written goes through as it came
    return [d_query, d_keys.sum(0), d_values, *d_gates, *d_state, *d_anchor]


def triton_cuda(state: MemoryState, tokens: Tokens, rule: Rule) -> tuple[Tensor, MemoryState]:
    """Write and read all tokens; equal to the reference for memories of one and two layers, with gradients.

    >>> one = torch.ones(1, 1, 1, 1, device=DEVICE)
    >>> start = MemoryState((0 * one,), (0 * one,), (), one[0], torch.zeros(1, dtype=torch.long, device=DEVICE), one[0])
    >>> triton_cuda(start, Tokens(one, one, 3 * one, 0.5 * one), Rule(chunk=1))[0].item()
    3.0
    """
    refuse(state, tokens, rule)
    rows, heads = tokens.keys.shape[:2]
    longest = LONGEST if len(state.weights) == 1 else max(1, SPAN // (rows * heads))
    return in_runs(state, tokens, rule, longest, in_kernels, partial(gates_of, recur=recurred))


def refuse(state: MemoryState, tokens: Tokens, rule: Rule) -> None:
    """Raise `ValueError` for what the kernels do not cover.

    >>> one = torch.ones(1, 1, 1, 1, device=DEVICE)
    >>> refuse(MemoryState((one,), (one,), (), one[0], one[0, 0, 0], one[0]), Tokens(one, one, one, one), Rule(chunk=4))
    """
    parts = [*leaves((state.weights, state.momentum, state.anchor)), *(part for part in tokens if part is not None)]
    layers = len(state.weights)
    require(
        tokens.keys.shape[-1] == tokens.values.shape[-1],
        f"op='triton' wants keys and values of one width, and got {tokens.keys.shape[-1]} and "
        f"{tokens.values.shape[-1]}: use op='auto'.",
    )
    require(
        layers <= 2,
        f"op='triton' has kernels for memories of 1 and 2 layers, and this one has {layers}: use op='auto'.",
    )
    require(
        bool(state.anchor) or (layers == 1 and not rule.residual and rule.step_budget is None),
        "op='triton' takes gradients at the current weights of a linear memory without residual and step_budget only: "
        "pass a state with an anchor, or use op='reference'.",
    )
    kinds = {part.dtype for part in parts if part.is_floating_point()}
    wanted = {torch.float32, torch.float64} if INTERPRETED else {torch.float32}
    require(
        len(kinds) == 1 and kinds <= wanted,
        f"op='triton' wants float32 throughout, and got {', '.join(sorted(map(str, kinds)))}: use op='auto'.",
    )
    require(
        INTERPRETED or all(part.device.type == "cuda" for part in parts),
        f"op='triton' runs on a CUDA device and the state is on {state.spent.device}: move memory, state and tokens "
        "there, or use op='auto'. (With TRITON_INTERPRET=1 in the environment it runs on the CPU, for tests.)",
    )
    width, hidden = tokens.keys.shape[-1], state.weights[0].shape[-1]
    numbers = on_chip(layers, width, hidden, min(rule.chunk, tokens.keys.shape[2]))
    require(
        numbers <= ON_CHIP,
        f"op='triton' keeps at most {ON_CHIP} numbers on chip; weights and momentum, the mix of a chunk and its tokens "
        f"are {numbers} here (heads {width} wide, chunk={rule.chunk}): "
        "use more heads, a smaller chunk, or op='auto'.",
    )
    cut = cut_of(width, hidden)
    require(
        layers == 1 or cut.split <= SLICES,
        f"op='triton' cuts a hidden layer into at most {SLICES} slices of {cut.width}, and this one is {hidden} wide: "
        "use a smaller expansion, or op='auto'.",
    )
