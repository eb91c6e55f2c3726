"""Times the strided convolution directly and by Fourier transform on a CPU, and compares their errors.

python benchmarks/convolution.py            prints tables and writes results/convolution/<kind of machine>.json
python benchmarks/convolution.py --quick    small sizes, for a look; what it writes goes to build/

Takes many minutes. `capsnet.ops.convolution` chooses between the two by a rule, which a test holds to these figures.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from running import places, words
from torch import Tensor
from torch.linalg import vector_norm

from capsnet.benchmarks.bench import keep, show
from capsnet.benchmarks.measuring import in_turns, machine_kind, seconds
from capsnet.hardware import environment, fast_bf16, keep_freed_memory
from capsnet.ops.convolution import _fourier_pays
from capsnet.ops.fourier import fourier_conv2d

CPU = torch.device("cpu")
SECONDS = 0.5  # for the rounds of one pair
ROUNDS = (5, 15)  # at least and at most
WAYS: Mapping[str, Callable[..., Tensor]] = {"direct": F.conv2d, "fourier": fourier_conv2d}


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


def measure(quick: bool) -> dict[str, Any]:
    """The milliseconds of both ways over the shapes, dtypes and batches, and their errors."""
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
    results = {"environment": environment(CPU), "kind": machine_kind(CPU), "rows": rows, "errors": errors}
    return results | {"quick": quick}


def timed(shape: Convolution, n: int, dtype: torch.dtype, training: bool) -> dict[str, Any]:
    """Milliseconds of both ways, each the median over rounds in which both have their turn, and which is chosen.

    Images and weights have their channels last in memory, as those of a network that trains. bf16 is by autocast.
    """
    images = torch.rand(n, shape.channels, shape.size, shape.size).to(dtype)
    weight = 0.01 * torch.randn(shape.kernels, shape.channels, shape.kernel_size, shape.kernel_size)
    images, weight = (
        tensor.contiguous(memory_format=torch.channels_last).requires_grad_(training) for tensor in (images, weight)
    )
    calls = {
        name: partial(seconds, partial(call, way, images, weight, shape.stride), CPU) for name, way in WAYS.items()
    }
    both = sum(of[-1] for of in in_turns(calls, 1).values())
    took = in_turns(calls, min(max(round(SECONDS / both), ROUNDS[0]), ROUNDS[1]))
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        chosen = "fourier" if _fourier_pays(images, weight, shape.stride) else "direct"
    about = {"images": n, **asdict(shape), "dtype": _name(dtype), "training": training}
    return about | {"ms": {name: 1e3 * median(of) for name, of in took.items()}, "chosen": chosen}


def call(way: Callable[..., Tensor], images: Tensor, weight: Tensor, stride: int) -> None:
    """A convolution, and its gradients if images and weight want them."""
    training = images.requires_grad
    images.grad = weight.grad = None
    half = images.dtype == torch.bfloat16
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16, enabled=half):
        result = way(images, weight, None, stride)
    if training:
        result.backward(torch.ones_like(result))


def errors_of(
    n: int, channels: int, kernels: int, size: tuple[int, int], kernel_size: tuple[int, int], stride: int, dtype: Any
) -> dict[str, Any]:
    """The relative errors of both ways in a dtype against the direct one in float64, of the same images [n, c, h, w].

    The weight is in float32 for both; that autocast rounds it counts as an error of both.
    """
    make = torch.Generator().manual_seed(0)
    outputs = ((of - kernel) // stride + 1 for of, kernel in zip(size, kernel_size, strict=True))
    sizes = ((n, channels, *size), (kernels, channels, *kernel_size), (n, kernels, *outputs))
    images, weight, grad = (torch.randn(shape, generator=make) for shape in sizes)
    images, grad = images.relu().to(dtype), grad.to(dtype)
    weight *= weight[0].numel() ** -0.5
    exact = _with_gradients(F.conv2d, images.double(), weight.double(), grad.double(), stride)
    found: dict[str, Any] = {}
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        for way, function in WAYS.items():
            given = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (images, weight))
            made = _with_gradients(function, *given, grad, stride)
            found[way] = {name: _error(made[name], exact[name]) for name in exact}
    about = {"images": n, "channels": channels, "kernels": kernels, "size": size, "kernel_size": kernel_size}
    return about | {"stride": stride, "dtype": _name(dtype), **found}


def _with_gradients(way: Any, images: Tensor, weight: Tensor, grad: Tensor, stride: int) -> dict[str, Tensor]:
    images.requires_grad_(), weight.requires_grad_()
    values = way(images, weight, None, stride)
    to_images, to_weight = torch.autograd.grad(values, (images, weight), grad.to(values.dtype))
    return {"values": values.detach(), "images": to_images, "weight": to_weight}


def _error(found: Tensor, exact: Tensor) -> float:
    return float(vector_norm(found.double() - exact) / vector_norm(exact))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> None:
    """Measure and show what the command line asks for."""
    asked = words(__doc__).parse_args()
    folder, picture = places("convolution", asked.quick, asked.folder)
    path = folder / "convolution" / f"{machine_kind(CPU)}.json"
    keep(path, measure(asked.quick))
    show("convolution", path, picture)


if __name__ == "__main__":
    main()
