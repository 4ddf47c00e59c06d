# make demo: CE and IB side by side on embedded data.  make test: the whole test suite.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test lint bench clean

demo: $(VENV)/.ready
	$(BIN)/python ib_loss/demo.py

test: $(VENV)/.ready lint
	$(BIN)/python -m pytest -n auto

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/all.py --write

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Rebuilt when requirements.txt changes.
$(VENV)/.ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

clean:
	rm -rf $(VENV)
