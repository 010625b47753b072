"""The whole time-series model as one numba kernel: an observation in, a forecast out, nothing allocated on the way.

`FusedModel` packs the weights once and holds the state of every series as one piece of memory, which its kernels
change in place. Windows, tokens and convolutions are rings: an observation that completes no patch writes one number.

What is computed is `TimeSeriesModel.encode` and `forecast` with the LMM wiring, to the last digits of the precision.
The functions are compiled when they are first called; numba is imported with this file, and this file by its users
only.

N series, L context, D model, H head, K key or token that the head sees, P patch, F future step, Q quantile, M map, C
place of a season.
"""

import math
from typing import Any, NamedTuple, cast, no_type_check

import numpy as np
import torch
from numba import prange
from numpy.typing import NDArray
from torch import Tensor, nn

from ..core.config import LOST, require
from ..core.networks import layer_shapes
from ..core.ops.backends import rule_of
from ..core.ops.fading import apart, usual_of
from ..core.ops.jit import kept
from ..core.ops.numba_cpu import compiled, gelu, sigmoid, square_sum, threads, through, through_rows, token
from ..core.ops.reference import at_rest
from ..core.state import MemoryState
from .config import TimeSeriesConfig
from .timeseries import LIMIT, SPREAD_SHAPES, SeriesState, TimeSeriesModel

TILE = 4  # series that go through the model's own weights together; a lone one goes with idle rows, for the same sums
LINE = 16  # numbers of a cache line in single precision: what begins with one is read and written in half the time


class Sizes(NamedTuple):
    """What the kernels know of a configuration. hidden: of a feed-forward layer; memory: weights of one head; seen: a
    series' tokens that the head sees; held: numbers that a block keeps of a series, in whole cache lines."""

    dim: int
    heads: int
    gates: int
    taps: int
    hidden: int
    blocks: int
    patch: int
    context: int
    seen: int
    rank: int
    horizon: int
    quantiles: int
    memory: int
    held: int
    chunk: int
    normalize: bool
    momentum: bool
    forgetting: bool
    residual: bool
    anchored: bool

    @classmethod
    def of(cls, config: TimeSeriesConfig) -> "Sizes":
        """The sizes of a configuration.

        >>> Sizes.of(TimeSeriesConfig(horizon=4, context=32, patch=8, quantiles=(0.5,))).memory
        1024
        """
        backbone, memory = config.backbone, config.backbone.memory
        shapes = layer_shapes(memory.head_dim, memory.depth, memory.expansion)
        size, gates = sum(i * o for i, o in shapes), memory.depth if memory.layer_gates else 1
        held = memory.heads * ((2 if memory.exact else 3) * size + gates) + (memory.conv - 1) * 3 * backbone.dim
        return cls(
            dim=backbone.dim,
            heads=memory.heads,
            gates=gates,
            taps=memory.conv,
            hidden=max(1, round(backbone.expansion * backbone.dim)),
            blocks=backbone.depth,
            patch=config.patch,
            context=config.context,
            seen=config.num_tokens,
            rank=config.rank,
            horizon=config.horizon,
            quantiles=len(config.quantiles),
            memory=size,
            held=-(-held // LINE) * LINE,
            chunk=memory.chunk,
            normalize=memory.normalize,
            momentum=memory.momentum,
            forgetting=memory.forgetting,
            residual=memory.residual,
            anchored=not memory.exact,
        )


class Readout(NamedTuple):
    """What makes a forecast in the units of the series of what the head says.

    linear: maps of the centred window to its future, [M, L * F]; M may be 0. profile: what each series has at every
    place of the season beside, [N, C * F]; C may be 0. pull: what the distance of the usual value from the window's
    mean adds, [M, F] or [1, 0]; known [N, 5], seen [N, 3 + C], usual [N, 2]: what is usual, by `fit` and by now,
    see `core.ops.fading.usual_of`. rows: which row of linear, profile, pull and known each series has, [N]; a single
    map is everybody's, and with 0 there is no profile. steps: which step of the clock comes next, [N]; where that is
    `LOST` there is no profile either. correction: factor on the head's expected value.
    """

    linear: NDArray[np.float64]
    profile: NDArray[np.float64]
    pull: NDArray[np.float64]
    known: NDArray[np.float64]
    seen: NDArray[np.int64]
    usual: NDArray[np.float64]
    rows: NDArray[np.int64]
    steps: NDArray[np.int64]
    correction: float


# Kernels. `weights` and a series' `state` are flat; what lies in them where is what `packed_weights` and `FusedModel`
# put there, and is cut off them piece by piece.


@compiled
@no_type_check
def root_mean_square(x, scale, out):
    """out [D] = the RMS norm of x [D] with a learned scale; both may be the same."""
    kind = x.dtype.type
    factor = kind(1) / kind(math.sqrt(square_sum(x) / kind(len(x)) + kind(1e-6)))
    for j in range(len(x)):
        out[j] = x[j] * factor * scale[j]


@compiled
@no_type_check
def to_unit(x):
    """x [K] divided by its length, in place."""
    factor = x.dtype.type(1) / max(x.dtype.type(math.sqrt(square_sum(x))), x.dtype.type(1e-12))
    for j in range(len(x)):
        x[j] *= factor


@compiled
@no_type_check
def largest_of(window):
    """The largest magnitude of what is observed."""
    largest = 0.0
    for value in window:
        if abs(value) > largest:
            largest = abs(value)
    return largest


@compiled
@no_type_check
def scale_of(sizes, exact, position, number):
    """Level and scale of the window as the model has them, its plain mean, and how much is observed.

    position: steps seen; number: tokens before, the last of which lends its level and scale to an empty window."""
    window = exact[: sizes.context]
    count, total, size = 0, 0.0, 0.0
    for i in range(sizes.context):
        here = not math.isnan(window[i])
        count += here
        total += window[i] if here else 0.0
        size += abs(window[i]) if here else 0.0
    if count == 0:
        last = sizes.context + (number - 1) % sizes.seen
        return exact[last], exact[last + sizes.seen], 0.0, 0
    mean, squares = total / count, 0.0
    for i in range(sizes.context):
        away = 0.0 if math.isnan(window[i]) else window[i] - mean
        squares += away * away
    deviation = math.sqrt(squares / count)
    if deviation <= 1e-10 * size and deviation <= 1e-10 * largest_of(window):
        first = position
        while math.isnan(window[first % sizes.context]):
            first += 1
        return window[first % sizes.context], 0.0, mean, count
    return mean, deviation, mean, count


@compiled
@no_type_check
def features(sizes, exact, begin, count, level, scale, out):
    """out [2 P] = the first `count` values of the patch that begins at step `begin`, standardised, and which are
    observed; returns whether any is."""
    kind = out.dtype.type
    safe = scale if scale > 0 else 1.0
    out[:] = kind(0)
    any_observed = False
    for p in range(count):
        value = exact[(begin + p) % sizes.context]
        if not math.isnan(value):
            any_observed = True
            out[p] = kind((value - level) / safe)
            out[sizes.patch + p] = kind(1)
    return any_observed


@compiled
@no_type_check
def convolve(sizes, kernel, recent, number, x, out):
    """out [3 D] = the causal convolution at token `number`, whose x [3 D] takes the oldest place of the ring."""
    size, past = len(x), sizes.taps - 1
    last = kernel[past * size : (past + 1) * size]
    for j in range(size):
        out[j] = last[j] * x[j]
    for tap in range(past):
        place = (number + tap) % past
        row, old = kernel[tap * size : (tap + 1) * size], recent[place * size : (place + 1) * size]
        for j in range(size):
            out[j] += row[j] * old[j]
    if past:
        place = number % past
        recent[place * size : (place + 1) * size] = x


@compiled
@no_type_check
def layer(weights, x, out):
    """out [TILE O] = x [TILE I] @ weights [I O], all flat: the sums of a row are the same whoever shares its tile."""
    inputs, outputs = len(x) // TILE, len(out) // TILE
    np.dot(x.reshape(TILE, inputs), weights.reshape(inputs, outputs), out.reshape(TILE, outputs))


@compiled
@no_type_check
def run_block(sizes, limits, widths, weights, block, rows, count, adapt, state, counts, x, work):
    """One block on the first `count` of x [TILE D], in place: memory and feed-forward layer, with their residual paths.

    rows [2 TILE + 1]: which series these are, who comes next, and then which of them saw something in their patch."""
    kind = x.dtype.type
    dim, heads, gates, width, hidden = sizes.dim, sizes.heads, sizes.gates, sizes.dim // sizes.heads, sizes.hidden
    flags = (sizes.residual, sizes.anchored, sizes.momentum, sizes.forgetting)
    parts, size = 3 if sizes.anchored else 2, sizes.memory
    wide = 4 * dim + 3 * heads * gates
    at = dim
    scale, project = weights[:at], weights[at : at + wide * dim]
    at += wide * dim
    kernel = weights[at : at + 3 * dim * sizes.taps]
    at += 3 * dim * sizes.taps
    gate_bias = weights[at : at + 3 * heads * gates]
    at += 3 * heads * gates
    read_scale, to_out = weights[at : at + width], weights[at + width : at + width + dim * dim]
    at += width + dim * dim
    feed_scale, up = weights[at : at + dim], weights[at + dim : at + dim + 2 * hidden * dim]
    down = weights[at + dim + 2 * hidden * dim :]

    tall, used = work[: TILE * dim], TILE * dim
    told, reads = work[used : used + TILE * wide], work[used + TILE * wide :][: TILE * dim]
    used += TILE * (wide + dim)
    mixed, inner = work[used : used + 3 * dim], work[used + 3 * dim :]
    for i in range(count):
        root_mean_square(x[i * dim : (i + 1) * dim], scale, tall[i * dim : (i + 1) * dim])
    layer(project, tall, told)
    for i in range(count):
        clock, own = counts[rows[i]], state[rows[i], block * sizes.held : (block + 1) * sizes.held]
        after = state[rows[i + 1 if i + 1 < count else TILE], block * sizes.held :][: parts * size]
        offset = clock[1 + block]
        clock[1 + block] = (offset + 1) % sizes.chunk
        mine = told[i * wide : (i + 1) * wide]
        rest = parts * heads * size
        number = clock[0] // sizes.patch - 1
        convolve(sizes, kernel, own[rest + heads * gates :], number, mine[: 3 * dim], mixed)
        gate, steps = mine[3 * dim : 4 * dim], mine[4 * dim :]
        for j in range(len(steps)):
            steps[j] += gate_bias[j]
        sigmoid(mine[3 * dim :])
        theta, eta, alpha = steps[: heads * gates], steps[heads * gates : 2 * heads * gates], steps[2 * heads * gates :]
        for j in range(len(theta)):
            half = kind(0.5)
            if sizes.momentum:
                left = kind(1) - eta[j]
                theta[j] *= left * min(left / (kind(1) + eta[j]), half)
            else:
                theta[j] *= half
        read = reads[i * dim : (i + 1) * dim]
        for h in range(heads):
            query, key = mixed[h * width : (h + 1) * width], mixed[dim + h * width : dim + (h + 1) * width]
            to_unit(query)
            to_unit(key)
            begin = parts * h * size
            ahead = own[begin + parts * size :][: parts * size] if h + 1 < heads else after
            base = begin + 2 * size if sizes.anchored else begin
            said = read[h * width : (h + 1) * width]
            g = slice(h * gates, (h + 1) * gates)
            token(
                flags, limits, widths, query, key, mixed[2 * dim + h * width : 2 * dim + (h + 1) * width],
                theta[g], eta[g], alpha[g], offset == 0, rows[TILE + 1 + i] and adapt,
                own[begin : begin + size], own[begin + size : begin + 2 * size], own[base : base + size],
                own[rest + h * gates : rest + (h + 1) * gates], ahead, inner, said,
            )  # fmt: skip
            if sizes.normalize:
                root_mean_square(said, read_scale, said)
        for j in range(dim):
            read[j] *= gate[j]
    layer(to_out, reads, tall)
    for j in range(count * dim):
        x[j] += tall[j]

    spread, pushed = work[TILE * dim :][: 2 * TILE * hidden], work[TILE * (dim + 2 * hidden) :][: TILE * hidden]
    for i in range(count):
        root_mean_square(x[i * dim : (i + 1) * dim], feed_scale, tall[i * dim : (i + 1) * dim])
    layer(up, tall, spread)
    for i in range(count):
        mine, opened = spread[2 * i * hidden : 2 * (i + 1) * hidden], pushed[i * hidden : (i + 1) * hidden]
        opened[:] = mine[:hidden]
        sigmoid(opened)
        for j in range(hidden):
            opened[j] *= mine[j] * mine[hidden + j]
    layer(down, pushed, tall)
    for j in range(count * dim):
        x[j] += tall[j]


@compiled
@no_type_check
def observe(sizes, value, exact, counts):
    """One value of one series in its window; returns whether it completes a patch. counts: steps seen, and the clock
    of every memory."""
    position = counts[0]
    exact[position % sizes.context] = value
    counts[0] = position + 1
    return (position + 1) % sizes.patch == 0


@compiled
@no_type_check
def complete(sizes, limits, widths, weights, blocks, rows, count, adapt, state, exact, counts, work):
    """The new patches of up to `TILE` series, `rows[:count]`, as tokens through all blocks.

    weights: of embedding and head. blocks: of the blocks, [blocks, ...]. rows: see `run_block`."""
    dim, patch = sizes.dim, sizes.patch
    patches, x, rest = (
        work[: 2 * TILE * patch],
        work[2 * TILE * patch :][: TILE * dim],
        work[TILE * (2 * patch + dim) :],
    )
    for i in range(count):
        r = rows[i]
        position = counts[r, 0]
        number = position // patch - 1
        level, scale, _, _ = scale_of(sizes, exact[r], position, number)
        place = sizes.context + number % sizes.seen
        exact[r, place], exact[r, place + sizes.seen] = level, scale
        rows[TILE + 1 + i] = features(
            sizes, exact[r], position - patch, patch, level, scale, patches[2 * i * patch : 2 * (i + 1) * patch]
        )  # fmt: skip
    layer(weights[: 2 * patch * dim], patches, x)
    bias = weights[2 * patch * dim : (2 * patch + 1) * dim]
    for i in range(count):
        for j in range(dim):
            x[i * dim + j] += bias[j]
    for block in range(sizes.blocks):
        run_block(sizes, limits, widths, blocks[block], block, rows, count, adapt, state, counts, x, rest)
    for i in range(count):
        own, number = state[rows[i]], counts[rows[i], 0] // patch - 1
        begin = sizes.blocks * sizes.held + number % sizes.seen * dim
        own[begin : begin + dim] = x[i * dim : (i + 1) * dim]


@compiled
@no_type_check
def foresee(
    sizes, weights, linear, profile, pull, usual, correction, state, exact, counts, work, wide, point, offsets
):  # fmt: skip
    """The forecast of one series: point [F], the head's quantiles around it [F, Q], and the scale of its window.
    linear: its map [L F], flat; profile: what is added in units of the window's pace [F], or nothing; pull: what is
    added for each unit that the usual, a mean and a variance, lies off the window's mean [F], or nothing; work: of the
    network's precision, wide: [L] in float64."""
    kind = weights.dtype.type
    dim, patch, seen, rank, context = sizes.dim, sizes.patch, sizes.seen, sizes.rank, sizes.context
    horizon, levels, steps = sizes.horizon, sizes.quantiles, sizes.horizon + sizes.patch
    position = counts[0]
    number, arrived = position // patch, position % patch
    level, scale, mean, count = scale_of(sizes, exact, position, number)
    safe = scale if scale > 0 else 1.0

    at = (2 * patch + 1) * dim
    direction = weights[at : at + dim]
    at += dim
    narrow = weights[at : at + rank * seen * dim]
    at += rank * seen * dim
    far = weights[at + arrived * rank : at + (arrived + horizon) * rank]
    at += steps * rank
    near, near_bias = weights[at : at + dim * (2 * patch + dim)], weights[at + dim * (2 * patch + dim) :][:dim]
    at += dim * (2 * patch + dim) + dim
    near_out = weights[at + arrived * dim : at + (arrived + horizon) * dim]
    at += steps * dim
    near_shift = weights[at + arrived : at + arrived + horizon]
    at += steps
    mix, mix_bias = weights[at : at + SPREAD_SHAPES * 2 * dim], weights[at + SPREAD_SHAPES * 2 * dim :][:SPREAD_SHAPES]
    at += SPREAD_SHAPES * (2 * dim + 1)
    base_spread, shapes = weights[at : at + horizon * levels], weights[at + horizon * levels :]

    outputs, tokens = state[sizes.blocks * sizes.held :], work[: seen * dim]
    used = seen * dim
    middle, said, more = (
        work[used : used + rank],
        work[used + rank :][:horizon],
        work[used + rank + horizon :][:horizon],
    )
    used += rank + 2 * horizon
    both = work[used : used + 2 * patch + dim]
    used += 2 * patch + dim
    last, weight = work[used : used + 2 * dim], work[used + 2 * dim :][:SPREAD_SHAPES]
    used += 2 * dim + SPREAD_SHAPES
    widths = work[used : used + horizon * levels]

    for j in range(seen):
        place = (number + j) % seen
        old_level, old_scale = exact[context + place], exact[context + seen + place]
        ratio = kind(min(old_scale / safe, LIMIT))
        drift = kind(max(min((old_level - level) / safe, LIMIT), -LIMIT)) if old_scale > 0 else kind(0)
        out, moved = outputs[place * dim : (place + 1) * dim], tokens[j * dim : (j + 1) * dim]
        for i in range(dim):
            moved[i] = out[i] * ratio + drift * direction[i]
    through_rows(narrow, tokens, middle)
    through_rows(far, middle, said)

    newest = (number - 1) % seen
    last[:dim] = outputs[newest * dim : (newest + 1) * dim]
    features(sizes, exact, position - arrived, arrived, level, scale, both[: 2 * patch])
    both[2 * patch :] = last[:dim]
    through_rows(near, both, last[dim:])
    for j in range(dim):
        last[dim + j] += near_bias[j]
    gelu(last[dim:])
    through_rows(near_out, last[dim:], more)

    if count and len(linear):
        held, moved, first = 0.0, 0.0, -1  # moved: `linear.pace`
        for i in range(context):
            value = exact[(position + i) % context]
            if not math.isnan(value):
                if first < 0:
                    first = i
                else:
                    moved += abs(value - mean - held)
                held = value - mean
            wide[i] = held
        moved /= max(context - 1 - first, 1)
        through(linear, wide, point)
        for f in range(horizon):
            point[f] += mean
        for f in range(len(profile)):
            point[f] += moved * profile[f]
        distance = apart(usual[0], usual[1], mean) if len(pull) and moved > 0 else 0.0
        for f in range(len(pull)):
            point[f] += distance * pull[f]
    else:
        point[:] = level
    for f in range(horizon):
        point[f] += correction * scale * float(said[f] + more[f] + near_shift[f])

    through_rows(mix, last, weight)
    widths[:] = base_spread
    for s in range(SPREAD_SHAPES):
        share = weight[s] + mix_bias[s]
        shape = shapes[s * horizon * levels : (s + 1) * horizon * levels]
        for i in range(len(widths)):
            widths[i] += share * shape[i]
    for f in range(horizon):
        offset = widths[f * levels]
        offsets[f, 0] = scale * float(offset)
        for q in range(1, levels):
            rise = widths[f * levels + q]
            offset += rise if rise > 20 else math.log1p(math.exp(rise))
            offsets[f, q] = scale * float(offset)
    return scale


@compiled
@no_type_check
def some_updates(
    first, last, sizes, limits, widths, weights, blocks, rows, values, adapt, state, exact, counts, ready, work
):  # fmt: skip
    """The values of the rows from place `first` to before `last`; what completes a patch waits until a tile is full."""
    count = 0
    for i in range(first, last):
        r = rows[i]
        if observe(sizes, values[i], exact[r], counts[r]):
            ready[count] = r
            count += 1
        if count == TILE or (count and i == last - 1):
            ready[TILE] = rows[min(i + 1, last - 1)]
            complete(sizes, limits, widths, weights, blocks, ready, count, adapt, state, exact, counts, work)
            count = 0


@no_type_check
def _all_updates(
    parts, sizes, limits, widths, weights, blocks, rows, values, adapt, state, exact, counts, ready, work
):  # fmt: skip
    for part in prange(parts):
        some_updates(
            part * len(rows) // parts, (part + 1) * len(rows) // parts, sizes, limits, widths, weights, blocks,
            rows, values, adapt, state, exact, counts, ready[part], work[part],
        )  # fmt: skip


all_updates = kept(_all_updates, parallel=True)


@compiled
@no_type_check
def some_forecasts(first, last, sizes, weights, linear, profile, pull, known, seen, usual, own, steps, correction, rows,
                   state, exact, counts, work, wide, points, offsets, scales):  # fmt: skip
    """The forecasts of the rows from place `first` to before `last`."""
    for i in range(first, last):
        r = rows[i]
        map_ = linear[own[r] if len(linear) > 1 else 0] if len(linear) else wide[:0]
        beside = wide[:0]
        if profile.shape[1] and own[r] > 0 and steps[r] > LOST // 2:
            place = steps[r] % (profile.shape[1] // sizes.horizon) * sizes.horizon
            beside = profile[own[r], place : place + sizes.horizon]
        pulled = pull[own[r] if len(pull) > 1 else 0]
        scales[i] = foresee(
            sizes, weights, map_, beside, pulled, usual_of(seen[r, 1], usual[r], known[own[r]]), correction, state[r],
            exact[r], counts[r], work, wide, points[i], offsets[i],
        )  # fmt: skip


@no_type_check
def _all_forecasts(parts, sizes, weights, linear, profile, pull, known, seen, usual, own, steps, correction, rows,
                   state, exact, counts, work, wide, points, offsets, scales):  # fmt: skip
    for part in prange(parts):
        some_forecasts(
            part * len(rows) // parts, (part + 1) * len(rows) // parts, sizes, weights, linear, profile, pull, known,
            seen, usual, own, steps, correction, rows, state, exact, counts, work[part], wide[part], points, offsets,
            scales,
        )  # fmt: skip


all_forecasts = kept(_all_forecasts, parallel=True)


def packed_weights(model: TimeSeriesModel) -> tuple[NDArray[Any], NDArray[Any]]:
    """The weights of embedding and head, flat, and those of every block, [blocks, ...]: in the order of the kernels.

    >>> config = TimeSeriesConfig(horizon=4, context=32, patch=8, quantiles=(0.5,))
    >>> packed_weights(TimeSeriesModel(config))[1].shape
    (2, 46374)
    """

    def pack(parts: list[Tensor]) -> NDArray[Any]:
        whole: NDArray[Any] = torch.cat([part.detach().cpu().reshape(-1) for part in parts]).numpy()
        return whole

    rows, stack = [], model.backbone
    layers: Any = zip(stack.mixers, stack.mixer_norms, stack.feeds, stack.feed_norms, strict=True)
    for mixer, norm, feed, feed_norm in layers:
        memory = mixer.memory
        parts = [
            norm.scale, torch.cat([memory.project.weight, memory.gate.weight, memory.gates.weight]).T,
            memory.conv.weight[:, 0].T, memory.gates.bias, memory.norm.scale, memory.out.weight.T,
            feed_norm.scale, feed.up.weight.T, feed.down.weight.T,
        ]  # fmt: skip
        rows.append(pack(parts))
    patch, first = model.config.patch, cast(nn.Linear, model.near[0])
    head: list[Any] = [
        model.embed.weight.T, model.embed.bias, model.embed.weight[:, :patch].sum(1), model.narrow.weight,
        model.far.weight, first.weight, first.bias, model.near_out.weight, model.near_out.bias,
        model.mix.weight, model.mix.bias, model.base_spread, model.spread_shapes,
    ]  # fmt: skip
    return pack(head), np.stack(rows)


def ring(x: NDArray[Any], first: NDArray[np.int64]) -> NDArray[Any]:
    """x [N, K, ...], oldest first, as a ring whose oldest entry lies at place `first` [N].

    >>> ring(np.array([[1, 2, 3]]), np.array([1])).tolist()
    [[3, 1, 2]]
    """
    place = (np.arange(x.shape[1]) - first[:, None]) % max(x.shape[1], 1)
    return np.take_along_axis(x, place.reshape(*place.shape, *[1] * (x.ndim - 2)), 1)


def unring(x: NDArray[Any], first: NDArray[np.int64]) -> NDArray[Any]:
    """The inverse of `ring`.

    >>> unring(np.array([[3, 1, 2]]), np.array([1])).tolist()
    [[1, 2, 3]]
    """
    return ring(x, -first)


def aligned(rows: int, width: int, kind: np.dtype[Any]) -> NDArray[Any]:
    """Zeros [N, width or a few more], whose rows begin with a cache line.

    >>> aligned(2, 17, np.dtype(np.float32)).shape
    (2, 32)
    """
    width, line = -(-width // LINE) * LINE, LINE * np.dtype(np.float32).itemsize
    room = np.empty(rows * width * kind.itemsize + line, dtype=np.uint8)
    begin = -room.ctypes.data % line
    whole: NDArray[Any] = room[begin : begin + rows * width * kind.itemsize].view(kind).reshape(rows, width)
    whole[:] = 0  # the idle rows of a tile are computed as well
    return whole


class FusedModel:
    """A trained model with the states of its series, for one observation after the other.

    Starts where `state` stands and changes arrays of its own from there: `series_state` gives the state back at any
    time, and torch goes on from it.

    >>> config = TimeSeriesConfig(horizon=4, context=32, patch=8, quantiles=(0.1, 0.5, 0.9))
    >>> model = TimeSeriesModel(config).eval()
    >>> fused = FusedModel(model, model.initial_state(3))
    >>> for _ in range(9):
    ...     fused.update(np.array([0, 2]), np.array([1.0, 2.0]))
    >>> fused.series_state().position.tolist()
    [9, 0, 9]
    """

    def __init__(self, model: TimeSeriesModel, state: SeriesState) -> None:
        config = model.config
        require(
            config.backbone.variant == "lmm",
            f"the fused model has no attention and variant is {config.backbone.variant!r}: use variant='lmm'.",
        )
        self.config, self.sizes = config, Sizes.of(config)
        memory, sizes = config.backbone.memory, self.sizes
        rule = rule_of(memory)
        limits = (rule.step_budget, rule.weight_cap)
        self.limits = np.array([-1.0 if limit is None else limit for limit in limits])
        self.shapes = layer_shapes(memory.head_dim, memory.depth, memory.expansion)
        self.widths = np.array([self.shapes[0][0], *(o for _, o in self.shapes)])
        self.weights, self.blocks = packed_weights(model)
        self.positions = state.position.cpu().numpy()
        clocks = [self.positions, *(block.offset.cpu().numpy() for block in state.backbone)]
        self.counts = np.stack(clocks, 1).astype(np.int64)
        done = self.positions // sizes.patch
        window = ring(state.window.cpu().numpy(), self.positions % sizes.context)
        scales = [ring(part.cpu().numpy(), done % sizes.seen) for part in (state.levels, state.scales)]
        self.exact = np.concatenate([window, *scales], 1)
        kind = self.weights.dtype
        outputs = ring(state.outputs.detach().cpu().numpy(), done % sizes.seen)
        at = sizes.blocks * sizes.held
        self.state = aligned(len(done), at + sizes.seen * sizes.dim, kind)
        for number, block in enumerate(state.backbone):
            packed = self._packed(block, done)
            self.state[:, number * sizes.held :][:, : packed.shape[1]] = packed
        self.state[:, at : at + sizes.seen * sizes.dim] = outputs.reshape(len(done), -1)

        dim, inner = sizes.dim, 4 * int(self.widths.sum()) + sizes.gates
        mixing = TILE * (4 * dim + 3 * sizes.heads * sizes.gates + dim) + 3 * dim + inner
        update = TILE * (2 * sizes.patch + 2 * dim) + max(mixing, 3 * TILE * sizes.hidden)
        forecast = (
            sizes.seen * dim + sizes.rank + 2 * sizes.horizon + 2 * sizes.patch + 3 * dim
            + SPREAD_SHAPES + sizes.horizon * sizes.quantiles
        )  # fmt: skip
        most = threads(len(self.counts))
        self.work = aligned(most, max(update, forecast), kind)
        self.ready = np.zeros((most, 2 * TILE + 1), dtype=np.int64)
        self.wide = np.empty((most, sizes.context))

    def __len__(self) -> int:
        return len(self.counts)

    def update(self, rows: NDArray[np.int64], values: NDArray[np.float64], adapt: bool = True) -> None:
        """The next value of each of these series, NaN where missing; no series twice."""
        parts = min(threads(len(rows)), len(self.work))
        fixed = (self.sizes, self.limits, self.widths, self.weights, self.blocks, rows, values, adapt)
        if parts == 1:
            some_updates(0, len(rows), *fixed, self.state, self.exact, self.counts, self.ready[0], self.work[0])
        else:
            all_updates(parts, *fixed, self.state, self.exact, self.counts, self.ready, self.work)

    def forecast(
        self, rows: NDArray[np.int64], readout: Readout
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Point forecasts [N, F] of these series, the head's quantiles around them [N, F, Q] and the scales of their
        windows [N]; their states stay as they are."""
        parts = min(threads(len(rows)), len(self.work))
        points = np.empty((len(rows), self.sizes.horizon))
        offsets = np.empty((len(rows), self.sizes.horizon, self.sizes.quantiles))
        scales = np.empty(len(rows))
        fixed = (self.sizes, self.weights, *readout, rows)
        if parts == 1:
            held = (self.state, self.exact, self.counts, self.work[0], self.wide[0])
            some_forecasts(0, len(rows), *fixed, *held, points, offsets, scales)
        else:
            out = (points, offsets, scales)
            all_forecasts(parts, *fixed, self.state, self.exact, self.counts, self.work, self.wide, *out)
        return points, offsets, scales

    def series_state(self) -> SeriesState:
        """The state as the model has it, of every series: a copy."""
        sizes, counts = self.sizes, self.counts.copy()
        position, done = counts[:, 0], counts[:, 0] // sizes.patch
        window, levels, scales = np.split(self.exact, [sizes.context, sizes.context + sizes.seen], 1)
        at, width = sizes.blocks * sizes.held, sizes.held
        outputs = self.state[:, at : at + sizes.seen * sizes.dim].reshape(-1, sizes.seen, sizes.dim)
        blocks = [
            self._unpacked(self.state[:, b * width : (b + 1) * width], counts[:, 1 + b], done)
            for b in range(sizes.blocks)
        ]
        return SeriesState(
            window=torch.from_numpy(unring(window, position % sizes.context)),
            position=torch.from_numpy(position.copy()),
            backbone=tuple(blocks),
            outputs=torch.from_numpy(unring(outputs, done % sizes.seen)),
            levels=torch.from_numpy(unring(levels, done % sizes.seen)),
            scales=torch.from_numpy(unring(scales, done % sizes.seen)),
        )

    def _packed(self, block: MemoryState, done: NDArray[np.int64]) -> NDArray[Any]:
        """A memory's state as rows [N, ...]: of each head weights, momentum and anchor, then budgets, then the ring."""
        layers = [torch.cat([w.flatten(2) for w in part], -1) for part in block[:3] if part]
        memory = torch.cat(layers, -1).flatten(1).detach().cpu().numpy()
        recent = block.recent.detach().cpu().numpy()
        recent = ring(recent, done % max(recent.shape[1], 1)).reshape(len(done), -1)
        return np.concatenate([memory, block.spent.flatten(1).detach().cpu().numpy(), recent], 1)

    def _unpacked(self, rows: NDArray[Any], offset: NDArray[np.int64], done: NDArray[np.int64]) -> MemoryState:
        """The inverse of `_packed`, with the parts between two chunks as they are stored there."""
        sizes, parts = self.sizes, 3 if self.sizes.anchored else 2
        memory = parts * sizes.heads * sizes.memory
        spent = torch.from_numpy(rows[:, memory : memory + sizes.heads * sizes.gates].copy())
        begin = memory + sizes.heads * sizes.gates
        recent = rows[:, begin : begin + (sizes.taps - 1) * 3 * sizes.dim].reshape(len(rows), -1, 3 * sizes.dim)
        pieces = torch.from_numpy(rows[:, :memory].copy()).view(len(rows), sizes.heads, parts, sizes.memory)
        clock = torch.from_numpy(offset.copy())
        held = []
        for part in range(parts):
            split = pieces[:, :, part].split([i * o for i, o in self.shapes], -1)
            held.append(tuple(w.unflatten(-1, shape).clone() for w, shape in zip(split, self.shapes, strict=True)))
        anchor, left = at_rest(
            held[0], held[2] if sizes.anchored else (), spent.view(len(rows), sizes.heads, sizes.gates), clock
        )
        last = torch.from_numpy(unring(recent, done % max(sizes.taps - 1, 1)))
        return MemoryState(held[0], held[1], anchor, left, clock, last)
