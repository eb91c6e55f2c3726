"""The verbs of the command line: a dataclass each, whose fields are the flags; a call imports what it needs."""

import reprlib
from importlib import import_module
from typing import Any

from capsnet.errors import InputError

VERBS = {
    "train": "train:Train",
    "evaluate": "run:Evaluate",
    "predict": "run:Predict",
    "figures": "look:Figures",
    "drawings": "look:Drawings",
    "masks": "look:Masks",
    "tweaks": "look:Tweaks",
    "couplings": "look:Couplings",
    "targeted": "robustness:Targeted",
    "attacks": "robustness:Attacks",
    "detection": "robustness:Detection",
    "affine": "robustness:Affine",
    "bench": "bench:Bench",
    "import-weights": "run:ImportWeights",
}  # module:class, imported when it is asked for


def find_verb(name: str) -> Any:
    """The class of a verb.

    Raises InputError for an unknown one.
    """
    if name not in VERBS:
        raise InputError(f"no verb {reprlib.repr(name)}: choose one of {', '.join(VERBS)}")
    module, _, kind = VERBS[name].partition(":")
    return getattr(import_module(f"capsnet.verbs.{module}"), kind)
