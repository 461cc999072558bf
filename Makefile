# Two commands on a fresh machine with git, make and a Python from 3.11 on:
#
#     make sample      a video from the bundled model into outputs/   (ARGS="--prompt '…'" passes flags on)
#     make test        the CPU test suite
#
# `make setup EXTRAS=cuda` installs the GPU build of jax instead. PYTHON=/path/to/python3 names the interpreter.

VENV := .venv
PY := $(VENV)/bin/python
EXTRAS :=
ARGS :=
# Test files run at once; each process of jax takes its share of the cores and up to 4 GB.
WORKERS := 2
SPREAD := -n $(WORKERS) --dist loadfile
export PYTHON

.PHONY: setup sample test test-lean check format clean

setup: $(VENV)/.setup
sample: setup
	$(PY) scripts/sample.py $(ARGS)

test: $(VENV)/.test
	$(PY) -m pytest $(SPREAD) $(ARGS)

# The suites that need no torch: for any supported Python.
test-lean: $(VENV)/.test-lean
	$(PY) -m pytest $(SPREAD) tests/unit tests/property tests/cli $(ARGS)

check: $(VENV)/.test
	$(PY) -m ruff format --check . && $(PY) -m ruff check . && $(PY) -m mypy

format: $(VENV)/.test
	$(PY) -m ruff format . && $(PY) -m ruff check --fix .

clean:
	rm -rf $(VENV) outputs build *.egg-info

$(VENV)/.setup: pyproject.toml scripts/bootstrap.sh
	sh scripts/bootstrap.sh $(VENV) "$(EXTRAS)"
	@touch $@

$(VENV)/.test: pyproject.toml scripts/bootstrap.sh
	sh scripts/bootstrap.sh $(VENV) test
	@touch $@ $(VENV)/.setup

$(VENV)/.test-lean: pyproject.toml scripts/bootstrap.sh
	sh scripts/bootstrap.sh $(VENV) test-lean
	@touch $@ $(VENV)/.setup
