# First command on a bare machine: `make demo` or `make test`. Each makes .venv and installs what it needs.
PYTHON ?= python3
VENV   ?= .venv
STORE  ?= store/demo
ARGS   ?=
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# make_synonyms is left out: it needs a WordNet, and its table is data rather than a measurement.
BASELINES = $(filter-out make_synonyms,$(basename $(notdir $(wildcard tests/baselines/make_*.py))))

# main_cc3m first: most others find its pre-trained models in the store.
STUDY = main_cc3m main_cc6m learning_rates inmodal_weight weight_decay shrink_perturb deep_clustering pseudo_labels cleaning_epochs cleaning_set_size \
        poisoned_cleaning_set poison_counts triggers target_classes vit_b32 openai_pretrained pretraining_dynamics

# One thread a process: processes side by side beat threads, and a few more threads than cores cost tenfold.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
# Dozens of processes import the same modules: their bytecode is kept.
export PYTHONDONTWRITEBYTECODE :=
# Nothing is sent anywhere.
export RAY_USAGE_STATS_ENABLED ?= 0
export MLFLOW_DISABLE_TELEMETRY ?= true

.PHONY: help demo audit-demo miniatures test exports oracles check bench chaos baselines install clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP)  ## make .venv and install the project into it

# Some distributions ship Python without ensurepip; then the pip at hand installs into the new environment.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; name it: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install pip; }
	$(BIN)/python -m pip install --no-compile -c constraints.txt -e ".[dev]"  # what is imported is compiled then
	touch $@

demo: $(STAMP)  ## poison, pre-train, clean and compare on a small procedural world (minutes on two cores)
	$(BIN)/cleansweep run sweeps.quickstart --store $(STORE) $(ARGS)

audit-demo: demo  ## attacks, defences, explanations and biases of the demo's models, before and after cleaning (minutes)
	$(BIN)/cleansweep audit sweeps.quickstart --store $(STORE) --n 40 $(ARGS)

miniatures: $(STAMP)  ## every sweep of the study as its miniature, in one store (49 minutes on two cores)
	set -e; for name in $(STUDY); do echo; echo "== sweeps.$$name"; $(BIN)/cleansweep run sweeps.$$name --miniature --store store/miniatures $(ARGS); done
	$(BIN)/cleansweep claims sweeps.main_cc3m sweeps.main_cc6m sweeps.poisoned_cleaning_set --miniature --store store/miniatures

test: $(STAMP)  ## every test; ARGS="-k poison" picks some
	$(BIN)/python -m pytest -n 2 $(ARGS)

# Apart from `test`: where transformers is installed, every process that imports open_clip imports it too, which takes a second.
exports: $(STAMP)  ## Hugging Face transformers loads what `cleansweep export` writes
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev,labels]"
	$(BIN)/python -m pytest tests/unit/orchestrator/commands/test_exports_elsewhere.py $(ARGS)

# adv-lib asks for a plotting server, which no longer installs and which its attacks do without.
oracles: $(STAMP)  ## the audit's attacks and explanations beside foolbox, adv-lib, captum and lime
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev,oracles]"
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps adv-lib
	$(BIN)/python -m pytest tests/unit/trainers/audit -k oracle $(ARGS)

check: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMP)  ## speed and memory, both sides of each ratio in one run (see BENCHMARKS.md)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev,bench,oracles]"
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps adv-lib
	$(BIN)/python -m tests.bench $(ARGS)

chaos: $(STAMP)  ## kills, damage and full disks at random; ARGS="--minutes 30 kill flip" (see docs/chaos.md)
	$(BIN)/python -m tests.chaos $(ARGS)

baselines: $(STAMP)  ## write the golden files anew, after a change that is meant to move them
	set -e; for name in $(BASELINES); do echo $$name; $(BIN)/python -m tests.baselines.$$name; done

clean:  ## remove the environment and caches; the store stays
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
