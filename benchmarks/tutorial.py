"""Runs the tutorial from top to bottom and stores what its cells show: `make tutorial`."""

from pathlib import Path

import nbclient
import nbformat

NOTEBOOK = Path(__file__).parent.parent / "docs" / "tutorial" / "tutorial.ipynb"


def main() -> None:
    """Execute the notebook in place."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    options = {"record_timing": False, "coalesce_streams": True}  # the same outputs have the same bytes
    nbclient.execute(notebook, cwd=NOTEBOOK.parent, timeout=600, **options)
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
