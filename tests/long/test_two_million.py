"""Two million tokens (2,097,152) through every wiring, streamed in pieces: the state stays where it was, the process
does not grow, and the last tokens take no longer than the first.

Two sizes: that of the default forecaster, three series of patches; and that of a layer of a small language model (width
256, a deep memory), whose tokens are words of a random vocabulary, with a stretch of one word alone in every tenth.
Each case runs in a process of its own, this file called as a program. The results are written to
`results/two_million.json`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor

from titans_ts.benchmark.memory import held_mib
from titans_ts.benchmark.runs import commit
from titans_ts.core.config import MemoryConfig
from titans_ts.core.state import leaves
from titans_ts.forecasting.training import give_back
from titans_ts.models.backbone import Backbone
from titans_ts.models.blocks import memory_of
from titans_ts.models.config import VARIANTS, BackboneConfig, preset

RESULTS = Path(__file__).parent / "results" / "two_million.json"
TOKENS, PIECE, TENTHS = 2**21, 4096, 10
WORDS = 1000
Signal = Callable[[int], Tensor]


def three_series(dim: int) -> Signal:
    """Tokens `start` to `start + PIECE` of a constant, of a season that drifts, and of a level that jumps, with
    noise."""
    mixing = torch.randn(3, dim)

    def at(start: int) -> Tensor:
        t = torch.arange(start, start + PIECE, dtype=torch.float64)
        season = torch.stack([(t / period * 6.283185307179586).sin() for period in (24, 168, 8766)], -1)
        jump = torch.stack([(t // 7919 % k - k / 2) / k for k in (2, 3, 5)], -1)
        signals = torch.stack([torch.ones_like(season), season * (1 + t[:, None] / TOKENS), jump]).float()
        return signals @ mixing + torch.tensor([0.0, 0.1, 0.3])[:, None, None] * torch.randn(3, PIECE, dim)

    return at


def words(dim: int) -> Signal:
    """Words that are drawn by Zipf's law and embedded; the second piece of every tenth is one word alone."""
    embedding, share = torch.randn(WORDS, dim), 1 / torch.arange(1, WORDS + 1, dtype=torch.float64)

    def at(start: int) -> Tensor:
        drawn = torch.multinomial(share, PIECE, replacement=True)
        alone = start // PIECE % (TOKENS // PIECE // TENTHS) == 1
        return embedding[torch.zeros_like(drawn) if alone else drawn][None]

    return at


def sized(size: str, variant: str) -> tuple[BackboneConfig, Callable[[int], Signal]]:
    if size == "forecasting":
        return preset("small", variant, residual_init=1.0), three_series
    memory = MemoryConfig(dim=256, heads=4, depth=2, persistent=16)
    language = BackboneConfig(
        dim=256, depth=1, variant=variant, memory=memory, heads=4, window=512, segment=512, residual_init=1.0
    )
    return language, words


def stream(size: str, variant: str) -> dict[str, Any]:
    """All tokens, and what was seen of state, process and time in every tenth."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config, kind = sized(size, variant)
    model, signal, state = Backbone(config).eval(), kind(config.dim), None
    largest, outputs, resident = [0.0] * TENTHS, [0.0] * TENTHS, [0.0] * TENTHS
    seconds: list[list[float]] = [[] for _ in range(TENTHS)]
    finite = True
    with torch.no_grad():
        with torch.random.fork_rng():
            model(signal(0), state)  # what is compiled and loaded at the first call is no tenth's
        for start in range(0, TOKENS, PIECE):
            x = signal(start)
            began = time.process_time()
            y, state = model(x, state)
            taken = time.process_time() - began
            finite = finite and all(leaf.isfinite().all() for leaf in leaves((y, state)) if leaf.is_floating_point())
            tenth = start * TENTHS // TOKENS
            seconds[tenth].append(taken)
            held = [part for block in state for part in (*memory_of(block).weights, *memory_of(block).momentum)]
            largest[tenth] = max(largest[tenth], *(part.abs().max().item() for part in held))
            outputs[tenth] = max(outputs[tenth], y.abs().max().item())
            give_back()  # freed memory that the allocator keeps is not held, and comes and goes by many MiB
            resident[tenth] = max(resident[tenth], held_mib("VmRSS"))
    # The median piece: single pieces are disturbed by whatever else the machine does.
    micros = [median(pieces) / PIECE * 1e6 for pieces in seconds]
    return {
        "commit": commit(),
        "torch": torch.__version__,
        "tokens": TOKENS,
        "tokens at once": PIECE,
        "series": x.shape[0],
        "width": config.dim,
        "blocks": config.depth,
        "memory depth": config.memory.depth,
        "finite": bool(finite),
        "CPU seconds": round(sum(map(sum, seconds))),
        "state, MiB": round(sum(leaf.nbytes for leaf in leaves(state)) / 2**20, 3),
        "microseconds a position by tenth": [round(value, 2) for value in micros],
        "resident memory by tenth, MiB": [round(value, 2) for value in resident],
        "largest state by tenth": [round(value, 4) for value in largest],
        "largest output by tenth": [round(value, 4) for value in outputs],
    }


def in_own_process(size: str, variant: str) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, __file__, size, variant],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def record(name: str, result: dict[str, Any]) -> None:
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({**known, name: result}, indent=2, sort_keys=True) + "\n")


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell what a process holds")
@pytest.mark.parametrize("size", ["forecasting", "language"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_million_tokens_leave_state_process_and_speed_where_they_were(variant, size):
    result = in_own_process(size, variant)
    record(f"{size}, {variant}", result)
    assert result["finite"]
    state, outputs = result["largest state by tenth"], result["largest output by tenth"]
    assert max(state) < 100
    assert max(state[1:]) <= 2 * state[1]
    assert max(outputs[1:]) <= 2 * outputs[1]
    resident, micros = result["resident memory by tenth, MiB"], result["microseconds a position by tenth"]
    assert max(resident[1:]) - resident[0] <= 2
    assert abs(micros[-1] / micros[0] - 1) <= 0.1
    assert max(micros) <= 1.5 * micros[0]


if __name__ == "__main__":
    print(json.dumps(stream(*sys.argv[1:])))
