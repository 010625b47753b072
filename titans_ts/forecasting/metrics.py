"""Numbers that say how good forecasts are: thin over utilsforecast, in its column names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from utilsforecast.losses import coverage, mase, scaled_crps

from .panel import Float


def weighted_quantile_loss(y: Float, quantiles: Float, levels: Sequence[float]) -> float:
    """The scaled CRPS of a whole panel: twice the quantile loss over `levels`, divided by `|y|`.

    `y` is `[R]`, `quantiles` `[R, Q]`. Losses and sizes are summed over the panel before they are divided; rows
    without a `y` do not count.

    >>> weighted_quantile_loss(np.array([1.0, 3.0]), np.array([[2.0], [2.0]]), [0.5])
    0.5
    """
    if not len(levels):
        raise ValueError("this forecaster has no quantiles to score: fit with quantiles=(0.1, ..., 0.9)")
    seen = np.isfinite(y)
    if not seen.any():
        raise ValueError("no row to score has a value: pass rows with observed targets")
    names = [f"q{place}" for place in range(len(levels))]
    frame = pd.DataFrame(quantiles[seen], columns=names).assign(unique_id=0, y=y[seen])
    return float(scaled_crps(frame, {"loss": names}, np.asarray(levels, dtype=np.float64))["loss"].iloc[0])


def crps(forecasts: Any, models: Sequence[str], *, id_col: str = "unique_id", target_col: str = "y") -> pd.Series:
    """The weighted quantile loss of every model whose `<model>-ql<level>` columns stand in the frame beside `y`."""
    frame = pd.DataFrame(forecasts)
    y = frame[target_col].to_numpy(dtype=np.float64)
    result = {}
    for model in models:
        columns = [column for column in frame.columns if str(column).startswith(f"{model}-ql")]
        levels = [float(column.removeprefix(f"{model}-ql")) for column in columns]
        if not columns:
            raise ValueError(
                f"model {model!r} has no quantile columns: predict(quantiles=...) gives {model}-ql0.1 and so on"
            )
        result[model] = weighted_quantile_loss(y, frame[columns].to_numpy(dtype=np.float64), levels)
    return pd.Series(result, name="crps")


def evaluate(
    forecasts: pd.DataFrame,
    train: pd.DataFrame,
    models: Sequence[str],
    *,
    season_length: int,
    level: Sequence[int] = (),
    id_col: str = "unique_id",
    time_col: str = "ds",
    target_col: str = "y",
) -> pd.DataFrame:
    """One row a model: MASE (mean over the series), CRPS where quantiles stand in the frame, coverage of each interval.

    `forecasts` is a long frame with `y` and the models' columns, `train` the long frame of the past that scales MASE.
    Rows without a `y` do not count; a series whose past never moves over a season has no MASE and is left out of its
    mean.
    """
    models = list(models)
    names = {"id_col": id_col, "target_col": target_col}
    seen = forecasts[forecasts[target_col].notna()]
    past = train.sort_values([id_col, time_col])
    scaled = mase(seen, models, seasonality=season_length, train_df=past, time_col=time_col, **names)[models]
    table = {"mase": scaled.where(np.isfinite(scaled)).mean()}
    quantiled = [model for model in models if any(str(column).startswith(f"{model}-ql") for column in seen.columns)]
    if quantiled:
        table["crps"] = crps(seen, quantiled, **names)
    for width in level:
        covered = [model for model in models if f"{model}-lo-{width}" in seen.columns]
        table[f"coverage-{width}"] = coverage(seen, covered, width, **names)[covered].mean()
    return pd.DataFrame(table).reindex(models).rename_axis("model")
