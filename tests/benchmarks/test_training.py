"""The measurement of training: its textbook is right, its work is counted, and wrong losses are refused."""

import pytest
import torch

from capsnet.benchmarks import settings as kinds
from capsnet.benchmarks.measuring import WrongResult
from capsnet.benchmarks.settings import Setting, settings
from capsnet.benchmarks.textbook import Textbook, copy_parameters
from capsnet.benchmarks.training import check, flop_of
from capsnet.build import build_network, losses
from capsnet.recipes import Paper


def test_the_textbook_has_the_loss_of_our_network_with_the_same_parameters():
    network, other = build_network(Paper(), (1, 28, 28), 10), Textbook()
    copy_parameters(network, other)
    images, labels = torch.rand(2, 1, 28, 28), torch.tensor([3, 7])
    torch.testing.assert_close(other(images, labels), losses(network, images, labels, Paper())["loss"])
    assert sum(parameter.numel() for parameter in other.parameters()) == 8_215_568


def test_the_work_for_an_image_is_counted_from_the_shapes():
    conv1, conv2 = 400 * 256 * 81, 36 * 256 * 256 * 81
    votes, sums = 1152 * 10 * 8 * 16, 1152 * 10 * 16
    decoder = 160 * 512 + 512 * 1024 + 1024 * 784
    forward = conv1 + conv2 + votes + 5 * sums + decoder  # three weighted sums and two agreements
    assert flop_of(backward=False) == 2 * forward
    constant = conv1 + sums  # the images and the first couplings need no gradient
    assert flop_of(backward=True) == 2 * (3 * forward - constant)


def test_a_fake_setting_with_other_losses_is_refused():
    right = {Setting("textbook"): [0.8, 1.2]}
    rounded = {Setting("rounded"): [0.80001, 1.2], Setting("bf16", dtype="bfloat16"): [0.81, 1.19]}
    check(right | rounded, "cpu")
    check(right | {Setting("rounded by cuDNN"): [0.8005, 1.2]}, "cuda")
    for fake in ([0.8, 1.201], [0.8005, 1.2], [0.8, float("nan")]):
        with pytest.raises(WrongResult, match="fake has losses"):
            check(right | {Setting("fake"): fake}, "cpu")


@pytest.mark.parametrize(
    ("device", "bf16", "names"),
    [
        ("cpu", False, ["textbook", "freed memory kept", "channels-last", "strided convolution by Fourier"]),
        ("cpu", True, ["textbook", "freed memory kept", "channels-last", "strided convolution by Fourier"]),
        ("cuda", True, ["textbook", "channels-last"]),
    ],
)
def test_each_setting_has_one_thing_more_than_the_one_before(monkeypatch, device, bf16, names):
    monkeypatch.setattr(kinds, "fast_bf16", lambda _: bf16)
    monkeypatch.setattr(kinds, "which", lambda program: program)
    names += ["routing without votes", "CapsNet, Adam in one pass", *(["bf16", "torch.compile"] if bf16 else [])]
    names += ["CUDA graph"] if device == "cuda" else []
    found = settings(torch.device(device))
    assert [setting.name for setting in found] == names
    assert found[-1].trains
