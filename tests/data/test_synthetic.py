"""The synthetic panels: reproducible, of the promised form, and hard in the promised way."""

import doctest

import numpy as np
import pandas as pd
import pytest

from titans_ts.data import synthetic
from titans_ts.data.synthetic import intermittent, random_walk, regime_switch, seasonal, secret_patterns

GENERATORS = [seasonal, random_walk, intermittent, regime_switch, secret_patterns]
every_generator = pytest.mark.parametrize("generate", GENERATORS, ids=lambda generate: generate.__name__)


def values(frame: pd.DataFrame) -> np.ndarray:
    return frame["y"].to_numpy().reshape(frame["unique_id"].nunique(), -1)


def patches(frame: pd.DataFrame, pattern_length: int) -> np.ndarray:
    return values(frame).reshape(frame["unique_id"].nunique(), -1, pattern_length)


@every_generator
def test_the_frame_is_long_hourly_and_complete(generate):
    frame = generate(n_series=3)
    assert list(frame.columns) == ["unique_id", "ds", "y"]
    assert frame["unique_id"].nunique() == 3
    assert frame["y"].dtype == np.float64
    assert np.isfinite(frame["y"]).all()
    for _, series in frame.groupby("unique_id"):
        assert (series["ds"].diff().dropna() == pd.Timedelta(hours=1)).all()


@every_generator
def test_the_same_seed_gives_the_same_frame(generate):
    pd.testing.assert_frame_equal(generate(seed=7), generate(seed=7))


@every_generator
def test_another_seed_gives_other_values(generate):
    assert not np.array_equal(values(generate(seed=7)), values(generate(seed=8)))


@every_generator
def test_more_series_leave_the_first_ones_as_they_were(generate):
    pd.testing.assert_frame_equal(generate(n_series=2), generate(n_series=5)[: len(generate(n_series=2))])


@every_generator
def test_series_differ_from_each_other(generate):
    first, second = values(generate(n_series=2))
    assert not np.array_equal(first, second)


@every_generator
@pytest.mark.parametrize("n_series", [0, -1])
def test_a_panel_without_series_is_refused(generate, n_series):
    with pytest.raises(ValueError, match=f"n_series={n_series} must be 1 or more"):
        generate(n_series=n_series)


@every_generator
def test_the_global_random_state_is_left_alone(generate):
    before = np.random.get_state()[1].copy()  # noqa: NPY002  (the legacy state is what must not move)
    generate()
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_examples_in_the_docstrings_run():
    assert doctest.testmod(synthetic) == (0, 14)


def test_seasonal_repeats_every_season_when_there_is_no_noise():
    y = values(seasonal(n_series=4, length=70, season_length=7, noise=0.0))
    np.testing.assert_allclose(y[:, 7:], y[:, :-7], atol=1e-9)


def test_random_walk_has_independent_steps_of_the_asked_size():
    steps = np.diff(values(random_walk(n_series=20, length=1000, drift=0.3, noise=2.0)), axis=1)
    assert steps.mean() == pytest.approx(0.3, abs=0.05)
    assert steps.std() == pytest.approx(2.0, abs=0.05)
    assert np.corrcoef(steps[:, :-1].ravel(), steps[:, 1:].ravel())[0, 1] == pytest.approx(0.0, abs=0.03)


def test_intermittent_gives_counts_of_the_asked_rate_and_size():
    y = values(intermittent(n_series=20, length=1000, rate=0.1, size=4.0))
    assert np.array_equal(y, y.round())
    assert y.min() == 0.0
    assert (y > 0).mean() == pytest.approx(0.1, abs=0.01)
    assert y[y > 0].mean() == pytest.approx(4.0, abs=0.1)


@pytest.mark.parametrize(("argument", "value"), [("rate", 1.5), ("rate", -0.1), ("size", 0.5)])
def test_intermittent_refuses_what_is_no_rate_and_no_size(argument, value):
    with pytest.raises(ValueError, match=f"{argument}={value}"):
        intermittent(**{argument: value})


def test_regimes_switch_at_the_named_steps_and_at_no_other():
    y = values(regime_switch(n_series=5, length=240, switches=(96, 144), season_length=24, noise=0.0))
    broken = np.abs(y[:, 24:] - y[:, :-24]) > 1e-9  # a season later, the same, unless a switch lies between
    steps = np.arange(24, 240)
    between = ((steps >= 96) & (steps < 120)) | ((steps >= 144) & (steps < 168))
    assert not broken[:, ~between].any()
    assert broken[:, between].mean() > 0.95


@pytest.mark.parametrize("switches", [(0,), (600,), (300, 200), (100, 100)])
def test_switches_must_rise_and_lie_inside(switches):
    with pytest.raises(ValueError, match="must rise"):
        regime_switch(length=600, switches=switches)


def test_without_switches_there_is_one_regime():
    y = values(regime_switch(n_series=2, length=48, switches=(), noise=0.0))
    np.testing.assert_allclose(y[:, 24:], y[:, :24], atol=1e-9)


@pytest.mark.parametrize("pattern_length", [1, 2, 3, 8, 16])
def test_the_secret_ends_the_series_and_the_cue_ends_the_history(pattern_length):
    y = patches(secret_patterns(n_series=6, pattern_length=pattern_length, distance=5), pattern_length)
    assert (y[:, -2] == y[0, -2]).all()  # one cue for all
    assert len(np.unique(y[:, -1, 0])) == 6  # a secret each


@pytest.mark.parametrize("distance", [0, 1, 20])
def test_cue_and_secret_come_twice_at_least_the_asked_distance_apart(distance):
    y = patches(secret_patterns(n_series=50, distance=distance, lead_in=4), 8)
    assert y.shape == (50, 4 + distance + 4, 8)
    firsts = set()
    for series in y:
        cues = np.flatnonzero((series == series[-2]).all(axis=-1))
        secrets = np.flatnonzero((series == series[-1]).all(axis=-1))
        assert len(cues) == 2
        assert secrets.tolist() == [cues[0] + 1, cues[1] + 1]
        assert cues[1] - secrets[0] - 1 >= distance
        firsts.add(int(cues[0]))
    assert firsts == {1, 2, 3, 4}


def test_between_the_showings_there_is_noise_of_the_asked_size_only():
    quiet = patches(secret_patterns(n_series=30, noise=0.0), 8)
    loud = patches(secret_patterns(n_series=30, noise=3.0), 8)
    filler = ~quiet.any(axis=-1)  # with noise 0, whatever is neither cue nor secret is zero
    assert filler.sum(axis=1).tolist() == [24] * 30
    assert loud[filler].std() == pytest.approx(3.0, rel=0.03)
    assert np.array_equal(loud[~filler], quiet[~filler])


def test_who_has_forgotten_the_secret_pays_its_variance():
    secrets = patches(secret_patterns(n_series=500), 8)[:, -1]
    assert (secrets**2).mean() == pytest.approx(4.0, rel=0.1)


def test_a_negative_distance_is_refused():
    with pytest.raises(ValueError, match="distance=-1"):
        secret_patterns(distance=-1)
