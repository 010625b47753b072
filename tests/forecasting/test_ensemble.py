"""Ensembles of corrections: what one forecaster keeps, several keep too."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone

from titans_ts import MemoryConfig, TitansForecaster, TrainConfig
from titans_ts.core.state import leaves, map_state
from titans_ts.forecasting.door import read
from titans_ts.forecasting.ensemble import Voice, averaged
from titans_ts.forecasting.streaming import StreamingForecaster
from titans_ts.forecasting.training import Batch
from titans_ts.models.config import BackboneConfig

HORIZON = 4
MEMORY = MemoryConfig(dim=8, heads=2, depth=1, expansion=2, chunk=16, conv=2, persistent=2)
SMALL = BackboneConfig(dim=8, depth=1, heads=2, window=3, segment=3, dropout=0.0, residual_init=1.0, memory=MEMORY)
QUICK = TrainConfig(steps=3, batch=4, checks=1)
NAME = "TitansForecaster"


def make(**params):
    defaults = {"horizon": HORIZON, "patch_length": 4, "context_length": 16, "model": SMALL, "train": QUICK}
    return TitansForecaster(**{**defaults, "ensemble": 3, "random_state": 0, **params})


def frame_of(length=160):
    random, parts = np.random.default_rng(0), []
    for place, name in enumerate("abc"):
        steps = np.arange(length - 9 * place)
        y = 10.0**place * (np.sin(2 * np.pi * steps / 7) + 0.3 * random.normal(size=len(steps)))
        parts.append(pd.DataFrame({"unique_id": name, "ds": steps, "y": y}))
    return pd.concat(parts, ignore_index=True)


WHOLE = frame_of()
AHEAD = WHOLE.groupby("unique_id").cumcount(ascending=False)
PAST, LATER = (WHOLE[part].reset_index(drop=True) for part in (AHEAD >= 10, AHEAD < 10))


def heard(forecaster):
    """The forecaster with corrections that matter, for three steps of training leave all of them without a weight."""
    forecaster.correction_ = 0.5
    forecaster.voices_ = tuple(Voice(v.model, 0.3 + 0.2 * i) for i, v in enumerate(forecaster.voices_))
    return forecaster


@pytest.fixture(scope="module")
def fitted():
    return heard(make().fit(PAST))


def copied(forecaster):
    return pickle.loads(pickle.dumps(forecaster))


def values(said):
    return said.drop(columns=["unique_id", "ds"]).to_numpy()


def single(forecaster, place):
    """The forecaster that has the model of this place alone."""
    other = copied(forecaster)
    models = [(other.model_, other.correction_), *((voice.model, voice.weight) for voice in other.voices_)]
    (other.model_, other.correction_), other.voices_ = models[place], ()
    other._known = other._known.__class__(
        other._known.ids, other._known.ends, other._known.phases, other._known.clock, other._start(read(PAST)[0])
    )
    return other


def test_the_forecast_is_the_average_of_those_of_its_models(fitted):
    fitted = copied(fitted)
    shares = fitted.calibration_
    fitted.calibration_ = shares.__class__(0.0, 0.0, 1.0, 1.0, shares.table, shares.habits, shares.sizes)
    each = [values(single(fitted, place).predict(level=80)) for place in range(3)]
    assert np.abs(each[0] - each[1]).max() > 1e-3
    np.testing.assert_allclose(values(fitted.predict(level=80)), np.mean(each, axis=0), rtol=1e-5, atol=1e-6)


def test_one_is_the_forecaster_without_an_ensemble():
    one = make(ensemble=1).fit(PAST)
    assert one.voices_ == ()
    assert one._known.state.voices == ()
    first = make(ensemble=2).fit(PAST)
    for own, theirs in zip(one.model_.parameters(), first.model_.parameters(), strict=True):
        assert torch.equal(own, theirs)
    for own, theirs in zip(one.model_.parameters(), first.voices_[0].model.parameters(), strict=True):
        assert own.shape == theirs.shape
    assert any(
        not torch.equal(own, theirs)
        for own, theirs in zip(one.model_.parameters(), first.voices_[0].model.parameters(), strict=True)
    )


def test_the_same_seed_gives_the_same_ensemble():
    assert make().fit(PAST).predict(level=80).equals(make().fit(PAST).predict(level=80))


def test_the_closed_form_is_fitted_once(monkeypatch):
    from titans_ts.forecasting import forecaster as module

    calls = []
    fit = module.fit_linear
    monkeypatch.setattr(module, "fit_linear", lambda *a, **k: calls.append(1) or fit(*a, **k))
    make(train=TrainConfig(steps=3, batch=4, checks=1, refit=False)).fit(PAST)
    assert len(calls) == 1


def test_an_update_equals_the_past_with_the_new_rows(fitted):
    exact = copied(fitted)
    exact.model_.double()
    for voice in exact.voices_:
        voice.model.double()
    state = map_state(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, exact._start(read(PAST)[0]))
    exact._known = exact._known.__class__(
        exact._known.ids, exact._known.ends, exact._known.phases, exact._known.clock, state
    )
    moved = copied(exact)
    for _, step in LATER.groupby("ds"):
        moved.update(step)
    np.testing.assert_allclose(
        values(moved.predict(level=80)), values(exact.predict(y=WHOLE, level=80)), rtol=1e-9, atol=1e-11
    )
    before = [voice.backbone[0].weights[0] for voice in exact._known.state.voices]
    after = [voice.backbone[0].weights[0] for voice in moved._known.state.voices]
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))  # every memory learns


def test_without_adapt_no_memory_learns(fitted):
    frozen = copied(fitted).set_params(adapt=False).update(LATER)
    for old, new in zip(fitted._known.state.voices, frozen._known.state.voices, strict=True):
        assert torch.equal(old.backbone[0].weights[0], new.backbone[0].weights[0])
        assert not torch.equal(old.window, new.window)


def test_predict_changes_nothing(fitted):
    before = [leaf.clone() for leaf in leaves(fitted._known.state)]
    said = fitted.predict(level=80)
    fitted.predict(y=WHOLE)
    fitted.score(LATER)
    assert fitted.predict(level=80).equals(said)
    for old, new in zip(before, leaves(fitted._known.state), strict=True):
        assert torch.equal(old.nan_to_num(), new.nan_to_num())


def test_saved_pickled_and_loaded_ensembles_say_the_same(fitted, tmp_path):
    fitted.save(tmp_path / "saved")
    later = copied(fitted).update(LATER)
    for copy in (TitansForecaster.load(tmp_path / "saved"), copied(fitted)):
        assert copy.ensemble == 3
        assert [voice.weight for voice in copy.voices_] == [voice.weight for voice in fitted.voices_]
        assert copy.predict(level=80).equals(fitted.predict(level=80))
        assert copy.update(LATER).predict(level=80).equals(later.predict(level=80))


def test_new_series_have_a_state_in_every_model(fitted):
    new = WHOLE[WHOLE["unique_id"] == "a"].assign(unique_id="new")
    moved = copied(fitted).update(new)
    assert [len(voice.window) for voice in moved._known.state.voices] == [4, 4]
    np.testing.assert_allclose(values(moved.predict(ids="new")), values(fitted.predict(y=new)), rtol=1e-5)


def test_all_else_works_with_an_ensemble(fitted):
    told = make().backtest(WHOLE, n_windows=2, level=80)
    assert len(told) == 2 * 3 * HORIZON
    assert np.isfinite(told[NAME]).all()
    assert np.isfinite(fitted.score(LATER))
    assert len(fitted.simulate(5, seed=0)) == 5 * 3 * HORIZON
    again = clone(fitted)
    assert again.ensemble == 3
    assert not hasattr(again, "model_")
    assert again.set_params(ensemble=1).fit(PAST).voices_ == ()


def test_a_warm_start_goes_on_with_every_model():
    stopped = TrainConfig(steps=1, batch=4, checks=1, learning_rate=1e-12)
    forecaster = make(warm_start=True).fit(PAST)
    weights = [[p.clone() for p in m.parameters()] for m in (v.model for v in forecaster.voices_)]
    forecaster.set_params(train=stopped).fit(PAST)
    for old, voice in zip(weights, forecaster.voices_, strict=True):
        for before, after in zip(old, voice.model.parameters(), strict=True):
            torch.testing.assert_close(before, after, atol=1e-6, rtol=0)


def test_the_compiled_stream_refuses_an_ensemble(fitted):
    with pytest.raises(ValueError, match="an ensemble has no compiled form"):
        StreamingForecaster.from_forecaster(fitted)


@pytest.mark.parametrize("count", [0, -1, 1.5, "two", True])
def test_the_number_of_models_must_be_whole(count):
    with pytest.raises(ValueError, match="must be a whole number of models, 1 or more"):
        make(ensemble=count).fit(PAST)


def test_forecasts_of_the_same_windows_are_averaged_by_their_weights():
    one = torch.ones(2, 1)
    batch = Batch(0 * one, one, one[..., None], one[:, 0], one, one[:, 0], torch.arange(2), torch.arange(2))
    both, weight = averaged([batch, batch._replace(shift=3 * one, offsets=5 * one[..., None])], [1.0, 0.5])
    assert weight == 1.0
    assert both.shift.tolist() == [[1.25], [1.25]]
    assert both.offsets.flatten().tolist() == [3.0, 3.0]
    elsewhere = batch._replace(origin=torch.arange(1, 3), shift=7 * one)
    assert averaged([batch, elsewhere], [0.4, 1.0]) == (batch, 0.4)
