# The commands of the project. Each sets up what it needs in .venv by itself; only Python and make must be there.
#
#   make demo ARGS="--cell gru --gain 3"        arguments for the example; ARGS goes to pytest in test and slow
#   make bank ARGS=--smoke                      a trial of some minutes, apart from the bank that ships
#   make bench ARGS="--only engine"             one part; ARGS=--quick is a trial of some minutes
#   make test PYTHON=python3.12 VENV=.venv312   another interpreter, in an environment of its own

PYTHON ?= python3
VENV   ?= .venv
RUN    := $(VENV)/bin/python -m

# What the constraints hold beside the extras: torch, because a new one is a large download, worth it only on purpose,
# and what hatchling adds for an editable install.
HELD   := 'torch==2.13.0' 'editables~=0.3'

.DEFAULT_GOAL := help
.NOTPARALLEL:  # two installs into one environment would trip over each other
.PHONY: help demo bank bank-report bench test slow docs lint format constraints clean

help:         ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+: .*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/demo.stamp         ## train on handwritten digits and watch the Lyapunov spectrum
	$(VENV)/bin/python examples/digits.py $(ARGS)

bank: $(VENV)/bank.stamp         ## train the bank's networks: hours; interrupted it goes on; or nohup make bank &
	$(RUN) lightning_lyapunov.bank $(if $(filter --smoke,$(ARGS)),$(TRIAL),$(BANK)) $(ARGS)

bank-report: $(VENV)/bank.stamp  ## fit the scorer on the bank, evaluate it and write the report: an hour
	$(RUN) lightning_lyapunov.bank.report lightning_lyapunov/bank/bank.safetensors \
	  --weights lightning_lyapunov/aelle/weights/general.safetensors --page docs/bank-report.md --picture docs/bank-report.png

TRIAL  := runs/bank/smoke
BANK   := runs/bank/records --compact lightning_lyapunov/bank/bank.safetensors

bench: $(VENV)/plot.stamp        ## measure speed, beside other ways and packages, and write benchmarks/README.md: hours
	$(VENV)/bin/python benchmarks $(ARGS)

# These matrices are too small to share out: a few threads on a busy machine take five times as long as one.
bank bank-report test slow: export OMP_NUM_THREADS ?= 1

test: $(VENV)/test.stamp         ## run the tests, those that take seconds
	$(RUN) pytest -n 2 --dist loadfile $(ARGS)

slow: $(VENV)/test.stamp         ## run the tests that take minutes
	$(RUN) pytest -m slow $(ARGS)

docs: $(VENV)/dev.stamp          ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict --quiet

lint: $(VENV)/dev.stamp          ## check style and types
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy

format: $(VENV)/dev.stamp        ## put the code into style
	$(RUN) ruff check --fix
	$(RUN) ruff format

constraints:  ## renew constraints.txt with the newest releases (needs uv)
	{ sed -n '/^#/p' constraints.txt && printf '%s\n' $(HELD) | \
	  uv pip compile --quiet --universal --python-version 3.10 --extra dev --no-header --no-annotate pyproject.toml - | \
	  grep -vE '^(cuda|nvidia|triton)'; } > constraints.new
	mv constraints.new constraints.txt

clean:        ## remove the environment and what tests and builds leave; results of runs stay
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache

# One stamp for each extra of pyproject.toml: installed once, and again when what it was made from changes.
# The constraints go in as variables because these reach the isolated build too, under the name each pip knows.
$(VENV)/%.stamp: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "Installing lightning-lyapunov[$*] into $(VENV); the first time this takes minutes, most of them for torch."
	PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	  $(RUN) pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 10) and \
	  "lightning-lyapunov needs Python 3.10 or later; $(PYTHON) is " + v + ". Name another: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
