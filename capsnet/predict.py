"""What a run's network sees in image files."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from capsnet.data import image_tensor
from capsnet.evaluation import answer
from capsnet.hardware import default_device
from capsnet.losses import reconstruction_loss
from capsnet.runs import Run


@dataclass(frozen=True)
class Prediction:
    """A network's answer for one image file."""

    image: str
    answer: str
    lengths: dict[str, float]
    """Length of each class's capsule, in [0, 1); a baseline's class probabilities."""
    drawing_error: float | None
    """Squared error of the answer's drawing, summed over pixels; None for a network that does not draw."""


def predict(run: Run, images: Iterable[str | Path], *, invert: bool = False) -> list[Prediction]:
    """Classify image files of any format and size, converted to the network's colours and resized to its shape.

    `invert` swaps light and dark first. Raises InputError for a file that is missing or no image.
    """
    network = run.load_network().to(default_device())
    predictions = []
    for image in images:
        pixels = (
            image_tensor(image, run.image_shape, invert=invert).unsqueeze(0).to(default_device()) / 255
        )  # [1, c, h, w]
        given = answer(network, pixels)
        lengths = dict(zip(run.classes, given.scores[0].tolist(), strict=True))
        error = None if given.drawings is None else float(reconstruction_loss(given.drawings, pixels))
        predictions.append(Prediction(str(image), run.classes[int(given.predictions[0])], lengths, error))
    return predictions
