"""The measurement of training: its naive network is right, its work is counted, and wrong losses are refused."""

from types import SimpleNamespace

import pytest
import torch

import capsnet.training
import training
import variants as variants_module
from capsnet.build import build_network, losses
from capsnet.recipes import Paper
from capsnet.training import _compiles, _precision
from latency import first_step_seconds
from measuring import WrongResult
from naive import NaiveCapsNet, copy_parameters
from tests.data.conftest import _write_idx as write_idx
from training import attack_peak, check, flop_of, routed_variants, routing_row, training_peak
from variants import Stepper, Variant, default_variant, variants


def test_the_naive_network_has_the_loss_of_capsnet_with_the_same_parameters():
    network, other = build_network(Paper(), (1, 28, 28), 10), NaiveCapsNet()
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


def test_a_fake_variant_with_other_losses_is_refused():
    right = {Variant("naive PyTorch"): [0.8, 1.2]}
    rounded = {Variant("rounded"): [0.80001, 1.2], Variant("bf16", dtype="bfloat16"): [0.81, 1.19]}
    check(right | rounded, "cpu")
    check(right | {Variant("rounded by cuDNN"): [0.8005, 1.2]}, "cuda")
    for fake in ([0.8, 1.201], [0.8005, 1.2], [0.8, float("nan")]):
        with pytest.raises(WrongResult, match="fake has losses"):
            check(right | {Variant("fake"): fake}, "cpu")


@pytest.mark.parametrize(
    ("device", "bf16", "names"),
    [
        ("cpu", False, ["naive PyTorch", "freed memory kept", "channels-last", "Fourier convolution"]),
        ("cpu", True, ["naive PyTorch", "freed memory kept", "channels-last", "Fourier convolution"]),
        ("cuda", True, ["naive PyTorch", "channels-last"]),
    ],
)
def test_each_variant_has_one_change_more_than_the_one_before(monkeypatch, device, bf16, names):
    monkeypatch.setattr(variants_module, "fast_bf16", lambda _: bf16)
    monkeypatch.setattr(variants_module, "which", lambda program: program)
    names += ["routing without stored votes", "CapsNet, fused Adam", *(["bf16"] if bf16 else [])]
    names += ["torch.compile", "CUDA graph"] if device == "cuda" else ["torch.compile (off by default)"]
    found = variants(torch.device(device))
    assert [variant.name for variant in found] == names
    assert found[-1].trains
    assert found[-1].compiled


@pytest.mark.parametrize(("device", "bf16"), [("cpu", False), ("cpu", True), ("cuda", True)])
def test_the_default_variant_is_the_step_of_capsnet_train(monkeypatch, device, bf16):
    monkeypatch.setattr(variants_module, "fast_bf16", lambda _: bf16)
    monkeypatch.setattr(variants_module, "which", lambda program: program)
    monkeypatch.setattr(capsnet.training, "fast_bf16", lambda _: bf16)
    chosen = default_variant(variants(torch.device(device)))
    fabric = SimpleNamespace(device=torch.device(device))
    assert chosen.compiled == _compiles(Paper(), fabric)
    assert (chosen.dtype == "bfloat16") == (_precision(Paper(), fabric.device) == "bf16-mixed")
    assert chosen.trains


def test_routings_part_is_measured_by_dtype_and_by_the_extent_of_gradients(monkeypatch):
    monkeypatch.setattr(training, "fast_bf16", lambda _: True)
    watched = routed_variants(Variant("capsnet", capsnet=True, trains=True))
    assert [(one.dtype, one.gradient) for one in watched] == [
        *(("float32", "all"), ("float32", "last"), ("bfloat16", "all"), ("bfloat16", "last")),
    ]
    assert not any(one.trains or one.compiled for one in watched)
    extent = [Stepper(one, 2).network.digit_caps.gradient for one in watched[:2]]
    assert extent == ["all", "last"]


def test_a_part_of_a_step_is_the_median_over_rounds():
    took = {"it, routing": [0.01, 0.09, 0.02], "it, step": [0.1, 0.1, 0.1]}
    about = {"dtype": "bfloat16", "gradient": "last"}
    expected = about | {"ms": pytest.approx(20), "step_ms": pytest.approx(100), "share": pytest.approx(0.2)}
    assert routing_row(Variant("it", **about), took) == expected


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="memory is measured on the GPU where there is one")
def test_training_and_an_attack_have_a_peak_of_their_own():
    parameters = 4 * 8_215_568
    few, many = (training_peak(Variant("naive PyTorch"), batch) for batch in (2, 128))
    assert 4 * parameters < few  # weights, gradients and the two moments of Adam
    votes = 4 * 1152 * 10 * 16  # bytes, of an image
    assert few + 128 * votes < many
    assert 2 * parameters < attack_peak(2) < few  # the network, and the frozen copy


@pytest.mark.slow
def test_the_first_step_is_timed_with_empty_and_with_filled_caches(tmp_path, monkeypatch):
    for part, n in (("train", 5200), ("t10k", 10)):
        write_idx(tmp_path / "mnist" / f"{part}-images-idx3-ubyte.gz", torch.zeros(n, 28, 28, dtype=torch.uint8))
        write_idx(tmp_path / "mnist" / f"{part}-labels-idx1-ubyte.gz", (torch.arange(n) % 10).byte())
    monkeypatch.setenv("CAPSNET_DATA", str(tmp_path))
    took = first_step_seconds(1)
    assert set(took) == {"empty", "filled"}
    assert min(took.values()) > 0


def test_without_mnist_no_first_step_is_timed(tmp_path, monkeypatch):
    monkeypatch.setenv("CAPSNET_DATA", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").touch()  # one of four
    assert first_step_seconds(1) is None
