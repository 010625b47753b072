"""What of a fitted forecaster is saved, and how it is put together again: the words and the tensors of a checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..models.config import TimeSeriesConfig
from ..models.timeseries import TimeSeriesModel
from .base import Known
from .calibration import Calibration
from .checkpoint import (
    backbone_from_json,
    clock_from_json,
    clock_to_json,
    covariates_from_json,
    covariates_to_json,
    id_from_json,
    ids_to_json,
    layout_from_json,
    layout_to_json,
    linear_from_json,
    linear_to_json,
)
from .covariates import CovariateState, path_tensors
from .ensemble import voice_tensors, voices_from_tensors
from .fading import Fading, FadingState
from .grain import Grain
from .inference import PanelState, state_from_tensors, state_tensors
from .joint import joint_from_tensors, joint_tensors
from .training import TrainConfig
from .transform import Arcsinh
from .widths import WidthState

if TYPE_CHECKING:
    from .forecaster import TitansForecaster

LISTS = ("quantiles", "known_covariates", "past_covariates", "static_covariates", "calendar")  # parameters of names


def to_checkpoint(forecaster: TitansForecaster) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The words and the tensors that `restore` takes."""
    known = forecaster._known
    config = {
        "params": params_to_json(forecaster),
        "model": asdict(forecaster.model_.config),
        "linear": None if forecaster.linear_ is None else linear_to_json(forecaster.linear_),
        "fading": {"season": forecaster.fading_.season, "ids": ids_to_json(forecaster.fading_.ids)},
        "correction": forecaster.correction_,
        "calibration": {
            name: getattr(forecaster.calibration_, name)
            for name in ("mean", "median", "head", "width", "lean", "bounded", "tails")
        },
        "lift": forecaster.grain_.lift,
        "history": forecaster.history_,
        "freq": forecaster.freq_,
        "season_length": forecaster.season_length_,
        "skipped": [[*ids_to_json((name,)), why] for name, why in forecaster.skipped_.items()],
        "ids": ids_to_json(known.ids),
        "clock": clock_to_json(known.clock),
        "layout": layout_to_json(forecaster._layout),
    }
    if forecaster.covariates_ is not None:
        config["covariates"] = covariates_to_json(forecaster.covariates_)
    tensors = {f"model.{name}": tensor for name, tensor in forecaster.model_.state_dict().items()}
    tensors |= state_tensors(known.state.series)
    tensors |= {
        "steps": known.state.steps,
        "loose": known.state.loose,
        "rates": torch.from_numpy(forecaster.fading_.rates),
        "rate_weights": torch.from_numpy(forecaster.fading_.weights),
        "known": torch.from_numpy(forecaster.fading_.known),
        "errors": torch.from_numpy(forecaster.calibration_.table),
        "error_habits": torch.from_numpy(forecaster.calibration_.habits),
        "error_sizes": torch.from_numpy(forecaster.calibration_.sizes),
        "grains": torch.from_numpy(np.stack([forecaster.grain_.step, forecaster.grain_.base])),
        "bends": torch.from_numpy(np.stack([forecaster.transform_.edge, forecaster.transform_.size])),
        **{f"fading.{name}": part for name, part in known.state.fading._asdict().items()},
        **{f"widths.{name}": part for name, part in known.state.widths._asdict().items()},
        "ends": torch.from_numpy(known.ends),
        "phases": torch.from_numpy(known.phases),
        "scores": torch.from_numpy(forecaster.scores_),
    }
    if forecaster.covariates_ is not None:
        tensors |= path_tensors(forecaster.covariates_)
        tensors |= {f"beside.{name}": part for name, part in known.state.covariates._asdict().items()}
    if forecaster.joint_ is not None:
        tensors |= joint_tensors(forecaster.joint_)
    if forecaster.voices_:
        config["voices"] = [voice.weight for voice in forecaster.voices_]
        tensors |= voice_tensors(forecaster.voices_, known.state.voices)
    if forecaster.linear_ is not None:
        tensors["linear"] = torch.from_numpy(forecaster.linear_.weights)
        if forecaster.linear_.pull is not None:
            tensors["pull"] = torch.from_numpy(forecaster.linear_.pull)
        if forecaster.linear_.profile is not None:
            tensors["profile"] = torch.from_numpy(forecaster.linear_.profile)
    return config, tensors


def restore(forecaster: TitansForecaster, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Give the forecaster, which has the saved parameters, all that `fit` and `update` had learnt."""
    shape = config["model"]
    shape["backbone"], shape["quantiles"] = backbone_from_json(shape["backbone"]), tuple(shape["quantiles"])
    model = TimeSeriesModel(TimeSeriesConfig(**shape)).to(forecaster._device())
    weights = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    model.load_state_dict(weights)
    forecaster.model_ = model.eval()
    forecaster.linear_ = None
    if config["linear"] is not None:
        forecaster.linear_ = linear_from_json(config["linear"], tensors)
    forecaster.covariates_ = None
    beside: Any = ()
    if "covariates" in config:
        forecaster.covariates_ = covariates_from_json(config["covariates"], tensors)
        place = forecaster._device()
        beside = CovariateState(**{name: tensors[f"beside.{name}"].to(place) for name in CovariateState._fields})
    forecaster.joint_ = joint_from_tensors(tensors)
    forecaster.voices_, states = voices_from_tensors(forecaster.model_, config.get("voices", []), tensors)
    forecaster.correction_ = config["correction"]
    forecaster.calibration_ = Calibration(
        **{**config["calibration"], "tails": tuple(config["calibration"]["tails"])},
        table=tensors["errors"].numpy(),
        habits=tensors["error_habits"].numpy(),
        sizes=tensors["error_sizes"].numpy(),
    )
    forecaster.fading_ = Fading(
        rates=tensors["rates"].numpy(),
        weights=tensors["rate_weights"].numpy(),
        known=tensors["known"].numpy(),
        season=config["fading"]["season"],
        ids=tuple(id_from_json(name) for name in config["fading"]["ids"]),
    )
    edge, size = tensors["bends"].numpy()
    forecaster.transform_ = Arcsinh(edge, size, forecaster.fading_.ids)
    step, base = tensors["grains"].numpy()
    forecaster.grain_ = Grain(step, base, config["lift"])
    forecaster.scores_ = tensors["scores"].numpy()
    forecaster.history_ = [(step, loss) for step, loss in config["history"]]
    forecaster.levels_ = model.config.quantiles
    forecaster.context_length_, forecaster.patch_length_ = model.config.context, model.config.patch
    forecaster.freq_, forecaster.season_length_ = config["freq"], config["season_length"]
    forecaster.skipped_ = {id_from_json(name): why for name, why in config["skipped"]}
    forecaster._layout = layout_from_json(config["layout"])
    forecaster._known = Known(
        ids=tuple(id_from_json(name) for name in config["ids"]),
        ends=tensors["ends"].numpy(),
        phases=tensors["phases"].numpy(),
        clock=clock_from_json(config["clock"]),
        state=PanelState(
            series=state_from_tensors(model, tensors),
            steps=tensors["steps"].to(forecaster._device()),
            fading=FadingState(*(tensors[f"fading.{name}"].to(forecaster._device()) for name in FadingState._fields)),
            widths=WidthState(*(tensors[f"widths.{name}"].to(forecaster._device()) for name in WidthState._fields)),
            loose=tensors["loose"].to(forecaster._device()),
            covariates=beside,
            voices=states,
        ),
    )


def params_to_json(forecaster: TitansForecaster) -> dict[str, Any]:
    """The parameters of a forecaster as JSON."""
    params = forecaster.get_params(deep=False)
    params["model"] = None if forecaster.model is None else asdict(forecaster.model)
    params["train"] = None if forecaster.train is None else asdict(forecaster.train)
    for name in LISTS:
        params[name] = list(params[name])
    if isinstance(forecaster.random_state, np.random.RandomState):
        params["random_state"] = None  # a generator has no spelling; its draws are in the weights already
    return params


def params_from_json(params: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `params_to_json`."""
    params["model"] = None if params["model"] is None else backbone_from_json(params["model"])
    params["train"] = None if params["train"] is None else TrainConfig(**params["train"])
    for name in LISTS:
        params[name] = tuple(params[name])
    return params
