"""Analyses of a trained network, one module per subject: what is measured, its numbers, its figure and its command."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from capsnet.analysis.subject import Subject

SUBJECTS = {  # a module of this package and, in it, the Subject of the same name → what `capsnet --help` says of it
    "reconstructions": "Plot test images and their reconstructions (Figure 3).",
    "errors": "Plot misclassified test images, reconstructed from the predicted and from the true class.",
    "masks": "Plot, for test images, the reconstruction from the capsule of every class.",
    "perturbations": "Plot what each dimension of a class's capsule stands for (Figure 4), and animate it.",
    "couplings": "Plot the couplings of a test image in every routing iteration.",
    "targeted": "Attack every pair of classes: gradient ascent on the target class's length.",
    "attacks": "Measure accuracy under the worst of several attacks, and check the attacks. Takes minutes.",
    "detection": "Detect attacks by the reconstruction error, and save the threshold for `capsnet predict`.",
    "affine": "Measure accuracy on test images that are rotated, shifted, scaled and sheared.",
    "lengths": "Plot accuracy by class, the lengths of right and wrong predictions, and their calibration.",
    "confusion": "Plot the confusion matrix of the test images.",
    "curves": "Plot losses, error rates and learning rate over the training.",
}
MODULES = {"errors": "reconstructions"}  # subjects that are not in the module of their name


def find_subject(name: str) -> Subject:
    """Import the subject of a name that is in SUBJECTS."""
    module = import_module(f"capsnet.analysis.{MODULES.get(name, name)}")
    return getattr(module, name)
