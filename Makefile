# Each target makes .venv first, from constraints.txt, and again whenever that or pyproject.toml changes.
PYTHON ?= python3
BIN := .venv/bin
# so that not each of the tests' many processes compiles lemmata's sources anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test suite test-automodel test-all lint types prove clean

demo: .venv/installed
	$(BIN)/lemmata demo

# mypy, of one process, runs beside the tests rather than before them
test: .venv/installed lint
	$(MAKE) -j 2 types suite
	$(MAKE) test-automodel

suite: .venv/installed
	$(BIN)/pytest -n 2 --dist worksteal

test-all: .venv/installed lint types
	$(BIN)/pytest -n 2 --dist worksteal -m 'not gpu'
	$(MAKE) test-automodel

# NeMo AutoModel pins a release of transformers: both stand before .venv's packages, for its own tests alone
test-automodel: build/automodel/installed
	PYTHONPATH=build/automodel $(BIN)/pytest -n 2 --dist worksteal tests/test_automodel*.py

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/installed
	$(BIN)/mypy

prove: .venv/installed
	$(BIN)/lemmata prove

.PHONY: docs package

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# installs what pip resolves today, for each extra; PYTHONS="python3.11 python3.12" for several
package:
	tests/install.sh build/package $(PYTHONS)

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	# its metadata asks for Python 3.12 and a torch that is not needed to read its kernels
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python tile-kernels==2.1.0
	touch $@

build/automodel/installed: .venv/installed
	rm -rf build/automodel
	# of what it asks for its DeepSeek-V4 needs no more
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/automodel \
		nemo-automodel==0.7.0 transformers==5.18.0 torchdata==0.11.0 pillow==13.0.0
	touch $@

clean:
	rm -rf .venv build dist site *.egg-info .mypy_cache .ruff_cache .hypothesis
