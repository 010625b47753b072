"""The layers import in one direction: core <- models <- forecasting <- command line and benchmarks."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import titans_ts

PACKAGE = Path(titans_ts.__file__).parent

# What each layer may import of ours, beside itself and the package's version.
LAYERS = {
    "core": set(),
    "data": set(),
    "models": {"core"},
    "forecasting": {"core", "models", "data"},
    "conformance": set(),
    "benchmark": {"core", "models", "data", "forecasting", "conformance"},
    "cli": {"core", "models", "data", "forecasting", "benchmark"},
}
KERNEL_LANGUAGES = {"numba", "triton"}
FUSED = PACKAGE / "models" / "fused.py"  # the one kernel that is a whole model
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imports(path: Path) -> Iterator[str]:
    """The full dotted names that a file imports anywhere in it, type-checking blocks and functions included."""
    home = ["titans_ts", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(home[: len(home) - node.level + 1] if node.level else [])
            module = ".".join(part for part in (base, node.module) if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def ours(name: str) -> str | None:
    """The layer that an imported name lies in; None where it is not ours."""
    top, _, rest = name.partition(".")
    if top != "titans_ts":
        return None
    first = rest.split(".")[0]
    home = titans_ts._HOME.get(first)  # a public name lies where it is defined
    return home.split(".")[1] if home else first


def ids(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_every_file_lies_in_a_layer_that_is_known_here(path):
    assert layer(path) in LAYERS, f"say in LAYERS what {layer(path)!r} may import"


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_a_layer_imports_itself_and_what_lies_below_only(path):
    allowed = LAYERS[layer(path)] | {layer(path), "__version__"}
    wrong = [name for name in imports(path) if ours(name) is not None and ours(name) not in allowed]
    assert wrong == []


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_kernel_languages_stay_in_the_ops(path):
    if (PACKAGE / "core" / "ops") in path.parents or path == FUSED:
        return
    assert [name for name in imports(path) if name.split(".")[0] in KERNEL_LANGUAGES] == []


@pytest.mark.parametrize("path", [path for path in FILES if layer(path) == "data"], ids=ids)
def test_the_data_sets_do_without_torch(path):
    assert [name for name in imports(path) if name.split(".")[0] == "torch"] == []


def test_the_package_itself_imports_only_the_standard_library_when_it_is_imported():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    at_import = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in at_import}
    assert names == {"importlib", "typing"}


def test_relative_and_absolute_imports_are_read_alike(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    path = tmp_path / "models" / "blocks.py"
    path.parent.mkdir()
    path.write_text(
        "from ..core import memory\nfrom . import heads\nimport numba.core\nfrom titans_ts import DataError\n"
    )
    found = list(imports(path))
    assert found == ["titans_ts.core.memory", "titans_ts.models.heads", "numba.core", "titans_ts.DataError"]
    assert [ours(name) for name in found] == ["core", "models", None, "forecasting"]
