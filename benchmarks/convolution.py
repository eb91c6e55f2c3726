"""Times the direct and the Fourier convolution with strides on a CPU, and compares their errors.

python benchmarks/convolution.py            prints tables and writes results/convolution/<kind of machine>.json
python benchmarks/convolution.py --quick    small sizes, to see that it runs; writes to build/

Takes many minutes. `capsnet.ops.convolution` chooses between the two by a rule, which a test compares with these times.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.linalg import vector_norm

from capsnet.hardware import environment, fast_bf16, keep_freed_memory
from capsnet.ops.convolution import _fourier_pays
from capsnet.ops.fourier import fourier_conv2d
from goals import Results
from measuring import dtype_name, in_turns, machine_kind, seconds
from report import Benchmark, Table, ms_text, parser, run

CPU = torch.device("cpu")
SECONDS = 0.5  # for the rounds of one pair
ROUNDS = (5, 15)  # at least and at most
METHODS: Mapping[str, Callable[..., Tensor]] = {"direct": F.conv2d, "fourier": fourier_conv2d}
SHOWN = (16, 128)  # images: the batch sizes in the table


@dataclass(frozen=True)
class Convolution:
    """Channels, kernels, the sides of square images and kernels, and the stride."""

    channels: int
    kernels: int
    size: int
    kernel_size: int
    stride: int


SHAPES = [
    Convolution(*sizes)
    for sizes in (
        *((256, 256, 20, 9, 2), (64, 64, 20, 9, 2), (32, 32, 20, 9, 2), (128, 256, 20, 9, 2), (256, 64, 20, 9, 2)),
        *((256, 256, 24, 9, 2), (64, 64, 12, 5, 2), (256, 256, 12, 5, 1), (64, 64, 16, 5, 1), (256, 256, 14, 3, 1)),
        *((256, 256, 14, 3, 2), (64, 64, 16, 7, 1), (512, 512, 10, 5, 1), (256, 256, 32, 9, 3)),
    )
]
BATCHES = (1, 4, 8, 16, 32, 128)
ODD = (  # images, channels, kernels, size, kernel_size, stride
    *((128, 256, 256, (20, 20), (9, 9), 2), (32, 64, 64, (20, 20), (9, 9), 2), (16, 64, 64, (16, 11), (5, 5), 1)),
    *((17, 96, 80, (13, 18), (7, 6), 2), (32, 128, 128, (24, 24), (9, 9), 3)),
)


def measure(quick: bool) -> Results:
    """Measure milliseconds and errors of both methods over shapes, dtypes and batch sizes."""
    keep_freed_memory()
    dtypes = [torch.float32, *([torch.bfloat16] if fast_bf16(CPU) else [])]
    shapes, batches = (SHAPES[6:7], (1, 16)) if quick else (SHAPES, BATCHES)
    rows = [
        timed(shape, images, dtype, training)
        for shape in shapes
        for dtype in dtypes
        for images in batches
        for training in (True, False)
    ]
    errors = [errors_of(*odd, dtype) for odd in (ODD[2:3] if quick else ODD) for dtype in dtypes]
    return {"environment": environment(CPU), "kind": machine_kind(CPU), "rows": rows, "errors": errors}


def timed(shape: Convolution, n: int, dtype: torch.dtype, training: bool) -> Results:
    """Return the milliseconds of both methods, medians over the same rounds, and the method that is chosen.

    Images and weights are channels-last, as in a network that trains. bf16 is by autocast.
    """
    images = torch.rand(n, shape.channels, shape.size, shape.size).to(dtype)
    weight = 0.01 * torch.randn(shape.kernels, shape.channels, shape.kernel_size, shape.kernel_size)
    images, weight = (
        tensor.contiguous(memory_format=torch.channels_last).requires_grad_(training) for tensor in (images, weight)
    )
    calls = {
        name: partial(seconds, partial(call, method, images, weight, shape.stride), CPU)
        for name, method in METHODS.items()
    }
    both = sum(of[-1] for of in in_turns(calls, 1).values())
    took = in_turns(calls, min(max(round(SECONDS / both), ROUNDS[0]), ROUNDS[1]))
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        chosen = "fourier" if _fourier_pays(images, weight, shape.stride) else "direct"
    about = {"images": n, **asdict(shape), "dtype": dtype_name(dtype), "training": training}
    return about | {"ms": {name: 1e3 * median(of) for name, of in took.items()}, "chosen": chosen}


def call(method: Callable[..., Tensor], images: Tensor, weight: Tensor, stride: int) -> None:
    """Compute a convolution, and its gradients if images and weight require them."""
    training = images.requires_grad
    images.grad = weight.grad = None
    half = images.dtype == torch.bfloat16
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16, enabled=half):
        result = method(images, weight, None, stride)
    if training:
        result.backward(torch.ones_like(result))


def errors_of(
    n: int,
    channels: int,
    kernels: int,
    size: tuple[int, int],
    kernel_size: tuple[int, int],
    stride: int,
    dtype: torch.dtype,
) -> Results:
    """Return the relative errors of both methods in a dtype, compared with the direct one in float64.

    The weight is in float32 for both methods; its rounding by autocast counts as an error of both.
    """
    make = torch.Generator().manual_seed(0)
    outputs = ((of - kernel) // stride + 1 for of, kernel in zip(size, kernel_size, strict=True))
    sizes = ((n, channels, *size), (kernels, channels, *kernel_size), (n, kernels, *outputs))
    images, weight, grad = (torch.randn(shape, generator=make) for shape in sizes)
    images, grad = images.relu().to(dtype), grad.to(dtype)
    weight *= weight[0].numel() ** -0.5
    exact = _with_gradients(F.conv2d, images.double(), weight.double(), grad.double(), stride)
    found: Results = {}
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        for name, method in METHODS.items():
            given = [tensor.contiguous(memory_format=torch.channels_last) for tensor in (images, weight)]
            made = _with_gradients(method, given[0], given[1], grad, stride)
            found[name] = {what: _error(made[what], exact[what]) for what in exact}
    about = {"images": n, "channels": channels, "kernels": kernels, "size": size, "kernel_size": kernel_size}
    return about | {"stride": stride, "dtype": dtype_name(dtype), **found}


def _with_gradients(
    method: Callable[..., Tensor], images: Tensor, weight: Tensor, grad: Tensor, stride: int
) -> dict[str, Tensor]:
    images.requires_grad_(), weight.requires_grad_()
    values = method(images, weight, None, stride)
    to_images, to_weight = torch.autograd.grad(values, (images, weight), grad.to(values.dtype))
    return {"values": values.detach(), "images": to_images, "weight": to_weight}


def _error(found: Tensor, exact: Tensor) -> float:
    return float(vector_norm(found.double() - exact) / vector_norm(exact))


def tables(results: Results) -> list[Table]:
    """Return the tables of times and of errors."""
    return [_time_table(results), _error_table(results)]


def _time_table(results: Results) -> Table:
    cells: dict[tuple[str, str], tuple[str, ...]] = {}
    for row in results["rows"]:
        if row["images"] in SHOWN and row["training"]:
            key, ms = (_shape(row), row["dtype"]), row["ms"]
            cells[key] = (*cells.get(key, ()), ms_text(ms["direct"]), ms_text(ms["fourier"]), row["chosen"])
    sizes = [size for size in SHOWN if any(row["images"] == size for row in results["rows"])]
    head = ("shape", "dtype", *(f"{name}, {size}" for size in sizes for name in ("direct", "Fourier", "chosen")))
    title = (
        "Time of the direct and the Fourier convolution, forward and backward, in ms, and the one that is chosen, by "
        "the number of images; a shape is channels → kernels, image / kernel / stride"
    )
    return Table(title, head, [(*key, *of) for key, of in cells.items()])


def _error_table(results: Results) -> Table:
    rows = []
    for one in results["errors"]:
        direct, fourier = one["direct"], one["fourier"]
        ratios = [f"{fourier[name] / direct[name]:.2f} x ({direct[name]:.1e})" for name in direct]
        rows.append((f"{one['images']} x {_shape(one)}", one["dtype"], *ratios))
    title = (
        "Error of the Fourier convolution as a multiple of the direct one's, with the direct one's relative error in "
        "brackets; both compared with float64, root mean square"
    )
    return Table(title, ("shape", "dtype", "values", "gradient for images", "gradient for the weight"), rows)


def _shape(row: dict[str, Any]) -> str:
    sizes = ("size", "kernel_size")
    image, kernel = ("x".join(map(str, of)) if isinstance(of := row[name], list) else str(of) for name in sizes)
    return f"{row['channels']} → {row['kernels']}, {image} / {kernel} / {row['stride']}"


BENCHMARK = Benchmark("convolution", "Direct and Fourier convolution", tables)


def main() -> None:
    """Measure and show what the command line asks for."""
    asked = parser(__doc__).parse_args()
    run(BENCHMARK, [measure(asked.quick)], asked, machine_kind(CPU))


if __name__ == "__main__":
    main()
