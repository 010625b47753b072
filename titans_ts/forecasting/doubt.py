"""How sure a choice between two ways is: what looks best on a few weeks often only suits these weeks.

Axes: G groups of windows.
"""

from __future__ import annotations

import math

from .panel import Float

# of penalties whose validation error differs by less than this share, the largest is taken: the calmest map
INDIFFERENCE = 1e-3
JUDGED = 2048  # validation windows that choose between ways to fit, at most
GROUPS = 8  # groups of them, by which it is known how sure a choice is
SURE = 2.0  # standard errors by which a gain must exceed nothing
FEWEST = 4  # groups, and horizons of validation rows of all series, below which a gain says nothing


def surely_less(loss: Float, other: Float, stretches: float = math.inf) -> bool:
    """Whether a loss `[G]` is less than another by more than `INDIFFERENCE` and by `SURE` standard errors.

    stretches: of how many horizons the groups are made that do not overlap; below `FEWEST` nothing is sure.

    >>> import numpy as np
    >>> one = np.ones(4)
    >>> surely_less(0.9 * one, one), surely_less(np.array([0.2, 1.1, 1.1, 1.1]), one), surely_less(0.9 * one, one, 1.0)
    (True, False, False)
    """
    count = min(len(loss), stretches)
    if count < FEWEST:
        return False
    gain = other - loss
    return bool(gain.mean() > max(INDIFFERENCE * other.mean(), SURE * gain.std(ddof=1) / count**0.5))
