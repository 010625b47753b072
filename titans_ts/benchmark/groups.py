"""What the other series of a group tell, and what several corrections tell together, on four sets.

Every set ends before its test part: ETTh1 and Weather before the test rows of the long-horizon protocol, the wind farms
and the traffic sensors before their last fifth. Of what is left the rows before the last part are learnt from, those
behind are scored, every window of them; the protocol is that of `ltsf`, with a shorter horizon, for what others tell
of a series is news of the next hours. Contexts are the same for all.

The peers are NHITS and PatchTST of neuralforecast, trained on the training rows as in `ltsf`; they are run from an
environment of their own by the same command, into the same folder.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..data import describe, load
from ..forecasting.forecaster import TitansForecaster
from ..forecasting.training import TrainConfig
from . import ltsf
from .ltsf import Split, peer, ridge, say_by, score_windows, seasonal_naive
from .neural import import_peers
from .runs import Cost, commit, kept, require_known

# horizon and context
SETS = {"wind_farms": (24, 96), "los_speed": (12, 96), "etth1": (24, 96), "weather": (24, 144)}
# what differs from the defaults; "closed form" has no neural correction
WAYS: dict[str, dict[str, Any]] = {
    "closed form": {"train__steps": 0},
    "closed form, joined": {"train__steps": 0, "multivariate": True},
    "Titans": {},
    "Titans, joined": {"multivariate": True},
    "Titans, ensemble of 3": {"ensemble": 3},
}
BASELINES = {"ridge": ridge, "seasonal naive": seasonal_naive}
PEERS = {model: partial(peer, model) for model in ("NHITS", "PatchTST")}
ALL = (*WAYS, *BASELINES, *PEERS)


def split_of(name: str, folder: str | None = None) -> Split:
    """A set without its test part, every column in units of its training rows."""
    require_known("set", [name], SETS)
    if name in ltsf.SETS:
        return ltsf.split_set(name, folder, part="validation")
    values = load(name, folder)["y"].to_numpy(dtype=np.float64).reshape(describe(name).series, -1).T
    values = values[: int(0.8 * len(values))]
    train, validation = int(0.7 * len(values)), int(0.15 * len(values))
    known = values[:train]
    return Split((values - known.mean(0)) / known.std(0), train, validation)


def run_groups(name: str, way: str, *, folder: str | None = None, seed: int = 0) -> dict[str, Any]:
    """One forecaster on one set: fitted once, every window scored over the first hours and the whole horizon."""
    require_known("way", [way], ALL)
    if way in PEERS:
        import_peers(way)
    torch.set_num_threads(1)
    split, (horizon, context), cost = split_of(name, folder), SETS[name], Cost()
    season, joined = describe(name).season_length, 0
    if way not in WAYS:
        learn = PEERS[way] if way in PEERS else BASELINES[way]
        say, context, _ = learn(split, season, context, horizon, seed)
    else:
        forecaster = TitansForecaster(
            horizon=horizon,
            context_length=context,
            season_length=season,
            train=TrainConfig(validation=split.validation, refit=False),
            random_state=seed,
        ).set_params(**WAYS[way])
        say = say_by(forecaster.fit(split.values[: split.begin]))
        joined = 0 if forecaster.joint_ is None else int((forecaster.joint_.shares > 0).sum())
    fitted = cost.cpu_s()
    scores = score_windows(say, split, context, (max(horizon // 8, 1), horizon))
    return {
        "set": name,
        "way": way,
        "seed": seed,
        "commit": commit(),
        "horizon": horizon,
        "context": context,
        "series": split.values.shape[1],
        "joined": joined,
        "scores": {str(steps): score.result() for steps, score in scores.items()},
        "fit_cpu_s": fitted,
        "score_cpu_s": round(cost.cpu_s() - fitted, 1),
    }


def run_all_groups(
    names: tuple[str, ...], ways: tuple[str, ...], seeds: tuple[int, ...], out: Path, *, folder: str | None = None
) -> list[dict[str, Any]]:
    """Every run in a JSON file of its own; what is there already is read, not run again. Only what is trained differs
    from seed to seed."""
    require_known("set", names, SETS)
    require_known("way", ways, ALL)
    results = []
    for name in names:
        for way in ways:
            for seed in seeds if way in PEERS or way.startswith("Titans") else seeds[:1]:
                file = f"groups-{name}-{way}-{seed}.json".replace(" ", "_").replace(",", "")
                results.append(kept(out / file, partial(run_groups, name, way, folder=folder, seed=seed)))
    return results


def groups_table(results: list[dict[str, Any]]) -> pd.DataFrame:
    """A row a set, horizon and forecaster: MSE, MAE, CRPS and coverage, means over the seeds."""
    rows = [
        {
            "set": run["set"],
            "steps": int(steps),
            "forecaster": run["way"],
            **score,
            "joined": run["joined"],
            "of": run["series"],
            "fit, CPU s": run["fit_cpu_s"],
        }
        for run in results
        for steps, score in run["scores"].items()
    ]
    frame = pd.DataFrame(rows)
    first = {name: place for place, name in enumerate(dict.fromkeys(frame["set"]))}
    frame = frame.sort_values(["set", "steps"], key=lambda c: c.map(first) if c.name == "set" else c, kind="stable")
    return frame.groupby(["set", "steps", "forecaster"], sort=False).mean()
