"""Files that are written atomically and kept through a loss of power, and folders that one process writes to."""

import itertools
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from capsnet.errors import InputError

_counter = itertools.count()  # two threads may write the same file


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A new path next to `path` for a file or a folder; at the end it is flushed to the disk and renamed to `path`.

    A reader sees the old content or the new one, also after a loss of power. The folders that it lies in are made. A
    folder takes the place of an empty one or of none.

    Raises InputError where writing fails, for want of room or rights; `path` is then left as it was.
    """
    part = _part_of(path)
    try:
        make_folder(path.parent)
        yield part
        flush_to_disk(part)
        part.replace(path)
        _fsync(path.parent)
    except BaseException as error:
        with suppress(OSError):  # the first error says more
            _remove(part)
        if isinstance(error, (OSError, SafetensorError)):
            raise InputError(f"cannot write {path}, which is left as it was: {error}") from error
        raise


@contextmanager
def atomic_files(folder: Path, last: str) -> Iterator[Path]:
    """A new folder to write files to; at the end each is flushed to the disk and takes its place in `folder`.

    The file called `last` is replaced at the end, and is what makes the others count. Raises InputError where writing
    fails; that file is then left as it was.
    """
    part = _part_of(folder)
    try:
        part.mkdir()
        yield part
        flush_to_disk(part)
        folder.mkdir(exist_ok=True)
        for path in part.iterdir():
            if path.name != last:
                path.replace(folder / path.name)
        _fsync(folder)
        (part / last).replace(folder / last)
        _fsync(folder)
        _fsync(folder.parent)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {folder}, whose {last} is left as it was: {error}") from error
    finally:
        with suppress(OSError):  # what is left of it is removed when the run goes on
            _remove(part)


def make_folder(folder: Path) -> None:
    """Make a folder, and those that it lies in, so that they survive a loss of power; one that exists stays.

    Raises OSError, or ValueError for a name that none can have, where that fails.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in missing:
        _fsync(place.parent)


def flush_to_disk(path: Path) -> None:
    """Have a file, or a folder and all that it holds, survive a loss of power."""
    if path.is_dir():
        for inner in path.iterdir():
            flush_to_disk(inner)
    _fsync(path)


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name is what a process that was killed had begun to write."""
    return re.search(r"\.\d+-\d+\.part$", name) is not None


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed had begun to write in a folder.

    Raises InputError where that fails.
    """
    for path in [*folder.iterdir()] if folder.is_dir() else []:
        if is_leftover(path.name):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that it holds; InputError where that fails."""
    try:
        _remove(path)
    except OSError as error:
        raise InputError(f"cannot remove {path}: {error}") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to a folder; the lock of a process that has died is free.

    Raises InputError, naming the owner, where another process has the lock.
    """
    path = folder / "run.lock"
    lock = FileLock(path.absolute(), is_singleton=True)  # who has it may take it again
    try:
        lock.acquire(timeout=0)
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    except Timeout as error:
        owner = path.read_text(errors="replace").strip() or "another process"
        raise InputError(f"{folder} is being trained by {owner}: wait for its end, or name another --run") from error
    except OSError as error:
        lock.release()
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def _part_of(path: Path) -> Path:
    if path.name in ("", ".."):
        raise InputError(f"{path} has no name of its own: write it out")
    return path.with_name(f"{path.name}.{os.getpid()}-{next(_counter)}.part")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
