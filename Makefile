# The commands for developers, CI and first-time visitors. `make` alone lists them.

VENV := .venv
PYTHON := $(VENV)/bin/python
UV := $(VENV)/bin/uv
# Compose is a Docker plugin, or on older machines a separate program.
COMPOSE = $$(docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)
READY := $(VENV)/.ready

# Some containers set it. Every process of the system and of the tests would then compile the project again when it starts.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup demo up unit test faults faults-examples bench bench-quick bench-growth docs commands compose docker images containers check format lock audit clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(READY) ## create the environment in .venv; does nothing unless requirements.txt has changed

# pip installs the pinned version of uv, which installs the rest six times as fast as pip.
$(UV):
	@python=$$(for name in python3.11 python3.12 python3.13 python3; do \
	    "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$name" && break; \
	done); \
	test -n "$$python" || { echo "Python 3.11 or newer is missing; install it so that python3 is on the PATH"; exit 1; }; \
	"$$python" -m venv --clear $(VENV)
	@awk '/^uv==/ { take = 1 } take; !/\\$$/ { take = 0 }' requirements.txt > $(VENV)/uv.txt
	$(VENV)/bin/pip install --quiet --require-hashes -r $(VENV)/uv.txt

# Compiling the bytecode once halves the start-up time of each of Airflow's programs. uv ignores pip's configuration, such as
# a company's mirror: if uv cannot reach an index, pip installs everything.
$(READY): requirements.txt | $(UV)
	$(UV) pip sync --quiet --compile-bytecode --require-hashes --python $(VENV) requirements.txt \
	    || $(PYTHON) -m pip install --quiet --require-hashes -r requirements.txt
	@touch $@

demo: setup ## start the whole system and run the demo; stays up until Ctrl-C
	$(PYTHON) -m local demo

up: setup ## start the whole system without the demo; stays up until Ctrl-C
	$(PYTHON) -m local up

unit: setup ## run the unit tests, which need no servers
	$(VENV)/bin/pytest tests/unit --numprocesses 2

# Coverage has a floor, which only a whole run can reach. With K, pytest-xdist is off: it reports an invalid expression
# as an internal error.
test: setup ## run all tests against real servers and measure coverage; K=expression runs only the tests that match
	$(VENV)/bin/pytest --numprocesses $(if $(K),0 -k '$(subst ','\'',$(K))',3 --no-loadscope-reorder --cov --cov-report=term:skip-covered)

faults: setup ## check what clients see while components fail; MINUTES=60 SEED=1 BREAK=lease, see docs/faults.md
	$(PYTHON) -m tests.faults.history

faults-examples: setup ## check the services in examples/ while components are killed; MINUTES=10 SEED=1
	$(PYTHON) -m tests.faults.examples

bench: setup ## measure everything, in under 30 minutes; writes benchmarks/results.json and docs/benchmarks.md
	$(PYTHON) -m benchmarks

bench-quick: setup ## compare ratios with those kept, in 2 minutes; KEEP=1 keeps the new ones
	$(PYTHON) -m benchmarks --quick $(if $(KEEP),--keep)

bench-growth: setup ## measure how cost grows with rows, entities and so on; writes a part of docs/benchmarks.md
	$(PYTHON) -m benchmarks.growth

docs: setup ## build the documentation as a site, in .local/site; a broken link is an error
	$(PYTHON) -m sphinx --quiet --fail-on-warning --fresh-env --write-all --builder html docs .local/site
	@echo 'open .local/site/index.html'

commands: setup ## write docs/commands.md, the reference of the command, from its help
	PYTHONPATH=. $(VENV)/bin/typer cachesync.cli.main utils docs --name cachesync --title Commands --output docs/commands.md

compose: .env docker ## start the whole system in containers and run the demo; stays up, see docs/compose.md
	$(COMPOSE) up --build --detach
	$(COMPOSE) run --rm story
	@echo 'running; docs/compose.md lists the addresses; "docker compose down" stops it, and -v also deletes its data'

# Created only if missing, so that a user's own secrets are kept.
.env:
	@umask 077; awk -v 'secret=head -c 32 /dev/urandom | base64 | tr +/ _-' \
	    '/=change-me$$/ { secret | getline made; close(secret); sub(/change-me$$/, made) } 1' .env.example > $@

docker:
	@docker info >/dev/null 2>&1 || { echo 'Docker is not installed or not running; see the output of "docker info"'; exit 1; }

images: docker ## build the images of the services and Airflow
	docker build --file serving/Dockerfile --tag db-cache-sync-serving:0.1.0 .
	docker build --file plugins/Dockerfile --tag db-cache-sync-airflow:0.1.0 .

containers: setup docker ## test the images and docker-compose.yml in containers, with stand-ins for images that cannot be pulled
	$(PYTHON) -m local install-tools
	tests/containers/stand_ins/make.sh
	$(VENV)/bin/pytest tests/containers

check: setup ## check style, formatting, types and import layers
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	PYTHONPATH=plugins $(VENV)/bin/lint-imports --no-cache

format: setup ## format the code and apply the automatic fixes of the linter
	$(VENV)/bin/ruff check --fix-only
	$(VENV)/bin/ruff format

PIN := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
    --no-emit-index-url

lock: setup ## upgrade all dependencies and pin them in each requirements.txt
	$(PIN) pyproject.toml --upgrade --all-extras --group local --group dev -o requirements.txt
	$(PIN) --constraint requirements.txt --group jenkins -o jenkins-job/requirements.txt
	$(PIN) --constraint requirements.txt pyproject.toml --extra serving --extra traces -o serving/requirements.txt
	$(PIN) --constraint requirements.txt pyproject.toml --extra airflow -o plugins/requirements.txt

audit: setup ## check the pinned packages for known vulnerabilities, and list those behind their newest release
	$(PYTHON) -m local.audit

clean: ## remove the environment and all local state
	rm -rf $(VENV) .local .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage* /var/tmp/db-cache-sync-$$(id -u)
