"""Accuracy under attack: the worst of several attacks on each image, and checks for masked gradients."""

from collections.abc import Iterator
from pathlib import Path

import click
import torch

from capsnet.analysis.attacks.plot import plot_attacks
from capsnet.analysis.attacks.worst_case import EPSILONS, measure_attacks
from capsnet.analysis.subject import Context, compare_option, subject
from capsnet.errors import InputError


@subject(
    {
        "attacks.png": "Accuracy under the worst of all attacks, image by image.",
        "attacks-masking.png": "Checks for masked gradients: accuracy (Linf) as steps of PGD, then random starts and "
        "other attacks are added.",
    },
    needs="foolbox",
)
@click.option("--images", default=50, show_default=True, help="Number of test images; half are also attacked in L2.")
@click.option("--epsilon", "epsilons", multiple=True, default=EPSILONS, help="Largest change of a pixel; repeatable.")
@compare_option
def attacks(context: Context, images: int = 50, epsilons: tuple[float, ...] = EPSILONS) -> Iterator[Path]:
    """Measure accuracy under the worst of several attacks, and check the attacks. Takes minutes.

    On one core, 100 images of MNIST take 19 minutes for the paper's network and a small one.
    """
    if images < 1:
        raise InputError(f"an attack takes at least one image, not {images}")
    test = context.data.test
    chosen = test.select(torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:images])
    measured = measure_attacks(context.networks, chosen, epsilons=epsilons, l2_images=-(-images // 2))
    yield from plot_attacks(measured, context.folder / "attacks.png")
