"""What every benchmark needs: errors gathered piece by piece, the cost of a run, and runs that are kept as JSON."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..forecasting.clock import CountClock
from ..forecasting.panel import Float, Int, Panel

PEAK = Path("/proc/self/clear_refs")  # where the high-water mark of the memory begins anew


class Score:
    """Errors of forecasts, gathered piece by piece; with quantiles also how often the 80 % interval held the truth, and
    the CRPS (twice the quantile loss over the levels, relative to the size of the truth).

    >>> score = Score()
    >>> score.add(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    >>> score.result()
    {'mse': 2.0, 'mae': 1.0}
    """

    def __init__(self) -> None:
        self.squared = self.absolute = self.inside = self.pinball = self.size = 0.0
        self.count = self.judged = 0

    def add(self, forecast: Float, truth: Float) -> None:
        """Count forecasts against what came."""
        error = forecast - truth
        self.squared += float(np.vdot(error, error))
        self.absolute += float(np.abs(error).sum())
        self.count += error.size

    def add_quantiles(self, quantiles: Float, levels: tuple[float, ...], truth: Float) -> None:
        """Count quantiles `[..., Q]`, of which the levels .1 and .9 are two, against what came `[...]`."""
        low, high = (quantiles[..., levels.index(level)] for level in (0.1, 0.9))
        self.inside += float(((low <= truth) & (truth <= high)).sum())
        for place, level in enumerate(levels):
            gap = truth - quantiles[..., place]
            self.pinball += 2 * float(np.maximum(level * gap, (level - 1) * gap).sum()) / len(levels)
        self.size += float(np.abs(truth).sum())
        self.judged += truth.size

    def result(self) -> dict[str, float]:
        """MSE and MAE, rounded to four digits as in the literature; coverage and CRPS where there were quantiles."""
        result = {"mse": self.squared / self.count, "mae": self.absolute / self.count}
        if self.judged:
            result |= {"coverage-80": self.inside / self.judged, "crps": self.pinball / self.size}
        return {name: round(value, 4) for name, value in result.items()}


class Cost:
    """CPU seconds of this process, and its peak memory, since the beginning of the count.

    Memory that earlier runs of the process have not given back counts too. Where the system does not let the peak begin
    anew (Linux does), it is that of the whole process.
    """

    def __init__(self) -> None:
        self.resets = PEAK.exists()
        if self.resets:
            PEAK.write_text("5")
        self.began = time.process_time()

    def cpu_s(self) -> float:
        """CPU seconds of all threads, to a tenth."""
        return round(time.process_time() - self.began, 1)

    def peak_rss_mb(self) -> int:
        """The most memory held at any moment, in MiB."""
        if not self.resets:
            return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)  # bytes, where there is no /proc
        lines = PEAK.with_name("status").read_text().splitlines()
        return round(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024)


def panel_of(rows: Float, ids: tuple[int, ...] | None = None, behind: Int | None = None) -> Panel:
    """The rows of an array [N, T] as series without timestamps; ids are their numbers unless given, and may repeat.
    behind: the step after the last of each `[N]`; None: the first of all is step 0.

    >>> panel_of(np.zeros((2, 5))).lengths.tolist()
    [5, 5]
    """
    count, length = rows.shape
    offsets, ends = length * np.arange(count + 1), np.full(count, length - 1) if behind is None else behind - 1
    ids = tuple(range(count)) if ids is None else ids
    return Panel(np.ascontiguousarray(rows).ravel(), offsets, ids, ends, np.zeros_like(ends), CountClock(timed=False))


def in_own_process(module: str, *arguments: str) -> Any:
    """What `python -m module arguments` prints last, as JSON: a measurement in a process of its own, on one thread."""
    run = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise RuntimeError(f"python -m {module} {' '.join(arguments)}: {run.stderr.strip()[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def commit() -> str | None:
    """The commit of the checkout that this runs from, None outside of one."""
    folder = Path(__file__).parent
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True)
    return asked.stdout.strip() or None


def machine() -> str:
    """What this runs on: the kind of processor, how many cores, and torch.

    >>> machine().split(", ")[1].endswith("cores")
    True
    """
    return f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"


def not_measured(
    earlier: dict[str, Any] | None,
    about: dict[str, Any],
    part: str,
    measures: Callable[[dict[str, Any]], bool],
    told: tuple[str, ...] = ("commit",),
) -> list[dict[str, Any]]:
    """The rows `earlier[part]` of another run that this one does not measure, each with its commit, or with all that
    was `told` of that run as a whole; an error where they cannot stand beside new ones, for they are not of what this
    run says `about` itself.

    >>> old = {"commit": "4b1d", "torch": "2.9", "rows": [{"tokens": 1, "s": 3.0}, {"tokens": 2, "s": 6.0}]}
    >>> not_measured(old, {"torch": "2.9"}, "rows", lambda row: row["tokens"] == 1)
    [{'commit': '4b1d', 'tokens': 2, 's': 6.0}]
    """
    if earlier is None:
        return []
    whole = {name: earlier.get(name) for name in told}
    left = [{**whole, **row} for row in earlier[part] if not measures(row)]
    for name, value in about.items():
        if left and earlier.get(name) != value:
            raise ValueError(
                f"the file holds {len(left)} rows that this run does not measure, of {name}={earlier.get(name)!r}, and "
                f"here it is {value!r}: choose another --out, or measure all of them again."
            )
    return left


def require_known(kind: str, asked: Iterable[str], known: Iterable[str]) -> None:
    """Raise `ValueError` unless all that was asked for exists.

    >>> require_known("set", ["etth1", "moon"], ["etth1", "weather"])
    Traceback (most recent call last):
    ValueError: set 'moon' does not exist: there are 'etth1', 'weather'.
    """
    known = tuple(known)
    for each in asked:
        if each not in known:
            raise ValueError(f"{kind} {each!r} does not exist: there are {', '.join(map(repr, known))}.")


def require_part(part: str) -> None:
    """Raise `ValueError` unless this is a part of a data set that can be scored.

    >>> require_part("validation")
    """
    if part not in ("test", "validation"):
        raise ValueError(f"part={part!r} must be 'test' or 'validation'.")


def write_json(result: dict[str, Any], path: Path) -> None:
    """One run as JSON: the whole file or none, whenever the program is stopped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The run that stands in the file, or the error that says what to do with one that is not whole."""
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} holds no whole run ({error}): delete it, and it is measured again.") from error
    return result


def kept(path: Path, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The run that stands in the file; where there is none it is made, and written there. Progress goes to stderr."""
    if not path.exists():
        print(f"{path.stem} ...", file=sys.stderr, flush=True)
        began = time.monotonic()
        write_json(run(), path)
        print(f"{path.stem}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return read_json(path)
