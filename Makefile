# Every target sets up what it needs: `make test` works on a fresh machine with python3 and gcc.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CHROMIUM ?= /usr/bin/chromium

.PHONY: help install test test-browser pictures test-trl-matrix test-trl-suite test-verl-quick test-verl test-openrlhf-quick test-openrlhf test-faults test-readme test-trackers test-doors test-recipes lint format demo docs sim bench bench-gpu bench-page clean

help:
	@echo "make test    the default test tier (sets up $(VENV) first)"
	@echo "make test-browser  the dashboard in a real Chromium (Debian; installs it)"
	@echo "make test-trl-matrix  the equality tests on nine versions of TRL (half an hour)"
	@echo "make test-trl-suite   TRL's own GRPO and RLOO tests, with and without klmonitor (an hour)"
	@echo "make test-verl-quick  verl's own functions on synthetic batches (8 minutes with installation)"
	@echo "make test-verl        also older versions and real runs on Ray (two hours, resumable)"
	@echo "make test-openrlhf-quick  OpenRLHF's own code on synthetic batches (6 minutes with installation)"
	@echo "make test-openrlhf    also older versions and real runs on Ray (an hour, resumable)"
	@echo "make test-faults    faults by count, kills, malformed lines, a long run (two hours)"
	@echo "make test-readme    the README's install line and blocks, from the wheel (minutes)"
	@echo "make test-trackers  trackio, MLflow and SwanLab, from the wheel (minutes)"
	@echo "make test-recipes   docs/recipes.md against Lightning, torchrl, tinker-cookbook, AReaL (minutes)"
	@echo "make test-doors  the doors of axolotl, ms-swift and SkyRL, on the real packages (half an hour)"
	@echo "make lint    ruff, mypy, import-linter, generated docs"
	@echo "make demo    a real GRPO run with a KL spike, watched"
	@echo "make docs    regenerate docs/metrics.md"
	@echo "make pictures  the screenshots of docs/dashboard.md, from real runs (minutes)"
	@echo "make sim     the full statistical simulations (minutes)"
	@echo "make bench   timings, written to benchmarks/RESULTS.md (minutes)"
	@echo "make bench-gpu  what a call costs where log-probs are on a GPU, to benchmarks/RESULTS_GPU.md"
	@echo "make bench-page  first paint and zoom of two runs of 20,000 steps, in Chromium (a minute)"

install: $(VENV)/installed

# pip reads the constraints first, so torch is the pinned CPU build and never a CUDA one.
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--editable ".[all,dev]"
	touch $@

# A process a core, each with whole files; ARGS="-n 0" runs them in one, where a debugger can look.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

# A real browser: Debian's own Chromium, driven by Playwright.
test-browser: install
	test -x $(CHROMIUM) || (apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--editable ".[browser]"
	CHROMIUM=$(CHROMIUM) $(BIN)/python -m pytest tests/browser $(ARGS)

# One environment a version under .cache/trl-matrix, deleted after its run (ARGS=--keep keeps them);
# the results go into docs/trl.md.
test-trl-matrix: install
	$(BIN)/python benchmarks/trl_matrix.py $(ARGS)

# TRL's tests are cloned into .cache/trl-suite and run there; the result goes into docs/trl.md.
test-trl-suite: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt jmespath
	$(BIN)/python benchmarks/trl_suite.py $(ARGS)

# An environment of its own under .cache/verl (2 GB); needs nothing but python3 and a network.
test-verl-quick:
	$(PYTHON) benchmarks/verl_matrix.py --quick

# Real runs are kept in .cache/verl/runs and not run again (ARGS=--fresh: all again); the results go
# into docs/trainers/verl.md.
test-verl:
	$(PYTHON) benchmarks/verl_matrix.py $(ARGS)

# An environment of its own under .cache/openrlhf (2 GB); needs nothing but python3 and a network.
test-openrlhf-quick:
	$(PYTHON) benchmarks/openrlhf_matrix.py --quick

# Real runs are kept in .cache/openrlhf/runs and not run again (ARGS=--fresh: all again); the results
# go into docs/trainers/openrlhf.md.
test-openrlhf:
	$(PYTHON) benchmarks/openrlhf_matrix.py $(ARGS)

# Faults by count in Monitor loops and in real TRL runs, kills with resume, malformed lines, a soak of
# 200,000 steps (two hours); see docs/reliability.md.
test-faults: install
	KLMONITOR_FAULTS=all $(BIN)/python -m pytest tests/faults $(ARGS)

# The README's own install line, from our wheel, in an environment of its own; then its blocks.
test-readme: install
	$(BIN)/python tests/docs/run_readme.py $(ARGS)

# The sinks of trackio, MLflow and SwanLab, from our wheel, in an environment a tracker.
test-trackers: install
	$(BIN)/python -m tests.sinks.run_trackers $(ARGS)

# Two environments of its own under .cache/recipes; needs nothing but python3 and a network.
test-recipes:
	$(PYTHON) tests/docs/run_recipes.py $(ARGS)

# One environment a trainer under .cache/doors (1.5 GB each); ARGS=axolotl for one of them. The results go
# into docs/trainers/.
test-doors:
	$(PYTHON) -m tests.integrations.run_doors $(ARGS)

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/tables.py --check

format: install
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

pictures: install
	test -x $(CHROMIUM) || (apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--editable ".[browser]" pillow
	CHROMIUM=$(CHROMIUM) $(BIN)/python docs/pictures.py

docs: install
	$(BIN)/python docs/tables.py

bench: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--editable ".[bench]"
	PYTHONPATH=. $(BIN)/python benchmarks/speed.py $(ARGS)

bench-gpu: install
	PYTHONPATH=. $(BIN)/python -m benchmarks.gpu $(ARGS)

bench-page: install
	test -x $(CHROMIUM) || (apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--editable ".[browser]"
	CHROMIUM=$(CHROMIUM) PYTHONPATH=. $(BIN)/python benchmarks/page.py $(ARGS)

sim: install
	$(BIN)/python benchmarks/intervals.py
	$(BIN)/python benchmarks/dominance.py
	$(BIN)/python benchmarks/rules.py
	PYTHONPATH=. $(BIN)/python benchmarks/agreement.py

demo: install
	$(BIN)/klmonitor demo $(ARGS)

clean:
	rm -rf $(VENV) klmonitor-demo .pytest_cache .mypy_cache .ruff_cache
