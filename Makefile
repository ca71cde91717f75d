# `make run` and `make test` work from a fresh clone with Python 3.11 or newer; both make .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install run test lint docker-demo clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("make: Python 3.11 or newer is needed, and $(PYTHON) is " + sys.version.split()[0] + "; set PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch torchvision
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: install
	$(BIN)/mh-pfedhn run

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Three at a time, a file each: the end-to-end tests wait more than they compute.
test: lint
	$(BIN)/pytest -n 3 --dist loadfile

# A server and four sites in containers of their own; needs Docker with Compose, and nothing else.
docker-demo:
	docker/demo.sh

clean:
	rm -rf $(VENV) results .pytest_cache .mypy_cache .ruff_cache
