# The commands of the project. Each sets up what it needs in .venv by itself; only Python and make must be there.
#
#   make demo ARGS="--task digits --gain 3"     arguments for the demo; ARGS goes to pytest in test and slow
#   make bank ARGS=--smoke                      a trial of some minutes, apart from bank/records
#   make bench ARGS="--only engine"             one part; ARGS=--quick is a trial of some minutes
#   make clients ARGS=darts                     one library; ARGS=--resume leaves out what has been run
#   make test PYTHON=python3.12 VENV=.venv312   another interpreter, in an environment of its own
#   make test-oldest PYTHON=python3.10          the oldest releases allowed; gigabytes, most of them for torch

PYTHON      ?= python3
VENV        ?= .venv
CONSTRAINTS ?= constraints.txt
RUN         := $(VENV)/bin/python -m

# What the constraints hold beside the extras: torch, because a new one is a large download, worth it only on purpose,
# and what hatchling adds for an editable install.
HELD        := 'torch==2.13.0' 'editables~=0.3'
# The oldest ones came before NumPy 2 (matplotlib, scikit-learn) and need pkg_resources (lightning, tensorboard).
HELD_OLDEST := 'numpy==1.26.4' 'setuptools==80.10.2' 'editables~=0.3'

.DEFAULT_GOAL := help
.NOTPARALLEL:  # two installs into one environment would trip over each other
.PHONY: help demo bank bank-report bank-gates bench gpu clients test test-oldest test-newest versions slow docs lint format \
  constraints clean

help:         ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+: .*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/demo.stamp         ## a network that will not learn is told so early, and rescued; ARGS="--task digits": digits
	$(VENV)/bin/python $(if $(filter %digits,$(ARGS)),examples/digits.py $(filter-out --task --task=digits digits,$(ARGS)),-m lightning_lyapunov demo $(ARGS))
	-$(if $(ARGS),,$(if $(DISPLAY)$(WAYLAND_DISPLAY),$(VENV)/bin/python -m webbrowser \
	  "file://$(CURDIR)/$$(ls -t lightning_logs/demo/as-made/*/lyapunov.html | head -1)"))

bank: $(VENV)/bank.stamp         ## train the bank's networks: hours; interrupted it goes on; or nohup make bank &
	$(RUN) lightning_lyapunov.bank $(if $(filter --smoke,$(ARGS)),$(TRIAL),$(BANK)) $(ARGS)

bank-report: $(VENV)/bank.stamp  ## fit the scorer on the bank, evaluate it and write the report: three quarters of an hour
	$(RUN) lightning_lyapunov.bank.report $(BANK) --set-aside \
	  --weights lightning_lyapunov/aelle/weights/general.safetensors --page docs/bank-report.md --picture docs/bank-report.png

bank-gates: $(VENV)/bank.stamp   ## the same recipe on the first bank, and whether it meets what was demanded there
	$(RUN) lightning_lyapunov.bank.report $(FIRST) --gates --kept runs/bank/left-out-first \
	  --weights runs/bank/first.safetensors --page docs/bank-gates.md --picture docs/bank-gates.png

TRIAL  := runs/bank/smoke
BANK   := bank/records
FIRST  := bank/bank-1.safetensors

bench: $(VENV)/plot.stamp        ## measure speed, beside other ways and packages, and write benchmarks/README.md: hours
	$(VENV)/bin/python benchmarks $(ARGS)

gpu: $(VENV)/test.stamp          ## the same numbers, counts, times and memory on an accelerator: four minutes; docs/gpu.md
	$(VENV)/bin/python benchmarks/gpu.py $(ARGS)

clients:      ## run models of other libraries with the callbacks: half an hour, and 6 GB to install
	$(PYTHON) clients/run.py $(ARGS)

# These matrices are too small to share out: a few threads on a busy machine take five times as long as one.
bank bank-report bank-gates clients test slow: export OMP_NUM_THREADS ?= 1

test: $(VENV)/test.stamp         ## run the tests, those that take seconds
	$(RUN) pytest -n 2 --dist loadfile $(ARGS)

# Each in an environment of its own, whose content is printed first.
test-oldest:  ## run them with the oldest releases that pyproject.toml allows
	$(MAKE) VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt versions test

test-newest:  ## run them with the newest releases of everything
	rm -f .venv-newest/test.stamp
	$(MAKE) VENV=.venv-newest CONSTRAINTS= versions test

versions: $(VENV)/test.stamp
	$(RUN) pip --version
	$(RUN) pip list

slow: $(VENV)/test.stamp         ## run the tests that take minutes
	$(RUN) pytest -m slow $(ARGS)

docs: $(VENV)/dev.stamp          ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict --quiet

lint: $(VENV)/dev.stamp          ## check style and types
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy

format: $(VENV)/dev.stamp        ## put the code into style, and the keys into README
	$(VENV)/bin/python docs/write_keys.py
	$(RUN) ruff check --fix
	$(RUN) ruff format

COMPILE := uv pip compile --quiet --python-version 3.10 --no-header --no-annotate pyproject.toml -
PLAIN   := grep -vE '^(cuda|nvidia|triton)'

constraints:  ## renew both constraints files with the newest releases (needs uv)
	{ sed -n '/^#/p' constraints.txt && printf '%s\n' $(HELD) | $(COMPILE) --universal --extra dev | $(PLAIN); } \
	  > constraints.new
	mv constraints.new constraints.txt
	{ sed -n '/^#/p' constraints-oldest.txt && \
	  printf '%s\n' $(HELD_OLDEST) | $(COMPILE) --resolution lowest-direct --extra test | $(PLAIN); } > constraints.new
	mv constraints.new constraints-oldest.txt

clean:        ## remove the environments and what tests and builds leave; results of runs stay
	rm -rf $(VENV) .venv-oldest .venv-newest .venv-clients-*
	rm -rf build dist site mutants .pytest_cache .mypy_cache .ruff_cache .hypothesis

# One stamp for each extra of pyproject.toml: installed once, and again when what it was made from changes.
# The constraints go in as variables because these reach the isolated build too, under the name each pip knows.
# Without constraints everything is brought to its newest release.
$(VENV)/%.stamp: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/pip
	@echo "Installing lightning-lyapunov[$*] into $(VENV); the first time this takes minutes, most of them for torch."
	PIP_CONSTRAINT=$(CONSTRAINTS) PIP_BUILD_CONSTRAINT=$(CONSTRAINTS) \
	  $(RUN) pip install --quiet --disable-pip-version-check \
	  $(if $(CONSTRAINTS),,--upgrade --upgrade-strategy eager) --editable '.[$*]'
	@touch $@

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 10) and \
	  "lightning-lyapunov needs Python 3.10 or later; $(PYTHON) is " + v + ". Name another: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
