"""Files and folders that appear whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from capsnet.errors import InputError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write a file or a folder to, which takes the place of `path` only when all of it is there.

    Raises InputError where that fails, for want of room or rights; what stood at `path` then still stands there.
    """
    part = path.with_name(path.name + ".part")
    _remove(part)
    try:
        yield part
    except (OSError, SafetensorError) as error:
        _remove(part)
        raise InputError(f"cannot write {path}, which is left as it was: {error}") from error
    if path.is_dir():  # which, unlike a file, cannot be replaced in one step
        old = path.with_name(path.name + ".old")
        _remove(old)
        path.replace(old)
        part.replace(path)
        shutil.rmtree(old)
    else:
        part.replace(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
