"""Forecasts as arrays, and any quantile from the trained ones. Axes: N series, H horizon, Q quantile levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from .panel import Float

NEAR = 1e-9  # steps by which a value may miss its place and still be there


class Grid(NamedTuple):
    """Where the values of each series can lie: at `base` and whole steps of `step` from it, `[N]` each, and anywhere
    where the step is 0. lift `[N]`: added, in steps, before what is beyond a whole step is cut off."""

    step: Float
    base: Float
    lift: Float

    def moved(self, values: Float, least: float = -math.inf) -> Float:
        """Values `[N, ...]` at the next place below, or above where the lift reaches it, and never below `least`.

        >>> Grid(np.array([1.0]), np.array([0.0]), np.array([0.5])).moved(np.array([[0.4, 0.6]])).tolist()
        [[0.0, 1.0]]
        """
        step, base, lift = (part.reshape(-1, *(1,) * (values.ndim - 1)) for part in self)
        whole = np.where(step > 0, step, 1.0)
        lowest = np.ceil((least - base) / whole - NEAR)
        there = base + whole * np.maximum(np.floor((values - base) / whole + lift + NEAR), lowest)
        return np.where(step > 0, there, np.maximum(values, least))


class Forecast(NamedTuple):
    """Point forecasts `[N, H]` and quantiles `[N, H, Q]` at increasing `levels`.

    least: what nothing falls below. grid: where values can lie; None: anywhere. Quantiles and paths are cut and moved
    there when they are read off (`quantiles_at`), and not before, so that between two levels they are what they would
    be without. tails: how many times as far as the normal curve quantiles lie beyond the lowest and the highest level.
    """

    point: Float
    quantiles: Float
    levels: tuple[float, ...]
    least: float = -math.inf
    tails: tuple[float, float] = (1.0, 1.0)
    grid: Grid | None = None

    def settled(self, values: Float) -> Float:
        """Values `[N, ...]` of what is forecast, on the grid and not below `least`."""
        return np.maximum(values, self.least) if self.grid is None else self.grid.moved(values, self.least)

    def cut(self) -> Forecast:
        """The same forecast with nothing below `least`, and quantiles on the grid.

        >>> Forecast(np.array([[-1.0]]), np.array([[[-2.0, 3.0]]]), (0.1, 0.9), least=0.0).cut().quantiles.tolist()
        [[[0.0, 3.0]]]
        """
        return self._replace(point=np.maximum(self.point, self.least), quantiles=self.settled(self.quantiles))


def quantiles_at(forecast: Forecast, levels: Sequence[float]) -> Float:
    """The quantiles at any levels, `[N, H, len(levels)]`, never crossing, on `forecast.grid`, not below
    `forecast.least`.

    Between two trained levels a quantile is linear in the normal score of its level; beyond the outermost two it goes
    on along their line, `forecast.tails` times as far. For a Gaussian forecast that is exact at every level.

    >>> normal = Forecast(np.zeros((1, 1)), np.array([[[-1.2816, 0.0, 1.2816]]]), (0.1, 0.5, 0.9))
    >>> quantiles_at(normal, [0.025, 0.5, 0.975]).round(2).tolist()
    [[[-1.96, 0.0, 1.96]]]
    """
    if not all(0 < level < 1 for level in levels):
        raise ValueError(f"quantile levels must lie between 0 and 1, got {list(levels)}")
    if not forecast.levels:
        raise ValueError("this forecast has no quantiles: fit with quantiles=(0.1, 0.5, 0.9) or more")
    score = NormalDist().inv_cdf
    trained = np.array([score(level) for level in forecast.levels])
    wanted = stretched(np.array([score(level) for level in levels]), trained, forecast.tails)
    values = np.sort(forecast.quantiles, axis=-1)  # a model's quantiles may cross; in order they are a better forecast
    if len(trained) == 1:
        if not np.allclose(wanted, trained[0], atol=1e-9):
            raise ValueError(
                f"quantiles {list(levels)} cannot be told from the only trained one, {forecast.levels[0]:g}: fit with "
                "quantiles=(0.1, 0.5, 0.9) or more"
            )
        return forecast.settled(np.repeat(values, len(wanted), axis=-1))
    left = np.clip(np.searchsorted(trained, wanted, side="right") - 1, 0, len(trained) - 2)
    weight = (wanted - trained[left]) / (trained[left + 1] - trained[left])
    # exact at the trained levels, where rounding must not move what the model said
    weight = np.where(np.abs(weight - np.round(weight)) < 1e-9, np.round(weight), weight)
    return forecast.settled(values[..., left] * (1 - weight) + values[..., left + 1] * weight)


def stretched(scores: Float, trained: Float, tails: tuple[float, float]) -> Float:
    """Normal scores, of which those beyond the lowest and the highest trained one lie so many times as far from it.

    >>> stretched(np.array([-3.0, 0.5, 3.0]), np.array([-1.0, 1.0]), (1.0, 2.0)).tolist()
    [-3.0, 0.5, 5.0]
    """
    below, above = np.minimum(scores - trained[0], 0.0), np.maximum(scores - trained[-1], 0.0)
    return scores + (tails[0] - 1) * below + (tails[1] - 1) * above


def scores_of(truth: Float, quantiles: Float, levels: Sequence[float]) -> Float:
    """The normal scores `[W, H]` of truths `[W, H]` under forecasts `[W, H, Q]`, at most 8 in size.

    The inverse of `quantiles_at` (there is nothing between two quantiles that coincide).

    >>> scores_of(np.array([[0.5]]), np.array([[[-1.2816, 0.0, 1.2816]]]), (0.1, 0.5, 0.9)).round(2)
    array([[0.5]])
    """
    trained = np.array([NormalDist().inv_cdf(level) for level in levels])
    values = np.sort(quantiles, axis=-1)
    left = np.clip((values <= truth[..., None]).sum(axis=-1) - 1, 0, len(trained) - 2)
    low, high = (np.take_along_axis(values, (left + more)[..., None], axis=-1)[..., 0] for more in (0, 1))
    flat = high <= low
    share = (truth - low) / np.where(flat, 1.0, high - low)
    inside = trained[left] + share * (trained[left + 1] - trained[left])
    return np.clip(np.where(flat, 8.0 * np.sign(truth - low), inside), -8.0, 8.0)


def values_at(
    quantiles: Float, levels: Sequence[float], scores: Float, tails: tuple[float, float] = (1.0, 1.0)
) -> Float:
    """The values `[S, H]` at normal scores `[S, H]` of one forecast `[H, Q]`: `quantiles_at`, at a level of its own for
    each.

    >>> values_at(np.array([[-1.2816, 0.0, 1.2816]]), (0.1, 0.5, 0.9), np.array([[0.5], [-3.0]])).round(2).tolist()
    [[0.5], [-3.0]]
    """
    trained = np.array([NormalDist().inv_cdf(level) for level in levels])
    values, scores = np.sort(quantiles, axis=-1), stretched(scores, trained, tails)
    left = np.clip(np.searchsorted(trained, scores, side="right") - 1, 0, len(trained) - 2)
    share = (scores - trained[left]) / (trained[left + 1] - trained[left])
    step = np.arange(len(values))
    result: Float = values[step, left] * (1 - share) + values[step, left + 1] * share
    return result


def interval_levels(level: float) -> tuple[float, float]:
    """The two quantile levels of a central interval of `level` per cent.

    >>> interval_levels(80)
    (0.1, 0.9)
    """
    if not 0 < level < 100:
        raise ValueError(f"level={level} must lie between 0 and 100 per cent")
    tail = round((100 - level) / 200, 12)
    return tail, round(1 - tail, 12)
