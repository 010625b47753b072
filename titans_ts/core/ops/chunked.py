"""The dual form of the update rule for deep memories: matrix products over chunks, never a weight per token.

Every gradient of a layer is rank one, `input_t^T delta_t`, so that reading the weights of every token of a chunk takes
a masked matrix product (eq. 17 and 18, extended to deep networks, momentum and forgetting together). What computes the
chunks, `dual` or the kernels of `numba_dual`, is chosen by `fits`.

B row, H head, T time, C token of the chunk, N chunk, R row and head together, K key, V value, G gate.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional

from ..networks import normalize
from ..pieces import Piece, agreed, begins, join, noted, pieces, real, take
from ..state import MemoryState, where_rows
from .coefficients import Recur, coefficients, recurrences
from .contract import Rule, Tokens, cap, lasting
from .dual import Form, Gates, whole_chunks
from .reference import at_rest

WholeChunks = Callable[
    ..., tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]
]  # as `whole_chunks`
GatesOf = Callable[[Tensor, Tensor | None, Tensor | None, Tensor | None, int], Any]  # as `gates_of`
SPAN = 4096  # tokens of all rows whose scalars are computed at once
# What the compiled kernels of `numba_dual` are for: heads as wide as this at most, since wide products are fast as they
# are, and so many numbers in the keys at least, since nobody is to wait for a compiler for the sake of a few tokens.
WIDEST, WORTH = 128, 32768
ALONE = 4  # threads of torch that a thread of theirs is worth: two bring torch a quarter at most on such products


def chunked(state: MemoryState, tokens: Tokens, rule: Rule) -> tuple[Tensor, MemoryState]:
    """Write and read all tokens, chunk by chunk; equal to the reference for every network and chunk length.

    A state without an anchor, which is that of a linear memory, takes every gradient at the current weights.

    >>> from titans_ts.core.ops.contract import Rule, Tokens
    >>> one = torch.ones(1, 1, 1, 1)
    >>> two, clock = (one, one), torch.zeros(1, dtype=torch.long)
    >>> start = MemoryState(two, two, two, 0 * one[0], clock, one[0])
    >>> chunked(start, Tokens(one, one, 3 * one, 0.1 * one), Rule(chunk=4))[0].shape
    torch.Size([1, 1, 1, 1])
    """
    longest = max(1, SPAN // (rule.chunk * state.offset.shape[0]))
    if fits(state, tokens, rule):
        from .numba_dual import in_kernels, scalars

        return in_runs(state, tokens, rule, longest, in_kernels, scalars)
    return in_runs(state, tokens, rule, longest, whole_chunks, gates_of)


def fits(state: MemoryState, tokens: Tokens, rule: Rule) -> bool:
    """Whether the kernels of `numba_dual` compute this, and are worth it.

    They share out rows and heads to threads, and not the tokens of one.

    >>> one = torch.ones(1, 1, 1, 1)
    >>> two, clock = (one, one), torch.zeros(1, dtype=torch.long)
    >>> fits(MemoryState(two, two, two, 0 * one[0], clock, one[0]), Tokens(one, one, one, one), Rule(chunk=4))
    False
    """
    keys = tokens.keys
    if rule.residual or not state.anchor or len(state.weights) != 2 or keys.device.type != "cpu":
        return False
    kinds = {x.dtype for x in (*state.weights, *tokens[:6]) if x is not None}
    return (
        kinds in ({torch.float32}, {torch.float64})
        and keys.numel() >= WORTH
        and keys.shape[-1] <= WIDEST
        and state.weights[0].shape[-1] <= 4 * WIDEST
        and ALONE * keys.shape[0] * keys.shape[1] >= torch.get_num_threads()
    )


def in_runs(
    state: MemoryState, tokens: Tokens, rule: Rule, longest: int, whole: WholeChunks, scalars: GatesOf
) -> tuple[Tensor, MemoryState]:
    """The op whose runs of at most `longest` chunks are computed by `whole`, with what `scalars` makes of the gates.

    >>> one, clock = torch.ones(1, 1, 1, 1), torch.zeros(1, dtype=torch.long)
    >>> start = MemoryState((one,), (one,), (one,), 0 * one[0], clock, one[0])
    >>> tokens = Tokens(one, one, 3 * one, 0.1 * one)
    >>> in_runs(start, tokens, Rule(chunk=4), 1, whole_chunks, gates_of)[1].offset.tolist()
    [1]
    """
    time = tokens.keys.shape[2]
    steps = pieces(state.offset, tokens.lengths, time, rule.chunk)
    reads = []
    for part, run in apart(tokens, runs(steps, rule.chunk, longest)):
        read, state = one_run(state, part, rule, run, whole, scalars)
        reads.append(read)
    arrived = time if tokens.lengths is None else tokens.lengths
    offset = (state.offset + arrived) % rule.chunk
    clock = agreed(state.offset) if tokens.lengths is None else None
    if clock is not None:
        offset = noted(offset, (clock + time) % rule.chunk)
    anchor, spent = at_rest(state.weights, state.anchor, state.spent, offset)
    out = join(reads, steps, time, 2) if reads else torch.zeros_like(tokens.values)
    return out, state._replace(anchor=anchor, spent=spent, offset=offset)


def runs(steps: list[Piece], size: int, longest: int) -> list[list[Piece]]:
    """The steps in runs that are computed together: at most `longest` chunks that all rows fill, or anything alone.

    >>> [len(run) for run in runs(pieces(torch.tensor([3]), None, 23, 4), 4, 3)]
    [1, 3, 2, 1]
    """
    out: list[list[Piece]] = []
    for whole, group in groupby(steps, lambda step: step.count is None and step.width == size):
        run = list(group)
        length = longest if whole else 1
        out += [run[i : i + length] for i in range(0, len(run), length)]
    return out


def apart(tokens: Tokens, found: list[list[Piece]]) -> list[tuple[Tokens, list[Piece]]]:
    """Every run with its own tokens, and its steps counted from the first of these.

    The gradient of one split is one concatenation. That of a slice is as long as all tokens, and one for every run
    would make the backward pass quadratic in the length. Where rows are at clocks of their own, runs share the tokens.

    >>> x = torch.zeros(1, 1, 6, 1)
    >>> found = [[Piece(0, 2, None, 0)], [Piece(2, 4, None, 1)]]
    >>> [(part.keys.shape[2], run[0].start) for part, run in apart(Tokens(x, x, x, x), found)]
    [(2, 0), (4, 0)]
    """
    if len(found) < 2 or found[0][0].count is not None:
        return [(tokens, run) for run in found]
    sizes = [sum(step.width for step in run) for run in found]
    fields = [
        [None] * len(found) if x is None else x.split(sizes, 1 if name == "observed" else 2)
        for name, x in zip(Tokens._fields[:-1], tokens[:-1], strict=True)
    ]
    out = []
    for run, *parts in zip(found, *fields, strict=True):
        first = run[0].start
        out.append((Tokens(*parts), [replace(step, start=step.start - first) for step in run]))
    return out


def grid(x: Shaped[Tensor, "B H T F"], run: list[Piece]) -> Shaped[Tensor, "N R C F"]:
    """The tokens of a run, chunk by chunk.

    >>> grid(torch.arange(6.0).view(1, 1, 6, 1), [Piece(2, 2, None, 1), Piece(4, 2, None, 2)]).flatten(1).tolist()
    [[2.0, 3.0], [4.0, 5.0]]
    """
    first = run[0]
    if len(run) == 1:
        return take(x, first, 2).flatten(0, 1).unsqueeze(0).contiguous()
    whole = take(x, Piece(first.start, first.width * len(run), None, first.index), 2)
    return whole.unflatten(2, (len(run), first.width)).movedim(2, 0).flatten(1, 2).contiguous()


def one_run(
    state: MemoryState,
    tokens: Tokens,
    rule: Rule,
    run: list[Piece],
    whole: WholeChunks,
    scalars: GatesOf,
) -> tuple[Tensor, MemoryState]:
    """Reads and state after one of `runs`; the offset stays that of the whole call's start.

    >>> one = torch.ones(1, 1, 1, 1)
    >>> two, clock = (one, one), torch.zeros(1, dtype=torch.long)
    >>> start = MemoryState(two, two, two, 0 * one[0], clock, one[0])
    >>> tokens, run = Tokens(one, one, one, 0 * one), [Piece(0, 1, None, 0)]
    >>> one_run(start, tokens, Rule(chunk=4), run, whole_chunks, gates_of)[1].spent.item()
    0.0
    """
    rows, heads = tokens.keys.shape[:2]
    exact = not state.anchor
    weights, momentum, spent = state.weights, state.momentum, state.spent
    anchor: tuple[Tensor, ...] = ()
    if run[0].count is None:  # all rows start a chunk here, or none does, and nobody has to ask the device
        anchored = not exact and run[0].index == 0 and agreed(state.offset) != 0
        if run[0].index > 0 or agreed(state.offset) == 0:
            weights = cap(weights, rule.weight_cap)
            momentum = cap(momentum, rule.weight_cap) if exact else momentum
            spent = torch.zeros_like(spent)
        elif anchored:
            anchor = state.anchor
    else:
        starts = begins(run[0], state.offset)
        weights = where_rows(starts, cap(weights, rule.weight_cap), weights)
        momentum = where_rows(starts, cap(momentum, rule.weight_cap), momentum) if exact else momentum
        anchored = not exact and not bool(starts.all())
        anchor = where_rows(starts, weights, state.anchor) if anchored else ()
        spent = torch.where(starts[:, None, None], torch.zeros_like(spent), spent)

    queries, keys, values = (grid(x, run) for x in tokens[:3])
    theta, eta, alpha = (
        None if x is None else grid(x, run).movedim(-1, 0).contiguous()
        for x in (tokens.theta, tokens.eta, tokens.alpha)
    )
    written = written_in(run, tokens)
    assert theta is not None
    rate, spent = granted(theta, eta, written, spent, rule)
    gates = scalars(rate, eta, alpha, written, rows)
    form = Form(
        layers=len(weights),
        residual=rule.residual,
        stiff=rule.step_budget is not None,
        cap=rule.weight_cap,
        anchored=anchored,
        exact=exact,
    )
    flat = [[leaf.flatten(0, 1) for leaf in part] for part in (weights, momentum, anchor)]
    reads, *ends = whole(form, queries, keys, values, gates, *flat)
    moved, pushed, start = (tuple(leaf.unflatten(0, (rows, heads)) for leaf in part) for part in ends)
    if rule.residual:
        reads = queries + normalize(reads)[0]
    reads = reads.unflatten(1, (rows, heads)).movedim(0, 2).flatten(2, 3)
    return reads, state._replace(weights=moved, momentum=pushed, anchor=() if exact else start, spent=spent)


def written_in(run: list[Piece], tokens: Tokens) -> Bool[Tensor, "N B C"] | None:
    """Which tokens of a run write: those that are real and observed. None: all of them.

    >>> one = torch.ones(1, 1, 2, 1)
    >>> observed = torch.tensor([[True, False]])
    >>> written_in([Piece(0, 2, None, 0)], Tokens(one, one, one, one, observed=observed)).tolist()
    [[[True, False]]]
    """
    exists = real(run[0], tokens.keys.device)
    exists = None if exists is None else exists.unsqueeze(0)
    if tokens.observed is None:
        return exists
    observed = grid(tokens.observed[:, None, :, None], run).squeeze(-1)
    return observed if exists is None else exists & observed


def granted(
    theta: Float[Tensor, "G N R C"],
    eta: Float[Tensor, "G N R C"] | None,
    written: Bool[Tensor, "N B C"] | None,
    spent: Float[Tensor, "B H G"],
    rule: Rule,
) -> tuple[Float[Tensor, "G N R C"], Float[Tensor, "B H G"]]:
    """What the budget leaves of theta, where a token is written, and what is then spent of the last chunk's.

    >>> theta = torch.full((1, 1, 1, 3), 0.4)
    >>> granted(theta, None, None, torch.zeros(1, 1, 1), Rule(chunk=4, step_budget=1.0))[0][0, 0].round(decimals=3)
    tensor([[0.4000, 0.4000, 0.2000]])
    """
    rows, heads, _ = spent.shape
    if written is not None:
        theta = theta * written.repeat_interleave(heads, 1)
    if rule.step_budget is None:
        return theta, spent
    share = 1.0 if eta is None else lasting(eta)
    before = functional.pad(spent.flatten(0, 1).T[:, None, :, None], (0, 0, 0, 0, 0, theta.shape[1] - 1))
    total = (before + (theta / share).cumsum(-1)).clamp(max=rule.step_budget)
    steps = total.diff(dim=-1, prepend=before)
    return steps * share, total[:, -1, :, -1].T.reshape(rows, heads, -1).contiguous()


def gates_of(
    rate: Float[Tensor, "G N R C"],
    eta: Float[Tensor, "G N R C"] | None,
    alpha: Float[Tensor, "G N R C"] | None,
    written: Bool[Tensor, "N B C"] | None,
    rows: int,
    recur: Recur = recurrences,
) -> Gates:
    """The closed form of every chunk's recurrences, all at once.

    >>> gates_of(torch.ones(1, 2, 1, 3), None, None, None, 1).mix.shape
    torch.Size([1, 2, 1, 3, 3])
    """
    shape = rate.shape[:3]

    def rows_apart(x: Tensor) -> Tensor:
        return x.reshape(-1, shape[2] // rows, x.shape[-1])

    mask = None if written is None else written.expand(shape[0], *written.shape).flatten(0, 2)
    found = coefficients(
        rows_apart(rate),
        None if eta is None else rows_apart(eta),
        None if alpha is None else rows_apart(alpha),
        mask,
        recur,
    )
    keep, carry, mix, fade, trail = (None if x is None else x.reshape(*shape, *x.shape[2:]) for x in found)
    assert keep is not None
    assert mix is not None
    return Gates(rate, keep, carry, mix, fade, trail)
