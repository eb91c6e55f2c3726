"""Compiles the kernels of routing for an H100 (sm_90), without one: registers, spills, shared memory and instructions.

python benchmarks/kernels.py             prints a table and writes results/kernels/sm_90.json
python benchmarks/kernels.py --quick     one shape; what it writes goes to build/

Takes a minute. Needs Triton, which brings its assembler and disassembler; nothing is run. `slots` is how many programs
132 multiprocessors hold at once by their registers, shared memory, warps and programs.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from running import places, words
from triton.backends.compiler import GPUTarget

from capsnet.benchmarks.bench import keep
from capsnet.hardware import environment
from capsnet.ops import kernels

TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
NAMES = tuple(name for name, found in vars(kernels).items() if getattr(found, "do_not_specialize", None))
MULTIPROCESSORS = 132
REGISTERS, SHARED, WARPS, PROGRAMS = 65_536, 227 << 10, 64, 32  # of a multiprocessor
RESERVED = 1 << 10  # bytes of shared memory that each program takes besides its own
GRANULE = 256  # registers that a warp is given at once
ITERATIONS = 3
DTYPES = (torch.bfloat16, torch.float32, torch.float64)
PAPER = (128, 1152, 10, 8, 16)
SHAPES = (PAPER, (1, 1152, 10, 8, 16), (8, 1152, 1000, 8, 16), (128, 7, 3, 5, 8), (2, 1153, 3, 33, 33))


class Target:
    """What Triton asks a driver while it compiles, answered for an H100."""

    def get_current_target(self) -> GPUTarget:
        """The instruction set: sm_90."""
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        """The only device."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Its default stream."""
        return 0


@dataclass(frozen=True)
class Launch:
    """A kernel in place of whose launch there is the program that would have run."""

    kernel: str
    programs: int
    compiled: Any


class Compiled:
    """In a kernel's place, compiles what is launched, and keeps it."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches, self.__name__ = kernel, launches, kernel.__name__

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        """What a launch on this grid calls."""

        def compile_instead(*args: Any, **options: Any) -> None:
            compiled = self.kernel.warmup(*args, grid=grid, **options)
            self.launches.append(Launch(self.__name__.strip("_"), grid[0], compiled))

        return compile_instead


@contextmanager
def compiling() -> Iterator[list[Launch]]:
    """Have `kernels` compile for an H100 what it would launch: the launches, as they come."""
    launches: list[Launch] = []
    found = {name: getattr(kernels, name) for name in NAMES}
    triton.runtime.driver.set_active(Target())
    vars(kernels).update({name: Compiled(kernel, launches) for name, kernel in found.items()})
    try:
        yield launches
    finally:
        vars(kernels).update(found)


def route_and_back(shape: tuple[int, ...], dtype: torch.dtype, prior: bool, iterations: int = ITERATIONS) -> None:
    """Every step of routing forward and backward with `kernels.Passes`."""
    b, i, j, d, e = shape
    exact = torch.promote_types(dtype, torch.float32)
    children, weight = torch.zeros(b, i, d, dtype=dtype), torch.zeros(i, j, d, e, dtype=dtype)
    start = torch.zeros(i, j, dtype=exact) if prior else None
    passes = kernels.Passes(children, weight, start, False)
    sums, agreed = torch.zeros(iterations, b, j, e, dtype=exact), None
    for iteration in range(iterations):
        parents, agreed = passes.forward_step(iteration, agreed, torch.zeros(j, e, dtype=exact), sums)
    before, to_sums = passes.backward_start(sums, parents)
    to_agreed = None
    for iteration in range(iterations - 1, 0, -1):
        to_agreed = passes.backward_step(iteration, before, to_agreed, sums, to_sums)
    passes.input_gradients(before, to_sums, 0, True, (True, True, True))


def measure(compiled: Any) -> dict[str, int]:
    """Registers and bytes of spills of a thread, bytes of shared memory and warps of a program, instructions, slots."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([TOOL, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("--dump-resource-usage", "-sass")
        )
    registers, stack = (int(n) for n in re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())  # type: ignore[union-attr]
    instructions = len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s", code, re.MULTILINE))
    warps, shared = compiled.metadata.num_warps, compiled.metadata.shared
    by_registers = REGISTERS // (-(-registers * 32 // GRANULE) * GRANULE * warps)
    each = min(by_registers, SHARED // (shared + RESERVED), WARPS // warps, PROGRAMS)
    found = {"registers": registers, "spills": stack, "shared": shared, "warps": warps, "instructions": instructions}
    return found | {"slots": MULTIPROCESSORS * each}


def rows(shapes: tuple[tuple[int, ...], ...]) -> Iterator[dict[str, Any]]:
    """What each kernel takes at each of the shapes, with and without a prior, those of one program once."""
    for shape in shapes:
        for dtype in DTYPES:
            seen = set()
            for prior in (False, True):
                with compiling() as launches:
                    route_and_back(shape, dtype, prior)
                for launch in launches:
                    key = launch.kernel, launch.programs, launch.compiled.hash
                    if key not in seen:
                        seen.add(key)
                        about = {"shape": list(shape), "dtype": str(dtype).removeprefix("torch."), "prior": prior}
                        counts = {"kernel": launch.kernel, "programs": launch.programs}
                        yield about | counts | measure(launch.compiled)
