"""The convolution by Fourier transform is the direct one, and is chosen only where it pays."""

import pytest
import torch
import torch.nn.functional as F

from capsnet.ops import convolution
from capsnet.ops.convolution import fourier_conv2d, strided_conv2d
from tests.ops.gradients import with_gradients


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
def test_the_transforms_values_and_gradients_are_the_direct_sums(grid, kernel, stride):
    tensors = inputs(3, 2, grid, 4, kernel)
    transformed = with_gradients(lambda *tensors: fourier_conv2d(*tensors, stride), *tensors)
    direct = with_gradients(lambda *tensors: F.conv2d(*tensors, stride), *tensors)
    torch.testing.assert_close(transformed, direct, rtol=1e-10, atol=1e-10)


def test_a_bias_is_optional():
    images, weight, _ = inputs(3, 2, (9, 9), 4, (3, 3))
    torch.testing.assert_close(fourier_conv2d(images, weight, stride=2), F.conv2d(images, weight, stride=2))


def test_images_with_their_channels_last_in_memory_give_the_same():
    images, weight, bias = inputs(3, 2, (9, 9), 4, (3, 3))
    turned = images.to(memory_format=torch.channels_last)
    torch.testing.assert_close(fourier_conv2d(turned, weight, bias, 2), fourier_conv2d(images, weight, bias, 2))


def test_a_transform_first_met_in_inference_serves_training_too():
    images, weight, _ = inputs(1, 2, (13, 10), 4, (3, 3), torch.float32)
    with torch.inference_mode():
        fourier_conv2d(images, weight)
    assert len(with_gradients(fourier_conv2d, images, weight)) == 3


def test_an_empty_batch_has_an_empty_result():
    assert fourier_conv2d(*inputs(0, 2, (9, 9), 4, (3, 3)), 2).shape == (0, 4, 4, 4)


@pytest.mark.parametrize("side", [3, 4])
def test_an_image_smaller_than_the_kernel_is_refused_as_by_the_direct_sum(side):
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        strided_conv2d(*inputs(1, 64, (side, side), 64, (9, 9), torch.float32), 2)


@pytest.fixture
def chosen(monkeypatch):
    """The shapes of the images that were transformed."""
    shapes = []

    def watched(images, *args):
        shapes.append(tuple(images.shape))
        return fourier_conv2d(images, *args)

    monkeypatch.setattr(convolution, "fourier_conv2d", watched)
    return shapes


@pytest.mark.parametrize(("grid", "kernel", "stride"), [((20, 20), (9, 9), 2), ((16, 11), (5, 5), 1)])
def test_where_the_transform_is_chosen_its_error_is_at_most_twice_the_direct_sums(chosen, grid, kernel, stride):
    tensors = inputs(16, 64, grid, 64, kernel, torch.float32)  # of two images the direct sum is short, and so exact
    exact = with_gradients(lambda *tensors: F.conv2d(*tensors, stride), *(t.double() for t in tensors))
    transformed = with_gradients(lambda *tensors: strided_conv2d(*tensors, stride), *tensors)
    direct = with_gradients(lambda *tensors: F.conv2d(*tensors, stride), *tensors)
    assert len(chosen) == 1
    for name, truth, ours, its in zip(("result", "images", "weight"), exact, transformed, direct, strict=False):
        assert (ours - truth).abs().mean() <= 2 * (its - truth).abs().mean(), name


def test_the_direct_sum_is_chosen_under_autocast(chosen):
    tensors = inputs(16, 64, (20, 20), 64, (9, 9), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        result = strided_conv2d(*tensors, 2)
        assert torch.equal(result, F.conv2d(*tensors, 2))
    assert chosen == []


@pytest.mark.parametrize(
    ("dtype", "b", "c", "k", "grid", "kernel"),
    [
        pytest.param(torch.float64, 16, 64, 64, (20, 20), (9, 9), id="float64"),
        pytest.param(torch.bfloat16, 16, 64, 64, (20, 20), (9, 9), id="bf16"),
        pytest.param(torch.float32, 15, 64, 64, (20, 20), (9, 9), id="few images"),
        pytest.param(torch.float32, 16, 1, 64, (20, 20), (9, 9), id="few channels in"),
        pytest.param(torch.float32, 16, 64, 8, (20, 20), (9, 9), id="few channels out"),
        pytest.param(torch.float32, 16, 64, 64, (20, 20), (1, 1), id="a small kernel"),
        pytest.param(torch.float32, 16, 64, 64, (60, 20), (9, 9), id="a large image"),
    ],
)
def test_the_direct_sum_is_chosen_where_the_transform_does_not_pay(chosen, dtype, b, c, k, grid, kernel):
    tensors = inputs(b, c, grid, k, kernel, dtype)
    assert torch.equal(strided_conv2d(*tensors, 2), F.conv2d(*tensors, 2))
    assert chosen == []


# torch.compile itself instantiates the autograd function that it traces.
@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not be:DeprecationWarning")
def test_compiling_takes_the_transform_without_a_break():
    tensors = inputs(2, 3, (9, 9), 4, (3, 3))
    compiled = torch.compile(lambda *tensors: fourier_conv2d(*tensors, 2) * 2, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), fourier_conv2d(*tensors, 2) * 2)


def test_of_few_images_without_a_gradient_one_product_is_as_exact_as_the_direct_sum():
    images, weight, bias = inputs(3, 64, (20, 20), 64, (9, 9), torch.float32)
    weight = weight.detach().contiguous(memory_format=torch.channels_last)
    exact = F.conv2d(images.double(), weight.double(), bias.double(), 2)
    with torch.no_grad():
        product, direct = strided_conv2d(images, weight, bias, 2), F.conv2d(images, weight, bias, 2)
    assert not torch.equal(product, direct)
    assert (product - exact).abs().mean() <= 2 * (direct - exact).abs().mean()
