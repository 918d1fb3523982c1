# Every target brings the environment it needs: a fresh clone wants Python 3.11, pip, make and git, nothing else.
# `make demo` installs the library alone; the others add the tools and the environments of the tests.

PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PY := .venv/bin/python
PIP := $(PY) -m pip install --quiet -c .ci/constraints.txt

# A file's tests run in one process: what they share is made once. The files that take long come first (tests/conftest.py).
PYTEST = $(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# Another project's settings of Python must not reach this one; tests share few cores.
unexport PYTHONPATH PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_USER := 0
export OMP_NUM_THREADS ?= 1
export SDL_VIDEODRIVER ?= dummy
export NO_MKDOCS_2_WARNING := 1

.PHONY: help demo test test-full test-rllib test-benchmarl bench docs lint clean
.DELETE_ON_ERROR:

help:
	@echo "make demo       compose, draw and run the example configs"
	@echo "make test       formatting, lint, types, docs and the tests (what CI runs)"
	@echo "make test-full  all of that, and the tests that take long"
	@echo "make test-rllib, make test-benchmarl"
	@echo "                the tests of libraries that do not go together with the others, in environments of their own"
	@echo "make bench      the benchmarks"
	@echo "make docs       the documentation, as a site in site/"
	@echo "make lint       formatting, lint and types"
	@echo "make clean      remove the environment and everything that was built"

demo: .venv/.library
	$(PY) configs/demo.py

test: checked
	$(PYTEST) -m "not full"

test-full: checked
	$(PYTEST)
	$(MAKE) test-benchmarl

# The types are checked beside the documentation: either uses one core.
.PHONY: checked
checked: .venv/.dev
	$(MAKE) -j 2 lint docs

# Each makes an environment, with no more than its tests need, and removes it again.
test-rllib: LIBRARIES = mpe2
test-rllib: EXTRAS = rllib,train
test-benchmarl: LIBRARIES = vmas
test-benchmarl: EXTRAS = benchmarl
test-rllib test-benchmarl: test-%: .ci/constraints-%.txt
	rm -rf .venv-$*
	$(PYTHON) -m venv .venv-$* >/dev/null 2>&1 || { $(PYTHON) -m venv --clear --without-pip .venv-$* \
		&& $(PYTHON) -m pip --python .venv-$*/bin/python install --quiet pip; }
	trap 'rm -rf .venv-$*' EXIT && .venv-$*/bin/python -m pip install --quiet -c $< torch==2.13.0 setuptools \
		&& .venv-$*/bin/python -m pip install --quiet -c $< --no-build-isolation -e ".[$(EXTRAS)]" $(LIBRARIES) pytest hypothesis \
		&& .venv-$*/bin/python -m pytest -q tests/$* -o addopts="--import-mode=importlib --strict-markers --strict-config"

bench: .venv/.dev
	$(PY) benchmarks/table.py

docs: .venv/.dev
	$(PY) -m mkdocs build --quiet --strict -f .ci/mkdocs.yml

lint: .venv/.dev
	$(PY) -m ruff format --config .ci/ruff.toml --check .
	$(PY) -m ruff check --config .ci/ruff.toml .
	$(PY) -m pyright -p .ci/pyrightconfig.json

clean:
	rm -rf .venv .venv-rllib .venv-benchmarl build dist site out *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A Python without ensurepip (as some distributions ship it) still has pip itself: that one fills the environment.
.venv/.python:
	@test -n "$(PYTHON)" || { echo "make: this needs Python 3.11 or newer; name one with" \
		"'make PYTHON=/path/to/python3.11 ...'" >&2; exit 1; }
	$(PYTHON) -m venv .venv >/dev/null 2>&1 || { $(PYTHON) -m venv --clear --without-pip .venv \
		&& $(PYTHON) -m pip --python .venv/bin/python install --quiet pip; }
	@touch $@

# torch brings the pinned setuptools that builds this package, so the build downloads nothing of its own choice.
.venv/.library: .venv/.python setup.cfg pyproject.toml .ci/constraints.txt
	$(PIP) torch==2.13.0 setuptools
	$(PIP) --no-build-isolation -e .
	@touch $@

.venv/.dev: .venv/.library
	$(PIP) --no-build-isolation -e ".[dev,envs,graph,pettingzoo,onnx,llm,sb3,torchrl,ray,rsl-rl,skrl,rl-games,tianshou,train,editor]"
	@touch $@
