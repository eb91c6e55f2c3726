"""Files: paths that a user names, limits on reading them, atomic writes that survive a power loss, and folder locks."""

import itertools
import json
import os
import re
import shutil
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from capsnet.errors import InputError

MAX_UNPACKED = 256 << 20  # bytes that any file may unpack to, however small it is
MAX_RATIO = 20  # times its own size that a larger file may unpack to; MNIST's files unpack to 5 times theirs
MAX_SHOWN = 200  # characters of a file name or of a library's message that our messages show

_counter = itertools.count()  # two threads may write the same file


def cache_folder() -> Path:
    """Folder for files that can be downloaded or made again: $XDG_CACHE_HOME/capsnet, else ~/.cache/capsnet.

    Raises RuntimeError if the user has no home folder.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "capsnet"


def usable_path(path: str | Path) -> Path:
    """Expand a leading ~. The path need not exist.

    Raises InputError for a name that no file or folder can have (the empty string, NUL, 256 bytes, an unknown user),
    for a loop of links, and if a folder on the way may not be read.
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


def check_regular(path: Path) -> None:
    """Raise InputError for a folder, a pipe or a device. Reading a pipe would wait for its writer."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path} cannot be read: it is not a regular file")


def check_unpacked(path: Path, size: int, hint: str) -> None:
    """Raise InputError if a file's headers announce `size` bytes, and a file of its size may not unpack to as many.

    The message ends in `hint`, which tells the user what to do.
    """
    if size > max(MAX_UNPACKED, MAX_RATIO * path.stat().st_size):
        raise InputError(
            f"{path} would unpack to {size} bytes, more than {MAX_UNPACKED >> 20} MiB and {MAX_RATIO} times its size: "
            f"if it is not damaged, {hint}"
        )


@contextmanager
def reading(path: object, kind: str, hint: str = "") -> Iterator[None]:
    """Convert any exception of a library that reads a damaged file to an InputError that names the file.

    Libraries raise nearly any class there: KeyError, struct.error, NotImplementedError, and MemoryError if a header
    asks for too much. Warnings are dropped: the library could read what it only warns about.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    except Exception as error:
        message = f"{shortened(str(path))} cannot be read as {kind} ({reason(error)})"
        raise InputError(f"{message}: {hint}" if hint else message) from error


def reason(error: Exception) -> str:
    """Return the cause of an error in a few words."""
    words = " ".join(str(getattr(error, "strerror", None) or error).split())
    return shortened(words) if " " in words else f"{type(error).__name__} {shortened(words)}".strip()


def shortened(text: str) -> str:
    """Return the text, with the middle of a long text left out."""
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN // 2]}...{text[-MAX_SHOWN // 2 :]}"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; at the end, flush what was written there to disk and rename it to `path`.

    It may be a file or a folder; a folder may replace an empty folder only. A reader sees the old content or the new
    one, also after a power loss. Missing parent folders are created.

    Raises InputError if writing fails, for lack of space or permission; `path` is then unchanged.
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
    """Yield a temporary folder; at the end, flush each of its files to disk and move it to `folder`.

    The file called `last` is moved last: it makes the others valid. Raises InputError if writing fails; that file is
    then unchanged.
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
        with suppress(OSError):  # what is left of it is removed when the run is resumed
            _remove(part)


def write_json(path: Path, content: object) -> Path:
    """Write a JSON file atomically → its path."""
    with atomic_write(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def make_folder(folder: Path) -> None:
    """Create a folder and its parents so that they survive a power loss; an existing one is kept.

    Raises OSError if that fails, and ValueError for a name that no folder can have.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in missing:
        _fsync(place.parent)


def flush_to_disk(path: Path) -> None:
    """Flush a file, or a folder with all its content, to disk, so that it survives a power loss."""
    if path.is_dir():
        for inner in path.iterdir():
            flush_to_disk(inner)
    _fsync(path)


def is_leftover(name: str) -> bool:
    """Whether this is the name of a temporary file or folder, left by a process that was killed while writing."""
    return re.search(r"\.\d+-\d+\.part$", name) is not None


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files in a folder that killed processes left.

    Raises InputError if that fails.
    """
    for path in [*folder.iterdir()] if folder.is_dir() else []:
        if is_leftover(path.name):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all its content; InputError if that fails."""
    try:
        _remove(path)
    except OSError as error:
        raise InputError(f"cannot remove {path}: {error}") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder, so that no other process writes to it. The lock of a process that has died is free.

    Raises InputError, naming the owner, if another process holds the lock.
    """
    path = folder / "run.lock"
    lock = FileLock(path.absolute(), is_singleton=True)  # the process that holds it may lock again
    try:
        lock.acquire(timeout=0)
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    except Timeout as error:
        owner = path.read_text(errors="replace").strip() or "another process"
        raise InputError(f"{folder} is being trained by {owner}: wait for its end, or choose another --run") from error
    except OSError as error:
        lock.release()
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def _part_of(path: Path) -> Path:
    if path.name in ("", ".."):
        raise InputError(f"{path} does not end in a name: give a path that does")
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
