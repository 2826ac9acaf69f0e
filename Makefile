# make demo      segment a video end to end; your own with SOURCE=... and MASK=... or BOX=...
# make test      lint, type checks, tests
# make install   pinned versions and the package, editable, in .venv; the other targets do this first
# make bench     benchmarks
# make clean     remove .venv and everything that was built

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= out/demo
TORCH  := $(shell sed -n 's/^\(torch==[^ ;]*\).*/\1/p' constraints.txt)
STAMP  := $(VENV)/.installed

.PHONY: install demo test lint browser bench clean

install: $(STAMP)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "streamvos needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)

# torch first and alone: its exact version decides which build pip takes
$(STAMP): $(BIN)/python setup.py pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

demo: install
	$(BIN)/streamvos demo --out "$(OUT)" $(if $(SOURCE),--source "$(SOURCE)") $(if $(MASK),--mask "$(MASK)") $(if $(BOX),--box "$(BOX)")

lint: install
	$(BIN)/ruff check streamvos tests bench examples setup.py
	$(BIN)/ruff format --check streamvos tests bench examples setup.py
	$(BIN)/mypy

# found, or installed where that is possible; without one, the tests of the console's page skip and say so
browser: install
	@$(BIN)/python tests/browsers.py

test: lint browser
	$(BIN)/python tests/lanes.py

bench: install
	$(BIN)/pytest bench --benchmark-only

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache out
