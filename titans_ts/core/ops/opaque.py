"""The update rule as one node of a compiled graph.

`torch.compile` cannot trace the ops: where their chunks begin depends on the clocks in the state. Here a whole op is a
custom operator that the compiler takes as it is, with its gradient, so that a memory compiles with `fullgraph=True` and
what is around the op is fused. The gradient computes the op once more.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ..state import MemoryState
from .backends import OPS
from .contract import Rule, Tokens


def opaque(name: str, state: MemoryState, tokens: Tokens, rule: Rule) -> tuple[Tensor, MemoryState]:
    """`OPS[name](state, tokens, rule)` as one node of the graph.

    >>> one = torch.ones(1, 1, 1, 1)
    >>> start = MemoryState((0 * one,), (0 * one,), (), one[0], torch.zeros(1, dtype=torch.long), one[0])
    >>> opaque("exact_linear", start, Tokens(one, one, 3 * one, 0.5 * one), Rule(chunk=1))[0].item()
    3.0
    """
    optional = (tokens.eta, tokens.alpha)
    floats = [*state.weights, *state.momentum, *state.anchor, state.spent, *tokens[:4]]
    floats += [x for x in optional if x is not None]
    clocks = [state.offset, *(x for x in (tokens.observed, tokens.lengths) if x is not None)]
    has = [x is not None for x in (*optional, tokens.observed, tokens.lengths)]
    out = _absorb(
        floats,
        clocks,
        name,
        len(state.weights),
        bool(state.anchor),
        has,
        rule.chunk,
        rule.residual,
        rule.step_budget,
        rule.weight_cap,
    )
    reads, *leaves = out
    layers = len(state.weights)
    anchored = layers if state.anchor else 0
    end = state._replace(
        weights=tuple(leaves[:layers]),
        momentum=tuple(leaves[layers : 2 * layers]),
        anchor=tuple(leaves[2 * layers : 2 * layers + anchored]),
        spent=leaves[-2],
        offset=leaves[-1],
    )
    return reads, end


def _run(
    floats: Sequence[Tensor],
    clocks: Sequence[Tensor],
    name: str,
    layers: int,
    anchored: bool,
    has: Sequence[bool],
    rule: Rule,
) -> list[Tensor]:
    parts, times = iter(floats), iter(clocks)

    def layer_tuple(count: int) -> tuple[Tensor, ...]:
        return tuple(next(parts) for _ in range(count))

    weights, momentum, anchor = layer_tuple(layers), layer_tuple(layers), layer_tuple(layers if anchored else 0)
    spent, offset = next(parts), next(times)
    state = MemoryState(weights, momentum, anchor, spent, offset, spent)
    queries, keys, values, theta = layer_tuple(4)
    eta, alpha = (next(parts) if present else None for present in has[:2])
    observed, lengths = (next(times) if present else None for present in has[2:])
    tokens = Tokens(queries, keys, values, theta, eta, alpha, observed, lengths)
    reads, end = OPS[name](state, tokens, rule)
    return [reads, *end.weights, *end.momentum, *end.anchor, end.spent, end.offset]


@torch.library.custom_op("titans_ts::absorb", mutates_args=())
def _absorb(
    floats: Sequence[Tensor],
    clocks: Sequence[Tensor],
    name: str,
    layers: int,
    anchored: bool,
    has: Sequence[bool],
    chunk: int,
    residual: bool,
    step_budget: float | None,
    weight_cap: float | None,
) -> list[Tensor]:
    rule = Rule(chunk=chunk, residual=residual, step_budget=step_budget, weight_cap=weight_cap)
    out = _run(floats, clocks, name, layers, anchored, has, rule)
    return [x.clone(memory_format=torch.contiguous_format) for x in out]  # what comes out may not be what went in


@_absorb.register_fake
def _(floats, clocks, name, layers, anchored, has, chunk, residual, step_budget, weight_cap):  # type: ignore[no-untyped-def]
    count = layers * (3 if anchored else 2)
    like = [floats[count + 3], *floats[:count], floats[count], clocks[0]]  # values, state, spent, offset
    return [x.new_empty(x.shape) for x in like]


@torch.library.custom_op("titans_ts::absorb_backward", mutates_args=())
def _absorb_backward(
    gradients: Sequence[Tensor],
    floats: Sequence[Tensor],
    clocks: Sequence[Tensor],
    name: str,
    layers: int,
    anchored: bool,
    has: Sequence[bool],
    chunk: int,
    residual: bool,
    step_budget: float | None,
    weight_cap: float | None,
) -> list[Tensor]:
    rule = Rule(chunk=chunk, residual=residual, step_budget=step_budget, weight_cap=weight_cap)

    def found() -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in floats]
        out = _run(leaves, clocks, name, layers, anchored, has, rule)[:-1]
        pairs = [(y, g) for y, g in zip(out, gradients, strict=True) if y.requires_grad]
        grads = torch.autograd.grad([y for y, _ in pairs], leaves, [g for _, g in pairs], allow_unused=True)
        return [
            (torch.zeros_like(x) if g is None else g).clone(memory_format=torch.contiguous_format)
            for g, x in zip(grads, leaves, strict=True)
        ]

    # Inside an operator autograd is switched off for the thread; a thread of its own has it.
    with ThreadPoolExecutor(1) as other:
        return other.submit(found).result()


@_absorb_backward.register_fake
def _(gradients, floats, *rest):  # type: ignore[no-untyped-def]
    return [x.new_empty(x.shape) for x in floats]


def _keep(ctx, inputs, output):  # type: ignore[no-untyped-def]
    floats, clocks, *ctx.form = inputs
    ctx.count = len(floats)
    ctx.shapes = [x.shape for x in output[:-1]]
    ctx.save_for_backward(*floats, *clocks)


def _backward(ctx, gradients):  # type: ignore[no-untyped-def]
    saved = ctx.saved_tensors
    floats, clocks = list(saved[: ctx.count]), list(saved[ctx.count :])
    whole = [
        floats[0].new_zeros(shape) if g is None else g for g, shape in zip(gradients[:-1], ctx.shapes, strict=True)
    ]
    found = _absorb_backward(whole, floats, clocks, *ctx.form)
    return found, [None] * len(clocks), *[None] * len(ctx.form)


_absorb.register_autograd(_backward, setup_context=_keep)
