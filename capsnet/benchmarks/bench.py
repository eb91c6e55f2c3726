"""A measurement from its first figure to what is left of it: JSON, tables and a picture."""

import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from capsnet.benchmarks.goals import Results
from capsnet.benchmarks.measuring import machine_kind
from capsnet.benchmarks.report import print_tables
from capsnet.errors import InputError
from capsnet.files import atomic_write
from capsnet.hardware import default_device


def bench(name: str, folder: Path, *, quick: bool = False, picture: Path | None = None) -> Path:
    """Measure "routing" or "training" on this machine; print tables, and leave JSON and a picture in a folder.

    The files are <name>/<kind of machine>.json and a PNG beside it, or `picture`. What is measured is written as
    soon as it is known. A quick measurement takes sizes that show no more than that it runs.
    Raises WrongResult for a path or a setting that does not do what the textbook does, and InputError for a folder that
    cannot be made.
    """
    path = folder / name / f"{machine_kind(default_device())}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{path.parent} cannot be made: {error.strerror}; name another folder with --folder"
        ) from error
    for results in _measurements(name)(quick):
        keep(path, results | {"quick": quick})
    show(name, path, picture or path.with_suffix(".png"))
    return path


def keep(path: Path, results: Results) -> None:
    """Write results whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def show(name: str, path: Path, picture: Path) -> None:
    """Print the tables of results that were kept, draw their picture if there is one, and say where both are."""
    results = json.loads(path.read_text())
    print_tables(name, results)
    print(path)
    if find_spec("matplotlib") is None:
        print("no picture: matplotlib is not installed")
        return
    from capsnet.benchmarks.pictures import DRAWN, draw

    if name in DRAWN:
        print(draw(name, results, picture))


def _measurements(name: str) -> Callable[[bool], Iterator[dict[str, Any]]]:
    if name == "routing":
        from capsnet.benchmarks import routing

        return lambda quick: routing.measure(routing.QUICK if quick else routing.WHOLE)
    from capsnet.benchmarks import training

    return lambda quick: training.measure(training.QUICK if quick else training.WHOLE)
