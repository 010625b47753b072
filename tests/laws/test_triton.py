"""Twin, for the kernels of Triton: they are the reference, in outputs, in the state they leave and in every gradient.

`make test-triton` runs this file in Triton's interpreter on the CPU, which is where float64 is; on a CUDA device the
same kernels are compiled and run in float32. Where there is neither, what needs one is skipped.
"""

import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from laws.cases import CONFIGS, NETWORKS, assert_same, make_memory, make_state, make_tokens, name_of
from laws.test_twin import LAYOUTS, assert_twins, differentiable
from torch import Tensor

from titans_ts.benchmark.gpu import AGREE, agreement_rows
from titans_ts.core.config import MemoryConfig
from titans_ts.core.memory import NeuralMemory
from titans_ts.core.ops.backends import OPS, rule_of
from titans_ts.core.ops.contract import Rule, Tokens
from titans_ts.core.ops.opaque import opaque
from titans_ts.core.ops.reference import reference
from titans_ts.core.ops.sizes import Cut
from titans_ts.core.state import MemoryState, leaves, map_state

INTERPRETED = find_spec("triton") is not None and os.environ.get("TRITON_INTERPRET") == "1"
in_the_interpreter = pytest.mark.skipif(
    not INTERPRETED, reason="needs Triton and TRITON_INTERPRET=1: run `make test-triton`"
)
on_a_gpu = pytest.mark.skipif(
    INTERPRETED or find_spec("triton") is None or not torch.cuda.is_available(),
    reason="needs Triton and a CUDA device, without TRITON_INTERPRET",
)

COVERED = [config for config in CONFIGS if config.depth <= 2]
FULL = [config for config in NETWORKS if config.depth <= 2]
LINEAR = next(config for config in FULL if config.exact)
DEEP = next(config for config in FULL if config.depth == 2)


def case(config: MemoryConfig, layout: str, *, grad: bool = False) -> tuple[MemoryState, Tokens]:
    options = dict(LAYOUTS[layout])
    lengths, ragged = options.pop("lengths", None), options.pop("ragged", False)
    tokens = make_tokens(config, grad=grad, **options)._replace(lengths=lengths)
    return make_state(config, ragged=ragged, grad=grad), tokens


def compiled() -> dict[str, str]:
    """The environment of a program in which Triton compiles."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def anchored(state: MemoryState) -> MemoryState:
    """The state of a linear memory with an anchor, so that its gradients are frozen as those of a deep one."""
    return state._replace(anchor=tuple((w + 0.3).detach() for w in state.weights))


@in_the_interpreter
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("config", COVERED, ids=name_of)
def test_triton_is_the_reference(config, layout):
    assert_twins("triton", *case(config, layout, grad=True), rule_of(config))


@in_the_interpreter
@pytest.mark.parametrize("config", FULL, ids=name_of)
@pytest.mark.parametrize("chunk", [1, 2, 11, 64])
def test_triton_is_the_reference_for_every_chunk(config, chunk):
    assert_twins("triton", *case(config, "missing", grad=True), replace(rule_of(config), chunk=chunk))


@in_the_interpreter
@pytest.mark.parametrize("config", FULL, ids=name_of)
def test_triton_is_the_reference_where_cap_and_budget_bite(config):
    rule = replace(rule_of(config), weight_cap=0.5, step_budget=None if config.exact else 0.2)
    state, tokens = case(config, "ragged clocks", grad=True)
    free = reference(state, tokens, replace(rule, weight_cap=None))
    assert (reference(state, tokens, rule)[0] - free[0]).abs().max() > 1e-2
    assert_twins("triton", state, tokens, rule)
    assert_twins("triton", *case(config, "whole", grad=True), rule)


@in_the_interpreter
@pytest.mark.parametrize("budget", [None, 0.2])
@pytest.mark.parametrize("offset", [0, 2])
@pytest.mark.parametrize("momentum", [True, False])
def test_triton_is_the_reference_for_a_linear_memory_with_frozen_gradients(momentum, offset, budget):
    config = replace(LINEAR, momentum=momentum)
    state, tokens = case(config, "whole", grad=True)
    keys = (3 * tokens.keys).detach().requires_grad_()  # so that the stiffness counts
    state = anchored(state)._replace(offset=torch.full((3,), offset))
    assert_twins("triton", state, tokens._replace(keys=keys), Rule(chunk=4, step_budget=budget, weight_cap=1.0))


@in_the_interpreter
@pytest.mark.parametrize("config", [LINEAR, DEEP], ids=name_of)
def test_triton_is_the_reference_for_widths_and_chunks_beyond_one_tile(config):
    wide = replace(config, dim=20, heads=1, expansion=1, chunk=18)
    assert_twins("triton", make_state(wide, 1, grad=True), make_tokens(wide, 1, 40, grad=True), rule_of(wide))


@in_the_interpreter
@pytest.mark.parametrize("config", FULL, ids=name_of)
def test_triton_keeps_nothing_for_a_gradient_that_nobody_wants(config):
    state, tokens = case(config, "whole", grad=True)
    with torch.no_grad():
        reads, end = OPS["triton"](state, tokens, rule_of(config))
    assert not any(leaf.requires_grad for leaf in leaves((reads, end)))
    assert_same((reads, end), reference(state, tokens, rule_of(config)))


@in_the_interpreter
@pytest.mark.parametrize("config", [LINEAR, DEEP], ids=name_of)
def test_triton_as_one_node_of_a_compiled_graph_is_the_reference(config, monkeypatch):
    monkeypatch.setitem(OPS, "one node", partial(opaque, "triton"))
    assert_twins("one node", *case(config, "missing", grad=True), rule_of(config))


@in_the_interpreter
def test_the_gradient_of_triton_passes_gradcheck():
    config = replace(LINEAR, dim=4, heads=1, chunk=3)
    state, tokens = make_state(config, 1), make_tokens(config, 1, 7, theta=0.2)
    inputs = [leaf.detach().requires_grad_() for leaf in leaves((state.weights, state.momentum, tuple(tokens[:6])))]

    def run(weights: Tensor, momentum: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        here = state._replace(weights=(weights,), momentum=(momentum,))
        reads, end = OPS["triton"](here, Tokens(*parts), rule_of(config))
        return reads, *end.weights, *end.momentum

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@in_the_interpreter
@pytest.mark.parametrize("config", FULL, ids=name_of)
def test_a_memory_on_triton_is_the_memory(config):
    config = replace(config, persistent=3)
    memory = make_memory(config)
    other = NeuralMemory(replace(config, op="triton")).double()
    other.load_state_dict(memory.state_dict())
    x, observed = torch.randn(3, 11, config.dim, dtype=torch.float64), torch.rand(3, 11) < 0.8
    assert_same(other(x, None, observed), memory(x, None, observed))
    for one in (memory, other):
        one(x, None, observed)[0].square().sum().backward()
    pairs = zip(other.parameters(), memory.parameters(), strict=True)
    assert_same(*zip(*((a.grad, b.grad) for a, b in pairs if b.grad is not None), strict=True), 1e-8)


@in_the_interpreter
def test_triton_refuses_what_its_kernels_do_not_cover():
    deep = next(config for config in NETWORKS if config.depth == 3)
    with pytest.raises(ValueError, match="memories of 1 and 2 layers, and this one has 3: use op='auto'"):
        OPS["triton"](*case(deep, "whole"), rule_of(deep))
    state, tokens = case(LINEAR, "whole")
    with pytest.raises(ValueError, match=r"pass a state with an anchor, or use op='reference'"):
        OPS["triton"](state, tokens, replace(rule_of(LINEAR), step_budget=0.5))
    with pytest.raises(ValueError, match=r"float32 throughout, and got torch.float32, torch.float64"):
        OPS["triton"](state, tokens._replace(keys=tokens.keys.float()), rule_of(LINEAR))
    large = replace(DEEP, dim=128, heads=1, expansion=1, chunk=64)
    with pytest.raises(
        ValueError, match=r"at most 32768 numbers on chip; .* are 45056 here \(heads 128 wide, chunk=64\)"
    ):
        OPS["triton"](make_state(large, 1), make_tokens(large, 1, 64), rule_of(large))
    deep = replace(DEEP, dim=64, heads=1, expansion=33, chunk=16)
    with pytest.raises(ValueError, match=r"at most 64 slices of 32, and this one is 2112 wide"):
        OPS["triton"](make_state(deep, 1), make_tokens(deep, 1, 2), rule_of(deep))


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from titans_ts.core.ops import triton_cuda, triton_deep

for flags, split in ({form}):
    kernel = getattr(triton_cuda, "{kernel}", None) or triton_deep.{kernel}
    sizes = dict(C=16, K=16, J=16, WIDTH=8, HIDDEN=16 * split, CAP=4.0, CAP_1=4.0, CAP_2=4.0, GATES=2, SPLIT=split)
    sizes |= dict(PARTS=split, ROWS=8, WIDE=32)
    switches = ("EXACT", "CAPPED", "ANCHORED", "RESIDUAL", "STIFF", "MOVING", "SAVING", "MASKED")
    values = {{**sizes, **dict(zip(switches, flags))}}
    kinds = {{name: "constexpr" if name in values else "i32" if name in ("first", "chunks", "rows", "size") else "*fp32"
             for name in kernel.arg_names}}
    if split > 1:
        kinds |= {{name: "*i32" for name in ("sums", "lines", "norms", "again", "caps") if name in kinds}}
    given = {{(i,): values[name] for i, name in enumerate(kernel.arg_names) if name in values}}
    source = ASTSource(kernel, kinds, given)
    options = {{"num_warps": triton_cuda.WARPS}}
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["cubin"]
"""
KERNELS = [
    "linear_forward", "linear_backward", "deep_forward", "deep_backward", "recurrences_forward", "recurrences_backward",
]  # fmt: skip


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton: run `make test-triton`")
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_kernels_compile_for_a_gpu(kernel):
    """The interpreter takes more than the compiler does, and the compiler needs no GPU."""
    exact, frozen = (True, True, False, False, False, True, True, True), (False, False, True, True, True, False, True)
    program = COMPILE.format(kernel=kernel, form=f"({exact}, 1), ({(*frozen, False)}, 4)")
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=compiled())
    assert ran.returncode == 0, ran.stderr


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton: run `make test-triton`")
def test_triton_refuses_the_cpu_outside_of_its_interpreter():
    program = """
import torch
from titans_ts.core.config import MemoryConfig
from titans_ts.core.memory import NeuralMemory
NeuralMemory(MemoryConfig(dim=16, depth=1, op="triton"))(torch.zeros(1, 3, 16))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=compiled())
    assert "ValueError: op='triton' runs on a CUDA device and the state is on cpu" in ran.stderr


def test_without_triton_its_absence_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    memory = NeuralMemory(MemoryConfig(dim=16, depth=1, op="triton"))
    with pytest.raises(ModuleNotFoundError, match=r"op='triton' needs Triton, .* pip install triton, or use op='auto'"):
        memory(torch.zeros(1, 3, 16))


def test_triton_waits_until_it_is_asked_for():
    program = "import sys, titans_ts.core.memory; sys.exit('titans_ts.core.ops.triton_cuda' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def assert_single_twins(
    config: MemoryConfig,
    device: str,
    rows: int,
    time: int,
    *,
    op: str = "triton",
    offset: int = 0,
    weight_cap: float | None = None,
) -> None:
    """In single precision on the device the op is the reference in double precision, gradients included."""

    def single(leaf: Tensor) -> Tensor:
        moved = leaf.detach().to(device)
        return moved.float().requires_grad_(leaf.requires_grad) if leaf.is_floating_point() else moved

    state, tokens = make_state(config, rows, grad=True), make_tokens(config, rows, time, grad=True)
    rule = rule_of(config)
    if offset:
        state = anchored(state)._replace(offset=torch.full((rows,), offset))
    if weight_cap is not None:
        rule = replace(rule, weight_cap=weight_cap)
    cast = map_state(single, state), Tokens(*(None if part is None else single(part) for part in tokens))
    results = []
    for name, given in ((op, cast), ("reference", (state, tokens))):
        reads, end = OPS[name](*given, rule)
        torch.manual_seed(1)
        moving = [leaf for leaf in leaves((reads, end)) if leaf.requires_grad]
        loss = torch.stack([(leaf * torch.randn(leaf.shape).to(leaf)).sum() for leaf in moving]).sum()
        found = (reads, end, torch.autograd.grad(loss, differentiable(*given)))
        results.append(map_state(lambda leaf: leaf.detach().cpu().double(), found))
    assert_same(*results, 1e-3 if config.residual else 1e-4)


@in_the_interpreter
@pytest.mark.parametrize("config", FULL, ids=name_of)
def test_triton_is_the_reference_in_single_precision(config):
    assert_single_twins(replace(config, dim=40, heads=2, expansion=2, chunk=16), "cpu", 1, 50)


def side_by_side(kernel: Any, warps: int, cut: Cut, rows: int, device: torch.device, *given: Any, **sizes: Any) -> None:
    """`launched` for the interpreter, every program in a process of its own, over memory that all of them see."""
    from triton.runtime.interpreter import interpreter_builder

    *before, chunks, size = given
    for leaf in before:
        leaf.untyped_storage().share_memory_()
    programs = rows * cut.split

    def run(program: int) -> None:
        dim, place = interpreter_builder.set_grid_dim, interpreter_builder.set_grid_idx
        interpreter_builder.set_grid_dim = lambda *_: dim(programs, 1, 1)
        interpreter_builder.set_grid_idx = lambda *_: place(program, 0, 0)
        kernel[(1,)](*before, 0, chunks, rows, size, SPLIT=cut.split, PARTS=cut.parts, **sizes)

    crew = [multiprocessing.get_context("fork").Process(target=run, args=(program,)) for program in range(programs)]
    for each in crew:
        each.start()
    for each in crew:
        each.join()
    assert not any(each.exitcode for each in crew)


@in_the_interpreter
@pytest.mark.parametrize(
    "changes",
    [{}, {"layer_gates": True}, {"momentum": False}, {"residual": True}, {"offset": 5}, {"weight_cap": 0.5}],
    ids=str,
)
def test_programs_that_wait_for_each_other_are_the_reference(changes, monkeypatch):
    """Three slices of 16 hidden units: a sum over the slices takes what two other programs leave."""
    from titans_ts.core.ops import triton_cuda

    monkeypatch.setattr(triton_cuda, "cut_here", lambda width, hidden: Cut(16, 3, 4))
    monkeypatch.setattr(triton_cuda, "launched", side_by_side)
    single = {name: changes[name] for name in ("offset", "weight_cap") if name in changes}
    config = MemoryConfig(dim=8, heads=1, depth=2, expansion=6, chunk=8)
    config = replace(config, **{name: value for name, value in changes.items() if name not in single})
    assert_single_twins(config, "cpu", 1, 19, **single)


@on_a_gpu
@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("config", FULL, ids=name_of)
def test_triton_on_a_gpu_is_the_reference(config, heads):
    assert_single_twins(replace(config, dim=64, heads=heads, expansion=4, chunk=32), "cuda", 3, 150)


# Hidden layers that are cut into slices: those of the paper's sizes, in parts of a chunk too, and rows and heads that
# do not all run at once.
CUT = {
    "one slice": (MemoryConfig(dim=32, heads=2, depth=2, chunk=16), 2, 50),
    "170m": (MemoryConfig(dim=192, heads=4, depth=2, chunk=16, layer_gates=True), 2, 70),
    "340m": (MemoryConfig(dim=512, heads=8, depth=2, chunk=16), 1, 134),
    "340m, rows one after the other": (MemoryConfig(dim=512, heads=8, depth=2, chunk=16), 3, 22),
    "no momentum": (MemoryConfig(dim=128, heads=2, depth=2, chunk=16, momentum=False), 2, 36),
    "no forgetting": (MemoryConfig(dim=128, heads=2, depth=2, chunk=16, forgetting=False), 2, 36),
}


@on_a_gpu
@pytest.mark.parametrize("case", CUT)
def test_triton_on_a_gpu_is_the_reference_where_the_hidden_layer_is_cut(case):
    config, rows, time = CUT[case]
    assert_single_twins(config, "cuda", rows, time)


@on_a_gpu
def test_triton_on_a_gpu_is_the_reference_inside_a_chunk_and_where_the_cap_bites():
    config = MemoryConfig(dim=128, heads=2, depth=2, chunk=16)
    assert_single_twins(config, "cuda", 2, 70, offset=5, weight_cap=0.5)


@on_a_gpu
def test_a_memory_on_a_gpu_is_that_on_the_cpu_to_one_in_ten_thousand_with_its_gradient():
    for row in agreement_rows(torch.device("cuda"), lambda line: None, forecaster=False):
        assert row["output"] <= AGREE, row
        assert row["gradient"] <= AGREE, row


@on_a_gpu
@pytest.mark.parametrize(("depth", "op"), [(1, "exact_linear"), (2, "chunked"), (3, "chunked")])
def test_the_plain_ops_on_a_gpu_are_the_reference(depth, op):
    config = MemoryConfig(dim=32, heads=2, depth=depth, chunk=16)
    assert_single_twins(config, "cuda", 2, 50, op=op)


@on_a_gpu
@pytest.mark.parametrize("op", ["chunked", "triton"])
def test_a_memory_on_a_gpu_waits_for_nothing(op):
    """Whoever asks the device for a number waits for all that it still has to do; a graph cannot be captured then."""
    memory = NeuralMemory(MemoryConfig(dim=128, heads=2, depth=2, chunk=16, persistent=4, op=op)).cuda()
    x = torch.randn(2, 70, 128, device="cuda")
    memory(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        memory(x)[0].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_a_gpu
@pytest.mark.parametrize("config", [config for config in FULL if config.depth == 1], ids=name_of)
def test_triton_on_a_gpu_is_the_reference_for_one_wide_head(config):
    assert_single_twins(replace(config, dim=64, heads=1, chunk=64), "cuda", 3, 150)
