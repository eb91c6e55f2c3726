"""What all tests share: a seed, and access to their helpers."""

import sys
from pathlib import Path

import pytest
import torch

# Behind everything else, so that `tests.…` can be imported and no other copy of the package is hidden by this one.
sys.path.append(str(Path(__file__).parents[1]))
torch.set_num_threads(1)  # small tensors gain nothing from more, and tests may run side by side


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run whose small network knows most digits. Read it only: many tests share it."""
    from tests.training import LEARNS, train

    return train(tmp_path_factory.mktemp("runs") / "trained", LEARNS)
