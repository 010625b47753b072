"""`torch.compile`: memories, wirings and models but memory as context are one whole graph each, with equal outputs,
state and gradients.

In a process of its own: the checks of shapes at run time, which are on in these tests, are nothing a compiler can see
through.
"""

import shutil
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import torch
from titans_ts.core.config import MemoryConfig
from titans_ts.core.memory import NeuralMemory
from titans_ts.core.state import leaves
from titans_ts.models.backbone import Backbone
from titans_ts.models.config import BackboneConfig, TimeSeriesConfig
from titans_ts.models.timeseries import TimeSeriesModel

backend, blocks, tokens, *kinds = sys.argv[1:]
blocks, tokens = int(blocks), int(tokens)
torch.set_num_threads(1)


def make(kind):
    depth = 1 if kind == "linear" else 2
    memory = MemoryConfig(dim=16, heads=2, depth=depth, chunk=16, persistent=3, momentum=kind != "still")
    if kind in ("linear", "deep", "still"):
        return NeuralMemory(memory)
    variant, *model = kind.split()
    config = BackboneConfig(
        dim=16, depth=blocks, variant=variant, heads=2, window=8, segment=8, memory=memory, residual_init=1.0
    )
    if not model:
        return Backbone(config)
    return TimeSeriesModel(TimeSeriesConfig(horizon=3, context=8, patch=4, quantiles=(0.1, 0.5, 0.9), backbone=config))


def real(y, lengths):
    return y[torch.arange(y.shape[1]) < lengths[:, None]]


def of_tokens(module, compiled):
    x = torch.randn(2, tokens, 16, dtype=torch.float64)
    observed, lengths = torch.rand(2, tokens) < 0.8, torch.tensor([tokens, tokens // 2 + 3])

    def run(module):
        y, state = module(x)
        z, end = module(x, state, observed, lengths)
        return [y, real(z, lengths), *leaves(end)]

    return run(module), run(compiled)


def of_values(model, compile):
    values = torch.randn(2, 4 * tokens + 1, dtype=torch.float64)
    values[0, 5], lengths = torch.nan, torch.tensor([4 * tokens + 1, 2 * tokens + 3])

    def both(values, state, lengths):
        encoded, state = model.encode(values, state, lengths)
        return encoded, state, model.forecast(state)

    def run(both):
        encoded, state, said = both(values, model.initial_state(2), None)
        after, end, later = both(values, state, lengths)
        parts = [real(part, each.counts) for each in (encoded, after) for part in each[:3]]
        return [*parts, *said, *later, *(leaf.nan_to_num() for leaf in leaves(end))]

    return run(both), run(compile(both))


for kind in kinds:
    torch._dynamo.reset()
    torch.manual_seed(0)
    module = make(kind).double().eval()
    compile = lambda each: torch.compile(each, fullgraph="mac" not in kind, backend=backend)
    pairs = of_values(module, compile) if "model" in kind else of_tokens(module, compile(module))
    for side in pairs:
        loss = sum(part.square().sum() for part in side if part.is_floating_point())
        side += torch.autograd.grad(loss, [p for p in module.parameters()], allow_unused=True)
    for a, b in zip(*pairs, strict=True):
        if a is None and b is None:
            continue
        assert a.shape == b.shape and a.dtype == b.dtype, kind
        assert (a - b).abs().max() <= 1e-9 * max(1.0, a.abs().max().item()), (kind, (a - b).abs().max())
print("equal")
"""


def assert_equal(*kinds: str, backend: str, blocks: int = 2, tokens: int = 40) -> None:
    command = [sys.executable, "-c", PROGRAM, backend, str(blocks), str(tokens), *kinds]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "equal", run.stderr[-3000:]


@pytest.mark.parametrize("kind", ["linear", "deep"])
def test_a_compiled_memory_is_one_graph_and_computes_the_same(kind):
    assert_equal(kind, backend="aot_eager")


def test_every_wiring_but_memory_as_context_is_one_graph_and_so_is_its_model():
    kinds = [f"{variant}{model}" for variant in ("lmm", "mag", "mal") for model in ("", " model")]
    assert_equal(*kinds, backend="eager", blocks=1, tokens=10)


def test_memory_as_context_and_its_model_compile_in_several_graphs():
    """Its segments begin where the clocks in the state say, which no graph can know."""
    assert_equal("mac", "mac model", backend="eager", blocks=1, tokens=10)


@pytest.mark.long
@pytest.mark.parametrize(
    "kind", ["still", *(f"{name}{model}" for name in ("lmm", "mag", "mal") for model in ("", " model"))]
)
def test_a_compiled_backbone_is_one_graph_and_computes_the_same(kind):
    assert_equal(kind, backend="aot_eager")


@pytest.mark.long
def test_memory_as_context_compiles_in_several_graphs_and_computes_the_same():
    assert_equal("mac", "mac model", backend="eager")


@pytest.mark.long
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("kind", ["linear", "deep", "mag"])
def test_inductor_computes_the_same(kind):
    assert_equal(kind, backend="inductor")
