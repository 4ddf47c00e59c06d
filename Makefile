# make demo: losses of all four papers on embedded data.  make test: the whole test suite.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test lint bench clean

demo: $(VENV)/.ready
	$(BIN)/python tools/compare.py --digits --imb_factor 0.05 --image_size 16 --batch_size 16 --epochs 24 --out runs/demo

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
