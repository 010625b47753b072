"""What `torch.compile` brings: memory and backbone, eager and compiled by inductor, in one process, one thread."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..core.config import MemoryConfig
from ..core.memory import NeuralMemory
from ..models.backbone import Backbone
from ..models.config import preset
from .memory import cpu_seconds

TOKENS, DIM = 1024, 64


def modules() -> dict[str, nn.Module]:
    """What is compared, fresh.

    >>> len(modules())
    3
    """
    return {
        "linear memory": NeuralMemory(MemoryConfig(dim=DIM, heads=2, depth=1)),
        "deep memory": NeuralMemory(MemoryConfig(dim=DIM, heads=2, depth=2)),
        "backbone, lmm, two blocks": Backbone(preset("small", "lmm", residual_init=1.0)).eval(),
    }


def run_compiled(backend: str = "inductor", say: Callable[[str], object] = print) -> dict[str, Any]:
    """CPU microseconds a token of every module, forward and with backward, and the seconds that compiling took.

    Compiling is counted without the compiler's own processes, and is less where its cache on disk helps.
    """
    from .runs import commit

    if backend == "inductor" and not any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl")):
        raise ModuleNotFoundError("torch.compile needs a C++ compiler on the CPU, such as g++, and finds none.")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for name, module in modules().items():
        x, row = torch.randn(1, TOKENS, DIM), dict[str, Any](name=name)
        compiled = torch.compile(module, fullgraph=True, backend=backend)
        _both(module, x)  # the kernels that numba compiles are those of both
        began = time.process_time()
        _both(compiled, x)
        _forward(compiled, x)
        row["compiling_s"] = round(time.process_time() - began, 1)
        for title, run in (("forward", _forward), ("both", _both)):
            for side, each in (("eager", module), ("compiled", compiled)):
                row[f"{title}_{side}_us"] = round(_micros(run, each, x), 2)
        rows.append(row)
        say(", ".join(f"{key} {value}" for key, value in row.items()))
    return {"commit": commit(), "torch": torch.__version__, "backend": backend, "tokens": TOKENS, "rows": rows}


def _forward(module: Callable[[Tensor], Any], x: Tensor) -> None:
    with torch.no_grad():
        module(x)


def _both(module: Callable[[Tensor], Any], x: Tensor) -> None:
    module(x)[0].square().mean().backward()


def _micros(run: Callable[[Any, Tensor], None], module: Any, x: Tensor) -> float:
    return 1e6 * cpu_seconds(lambda: run(module, x)) / TOKENS
