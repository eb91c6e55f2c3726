"""The verbs of the command line: a dataclass each, whose fields are the flags; a call imports what it needs."""

from typing import Any

from capsnet.verbs.look import Couplings, Drawings, Figures, Masks, Tweaks
from capsnet.verbs.robustness import Affine, Attacks, Detection, Targeted
from capsnet.verbs.run import Evaluate, ImportWeights, Predict, Train

VERBS: dict[str, Any] = {
    "train": Train,
    "evaluate": Evaluate,
    "predict": Predict,
    "figures": Figures,
    "drawings": Drawings,
    "masks": Masks,
    "tweaks": Tweaks,
    "couplings": Couplings,
    "targeted": Targeted,
    "attacks": Attacks,
    "detection": Detection,
    "affine": Affine,
    "import-weights": ImportWeights,
}
