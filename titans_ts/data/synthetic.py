"""Seeded synthetic panels, as long frames of `unique_id`, `ds` (hourly) and `y`.

Every series has a random generator of its own, made from the seed and its number: asking for more series leaves the
first ones as they were.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Values = NDArray[np.float64]

CUE_AMPLITUDE = 4.0
SECRET_AMPLITUDE = 2.0


def seasonal(
    n_series: int = 10, length: int = 500, season_length: int = 24, noise: float = 0.1, seed: int = 0
) -> pd.DataFrame:
    """Series that repeat every `season_length` steps, each with its own level, amplitude and shape, plus white noise.

    >>> y = seasonal(n_series=2, length=48, season_length=24, noise=0.0)["y"].to_numpy()
    >>> bool(abs(y[24:48] - y[:24]).max() < 1e-9)
    True
    """
    _check(n_series=n_series, length=length, season_length=season_length)

    def draw(random: np.random.Generator) -> Values:
        level, amplitude, phase = _regime(random)
        wave = _wave(np.arange(length), season_length, phase, overtone=random.uniform(0.0, 0.5))
        return level + amplitude * (wave + noise * random.standard_normal(length))

    return _panel("seasonal", n_series, seed, draw)


def random_walk(
    n_series: int = 10, length: int = 500, drift: float = 0.0, noise: float = 1.0, seed: int = 0
) -> pd.DataFrame:
    """Series whose steps are independent and normal: the best forecast is the last value plus `drift` a step.

    >>> random_walk(n_series=1, length=4, drift=0.5, noise=0.0)["y"].tolist()
    [0.5, 1.0, 1.5, 2.0]
    """
    _check(n_series=n_series, length=length)

    def draw(random: np.random.Generator) -> Values:
        return np.cumsum(drift + noise * random.standard_normal(length))

    return _panel("walk", n_series, seed, draw)


def intermittent(
    n_series: int = 10, length: int = 500, rate: float = 0.2, size: float = 3.0, seed: int = 0
) -> pd.DataFrame:
    """Counts that are mostly zero: a demand comes with probability `rate`, and is then `size` units on average.

    >>> y = intermittent(n_series=1, length=1000, rate=0.2)["y"]
    >>> bool((y >= 0).all() and (y == y.round()).all()), bool(0.15 < (y > 0).mean() < 0.25)
    (True, True)
    """
    _check(n_series=n_series, length=length)
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"rate={rate} is a probability: it must lie between 0 and 1")
    if size < 1.0:
        raise ValueError(f"size={size} must be at least 1: a demand is one unit or more")

    def draw(random: np.random.Generator) -> Values:
        demanded = random.random(length) < rate
        units = 1.0 + random.poisson(size - 1.0, length)
        return np.where(demanded, units, 0.0)

    return _panel("intermittent", n_series, seed, draw)


def regime_switch(
    n_series: int = 10,
    length: int = 600,
    switches: Sequence[int] = (200, 400),
    season_length: int = 24,
    noise: float = 0.1,
    seed: int = 0,
) -> pd.DataFrame:
    """Seasonal series that drift: at each step named in `switches`, level, amplitude and phase are drawn anew.

    The times are the same for every series, the regimes are not.

    >>> y = regime_switch(n_series=1, length=72, switches=(48,), noise=0.0)["y"].to_numpy()
    >>> bool(abs(y[24:48] - y[:24]).max() < 1e-9), bool(abs(y[48:72] - y[:24]).max() < 0.1)
    (True, False)
    """
    _check(n_series=n_series, length=length, season_length=season_length)
    edges = [0, *switches, length]
    if any(later <= earlier for earlier, later in pairwise(edges)):
        raise ValueError(f"switches={tuple(switches)} must rise, and lie between 1 and length - 1 = {length - 1}")
    regime = np.searchsorted(np.asarray(switches), np.arange(length), side="right")  # which one each step is in

    def draw(random: np.random.Generator) -> Values:
        levels, amplitudes, phases = np.array([_regime(random) for _ in range(len(switches) + 1)]).T
        wave = _wave(np.arange(length), season_length, phases[regime], overtone=0.25)
        return levels[regime] + amplitudes[regime] * (wave + noise * random.standard_normal(length))

    return _panel("regime", n_series, seed, draw)


def secret_patterns(
    n_series: int = 10,
    pattern_length: int = 8,
    distance: int = 20,
    noise: float = 1.0,
    seed: int = 0,
    lead_in: int = 4,
) -> pd.DataFrame:
    """The recall task: a cue announces, for the second time, a pattern that was seen once and long ago.

    A series is a sequence of patches of `pattern_length` steps: 1 to `lead_in` patches of noise, the cue, the secret,
    at least `distance` patches of noise, the cue again, the secret again. The cue (a sawtooth from -4 to 4) is the same
    in every series; the secret (normal, standard deviation 2) is the series' own. The last `pattern_length` rows of a
    series are the secret's second showing, and are what is to be forecast. A forecaster that has forgotten can do no
    better than zero, mean squared error 4; one that remembers is exact.

    All series are of one length: a shorter lead-in makes the distance longer by as much.

    >>> y = secret_patterns(n_series=3, pattern_length=8, distance=20)["y"].to_numpy().reshape(3, -1, 8)
    >>> y.shape  # 4 + 20 patches of noise, the cue and the secret twice
    (3, 28, 8)
    >>> y[0, -2].round(1).tolist()  # the cue, at the end of the history
    [-4.0, -1.3, 1.3, 4.0, -4.0, -1.3, 1.3, 4.0]
    >>> bool((y[0, 2:7] == y[0, -1]).all(axis=-1).any())  # the secret came before, after a lead-in of 1 to 4 patches
    True
    """
    _check(n_series=n_series, pattern_length=pattern_length, lead_in=lead_in)
    if distance < 0:
        raise ValueError(f"distance={distance} must be 0 patches or more")
    cue = _cue(pattern_length)

    def draw(random: np.random.Generator) -> Values:
        first = int(random.integers(1, lead_in + 1))  # the patch with the first cue
        secret = SECRET_AMPLITUDE * random.standard_normal(pattern_length)
        patches = noise * random.standard_normal((lead_in + distance + 4, pattern_length))
        patches[[first, -2]] = cue
        patches[[first + 1, -1]] = secret
        return patches.ravel()

    return _panel("secret", n_series, seed, draw)


def recurring_secrets(
    n_series: int = 10,
    pattern_length: int = 8,
    patches: int = 32,
    gaps: tuple[int, int] = (4, 12),
    noise: float = 1.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Series to learn the recall task from: each shows cue and secret again and again, `gaps` patches of noise apart.

    `secret_patterns` asks once, at the end; nearly all of what it shows cannot be forecast, and learning from it is
    slow. Here every showing but the first is a question. Cue, secret and noise are as there; a series has `patches`
    patches, the first cue is among the first four.

    >>> y = recurring_secrets(n_series=2, pattern_length=8, patches=32)["y"].to_numpy().reshape(2, -1, 8)
    >>> cue = secret_patterns(n_series=1, pattern_length=8)["y"].to_numpy()[-16:-8]
    >>> bool(((y == cue).all(-1).sum(-1) >= 2).all())  # every series asks at least once
    True
    """
    _check(n_series=n_series, pattern_length=pattern_length, patches=patches)
    if not 0 <= gaps[0] <= gaps[1]:
        raise ValueError(f"gaps={gaps} must be the fewest and the most patches between two showings")
    cue = _cue(pattern_length)

    def draw(random: np.random.Generator) -> Values:
        secret = SECRET_AMPLITUDE * random.standard_normal(pattern_length)
        series = noise * random.standard_normal((patches, pattern_length))
        place = int(random.integers(4))
        while place + 1 < patches:
            series[place], series[place + 1] = cue, secret
            place += 2 + int(random.integers(gaps[0], gaps[1] + 1))
        return series.ravel()

    return _panel("secret", n_series, seed, draw)


def _cue(pattern_length: int) -> Values:
    """A sawtooth, twice."""
    tooth = np.linspace(-CUE_AMPLITUDE, CUE_AMPLITUDE, max(2, pattern_length // 2))
    return np.resize(tooth, pattern_length)


def _regime(random: np.random.Generator) -> tuple[float, float, float]:
    """Level, amplitude and phase (in seasons)."""
    return random.normal(0.0, 5.0), random.uniform(0.5, 2.0), random.uniform()


def _wave(step: NDArray[np.int64], season_length: int, phase: float | Values, overtone: float) -> Values:
    """A sine with some of its first overtone, of period `season_length`."""
    angle = 2.0 * np.pi * (step / season_length + phase)
    wave: Values = np.sin(angle) + overtone * np.sin(2.0 * angle)
    return wave


def _panel(prefix: str, n_series: int, seed: int, draw: Callable[[np.random.Generator], Values]) -> pd.DataFrame:
    randoms = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(n_series)]
    values = np.stack([draw(random) for random in randoms])
    stamps = pd.date_range("2020-01-01", periods=values.shape[1], freq="h")
    ids = [f"{prefix}_{number}" for number in range(n_series)]
    return pd.DataFrame(
        {
            "unique_id": np.repeat(ids, values.shape[1]),
            "ds": np.tile(stamps.to_numpy(), n_series),
            "y": values.ravel(),
        }
    )


def _check(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count} must be 1 or more")
