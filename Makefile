PYTHON ?= python3
RUN ?= runs/demo

.PHONY: demo test check tutorial clean

# Train on scikit-learn's bundled digits, evaluate, and write a report: no download of data.
demo: .venv/installed
	.venv/bin/capsnet train digits --recipe digits --run $(RUN) --overwrite

# The whole test suite. MNIST and Fashion-MNIST are tested where $CAPSNET_DATA holds them.
test: .venv/installed
	.venv/bin/python -m pytest -n auto

# Style, types, and the tables that are made from results/.
check: .venv/installed
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/python benchmarks/tables.py --check
	.venv/bin/python benchmarks/reliability.py --check

# Run docs/tutorial/tutorial.ipynb from top to bottom and keep what its cells show.
tutorial: .venv/installed
	.venv/bin/python benchmarks/tutorial.py

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
