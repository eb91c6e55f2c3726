"""Compiles the kernels of routing for an H100 (sm_90), without one: registers, spills, shared memory and instructions.

python benchmarks/kernels.py             prints a table and writes results/kernels/sm_90.json
python benchmarks/kernels.py --quick     one shape and dtype; writes to build/

Takes four minutes. Needs Triton, which includes an assembler and a disassembler; no kernel is run. `slots` is how many
programs 132 multiprocessors hold at once by their registers, shared memory and warps.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from capsnet.hardware import environment
from goals import Results
from implementations import PAPER, Shape
from measuring import dtype_name
from report import Benchmark, Table, parser, run

if TYPE_CHECKING:
    from triton.backends.compiler import GPUTarget

# Triton is imported where it is needed: benchmarks/tables.py takes the table from here also where it is not installed.
OPTIONAL = ("parent_sum", "prior", "grad", "grad_parent_sum")
SHARED, WARPS, PROGRAMS = 227 << 10, 64, 32  # of a multiprocessor
RESERVED = 1 << 10  # bytes of shared memory that each program takes besides its own
GRANULE = 256  # registers: a warp gets a multiple of them
ITERATIONS = 3
DTYPES = (torch.bfloat16, torch.float32, torch.float64)  # for the paper's shape; the first two for SHAPES
SHAPES = (
    *(Shape(1, 1152, 10), Shape(8, 1152, 1000), Shape(128, 7, 3, 5, 8), Shape(128, 1152, 10, 16, 16)),
    *(Shape(128, 1152, 10, 16, 32), Shape(2, 1153, 3, 33, 33)),
)


class Target:
    """A driver that answers what Triton asks while it compiles, as for an H100."""

    def get_current_target(self) -> GPUTarget:
        """Return the instruction set, sm_90."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        """Return the only device."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Return its default stream."""
        return 0


@dataclass(frozen=True)
class Launch:
    """A launch that was compiled and not made."""

    kernel: str
    given: tuple[str, ...]  # the optional tensors that the kernel got
    programs: int
    compiled: Any


class Compiler:
    """Replaces a kernel: compiles what is launched, and keeps it."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches, self.__name__ = kernel, launches, kernel.__name__

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        """Return what a launch on this grid calls."""

        def compile_instead(*args: Any, **options: Any) -> None:
            compiled = self.kernel.warmup(*args, grid=grid, **options)
            named = zip(self.kernel.arg_names, args, strict=False)
            given = tuple(name for name, of in named if name in OPTIONAL and of is not None)
            self.launches.append(Launch(self.__name__.strip("_"), given, grid[0], compiled))

        return compile_instead


@contextmanager
def compiling() -> Iterator[list[Launch]]:
    """Compile for an H100 what `capsnet.ops.triton` would launch, and append each launch to the list that is given.

    Triton keeps the target, so that the process can launch no kernel afterwards.
    """
    import triton

    from capsnet.ops import triton as kernels

    launches: list[Launch] = []
    found = {name: kernel for name, kernel in vars(kernels).items() if getattr(kernel, "do_not_specialize", None)}
    triton.runtime.driver.set_active(Target())
    vars(kernels).update({name: Compiler(kernel, launches) for name, kernel in found.items()})
    try:
        yield launches
    finally:
        vars(kernels).update(found)


def route_and_back(shape: Shape, dtype: torch.dtype, prior: bool, iterations: int = ITERATIONS) -> None:
    """Take every step of routing forward and backward with the kernels."""
    from capsnet.ops import triton as kernels

    b, i, j, d, e = shape
    exact = torch.promote_types(dtype, torch.float32)
    children, weight = torch.zeros(b, i, d, dtype=dtype), torch.zeros(i, j, d, e, dtype=dtype)
    start = torch.zeros(i, j, dtype=exact) if prior else None
    passes = kernels.Triton(children, weight, start, False)
    sums, parent_sum = torch.zeros(iterations, b, j, e, dtype=exact), None
    for iteration in range(iterations):
        parents, parent_sum = passes.forward_step(iteration, parent_sum, torch.zeros(j, e, dtype=exact), sums)
    parent_sums, grad_sums = passes.backward_start(sums, parents)
    grad_parent_sum = None
    for iteration in range(iterations - 1, 0, -1):
        grad_parent_sum = passes.backward_step(iteration, parent_sums, grad_parent_sum, sums, grad_sums)
    passes.input_gradients(parent_sums, grad_sums, 0, True, (True, True, True))


def measure(compiled: Any) -> dict[str, int]:
    """Return a thread's registers and bytes of spills, a program's bytes of shared memory and warps, and slots."""
    from capsnet.ops import triton as kernels

    usage = _dump(compiled, "--dump-resource-usage")
    ((registers, stack),) = ((int(n) for n in found) for found in re.findall(r"REG:(\d+) STACK:(\d+)", usage))
    warps, shared = compiled.metadata.num_warps, compiled.metadata.shared
    by_registers = kernels.REGISTERS // (-(-registers * 32 // GRANULE) * GRANULE * warps)
    slots = kernels.MULTIPROCESSORS * min(by_registers, SHARED // (shared + RESERVED), WARPS // warps, PROGRAMS)
    return {"registers": registers, "spills": stack, "shared": shared, "warps": warps, "slots": slots}


def instructions(compiled: Any) -> int:
    """Return the instructions of a program."""
    return len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s", _dump(compiled, "-sass"), re.MULTILINE))


def _dump(compiled: Any, option: str) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        return subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout


def launched(shape: Shape, dtype: torch.dtype, prior: bool) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield what each kernel takes at a shape, and its program, once for several equal launches."""
    with compiling() as launches:
        route_and_back(shape, dtype, prior)
    about = {"shape": list(shape), "dtype": dtype_name(dtype), "prior": prior}
    for (kernel, given, programs, _), compiled in {
        (launch.kernel, launch.given, launch.programs, launch.compiled.hash): launch.compiled for launch in launches
    }.items():
        yield about | {"kernel": kernel, "given": list(given), "programs": programs} | measure(compiled), compiled


def measure_all(quick: bool) -> Results:
    """Compile the kernels for every shape and dtype, and return what each takes."""
    import triton

    papers, others = product((PAPER,), DTYPES, (False, True)), product(SHAPES, DTYPES[:2], (False,))
    cases = [(PAPER, DTYPES[0], False)] if quick else [*papers, *others]
    rows = [row | {"instructions": instructions(compiled)} for case in cases for row, compiled in launched(*case)]
    about = {"environment": environment(torch.device("cpu")), "triton": triton.__version__}
    return about | {"iterations": ITERATIONS, "rows": rows}


def tables(results: Results) -> list[Table]:
    """Return the table of the first shape, without a prior."""
    first = results["rows"][0]["shape"]
    rows, dtype = [], ""
    for row in results["rows"]:
        if row["shape"] == first and not row["prior"]:
            name = row["kernel"] + (f" ({', '.join(row['given'])})" if row["given"] else "")
            counts = (row[name] for name in ("registers", "spills", "instructions"))
            shared = f"{row['shared'] / 1024:.0f}"
            slots = f"{row['programs']:,} : {row['slots']:,}"
            rows.append((row["dtype"] * (row["dtype"] != dtype), name, *map(str, counts), shared, slots))
            dtype = row["dtype"]
    title = (
        f"Kernels compiled by Triton {results['triton']} for sm_90, {' · '.join(map(str, first))}: registers and "
        "spills of a thread, programs of a launch : slots of an H100; optional tensors of a kernel in brackets"
    )
    head = ("dtype", "kernel", "registers", "spilled bytes", "instructions", "shared KiB", "programs : slots")
    return [Table(title, head, rows)]


BENCHMARK = Benchmark("kernels", "Kernels", tables)


def main() -> None:
    """Compile and show what the command line asks for."""
    asked = parser(__doc__).parse_args()
    run(BENCHMARK, [measure_all(asked.quick)], asked, "sm_90")


if __name__ == "__main__":
    main()
