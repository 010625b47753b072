"""The neural peer as a forecaster of long frames, with a stand-in for neuralforecast."""

import sys

import numpy as np
import pandas as pd
import pytest

from titans_ts.benchmark import gift, neural, panels
from titans_ts.benchmark.neural import QuantilePeer

LEVELS = (0.1, 0.5, 0.9)


class LastValue:
    """Repeats the last value of every series, its quantiles in the wrong order."""

    def predict(self, df):
        last = df.groupby("unique_id", sort=False).last().reset_index()
        said = last.loc[last.index.repeat(2), ["unique_id", "ds"]].reset_index(drop=True)
        y = last["y"].repeat(2).to_numpy()
        return said.assign(**{"M-median": y, "M-lo": y + 1, "M-hi": y - 1})


@pytest.fixture
def given(monkeypatch):
    """What a stand-in that repeats the last value was trained on, and how."""
    found = []

    def train_peer(model, frame, freq, levels, **options):
        found.append((frame, {"model": model, "freq": freq, "levels": levels, **options}))
        return LastValue()

    monkeypatch.setattr(neural, "train_peer", train_peer)
    return found


def rows(values, begin=0):
    """Series a with the values, series b with half as many of tens."""
    times = pd.date_range("2020-01-01", periods=begin + len(values), freq="D")[begin:]
    half = len(values) // 2
    ids, y = ["a"] * len(values) + ["b"] * half, np.append(values, 10.0 * np.arange(half))
    return pd.DataFrame({"unique_id": ids, "ds": times.append(times[-half:]) if half else times, "y": y})


def test_series_of_all_lengths_are_trained_together_with_their_gaps_masked(given):
    values = np.arange(60.0)
    values[[0, 30]] = np.nan
    peer = QuantilePeer("NHITS", 2, "D", None, LEVELS, 3).fit(rows(values))
    frame, options = given[0]
    assert np.isfinite(frame["y"]).all()
    assert frame.loc[frame["available_mask"] == 0, "y"].tolist() == [1.0, 29.0]
    assert (options["h"], options["input_size"], options["random_seed"]) == (2, 14, 3)
    assert options["levels"] == LEVELS
    assert options["start_padding_enabled"]
    assert 1 <= options["batch_size"] <= neural.MOST_SERIES
    assert peer.season_length_ == 7


def test_quantiles_are_sorted_and_named_like_those_of_our_forecasters(given):
    said = QuantilePeer("NHITS", 2, "D", None, LEVELS, 0).fit(rows(np.arange(60.0))).predict(LEVELS)
    assert said.columns.tolist() == ["unique_id", "ds", "QuantilePeer", *(f"QuantilePeer-ql{q}" for q in LEVELS)]
    assert said.iloc[0, 2:].tolist() == [59.0, 58.0, 59.0, 60.0]
    with pytest.raises(ValueError, match="must be the levels that were trained"):
        QuantilePeer("NHITS", 2, "D", None, LEVELS, 0).predict((0.5,))


def test_an_update_moves_the_context_on_and_trains_nothing(given):
    peer = QuantilePeer("NHITS", 2, "D", None, LEVELS, 0).fit(rows(np.arange(60.0)))
    peer.update(rows(np.array([100.0]), begin=60))
    assert len(given) == 1
    recent = peer.recent_[peer.recent_["unique_id"] == "a"]
    assert recent["y"].tolist() == [*np.arange(47.0, 60.0), 100.0]
    assert peer.predict(LEVELS).iloc[0, 2] == 100.0


def test_what_is_known_ahead_is_trained_on_kept_and_told(monkeypatch):
    given, told = [], []

    class Recorder(LastValue):
        def predict(self, df, futr_df):
            told.append((df, futr_df))
            return super().predict(df)

    monkeypatch.setattr(neural, "train_peer", lambda *asked, **options: given.append((*asked, options)) or Recorder())
    frame = rows(np.arange(60.0)).assign(load=1.0, other="text")
    peer = QuantilePeer("NHITS", 2, "D", None, LEVELS, 0, ("load",)).fit(frame)
    peer.update(rows(np.array([100.0]), begin=60).assign(load=2.0, other="text"))
    future = pd.DataFrame({"unique_id": ["a"], "ds": [pd.Timestamp("2020-03-02")], "load": [3.0]})
    peer.predict(LEVELS, future)
    _, trained, _, _, options = given[0]
    assert options["futr_exog_list"] == ["load"]
    assert list(trained.columns) == ["unique_id", "ds", "y", "load", "available_mask"]
    assert told[0][1] is future
    assert told[0][0].loc[told[0][0]["unique_id"] == "a", "load"].tolist() == [*[1.0] * 13, 2.0]


def test_the_peers_as_they_are_learn_a_season_and_what_is_known_ahead(monkeypatch):
    pytest.importorskip("neuralforecast")
    for budget in (neural.BUDGET, neural.PANEL_BUDGET):
        monkeypatch.setitem(budget, "max_steps", 100)
    values = np.sin(2 * np.pi * np.arange(300.0)[:, None] / 12 + np.arange(2))
    for model in ("NHITS", "PatchTST"):
        peer = neural.fit_peer(model, values[:250], 24, 6, 0)
        said = neural.say_peer(peer, values[250:274].T)
        assert said.shape == (2, 6)
        assert np.square(said - values[274:280].T).mean() < 0.2
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2020", periods=306, freq="D")})
    frame["load"] = random.normal(size=306)
    frame["y"] = 3 * frame["load"]
    errors = []
    for known in ((), ("load",)):
        peer = QuantilePeer("NHITS", 6, "D", None, LEVELS, 0, known).fit(frame[:300])
        said = peer.predict(LEVELS, frame[300:][["unique_id", "ds", *known]])
        errors.append(np.abs(said["QuantilePeer"].to_numpy() - frame["y"][300:].to_numpy()).mean())
    assert errors[1] < 0.5 * errors[0]


def test_few_long_series_are_unfolded_at_a_time(given):
    QuantilePeer("NHITS", 720, "15min", None, LEVELS, 0).fit(
        pd.DataFrame({"unique_id": 0, "ds": pd.date_range("2020", periods=60_000, freq="15min"), "y": 1.0})
    )
    assert given[0][1]["batch_size"] == 1
    assert given[0][1]["input_size"] == 512


@pytest.mark.parametrize("model", panels.NEURAL)
def test_a_missing_peer_says_how_to_get_it(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "neuralforecast", None)  # as where it is not installed
    task = gift.Task([np.arange(60.0)], "D", 1, 2, 1)
    with pytest.raises(ModuleNotFoundError, match="pip install neuralforecast"):
        gift.walk(gift.make_forecaster(model, task, 0), task)
    with pytest.raises(ModuleNotFoundError, match="pip install neuralforecast"):
        panels.forecast_fitted(model, rows(np.arange(60.0)), 2, 7, "D", 0)


def test_panels_take_the_peer_as_they_take_our_forecasters(given, monkeypatch):
    monkeypatch.setattr(panels, "LEVELS", LEVELS)
    said = panels.forecast_fitted("NHITS", rows(np.arange(60.0)), 2, 7, "D", 0)
    assert {"unique_id", "ds", "NHITS", "NHITS-ql0.1", "NHITS-ql0.9"} <= set(said)


def test_a_window_is_forecast_from_the_rows_right_before_it(monkeypatch):
    asked = []

    class Recorder(LastValue):
        def predict(self, df):
            asked.append(df["y"].to_numpy())
            y = np.full((2, len(gift.LEVELS)), df["y"].iloc[-1])
            return pd.DataFrame({"unique_id": 0, "ds": [1, 2]}).join(pd.DataFrame(y))

    monkeypatch.setattr(neural, "train_peer", lambda *_, **__: Recorder())
    values = np.random.default_rng(0).normal(size=60)
    task = gift.Task([values], "D", 1, 2, 3)
    result = gift.walk(gift.make_forecaster("NHITS", task, 0), task)
    for window, context in enumerate(asked):
        np.testing.assert_array_equal(context, values[: 54 + 2 * window][-14:])
    assert (result["windows"], result["values"]) == (3, 6)
