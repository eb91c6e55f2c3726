"""Pictures that take a measurement first: attacks, their detection, affine changes."""

from collections.abc import Sequence
from pathlib import Path

import torch

from capsnet.baselines import ConvBaseline
from capsnet.data import Data, ImageSet
from capsnet.errors import InputError
from capsnet.figures.affine import draw_affine
from capsnet.figures.attacks import draw_attacks
from capsnet.figures.changed import draw_changed
from capsnet.figures.detection import draw_detection
from capsnet.models import CapsNet
from capsnet.robustness.affine import measure_affine
from capsnet.robustness.attacks import EPSILONS, measure_attacks
from capsnet.robustness.detection import measure_detection
from capsnet.robustness.detector import save_detector
from capsnet.runs import Run

Networks = dict[str, CapsNet | ConvBaseline]


def attack(
    networks: Networks,
    images: ImageSet,
    path: Path,
    *,
    count: int = 50,
    epsilons: Sequence[float] = EPSILONS,
    seed: int = 0,
) -> Path:
    """Attack `count` images, drawn by seed, half of them in L2 too; draw the worst case and what checks say.

    Raises InputError for an epsilon outside [0, 1] and no images.
    """
    if count < 1:
        raise InputError(f"an attack takes at least one image, not {count}")
    drawn = images.select(torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count])
    measured = measure_attacks(networks, drawn, epsilons=epsilons, l2_images=-(-count // 2), seed=seed)
    return draw_attacks(measured, path)


def detect(
    run: Run, network: CapsNet, data: Data, path: Path, *, other: Data | None = None, count: int = 100, steps: int = 20
) -> Path:
    """Measure what a threshold on drawings tells, keep that threshold with the run for `predict`, and draw it all."""
    result = measure_detection(network, data, other, count=count, steps=steps)
    save_detector(run, result.detector)
    return draw_detection(result, path)


def change(networks: Networks, images: ImageSet, classes: tuple[str, ...], path: Path, *, count: int = 250) -> Path:
    """Measure what affine changes do to accuracy and draw it; a picture of what the first network draws of them too.

    That picture is made if the network draws; its name ends in -drawings.
    """
    draw_affine(measure_affine(networks, images, count=count), path)
    first = next(iter(networks.values()))
    if isinstance(first, CapsNet) and first.decoder is not None:
        draw_changed(first, images, classes, path.with_stem(f"{path.stem}-drawings"))
    return path
