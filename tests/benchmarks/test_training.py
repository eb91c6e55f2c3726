"""The measurement of training: its textbook is right, its work is counted, and wrong losses are refused."""

from types import SimpleNamespace

import pytest
import torch

from capsnet import training
from capsnet.benchmarks import settings as kinds
from capsnet.benchmarks import training as benchmark
from capsnet.benchmarks.measuring import WrongResult
from capsnet.benchmarks.memory import attack_peak, training_peak
from capsnet.benchmarks.settings import Setting, Stepper, default_setting, settings
from capsnet.benchmarks.textbook import Textbook, copy_parameters
from capsnet.benchmarks.training import check, flop_of, routed_settings, share_of
from capsnet.benchmarks.using import first_step_seconds
from capsnet.build import build_network, losses
from capsnet.recipes import Paper
from capsnet.training import _compiles, _precision
from tests.data.conftest import _write_idx as write_idx


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
    names += ["routing without votes", "CapsNet, Adam in one pass", *(["bf16"] if bf16 else [])]
    names += ["torch.compile", "CUDA graph"] if device == "cuda" else ["torch.compile (off by default)"]
    found = settings(torch.device(device))
    assert [setting.name for setting in found] == names
    assert found[-1].trains
    assert found[-1].compiled


@pytest.mark.parametrize(("device", "bf16"), [("cpu", False), ("cpu", True), ("cuda", True)])
def test_the_default_setting_is_the_step_of_capsnet_train(monkeypatch, device, bf16):
    monkeypatch.setattr(kinds, "fast_bf16", lambda _: bf16)
    monkeypatch.setattr(kinds, "which", lambda program: program)
    monkeypatch.setattr(training, "fast_bf16", lambda _: bf16)
    chosen = default_setting(settings(torch.device(device)))
    fabric = SimpleNamespace(device=torch.device(device))
    assert chosen.compiled == _compiles(Paper(), fabric)
    assert (chosen.dtype == "bfloat16") == (_precision(Paper(), fabric.device) == "bf16-mixed")
    assert chosen.trains


def test_routings_part_is_measured_by_dtype_and_by_the_reach_of_gradients(monkeypatch):
    monkeypatch.setattr(benchmark, "fast_bf16", lambda _: True)
    watched = routed_settings(Setting("ours", ours=True, trains=True))
    assert [(one.dtype, one.gradient) for one in watched] == [
        *(("float32", "all"), ("float32", "last"), ("bfloat16", "all"), ("bfloat16", "last")),
    ]
    assert not any(one.trains or one.compiled for one in watched)
    reach = [Stepper(one, 2).network.digit_caps.gradient for one in watched[:2]]
    assert reach == ["all", "last"]


def test_a_part_of_a_step_is_the_median_over_rounds():
    took = {"it, routing": [0.01, 0.09, 0.02], "it, step": [0.1, 0.1, 0.1]}
    about = {"dtype": "bfloat16", "gradient": "last"}
    expected = about | {"ms": pytest.approx(20), "step_ms": pytest.approx(100), "share": pytest.approx(0.2)}
    assert share_of(Setting("it", **about), took) == expected


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="memory is measured on the GPU where there is one")
def test_training_and_an_attack_have_a_peak_of_their_own():
    parameters = 4 * 8_215_568
    few, many = (training_peak(Setting("textbook"), batch) for batch in (2, 128))
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
