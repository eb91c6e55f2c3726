"""Routing's three passes on a processor, compiled for it from `native.c` by the machine's C compiler.

The compiler is asked once for each dtype and size of the capsules; what it makes is kept in the user's cache. Without
a compiler, or for what it is not worth, `streaming` does the same in plain PyTorch.
"""

import ctypes
import hashlib
import logging
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from shutil import which
from time import perf_counter
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import pad

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
TUNED = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
WIDEST = 64  # dimensions of a capsule, of which a matrix fits the registers

log = logging.getLogger(__name__)


class Shape(ctypes.Structure):
    """How many of everything there are, and which children a call is for."""

    _fields_ = [(name, ctypes.c_long) for name in ("children", "parents", "blocks", "leaky", "first", "last")]


class Passes:
    """The passes over children [b, i, d] by weight [i, j, d, e], with logits that start at prior [i, j]."""

    def __init__(self, children: Tensor, weight: Tensor, prior: Tensor | None, leaky: bool) -> None:
        exact = torch.promote_types(children.dtype, torch.float32)
        self.weight = weight.to(exact).contiguous()
        self.prior = None if prior is None else prior.to(exact).contiguous()
        library = compiled(exact, *weight.shape[2:])
        self.library, self.lanes, self.images = library, library.lanes(), len(children)
        self.x = self._in_lanes(children.to(exact))  # [blocks, i, d, lanes]
        self.leaky = leaky

    def weighted_sum(self, agreed: Tensor) -> Tensor:
        """See `streaming.Passes.weighted_sum`."""
        return self._sum(agreed, None)

    def pull(self, agreed: Tensor, grad: Tensor) -> Tensor:
        """See `streaming.Passes.pull`."""
        return self._sum(agreed, grad)

    def gradients(self, agreed: Tensor, grad: Tensor, through: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `streaming.Passes.gradients`."""
        agreed, grad = (torch.stack([self._in_lanes(one) for one in many]) for many in (agreed, grad))
        grad_x, grad_weight = torch.empty_like(self.x), torch.empty_like(self.weight)
        grad_prior = None if self.prior is None else torch.empty_like(self.prior)

        def some(shape: Shape, _: int, scratch: Tensor) -> None:
            tensors = self.x, self.weight, agreed, self.prior, grad, grad_x, grad_weight, grad_prior, scratch
            self.library.gradients(
                ctypes.byref(shape), ctypes.c_long(len(grad)), ctypes.c_long(through), *map(_address, tensors)
            )

        self._share_out(some)
        return self._in_rows(grad_x), grad_weight, grad_prior

    def _sum(self, agreed: Tensor, grad: Tensor | None) -> Tensor:
        agreed = self._in_lanes(agreed)  # [blocks, j, e, lanes]
        grad = None if grad is None else self._in_lanes(grad)
        sums = agreed.new_zeros(_workers(self.x.shape[1]), *agreed.shape)

        def some(shape: Shape, worker: int, scratch: Tensor) -> None:
            tensors = self.x, self.weight, agreed, self.prior, grad, sums[worker], scratch
            self.library.weighted_sum(ctypes.byref(shape), *map(_address, tensors))

        self._share_out(some)
        return self._in_rows(sums.sum(dim=0))  # over workers

    def _share_out(self, some: Callable[[Shape, int, Tensor], None]) -> None:
        """Give each worker an equal part of the children."""
        blocks, children = self.x.shape[:2]
        shape = Shape(children, self.weight.shape[1], blocks, self.leaky)
        workers = _workers(children)
        scratch = self.x.new_empty(workers, self.library.scratch_size(ctypes.byref(shape)) * self.lanes)
        ends = [children * k // workers for k in range(workers + 1)]
        parts = [Shape(children, shape.parents, blocks, self.leaky, *ends[k : k + 2]) for k in range(workers)]
        if workers == 1:
            some(parts[0], 0, scratch[0])
        else:
            list(_pool(workers).map(some, parts, range(workers), scratch))

    def _in_lanes(self, rows: Tensor) -> Tensor:
        """Images side by side, with zeros to fill the last block: [b, n, m] → [blocks, n, m, lanes]."""
        rows = pad(rows, (0, 0, 0, 0, 0, -len(rows) % self.lanes))
        return rearrange(rows, "(blocks lanes) n m -> blocks n m lanes", lanes=self.lanes).contiguous()

    def _in_rows(self, blocks: Tensor) -> Tensor:
        """The images again: [blocks, n, m, lanes] → [b, n, m]."""
        return rearrange(blocks, "blocks n m lanes -> (blocks lanes) n m")[: self.images]


def lacking(children: Tensor, weight: Tensor) -> str:
    """What keeps compiled code from routing these tensors, in words; nothing where it can."""
    d, e = weight.shape[2:]
    if children.device.type != "cpu":
        return f"it takes the processor, and the children are on {children.device.type}"
    if not (children.numel() and weight.numel()):
        return "there is nothing to route"
    if max(d, e) > WIDEST:
        return f"capsules of {d} and {e} dimensions are wider than {WIDEST}"
    found = compiled(torch.promote_types(children.dtype, torch.float32), d, e)
    return "" if found is not None else "there is no C compiler that works"


@cache
def compiled(exact: torch.dtype, d: int, e: int) -> Any:
    """The library for capsules of d and e dimensions, or None where no compiler can make it."""
    compiler = os.environ.get("CC") or which("cc")
    if compiler is None:
        return None
    real = {torch.float32: ("-DREAL=float", "-DSINGLE"), torch.float64: ("-DREAL=double",)}[exact]
    command = [compiler, *FLAGS, TUNED, *real, f"-DD={d}", f"-DE={e}", str(SOURCE), "-lm"]
    path = _cache() / f"{hashlib.sha256(repr((command, SOURCE.read_text(), _machine())).encode()).hexdigest()[:16]}.so"
    if not path.is_file() and not _compile(command, path):
        return None
    library = ctypes.CDLL(str(path))
    library.scratch_size.restype = ctypes.c_long
    return library


def _compile(command: list[str], path: Path) -> bool:
    start = perf_counter()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            subprocess.run([*command, "-o", str(made)], check=True, capture_output=True, text=True)
            made.replace(path)  # whole or not at all, also beside another process
    except (OSError, subprocess.CalledProcessError) as error:
        log.warning("routing is not compiled and runs in plain PyTorch: %s", getattr(error, "stderr", None) or error)
        return False
    log.info("compiled routing for this processor in %.1f s, once: %s", perf_counter() - start, path)
    return True


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "capsnet" / "native"


@cache
def _machine() -> str:
    """What the compiler tunes for."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features")))
    except OSError:
        return platform.processor()


def _workers(children: int) -> int:
    return min(torch.get_num_threads(), children)


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, "routing")


def _address(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
