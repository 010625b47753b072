"""`fit(sample_weight=)`: a series of weight 2 is two alike, one of weight 0 is not there, equal weights are none."""

import functools
import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from titans_ts import DataError, MemoryConfig, Ridge, SeasonalNaive, TitansForecaster, TrainConfig
from titans_ts.forecasting.baselines import residual_quantiles
from titans_ts.forecasting.covariates import covariates_of, fit_covariates, grouped, unfitted, with_map
from titans_ts.forecasting.door import read
from titans_ts.forecasting.fading import fit_fading
from titans_ts.forecasting.intake import weights_of
from titans_ts.forecasting.linear import LinearPath, Trials, fit_linear
from titans_ts.forecasting.panel import Schema
from titans_ts.forecasting.training import Batch, Sequences, any_of, confirmed_weight, draw, errors_left, losses
from titans_ts.forecasting.windows import in_proportion, series_scales, windows_between
from titans_ts.models.config import BackboneConfig

HORIZON = 4
SMALL = BackboneConfig(
    dim=8, depth=1, heads=2, window=3, segment=3, memory=MemoryConfig(dim=8, heads=2, depth=1, expansion=2, chunk=16)
)
IDS = ("a", "b", "c")


def frame_of(length=120, seed=0):
    """Three daily series that go different ways about it; a price moves them, each in its own measure."""
    random, parts = np.random.default_rng(seed), []
    for place, name in enumerate(IDS):
        rows = length - 5 * place
        steps, price = np.arange(rows), random.normal(size=rows)
        y = np.sin(2 * np.pi * steps / (5 + 2 * place)) + 0.5 * (place + 1) * price + 0.3 * random.normal(size=rows)
        ds = pd.date_range(pd.Timestamp("2024-01-01"), periods=rows, freq="D")
        parts.append(pd.DataFrame({"unique_id": name, "ds": ds, "y": 10.0**place * y, "price": price}))
    return pd.concat(parts, ignore_index=True)


FRAME = frame_of()
TWICE = pd.concat([FRAME, FRAME[FRAME["unique_id"] == "b"].assign(unique_id="again")], ignore_index=True)
WEIGHTS = {"a": 1.0, "b": 2.0, "c": 1.0}
NEXT = pd.DataFrame({"unique_id": "b", "ds": pd.date_range("2024-04-25", periods=3), "y": 1.0, "price": 0.0})
MAKERS = {
    "titans": lambda: TitansForecaster(
        HORIZON, context_length=14, patch_length=4, model=SMALL, train=TrainConfig(steps=6, batch=4), random_state=0
    ),
    "backbone": lambda: TitansForecaster(
        HORIZON, context_length=14, patch_length=4, model=SMALL, train=TrainConfig(steps=6, batch=4, linear=False)
    ).set_params(random_state=0),
    "linear": lambda: TitansForecaster(HORIZON, context_length=14, train=TrainConfig(steps=0), random_state=0),
    "covariates": lambda: TitansForecaster(
        HORIZON, context_length=14, train=TrainConfig(steps=0), random_state=0, known_covariates=("price",)
    ),
    "ridge": lambda: Ridge(HORIZON, context_length=14),
    "naive": lambda: SeasonalNaive(HORIZON),
}


@pytest.fixture(params=MAKERS)
def kind(request):
    return request.param


@functools.cache
def _fitted(kind, ids=IDS):
    return pickle.dumps(MAKERS[kind]().fit(FRAME[FRAME["unique_id"].isin(ids)]))


def fitted(kind, ids=IDS):
    return pickle.loads(_fitted(kind, ids))


def said(forecaster, **arguments):
    rows = forecaster.make_future_frame(**arguments)
    future = {"future": rows.assign(price=1.0)} if getattr(forecaster, "known_covariates", ()) else {}
    return forecaster.predict(level=80, **arguments, **future)


def panels(beside=()):
    """The panel with a weight of 2, and the panel with the series twice."""
    schema = Schema(known=beside) if beside else None
    weighted, twice = (read(frame, schema=schema)[0] for frame in (FRAME, TWICE))
    return replace(weighted, weights=np.array([1.0, 2.0, 1.0]) / 2), twice


# Laws


@pytest.mark.parametrize("weight", [1, 0.1, 7.0])
def test_equal_weights_are_none(kind, weight):
    weighted = MAKERS[kind]().fit(FRAME, sample_weight=dict.fromkeys(IDS, weight))
    pd.testing.assert_frame_equal(said(weighted), said(fitted(kind)), check_exact=True)


def test_only_the_ratios_matter(kind):
    one, other = (MAKERS[kind]().fit(FRAME, sample_weight=weights) for weights in ([1, 2, 3], [4, 8, 12]))
    pd.testing.assert_frame_equal(said(one), said(other), rtol=1e-9)


def test_every_way_to_say_the_weights_is_the_same():
    shuffled = pd.Series({"c": 1, "stranger": 9, "a": 3, "b": 2})
    ways = [{"c": 1, "a": 3.0, "b": np.float32(2)}, shuffled, np.array([3, 2, 1]), [3, 2, 1]]
    frames = [said(Ridge(HORIZON, context_length=14).fit(FRAME, sample_weight=way)) for way in ways]
    for frame in frames[1:]:
        pd.testing.assert_frame_equal(frame, frames[0], check_exact=True)
    assert not np.allclose(frames[0]["Ridge"], said(fitted("ridge"))["Ridge"], rtol=1e-3)


def test_a_series_of_weight_zero_is_not_learnt_from(kind):
    weighted, without = MAKERS[kind]().fit(FRAME, sample_weight={"a": 1, "b": 0, "c": 1}), fitted(kind, ("a", "c"))
    assert weighted.fitted_ids_ == IDS
    pd.testing.assert_frame_equal(said(weighted, ids=["a", "c"]), said(without), rtol=1e-9)
    history = FRAME[FRAME["unique_id"] == "b"]
    pd.testing.assert_frame_equal(said(weighted, ids=["b"]), said(without, y=history), rtol=1e-5)
    assert len(weighted.update(NEXT).make_future_frame(ids=["b"])) == HORIZON


@pytest.mark.parametrize("unit", ["series", "window"])
@pytest.mark.parametrize("pooling", [np.inf, 2.0, 0.0])
def test_a_weight_of_two_is_the_series_twice_in_the_linear_path(unit, pooling):
    weighted, twice = (
        fit_linear(panel, 14, HORIZON, penalties=(1e-2,), units=(unit,), poolings=(pooling,), blends=((0.5, 0.5),))
        for panel in panels()
    )
    assert len(weighted.weights) == (1 if pooling == np.inf else 4)
    np.testing.assert_allclose(weighted.weights, twice.weights[: len(weighted.weights)], rtol=1e-9, atol=1e-12)
    plain = fit_linear(read(FRAME)[0], 14, HORIZON, penalties=(1e-2,), units=(unit,), blends=((0.5, 0.5),))
    assert np.abs(plain.weights[0] - weighted.weights[0]).max() > 1e-3


def test_a_weight_of_two_is_the_series_twice_in_the_penalty():
    ends = {"a": 96, "b": 92, "c": 88, "again": 92}
    weighted, twice = (
        fit_linear(panel, 14, HORIZON, train_ends=np.array([ends[name] for name in panel.ids])) for panel in panels()
    )
    assert weighted.penalty == twice.penalty
    np.testing.assert_allclose(list(weighted.losses.values()), list(twice.losses.values()), rtol=1e-9)


def test_the_heavy_series_chooses_among_linear_paths():
    random = np.random.default_rng(0)
    y = np.column_stack([np.cumsum(random.normal(size=200)), random.normal(size=200)])  # a walk and a noise
    panel, ends = read(y)[0], np.array([100, 100])
    mean = LinearPath(np.zeros((1, 14, HORIZON)), 1.0, {})
    last = replace(mean, weights=np.eye(14)[None, :, [-1] * HORIZON])
    for weights, paths in (([1.0, 1e-3], [mean, last]), ([1e-3, 1.0], [last, mean])):
        windows = windows_between(replace(panel, weights=np.array(weights)), 14, HORIZON, ends, panel.lengths)
        assert Trials(windows, series_scales(panel, ends), ends, 25.0).best(paths) is paths[1]


def test_a_weight_of_two_is_the_series_twice_in_the_effect_of_covariates():
    weighted, twice = (fit_covariates(panel, panel.lengths, 14, HORIZON, 7) for panel in panels(("price",)))
    np.testing.assert_allclose(weighted.weights, twice.weights[:4], rtol=1e-9)
    plain = fit_covariates(read(FRAME, schema=Schema(known=("price",)))[0], np.array([120, 115, 110]), 14, HORIZON, 7)
    assert np.abs(plain.weights[0] - weighted.weights[0]).max() > 1e-3
    errors = []
    for panel in panels():
        series = np.tile(np.arange(len(panel)), 5)
        rows, error = 90 + np.arange(len(series)) // len(panel), np.sin(np.outer(series % 3, np.arange(4)))
        error[series == 3] = error[series == 1][0]
        errors.append(grouped([(series, rows, error)], panel, np.full(len(panel), 90)))
    np.testing.assert_allclose(*errors, rtol=1e-9)


def test_a_weight_of_two_is_the_series_twice_in_the_map_of_past_covariates():
    schema, maps = Schema(past=("price",)), []
    weighted, twice = (read(frame, schema=schema)[0] for frame in (FRAME, TWICE))
    weighted = replace(weighted, weights=np.array([0.5, 1.0, 0.5]))
    linear = fit_linear(weighted, 14, HORIZON)
    for panel in (weighted, twice, replace(weighted, weights=None)):
        path = replace(unfitted(panel, panel.lengths), share=1.0)
        beside = covariates_of(panel)
        maps.append(with_map(path, linear, panel, beside, panel.lengths, 7, confirm=False).residual)
    np.testing.assert_allclose(maps[0], maps[1], rtol=1e-9, atol=1e-12)
    assert np.abs(maps[2] - maps[0]).max() > 1e-3


def test_a_weight_of_two_is_the_series_twice_in_the_fading_memories():
    weighted, twice = (fit_fading(panel, HORIZON, 7) for panel in panels())
    np.testing.assert_allclose(weighted.weights[0], twice.weights[0], rtol=1e-9)
    assert np.abs(fit_fading(read(FRAME)[0], HORIZON, 7).weights[0] - weighted.weights[0]).max() > 1e-4


def test_a_weight_of_two_is_the_series_twice_in_the_validation_of_the_backbone():
    random = torch.Generator().manual_seed(0)

    def numbers(*shape):
        return torch.rand(*shape, generator=random, dtype=torch.float64)

    series = torch.tensor([0, 1, 1, 2, 0])
    truth = numbers(5, 3)
    truth[1, 1] = torch.nan
    batch = Batch(numbers(5, 3), numbers(5, 3), numbers(5, 3, 2), numbers(5) + 1, truth, numbers(5) + 1, series, series)
    again = torch.tensor([0, 1, 1, 2, 2, 3, 4])
    twice, weights = Batch(*(part[again] for part in batch)), torch.tensor([0.5, 1.0, 0.5], dtype=torch.float64)
    levels = torch.tensor([0.3, 0.7], dtype=torch.float64)
    for one, other in zip(losses(batch, levels, weights), losses(twice, levels), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0.0)
    one, other = errors_left([[batch]], [0.0, 0.3], weights), errors_left([[twice]], [0.0, 0.3])
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0.0)
    assert not torch.allclose(one, errors_left([[batch]], [0.0, 0.3]))


def test_the_heavy_series_decides_whether_the_correction_helps():
    one = torch.ones(2, 1)
    # the correction is right for the first series and wrong for the second
    truth = torch.tensor([[1.0], [-1.0]])
    batch = Batch(0 * one, one, one[..., None], one[:, 0], truth, one[:, 0], torch.tensor([0, 1]), one[:, 0])
    for weights, share in (([1.0, 0.1], True), ([0.1, 1.0], False)):
        assert bool(confirmed_weight(4 * [[batch]], series_weights=torch.tensor(weights))) is share


# Draws


def test_the_backbone_learns_by_the_weights():
    weighted, plain = MAKERS["titans"]().fit(FRAME, sample_weight=[1, 1, 9]), fitted("titans")
    pairs = zip(weighted.model_.parameters(), plain.model_.parameters(), strict=True)
    assert any(not torch.equal(one, other) for one, other in pairs)
    assert [loss for _, loss in weighted.history_] != [loss for _, loss in plain.history_]


def test_sequences_are_drawn_by_rows_times_weight():
    last, usable = torch.tensor([10, 10, 40]), torch.arange(3)
    weights = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)
    random = torch.Generator().manual_seed(0)
    drawn = draw(usable, last, last + 4, 8, 4, 20_000, random, weights)
    shares = torch.bincount(drawn.series).double() / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.4, 0.2, 0.4], dtype=torch.float64), rtol=0.0, atol=0.02)
    held = Sequences(torch.tensor([0, 1, 1, 2]), *(torch.zeros(4),) * 3)
    shares = torch.bincount(any_of(held, 20_000, random, weights)).double() / 20_000
    wanted = torch.tensor([1.0, 0.5, 0.5, 0.25], dtype=torch.float64) / 2.25
    torch.testing.assert_close(shares, wanted, rtol=0.0, atol=0.02)


def test_windows_are_taken_in_proportion():
    panel = replace(read(FRAME)[0], weights=np.array([1.0, 0.5, 0.1]))
    series = np.tile([0, 1, 2, 1], 200)
    taken = in_proportion(panel, series)
    assert len(taken) == 800
    assert (np.diff(taken) >= 0).all()
    counts = np.bincount(series[taken])
    np.testing.assert_allclose(counts / 800, np.array([1.0, 2 * 0.5, 0.1]) / 2.1, atol=2 / 800)
    halves = [np.bincount(series[half], minlength=3) for half in np.split(taken, [np.searchsorted(taken, 400)])]
    assert np.abs(halves[0] - halves[1]).max() <= 2
    assert np.array_equal(in_proportion(read(FRAME)[0], series), np.arange(800))


def test_intervals_are_those_of_the_series_that_count():
    random = np.random.default_rng(0)
    y = np.column_stack([np.sin(np.arange(400) / 3) + 0.1 * random.normal(size=400), random.standard_t(2, size=400)])
    panel, ends = read(y)[0], np.array([300, 300])
    path = fit_linear(panel, 14, HORIZON)
    both, alone = (
        residual_quantiles(path, each, end, (0.1, 0.9))
        for each, end in ((panel, ends), (panel.head(400).select([0]), ends[:1]))
    )
    light = replace(panel, weights=np.array([1.0, 1e-6]))
    np.testing.assert_allclose(residual_quantiles(path, light, ends, (0.1, 0.9)), alone, rtol=0.05)
    assert (np.ptp(both, axis=1) > 1.5 * np.ptp(alone, axis=1)).all()


def test_strangers_are_forecast_as_the_heavy_series_are():
    steps = np.arange(300)
    two = np.column_stack([np.sin(steps), np.sin(steps)]) + 0.5 * np.random.default_rng(0).normal(size=(300, 2))
    two[:, 1] = np.where(steps % 2, 1.0, -1.0) * np.abs(two[:, 1])
    errors = {}
    for name, weights in {"first": [20, 1], "second": [1, 20]}.items():
        forecaster = Ridge(HORIZON, context_length=12).fit(two, sample_weight=weights)
        errors[name] = np.abs(forecaster.predict(y=np.sin(steps)) - np.sin(300 + np.arange(HORIZON))).mean()
    assert errors["first"] < 0.5 * errors["second"]


def test_a_backtest_learns_by_the_weights():
    weights = {"a": 1, "b": 0, "c": 3}
    rolled = Ridge(HORIZON, context_length=14).backtest(FRAME, n_windows=1, sample_weight=weights)
    past = FRAME[FRAME.groupby("unique_id").cumcount(ascending=False) >= HORIZON]
    once = Ridge(HORIZON, context_length=14).fit(past, sample_weight=weights).predict()
    np.testing.assert_array_equal(rolled["Ridge"], once["Ridge"])


def test_a_forecaster_of_weights_goes_on_as_any(tmp_path):
    forecaster = MAKERS["titans"]().fit(FRAME, sample_weight={"a": 1, "b": 0, "c": 3})
    forecaster.save(tmp_path / "model")
    loaded = TitansForecaster.load(tmp_path / "model")
    pd.testing.assert_frame_equal(loaded.update(NEXT).predict(level=80), forecaster.update(NEXT).predict(level=80))


# What is refused


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"a": 1, "c": 1}, r"no weight of series 'b'. Fix"),
        ({"a": 1, "b": -1, "c": 1}, r"series 'b': its sample_weight is -1. Fix: pass a number of 0 or more"),
        ([1, np.nan, np.inf], r"series 'b': its sample_weight is nan \(1 more series too\)"),
        ([1, None, 1], r"series 'b': its sample_weight is nan"),
        ([1, "much", 1], r"holds text such as 'much', not numbers"),
        ([1, 1], r"has shape \(2,\), and there are 3 series \('a', 'b', 'c'\)"),
        (np.ones(len(FRAME)), r"has shape \(345,\), and there are 3 series"),
        (np.ones((3, 1)), r"has shape \(3, 1\)"),
        (2.0, r"has shape \(\), and there are 3 series"),
        ([0, 0, 0], "every sample_weight is 0"),
        (pd.Series([1, 1, 1, 1], index=["a", "b", "c", "c"]), "more than one weight"),
    ],
)
def test_weights_that_cannot_be_are_refused(weights, words):
    with pytest.raises(DataError, match=words):
        Ridge(HORIZON, context_length=14).fit(FRAME, sample_weight=weights)


def test_a_weight_of_one_series_alone_must_still_be_a_list():
    y = np.sin(np.arange(60.0))
    with pytest.raises(DataError, match=r"has shape \(\), and there are 1 series"):
        Ridge(HORIZON).fit(y, sample_weight=2.0)
    assert np.array_equal(Ridge(HORIZON).fit(y, sample_weight=[2.0]).predict(), Ridge(HORIZON).fit(y).predict())


def test_weights_come_by_id_or_in_order():
    assert weights_of([True, False], ("a", "b")).tolist() == [1.0, 0.0]
    assert weights_of(pd.Series({1: 0.5, 0: 2.0}), (0, 1)).tolist() == [2.0, 0.5]
