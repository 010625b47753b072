"""How time and memory grow with the length: the neural memory beside softmax attention, from 1k to 256k tokens.

One layer of one width and as many heads on every side, one sequence, one thread. Every point is measured in a process
of its own: CPU seconds of the least disturbed call, and how far the call raises the memory of the process. A point that
would take too long is not measured: that is said in its place, and no number is put there.

B row, T time, D model.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..core.attention import AttentionProjections
from ..core.config import MemoryConfig, require
from ..core.memory import NeuralMemory
from ..core.ops.chunked import WORTH
from .memory import Case, Peak, operations
from .runs import commit, in_own_process, machine, not_measured

LENGTHS = (1024, 4096, 16_384, 65_536, 262_144)
SIDES = ("linear memory", "deep memory", "attention")
PASSES = ("forward", "both")
DIM, HEADS = 64, 4
SECONDS, MIB = 60.0, 8192.0  # a point that would take more, judged by the one before and by what it grows with, is left
FRESH_SECONDS = 1.0  # of CPU time that the calls of one point take at least
FIRST = 256  # tokens of the call that is not measured, more where only more of them are computed by compiled kernels


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One measurement: a side of `SIDES`, a pass of `PASSES` ("both": forward and backward), and a length."""

    side: str
    passes: str
    tokens: int
    dim: int = DIM
    heads: int = HEADS

    def __post_init__(self) -> None:
        require(self.side in SIDES, f"side={self.side!r} must be one of {', '.join(SIDES)}.")
        require(self.passes in PASSES, f"passes={self.passes!r} must be one of {', '.join(PASSES)}.")


class CausalAttention(nn.Module):
    """Softmax attention over the whole past, by `scaled_dot_product_attention`.

    >>> CausalAttention(8, 2)(torch.zeros(1, 3, 8)).shape
    torch.Size([1, 3, 8])
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.shared = AttentionProjections(dim, heads, 0)

    def forward(self, x: Tensor) -> Tensor:
        """Every token attends to itself and to all before it."""
        queries, keys, values = self.shared.split(x)
        return self.shared.merge(functional.scaled_dot_product_attention(queries, keys, values, is_causal=True))


def layer(side: str, dim: int = DIM, heads: int = HEADS) -> Callable[[Tensor], Tensor]:
    """The layer of a side, as a function of its tokens.

    >>> layer("linear memory", 8, 2)(torch.zeros(1, 3, 8)).shape
    torch.Size([1, 3, 8])
    """
    if side == "attention":
        return CausalAttention(dim, heads)
    memory = NeuralMemory(MemoryConfig(dim=dim, heads=heads, depth=1 if side == "linear memory" else 2))
    return lambda x: memory(x)[0]


def useful_operations(point: Point) -> float:
    """Floating point operations that a call cannot do without, projections not counted: of the memory those of
    `memory.operations`, of attention the products of every query with what lies before it; backward is twice forward.

    >>> useful_operations(Point(side="attention", passes="both", tokens=10, dim=8))
    4800
    """
    if point.side == "attention":
        one = 2 * point.tokens * point.dim
    else:
        depth = 1 if point.side == "linear memory" else 2
        one = operations(Case(name=point.side, dim=point.dim, heads=point.heads, depth=depth))
    return point.tokens * one * (3 if point.passes == "both" else 1)


def measure(point: Point) -> dict[str, float]:
    """CPU seconds of one point, rise of the memory, and useful operations a nanosecond, in this process.

    >>> sorted(measure(Point(side="attention", passes="both", tokens=4, dim=8, heads=2)))
    ['gflops', 'mib', 'seconds']
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = layer(point.side, point.dim, point.heads)

    def run(x: Tensor) -> None:
        with torch.set_grad_enabled(point.passes == "both"):
            y = module(x)
            if point.passes == "both":
                y.square().mean().backward()

    # What is compiled and loaded at the first call of an op is not the layer's: the same op comes first.
    run(torch.randn(1, min(point.tokens, max(FIRST, -(-WORTH // point.dim))), point.dim))
    x = torch.randn(1, point.tokens, point.dim)
    peak, taken = Peak(), list[float]()
    while not taken or sum(taken) < FRESH_SECONDS:
        before = time.process_time()
        run(x)
        taken.append(time.process_time() - before)
    rate = useful_operations(point) / min(taken) / 1e9
    return {"seconds": min(taken), "mib": round(peak.rise(), 1), "gflops": round(rate, 2)}


def apart(point: Point) -> dict[str, float]:
    """`measure` in a process of its own."""
    found: dict[str, float] = in_own_process("titans_ts.benchmark.length", json.dumps(asdict(point)))
    return found


def too_dear(before: dict[str, Any], tokens: int) -> str | None:
    """Why a point is not measured, judged by the one before; None where it is.

    >>> too_dear({"side": "attention", "tokens": 1024, "seconds": 10.0, "mib": 1.0}, 4096)
    'not measured: at 16 times the 10 s of 1,024 tokens it would take more than 60 s'
    """
    if "skipped" in before:
        return f"not measured: {before['tokens']:,} tokens were too dear already"
    growth = tokens / before["tokens"]
    slower = growth**2 if before["side"] == "attention" else growth
    if slower * before["seconds"] > SECONDS:
        said = f"at {slower:.0f} times the {before['seconds']:.0f} s of {before['tokens']:,} tokens"
        return f"not measured: {said} it would take more than {SECONDS:.0f} s"
    if growth * before["mib"] > MIB:
        said = f"at {growth:.0f} times the {before['mib']:,.0f} MiB of {before['tokens']:,} tokens"
        return f"not measured: {said} it would hold more than {MIB:,.0f} MiB"
    return None


def run_length(
    lengths: Sequence[int] = LENGTHS,
    say: Callable[[str], object] = print,
    run: Callable[[Point], dict[str, float]] = apart,
    earlier: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Every side and pass at every length, the short ones first. earlier: a run whose other lengths are kept.

    >>> run_length([], say=lambda line: None)["rows"]
    []
    """
    about = {"machine": machine(), "threads": 1}
    about |= {"width": DIM, "heads": HEADS}
    rows = not_measured(earlier, about, "rows", lambda row: row["tokens"] in lengths)
    for side in SIDES:
        for passes in PASSES:
            last: dict[str, Any] | None = None
            for tokens in sorted(lengths):
                row: dict[str, Any] = {"side": side, "passes": passes, "tokens": tokens}
                why = None if last is None else too_dear(last, tokens)
                found = {"skipped": why} if why else run(Point(side=side, passes=passes, tokens=tokens))
                last = {**row, **found}
                rows.append(last)
                say(line_of(last))
    rows.sort(key=lambda row: (SIDES.index(row["side"]), PASSES.index(row["passes"]), row["tokens"]))
    return {"commit": commit(), **about, "rows": rows}


def line_of(row: dict[str, Any]) -> str:
    """One point for the eye.

    >>> line_of({"side": "attention", "passes": "both", "tokens": 4096, "seconds": 0.5, "mib": 12.0})
    'attention      forward+backward    4,096 tokens:   0.5000 s,  122.1 us/token,     12 MiB'
    """
    title = {"forward": "forward", "both": "forward+backward"}[row["passes"]]
    begin = f"{row['side']:14s} {title:16s} {row['tokens']:8,} tokens:"
    if "skipped" in row:
        return f"{begin} {row['skipped']}"
    micros = 1e6 * row["seconds"] / row["tokens"]
    return f"{begin} {row['seconds']:8.4f} s, {micros:6.1f} us/token, {row['mib']:6,.0f} MiB"


def draw_length(result: dict[str, Any], path: Path) -> None:
    """One picture: CPU seconds and memory of forward and backward against the length, what was measured only."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pictures need matplotlib: pip install 'titans-ts[plot]'") from error
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, measure, title in zip(
        figure.subplots(1, 2), ("seconds", "mib"), ("CPU seconds", "peak memory, MiB"), strict=True
    ):
        for side, colour in zip(SIDES, ("tab:blue", "tab:purple", "tab:orange"), strict=True):
            rows = [row for row in result["rows"] if row["side"] == side and row["passes"] == "both"]
            measured = [row for row in rows if "skipped" not in row]
            axes.plot(
                [row["tokens"] for row in measured],
                [row[measure] for row in measured],
                marker="o",
                color=colour,
                label=side if len(measured) == len(rows) else f"{side} (longer: not measured)",
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("tokens")
        axes.set_title(f"forward and backward: {title}", fontsize=10)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    print(json.dumps(measure(Point(**json.loads(sys.argv[1])))))
