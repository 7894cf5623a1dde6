# `make demo` and `make test` work on a bare clone: they make .venv, install what is needed, and build.
#
#   make demo         fastconv beside PyTorch on two photographs
#   make test         every test but the slow and the long ones
#   make test-slow    the CUDA kernels of all operators in every mode of the emulator, and their counts; CI runs it too
#   make test-long    every GPU generation, clean builds, 2^31 elements, all networks
#   make build        rebuild what changed
#   make lint         ruff, mypy, clang-format
#   make bench        the short benchmark
#   make docs         the documentation, in docs/_build/html
#   make test-torch TORCH=2.13.0   the wheel built here, tested under another torch
#   make fuzz MINUTES=30           drawn calls of every operator, right and wrong ones

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.PHONY: demo test test-slow test-long build lint bench docs test-torch fuzz clean

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python

# Building for all seven generations of GPUs, as `pip install .` does, takes several times as long as for these two. As PTX
# they also run on every later one.
export TORCH_CUDA_ARCH_LIST ?= 7.5+PTX;9.0+PTX
export NVCC_APPEND_FLAGS ?= -Werror all-warnings

demo: build
	$(PY) -m benchmarks.demo

test: build
	$(PY) -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

test-slow: build
	$(PY) -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m slow

test-long: build
	$(PY) -m pytest -m long

$(VENV)/.requirements: tests/requirements.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check -r $<
	touch $@

# ninja prints whole command lines; the names of the sources are enough.
build: $(VENV)/.requirements
	$(PY) setup.py build_ext --inplace | sed -uE 's|^(\[[0-9]+/[0-9]+\]) .* -c .*/(csrc/[^ ]+) .*|\1 \2|'
	test $(VENV)/.installed -nt pyproject.toml || \
		$(PY) -m pip install --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $(VENV)/.installed

lint: build
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $$(find csrc tests -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h')

bench: build
	$(PY) -m benchmarks depthwise_conv2d --quick

docs: build
	$(PY) -m sphinx -W --keep-going -q -b doctest docs docs/_build/doctest
	$(PY) -m sphinx -W --keep-going -q -b html docs docs/_build/html

OPERATOR_TESTS := $(addprefix tests/test_,$(addsuffix .py,depthwise_conv2d grouped_conv2d deform_conv2d \
	deform_aggregate2d channel_shuffle split_attention cbam))

test-torch: OTHER := .venv-torch-$(TORCH)
test-torch: build
	test -n "$(TORCH)" || { echo "make test-torch TORCH=2.13.0: which torch?"; exit 2; }
	rm -rf build/lib.* build/wheel
	$(PY) -m pip wheel -q --disable-pip-version-check --no-build-isolation --no-deps -w build/wheel .
	test -x $(OTHER)/bin/python || $(PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/python -m pip install -q --disable-pip-version-check \
		torch==$(TORCH) torchvision numpy 'pytest>=8' 'hypothesis>=6' expecttest
	$(OTHER)/bin/python -m pip install -q --disable-pip-version-check --force-reinstall --no-deps build/wheel/*.whl
	$(OTHER)/bin/python -m fastconv info
	$(OTHER)/bin/python -m pytest $(OPERATOR_TESTS) tests/test_info.py tests/test_abi.py

fuzz: MINUTES ?= 10
fuzz: build
	cd tests && $(abspath $(PY)) -m fuzz --minutes $(MINUTES)

clean:
	rm -rf build dist pyext/fastconv.egg-info pyext/fastconv/*.so
