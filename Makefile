# make train   trains improved consistency on digits beside the original method and prints one table
# make test    lint, types and the test suite
# make setup   prepares .venv alone; the other two call it

# The first Python >= 3.11 on the machine; PYTHON=... chooses another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
RUN := .venv/bin/python -m
RUNS := runs

.PHONY: setup train test
.SILENT:

setup:
	test -n "$(PYTHON)" || { echo "set-up failed: no Python >= 3.11 found; install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) .ci/setup.py

train: setup
	$(RUN) experiments.train --config=configs/consistency/digits.py --workdir=$(RUNS)/digits
	$(RUN) experiments.train --config=configs/consistency/digits.py --workdir=$(RUNS)/digits-original --config.method=training
	$(RUN) experiments.compare $(RUNS)/digits $(RUNS)/digits-original

test: setup
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) pytest -n 2 --dist loadfile
