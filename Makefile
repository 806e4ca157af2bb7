# Everything a developer, CI and a first visitor run. `make` alone lists it.

VENV := .venv
PYTHON := $(VENV)/bin/python
UV := $(VENV)/bin/uv
# Compose is Docker's plugin, or on older machines a program of its own.
COMPOSE = $$(docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)
READY := $(VENV)/.ready

.PHONY: help setup demo up test faults compose docker images containers check format lock clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

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

compose: .env docker ## start the whole system in containers and tell its story; it stays up, see docs/compose.md
	$(COMPOSE) up --build --detach
	$(COMPOSE) run --rm story
	@echo 'up, at the addresses of docs/compose.md; "docker compose down" stops it, with -v it forgets all'

# A user's own secrets stay: made once.
.env:
	@umask 077; awk -v 'secret=head -c 32 /dev/urandom | base64 | tr +/ _-' \
	    '/=change-me$$/ { secret | getline made; close(secret); sub(/change-me$$/, made) } 1' .env.example > $@

docker:
	@docker info >/dev/null 2>&1 || { echo 'Docker is missing, or does not run: "docker info" tells why'; exit 1; }

images: docker ## build the images of the services and of Airflow
	docker build --file serving/Dockerfile --tag db-cache-sync-serving:0.1.0 .
	docker build --file plugins/Dockerfile --tag db-cache-sync-airflow:0.1.0 .

containers: setup docker ## test the images and docker-compose.yml in containers, on stand-ins for what cannot be had
	$(PYTHON) -m local install-tools
	tests/containers/stand_ins/make.sh
	$(VENV)/bin/pytest tests/containers

check: setup ## lint, formatting and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

format: setup ## put the code in its format, and mend what the linter can
	$(VENV)/bin/ruff check --fix-only
	$(VENV)/bin/ruff format

PIN := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
    --no-emit-index-url

lock: setup ## resolve the newest versions of all dependencies into each requirements.txt
	$(PIN) pyproject.toml --upgrade --all-extras --group local --group dev -o requirements.txt
	$(PIN) --constraint requirements.txt --group jenkins -o jenkins-job/requirements.txt
	$(PIN) --constraint requirements.txt pyproject.toml --extra serving -o serving/requirements.txt
	$(PIN) --constraint requirements.txt pyproject.toml --extra airflow -o plugins/requirements.txt

clean: ## remove the environment and all local state
	rm -rf $(VENV) .local .mypy_cache .ruff_cache .pytest_cache .hypothesis /var/tmp/db-cache-sync-$$(id -u)
