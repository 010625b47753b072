"""What is made of the validation rows: shares that fit, intervals that cover."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from titans_ts.forecasting.calibration import (
    Calibration,
    Judged,
    calibrate,
    error_table,
    error_unit,
    season_scales,
)
from titans_ts.forecasting.calibration import (
    mixed_share as share_of,
)
from titans_ts.forecasting.clock import CountClock
from titans_ts.forecasting.panel import Panel

LEVELS = tuple(k / 10 for k in range(1, 10))
WINDOWS, HORIZON, SERIES = 400, 5, 40


def mixed_share(data, powers=(1, 2)):
    return share_of(data.truth, data.main, data.fading, data.ripe, data.scale, data.horizons, powers)


def judged(main=0.0, fading=0.0, head=None, seed=0, horizons=20.0, noise=1.0):
    """A truth of noise around zero, in series of very different units."""
    random = np.random.default_rng(seed)
    series = np.arange(WINDOWS) % SERIES
    unit = 10.0 ** np.random.default_rng(7).uniform(-2, 2, size=SERIES)[series]
    truth = noise * unit[:, None] * random.normal(size=(WINDOWS, HORIZON)) * np.arange(1, HORIZON + 1)
    filled = np.ones((WINDOWS, HORIZON)) * unit[:, None]
    around = None if head is None else unit[:, None, None] * head
    return Judged(
        series,
        truth,
        main * filled,
        fading * filled,
        ripe=np.ones(WINDOWS),
        head=around,
        unit=unit,
        surprise=unit,
        deviation=np.zeros(WINDOWS),
        bounds=np.tile([-np.inf, np.inf], (WINDOWS, 1)),
        steps=np.arange(WINDOWS) // SERIES * HORIZON,
        scale=unit,
        horizons=horizons,
    )


def say(calibration, data, levels=LEVELS, **changes):
    """Mean, median and quantiles of these windows."""
    data = data._replace(**changes)
    return calibration.spoken(
        data.main, data.fading, data.ripe, data.head, data.unit, data.surprise, data.deviation, data.bounds,
        1 + data.series, data.steps, levels, np.ones(data.main.shape),
    )[:3]  # fmt: skip


def one_of(main, fading, ripe=None, unit=None):
    """Windows of strangers, at a step of the clock that is not known."""
    windows = len(main)
    one, zero = np.ones(windows), np.zeros(windows, int)
    ripe, unit = (one if part is None else part for part in (ripe, unit))
    bounds = np.tile([-np.inf, np.inf], (windows, 1))
    return Judged(zero - 1, main, main, fading, ripe, None, unit, unit, 0 * unit, bounds, zero - 1, one, 1.0)


@pytest.mark.parametrize(("main", "fading", "wanted"), [(0.0, 4.0, 0.0), (4.0, 0.0, 1.0), (-2.0, 2.0, 0.5)])
def test_the_share_is_that_with_the_least_error(main, fading, wanted):
    assert abs(mixed_share(judged(main, fading)) - wanted) <= 0.1


def test_a_series_has_a_share_of_its_own_where_enough_was_validated():
    data = judged(0.0, 4.0)
    main = np.where(data.series < 5, 4.0, 0.0)[:, None] * data.unit[:, None]  # right in all series but five
    data = data._replace(main=main * np.ones((1, HORIZON)), fading=data.fading - np.where(main, data.fading, 0.0))
    shares = calibrate(data, LEVELS).habits[:, 2]
    assert (shares[1:6] > 0.6).all()
    assert (shares[6:] < 0.4).all()
    few = Judged(*(part[:280] if isinstance(part, np.ndarray) else part for part in data))  # seven windows each
    shares = calibrate(few, LEVELS).habits[:, 2]
    assert (shares == shares[0]).all()
    shares = calibrate(data._replace(horizons=0.1), LEVELS).habits[:, 2]
    assert np.ptp(shares) < 0.5


def test_where_nothing_was_validated_the_share_is_three_quarters():
    assert mixed_share(judged(0.0, 4.0, horizons=0.0)) == 0.75
    assert mixed_share(judged(math.nan, 4.0, horizons=1.0)) == 0.75
    assert mixed_share(judged(math.nan, 4.0)) == 0.5


def test_the_less_was_validated_the_nearer_the_share_is_to_what_it_was_before():
    shares = [mixed_share(judged(0.0, 0.7, horizons=horizons)) for horizons in (1.0, 3.9, 4.0, 100.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[1] > shares[2]
    assert shares[0] > shares[-1]


def test_the_intervals_cover_what_they_say_step_by_step():
    calibration = calibrate(judged(), LEVELS)
    new = judged(seed=1)
    mean, median, quantiles = say(calibration, new)
    assert (mean == median).all()
    for place, level in enumerate(LEVELS):
        below = (new.truth < quantiles[..., place]).mean(0)
        np.testing.assert_allclose(below, level, atol=0.08)
    assert (np.diff(quantiles, axis=-1) >= 0).all()


def test_a_series_that_errs_more_than_its_unit_says_gets_wider_intervals():
    data, new = judged(), judged(seed=1)
    wild = np.where(np.arange(SERIES) < 10, 5.0, 1.0)
    data, new = (part._replace(truth=part.truth * wild[part.series, None]) for part in (data, new))
    calibration = calibrate(data, LEVELS, mix=False)
    _, _, quantiles = say(calibration, new)
    inside = ((quantiles[..., 0] < new.truth) & (new.truth < quantiles[..., -1])).mean(1)
    for some in (new.series < 10, new.series >= 10):
        assert abs(inside[some].mean() - 0.8) < 0.05


def test_a_calm_window_of_a_restless_series_keeps_a_width():
    data = judged()
    calibration = calibrate(data, LEVELS)
    calm = say(calibration, data, unit=0 * data.unit)[2]
    usual = say(calibration, data)[2]
    np.testing.assert_allclose(np.ptp(calm, axis=-1), 0.5 * np.ptp(usual, axis=-1))


def test_windows_that_stood_still_for_long_say_nothing_of_the_others():
    data = judged()
    still = np.arange(WINDOWS) // SERIES == 3  # one window of each series, whose next move is endless in its unit
    unit = np.where(still, 1e-12, 1.0) * data.unit
    for series_that_stood in (np.ones(WINDOWS, bool), data.series < 3):
        some = still & series_that_stood
        mixed = data._replace(unit=np.where(some, unit, data.unit), surprise=np.where(some, unit, data.unit))
        without = Judged(*(part[~some] if isinstance(part, np.ndarray) else part for part in data))
        tables = [calibrate(each, LEVELS, mix=False, count=SERIES).table for each in (mixed, without)]
        wider = tables[0][0, -1] / tables[1][0, -1]  # to cover as many of them, at most by a third
        assert 1.0 <= wider <= 1.3
        np.testing.assert_allclose(tables[0], wider * tables[1], rtol=1e-6, atol=1e-9)


def test_windows_that_stood_still_are_covered_too():
    data = judged()
    still = np.arange(WINDOWS) // SERIES == 3
    unit = np.where(still, 0.1, 1.0) * data.unit
    mixed = data._replace(unit=unit, surprise=np.where(still, unit, data.unit))
    assert inside(calibrate(mixed, LEVELS, mix=False), mixed) == pytest.approx(0.8, abs=0.02)


def inside(calibration, data):
    said = say(calibration, data)[2]
    return ((said[..., 0] < data.truth) & (data.truth < said[..., -1])).mean()


@pytest.mark.parametrize("intervals", ["conformal", "auto", "head"])
def test_training_rows_tell_too_how_large_errors_are(intervals):
    normal = np.array([-1.28, -0.84, -0.52, -0.25, 0.0, 0.25, 0.52, 0.84, 1.28])
    restless = judged(head=0.3 * normal * np.arange(1, HORIZON + 1)[:, None], noise=3.0)
    calm = judged(seed=1)
    alone, both, same = (
        calibrate(restless, LEVELS, intervals, mix=False, earlier=earlier)
        for earlier in (None, calm, restless._replace(head=None))
    )
    assert inside(alone, restless) == pytest.approx(0.8, abs=0.03)
    assert inside(same, restless) == pytest.approx(0.8, abs=0.03)
    share = [inside(both, restless), inside(both, calm._replace(head=restless.head))]
    assert np.mean(share) == pytest.approx(0.8, abs=0.03)
    assert share[0] < 0.7 < 0.9 < share[1]


def test_training_rows_do_not_say_what_the_forecast_is():
    data = judged(0.0, 4.0)
    other = judged(4.0, 0.0)
    habits = [calibrate(data, LEVELS, earlier=earlier).habits for earlier in (other, None)]
    np.testing.assert_array_equal(habits[0][:, 2], habits[1][:, 2])


def test_series_that_were_not_judged_and_strangers_have_the_least_unit_of_the_others():
    data = judged()
    some = data._replace(series=data.series % 10, unit=3 * data.unit)
    calibration = calibrate(some, LEVELS, count=12)
    assert calibration.habits.shape == (13, 5)
    np.testing.assert_allclose(calibration.habits[[0, 11, 12], :2], [[1.0, 1.5]] * 3)
    np.testing.assert_allclose(calibration.habits[1:11, 1], 1.5)


def test_a_head_that_is_too_narrow_is_widened_until_the_outer_interval_covers():
    normal = np.array([-1.28, -0.84, -0.52, -0.25, 0.0, 0.25, 0.52, 0.84, 1.28])
    data = judged(head=0.1 * normal * np.arange(1, HORIZON + 1)[:, None])
    for intervals in ("auto", "head"):
        calibration = calibrate(data, LEVELS, intervals, mix=False)
        said = say(calibration, data)[2]
        assert 0.77 < ((said[..., 0] < data.truth) & (data.truth < said[..., -1])).mean() < 0.83


def test_a_common_error_of_the_validation_rows_is_not_carried_on():
    high = judged()
    high = high._replace(truth=high.truth + 3 * high.unit[:, None])
    table = calibrate(high, LEVELS, mix=False).table
    np.testing.assert_allclose(table[:, 4], 0.0, atol=1e-12)


def test_a_head_that_knows_the_spread_is_preferred_and_a_wild_one_is_not():
    normal = np.array([-1.28, -0.84, -0.52, -0.25, 0.0, 0.25, 0.52, 0.84, 1.28])
    knowing = normal * np.arange(1, HORIZON + 1)[:, None]
    random = np.random.default_rng(0)
    busy = random.random(WINDOWS) < 0.5  # half of the windows are ten times as restless, and only the head knows
    data = judged(head=knowing)
    factor = np.where(busy, 10.0, 1.0)
    data = data._replace(truth=data.truth * factor[:, None], head=data.head * factor[:, None, None])
    assert calibrate(data, LEVELS, mix=False).head == 0.5
    wild = judged(
        head=np.sort(random.normal(size=(WINDOWS, HORIZON, 9)) * 10.0 ** random.uniform(-2, 2, (WINDOWS, 1, 1)))
    )
    assert calibrate(wild, LEVELS, mix=False).head == 0.0
    assert calibrate(data, LEVELS, "conformal").head == 0.0
    assert calibrate(wild, LEVELS, "head").head == 1.0


def test_the_head_is_made_as_wide_as_the_errors_are():
    normal = np.array([-1.28, -0.84, -0.52, -0.25, 0.0, 0.25, 0.52, 0.84, 1.28])
    narrow = 0.25 * normal * np.arange(1, HORIZON + 1)[:, None]
    assert 3.3 < calibrate(judged(head=narrow), LEVELS, "head").width < 4.8


def test_few_windows_share_one_shape_and_missing_truths_do_not_count():
    random = np.random.default_rng(0)
    errors = random.normal(size=(6, HORIZON)) * np.arange(1, HORIZON + 1)
    errors[2, 3] = errors[:, 4] = np.nan
    table = error_table(errors, np.ones(6), LEVELS)
    assert np.isfinite(table).all()
    assert (np.diff(table, axis=1) >= 0).all()
    assert (error_table(np.full((3, 2), np.nan), np.ones(3), (0.1, 0.9))[:, 1] > 1.28).all()  # nothing seen: normal


def test_what_stands_still_has_no_width_until_it_moves():
    zero = np.zeros((9, 2))
    flat = one_of(zero, zero, unit=np.zeros(9))._replace(series=np.zeros(9, int))
    calibration = calibrate(flat, LEVELS)
    assert error_unit(np.zeros(1), np.zeros(1)).tolist() == [0.0]
    widths = [np.ptp(say(calibration, one_of(zero[:1], zero[:1], unit=unit))[2]) for unit in (np.zeros(1), np.ones(1))]
    assert widths[0] == 0 < widths[1]


def test_a_forecast_takes_what_there_is():
    main, fading = np.array([[np.nan, 1.0, 1.0]]), np.array([[2.0, np.nan, 1.0]])
    calibration = Calibration(0.0, 0.0, 0.0, 1.0, np.zeros((3, 9)), np.array([[1.0, 0.0, 0.25, 0.0, 0.0]]))
    mean, _, _ = say(calibration, one_of(main, fading))
    assert mean.tolist() == [[2.0, 1.0, 1.0]]


def test_young_memories_do_not_count():
    calibration = Calibration(0.0, 0.0, 0.0, 1.0, np.zeros((1, 9)), np.array([[1.0, 0.0, 1.0, 0.0, 0.0]]))
    said = say(calibration, one_of(np.zeros((3, 1)), np.ones((3, 1)), np.array([0.0, 0.5, 1.0])))
    assert said[0].ravel().tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("levels", [(0.9,), (0.8, 0.9), (0.05, 0.9), (0.5,), (0.2,)])
def test_levels_on_one_side_of_the_median_are_where_they_should_be(levels):
    normal = np.array([NormalDist().inv_cdf(level) for level in levels])
    data = judged(head=normal * np.arange(1, HORIZON + 1)[:, None])
    new = judged(seed=1)
    for intervals in ("conformal", "head"):
        calibration = calibrate(data, levels, intervals, mix=False)
        around = new.unit[:, None, None] * normal * np.arange(1, HORIZON + 1)[:, None]
        _, _, quantiles = say(calibration, new, levels, head=around)
        for place, level in enumerate(levels):
            assert abs((new.truth < quantiles[..., place]).mean() - level) < 0.05


def test_the_fewer_windows_the_wider_the_intervals():
    random, widths = np.random.default_rng(0), []
    for windows in (1, 2, 3, 5, 8, 40):
        tables = [error_table(random.normal(size=(windows, 1)), np.ones(windows), (0.1, 0.9)) for _ in range(400)]
        new = random.normal(size=400)
        covered = [low < x < high for x, ((low, high),) in zip(new, tables, strict=True)]
        widths.append(np.mean(covered))
    assert min(widths) > 0.7


def test_a_median_is_chosen_by_absolute_errors_alone():
    random = np.random.default_rng(0)
    truth = np.where(random.random((WINDOWS, HORIZON)) < 0.2, 10.0, 0.0)  # mostly nothing, now and then much
    data = one_of(np.zeros_like(truth), np.full_like(truth, 2.0))
    data = data._replace(series=np.zeros(WINDOWS, int), truth=truth, horizons=1e6)
    assert (calibrate(data, LEVELS, point="median").habits[:, 2] == 0.0).all()
    assert mixed_share(data, (2,)) == 1.0


def test_the_scale_of_a_series_is_that_of_mase():
    values = np.array([1.0, 2.0, 4.0, np.nan, 5.0, 9.0, 100.0])
    panel = Panel(
        np.concatenate([values, np.ones(7)]),
        np.array([0, 7, 14]),
        (0, 1),
        np.array([6, 6]),
        np.zeros(2, int),
        CountClock(),
    )
    assert season_scales(panel, np.array([6, 6]), 2).tolist() == [2.0, 1.0]


def nightly(seed=0):
    """Errors of a day that is four times as restless as the night, over two hundred seasons of ten steps."""
    data = judged(seed=seed)
    data = data._replace(series=np.zeros(WINDOWS, int), steps=np.arange(WINDOWS) * HORIZON)
    ahead = (data.steps[:, None] + np.arange(HORIZON)) % 10
    return data._replace(truth=data.truth * np.where(ahead < 5, 4.0, 1.0)), ahead


def test_errors_have_a_size_of_their_own_at_every_place_of_the_season():
    data, _ = nightly()
    calibration = calibrate(data, LEVELS, mix=False, season=10)
    new, ahead = nightly(seed=1)
    quantiles = say(calibration, new)[2]
    covered = (quantiles[..., 0] < new.truth) & (new.truth < quantiles[..., -1])
    flat = say(calibrate(data, LEVELS, mix=False), new)[2]
    covered_flat = (flat[..., 0] < new.truth) & (new.truth < flat[..., -1])
    assert covered[ahead < 5].mean() == pytest.approx(0.8, abs=0.1)
    assert covered[ahead >= 5].mean() == pytest.approx(0.8, abs=0.1)
    assert covered_flat[ahead >= 5].mean() > 0.95
    lost = say(calibration, new, steps=np.full(WINDOWS, -5))[2]  # no place, and the mean size
    width = np.ptp(lost, axis=-1) / new.unit[:, None]
    np.testing.assert_allclose(width, np.broadcast_to(width[0], width.shape))


def test_the_fewer_seasons_the_nearer_to_one_size_for_all_places():
    data, _ = nightly()
    spread = []
    for windows in (40, 120, 400):
        part = Judged(*(field[:windows] if isinstance(field, np.ndarray) else field for field in data))
        sizes = calibrate(part, LEVELS, mix=False, season=10).sizes[1:]
        spread.append(np.log(sizes).std())
    assert spread[0] < spread[1] < spread[2]
    assert (calibrate(data, LEVELS, mix=False, season=10).sizes[0] == 1.0).all()


def test_the_median_of_skewed_data_lies_below_their_mean_and_chance_does_not_move_it():
    random = np.random.default_rng(0)
    data = judged()
    skewed = data.unit[:, None] * (random.exponential(size=(WINDOWS, HORIZON)) ** 2 - 2.0)  # of mean 0
    for shift in (0.0, 0.5):  # and a common error of this much
        calibration = calibrate(data._replace(truth=skewed + shift * data.unit[:, None]), LEVELS, mix=False)
        mean, median, _ = say(calibration, data)
        np.testing.assert_allclose(mean, data.main)
        below = (mean - median) / data.unit[:, None]
        assert below.mean() == pytest.approx(0.7 * 1.52, abs=0.2)
    assert calibrate(data, LEVELS, mix=False).lean == 0.0
    chance = data._replace(truth=data.truth + 3 * data.unit[:, None])
    assert calibrate(chance, LEVELS, mix=False).lean == pytest.approx(0.0, abs=0.2)


def test_forecasts_end_where_the_series_stood_unless_that_was_wrong():
    data = judged()
    above = data._replace(truth=np.abs(data.truth), bounds=np.tile([0.0, np.inf], (WINDOWS, 1)))
    above = above._replace(main=0.5 * above.unit[:, None] * np.ones((1, HORIZON)))
    calibration = calibrate(above, LEVELS, mix=False)
    assert calibration.bounded
    for part in say(calibration, above, main=above.main - above.unit[:, None]):
        assert part.min() == 0.0
    assert not calibrate(data._replace(bounds=np.tile([0.5, np.inf], (WINDOWS, 1))), LEVELS, mix=False).bounded
