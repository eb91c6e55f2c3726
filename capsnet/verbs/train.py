"""The verb that trains."""

import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Annotated, TextIO

from tyro.conf import OmitArgPrefixes, Positional, arg

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
from capsnet.recipe import Recipe
from capsnet.recipes import Fast
from capsnet.verbs.run import DataDir, check_data_dir

if TYPE_CHECKING:
    from capsnet.baselines import ConvBaseline
    from capsnet.data import Data
    from capsnet.models import CapsNet
    from capsnet.runs import Run


@dataclass(frozen=True)
class Train:
    """Train a network into a run folder, judge it on the test images and draw its report."""

    data: Annotated[Positional[str], arg(metavar="DATA")]
    """mnist, fashion_mnist, digits, a folder with one sub-folder of images per class, or an .npz file."""
    recipe: str = "fast"
    """Where the settings below start from: paper, official, fast, digits, chainer, tensorflow, pytorch, notebook."""
    run: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """The run folder; runs/DATA-RECIPE by default."""
    data_dir: DataDir = None
    """Where mnist and fashion_mnist lie or are downloaded to; else $CAPSNET_DATA, else the user's cache."""
    resume: bool = False
    """Go on from the run's last checkpoint, by its own recipe; of the settings only epochs and steps may change."""
    overwrite: bool = False
    """Replace a run folder that exists."""
    save_every: Annotated[float, arg(metavar="MINUTES")] = 5.0
    """Minutes between two checkpoints within an epoch; one is written after each epoch too."""
    images_on_device: bool = True
    """Copy all training images to the GPU at the start, if they fit; else each batch is copied."""
    cuda_graph: bool = True
    """Record a training step on a GPU once and replay it; else its kernels are launched one by one."""
    devices: Annotated[int | None, arg(metavar="N")] = None
    """Train in so many processes on this machine, a GPU or a part of the CPU's cores each; torchrun sets its own."""
    nodes: Annotated[int | None, arg(metavar="N")] = None
    """Machines to train on; more than one takes torchrun on each, which knows their number."""
    settings: OmitArgPrefixes[Recipe] = field(default_factory=Fast)

    def __call__(self) -> None:
        """Train, evaluate and report."""
        self._check()
        if (self.devices or 1) > 1 and not launched():
            launch(self.devices or 1)
        elif process_count() > 1:
            from capsnet.processes import lost_process_named, share_cores

            share_cores()
            with lost_process_named():
                self._run()
        else:
            self._run()

    def _run(self) -> None:
        from capsnet.files import locked
        from capsnet.hardware import keep_freed_memory

        keep_freed_memory()
        run, data, resume = self._opened()
        say(f"{run.folder}: recipe {run.recipe_name}, {len(data.train):,} training images of {data.image_shape}")
        if not is_first():
            self._train(run, data, resume)
            return
        with locked(run.folder):
            before = run.weights_checksum()
            network = self._train(run, data, resume)
            if run.weights_checksum() != before:
                rmtree(run.folder / "figures", ignore_errors=True)  # of other weights
            report(run, network, data)

    def _train(self, run: "Run", data: "Data", resume: bool) -> "CapsNet | ConvBaseline":
        from capsnet.training import train

        try:
            return train(
                run,
                data,
                resume=resume,
                save_minutes=self.save_every,
                images_on_device=self.images_on_device,
                cuda_graph=self.cuda_graph,
            )
        except KeyboardInterrupt:
            say(f"\nstopped; go on with: {run.resume_command(self.data_dir)}", sys.stderr)
            raise

    def _check(self) -> None:
        """Raise InputError for flags that do not go together, before data are looked for."""
        check_counts(self.devices, self.nodes)
        from capsnet.hardware import default_device, device_count

        if self.resume and self.overwrite:
            raise InputError("--resume goes on with a run and --overwrite replaces it: give one of them")
        check_data_dir(self.data_dir, self.data)
        if not self.resume:
            self.settings.check_effects()
        device, processes = default_device().type, process_count() if launched() else self.devices or 1
        if not launched() and processes > device_count():
            kind = "CPU core" if device == "cpu" else "GPU"
            raise InputError(f"--devices {processes}, but this machine has {device_count()} {kind}(s): ask for fewer")
        if not self.resume:  # a run that goes on has its own batch, which is checked once it is read
            check_batch(self.settings.batch_size, processes)
        for name, wanted in (("cuda-graph", self.cuda_graph), ("images-on-device", self.images_on_device)):
            if not wanted and device == "cpu":
                raise InputError(f"--no-{name} has no effect on a CPU: leave it out")
        if not self.cuda_graph and processes > 1:
            raise InputError("--no-cuda-graph has no effect with several processes, which record none: leave it out")

    def _opened(self) -> "tuple[Run, Data, bool]":
        """The run, its data and whether it goes on; the first process finds them for all."""
        if process_count() == 1:
            return self._open()
        from capsnet.processes import first, join

        return first(join(), self._open)

    def _open(self) -> "tuple[Run, Data, bool]":
        """The run, new or to be resumed, its data, and whether it is resumed.

        Processes that torchrun has started again go on with the run that they began.
        """
        from capsnet.data import load_data
        from capsnet.runs import load_run, start_run

        settings, folder = self.settings, self.run or run_folder(self.data, self.recipe)
        data = load_data(
            self.data,
            data_dir=self.data_dir,
            validation=settings.validation,
            seed=settings.seed,
            image_size=settings.image_size,
        )
        if self.resume or is_restart(folder):
            return load_run(folder).extended(data, settings), data, True
        run = start_run(folder, settings, data, overwrite=self.overwrite)
        note_start(folder)
        return run, data, False


def report(run: "Run", network: "CapsNet | ConvBaseline", data: "Data") -> None:
    """Evaluate a run's network on the test images; write the results, the detector, the figures and the report."""
    from capsnet.analysis.detection.detector import fit_detector, save_detector
    from capsnet.analysis.report import make_report
    from capsnet.analysis.subject import Context
    from capsnet.models import CapsNet
    from capsnet.printing import print_evaluation

    context = Context(run, network, data)
    evaluation = context.predictions.evaluation()
    run.write_results(network, data, evaluation)
    if isinstance(network, CapsNet) and network.decoder is not None and len(data.validation):
        save_detector(run, fit_detector(network, data.validation))
    with suppress(OSError):  # of a terminal that is gone: what it would show is in the report
        print_evaluation(evaluation, data.classes)
    say(f"report: {make_report(context)}")


def say(words: str, stream: TextIO | None = None) -> None:
    """Print a line at once, in the first process alone.

    It is dropped where the terminal is gone: a training goes on without one.
    """
    if is_first():
        with suppress(OSError):
            print(words, file=stream, flush=True)


def run_folder(data: str, recipe: str) -> Path:
    """Where a run goes that is given no folder: runs/mnist-fast."""
    return usable_path(Path("runs") / f"{usable_path(data).resolve().name.removesuffix('.npz')}-{recipe}")
