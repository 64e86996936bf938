# One command sets everything up and runs the main job, one sets everything up and passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test check setup accuracy gpu

run: $(VENV)/.installed
	$(BIN)/ziphius run recipes/r1-cpu.toml

# In two processes, each test file in one of them, so that what a file shares is made once.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

accuracy: $(VENV)/.installed
	$(BIN)/ziphius plan accuracy

# Everything that is owed a GPU, in nine minutes, with the Python that has torch there: nothing is installed.
gpu:
	PYTHONPATH=. $(PYTHON) bench/gpu.py

setup: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@
