"""The Triton kernels of a memory with one hidden layer, forward and backward, its state on chip.

The hidden layer is cut into slices, and every slice of every row and head has a program of its own, which keeps its
part of weights and momentum in registers through all chunks. What goes through the hidden layer is a sum over its
slices, twice a chunk in either direction: the network's output at the keys and the tokens' stiffness there, the
gradients of the two on the way back. Programs give each other their parts through memory: whoever needs a sum waits
until all parts are there. So all programs of a launch must run at once, and a launch takes no more rows than that.

A part is its own sign that it is there: the memory is filled with a number that no part is, `EMPTY`, before the launch,
and every place in it is written once.

N chunk, R row and head together, C token of the chunk, K key or value, J hidden, G gate, P slice.
"""

from typing import no_type_check

import triton
import triton.language as tl

EMPTY = tl.constexpr(-1)  # as bits: a number that is none, and not the one that arithmetic makes
NONE = tl.constexpr(0x7FC00000)  # the number that is none, as arithmetic makes it
PATIENCE = tl.constexpr(2**22)  # looks at memory before a program stops waiting; what is then missing is no number


@triton.jit
@no_type_check
def product(a, b):
    """a @ b in the precision of a: float32 as the sum of three products of tensor cores."""
    return tl.dot(a, b, input_precision="tf32x3", out_dtype=a.dtype)


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
def gelu_bend(x):
    """Its second derivative."""
    return tl.exp(-0.5 * x * x) * 0.3989422804014327 * (2 - x * x)


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
def give(part, place, mask):
    """Leave a part where the other programs look for it."""
    bits = part.to(tl.int32, bitcast=True)
    tl.store(place, tl.where(bits == EMPTY, NONE, bits), mask=mask)


@triton.jit
@no_type_check
def parts_at(place, mask):
    """What all programs have left there, as soon as they have."""
    bits = tl.load(place, mask=mask, other=0, volatile=True)
    looks = 0
    while (tl.max((bits == EMPTY).to(tl.int32), axis=None) > 0) & (looks < PATIENCE):
        bits = tl.load(place, mask=mask, other=0, volatile=True)
        looks += 1
    return bits.to(tl.float32, bitcast=True)


@triton.jit
@no_type_check
def tiles_of(sums, step, row, rows, SPLIT: tl.constexpr, PARTS: tl.constexpr, C: tl.constexpr, K: tl.constexpr):
    """The sum over the slices of a [C K] tile."""
    p, c, k = tl.arange(0, PARTS), tl.arange(0, C), tl.arange(0, K)
    place = (
        ((row.to(tl.int64) + step * rows) * SPLIT + p)[:, None, None] * (C * K)
        + c[None, :, None] * K
        + k[None, None, :]
    )
    return tl.sum(parts_at(sums + place, (p < SPLIT)[:, None, None]), 0)


@triton.jit
@no_type_check
def lines_of(sums, step, row, rows, SPLIT: tl.constexpr, PARTS: tl.constexpr, C: tl.constexpr):
    """The sum over the slices of C numbers."""
    p, c = tl.arange(0, PARTS), tl.arange(0, C)
    place = ((row.to(tl.int64) + step * rows) * SPLIT + p)[:, None] * C + c[None, :]
    return tl.sum(parts_at(sums + place, (p < SPLIT)[:, None]), 0)


@triton.jit
@no_type_check
def squared(x):
    """The sum of the squares of a tile."""
    return tl.sum(tl.sum(x * x, 1), 0)


@triton.jit
@no_type_check
def dotted(x, y):
    """The sum of the products of two tiles."""
    return tl.sum(tl.sum(x * y, 1), 0)


@triton.jit(do_not_specialize=["first", "chunks", "rows", "size"])
@no_type_check
def deep_forward(
    queries, keys, values, rate, keep, carry, mix, fade, trail,
    weights_1, weights_2, momentum_1, momentum_2, anchor_1, anchor_2,
    reads, moved_1, moved_2, pushed_1, pushed_2, start_1, start_2,
    kept_1, kept_2, kept_push_1, kept_push_2, hiddens, pulls, deltas, thetas, quotients, factors,
    sums, lines, norms, first, chunks, rows, size,
    C: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr, J: tl.constexpr, HIDDEN: tl.constexpr,
    SPLIT: tl.constexpr, PARTS: tl.constexpr, CAP_1: tl.constexpr, CAP_2: tl.constexpr, RESIDUAL: tl.constexpr,
    STIFF: tl.constexpr, ANCHORED: tl.constexpr, MOVING: tl.constexpr, GATES: tl.constexpr, SAVING: tl.constexpr,
):  # fmt: skip
    """All chunks of one slice of one row and head. SAVING: leave to the gradient what it needs, and read nothing."""
    program = tl.program_id(0)
    row, part = first + program // SPLIT, program % SPLIT
    c, k, j = tl.arange(0, C), tl.arange(0, K), part * J + tl.arange(0, J)
    inside, wide, deep = c < size, (k < WIDTH)[None, :], j < HIDDEN
    token, is_token = c[:, None] * WIDTH + k[None, :], inside[:, None] & wide
    spot, is_spot = c[:, None] * HIDDEN + j[None, :], inside[:, None] & deep[None, :]
    in_1, is_1 = k[:, None] * HIDDEN + j[None, :], (k < WIDTH)[:, None] & deep[None, :]
    in_2, is_2 = j[:, None] * WIDTH + k[None, :], deep[:, None] & wide
    tile, every = c[:, None] * K + k[None, :], (c[:, None] >= 0) & (k[None, :] >= 0)
    mine = row.to(tl.int64) * WIDTH * HIDDEN
    weight_1 = tl.load(weights_1 + mine + in_1, mask=is_1, other=0.0)
    weight_2 = tl.load(weights_2 + mine + in_2, mask=is_2, other=0.0)
    push_1, push_2 = weight_1, weight_2
    if MOVING:
        push_1 = tl.load(momentum_1 + mine + in_1, mask=is_1, other=0.0)
        push_2 = tl.load(momentum_2 + mine + in_2, mask=is_2, other=0.0)
    for n in range(chunks):
        here = row.to(tl.int64) + n * rows
        # where the gates of the second layer lie: its own, or the only one's
        there = here + (GATES - 1) * chunks * rows
        place = here * SPLIT + part
        at_token = here * size * WIDTH + token
        key = tl.load(keys + at_token, mask=is_token, other=0.0)
        value = tl.load(values + at_token, mask=is_token, other=0.0)
        theta_1 = tl.load(rate + here * size + c, mask=inside, other=0.0)
        theta_2 = tl.load(rate + there * size + c, mask=inside, other=0.0)
        keep_c, carry_c, mix_c, keep_n, carry_n, mix_n, fade_n, trail_n = gates_at(
            keep, carry, mix, fade, trail, here, size, C, MOVING
        )
        if CAP_1 is not None:
            norm_1, norm_2 = squared(weight_1), squared(weight_2)
            if SPLIT > 1:  # noqa: SIM102 (this one is decided when the kernel is compiled, the other when it runs)
                if n > 0:  # the first chunk is not capped, and nobody gave a norm for it
                    p, q = tl.arange(0, PARTS), tl.arange(0, 2)
                    found = norms + ((here - rows) * SPLIT + p[:, None]) * 2 + q[None, :]
                    both = tl.sum(parts_at(found, (p < SPLIT)[:, None]), 0)
                    norm_1, norm_2 = tl.sum(tl.where(q == 0, both, 0.0), 0), tl.sum(tl.where(q == 1, both, 0.0), 0)
            factor_1 = tl.where(n > 0, tl.minimum(CAP_1 / tl.maximum(tl.sqrt(norm_1), 1e-12), 1.0), 1.0)
            factor_2 = tl.where(n > 0, tl.minimum(CAP_2 / tl.maximum(tl.sqrt(norm_2), 1e-12), 1.0), 1.0)
            weight_1 *= factor_1
            weight_2 *= factor_2
            if SAVING and part == 0:
                tl.store(factors + 2 * here, factor_1)
                tl.store(factors + 2 * here + 1, factor_2)
        base_1, base_2 = weight_1, weight_2
        if ANCHORED:  # noqa: SIM102 (this one is decided when the kernel is compiled, the other when it runs)
            if n == 0:
                base_1 = tl.load(anchor_1 + mine + in_1, mask=is_1, other=0.0)
                base_2 = tl.load(anchor_2 + mine + in_2, mask=is_2, other=0.0)
        hidden = product(key, base_1)
        inner = gelu(hidden)
        out = product(inner, base_2)
        if SPLIT > 1:
            give(out, sums + place * (C * K) + tile, every)
        if n == chunks - 1:
            tl.store(start_1 + mine + in_1, base_1, mask=is_1)
            tl.store(start_2 + mine + in_2, base_2, mask=is_2)
        slope = gelu_slope(hidden)
        # What does not hang on the sum is done while it is on its way.
        if SAVING:
            at_state = here * WIDTH * HIDDEN
            tl.store(kept_1 + at_state + in_1, weight_1, mask=is_1)
            tl.store(kept_2 + at_state + in_2, weight_2, mask=is_2)
            if MOVING:
                tl.store(kept_push_1 + at_state + in_1, push_1, mask=is_1)
                tl.store(kept_push_2 + at_state + in_2, push_2, mask=is_2)
            tl.store(hiddens + here * size * HIDDEN + spot, hidden, mask=is_spot)
        else:
            query = tl.load(queries + at_token, mask=is_token, other=0.0)
            asked = keep_c[:, None] * product(query, weight_1)
            if MOVING:
                asked += carry_c[:, None] * product(query, push_1)
            scores = product(query, tl.trans(key)) * mix_c
        if SPLIT > 1:
            out = tiles_of(sums, n, row, rows, SPLIT, PARTS, C, K)
        delta_2 = output_delta(out, key, value, wide, WIDTH, RESIDUAL)
        pull = product(delta_2, tl.trans(base_2))
        delta_1 = pull * slope
        if SAVING:
            tl.store(pulls + here * size * HIDDEN + spot, pull, mask=is_spot)
            if part == 0:
                tl.store(deltas + at_token, delta_2, mask=is_token)
        if STIFF:
            square = tl.sum(delta_2 * delta_2, 1)
            whole = tl.sum(key * key, 1) * tl.sum(delta_1 * delta_1, 1) + tl.sum(inner * inner, 1) * square
            if SPLIT > 1:
                give(whole, lines + place * C + c, c >= 0)
                whole = lines_of(lines, n, row, rows, SPLIT, PARTS, C)
            quotient = whole / (square + 1e-12)
            stiffness = tl.maximum(quotient, 1.0)
            theta_1 /= stiffness
            theta_2 /= stiffness
            if SAVING and part == 0:
                tl.store(quotients + here * size + c, quotient, mask=inside)
        if SAVING and part == 0:
            tl.store(thetas + here * size + c, theta_1, mask=inside)
            if GATES > 1:
                tl.store(thetas + there * size + c, theta_2, mask=inside)
        error_1, error_2 = theta_1[:, None] * delta_1, theta_2[:, None] * delta_2

        next_1, next_push_1 = updated(key, error_1, weight_1, push_1, keep_n, carry_n, mix_n, fade_n, trail_n, MOVING)
        if GATES > 1:
            keep_c, carry_c, mix_c, keep_n, carry_n, mix_n, fade_n, trail_n = gates_at(
                keep, carry, mix, fade, trail, there, size, C, MOVING
            )
        next_2, next_push_2 = updated(inner, error_2, weight_2, push_2, keep_n, carry_n, mix_n, fade_n, trail_n, MOVING)
        if CAP_1 is not None and SPLIT > 1:
            give(squared(next_1), norms + place * 2, True)
            give(squared(next_2), norms + place * 2 + 1, True)
        if not SAVING:
            asked = gelu(asked - product(scores, error_1))
            y = read(asked, inner, error_2, weight_2, push_2, keep_c, carry_c, mix_c, MOVING)
            tl.store(reads + part * chunks * rows * size * WIDTH + at_token, y, mask=is_token)
        weight_1, push_1, weight_2, push_2 = next_1, next_push_1, next_2, next_push_2
    tl.store(moved_1 + mine + in_1, weight_1, mask=is_1)
    tl.store(moved_2 + mine + in_2, weight_2, mask=is_2)
    if MOVING:
        tl.store(pushed_1 + mine + in_1, push_1, mask=is_1)
        tl.store(pushed_2 + mine + in_2, push_2, mask=is_2)


@triton.jit(do_not_specialize=["first", "chunks", "rows", "size"])
@no_type_check
def deep_backward(
    keys, rate, keep, carry, mix, fade, trail, anchor_1, anchor_2,
    kept_1, kept_2, kept_push_1, kept_push_2, hiddens, pulls, deltas, thetas, quotients, factors,
    read_keys, read_inners, read_errors_1, read_errors_2, read_1, read_2, read_push_1, read_push_2,
    d_moved_1, d_moved_2, d_pushed_1, d_pushed_2, d_start_1, d_start_2,
    d_keys, d_values, d_rate, d_mix, d_trail, d_sums,
    d_weights_1, d_weights_2, d_momentum_1, d_momentum_2, d_anchor_1, d_anchor_2,
    sums, lines, again, caps, first, chunks, rows, size,
    C: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr, J: tl.constexpr, HIDDEN: tl.constexpr,
    SPLIT: tl.constexpr, PARTS: tl.constexpr, CAPPED: tl.constexpr, STIFF: tl.constexpr, ANCHORED: tl.constexpr,
    MOVING: tl.constexpr, GATES: tl.constexpr,
):  # fmt: skip
    """The gradient of what `deep_forward` does with the keys, chunk by chunk from the last; `read_*` are the gradients
    that come from the reads. What is summed over the slices on chip comes out as it is, the rest slice by slice.

    d_mix, d_trail: of the last token's; d_sums: of its keep, carry and fade, still to be summed over K; all of them
    [P, 2, N, R, ...], layer by layer.
    """
    program = tl.program_id(0)
    row, part = first + program // SPLIT, program % SPLIT
    c, k, j = tl.arange(0, C), tl.arange(0, K), part * J + tl.arange(0, J)
    inside, wide, deep = c < size, (k < WIDTH)[None, :], j < HIDDEN
    token, is_token = c[:, None] * WIDTH + k[None, :], inside[:, None] & wide
    spot, is_spot = c[:, None] * HIDDEN + j[None, :], inside[:, None] & deep[None, :]
    in_1, is_1 = k[:, None] * HIDDEN + j[None, :], (k < WIDTH)[:, None] & deep[None, :]
    in_2, is_2 = j[:, None] * WIDTH + k[None, :], deep[:, None] & wide
    tile, every = c[:, None] * K + k[None, :], (c[:, None] >= 0) & (k[None, :] >= 0)
    mine = row.to(tl.int64) * WIDTH * HIDDEN
    d_weight_1 = tl.load(d_moved_1 + mine + in_1, mask=is_1, other=0.0)
    d_weight_2 = tl.load(d_moved_2 + mine + in_2, mask=is_2, other=0.0)
    d_push_1, d_push_2 = d_weight_1, d_weight_2
    if MOVING:
        d_push_1 = tl.load(d_pushed_1 + mine + in_1, mask=is_1, other=0.0)
        d_push_2 = tl.load(d_pushed_2 + mine + in_2, mask=is_2, other=0.0)
    for back in range(chunks):
        n = chunks - 1 - back
        here = row.to(tl.int64) + n * rows
        there = here + (GATES - 1) * chunks * rows
        place = here * SPLIT + part
        at_token, at_spot, at_state = here * size * WIDTH + token, here * size * HIDDEN + spot, here * WIDTH * HIDDEN
        ours = part * 2 * chunks * rows + here
        theirs = ours + chunks * rows
        last = here * size + size - 1
        last_2 = there * size + size - 1
        weight_1 = tl.load(kept_1 + at_state + in_1, mask=is_1, other=0.0)
        weight_2 = tl.load(kept_2 + at_state + in_2, mask=is_2, other=0.0)
        key = tl.load(keys + at_token, mask=is_token, other=0.0)
        hidden = tl.load(hiddens + at_spot, mask=is_spot, other=0.0)
        pull = tl.load(pulls + at_spot, mask=is_spot, other=0.0)
        delta_2 = tl.load(deltas + at_token, mask=is_token, other=0.0)
        theta_1 = tl.load(thetas + here * size + c, mask=inside, other=0.0)
        theta_2 = tl.load(thetas + there * size + c, mask=inside, other=0.0)
        mix_1 = tl.load(mix + last * size + c, mask=inside, other=0.0)
        mix_2 = tl.load(mix + last_2 * size + c, mask=inside, other=0.0)
        keep_1, keep_2 = tl.load(keep + last), tl.load(keep + last_2)
        inner, slope = gelu(hidden), gelu_slope(hidden)
        delta_1 = pull * slope
        error_1, error_2 = theta_1[:, None] * delta_1, theta_2[:, None] * delta_2

        # The updates: W <- keep W + carry S - (x * mix)^T e, and S <- fade S - (x * trail)^T e.
        d_error_1 = tl.load(read_errors_1 + at_spot, mask=is_spot, other=0.0)
        d_error_1 -= product(key * mix_1[:, None], d_weight_1)
        d_error_2 = -product(inner * mix_2[:, None], d_weight_2)
        if MOVING:
            trail_1 = tl.load(trail + here * size + c, mask=inside, other=0.0)
            trail_2 = tl.load(trail + there * size + c, mask=inside, other=0.0)
            d_error_1 -= product(key * trail_1[:, None], d_push_1)
            d_error_2 -= product(inner * trail_2[:, None], d_push_2)
        d_theta_1 = tl.sum(d_error_1 * delta_1, 1)
        inner_square = tl.sum(inner * inner, 1)
        if SPLIT > 1:
            give(d_error_2, sums + place * (C * K) + tile, every)
            give(d_theta_1, lines + place * C + c, c >= 0)
            give(inner_square, lines + (chunks * rows * SPLIT + place) * C + c, c >= 0)
        pair = product(error_1, tl.trans(d_weight_1))
        d_key = -pair * mix_1[:, None]
        tl.store(d_mix + ours * size + c, -tl.sum(pair * key, 1), mask=inside)
        d_inner = tl.load(read_inners + at_spot, mask=is_spot, other=0.0)
        pair = product(error_2, tl.trans(d_weight_2))
        d_inner -= pair * mix_2[:, None]
        tl.store(d_mix + theirs * size + c, -tl.sum(pair * inner, 1), mask=inside)
        tl.store(d_sums + (ours * 3) * WIDTH + k, tl.sum(d_weight_1 * weight_1, 1), mask=k < WIDTH)
        tl.store(d_sums + (theirs * 3) * WIDTH + k, tl.sum(d_weight_2 * weight_2, 0), mask=k < WIDTH)
        if MOVING:
            push_1 = tl.load(kept_push_1 + at_state + in_1, mask=is_1, other=0.0)
            push_2 = tl.load(kept_push_2 + at_state + in_2, mask=is_2, other=0.0)
            tl.store(d_sums + (ours * 3 + 1) * WIDTH + k, tl.sum(d_weight_1 * push_1, 1), mask=k < WIDTH)
            tl.store(d_sums + (theirs * 3 + 1) * WIDTH + k, tl.sum(d_weight_2 * push_2, 0), mask=k < WIDTH)
            tl.store(d_sums + (ours * 3 + 2) * WIDTH + k, tl.sum(d_push_1 * push_1, 1), mask=k < WIDTH)
            tl.store(d_sums + (theirs * 3 + 2) * WIDTH + k, tl.sum(d_push_2 * push_2, 0), mask=k < WIDTH)
            pair = product(error_1, tl.trans(d_push_1))
            d_key -= pair * trail_1[:, None]
            tl.store(d_trail + ours * size + c, -tl.sum(pair * key, 1), mask=inside)
            pair = product(error_2, tl.trans(d_push_2))
            d_inner -= pair * trail_2[:, None]
            tl.store(d_trail + theirs * size + c, -tl.sum(pair * inner, 1), mask=inside)
            d_push_1 = tl.load(fade + here) * d_push_1 + tl.load(carry + last) * d_weight_1
            d_push_2 = tl.load(fade + there) * d_push_2 + tl.load(carry + last_2) * d_weight_2
            d_push_1 += tl.load(read_push_1 + at_state + in_1, mask=is_1, other=0.0)
            d_push_2 += tl.load(read_push_2 + at_state + in_2, mask=is_2, other=0.0)
        d_weight_1 = keep_1 * d_weight_1 + tl.load(read_1 + at_state + in_1, mask=is_1, other=0.0)
        d_weight_2 = keep_2 * d_weight_2 + tl.load(read_2 + at_state + in_2, mask=is_2, other=0.0)
        if SPLIT > 1:
            d_error_2 = tiles_of(sums, n, row, rows, SPLIT, PARTS, C, K)
            d_theta_1 = lines_of(lines, n, row, rows, SPLIT, PARTS, C)
            inner_square = lines_of(lines, chunks + n, row, rows, SPLIT, PARTS, C)
        d_error_2 += tl.load(read_errors_2 + at_token, mask=is_token, other=0.0)

        # The steps: e = theta d, and theta is divided by the stiffness where that is above 1.
        d_theta_2 = tl.sum(d_error_2 * delta_2, 1)
        d_delta_1, d_delta_2 = d_error_1 * theta_1[:, None], d_error_2 * theta_2[:, None]
        d_rate_1, d_rate_2 = d_theta_1, d_theta_2
        if STIFF:
            quotient = tl.load(quotients + here * size + c, mask=inside, other=1.0)
            stiffness = tl.maximum(quotient, 1.0)
            d_rate_1 /= stiffness
            d_rate_2 /= stiffness
            square_1, square_2 = tl.sum(delta_1 * delta_1, 1), tl.sum(delta_2 * delta_2, 1)
            key_square = tl.sum(key * key, 1)
            d_whole = -(d_rate_1 * theta_1 + d_rate_2 * theta_2)
            d_whole = tl.where(quotient >= 1, d_whole, 0.0) / (square_2 + 1e-12)
            d_key += key * (2 * d_whole * square_1)[:, None]
            d_inner += inner * (2 * d_whole * square_2)[:, None]
            d_delta_1 += delta_1 * (2 * d_whole * key_square)[:, None]
            d_delta_2 += delta_2 * (2 * d_whole * (inner_square - quotient))[:, None]
        if part == 0:
            tl.store(d_rate + here * size + c, d_rate_1, mask=inside)
            tl.store(d_rate + (chunks * rows + here) * size + c, d_rate_2, mask=inside)

        # The errors.
        base_1, base_2 = weight_1, weight_2
        if ANCHORED:  # noqa: SIM102 (this one is decided when the kernel is compiled, the other when it runs)
            if n == 0:
                base_1 = tl.load(anchor_1 + mine + in_1, mask=is_1, other=0.0)
                base_2 = tl.load(anchor_2 + mine + in_2, mask=is_2, other=0.0)
        d_pull = d_delta_1 * slope
        more = product(d_pull, base_2)
        if SPLIT > 1:
            give(more, again + place * (C * K) + tile, every)
        d_hidden = d_delta_1 * pull * gelu_bend(hidden)
        d_base_2 = product(tl.trans(d_pull), delta_2)
        if SPLIT > 1:
            more = tiles_of(again, n, row, rows, SPLIT, PARTS, C, K)
        d_out = 2 * (d_delta_2 + more)
        if part == 0:
            tl.store(d_values + at_token, -d_out, mask=is_token)
            d_key += tl.load(read_keys + at_token, mask=is_token, other=0.0)
        d_base_2 += product(tl.trans(inner), d_out)
        d_inner += product(d_out, tl.trans(base_2))
        d_hidden += slope * d_inner
        d_base_1 = product(tl.trans(key), d_hidden)
        d_key += product(d_hidden, tl.trans(base_1))
        tl.store(d_keys + part * chunks * rows * size * WIDTH + at_token, d_key, mask=is_token)
        if n == chunks - 1:
            d_base_1 += tl.load(d_start_1 + mine + in_1, mask=is_1, other=0.0)
            d_base_2 += tl.load(d_start_2 + mine + in_2, mask=is_2, other=0.0)
        if ANCHORED:  # noqa: SIM102
            if n == 0:
                tl.store(d_anchor_1 + mine + in_1, d_base_1, mask=is_1)
                tl.store(d_anchor_2 + mine + in_2, d_base_2, mask=is_2)
                d_base_1, d_base_2 = tl.zeros_like(d_base_1), tl.zeros_like(d_base_2)
        d_weight_1 += d_base_1
        d_weight_2 += d_base_2

        # The cap: w <- factor w, and the factor hangs on the norm where it is below 1. `weight` is the scaled one.
        if CAPPED:
            factor_1, factor_2 = tl.load(factors + 2 * here), tl.load(factors + 2 * here + 1)
            if (factor_1 < 1) | (factor_2 < 1):
                along_1, norm_1 = dotted(d_weight_1, weight_1), squared(weight_1)
                along_2, norm_2 = dotted(d_weight_2, weight_2), squared(weight_2)
                if SPLIT > 1:
                    p = tl.arange(0, PARTS)
                    give(along_1, caps + place * 4, True)
                    give(norm_1, caps + place * 4 + 1, True)
                    give(along_2, caps + place * 4 + 2, True)
                    give(norm_2, caps + place * 4 + 3, True)
                    found = caps + (here * SPLIT + p) * 4
                    along_1 = tl.sum(parts_at(found, p < SPLIT), 0)
                    norm_1 = tl.sum(parts_at(found + 1, p < SPLIT), 0)
                    along_2 = tl.sum(parts_at(found + 2, p < SPLIT), 0)
                    norm_2 = tl.sum(parts_at(found + 3, p < SPLIT), 0)
                along_1 = tl.where(factor_1 < 1, along_1 / tl.maximum(norm_1, 1e-24), 0.0)
                along_2 = tl.where(factor_2 < 1, along_2 / tl.maximum(norm_2, 1e-24), 0.0)
                d_weight_1 = factor_1 * (d_weight_1 - along_1 * weight_1)
                d_weight_2 = factor_2 * (d_weight_2 - along_2 * weight_2)
    tl.store(d_weights_1 + mine + in_1, d_weight_1, mask=is_1)
    tl.store(d_weights_2 + mine + in_2, d_weight_2, mask=is_2)
    if MOVING:
        tl.store(d_momentum_1 + mine + in_1, d_push_1, mask=is_1)
        tl.store(d_momentum_2 + mine + in_2, d_push_2, mask=is_2)
