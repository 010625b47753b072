"""Memories with a constant key and fixed gates: level, trend and season of a series, each with a rate of forgetting.

It is the update rule of the neural memory where it is smallest. The key of the level is always 1, that of the season is
the place in it, the trend is the momentum; what moves them is the surprise. As long as a memory has seen little, its
rate is one over what it has seen, so that it begins as a plain mean and no value is looked ahead for.

Compiled without leave to reorder sums: a stream and a batch are the same numbers, bit for bit.

K rates (alpha of the level, beta of the trend, how much of the trend is left after a step, gamma of the season),
M steps of a season, F future step. Of one series: members [K, 2 + M] are level, trend and season; recent [M] the values
of the last season, NaN where missing; counts [3 + M] are steps, observations, changes seen over a season, and
observations at every place of the season; edges [2] are the least and the greatest value so far, stood [2] how often it
stood at each; usual [2] are the mean of all values and their variance, see `accustom`.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar, no_type_check

import numpy as np

from ..config import LOST
from .jit import kept

F = TypeVar("F", bound=Callable[..., Any])

SURPRISE_RATE = 0.05  # at which the mean surprise forgets
YOUNG, RIPE = 2.0, 8.0  # seasons of values, up to which a memory counts nothing, and from which on in full
ORIGINS = 256  # of one series, at most, at which rates are tried
# of its values, and at least so many, at which a series stood at its least or greatest one if it cannot go beyond:
# empty shelves, nights without sun, air that holds no more water
HELD, HELD_TIMES = 0.1, 10
INSIDE = 1e-6  # of what lies between two edges, by which a value may lie beyond and be one of them: it was rounded
FAR = 20.0  # deviations from the usual, further than which no value moves it: one of a million is a fault
FIRST = 8  # values that are taken as they are, before there is a deviation to speak of
SPAN = 2**16  # values after which the usual forgets
NEAR = 5.0  # deviations from the usual up to which it says all it can, and twice as many from which on nothing


def strict(function: F) -> F:
    """The function, compiled when it is first called and kept on disk; its sums stay in their order.

    >>> strict(strict).__name__
    'strict'
    """
    return kept(function, error_model="numpy")


@strict
@no_type_check
def take_in(value, rates, weights, known, members, recent, counts, surprise, edges, stood, usual):
    """One value of one series, NaN where missing: levels and trends move on, and learn from what was observed.

    known: how many values `fit` saw of it. surprise [1]: the mean distance of the values from their weighted forecast a
    step before.
    """
    season, seen, changes = len(recent), counts[1], counts[2]
    place = counts[0] % season
    missing, before = math.isnan(value), recent[place]
    changed = not missing and not math.isnan(before)
    said = 0.0
    for k in range(len(rates)):
        trend = rates[k, 2] * members[k, 1]
        ahead, seasonal = members[k, 0] + trend, members[k, 2 + place]
        said += weights[k] * (ahead + seasonal)
        if not missing:
            ahead += max(rates[k, 0], 1.0 / (seen + 1)) * (value - ahead - seasonal)
            if rates[k, 1] > 0 and changed:
                trend += max(rates[k, 1], 1.0 / (changes + 1)) * ((value - before) / season - trend)
            if season > 1:
                rate = max(rates[k, 3], 1.0 / (counts[3 + place] + 1))
                members[k, 2 + place] += rate * (value - ahead - seasonal)
        members[k, 0], members[k, 1] = ahead, trend
    recent[place] = value
    counts[0] += 1
    if missing:
        return
    if seen:
        surprise[0] += max(SURPRISE_RATE, 1.0 / seen) * (abs(value - said) - surprise[0])
    counts[1] += 1
    accustom(value, counts[1], known, usual)
    counts[2] += changed
    counts[3 + place] += 1
    for side in range(2):
        beyond = value > edges[1] if side else value < edges[0]
        stood[side] = 1 if beyond else stood[side] + (value == edges[side])
        edges[side] = value if beyond else edges[side]


@strict
@no_type_check
def accustom(value, count, known, usual):
    """usual [2], the mean of all values of a series and their variance, after one value more, the `count`-th of them. A
    value further away than `FAR` deviations counts as one that lies so far.

    known: how many values the variance is of, all if 0. Where a series leaves its level after `fit` it does not follow,
    so that the old level is far away."""
    if count == 1:
        usual[0], usual[1] = value, 0.0
        return
    away, most, rate = value - usual[0], FAR * math.sqrt(usual[1]), 1.0 / min(count, SPAN)
    if count > FIRST and most > 0:
        away = min(max(away, -most), most)
    usual[0] += rate * away
    if known == 0 or count <= known:
        usual[1] += rate * ((1.0 - rate) * away * away - usual[1])


@strict
@no_type_check
def nearness(distance, variance):
    """1 up to `NEAR` deviations, falling to 0 at twice that."""
    if variance <= 0:
        return 1.0 if distance == 0 else 0.0
    return min(max(2.0 - abs(distance) / (NEAR * math.sqrt(variance)), 0.0), 1.0)


@strict
@no_type_check
def apart(mean, variance, centre):
    """How far the mean of all values, which have this variance, lies from the centre of a window: nothing where it lies
    so far away that the series has left it for good."""
    return (mean - centre) * nearness(mean - centre, variance)


@strict
@no_type_check
def usual_of(count, usual, known):
    """Mean and variance of all values of one series, of which `count` were seen. Where they are fewer than are known
    from elsewhere, those stand in for what is missing, unless what was seen lies elsewhere: it is in other units, or of
    another series. known [5]: mean, variance, number, least and greatest of those values. NaN where none is known."""
    if count == 0:
        return (known[0], known[1]) if known[2] > 0 else (math.nan, math.nan)
    mean, variance = usual[0], usual[1]
    if count >= known[2]:
        return mean, variance
    share = (1.0 - count / known[2]) * nearness(mean - known[0], known[1])
    return mean + share * (known[0] - mean), variance + share * (known[1] - variance)


@strict
@no_type_check
def usual_rows(counts, usual, known, own, out):
    """out [N, 2] = `usual_of` of some series."""
    for i in range(len(own)):
        out[i, 0], out[i, 1] = usual_of(counts[i, 1], usual[i], known[own[i]])


@strict
@no_type_check
def usual_before(values, offsets, out):
    """out [T + N, 2] = what is usual before every row of every series and after its last one; NaN before any value."""
    usual = np.zeros(2)
    for i in range(len(offsets) - 1):
        count, place = 0, offsets[i] + i
        usual[:] = math.nan
        out[place] = usual
        for t in range(offsets[i], offsets[i + 1]):
            if not math.isnan(values[t]):
                count += 1
                accustom(values[t], count, 0, usual)
            place += 1
            out[place] = usual


@strict
@no_type_check
def apart_rows(usual, centres, out):
    """out [W] = `apart` of some windows, 0 where nothing is usual or the centre is unknown."""
    for w in range(len(out)):
        distance = apart(usual[w, 0], usual[w, 1], centres[w])
        out[w] = 0.0 if math.isnan(distance) else distance


@strict
@no_type_check
def bounds_of(counts, edges, stood, known, out):
    """out [2] = what a series does not go below and not above: an edge at which it stood often, else an infinity.

    known [5]: see `usual_of`. An edge of some values among those known is none if these once went beyond it."""
    slack = INSIDE * (known[4] - known[3])
    among = known[2] > counts[1] and edges[0] >= known[3] - slack and edges[1] <= known[4] + slack
    for side in range(2):
        held = stood[side] >= max(HELD * counts[1], HELD_TIMES)
        if among:
            held = held and (edges[1] >= known[4] - slack if side else edges[0] <= known[3] + slack)
        out[side] = edges[side] if held else (math.inf if side else -math.inf)


@strict
@no_type_check
def ripeness(counts):
    """How much of what they need the memories of a series have seen: nothing up to two seasons, all from eight on."""
    return min(max((counts[1] / (len(counts) - 3) - YOUNG) / (RIPE - YOUNG), 0.0), 1.0)


@strict
@no_type_check
def look_ahead(rates, weights, members, counts, out):
    """out [F] = the weighted forecast of one series; NaN where nothing was seen."""
    season = members.shape[1] - 2
    out[:] = 0.0 if counts[1] else math.nan
    for k in range(len(rates)):
        if weights[k] == 0:
            continue
        ahead, trend = members[k, 0], members[k, 1]
        for f in range(len(out)):
            trend *= rates[k, 2]
            ahead += trend
            out[f] += weights[k] * (ahead + members[k, 2 + (counts[0] + f) % season])


@strict
@no_type_check
def within(value, bounds):
    """The value, or the bound that it lies beyond; NaN stays NaN."""
    return bounds[0] if value < bounds[0] else bounds[1] if value > bounds[1] else value


@strict
@no_type_check
def take_in_some(rows, values, rates, weights, own, known, members, recent, counts, surprise, edges, stood, usual):
    """One value of each of these rows, in place: row r has the weights[own[r]]."""
    for i in range(len(rows)):
        r = rows[i]
        take_in(
            values[i], rates, weights[own[r]], known[own[r], 2], members[r], recent[r], counts[r], surprise[r : r + 1],
            edges[r], stood[r], usual[r],
        )  # fmt: skip


@strict
@no_type_check
def finish_some(
    rows, rates, weights, own, members, counts, surprise, edges, stood, usual, known, steps, shares, middle, table,
    habits, sizes, widths, scales, points, offsets, standing,
):  # fmt: skip
    """points [N, F] and the head's quantiles around them, offsets [N, F, Q], become the forecasts of these rows, and
    standing [N, F, 3] what is kept of them (`widths`).

    steps [all]: which step of the clock comes next, or `LOST`. shares: of the head's median in the mean and in the
    median, and of the head's quantiles, the factor on them, how far the median leans, 1 where bounds hold, and 1 where
    the point forecast is the median. middle: the places of the levels next to the median, and their shares. table
    [F, Q]: quantiles of the errors, in units of scale and surprise, habits [1 + N, 5] how these units go for each
    series, and its share of ripe fading memories, and sizes [1 + N, P] how they go at each place of its season; see
    `forecasting.calibration`. widths [all, G]: logarithms of the factors on intervals.
    """
    low, high, first, second = int(middle[0]), int(middle[1]), middle[2], middle[3]
    head, width, lean, bounded, asked = shares[2], shares[3], shares[4], shares[5] > 0, shares[6] > 0
    fade, bounds, free = np.empty(points.shape[1]), np.empty(2), np.array([-math.inf, math.inf])
    for i in range(len(rows)):
        r = rows[i]
        look_ahead(rates, weights[own[r]], members[r], counts[r], fade)
        fading = habits[own[r], 2] * ripeness(counts[r])
        unit = math.sqrt(max(scales[i], surprise[r])) * math.sqrt(surprise[r])
        variance = usual_of(counts[r, 1], usual[r], known[own[r]])[1]
        if unit > 0 and variance > 0:
            unit = unit ** (1.0 - habits[own[r], 3]) * math.sqrt(variance) ** habits[own[r], 3]
        unit = habits[own[r], 0] * max(unit, habits[own[r], 1] * surprise[r])
        bounds_of(counts[r], edges[r], stood[r], known[own[r]], bounds)
        learns, ends = math.isinf(bounds[0]) and math.isinf(bounds[1]), bounds if bounded else free
        for f in range(points.shape[1]):
            own_median = offsets[i, f, low] * first + offsets[i, f, high] * second
            mean, centre = points[i, f] + shares[0] * own_median, points[i, f] + shares[1] * own_median
            if not math.isnan(fade[f]):
                mean = fade[f] if math.isnan(mean) else mean + fading * (fade[f] - mean)
                centre = fade[f] if math.isnan(centre) else centre + fading * (fade[f] - centre)
            here = unit * (sizes[own[r], (steps[r] + f) % sizes.shape[1]] if steps[r] > LOST // 2 else 1.0)
            centre += lean * here
            points[i, f] = within(centre if asked else mean, ends)
            factor, below, above = math.exp(widths[r, f * widths.shape[1] // points.shape[1]]), 0.0, 0.0
            for q in range(offsets.shape[2]):
                spread = here * table[f, q]
                if head > 0:
                    spread = head * width * (offsets[i, f, q] - own_median) + (1 - head) * spread
                offsets[i, f, q] = within(centre + factor * spread, ends)
                below, above = -spread if q == 0 else below, spread
            standing[i, f, 0] = within(centre, ends)
            standing[i, f, 1], standing[i, f, 2] = (below, above) if learns else (0.0, 0.0)


@strict
@no_type_check
def take_in_rows(values, offsets, rates, weights, own, known, members, recent, counts, surprise, edges, stood, usual):
    """All new values of some series, in place: series i has values[offsets[i] : offsets[i + 1]] and weights[own[i]]."""
    for i in range(len(own)):
        for t in range(offsets[i], offsets[i + 1]):
            take_in(
                values[t], rates, weights[own[i]], known[own[i], 2], members[i], recent[i], counts[i],
                surprise[i : i + 1], edges[i], stood[i], usual[i],
            )  # fmt: skip


@strict
@no_type_check
def look_ahead_rows(rates, weights, own, members, counts, edges, stood, known, out, ripe, bounds):
    """out [N, F] = the forecasts of some series, ripe [N] = how ripe they are, bounds [N, 2] = what holds them."""
    for i in range(len(own)):
        bounds_of(counts[i], edges[i], stood[i], known[own[i]], bounds[i])
        ripe[i] = ripeness(counts[i])
        look_ahead(rates, weights[own[i]], members[i], counts[i], out[i])


@strict
@no_type_check
def forecasts_at(values, offsets, rates, weights, own, known, season, series, origins, out, surprises, ripe, bounds):
    """out [W, F] = the forecasts of these series after `origins[w]` steps, how surprised they were by then, how ripe,
    and what holds them, bounds [W, 2].

    series, origins: [W], in order of the series, and for each in order of time."""
    first = 0
    while first < len(series):
        i = series[first]
        last = first
        while last < len(series) and series[last] == i:
            last += 1
        members, recent = np.zeros((len(rates), 2 + season)), np.full(season, math.nan)
        counts, surprise = np.zeros(3 + season, dtype=np.int64), np.zeros(1)
        edges, stood, usual = np.array([math.inf, -math.inf]), np.zeros(2, dtype=np.int64), np.zeros(2)
        t = 0
        for w in range(first, last):
            while t < origins[w]:
                take_in(
                    values[offsets[i] + t], rates, weights[own[i]], 0.0, members, recent, counts, surprise, edges,
                    stood, usual,
                )  # fmt: skip
                t += 1
            look_ahead(rates, weights[own[i]], members, counts, out[w])
            bounds_of(counts, edges, stood, known[own[i]], bounds[w])
            surprises[w], ripe[w] = surprise[0], ripeness(counts)
        first = last


@strict
@no_type_check
def errors_of_rates(values, offsets, ends, rates, season, horizon, errors, counted):
    """errors [N, K] = sums of the mean absolute errors of every rate on the values before `ends`, counted [N] = at how
    many origins: after two seasons at the earliest, where there are so many values, and at most `ORIGINS` of a series.
    """
    weights = np.zeros(len(rates))
    for i in range(len(ends)):
        size = ends[i]
        reach = min(horizon, max(1, (size - 1) // 2))
        first, last = max(1, min(max(2 * season, 3) + 1, size - reach)), size - reach
        stride = (last - first) // ORIGINS + 1
        members, recent = np.zeros((len(rates), 2 + season)), np.full(season, math.nan)
        counts, surprise = np.zeros(3 + season, dtype=np.int64), np.zeros(1)
        edges, stood, usual = np.array([math.inf, -math.inf]), np.zeros(2, dtype=np.int64), np.zeros(2)
        for t in range(last):
            take_in(values[offsets[i] + t], rates, weights, 0.0, members, recent, counts, surprise, edges, stood, usual)
            if t + 1 < first or (last - t - 1) % stride:
                continue
            truth = values[offsets[i] + t + 1 : offsets[i] + t + 1 + reach]
            observed = 0
            for f in range(reach):
                observed += not math.isnan(truth[f])
            if not observed or not counts[1]:
                continue
            counted[i] += 1
            for k in range(len(rates)):
                ahead, trend, total = members[k, 0], members[k, 1], 0.0
                for f in range(reach):
                    trend *= rates[k, 2]
                    ahead += trend
                    if not math.isnan(truth[f]):
                        total += abs(ahead + members[k, 2 + (t + 1 + f) % season] - truth[f])
                errors[i, k] += total / observed
