"""Arguments and options that several commands have, and the old names of commands and options."""

from pathlib import Path
from typing import Any

import click

from capsnet.errors import InputError
from capsnet.files import usable_path


class PathType(click.ParamType):
    """A path, with ~ expanded, or the name of a data set; the path need not exist."""

    name = "path"

    def __init__(self, *, expand: bool = True) -> None:
        self.expand = expand

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path; a value that begins with -- is refused, as it is the next option."""
        if str(value).startswith("--"):
            self.fail(f"{str(value)!r} is an option: give a value before it", param, ctx)
        try:
            path = usable_path(value)
        except InputError as error:
            self.fail(str(error), param, ctx)
        return path if self.expand else value


PATH = PathType()
DATA = PathType(expand=False)  # as it was typed: a name or a path
OLD_COMMANDS = {
    "figures": "`figures` is now called `report`",
    "drawings": "`drawings` is now called `reconstructions`, and `errors` for misclassified images alone",
    "tweaks": "`tweaks` is now called `perturbations`",
    "bench": "`bench` is no longer a command: run the programs in benchmarks/, as RESULTS.md shows",
}
OLD_OPTIONS = {
    "--beside": "--compare",
    "--other": "--ood",
    "--count": "--images",
    "--epsilons": "--epsilon",
    "--dimensions": "--dimension",
}  # of the commands; recipes.OLD_NAMES has those of recipes


def choose_device(ctx: click.Context, param: click.Parameter, value: str) -> None:
    """Make the command run on a device."""
    if value != "auto":
        from capsnet.hardware import chosen_device

        ctx.with_resource(chosen_device(value))


run_argument = click.argument("run", type=PATH)
data_dir_option = click.option(
    "--data-dir", type=PATH, metavar="FOLDER", help="Folder with mnist and fashion_mnist; by default $CAPSNET_DATA."
)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    callback=choose_device,
    expose_value=False,
    help="Device to run on; auto: the GPU if there is one.",
)


def check_data_dir(data_dir: Path | None, *names: str | None) -> None:
    """Raise InputError for a --data-dir where none of the data that are named are looked for in it."""
    from capsnet.data.sources import SOURCES

    if data_dir is not None and not SOURCES.keys() & set(names):
        data = ", ".join(filter(None, names))
        raise InputError(f"--data-dir has no effect for {data}: only {' and '.join(SOURCES)} are looked for there")
