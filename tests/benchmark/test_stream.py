"""The benchmark of the stream: every case beside torch, and what it writes is what the tables read."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from titans_ts.benchmark import stream, stream_peers
from titans_ts.benchmark.memory import held_mib
from titans_ts.benchmark.runs import write_json
from titans_ts.benchmark.tables import render
from titans_ts.forecasting.panel import DataError
from titans_ts.forecasting.streaming import StreamingForecaster

ABSENT = replace(stream_peers.PEERS[0], package="no such package")
QUICK = next(peer for peer in stream_peers.PEERS if peer.package == "statsmodels")  # a tool of the development
SOME = (QUICK, ABSENT)


@pytest.fixture(scope="module")
def result():
    with pytest.MonkeyPatch.context() as patched:
        for name, value in (("SINGLE", 9), ("SINGLE_TORCH", 2), ("SINGLE_PEER", 2)):
            patched.setattr(stream, name, value)
        patched.setattr(stream, "PEERS", SOME)
        patched.setattr(stream, "bandwidth", lambda: 1e10)
        patched.setattr(stream, "product_gflops", lambda rows, dim: 99.0)
        return stream.run_stream(series=20)


def test_every_case_is_measured_on_both_sides(result):
    assert [case["series"] for case in result["cases"]] == [1, 1, 20, 20, 20, 20]
    for case in result["cases"]:
        for side in ("fused", "torch"):
            assert 0 < case[side]["median_us"] <= case[side]["p99_us"]
        assert case["ratio"] == pytest.approx(case["torch"]["median_us"] / case["fused"]["median_us"], rel=0.1, abs=0.1)
    assert result["bandwidth_gb_s"] == 10.0


def test_a_write_moves_weights_and_momentum_twice_and_the_anchor_once(result):
    write = result["cases"][2]
    assert write["bytes"] == 5 * 2 * 32 * 64 * 4
    assert write["bandwidth_us"] == pytest.approx(write["bytes"] / 1e4, rel=1e-3)
    assert not any("bytes" in case for case in result["cases"][3:])


def test_every_side_has_its_cpu_time_its_memory_and_its_rate(result):
    for case in result["cases"]:
        for side in (case["fused"], case["torch"]):
            assert side["cpu_us"] > 0
            assert 0 <= side["rise_mib"] < held_mib("VmHWM")
            assert 0 < side["state_mib"] < held_mib("VmHWM")
            if "operations" in case:
                assert side["gflops"] == pytest.approx(case["operations"] / side["cpu_us"] / 1e3, abs=1e-3)
            else:
                assert "gflops" not in side
    assert [case["case"].split(": ")[1] for case in result["cases"] if "operations" not in case] == [
        "update within a patch"
    ]


def test_a_state_of_many_series_holds_weights_momentum_and_anchor_of_each(result):
    one, many = 3 * 2 * 32 * 64 * 4, result["cases"][2]
    for side in ("fused", "torch"):
        assert 20 * one < many[side]["state_mib"] * 2**20 < 2 * 20 * one


def test_the_memory_that_calls_hold_is_seen():
    held = []
    _, cost = stream.watched(lambda i: held.append(np.ones(2**18)), 8, warm=2)
    assert 15 < cost["rise_mib"] < 17.5
    _, cost = stream.watched(lambda i: held[0].sum(), 8)
    assert cost["rise_mib"] < 1


def test_operations_of_a_patch_and_of_a_forecast_are_those_of_the_layers():
    """By hand, of width 32, one head of hidden width 64, one block with twice the width, and four convolution taps."""
    forecaster = stream.fitted(stream.SMALL, 2)
    patch, context, rank = forecaster.patch_length_, forecaster.context_length_, 128
    layers = 3 * 32 + 32 + 3 + 32 + 2 * 64 + 64  # queries, keys, values; gate; gates; out; feed-forward up, down
    memory = 9 * 2 * 32 * 64 + 2 * 32 * 64
    written, said = stream.useful_operations(forecaster)
    assert written == 2 * (2 * patch * 32 + 32 * layers + 4 * 3 * 32) + memory
    head = context // patch * 32 * rank + rank * (24 + patch) + (2 * patch + 32) * 32 + 32 * (24 + patch) + 2 * 32 * 16
    assert said == 2 * (head + context * 24)


def test_a_patch_is_completed_where_the_clock_says(result):
    """The one observation in eight that writes takes longer than the others."""
    writing, within = (result["cases"][place]["fused"]["median_us"] for place in (2, 3))
    assert writing > within


def test_a_package_that_is_not_installed_keeps_its_earlier_row(monkeypatch):
    monkeypatch.setattr(stream, "PEERS", (ABSENT,))
    earlier = {"package": ABSENT.package, "version": "1.0", "call": ABSENT.call, "median_us": 3.0}
    assert stream.other_packages([earlier]) == [{**earlier, "kept": True}]
    assert stream.other_packages([{**earlier, "call": "another"}])[0]["version"] is None
    assert stream.other_packages([{**earlier, "version": None}])[0]["version"] is None


def test_the_run_is_written_and_read_back(result, tmp_path):
    write_json(result, tmp_path / "stream.json")
    assert json.loads((tmp_path / "stream.json").read_text()) == result
    table = render("<!-- table stream -->\n<!-- end -->", tmp_path)
    assert table.count("\n") == 2 + len(result["cases"]) + 1 + 1
    assert "20 series, width 32, hidden 64: forecast" in table
    assert "| a plain product, same run |" in table
    assert table.count("| 99.0 |") == 1
    first = result["cases"][0]
    assert table.splitlines()[3].endswith(f"| {first['torch']['gflops']:.2f} |")
    within = table.splitlines()[6].split(" | ")
    assert (within[8], within[11]) == ("", " |")
    assert len(stream.stream_table(result)) == len(result["cases"])
    table = render("<!-- table stream_peers -->\n<!-- end -->", tmp_path)
    assert table.count("\n") == 2 + 1 + len(SOME) + 1
    assert table.count("not installed") == 1


def test_runs_of_before_have_a_table_with_blanks(result, tmp_path):
    """Those that were measured without memory and rates."""
    new = {"rise_mib", "state_mib", "gflops", "product_gflops"}
    bare = json.loads(json.dumps(result), object_hook=lambda part: {k: v for k, v in part.items() if k not in new})
    write_json(bare, tmp_path / "stream.json")
    for name in ("stream", "stream_peers"):
        head, _, *rows = render(f"<!-- table {name} -->\n<!-- end -->", tmp_path).splitlines()[1:-1]
        assert len(rows) == (len(result["cases"]) if name == "stream" else 1 + len(SOME))
        assert all(row.count("|") == head.count("|") for row in rows)
        assert all("|  |" in row for row in rows)


def test_other_packages_are_measured_where_they_are_installed_and_said_to_be_missing_where_not(result):
    measured, absent = result["peers"]
    assert 0 < measured["median_us"] <= measured["p99_us"]
    assert (measured["calls"], absent["version"]) == (2, None)
    assert 0 <= measured["rise_mib"] < held_mib("VmHWM")
    assert not {"median_us", "p99_us", "mean_us", "cpu_us", "rise_mib", "calls"} & absent.keys()
    assert stream.peers_table(result)["median"].tolist() == [measured["median_us"], "not installed"]


FORECASTERS = [peer for peer in stream_peers.PEERS if peer.forecasts and stream_peers.installed_version(peer.package)]


def test_the_cpu_time_of_a_call_leaves_waiting_out_and_takes_in_the_processes_it_starts():
    def work(i):
        subprocess.run([sys.executable, "-c", "sum(range(10**6))"], check=True)

    assert stream.measured(lambda i: time.sleep(0.002), 8)["cpu_us"] < 1500
    assert stream.measured(work, 4)["cpu_us"] > 5000
    asked: list[int] = []
    first = stream.measured(lambda i: (asked.append(i), None if i else work(i)), 4)  # as one that compiles
    assert first["cpu_us"] < 500
    assert asked == list(range(stream.WARM + 4))


@pytest.mark.parametrize("peer", FORECASTERS, ids=lambda peer: f"{peer.package}, {peer.call}")
def test_a_peer_takes_in_the_observation_before_it_forecasts(peer):
    """A call that leaves the observation out would be fast."""
    history, said = stream.seasonal(8 * stream.SEASON, 1)[:, 0], []
    for value in (0.0, 3.0):
        step = stream_peers.prepared(peer, history, 24, stream.SEASON)
        step(value)
        said.append(np.asarray(step(0.0), dtype=float).ravel())
    assert said[0].shape == said[1].shape
    assert not np.allclose(said[0], said[1], atol=1e-3)


def test_a_peer_that_does_not_give_what_it_says_is_not_measured():
    history = stream.seasonal(48, 1)[:, 0]
    short = replace(ABSENT, make=lambda history, horizon, season: lambda value: np.zeros(horizon - 1), options={})
    with pytest.raises(RuntimeError, match="not 24 finite numbers"):
        stream_peers.prepared(short, history, 24, 24)


def test_sides_that_saw_different_observations_are_not_compared():
    """Nor is a flat array taken, which would be N steps of one series and not one step of N."""
    forecaster = stream.fitted(stream.SMALL, 3)
    began, rows = forecaster._known.state.series.position.numpy().copy(), np.arange(3)
    compiled, new = StreamingForecaster.from_forecaster(forecaster), stream.seasonal(2, 3, seed=1)
    compiled.update(rows, new[0])
    with pytest.raises(RuntimeError, match="not seen the same observations"):
        stream.require_same(forecaster, compiled, began + 1)
    forecaster.update(new[:1])
    stream.require_same(forecaster, compiled, began + 1)
    compiled.update(rows, new[1])
    forecaster.update(new[1:] + 5)
    with pytest.raises(RuntimeError, match="forecast different numbers"):
        stream.require_same(forecaster, compiled, began + 2)
    with pytest.raises(DataError, match="2-D array"):
        forecaster.update(new[0])
