PYTHON ?= python3
# Installed first and alone: whichever build of torch your pip is set up for (CPU or CUDA) is then the one everything uses.
TORCH := $(shell grep '^torch==' constraints.txt)
SOURCES := $(shell find titans_ts datasets -type f -not -name '*.pyc')
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-long test-peer test-triton lint clean check-wheel

demo: .venv-demo/.installed
	.venv-demo/bin/titans-ts demo --out demo_out

test: lint
	OMP_NUM_THREADS=1 .venv-test/bin/python -m pytest -q -n 2
	NUMBA_DISABLE_JIT=1 OMP_NUM_THREADS=1 .venv-test/bin/python -m pytest -q -n 2 --dist loadfile -k "numba or interpreted" \
		tests/laws tests/golden tests/models/test_fused.py $(addprefix tests/forecasting/test_,fading.py widths.py streaming.py)
	$(MAKE) --no-print-directory check-wheel

test-long: .venv-test/.installed
	.venv-test/bin/python -m pytest -q -m long

# Equal outputs and gradients with titans-pytorch, which needs an environment of its own.
test-peer: .venv-peer/.torch
	.venv-peer/bin/python $(PIP_INSTALL) -e ".[dev]" titans-pytorch==0.5.5
	OMP_NUM_THREADS=1 .venv-peer/bin/python -m pytest -q tests/benchmark/test_memory.py

# The kernels of Triton in its interpreter, on the CPU. A CUDA build of torch brings its own Triton, which is then the one.
test-triton: .venv-triton/.torch
	.venv-triton/bin/python $(PIP_INSTALL) -e ".[dev]"
	.venv-triton/bin/python -c "import triton" 2> /dev/null || .venv-triton/bin/python $(PIP_INSTALL) triton==3.9.0
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 .venv-triton/bin/python -m pytest -q -n 2 tests/laws/test_triton.py
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 .venv-triton/bin/python -m pytest -q tests/core/test_doctests.py -k triton

lint: .venv-test/.installed
	.venv-test/bin/ruff format --check .
	.venv-test/bin/ruff check .
	.venv-test/bin/mypy

# The README's quick start, as someone sees it who has only the wheel. The sdist is built on the way: the wheel comes from it.
check-wheel: .venv-test/.installed .venv-wheel/.torch
	rm -rf dist && mkdir dist
	.venv-test/bin/python -m build --outdir dist . > dist/build.log || { cat dist/build.log; exit 1; }
	.venv-wheel/bin/python -m pip uninstall --quiet --yes titans-ts
	.venv-wheel/bin/python $(PIP_INSTALL) dist/titans_ts-*.whl
	.venv-wheel/bin/python -I tests/check_wheel.py README.md

.venv-demo/.installed: .venv-demo/.torch pyproject.toml $(SOURCES)
	.venv-demo/bin/python $(PIP_INSTALL) ".[plot]"
	touch $@

.venv-test/.installed: .venv-test/.torch pyproject.toml
	.venv-test/bin/python $(PIP_INSTALL) -e ".[dev,plot]"
	touch $@

.venv-%/.torch: constraints.txt
	$(PYTHON) -m venv --clear .venv-$*
	.venv-$*/bin/python $(PIP_INSTALL) "$(TORCH)"
	touch $@

# A wheel whose dependencies changed gets an environment that has never seen the old ones.
.venv-wheel/.torch: pyproject.toml

clean:
	rm -rf .venv-demo .venv-test .venv-wheel .venv-peer .venv-triton dist demo_out .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find titans_ts tests -name __pycache__ -type d -prune -exec rm -rf {} +
