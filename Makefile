# `make demo`: a fresh clone to a picture.  `make test`: lint, types, tests.  Both build .venv once and then reuse it.
# PYTHON=/path/to/python chooses the interpreter that .venv is made from.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The caller's environment must not leak into ours. Without cached bytecode each process would compile Studio anew.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
WEB := studio/server/web
SHARED_OUT := --numprocesses auto --dist worksteal
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test test-all test-docs test-web web lint clean

help:
	@echo "make demo      install into .venv and make a picture of a red apple"
	@echo "make test      lint, types and tests"
	@echo "make test-all  the same with the slow tests, and more examples of each property"
	@echo "make test-docs the commands and programs of all documents"
	@echo "make test-web  the page in Chromium; needs Node.js, and Chromium in the PATH"
	@echo "make web       build the page from its source (studio/server/web/src); needs Node.js"
	@echo "make lint      lint and types only"
	@echo "make clean     remove .venv and the tools' caches"

demo: .venv/installed
	@mkdir -p demo
	@$(BIN)/studio image "a red apple" --seed 7 --force --output demo/red-apple.png >/dev/null
	@echo "the picture: $(CURDIR)/demo/red-apple.png"

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

test: lint
	$(BIN)/python -m pytest $(SHARED_OUT)

test-all: lint
	$(BIN)/python -m pytest $(SHARED_OUT) -m "slow or not slow" --hypothesis-profile thorough

test-docs: .venv/installed-test
	$(BIN)/python -m pytest $(SHARED_OUT) tests/docs -m "slow or not slow"

test-web: .venv/installed-test-web $(WEB)/node_modules
	$(BIN)/python -m pytest tests/studio/server/web -m "web or not web"

web: .venv/installed $(WEB)/node_modules
	cd $(WEB) && PYTHON="$(CURDIR)/$(BIN)/python" npm run --silent types -- --output src/openapi.ts && npm run --silent check && npm run --silent build

clean:
	rm -rf $(WEB)/node_modules .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info

# Editable installs: a change of code needs no new install, a change of these two files does.
.venv/installed: pyproject.toml constraints.txt | .venv/bin/pip
	@echo "installing what Studio needs; the first time takes a few minutes"
	@$(PIP_INSTALL) --editable .
	@touch $@

.venv/installed-test: .venv/installed
	@$(PIP_INSTALL) --editable ".[test]"
	@touch $@

.venv/installed-test-web: .venv/installed-test
	@$(PIP_INSTALL) --editable ".[test,test-web]"
	@touch $@

$(WEB)/node_modules: $(WEB)/package.json $(WEB)/package-lock.json
	@cd $(WEB) && npm ci --no-audit --no-fund --silent
	@touch $@

# pip is what venv writes last. Tested Pythons come first; a shim that does not run, an old Python and one without
# ensurepip are passed over.
.venv/bin/pip:
	@for python in $(if $(PYTHON),"$(PYTHON)",python3.12 python3.13 python3.11 python3.14 python3 python); do \
	  if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo "making .venv with $$("$$python" --version)"; \
	    exec "$$python" -m venv --clear .venv; \
	  fi; \
	done; \
	echo "error: no Python 3.11 or newer with the venv module was found." >&2; \
	echo "hint: install one, or name it: make PYTHON=/path/to/python3" >&2; \
	exit 1
