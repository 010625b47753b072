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

from ..forecasting.baselines import usual_context
from ..forecasting.clock import CountClock, season_length
from ..forecasting.panel import Float, Int, Panel

# PatchTST at the size that its authors have for ETT's hourly sets
SIZES: dict[str, dict[str, Any]] = {
    "PatchTST": {"encoder_layers": 3, "n_heads": 4, "hidden_size": 16, "linear_hidden_size": 128},
    "DLinear": {},
    "NLinear": {},
    "NHITS": {},
}
# One series a step: every step of neuralforecast unfolds all windows of the series that it draws. Of the learning rates
# 1e-4 (its default) and 1e-3, the better one on the validation rows of ETTh1 at context 96.
BUDGET = {"max_steps": 600, "learning_rate": 1e-3, "batch_size": 1, "windows_batch_size": 128}
# Of panels, where series differ in length and size: padded at the start, each window in units of its context. On the
# horizon before the last of M1 quarterly, M3 yearly and monthly tourism, NHITS at its default size has a MASE of 1.47,
# 3.32 and 1.87 after these 300 steps (16 to 19 CPU seconds), and of 1.48 and 3.46 on the first two with the scaler
# "standard"; 1,000 steps are worse on the first and better on the last (1.54, 1.81). PatchTST has 1.87, 3.38 and 3.08,
# after 1,000 steps 1.94 on the first and 2.45 on the last.
PANEL_BUDGET: dict[str, Any] = {"max_steps": 300, "learning_rate": 1e-3, "windows_batch_size": 256}
PANEL_BUDGET |= {"scaler_type": "robust", "start_padding_enabled": True}
MOST_SERIES, UNFOLDED = 32, 2**25  # series a step, and values in all the windows of theirs, at most
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


def train_peer(model: str, frame: pd.DataFrame, freq: str | int, levels: Sequence[float] | None, **options: Any) -> Any:
    """A forecaster of neuralforecast with one of `SIZES`, trained on a long frame without a word: with the quantile
    loss at these levels, or where there are none with the squared error."""
    NeuralForecast, models, losses = import_peers(model)
    loss = losses.MSE() if levels is None else losses.MQLoss(quantiles=list(levels))
    peer = getattr(models, model)(loss=loss, **SIZES[model], **SILENT, accelerator="cpu", devices=1, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forecaster = NeuralForecast([peer], freq=freq)
        forecaster.fit(frame, val_size=0)
    return forecaster


def fit_peer(model: str, rows: Float, context: int, horizon: int, seed: int, **changes: Any) -> Any:
    """One of `SIZES` trained on the rows [T, N]: a torch module of contexts `{"insample_y": [B, L, 1]}`.

    changes: to `BUDGET`, such as `max_steps`.
    """
    length, columns = rows.shape
    frame = pd.DataFrame(
        {
            "unique_id": np.repeat(np.arange(columns), length),
            "ds": np.tile(np.arange(length), columns),
            "y": rows.T.ravel().astype(np.float32),
        }
    )
    options = {"h": horizon, "input_size": context, "random_seed": seed, **BUDGET, **changes}
    return train_peer(model, frame, 1, None, **options).models[0].eval()


@torch.no_grad()
def say_peer(peer: Any, contexts: Float) -> Float:
    """Its forecasts [B, H] of contexts [B, L]."""
    seen = torch.from_numpy(contexts).float().unsqueeze(-1)
    none = dict.fromkeys(("futr_exog", "hist_exog", "stat_exog"))  # NHITS looks for them
    said: Float = peer({"insample_y": seen, "insample_mask": torch.ones_like(seen), **none})[..., 0].double().numpy()
    return said


def context_of(lengths: Int, season: int, horizon: int) -> int:
    """The context that the forecaster of this package takes by itself for series of these lengths [N].

    >>> context_of(np.array([40, 60]), season=12, horizon=8)
    27
    """
    offsets, ids = np.append(0, lengths.cumsum()), tuple(range(len(lengths)))
    clock = CountClock(timed=False)
    panel = Panel(np.zeros(offsets[-1]), offsets, ids, lengths - 1, np.zeros_like(lengths), clock)
    return max(4, usual_context(panel, season, horizon))


def masked(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with `available_mask`, 0 where nothing was observed; there stands the value before, or the next one.

    >>> frame = pd.DataFrame({"unique_id": 0, "ds": [1, 2, 3], "y": [np.nan, 1.0, np.nan]})
    >>> masked(frame)[["y", "available_mask"]].to_numpy().tolist()
    [[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]]
    """
    values = frame.groupby("unique_id", sort=False)["y"]
    filled = values.ffill().fillna(values.bfill()).fillna(0.0)
    return frame.assign(y=filled, available_mask=frame["y"].notna().astype(float))


class QuantilePeer:
    """One of `SIZES` for the series of a long frame, trained once with the quantile loss at `levels`.

    It has what the benchmarks call: `fit`, `update`, which moves the contexts on and learns nothing, and `predict`. The
    context is as long as that of the forecaster of this package where nobody says. Quantiles that cross are sorted.
    known: columns of numbers that are known ahead, for NHITS.
    """

    def __init__(
        self,
        model: str,
        horizon: int,
        freq: str,
        season: int | None,
        levels: Sequence[float],
        seed: int,
        known: tuple[str, ...] = (),
    ) -> None:
        self.model, self.horizon, self.freq, self.levels, self.known = model, horizon, freq, tuple(levels), known
        self.season_length_ = season_length(freq) if season is None else season
        self.seed = seed

    def fit(self, frame: pd.DataFrame) -> QuantilePeer:
        """Train on all rows."""
        frame = self._columns(frame)
        lengths = frame.groupby("unique_id").size().to_numpy()
        self.context_ = context_of(lengths, self.season_length_, self.horizon)
        unfolded = int(lengths.max()) * (self.context_ + self.horizon)
        options = {
            "h": self.horizon,
            "input_size": self.context_,
            "batch_size": max(1, min(MOST_SERIES, UNFOLDED // unfolded)),
            "random_seed": self.seed,
            **PANEL_BUDGET,
            **({"futr_exog_list": [*self.known]} if self.known else {}),
        }
        self.peer_ = train_peer(self.model, masked(frame), self.freq, self.levels, **options)
        self.recent_ = frame.groupby("unique_id").tail(self.context_)
        return self

    def update(self, frame: pd.DataFrame) -> QuantilePeer:
        """Take in the rows that follow."""
        rows = pd.concat([self.recent_, self._columns(frame)])
        self.recent_ = rows.groupby("unique_id").tail(self.context_)
        return self

    def predict(self, quantiles: Sequence[float], future: pd.DataFrame | None = None) -> pd.DataFrame:
        """The next horizon of every series: `unique_id`, `ds`, the median and the quantiles, which must be `levels`.

        future: `unique_id`, `ds` and the columns `known` of that horizon.
        """
        if tuple(quantiles) != self.levels:
            raise ValueError(f"quantiles={tuple(quantiles)} must be the levels that were trained: {self.levels}.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            recent = masked(self.recent_.sort_values(["unique_id", "ds"], ignore_index=True))
            said = self.peer_.predict(df=recent, **({"futr_df": future} if self.known else {}))
        values = np.sort(said.drop(columns=["unique_id", "ds"]).to_numpy(dtype=np.float64), axis=1)
        name = type(self).__name__
        columns = {f"{name}-ql{level:g}": values[:, place] for place, level in enumerate(self.levels)}
        return said[["unique_id", "ds"]].assign(**{name: values[:, self.levels.index(0.5)], **columns})

    def _columns(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The columns that it reads: neuralforecast takes every other one for a covariate."""
        return frame[["unique_id", "ds", "y", *self.known]]
