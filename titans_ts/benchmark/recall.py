"""Does the memory remember? A pattern that each series has shown once, far back, is to be forecast.

The test series (`secret_patterns`) show cue and secret, then at least `DISTANCE` patches of noise, then the cue again:
what follows can be known from the memory only. A forecaster is trained on other series, whose secrets recur after
shorter gaps (`recurring_secrets`), reads the histories of the test series, and is interrupted right before the last
cue: its memories are left alone, emptied, or exchanged between the series. One configuration for all wirings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..core.config import MemoryConfig, require
from ..data.synthetic import recurring_secrets, secret_patterns
from ..forecasting.door import read
from ..forecasting.forecaster import TitansForecaster
from ..forecasting.inference import advance
from ..forecasting.training import TrainConfig
from ..models.config import VARIANTS, BackboneConfig, Variant
from ..models.timeseries import SeriesState, replace_memories

PATCH, CONTEXT, DISTANCE, NOISE = 8, 16, 20, 0.5
TRAIN_SERIES, TEST_SERIES, PATCHES = 4000, 256, 32
STEPS = 600
BACKBONE = BackboneConfig(
    dim=64,
    depth=1,
    memory=MemoryConfig(dim=64, heads=2, depth=1, chunk=16, persistent=2, normalize=False),
    heads=2,
    window=2,
    segment=8,
    dropout=0.0,
    residual_init=1.0,
)


def reach(config: BackboneConfig, context: int, patch: int) -> int:
    """How many patches back anything but the memory can see: convolution, attention and head, one after the other.

    >>> reach(BACKBONE, context=16, patch=8) < DISTANCE
    True
    """
    attention = {"lmm": 0, "mac": config.segment - 1, "mag": config.window - 1, "mal": config.window - 1}
    block = config.memory.conv - 1 + attention[config.variant]
    return config.depth * block + -(-context // patch)


def scramble(leaf: torch.Tensor) -> torch.Tensor:
    """Every row gets that of the row before it.

    >>> scramble(torch.tensor([1, 2, 3])).tolist()
    [3, 1, 2]
    """
    return leaf.roll(1, 0)


def recall_errors(variant: Variant, *, seed: int = 0, steps: int | None = None, **memory: Any) -> dict[str, Any]:
    """Mean squared errors of one wiring: with its memory, with an empty one, with another series', and never written.

    memory: changes of the memory's configuration, such as `depth=2`.

    >>> recall_errors("lmm", steps=1)["reach"]
    5
    """
    backbone = replace(BACKBONE, variant=variant, memory=replace(BACKBONE.memory, **memory))
    far = reach(backbone, CONTEXT, PATCH)
    require(far < DISTANCE, f"the wiring sees {far} patches back without its memory; the secret is {DISTANCE} away.")
    torch.set_num_threads(1)
    began = time.process_time()
    forecaster = TitansForecaster(
        horizon=PATCH,
        context_length=CONTEXT,
        patch_length=PATCH,
        quantiles=(0.1, 0.5, 0.9),
        model=backbone,
        train=TrainConfig(
            linear=False,
            fading=False,
            steps=steps or STEPS,
            sequence=PATCH * PATCHES / CONTEXT,
            learning_rate=4e-3,
            average=0.98,
            validation=0,
            checks=1,
        ),
        random_state=seed,
    ).fit(recurring_secrets(TRAIN_SERIES, PATCH, PATCHES, noise=NOISE, seed=seed))
    cpu = time.process_time() - began

    test = secret_patterns(TEST_SERIES, PATCH, DISTANCE, NOISE, seed=10_000 + seed)
    panel, _, _ = read(
        test,
        freq="h",
        id_col="unique_id",
        time_col="ds",
        target_col="y",
        on_gap="raise",
        on_duplicate="raise",
        on_bad="raise",
    )
    history, cue = panel.drop_tail(2 * PATCH), panel.drop_tail(PATCH).tail(PATCH)
    secret = panel.tail(PATCH).values.reshape(-1, PATCH)
    start = forecaster._start(history)
    state = start.series

    def error(state: SeriesState) -> float:
        rows = np.arange(len(panel))
        said = forecaster._forecast(forecaster._advance(start._replace(series=state), rows, cue), rows)
        return float(np.square(said.point - secret).mean())

    def changed(change: Callable[[torch.Tensor], torch.Tensor]) -> SeriesState:
        return replace_memories(state, change)

    never = advance(forecaster.model_, forecaster.model_.initial_state(len(panel)), history, adapt=False)
    return {
        "variant": variant,
        **memory,
        "with memory": round(error(state), 4),
        "emptied": round(error(changed(torch.zeros_like)), 4),
        "exchanged": round(error(changed(scramble)), 4),
        "never written": round(error(never), 4),
        "variance": round(float(secret.var()), 4),
        "reach": far,
        "distance": DISTANCE,
        "seed": seed,
        "fit_cpu_s": round(cpu, 1),
    }


def recall_table(variants: Sequence[Variant] = VARIANTS, *, seed: int = 0, **memory: Any) -> pd.DataFrame:
    """`recall_errors` of several wirings, a row each.

    >>> recall_table([]).empty
    True
    """
    return pd.DataFrame([recall_errors(variant, seed=seed, **memory) for variant in variants])
