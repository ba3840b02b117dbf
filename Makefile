# Two commands: `make caption PHOTO=path.jpg` and `make test`. Both make .venv on the first call and need only the package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PHOTO ?=

.PHONY: caption test test-browser lint clean

caption: $(VENV)/.core
	@$(BIN)/patchword caption "$(or $(PHOTO),$(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/matplotlib/mpl-data/sample_data/grace_hopper.jpg)"

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

test-browser: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt playwright
	@command -v chromium || command -v chromium-browser || command -v google-chrome || (apt-get update -qq && apt-get install -y -qq chromium) \
		|| { echo "There is no Chromium and apt-get could not install it: install it by hand, then call this again."; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/serve/test_browser.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .

# torch is installed by itself first, so that the CPU build is taken where there is one.
$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,serve,search]'
	@touch $@

clean:
	rm -rf $(VENV)
