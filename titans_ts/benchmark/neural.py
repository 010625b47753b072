"""Neural peers of neuralforecast, at sizes and budgets that a CPU trains in minutes.

neuralforecast brings Lightning and Ray along; it is run from an environment of its own. Nothing is written to disk.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..forecasting.panel import Float

# PatchTST at the size that its authors have for ETT's hourly sets
SIZES: dict[str, dict[str, Any]] = {
    "PatchTST": {"encoder_layers": 3, "n_heads": 4, "hidden_size": 16, "linear_hidden_size": 128},
    "DLinear": {},
    "NLinear": {},
}
# One series a step: every step of neuralforecast unfolds all windows of the series that it draws. Of the learning rates
# 1e-4 (its default) and 1e-3, the better one on the validation rows of ETTh1 at context 96.
BUDGET = {"max_steps": 600, "learning_rate": 1e-3, "batch_size": 1, "windows_batch_size": 128}
SILENT = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def import_peers(model: str) -> tuple[Any, Any, Any]:
    """neuralforecast's forecaster, models and losses, or the error that says how to install it for `model`."""
    try:
        from neuralforecast import NeuralForecast, models
        from neuralforecast.losses import pytorch as losses
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{model} needs neuralforecast, which brings Lightning and Ray: pip install neuralforecast titans-ts in an "
            "environment of its own, and run this command there with the same --out."
        ) from error
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return NeuralForecast, models, losses


def frame_of(series: Sequence[Float]) -> pd.DataFrame:
    """Series [T] of any lengths as neuralforecast wants them, by number and step.

    >>> frame_of([np.zeros(2), np.ones(1)])["unique_id"].tolist()
    [0, 0, 1]
    """
    return pd.DataFrame(
        {
            "unique_id": np.repeat(np.arange(len(series)), [len(each) for each in series]),
            "ds": np.concatenate([np.arange(len(each)) for each in series]),
            "y": np.concatenate(series).astype(np.float32),
        }
    )


def fit_peer(model: str, rows: Float, context: int, horizon: int, seed: int, **changes: Any) -> Any:
    """One of `SIZES` trained on the rows [T, N]: a torch module of contexts `{"insample_y": [B, L, 1]}`.

    changes: to `BUDGET`, such as `max_steps`.
    """
    NeuralForecast, models, losses = import_peers(model)
    options = {**SIZES[model], **BUDGET, **SILENT, "accelerator": "cpu", "devices": 1, "random_seed": seed, **changes}
    peer = getattr(models, model)(h=horizon, input_size=context, loss=losses.MSE(), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forecaster = NeuralForecast([peer], freq=1)
        forecaster.fit(frame_of(list(rows.T)), val_size=0)
    return forecaster.models[0].eval()


@torch.no_grad()
def say_peer(peer: Any, contexts: Float) -> Float:
    """Its forecasts [B, H] of contexts [B, L]."""
    said: Float = peer({"insample_y": torch.from_numpy(contexts).float().unsqueeze(-1)})[..., 0].double().numpy()
    return said
