"""The convolution by Fourier transform equals the direct one, and is chosen only where it is faster."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from capsnet.ops import convolution, fourier
from capsnet.ops.convolution import strided_conv2d
from capsnet.ops.fourier import fourier_conv2d
from tests.ops.gradients import with_gradients

MEASURED = Path(__file__).parents[2] / "results" / "convolution"
SIZES = [
    (16, 64, (20, 20), 64, (9, 9), 2),
    (16, 64, (16, 11), 64, (5, 5), 1),
    (17, 96, (13, 18), 80, (7, 6), 2),
    (5, 32, (11, 24), 48, (4, 9), 3),
]


def inputs(b, c, grid, k, kernel, dtype=torch.float64):
    """Images [b, c, *grid], a weight [k, c, *kernel] and a bias [k]."""
    return [torch.randn(shape).to(dtype) for shape in ((b, c, *grid), (k, c, *kernel), (k,))]


@pytest.mark.parametrize(
    ("grid", "kernel", "stride"),
    [
        ((1, 1), (1, 1), 1),
        ((20, 20), (9, 9), 2),  # the paper's
        ((9, 9), (3, 3), 2),
        ((7, 13), (3, 5), 1),  # rectangular images and kernels
        ((11, 8), (4, 3), 3),  # rows and columns left over
        ((12, 9), (2, 9), 4),
        ((10, 17), (1, 1), 3),  # a kernel smaller than the stride
        ((8, 8), (8, 8), 1),  # a kernel as large as the image
    ],
)
def test_the_transforms_values_and_gradients_equal_the_direct_convolutions(grid, kernel, stride):
    tensors = inputs(3, 2, grid, 4, kernel)
    transformed = with_gradients(lambda *tensors: fourier_conv2d(*tensors, stride), *tensors)
    direct = with_gradients(lambda *tensors: F.conv2d(*tensors, stride), *tensors)
    torch.testing.assert_close(transformed, direct, rtol=1e-10, atol=1e-10)


def test_a_bias_is_optional():
    images, weight, _ = inputs(3, 2, (9, 9), 4, (3, 3))
    torch.testing.assert_close(fourier_conv2d(images, weight, stride=2), F.conv2d(images, weight, stride=2))


def test_images_with_their_channels_last_in_memory_give_the_same():
    images, weight, bias = inputs(3, 2, (9, 9), 4, (3, 3))
    channels_last = images.to(memory_format=torch.channels_last)
    torch.testing.assert_close(fourier_conv2d(channels_last, weight, bias, 2), fourier_conv2d(images, weight, bias, 2))


def test_a_transform_cached_in_inference_mode_works_in_training():
    images, weight, _ = inputs(1, 2, (13, 10), 4, (3, 3), torch.float32)
    with torch.inference_mode():
        fourier_conv2d(images, weight)
    assert len(with_gradients(fourier_conv2d, images, weight)) == 3


def test_an_empty_batch_has_an_empty_result():
    assert fourier_conv2d(*inputs(0, 2, (9, 9), 4, (3, 3)), 2).shape == (0, 4, 4, 4)


@pytest.mark.parametrize("side", [3, 4])
def test_an_image_smaller_than_the_kernel_is_refused_as_by_conv2d(side):
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        strided_conv2d(*inputs(1, 64, (side, side), 64, (9, 9), torch.float32), 2)


@pytest.fixture(params=["compiled", "plain"])
def way(request, monkeypatch):
    """Compute the transforms by `fourier.c`, or as matrix products."""
    if request.param == "plain":
        monkeypatch.setattr(fourier, "_library", lambda: None)
    elif fourier._library() is None:
        pytest.skip("there is no C compiler")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("b", "c", "grid", "k", "kernel", "stride"), SIZES)
def test_the_transforms_error_is_at_most_twice_the_direct_convolutions(way, dtype, b, c, grid, k, kernel, stride):
    images, weight, bias = inputs(b, c, grid, k, kernel, torch.float32)
    images, weight = images.to(dtype).float(), weight.contiguous(memory_format=torch.channels_last)
    doubles = images.double(), weight.double(), bias.double()
    exact = with_gradients(lambda *tensors: F.conv2d(*tensors, stride), *doubles)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        transformed = with_gradients(lambda *t: fourier_conv2d(*t, stride), images.to(dtype), weight, bias)
        direct = with_gradients(lambda *t: F.conv2d(*t, stride), images.to(dtype), weight, bias)
    for name, truth, ours, its in zip(("result", "images", "weight", "bias"), exact, transformed, direct, strict=True):
        assert ours.dtype == its.dtype, name
        assert (ours - truth).abs().mean() <= 2 * (its - truth).abs().mean(), name


@pytest.mark.parametrize("frozen", ["images", "weight"])
def test_a_frozen_tensor_has_no_gradient(way, frozen):
    images, weight, _ = inputs(2, 16, (9, 9), 16, (3, 3), torch.float32)
    leaves = {"images": images, "weight": weight}
    free = next(tensor.requires_grad_() for name, tensor in leaves.items() if name != frozen)
    fourier_conv2d(images, weight, stride=2).sum().backward()
    expected = torch.autograd.grad(F.conv2d(images, weight, stride=2).sum(), free)
    torch.testing.assert_close((free.grad,), expected)
    assert leaves[frozen].grad is None


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_the_transform_has_the_derivatives_of_torch_func(way):
    images, weight, _ = inputs(3, 16, (9, 9), 16, (3, 3), torch.float32)

    def ours(images, weight):
        return fourier_conv2d(images, weight, stride=2).square().mean()

    def direct(images, weight):
        return F.conv2d(images, weight, stride=2).square().mean()

    def of_each(function):
        return torch.func.vmap(torch.func.grad(lambda image, weight: function(image[None], weight)), (0, None))

    second = torch.func.grad(lambda *t: torch.func.grad(ours, argnums=1)(*t).square().sum())(images, weight)
    truth = torch.func.grad(lambda *t: torch.func.grad(direct, argnums=1)(*t).square().sum())(images, weight)
    torch.testing.assert_close(second, truth)
    torch.testing.assert_close(of_each(ours)(images, weight), of_each(direct)(images, weight))
    tangents = torch.randn_like(images), torch.randn_like(weight)
    slopes = [torch.func.jvp(function, (images, weight), tangents) for function in (ours, direct)]
    torch.testing.assert_close(*slopes)


def test_nan_in_an_image_is_nan_in_its_result_only(way):
    images, weight, _ = inputs(2, 16, (9, 9), 16, (3, 3), torch.float32)
    images[0, 0, 0, 0] = torch.nan
    with torch.autocast("cpu", torch.bfloat16):
        result = fourier_conv2d(images, weight, stride=2)
    assert result[0].isnan().any()
    assert result[1].isfinite().all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(threads):
    tensors = inputs(3, 16, (20, 20), 32, (9, 9), torch.float32)
    expected, before = fourier_conv2d(*tensors, 2), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(fourier_conv2d(*tensors, 2), expected)
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def chosen(monkeypatch):
    """The shapes of the images that were transformed."""
    shapes = []

    def watched(images, *args):
        shapes.append(tuple(images.shape))
        return fourier_conv2d(images, *args)

    monkeypatch.setattr(convolution, "fourier_conv2d", watched)
    return shapes


needs_compiler = pytest.mark.skipif(fourier._library() is None, reason="there is no C compiler")


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
def test_the_transform_is_chosen_for_the_papers_network(chosen, dtype, autocast):
    images, weight, bias = inputs(32, 256, (20, 20), 256, (9, 9), dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = strided_conv2d(images, weight, bias, 2)
        assert result.dtype == F.conv2d(images, weight, bias, 2).dtype
    assert chosen == [(32, 256, 20, 20)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("grid", "kernel", "stride"), [((28, 28), (9, 9), 1), ((11, 14), (3, 4), 3)])
def test_for_images_of_one_channel_that_need_a_gradient_one_product_is_as_exact_as_conv2d(dtype, grid, kernel, stride):
    images, weight, bias = inputs(4, 1, grid, 16, kernel, dtype)
    exact = with_gradients(lambda *t: F.conv2d(*t, stride), images.double(), weight.double(), bias.double())
    product = with_gradients(lambda *t: strided_conv2d(*t, stride), images, weight, bias)
    direct = with_gradients(lambda *t: F.conv2d(*t, stride), images, weight, bias)
    assert not torch.equal(product[1], direct[1])  # so it is not conv2d itself
    for name, truth, ours, its in zip(("result", "images", "weight", "bias"), exact, product, direct, strict=True):
        assert (ours - truth).abs().mean() <= 2 * (its - truth).abs().mean(), name


@pytest.mark.parametrize(
    ("dtype", "b", "c", "k", "grid", "kernel"),
    [
        pytest.param(torch.float64, 64, 64, 64, (20, 20), (9, 9), id="float64"),
        pytest.param(torch.float32, 0, 64, 64, (20, 20), (9, 9), id="no image"),
        pytest.param(torch.float32, 8, 64, 64, (20, 20), (9, 9), id="few images"),
        pytest.param(torch.float32, 64, 1, 64, (20, 20), (9, 9), id="few channels in"),
        pytest.param(torch.float32, 64, 64, 8, (20, 20), (9, 9), id="few channels out"),
        pytest.param(torch.float32, 64, 64, 64, (20, 20), (1, 1), id="a small kernel"),
        pytest.param(torch.float32, 64, 64, 64, (60, 20), (9, 9), id="a large image"),
    ],
)
def test_the_direct_convolution_is_chosen_where_the_transform_is_slower(chosen, dtype, b, c, k, grid, kernel):
    tensors = inputs(b, c, grid, k, kernel, dtype)
    assert torch.equal(strided_conv2d(*tensors, 2), F.conv2d(*tensors, 2))
    assert chosen == []


def test_float64_stays_float64_under_autocast():
    tensors = inputs(32, 64, (20, 20), 64, (9, 9))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(strided_conv2d(*tensors, 2), F.conv2d(*tensors, 2))
        assert fourier_conv2d(*tensors, 2).dtype == torch.float64


def test_without_a_compiler_the_direct_convolution_is_chosen_in_bf16(chosen, monkeypatch):
    monkeypatch.setattr(fourier, "_library", lambda: None)
    strided_conv2d(*inputs(32, 64, (20, 20), 64, (9, 9), torch.bfloat16), 2)
    assert chosen == []


@needs_compiler
@pytest.mark.parametrize("path", sorted(MEASURED.glob("cpu*.json")), ids=lambda path: path.stem)
def test_the_choice_takes_at_most_a_third_longer_than_the_faster_way(path):
    for row in json.loads(path.read_text())["rows"]:
        b, c, k = row["images"], row["channels"], row["kernels"]
        images = torch.empty(b, c, row["size"], row["size"], dtype=getattr(torch, row["dtype"]))
        weight = torch.empty(k, c, row["kernel_size"], row["kernel_size"])
        with torch.set_grad_enabled(row["training"]):
            chosen = "fourier" if convolution._fourier_pays(images, weight, row["stride"]) else "direct"
        assert row["ms"][chosen] <= 4 / 3 * min(row["ms"].values()), row


# torch.compile itself instantiates the autograd function that it traces.
@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not be:DeprecationWarning")
def test_the_transform_compiles_without_a_graph_break():
    tensors = inputs(2, 3, (9, 9), 4, (3, 3))
    compiled = torch.compile(lambda *tensors: fourier_conv2d(*tensors, 2) * 2, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), fourier_conv2d(*tensors, 2) * 2)
