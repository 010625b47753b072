"""The command line: `titans-ts demo | fit | predict | update | benchmark`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Forecasters that keep learning: fit once, then let every new observation in.",
)
benchmark = typer.Typer(no_args_is_help=True, help="Measure: the numbers of the documentation.")
app.add_typer(benchmark, name="benchmark")

IdCol = Annotated[str, typer.Option(help="Column that names the series.")]
TimeCol = Annotated[str, typer.Option(help="Column of timestamps or integer steps.")]
TargetCol = Annotated[str, typer.Option(help="Column of values.")]
DataFile = Annotated[Path, typer.Argument(help="Long CSV: one row a series and step; offsets are read in UTC.")]
ModelFolder = Annotated[Path, typer.Argument(help="Folder of a saved forecaster.")]


@app.command()
def demo(
    name: Annotated[str, typer.Argument(help="Shipped series: co2, elnino, sunspots, nile or macrodata.")] = "elnino",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the picture and the table; none: nothing is written.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the fit.")] = 0,
) -> None:
    """Fit on a real series, stream its last fifth, and compare with ridge and seasonal naive."""
    from .benchmark.demo import draw_demo, format_table, run_demo

    result = run_demo(name, seed=seed, verbose=1)
    typer.echo(
        format_table(result.table, f"{name}: forecasts from {result.start} on, smaller is better (coverage: 0.8)")
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        result.table.to_csv(out / "table.csv")
        draw_demo(result, out / "forecast.png")
        typer.echo(f"picture: {out / 'forecast.png'}")


@app.command()
def fit(
    data: DataFile,
    out: Annotated[Path, typer.Option(help="Folder that the fitted forecaster is written to.")],
    horizon: Annotated[int, typer.Option(help="Steps to forecast.")] = 24,
    freq: Annotated[str | None, typer.Option(help="Step of the time axis (h, D, MS, ...); default: inferred.")] = None,
    context: Annotated[
        int | None, typer.Option(help="Steps of the raw window; default: by horizon and season.")
    ] = None,
    variant: Annotated[str | None, typer.Option(help="lmm, mac, mag or mal; default: lmm.")] = None,
    point: Annotated[str, typer.Option(help="mean or median, what the point forecast is.")] = "mean",
    intervals: Annotated[str, typer.Option(help="auto, conformal or head, what quantiles are made of.")] = "auto",
    time_limit: Annotated[
        float | None,
        typer.Option(
            help="Seconds after which the optimiser stops, counted from when the data are read; it takes one step at "
            "least, and what is fitted in closed form after it comes on top."
        ),
    ] = None,
    on_gap: Annotated[str, typer.Option(help="raise or mask missing rows.")] = "raise",
    on_duplicate: Annotated[str, typer.Option(help="raise, last or mean.")] = "raise",
    on_bad: Annotated[str, typer.Option(help="raise, or skip series that cannot be used.")] = "raise",
    known: Annotated[list[str] | None, typer.Option(help="Covariate known ahead, repeatable.")] = None,
    past: Annotated[list[str] | None, typer.Option(help="Covariate known up to the present, repeatable.")] = None,
    static: Annotated[list[str] | None, typer.Option(help="Covariate with one value a series, repeatable.")] = None,
    calendar: Annotated[
        list[str] | None,
        typer.Option(help="hour, weekday, month, minute_of_day or dayofyear as a covariate, repeatable."),
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Column of which the series with one value are modelled jointly.")
    ] = None,
    multivariate: Annotated[bool, typer.Option(help="All series are modelled jointly.")] = False,
    ensemble: Annotated[int, typer.Option(help="Neural corrections that are averaged.")] = 1,
    non_negative: Annotated[bool, typer.Option(help="Nothing falls below 0, neither data nor forecasts.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    id_col: IdCol = "unique_id",
    time_col: TimeCol = "ds",
    target_col: TargetCol = "y",
) -> None:
    """Learn from a CSV file and save the forecaster."""
    from .forecasting.checkpoint import free_folder
    from .forecasting.forecaster import TitansForecaster

    free_folder(out)  # before the work, not after it
    forecaster = TitansForecaster(
        horizon=horizon,
        freq=freq,
        context_length=context,
        variant=variant,  # type: ignore[arg-type]
        point=point,  # type: ignore[arg-type]
        intervals=intervals,  # type: ignore[arg-type]
        time_limit=time_limit,
        on_gap=on_gap,
        on_duplicate=on_duplicate,
        on_bad=on_bad,
        known_covariates=tuple(known or ()),
        past_covariates=tuple(past or ()),
        static_covariates=tuple(static or ()),
        calendar=tuple(calendar or ()),
        group=group,
        multivariate=multivariate,
        ensemble=ensemble,
        non_negative=non_negative,
        random_state=seed,
        id_col=id_col,
        time_col=time_col,
        target_col=target_col,
        verbose=1,
    )
    forecaster.fit(_read(data, id_col, time_col))
    forecaster.save(out)
    skipped = f", {len(forecaster.skipped_)} skipped" if forecaster.skipped_ else ""
    typer.echo(f"{len(forecaster.fitted_ids_)} series{skipped}; saved to {out}", err=True)


@app.command()
def predict(
    model: ModelFolder,
    horizon: Annotated[int | None, typer.Option(help="Steps; default: all that was fitted.")] = None,
    level: Annotated[list[float] | None, typer.Option(help="Central intervals in per cent, repeatable.")] = None,
    quantiles: Annotated[list[float] | None, typer.Option(help="Levels between 0 and 1, repeatable.")] = None,
    future: Annotated[
        Path | None, typer.Option(help="Long CSV of the known covariates of every step to forecast.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="CSV file; default: standard output.")] = None,
) -> None:
    """Forecast every series of a saved forecaster."""
    from .forecasting.forecaster import TitansForecaster

    forecaster = TitansForecaster.load(model)
    ahead = None if future is None else _read(future, forecaster.id_col, forecaster.time_col)
    forecast = forecaster.predict(horizon, quantiles=quantiles or None, level=level or None, future=ahead)
    forecast.to_csv(sys.stdout if out is None else out, index=False)


@app.command()
def update(model: ModelFolder, data: DataFile) -> None:
    """Let the rows of a CSV file, which follow what is known, into a saved forecaster, and save it again."""
    from .forecasting.forecaster import TitansForecaster

    forecaster = TitansForecaster.load(model)
    forecaster.update(_read(data, forecaster.id_col, forecaster.time_col))
    forecaster.save(model)


@benchmark.command()
def etth1(
    context: Annotated[list[int] | None, typer.Option(help="Context lengths; default: 336 and 512.")] = None,
    folder: Annotated[
        str | None, typer.Option(help="Folder with ETTh1.csv; default: $TITANS_TS_DATA or download.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for one JSON file a run; rows of other models that it holds are kept.")
    ] = None,
    part: Annotated[str, typer.Option(help="test, or validation to leave the test rows unread.")] = "test",
    seed: Annotated[int, typer.Option(help="Seed of the fit.")] = 0,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="'seasonal naive', 'ridge', 'linear path alone', 'backbone alone', 'both', and where neuralforecast "
            "is installed PatchTST, repeatable; default: the first five."
        ),
    ] = None,
) -> None:
    """ETTh1, horizon 96: the linear path, the backbone and both; the memory frozen, updating and zeroed."""
    from .benchmark.demo import format_table
    from .benchmark.etth1 import MODELS, PEER, etth1_table, run_etth1
    from .benchmark.runs import write_json

    for length in context or [336, 512]:
        name = f"etth1-{length}-{part}-{seed}.json"
        result = run_etth1(
            length, models=tuple(model or MODELS), earlier=_earlier(out, name), folder=folder, seed=seed, part=part
        )
        typer.echo(format_table(etth1_table(result), f"ETTh1-96, context {length}, {part}"))
        _say_missing(PEER, result)
        if out is not None:
            write_json(result, out / name)


@benchmark.command()
def ltsf(
    out: Annotated[Path, typer.Option(help="Folder of the JSON files, one a run; those there are kept.")],
    name: Annotated[
        list[str] | None, typer.Option("--set", help="etth1, etth2, ettm1, ettm2, weather, repeatable; default: all.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Titans, Ridge, SeasonalNaive, and where neuralforecast is installed PatchTST, DLinear, NLinear, "
            "repeatable; default: the first three."
        ),
    ] = None,
    context: Annotated[
        list[str] | None,
        typer.Option(help="Context lengths, repeatable; 'free' is the forecaster's own; default: 96 and free."),
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seeds of the fits; default: 0, 1 and 2.")] = None,
    part: Annotated[str, typer.Option(help="test, or validation to leave the test rows unread.")] = "test",
    folder: Annotated[
        str | None, typer.Option(help="Folder with the sets; default: $TITANS_TS_DATA or download.")
    ] = None,
) -> None:
    """ETT and Weather at horizons 96, 192, 336 and 720 under the long-horizon protocol, one model for all horizons."""
    from .benchmark.ltsf import OURS, SETS, ltsf_table, run_ltsf_sets

    lengths = tuple(None if each == "free" else _rows(each) for each in context or ("96", "free"))
    results = run_ltsf_sets(
        tuple(name or SETS), tuple(model or OURS), lengths, tuple(seed or (0, 1, 2)), out, folder=folder, part=part
    )
    typer.echo(ltsf_table(results).to_string())


@benchmark.command()
def gift(
    out: Annotated[Path, typer.Option(help="Folder of the JSON files, one a run; those there are kept.")],
    name: Annotated[
        list[str] | None,
        typer.Option("--set", help="Configurations such as ett1/H/short, repeatable; default: all 24."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Titans, Ridge, SeasonalNaive, and where neuralforecast is installed NHITS, PatchTST, repeatable; "
            "default: the first three."
        ),
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seeds of the fits; default: 0.")] = None,
    part: Annotated[str, typer.Option(help="test, or validation to leave the test rows unread.")] = "test",
    published: Annotated[
        Path | None,
        typer.Option(
            help="GIFT-Eval's table of all results (CSV): its means over these 24 go into gift-published.json."
        ),
    ] = None,
    folder: Annotated[str | None, typer.Option(help="Folder with the sets; default: $TITANS_TS_DATA.")] = None,
) -> None:
    """The 24 configurations of GIFT-Eval whose data are at hand: MASE, CRPS, coverage."""
    from .benchmark.gift import CONFIGURATIONS, OURS, gift_table, read_published, run_gift_tasks
    from .benchmark.runs import write_json

    if published is not None:
        write_json(read_published(published), out / "gift-published.json")
    results = run_gift_tasks(
        tuple(name or CONFIGURATIONS), tuple(model or OURS), tuple(seed or (0,)), out, folder=folder, part=part
    )
    typer.echo(gift_table(results).round(4).to_string())


@benchmark.command()
def train(
    out: Annotated[Path | None, typer.Option(help="Folder for the JSON file; fits that it holds are kept.")] = None,
    learner: Annotated[
        list[str] | None,
        typer.Option(
            help="'linear path off', 'linear path on', 'linear path alone', PatchTST, 'PatchTST, one column a step', "
            "Ridge, SeasonalNaive, repeatable; default: all, where neuralforecast is installed."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the fits.")] = 0,
    part: Annotated[str, typer.Option(help="test, or validation to leave the test rows unread.")] = "test",
    folder: Annotated[
        str | None, typer.Option(help="Folder with ETTh1.csv; default: $TITANS_TS_DATA or download.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure all in this run; what the file holds is dropped.")
    ] = False,
) -> None:
    """ETTh1, horizon 96: the CPU time and memory in which each learner reaches an MSE of 0.375, beside PatchTST."""
    from .benchmark.train import run_train, train_table

    name = "train.json" if part == "test" else f"train-{part}.json"
    result = run_train(
        None if out is None else out / name,
        learners=tuple(learner) if learner else None,
        folder=folder,
        seed=seed,
        part=part,
        fresh=fresh,
        say=lambda line: typer.echo(line, err=True),
    )
    typer.echo(train_table(result).to_string(index=False))


@benchmark.command()
def ablation(
    out: Annotated[Path, typer.Option(help="Folder of the JSON files, one a run; those there are kept.")],
    name: Annotated[
        list[str] | None,
        typer.Option("--set", help="etth1, weather, m4_hourly, tourism_monthly, repeatable; default: all four."),
    ] = None,
    variation: Annotated[
        list[str] | None,
        typer.Option(
            help="'default', 'mac', 'mag', 'mal', 'memory off', 'momentum off', 'forgetting off', 'memory depth 2', "
            "'memory depth 3', 'memory depth 2, chunk 8', repeatable; default: all."
        ),
    ] = None,
    path: Annotated[
        list[str] | None,
        typer.Option(
            help="'backbone alone', 'whole', 'without fading memories', 'without backbone', 'linear path alone', "
            "repeatable; default: the first."
        ),
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seeds of the fits; default: 0, 1 and 2.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; default: the forecaster's own.")] = None,
    folder: Annotated[
        str | None, typer.Option(help="Folder with the sets; default: $TITANS_TS_DATA or download.")
    ] = None,
) -> None:
    """Wirings, memory, momentum, forgetting and depth, changed one at a time; no test row is read."""
    from .benchmark.ablation import SETS, USUAL, VARIATIONS, ablation_table, run_ablations

    results = run_ablations(
        tuple(name or SETS),
        tuple(variation or VARIATIONS),
        tuple(path or USUAL),
        tuple(seed or (0, 1, 2)),
        out,
        folder=folder,
        steps=steps,
    )
    typer.echo(ablation_table(results).round(4).to_string())


@benchmark.command()
def groups(
    out: Annotated[Path, typer.Option(help="Folder of the JSON files, one a run; those there are kept.")],
    name: Annotated[
        list[str] | None,
        typer.Option("--set", help="wind_farms, los_speed, etth1, weather, repeatable; default: all four."),
    ] = None,
    way: Annotated[
        list[str] | None,
        typer.Option(
            help="'closed form', 'closed form, joined', 'Titans', 'Titans, joined', 'Titans, ensemble of 3', 'ridge', "
            "'seasonal naive', and where neuralforecast is installed 'NHITS', 'PatchTST', repeatable; default: the "
            "first seven."
        ),
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seeds of the fits; default: 0.")] = None,
    folder: Annotated[str | None, typer.Option(help="Folder with the sets; default: $TITANS_TS_DATA.")] = None,
) -> None:
    """Series modelled jointly, and ensembles, beside series by themselves; no test row is read."""
    from .benchmark.groups import BASELINES, SETS, WAYS, groups_table, run_all_groups

    results = run_all_groups(
        tuple(name or SETS), tuple(way or (*WAYS, *BASELINES)), tuple(seed or (0,)), out, folder=folder
    )
    typer.echo(groups_table(results).round(4).to_string())


@benchmark.command()
def recall(
    variant: Annotated[
        list[str] | None, typer.Option(help="lmm, mac, mag, mal, repeatable; default: all four.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of series and fit.")] = 0,
    depth: Annotated[int, typer.Option(help="Layers of the memory network; 1 is a linear memory.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder for the JSON file.")] = None,
) -> None:
    """Patterns shown once and long ago: the error with the memory, with it emptied, and with another series'."""
    from .benchmark.recall import recall_table
    from .models.config import VARIANTS

    table = recall_table(variant or VARIANTS, seed=seed, depth=depth)  # type: ignore[arg-type]
    typer.echo(table.to_string(index=False))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        table.to_json(out / f"recall-{depth}-{seed}.json", orient="records", indent=2)


@benchmark.command()
def panels(
    out: Annotated[Path, typer.Option(help="Folder of the JSON files, one a set and model; those there are kept.")],
    name: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="m1_yearly, m1_quarterly, m1_monthly, the same of m3 and of tourism, m4_yearly, m4_hourly, "
            "repeatable; default: all eleven.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Titans, Ridge, SeasonalNaive, where statsforecast is installed AutoETS, AutoTheta, AutoARIMA, and "
            "where neuralforecast is NHITS, PatchTST, repeatable; default: the first three."
        ),
    ] = None,
    folder: Annotated[str | None, typer.Option(help="Folder with the Monash archive's files.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the fit and of the samples of the largest sets.")] = 0,
    part: Annotated[str, typer.Option(help="test, or validation to leave the last horizon unread.")] = "test",
) -> None:
    """The panels of the M1, M3, M4 and tourism competitions, beside seasonal naive, ridge, statsforecast and NHITS."""
    from .benchmark.panels import OURS, SETS, panels_table, run_panels

    results = run_panels(tuple(name or SETS), tuple(model or OURS), out, folder=folder, seed=seed, part=part)
    typer.echo(panels_table(results).round(4).to_string())


@benchmark.command()
def prices(
    out: Annotated[
        Path | None, typer.Option(help="Folder for the JSON file; rows of other models that it holds are kept.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="'seasonal naive, a day' (always there), 'seasonal naive, a week', 'ridge', 'Titans', and where "
            "neuralforecast is installed NHITS, repeatable; default: the first four."
        ),
    ] = None,
    folder: Annotated[
        str | None, typer.Option(help="Folder with the prices; default: $TITANS_TS_DATA or download.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seeds of the fits, repeatable; default: 0 to 4.")] = None,
    part: Annotated[str, typer.Option(help="test, or validation to leave the test days unread.")] = "test",
) -> None:
    """Electricity prices, a day ahead: with covariates that are known ahead and without."""
    from .benchmark.prices import MODELS, PEER, SEEDS, prices_table, run_prices
    from .benchmark.runs import write_json

    file = f"prices-{part}.json"
    result = run_prices(
        folder, models=tuple(model or MODELS), earlier=_earlier(out, file), seeds=tuple(seed or SEEDS), part=part
    )
    typer.echo(prices_table(result).round(4).to_string(index=False))
    if "change" in result:
        found = result["change"]
        typer.echo(
            f"change by the covariates: {found['change']:+.1%}, 80 % interval {found['low']:+.1%} to "
            f"{found['high']:+.1%}"
        )
    _say_missing(PEER, result)
    if out is not None:
        write_json(result, out / file)


@benchmark.command()
def stream(
    out: Annotated[Path | None, typer.Option(help="Folder for the JSON file.")] = None,
    series: Annotated[int, typer.Option(help="Series of the case with many.")] = 10_000,
) -> None:
    """One observation and its forecast: the compiled stream beside torch, for one series and for many, and beside those
    other packages that are installed; what the file says of others is kept."""
    from .benchmark.runs import write_json
    from .benchmark.stream import peers_table, run_stream, stream_table

    earlier = _earlier(out, "stream.json")
    result = run_stream(series, () if earlier is None else earlier["peers"])
    typer.echo(
        f"one core: memory bandwidth {result['bandwidth_gb_s']} GB/s, a plain product {result['product_gflops']} "
        "GFLOP/s; microseconds a series"
    )
    typer.echo(stream_table(result).to_string(index=False))
    typer.echo("\nmicroseconds an observation and the forecasts after it")
    typer.echo(peers_table(result).to_string(index=False))
    if out is not None:
        write_json(result, out / "stream.json")


@benchmark.command()
def memory(
    case: Annotated[list[str] | None, typer.Option(help="Cases whose names begin so; default: all.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the JSON file; other cases that it holds are kept.")
    ] = None,
) -> None:
    """The neural memory against titans-pytorch: CPU time and peak memory, forward and backward, one thread."""
    from .benchmark.memory import CASES, run_memory
    from .benchmark.runs import write_json

    chosen = [each for each in CASES if case is None or any(each.name.startswith(name) for name in case)]
    if not chosen:
        raise ValueError(f"no case begins with {case}; there are: {', '.join(each.name for each in CASES)}")
    result = run_memory(chosen, typer.echo, _earlier(out, "memory.json"))
    if out is not None:
        write_json(result, out / "memory.json")


@benchmark.command()
def gpu(
    size: Annotated[
        list[str] | None, typer.Option(help="170m, 340m, 760m, repeatable; default: the first two.")
    ] = None,
    tokens: Annotated[list[int] | None, typer.Option(help="Lengths, repeatable; default: 2k, 8k and 32k.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the JSON file; other sizes and lengths that it holds are kept.")
    ] = None,
) -> None:
    """On a CUDA device: language models of the paper's sizes beside a transformer, the ops, and whether it agrees with
    the CPU."""
    from .benchmark.gpu import LENGTHS, SIZES, run_gpu
    from .benchmark.runs import write_json

    def keep(result: dict[str, object]) -> None:
        if out is not None:
            write_json(result, out / "gpu.json")

    earlier = _earlier(out, "gpu.json")
    keep(run_gpu(tuple(size or SIZES), tuple(tokens or LENGTHS), typer.echo, keep, earlier))


@benchmark.command()
def length(
    tokens: Annotated[
        list[int] | None, typer.Option(help="Lengths, repeatable; default: 1k, 4k, 16k, 64k and 256k.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the JSON file; other lengths that it holds are kept.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="File for the picture, such as length.png.")] = None,
) -> None:
    """Time and memory against the length: the neural memory beside softmax attention, one thread."""
    from .benchmark.length import LENGTHS, draw_length, run_length
    from .benchmark.runs import write_json

    result = run_length(tuple(tokens or LENGTHS), typer.echo, earlier=_earlier(out, "length.json"))
    if out is not None:
        write_json(result, out / "length.json")
    if picture is not None:
        draw_length(result, picture)


@benchmark.command()
def conformance(
    tokens: Annotated[int, typer.Option(help="Tokens of the long check; 0 leaves it out.")] = 100_000,
    out: Annotated[Path | None, typer.Option(help="Folder for the JSON file.")] = None,
) -> None:
    """The laws of a streaming memory, on this package and on those peers that are installed."""
    from .benchmark.conformance import run_conformance
    from .benchmark.runs import write_json

    result = run_conformance(tokens, typer.echo)
    if out is not None:
        write_json(result, out / "conformance.json")


@benchmark.command()
def compiled(
    out: Annotated[Path | None, typer.Option(help="Folder for the JSON file.")] = None,
) -> None:
    """The memory and a backbone under `torch.compile`, beside eager; needs a C++ compiler."""
    from .benchmark.compiled import run_compiled
    from .benchmark.runs import write_json

    result = run_compiled(say=typer.echo)
    if out is not None:
        write_json(result, out / "compiled.json")


@benchmark.command()
def tables(
    documents: Annotated[list[Path], typer.Argument(help="Markdown files with `<!-- table NAME -->` places.")],
    results: Annotated[Path, typer.Option(help="Folder with the JSON of the runs.")] = Path("tests/results"),
) -> None:
    """Write the tables of Markdown files anew from the JSON of the runs: errors, costs, and in how many configurations
    intervals cover what they say (`<!-- table coverage -->`)."""
    from .benchmark.tables import render

    for document in documents:
        document.write_text(render(document.read_text(encoding="utf-8"), results), encoding="utf-8")


def _earlier(out: Path | None, name: str) -> dict[str, Any] | None:
    """The run that stands in the folder already."""
    from .benchmark.runs import read_json

    return read_json(out / name) if out is not None and (out / name).exists() else None


def _say_missing(peer: str, result: dict[str, Any]) -> None:
    """One line to stderr where a run has no row of its neural peer."""
    if all(row["model"] != peer for row in result["rows"]):
        typer.echo(
            f"no row of {peer}: run this command with --model {peer} and the same --out where neuralforecast is.",
            err=True,
        )


def _rows(text: str) -> int:
    """A context length of `benchmark ltsf` from text."""
    if not text.isdecimal() or not int(text):
        raise ValueError(f"--context {text!r} must be a whole number of rows, 1 or more, or 'free'.")
    return int(text)


def _read(path: Path, id_col: str, time_col: str) -> object:
    import pandas as pd

    # Ids stay text: "007" in one file and 7 in the next would be two series, and "NA" is an id like any other.
    try:
        frame = pd.read_csv(path, dtype={id_col: str})
        if id_col in frame.columns and frame[id_col].isna().any():
            ids = pd.read_csv(path, usecols=[id_col], dtype=str, keep_default_na=False, na_values=[""])
            frame[id_col] = ids[id_col]
        if time_col in frame.columns and not pd.api.types.is_numeric_dtype(frame[time_col]):
            frame[time_col] = _times(frame[time_col])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return frame


def _times(column: pd.Series) -> pd.Series:
    """Timestamps from text; those with an offset in UTC, since a column may have that of summer and that of winter."""
    import pandas as pd

    try:
        times = pd.to_datetime(column)
    except ValueError:
        return pd.to_datetime(column, utc=True)
    return times.dt.tz_convert("UTC") if isinstance(times.dtype, pd.DatetimeTZDtype) else times


def main() -> None:
    """Run the command line; what a user did wrong is one line, not a traceback."""
    try:
        app()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        typer.echo(f"titans-ts: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
