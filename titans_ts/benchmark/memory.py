"""How fast is the memory? Against `titans-pytorch`, computing the same numbers where its settings allow it.

`SameMemory` wraps the ops of this package in the projections and gates of the other's `NeuralMemory`, so that both
compute one function with one set of parameters (`tests/benchmark/test_memory.py`). Every side of every case runs in
a process of its own, on one thread: the CPU seconds of its least disturbed call, and how far they raise the memory of
the process.

B row, T time, D model, H head, K key.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.config import MemoryConfig
from ..core.networks import layer_shapes
from ..core.ops.chunked import chunked
from ..core.ops.contract import Rule, Tokens
from ..core.ops.exact_linear import exact_linear
from ..core.state import MemoryState
from ..forecasting.training import give_back
from .counts import by_chunks
from .runs import commit, in_own_process, machine, not_measured

PEER = "titans-pytorch==0.5.5"
EXPANSION = 4
FRESH_SECONDS = 1.0  # of CPU time that the calls of one measurement take at least, unless three take longer


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One configuration of both sides.

    refresh: tokens between two anchors. coarse: the peer's gates and weights change only once in so many tokens, and
    its gradients are all taken at the first weights; ours are then those of a chunk of that length, which is another,
    finer function. exact: ours takes its gradients at the current weights, the peer at the anchor.
    """

    name: str
    depth: int = 2
    heads: int = 1
    rows: int = 1
    tokens: int = 1024
    dim: int = 64
    refresh: int = 64
    coarse: int = 1
    exact: bool = False

    @property
    def chunk(self) -> int:
        """Tokens between two anchors of ours."""
        return self.refresh if self.coarse == 1 else self.coarse

    @property
    def same(self) -> bool:
        """Whether both sides compute one function."""
        return self.coarse == 1 and not self.exact


CASES = (
    Case(name="depth 2, 512 tokens", tokens=512),
    Case(name="depth 2, 1024 tokens"),
    Case(name="depth 2, 1024 tokens, anchors every 16", refresh=16),
    Case(name="depth 1, frozen", depth=1),
    Case(name="depth 1, exact", depth=1, exact=True),
    Case(name="1 head, 8 rows", rows=8, tokens=128),
    Case(name="4 heads, 8 rows", heads=4, rows=8, tokens=128),
    Case(name="8 heads, 8 rows", heads=8, rows=8, tokens=128),
    Case(name="coarse 16, 4096 tokens", coarse=16, tokens=4096),
    Case(name="coarse 64, 4096 tokens", coarse=64, tokens=4096),
    Case(name="width 128, coarse 16, 4096 tokens", coarse=16, tokens=4096, dim=128),
    Case(name="width 128, coarse 64, 4096 tokens", coarse=64, tokens=4096, dim=128),
)


class SameMemory(nn.Module):
    """The function of the peer's `NeuralMemory` (no norm around the network), by the ops of this package.

    >>> SameMemory(Case(name="small", dim=8, heads=2))(torch.zeros(1, 3, 8)).shape
    torch.Size([1, 3, 8])
    """

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        dim, heads = case.dim, case.heads
        self.read_norm, self.write_norm = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.queries, self.keys, self.values = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.gates = nn.Linear(dim, 3 * heads)
        self.gate = nn.Linear(dim, heads, bias=False) if heads > 1 else None
        self.combine = nn.Linear(dim, dim, bias=False) if heads > 1 else None
        shapes = layer_shapes(dim // heads, case.depth, EXPANSION)
        self.initial = nn.ParameterList(nn.init.xavier_uniform_(torch.empty(heads, *shape)) for shape in shapes)

    def counterparts(self, peer: Any) -> list[tuple[Tensor, list[Tensor]]]:
        """Every parameter, and those of the peer's module that it is, one behind the other."""
        gates = [getattr(peer, name)[0] for name in ("to_adaptive_step", "to_momentum", "to_decay_factor")]
        pairs = [
            (self.read_norm.weight, [peer.retrieve_norm.weight]),
            (self.write_norm.weight, [peer.store_norm.weight]),
            (self.queries.weight, [peer.to_queries.weight]),
            (self.keys.weight, [peer.to_keys.weight]),
            (self.values.weight, [peer.to_values.weight]),
            (self.gates.weight, [gate.weight for gate in gates]),
            (self.gates.bias, [gate.bias for gate in gates]),
        ]
        if self.gate is not None and self.combine is not None:
            pairs += [
                (self.gate.weight, [peer.retrieve_gate[0].weight]),
                (self.combine.weight, [peer.combine_heads.weight]),
            ]
        return pairs + [
            (mine, [theirs]) for mine, theirs in zip(self.initial, peer.memory_model_parameters, strict=True)
        ]

    def copy(self, peer: Any) -> None:
        """Take the parameters of the peer's module."""
        with torch.no_grad():
            for mine, theirs in self.counterparts(peer):
                mine.copy_(torch.cat(theirs))

    def forward(self, x: Tensor) -> Tensor:
        """What was read after every write, [B, T, D]."""
        case, heads = self.case, self.case.heads

        def split(part: Tensor) -> Tensor:
            return part.unflatten(-1, (heads, -1)).movedim(2, 1)

        written, asked = self.write_norm(x), self.read_norm(x)
        theta, eta, alpha = self.gates(written).sigmoid().unflatten(-1, (3, heads, 1)).movedim(2, 0).movedim(3, 2)
        weights = tuple(weight.expand(x.shape[0], *weight.shape) for weight in self.initial)
        state = MemoryState(
            weights=weights,
            momentum=tuple(torch.zeros_like(weight) for weight in weights),
            anchor=() if case.exact else weights,
            spent=x.new_zeros(x.shape[0], heads, 1),
            offset=torch.zeros(x.shape[0], dtype=torch.long),
            recent=x.new_zeros(x.shape[0], 0, 0),
        )
        keys = split(self.keys(written))
        # The peer's loss is the mean over the width of a head, ours the sum.
        tokens = Tokens(
            split(self.queries(asked)), keys, split(self.values(written)), theta / keys.shape[-1], eta, alpha
        )
        reads, _ = (exact_linear if case.exact else chunked)(state, tokens, Rule(chunk=case.chunk))
        if self.gate is not None and self.combine is not None:
            reads = reads * split(self.gate(asked).sigmoid())
            return self.combine(reads.movedim(1, 2).flatten(2))
        return reads.movedim(1, 2).flatten(2)


def peer_module(case: Case) -> Any:
    """The peer's module of a case, or the error that says how to install it."""
    try:
        from titans_pytorch import NeuralMemory
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"this comparison needs the other library: pip install {PEER}") from error
    return NeuralMemory(
        dim=case.dim,
        heads=case.heads,
        dim_head=case.dim // case.heads,
        chunk_size=case.coarse,
        batch_size=case.refresh if case.coarse == 1 else None,
        momentum=True,
        mem_model_norm_add_residual=False,
        default_model_kwargs={"depth": case.depth, "expansion_factor": float(EXPANSION)},
    )


def operations(case: Case) -> int:
    """Useful floating point operations of one token's forward pass in the memory, all heads; backward is twice that.

    >>> operations(Case(name="depth 2"))
    450560
    """
    return by_chunks(
        MemoryConfig(dim=case.dim, heads=case.heads, depth=case.depth, expansion=EXPANSION, chunk=case.chunk)
    )


def cpu_seconds(run: Callable[[], object]) -> float:
    """The CPU seconds of the least disturbed call, of three or more, after a first one that is not counted."""
    run()
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < FRESH_SECONDS:
        before = time.process_time()
        run()
        taken.append(time.process_time() - before)
    return min(taken)


def held_mib(name: str) -> float:
    """What this process holds now ("VmRSS") or has held at most ("VmHWM"), in MiB (Linux; elsewhere not a number).

    >>> held_mib("VmRSS") > 0 or not Path("/proc/self/status").exists()
    True
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


class Peak:
    """How far the memory of this process has risen since this was made, in MiB (Linux; elsewhere not a number)."""

    def __init__(self) -> None:
        give_back()  # what earlier calls have freed is to count when it is used again
        self.before = held_mib("VmRSS")
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        except OSError:
            self.before = held_mib("VmHWM")

    def rise(self) -> float:
        """The highest so far."""
        return held_mib("VmHWM") - self.before


def measure(case: Case, side: str) -> dict[str, float]:
    """CPU seconds and peak memory of one side, in this process; of ours also the GFLOP/s of a plain product of the
    memory's width, and of that of one head."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = SameMemory(case) if side == "ours" else peer_module(case)
    x = torch.randn(case.rows, case.tokens, case.dim, requires_grad=True)

    def forward() -> None:
        with torch.no_grad():
            module(x)

    def both() -> None:
        module.zero_grad(set_to_none=True)
        x.grad = None
        y = module(x)
        (y if isinstance(y, Tensor) else y[0]).square().mean().backward()

    both()  # what the libraries load and compile at their first call is not the memory's
    found: dict[str, float] = {}
    for name, run in (("forward", forward), ("both", both)):
        peak = Peak()
        run()
        found[f"{name}_mib"] = round(peak.rise(), 1)
        found[f"{name}_s"] = cpu_seconds(run)
    if side == "ours":
        found["product_gflops"] = product_gflops(case.rows * case.chunk, case.dim)
        found["head_gflops"] = product_gflops(case.rows * case.chunk, case.dim // case.heads)
    return found


def product_gflops(rows: int, dim: int) -> float:
    """Operations a nanosecond of one product `[rows, dim] x [dim, EXPANSION * dim]`.

    >>> product_gflops(64, 8) > 0
    True
    """
    left, right = torch.randn(rows, dim), torch.randn(dim, EXPANSION * dim)
    out, times = torch.empty(rows, right.shape[1]), max(1, 100_000 // rows)
    taken = cpu_seconds(lambda: [torch.mm(left, right, out=out) for _ in range(times)]) / times
    return 2 * left.numel() * right.shape[1] / taken / 1e9


def peer_version() -> str | None:
    """The version of the peer that is installed, if it is."""
    try:
        return version("titans-pytorch")
    except PackageNotFoundError:
        return None


def compare(case: Case, peer: bool) -> dict[str, Any]:
    """One row: both sides, their ratios, and the share of the rate of a plain product that ours reaches: of
    one as wide as the memory, and of one as wide as a head."""
    module, what = "titans_ts.benchmark.memory", json.dumps(asdict(case))
    ours = in_own_process(module, what, "ours")
    theirs = in_own_process(module, what, "peer") if peer else {}
    tokens = case.rows * case.tokens
    row: dict[str, Any] = {**asdict(case), "same": case.same}
    row |= {name: ours[name] for name in ("product_gflops", "head_gflops")}
    for name, passes in (("forward", 1), ("both", 3)):
        seconds, mib = ours[f"{name}_s"], ours[f"{name}_mib"]
        row[f"{name}_us"] = 1e6 * seconds / tokens
        row[f"{name}_mib"] = mib
        rate = passes * operations(case) * tokens / seconds / 1e9
        row[f"{name}_rate"], row[f"{name}_head_rate"] = rate / row["product_gflops"], rate / row["head_gflops"]
        if theirs:
            row[f"peer_{name}_us"] = 1e6 * theirs[f"{name}_s"] / tokens
            row[f"peer_{name}_mib"] = theirs[f"{name}_mib"]
            row[f"{name}_ratio"] = theirs[f"{name}_s"] / seconds
            row[f"{name}_mib_ratio"] = theirs[f"{name}_mib"] / max(mib, 0.1)
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}


def run_memory(
    cases: Sequence[Case] = CASES, say: Callable[[str], object] = print, earlier: dict[str, Any] | None = None
) -> dict[str, Any]:
    """All cases, one after the other; without the peer only this side. earlier: a run whose other cases are kept.

    >>> run_memory([], say=lambda line: None)["rows"]
    []
    """
    peer = peer_version()
    about = {"torch": torch.__version__, "peer": peer, "machine": machine(), "threads": 1}
    names = [case.name for case in cases]
    rows = not_measured(earlier, about, "rows", lambda row: row["name"] in names)
    if peer is None:
        say(f"titans-pytorch is not installed, so only this side is measured. To compare: pip install {PEER}")
    for case in cases:
        rows.append(compare(case, peer is not None))
        say(line_of(rows[-1]))
    order = [case.name for case in CASES]
    rows.sort(key=lambda row: order.index(row["name"]) if row["name"] in order else len(order))
    return {"commit": commit(), **about, "rows": rows}


def line_of(row: dict[str, Any]) -> str:
    """One row for the eye."""
    parts = [f"{row['name']:40s}"]
    for name, title in (("forward", "forward"), ("both", "forward+backward")):
        text = f"{title} {row[f'{name}_us']:.1f} us/token, {row[f'{name}_mib']:.0f} MiB, rate {row[f'{name}_rate']:.0%}"
        if f"{name}_ratio" in row:
            text += f", {row[f'{name}_ratio']:.1f}x faster, {row[f'{name}_mib_ratio']:.1f}x less memory"
        parts.append(text)
    return " | ".join(parts)


if __name__ == "__main__":
    print(json.dumps(measure(Case(**json.loads(sys.argv[1])), sys.argv[2])))
