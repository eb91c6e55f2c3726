"""The command `report`, and one command for each subject of `capsnet.analysis`, made from its options."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capsnet.analysis import SUBJECTS, find_subject
from capsnet.cli.options import DATA, PATH, check_data_dir, data_dir_option, device_option, run_argument
from capsnet.errors import InputError
from capsnet.files import usable_path

if TYPE_CHECKING:
    from capsnet.analysis.subject import Context
    from capsnet.data import Data


@click.command()
@run_argument
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(SUBJECTS)),
    metavar="NAME",
    help="Make only this analysis; repeatable.",
)
@click.option("--compare", multiple=True, type=PATH, metavar="RUN", help="A run to compare with; repeatable.")
@click.option("--ood", type=DATA, help="Out-of-distribution data for the detection, for example fashion_mnist.")
@data_dir_option
@device_option
def report(run: Path, only: tuple[str, ...], compare: tuple[Path, ...], ood: str | None, data_dir: Path | None) -> None:
    """Evaluate a run's network again, and make its figures and its report.

    It makes all analyses except `attacks`, which takes minutes: ask for that one with --only attacks.
    """
    from capsnet.analysis.report import ALL, make_report

    given = {"compare": compare, "ood": ood}
    check_used(given, only or ALL)
    context = load_context(run, data_dir, compare, ood)
    if not only:
        check_used(given, [name for name in ALL if not find_subject(name).missing(context)])
    path = make_report(context, names=only or None)
    context.run.write_results(context.network, context.data, context.predictions.evaluation())
    print(f"report: {path}")


def check_used(given: dict[str, Any], names: Sequence[str]) -> None:
    """Raise InputError for an option that is given and that none of the subjects has."""
    used = {option.name for name in names for option in find_subject(name).options}
    for option, value in given.items():
        if value and option not in used:
            raise InputError(f"--{option} has no effect on {', '.join(names)}: leave it out")


def analysis_command(name: str) -> click.Command:
    """Return the command of a subject: `capsnet NAME RUN`, with the subject's options."""
    subject = find_subject(name)

    @run_argument
    @data_dir_option
    @device_option
    def analyse(
        run: Path, data_dir: Path | None, compare: Sequence[str] = (), ood: str | None = None, **options: Any
    ) -> None:
        context = load_context(run, data_dir, [usable_path(folder) for folder in compare], ood)
        for path in subject(context, **options):
            print(path)

    command = click.command(name, help=subject.function.__doc__)(analyse)
    command.params[1:1] = subject.options  # between RUN and the options of all commands
    return command


def load_context(
    folder: Path, data_dir: Path | None = None, compare: Sequence[Path] = (), ood: str | None = None
) -> "Context":
    """Load a run's network and data, the networks to compare with, and the out-of-distribution data."""
    from capsnet.analysis.subject import Context
    from capsnet.data import load_data
    from capsnet.hardware import default_device, keep_freed_memory
    from capsnet.runs import load_run

    keep_freed_memory()
    run = load_run(folder)
    check_data_dir(data_dir, run.data, ood)
    network, data = run.load_network().to(default_device()), run.load_data(data_dir=data_dir)
    networks = load_networks(folder, compare, data)
    return Context(run, network, data, networks, None if ood is None else load_data(ood, data_dir=data_dir))


def load_networks(folder: Path, compare: Sequence[Path], data: "Data") -> dict[str, Any]:
    """Load the networks to compare a run with; InputError for other data, and for two folders of the same name."""
    from capsnet.hardware import default_device
    from capsnet.runs import load_run

    networks: dict[str, Any] = {}
    for other in compare:
        run, name = load_run(other), other.resolve().name
        if (run.data, run.classes, run.image_shape) != (data.name, data.classes, data.image_shape):
            raise InputError(
                f"{other} was trained on {run.data}: only runs on {data.name} can be compared with {folder}"
            )
        if name in (folder.resolve().name, *networks):
            raise InputError(f"two runs are named {name}: figures identify runs by the names of their folders")
        networks[name] = run.load_network().to(default_device())
    return networks
