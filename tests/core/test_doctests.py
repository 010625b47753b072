"""Every example in a docstring of the package runs, and every function of the core has one."""

import doctest
import inspect
import os
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import titans_ts

PACKAGE = Path(titans_ts.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.name != "__main__.py"
)


def story() -> dict[str, Any]:
    """What the examples of inference tell of: a model, two series of 120 and 96 steps, and ten more of the first."""
    from titans_ts.forecasting.clock import CountClock
    from titans_ts.forecasting.panel import Panel
    from titans_ts.models.config import BackboneConfig, TimeSeriesConfig
    from titans_ts.models.timeseries import TimeSeriesModel

    def panel(first: int, second: int, ends: tuple[int, int]) -> Panel:
        offsets = np.array([0, first, first + second])
        return Panel(
            np.arange(first + second, dtype=float), offsets, ("a", "b"), np.array(ends), np.zeros(2, int), CountClock()
        )

    config = TimeSeriesConfig(horizon=4, context=16, patch=4, quantiles=(0.5,), backbone=BackboneConfig(depth=1))
    return {"model": TimeSeriesModel(config), "past": panel(120, 96, (119, 95)), "later": panel(10, 0, (129, 95))}


NAMES = {"titans_ts.forecasting.inference": story}


def load(name: str) -> ModuleType:
    """The module, or a skip that says what it would need here."""
    if name.startswith("titans_ts.core.ops.triton_"):
        pytest.importorskip("triton", reason="needs Triton: run `make test-triton`")
        if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
            pytest.skip("needs TRITON_INTERPRET=1 or a CUDA device: run `make test-triton`")
    return import_module(name)


def examples(module: ModuleType) -> list[doctest.DocTest]:
    return [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name, tmp_path, monkeypatch):
    module = load(name)
    monkeypatch.chdir(tmp_path)
    for test in examples(module):
        said: list[str] = []
        test.globs.update(NAMES.get(name, dict)())
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        runner.run(test, out=said.append)
        assert runner.summarize(verbose=False).failed == 0, "".join(said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("titans_ts.core.")])
def test_every_function_of_the_core_shows_how_it_is_called(name):
    module = load(name)
    shown = {test.name for test in examples(module)}
    for word, value in vars(module).items():
        if inspect.isfunction(value) and value.__module__ == name and not word.startswith("_"):
            assert f"{name}.{word}" in shown
