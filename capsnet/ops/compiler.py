"""C code compiled for this machine by its C compiler, and cached in the user's cache folder.

The name of a cached library has the SHA-256 of its content. It is verified before the library is loaded, because the
loader kills the process if the file is truncated.
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

SECONDS = 60  # after which the compiler is assumed to hang; it takes 1 to 3 on an idle core
log = logging.getLogger(__name__)

FLAGS = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
TUNED = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
TRACERS = (torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FAKE)
ALIGNMENT = 64  # bytes, that of PyTorch's own memory


class CompilerError(Exception):
    """Why the machine's C compiler makes no library, in one line."""


def library_for_this_cpu(
    source: Path, defines: Sequence[str], functions: Sequence[str], purpose: str
) -> ctypes.CDLL | None:
    """The library of a source file, tuned for this CPU; None, with one warning, if it cannot be compiled."""
    try:
        return shared_library(source, [*FLAGS, TUNED, *defines], functions)
    except CompilerError as error:
        _warn_once(f"{purpose} is not compiled and runs in plain PyTorch: {error}")
        return None


@cache
def _warn_once(line: str) -> None:
    """Log a warning once, even if several libraries cannot be compiled for the same reason."""
    log.warning(line)


def is_readable(tensor: Tensor) -> bool:
    """Whether C can read a tensor: its numbers are in a CPU's memory, and no tracer of PyTorch must record its use."""
    traced = any(torch._C._get_dispatch_mode(key) is not None for key in TRACERS)
    plain = type(tensor) in (Tensor, Parameter) and tensor.device.type == "cpu"
    return plain and not traced and torch._C._has_storage(tensor)


def aligned(tensor: Tensor) -> Tensor:
    """The same numbers, contiguous and aligned for vector registers."""
    tensor = tensor.resolve_neg().contiguous()
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    """The address of a tensor's numbers, or NULL."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def shared_library(source: Path, options: Sequence[str], functions: Sequence[str]) -> ctypes.CDLL:
    """The library that the C compiler makes of a source file: from the cache, or compiled and cached.

    An unusable cache is ignored. Raises CompilerError if there is no compiler, or if it does not make a library with
    these functions within SECONDS.
    """
    command = [*_compiler(), *options, str(source), "-lm"]
    name = hashlib.sha256(repr((command, source.read_text(), _machine())).encode()).hexdigest()[:16]
    for path in _cached(name):
        try:
            return _load(path, functions)
        except OSError as error:  # for example, a C library that it needs is gone
            log.info("%s is compiled again: %s", path, error)
    try:
        with tempfile.TemporaryDirectory() as folder:
            compiled = _compile(command, Path(folder) / f"{name}.so")
            try:
                library = _load(compiled, functions)
            except OSError as error:
                reason = str(error).replace(str(compiled), "its library")
                raise CompilerError(f"{command[0]} does not work: {_line(reason)}") from error
            _add_to_cache(compiled)
            return library
    except OSError as error:  # the temporary folder cannot be used
        raise CompilerError(_line(error)) from error


def _compiler() -> list[str]:
    """The command in $CC, or else cc."""
    variable = os.environ.get("CC", "")
    try:
        command = shlex.split(variable)
    except ValueError as error:
        raise CompilerError(f"CC={variable!r} is not a command: {error}") from error
    if not command and (found := which("cc")):
        return [found]
    if not command:
        raise CompilerError("there is no C compiler: install one, or set CC")
    return command


def _compile(command: Sequence[str], path: Path) -> Path:
    """Run the compiler, which writes a library at this path."""
    start = perf_counter()
    try:
        process = subprocess.Popen(
            [*command, "-o", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            process_group=0,  # so that the processes that the compiler has started end with it
        )
    except (OSError, ValueError) as error:  # there is no such program, or it cannot be run
        raise CompilerError(f"{command[0]} cannot be run: {_line(error)}") from error
    with process:
        try:
            _, stderr = process.communicate(timeout=SECONDS)
        except BaseException as error:  # a Ctrl-C does not reach the compiler's own process group
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise CompilerError(f"{command[0]} was not done after {SECONDS} s") from error
    if process.returncode:
        raise CompilerError(f"{command[0]} ended with status {process.returncode}: {_line(stderr)}")
    if not path.is_file():
        raise CompilerError(f"{command[0]} ended without an error and without a library: {_line(stderr)}")
    log.info("compiled %s for this CPU in %.1f s", Path(command[-2]).name, perf_counter() - start)
    return path


def _cache_folder() -> Path:
    return cache_folder() / "native"


def _cached(name: str) -> list[Path]:
    """The intact libraries of this name in the cache."""
    intact = []
    try:
        for path in _cache_folder().glob(f"{name}-*.so"):
            if path.stem == f"{name}-{_sha256(path)}":
                intact.append(path)
            else:
                log.info("%s is damaged and is compiled again", path)
                path.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        log.info("the cached libraries cannot be used: %s", error)
    return intact


def _add_to_cache(library: Path) -> None:
    """Copy a library to the cache, if the cache can be used."""
    try:
        _copy(library, _cache_folder())
    except (OSError, RuntimeError) as error:  # it is full, read-only or a file, or there is no home folder
        log.info("the compiled library cannot be cached: %s", error)


def _copy(library: Path, folder: Path) -> None:
    """Copy a library atomically and durably, also while another process does the same."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{library.stem}-{_sha256(library)}.so"
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        copy = Path(temporary) / path.name
        with copy.open("wb") as file:
            file.write(library.read_bytes())
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
    if missing := [name for name in functions if not hasattr(library, name)]:
        raise OSError(f"{path} has no function {', '.join(missing)}")
    return library


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _line(message: object) -> str:
    return textwrap.shorten(str(message), 300) or "without a message"


@cache
def _machine() -> str:
    """The CPU that the compiler tunes for."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features")))
    except OSError:
        return platform.processor()
