"""Widths of intervals that learn from what fell outside: one number a series and stretch of the horizon, moved by every
value that a standing forecast had an interval for.

It is the update rule where it is smallest once more: the surprise is whether a value was missed, less how often one
should be. Where fewer are missed than should be the interval narrows, and it widens where more are, so that over a long
time it covers what it says, whatever the series does (Gibbs and Candès, "Adaptive Conformal Inference Under
Distribution Shift", 2021, equation 2; here for the logarithm of a factor, as Angelopoulos, Candès and Tibshirani do for
the size of an interval in "Conformal PID Control for Time Series Prediction", 2023, equation 3).

Compiled without leave to reorder sums: a stream and a batch are the same numbers, bit for bit.

K forecasts that stand, F future step, G stretches of the horizon. Of one series: standing [K, F, 3] are the median and
how far the outermost quantiles lie below and above it before they are widened, told [K] how many steps have come since
each was made, as far as that matters (`oldest`; from F on it stands no longer), widths [G] the logarithms of the
factors.
"""

import math
from typing import no_type_check

from .fading import strict

MOST = math.log(2.0)  # the logarithm of how much wider or narrower intervals become at most
# How far a factor moves over a horizon of misses (one stretch of one forecast), and with one value at most: what is
# learnt is a few horizons old, or a few dozens of values where these are short.
RATE, FASTEST = 0.6, 0.01
# Steps from one standing forecast to the next, at least: it costs more than all else that a value does. Where so fewer
# values are judged, each moves the factor the further.
LEAST_PAUSE = 4


@strict
@no_type_check
def share_of(horizon, forecasts):
    """Steps of the horizon for each of the forecasts that stand."""
    return (horizon + forecasts - 1) // forecasts


@strict
@no_type_check
def pause(horizon, forecasts):
    """Steps from one standing forecast to the next."""
    return max(share_of(horizon, forecasts), LEAST_PAUSE)


@strict
@no_type_check
def rate_of(horizon, forecasts, stretches):
    """How far one value moves a factor."""
    slowed = pause(horizon, forecasts) / share_of(horizon, forecasts)
    return min(RATE * stretches / (horizon * forecasts), FASTEST * slowed)


@strict
@no_type_check
def oldest(horizon, forecasts):
    """Steps after which it does not matter any more how long ago a forecast was made."""
    return max(horizon, pause(horizon, forecasts))


@strict
@no_type_check
def until_next(told, horizon):
    """Steps until a series wants its next standing forecast; 0: now, before its next value."""
    return max(pause(horizon, len(told)) - told.min(), 0)


@strict
@no_type_check
def until_next_rows(told, horizon, out):
    """out [N] = `until_next` of every series."""
    for i in range(len(out)):
        out[i] = until_next(told[i], horizon)


@strict
@no_type_check
def rows_before_some(values, offsets, wanted, out):
    """out [N] = after how many rows of its own each series has as many observed values as are wanted, all rows where it
    does not have them."""
    for i in range(len(out)):
        left, out[i] = wanted[i], 0
        for t in range(offsets[i], offsets[i + 1]):
            if left <= 0:
                break
            left -= not math.isnan(values[t])
            out[i] += 1


@strict
@no_type_check
def waiting_rows(rows, told, horizon, counts, own, habits, out):
    """out [:count] = those of these rows that want a standing forecast now; returns the count. counts, own, habits: see
    `core.ops.fading`; a series learns behind the values that `fit` saw of it."""
    count = 0
    for r in rows:
        if counts[r, 1] >= habits[own[r], 4] and until_next(told[r], horizon) == 0:
            out[count] = r
            count += 1
    return count


@strict
@no_type_check
def stand_rows(rows, forecasts, standing, told):
    """The forecasts [N, F, 3] of these rows stand from now on, in place of the oldest of each."""
    for i in range(len(rows)):
        r = rows[i]
        last = told[r].argmax()
        standing[r, last] = forecasts[i]
        told[r, last] = 0


@strict
@no_type_check
def learn(value, target, standing, told, widths):
    """One value of one series, NaN where missing, of which a share `target` should be missed.

    Where an interval has no width a value says nothing of how wide it should be. Nor does it in a series that stands at
    an edge for long, and whose reaches are 0 here: a shower ends, and every interval around it was missed.
    """
    horizon = standing.shape[1]
    longest = oldest(horizon, len(told))
    rate = rate_of(horizon, len(told), len(widths))
    for k in range(len(told)):
        step = told[k]
        told[k] = min(step + 1, longest)
        if step >= horizon:
            continue
        middle, below, above = standing[k, step]
        if math.isnan(value) or not (below > 0 and above > 0):
            continue
        stretch = step * len(widths) // horizon
        away = value - middle
        missed = abs(away) > (above if away > 0 else below) * math.exp(widths[stretch])
        moved = widths[stretch] + rate * (missed - target)
        widths[stretch] = min(max(moved, -MOST), MOST)


@strict
@no_type_check
def learn_some(rows, values, target, standing, told, widths):
    """One value of each of these rows, in place."""
    for i in range(len(rows)):
        r = rows[i]
        learn(values[i], target, standing[r], told[r], widths[r])


@strict
@no_type_check
def learn_rows(values, offsets, target, standing, told, widths):
    """All new values of some series, in place: series i has values[offsets[i] : offsets[i + 1]]."""
    for i in range(len(told)):
        for t in range(offsets[i], offsets[i + 1]):
            learn(values[t], target, standing[i], told[i], widths[i])


@strict
@no_type_check
def factors_rows(widths, out):
    """out [N, F] = the factors on the intervals of every step."""
    for i in range(len(out)):
        for f in range(out.shape[1]):
            out[i, f] = math.exp(widths[i, f * widths.shape[1] // out.shape[1]])
