"""The hardware and software of this machine, the precision that suits it, its random state and its memory."""

import ctypes
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from shutil import which
from typing import Any

import torch

from capsnet.errors import InputError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


_chosen: list[torch.device] = []  # by `chosen_device`


@contextmanager
def chosen_device(kind: str) -> Iterator[None]:
    """Make `default_device` return the CPU or the GPU ("cuda") for a while, as the command line's --device asks.

    Raises InputError for "cuda" where there is no GPU.
    """
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch finds no GPU on this machine; leave --device out to run on the CPU")
    _chosen.append(torch.device(kind))
    try:
        yield
    finally:
        _chosen.pop()


def default_device() -> torch.device:
    """Return the device that was chosen, else the accelerator of this machine, or the CPU if it has none."""
    if _chosen:
        return _chosen[-1]
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def device_count() -> int:
    """Return the number of accelerators of this machine; without any, the number of cores."""
    return cores() if default_device().type == "cpu" else torch.accelerator.device_count()


def cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fast_bf16(device: torch.device) -> bool:
    """Whether the device has instructions that multiply bf16 matrices faster than float32 ones."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and any(flag in _cpu()["flags"] for flag in ("avx512_bf16", "amx_bf16"))


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step of training; without glibc, do nothing.

    By default it maps and unmaps every large buffer, and the page faults take a fifth of a training step.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the generators of the CPU and of a device, by default the accelerator, for a while; then restore them."""
    device = device or default_device()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.default_generators[device.index or 0].manual_seed(seed)
        yield


def environment(device: torch.device) -> dict[str, Any]:
    """Return what a measurement depends on: hardware, versions, the commit of this package and the command."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu()["model name"],
        "cores": cores(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "capsnet": version("capsnet"),
        "commit": _commit(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _commit() -> str | None:
    """The commit of the checkout that contains this package, if any, with "-dirty" if the package was changed."""
    if which("git") is None:
        return None
    git = ["git", "-C", str(Path(__file__).parent)]
    ours = subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=False)
    if ours.returncode:  # installed inside another project's checkout
        return None
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "--", "."], capture_output=True, text=True, check=True)
    return f"{commit}-dirty" if changed.stdout.strip() else commit


@cache
def _cpu() -> dict[str, str]:
    """The lines of the first CPU in /proc/cpuinfo, or what Python knows if there is no such file."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except FileNotFoundError:
        first = ""
    lines = (line.partition(":") for line in first.splitlines())
    known = {"model name": platform.processor() or platform.machine(), "flags": ""}
    return known | {name.strip(): value.strip() for name, _, value in lines}
