"""The command `train`: a recipe from the options, one or several processes, then the results and the report."""

import hashlib
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource
from typing_extensions import Doc

from capsnet.cli.options import DATA, PATH, check_data_dir, device_option
from capsnet.errors import InputError
from capsnet.files import usable_path
from capsnet.launch import (
    check_batch,
    check_counts,
    is_first,
    is_restart,
    launch,
    launched,
    note_start,
    process_count,
)
from capsnet.recipes import LOG_STEPS, RECIPES, SAVE_MINUTES, Fast, Recipe, find_recipe, flag

if TYPE_CHECKING:
    from capsnet.baselines import ConvBaseline
    from capsnet.data import Data
    from capsnet.models import CapsNet
    from capsnet.runs import Run

NAMES = [field.name for field in fields(Recipe)]
GROUPS = {"network": "Network", "margin_present": "Losses", "validation": "Data", "epochs": "Optimisation"}
"""The options' groups in the help, by the first option of each."""
LONGEST = 60  # what a folder's name holds of the differences from a recipe


@dataclass(frozen=True)
class Request:
    """What a command line of `capsnet train` asks for."""

    data: str
    recipe: Recipe
    folder: Path
    data_dir: Path | None
    resume: bool
    overwrite: bool
    save_every: float
    log_every: int
    images_on_device: bool
    cuda_graph: bool
    devices: int | None
    nodes: int | None


class TrainCommand(click.Command):
    """A command whose help shows its options in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options' names, help and defaults."""
        group, rows = "Run", dict[str, list[tuple[str, str]]]()
        for param in self.get_params(ctx):
            group = "Run" if param.name == "help" else GROUPS.get(param.name or "", group)
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                rows.setdefault(group, []).append(record)
        for title, records in rows.items():
            with formatter.section(title):
                formatter.write_dl(records)


class StepsOrEpoch(click.ParamType):
    """A number of steps, or None for the word `epoch`."""

    name = "integer|epoch"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Return the number."""
        return None if value == "epoch" else click.INT.convert(value, param, ctx)


def recipe_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field of Recipe."""
    hints = get_type_hints(Recipe, include_extras=True)
    for name in reversed(NAMES):
        function = recipe_option(name, hints[name])(function)
    return function


def recipe_option(name: str, hint: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option of a field whose hint is Annotated[type, ..., Doc], where type may be optional."""
    kind, *about = get_args(hint)
    (words,) = [one.documentation for one in about if isinstance(one, Doc)]
    if type(None) in get_args(kind):
        kind = get_args(kind)[0]
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if kind is bool:
        return click.option(f"{flag(name)}/--no-{flag(name)[2:]}", name, default=None, help=words)
    types = {int: click.INT, float: click.FLOAT}
    value_type = click.Choice(get_args(kind)) if get_origin(kind) is Literal else types[kind]
    return click.option(flag(name), name, type=StepsOrEpoch() if name == "lr_decay_steps" else value_type, help=words)


def as_typed(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe's fields as a user would type them, without those that are None."""
    values = {name: getattr(recipe, name) for name in NAMES}
    values["lr_decay_steps"] = values["lr_decay_steps"] or "epoch"
    return {name: value for name, value in values.items() if value is not None}


def choose_recipe(ctx: click.Context, param: click.Parameter, name: str | None) -> str:
    """Return the name of the recipe that is asked for; its fields become the defaults of the other options."""
    if name is None:
        name = "digits" if ctx.params.get("data") == "digits" else "fast"
    ctx.default_map = as_typed(find_recipe(name)())
    return name


@click.command(cls=TrainCommand, context_settings={"default_map": as_typed(Fast())})
@click.argument("data", type=DATA, is_eager=True)
@click.option(
    "--recipe",
    is_eager=True,
    callback=choose_recipe,
    metavar="NAME",
    help=f"Recipe whose settings are the defaults: {', '.join(RECIPES)}. By default digits for the digits, else fast.",
)
@click.option("--run", type=PATH, metavar="FOLDER", help="Run folder; by default runs/DATA-RECIPE-DIFFERENCES.")
@click.option(
    "--data-dir", type=PATH, metavar="FOLDER", help="Folder of mnist and fashion_mnist; missing files are downloaded."
)
@click.option(
    "--resume", is_flag=True, help="Continue the run from its last checkpoint; only epochs or steps may change."
)
@click.option("--overwrite", is_flag=True, help="Replace a run folder that exists.")
@click.option(
    "--save-every",
    default=SAVE_MINUTES,
    type=click.FloatRange(min=0, min_open=True),
    metavar="MINUTES",
    help="Minutes between checkpoints within an epoch.",
)
@click.option(
    "--log-every",
    default=LOG_STEPS,
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Steps between records in log.jsonl.",
)
@device_option
@click.option("--devices", type=int, metavar="N", help="Processes on this machine, one per GPU or share of the cores.")
@click.option("--nodes", type=int, metavar="N", help="Number of machines; several need torchrun on each of them.")
@click.option(
    "--images-on-device/--no-images-on-device",
    default=True,
    help="Copy all training images to the GPU at the start, if they fit; else each batch.",
)
@click.option(
    "--cuda-graph/--no-cuda-graph",
    default=True,
    help="Record a training step on a GPU and replay it; else launch its kernels one by one.",
)
@recipe_options
@click.pass_context
def train(ctx: click.Context, **options: Any) -> None:
    """Train a network into a run folder, evaluate it on the test images and write its report.

    DATA is mnist, fashion_mnist, digits, a folder with one sub-folder of images per class, or an .npz file.

    The defaults below are those of the recipe fast; `capsnet train --recipe NAME --help` shows those of another one.
    """
    request = make_request(ctx)
    check_request(request, ctx)
    if (request.devices or 1) > 1 and not launched():
        launch(request.devices or 1)
    elif process_count() > 1:
        from capsnet.processes import lost_process_named, share_cores

        share_cores()
        with lost_process_named():
            train_and_report(request)
    else:
        train_and_report(request)


def make_request(ctx: click.Context) -> Request:
    """Return what a parsed command line asks for.

    A new run has its recipe's settings, a resumed one those of the run; options that were typed replace them.
    """
    options = dict(ctx.params)
    settings = {name: options.pop(name) for name in NAMES}
    typed = {name: value for name, value in settings.items() if is_typed(ctx, name)}
    name, folder = options.pop("recipe"), options.pop("run")
    recipe = changed(find_recipe(name)(), typed)
    folder = folder or default_folder(options["data"], name, recipe)
    if options["resume"]:
        if is_typed(ctx, "recipe"):
            raise InputError("--resume continues with the run's own recipe: leave --recipe out, and give --run")
        from capsnet.runs import load_run

        recipe = changed(load_run(folder).recipe, typed)
    return Request(recipe=recipe, folder=folder, **options)


def is_typed(ctx: click.Context, name: str) -> bool:
    """Return whether a user has typed an option."""
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


def changed(recipe: Recipe, typed: dict[str, Any]) -> Recipe:
    """Return a recipe with the options that were typed; epochs replace its steps, and steps its epochs."""
    if len(typed.keys() & {"epochs", "steps"}) == 1:
        typed = {"epochs": None, "steps": None} | typed
    return replace(recipe, **typed)


def default_folder(data: str, name: str, recipe: Recipe) -> Path:
    """Return runs/DATA-RECIPE and what differs from the recipe of that name, such as runs/mnist-fast-lr0.001-seed1.

    Epochs and steps are left out, since a run may be continued for longer.
    """
    plain = find_recipe(name)()
    different = [field for field in NAMES if getattr(recipe, field) != getattr(plain, field)]
    labels = [label(field, getattr(recipe, field)) for field in different if field not in ("epochs", "steps")]
    differences = "".join(f"-{words}" for words in labels)
    if len(differences) > LONGEST:
        differences = f"-{hashlib.sha256(differences.encode()).hexdigest()[:8]}"
    return usable_path(Path("runs") / f"{usable_path(data).resolve().name.removesuffix('.npz')}-{name}{differences}")


def label(field: str, value: Any) -> str:
    """Return a field and its value as a part of a folder's name: small-cnn, lr0.001, no-shared, decoder-none."""
    name = field.replace("_", "-")
    if field == "network":
        return str(value)
    if isinstance(value, bool):
        return name if value else f"no-{name}"
    return f"{name}-{value or 'epoch'}" if value is None or isinstance(value, str) else f"{name}{value}"


def check_request(request: Request, ctx: click.Context) -> None:
    """Raise InputError for options that contradict each other or have no effect, before data are looked for."""
    check_counts(request.devices, request.nodes)
    from capsnet.hardware import default_device, device_count

    if request.resume and request.overwrite:
        raise InputError("--resume continues a run and --overwrite replaces it: give one of them")
    check_data_dir(request.data_dir, request.data)
    if not request.resume:
        request.recipe.check_effects()
    device, processes = default_device().type, process_count() if launched() else request.devices or 1
    if not launched() and processes > device_count():
        kind = "CPU core" if device == "cpu" else "GPU"
        raise InputError(f"--devices {processes}, but this machine has {device_count()} {kind}(s): ask for fewer")
    if not request.resume:  # a resumed run's own batch size is checked once it is read
        check_batch(request.recipe.batch_size, processes)
    for name in ("cuda_graph", "images_on_device"):
        option = flag(name) if getattr(request, name) else flag(f"no_{name}")
        if is_typed(ctx, name) and device == "cpu":
            raise InputError(f"{option} has no effect on a CPU: leave it out")
        if is_typed(ctx, name) and name == "cuda_graph" and processes > 1:
            raise InputError(f"{option} has no effect with several processes, which record none: leave it out")


def train_and_report(request: Request) -> None:
    """Train, evaluate and report in this process; of several processes, only the first evaluates and reports."""
    from capsnet.files import locked
    from capsnet.hardware import keep_freed_memory

    keep_freed_memory()
    say(f"run folder: {request.folder}")
    run, data, resume = open_run_for_all(request)
    say(f"recipe {run.recipe_name}, {len(data.train):,} training images of {data.image_shape}")
    if not is_first():
        train_run(request, run, data, resume)
        return
    with locked(run.folder):
        before = run.weights_checksum()
        network = train_run(request, run, data, resume)
        if run.weights_checksum() != before:
            rmtree(run.folder / "figures", ignore_errors=True)  # made with earlier weights
        evaluate_and_report(run, network, data)


def open_run_for_all(request: Request) -> "tuple[Run, Data, bool]":
    """Return the run, its data and whether it is resumed; the first process finds them for all."""
    if process_count() == 1:
        return open_run(request)
    from capsnet.processes import first, join

    return first(join(), lambda: open_run(request))


def open_run(request: Request) -> "tuple[Run, Data, bool]":
    """Return the run, which is new or to be resumed, its data, and whether it is resumed.

    Processes that torchrun has restarted resume the run that they began.
    """
    from capsnet.data import load_data
    from capsnet.runs import load_run, start_run

    recipe, folder = request.recipe, request.folder
    data = load_data(
        request.data,
        data_dir=request.data_dir,
        validation=recipe.validation,
        seed=recipe.seed,
        image_size=recipe.image_size,
    )
    if request.resume or is_restart(folder):
        return load_run(folder).extended(data, recipe), data, True
    run = start_run(folder, recipe, data, overwrite=request.overwrite)
    note_start(folder)
    return run, data, False


def train_run(request: Request, run: "Run", data: "Data", resume: bool) -> "CapsNet | ConvBaseline":
    """Train a run; where a signal stops it, print the command that continues it."""
    from capsnet.training import train

    try:
        return train(
            run,
            data,
            resume=resume,
            save_minutes=request.save_every,
            log_steps=request.log_every,
            images_on_device=request.images_on_device,
            cuda_graph=request.cuda_graph,
        )
    except KeyboardInterrupt:
        say(f"\nstopped; continue with: {run.resume_command(request.data_dir)}", sys.stderr)
        raise


def evaluate_and_report(run: "Run", network: "CapsNet | ConvBaseline", data: "Data") -> None:
    """Evaluate a run's network on the test images, and write its results, its detector and its report."""
    from capsnet.analysis.detection.detector import fit_detector, save_detector
    from capsnet.analysis.report import QUICK, make_report
    from capsnet.analysis.subject import Context
    from capsnet.cli.run import print_evaluation
    from capsnet.models import CapsNet

    context = Context(run, network, data)
    evaluation = context.predictions.evaluation()
    run.write_results(network, data, evaluation)
    if isinstance(network, CapsNet) and network.decoder is not None and len(data.validation):
        save_detector(run, fit_detector(network, data.validation))
    with suppress(OSError):  # the terminal may be closed: the report has the evaluation too
        print_evaluation(evaluation, data.classes)
    say(f"report: {make_report(context, names=QUICK)}")


def say(words: str, stream: TextIO | None = None) -> None:
    """Print a line at once, in the first process only; without a terminal, training continues."""
    if is_first():
        with suppress(OSError):
            print(words, file=stream, flush=True)
