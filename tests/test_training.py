"""The training loop: which network is saved, the last batch, precision, and errors that end it.

Stopping and resuming are in `test_resume.py`.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from capsnet import steps, training
from capsnet.checkpoints import load_checkpoint
from capsnet.data import ImageSet
from capsnet.errors import InputError
from capsnet.evaluation import Evaluation, evaluate
from capsnet.runs import load_run, start_run
from tests.training import BASELINE, EPOCH, TINY, few_digits, last_weights, train, weights


@pytest.fixture
def data():
    return few_digits()


@pytest.fixture
def without_validation(data):
    return replace(data, validation=data.validation.select(torch.arange(0)))


def stub_evaluations(monkeypatch, errors):
    """Make each evaluation on validation images find the next of these numbers of errors."""
    found = iter(errors)
    monkeypatch.setattr(training, "evaluate", lambda network, images: Evaluation(60, next(found), [[]], None, "label"))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    first = weights(train(tmp_path / "first"))
    assert torch.equal(weights(train(tmp_path / "again")), first)
    assert not torch.equal(weights(train(tmp_path / "other", replace(TINY, seed=1))), first)


def test_a_capsule_network_learns(trained, data):
    assert evaluate(trained.load_network(), data.train).accuracy > 0.8


def test_a_baseline_learns(tmp_path, data):
    run = train(tmp_path / "run", replace(BASELINE, epochs=5, batch_size=16, shift=0))
    assert evaluate(run.load_network(), data.train).accuracy > 0.5


def test_the_network_with_the_fewest_validation_errors_is_saved_and_at_a_tie_the_last(tmp_path, monkeypatch):
    two_epochs = last_weights(train(tmp_path / "two"))
    stub_evaluations(monkeypatch, [5, 3, 4])
    assert torch.equal(weights(train(tmp_path / "three", replace(TINY, epochs=3))), two_epochs)
    stub_evaluations(monkeypatch, [3, 3, 4])
    assert torch.equal(weights(train(tmp_path / "equal", replace(TINY, epochs=3))), two_epochs)


def test_without_validation_images_the_last_network_is_saved(tmp_path, without_validation):
    run = train(tmp_path / "run", data=without_validation)
    assert torch.equal(weights(run), last_weights(run))
    assert run.records("validation") == []


class Untouchable(Tensor):
    """A tensor of which only the shape may be read."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        assert function == Tensor.shape.__get__, f"{function} reads a test image"
        return super().__torch_function__(function, types, args, kwargs or {})


def test_no_test_image_is_read_in_training_and_no_test_label_matters(tmp_path, data):
    honest = weights(train(tmp_path / "honest", data=data))
    run = start_run(tmp_path / "closed", TINY, data)
    closed = ImageSet(data.test.images.as_subclass(Untouchable), torch.zeros_like(data.test.labels))
    training.train(run, replace(data, test=closed))
    assert torch.equal(weights(run), honest)


@pytest.fixture
def seen(monkeypatch):
    """The batches of images that were trained on."""
    seen, losses = [], steps.losses

    def watched(network, images, *others):
        seen.append(images)
        return losses(network, images, *others)

    monkeypatch.setattr(steps, "losses", watched)
    return seen


def test_each_image_is_seen_once_an_epoch_the_partial_last_batch_with_them(tmp_path, data, seen):
    train(tmp_path / "run", replace(TINY, epochs=1, shift=0))
    assert [len(images) for images in seen] == [32] * 6 + [8]
    expected = data.train.images.flatten(1).float() / 255
    assert torch.equal(torch.cat(seen).flatten(1).unique(dim=0), expected.unique(dim=0))


def test_every_epoch_has_its_own_order(tmp_path, seen):
    train(tmp_path / "run", replace(TINY, shift=0))
    first, second = torch.cat(seen[:EPOCH]), torch.cat(seen[EPOCH:])
    assert not torch.equal(first, second)
    assert torch.equal(first.unique(dim=0), second.unique(dim=0))


@pytest.mark.parametrize(
    ("epochs", "steps", "taken"),
    [(None, 3, 3), (None, EPOCH, EPOCH), (None, EPOCH + 3, EPOCH + 3), (2, None, 2 * EPOCH)],
)
def test_a_training_ends_after_its_steps_or_after_its_epochs(tmp_path, epochs, steps, taken):
    run = train(tmp_path / "run", replace(TINY, epochs=epochs, steps=steps))
    assert load_checkpoint(run)["step"] == taken == run.records("validation")[-1]["step"]


def test_with_ema_decay_the_average_of_the_weights_is_saved(tmp_path, without_validation):
    def trained(**settings):
        folder = tmp_path / "-".join(f"{name}{value}" for name, value in settings.items())
        return train(folder, replace(TINY, epochs=None, **settings), without_validation)

    first, second, third = (weights(trained(steps=steps)) for steps in (1, 2, 3))
    averaged = trained(steps=3, ema_decay=0.75)
    expected = 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third
    torch.testing.assert_close(weights(averaged), expected)
    assert torch.equal(last_weights(averaged), third)


@pytest.mark.parametrize("training_mode", [True, False])
def test_evaluation_leaves_the_network_in_the_mode_it_was_in(training_mode, data):
    network = training.build_network(TINY, data.image_shape, 10).train(training_mode)
    evaluate(network, data.validation)
    assert network.training is training_mode


def test_after_an_evaluation_the_baseline_uses_dropout_again(tmp_path, monkeypatch):
    modes, losses = [], steps.losses

    def watched(network, *batch):
        modes.append(network.training)
        return losses(network, *batch)

    monkeypatch.setattr(steps, "losses", watched)
    train(tmp_path / "run", BASELINE)
    assert modes == [True] * 2 * EPOCH


@pytest.mark.parametrize("step", [5, EPOCH + 2, 2 * EPOCH])
def test_a_loss_that_is_not_finite_is_reported_with_its_step_and_not_saved(tmp_path, monkeypatch, step):
    run = start_run(tmp_path / "run", TINY, few_digits())
    monkeypatch.setattr(training, "learning_rate", lambda _, done, *of: float("inf") if done == step - 2 else 1e-3)
    with pytest.raises(InputError, match=rf"the loss at step {step} is not finite: .*; try a lower --lr") as refusal:
        training.train(run, few_digits(), log_steps=3)
    assert "\n" not in str(refusal.value)
    if step > EPOCH:
        assert load_checkpoint(run)["step"] == EPOCH
        assert last_weights(run).isfinite().all()
        assert weights(run).isfinite().all()


def test_weights_that_are_not_finite_after_the_last_step_are_reported_and_not_saved(
    tmp_path, monkeypatch, without_validation
):
    run = start_run(tmp_path / "run", TINY, without_validation)
    monkeypatch.setattr(training, "learning_rate", lambda _, done, *of: float("inf") if done == 2 * EPOCH - 1 else 1e-3)
    with pytest.raises(InputError, match="the weights after step 14 are not finite"):
        training.train(run, without_validation)
    assert weights(run).isfinite().all()
    assert last_weights(run).isfinite().all()


def test_bf16_learns_and_its_weights_have_32_bits(tmp_path):
    run = train(tmp_path / "run", replace(TINY, precision="bf16-mixed", epochs=4))
    losses = [record["loss"] for record in run.records("train")]
    assert losses[-1] < losses[0]
    assert weights(run).dtype == torch.float32
    assert run.training_parts[0].precision == "bf16-mixed"


@pytest.mark.parametrize(("fast", "chosen"), [(True, "bf16-mixed"), (False, "32-true")])
def test_by_default_the_precision_is_the_one_the_hardware_is_fast_at(tmp_path, monkeypatch, fast, chosen):
    monkeypatch.setattr(training, "fast_bf16", lambda device: fast)
    run = train(tmp_path / "run", replace(TINY, precision="auto", epochs=None, steps=1))
    assert run.training_parts[0].precision == chosen


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's compiler uses what PyTorch deprecates
def test_a_compiled_network_has_the_same_losses(tmp_path):
    small = replace(TINY, epochs=None, steps=3, iterations=2, gradient="last")  # what is compiled in the least time
    plain, compiled = (
        train(tmp_path / str(how), replace(small, compile=how)).records("train") for how in (False, True)
    )
    assert compiled[0]["loss"] == pytest.approx(plain[0]["loss"], rel=1e-4)


class TooLarge(ImageSet):
    """Simulates images that do not fit on a GPU."""

    def to(self, device):
        raise torch.OutOfMemoryError


def test_images_that_do_not_fit_on_the_device_are_copied_batch_by_batch(tmp_path, data, caplog):
    expected = weights(train(tmp_path / "expected", data=data))
    large = replace(data, train=TooLarge(data.train.images, data.train.labels))
    assert torch.equal(weights(train(tmp_path / "large", data=large)), expected)
    assert "the training images do not fit on cpu: each batch is copied there" in caplog.text


def test_images_are_not_copied_to_the_device_if_images_on_device_is_false(tmp_path, data, caplog):
    run = start_run(tmp_path / "run", TINY, data)
    large = replace(data, train=TooLarge(data.train.images, data.train.labels))
    training.train(run, large, images_on_device=False)
    assert not caplog.records


@pytest.mark.parametrize("minutes", [0, -1, float("nan")])
def test_a_time_between_checkpoints_that_is_not_positive_is_refused(tmp_path, minutes, data):
    run = start_run(tmp_path / "run", TINY, data)
    with pytest.raises(InputError, match="checkpoints are more than 0 minutes apart, not"):
        training.train(run, data, save_minutes=minutes)


@pytest.mark.parametrize("steps", [0, -1])
def test_a_number_of_steps_between_records_below_1_is_refused(tmp_path, steps, data):
    run = start_run(tmp_path / "run", TINY, data)
    with pytest.raises(InputError, match=f"records of the log are at least 1 step apart, not {steps}"):
        training.train(run, data, log_steps=steps)


def test_the_trained_network_is_returned_in_evaluation_mode(tmp_path, data):
    run = start_run(tmp_path / "run", TINY, data)
    network = training.train(run, data)
    assert not network.training
    assert torch.equal(weights(network), weights(load_run(run.folder)))
