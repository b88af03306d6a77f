# The main targets are `make demo` and `make test`. Both work on a fresh machine with Python 3.11,
# make and access to a package index. `make help` lists the other targets.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Marks the virtual environment as up to date with requirements.lock and pyproject.toml.
READY := $(VENV)/.ready

.PHONY: help env demo test docs faults check check-js check-container lock clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 20

env: $(READY) ## make .venv from requirements.lock

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: $(READY) ## map two real places; train, predict and score on a synthetic city; minutes
	$(BIN)/satmap demo demo

test: $(READY) ## run the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

docs: $(READY) ## build the documentation into site/
	$(BIN)/mkdocs build --strict

faults: $(READY) ## fault tests (files, disks, signals), an hour; ONLY=tiff,disk SEED=1 for some
	$(BIN)/python -m faults --jobs 2 --table build/faults.md --only "$(ONLY)" $(if $(SEED),--seed $(SEED))

check: $(READY) check-js ## run linters and type checks
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile
	$(BIN)/shellcheck --external-sources *.sh .ci/run container/*.sh

# The scripts of the map are shipped as they are; Node.js only checks them.
check-js: ## lint and type-check the scripts of the map; skipped without Node.js
	@if ! command -v npm > /dev/null; then echo "check-js: skipped, Node.js is not installed"; \
	elif ! cmp -s package-lock.json node_modules/.checked-lock && ! npm ci --no-audit --no-fund --loglevel=error; \
	then echo "check-js: skipped, the packages of package-lock.json cannot be installed"; \
	else cp package-lock.json node_modules/.checked-lock && npm run --silent check; fi

check-container: ## build the image and use it like the organisers; needs docker, half an hour
	container/check.sh

# The second lock differs from the first only in torch and its dependencies.
lock: LOCK_BY = uv pip compile pyproject.toml --extra dev --generate-hashes --python-version 3.11 \
	  --no-emit-index-url --no-emit-find-links --no-header
lock: ## resolve both locks again (needs uv)
	$(LOCK_BY) --upgrade --output-file requirements.lock
	$(LOCK_BY) --upgrade --override container/cuda12.txt --output-file requirements-cuda12.lock
	npm install --package-lock-only --omit-lockfile-registry-resolved

clean: ## remove all files that the other targets made
	rm -rf $(VENV) node_modules demo build site .mypy_cache .ruff_cache .pytest_cache .hypothesis
