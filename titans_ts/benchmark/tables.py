"""Tables of the documentation, written from the JSON of the runs: no number is copied by hand.

A table stands in a Markdown file between `<!-- table NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .panels import OURS, PEERS, SETS
from .prices import prices_table

PLACE = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table.

    >>> print(markdown(["model", "mse"], [["naive", "0.5"]]))
    | model | mse |
    |---|---|
    | naive | 0.5 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" if line[0] != "---" else "|" + "---|" * len(head) for line in lines)


def read_runs(folder: Path, pattern: str) -> list[Any]:
    """The JSON files of a folder whose names match, in the order of their names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(pattern))]


def etth1(folder: Path) -> str:
    """ETTh1-96: a row a forecaster, memory and mode, two errors and the time to fit for every context."""
    runs = sorted(read_runs(folder, "etth1-*-test-0.json"), key=lambda run: int(run["context"]))
    head = ["forecaster", "memory", "mode"]
    for run in runs:
        head += [f"{run['context']}: MSE", "MAE", "fit, CPU s"]
    rows = []
    for place, first in enumerate(runs[0]["rows"]):
        row = [first["model"], first["memory"], first["mode"]]
        for run in runs:
            each = run["rows"][place]
            row += [f"{each['mse']:.4f}", f"{each['mae']:.4f}", f"{each['fit_cpu_s']:.0f}"]
        rows.append(row)
    return markdown(head, rows)


def recall(folder: Path) -> str:
    """Recall of patterns: the worst seed of every wiring and depth of its memory."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for run in read_runs(folder, "recall-*.json"):
        for row in run:
            found.setdefault((row["variant"], row["depth"]), []).append(row)
    head = ["wiring", "memory", "seeds", "with its memory", "emptied", "another series'", "never written"]
    head += ["sees without it", "fit, CPU s"]
    rows = []
    for (variant, depth), each in sorted(found.items(), key=lambda item: (item[0][1], item[0][0])):
        worst = max(each, key=lambda row: row["with memory"] / min(row["emptied"], row["exchanged"]))
        numbers = [f"{worst[name]:.2f}" for name in ("with memory", "emptied", "exchanged", "never written")]
        memory = "linear" if depth == 1 else f"depth {depth}"
        rows.append(
            [
                variant,
                memory,
                str(len(each)),
                *numbers,
                f"{worst['reach']} of {worst['distance']} patches",
                f"{worst['fit_cpu_s']:.0f}",
            ]
        )
    return markdown(head, rows)


def stream(folder: Path) -> str:
    """Microseconds a series of one observation, compiled and in torch."""
    head = ["microseconds a series", "compiled: median", "p99", "torch: median", "p99", "ratio"]
    rows = []
    for run in read_runs(folder, "stream.json"):
        for case in run["cases"]:
            numbers = [case[side][name] for side in ("fused", "torch") for name in ("median_us", "p99_us")]
            said = [f"{number:,.2f}" if number < 100 else f"{number:,.0f}" for number in numbers]
            rows.append([case["case"], f"**{said[0]}**", *said[1:], f"{case['ratio']:g}"])
    return markdown(head, rows)


def panels(folder: Path) -> str:
    """Panels of the competitions: MASE, CRPS and coverage of the 80 % interval, and the means over all sets of the
    models that have run on every one."""
    found = {(run["set"], run["model"]): run for run in read_runs(folder / "panels", "panels-*-0.json")}
    models = [model for model in (*OURS, *PEERS) if any(model == each for _, each in found)]
    rows = []
    for name in SETS:
        cells = [found.get((name, model)) for model in models]
        shown = [f"{run['mase']:.3f} / {run['crps']:.4f} / {run['coverage-80']:.0%}" if run else "" for run in cells]
        rows.append([name, *shown])
    means = []
    for model in models:
        runs = [found[name, model] for name in SETS if (name, model) in found]
        mase, crps = (sum(run[measure] for run in runs) / max(len(runs), 1) for measure in ("mase", "crps"))
        means.append(f"{mase:.3f} / {crps:.4f}" if len(runs) == len(SETS) else "")
    return markdown(["set", *models], [*rows, ["mean", *means]])


def memory(folder: Path) -> str:
    """Speed of the memory: a row a case; time and memory of both sides, how often they are less, and the rate."""
    head = ["case", "same function"]
    for title in ("forward", "forward + backward"):
        head += [f"{title}: us/token", "peer", "faster", "MiB", "peer", "share of a product's rate"]
    rows = []
    for each in json.loads((folder / "memory.json").read_text(encoding="utf-8"))["rows"]:
        row = [each["name"], "yes" if each["same"] else "no"]
        for name in ("forward", "both"):
            row += [f"{each[f'{name}_us']:.1f}", f"{each[f'peer_{name}_us']:.0f}", f"**{each[f'{name}_ratio']:.1f}x**"]
            row += [f"{each[f'{name}_mib']:.0f}", f"{each[f'peer_{name}_mib']:.0f}", f"{each[f'{name}_rate']:.0%}"]
        rows.append(row)
    return markdown(head, rows)


def prices(folder: Path) -> str:
    """Electricity prices: mean absolute error by market and relative to seasonal naive, and what covariates bring."""
    run = json.loads((folder / "prices-test.json").read_text(encoding="utf-8"))
    table = prices_table(run)
    markets = list(run["rows"][0]["mae"])
    head = ["forecaster", "covariates", "seeds", *(f"{name}: MAE" for name in markets)]
    head += ["relative", "80 % interval covers", "fit, CPU s"]
    rows = []
    for each in table.to_dict("records"):
        seeds = str(each["seeds"]) if each["forecaster"] == "Titans" else "-"
        numbers = [f"{each[name]:.2f}" for name in markets]
        last = [f"{each['relative_mae']:.3f}", f"{each['coverage-80']:.0%}", f"{each['fit_cpu_s']:.1f}"]
        rows.append([each["forecaster"], each["covariates"], seeds, *numbers, *last])
    found = run["change"]
    said = f"**{found['change']:+.1%}** ({found['low']:+.1%} to {found['high']:+.1%})"
    rows.append(["change by the covariates (80 % interval)", "", "", *[""] * len(markets), said, "", ""])
    return markdown(head, rows)


TABLES: dict[str, Callable[[Path], str]] = {
    "etth1": etth1,
    "recall": recall,
    "panels": panels,
    "memory": memory,
    "stream": stream,
    "prices": prices,
}


def render(text: str, folder: Path) -> str:
    """The text with every table written anew from the runs in `folder`; an unknown name is a `KeyError`.

    >>> render("No tables here.", Path("."))
    'No tables here.'
    """
    return PLACE.sub(lambda found: f"{found[1]}{TABLES[found[2]](folder)}\n{found[3]}", text)
