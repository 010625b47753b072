"""Fading memories: level, trend and season of every series, at many rates of forgetting, averaged by what they were
worth. They reach back over a whole series with a handful of numbers, which is what a short series can teach.

Axes: N series, W windows, K rates, M steps of a season, S sets of weights, F future step.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from .panel import Float, Int, Panel
from .windows import series_scales

LEVEL_RATES = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
# (rate, what is left of the trend after each step): none, damped ones, and straight lines
TRENDS = ((0.0, 1.0), (0.05, 0.95), (0.2, 0.9), (0.02, 1.0), (0.05, 1.0), (0.2, 1.0))
SEASON_RATES = (0.02, 0.1, 0.3, 0.6)
LONGEST = 512  # steps of a season that is remembered, at most: sixteen memories of one are 66 KB a series
KEPT = 16  # rates that go on after `fit`: the others had next to no weight
POOLED = 20.0  # origins of an average series that the errors of every series are mixed with
WORST = 10.0  # what an error relative to the best one's counts at most, so that no single series decides for all
SHARPNESS = 40.0  # a rate whose error is a hundredth larger than the best one's has two thirds of its weight

NOTHING = (0.0, 0.0, 0.0, np.inf, -np.inf)  # what is known of a stranger: no value, and so no mean and no edges


class FadingState(NamedTuple):
    """What the memories hold of every series; see `core.ops.fading`. own: which set of weights a series has, 0 for
    strangers."""

    members: Float64[Tensor, "N K 2+M"]
    recent: Float64[Tensor, "N M"]
    counts: Int64[Tensor, "N 3+M"]
    surprise: Float64[Tensor, " N"]
    edges: Float64[Tensor, "N 2"]
    stood: Int64[Tensor, "N 2"]
    usual: Float64[Tensor, "N 2"]
    own: Int64[Tensor, " N"]


@dataclass(frozen=True, eq=False)
class Fading:
    """Rates `[K, 4]` of forgetting and their weights `[S, K]`: set 0 for strangers, set `1 + i` for series `ids[i]`.

    known `[S, 5]`: mean and variance of the values that the rates were chosen on, how many they were, and the least and
    the greatest one.
    """

    rates: Float
    weights: Float
    season: int
    ids: tuple[Hashable, ...]
    known: Float

    @cached_property
    def places(self) -> dict[Hashable, int]:
        """The set of weights of every series that has one of its own."""
        return {name: place for place, name in enumerate(self.ids, 1)}

    def start(self, ids: Sequence[Hashable], device: torch.device | None = None) -> FadingState:
        """The memories of these series before their first value."""
        count, season = len(ids), self.season
        zero = torch.zeros(count, len(self.rates), 2 + season, dtype=torch.float64, device=device)
        own = torch.tensor([self.places.get(name, 0) for name in ids], dtype=torch.int64, device=device)
        steps = torch.zeros(count, 3 + season, dtype=torch.int64, device=device)
        edges = zero.new_tensor([torch.inf, -torch.inf]).repeat(count, 1)
        recent, surprise = zero.new_full((count, season), torch.nan), zero.new_zeros(count)
        usual = zero.new_zeros(count, 2)
        return FadingState(zero, recent, steps, surprise, edges, steps.new_zeros(count, 2), usual, own)

    def absorb(self, state: FadingState, new: Panel) -> FadingState:
        """The memories after the rows of `new`, whose series i is row i: time grows with the new rows only."""
        from ..core.ops.fading import take_in_rows

        *held, own = (part.cpu().numpy().copy() for part in state)
        values = np.ascontiguousarray(new.values, dtype=np.float64)
        take_in_rows(values, new.offsets, self.rates, self.weights, own, self.known, *held)
        device = state.own.device
        return FadingState(*(torch.from_numpy(part).to(device) for part in (*held, own)))

    def ahead(self, state: FadingState, horizon: int) -> tuple[Float, Float, Float]:
        """Forecasts `[N, F]`, NaN for a series without a value, how ripe they are `[N]`: 0 up to two seasons of values,
        where a season is no more than its first reading, and 1 from eight on; and what the series does not go below and
        not above `[N, 2]`: a least or greatest value at which it stood often, else an infinity."""
        from ..core.ops.fading import look_ahead_rows

        members, _, counts, _, edges, stood, _, own = (part.cpu().numpy() for part in state)
        out, ripe, bounds = np.empty((len(own), horizon)), np.empty(len(own)), np.empty((len(own), 2))
        look_ahead_rows(self.rates, self.weights, own, members, counts, edges, stood, self.known, out, ripe, bounds)
        return out, ripe, bounds

    def usual(self, state: FadingState) -> Float:
        """The mean of all values of every series and their variance `[N, 2]`, NaN where there are none. Where a state
        has seen fewer of them than `fit`, those of then stand in for the others: a bare context is not all that is
        known of a series. Not where they lie far away: then they are in other units, or of another series with the same
        id."""
        from ..core.ops.fading import usual_rows

        *_, usual, own = (part.cpu().numpy() for part in state)
        out = np.empty((len(own), 2))
        usual_rows(state.counts.cpu().numpy(), usual, self.known, own, out)
        return out

    def at(self, panel: Panel, series: Int, origins: Int, horizon: int) -> tuple[Float, Float, Float, Float]:
        """Forecasts `[W, F]` of these series after `origins` steps, how ripe they are `[W]`, their mean surprise then
        `[W]`, and what they do not go beyond `[W, 2]`."""
        from ..core.ops.fading import forecasts_at

        order = np.lexsort((origins, series))
        out, bounds = np.empty((len(series), horizon)), np.empty((len(series), 2))
        surprises, ripe = np.empty(len(series)), np.empty(len(series))
        own = np.array([self.places.get(name, 0) for name in panel.ids], dtype=np.int64)
        values = np.ascontiguousarray(panel.values, dtype=np.float64)
        forecasts_at(
            values, panel.offsets, self.rates, self.weights, own, self.known, self.season,
            np.asarray(series)[order], np.asarray(origins)[order], out, surprises, ripe, bounds,
        )  # fmt: skip
        back = np.argsort(order)
        return out[back], ripe[back], surprises[back], bounds[back]


def fit_fading(panel: Panel, horizon: int, season: int, ends: Int | None = None) -> Fading:
    """The rates that forecast the rows before `ends[i]` (an exclusive row of series i; None: everywhere) best.

    Every rate forecasts from origins all along each series, seeing only what came before; its weight in a series falls
    with its mean absolute error there, which is mixed with that in all series. Errors count relative to those of the
    best rate in the series, so that scale does not decide, and those in all series as often as the weight of each says.
    A season of more than `LONGEST` steps is not remembered.

    >>> from titans_ts.forecasting.clock import CountClock
    >>> steps = np.arange(100)
    >>> panel = Panel(5.0 + 2.0 * steps, np.array([0, 100]), ("line",), steps[-1:], steps[:1], CountClock())
    >>> fading = fit_fading(panel, horizon=3, season=1)
    >>> fading.ahead(fading.absorb(fading.start(panel.ids), panel), 3)[0].round(6).tolist()
    [[205.0, 207.0, 209.0]]
    """
    from ..core.ops.fading import errors_of_rates

    season = season if season <= LONGEST else 1
    ends = panel.lengths if ends is None else np.minimum(ends, panel.lengths)
    rates = np.array(
        [
            (level, *trend, gamma)
            for level in LEVEL_RATES
            for trend in TRENDS
            for gamma in (SEASON_RATES if season > 1 else (0.0,))
        ]
    )
    errors, counted = np.zeros((len(panel), len(rates))), np.zeros(len(panel), dtype=np.int64)
    values = np.ascontiguousarray(panel.values, dtype=np.float64)
    errors_of_rates(values, panel.offsets, ends, rates, season, horizon, errors, counted)
    tried = counted > 0
    mean = errors / np.maximum(counted, 1)[:, None]
    best = mean.min(1, keepdims=True)
    noise = 1e-9 * series_scales(panel, ends)[:, None]  # errors below it are rounding
    mean = np.minimum((mean + noise) / (best + noise), WORST)
    average = np.average(mean[tried], axis=0, weights=panel.shares[tried]) if tried.any() else np.ones(len(rates))
    mixed = (counted[:, None] * mean + POOLED * average) / (counted[:, None] + POOLED)
    mixed = np.concatenate([average[None], mixed])
    weights = (mixed.min(1, keepdims=True) / mixed) ** SHARPNESS
    weights /= weights.sum(1, keepdims=True)
    worth = (np.append(1.0, panel.shares)[:, None] * weights).sum(0)
    kept = np.sort(np.argsort(-worth, kind="stable")[:KEPT])
    weights = np.ascontiguousarray(weights[:, kept])
    known = np.tile(NOTHING, (1 + len(panel), 1))
    for row, end in enumerate(ends.tolist()):
        seen = panel.series(row)[:end]
        seen = seen[np.isfinite(seen)]
        if len(seen):
            known[1 + row, 2:] = len(seen), seen.min(), seen.max()
    known[1:, :2] = np.nan_to_num(panel.usual_before(np.arange(len(panel)), ends))
    return Fading(rates[kept], weights / weights.sum(1, keepdims=True), season, panel.ids, known)
