"""What training a forecaster costs: CPU time and memory until it reaches an error, beside neuralforecast's PatchTST.

ETTh1, horizon 96, under the long-horizon protocol (`ltsf.py`): the weights are learnt on the training rows, choices are
made on the validation rows, every window of the test rows counts. Every learner climbs a ladder of budgets, each rung a
fit of its own in a process of its own, on one thread; what it costs to reach `TARGET` is the cost of its cheapest rung
that does. Reading the data is not counted, nor what the libraries load at their first fit: a small one comes before.
The peak is that of the whole process during the fit; the rise is how far the fit raised it. The rate is what the
network was asked to compute while it learnt (`counts`), by the CPU seconds of the whole fit: of ours every pass through
it, those over validation rows too; of the peer forward and backward of every step. Closed forms are not counted, and so
what has no steps has no rate.

The command is run where neuralforecast is installed, so that all rows are of one machine and one run. With
`part="validation"` the test rows are cut off when the set is read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from ..data import describe
from ..forecasting.forecaster import TitansForecaster
from ..forecasting.training import TrainConfig, give_back
from . import ltsf
from .counts import Useful, gflops, products
from .memory import held_mib
from .neural import BUDGET, fit_peer, import_peers, say_peer
from .runs import Cost, Score, commit, in_own_process, read_json, require_known, require_part, write_json

SET, HORIZON, CONTEXT, TARGET = "etth1", 96, 512, 0.375
PEER = "PatchTST"
EVERY = 25  # steps between two looks at the validation rows, as the defaults have it
FIRST = (2 * CONTEXT, CONTEXT)  # rows that the first fit trains on and chooses by
# What our rows change of the defaults. Without the linear path, sequences of one context are as good on the validation
# rows as those of two (MSE 0.849 and 0.850 after 20 steps) and cost less.
OURS: dict[str, dict[str, Any]] = {
    "linear path off": {"linear": False, "fading": False, "sequence": 1.0},
    "linear path on": {},
    "linear path alone": {},
}
# What the rows of the peer change of `neural.BUDGET`. All seven columns in every step are better on the validation rows
# (every sixth window, MSE): 0.863 after 100 steps and 23 CPU seconds, or with every eighth training window 0.930 after
# 11 seconds; with one column a step 0.913 after 400 steps and 39, where neither a learning rate of 0.003 (0.982 after
# 300) nor 32 windows a step (0.924 after 800 and 26) was better.
PEERS: dict[str, dict[str, Any]] = {PEER: {"batch_size": 7}, f"{PEER}, one column a step": {}}
# optimiser steps of each fit; 0 where there are none to choose
LADDERS: dict[str, tuple[int, ...]] = {
    "linear path off": (10, 20, 40, 150),
    "linear path on": (10, 40, 150),
    "linear path alone": (0,),
    PEER: (50, 100, 200, 400),
    f"{PEER}, one column a step": (200, 400, 600),
    "Ridge": (0,),
    "SeasonalNaive": (0,),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """One fit: which learner, for how many steps, scored on which part."""

    learner: str
    steps: int
    part: str = "test"
    seed: int = 0
    folder: str | None = None


class Learnt(NamedTuple):
    """A fitted learner: what it says of contexts, their length, and how many operations its steps took, counted when
    that is called."""

    say: ltsf.Say
    context: int
    operations: Callable[[], int] = lambda: 0


def ours(rung: Rung, split: ltsf.Split) -> Learnt:
    """The forecaster; its weights never see the validation rows."""
    checks = max(1, rung.steps // EVERY)
    settings = TrainConfig(
        steps=rung.steps, checks=checks, validation=split.validation, refit=False, **OURS[rung.learner]
    )
    forecaster = TitansForecaster(
        horizon=HORIZON,
        context_length=CONTEXT,
        season_length=describe(SET).season_length,
        train=settings,
        point="mean",
        random_state=rung.seed,
    )
    with Useful() as useful:
        forecaster.fit(split.values[: split.begin])
    return Learnt(ltsf.say_by(forecaster), CONTEXT, lambda: useful.operations if rung.steps else 0)


def peer(rung: Rung, split: ltsf.Split) -> Learnt:
    """neuralforecast's PatchTST, on the training rows."""
    changes = {"max_steps": rung.steps, **PEERS[rung.learner]}
    fitted = fit_peer(PEER, split.values[: split.train], CONTEXT, HORIZON, rung.seed, **changes)
    windows = torch.zeros(int(BUDGET["windows_batch_size"]), CONTEXT, 1)  # of every step
    return Learnt(
        lambda contexts, columns, rows: say_peer(fitted, contexts),
        CONTEXT,
        lambda: 3 * rung.steps * products(lambda: fitted({"insample_y": windows})),
    )


def learn(rung: Rung, split: ltsf.Split) -> Learnt:
    """The fitted learner of a rung."""
    if rung.learner in OURS:
        return ours(rung, split)
    if rung.learner in PEERS:
        return peer(rung, split)
    fitted = ltsf.FIT[rung.learner](split, describe(SET).season_length, CONTEXT, HORIZON, rung.seed)
    return Learnt(fitted.say, fitted.context)


def measure(rung: Rung) -> dict[str, Any]:
    """One fit in this process: what it costs, and the errors over all windows of the part."""
    torch.set_num_threads(1)
    split = ltsf.split_set(SET, rung.folder, part=rung.part)
    first = ltsf.Split(split.values[: sum(FIRST)], *FIRST)
    learn(replace(rung, steps=min(rung.steps, 2)), first)
    give_back()
    before, cost = held_mib("VmRSS"), Cost()
    learnt = learn(rung, split)
    spent = {"fit_cpu_s": cost.cpu_s(), "peak_rss_mb": cost.peak_rss_mb()}
    spent["rise_mb"] = round(spent["peak_rss_mb"] - before)
    operations = learnt.operations()
    if operations:
        seconds = max(spent["fit_cpu_s"], 0.1)  # they are told in tenths
        spent |= {"operations": operations, "gflops": gflops(operations, seconds)}
    scores: Score = ltsf.score_windows(learnt.say, split, learnt.context, (HORIZON,))[HORIZON]
    errors = {name: scores.result()[name] for name in ("mse", "mae")}
    return {"learner": rung.learner, "steps": rung.steps, "seed": rung.seed, **errors, **spent, "commit": commit()}


def run_train(
    out: Path | None = None,
    *,
    learners: tuple[str, ...] | None = None,
    folder: str | None = None,
    seed: int = 0,
    part: str = "test",
    fresh: bool = False,
    say: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Every rung of every ladder, one after the other; rungs that stand in the file `out` are not climbed again, unless
    all is to be measured `fresh`: then the file is written anew."""
    learners = learners or tuple(LADDERS)
    require_known("learner", learners, LADDERS)
    require_part(part)
    if set(PEERS) & set(learners):
        import_peers(PEER)
    head = {"set": SET, "part": part, "horizon": HORIZON, "context": CONTEXT, "target": TARGET}
    rows: list[dict[str, Any]] = []
    if out is not None and out.exists() and not fresh:
        found = read_json(out)
        if {name: found[name] for name in head} != head:
            raise ValueError(f"{out} holds another run ({found['set']}, {found['part']}): choose another --out.")
        rows = found["rows"]
    done = {(row["learner"], row["steps"], row["seed"]) for row in rows}
    result = {**head, "torch": torch.__version__, "threads": 1, "rows": rows}
    for learner in learners:
        for steps in LADDERS[learner]:
            if (learner, steps, seed) in done:
                continue
            rung = Rung(learner=learner, steps=steps, part=part, seed=seed, folder=folder)
            rows.append(in_own_process("titans_ts.benchmark.train", json.dumps(asdict(rung))))
            say(line_of(rows[-1]))
            if out is not None:
                write_json(result, out)
    return result


def train_table(result: dict[str, Any]) -> pd.DataFrame:
    """Every rung, and whether it is the cheapest one of its learner that reaches the target."""
    frame = pd.DataFrame(result["rows"])
    best = [cheapest([row for row in result["rows"] if row["learner"] == name], TARGET) for name in LADDERS]
    frame["reaches first"] = ["yes" if row in best else "" for row in result["rows"]]
    return frame.drop(columns=["commit"])


def cheapest(rows: list[dict[str, Any]], target: float) -> dict[str, Any] | None:
    """The rung of one learner that reaches the target with the least CPU time; None where none does.

    >>> rows = [{"mse": 0.4, "fit_cpu_s": 1.0}, {"mse": 0.37, "fit_cpu_s": 3.0}, {"mse": 0.36, "fit_cpu_s": 5.0}]
    >>> cheapest(rows, 0.375)
    {'mse': 0.37, 'fit_cpu_s': 3.0}
    """
    reached = [row for row in rows if row["mse"] <= target]
    return min(reached, key=lambda row: float(row["fit_cpu_s"])) if reached else None


def line_of(row: dict[str, Any]) -> str:
    """One rung for the eye.

    >>> row = {"learner": "Ridge", "steps": 0, "mse": 0.367, "mae": 0.391, "fit_cpu_s": 2.9, "peak_rss_mb": 700}
    >>> line_of({**row, "rise_mb": 100})
    'Ridge, 0 steps: MSE 0.3670, MAE 0.3910, fit 2.9 CPU s, peak 700 MB, 100 MB of them by the fit'
    """
    return (
        f"{row['learner']}, {row['steps']} steps: MSE {row['mse']:.4f}, MAE {row['mae']:.4f}, "
        f"fit {row['fit_cpu_s']:.1f} CPU s, peak {row['peak_rss_mb']} MB, {row['rise_mb']} MB of them by the fit"
    )


if __name__ == "__main__":
    print(json.dumps(measure(Rung(**json.loads(sys.argv[1])))))
