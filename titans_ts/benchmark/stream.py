"""How long one observation takes: the compiled stream beside torch, in the same run, on one core.

Two cases. One series of the default forecaster: an observation comes in and a forecast of the whole horizon goes out,
called from Python. Many series of a small deep memory (width 32, hidden 64): all of them at once. What the weights are
does not matter for the time, and so they are hardly trained. Beside them other packages get the one series, as far as
they are installed.

Every side has its CPU time, how far the measured calls raise the memory of the process, what the state of all series
holds, and its rate: useful operations (`useful_operations`, the same number for both sides) by CPU time. Other packages
do other arithmetic, and so they have no rate.

N series, T step.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..core.config import MemoryConfig
from ..forecasting.forecaster import TitansForecaster
from ..forecasting.panel import Float, Int
from ..forecasting.streaming import StreamingForecaster
from ..forecasting.training import TrainConfig
from ..models.config import BackboneConfig
from .counts import Useful, by_tokens, gflops
from .memory import Peak, product_gflops
from .runs import commit, machine
from .stream_peers import PEERS, installed_version, prepared

HORIZON, SEASON, STEPS = 24, 24, 600
SINGLE, SINGLE_TORCH, WARM = 4000, 80, 16  # observations measured, and before that unmeasured
SINGLE_PEER = 4000  # observations measured of a peer, at most
PRODUCT = (256, 64)  # rows and width of the plain product beside which rates stand
COSTS = {"CPU": "cpu_us", "rise, MiB": "rise_mib", "state, MiB": "state_mib", "GFLOP/s": "gflops"}
SMALL = BackboneConfig(
    dim=32, depth=1, heads=2, memory=MemoryConfig(dim=32, heads=1, depth=2, expansion=2, persistent=4)
)


def seasonal(steps: int, series: int, seed: int = 0) -> Float:
    """Noisy seasons, [T, N].

    >>> seasonal(5, 2).shape
    (5, 2)
    """
    random, turns = np.random.default_rng(seed), 2 * np.pi * np.arange(steps)[:, None] / SEASON
    wave: Float = np.sin(turns + np.arange(series)) + 0.1 * random.normal(size=(steps, series))
    return wave


def bandwidth(megabytes: int = 256) -> float:
    """Bytes a second of CPU time that one core reads and writes in memory, the median of several sweeps.

    >>> bandwidth(1) > 0
    True
    """
    x, times = np.ones(megabytes * 2**18, dtype=np.float32), []
    for _ in range(7):
        began = time.process_time()
        np.multiply(x, 1.0, out=x)
        times.append(time.process_time() - began)
    return float(2 * x.nbytes / np.median(times))


def timed(
    step: Callable[[int], object], count: int, warm: int = WARM, clock: Callable[[], int] = time.perf_counter_ns
) -> Float:
    """Microseconds of each of `count` calls, after `warm` calls that are not measured.

    >>> timed(abs, 3, warm=1).shape
    (3,)
    """
    times = np.empty(count)
    for i in range(warm + count):
        began = clock()
        step(i)
        if i >= warm:
            times[i - warm] = (clock() - began) / 1e3
    return times


def written_bytes(forecaster: TitansForecaster) -> int:
    """Bytes that one write moves for one series: weights and momentum read and written, the anchor read."""
    held = forecaster._known.state.series.backbone
    once = sum(part[0].nbytes for block in held for part in block.weights)
    return once * (4 + any(block.anchor for block in held))


def fitted(model: BackboneConfig | None, series: int) -> TitansForecaster:
    """A forecaster of the default sizes, whose weights have hardly learnt; its correction counts in full, for where it
    has no weight torch does not ask the model at all."""
    settings = TrainConfig(steps=3, checks=1)
    forecaster = TitansForecaster(
        horizon=HORIZON, season_length=SEASON, model=model, train=settings, random_state=0, device="cpu"
    )
    forecaster.fit(seasonal(STEPS, series)).correction_ = 1.0
    return forecaster


def spread_of(times: Float, series: int = 1) -> dict[str, float]:
    """Median, 99th percentile and mean, for one of the series, and how many calls were measured.

    >>> spread_of(np.array([2.0, 4.0, 6.0]), 2)["median_us"]
    2.0
    """
    each = times / series
    return {
        "median_us": round(float(np.median(each)), 3),
        "p99_us": round(float(np.percentile(each, 99)), 3),
        "mean_us": round(float(each.mean()), 3),
        "calls": times.size,
    }


def watched(
    step: Callable[[int], object], count: int, warm: int = WARM, clock: Callable[[], int] = time.perf_counter_ns
) -> tuple[Float, dict[str, float]]:
    """Microseconds of each of `count` calls, after `warm` calls that are not measured, and of all together: the mean
    CPU time of one, with that of processes that it starts, and how far they raise the memory of this process, in MiB.

    >>> times, cost = watched(abs, 3)
    >>> len(times), sorted(cost)
    (3, ['cpu_us', 'rise_mib'])
    """

    def spent() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(each.ru_utime + each.ru_stime for each in used)

    timed(step, 0, warm)  # what is compiled and loaded at the first calls is not theirs
    peak, began = Peak(), spent()
    times = timed(lambda i: step(warm + i), count, 0, clock)
    used = 1e6 * (spent() - began) / count
    return times, {"cpu_us": round(used, 3), "rise_mib": round(max(peak.rise(), 0.0), 1)}


def measured(step: Callable[[int], object], count: int) -> dict[str, float]:
    """`spread_of` so many calls of one series, and what they cost (`watched`): other programs that want the core make
    the times longer, and of a call that takes milliseconds they do so every time.

    >>> sorted(measured(abs, 3))
    ['calls', 'cpu_us', 'mean_us', 'median_us', 'p99_us', 'rise_mib']
    """
    times, cost = watched(step, count)
    return {**spread_of(times), **cost}


def state_mib(forecaster: TitansForecaster, stream: StreamingForecaster) -> tuple[float, float]:
    """What the state of all series holds, in MiB: that of the stream, and that of torch."""
    model, readout = stream.model, stream.readout
    arrays = [model.state, model.exact, model.counts, readout.steps, readout.rows]
    arrays += [*stream._fading[2:3], *stream._fading[4:], *stream._widths]
    leaves = [leaf for leaf in tree_leaves(forecaster._known.state) if isinstance(leaf, Tensor)]
    stores = {leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes() for leaf in leaves}  # shared ones once
    compiled, beside = sum(array.nbytes for array in arrays), sum(stores.values())
    return round(compiled / 2**20, 3), round(beside / 2**20, 3)


def useful_operations(forecaster: TitansForecaster) -> tuple[int, int]:
    """Operations of a patch that is complete, and of a forecast, of one series (`counts`): the layers of the model, its
    memories token by token, and the map of the linear path. Not the fading memories, the widths of intervals and the
    forecasts of which these learn: an observation that completes no patch has nothing to count."""
    model, path = forecaster.model_, forecaster.linear_
    state = model.initial_state(1)
    with torch.no_grad(), Useful(by_tokens) as patch:
        _, state = model.encode(torch.zeros(1, forecaster.patch_length_, dtype=torch.float64), state)
    with torch.no_grad(), Useful(by_tokens) as forecast:
        model.forecast(state)
    return patch.operations, forecast.operations + (0 if path is None else 2 * path.context_length * path.horizon)


def require_same(forecaster: TitansForecaster, stream: StreamingForecaster, position: Int) -> None:
    """Raise `RuntimeError` unless both sides have seen `position` [N] steps and forecast the same."""
    rows, held = np.arange(len(stream)), forecaster._known.state
    seen = [held.series.position.numpy(), stream.panel_state().series.position.numpy()]
    if not all(np.array_equal(each, position) for each in seen):
        raise RuntimeError("the two sides have not seen the same observations: their times cannot be compared")
    said, true = stream.forecast(rows), forecaster._forecast(held, rows)
    if not np.allclose(said.quantiles, true.quantiles, rtol=1e-3, atol=1e-3):
        raise RuntimeError("the two sides forecast different numbers: their times cannot be compared")


def one_series(depth: int) -> dict[str, Any]:
    """An observation in and a forecast out, of one series of the default forecaster with a memory of this depth."""
    model = BackboneConfig(memory=MemoryConfig(dim=64, heads=2, depth=depth, persistent=4))
    forecaster, new = fitted(model, 1), seasonal(SINGLE + WARM, 1, seed=1)
    stream = StreamingForecaster.from_forecaster(forecaster)

    def fused(i: int) -> object:
        stream.update(0, float(new[i, 0]))
        return stream.forecast(0)

    def torch_path(i: int) -> object:
        return forecaster.update(new[i]).predict(level=80)

    began = forecaster._known.state.series.position.numpy().copy()
    beside = measured(torch_path, SINGLE_TORCH)
    timed(fused, SINGLE_TORCH)  # as far as torch has come, to be compared
    require_same(forecaster, stream, began + SINGLE_TORCH + WARM)
    patch, forecast = useful_operations(forecaster)
    compiled, held = measured(fused, SINGLE), state_mib(forecaster, stream)
    return {
        "case": f"one series, default preset, memory depth {depth}: update and forecast",
        "series": 1,
        "fused": {**compiled, "state_mib": held[0]},
        "torch": {**beside, "state_mib": held[1]},
        "operations": round(patch / forecaster.patch_length_ + forecast),
    }


def many_series(series: int, patches: int = 6) -> list[dict[str, Any]]:
    """One observation of every series in one call, where it completes a patch and where not, and all forecasts.

    Both sides get the same observations, and are held to the same forecasts afterwards: a side that was fast because it
    did something else would be found out. Time is CPU time: a call takes so long that on a busy machine other programs
    interrupt every one.
    """

    def each(step: Callable[[int], object], count: int, warm: int) -> tuple[Float, float]:
        times, cost = watched(step, count, warm, time.process_time_ns)
        return times, cost["rise_mib"]

    forecaster = fitted(SMALL, 16)
    forecaster.update(seasonal(8 * WARM, series, seed=1))  # ids beyond the first 16 begin new series
    stream, rows = StreamingForecaster.from_forecaster(forecaster), np.arange(series)
    patch, moved = forecaster.patch_length_, written_bytes(forecaster)
    new = seasonal((patches + 2) * patch, series, seed=2)
    began = forecaster._known.state.series.position.numpy().copy()
    warm = patch + (-forecaster._known.state.series.position[-1].item()) % patch  # measuring begins with a patch
    fused, risen = each(lambda i: stream.update(rows, new[i]), patches * patch, warm)
    # [1, N]: a flat array would be N steps of one series
    beside, risen_beside = each(lambda i: forecaster.update(new[i : i + 1]), patches * patch, warm)
    require_same(forecaster, stream, began + warm + patches * patch)
    written, said = useful_operations(forecaster)
    held = state_mib(forecaster, stream)
    name = f"{series} series, width {SMALL.dim}, hidden {2 * SMALL.memory.head_dim}"

    def case(what: str, ours: tuple[Float, float], theirs: tuple[Float, float], **more: int) -> dict[str, Any]:
        row: dict[str, Any] = {"case": f"{name}: {what}", "series": series}
        for side, (times, rise), state in zip(("fused", "torch"), (ours, theirs), held, strict=True):
            found = spread_of(times, series)
            row[side] = {**found, "cpu_us": found["mean_us"], "rise_mib": rise, "state_mib": state}
        return {**row, **more}

    by_patch, by_patch_beside = fused.reshape(patches, patch), beside.reshape(patches, patch)

    def updates(what: str, pick: Callable[[Float], Float], **more: int) -> dict[str, Any]:
        # how far all updates together raise the memory is said of each kind
        return case(what, (pick(by_patch), risen), (pick(by_patch_beside), risen_beside), **more)

    return [
        updates("update that completes a patch", lambda times: times[:, -1], bytes=moved, operations=written),
        updates("update within a patch", lambda times: times[:, :-1].ravel()),
        updates("update, mean of a patch", lambda times: times.mean(1), operations=round(written / patch)),
        case(
            "forecast",
            each(lambda i: stream.forecast(rows), 5, 1),
            each(lambda i: forecaster.predict(level=80), 3, 1),
            operations=said,
        ),
    ]


def other_packages(earlier: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """What other packages do with the observations of `one_series`; where one is not installed what an earlier run says
    of it, and if none does "version" is None."""
    history, new = seasonal(STEPS, 1)[:, 0], seasonal(SINGLE_PEER + WARM, 1, seed=1)[:, 0].tolist()
    rows = []
    for peer in PEERS:
        row: dict[str, Any] = {"package": peer.package, "version": installed_version(peer.package), "call": peer.call}
        row |= {"learns": peer.learns, "keeps": peer.keeps}
        if row["version"] is not None:
            step = prepared(peer, history, HORIZON, SEASON)
            row |= measured(lambda i, step=step: step(new[i]), min(peer.calls, SINGLE_PEER))  # type: ignore[misc]
        else:
            row = next(({**old, "kept": True} for old in earlier if old["call"] == row["call"] and old["version"]), row)
        rows.append(row)
    return rows


def run_stream(series: int = 10_000, earlier: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """All cases, on one thread, with the bandwidth of the memory and the machine they were measured on. earlier: other
    packages in an earlier run, for those that are not installed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        speed, product = bandwidth(), product_gflops(*PRODUCT)
        cases, peers = [one_series(1), one_series(2), *many_series(series)], other_packages(earlier)
    finally:
        torch.set_num_threads(before)
    for case in cases:
        case["ratio"] = round(case["torch"]["median_us"] / case["fused"]["median_us"], 1)
        for side in ("fused", "torch") if "operations" in case else ():
            case[side]["gflops"] = gflops(case["operations"], 1e-6 * case[side]["cpu_us"])
        if "bytes" in case:
            case["bandwidth_us"] = round(1e6 * case["bytes"] / speed, 3)
            case["of_bandwidth"] = round(case["fused"]["median_us"] / case["bandwidth_us"], 2)
    return {
        "benchmark": "stream",
        "machine": machine(),
        "commit": commit(),
        "bandwidth_gb_s": round(speed / 1e9, 1),
        "product_gflops": round(product, 1),
        "cases": cases,
        "peers": peers,
    }


def peers_table(result: dict[str, Any]) -> pd.DataFrame:
    """The other packages of a run as a frame."""
    rows = [
        {
            "package": row["package"],
            "call": row["call"],
            "median": row.get("median_us", "not installed"),
            "p99": row.get("p99_us", ""),
            "CPU": row.get("cpu_us", ""),
            "rise, MiB": row.get("rise_mib", ""),
        }
        for row in result["peers"]
    ]
    return pd.DataFrame(rows)


def stream_table(result: dict[str, Any]) -> pd.DataFrame:
    """The cases of a run as a frame."""
    rows = [
        {
            "case": case["case"],
            "fused median": case["fused"]["median_us"],
            "fused p99": case["fused"]["p99_us"],
            "torch median": case["torch"]["median_us"],
            "torch p99": case["torch"]["p99_us"],
            "ratio": case["ratio"],
            **{
                f"{side} {title}": case[side].get(number, "")
                for title, number in COSTS.items()
                for side in ("fused", "torch")
            },
        }
        for case in result["cases"]
    ]
    return pd.DataFrame(rows)
