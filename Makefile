# make demo    the four families on real handwritten digits: a table, and a report in demo/report.html
# make test    every test; of the contract half, the whole for what changed and a share (ALL=1 for all)
# make lab     the notebooks in JupyterLab
# make docs    the site, in docs/_site
# make bench   labelkit beside other libraries and beside plain fastai
# make setup   only the environment (.venv); every target above builds it when it is missing
# make export  write labelkit/ and README.md from the notebooks, and clean the notebooks
# make hooks   at every commit of this clone: notebooks clean and exported, style; types at a push
# make clean   remove what was built; the environment stays
#
# PYTHON=python3.12 make …  takes another Python.   JOBS=4 make test  takes another number of processes.

SHELL   := /bin/bash
PYTHON  ?= python3
VENV    ?= .venv
BIN     := $(VENV)/bin
PY      := $(BIN)/python
STAMP   := $(VENV)/.labelkit-installed
CORES   := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
JOBS    ?= $(shell n=$(CORES); [ $$n -gt 4 ] && n=4; echo $$n)
XDIST   := $(if $(filter 1,$(JOBS)),-n 0,-n $(JOBS) --dist worksteal)
# uv is used when it is there; pip does as well.
UV      := $(shell command -v uv 2>/dev/null)

# One thread each: the batches are small, and several threads on a shared machine are slower than one.
export OMP_NUM_THREADS ?= 1
export MPLBACKEND      ?= agg
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo test lab docs bench export hooks clean
.DEFAULT_GOAL := help
.PHONY: help
help:
	@sed -n 's/^# \(make [a-z]* .*\)/\1/p' Makefile

setup: $(STAMP)

$(PY):
ifneq ($(UV),)
	uv venv --python "$$(command -v $(PYTHON) >/dev/null && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		&& echo $(PYTHON) || echo '>=3.11')" $(VENV)
else
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON) here: labelkit needs Python 3.11 or newer."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "labelkit needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "This Python has no venv module (on Debian and Ubuntu: apt install python3-venv)."; exit 1; }
endif

$(STAMP): settings.ini constraints.txt setup.py | $(PY)
ifneq ($(UV),)
	uv pip install --python $(PY) -e ".[dev]" -c constraints.txt
else
	$(PY) -m pip install -q -e ".[dev]" -c constraints.txt
endif
	@touch $@

demo: setup
	@$(BIN)/labelkit demo

# The tests' own last lines are the last lines of this target.
test: setup
	@$(PY) -m pytest $(XDIST) $(if $(ALL),--whole) $(ARGS)

# a notebook shows its figures only where no other backend is asked for
lab: setup
	env -u MPLBACKEND $(BIN)/jupyter lab --ip=127.0.0.1 --ServerApp.root_dir=nbs $$([ "$$(id -u)" = 0 ] && echo --allow-root) $(ARGS)

docs: setup
	@$(PY) scripts/site_pages.py

bench: setup
	@set -e; for f in $(sort $(wildcard benchmarks/[a-z]*.py)); do echo "== $$f"; $(PY) $$f $(ARGS); done

export: setup
	$(PY) scripts/export.py

# An earlier clone had its hook in a folder that is gone.
hooks: setup
	@[ "$$(git config --local core.hooksPath)" != .githooks ] || git config --local --unset core.hooksPath
	$(BIN)/pre-commit install

clean:
	rm -rf docs/_site docs/_build docs/_static/vendor build dist .pytest_cache .ruff_cache demo
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
