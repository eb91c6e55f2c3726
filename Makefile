PYTHON ?= python3
RUN ?= runs/demo

.PHONY: demo test check tutorial clean

# Train on scikit-learn's bundled digits, evaluate and make a report; no data are downloaded.
demo: .venv/installed
	.venv/bin/capsnet train digits --recipe digits --run $(RUN) --overwrite

# The whole test suite. MNIST and Fashion-MNIST are tested where $CAPSNET_DATA holds them.
test: .venv/installed
	.venv/bin/python -m pytest -n auto

# Style, types, and whether the tables agree with results/.
check: .venv/installed
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/python benchmarks/tables.py --check
	.venv/bin/python benchmarks/reliability.py --check

# Run docs/tutorial/tutorial.ipynb from top to bottom and store the output of its cells.
tutorial: .venv/installed
	.venv/bin/python benchmarks/tutorial.py

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
