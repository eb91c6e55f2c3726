"""The command line that the measurements of speed have in common."""

import argparse
from pathlib import Path

from capsnet.benchmarks.bench import bench
from capsnet.benchmarks.measuring import machine_kind
from capsnet.hardware import default_device

ROOT = Path(__file__).parent.parent


def words(about: str) -> argparse.ArgumentParser:
    """What each of them takes."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, for a look")
    parser.add_argument("--folder", type=Path, help="where JSON goes: results/, or build/ if quick")
    return parser


def places(name: str, quick: bool, folder: Path | None) -> tuple[Path, Path]:
    """The folder of the JSON files, and where the picture goes: what is whole and not sent elsewhere is published."""
    kind = machine_kind(default_device())
    if folder is None and not quick:
        return ROOT / "results", ROOT / "docs" / f"{name}-{kind}.png"
    folder = folder or ROOT / "build"
    return folder, folder / name / f"{kind}.png"


def run(name: str, about: str) -> None:
    """Measure and show what the command line asks for."""
    asked = words(about).parse_args()
    folder, picture = places(name, asked.quick, asked.folder)
    bench(name, folder, quick=asked.quick, picture=picture)
