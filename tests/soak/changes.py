"""Hooks around the calls that change a folder: rename, fsync, removal, new folder."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

CALLS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir")


class Change(NamedTuple):
    """A call, numbered from 1, and the file or folder that it changes."""

    number: int
    call: str
    path: Path


def at_each_change(below: Path, before: Callable[[Change], None], after: Callable[[Change], None]) -> None:
    """From now on, call `before` and `after` around each change that this process makes below a folder."""
    count = 0

    def wrap(name: str) -> None:
        original = getattr(os, name)

        def changing(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            path = _path(name, arguments, named)
            if not path.is_relative_to(below):
                return original(*arguments, **named)
            count += 1
            change = Change(count, name, path)
            before(change)
            try:
                return original(*arguments, **named)
            finally:
                after(change)

        setattr(os, name, changing)

    for name in CALLS:
        wrap(name)


def _path(name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Path:
    if name == "fsync":
        return Path(os.readlink(f"/proc/self/fd/{arguments[0]}"))
    path = os.fsdecode(arguments[0])
    folder = named.get("dir_fd")
    return Path(os.readlink(f"/proc/self/fd/{folder}") if folder is not None else os.getcwd()) / path
