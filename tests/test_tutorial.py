"""The tutorial is a notebook that runs from top to bottom, and whose stored pictures and numbers are of such a run."""

import ast
import json
import re
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from matplotlib import get_cachedir

import capsnet

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorial" / "tutorial.ipynb"
STORED = nbformat.read(NOTEBOOK, as_version=4)
CODE = [cell for cell in STORED.cells if cell.cell_type == "code"]
PROSE = "\n".join(cell.source for cell in STORED.cells if cell.cell_type == "markdown")
OTHERS = {"torch", "matplotlib", "IPython"}


def printed(notebook):
    """All text that a notebook's cells print or show."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output.get("data", {}).get("text/plain", "") for output in outputs]
    return "\n".join(output.get("text", "") for output in outputs) + "\n".join(shown)


def trees():
    return [ast.parse(cell.source) for cell in CODE]


def imported(tree):
    """The modules that a cell imports, in full."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield node.module


def defined(tree):
    """The names that a cell binds by anything but an import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


@pytest.mark.slow
def test_the_tutorial_runs_from_top_to_bottom_and_its_network_knows_the_digits(tmp_path, monkeypatch):
    for name in ("HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))  # no kernel but this environment's, and nothing left behind
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    monkeypatch.setenv("MPLCONFIGDIR", get_cachedir())  # where matplotlib's list of fonts is: making one takes a while
    settings = {"timeout": 600, "record_timing": False, "coalesce_streams": True}
    nbclient.execute(notebook, cwd=tmp_path, kernel_name="python3", **settings)
    kinds = {output.output_type for cell in notebook.cells for output in cell.get("outputs", [])}
    assert kinds == {"stream", "display_data", "execute_result"}
    assert {output.get("name", "stdout") for cell in notebook.cells for output in cell.get("outputs", [])} == {"stdout"}
    accuracy = re.search(r"accuracy ([\d.]+)%: \d+ errors of n = 360 test images", printed(notebook))
    assert float(accuracy[1]) > 97


def test_the_cells_were_run_once_each_and_in_order():
    assert [cell.execution_count for cell in CODE] == list(range(1, len(CODE) + 1))


def test_a_cell_that_prints_or_plots_has_its_output_stored():
    for cell in CODE:
        shows = re.search(r"\bprint\(|plt\.show\(|^Image\(", cell.source, re.MULTILINE)
        assert bool(cell.outputs) == bool(shows), cell.source


def test_no_stored_output_is_a_warning_or_an_error():
    assert all(output.get("name", "stdout") == "stdout" for cell in CODE for output in cell.outputs)
    assert all(output.output_type != "error" for cell in CODE for output in cell.outputs)


def test_nothing_stored_tells_of_the_machine_that_made_it():
    text = NOTEBOOK.read_text()
    for cell in STORED.cells:
        for output in cell.get("outputs", []):
            for picture in [kind for kind in output.get("data", {}) if kind.startswith("image/")]:
                text = text.replace(json.dumps(output.data[picture])[1:-1], "")
    for trace in ("/work", "/home", "/root", "/tmp", "/Users", "/usr", "site-packages", sys.prefix):
        assert trace not in text


def test_the_metadata_are_clean():
    assert STORED.metadata.kernelspec == {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert set(STORED.metadata) <= {"kernelspec", "language_info"}
    assert all(cell.metadata == {} for cell in STORED.cells)


def test_the_file_is_small_enough_to_be_looked_at_on_the_web():
    assert NOTEBOOK.stat().st_size < 2_500_000


def test_a_code_cell_has_at_most_12_lines_of_at_most_120_letters():
    for cell in CODE:
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert len(lines) <= 12, cell.source
        assert max(map(len, lines)) <= 120, cell.source


def test_the_cells_import_nothing_but_the_package_its_requirements_and_the_standard_library():
    for module in (module for tree in trees() for module in imported(tree)):
        assert module.split(".")[0] in {"capsnet"} | OTHERS | sys.stdlib_module_names, module


def test_the_cells_define_nothing_that_the_package_has():
    package = Path(capsnet.__file__).parent
    files = [*package.glob("ops/*.py"), package / "losses.py", package / "layers.py", package / "models.py"]
    of_the_package = set(capsnet.__all__)
    for file in files:
        public = (node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef | ast.ClassDef))
        of_the_package |= {node.name for node in public if not node.name.startswith("_")}
    assert {"squash", "couple", "RoutedCaps"} <= of_the_package
    for tree in trees():
        assert not set(defined(tree)) & of_the_package


def test_the_tutorial_calls_every_idea_of_the_package_by_its_name():
    imports = {
        alias.name for tree in trees() for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }  # fmt: skip
    ideas = {"squash", "vote", "routing_trace", "dynamic_routing", "route", "margin_loss", "reconstruction_loss"}
    pictures = {"plot_reconstructions", "plot_masks", "plot_perturbations", "plot_couplings", "plot_curves"}
    assert ideas | pictures | {"load_data", "start_run", "train", "evaluate"} <= imports


def test_the_sections_are_numbered_from_1_and_end_in_the_answers():
    headings = re.findall(r"^## (.+)$", PROSE, re.MULTILINE)
    assert [int(heading.split(".")[0]) for heading in headings[:-1]] == list(range(1, len(headings)))
    assert headings[-1] == "Answers"
    assert PROSE.startswith("# ")


def test_every_exercise_has_its_answer():
    asked = re.findall(r"^> \*\*Exercise (\d+)\.\*\*", PROSE, re.MULTILINE)
    assert len(asked) >= 2
    assert asked == [str(n) for n in range(1, len(asked) + 1)]
    assert re.findall(r"^\*\*Exercise (\d+)\.\*\*", PROSE, re.MULTILINE) == asked


def test_every_picture_is_followed_by_its_caption():
    for cell, after in zip(STORED.cells, STORED.cells[1:], strict=False):
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
            assert re.match(r"\*[^*]", after.source), cell.source


def test_the_files_that_the_tutorial_names_are_there():
    named = re.findall(r"`((?:capsnet|tests)/[\w/]+\.py)`", PROSE)
    assert named
    for path in named:
        assert (NOTEBOOK.parents[2] / path).is_file(), path
