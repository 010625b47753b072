"""The dual form with the state kept on chip: Triton kernels in which one program takes one row and head through all its
chunks, weights and momentum in its registers from the first token to the last.

What is cheap or the business of clocks stays in torch and is that of `chunked`: cutting at the clocks, caps and budgets
before the first chunk, and the scalars of the recurrences (`coefficients`: some small launches a token of the chunk,
for all chunks at once). The kernels are `dual.whole_chunks`: all chunks in one launch where the rows agree on their
clocks and lengths, and otherwise a launch a chunk.

A chunk of C tokens, every token's keep, carry, theta and last row of mix and trail a column [C 1], mix [C C]; k, v, q,
y [C K]; W, S [K K]. Linear memory:

    d = 2 (k A - v)                                  A the anchor; the error of a frozen gradient
    d = 2 e, (I + L) e = keep' k W + carry' k S - v  the exact form: L = (k k^T) * mix' * 2 theta^T, and ' is
                                                     the token before (row after row, for powers of L lose digits)
    e = theta d                                      divided by the stiffness where there is a step budget
    y = keep (q W) + carry (q S) - ((q k^T) * mix) e
    W <- keep_C W + carry_C S - (k * mix_C)^T e      S <- fade S - (k * trail)^T e

A memory with one hidden layer has W, S [K J] and [J K], and the same sums for both layers.

The gradient of a linear memory is a kernel too: from the last chunk to the first, with dW and dS on chip; it reads W
and S of every chunk's start, and d, which the forward pass left in memory. That of a hidden layer or of a residual
memory is not: there the op is computed once more by `dual` in torch, which has it.

Products are taken in full float32 (`input_precision="ieee"`), which tensor cores do not have. Sizes are padded to
powers of two from 16 on, and what is padded is zero. The kernels are checked in Triton's interpreter and compiled for
sm_90; they have not run on a GPU yet, and nothing is known of their speed. Compiled, heads and chunks of 16 stay in
the registers; at 32 and above the compiler spills some of them to the thread's own memory, at best a cache.

B row, H head, N chunk, R row and head together, C token of the chunk, K key or value, J hidden, G gate.
"""

from collections.abc import Sequence
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..config import require
from ..state import MemoryState, leaves
from .chunked import in_runs
from .contract import Rule, Tokens
from .dual import Dual, Form, Gates

ON_CHIP = 32768  # numbers of state and of one chunk's mix: in float32 half the registers of a multiprocessor
LONGEST = 2**16  # chunks of one launch
WARPS = 8  # of a program: half of what is spilled with 4


@triton.jit
@no_type_check
def product(a, b):
    """a @ b in the precision of a."""
    return tl.dot(a, b, input_precision="ieee", out_dtype=a.dtype)


@triton.jit
@no_type_check
def shrunk(weight, bound):
    """The factor that scales a weight back to the Frobenius norm `bound`, at most 1."""
    norm = tl.sqrt(tl.sum(tl.sum(weight * weight, 1), 0))
    return tl.minimum(bound / tl.maximum(norm, 1e-12), 1.0)


@triton.jit
@no_type_check
def output_delta(sums, keys, values, wide, WIDTH: tl.constexpr, RESIDUAL: tl.constexpr):
    """The gradient of the loss with respect to the network's output; `wide` is False at padded columns."""
    if RESIDUAL:
        centred = tl.where(wide, sums - (tl.sum(sums, 1) / WIDTH)[:, None], 0.0)
        deviation = tl.sqrt(tl.sum(centred * centred, 1) / WIDTH + 1e-6)[:, None]
        unit = centred / deviation
        delta = 2 * (keys + unit - values)
        mean, along = tl.sum(delta, 1) / WIDTH, tl.sum(delta * unit, 1) / WIDTH
        delta = tl.where(wide, (delta - mean[:, None] - unit * along[:, None]) / deviation, 0.0)
    else:
        delta = 2 * (sums - values)
    return delta


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
def read(x, keys, error, weight, push, keep, carry, mix, MOVING: tl.constexpr):
    """`x_i W_i` of one layer, every token with its own weights, which are never formed."""
    y = keep[:, None] * product(x, weight)
    if MOVING:
        y += carry[:, None] * product(x, push)
    return y - product(product(x, tl.trans(keys)) * mix, error)


@triton.jit
@no_type_check
def updated(keys, error, weight, push, keep, carry, mix, fade, trail, MOVING: tl.constexpr):
    """Weights and momentum of one layer behind the chunk; the gates are those of its last token."""
    moved = keep * weight - product(tl.trans(keys * mix[:, None]), error)
    if MOVING:
        moved += carry * push
        push = fade * push - product(tl.trans(keys * trail[:, None]), error)
    return moved, push


@triton.jit
@no_type_check
def gates_at(keep, carry, mix, fade, trail, here, size, C: tl.constexpr, MOVING: tl.constexpr):
    """keep, carry [C] and mix [C C] of a chunk; and of its last token keep, carry, mix [C], fade, trail [C]."""
    c = tl.arange(0, C)
    last = here * size + size - 1
    inside = c < size
    keeps = tl.load(keep + here * size + c, mask=inside, other=0.0)
    keep_last = tl.load(keep + last)
    pairs = here * size * size + c[:, None] * size + c[None, :]
    mixes = tl.load(mix + pairs, mask=inside[:, None] & inside[None, :], other=0.0)
    mix_last = tl.load(mix + last * size + c, mask=inside, other=0.0)
    carries, carry_last, faded, trails = keeps, keep_last, keep_last, keeps
    if MOVING:
        carries = tl.load(carry + here * size + c, mask=inside, other=0.0)
        carry_last = tl.load(carry + last)
        faded = tl.load(fade + here)
        trails = tl.load(trail + here * size + c, mask=inside, other=0.0)
    return keeps, carries, mixes, keep_last, carry_last, mix_last, faded, trails


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


@triton.jit
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


@triton.jit
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


@triton.jit
@no_type_check
def gelu(x):
    """The exact (erf) GELU."""
    return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))


@triton.jit
@no_type_check
def gelu_slope(x):
    """Its derivative."""
    return 0.5 * (1 + tl.erf(x * 0.7071067811865476)) + x * tl.exp(-0.5 * x * x) * 0.3989422804014327


@triton.jit
@no_type_check
def hidden_forward(
    queries, keys, values, rate, keep, carry, mix, fade, trail,
    weights_1, weights_2, momentum_1, momentum_2, anchor_1, anchor_2,
    reads, moved_1, moved_2, pushed_1, pushed_2, start_1, start_2,
    chunks, rows, size, C: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr, J: tl.constexpr, HIDDEN: tl.constexpr,
    CAP_1: tl.constexpr, CAP_2: tl.constexpr, RESIDUAL: tl.constexpr, STIFF: tl.constexpr, ANCHORED: tl.constexpr,
    MOVING: tl.constexpr, GATES: tl.constexpr,
):  # fmt: skip
    """All chunks of one row and head of a memory with one hidden layer."""
    row = tl.program_id(0)
    c, k, j = tl.arange(0, C), tl.arange(0, K), tl.arange(0, J)
    wide = (k < WIDTH)[None, :]
    token, is_token = c[:, None] * WIDTH + k[None, :], (c < size)[:, None] & wide
    mine = row.to(tl.int64) * WIDTH * HIDDEN
    cell_1, is_cell_1 = mine + k[:, None] * HIDDEN + j[None, :], (k < WIDTH)[:, None] & (j < HIDDEN)[None, :]
    cell_2, is_cell_2 = mine + j[:, None] * WIDTH + k[None, :], (j < HIDDEN)[:, None] & wide
    weight_1 = tl.load(weights_1 + cell_1, mask=is_cell_1, other=0.0)
    weight_2 = tl.load(weights_2 + cell_2, mask=is_cell_2, other=0.0)
    push_1, push_2 = weight_1, weight_2
    if MOVING:
        push_1 = tl.load(momentum_1 + cell_1, mask=is_cell_1, other=0.0)
        push_2 = tl.load(momentum_2 + cell_2, mask=is_cell_2, other=0.0)
    for n in range(chunks):
        here = row.to(tl.int64) + n * rows
        there = (
            here + (GATES - 1) * chunks * rows
        )  # where the gates of the second layer lie: its own, or the only one's
        at_token = here * size * WIDTH + token
        if CAP_1 is not None:
            weight_1 *= tl.where(n > 0, shrunk(weight_1, CAP_1), 1.0)
            weight_2 *= tl.where(n > 0, shrunk(weight_2, CAP_2), 1.0)
        base_1, base_2 = weight_1, weight_2
        if ANCHORED:  # noqa: SIM102 (this one is decided when the kernel is compiled, the other when it runs)
            if n == 0:
                base_1 = tl.load(anchor_1 + cell_1, mask=is_cell_1, other=0.0)
                base_2 = tl.load(anchor_2 + cell_2, mask=is_cell_2, other=0.0)
        if n == chunks - 1:
            tl.store(start_1 + cell_1, base_1, mask=is_cell_1)
            tl.store(start_2 + cell_2, base_2, mask=is_cell_2)

        key = tl.load(keys + at_token, mask=is_token, other=0.0)
        value = tl.load(values + at_token, mask=is_token, other=0.0)
        hidden = product(key, base_1)
        inner = gelu(hidden)
        delta_2 = output_delta(product(inner, base_2), key, value, wide, WIDTH, RESIDUAL)
        delta_1 = product(delta_2, tl.trans(base_2)) * gelu_slope(hidden)
        theta_1 = tl.load(rate + here * size + c, mask=c < size, other=0.0)
        theta_2 = tl.load(rate + there * size + c, mask=c < size, other=0.0)
        if STIFF:
            square = tl.sum(delta_2 * delta_2, 1)
            whole = tl.sum(key * key, 1) * tl.sum(delta_1 * delta_1, 1) + tl.sum(inner * inner, 1) * square
            stiffness = tl.maximum(whole / (square + 1e-12), 1.0)
            theta_1 /= stiffness
            theta_2 /= stiffness
        error_1, error_2 = theta_1[:, None] * delta_1, theta_2[:, None] * delta_2

        keep_c, carry_c, mix_c, keep_n, carry_n, mix_n, fade_n, trail_n = gates_at(
            keep, carry, mix, fade, trail, here, size, C, MOVING
        )
        query = tl.load(queries + at_token, mask=is_token, other=0.0)
        asked = gelu(read(query, key, error_1, weight_1, push_1, keep_c, carry_c, mix_c, MOVING))
        weight_1, push_1 = updated(key, error_1, weight_1, push_1, keep_n, carry_n, mix_n, fade_n, trail_n, MOVING)
        if GATES > 1:
            keep_c, carry_c, mix_c, keep_n, carry_n, mix_n, fade_n, trail_n = gates_at(
                keep, carry, mix, fade, trail, there, size, C, MOVING
            )
        y = read(asked, inner, error_2, weight_2, push_2, keep_c, carry_c, mix_c, MOVING)
        tl.store(reads + at_token, y, mask=is_token)
        weight_2, push_2 = updated(inner, error_2, weight_2, push_2, keep_n, carry_n, mix_n, fade_n, trail_n, MOVING)
    tl.store(moved_1 + cell_1, weight_1, mask=is_cell_1)
    tl.store(moved_2 + cell_2, weight_2, mask=is_cell_2)
    if MOVING:
        tl.store(pushed_1 + cell_1, push_1, mask=is_cell_1)
        tl.store(pushed_2 + cell_2, push_2, mask=is_cell_2)


# What stands around the kernels.

INTERPRETED = not isinstance(product, triton.JITFunction)  # TRITON_INTERPRET=1 when triton was imported
DEVICE = "cpu" if INTERPRETED else "cuda"


def padded(size: int) -> int:
    """The size of a tile that holds so many: a power of two, at least 16, which is what a product of tiles takes.

    >>> padded(3), padded(48)
    (16, 64)
    """
    return max(16, 1 << (size - 1).bit_length())


def bound(form: Form, width: int) -> float | None:
    """The largest Frobenius norm of a layer with so many outputs at a chunk's start.

    >>> bound(Form(layers=1, cap=2.0), 16)
    8.0
    """
    return None if form.cap is None else form.cap * width**0.5


def on_chip(
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
    >>> reads, (end,), _, _ = on_chip(Form(layers=1), x, x, 3 * x, gates, [w], [w])
    >>> reads.item(), end.item()
    (3.0, 3.0)
    """
    layers = form.layers
    node = Linear if layers == 1 and not form.residual else ByTorch
    parts = (*gates, *weights, *momentum, *anchor)
    out = node.apply(form, queries, keys, values, *(None if x is None else x.contiguous() for x in parts))  # type: ignore[no-untyped-call]
    moved, pushed, start = (tuple(out[1 + i * layers : 1 + (i + 1) * layers]) for i in range(3))
    return out[0], moved, pushed, start


class Linear(torch.autograd.Function):
    """`on_chip` for a linear memory without residual: a kernel there and a kernel back."""

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


class ByTorch(torch.autograd.Function):
    """`on_chip` for a residual memory or one with a hidden layer: a kernel there; `dual` computes it again on the way
    back."""

    @staticmethod
    def forward(ctx: Any, form: Form, *parts: Any) -> tuple[Tensor, ...]:
        """As that of `Linear`, layer by layer."""
        ctx.form = form
        ctx.save_for_backward(*parts)
        return launch_linear(form, parts, False)[0] if form.layers == 1 else launch_hidden(form, parts)

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


def launch_linear(form: Form, parts: Sequence[Any], saving: bool) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What `linear_forward` makes of the arguments of `on_chip`, and with `saving` what it left to the gradient.

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


def launch_hidden(form: Form, parts: Sequence[Any]) -> tuple[Tensor, ...]:
    """What `hidden_forward` makes of the arguments of `on_chip`.

    >>> x, w, g = (torch.ones(shape, device=DEVICE) for shape in ((1, 1, 1, 1), (1, 1, 1), (1, 1, 1, 1)))
    >>> launch_hidden(Form(layers=2), (x, x, x, 0 * g, g, None, g[..., None], None, None, w, w, w, w))[0].item()
    0.8413447141647339
    """
    queries, keys, values, *gates = parts[:9]
    state = parts[9:13]
    chunks, rows, size, width = queries.shape
    hidden = state[0].shape[-1]
    none = queries.new_empty(0)
    ends = [
        *(torch.empty_like(x) for x in state[:2]),
        *(x.clone() for x in state[2:]),
        *map(torch.empty_like, state[:2]),
    ]
    reads = torch.empty_like(queries)
    hidden_forward[(rows,)](
        queries, keys, values, *(none if gate is None else gate for gate in gates), *state,
        *(parts[13:15] if form.anchored else (none, none)), reads, *ends, chunks, rows, size, C=padded(size),
        K=padded(width), WIDTH=width, J=padded(hidden), HIDDEN=hidden, CAP_1=bound(form, hidden),
        CAP_2=bound(form, width), RESIDUAL=form.residual, STIFF=form.stiff, ANCHORED=form.anchored,
        MOVING=gates[2] is not None, GATES=gates[0].shape[0], num_warps=WARPS,
    )  # fmt: skip
    return reads, *ends


def triton_cuda(state: MemoryState, tokens: Tokens, rule: Rule) -> tuple[Tensor, MemoryState]:
    """Write and read all tokens; equal to the reference for memories of one and two layers, with gradients.

    >>> one = torch.ones(1, 1, 1, 1, device=DEVICE)
    >>> start = MemoryState((0 * one,), (0 * one,), (), one[0], torch.zeros(1, dtype=torch.long, device=DEVICE), one[0])
    >>> triton_cuda(start, Tokens(one, one, 3 * one, 0.5 * one), Rule(chunk=1))[0].item()
    3.0
    """
    refuse(state, tokens, rule)
    return in_runs(state, tokens, rule, LONGEST, on_chip)


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
    width, hidden = padded(tokens.keys.shape[-1]), padded(state.weights[0].shape[-1])
    tile = padded(min(rule.chunk, tokens.keys.shape[2]))
    numbers = 2 * layers * width * hidden + tile * tile
    require(
        numbers <= ON_CHIP,
        f"op='triton' keeps at most {ON_CHIP} numbers on chip; weights and momentum of a head with the mix of a chunk "
        f"are {numbers} here (heads {tokens.keys.shape[-1]} wide, chunk={rule.chunk}): "
        "use more heads, a smaller chunk or expansion, or op='auto'.",
    )
