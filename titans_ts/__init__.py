"""Forecasters that keep learning: Titans neural memory for panels of time series.

Public names resolve on first use, so that importing the package costs milliseconds; torch alone costs seconds.

>>> import titans_ts
>>> titans_ts.__version__
'0.1.0'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from titans_ts.core.config import MemoryConfig
    from titans_ts.core.memory import NeuralMemory
    from titans_ts.forecasting.baselines import Ridge, SeasonalNaive
    from titans_ts.forecasting.forecaster import TitansForecaster
    from titans_ts.forecasting.panel import DataError
    from titans_ts.forecasting.training import TrainConfig
    from titans_ts.models.config import BackboneConfig

__version__ = "0.1.0"

__all__ = [
    "BackboneConfig",
    "DataError",
    "MemoryConfig",
    "NeuralMemory",
    "Ridge",
    "SeasonalNaive",
    "TitansForecaster",
    "TrainConfig",
    "__version__",
]

_HOME = {
    "BackboneConfig": "titans_ts.models.config",
    "DataError": "titans_ts.forecasting.panel",
    "MemoryConfig": "titans_ts.core.config",
    "NeuralMemory": "titans_ts.core.memory",
    "Ridge": "titans_ts.forecasting.baselines",
    "SeasonalNaive": "titans_ts.forecasting.baselines",
    "TitansForecaster": "titans_ts.forecasting.forecaster",
    "TrainConfig": "titans_ts.forecasting.training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value  # the next access is a plain look-up
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
