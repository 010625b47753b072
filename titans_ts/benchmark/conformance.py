"""The laws of `titans_ts.conformance` on this package and on other implementations, each at the settings it says.

Every subject is examined in a process of its own. A peer that is not installed is said and left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import __version__
from ..conformance import Subject, examine
from ..core.config import MemoryConfig
from ..core.memory import NeuralMemory
from ..core.networks import recall
from ..models.backbone import Backbone
from ..models.config import VARIANTS, BackboneConfig

OURS = "titans-ts"
PEERS = {"titans-pytorch": "0.5.5", "titans-unofficial": "2.0.0"}
WINDOW = 16  # tokens that attention sees, on every side


def surprise_of(module: nn.Module, x: Tensor) -> Tensor:
    """`|M(k) - v|^2` of every token before it is written, [B, T], all heads together.

    >>> surprise_of(NeuralMemory(MemoryConfig(dim=8, depth=1)), torch.zeros(2, 3, 8)).shape
    torch.Size([2, 3])
    """
    assert isinstance(module, NeuralMemory)
    state, found = module.initial_state(x.shape[0]), []
    for token in x.split(1, 1):
        mixed, _ = module.conv(module.project(token), state.recent)
        _, keys, values = (module.split_heads(part) for part in mixed.chunk(3, -1))
        recalled = recall(state.weights, functional.normalize(keys, dim=-1), residual=module.config.residual)
        found.append((recalled - values).square().sum((1, 3)))
        _, state = module(token, state)
    return torch.cat(found, 1)


def ours() -> Iterable[Subject]:
    """The memories and the wirings of this package."""
    for name, depth in (("linear", 1), ("deep", 2)):
        config = MemoryConfig(dim=16, heads=2, depth=depth, persistent=2)
        yield Subject(
            name=f"NeuralMemory, {name}",
            version=__version__,
            settings=f"depth={depth}, heads=2, persistent=2",
            make=lambda dim, config=config: NeuralMemory(config),  # type: ignore[misc]
            reach=config.conv,
            surprise=surprise_of,
        )
    for variant in VARIANTS:
        memory = MemoryConfig(dim=16, heads=2, depth=2, persistent=2)
        backbone = BackboneConfig(
            dim=16, depth=2, variant=variant, memory=memory, heads=2, window=WINDOW, segment=WINDOW, residual_init=1.0
        )
        yield Subject(
            name=f"Backbone, {variant}",
            version=__version__,
            settings=f"two blocks, memory of depth 2, window {WINDOW}",
            make=lambda dim, config=backbone: Backbone(config),  # type: ignore[misc]
            reach=2 * (WINDOW + memory.conv),
        )


def titans_pytorch() -> Iterable[Subject]:
    """The memory of titans-pytorch, as its README and its training script have it and at its finest."""
    from titans_pytorch import NeuralMemory as Peer

    def run(module: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = module(x, state=state)
        return y, state

    def surprise(module: nn.Module, x: Tensor) -> Tensor:
        return module(x, return_surprises=True)[2][0].sum(1)

    script: dict[str, Any] = {"chunk_size": 4, "batch_size": 128, "heads": 2, "dim_head": 8, "attn_pool_chunks": True}
    script |= {"qk_rmsnorm": True, "default_step_transform_max_lr": 0.1}
    script |= {"per_parameter_lr_modulation": True, "spectral_norm_surprises": True}
    cases: dict[str, dict[str, Any]] = {
        "chunk_size=64 (README)": {"chunk_size": 64},
        "chunk_size=64, batch_size=64": {"chunk_size": 64, "batch_size": 64},
        "chunk_size=1, batch_size=64": {"chunk_size": 1, "batch_size": 64},
        "chunk_size=4, batch_size=128, max_lr=0.1, spectral norm and pooling as in train_mac.py": script,
    }
    for settings, chosen in cases.items():
        yield Subject(
            name="titans-pytorch, NeuralMemory",
            version=version("titans-pytorch"),
            settings=settings,
            make=lambda dim, chosen=chosen: Peer(dim, **chosen),  # type: ignore[misc]
            run=run,
            surprise=surprise,
        )


def titans_unofficial() -> Iterable[Subject]:
    """The memory and the three models of titans-unofficial."""
    from titans import TitansMAC, TitansMAG, TitansMAL
    from titans.utils.memory import NeuralMemoryModule

    yield Subject(
        name="titans-unofficial, NeuralMemoryModule",
        version=version("titans-unofficial"),
        settings="the defaults",
        make=NeuralMemoryModule,
    )

    def run(module: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        if state is None:  # the state is the module's own
            module.reset_memory()
        return module(x), True

    one_layer = {"n_layers": 1, "n_heads": 2, "persistent_tokens": 2, "persist_memory": True}
    for name, model, window in (
        ("MAC", TitansMAC, {"chunk_size": WINDOW}),
        ("MAG", TitansMAG, {"window_size": WINDOW}),
        ("MAL", TitansMAL, {"window_size": WINDOW}),
    ):
        yield Subject(
            name=f"titans-unofficial, Titans{name}",
            version=version("titans-unofficial"),
            settings=f"one layer, {next(iter(window))}={WINDOW}, persist_memory=True",
            make=lambda dim, model=model, window=window: model(dim, **one_layer, **window),  # type: ignore[misc]
            run=run,
            reach=WINDOW + 1,
        )


FAMILIES: dict[str, Callable[[], Iterable[Subject]]] = {
    OURS: ours,
    "titans-pytorch": titans_pytorch,
    "titans-unofficial": titans_unofficial,
}


def examine_one(family: str, place: int, count: int) -> dict[str, Any]:
    """One subject of a family, by its place, in this process."""
    torch.set_num_threads(1)
    subject = list(FAMILIES[family]())[place]
    said = {"family": family, "name": subject.name, "version": subject.version, "settings": subject.settings}
    return {**said, "findings": [asdict(found) for found in examine(subject, count=count)]}


def installed(family: str) -> bool:
    """Whether a peer can be imported here; this package always can."""
    try:
        return family == OURS or bool(version(family))
    except PackageNotFoundError:
        return False


def run_conformance(count: int = 100_000, say: Callable[[str], object] = print) -> dict[str, Any]:
    """Every subject of every family that is installed, one after the other."""
    from .runs import commit, in_own_process

    rows = []
    for family, subjects in FAMILIES.items():
        if not installed(family):
            say(f"{family} is not installed and is left out: pip install {family}=={PEERS[family]}")
            continue
        for place in range(len(list(subjects()))):
            rows.append(in_own_process("titans_ts.benchmark.conformance", family, str(place), str(count)))
            say(line_of(rows[-1]))
    return {"commit": commit(), "torch": torch.__version__, "tokens": count, "rows": rows}


def line_of(row: dict[str, Any]) -> str:
    """One subject for the eye: how many laws hold, and what was found where one does not.

    >>> found = {"check": "causal", "holds": False, "number": 0.5, "words": "change of earlier outputs"}
    >>> line_of({"name": "leaky", "settings": "as it is", "findings": [found]})
    'leaky (as it is): 0 of 1 hold; causal: 0.5 change of earlier outputs'
    """
    claimed = [found for found in row["findings"] if found["holds"] is not None]
    failed = [found for found in claimed if not found["holds"]]
    parts = [f"{row['name']} ({row['settings']}): {len(claimed) - len(failed)} of {len(claimed)} hold"]
    for found in failed:
        number = "" if found["number"] is None else f"{found['number']:.2g} "
        parts.append(f"{found['check']}: {number}{found['words']}")
    return "; ".join(parts)


if __name__ == "__main__":
    print(json.dumps(examine_one(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
