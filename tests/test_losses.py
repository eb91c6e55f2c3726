"""Both losses are those of the paper, by hand: sums over classes and pixels, means over images."""

import pytest
import torch
from torch import tensor
from torch.nn.functional import one_hot

from capsnet.errors import InputError
from capsnet.losses import margin_loss, reconstruction_loss
from tests.ops.gradients import with_gradients


@pytest.mark.parametrize(
    ("lengths", "label", "loss"),
    [
        ([0.9, 0.1, 0.1], 0, 0),
        ([0.95, 0.0, 0.05], 0, 0),  # beyond the margins nothing is asked
        ([0.5, 0.1, 0.1], 0, 0.4**2),
        ([0.9, 0.4, 0.1], 0, 0.5 * 0.3**2),
        ([0.5, 0.4, 0.7], 0, 0.4**2 + 0.5 * (0.3**2 + 0.6**2)),
        ([0.5, 0.4, 0.7], 2, 0.2**2 + 0.5 * (0.4**2 + 0.3**2)),
        ([0.0, 0.0, 0.0], 1, 0.9**2),
    ],
)
@pytest.mark.parametrize("images", [1, 2, 7])
def test_the_margin_loss_is_eq_4_summed_over_classes_and_averaged_over_images(lengths, label, loss, images):
    torch.testing.assert_close(margin_loss(tensor([lengths] * images), tensor([label] * images)), tensor(float(loss)))


def test_the_margin_loss_of_a_batch_is_the_mean_of_its_images():
    lengths, labels = torch.rand(4, 3), tensor([0, 2, 1, 1])
    alone = [margin_loss(lengths[b : b + 1], labels[b : b + 1]) for b in range(4)]
    torch.testing.assert_close(margin_loss(lengths, labels), torch.stack(alone).mean())


@pytest.mark.parametrize(
    ("constant", "value", "loss"),
    [
        ("present", 0.7, 0.2**2 + 0.5 * 0.3**2),
        ("absent", 0.2, 0.4**2 + 0.5 * 0.2**2),
        ("down_weight", 1, 0.4**2 + 0.3**2),
    ],
)
def test_each_constant_of_the_margin_loss_does_what_it_says(constant, value, loss):
    lengths, labels = tensor([[0.5, 0.4]]), tensor([0])
    torch.testing.assert_close(margin_loss(lengths, labels, **{constant: value}), tensor(loss))


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_hot_labels_give_the_loss_and_the_gradient_of_their_classes(dtype):
    labels, lengths = tensor([0, 2, 1, 1]), torch.rand(4, 3)
    found = with_gradients(lambda lengths: margin_loss(lengths, one_hot(labels, 3).to(dtype)), lengths)
    expected = with_gradients(lambda lengths: margin_loss(lengths, labels), lengths)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(
    ("labels", "loss"),
    [
        ([0, 0, 0], 0.5 * (0.4**2 + 0.3**2 + 0.6**2)),
        ([1, 0, 1], 0.4**2 + 0.2**2 + 0.5 * 0.3**2),
        ([1, 1, 1], 0.4**2 + 0.5**2 + 0.2**2),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_with_multi_hot_labels_any_number_of_classes_is_present(dtype, labels, loss):
    lengths, labels = tensor([[0.5, 0.4, 0.7]] * 2), tensor([labels] * 2).to(dtype)
    torch.testing.assert_close(margin_loss(lengths, labels), tensor(loss))


def test_the_gradient_with_multi_hot_labels_is_that_of_finite_differences():
    labels, lengths = tensor([[True, False, True], [False] * 3]), torch.rand(2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda lengths: margin_loss(lengths, labels), lengths.requires_grad_())


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_multi_hot_labels_are_mapped_and_compiled(compiled):
    labels, lengths = torch.rand(4, 2, 3) < 0.5, torch.rand(4, 2, 3)
    expected = torch.stack([*map(margin_loss, lengths, labels)])
    function = torch.func.vmap(margin_loss)
    if compiled:
        function = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(function(lengths, labels), expected)


WRONG = {
    "neither 0 nor 1": (tensor([[0, 0.5, 1], [0, 1, 0]]), r"multi-hot labels are 0 or 1, not 0\.5"),
    "class numbers": (tensor([[0.0, 2, 1], [1, 0, 0]]), "multi-hot labels are 0 or 1, not 2"),
    "negative": (tensor([[0, -1.0, 0], [0, 1, 0]]), "multi-hot labels are 0 or 1, not -1"),
    "NaN": (tensor([[0, torch.nan, 0], [0, 1, 0]]), "multi-hot labels are 0 or 1, not nan"),
    "too many classes": (torch.zeros(2, 4), r"multi-hot floats or bools \[2, 3\], not torch.float32 of shape \[2, 4\]"),
    "too few images": (torch.zeros(1, 3), r"multi-hot floats or bools \[2, 3\], not torch.float32 of shape \[1, 3\]"),
    "integers": (torch.zeros(2, 3).long(), r"multi-hot floats or bools \[2, 3\], not torch.int64 of shape \[2, 3\]"),
    "complex": (torch.zeros(2, 3) + 0j, r"multi-hot floats or bools \[2, 3\], not torch.complex64 of shape \[2, 3\]"),
    "an axis too many": (torch.zeros(2, 3, 1), r"labels are torch.float32: give whole numbers"),
}


@pytest.mark.parametrize(("labels", "message"), WRONG.values(), ids=WRONG)
def test_labels_that_are_neither_classes_nor_multi_hot_are_refused_in_one_line(labels, message):
    with pytest.raises(InputError, match=message) as refusal:
        margin_loss(torch.rand(2, 3), labels)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("images", [1, 2, 7])
def test_the_reconstruction_loss_is_summed_over_pixels_and_averaged_over_images(images):
    reconstruction, image = torch.full((images, 3, 4, 5), 0.75), torch.full((images, 3, 4, 5), 0.25)
    torch.testing.assert_close(reconstruction_loss(reconstruction, image), tensor(3 * 4 * 5 * 0.25))


def test_the_reconstruction_loss_of_a_batch_is_the_mean_of_its_images():
    reconstruction, image = torch.rand(4, 1, 5, 6), torch.rand(4, 1, 5, 6)
    alone = [reconstruction_loss(reconstruction[b : b + 1], image[b : b + 1]) for b in range(4)]
    torch.testing.assert_close(reconstruction_loss(reconstruction, image), torch.stack(alone).mean())
