"""Runs the tutorial from top to bottom and stores what its cells show: `make tutorial`."""

from pathlib import Path

import nbclient
import nbformat

NOTEBOOK = Path(__file__).parent.parent / "docs" / "tutorial" / "tutorial.ipynb"


def main() -> None:
    """Execute the notebook in place."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
        timeout=600,
        record_timing=False,  # the same outputs have the same bytes
        coalesce_streams=True,
    )
    client.execute()
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
