"""`import titans_ts` is cheap, and what is public is there when it is asked for."""

import importlib
import json
import subprocess
import sys

import pytest

import titans_ts

PROGRAM = """
import json, sys, time
before = time.process_time()
import {module}
print(json.dumps([time.process_time() - before, sorted({{name.split(".")[0] for name in sys.modules}})]))
"""


def import_in_a_new_process(module: str = "titans_ts") -> tuple[float, list[str]]:
    """The CPU seconds that the import alone took, and the top-level modules present after it."""
    program = PROGRAM.format(module=module)
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    return tuple(json.loads(printed))


def test_importing_the_package_takes_less_than_0_3_cpu_seconds():
    assert min(import_in_a_new_process()[0] for _ in range(3)) < 0.3


def test_importing_the_package_imports_nothing_heavy():
    _, modules = import_in_a_new_process()
    assert "titans_ts" in modules
    assert not {"torch", "pandas", "sklearn", "numpy", "numba", "scipy"} & set(modules)


@pytest.mark.parametrize("module", ["titans_ts.core.memory", "titans_ts.forecasting.forecaster"])
def test_numba_waits_until_it_is_asked_for(module):
    _, modules = import_in_a_new_process(module)
    assert "torch" in modules
    assert "numba" not in modules


@pytest.mark.parametrize("name", [name for name in titans_ts.__all__ if name != "__version__"])
def test_every_public_name_is_found_where_it_is_defined(name):
    value = getattr(titans_ts, name)
    assert value.__name__ == name
    assert value.__module__ == titans_ts._HOME[name]
    assert value is getattr(importlib.import_module(titans_ts._HOME[name]), name)


def test_the_public_names_are_listed():
    assert set(titans_ts.__all__) == {*titans_ts._HOME, "__version__"}
    assert set(titans_ts.__all__) <= set(dir(titans_ts))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'titans_ts' has no attribute 'Forecaster'"):
        _ = titans_ts.Forecaster
    with pytest.raises(ImportError):
        exec("from titans_ts import Forecaster")
