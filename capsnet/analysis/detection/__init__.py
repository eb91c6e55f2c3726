"""Detection of attacks by the reconstruction error, also when the attacker knows the detector."""

from collections.abc import Iterator
from pathlib import Path

import click

from capsnet.analysis.detection.detector import save_detector
from capsnet.analysis.detection.measure import measure_detection
from capsnet.analysis.detection.plot import plot_detection
from capsnet.analysis.subject import Context, ood_option, subject


@subject(
    {
        "detection.png": "Detection of attacks: an image is flagged if its reconstruction error is above that of "
        "95 % of the validation images.",
    },
    needs=("decoder", "validation"),
)
@click.option(
    "--images", default=100, show_default=True, help="Number of test images attacked, and of images of noise and --ood."
)
@ood_option
def detection(context: Context, images: int = 100, steps: int = 20) -> Iterator[Path]:
    """Detect attacks by the reconstruction error, and save the threshold for `capsnet predict`."""
    result = measure_detection(context.network, context.data, context.ood, count=images, steps=steps)
    save_detector(context.run, result.detector)
    yield plot_detection(result, context.folder / "detection.png")
