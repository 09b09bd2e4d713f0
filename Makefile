# On a fresh machine with Python 3.11 or newer: `make quick` or `make test`. Both install what they need into .venv.
PYTHON ?= python3
SEEDS ?= 0
# Commands at a time, if not as many as are fastest: make quick JOBS=4.
JOBS_AT_A_TIME := $(if $(JOBS),--jobs $(JOBS))
# Stop cleanly after so many seconds (make report SECONDS=1500); the same command continues.
SECONDS_LIMIT := $(if $(SECONDS),--seconds $(SECONDS))

# Without a GPU: make quick CPU_ONLY=1 takes PyTorch's build without CUDA, a tenth of the download.
CPU_BUILD := https://download.pytorch.org/whl/cpu
SIZES := $(if $(CPU_ONLY),0.3 GB to download and 1 GB on disk,3 GB to download and 5.7 GB on disk (0.3 and 1 with CPU_ONLY=1))

VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: quick laptop report paper paper-quick modern data test lint bench gpu-check soak fuzz mutate

quick laptop report paper paper-quick modern: data
	$(RUN) -m cifar_lab.reproduce $@ --seed $(SEEDS) $(SECONDS_LIMIT) $(JOBS_AT_A_TIME)
	@echo "commands of your own: with $(RUN), or with python after: source $(VENV)/bin/activate"

data: $(VENV)/.run
	$(RUN) -m cifar_lab.data

# A process per core, with a thread each: more threads would only wait for one another in networks this small.
test: lint data
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n auto --dist loadfile

lint: $(VENV)/.develop
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

bench: $(VENV)/.develop data
	$(RUN) -m bench.bench

gpu-check: $(VENV)/.develop data
	$(RUN) -m bench.gpu_check

soak: $(VENV)/.develop
	$(RUN) -m tests.soak

fuzz: $(VENV)/.develop
	$(RUN) -m tests.fuzz

mutate: $(VENV)/.mutate data
	$(RUN) -m tests.mutate --write

$(VENV)/.run: requirements.txt
	@echo "installing PyTorch and what else is needed into $(VENV): on Linux about $(SIZES)"
	$(PYTHON) -m venv $(VENV)
	$(if $(CPU_ONLY),grep ^torch requirements.txt | xargs $(RUN) -m pip install -q --index-url $(CPU_BUILD))
	$(RUN) -m pip install -q -r requirements.txt
	touch $@

$(VENV)/.develop: requirements-dev.txt requirements-export.txt $(VENV)/.run
	$(RUN) -m pip install -q -r requirements-dev.txt
	touch $@

$(VENV)/.mutate: requirements-mutate.txt $(VENV)/.develop
	$(RUN) -m pip install -q -r requirements-mutate.txt
	touch $@
