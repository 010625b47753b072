"""What other packages do with one observation of one series: it comes in, and a forecast of the whole horizon goes out.

Each is called as its documentation says and fitted once on the same history. A peer that is not installed is said to be
missing.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..forecasting.panel import Float

CONTEXT = 96  # steps that a model without a state of its own looks back
WIDTH = 64  # of the tokens of a memory that is no forecaster
# The other searches that AutoARIMA would make take a minute for 600 values of season 24.
ARIMA = {"max_p": 2, "max_q": 2, "max_P": 1, "max_Q": 0, "nmodels": 6, "approximation": True}

Step = Callable[[float], Any]  # the next value in, forecasts out


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamPeer:
    """A call of another package.

    make: a history [T], a horizon and a season, and `options`, to the step that is measured. learns, keeps: what an
    observation changes, and what is held between two. calls: so many are measured. forecasts: it gives the horizon.
    """

    package: str
    call: str
    learns: str
    keeps: str
    calls: int
    make: Callable[..., Step]
    options: dict[str, Any] = field(default_factory=dict)
    forecasts: bool = True


def river(history: Float, horizon: int, season: int, *, model: str, **settings: Any) -> Step:
    """A model of `river.time_series`, which learns from one value after the other."""
    from river import time_series

    learner = getattr(time_series, model)(**settings)
    for value in history:
        learner.learn_one(value)

    def step(value: float) -> Any:
        learner.learn_one(value)
        return learner.forecast(horizon=horizon)

    return step


def statsmodels(history: Float, horizon: int, season: int, *, model: str, way: str, **settings: Any) -> Step:
    """A state-space model of statsmodels; way: "extend" or "append"."""
    from statsmodels.tsa import api

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # twenty iterations need not converge
        held = getattr(api, model)(history, **settings).fit(disp=0, maxiter=20)

    def step(value: float) -> Any:
        nonlocal held
        held = getattr(held, way)([value])
        return held.forecast(horizon)

    return step


def statsforecast(history: Float, horizon: int, season: int, *, model: str, **settings: Any) -> Step:
    """A model of statsforecast, whose `forward` takes the parameters to a series that has become longer."""
    from statsforecast import models

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the search is cut short, as asked
        fitted, seen = getattr(models, model)(season_length=season, **settings).fit(history), history

    def step(value: float) -> Any:
        nonlocal seen
        seen = np.append(seen, value)
        return fitted.forward(y=seen, h=horizon)["mean"]

    return step


def prophet(history: Float, horizon: int, season: int) -> Step:
    """Prophet, which has no update."""
    from prophet import Prophet

    logging.getLogger("cmdstanpy").disabled = True  # it sets its level back
    seen = history

    def step(value: float) -> Any:
        nonlocal seen
        seen = np.append(seen, value)
        model = Prophet()
        model.fit(pd.DataFrame({"ds": pd.date_range("2020-01-01", periods=len(seen), freq="h"), "y": seen}))
        return model.predict(model.make_future_dataframe(horizon, freq="h", include_history=False))["yhat"]

    return step


def neuralforecast(history: Float, horizon: int, season: int, *, model: str) -> Step:
    """A model of neuralforecast, hardly trained, for its weights do not matter for the time."""
    from .neural import train_peer

    def frame(values: Float) -> pd.DataFrame:
        return pd.DataFrame({"unique_id": 0, "ds": np.arange(len(values)), "y": values})

    trained, seen = train_peer(model, frame(history), 1, None, h=horizon, input_size=CONTEXT, max_steps=3), history

    def step(value: float) -> Any:
        nonlocal seen
        seen = np.append(seen, value)[-CONTEXT:]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return trained.predict(df=frame(seen))[model]

    return step


def titans_pytorch(history: Float, horizon: int, season: int, *, chunk: int) -> Step:
    """The memory of titans-pytorch, one token in and out; it is no forecaster."""
    from titans_pytorch import NeuralMemory

    torch.manual_seed(0)
    memory, state, direction = NeuralMemory(dim=WIDTH, chunk_size=chunk).eval(), None, torch.randn(1, 1, WIDTH)

    @torch.no_grad()
    def step(value: float) -> Any:
        nonlocal state
        said, state = memory(value * direction, state=state)
        return said

    for value in history:
        step(value)
    return step


PEERS = (
    StreamPeer(
        package="river",
        call="HoltWinters: learn_one, forecast",
        learns="level, trend, season",
        keeps="a season",
        calls=4000,
        make=river,
        options={"model": "HoltWinters", "alpha": 0.3, "beta": 0.1, "gamma": 0.6, "seasonality": 24},
    ),
    StreamPeer(
        package="river",
        call="SNARIMAX(p=1, sp=3, m=24): learn_one, forecast",
        learns="weights of a linear model",
        keeps="three seasons",
        calls=4000,
        make=river,
        options={"model": "SNARIMAX", "p": 1, "d": 0, "q": 0, "m": 24, "sp": 3},
    ),
    StreamPeer(
        package="river",
        call="SNARIMAX(p=24, d=1, q=2, sp=2, sq=1, m=24): learn_one, forecast",
        learns="weights of a linear model",
        keeps="two seasons",
        calls=4000,
        make=river,
        options={"model": "SNARIMAX", "p": 24, "d": 1, "q": 2, "m": 24, "sp": 2, "sq": 1},
    ),
    StreamPeer(
        package="statsmodels",
        call="SARIMAX(1,0,1): extend, forecast",
        learns="the filter's state",
        keeps="the state",
        calls=400,
        make=statsmodels,
        options={"model": "SARIMAX", "way": "extend", "order": (1, 0, 1)},
    ),
    StreamPeer(
        package="statsmodels",
        call="SARIMAX(1,0,1): append, forecast",
        learns="the filter's state, from the start",
        keeps="the whole series",
        calls=400,
        make=statsmodels,
        options={"model": "SARIMAX", "way": "append", "order": (1, 0, 1)},
    ),
    StreamPeer(
        package="statsmodels",
        call="SARIMAX(2,1,1)(1,0,1,24): extend, forecast",
        learns="the filter's state",
        keeps="the state",
        calls=200,
        make=statsmodels,
        options={"model": "SARIMAX", "way": "extend", "order": (2, 1, 1), "seasonal_order": (1, 0, 1, 24)},
    ),
    StreamPeer(
        package="statsmodels",
        call="SARIMAX(2,1,1)(1,0,1,24): append, forecast",
        learns="the filter's state, from the start",
        keeps="the whole series",
        calls=40,
        make=statsmodels,
        options={"model": "SARIMAX", "way": "append", "order": (2, 1, 1), "seasonal_order": (1, 0, 1, 24)},
    ),
    StreamPeer(
        package="statsmodels",
        call="UnobservedComponents(level, season 24): extend, forecast",
        learns="the filter's state",
        keeps="the state",
        calls=200,
        make=statsmodels,
        options={"model": "UnobservedComponents", "way": "extend", "level": "local level", "seasonal": 24},
    ),
    StreamPeer(
        package="statsforecast",
        call="AutoETS: forward",
        learns="level, season, from the start",
        keeps="the whole series",
        calls=400,
        make=statsforecast,
        options={"model": "AutoETS"},
    ),
    StreamPeer(
        package="statsforecast",
        call="AutoTheta: forward",
        learns="level, from the start",
        keeps="the whole series",
        calls=400,
        make=statsforecast,
        options={"model": "AutoTheta"},
    ),
    StreamPeer(
        package="statsforecast",
        call="AutoARIMA: forward",
        learns="the filter's state, from the start",
        keeps="the whole series",
        calls=200,
        make=statsforecast,
        options={"model": "AutoARIMA", **ARIMA},
    ),
    StreamPeer(
        package="prophet",
        call="fit, predict",
        learns="everything, from the start",
        keeps="the whole series",
        calls=20,
        make=prophet,
    ),
    StreamPeer(
        package="neuralforecast",
        call="NHITS: predict of new rows",
        learns="nothing",
        keeps=f"{CONTEXT} values",
        calls=100,
        make=neuralforecast,
        options={"model": "NHITS"},
    ),
    StreamPeer(
        package="titans-pytorch",
        call=f"NeuralMemory, chunk_size=1: a token of width {WIDTH}, no forecast",
        learns="the memory",
        keeps="its weights",
        calls=400,
        make=titans_pytorch,
        options={"chunk": 1},
        forecasts=False,
    ),
    StreamPeer(
        package="titans-pytorch",
        call=f"NeuralMemory, chunk_size=16: a token of width {WIDTH}, no forecast",
        learns="the memory, every 16 tokens",
        keeps="its weights",
        calls=400,
        make=titans_pytorch,
        options={"chunk": 16},
        forecasts=False,
    ),
)


def installed_version(package: str) -> str | None:
    """The version of a package that is installed here, or None.

    >>> installed_version("no such package") is None
    True
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def prepared(peer: StreamPeer, history: Float, horizon: int, season: int) -> Step:
    """Its step after the history [T]; `RuntimeError` where a call gives something else than it says: a step that does
    not forecast would be fast."""
    step = peer.make(history, horizon, season, **peer.options)
    said = np.asarray(step(float(history[-season])), dtype=np.float64)
    wanted = horizon if peer.forecasts else WIDTH
    if said.size != wanted or not np.isfinite(said).all():
        raise RuntimeError(f"{peer.package}, {peer.call}: gave {said!r}, and not {wanted} finite numbers.")
    return step
