# make demo   set up if needed, then train on a phantom for a minute and draw a prediction
# make test   set up if needed, then run the default tests; ten minutes on two cores
# make test-all    the other tests: trainings, commands, exports, all pairs of models and attentions
# make test-gpu    the tests that need a CUDA device
# make test-slurm  sweeps on a SLURM of two nodes, both on this machine (Debian, as root); half an hour
# make chaos  kills, stops, floods of broken input at length; half an hour
# make site   build the documentation into dist/site
# make check  format, lint and types; make lock  re-resolve the dependencies
# make bench  every suite of measurements, tables and plots to outputs/benchmark; an hour, machine to itself
# make bench-check  ratios against plain loops, within bounds; minutes
# make audit  known weaknesses of the locked packages; needs a network
# PYTHON=<path> and TORCH=cpu|cuda choose for the environment; scripts/setup.py says what is chosen without.
# WHEELS=<folder> has all packages, for machines without a network; docs/hospital.md says how to fill it.

PY := .venv/bin/python

.PHONY: setup demo test test-all test-gpu test-slurm chaos check bench bench-check audit lock site

setup:
	@$(or $(shell command -v python3),$(PYTHON),python3) scripts/setup.py

demo: setup
	.venv/bin/attnseg demo

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
	scripts/slurm_node.sh start 2
	SLURM_CONF=/run/attnseg-slurm/slurm.conf $(PY) -m pytest -s -m slurm tests/cluster; \
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
	$(PY) -m pip_audit --strict --disable-pip --require-hashes -r requirements/packages.lock -r requirements/torch.lock

site: setup
	$(PY) -m scripts.build_site

lock:
	$(or $(PYTHON),$(PY)) scripts/lock.py
