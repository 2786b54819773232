# make demo | live | test | lint | bench | apr | full | clean
# PYTHON: the interpreter that makes .venv. WORKDIR: where `make demo` writes.
PYTHON ?= python3.11
WORKDIR = runs/demo
VENV := .venv
RUN := $(VENV)/bin/python

.DELETE_ON_ERROR:
.PHONY: demo live test lint bench apr full clean

demo: $(VENV)/run.stamp
	$(RUN) -m adasr_jax.main --config=configs/hrpo.py --workdir=$(WORKDIR)

live: $(VENV)/run.stamp
	$(RUN) -m adasr_jax.live

test: $(VENV)/dev.stamp
	$(RUN) -m pytest -q -n auto --maxprocesses=8 --dist=loadfile \
	  --no-loadscope-reorder

lint: $(VENV)/dev.stamp
	$(RUN) -m ruff check .

bench: $(VENV)/run.stamp
	$(RUN) -m benchmarks.bench

# RL of threads, from experiments/apr/parallel.safetensors.
apr: $(VENV)/run.stamp
	$(RUN) -m adasr_jax.main --config=configs/apr.py --workdir=runs/apr

full: $(VENV)/run.stamp
	$(RUN) -m experiments.full.run

# Keeps runs/.
clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
	find . -path ./runs -prune -o -name __pycache__ -type d -prune \
	  -exec rm -rf {} +

$(RUN):
	$(PYTHON) -m venv $(VENV)

# A stamp is younger than the requirements that were installed.
$(VENV)/run.stamp: requirements.txt | $(RUN)
	$(RUN) -m pip install -r requirements.txt
	touch $@

$(VENV)/dev.stamp: requirements-dev.txt requirements.txt | $(RUN)
	$(RUN) -m pip install -r requirements-dev.txt
	touch $@
