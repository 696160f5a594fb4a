# make demo   set up if needed, then train SETR with KV attention on a phantom and show the result
# make test   set up if needed, then run the default tests; three minutes on two idle cores
# make test-all    the other tests: trainings, commands, exports, all pairs of models and attentions
# make test-gpu    the tests that need a CUDA device
# make test-slurm  sweeps on a SLURM of this machine alone (Debian, as root); minutes
# make chaos  kills, stops, floods of broken input at length; half an hour
# make check  format, lint and types; make lock  re-resolve the dependencies
# make bench  every suite of measurements, tables and plots to outputs/benchmark; an hour, machine to itself
# make bench-check  ratios against plain loops, within bounds; minutes
# make audit  known weaknesses of the locked packages; needs a network
# TORCH=cpu|cuda chooses the lock; without it, a machine with nvidia-smi takes cuda.

PYTHON ?= $(or $(shell command -v python3.11),python3)
TORCH ?= $(if $(shell command -v nvidia-smi),cuda,cpu)
PY := .venv/bin/python

.PHONY: setup demo test test-all test-gpu test-slurm chaos check bench bench-check audit lock

setup: .venv/.ready

.venv/.ready: requirements/$(TORCH).lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
	  echo "error: $(PYTHON): not Python 3.11, which the locks are for; install it or pass PYTHON=<its path>" >&2; exit 2; }
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@echo "Installing the locked packages ($<); a few minutes the first time."
	@$(PY) -m pip install -qq --disable-pip-version-check --require-hashes -r $< || { \
	  echo "error: $<: could not be installed (see above); if no CPU build of torch was found, name the index that has it in PIP_EXTRA_INDEX_URL or run 'make TORCH=cuda'" >&2; exit 5; }
	@$(PY) -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup
	$(PY) train.py experiment=demo

# CONTRIBUTING.md says what each tier holds.
test: setup
	$(PY) -m pytest -n 2 --dist worksteal --durations=15 \
	  -m 'smoke or not (system or full or slow or gpu or slurm)'

test-all: setup
	$(PY) -m pytest -n 2 --dist worksteal --durations=15 \
	  -m '(system or full) and not (smoke or slow or gpu or slurm)'

test-gpu: setup
	$(PY) -m pytest -m gpu tests/gpu

test-slurm: setup
	scripts/slurm_node.sh start
	SLURM_CONF=/run/attnseg-slurm/slurm.conf $(PY) -m pytest -m slurm tests/cluster; \
	  code=$$?; scripts/slurm_node.sh stop; exit $$code

chaos: setup
	$(PY) -m pytest -s -m slow tests/faults tests/safety tests/cli/test_sweep.py

check: setup
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

bench: setup
	$(PY) scripts/benchmarks/run.py suite=all

bench-check: setup
	$(PY) scripts/benchmarks/run.py -m suite=check model=setr,transunet,cvt,dae_former model.size=tiny \
	  image_size=128 repeats=3 phantom_size=tiny

audit: setup
	$(PY) -m pip_audit --strict --disable-pip --require-hashes -r requirements/cpu.lock

lock:
	$(PYTHON) scripts/lock.py
