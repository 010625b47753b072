"""The laws of a memory that learns while it is used, as checks that any implementation can be held to.

An implementation is plugged in as a `Subject`: how a fresh module is made, and how it is called. Every check runs on a
fresh module, in double precision but for the long one, and says what it measured. A law that an implementation does
not claim to keep, such as streaming, is not counted against it.

B row, T time, D model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

DIM, TIME, ROWS = 16, 192, 3
TOLERANCE = 1e-9  # of the largest output, in double precision
RAGGED = (1, 37, 2, 64, 5, 26, 57)  # pieces of a stream; together TIME
WHOLE, PIECE = 64, 4096  # tokens at once: of the stream in whole chunks, and of the long run
STREAMS = (f"stream, {WHOLE} at once", "stream, one at a time", "stream, cut anywhere")
EPOCH = 16  # repeats of a token whose surprise is averaged


def call(module: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """The usual call, `y, state = module(x, state)`."""
    y, state = module(x, state)
    return y, state


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One implementation, with its settings.

    name, version, settings: what a table says of it.
    make: a fresh module for tokens of the given width, random by torch's seed alone.
    run: outputs [B, T, D] and state from a module, tokens [B, T, D] and the state of the call before (None: none).
    streams: whether it claims that a state handed over goes on where the last call stopped.
    reach: tokens that an output sees without the memory, itself included: windows and convolutions of all layers.
    surprise: the surprise of every token, [B, T], where there is such an output.

    >>> Subject(name="mine", make=lambda dim: nn.GRU(dim, dim, batch_first=True)).reach
    1
    """

    name: str
    make: Callable[[int], nn.Module]
    run: Callable[[nn.Module, Tensor, Any], tuple[Tensor, Any]] = call
    version: str = ""
    settings: str = ""
    streams: bool = True
    reach: int = 1
    surprise: Callable[[nn.Module, Tensor], Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found: whether the law holds (None: not claimed), the number behind it, and what that number is."""

    check: str
    holds: bool | None
    number: float | None
    words: str


def fresh(subject: Subject, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A fresh module of a subject, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):  # the caller's generator stays where it is
        torch.manual_seed(seed)
        return subject.make(DIM).to(dtype).eval()


def tokens(rows: int = ROWS, time: int = TIME, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random tokens, the same for every subject.

    >>> tokens().shape
    torch.Size([3, 192, 16])
    """
    return torch.randn(rows, time, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def moved(y: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest output.

    >>> moved(torch.tensor([2.0]), torch.tensor([1.0]))
    0.5
    """
    if not (y.isfinite().all() and other.isfinite().all()):
        return float("nan")
    return ((y - other).abs().max() / y.abs().max().clamp(min=1e-300)).item()


def causal(subject: Subject) -> Finding:
    """No output moves when a later token does."""
    module, x, worst = fresh(subject), tokens(), 0.0
    with torch.no_grad():
        y, _ = subject.run(module, x, None)
        for t in (1, 40, 64, 100, TIME - 1):
            other = x.clone()
            other[:, t:] = tokens(seed=2 + t)[:, t:]
            worst = max(worst, moved(y[:, :t], subject.run(module, other, None)[0][:, :t]), key=_badness)
    return _small("causal", worst, "change of earlier outputs")


def alone(subject: Subject) -> Finding:
    """No output of a row moves when the other rows of the batch do."""
    module, x = fresh(subject), tokens()
    other = x.clone()
    other[1:] = tokens(seed=2)[1:]
    with torch.no_grad():
        y, changed = (subject.run(module, each, None)[0] for each in (x, other))
    return _small("rows alone", moved(y[:1], changed[:1]), "change by other rows")


def _streamed(subject: Subject, check: str, sizes: tuple[int, ...]) -> Finding:
    if not subject.streams:
        return Finding(check=check, holds=None, number=None, words="carries no state")
    module, x = fresh(subject), tokens()
    with torch.no_grad():
        whole, _ = subject.run(module, x, None)
        outputs, state = [], None
        for part in x.split(sizes, 1):
            y, state = subject.run(module, part, state)
            outputs.append(y)
    return _small(check, moved(whole, torch.cat(outputs, 1)), "change by the cuts")


def streamed_whole(subject: Subject) -> Finding:
    """A stream of 64 tokens at once, which is whole chunks in most settings, is the whole sequence."""
    return _streamed(subject, STREAMS[0], (WHOLE,) * (TIME // WHOLE))


def streamed_single(subject: Subject) -> Finding:
    """A stream of single tokens is the whole sequence."""
    return _streamed(subject, STREAMS[1], (1,) * TIME)


def streamed_ragged(subject: Subject) -> Finding:
    """A stream cut anywhere is the whole sequence."""
    return _streamed(subject, STREAMS[2], RAGGED)


def trained(subject: Subject) -> Finding:
    """A loss on the outputs reaches every parameter."""
    module, x = fresh(subject), tokens()
    y, _ = subject.run(module, x, None)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    wanting = {name: each for name, each in module.named_parameters() if each.requires_grad}
    missed = [name for name, each in wanting.items() if each.grad is None or not bool(each.grad.any())]
    said = f"of {len(wanting)} parameters without gradient"
    words = f"{said}: {', '.join(missed[:3])}{', ...' if len(missed) > 3 else ''}" if missed else said
    return Finding(check="gradients everywhere", holds=not missed, number=len(missed), words=words)


def settles(subject: Subject) -> Finding:
    """A token that comes again and again surprises less and less.

    Where a subject has no surprise to show, the output stands for it: what one more of the same token changes in it.
    """
    module, x = fresh(subject), tokens(rows=8)
    x[:, TIME // 2 :] = x[:, -1:]
    seen = slice(TIME // 2, None)
    with torch.no_grad():
        if subject.surprise is not None:
            surprise, what = subject.surprise(module, x)[:, seen], "surprise"
        else:
            y, _ = subject.run(module, x, None)
            surprise, what = y.diff(dim=1)[:, seen.start :].square().sum(-1), "change of the output"
    first, last = surprise[:, :EPOCH].mean(), surprise[:, -EPOCH:].mean()
    ratio = (last / first).item()
    words = f"{what}, last {EPOCH} of {TIME // 2} repeats over the first"
    return Finding(check="repeats surprise less", holds=ratio < 0.9, number=ratio, words=words)


def remembers(subject: Subject) -> Finding:
    """Another past, farther back than attention and convolutions see, gives another output."""
    module, x = fresh(subject), tokens()
    since = TIME - subject.reach
    if since < WHOLE:
        raise ValueError(f"reach={subject.reach} is too far for {TIME} tokens: use a shorter window.")
    other = x.clone()
    other[:, :since] = tokens(seed=2)[:, :since]
    with torch.no_grad():
        y, changed = (subject.run(module, each, None)[0][:, -1] for each in (x, other))
    number = moved(y, changed)
    return Finding(
        check="the past matters", holds=number > 1e-6, number=number, words=f"change by the past beyond {subject.reach}"
    )


def lasts(subject: Subject, count: int) -> Finding:
    """Noise, one token alone, zeros and a slow wave, in turn, stay finite over `count` tokens in single precision."""
    check = f"{count:,} tokens"
    module = fresh(subject, dtype=torch.float32)
    length = min(PIECE, count) if subject.streams else count
    wave = torch.linspace(0, 60, length).sin()[:, None].expand(-1, DIM)
    noise = tokens(1, length, dtype=torch.float32)[0]
    kinds = [noise, noise[:1].expand(length, -1), torch.zeros(length, DIM), wave + 0.1 * noise]
    if not subject.streams:
        kinds = [torch.cat([kind[: -(-length // 4)] for kind in kinds])[:length]]
    largest, state, done = 0.0, None, 0
    with torch.no_grad():
        while done < count:
            y, state = subject.run(module, kinds[done // length % len(kinds)][None].contiguous(), state)
            done += length
            if not y.isfinite().all():
                return Finding(check=check, holds=False, number=None, words=f"not finite within {done:,} tokens")
            largest = max(largest, y.abs().max().item())
    how = f"in pieces of {length:,}" if subject.streams else "in one call"
    return Finding(check=check, holds=True, number=largest, words=f"largest output, {how}")


CHECKS: dict[str, Callable[[Subject], Finding]] = {
    "causal": causal,
    "rows alone": alone,
    STREAMS[0]: streamed_whole,
    STREAMS[1]: streamed_single,
    STREAMS[2]: streamed_ragged,
    "gradients everywhere": trained,
    "repeats surprise less": settles,
    "the past matters": remembers,
}


def examine(subject: Subject, *, count: int = 100_000) -> list[Finding]:
    """Every check of a subject; one that ends in an error does not hold, and the error is told.

    count: tokens of the long check; 0 leaves it out.

    >>> blind = Subject(name="blind", make=lambda dim: nn.Linear(dim, dim), run=lambda layer, x, _: (layer(x), None))
    >>> [found.check for found in examine(blind, count=0) if not found.holds]
    ['repeats surprise less', 'the past matters']
    """
    found = []
    checks = dict(CHECKS)
    if count:
        checks[f"{count:,} tokens"] = partial(lasts, count=count)
    for name, check in checks.items():
        try:
            found.append(check(subject))
        except Exception as error:  # whatever another library raises is what it does here
            words = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
            found.append(Finding(check=name, holds=False, number=None, words=words))
    return found


def _badness(number: float) -> float:
    return float("inf") if number != number else number


def _small(check: str, number: float, words: str) -> Finding:
    return Finding(check=check, holds=number <= TOLERANCE, number=number, words=words)
