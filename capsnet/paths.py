"""Paths as users write them."""

import os
from pathlib import Path

from capsnet.errors import InputError


def usable_path(path: str | Path) -> Path:
    """Expand a leading ~; what stands at the path, or whether anything does, is left to the caller.

    Raises InputError for what no file or folder can be called, such as the empty string, NUL, names of 256 bytes and
    unknown users, for loops of links, and where the folders on the way may not be read.
    """
    try:
        if not str(path):
            raise ValueError("it is empty")
        expanded = Path(path).expanduser()
        os.stat(expanded)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, RuntimeError, ValueError) as error:
        shown = ascii(str(path)) if len(str(path)) < 60 else ascii(str(path)[:60]) + "..."
        raise InputError(f"{shown} cannot be used as a path: {getattr(error, 'strerror', None) or error}") from error
    return expanded
