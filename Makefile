# Every target sets up what it needs. `make tour` is the place to start.
PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: tour test lab bench data

tour: $(VENV)/.installed  ## train three small models, measure them at 0 to 200 loops, write runs/tour/
	$(RUN) -m looped_lib.notebooks notebooks/00_tour.ipynb runs/tour

test: $(VENV)/.test-installed  ## lint and test
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	$(RUN) -m pytest

lab: $(VENV)/.installed  ## JupyterLab, reachable from this machine only
	$(VENV)/bin/jupyter lab --ip 127.0.0.1 --notebook-dir notebooks

bench: $(VENV)/.installed  ## speed ratios into runs/bench/result.json
	$(RUN) -m looped_lib.bench

data: $(VENV)/.installed  ## write the files of data/ anew
	$(RUN) -m looped_lib.make_data

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --editable .
	touch $@

$(VENV)/.test-installed: $(VENV)/.installed
	$(VENV)/bin/pip install --quiet --editable ".[test]"
	touch $@
