"""Tables of the documentation, written from the JSON of the runs: no number is copied by hand.

A table stands in a Markdown file between `<!-- table NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from math import isnan, nan
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from . import ablation as parts_of
from . import gift as gift_eval
from . import groups as joined
from . import ltsf as long_horizon
from . import train as training
from .panels import NEURAL, OURS, PEERS, SETS
from .prices import prices_table

HONEST = (0.77, 0.83)  # what 80 % intervals may cover
ENOUGH = 1000  # scored values, to tell what intervals cover
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
    found = [{(row["model"], row["memory"], row["mode"]): row for row in run["rows"]} for run in runs]
    rows = []
    for case in dict.fromkeys(case for each in found for case in each):
        row = list(case)
        for each in (rows_of.get(case) for rows_of in found):
            row += [f"{each['mse']:.4f}", f"{each['mae']:.4f}", f"{each['fit_cpu_s']:.0f}"] if each else ["", "", ""]
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


def microseconds(number: float) -> str:
    """A time of the stream, shorter where it is long.

    >>> microseconds(1.234), microseconds(1234.5)
    ('1.23', '1,234')
    """
    return f"{number:,.2f}" if number < 100 else f"{number:,.0f}"


def mebibytes(number: float) -> str:
    """Memory of the stream, with digits where it is little.

    >>> mebibytes(0.0441), mebibytes(551.4)
    ('0.04', '551')
    """
    return f"{number:.2f}" if number < 10 else f"{number:,.0f}"


STREAM = ["microseconds a series", "compiled: median", "p99", "torch: median", "p99", "ratio"]


def times_of(case: dict[str, Any]) -> list[str]:
    """The row of one case under `STREAM`."""
    said = [microseconds(case[side][name]) for side in ("fused", "torch") for name in ("median_us", "p99_us")]
    return [case["case"], f"**{said[0]}**", *said[1:], f"{case['ratio']:g}"]


def stream_times(folder: Path) -> str:
    """Microseconds a series of one observation, compiled and in torch."""
    return markdown(STREAM, [times_of(case) for run in read_runs(folder, "stream.json") for case in run["cases"]])


def stream(folder: Path) -> str:
    """The same, with CPU time, memory and rate of both."""
    sides = ["compiled: CPU, us", "MiB, rise + state", "GFLOP/s", "torch: CPU, us", "MiB, rise + state", "GFLOP/s"]

    def costs_of(found: dict[str, Any]) -> list[str]:
        cpu = microseconds(found["cpu_us"]) if "cpu_us" in found else ""
        memory = " + ".join(mebibytes(found[name]) for name in ("rise_mib", "state_mib") if name in found)
        return [cpu, memory, f"{found['gflops']:.2f}" if "gflops" in found else ""]

    rows = []
    for run in read_runs(folder, "stream.json"):
        rows += [[*times_of(case), *costs_of(case["fused"]), *costs_of(case["torch"])] for case in run["cases"]]
        if "product_gflops" in run:
            rows.append(["a plain product, same run", *[""] * 10, f"{run['product_gflops']:.1f}"])
    return markdown([*STREAM, *sides], rows)


def stream_peers(folder: Path) -> str:
    """Microseconds of one observation of one series and the forecast after it, here and in other packages."""

    def costs_of(found: dict[str, Any]) -> list[str]:
        times = [microseconds(found[name]) for name in ("median_us", "p99_us", "cpu_us")]
        return [*times, mebibytes(found["rise_mib"]) if "rise_mib" in found else "", f"{found['calls']:,}"]

    head = ["one series, horizon 24", "an observation changes", "kept", "median, us", "p99", "CPU, us", "rise, MiB"]
    rows = []
    for run in read_runs(folder, "stream.json"):
        case = run["cases"][0]
        said = costs_of(case["fused"])
        learns = "the neural memory (every patch), the fading ones, the widths of the intervals"
        rows.append(["titans-ts, StreamingForecaster: update, forecast", learns, "the state", *said])
        for row in run["peers"]:
            name = f"{row['package']} {row['version'] or ''}".strip() + (" (an earlier run)" if "kept" in row else "")
            said = ["not installed", *[""] * 4] if row["version"] is None else costs_of(row)
            rows.append([f"{name}, {row['call']}", row["learns"], row["keeps"], *said])
    return markdown([*head, "calls"], rows)


def panels(folder: Path) -> str:
    """Panels of the competitions: MASE, CRPS and coverage of the 80 % interval, and the means over all sets of the
    models that have run on every one."""
    runs = read_runs(folder / "panels", "panels-*-0.json")
    found = {(run["set"], run["model"]): run for run in runs if run.get("part", "test") == "test"}
    models = [model for model in (*OURS, *PEERS, *NEURAL) if any(model == each for _, each in found)]
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


# Means over the four horizons, MSE / MAE, as the authors of Titans print them: Behrouz, Zhong and Mirrokni, "Titans:
# Learning to Memorize at Test Time" (arXiv 2501.00663), table 3.
PUBLISHED = {
    "Titans (LMM)": "0.420 / 0.421, 0.336 / 0.382, 0.358 / 0.387, 0.261 / 0.309, 0.231 / 0.265",
    "SiMBA": "0.441 / 0.432, 0.361 / 0.391, 0.383 / 0.396, 0.271 / 0.327, 0.255 / 0.280",
    "iTransformer": "0.454 / 0.447, 0.383 / 0.407, 0.407 / 0.410, 0.288 / 0.332, 0.258 / 0.278",
    "RLinear": "0.446 / 0.434, 0.374 / 0.398, 0.414 / 0.407, 0.286 / 0.327, 0.272 / 0.291",
    "PatchTST": "0.469 / 0.454, 0.387 / 0.407, 0.387 / 0.400, 0.281 / 0.326, 0.259 / 0.281",
    "Crossformer": "0.529 / 0.522, 0.942 / 0.684, 0.513 / 0.496, 0.757 / 0.610, 0.259 / 0.315",
    "TiDE": "0.541 / 0.507, 0.611 / 0.550, 0.419 / 0.419, 0.358 / 0.404, 0.271 / 0.320",
    "TimesNet": "0.458 / 0.450, 0.414 / 0.427, 0.400 / 0.406, 0.291 / 0.333, 0.259 / 0.287",
    "DLinear": "0.456 / 0.452, 0.559 / 0.515, 0.403 / 0.407, 0.350 / 0.401, 0.265 / 0.317",
}


def spread(values: list[float]) -> str:
    """The mean over the seeds, and the standard deviation where there are several.

    >>> spread([0.5]), spread([0.5, 0.6])
    ('0.5000', '0.5500 ± 0.0707')
    """
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def ltsf(folder: Path) -> str:
    """The long-horizon sets: MSE / MAE at every horizon, means with their spread over the seeds, costs, and the means
    beside those that were published."""
    found: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for run in read_runs(folder / "ltsf", "ltsf-*-test-*.json"):
        context = "" if run["model"] == "SeasonalNaive" else f", {run['context']}"
        found.setdefault((run["model"], context), {}).setdefault(run["set"], []).append(run)
    order = (*long_horizon.OURS, *long_horizon.PEERS)
    columns = sorted(found, key=lambda each: (each[1] == ", free", order.index(each[0])))
    horizons = [str(horizon) for horizon in long_horizon.HORIZONS]

    def cell(runs: list[dict[str, Any]], over: list[str], say: Callable[[list[float]], str]) -> str:
        if not runs:
            return ""
        return " / ".join(
            say([mean(run["scores"][h][measure] for h in over) for run in runs]) for measure in ("mse", "mae")
        )

    rows = []
    for name in long_horizon.SETS:
        each = [found[column].get(name, []) for column in columns]
        rows += [[name, h, *(cell(runs, [h], lambda values: f"{mean(values):.4f}") for runs in each)] for h in horizons]
        rows.append([name, "mean", *(cell(runs, horizons, spread) for runs in each)])
    for title, measure, most in (
        ("fit", "fit_cpu_s", mean),
        ("scoring", "score_cpu_s", mean),
        ("MB", "peak_rss_mb", max),
    ):
        costs = [[run[measure] for runs in found[column].values() for run in runs] for column in columns]
        rows.append([{"MB": "peak, MB"}.get(title, f"{title}, CPU s"), "", *(f"{most(cost):,.0f}" for cost in costs)])
    own = [(model, context) for model, context in columns if context == ", 96"]
    beside = []
    for place, name in enumerate(long_horizon.SETS):
        published = [line.split(", ")[place] for line in PUBLISHED.values()]
        beside.append([name, *(cell(found[column].get(name, []), horizons, spread) for column in own), *published])
    head = ["set", *(f"**{model} here**" for model, _ in own), *PUBLISHED]
    tables = [markdown(["set", "horizon", *map("".join, columns)], rows), markdown(head, beside)]
    ours = [column for column in columns if column[0] == "Titans"]

    streamed = [
        [
            name,
            *(
                cell(
                    [{"scores": run["learning"]} for run in found[column].get(name, []) if "learning" in run],
                    horizons,
                    spread,
                )
                for column in ours
            ),
        ]
        for name in long_horizon.SETS
    ]

    def intervals(scores: list[dict[str, float]]) -> str:
        known = [score for score in scores if "coverage-80" in score]
        means = [mean(score[name] for score in known) for name in ("coverage-80", "crps")] if known else []
        return f"{means[0]:.1%} / {means[1]:.3f}" if means else ""

    ways = {"windows": "scores", "stream, frozen": "frozen", "stream": "learning"}
    covered = [
        [
            name,
            h,
            *(
                intervals([run[way][h] for run in found[column].get(name, []) if "learning" in run])
                for column in ours
                for way in ways.values()
            ),
        ]
        for name in long_horizon.SETS
        for h in horizons
    ]
    head = ["set", "horizon", *(f"{context.removeprefix(', ')}: {way}" for _, context in ours for way in ways)]
    tables.append(markdown(["set, followed in a stream", *map("".join, ours)], streamed))
    return "\n\n".join([*tables, markdown(head, covered)])


def train(folder: Path) -> str:
    """What training costs: of every learner its cheapest fit that reaches the target (where none does, that with the
    least error), relative to the peer's cheapest one; and the least error of its ladder. Below it the commits, where
    the fits are of several."""
    run = json.loads((folder / "train.json").read_text(encoding="utf-8"))
    ladders = {name: [row for row in run["rows"] if row["learner"] == name] for name in training.LADDERS}
    first = {name: training.cheapest(rows, run["target"]) for name, rows in ladders.items()}
    peer = training.cheapest([row for name in training.PEERS for row in ladders[name]], run["target"])
    head = ["learner", "steps tried", f"first at {run['target']} or below", "MSE", "MAE", "fit, CPU s"]
    head += [f"of {training.PEER}'s", "peak, MB", "of them by the fit, MB", "GFLOP/s"]
    head += ["least MSE", "its fit, CPU s"]
    lines = []
    for name, rows in ladders.items():
        if not rows:
            continue
        best, found = min(rows, key=lambda row: float(row["mse"])), first[name]
        shown = found or best
        steps = ", ".join(str(row["steps"]) for row in rows) if rows[0]["steps"] else "-"
        reached = "not reached" if found is None else f"{found['steps']} steps" if found["steps"] else "yes"
        share = f"{found['fit_cpu_s'] / peer['fit_cpu_s']:.0%}" if found and peer else ""
        numbers = [f"{shown['mse']:.4f}", f"{shown['mae']:.4f}", f"{shown['fit_cpu_s']:.1f}", share]
        memory = [f"{shown['peak_rss_mb']:,}", f"{shown['rise_mb']:,}"]
        rate = f"{shown['gflops']:.2f}" if "gflops" in shown else ""
        lines.append([name, steps, reached, *numbers, *memory, rate, f"{best['mse']:.4f}", f"{best['fit_cpu_s']:.1f}"])
    return markdown(head, lines) + commits_of(run["rows"])


def commits_of(rows: list[dict[str, Any]]) -> str:
    """A line that says which fits are of which commit, where these are several.

    >>> rows = [{"learner": "Ridge", "steps": 0, "commit": "4b1d"}, {"learner": "NHITS", "steps": 50, "commit": "7c"}]
    >>> commits_of([*rows, {**rows[1], "steps": 100}]).strip()
    'Not one run, but of several commits: 4b1d (Ridge); 7c (NHITS 50/100).'
    >>> commits_of(rows[:1])
    ''
    """
    found: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        steps = found.setdefault(str(row.get("commit")), {}).setdefault(row["learner"], [])
        steps += [str(row["steps"])] if row["steps"] else []
    if len(found) < 2:
        return ""
    said = []
    for commit, each in found.items():
        fits = [f"{learner} {'/'.join(steps)}".strip() for learner, steps in each.items()]
        said.append(f"{commit} ({', '.join(fits)})")
    return f"\n\nNot one run, but of several commits: {'; '.join(said)}."


def gift_runs(folder: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The runs of GIFT-Eval's test windows, by model and configuration."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for run in read_runs(folder / "gift", "gift-*-test-*.json"):
        found.setdefault(run["model"], {}).setdefault(run["configuration"], []).append(run)
    return found


def gift(folder: Path) -> str:
    """GIFT-Eval's configurations: MASE / CRPS / coverage of the 80 % interval, means over the seeds; and geometric
    means of the ratios to its seasonal naive, beside those of its leaderboard."""
    found = gift_runs(folder)
    models = [model for model in (*gift_eval.OURS, *gift_eval.NEURAL) if model in found]
    published = read_runs(folder / "gift", "gift-published.json")
    naive = published[0]["seasonal_naive"] if published else {}

    def cell(runs: list[dict[str, Any]]) -> str:
        if not runs:
            return ""
        mase, crps, covered = (mean(run[measure] for run in runs) for measure in ("mase", "crps", "coverage-80"))
        frozen = [run["frozen"] for run in runs if "frozen" in run]
        shown = f"{mase:.3f} / {crps:.4f} / {covered:.0%}"
        if not frozen:
            return shown
        return f"{shown} ({mean(run['crps'] for run in frozen):.4f} / {mean(run['coverage-80'] for run in frozen):.0%})"

    rows = []
    for name in gift_eval.CONFIGURATIONS:
        theirs = naive.get(name)
        shown = f"{theirs['mase']:.3f} / {theirs['crps']:.4f}" if theirs else ""
        rows.append([name, *(cell(found[model].get(name, [])) for model in models), shown])
    for title, measure, most in (("fit, CPU s", "fit_cpu_s", mean), ("peak, MB", "peak_rss_mb", max)):
        costs = [[run[measure] for runs in found[model].values() for run in runs] for model in models]
        rows.append([title, *(f"{most(cost):,.0f}" for cost in costs), ""])
    table = markdown(["configuration", *models, "seasonal naive, published"], rows)
    return table + "\n\n" + gift_means(folder)


# Of the leaderboard's models here: the lowest MASE with pretraining and from scratch, and a neural one that many know.
BESIDE = ("Chronos-2", "xLSTM-Mixer", "PatchTST")


def gift_beside(folder: Path) -> str:
    """Of the geometric means those of this package, and of the leaderboard's `BESIDE`."""
    return gift_means(folder, BESIDE)


def gift_means(folder: Path, theirs: tuple[str, ...] = gift_eval.PUBLISHED) -> str:
    """Geometric means over the configurations of the ratios to the published seasonal naive: of every model that has
    run on all of them, in bold, and of those of the leaderboard that are asked for."""
    found, means = gift_runs(folder), list[tuple[str, float, float]]()
    for published in read_runs(folder / "gift", "gift-published.json"):
        for model, ratios in published["geometric_means"].items():
            if model in theirs:
                means.append((model, ratios["mase"], ratios["crps"]))
        for model in (*gift_eval.OURS, *gift_eval.NEURAL):
            runs = [run for each in found.get(model, {}).values() for run in each]
            seeds = sorted({run["seed"] for run in runs})
            naive = published["seasonal_naive"]
            every = [gift_eval.geometric_means([run for run in runs if run["seed"] == seed], naive) for seed in seeds]
            whole = [ratios for ratios in every if ratios]
            if whole:
                mase, crps = (mean(ratios[measure] for ratios in whole) for measure in ("mase", "crps"))
                means.append((f"**{model}{' here' * (model in gift_eval.NEURAL)}**", mase, crps))
    lines = [[model, f"{mase:.3f}", f"{crps:.3f}"] for model, mase, crps in sorted(means, key=lambda each: each[1])]
    return markdown(["model", "MASE relative", "CRPS relative"], lines)


def coverage(folder: Path) -> str:
    """How many configurations have 80 % intervals of Titans whose coverage is `HONEST`, by the JSON of the runs (the
    mean over the seeds): as they go on learning, frozen, and over windows; and totals.

    A configuration of the long horizons is a set and a horizon, its stream the one of the table `ltsf`. A panel is
    forecast once: it has nothing to learn from, and counts the same both ways.
    """
    many, few = f"{ENOUGH:,} values and more", "fewer values"
    found: dict[str, dict[str, list[dict[str, float]]]] = {}

    def add(kind: str, name: str, **covered: float) -> None:
        found.setdefault(kind, {}).setdefault(name, []).append(covered)

    for run in read_runs(folder / "ltsf", "ltsf-*-Titans-test-*.json"):
        for h in run.get("learning", ()):
            ways = {"learning": "learning", "frozen": "frozen", "windows": "scores"}
            said = {way: run[part][h]["coverage-80"] for way, part in ways.items()}
            add(f"long horizons, context {run['context']}", f"{run['set']} {h}", **said)
    for run in read_runs(folder / "gift", "gift-*-Titans-test-*.json"):
        kind, twin = f"GIFT-Eval, {many if run['values'] >= ENOUGH else few}", run.get("frozen", run)
        add(kind, run["configuration"], learning=run["coverage-80"], frozen=twin["coverage-80"])
    for run in read_runs(folder / "panels", "panels-*-Titans-0.json"):
        kind, covered = f"panels, {many if run['values'] >= ENOUGH else few}", run["coverage-80"]
        add(kind, run["set"], learning=covered, frozen=covered)

    def row(title: str, kinds: list[str], ways: tuple[str, ...] = ("learning", "frozen")) -> list[str]:
        each = [runs for kind in kinds for runs in found.get(kind, {}).values()]
        inside = [str(sum(HONEST[0] <= mean(run[way] for run in runs) <= HONEST[1] for runs in each)) for way in ways]
        return [title, str(len(each)), *inside, *[""] * (3 - len(ways))]

    short, free = (f"long horizons, context {context}" for context in ("96", "free"))
    sure, unsure = ([f"{kind}, {size}" for kind in ("GIFT-Eval", "panels")] for size in (many, few))
    rows = [row(kind, [kind], ("learning", "frozen", "windows")) for kind in (short, free)]
    rows += [row(kind, [kind]) for pair in zip(sure, unsure, strict=True) for kind in pair]
    rows.append(row(f"all with {many}, long horizons free", [free, *sure]))
    rows.append(row("**all, long horizons free**", [free, *sure, *unsure]))
    rows.append(row("all, long horizons with context 96", [short, *sure, *unsure]))
    return markdown(["configurations", "how many", "in 77 to 83 %: learning", "frozen", "windows"], rows)


def ablation(folder: Path) -> str:
    """What each part of the memory brings: MASE of the default, and of every variation relative to the default of the
    same seed, mean and spread over the seeds, and the time of its fits."""
    found = {
        (run["path"], run["variation"], run["set"], run["seed"]): run
        for run in read_runs(folder / "ablation", "ablation-*.json")
    }
    seeds = sorted({seed for *_, seed in found})
    rows = []
    for path in parts_of.PATHS:
        for variation in parts_of.VARIATIONS:
            row = [path, variation]
            for name in parts_of.SETS:
                pairs = [(found.get((path, variation, name, s)), found.get((path, "default", name, s))) for s in seeds]
                both = [(one["mase"], other["mase"]) for one, other in pairs if one and other]
                first = variation == "default"
                row.append(spread([one if first else one / other for one, other in both]) if both else "")
            if path not in parts_of.USUAL and not any(row[2:]):
                continue
            cost = [run["fit_cpu_s"] for (p, v, *_), run in found.items() if (p, v) == (path, variation)]
            rows.append([*row, f"{mean(cost):.0f}" if cost else ""])
    return markdown(["forecaster", "variation", *parts_of.SETS, "fit, CPU s"], rows)


def memories(folder: Path) -> str:
    """What the memories of the default do, block by block, and MASE by how much of the past a forecast knows."""
    rows = []
    for name in parts_of.SETS:
        runs = [*read_runs(folder / "ablation", f"ablation-{name}-default-backbone_alone-*.json")]
        for run in [each for each in runs if "memories" in each][:1]:
            blocks = run["memories"]
            row = [name, *(" / ".join(f"{block[key]:.3f}" for block in blocks) for key in ("momentum", "forgetting"))]
            row.append(" / ".join(f"{block['half_life']:,.0f}" for block in blocks))
            row.append(" / ".join(f"{block['read']:.1%}" for block in blocks))
            rows.append([*row, *(f"{run['reach'][str(reach)]:.3f}" for reach in (*parts_of.REACHES, "all"))])
    head = ["set", "momentum", "forgetting", "half of it forgotten after, steps", "says, of its (normalised) input"]
    reaches = (f"{reach} context{'s' * (reach > 1)}" for reach in parts_of.REACHES)
    return markdown([*head, *(f"MASE with {reach}" for reach in reaches), "with all"], rows)


def memory(folder: Path) -> str:
    """Speed of the memory: a row a case; time and memory of both sides, how often they are less, and the rate
    against a product of the memory's width (of a head's width)."""
    head = ["case", "same function"]
    for title in ("forward", "forward + backward"):
        head += [f"{title}: us/token", "peer", "faster", "MiB", "peer", "share of a product's rate"]
    rows = []
    for each in json.loads((folder / "memory.json").read_text(encoding="utf-8"))["rows"]:
        row = [each["name"], "yes" if each["same"] else "no"]
        for name in ("forward", "both"):
            row += [f"{each[f'{name}_us']:.1f}", f"{each[f'peer_{name}_us']:.0f}", f"**{each[f'{name}_ratio']:.1f}x**"]
            rate = f"{each[f'{name}_rate']:.0%}"
            if each["heads"] > 1:
                rate += f" ({each[f'{name}_head_rate']:.0%})"
            row += [f"{each[f'{name}_mib']:.0f}", f"{each[f'peer_{name}_mib']:.0f}", rate]
        rows.append(row)
    return markdown(head, rows)


def prices(folder: Path) -> str:
    """Electricity prices: mean absolute error by market and relative to seasonal naive, and what covariates bring."""
    run = json.loads((folder / "prices-test.json").read_text(encoding="utf-8"))
    table = prices_table(run)
    markets = list(run["rows"][0]["mae"])
    head = ["forecaster", "covariates", "seeds", *(f"{name}: MAE" for name in markets)]
    head += ["relative", "80 % interval covers", "fit, CPU s"]
    trained = {row["model"] for row in run["rows"] if row["seed"] is not None}
    rows = []
    for each in table.to_dict("records"):
        seeds = str(each["seeds"]) if each["forecaster"] in trained else "-"
        numbers = [f"{each[name]:.2f}" for name in markets]
        last = [f"{each['relative_mae']:.3f}", f"{each['coverage-80']:.0%}", f"{each['fit_cpu_s']:.1f}"]
        rows.append([each["forecaster"], each["covariates"], seeds, *numbers, *last])
    if "change" not in run:
        return markdown(head, rows)
    found = run["change"]
    said = f"**{found['change']:+.1%}** ({found['low']:+.1%} to {found['high']:+.1%})"
    rows.append(["change by the covariates, Titans (80 % interval)", "", "", *[""] * len(markets), said, "", ""])
    return markdown(head, rows)


def groups(folder: Path) -> str:
    """Series by themselves, joined, and ensembles: errors over the first hours and the whole horizon, means over the
    seeds."""
    table = joined.groups_table(sorted(read_runs(folder / "groups", "groups-*.json"), key=place_of))
    rows = []
    for (name, steps, way), each in zip(table.index, table.to_dict("records"), strict=True):
        errors = [f"{each[kind]:.4f}" for kind in ("mse", "mae")]
        told = ["", ""] if isnan(each.get("crps", nan)) else [f"{each['crps']:.4f}", f"{each['coverage-80']:.0%}"]
        heard = f"{each['joined']:.0f} of {each['of']:.0f}" if "joined" in way else ""
        rows.append([name, str(steps), way, *errors, *told, heard, f"{each['fit, CPU s']:.0f}"])
    head = ["set", "steps", "forecaster", "MSE", "MAE", "CRPS", "80 % interval covers", "series that listen"]
    return markdown([*head, "fit, CPU s"], rows)


def place_of(run: dict[str, Any]) -> tuple[int, int]:
    """Where a run of `groups` stands in its table."""
    return list(joined.SETS).index(run["set"]), joined.ALL.index(run["way"])


def length(folder: Path) -> str:
    """Time, memory and useful operations a second against the length: a row a side and pass, a column a length; what
    was not measured is said."""
    run = json.loads((folder / "length.json").read_text(encoding="utf-8"))
    lengths = sorted({row["tokens"] for row in run["rows"]})
    found = {(row["side"], row["passes"], row["tokens"]): row for row in run["rows"]}
    rows = []
    for side, passes in dict.fromkeys(key[:2] for key in found):
        points = [found[side, passes, tokens] for tokens in lengths]
        cells = [
            "not measured"
            if "skipped" in each
            else f"{each['seconds']:.3g} s, {each['mib']:,.0f} MiB, {each['gflops']:.0f} GFLOP/s"
            for each in points
        ]
        rows.append([side, {"both": "forward + backward"}.get(passes, passes), *cells])
    return markdown(["layer", "pass", *(f"{tokens:,} tokens" for tokens in lengths)], rows)


def conformance(folder: Path) -> str:
    """The laws: a row an implementation and its settings, a column a law; what fails says by how much, or how."""
    run = json.loads((folder / "conformance.json").read_text(encoding="utf-8"))

    def cell(found: dict[str, Any]) -> str:
        if found["holds"] is None:
            return "-"
        if found["holds"]:
            return "yes"
        if found["check"] == "gradients everywhere" and found["number"] is not None:
            return f"no: {found['number']} {found['words'].split(' without')[0]}"
        return f"no: {found['words'].split(':')[0] if found['number'] is None else format(found['number'], '.2g')}"

    head = ["implementation", "version", "settings", *(found["check"] for found in run["rows"][0]["findings"])]
    rows = [
        [row["name"], row["version"], row["settings"], *(cell(found) for found in row["findings"])]
        for row in run["rows"]
    ]
    return markdown(head, rows)


def compiled(folder: Path) -> str:
    """`torch.compile` beside eager: CPU microseconds a token."""
    run = json.loads((folder / "compiled.json").read_text(encoding="utf-8"))
    head = ["module", "forward, us/token: eager", "compiled", "forward + backward: eager", "compiled"]
    head += ["compiling, CPU s"]
    rows = []
    for row in run["rows"]:
        numbers = [row[f"{name}_{side}_us"] for name in ("forward", "both") for side in ("eager", "compiled")]
        rows.append([row["name"], *(f"{number:.1f}" for number in numbers), f"{row['compiling_s']:.0f}"])
    return markdown(head, rows)


def gpu(folder: Path) -> str:
    """On a CUDA device: tokens a second and memory of language models, of the memory by both ops, and how far the
    device is from the CPU."""
    run = json.loads((folder / "gpu.json").read_text(encoding="utf-8"))
    titles = {"both": "forward + backward"}

    def cell(row: dict[str, Any] | None) -> str:
        if row is None:
            return ""
        return row["skipped"] if "skipped" in row else f"{row['tokens_per_s']:,.0f}, {row['peak_mib']:,} MiB"

    lengths = sorted({row["tokens"] for row in run["models"]})
    found = {(row["size"], row["side"], row["graph"], row["passes"], row["tokens"]): row for row in run["models"]}
    sizes = {(row["size"], row["side"]): row["parameters"] for row in run["models"]}
    models = []
    for size, side, graph, passes in dict.fromkeys(key[:4] for key in found):
        each = [cell(found.get((size, side, graph, passes, tokens))) for tokens in lengths]
        name = f"{side}, as a graph" if graph else side
        models.append([size, name, f"{sizes[size, side] / 1e6:.1f}", titles.get(passes, passes), *each])
    head = ["size", "model", "parameters, millions", "pass", *(f"{tokens:,} tokens" for tokens in lengths)]

    pairs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in run["layers"]:
        pairs.setdefault((row["layer"], row["passes"]), []).append(row)
    layers = []
    for (name, passes), (plain, kernels) in pairs.items():
        both = "skipped" not in plain and "skipped" not in kernels
        ratio = f"**{plain['seconds'] / kernels['seconds']:.1f}x**" if both else ""
        layers.append([name, titles.get(passes, passes), cell(plain), cell(kernels), ratio])
    far = [
        [row["what"], f"{row['output']:.1e}", "" if row["gradient"] is None else f"{row['gradient']:.1e}"]
        for row in run["agreement"]
    ]
    return "\n\n".join(
        [
            markdown(head, models),
            markdown(["memory layer", "pass", "plain torch", "kernels", "faster"], layers),
            markdown(["on the device", "outputs off by", "gradients off by"], far),
        ]
    )


def two_million(folder: Path) -> str:
    """Two million tokens streamed: time and resident memory of the first and the last tenth, and the largest state."""
    path = folder.parent / "long" / "results" / "two_million.json"
    head = [
        "case",
        "tokens",
        "us a position: first tenth",
        "last tenth",
        "resident MiB: first tenth",
        "most afterwards",
    ]
    head += ["largest state: second tenth", "last tenth", "CPU s"]
    rows = []
    for name, run in json.loads(path.read_text(encoding="utf-8")).items():
        micros, resident = run["microseconds a position by tenth"], run["resident memory by tenth, MiB"]
        state = run["largest state by tenth"]
        times = [f"{micros[0]:.1f}", f"{micros[-1]:.1f}", f"{resident[0]:.1f}", f"{max(resident[1:]):.1f}"]
        rows.append(
            [name, f"{run['tokens']:,}", *times, f"{state[1]:.2f}", f"{state[-1]:.2f}", str(run["CPU seconds"])]
        )
    return markdown(head, rows)


TABLES: dict[str, Callable[[Path], str]] = {
    "etth1": etth1,
    "ltsf": ltsf,
    "train": train,
    "gift": gift,
    "gift_beside": gift_beside,
    "coverage": coverage,
    "ablation": ablation,
    "memories": memories,
    "recall": recall,
    "panels": panels,
    "memory": memory,
    "length": length,
    "two_million": two_million,
    "conformance": conformance,
    "compiled": compiled,
    "gpu": gpu,
    "stream": stream,
    "stream_times": stream_times,
    "stream_peers": stream_peers,
    "prices": prices,
    "groups": groups,
}


def render(text: str, folder: Path) -> str:
    """The text with every table written anew from the runs in `folder`; an unknown name is a `KeyError`.

    >>> render("No tables here.", Path("."))
    'No tables here.'
    """
    return PLACE.sub(lambda found: f"{found[1]}{TABLES[found[2]](folder)}\n{found[3]}", text)
