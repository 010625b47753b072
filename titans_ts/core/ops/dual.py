"""The dual form over whole chunks, with its gradient written by hand.

Only the key pass and the update of the weights go from chunk to chunk; the queries of several chunks are read in one
batch of products. The gradient keeps, of every token, the sums of its hidden layers, and of every chunk, the weights
that it starts with; what is cheap is computed again.

N chunk, R row and head together, C token of the chunk, K key, V value, G gate, I and O a layer's input and output.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..networks import output_delta

# Tokens of all rows and heads whose queries are read at once: on a CPU more do not stay in the cache and fewer leave
# small products; a GPU wants much at a time.
BATCH, BATCH_ON_DEVICE = 512, 65536


class Gates(NamedTuple):
    """`Coefficients` of many chunks, and theta (`rate`, before it is divided by the stiffness).

    Without momentum carry, fade and trail are None.
    """

    rate: Float[Tensor, "G N R C"]
    keep: Float[Tensor, "G N R C"]
    carry: Float[Tensor, "G N R C"] | None
    mix: Float[Tensor, "G N R C C"]
    fade: Float[Tensor, "G N R"] | None
    trail: Float[Tensor, "G N R C"] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """What is to be computed besides numbers.

    layers: of the memory network. residual: it is `x + LN(MLP(x))`. stiff: divide every step by its stiffness.
    cap: `weight_cap` at the start of every chunk but the first, which comes as it is to be used.
    anchored: the first chunk takes its gradients at weights of its own, given behind the momentum.
    exact: of a linear memory, every gradient at the current weights: the errors of a chunk solve a triangular system.
    """

    layers: int
    residual: bool = False
    stiff: bool = False
    cap: float | None = None
    anchored: bool = False
    exact: bool = False


def whole_chunks(
    form: Form,
    queries: Float[Tensor, "N R C K"],
    keys: Float[Tensor, "N R C K"],
    values: Float[Tensor, "N R C V"],
    gates: Gates,
    weights: Sequence[Float[Tensor, "R _ _"]],
    momentum: Sequence[Float[Tensor, "R _ _"]],
    anchor: Sequence[Float[Tensor, "R _ _"]] = (),
) -> tuple[Float[Tensor, "N R C V"], tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The network's outputs at the queries before any residual, the weights and momentum after the last chunk, and the
    weights that the last chunk started with.

    >>> x, w, g = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1), torch.ones(1, 1, 1, 1)
    >>> gates = Gates(0.5 * g, g, None, g[..., None], None, None)
    >>> reads, (end,), _, _ = whole_chunks(Form(layers=1), x, x, 3 * x, gates, [w], [w])
    >>> reads.item(), end.item()
    (3.0, 3.0)
    """
    layers = form.layers
    out = Dual.apply(  # type: ignore[no-untyped-call]
        form, queries, keys, values, *gates, *weights, *momentum, *anchor
    )
    moved, pushed, start = (tuple(out[1 + i * layers : 1 + (i + 1) * layers]) for i in range(3))
    return out[0], moved, pushed if gates.carry is not None else tuple(momentum), start


def _flat(x: Float[Tensor, "N R *shape"]) -> Float[Tensor, "NR *shape"]:
    """Chunks and rows as one axis."""
    return x.flatten(0, 1)


def curved(x: Tensor) -> Tensor:
    """The second derivative of the exact (erf) GELU.

    >>> curved(torch.zeros(1)).item()
    0.7978845834732056
    """
    square = x.square().clamp_(max=1e3)  # where exp is zero long since, the square may overflow
    return square.mul(-0.5).exp_().mul_(0.3989422804014327).mul_(square.neg_().add_(2))


def rowdot(x: Tensor, y: Tensor) -> Tensor:
    """`sum(x * y)` over the last axis.

    >>> rowdot(torch.ones(2, 3), torch.ones(2, 3)).tolist()
    [3.0, 3.0]
    """
    return (x * y).sum(-1)


def _capped(weight: Float[Tensor, "R I O"], cap: float) -> Float[Tensor, " R"] | None:
    """Scale `weight` in place to the cap; the factors, or None where nothing was too large."""
    norm = torch.linalg.vector_norm(weight, dim=(-2, -1))
    factor = (cap * weight.shape[-1] ** 0.5 / norm.clamp(min=1e-12)).clamp(max=1.0)
    # To look whether anything was too large waits for a device, and on it is dearer than to scale by 1.
    if factor.device.type == "cpu" and bool((factor == 1).all()):
        return None
    weight.mul_(factor[:, None, None])
    return factor


class Ends(NamedTuple):
    """The gates of the last token of every chunk, as views that broadcast over a layer (keep, carry, fade) or over the
    width of its tokens (mix, trail)."""

    keep: tuple[Tensor, ...]
    mix: tuple[Tensor, ...]
    carry: tuple[Tensor, ...]
    fade: tuple[Tensor, ...]
    trail: tuple[Tensor, ...]


def _ends(gates: Gates) -> list[Ends]:
    """The `Ends` of every gate; without momentum the last three are empty."""
    found = []
    for g in range(gates.rate.shape[0]):
        keep, mix = gates.keep[g, :, :, -1, None, None], gates.mix[g, :, :, -1, :, None]
        if gates.carry is None or gates.fade is None or gates.trail is None:
            found.append(Ends(keep.unbind(), mix.unbind(), (), (), ()))
        else:
            carry, fade = gates.carry[g, :, :, -1, None, None], gates.fade[g, :, :, None, None]
            found.append(
                Ends(keep.unbind(), mix.unbind(), carry.unbind(), fade.unbind(), gates.trail[g].unsqueeze(-1).unbind())
            )
    return found


class Tape(NamedTuple):
    """What the forward pass leaves to the gradient, a list entry a layer (fewer where a layer has none).

    weights, momentum: at the start of every chunk, [N + 1, R, I, O]. hidden: sums of the key pass. pull: the error that
    came back to them, before the slope. delta: that of the network's output. reads: sums of the query pass. scores:
    query inputs times key inputs. system: that of the exact form. parts: `x W` and `x S` where the output is narrower
    than the input. theta: the steps as they were taken. stiffness: their divisor. factors: of the cap where it was
    reached, by chunk, layer and whether it is the momentum's.
    """

    weights: list[Tensor]
    momentum: list[Tensor]
    hidden: list[Tensor]
    pull: list[Tensor]
    delta: Tensor
    reads: list[Tensor]
    scores: list[Tensor]
    system: Tensor
    parts: dict[int, tuple[Tensor, Tensor]]
    theta: Tensor
    stiffness: Tensor
    factors: dict[tuple[int, int, bool], Tensor]


class Dual(torch.autograd.Function):
    """`whole_chunks` as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, form: Form, queries: Tensor, keys: Tensor, values: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        """Chunk by chunk: key pass and update; then the queries of the batch."""
        gates, state, layers = Gates(*rest[:6]), rest[6:], form.layers
        weights, momentum, anchor = (state[i * layers : (i + 1) * layers] for i in range(3))
        chunks, rows, size, _ = queries.shape
        saving = any(ctx.needs_input_grad)
        together = BATCH if queries.device.type == "cpu" else BATCH_ON_DEVICE
        batch = min(chunks, max(1, together // (rows * size)))
        room = chunks if saving else batch
        new = queries.new_empty
        moving = gates.carry is not None

        def tokens(width: int, length: int = room) -> Tensor:
            return new(length, rows, size, width)

        widths = [weight.shape[-1] for weight in weights]
        tape = Tape(
            weights=[new(room + 1, *weight.shape) for weight in weights],
            momentum=[new(room + 1, *weight.shape) if moving else new(0) for weight in weights],
            hidden=[tokens(width) for width in widths[:-1]],
            pull=[tokens(width) for width in widths[:-1]],
            delta=tokens(widths[-1]),
            reads=[tokens(width) for width in widths[:-1]],
            scores=[tokens(size) for _ in weights],
            system=_system(gates, keys) if form.exact else new(0),
            parts={
                layer: (tokens(w.shape[-1]), tokens(w.shape[-1]))
                for layer, w in enumerate(weights)
                if w.shape[-1] < w.shape[-2]
            },
            theta=torch.empty_like(gates.rate) if form.stiff else gates.rate,
            stiffness=gates.rate.new_empty(gates.rate.shape[1:] if form.stiff else 0),
            factors={},
        )
        for layer in range(layers):
            tape.weights[layer][0] = weights[layer]
            if moving:
                tape.momentum[layer][0] = momentum[layer]
        inputs = [keys, *(tokens(width, batch) for width in widths[:-1])]
        errors = [tokens(width, batch) for width in widths]
        out = tokens(widths[-1], chunks)
        start: list[Tensor] = []
        ends = _ends(gates)
        for first in range(0, chunks, batch):
            last = min(chunks, first + batch)
            base = 0 if saving else first
            if first and not saving:
                for leaf in (*tape.weights, *(tape.momentum if moving else ())):
                    leaf[0] = leaf[batch]
            for n in range(first, last):
                here, place = n - base, n - first
                if n and form.cap is not None:
                    for pushes, leaves in enumerate((tape.weights, tape.momentum)[: 1 + (form.exact and moving)]):
                        for layer, leaf in enumerate(leaves):
                            factor = _capped(leaf[here], form.cap)
                            if factor is not None:
                                tape.factors[n, layer, bool(pushes)] = factor
                at = anchor if n == 0 and form.anchored else [weight[here] for weight in tape.weights]
                if n == chunks - 1:
                    start = [weight.clone() for weight in at]
                places = [keys[n], *(x[place] for x in inputs[1:])]
                deltas = [error[place] for error in errors]
                if form.exact:
                    _solve(gates, tape, n, here, keys[n], values[n], deltas[0])
                else:
                    _key_pass(form, at, places, values[n], tape, here, deltas)
                _take_steps(form, gates, tape, n, places, deltas)
                for layer in range(layers):
                    _update(ends[_gate_of(layer, gates)], tape, layer, n, here, places[layer], deltas[layer])
            _read(gates, tape, first, last, base, queries, inputs, errors, out)
        moved = [weight[(chunks - first) if not saving else chunks].clone() for weight in tape.weights]
        pushed = (
            [push[(chunks - first) if not saving else chunks].clone() for push in tape.momentum]
            if moving
            else [x.clone() for x in momentum]
        )
        if saving:
            # Saved as tensors and not on the context itself: whoever checkpoints drops what is saved, and nothing else.
            flat, ctx.layout = tree_flatten((gates, tape, [queries, keys, values, *anchor]))
            ctx.form, ctx.batch = form, batch
            ctx.save_for_backward(*flat)
        return (out, *moved, *pushed, *start)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Batch by batch from the last: the queries, then chunk by chunk the update and the key pass."""
        form, batch = ctx.form, ctx.batch
        gates, tape, (queries, keys, values, *anchor) = tree_unflatten(ctx.saved_tensors, ctx.layout)
        return (None, *_gradient(form, gates, tape, batch, queries, keys, values, anchor, grads))


def _gate_of(layer: int, gates: Gates) -> int:
    """Which gate a layer has: its own, or the only one."""
    return min(layer, gates.rate.shape[0] - 1)


def _key_pass(
    form: Form,
    at: Sequence[Tensor],
    inputs: list[Tensor],
    values: Tensor,
    tape: Tape,
    here: int,
    deltas: list[Tensor],
) -> None:
    """Fill inputs and deltas of one chunk, layer by layer: `gradient_factors` into buffers."""
    for layer in range(1, form.layers):
        torch.bmm(inputs[layer - 1], at[layer - 1], out=tape.hidden[layer - 1][here])
        inputs[layer].copy_(functional.gelu(tape.hidden[layer - 1][here]))
    if form.residual:
        delta = output_delta(inputs[-1] @ at[-1], inputs[0], values)
        deltas[-1].copy_(delta)
    else:
        torch.baddbmm(values, inputs[-1], at[-1], beta=-2, alpha=2, out=deltas[-1])
    tape.delta[here] = deltas[-1]
    for layer in range(form.layers - 1, 0, -1):
        pull = tape.pull[layer - 1][here]
        torch.bmm(deltas[layer], at[layer].mT, out=pull)
        torch.ops.aten.gelu_backward.grad_input(pull, tape.hidden[layer - 1][here], grad_input=deltas[layer - 1])


def _before(x: Tensor, first: float, dim: int) -> Tensor:
    """Shifted by one token: what was before it, and `first` before the first."""
    return torch.cat([torch.full_like(x.narrow(dim, 0, 1), first), x.narrow(dim, 0, x.shape[dim] - 1)], dim)


def _system(gates: Gates, keys: Tensor) -> Tensor:
    """The triangular systems of the exact form, [N, R, C, C].

    The true error of token j is `e_j = k_j M_{j-1} - v_j`, and M_{j-1} is linear in the errors before j. With mix, keep
    and carry shifted by one token this reads `(I + A) E = keep K M_0 + carry K S_0 - V`, A strictly lower triangular.
    """
    return (keys @ keys.mT).mul_(_before(gates.mix[0], 0.0, 2)).mul_(2 * gates.rate[0].unsqueeze(-2))


def _solve(gates: Gates, tape: Tape, n: int, here: int, keys: Tensor, values: Tensor, delta: Tensor) -> None:
    """Fill the deltas of one chunk of the exact form, twice its errors."""
    keep = _before(gates.keep[0, n], 1.0, 1).unsqueeze(-1)
    right = torch.baddbmm(values, keys * keep, tape.weights[0][here], beta=-1)
    if gates.carry is not None:
        right.baddbmm_(keys * _before(gates.carry[0, n], 0.0, 1).unsqueeze(-1), tape.momentum[0][here])
    # The solver reads the strict lower triangle only and takes the diagonal as ones.
    errors = torch.linalg.solve_triangular(tape.system[n], right, upper=False, unitriangular=True)
    torch.mul(errors, 2, out=delta)
    tape.delta[here] = delta


def _take_steps(form: Form, gates: Gates, tape: Tape, n: int, inputs: list[Tensor], deltas: list[Tensor]) -> None:
    """Multiply the deltas by theta in place, divided by the stiffness where the form has one."""
    if form.stiff:
        squares = [rowdot(delta, delta) for delta in deltas]
        whole = sum(rowdot(x, x) * square for x, square in zip(inputs, squares, strict=True))
        tape.stiffness[n] = whole / (squares[-1] + 1e-12)
        torch.div(gates.rate[:, n], tape.stiffness[n].clamp(min=1.0), out=tape.theta[:, n])
    for layer, delta in enumerate(deltas):
        delta.mul_(tape.theta[_gate_of(layer, gates), n].unsqueeze(-1))


def _scaled(x: Tensor, error: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    """The narrower of the two times `by`, and the other as it is."""
    return (x * by, error) if x.shape[-1] <= error.shape[-1] else (x, error * by)


def _update(end: Ends, tape: Tape, layer: int, n: int, here: int, x: Tensor, error: Tensor) -> None:
    """The weights and momentum of one layer at the start of the next chunk."""
    moved = tape.weights[layer][here + 1]
    torch.mul(tape.weights[layer][here], end.keep[n], out=moved)
    left, right = _scaled(x, error, end.mix[n])
    moved.baddbmm_(left.mT, right, alpha=-1)
    if end.carry:
        push, pushed = tape.momentum[layer][here], tape.momentum[layer][here + 1]
        moved.addcmul_(push, end.carry[n])
        torch.mul(push, end.fade[n], out=pushed)
        left, right = _scaled(x, error, end.trail[n])
        pushed.baddbmm_(left.mT, right, alpha=-1)


def _read(
    gates: Gates,
    tape: Tape,
    first: int,
    last: int,
    base: int,
    queries: Tensor,
    inputs: list[Tensor],
    errors: list[Tensor],
    out: Tensor,
) -> None:
    """`x_i W_i` of a batch of chunks, layer by layer, every token with its own weights."""
    count = last - first
    kept = slice(first - base, last - base)
    x = queries[first:last]
    for layer in range(len(errors)):
        g = _gate_of(layer, gates)
        keys = inputs[layer][first:last] if layer == 0 else inputs[layer][:count]
        weight = _flat(tape.weights[layer][kept])
        keep = gates.keep[g, first:last].unsqueeze(-1)
        carry = None if gates.carry is None else gates.carry[g, first:last].unsqueeze(-1)
        end = layer == len(errors) - 1
        y = _flat(out[first:last] if end else tape.reads[layer][kept])
        if layer in tape.parts:
            ours, pushes = tape.parts[layer][0][kept], tape.parts[layer][1][kept]
            torch.bmm(_flat(x), weight, out=_flat(ours))
            torch.mul(ours, keep, out=y.view_as(ours))
            if carry is not None:
                torch.bmm(_flat(x), _flat(tape.momentum[layer][kept]), out=_flat(pushes))
                y.view_as(pushes).addcmul_(pushes, carry)
        else:
            torch.bmm(_flat(x * keep), weight, out=y)
            if carry is not None:
                y.baddbmm_(_flat(x * carry), _flat(tape.momentum[layer][kept]))
        scores = tape.scores[layer][kept]
        torch.bmm(_flat(x), _flat(keys).mT, out=_flat(scores))
        y.baddbmm_(_flat(scores * gates.mix[g, first:last]), _flat(errors[layer][:count]), alpha=-1)
        if not end:
            x = functional.gelu(tape.reads[layer][kept])


def _gradient(
    form: Form,
    gates: Gates,
    tape: Tape,
    batch: int,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    anchor: Sequence[Tensor],
    grads: Sequence[Tensor],
) -> list[Tensor | None]:
    """The gradient with respect to everything that `whole_chunks` takes, in its order."""
    layers, chunks = form.layers, queries.shape[0]
    d_out, rest = grads[0], grads[1:]
    d_weight, d_push, d_start = ([x.clone() for x in rest[i * layers : (i + 1) * layers]] for i in range(3))
    moving = gates.carry is not None
    d_query, d_key, d_value = torch.empty_like(queries), torch.empty_like(keys), torch.empty_like(values)
    d_gates = Gates(*(None if gate is None else torch.zeros_like(gate) for gate in gates))  # type: ignore[arg-type]
    ends, d_ends = _ends(gates), _ends(d_gates)
    d_anchor: list[Tensor] = []
    d_system = torch.empty_like(tape.system)
    for first in range((chunks - 1) // batch * batch, -1, -batch):
        last = min(chunks, first + batch)
        here = slice(first, last)
        inputs = [keys[here], *(functional.gelu(hidden[here]) for hidden in tape.hidden)]
        plain = [
            *(torch.ops.aten.gelu_backward(tape.pull[i][here], tape.hidden[i][here]) for i in range(layers - 1)),
            tape.delta[here],
        ]
        errors = [delta * tape.theta[_gate_of(i, gates), here].unsqueeze(-1) for i, delta in enumerate(plain)]
        back = _read_gradient(gates, d_gates, tape, here, queries, inputs, errors, d_out[here], d_query[here])
        d_inputs, d_errors, d_weights, d_pushes = back
        for n in range(last - 1, first - 1, -1):
            i = n - first
            for layer in range(layers):
                g = _gate_of(layer, gates)
                _update_gradient(
                    ends[g], d_ends[g], tape, layer, n,
                    (inputs[layer][i], errors[layer][i], d_inputs[layer][i], d_errors[layer][i]),
                    d_weight[layer], d_push[layer],
                )  # fmt: skip
                d_weight[layer] += d_weights[layer][i]
                if moving:
                    d_push[layer] += d_pushes[layer][i]
            _steps_gradient(form, gates, d_gates, tape, n, [x[i] for x in inputs], [x[i] for x in plain],
                           [x[i] for x in d_inputs], [x[i] for x in d_errors])  # fmt: skip
            at = anchor if n == 0 and form.anchored else [weight[n] for weight in tape.weights]
            if n == 0 and form.anchored:
                d_anchor = [torch.zeros_like(x) for x in at]
                target = d_anchor
            else:
                target = d_weight
            if n == chunks - 1:
                for leaf, more in zip(target, d_start, strict=True):
                    leaf += more
            here_inputs, here_errors = [x[i] for x in d_inputs], [x[i] for x in d_errors]
            if form.exact:
                _solve_gradient(gates, d_gates, tape, n, keys[n], here_inputs[0], here_errors[0], d_system[n],
                                d_weight[0], d_push[0], d_value[n])  # fmt: skip
                d_key[n] = here_inputs[0]
            else:
                _key_gradient(form, at, tape, n, [x[i] for x in inputs], [x[i] for x in plain], values[n],
                              here_inputs, here_errors, target, d_key[n], d_value[n])  # fmt: skip
            for layer in range(layers):
                for pushes, (kept, d_kept) in enumerate(((tape.weights, d_weight), (tape.momentum, d_push))):
                    factor = tape.factors.get((n, layer, bool(pushes)))
                    if factor is not None:
                        _cap_gradient(kept[layer][n], factor, d_kept[layer])
    if form.exact:
        _system_gradient(gates, d_gates, d_system, keys, d_key)
    return [d_query, d_key, d_value, *d_gates, *d_weight, *d_push, *d_anchor]


def _solve_gradient(
    gates: Gates,
    d_gates: Gates,
    tape: Tape,
    n: int,
    keys: Tensor,
    d_keys: Tensor,
    d_delta: Tensor,
    d_system: Tensor,
    d_weight: Tensor,
    d_push: Tensor,
    d_value: Tensor,
) -> None:
    """The gradient of `_solve`, added to that of its keys and of the state, and written to `d_system` and `d_value`."""
    # Turned by half a turn the transposed system is lower triangular again. Solved as an upper one it is spread over
    # threads that wait for each other longer than they work.
    turned = tape.system[n].mT.flip(-1, -2)
    d_right = torch.linalg.solve_triangular(turned, d_delta.flip(-2), upper=False, unitriangular=True).flip(-2).mul_(2)
    torch.baddbmm(d_system, d_right, tape.delta[n].mT, beta=0, alpha=-0.5, out=d_system)
    torch.neg(d_right, out=d_value)
    parts = [(gates.keep, d_gates.keep, tape.weights[0][n], d_weight, 1.0)]
    if gates.carry is not None and d_gates.carry is not None:
        parts.append((gates.carry, d_gates.carry, tape.momentum[0][n], d_push, 0.0))
    for gate, d_gate, leaf, d_leaf, first in parts:
        by = _before(gate[0, n], first, 1).unsqueeze(-1)
        part = torch.bmm(d_right, leaf.mT)
        d_gate[0, n, :, :-1] += rowdot(part, keys)[:, 1:]
        d_keys.addcmul_(part, by)
        d_leaf.baddbmm_((keys * by).mT, d_right)


def _system_gradient(gates: Gates, d_gates: Gates, d_system: Tensor, keys: Tensor, d_key: Tensor) -> None:
    """The gradient of `_system`, added to that of the keys."""
    products = keys @ keys.mT
    mix, rate = _before(gates.mix[0], 0.0, 2), 2 * gates.rate[0].unsqueeze(-2)
    d_gates.mix[0, :, :, :-1] += (d_system * products * rate)[:, :, 1:]
    d_system = d_system * mix
    d_gates.rate[0] += 2 * (d_system * products).sum(-2)
    d_system *= rate
    d_key += (d_system + d_system.mT) @ keys


def _read_gradient(
    gates: Gates,
    d_gates: Gates,
    tape: Tape,
    here: slice,
    queries: Tensor,
    inputs: list[Tensor],
    errors: list[Tensor],
    d_y: Tensor,
    d_query: Tensor,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """The gradient of `read`: of the layers' inputs and errors, and of the weights and momentum of every chunk."""
    layers = len(errors)
    d_inputs, d_errors, d_weights, d_pushes = ([torch.empty(0)] * layers for _ in range(4))
    for layer in range(layers - 1, -1, -1):
        g = _gate_of(layer, gates)
        x = functional.gelu(tape.reads[layer - 1][here]) if layer else queries[here]
        keep, mix, scores = gates.keep[g, here].unsqueeze(-1), gates.mix[g, here], tape.scores[layer][here]
        carry = None if gates.carry is None else gates.carry[g, here].unsqueeze(-1)
        weight, push = tape.weights[layer][here], tape.momentum[layer][here]
        d_y = d_y.contiguous()
        d_score = torch.bmm(_flat(d_y), _flat(errors[layer]).mT).view_as(scores)
        d_gates.mix[g, here].addcmul_(d_score, scores, value=-1)
        d_score *= mix
        d_errors[layer] = torch.bmm(_flat(scores * mix).mT, _flat(d_y)).neg_().view_as(errors[layer])
        d_inputs[layer] = torch.bmm(_flat(d_score).mT, _flat(x)).neg_().view_as(inputs[layer])
        if layer in tape.parts:
            d_kept = d_y * keep
            d_gates.keep[g, here] += rowdot(d_y, tape.parts[layer][0][here])
            d_x = torch.bmm(_flat(d_kept), _flat(weight).mT)
            d_weights[layer] = torch.bmm(_flat(x).mT, _flat(d_kept)).view_as(weight)
            if carry is not None and d_gates.carry is not None:
                d_carried = d_y * carry
                d_gates.carry[g, here] += rowdot(d_y, tape.parts[layer][1][here])
                d_x.baddbmm_(_flat(d_carried), _flat(push).mT)
                d_pushes[layer] = torch.bmm(_flat(x).mT, _flat(d_carried)).view_as(push)
        else:
            ours = torch.bmm(_flat(d_y), _flat(weight).mT).view_as(x)
            d_gates.keep[g, here] += rowdot(ours, x)
            d_weights[layer] = torch.bmm(_flat(x * keep).mT, _flat(d_y)).view_as(weight)
            if carry is not None and d_gates.carry is not None:
                pushes = torch.bmm(_flat(d_y), _flat(push).mT).view_as(x)
                d_gates.carry[g, here] += rowdot(pushes, x)
                d_pushes[layer] = torch.bmm(_flat(x * carry).mT, _flat(d_y)).view_as(push)
                d_x = _flat(ours.mul_(keep).addcmul_(pushes, carry))
            else:
                d_x = _flat(ours.mul_(keep))
        d_x.baddbmm_(_flat(d_score), _flat(inputs[layer]), alpha=-1)
        if layer:
            d_y = torch.ops.aten.gelu_backward(d_x.view_as(x), tape.reads[layer - 1][here])
        else:
            d_query.copy_(d_x.view_as(x))
    return d_inputs, d_errors, d_weights, d_pushes


def _update_gradient(
    end: Ends,
    d_end: Ends,
    tape: Tape,
    layer: int,
    n: int,
    factors: tuple[Tensor, Tensor, Tensor, Tensor],
    d_weight: Tensor,
    d_push: Tensor,
) -> None:
    """The gradient of `_update`: `d_weight` and `d_push` are turned from those after the chunk to those before it."""
    x, error, d_x, d_error = factors

    def outer(by: Tensor, d_by: Tensor, d_leaf: Tensor) -> None:
        if x.shape[-1] <= error.shape[-1]:
            d_error.baddbmm_(x * by, d_leaf, alpha=-1)
            part = torch.bmm(error, d_leaf.mT)
            d_by.sub_(rowdot(part, x).unsqueeze(-1))
            d_x.addcmul_(part, by, value=-1)
        else:
            part = torch.bmm(x, d_leaf)
            d_by.sub_(rowdot(part, error).unsqueeze(-1))
            d_error.addcmul_(part, by, value=-1)
            d_x.baddbmm_(error * by, d_leaf.mT, alpha=-1)

    outer(end.mix[n], d_end.mix[n], d_weight)
    d_end.keep[n].add_(_dot(d_weight, tape.weights[layer][n]))
    if end.carry:
        push = tape.momentum[layer][n]
        outer(end.trail[n], d_end.trail[n], d_push)
        d_end.carry[n].add_(_dot(d_weight, push))
        d_end.fade[n].add_(_dot(d_push, push))
        d_push.mul_(end.fade[n]).addcmul_(d_weight, end.carry[n])
    d_weight.mul_(end.keep[n])


def _dot(x: Float[Tensor, "R I O"], y: Float[Tensor, "R I O"]) -> Float[Tensor, "R 1 1"]:
    """The sum of products over all but the rows."""
    return torch.bmm(x.flatten(1).unsqueeze(1), y.flatten(1).unsqueeze(2))


def _steps_gradient(
    form: Form,
    gates: Gates,
    d_gates: Gates,
    tape: Tape,
    n: int,
    inputs: list[Tensor],
    deltas: list[Tensor],
    d_inputs: list[Tensor],
    d_errors: list[Tensor],
) -> None:
    """The gradient of `take_steps`: `d_errors` is turned in place from that of the errors to that of the deltas."""
    d_theta = torch.zeros_like(tape.theta[:, n])
    for layer, (delta, d_error) in enumerate(zip(deltas, d_errors, strict=True)):
        g = _gate_of(layer, gates)
        d_theta[g] += rowdot(d_error, delta)
        d_error.mul_(tape.theta[g, n].unsqueeze(-1))
    if not form.stiff:
        d_gates.rate[:, n] = d_theta
        return
    quotient = tape.stiffness[n]
    stiffness = quotient.clamp(min=1.0)
    d_gates.rate[:, n] = d_theta / stiffness
    # Where the stiffness is 1 because it is held there, it does not move.
    d_quotient = (d_theta * tape.theta[:, n]).sum(0).div_(stiffness).neg_() * (quotient >= 1)
    if d_quotient.device.type == "cpu" and not bool(d_quotient.any()):
        return
    squares = [rowdot(delta, delta) for delta in deltas]
    d_whole = d_quotient / (squares[-1] + 1e-12)
    for layer, (x, delta) in enumerate(zip(inputs, deltas, strict=True)):
        d_square = d_whole * rowdot(x, x)
        if layer == form.layers - 1:
            d_square = d_square - d_whole * quotient
        d_inputs[layer].addcmul_(x, (2 * d_whole * squares[layer]).unsqueeze(-1))
        d_errors[layer].addcmul_(delta, (2 * d_square).unsqueeze(-1))


def _key_gradient(
    form: Form,
    at: Sequence[Tensor],
    tape: Tape,
    n: int,
    inputs: list[Tensor],
    deltas: list[Tensor],
    values: Tensor,
    d_inputs: list[Tensor],
    d_deltas: list[Tensor],
    d_at: Sequence[Tensor],
    d_key: Tensor,
    d_value: Tensor,
) -> None:
    """The gradient of `key_pass`, added to `d_at` and written to `d_key` and `d_value`."""
    d_sums: list[Tensor] = []
    for layer in range(1, form.layers):
        hidden, pull, d_delta = tape.hidden[layer - 1][n], tape.pull[layer - 1][n], d_deltas[layer - 1]
        d_pull = torch.ops.aten.gelu_backward(d_delta, hidden)
        d_sums.append(d_delta.mul_(pull).mul_(curved(hidden)))
        d_deltas[layer].baddbmm_(d_pull, at[layer])
        d_at[layer].baddbmm_(d_pull.mT, deltas[layer])
    if form.residual:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in (inputs[-1] @ at[-1], inputs[0], values)]
            d_sum, d_near, d_far = torch.autograd.grad(output_delta(*leaves), leaves, d_deltas[-1])
        d_sums.append(d_sum)
        d_inputs[0] += d_near
        d_value.copy_(d_far)
    else:
        d_sums.append(d_deltas[-1].mul_(2))
        torch.neg(d_sums[-1], out=d_value)
    for layer in range(form.layers - 1, -1, -1):
        d_at[layer].baddbmm_(inputs[layer].mT, d_sums[layer])
        d_inputs[layer].baddbmm_(d_sums[layer], at[layer].mT)
        if layer:
            d_sums[layer - 1] += torch.ops.aten.gelu_backward(d_inputs[layer], tape.hidden[layer - 1][n])
    d_key.copy_(d_inputs[0])


def _cap_gradient(weight: Tensor, factor: Tensor, d_weight: Tensor) -> None:
    """The gradient of `capped` in place; `weight` as it was scaled."""
    along = _dot(d_weight, weight) / _dot(weight, weight).clamp(min=1e-24)
    away = along * (factor < 1)[:, None, None] * weight
    d_weight.sub_(away).mul_(factor[:, None, None])
