"""What each part of the memory brings: the default, and one part changed at a time, on four sets.

Every set ends before its test part: ETTh1 and Weather before the test rows of the long-horizon protocol, M4 hourly (a
sample of 100 series) and monthly tourism before the last horizon. The windows at that end are forecast as in `gift`:
one fit on everything before them, then window after window with `update` between. The backbone forecasts alone, or, on
request, all parts do ("whole"), where the shares that validation confirms decide how much of it is seen; and the whole
without one of its parts.

Of the default it is told besides what its memories do: how fast they learn and forget, how large what they read is
beside what they are given, and what forecasts are worth that know only the last contexts of every series.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..core.memory import NeuralMemory
from ..data import describe, load
from ..forecasting.forecaster import TitansForecaster
from ..forecasting.training import PAST, TrainConfig
from ..models.config import BackboneConfig
from . import ltsf
from .gift import LEVELS, Task, frame_of, score_forecasts, season_errors, walk
from .runs import commit, kept, require_known

SETS = ("etth1", "weather", "m4_hourly", "tourism_monthly")
USUAL = ("backbone alone",)  # what is run where nothing is named: where its parts are seen undiluted
# fields of `TrainConfig` that differ from its defaults
PATHS: dict[str, dict[str, Any]] = {
    "backbone alone": {"linear": False, "fading": False},
    "whole": {},
    "without fading memories": {"fading": False},
    "without backbone": {"steps": 0},
    "linear path alone": {"steps": 0, "fading": False},
}
HORIZON, WINDOWS = 96, 20  # of ETTh1 and Weather
SAMPLE = 100  # series of M4 hourly

DEFAULT = BackboneConfig()
# what is changed; every other field is the default's
VARIATIONS: dict[str, BackboneConfig] = {
    "default": DEFAULT,
    **{variant: replace(DEFAULT, variant=variant) for variant in ("mac", "mag", "mal")},
    "memory off": replace(DEFAULT, writes=False),
    "momentum off": replace(DEFAULT, memory=replace(DEFAULT.memory, momentum=False)),
    "forgetting off": replace(DEFAULT, memory=replace(DEFAULT.memory, forgetting=False)),
    **{f"memory depth {depth}": replace(DEFAULT, memory=replace(DEFAULT.memory, depth=depth)) for depth in (2, 3)},
    # that of a linear memory changes nothing: its gradients are exact
    "memory depth 2, chunk 8": replace(DEFAULT, memory=replace(DEFAULT.memory, depth=2, chunk=8)),
}
REACHES = (1, 2, 4, 8)  # contexts of its past that a forecast knows
REACHED = 4  # every so many windows are forecast so


def make_task(name: str, folder: str | None = None) -> Task:
    """A set without its test part."""
    require_known("set", [name], SETS)
    card = describe(name)
    if name in ltsf.SETS:
        series = [*ltsf.split_set(name, folder, part="validation").values.T]
        return Task(series, card.freq, card.season_length, HORIZON, WINDOWS)
    y, horizon = load(name, folder), int(card.horizon or 1)
    series = [each.to_numpy(dtype=np.float64)[:-horizon] for _, each in y.groupby("unique_id", sort=False)["y"]]
    if len(series) > SAMPLE and name == "m4_hourly":
        series = [series[i] for i in np.random.default_rng(0).choice(len(series), SAMPLE, replace=False)]
    return Task(series, card.freq, card.season_length, horizon, 1)


def run_ablation(
    name: str, variation: str, path: str, *, folder: str | None = None, seed: int = 0, steps: int | None = None
) -> dict[str, Any]:
    """One variation on one set; `steps=None` trains as long as the forecaster does by default."""
    require_known("variation", [variation], VARIATIONS)
    require_known("path", [path], PATHS)
    torch.set_num_threads(1)
    task = make_task(name, folder)
    train = TrainConfig(**{"steps": TrainConfig().steps if steps is None else steps, **PATHS[path]})
    forecaster = TitansForecaster(
        task.horizon,
        task.freq,
        task.season,
        quantiles=LEVELS,
        point="median",
        model=VARIATIONS[variation],
        train=train,
        random_state=seed,
    )
    scores = walk(forecaster, task)
    told = memories_of(forecaster, task) if variation == "default" and path in USUAL else {}
    return {
        "set": name,
        "variation": variation,
        "path": path,
        "seed": seed,
        "steps": train.steps,
        "commit": commit(),
        "correction": forecaster.correction_,
        **scores,
        **told,
    }


def memories_of(forecaster: TitansForecaster, task: Task) -> dict[str, Any]:
    """What the memories of a fitted forecaster do on the histories of a task.

    memories: of every block, over the last contexts before the first window, the median momentum, the median
    forgetting and the steps of the series after which half of what was written is left, and the size of what the memory
    says relative to what it is given, the block's input behind its norm. reach: MASE, at every fourth window, of
    forecasts that know so many contexts of the past, and all of it.
    """
    model, heard = forecaster.model_, dict[NeuralMemory, list[Tensor]]()

    def hear(memory: NeuralMemory, given: tuple[Any, ...], result: tuple[Tensor, Any]) -> None:
        x, lengths = given[0], given[3]
        real = torch.ones(x.shape[:2], dtype=torch.bool)
        if lengths is not None:
            real = torch.arange(x.shape[1]) < lengths[:, None]
        _, eta, alpha = memory.gates(x).unflatten(-1, (3, -1)).sigmoid().unbind(-2)
        sizes = (part.square().sum(-1) for part in (result[0], x))
        heard.setdefault(memory, []).append(torch.stack([eta.mean(-1), alpha.mean(-1), *sizes], -1)[real])

    ends = [len(y) - task.scored for y in task.series]
    last = [max(0, end - PAST * model.config.context) for end in ends]
    hooks = [part.register_forward_hook(hear) for part in model.modules() if isinstance(part, NeuralMemory)]
    forecaster.predict(y=frame_of(task, last, ends))
    for hook in hooks:
        hook.remove()
    blocks = []
    for parts in heard.values():
        eta, alpha, read, given = torch.cat(parts).unbind(-1)
        half_life = math.log(0.5) / math.log1p(-alpha.median().item()) * model.config.patch
        block = {"momentum": eta.median().item(), "forgetting": alpha.median().item(), "half_life": half_life}
        blocks.append({**block, "read": (read.sum() / given.sum()).sqrt().item()})
    reach = {}
    for contexts in (*REACHES, None):
        truths, quantiles, units = [], [], []
        for window in range(0, task.windows, REACHED):
            origins = [end + window * task.horizon for end in ends]
            size = max(origins) if contexts is None else contexts * model.config.context
            # From the beginning of a patch, so that as much of the last one has arrived as without the cut.
            begins = [max(0, origin - size) // model.config.patch * model.config.patch for origin in origins]
            said = forecaster.predict(quantiles=LEVELS, y=frame_of(task, begins, origins))
            quantiles.append(said.filter(like="-ql").to_numpy(dtype=np.float64))
            truths += [y[origin : origin + task.horizon] for y, origin in zip(task.series, origins, strict=True)]
            units.append(np.repeat(season_errors(task, origins), task.horizon))
        scores = score_forecasts(np.concatenate(truths), np.concatenate(quantiles), np.concatenate(units))
        reach["all" if contexts is None else str(contexts)] = scores["mase"]
    memories = [{name: float(f"{value:.4g}") for name, value in block.items()} for block in blocks]
    return {"memories": memories, "reach": reach}


def run_ablations(
    names: tuple[str, ...],
    variations: tuple[str, ...],
    paths: tuple[str, ...],
    seeds: tuple[int, ...],
    out: Path,
    *,
    folder: str | None = None,
    steps: int | None = None,
) -> list[dict[str, Any]]:
    """Every run in a JSON file of its own; what is there already is read, not run again."""
    require_known("set", names, SETS)
    require_known("variation", variations, VARIATIONS)
    require_known("path", paths, PATHS)
    results = []
    for name in names:
        for variation in variations:
            for path in paths:
                for seed in seeds:
                    short = "" if steps is None else f"-{steps}_steps"
                    file = f"ablation-{name}-{variation}-{path}-{seed}{short}.json".replace(" ", "_")
                    run = partial(run_ablation, name, variation, path, folder=folder, seed=seed, steps=steps)
                    results.append(kept(out / file, run))
    return results


def ablation_table(results: list[dict[str, Any]]) -> pd.DataFrame:
    """MASE of every variation (rows) on every set and path, means over the seeds."""
    return pd.DataFrame(results).pivot_table(index="variation", columns=["path", "set"], values="mase", sort=False)
