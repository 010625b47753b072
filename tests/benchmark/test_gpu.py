"""The benchmark on CUDA devices: what of it runs without one, and that it says what it needs."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from titans_ts.benchmark import gpu
from titans_ts.benchmark.tables import TABLES
from titans_ts.cli import app
from titans_ts.forecasting.forecaster import TitansForecaster
from titans_ts.forecasting.training import TrainConfig
from titans_ts.models.config import VARIANTS

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", gpu.SIZES)
def test_the_transformer_has_as_many_parameters_as_the_model_beside_it(size):
    ours, peer = gpu.parameters(size, "lmm"), gpu.parameters(size, None)
    assert abs(peer / ours - 1) < 0.02
    assert abs(ours / 1e6 / int(size[:-1]) - 1) < 0.02


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_device_the_error_says_what_is_needed(tmp_path):
    with pytest.raises(ValueError, match="needs a CUDA device and a CUDA build of torch"):
        gpu.run_gpu(say=lambda line: None)
    ran = CliRunner().invoke(app, ["benchmark", "gpu", "--out", str(tmp_path)])
    assert isinstance(ran.exception, ValueError)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_forecaster_is_fitted_on_the_device_and_forecasts_there_what_it_does_on_the_cpu():
    assert gpu.forecaster_agreement(torch.device("cuda")) <= gpu.AGREE
    forecaster = TitansForecaster(horizon=12, train=TrainConfig(linear=False, steps=5))
    forecasts = forecaster.fit(
        np.sin(np.arange(300.0))[:, None] + np.random.default_rng(0).normal(size=(300, 2))
    ).predict()
    assert np.isfinite(forecasts).all()


def test_the_transformer_is_causal():
    model = gpu.Transformer(8, 2, 2, 16)
    x = torch.randn(1, 5, 8)
    changed = x.clone()
    changed[:, 3:] += 1
    assert torch.equal(model(x)[:, :3], model(changed)[:, :3])
    assert not torch.equal(model(x)[:, 3:], model(changed)[:, 3:])


def test_a_training_pass_leaves_gradients_and_a_forward_pass_none():
    model = gpu.LanguageModel(8, gpu.Transformer(8, 1, 2, 16))
    passes = gpu.passes_of(model, torch.randint(gpu.VOCABULARY, (1, 4)))
    passes["forward"]()
    assert all(parameter.grad is None for parameter in model.parameters())
    passes["both"]()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_every_wiring_and_depth_is_compared_with_the_cpu(monkeypatch):
    cases = [(name, "auto", build) for name, _, build in gpu.agreement_cases()]
    assert {name.split(",")[0] for name, *_ in cases} == {"memory", *VARIANTS}
    monkeypatch.setattr(gpu, "agreement_cases", lambda: cases)
    rows = gpu.agreement_rows(CPU, lambda line: None, forecaster=False)
    assert [row["what"] for row in rows] == [name for name, *_ in cases]
    assert {row["output"] for row in rows} == {row["gradient"] for row in rows} == {0.0}


def test_an_output_that_is_off_is_seen():
    assert gpu.furthest(torch.tensor([4.0, 1.001]), torch.tensor([4.0, 1.0])) > gpu.AGREE


def test_a_run_of_some_sizes_keeps_the_models_of_others(tmp_path, monkeypatch):
    def rows(device, sizes, lengths, say):
        return [{"size": size, "tokens": tokens, "new": True} for size in sizes for tokens in lengths]

    monkeypatch.setattr(gpu, "needs_cuda", lambda: CPU)
    monkeypatch.setattr(gpu, "about_device", lambda device: {"device": "one"})
    monkeypatch.setattr(gpu, "agreement_rows", lambda device, say: [{"what": "lmm"}])
    monkeypatch.setattr(gpu, "model_rows", rows)
    monkeypatch.setattr(gpu, "layer_rows", lambda device, say: [{"layer": "deep"}])
    models = [{"size": size, "tokens": tokens} for size in ("170m", "340m") for tokens in (2048, 8192)]
    earlier = {"commit": "before", "device": "one", "models": models}
    file, asked = tmp_path / "gpu.json", ["benchmark", "gpu", "--out", str(tmp_path), "--size", "340m"]
    file.write_text(json.dumps(earlier))
    assert CliRunner().invoke(app, [*asked, "--tokens", "8192"]).exit_code == 0
    result = json.loads(file.read_text())
    assert result["models"] == [
        *({"commit": "before", **row} for row in models[:3]),
        {"size": "340m", "tokens": 8192, "new": True},
    ]
    assert (result["device"], result["layers"]) == ("one", [{"layer": "deep"}])
    file.write_text(json.dumps({**earlier, "device": "another"}))
    refused = CliRunner().invoke(app, asked)
    assert "of device='another', and here it is 'one'" in str(refused.exception)
    assert json.loads(file.read_text())["models"] == models


def test_a_length_that_would_take_too_long_is_left_out_and_all_longer_ones_too():
    first = {"tokens": 2048, "seconds": 1.0}
    assert gpu.too_slow(first, 8192) is None
    assert gpu.too_slow(first, 32_768) == "more than 10 s"
    assert gpu.too_slow({"tokens": 8192, "skipped": "out of memory"}, 32_768) == "out of memory"


def test_a_slow_call_is_not_repeated_more_than_once(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: 2.0 * next(clock))
    calls = []
    assert gpu.seconds(lambda: calls.append(1), CPU) == 2.0
    assert len(calls) == 2


def test_the_table_says_what_was_measured_and_what_was_not(tmp_path):
    model = {"size": "170m", "side": "lmm", "parameters": 170_083_584, "passes": "both", "graph": False}
    layer = {"layer": "170m, depth 2", "passes": "both", "rows": 1, "tokens": 2048}
    run = {
        "device": "a device",
        "agreement": [{"what": "lmm, depth 2", "output": 3.1e-7, "gradient": 4.2e-7}],
        "models": [
            {**model, "tokens": 2048, "seconds": 0.5, "tokens_per_s": 4096.0, "peak_mib": 7650},
            {**model, "tokens": 8192, "skipped": "out of memory"},
            {**model, "tokens": 2048, "seconds": 0.25, "tokens_per_s": 8192.0, "peak_mib": 7650, "graph": True},
        ],
        "layers": [
            {**layer, "op": "chunked", "seconds": 0.4, "tokens_per_s": 5120.0, "peak_mib": 900},
            {**layer, "op": "triton", "seconds": 0.02, "tokens_per_s": 102400.0, "peak_mib": 800},
        ],
    }
    (tmp_path / "gpu.json").write_text(json.dumps(run))
    lines = TABLES["gpu"](tmp_path).splitlines()
    assert "| 170m | lmm | 170.1 | forward + backward | 4,096, 7,650 MiB | out of memory |" in lines
    assert "| 170m | lmm, as a graph | 170.1 | forward + backward | 8,192, 7,650 MiB |  |" in lines
    assert "| 170m, depth 2 | forward + backward | 5,120, 900 MiB | 102,400, 800 MiB | **20.0x** |" in lines
    assert "| lmm, depth 2 | 3.1e-07 | 4.2e-07 |" in lines
