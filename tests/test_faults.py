"""Each known fault, put into a copy of the package, makes the test fail that `faults.py` names.

This file does not import the package, so that a process that has imported this file is still free to import the copy.
"""

import io
import multiprocessing
import os
import re
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path

import pytest

from tests.faults import FAULTS

TESTS = Path(__file__).parent
HEAVY = ["torch", "lightning_fabric", "huggingface_hub", "matplotlib.figure", "einops", "pytest"]


class Failures:
    """A pytest plugin that keeps the names of what the tests raised."""

    def __init__(self):
        self.raised = set()

    def pytest_exception_interact(self, call):
        self.raised.add(call.excinfo.type.__name__)


def run_tests(tests, package):
    """Run tests on the package at that path; return its path, the exit status, what was raised, and the output."""
    os.environ.update(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", PYTEST_ADDOPTS="")
    sys.path.insert(0, str(package.parent))
    imported = Path(import_module("capsnet").__file__).parent
    failures, output = Failures(), io.StringIO()
    options = ["--tb=short", "-p", "no:cacheprovider", "-c", str(TESTS.parent / "pyproject.toml")]
    with redirect_stdout(output):
        status = pytest.main([*options, *(str(TESTS / test) for test in tests)], [failures])
    return imported, status, failures.raised, output.getvalue()


def in_a_fresh_process(*args):
    """Call `run_tests` in a fork of a server that has imported what is slow to import, but not the package."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(run_tests, *args).result()


@pytest.fixture
def package(tmp_path):
    """A copy of the package to make a fault in."""
    return shutil.copytree(TESTS.parent / "capsnet", tmp_path / "capsnet", ignore=shutil.ignore_patterns("*.pyc"))


def test_all_thirteen_faults_are_made():
    assert {int(re.match(r"\d+", name)[0]) for name in FAULTS} == set(range(1, 14))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_makes_its_test_fail(name, package):
    file, right, wrong, test = FAULTS[name]
    source = (package / file).read_text()
    assert source.count(right) == 1, f"{file} has no longer once: {right}"
    (package / file).write_text(source.replace(right, wrong))
    imported, status, raised, output = in_a_fresh_process([test], package)
    assert imported == package
    assert status == pytest.ExitCode.TESTS_FAILED, output
    assert raised == {"AssertionError"}, output


def test_without_a_fault_all_of_those_tests_pass(package):
    tests = sorted({fault.test for fault in FAULTS.values()})
    imported, status, _, output = in_a_fresh_process(tests, package)
    assert imported == package
    assert status == pytest.ExitCode.OK, output
