"""A run that was stopped, in any way, and resumed has the results of a run that was never stopped."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from capsnet import training
from capsnet.checkpoints import checkpoint_paths, load_checkpoint, read_checkpoint, save_checkpoint
from capsnet.data import ImageSet
from capsnet.errors import InputError
from capsnet.evaluation import Evaluation
from capsnet.runs import load_run, start_run
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
    """Simulates a process that is killed between two steps."""


def kill():
    raise Killed


STATES = {
    "capsnet": TINY,
    "bf16": replace(TINY, precision="bf16-mixed"),
    "small-cnn": BASELINE,  # has dropout
    "averaged": replace(TINY, ema_decay=0.9),  # has a second set of weights
}


@pytest.fixture(scope="module", params=STATES)
def settings(request):
    """Recipes whose state differs."""
    return STATES[request.param]


@pytest.fixture(scope="module")
def never_stopped(settings, tmp_path_factory):
    return train(tmp_path_factory.mktemp("never") / "stopped", settings)


def assert_same(run, other):
    """Assert that networks, optimizer states and measurements of two runs are bitwise equal."""
    assert torch.equal(weights(run), weights(other))
    state, expected = load_checkpoint(run), load_checkpoint(other)
    assert state.keys() == expected.keys()
    for name in state.keys() - {"seconds"}:
        torch.testing.assert_close(state[name], expected[name], rtol=0, atol=0)
    for record, original in zip(run.records("validation"), other.records("validation"), strict=True):
        assert record | {"seconds": 0} == original | {"seconds": 0}


@pytest.mark.parametrize("step", [3, EPOCH, ENDED])
def test_a_run_interrupted_in_or_after_an_epoch_and_resumed_has_the_results_of_one_never_stopped(
    tmp_path, settings, never_stopped, step
):
    with at_step(step, press_ctrl_c), pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", settings)
    assert load_checkpoint(load_run(tmp_path / "run"))["step"] == step
    assert_same(resume(tmp_path / "run"), never_stopped)


def test_a_run_killed_in_an_epoch_resumes_from_the_end_of_the_epoch_before(tmp_path, settings, never_stopped):
    with at_step(EPOCH + 4, kill), pytest.raises(Killed):
        train(tmp_path / "run", settings)
    assert load_checkpoint(load_run(tmp_path / "run"))["step"] == EPOCH
    assert_same(resume(tmp_path / "run"), never_stopped)


def test_a_run_interrupted_during_validation_stops_after_it(tmp_path, never_stopped, settings, monkeypatch):
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


def test_a_run_can_be_resumed_for_more_epochs(tmp_path, settings, never_stopped):
    train(tmp_path / "run", replace(settings, epochs=1))
    assert_same(resume(tmp_path / "run", epochs=2), never_stopped)
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["fields"]["epochs"] == 2


def test_a_run_can_be_resumed_for_more_steps(tmp_path):
    train(tmp_path / "run", replace(TINY, epochs=None, steps=3))
    longer = resume(tmp_path / "run", steps=EPOCH + 2)
    assert torch.equal(
        last_weights(longer), last_weights(train(tmp_path / "long", replace(TINY, epochs=None, steps=EPOCH + 2)))
    )


def test_resuming_a_run_that_has_ended_changes_nothing(tmp_path):
    run = train(tmp_path / "run")
    before = weights(run)
    assert torch.equal(weights(resume(run.folder)), before)


def test_the_training_time_includes_the_time_before_the_run_was_resumed(tmp_path):
    with at_step(3, press_ctrl_c), pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run")
    stood = load_checkpoint(load_run(tmp_path / "run"))["seconds"]
    assert all(record["seconds"] > stood for record in resume(tmp_path / "run").records("validation"))


@pytest.mark.parametrize(("field", "value"), [("lr", 0.1), ("batch_size", 16), ("seed", 1), ("conv_channels", 4)])
def test_another_recipe_is_refused_and_the_field_named(tmp_path, field, value):
    run = start_run(tmp_path / "run", TINY, few_digits())
    with pytest.raises(InputError, match=rf"was trained with other options \({field}\): only --epochs"):
        run.extended(few_digits(), replace(TINY, **{field: value}))
    assert load_run(run.folder) == run


def one_more(part):
    return ImageSet(torch.cat([part.images, part.images[:1]]), torch.cat([part.labels, part.labels[:1]]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train": one_more}, "train had 200 images and has 201"),
        ({"test": one_more}, "test had 60 images and has 61"),
        ({"validation": lambda part: ImageSet(part.images, part.labels.flip(0))}, "validation has other images or lab"),
        ({"train": lambda part: ImageSet(part.images ^ 1, part.labels)}, "train has other images or labels"),
    ],
)
def test_other_data_are_refused_with_their_counts(tmp_path, change, says):
    data = few_digits()
    run = start_run(tmp_path / "run", TINY, data)
    changed = replace(data, **{part: act(getattr(data, part)) for part, act in change.items()})
    with pytest.raises(InputError, match=f"digits is not what .*run was trained on: {says}"):
        run.extended(changed, TINY)
    if "test" not in change:  # as training does not use test images
        with pytest.raises(InputError, match=says):
            training.train(run, changed)


@pytest.mark.parametrize("recipe", [replace(TINY, conv_channels=4), BASELINE, replace(TINY, ema_decay=0.9)])
def test_a_checkpoint_of_another_network_is_refused_in_one_line(tmp_path, recipe):
    other = train(tmp_path / "other", replace(TINY, epochs=None, steps=1))
    run = start_run(tmp_path / "run", recipe, few_digits())
    (other.folder / "checkpoints").rename(run.folder / "checkpoints")
    with pytest.raises(InputError, match=r"run/checkpoints is of another network: ") as refusal:
        resume(run.folder)
    assert "\n" not in str(refusal.value)


def test_a_checkpoint_of_a_longer_run_is_refused_in_one_line(tmp_path):
    run = train(tmp_path / "run", replace(TINY, epochs=None, steps=5))
    longer = train(tmp_path / "longer", replace(TINY, epochs=None, steps=6))
    shutil.copytree(longer.folder / "checkpoints", run.folder / "checkpoints", dirs_exist_ok=True)
    with pytest.raises(InputError, match="has step 6, but the run ends at 5: raise --steps or --epochs"):
        resume(run.folder)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda adam: adam["param_groups"].clear(),
        lambda adam: adam["state"].pop(0),
        lambda adam: adam["state"][1].pop("exp_avg_sq"),
        lambda adam: adam["state"][1].update(exp_avg=torch.zeros(3)),
        lambda adam: adam["state"][1].update(exp_avg=adam["state"][1]["exp_avg"].double()),
        lambda adam: adam["state"][1].update(exp_avg=adam["state"][1]["exp_avg"].to_sparse()),
        lambda adam: adam["state"][1].update(exp_avg=adam["state"][1]["exp_avg"][:1].expand(8)),
        lambda adam: adam["state"][1].update(step=7),
    ],
)
def test_an_impossible_state_of_adam_is_refused_or_has_no_effect(tmp_path, spoil, never_stopped, settings):
    with at_step(EPOCH + 4, press_ctrl_c), pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", settings)
    run = load_run(tmp_path / "run")
    state = load_checkpoint(run)
    spoil(state["optimizer"])
    for path in checkpoint_paths(run):
        path.unlink()
    save_checkpoint(run, state)
    if state["optimizer"]["param_groups"]:
        with pytest.raises(InputError, match=r"no intact checkpoint|is of another network: the optimizer's"):
            resume(run.folder)
    else:
        assert_same(resume(run.folder), never_stopped)


def test_a_run_that_another_run_has_replaced_is_not_trained_in_its_folder(tmp_path):
    run = start_run(tmp_path / "run", TINY, few_digits())
    start_run(tmp_path / "run", replace(TINY, seed=1), few_digits(), overwrite=True)
    with pytest.raises(InputError, match="was replaced by another run"):
        training.train(run, few_digits())
    assert not checkpoint_paths(run)


def test_a_run_that_is_to_be_shorter_than_it_is_stays_unchanged(tmp_path):
    run = train(tmp_path / "run")
    with pytest.raises(InputError, match="has step 14, but the run ends at 7: raise --steps or --epochs"):
        resume(run.folder, epochs=1)
    assert load_run(run.folder) == run


def test_a_run_records_where_its_data_have_moved(tmp_path):
    data = few_digits()
    run = start_run(tmp_path / "run", TINY, replace(data, name=str(tmp_path / "old")))
    with pytest.raises(
        InputError, match=f"old, which .* does not exist: .* `capsnet train NEW_PLACE --run {run.folder} --re"
    ):
        run.load_data()
    moved = replace(data, name=str(tmp_path / "new"))
    training.train(run.extended(moved, TINY), moved, resume=True)
    assert load_run(run.folder).data == str(tmp_path / "new")


@pytest.mark.parametrize("inner", [".", "checkpoints", "figures"])
def test_leftovers_of_a_killed_process_are_removed_and_a_user_s_file_is_not(tmp_path, inner):
    folder = train(tmp_path / "run", replace(TINY, epochs=1)).folder / inner
    folder.mkdir(exist_ok=True)
    for name in ("begun.png.123-4.part", "mine.part"):
        (folder / name).write_text("")
    resume(tmp_path / "run")
    assert [path.name for path in folder.glob("*.part")] == ["mine.part"]


def test_a_run_without_a_checkpoint_starts_at_its_first_step(tmp_path, never_stopped, settings, caplog):
    start_run(tmp_path / "run", settings, few_digits())
    assert_same(resume(tmp_path / "run"), never_stopped)
    assert "run has no checkpoint yet: it begins at the first step" in caplog.text


@pytest.mark.parametrize("save_minutes", [1e-9, 60])
def test_a_checkpoint_is_written_within_an_epoch(tmp_path, never_stopped, settings, save_minutes):
    run = start_run(tmp_path / "run", settings, few_digits())
    with at_step(4, kill), pytest.raises(Killed):
        training.train(run, few_digits(), save_minutes=save_minutes)
    state = load_checkpoint(run)
    assert state["step"] == 3 if save_minutes < 1 else state is None
    assert_same(resume(run.folder), never_stopped)


def test_the_last_two_checkpoints_are_kept(tmp_path):
    run = start_run(tmp_path / "run", TINY, few_digits())
    training.train(run, few_digits(), save_minutes=1e-9)
    assert [path.name for path in checkpoint_paths(run)] == ["0000000014.ckpt", "0000000013.ckpt"]


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [flip_a_bit, lambda path: path.write_bytes(b""), Path.unlink])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, settings, never_stopped, damage, caplog):
    run = train(tmp_path / "run", replace(settings, epochs=2))
    damage(checkpoint_paths(run)[0])
    assert load_checkpoint(run)["step"] == EPOCH
    assert ("0000000014.ckpt is damaged" in caplog.text) == (damage is not Path.unlink)
    assert_same(resume(run.folder), never_stopped)
    assert [read_checkpoint(path)["step"] for path in checkpoint_paths(run)] == [2 * EPOCH, EPOCH]


def test_if_all_checkpoints_are_damaged_the_error_is_one_line(tmp_path):
    run = train(tmp_path / "run")
    for path in checkpoint_paths(run):
        flip_a_bit(path)
    with pytest.raises(
        InputError, match="run has no intact checkpoint to resume from: start it again with --overwrite"
    ):
        resume(run.folder)


@pytest.mark.parametrize(
    "damage", [lambda run: shutil.rmtree(run.best), lambda run: (run.best / "config.json").unlink()]
)
def test_a_lost_network_is_saved_again(tmp_path, damage, caplog):
    run = train(tmp_path / "run")
    damage(run)
    assert torch.equal(weights(resume(run.folder)), last_weights(run))
    assert "the best network of" in caplog.text
    run = train(tmp_path / "longer")
    run.best.rename(tmp_path / "best")
    assert torch.equal(weights(resume(run.folder, epochs=3)), last_weights(load_run(run.folder)))


def test_a_longer_one_cycle_is_refused(tmp_path):
    run = train(tmp_path / "run", replace(TINY, schedule="one-cycle", epochs=1))
    with pytest.raises(InputError, match="was planned as one cycle of the learning rate over all its steps"):
        resume(run.folder, epochs=2)
    resume(run.folder)


def test_each_part_of_a_training_has_its_first_step_and_its_planned_steps(tmp_path):
    with at_step(3, press_ctrl_c), pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run")
    resume(tmp_path / "run")
    run = resume(tmp_path / "run", epochs=3)
    assert [(part.from_step, part.steps) for part in run.training_parts] == [(0, 14), (3, 14), (14, 21)]


def test_resuming_changes_neither_the_recipe_nor_the_records_of_earlier_parts(tmp_path):
    with at_step(3, press_ctrl_c), pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run")
    recipe, parts = (tmp_path / "run" / "recipe.json").read_bytes(), load_run(tmp_path / "run").training_parts
    run = resume(tmp_path / "run")
    assert (tmp_path / "run" / "recipe.json").read_bytes() == recipe
    assert run.training_parts[:1] == parts


def test_training_restores_the_random_state_of_the_process(tmp_path):
    before = torch.get_rng_state()
    run = start_run(tmp_path / "run", BASELINE, few_digits())
    training.train(run, few_digits())
    assert torch.equal(torch.get_rng_state(), before)


def test_after_resuming_new_weights_are_saved_only_if_better_than_the_earlier_best(tmp_path, monkeypatch):
    run = train(tmp_path / "run", replace(TINY, epochs=1))
    kept, found = weights(run), run.records("validation")[0]["errors"]
    worse = Evaluation(60, found + 1, [[]], None, "label")
    monkeypatch.setattr(training, "evaluate", lambda *_: worse)
    resumed = resume(run.folder, epochs=2)
    assert torch.equal(weights(resumed), kept)
    assert not torch.equal(last_weights(resumed), kept)
