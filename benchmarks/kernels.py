"""Compiles the kernels of routing for an H100 (sm_90), without one: registers, spills, shared memory and instructions.

python benchmarks/kernels.py             prints a table and writes results/kernels/sm_90.json
python benchmarks/kernels.py --quick     one shape and dtype; what it writes goes to build/

Takes four minutes. Needs Triton, which brings its assembler and disassembler; nothing is run. `slots` is how many
programs 132 multiprocessors hold at once by their registers, shared memory and warps.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from running import places, words
from triton.backends.compiler import GPUTarget

from capsnet.benchmarks.bench import keep
from capsnet.benchmarks.report import kernel_table, markdown
from capsnet.benchmarks.routing import PAPER
from capsnet.benchmarks.ways import Shape
from capsnet.hardware import environment
from capsnet.ops import triton as kernels

TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
NAMES = tuple(name for name, found in vars(kernels).items() if getattr(found, "do_not_specialize", None))
OPTIONAL = ("parent_sum", "prior", "grad", "grad_parent_sum")
SHARED, WARPS, PROGRAMS = 227 << 10, 64, 32  # of a multiprocessor
RESERVED = 1 << 10  # bytes of shared memory that each program takes besides its own
GRANULE = 256  # registers that a warp is given at once
ITERATIONS = 3
DTYPES = (torch.bfloat16, torch.float32, torch.float64)  # the others of the shapes in the first two alone
SHAPES = (
    *(Shape(1, 1152, 10), Shape(8, 1152, 1000), Shape(128, 7, 3, 5, 8), Shape(128, 1152, 10, 16, 16)),
    *(Shape(128, 1152, 10, 16, 32), Shape(2, 1153, 3, 33, 33)),
)


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
    """A launch that did not happen, with what was compiled for it."""

    kernel: str
    given: tuple[str, ...]  # of the tensors that a kernel may do without, those that it got
    programs: int
    compiled: Any


class Compiler:
    """In a kernel's place, compiles what is launched, and keeps it."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches, self.__name__ = kernel, launches, kernel.__name__

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        """What a launch on this grid calls."""

        def compile_instead(*args: Any, **options: Any) -> None:
            compiled = self.kernel.warmup(*args, grid=grid, **options)
            named = zip(self.kernel.arg_names, args, strict=False)
            given = tuple(name for name, of in named if name in OPTIONAL and of is not None)
            self.launches.append(Launch(self.__name__.strip("_"), given, grid[0], compiled))

        return compile_instead


@contextmanager
def compiling() -> Iterator[list[Launch]]:
    """Have `kernels` compile for an H100 what it would launch: the launches, as they come.

    Triton keeps the target, so the process can launch no kernel afterwards.
    """
    launches: list[Launch] = []
    found = {name: getattr(kernels, name) for name in NAMES}
    triton.runtime.driver.set_active(Target())
    vars(kernels).update({name: Compiler(kernel, launches) for name, kernel in found.items()})
    try:
        yield launches
    finally:
        vars(kernels).update(found)


def route_and_back(shape: Shape, dtype: torch.dtype, prior: bool, iterations: int = ITERATIONS) -> None:
    """Every step of routing forward and backward with `kernels.Triton`."""
    b, i, j, d, e = shape
    exact = torch.promote_types(dtype, torch.float32)
    children, weight = torch.zeros(b, i, d, dtype=dtype), torch.zeros(i, j, d, e, dtype=dtype)
    start = torch.zeros(i, j, dtype=exact) if prior else None
    passes = kernels.Triton(children, weight, start, False)
    sums, agreed = torch.zeros(iterations, b, j, e, dtype=exact), None
    for iteration in range(iterations):
        parents, agreed = passes.forward_step(iteration, agreed, torch.zeros(j, e, dtype=exact), sums)
    before, to_sums = passes.backward_start(sums, parents)
    to_agreed = None
    for iteration in range(iterations - 1, 0, -1):
        to_agreed = passes.backward_step(iteration, before, to_agreed, sums, to_sums)
    passes.input_gradients(before, to_sums, 0, True, (True, True, True))


def measure(compiled: Any) -> dict[str, int]:
    """Registers and bytes of spills of a thread, bytes of shared memory and warps of a program, and slots."""
    usage = _dump(compiled, "--dump-resource-usage")
    registers, stack = (int(n) for n in re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())  # type: ignore[union-attr]
    warps, shared = compiled.metadata.num_warps, compiled.metadata.shared
    by_registers = kernels.REGISTERS // (-(-registers * 32 // GRANULE) * GRANULE * warps)
    slots = kernels.MULTIPROCESSORS * min(by_registers, SHARED // (shared + RESERVED), WARPS // warps, PROGRAMS)
    return {"registers": registers, "spills": stack, "shared": shared, "warps": warps, "slots": slots}


def instructions(compiled: Any) -> int:
    """Instructions of a program."""
    return len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s", _dump(compiled, "-sass"), re.MULTILINE))


def _dump(compiled: Any, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        return subprocess.run([TOOL, option, file.name], capture_output=True, text=True, check=True).stdout


def launched(shape: Shape, dtype: torch.dtype, prior: bool) -> Iterator[tuple[dict[str, Any], Any]]:
    """What each kernel takes at a shape, and its program; what is launched twice is there once."""
    with compiling() as launches:
        route_and_back(shape, dtype, prior)
    about = {"shape": list(shape), "dtype": str(dtype).removeprefix("torch."), "prior": prior}
    for (kernel, given, programs, _), compiled in {
        (launch.kernel, launch.given, launch.programs, launch.compiled.hash): launch.compiled for launch in launches
    }.items():
        yield about | {"kernel": kernel, "given": list(given), "programs": programs} | measure(compiled), compiled


def main() -> None:
    """Compile everything, print what the paper's shape takes, and write all of it."""
    asked = words(__doc__).parse_args()
    papers = product((PAPER,), DTYPES, (False, True))
    others = product(SHAPES, DTYPES[:2], (False,))
    cases = [(PAPER, DTYPES[0], False)] if asked.quick else [*papers, *others]
    folder, _ = places("kernels", asked.quick, asked.folder)
    about = {"environment": environment(torch.device("cpu")), "quick": asked.quick, "triton": triton.__version__}
    rows = [row | {"instructions": instructions(compiled)} for case in cases for row, compiled in launched(*case)]
    results = about | {"iterations": ITERATIONS, "rows": rows}
    print(markdown(kernel_table(results)))
    keep(folder / "kernels" / "sm_90.json", results)
    print(folder / "kernels" / "sm_90.json")


if __name__ == "__main__":
    main()
