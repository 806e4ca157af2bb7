# Everything a developer, CI and a first visitor run. `make` alone lists it.

VENV := .venv
PYTHON := $(VENV)/bin/python
UV := $(VENV)/bin/uv
READY := $(VENV)/.ready

.PHONY: help setup demo up test faults check format lock clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(READY) ## make the environment in .venv, again only when requirements.txt has changed

# pip installs uv, as requirements.txt pins it, and uv the rest: six times as fast as pip.
$(UV):
	@python=$$(for name in python3.11 python3.12 python3.13 python3; do \
	    "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$name" && break; \
	done); \
	test -n "$$python" || { echo "Python 3.11 or newer is missing; install it so that python3 is on the PATH"; exit 1; }; \
	"$$python" -m venv --clear $(VENV)
	@awk '/^uv==/ { take = 1 } take; !/\\$$/ { take = 0 }' requirements.txt > $(VENV)/uv.txt
	$(VENV)/bin/pip install --quiet --require-hashes -r $(VENV)/uv.txt

# Bytecode made once halves the start of each of Airflow's programs. uv does not know what pip is configured with, such as a company's mirror: there pip does it all.
$(READY): requirements.txt | $(UV)
	$(UV) pip sync --quiet --compile-bytecode --require-hashes --python $(VENV) requirements.txt \
	    || $(PYTHON) -m pip install --quiet --require-hashes -r requirements.txt
	@touch $@

demo: setup ## start the whole system and tell its story; it stays up until Ctrl-C
	$(PYTHON) -m local demo

up: setup ## start the whole system; it stays up until Ctrl-C
	$(PYTHON) -m local up

test: setup ## run all tests on real parts
	$(VENV)/bin/pytest --numprocesses 2

faults: setup ## check the history of clients while parts fail; MINUTES=60 SEED=1 BREAK=lease, see docs/faults.md
	$(PYTHON) -m tests.faults.history

check: setup ## lint, formatting and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

format: setup ## put the code in its format, and mend what the linter can
	$(VENV)/bin/ruff check --fix-only
	$(VENV)/bin/ruff format

lock: setup ## resolve the newest versions of all dependencies into requirements.txt
	$(UV) pip compile pyproject.toml --quiet --universal --upgrade --all-extras --group local --group dev \
	    --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url -o requirements.txt
	$(UV) pip compile --group jenkins --constraint requirements.txt --quiet --universal \
	    --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url \
	    -o jenkins-job/requirements.txt

clean: ## remove the environment and all local state
	rm -rf $(VENV) .local .mypy_cache .ruff_cache .pytest_cache .hypothesis /var/tmp/db-cache-sync-$$(id -u)
