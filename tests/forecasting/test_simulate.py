"""`simulate`: paths with the distribution of `predict` at every step, and the dependence of the validation windows."""

import functools
import pickle
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import NotFittedError

from titans_ts import MemoryConfig, Ridge, SeasonalNaive, TitansForecaster, TrainConfig
from titans_ts.forecasting.clock import CountClock
from titans_ts.forecasting.copula import MOST, evenly, ranks_of
from titans_ts.forecasting.forecast import Forecast, quantiles_at, scores_of, values_at
from titans_ts.forecasting.panel import Panel
from titans_ts.models.config import BackboneConfig

HORIZON = 6
SMALL = BackboneConfig(
    dim=8, depth=1, heads=2, window=3, segment=3, memory=MemoryConfig(dim=8, heads=2, depth=1, expansion=2, chunk=16)
)
MAKERS = {
    "titans": lambda: TitansForecaster(
        HORIZON, context_length=24, patch_length=4, model=SMALL, train=TrainConfig(steps=2, batch=4), random_state=0
    ),
    "ridge": lambda: Ridge(HORIZON, context_length=24),
    "naive": lambda: SeasonalNaive(HORIZON, season_length=1),
}
STEPS = np.random.default_rng(0).normal(size=(400, 5))
DATA = {"walk": np.cumsum(STEPS, axis=0), "noise": STEPS}


@functools.cache
def _fitted(kind, data):
    return pickle.dumps(MAKERS[kind]().fit(DATA[data]))


def fitted(kind="ridge", data="walk"):
    return pickle.loads(_fitted(kind, data))


@pytest.fixture(params=MAKERS)
def kind(request):
    return request.param


def cube(sample, count):
    """Paths [series, path, step]."""
    return sample.iloc[:, -1].to_numpy().reshape(-1, count, HORIZON)


# What a path is made of


def test_at_every_step_the_paths_have_the_quantiles_of_predict(kind):
    forecaster, count = fitted(kind), 40_000
    levels = [0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95]
    said = forecaster.predict(quantiles=levels).transpose(1, 0, 2)[..., 1:]  # [N, H, Q]
    drawn = np.quantile(cube(forecaster.simulate(count, seed=0), count), levels, axis=1).transpose(1, 2, 0)
    spread = said[..., [-2]] - said[..., [1]]  # of the 80 % interval
    assert (np.abs(drawn - said) / spread).max() < 0.02


def test_the_error_of_the_quantiles_falls_with_the_number_of_paths():
    forecaster = fitted()
    said = forecaster.predict(quantiles=[0.25])[..., 1].T

    def error(count):
        return np.abs(np.quantile(cube(forecaster.simulate(count, seed=1), count), 0.25, axis=1) - said).mean()

    assert error(40_000) < error(400) / 5


def test_the_sum_over_a_horizon_of_a_random_walk_has_the_variance_of_its_truth(kind):
    count = 4000
    paths = cube(fitted(kind).simulate(count, seed=0), count)
    of_sum, of_steps = paths.sum(2).var(axis=1).mean(), paths.var(axis=1).sum(1).mean()
    ahead = np.arange(1, HORIZON + 1)
    truth = np.minimum.outer(ahead, ahead).sum() / ahead.sum()  # 4.3 times the variance of independent steps
    assert of_sum / of_steps == pytest.approx(truth, rel=0.2)


def test_the_steps_of_noise_stay_apart():
    count = 4000
    paths = cube(fitted("ridge", "noise").simulate(count, seed=0), count)
    assert paths.sum(2).var(axis=1).mean() / paths.var(axis=1).sum(1).mean() < 1.6


def test_the_naive_forecast_of_noise_shares_the_error_of_the_value_it_repeats():
    count = 4000
    paths = cube(fitted("naive", "noise").simulate(count, seed=0), count)
    for own in paths:
        assert np.corrcoef(own.T)[0, 1:] == pytest.approx(np.full(HORIZON - 1, 0.5), abs=0.2)


def test_series_are_drawn_apart():
    count = 4000
    first, second = cube(fitted().simulate(count, ids=[0, 1], seed=0), count)[:, :, 0]
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05


# What its user may count on


def test_the_columns_are_those_of_nixtla():
    days = pd.date_range("2024-01-01", periods=90, freq="D")
    parts = [pd.DataFrame({"id": name, "day": days, "v": STEPS[:90, place]}) for place, name in enumerate("ab")]
    forecaster = Ridge(horizon=3, id_col="id", time_col="day", target_col="v").fit(pd.concat(parts))
    got = forecaster.simulate(2, horizon=2, seed=0)
    assert list(got) == ["id", "day", "sample_id", "Ridge"]
    assert got["id"].tolist() == ["a"] * 4 + ["b"] * 4
    assert got["sample_id"].tolist() == [0, 0, 1, 1] * 2
    assert got["day"].tolist() == [days[-1] + pd.Timedelta(days=ahead) for ahead in (1, 2)] * 4


def test_other_kinds_of_data_come_back_as_a_long_frame():
    index = pd.date_range("2024-01-01", periods=400, freq="h")
    wide = pd.DataFrame(DATA["walk"], index=index, columns=list("abcde"))
    expected = fitted().simulate(3, seed=0)
    for y, ids in ((wide, list("abcde")), (wide["a"], ["a"]), (DATA["walk"], range(5)), (DATA["walk"][:, 0], [0])):
        got = Ridge(HORIZON, context_length=24).fit(y).simulate(3, seed=0)
        assert list(got) == ["unique_id", "ds", "sample_id", "Ridge"]
        assert got["unique_id"].unique().tolist() == list(ids)
        if np.ndim(y) == 2:
            np.testing.assert_array_equal(got["Ridge"], expected["Ridge"])


def test_a_seed_gives_the_same_paths_and_none_gives_others(kind):
    forecaster = fitted(kind)
    one = forecaster.simulate(5, seed=7)
    pd.testing.assert_frame_equal(forecaster.simulate(5, seed=7), one, check_exact=True)
    for seed in (8, None):
        assert (forecaster.simulate(5, seed=seed).iloc[:, -1] != one.iloc[:, -1]).any()
    assert (forecaster.simulate(5).iloc[:, -1] != forecaster.simulate(5).iloc[:, -1]).any()


def test_a_series_has_its_paths_whatever_else_is_asked_for(kind):
    forecaster = fitted(kind)
    whole = forecaster.simulate(5, seed=7)
    some = forecaster.simulate(5, seed=7, ids=[3, 1])
    expected = pd.concat([whole[whole["unique_id"] == name] for name in (3, 1)], ignore_index=True)
    pd.testing.assert_frame_equal(some, expected, rtol=1e-5)
    short = forecaster.simulate(5, horizon=2, seed=7)
    near = whole[whole["ds"] < whole["ds"].min() + 2].reset_index(drop=True)
    pd.testing.assert_frame_equal(short, near, check_exact=True)


def test_simulating_changes_nothing(kind):
    forecaster = fitted(kind)
    before, held = forecaster.predict(level=80), pickle.dumps(forecaster)
    forecaster.simulate(10, seed=0)
    forecaster.simulate(10, y=DATA["noise"])
    assert pickle.dumps(forecaster) == held
    np.testing.assert_array_equal(forecaster.predict(level=80), before)


def test_a_saved_forecaster_draws_the_same_paths(tmp_path):
    forecaster = fitted("titans")
    forecaster.save(tmp_path / "model")
    loaded = TitansForecaster.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.scores_, forecaster.scores_)
    expected = forecaster.simulate(5, seed=0)
    pd.testing.assert_frame_equal(loaded.simulate(5, seed=0), expected, check_exact=True)


def test_paths_go_on_from_the_newest_rows_and_from_other_histories(kind):
    forecaster = fitted(kind)
    other = DATA["walk"][:350] + 100
    drawn = forecaster.simulate(5, y=other, seed=0)
    assert drawn["ds"].min() == 350
    assert drawn.iloc[:, -1].min() > 50
    forecaster.update(DATA["walk"][:3] + 1000)
    assert forecaster.simulate(5, seed=0)["ds"].min() == 403


# The windows it learns from


def test_the_scores_come_from_rows_that_nothing_was_learnt_from():
    settings = {"context_length": 24, "patch_length": 4, "model": SMALL, "random_state": 0}
    y = DATA["walk"]
    one = TitansForecaster(HORIZON, train=TrainConfig(steps=0, refit=True), **settings).fit(y)
    two = TitansForecaster(HORIZON, train=TrainConfig(steps=0, refit=False), **settings).fit(y)
    assert (one.linear_.weights != two.linear_.weights).any()
    np.testing.assert_array_equal(one.scores_, two.scores_)
    assert one.scores_.shape == (MOST, HORIZON)


def test_without_validation_rows_the_later_half_of_the_series_tells(kind):
    short = DATA["walk"][:30, :1] if kind == "naive" else DATA["walk"][:40, :2]
    forecaster = MAKERS[kind]()
    if kind != "naive":
        forecaster.set_params(context_length=8, **({"validation": 0} if kind == "ridge" else {}))
    if kind == "titans":
        forecaster.set_params(train=TrainConfig(steps=0, validation=0))
    forecaster.fit(short)
    later_half = short.shape[1] * (len(short) - HORIZON - (len(short) - HORIZON) // 2 + 1)
    assert len(forecaster.scores_) == later_half
    assert len(forecaster.simulate(3, seed=0)) == 3 * HORIZON * short.shape[1]


def test_too_few_windows_are_said_with_what_to_do():
    forecaster = SeasonalNaive(horizon=4, season_length=1).fit(np.arange(4.0))
    assert forecaster.scores_.shape == (0, 4)
    with pytest.raises(ValueError, match=r"4 steps of the horizon hang together is unknown: fit\(\) had 0 windows"):
        forecaster.simulate()


def test_one_quantile_is_no_distribution():
    with pytest.raises(ValueError, match=r"at least two quantiles, the forecaster has \[0.5\]"):
        Ridge(HORIZON, context_length=24, quantiles=(0.5,)).fit(DATA["walk"]).simulate()


@pytest.mark.parametrize("wrong", [{"n_paths": 0}, {"n_paths": 2.5}, {"horizon": HORIZON + 1}, {"ids": ["stranger"]}])
def test_wrong_wishes_are_refused(wrong):
    with pytest.raises(ValueError, match=r"must be a whole number|longer than the fitted|are not known"):
        fitted().simulate(**wrong)
    with pytest.raises(NotFittedError):
        Ridge().simulate()


def panel(lengths, holes=()):
    values = np.arange(float(sum(lengths)))
    values[list(holes)] = np.nan
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    count = len(lengths)
    return Panel(
        values, offsets, tuple(range(count)), np.array(lengths) - 1, np.zeros(count, dtype=np.int64), CountClock()
    )


def test_windows_are_taken_evenly_over_series_and_time():
    many = panel([500] * 40)
    series, origin = evenly(many, np.full(40, 300), HORIZON)
    assert len(series) == MOST
    assert np.bincount(series, minlength=40).min() >= MOST // 40
    assert 300 <= origin.min() < 310
    assert 485 < origin.max() <= 500 - HORIZON
    few, origin = evenly(panel([10, 20]), np.array([9, 12]), HORIZON)
    assert (few.tolist(), origin.tolist()) == ([1, 1, 1], [12, 13, 14])


def test_windows_with_a_missing_truth_are_left_out():
    _, origin = evenly(panel([30], holes=[20]), np.array([5]), HORIZON)
    assert origin.tolist() == [*range(5, 15), *range(21, 25)]


def test_scores_are_the_inverse_of_quantiles():
    random = np.random.default_rng(0)
    quantiles = np.sort(random.normal(size=(50, HORIZON, 5)), axis=-1)
    levels, scores = (0.05, 0.25, 0.5, 0.75, 0.95), random.normal(size=(50, HORIZON)) * 2
    truth = np.stack([values_at(own, levels, score[None])[0] for own, score in zip(quantiles, scores, strict=True)])
    np.testing.assert_allclose(scores_of(truth, quantiles, levels), scores, atol=1e-9)
    higher = quantiles_at(Forecast(truth, quantiles, levels), [0.6])[..., 0]
    np.testing.assert_allclose(scores_of(higher, quantiles, levels), NormalDist().inv_cdf(0.6), atol=1e-9)


def test_equal_scores_tie_no_steps_together():
    ranks = ranks_of(np.zeros((2000, 2)))
    assert sorted(ranks[:, 0]) == list(range(2000))
    assert abs(np.corrcoef(ranks.T)[0, 1]) < 0.1
