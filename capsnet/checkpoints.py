"""Checkpoints: the state of training after a step, in a file with its checksum; the last two are kept."""

import hashlib
import io
import logging
from pathlib import Path
from typing import Annotated, Any, NotRequired

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from torch import Tensor
from typing_extensions import TypedDict  # pydantic takes typing.TypedDict only from Python 3.12 on

from capsnet.checks import first_fault
from capsnet.errors import InputError
from capsnet.files import atomic_write, remove
from capsnet.runs import Run

KEPT = 2
DIGITS = 64  # of the SHA-256 before the content

log = logging.getLogger(__name__)
_STRICT = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)


@with_config(_STRICT)
class Moments(TypedDict):
    """Adam's state of one weight."""

    step: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


@with_config(_STRICT)
class Adam(TypedDict):
    """Adam's state, by the index of each weight."""

    state: dict[int, Moments]
    param_groups: list[dict[str, Any]]


@with_config(_STRICT)
class Checkpoint(TypedDict):
    """The state of training."""

    network: dict[str, Tensor]
    optimizer: Adam
    average: NotRequired[dict[str, Tensor]]
    step: Annotated[int, Field(ge=0)]
    least_errors: Annotated[float, Field(ge=0)]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    random: Tensor
    random_cuda: NotRequired[Tensor]


def checkpoint_paths(run: Run) -> list[Path]:
    """Return the checkpoints of a run, the last one first."""
    return sorted((run.folder / "checkpoints").glob("*.ckpt"), reverse=True)


def save_checkpoint(run: Run, state: Checkpoint) -> Path:
    """Write a checkpoint atomically, and remove all but the last two.

    Raises InputError if it cannot be written; the other checkpoints are then unchanged.
    """
    folder = run.folder / "checkpoints"
    path = folder / f"{state['step']:010d}.ckpt"
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    with atomic_write(path) as part, part.open("wb") as file:
        file.write(hashlib.sha256(content).hexdigest().encode())
        file.write(content)
    paths = checkpoint_paths(run)
    kept = [other for other in paths if other <= path][:KEPT]  # later ones are damaged: training resumed before them
    for other in paths:
        if other not in kept:
            remove(other)
    return path


def load_checkpoint(run: Run) -> Checkpoint | None:
    """Return the last intact state of training, or None for a run without checkpoints.

    Damaged checkpoints are named in a warning. Raises InputError if all are damaged.
    """
    paths = checkpoint_paths(run)
    for path in paths:
        try:
            return read_checkpoint(path)
        except InputError as error:
            log.warning("%s", error)
    if paths:
        raise InputError(f"{run.folder} has no intact checkpoint to resume from: start it again with --overwrite")
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; InputError if it is damaged."""
    try:
        content = path.read_bytes()
        if hashlib.sha256(content[DIGITS:]).hexdigest().encode() != content[:DIGITS]:
            raise InputError(f"{path} is damaged: its checksum does not match")
        state = torch.load(io.BytesIO(content[DIGITS:]), weights_only=True, map_location="cpu")
        return TypeAdapter(Checkpoint).validate_python(state)
    except ValidationError as error:
        raise InputError(f"{path} is damaged: {first_fault(error)}") from error
    except InputError:
        raise
    except Exception as error:  # torch.load may raise anything
        raise InputError(f"{path} is damaged ({type(error).__name__})") from error
