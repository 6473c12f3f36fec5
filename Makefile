# make demo   trains through crashes and shows it (make demo-etcd: on an etcd whose members are killed, too)
# make test   lints, type-checks and runs every test
# Both make .venv themselves; a second run starts at once. Besides:
# make verify       the model at its large bounds, every transition on a real store (an hour or less)
# make soak         a training run whose ranks, store and connections are killed, stopped and cut: MINUTES=30 SEED=7
# make bench        one advance (recorded, too), the recovery from a crash and the start, measured beside others
# make bench-model  the checker, the simulation and the validation of recordings, measured

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/installed
MINUTES ?= 3
SEED    ?= 7

.PHONY: demo demo-etcd test lint verify soak bench bench-model clean

demo: $(STAMP)
	$(BIN)/python -m examples.digits

demo-etcd: $(STAMP)
	$(BIN)/python -m examples.digits --etcd

test: $(STAMP) lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -r s

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

verify: $(STAMP)
	$(BIN)/python model/promela/compare.py --large
	$(BIN)/coxless verify
	$(BIN)/coxless cover --ranks 2 --iterations 2 --crashes 1 --restarts 1 --suspicions 1 --target tcp
	$(BIN)/coxless cover --ranks 3 --iterations 2 --crashes 1 --symmetry --target tcp
	$(BIN)/coxless cover --ranks 3 --iterations 1 --crashes 1 --restarts 1 --suspicions 1 --symmetry --target tcp

soak: $(STAMP)
	$(BIN)/python -m bench.soak --minutes $(MINUTES) --seed $(SEED)

bench: $(STAMP)
	$(BIN)/python -m bench.advance
	$(BIN)/python -m bench.recording
	$(BIN)/python -m bench.recovery
	$(BIN)/python -m bench.startup

bench-model: $(STAMP)
	$(BIN)/python -m bench.model
	$(BIN)/python -m bench.recorded

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) out .pytest_cache .mypy_cache .ruff_cache .hypothesis
