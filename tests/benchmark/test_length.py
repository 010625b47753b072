"""The benchmark of the length: the memory's cost grows with the length and attention's with its square, and what is
not measured is said."""

import json
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from titans_ts.benchmark import length
from titans_ts.benchmark.length import LENGTHS, PASSES, SIDES, Point, draw_length, layer, measure, run_length
from titans_ts.benchmark.runs import commit
from titans_ts.benchmark.tables import render
from titans_ts.cli import app
from titans_ts.core.ops import numba_dual
from titans_ts.core.ops.chunked import WORTH

MEMORIES = [side for side in SIDES if side != "attention"]


def operations(side: str, passes: str, tokens: int) -> int:
    x, module = torch.randn(1, tokens, 16), layer(side, 16, 2)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(passes == "both"):
        y = module(x)
        if passes == "both":
            y.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("side", MEMORIES)
def test_the_operations_of_a_memory_grow_with_the_length(side, passes, monkeypatch):
    monkeypatch.setattr("titans_ts.core.ops.chunked.WORTH", 2**60)  # nobody counts those of compiled kernels
    short, middle, long = (operations(side, passes, tokens) for tokens in (512, 1024, 2048))
    assert middle - short > 0
    assert long - middle == 2 * (middle - short)


class Written(TorchDispatchMode):
    """Counts the numbers that operations write."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.count += sum(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))
        return out


@pytest.mark.parametrize("side", MEMORIES)
def test_what_a_memory_writes_forward_and_backward_grows_with_the_length(side):
    """The gradient of a slice is as long as what it was cut from: one for every chunk would be quadratic."""
    module, written = layer(side, 16, 2), []
    for tokens in (4096, 8192, 16_384):
        with Written() as counter:
            module(torch.randn(1, tokens, 16)).sum().backward()
        written.append(counter.count)
    short, middle, long = written
    assert long - middle < 2.02 * (middle - short)


def test_the_operations_of_attention_grow_with_the_square_of_the_length():
    with sdpa_kernel(SDPBackend.MATH):  # the products of the fused kernel are not counted
        short, middle, long = (operations("attention", "forward", tokens) for tokens in (256, 512, 1024))
    assert long - middle > 3 * (middle - short)


@pytest.mark.parametrize("side", MEMORIES)
def test_the_time_of_a_memory_grows_with_the_length(side, monkeypatch):
    monkeypatch.setattr(length, "FRESH_SECONDS", 0.3)
    short, long = (measure(Point(side=side, passes="both", tokens=tokens))["seconds"] for tokens in (1024, 8192))
    assert long < 3 * 8 * short  # quadratic growth would be 64 times


@pytest.mark.parametrize("passes", PASSES)
def test_every_kernel_of_a_measured_call_has_been_called_before(passes, monkeypatch):
    """Its first call compiles it, or loads what was compiled."""
    called, before, shared = [], [], numba_dual.shared

    class Begun(length.Peak):
        def __init__(self):
            super().__init__()
            before.extend(called)
            called.clear()

    def noted(kernel, rows, *arguments):
        called.append(kernel)
        shared(kernel, rows, *arguments)

    monkeypatch.setattr(length, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(length, "Peak", Begun)
    monkeypatch.setattr(numba_dual, "shared", noted)
    for tokens in (WORTH // length.DIM, 1024):
        called.clear()
        before.clear()
        measure(Point(side="deep memory", passes=passes, tokens=tokens))
        assert set(called) == set(before)
        assert len(set(called)) == (2 if passes == "both" else 1)


def costing(seconds_a_token: float, mib_a_token: float = 0.0) -> Any:
    return lambda point: {
        "seconds": seconds_a_token * point.tokens ** (1 + (point.side == "attention")),
        "mib": mib_a_token * point.tokens,
        "gflops": 1.0,
    }


def test_a_point_that_takes_too_long_is_left_out_and_that_is_said():
    said = []
    result = run_length((1024, 4096, 16_384), said.append, costing(1e-6))
    assert not [row for row in result["rows"] if row["side"] != "attention" and "skipped" in row]
    last = [row for row in result["rows"] if row["side"] == "attention" and row["tokens"] == 16_384]
    assert len(last) == 2
    for row in last:
        assert "16 times the 17 s of 4,096 tokens" in row["skipped"]
        assert set(row) == {"side", "passes", "tokens", "skipped"}
    assert sum("not measured" in line for line in said) == 2


def test_a_point_that_holds_too_much_is_left_out_and_so_is_every_longer_one():
    rows = run_length((1024, 4096, 16_384), lambda line: None, costing(1e-9, 4.0))["rows"]
    assert "4 times the 4,096 MiB" in rows[1]["skipped"]
    assert "too dear already" in rows[2]["skipped"]


def test_a_point_is_measured_in_a_process_of_its_own_and_the_run_is_tabled_and_drawn(tmp_path):
    result = run_length((256,), lambda line: None)
    assert [row["side"] for row in result["rows"]] == [side for side in SIDES for _ in PASSES]
    assert all(row["seconds"] > 0 for row in result["rows"])
    (tmp_path / "length.json").write_text(json.dumps(result))
    assert "| attention | forward + backward |" in render("<!-- table length -->\n<!-- end -->", tmp_path)
    draw_length(result, tmp_path / "length.png")
    assert (tmp_path / "length.png").stat().st_size > 1000


def test_a_run_of_some_lengths_keeps_the_others_that_the_file_holds(tmp_path, monkeypatch):
    def command(seconds, *lengths):
        monkeypatch.setattr(length.run_length, "__defaults__", (LENGTHS, print, costing(seconds), None))
        asked = [part for tokens in lengths for part in ("--tokens", str(tokens))]
        done = CliRunner().invoke(app, ["benchmark", "length", "--out", str(tmp_path), *asked])
        return json.loads((tmp_path / "length.json").read_text())["rows"], done

    first, _ = command(1e-9, 1024, 4096)
    both, _ = command(2e-9, 4096, 256)
    assert [row["tokens"] for row in both] == [256, 1024, 4096] * len(SIDES) * len(PASSES)
    old = [row for row in both if row["tokens"] == 1024]
    assert old == [{**row, "commit": commit()} for row in first if row["tokens"] == 1024]
    new = {row["seconds"] for row in both if row["tokens"] == 4096 and row["side"] != "attention"}
    assert new == {2e-9 * 4096}
    assert "| attention | forward |" in render("<!-- table length -->\n<!-- end -->", tmp_path)
    monkeypatch.setattr(length, "DIM", 32)
    rows, refused = command(3e-9, 256)
    assert "12 rows that this run does not measure, of width=64, and here it is 32" in str(refused.exception)
    assert rows == both


def test_an_unknown_side_is_said():
    with pytest.raises(ValueError, match="side='mamba' must be one of linear memory, deep memory, attention"):
        Point(side="mamba", passes="forward", tokens=4)
