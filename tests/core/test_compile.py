"""`torch.compile`: a memory is one whole graph, with equal outputs, state and gradients.

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
from titans_ts.models.config import BackboneConfig

kind, backend = sys.argv[1:]
torch.set_num_threads(1)
torch.manual_seed(0)
depth = 1 if kind == "linear" else 2
memory = MemoryConfig(dim=16, heads=2, depth=depth, chunk=16, persistent=3, momentum=kind != "still")
if kind in ("linear", "deep", "still"):
    module = NeuralMemory(memory)
else:
    module = Backbone(BackboneConfig(
        dim=16, depth=2, variant=kind, heads=2, window=8, segment=8, memory=memory, residual_init=1.0
    ))
module = module.double().eval()
compiled = torch.compile(module, fullgraph=kind != "mac", backend=backend)
x = torch.randn(2, 40, 16, dtype=torch.float64)
observed, lengths = torch.rand(2, 40) < 0.8, torch.tensor([40, 23])


def run(module):
    y, state = module(x)
    z, end = module(x, state, observed, lengths)
    z = torch.where((torch.arange(40) < lengths[:, None])[..., None], z, 0.0)
    loss = y.square().sum() + z.square().sum() + sum(
        leaf.square().sum() for leaf in leaves(end) if leaf.is_floating_point()
    )
    return [y, z, *leaves(end), *torch.autograd.grad(loss, list(module.parameters()))]


for a, b in zip(run(module), run(compiled), strict=True):
    assert a.shape == b.shape and a.dtype == b.dtype
    assert (a - b).abs().max() <= 1e-9 * max(1.0, a.abs().max().item()), (a - b).abs().max()
print("equal")
"""


def assert_equal(kind: str, backend: str) -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM, kind, backend], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "equal", run.stderr[-3000:]


@pytest.mark.parametrize("kind", ["linear", "deep"])
def test_a_compiled_memory_is_one_graph_and_computes_the_same(kind):
    assert_equal(kind, "aot_eager")


@pytest.mark.long
@pytest.mark.parametrize("kind", ["still", "lmm", "mag", "mal"])
def test_a_compiled_backbone_is_one_graph_and_computes_the_same(kind):
    assert_equal(kind, "aot_eager")


@pytest.mark.long
def test_memory_as_context_compiles_in_several_graphs_and_computes_the_same():
    """Its segments begin where the clocks in the state say, which no graph can know."""
    assert_equal("mac", "eager")


@pytest.mark.long
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("kind", ["linear", "deep", "mag"])
def test_inductor_computes_the_same(kind):
    assert_equal(kind, "inductor")
