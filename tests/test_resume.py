"""A run that was stopped, and how, cannot be told from one that never was."""

import json
from dataclasses import replace

import pytest
import torch

from capsnet import training
from capsnet.errors import InputError
from capsnet.evaluation import Evaluation
from capsnet.runs import load_checkpoint, load_run, start_run
from tests.training import (
    BASELINE,
    EPOCH,
    TINY,
    at_step,
    few_digits,
    last_weights,
    press_ctrl_c,
    resume,
    train,
    weights,
)

ENDED = 2 * EPOCH


class Killed(Exception):
    """Stands for whatever ends a process between two steps."""


def kill():
    raise Killed


@pytest.fixture(scope="module", params=["capsnet", "small-cnn", "averaged"])
def settings(request):
    """Recipes whose state differs: the baseline draws its dropout, the average is a second set of weights."""
    return {"capsnet": TINY, "small-cnn": BASELINE, "averaged": replace(TINY, averaging=0.9)}[request.param]


@pytest.fixture(scope="module")
def never_stopped(settings, tmp_path_factory):
    return train(tmp_path_factory.mktemp("never") / "stopped", settings)


def assert_same(run, other):
    """The networks, the optimiser's memory and the measurements of two runs are bit for bit the same."""
    assert torch.equal(weights(run), weights(other))
    state, expected = load_checkpoint(run), load_checkpoint(other)
    assert state.keys() == expected.keys()
    for name in state.keys() - {"seconds"}:
        torch.testing.assert_close(state[name], expected[name], rtol=0, atol=0)
    for record, original in zip(run.records("validation"), other.records("validation"), strict=True):
        assert record | {"seconds": 0} == original | {"seconds": 0}


@pytest.mark.parametrize("step", [3, EPOCH, ENDED])
def test_a_run_interrupted_in_or_after_an_epoch_and_resumed_ends_as_one_never_stopped(
    tmp_path, settings, never_stopped, step
):
    with at_step(step, press_ctrl_c), pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", settings)
    assert load_checkpoint(load_run(tmp_path / "run"))["step"] == step
    assert_same(resume(tmp_path / "run"), never_stopped)


def test_a_run_killed_in_an_epoch_goes_on_from_the_end_of_the_one_before(tmp_path, settings, never_stopped):
    with at_step(EPOCH + 4, kill), pytest.raises(Killed):
        train(tmp_path / "run", settings)
    assert load_checkpoint(load_run(tmp_path / "run"))["step"] == EPOCH
    assert_same(resume(tmp_path / "run"), never_stopped)


def test_a_run_interrupted_in_its_validation_is_stopped_after_it(tmp_path, never_stopped, settings, monkeypatch):
    evaluate = training.evaluate

    def interrupted(*arguments):
        press_ctrl_c()
        monkeypatch.undo()
        return evaluate(*arguments)

    monkeypatch.setattr(training, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", settings)
    assert load_checkpoint(load_run(tmp_path / "run"))["step"] == EPOCH
    assert_same(resume(tmp_path / "run"), never_stopped)


def test_a_run_goes_on_for_more_epochs(tmp_path, settings, never_stopped):
    train(tmp_path / "run", replace(settings, epochs=1))
    assert_same(resume(tmp_path / "run", epochs=2), never_stopped)
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["fields"]["epochs"] == 2


def test_a_run_goes_on_for_more_steps(tmp_path):
    train(tmp_path / "run", replace(TINY, epochs=None, steps=3))
    longer = resume(tmp_path / "run", steps=EPOCH + 2)
    assert torch.equal(
        last_weights(longer), last_weights(train(tmp_path / "long", replace(TINY, epochs=None, steps=EPOCH + 2)))
    )


def test_a_run_that_has_ended_has_nothing_left_to_train(tmp_path):
    run = train(tmp_path / "run")
    before = weights(run)
    assert torch.equal(weights(resume(run.folder)), before)


def test_the_time_of_training_goes_on_where_it_stood(tmp_path):
    with at_step(3, press_ctrl_c), pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run")
    stood = load_checkpoint(load_run(tmp_path / "run"))["seconds"]
    assert all(record["seconds"] > stood for record in resume(tmp_path / "run").records("validation"))


@pytest.mark.parametrize(("field", "value"), [("rate", 0.1), ("batch", 16), ("seed", 1), ("conv_channels", 4)])
def test_another_recipe_is_refused_and_the_field_named(tmp_path, field, value):
    run = start_run(tmp_path / "run", TINY, few_digits())
    with pytest.raises(InputError, match=rf"was trained on digits otherwise \({field}\): only --epochs"):
        run.extended("digits", replace(TINY, **{field: value}))
    assert load_run(run.folder) == run


def test_other_data_is_refused_and_named(tmp_path):
    run = start_run(tmp_path / "run", TINY, few_digits())
    with pytest.raises(InputError, match=r"was trained on digits otherwise \(data mnist\)"):
        run.extended("mnist", TINY)


@pytest.mark.parametrize("recipe", [replace(TINY, conv_channels=4), BASELINE, replace(TINY, averaging=0.9)])
def test_a_checkpoint_of_another_network_is_refused_in_one_line(tmp_path, recipe):
    other = train(tmp_path / "other", replace(TINY, epochs=None, steps=1))
    run = start_run(tmp_path / "run", recipe, few_digits())
    other.checkpoint.rename(run.checkpoint)
    with pytest.raises(InputError, match=r"last\.ckpt is of another network: ") as refusal:
        resume(run.folder)
    assert "\n" not in str(refusal.value)


def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path):
    start_run(tmp_path / "run", TINY, few_digits())
    with pytest.raises(InputError, match="run has no checkpoint to resume from: start it anew with --overwrite"):
        resume(tmp_path / "run")


def test_best_weights_are_compared_with_those_from_before_the_stop(tmp_path, monkeypatch):
    run = train(tmp_path / "run", replace(TINY, epochs=1))
    kept, found = weights(run), run.records("validation")[0]["errors"]
    worse = Evaluation(60, found + 1, [[]], None, "label")
    monkeypatch.setattr(training, "evaluate", lambda *_: worse)
    resumed = resume(run.folder, epochs=2)
    assert torch.equal(weights(resumed), kept)
    assert not torch.equal(last_weights(resumed), kept)
