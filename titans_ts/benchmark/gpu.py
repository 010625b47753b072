"""On a CUDA device: language models of the paper's sizes beside a transformer, the ops of the memory beside each other,
and whether the device computes what the CPU does.

Everything is measured in one process, side after side: the median of a few calls between two waits for the device, and
the most memory that tensors held meanwhile. Models run under bfloat16 autocast, where the memory's state stays float32;
the memory layer alone, and what is compared with the CPU, runs in float32 with TF32 off. What takes too long or does
not fit is said in its place, and no number is put there.

B row, T time, D model, V vocabulary.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..core.attention import AttentionProjections
from ..core.config import MemoryConfig, OpName, require
from ..core.layers import RMSNorm, SwiGLU
from ..core.memory import NeuralMemory
from ..models.backbone import Backbone
from ..models.config import LANGUAGE, VARIANTS, VOCABULARY, Variant, language_preset, preset
from .runs import commit, not_measured

SIZES = ("170m", "340m")
LENGTHS = (2048, 8192, 32_768)
PEER = "transformer"
PASSES = ("forward", "both")
SECONDS = 10.0  # of one call: a length that would take more, judged by the one before, is left out
AGREE = 1e-4  # the largest difference from the CPU, in units of the largest output
CAPTURED = 8192  # tokens up to which a model is also run as a CUDA graph: where launching is what takes the time


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """A language model that is measured: a wiring by an op, or without a wiring the peer; in these sizes."""

    name: str
    variant: Variant | None
    op: OpName = "auto"
    sizes: tuple[str, ...] = SIZES
    captured: bool = False


SIDES = (
    Side(name=PEER, variant=None, captured=True),
    Side(name="lmm", variant="lmm", op="triton", captured=True),
    Side(name="mag", variant="mag", op="triton", sizes=SIZES[:1]),
    Side(name="mal", variant="mal", op="triton", sizes=SIZES[:1]),
    Side(name="mac", variant="mac", op="triton", sizes=SIZES[:1]),
    Side(name="lmm, plain torch", variant="lmm", sizes=SIZES[:1]),
)


def needs_cuda() -> torch.device:
    """The CUDA device, or the error that says what is needed."""
    if not torch.cuda.is_available():
        raise ValueError(
            "benchmark gpu needs a CUDA device and a CUDA build of torch, and torch.cuda.is_available() is False here: "
            f"torch is {torch.__version__}. Install torch as https://pytorch.org/get-started says for your driver."
        )
    return torch.device("cuda", torch.cuda.current_device())


class LanguageModel(nn.Module):
    """Words in, scores of the next word out, around any stack of blocks; the embedding is the head's too."""

    def __init__(self, dim: int, blocks: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = blocks
        self.norm = RMSNorm(dim)

    def forward(self, words: Tensor) -> Tensor:
        """Scores [B, T, V] of words [B, T]."""
        y = self.blocks(self.embedding(words))
        y = y if isinstance(y, Tensor) else y[0]  # a backbone also gives its state
        return functional.linear(self.norm(y), self.embedding.weight)


class Transformer(nn.Module):
    """Pre-norm blocks of causal softmax attention (PyTorch's `scaled_dot_product_attention`) and SwiGLU.

    >>> Transformer(8, 2, 2, 16)(torch.zeros(1, 3, 8)).shape
    torch.Size([1, 3, 8])
    """

    def __init__(self, dim: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(AttentionProjections(dim, heads, 0) for _ in range(depth))
        self.attention_norms = nn.ModuleList(RMSNorm(dim) for _ in range(depth))
        self.feeds = nn.ModuleList(SwiGLU(dim, hidden) for _ in range(depth))
        self.feed_norms = nn.ModuleList(RMSNorm(dim) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """What the blocks make of tokens [B, T, D]."""
        for attention, first, feed, second in zip(
            self.attentions, self.attention_norms, self.feeds, self.feed_norms, strict=True
        ):
            queries, keys, values = attention.split(first(x))  # type: ignore[operator]
            attended = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
            x = x + attention.merge(attended)  # type: ignore[operator]
            x = x + feed(second(x))
        return x


def count(module: nn.Module) -> int:
    """The parameters of a module.

    >>> count(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in module.parameters())


def language_model(size: str, variant: Variant | None, op: OpName = "auto") -> LanguageModel:
    """A language model of a size of `LANGUAGE`; without a wiring the transformer with as many parameters as "lmm"."""
    shape = LANGUAGE[size]
    dim, depth, heads = shape["dim"], shape["depth"], shape["heads"]
    if variant is not None:
        config = language_preset(size, variant)
        return LanguageModel(dim, Backbone(replace(config, memory=replace(config.memory, op=op))))
    with torch.device("meta"):
        wanted = count(Backbone(language_preset(size, "lmm"))) / depth
    hidden = round((wanted - 4 * dim**2 - 2 * dim) / (3 * dim))
    return LanguageModel(dim, Transformer(dim, depth, heads, hidden))


def parameters(size: str, variant: Variant | None) -> int:
    """How many parameters a side has, counted without holding them.

    >>> round(parameters("170m", "lmm") / 1e6), round(parameters("170m", None) / 1e6)
    (170, 170)
    """
    with torch.device("meta"):
        return count(language_model(size, variant))


def seconds(run: Callable[[], object], device: torch.device, calls: int = 3) -> float:
    """The median seconds of a call, each between two waits for the device; the first is not counted, and where it took
    more than one second only one more is made.

    >>> seconds(lambda: None, torch.device("cpu")) < 1.0
    True
    """

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    taken: list[float] = []
    while len(taken) < 1 + (calls if not taken or taken[0] < 1 else 1):
        wait()
        began = time.perf_counter()
        run()
        wait()
        taken.append(time.perf_counter() - began)
    return median(taken[1:])


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """A call as a CUDA graph, whose replay launches everything at once."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def measured(run: Callable[[], object], tokens: int, device: torch.device, as_graph: bool = False) -> dict[str, Any]:
    """Tokens a second and the most memory of a call, or why there are none."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        taken = seconds(captured(run) if as_graph else run, device)
    except torch.cuda.OutOfMemoryError:
        return {"skipped": "out of memory"}
    except RuntimeError as error:
        if not as_graph:
            raise
        return {"skipped": f"no graph: {str(error).splitlines()[0][:120]}"}
    peak = torch.cuda.max_memory_allocated(device) / 2**20
    return {"seconds": round(taken, 5), "tokens_per_s": round(tokens / taken, 1), "peak_mib": round(peak)}


def passes_of(model: nn.Module, words: Tensor) -> dict[str, Callable[[], object]]:
    """Forward alone, and forward and backward of the next word's cross entropy, under bfloat16 autocast."""

    def scores() -> Tensor:
        with torch.autocast(words.device.type, torch.bfloat16):
            out: Tensor = model(words)
            return out

    def forward() -> None:
        with torch.no_grad():
            scores()

    def both() -> None:
        model.zero_grad(set_to_none=True)
        y = scores()
        functional.cross_entropy(y[:, :-1].flatten(0, 1), words[:, 1:].flatten()).backward()

    return {"forward": forward, "both": both}


def model_rows(
    device: torch.device,
    sizes: Sequence[str] = SIZES,
    lengths: Sequence[int] = LENGTHS,
    say: Callable[[str], object] = print,
) -> list[dict[str, Any]]:
    """A row a size, side, pass and length: one sequence, tokens a second, peak memory."""
    rows = []
    for size in sizes:
        for side in (each for each in SIDES if size in each.sizes):
            torch.manual_seed(0)
            with device:
                model = language_model(size, side.variant, side.op)
            for title in PASSES:
                before: dict[str, Any] | None = None
                for length in lengths:
                    row = {"size": size, "side": side.name, "parameters": count(model)}
                    row |= {"passes": title, "tokens": length}
                    why = None if before is None else too_slow(before, length)
                    words = torch.randint(VOCABULARY, (1, length), device=device)
                    run = passes_of(model, words)[title]
                    before = row | ({"skipped": why} if why else measured(run, length, device))
                    rows.append(before | {"graph": False})
                    say(line_of(rows[-1]))
                    if side.captured and length <= CAPTURED:
                        model.zero_grad(set_to_none=True)
                        rows.append(row | measured(run, length, device, as_graph=True) | {"graph": True})
                        say(line_of(rows[-1]))
                        model.zero_grad(set_to_none=True)
            del model, run
    return rows


def too_slow(before: dict[str, Any], tokens: int) -> str | None:
    """Why a length is not measured, judged by the one before; None where it is.

    >>> too_slow({"tokens": 2048, "seconds": 4.0}, 8192)
    'more than 10 s'
    """
    if "skipped" in before:
        return str(before["skipped"])
    return f"more than {SECONDS:.0f} s" if before["seconds"] * tokens / before["tokens"] > SECONDS else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A memory layer that both ops compute: its name, configuration, rows and tokens, and the op of plain torch."""

    name: str
    config: MemoryConfig
    plain: OpName
    rows: int = 1
    tokens: int = 2048


def layers() -> list[Layer]:
    """The memories of the paper's sizes, alone; a linear one beside.

    >>> [layer.config.head_dim for layer in layers()]
    [48, 64, 64, 64]
    """
    deep = [language_preset(size).memory for size in SIZES]
    linear = replace(deep[1], depth=1, chunk=64)
    return [
        Layer(name="170m, depth 2", config=deep[0], plain="chunked"),
        Layer(name="340m, depth 2", config=deep[1], plain="chunked"),
        Layer(name="340m, depth 2, 8 rows", config=deep[1], plain="chunked", rows=8),
        Layer(name="340m, depth 1", config=linear, plain="exact_linear"),
    ]


def layer_rows(
    device: torch.device, found: Sequence[Layer] | None = None, say: Callable[[str], object] = print
) -> list[dict[str, Any]]:
    """The memory layer in float32, by plain torch and by the kernels."""
    rows = []
    for layer in layers() if found is None else found:
        for op in (layer.plain, "triton"):
            torch.manual_seed(0)
            with device:
                memory = NeuralMemory(replace(layer.config, op=op, persistent=0))
            x = torch.randn(layer.rows, layer.tokens, layer.config.dim, device=device)

            def forward(memory: NeuralMemory = memory, x: Tensor = x) -> None:
                with torch.no_grad():
                    memory(x)

            def both(memory: NeuralMemory = memory, x: Tensor = x) -> None:
                memory.zero_grad(set_to_none=True)
                memory(x)[0].square().mean().backward()

            for title, run in (("forward", forward), ("both", both)):
                row = {"layer": layer.name, "op": op, "passes": title, "rows": layer.rows, "tokens": layer.tokens}
                rows.append(row | measured(run, layer.rows * layer.tokens, device))
                say(line_of(rows[-1]))
    return rows


def furthest(ours: Any, true: Any) -> float:
    """The largest difference, in units of the largest number of the second.

    >>> furthest(torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0]))
    0.25
    """
    a, b = (np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x, dtype=np.float64) for x in (ours, true))
    return float(np.abs(a - b).max() / np.abs(b).max())


def agreement_rows(
    device: torch.device, say: Callable[[str], object] = print, forecaster: bool = True
) -> list[dict[str, Any]]:
    """How far outputs and gradients of the device are from the CPU's, in float32 without TF32, and a fitted
    forecaster's forecasts."""
    rows: list[dict[str, Any]] = []
    for name, op, build in agreement_cases():
        torch.manual_seed(0)
        true = build("auto")
        ours = build(op).to(device)
        ours.load_state_dict(true.state_dict())
        torch.manual_seed(1)
        x = torch.randn(2, 200, 64)
        found = []
        for module in (ours, true):
            seen = x.to(next(module.parameters()).device).requires_grad_()
            y = module(seen)[0]
            y.square().mean().backward()
            assert seen.grad is not None
            found.append((y, seen.grad))
            x = x.detach().clone()
        output, gradient = (furthest(a, b) for a, b in zip(*found, strict=True))
        rows.append({"what": name, "output": output, "gradient": gradient})
        say(line_of(rows[-1]))
    if forecaster:
        rows.append({"what": "forecaster", "output": forecaster_agreement(device), "gradient": None})
        say(line_of(rows[-1]))
    return rows


def agreement_cases() -> list[tuple[str, OpName, Callable[[OpName], nn.Module]]]:
    """What is compared with the CPU: name, op on the device, and the module by op.

    >>> len(agreement_cases())
    20
    """

    def memory(depth: int, op: OpName) -> MemoryConfig:
        return MemoryConfig(dim=64, heads=2, depth=depth, chunk=16, persistent=4, op=op)

    def alone(depth: int) -> Callable[[OpName], nn.Module]:
        return lambda op: NeuralMemory(memory(depth, op))

    def wired(variant: Variant, depth: int) -> Callable[[OpName], nn.Module]:
        return lambda op: Backbone(preset("small", variant, memory=memory(depth, op), residual_init=1.0, dropout=0.0))

    plain: tuple[OpName, ...] = ("exact_linear", "chunked")
    cases: list[tuple[str, OpName, Callable[[OpName], nn.Module]]] = []
    for depth in (1, 2):
        ops: tuple[OpName, ...] = (plain[depth - 1], "triton")
        cases += [(f"memory, depth {depth}, op='{op}'", op, alone(depth)) for op in ops]
        cases += [
            (f"{variant}, depth {depth}, op='{op}'", op, wired(variant, depth)) for variant in VARIANTS for op in ops
        ]
    return cases


def forecaster_agreement(device: torch.device) -> float:
    """How far the forecasts of one fitted forecaster on the device are from those on the CPU; its backbone forecasts
    alone, for a linear path could hide what the backbone says."""
    from ..forecasting.forecaster import TitansForecaster
    from ..forecasting.training import TrainConfig

    generator = np.random.default_rng(0)
    steps = np.arange(400)
    frame = pd.concat(
        pd.DataFrame(
            {
                "unique_id": name,
                "ds": pd.date_range("2024-01-01", periods=len(steps), freq="h"),
                "y": 10 + 3 * np.sin(2 * np.pi * (steps + 5 * place) / 24) + generator.normal(size=len(steps)),
            }
        )
        for place, name in enumerate(("a", "b", "c"))
    )
    train = TrainConfig(linear=False, fading=False, steps=20)
    forecaster = TitansForecaster(horizon=24, train=train, device="cpu", random_state=0)
    forecaster.fit(frame)
    true = forecaster.predict()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "forecaster"
        forecaster.save(path)
        ours = TitansForecaster.load(path, device=str(device)).predict()
    numbers = [name for name in true.columns if pd.api.types.is_float_dtype(true[name])]
    return furthest(ours[numbers].to_numpy(), true[numbers].to_numpy())


def run_gpu(
    sizes: Sequence[str] = SIZES,
    lengths: Sequence[int] = LENGTHS,
    say: Callable[[str], object] = print,
    keep: Callable[[dict[str, Any]], object] = lambda result: None,
    earlier: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Agreement with the CPU, then models, then layers; `keep` gets the result after every part. earlier: a run whose
    models of other sizes and lengths are kept."""
    device = needs_cuda()
    unknown = sorted(set(sizes) - set(LANGUAGE))
    require(not unknown, f"size={unknown} does not exist: there are {', '.join(LANGUAGE)}.")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    about = about_device(device)
    models = not_measured(earlier, about, "models", lambda row: row["size"] in sizes and row["tokens"] in lengths)
    result = {"commit": commit(), **about, "agreement": agreement_rows(device, say), "models": models}
    result["layers"] = [] if earlier is None else earlier.get("layers", [])  # until they are measured again
    keep(result)
    result["models"] = [*models, *model_rows(device, sizes, lengths, say)]
    keep(result)
    result["layers"] = layer_rows(device, say=say)
    return result


def about_device(device: torch.device) -> dict[str, Any]:
    """The device, the versions and the settings that the numbers are of."""
    properties = torch.cuda.get_device_properties(device)
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = None
    return {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_mib": properties.total_memory // 2**20,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton,
        "precision": "models under bfloat16 autocast with the memory's state in float32; layers in float32, TF32 off",
        "vocabulary": VOCABULARY,
    }


def line_of(row: dict[str, Any]) -> str:
    """One row of any part for the eye.

    >>> line_of({"what": "lmm", "output": 2e-6, "gradient": None})
    'lmm: output 2.0e-06 from the CPU'
    """
    if "what" in row:
        gradient = "" if row["gradient"] is None else f", gradient {row['gradient']:.1e}"
        return f"{row['what']}: output {row['output']:.1e}{gradient} from the CPU"
    name = f"{row['layer']}, {row['op']}" if "layer" in row else f"{row['size']} {row['side']}"
    name += ", as a graph" * row.get("graph", False)
    begin = f"{name}, {row['passes']}, {row['tokens']:,} tokens:"
    if "skipped" in row:
        return f"{begin} not measured, {row['skipped']}"
    return f"{begin} {row['tokens_per_s']:,.0f} tokens/s, {row['peak_mib']:,} MiB"
