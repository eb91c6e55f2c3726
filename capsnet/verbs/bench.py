"""The verb that measures speed and memory on the user's own machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class Bench:
    """Measure speed and memory of routing and training on this machine, beside the textbook. Takes minutes."""

    what: Annotated[Positional[tuple[Literal["routing", "training"], ...]], arg(metavar="WHAT...")] = (
        "routing",
        "training",
    )
    """routing: every path, its memory, and how its cost grows; training: each step from the textbook's to ours."""
    quick: bool = False
    """Small sizes, in less than a minute: to see that it runs, not how fast."""
    folder: Annotated[Path, arg(metavar="FOLDER")] = Path("bench")
    """Where JSON and pictures go."""

    def __call__(self) -> None:
        """Measure, print tables, and say where they were left."""
        from capsnet.benchmarks.bench import bench

        for name in dict.fromkeys(self.what):
            bench(name, self.folder, quick=self.quick)
