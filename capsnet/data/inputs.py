"""Files that a user names: whether they can be read, and in how much memory."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from capsnet.errors import InputError

MAX_UNPACKED = 256 << 20  # bytes that any file may unpack to, however small it is
MAX_RATIO = 20  # times its own size that a larger file may unpack to; MNIST's unpack to 5 times theirs
MAX_SHOWN = 200  # characters of a name, or of a library's words, in a message


def check_regular(path: Path) -> None:
    """Raise InputError for a folder, a pipe or a device, which cannot be read as a file: a pipe would be waited for."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path} cannot be read: it is not a regular file")


def check_unpacked(path: Path, size: int, way_out: str) -> None:
    """Raise InputError where a file's headers promise more bytes than may be unpacked from a file of its size.

    The message ends in `way_out`.
    """
    if size > max(MAX_UNPACKED, MAX_RATIO * path.stat().st_size):
        raise InputError(
            f"{path} would unpack to {size} bytes, more than {MAX_UNPACKED >> 20} MiB and {MAX_RATIO} times its size: "
            f"if it is not damaged, {way_out}"
        )


@contextmanager
def reading(path: object, kind: str, way_out: str = "") -> Iterator[None]:
    """Turn whatever a library raises for a damaged file into an InputError that names the file.

    A library raises nearly anything there: KeyError, struct.error, NotImplementedError, and MemoryError where a header
    asks for more than there is. Warnings are not shown: what a library only warns of, it could read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    except Exception as error:
        message = f"{shortened(str(path))} cannot be read as {kind} ({reason(error)})"
        raise InputError(f"{message}: {way_out}" if way_out else message) from error


def reason(error: Exception) -> str:
    """Why something failed, in a few words."""
    words = " ".join(str(getattr(error, "strerror", None) or error).split())
    return shortened(words) if " " in words else f"{type(error).__name__} {shortened(words)}".strip()


def shortened(text: str) -> str:
    """Return the text, its middle left out where it is long."""
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN // 2]}...{text[-MAX_SHOWN // 2 :]}"
