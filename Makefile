# make demo | recipe | live | test | lint | bench | apr | full | clean
# PYTHON: the interpreter that makes .venv. WORKDIR: where `make demo` writes.
PYTHON ?= python3.11
WORKDIR = runs/demo
VENV := .venv
RUN := $(VENV)/bin/python

.DELETE_ON_ERROR:
.PHONY: demo recipe live test lint bench apr full clean

demo: $(VENV)/run.stamp
	$(RUN) -m adasr_jax.main --config=configs/hrpo.py --workdir=$(WORKDIR)

# The best that is known for the harder setting: supervised start, HRPO, three
# rounds of pruned traces. What is finished is not run again.
RECIPE := runs/recipe
MAIN := $(RUN) -m adasr_jax.main
# Arguments: parent run, new round, its first problem, the policy that says
# which skips are tried.
define round
	test -e $(RECIPE)/$(2).jsonl || \
	  $(RUN) -m adasr_jax.tools.prune_traces --of=$(RECIPE)/$(1) \
	  --start=$(RECIPE)/$(4) --first=$(3) --problems=2900 \
	  --out=$(RECIPE)/$(2).jsonl
	$(MAIN) --config=configs/sft.py:full --workdir=$(RECIPE)/$(2) \
	  --config.name='Pruned traces, $(2)' \
	  --config.eval.baselines="('$(RECIPE)/start','$(RECIPE)/hrpo')" \
	  --config.init=$(RECIPE)/$(1) --config.sft.traces=$(RECIPE)/$(2).jsonl \
	  --config.data.prompts=96 --config.steps=200 \
	  --config.optim.learning_rate=1e-3 --config.optim.warmup=10
endef
recipe: $(VENV)/run.stamp
	$(MAIN) --config=configs/sft.py:full --workdir=$(RECIPE)/start
	$(MAIN) --config=configs/hrpo.py:full --config.init=$(RECIPE)/start \
	  --workdir=$(RECIPE)/hrpo --config.steps=60 \
	  --config.advantage.granularity=sentence --config.optim.schedule=constant
	$(call round,hrpo,round1,2400,start)
	$(call round,round1,round2,5300,round1)
	$(call round,round2,round3,8200,round2)

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
