"""The verbs that judge, answer and import."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from capsnet.errors import InputError

RunFolder = Annotated[Positional[Path], arg(metavar="RUN")]
DataDir = Annotated[Path | None, arg(metavar="FOLDER")]


def check_data_dir(data_dir: Path | None, *names: str | None) -> None:
    """Raise InputError for a --data-dir where none of the data that are named is looked for in it."""
    from capsnet.data.sources import SOURCES

    if data_dir is not None and not SOURCES.keys() & set(names):
        data = ", ".join(filter(None, names))
        raise InputError(f"--data-dir has no effect for {data}: only {' and '.join(SOURCES)} are looked for there")


@dataclass(frozen=True)
class Evaluate:
    """Judge a run's network on test images: errors, accuracy per class, confusions, drawing error."""

    run: RunFolder
    """A run folder."""
    data: str | None = None
    """Other data with the same classes: a name, a folder or an .npz file; its test images count."""
    data_dir: DataDir = None
    """Where mnist and fashion_mnist lie."""
    masked_by: Literal["prediction", "label"] = "prediction"
    """Whose capsule is drawn: the network's answer's, or the true label's."""
    json: bool = False
    """Print the result as JSON."""

    def __call__(self) -> None:
        """Evaluate and print."""
        from capsnet.evaluation import evaluate
        from capsnet.hardware import default_device, keep_freed_memory
        from capsnet.printing import print_evaluation
        from capsnet.runs import load_run

        keep_freed_memory()
        run = load_run(self.run)
        check_data_dir(self.data_dir, self.data or run.data)
        if self.masked_by == "label" and (run.recipe.network != "capsnet" or run.recipe.decoder == "none"):
            raise InputError(f"--masked-by label has no effect: the network of {self.run} has no decoder")
        data = run.load_data(self.data, self.data_dir)
        result = evaluate(run.load_network().to(default_device()), data.test, masked_by=self.masked_by)
        if self.json:
            print(json.dumps({"data": data.name, "accuracy": result.accuracy} | asdict(result)))
        else:
            print_evaluation(result, data.classes)


@dataclass(frozen=True)
class Predict:
    """Classify image files: class, length of each capsule and error of the drawing.

    An image is converted to the network's colours and resized to its shape. The networks of mnist, fashion_mnist and
    digits know light strokes on black: for dark ones on white say --invert.
    """

    run: RunFolder
    """A run folder."""
    images: Annotated[Positional[tuple[Path, ...]], arg(metavar="IMAGE...")]
    """Image files of any format and size, or folders of them."""
    invert: bool = False
    """Swap light and dark first."""
    json: bool = False
    """Print JSON, an object an image."""

    def __call__(self) -> None:
        """Classify and print."""
        from capsnet.analysis.detection.detector import load_detector
        from capsnet.evaluation import predict
        from capsnet.hardware import default_device
        from capsnet.printing import print_predictions
        from capsnet.runs import load_run

        if not self.images:
            raise InputError("name at least one image: capsnet predict RUN image.png ...")
        run = load_run(self.run)
        detector, network = load_detector(run), run.load_network().to(default_device())
        threshold = None if detector is None else detector.threshold
        predictions = predict(network, run.classes, self.images, threshold=threshold, invert=self.invert)
        if self.json:
            print(json.dumps([asdict(prediction) for prediction in predictions]))
        else:
            print_predictions(predictions, self.invert)


@dataclass(frozen=True)
class ImportWeights:
    """Make a network of another implementation's weights; docs/coming-from.md says whose and how."""

    source: Annotated[Positional[Path], arg(metavar="FILE")]
    """A PyTorch state dict (.pt or .pth), or the arrays of a Keras model (.npz)."""
    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """A new folder, for CapsNet.from_pretrained."""
    iterations: int = 3
    """Routing iterations, as that implementation counts them."""

    def __call__(self) -> None:
        """Import, and say where."""
        from capsnet.weights import import_weights

        print(import_weights(self.source, self.folder, iterations=self.iterations))
