"""A million tokens through every wiring, streamed in pieces: the state stays where it was, and so does the process.

The results are written to `results/million.json`.
"""

import json
import resource
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from titans_ts.core.config import MemoryConfig
from titans_ts.core.state import leaves
from titans_ts.models.backbone import Backbone
from titans_ts.models.blocks import memory_of
from titans_ts.models.config import VARIANTS, BackboneConfig

RESULTS = Path(__file__).parent / "results" / "million.json"
TOKENS, PIECE, TENTHS, DIM = 1_000_000, 1000, 10, 16
MEBIBYTE = 2**20


def three_series(start: int, mixing: Tensor) -> Tensor:
    """Tokens `start` to `start + PIECE` of a constant, of a season that drifts, and of a level that jumps, with
    noise."""
    t = torch.arange(start, start + PIECE, dtype=torch.float64)
    season = torch.stack([(t / period * 6.283185307179586).sin() for period in (24, 168, 8766)], -1)
    jump = torch.stack([(t // 7919 % k - k / 2) / k for k in (2, 3, 5)], -1)
    signals = torch.stack([torch.ones_like(season), season * (1 + t[:, None] / TOKENS), jump]).float()
    return signals @ mixing + torch.tensor([0.0, 0.1, 0.3])[:, None, None] * torch.randn(3, PIECE, DIM)


def peak_memory() -> float:
    """The most that this process has held, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MEBIBYTE if sys.platform == "darwin" else peak / 1024


def record(name: str, result: dict[str, object]) -> None:
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({**known, name: result}, indent=2, sort_keys=True) + "\n")


@pytest.mark.long
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_million_tokens_leave_state_and_process_where_they_were(variant, depth):
    memory = MemoryConfig(dim=DIM, heads=2, depth=depth, persistent=4)
    config = BackboneConfig(
        dim=DIM, depth=1, variant=variant, memory=memory, heads=2, window=64, segment=64, residual_init=1.0
    )
    model = Backbone(config).eval()
    mixing, state = torch.randn(3, DIM), None
    largest, outputs, memories = [0.0] * TENTHS, [0.0] * TENTHS, [0.0] * TENTHS
    began = time.process_time()
    with torch.no_grad():
        for start in range(0, TOKENS, PIECE):
            y, state = model(three_series(start, mixing), state)
            assert all(leaf.isfinite().all() for leaf in leaves((y, state)) if leaf.is_floating_point())
            tenth = start * TENTHS // TOKENS
            held = [part for block in state for part in (*memory_of(block).weights, *memory_of(block).momentum)]
            largest[tenth] = max(largest[tenth], *(part.abs().max().item() for part in held))
            outputs[tenth] = max(outputs[tenth], y.abs().max().item())
            memories[tenth] = peak_memory()
    record(
        f"{variant}, memory depth {depth}",
        {
            "tokens": TOKENS,
            "tokens at once": PIECE,
            "series": 3,
            "microseconds per token and series": round((time.process_time() - began) / TOKENS / 3 * 1e6, 2),
            "largest state by tenth": [round(value, 4) for value in largest],
            "largest output by tenth": [round(value, 4) for value in outputs],
            "growth of the process after the first tenth, MiB": round(memories[-1] - memories[0], 1),
        },
    )
    assert max(largest) < 100
    assert largest[-1] <= 2 * largest[1]
    assert outputs[-1] <= 2 * outputs[1]
    assert memories[-1] - memories[0] < 32
