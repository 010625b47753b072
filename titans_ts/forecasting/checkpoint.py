"""Forecasters on disk: `config.json` for what a person can read, `weights.safetensors` for the numbers. No pickle."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..core.config import MemoryConfig
from ..models.config import BackboneConfig
from .clock import Clock, CountClock, DateClock, PeriodClock, make_clock
from .covariates import NUMBERS, CovariatePath, Effect
from .layout import Layout
from .linear import LinearPath
from .mix import Part
from .panel import Schema

FORMAT = 11  # raised when an older reader would misread what is written


def write_checkpoint(path: str | Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the folder `path`, made if needed; an existing checkpoint in it is replaced.

    The files are written beside their places first and moved into them last, so that a failure leaves the old ones.
    """
    words = json.dumps({"format": FORMAT, **config}, indent=2, ensure_ascii=False, default=_plain)
    folder = free_folder(path)
    folder.mkdir(parents=True, exist_ok=True)
    weights, text = folder / "weights.safetensors.new", folder / "config.json.new"
    save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}, weights)
    text.write_text(words + "\n", encoding="utf-8")
    weights.replace(folder / "weights.safetensors")
    text.replace(folder / "config.json")


def free_folder(path: str | Path) -> Path:
    """The folder `path`, if it is not there yet or holds nothing but a checkpoint, which may be replaced."""
    folder = Path(path)
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file: pass a folder.")
    files = [file.name for file in folder.iterdir()] if folder.exists() else []
    if unknown := [name for name in files if not name.startswith(("config.json", "weights."))]:
        raise FileExistsError(f"{folder} holds other files ({unknown[0]}, ...): pass a new or an empty folder.")
    return folder


def read_checkpoint(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `write_checkpoint` wrote."""
    folder = Path(path)
    missing = [name for name in ("config.json", "weights.safetensors") if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} is no saved forecaster: {' and '.join(missing)} not found.")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("format") != FORMAT:
        raise ValueError(
            f"{folder} has format {config.get('format')!r} and this version reads format {FORMAT}: "
            "save it again with the version that wrote it, or install that version."
        )
    try:
        return config, load_file(folder / "weights.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{folder / 'weights.safetensors'} is damaged ({error}): restore it, or save again.") from None


def _plain(value: Any) -> Any:
    """NumPy numbers (searches set parameters with them) and pandas offsets as JSON's own."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, pd.offsets.BaseOffset):
        return value.freqstr
    raise TypeError(f"{value!r} is a {type(value).__name__}, which cannot be saved.")


def ids_to_json(ids: tuple[Hashable, ...]) -> list[Any]:
    """Ids as JSON: strings and integers as they are, timestamps and tuples marked."""
    return [_id_to_json(name) for name in ids]


def _id_to_json(name: Hashable) -> Any:
    if isinstance(name, tuple):
        return {"tuple": [_id_to_json(part) for part in name]}
    if isinstance(name, np.generic):
        name = name.item()
    if isinstance(name, pd.Timestamp):
        zone = {} if name.tz is None else {"tz": str(name.tz)}
        return {"timestamp": name.isoformat(), **zone}
    if name is None or isinstance(name, str | int | float | bool):
        return name
    raise TypeError(
        f"series id {name!r} is a {type(name).__name__}; only strings, numbers and timestamps can be saved."
    )


def id_from_json(name: Any) -> Hashable:
    """The inverse of `ids_to_json`, for one id.

    >>> id_from_json({"tuple": ["a", 1]})
    ('a', 1)
    """
    if isinstance(name, dict):
        if "tuple" in name:
            return tuple(id_from_json(part) for part in name["tuple"])
        stamp = pd.Timestamp(name["timestamp"])
        return stamp.tz_convert(name["tz"]) if "tz" in name else stamp
    plain: Hashable = name
    return plain


def clock_to_json(clock: Clock) -> dict[str, Any]:
    """A clock as JSON.

    >>> clock_to_json(CountClock(2))
    {'kind': 'count', 'step': 2, 'timed': True}
    """
    if isinstance(clock, CountClock):
        return {"kind": "count", "step": clock.step, "timed": clock.timed}
    if isinstance(clock, PeriodClock):
        return {"kind": "period", "base": clock.base, "step": clock.step}
    if isinstance(clock, DateClock):
        zone = None if clock.tz is None else str(clock.tz)
        return {"kind": "date", "freq": clock.freq, "unit": clock.unit, "tz": zone}
    raise TypeError(f"a {type(clock).__name__} cannot be saved.")


def clock_from_json(saved: Mapping[str, Any]) -> Clock:
    """The inverse of `clock_to_json`.

    >>> clock_from_json({"kind": "period", "base": "M", "step": 1}).freq
    'M'
    """
    if saved["kind"] == "count":
        return CountClock(saved["step"], saved["timed"])
    if saved["kind"] == "period":
        return PeriodClock(saved["base"], saved["step"])
    times = pd.DatetimeIndex([], dtype=f"datetime64[{saved['unit']}]").tz_localize(saved["tz"])
    return make_clock(times, np.zeros(0, dtype=bool), saved["freq"])


def linear_to_json(path: LinearPath) -> dict[str, Any]:
    """What is said in words of a linear path; its numbers are tensors."""
    pooling = None if path.pooling == math.inf else path.pooling
    return {
        "penalty": path.penalty,
        "unit": path.unit,
        "pooling": pooling,
        "blend": path.blend,
        "mix": [
            [part.unit, None if part.pooling == math.inf else part.pooling, part.halvings, part.usual, share]
            for part, share in path.mix
        ],
        "share": path.share,
        "pulled": path.pulled,
        "ids": ids_to_json(path.ids),
    }


def linear_from_json(saved: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LinearPath:
    """The inverse of `linear_to_json`, with the numbers among the tensors."""
    pooling = math.inf if saved["pooling"] is None else saved["pooling"]
    ids = tuple(id_from_json(name) for name in saved["ids"])
    profile = tensors["profile"].numpy() if "profile" in tensors else None
    mix = tuple(
        (Part(unit, math.inf if to is None else to, halvings, usual), share)
        for unit, to, halvings, usual, share in saved["mix"]
    )
    return LinearPath(
        weights=tensors["linear"].numpy(),
        penalty=saved["penalty"],
        losses={},
        unit=saved["unit"],
        pooling=pooling,
        blend=tuple(saved["blend"]),
        ids=ids,
        share=saved["share"],
        profile=profile,
        mix=mix,
        pulled=saved["pulled"],
        pull=tensors["pull"].numpy() if "pull" in tensors else None,
    )


def backbone_from_json(saved: Mapping[str, Any]) -> BackboneConfig:
    """The inverse of `asdict`."""
    return BackboneConfig(**{**saved, "memory": MemoryConfig(**saved["memory"])})


def covariates_to_json(path: CovariatePath) -> dict[str, Any]:
    """What is said in words of a covariate path; its numbers are tensors."""
    schema, effect = path.schema, asdict(path.effect)
    effect["pooling"] = None if path.effect.pooling == math.inf else path.effect.pooling
    return {
        "known": schema.known,
        "past": schema.past,
        "static": schema.static,
        "calendar": schema.calendar,
        "categories": [[name, ids_to_json(found)] for name, found in (schema.categories or {}).items()],
        "ids": ids_to_json(path.ids),
        "effect": effect,
        "look_back": path.look_back,
        "penalty": path.penalty,
        "share": path.share,
    }


def covariates_from_json(saved: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CovariatePath:
    """The inverse of `covariates_to_json`, with the numbers among the tensors."""
    effect = saved["effect"]
    pooling = math.inf if effect["pooling"] is None else effect["pooling"]
    categories = {name: tuple(id_from_json(each) for each in found) for name, found in saved["categories"]}
    return CovariatePath(
        schema=Schema(
            tuple(saved["known"]),
            tuple(saved["past"]),
            tuple(saved["static"]),
            categories,
            tuple(saved["calendar"]),
        ),
        ids=tuple(id_from_json(name) for name in saved["ids"]),
        effect=Effect(**{**effect, "pooling": pooling, "lags": tuple(effect["lags"]), "gain": tuple(effect["gain"])}),
        look_back=saved["look_back"],
        penalty=saved["penalty"],
        share=saved["share"],
        **{name: tensors[f"covariates.{name}"].numpy() for name in NUMBERS},
    )


def layout_to_json(layout: Layout) -> dict[str, Any]:
    """A layout as JSON. Frames of other libraries come back as pandas frames, categories as plain ids."""
    kind = "long" if layout.kind == "native" else layout.kind
    names = {name: _id_to_json(getattr(layout, name)) for name in ("name", "index_name")}
    return {
        "kind": kind,
        "id_col": layout.id_col,
        "time_col": layout.time_col,
        "target_col": layout.target_col,
        **names,
    }


def layout_from_json(saved: Mapping[str, Any]) -> Layout:
    """The inverse of `layout_to_json`.

    >>> layout_from_json(layout_to_json(Layout("vector"))).kind
    'vector'
    """
    names = {name: id_from_json(saved[name]) for name in ("name", "index_name")}
    return Layout(**{**saved, **names})
