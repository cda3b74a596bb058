# Everything runs in .venv, which the first target makes from requirements.lock.
PYTHON ?= python3
BIN := .venv/bin
# An editable install that type checkers can follow links each file, so a new file needs a new install.
SOURCES := $(shell find platform -name '*.py' | LC_ALL=C sort)
INSTALLED := .venv/installed-$(shell echo $(SOURCES) | cksum | cut -d' ' -f1)
TESTS ?= tests examples
# Each worker starts a PostgreSQL of its own.
SIDE_BY_SIDE := -n auto --maxprocesses=4 --dist=worksteal
# What decides is mutated in full, everything else by a sample.
MODULES ?= core.values queue wallets.authorization wallets.requests wallets.rules wallets.unit_of_work

.DEFAULT_GOAL := help
.PHONY: help demo replay host-demo test lint check bench bench-short bench-pairs torture mutants format lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(INSTALLED) ## an evening on a small platform (DATABASE=url of an empty database, else a temporary SQLite file)
	@$(BIN)/points-platform demo $(if $(DATABASE),--database '$(DATABASE)')

replay: $(INSTALLED) ## points auctions from a record of bids: BIDS=file.csv [DATABASE=url] [WORKERS=n]
	@$(if $(BIDS),,$(error BIDS is missing: make replay BIDS=path/to/auction-bids.csv [DATABASE=url] [WORKERS=n]))
	@$(BIN)/python examples/auction_replay.py '$(BIDS)' $(if $(DATABASE),--database '$(DATABASE)') $(if $(WORKERS),--workers '$(WORKERS)')

host-demo: $(INSTALLED) ## a platform that has the points in its own database (examples/host), end to end on a PostgreSQL that it starts
	@$(BIN)/python -m examples.host.demo

test: $(INSTALLED) ## the test suite, on SQLite and on a PostgreSQL that it starts (TESTS=path narrows it)
	@$(BIN)/python -m pytest $(if $(filter tests,$(TESTS)),$(SIDE_BY_SIDE) --ignore=tests/torture) $(TESTS)

lint: $(INSTALLED) ## formatting, lint, strict types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy platform
	$(BIN)/mypy tests examples benchmarks

check: lint ## lint, and the test suite with coverage and the tests of the torture's own tools
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) --cov --cov-report=term-missing tests examples

bench: $(INSTALLED) ## benchmarks on a PostgreSQL of their own, with a table and benchmarks/results.json (LONG=1, CHARTS=folder)
	@$(BIN)/python -m benchmarks $(if $(LONG),--long) $(if $(CHARTS),--charts '$(CHARTS)')

bench-short: $(INSTALLED) ## the same in small, under two minutes
	@$(BIN)/python -m benchmarks --short

bench-pairs: $(INSTALLED) ## old against new in pairs, under eight minutes: OLD=checkout [PAIRS=30] [JSON=benchmarks/pairs.json]
	@$(if $(OLD),,$(error OLD is missing: make bench-pairs OLD=path/to/checkout [PAIRS=30] [JSON=benchmarks/pairs.json]))
	@$(BIN)/python -m benchmarks.pairs --old '$(OLD)' $(if $(PAIRS),--pairs '$(PAIRS)') $(if $(JSON),--json '$(JSON)')

torture: $(INSTALLED) ## faults, crashes and contention, and a judge: SECONDS= WORKERS= SEED= DATABASE=sqlite|postgresql PLANTED=all
	@PYTHONPATH=tests $(BIN)/python -m torture $(if $(SECONDS),--seconds '$(SECONDS)') $(if $(WORKERS),--workers '$(WORKERS)') \
	  $(if $(SEED),--seed '$(SEED)') $(if $(DATABASE),--database '$(DATABASE)') $(if $(PLANTED),--planted '$(PLANTED)')

MUTMUT := ../../$(BIN)/mutmut
SAMPLED = $(MUTMUT) results --all true | grep -o 'points_platform[^:]*' | grep -vF $(MODULES:%=-e points_platform.%.) \
  | ../../$(BIN)/python -c 'import random, sys; print(*random.Random($(or $(SEED),2026)).sample(sorted(sys.stdin), $(SAMPLE)), sep="")'

mutants: $(INSTALLED) .venv/mutation ## mutation testing, see tests/mutants.md (MODULES='wallets.rules queue'; then SAMPLE=150 of all others)
	@mkdir -p build/mutation
	@ln -sfn ../../platform build/mutation/points_platform
	@ln -sfn ../../tests ../../docs ../../pyproject.toml build/mutation
	@cd build/mutation && $(MUTMUT) run $(if $(SAMPLE),$$($(SAMPLED)),$(MODULES:%='points_platform.%.*'))
	@cd build/mutation && $(MUTMUT) results | grep -v 'not checked' || true

format: $(INSTALLED) ## rewrite the formatting, and what lint can mend by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: .venv/created ## resolve requirements.lock anew (hashes, no addresses); UPGRADE=1 takes newer versions too
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal $(if $(UPGRADE),--upgrade) --generate-hashes --no-emit-index-url --no-header \
	  --extra cli --group dev --python-version 3.11 --output-file requirements.lock pyproject.toml
	$(BIN)/uv pip compile --quiet --universal $(if $(UPGRADE),--upgrade) --generate-hashes --no-emit-index-url --no-header \
	  --group mutation --constraint requirements.lock --python-version 3.11 --output-file requirements-mutation.lock

clean: ## remove the environment and everything that was built
	rm -rf .venv build platform/*.egg-info *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache

.venv/created:
	$(PYTHON) -m venv .venv
	@touch $@

.venv/locked: .venv/created requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

.venv/mutation: .venv/locked requirements-mutation.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-mutation.lock
	@touch $@

$(INSTALLED): .venv/locked pyproject.toml
	@rm -rf build .venv/installed-*
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
	  --config-settings editable_mode=strict --editable .
	@touch $@
