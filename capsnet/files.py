"""Files that are written atomically and kept through a loss of power, and folders that one process writes to."""

import itertools
import os
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
    """A new path beside `path` for a file or a folder; at the end it is flushed to the disk and renamed to `path`.

    A reader sees the old content or the new one, also after a loss of power. A folder takes the place of an empty one
    or of none. Raises InputError where writing fails, for want of room or rights; `path` is then left as it was.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}-{next(_counter)}.part")
    try:
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
    part = folder.with_name(f"{folder.name}.{os.getpid()}-{next(_counter)}.part")
    try:
        part.mkdir()
        yield part
        flush_to_disk(part)
        folder.mkdir(exist_ok=True)
        for path in sorted(part.iterdir(), key=lambda path: path.name == last):
            path.replace(folder / path.name)
        _fsync(folder)
        _fsync(folder.parent)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {folder}, whose {last} is left as it was: {error}") from error
    finally:
        with suppress(OSError):  # what is left of it is removed when the run goes on
            _remove(part)


def make_folder(folder: Path, *, parents: bool = False) -> None:
    """Make a folder that survives a loss of power, with `parents` also those that it lies in; one that exists stays.

    Raises OSError, or ValueError for a name that none can have, where that fails.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=parents, exist_ok=True)
    for place in missing:
        _fsync(place.parent)


def flush_to_disk(path: Path) -> None:
    """Have a file, or a folder and all that it holds, survive a loss of power."""
    if path.is_dir():
        for inner in path.iterdir():
            flush_to_disk(inner)
    _fsync(path)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed had begun to write in a folder and in those within it.

    Raises InputError where that fails.
    """
    for part in [*folder.rglob("*.part")]:
        remove(part)


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
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        owner = path.read_text(errors="replace").strip() or "another process"
        raise InputError(f"{folder} is being trained by {owner}: wait for its end, or name another --run") from error
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    try:
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        lock.release()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # which cannot be opened there
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
