"""C code compiled for this machine by its C compiler, and kept in the user's cache.

A kept library has the SHA-256 of its content in its name, which is verified before it is loaded: the loader kills the
process at a file that was cut short.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import signal
import subprocess
import tempfile
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from shutil import which
from time import perf_counter

import torch
from torch import Tensor
from torch.nn import Parameter

from capsnet.files import cache_folder

SECONDS = 60  # for a compiler that takes 1 to 3 on an idle core, until it is taken for hanging
log = logging.getLogger(__name__)


FLAGS = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
TUNED = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
TRACERS = (torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FAKE)
ALIGNMENT = 64  # bytes, that of PyTorch's own memory


class CompilerError(Exception):
    """Why the machine's C compiler gives no library, in one line."""


def library_for_this_cpu(
    source: Path, defines: Sequence[str], functions: Sequence[str], purpose: str
) -> ctypes.CDLL | None:
    """The library of a source file, tuned for this CPU; None, with one warning, where no compiler makes it."""
    try:
        return shared_library(source, [*FLAGS, TUNED, *defines], functions)
    except CompilerError as error:
        _warn(f"{purpose} is not compiled and runs in plain PyTorch: {error}")
        return None


@cache
def _warn(line: str) -> None:
    """Say something once, though more than one library cannot be compiled."""
    log.warning(line)


def is_readable(tensor: Tensor) -> bool:
    """Whether C can read a tensor: its numbers lie in a CPU's memory, and no tracer of PyTorch's has to see its use."""
    traced = any(torch._C._get_dispatch_mode(key) is not None for key in TRACERS)
    plain = type(tensor) in (Tensor, Parameter) and tensor.device.type == "cpu"
    return plain and not traced and torch._C._has_storage(tensor)


def aligned(tensor: Tensor) -> Tensor:
    """The same numbers, contiguous, from where a vector register can be loaded at once."""
    tensor = tensor.resolve_neg().contiguous()
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where the numbers lie in memory, or NULL."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def shared_library(source: Path, options: Sequence[str], functions: Sequence[str]) -> ctypes.CDLL:
    """The library that the C compiler makes of a source file: kept from an earlier call, or compiled and kept.

    A cache that cannot be used is done without. Raises CompilerError where there is no compiler, or none that makes a
    library with these functions within SECONDS.
    """
    command = [*_compiler(), *options, str(source), "-lm"]
    name = hashlib.sha256(repr((command, source.read_text(), _machine())).encode()).hexdigest()[:16]
    for path in _kept(name):
        try:
            return _load(path, functions)
        except OSError as error:  # such as that of a C library that is no longer there
            log.info("%s is compiled again: %s", path, error)
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = _compile(command, Path(folder) / f"{name}.so")
            try:
                library = _load(made, functions)
            except OSError as error:
                reason = str(error).replace(str(made), "its library")
                raise CompilerError(f"{command[0]} does not work: {_line(reason)}") from error
            _keep(made)
            return library
    except OSError as error:  # of the temporary folder
        raise CompilerError(_line(error)) from error


def _compiler() -> list[str]:
    """The command in $CC, or else cc."""
    asked = os.environ.get("CC", "")
    try:
        command = shlex.split(asked)
    except ValueError as error:
        raise CompilerError(f"CC={asked!r} is no command: {error}") from error
    if not command and (found := which("cc")):
        return [found]
    if not command:
        raise CompilerError("there is no C compiler: install one, or set CC")
    return command


def _compile(command: Sequence[str], path: Path) -> Path:
    """Have the compiler write a library there."""
    start = perf_counter()
    try:
        process = subprocess.Popen(
            [*command, "-o", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            process_group=0,  # so that what the compiler has started ends with it
        )
    except (OSError, ValueError) as error:  # no such program, or one that cannot be run
        raise CompilerError(f"{command[0]} cannot be run: {_line(error)}") from error
    with process:
        try:
            _, said = process.communicate(timeout=SECONDS)
        except BaseException as error:  # a Ctrl-C too does not reach the compiler's own group
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise CompilerError(f"{command[0]} was not done after {SECONDS} s") from error
    if process.returncode:
        raise CompilerError(f"{command[0]} ended with status {process.returncode}: {_line(said)}")
    if not path.is_file():
        raise CompilerError(f"{command[0]} ended without an error and without a library: {_line(said)}")
    log.info("compiled %s for this processor in %.1f s", Path(command[-2]).name, perf_counter() - start)
    return path


def _cache() -> Path:
    return cache_folder() / "native"


def _kept(name: str) -> list[Path]:
    """The kept libraries of this name that are as they were written."""
    intact = []
    try:
        for path in _cache().glob(f"{name}-*.so"):
            if path.stem == f"{name}-{_sha256(path)}":
                intact.append(path)
            else:
                log.info("%s is damaged and is compiled again", path)
                path.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        log.info("the kept libraries cannot be used: %s", error)
    return intact


def _keep(made: Path) -> None:
    """Copy a library to the cache, if that can be used."""
    try:
        _copy(made, _cache())
    except (OSError, RuntimeError) as error:  # it is full, read-only, a file, or has no place
        log.info("the compiled library cannot be kept: %s", error)


def _copy(made: Path, folder: Path) -> None:
    """Copy a library, atomically and durably, also while another process does the same."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{made.stem}-{_sha256(made)}.so"
    with tempfile.TemporaryDirectory(dir=folder) as place:
        copy = Path(place) / path.name
        with copy.open("wb") as file:
            file.write(made.read_bytes())
            file.flush()
            os.fsync(file.fileno())
        copy.replace(path)
    entries = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(entries)
    finally:
        os.close(entries)


def _load(path: Path, functions: Sequence[str]) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    if lacking := [name for name in functions if not hasattr(library, name)]:
        raise OSError(f"{path} has no function {', '.join(lacking)}")
    return library


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _line(said: object) -> str:
    return textwrap.shorten(str(said), 300) or "it says nothing"


@cache
def _machine() -> str:
    """What the compiler tunes for."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features")))
    except OSError:
        return platform.processor()
