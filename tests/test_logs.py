"""Measurements are written to log.jsonl, TensorBoard and the terminal, and are consistent after a run is resumed."""

import json
import os
import pty
import re
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from capsnet import training
from capsnet.build import learning_rate
from capsnet.logs import Log
from capsnet.runs import start_run
from tests.training import EPOCH, TINY, at_step, few_digits, resume, train

TRAINED = {"margin", "reconstruction", "loss", "accuracy", "lr", "gradient_norm", "images_per_second"}
VALIDATED = {"n", "errors", "accuracy", "reconstruction"}
ABOUT = {"kind", "step", "epoch", "seconds"}


def board(run):
    events = EventAccumulator(str(run.folder))
    events.Reload()
    return {name: events.Scalars(name) for name in events.Tags()["scalars"]}


def test_log_jsonl_has_every_measurement_and_its_step_and_time(tmp_path):
    run = train(tmp_path / "run", log_steps=1)
    training_records, validation_records = run.records("train"), run.records("validation")
    assert all(record.keys() == ABOUT | TRAINED for record in training_records)
    assert all(record.keys() == ABOUT | VALIDATED for record in validation_records)
    assert [(record["step"], record["epoch"]) for record in training_records] == [
        (step, 1 if step <= EPOCH else 2) for step in range(1, 2 * EPOCH + 1)
    ]
    assert [(record["step"], record["epoch"]) for record in validation_records] == [(EPOCH, 1), (2 * EPOCH, 2)]


def test_tensorboard_has_the_values_of_log_jsonl(tmp_path):
    run = train(tmp_path / "run", log_steps=1)
    shown = board(run)
    assert shown.keys() == {f"train/{name}" for name in TRAINED} | {f"validation/{name}" for name in VALIDATED}
    for tag, points in shown.items():
        kind, name = tag.split("/")
        written = [(record["step"], pytest.approx(record[name])) for record in run.records(kind)]
        assert [(point.step, point.value) for point in points] == written


def test_a_record_is_the_mean_over_the_steps_since_the_last_record(tmp_path):
    single = train(tmp_path / "single", log_steps=1).records("train")
    records = train(tmp_path / "fives", log_steps=5).records("train")
    assert [record["step"] for record in records] == [5, EPOCH, 10, 2 * EPOCH]
    for record, steps in zip(records, [range(0, 5), range(5, 7), range(7, 10), range(10, 14)], strict=True):
        for name in ("margin", "reconstruction", "loss", "accuracy"):
            assert record[name] == pytest.approx(sum(single[step][name] for step in steps) / len(steps))


@pytest.fixture
def clock(monkeypatch):
    """A clock for training by which a step takes one second, and opening the log or writing a checkpoint a hundred."""
    clock = SimpleNamespace(now=0.0)

    def slow(name, seconds):
        function = getattr(training, name)

        def slowed(*args):
            clock.now += seconds
            return function(*args)

        monkeypatch.setattr(training, name, slowed)

    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: clock.now))
    slow("learning_rate", 1)
    slow("save_checkpoint", 100)
    slow("Log", 100)
    return clock


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("save_minutes", [1e-9, 1e9], ids=["a checkpoint after each step", "after each epoch"])
def test_images_per_second_are_those_of_the_steps_without_the_time_of_checkpoints(tmp_path, save_minutes):
    run = train(tmp_path / "run", log_steps=1, save_minutes=save_minutes)
    assert [record["images_per_second"] for record in run.records("train")] == 2 * ([32] * 6 + [8])


@pytest.mark.usefixtures("clock")
def test_images_per_second_count_the_images_of_a_smaller_last_batch(tmp_path):
    run = train(tmp_path / "run", log_steps=5)
    assert [record["images_per_second"] for record in run.records("train")] == [32, 20, 32, 26]


def test_lr_follows_the_schedule_and_the_loss_is_the_sum_of_its_parts(tmp_path):
    recipe = replace(TINY, schedule="one-cycle")
    for done, record in enumerate(train(tmp_path / "run", recipe, log_steps=1).records("train")):
        assert record["lr"] == learning_rate(recipe, done, 2 * EPOCH, EPOCH)
        assert record["loss"] == pytest.approx(
            record["margin"] + recipe.reconstruction_weight * record["reconstruction"]
        )


def test_records_after_the_checkpoint_are_dropped_when_the_run_is_resumed(tmp_path):
    def die():
        raise SystemError

    with at_step(EPOCH + 4, die), pytest.raises(SystemError):
        train(tmp_path / "run", log_steps=1)
    killed = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert json.loads(killed[-1])["step"] == EPOCH + 3
    time.sleep(1)  # TensorBoard orders its files by the seconds in their names
    run = resume(tmp_path / "run", log_steps=1)
    assert [record["step"] for record in run.records("train")] == list(range(1, 2 * EPOCH + 1))
    assert [point.step for point in board(run)["train/loss"]] == list(range(1, 2 * EPOCH + 1))


def test_an_incomplete_last_line_is_dropped(tmp_path):
    run = train(tmp_path / "run", replace(TINY, epochs=1))
    with run.log.open("a") as log:
        log.write('{"kind": "train", "st')
    assert [record["epoch"] for record in resume(run.folder, epochs=2).records("train")] == [1, 2]


def test_without_a_terminal_the_progress_is_plain_lines(tmp_path, capfd):
    train(tmp_path / "run")
    out, err = capfd.readouterr()
    progress, *_, validation = out.splitlines()
    assert re.fullmatch(r"epoch 1 step 7/14 margin \S+ loss \S+ .*norm \S+ · [\d,]+ images/s · \d+ s left", progress)
    assert re.fullmatch(r"epoch 2: validation accuracy \S+% \(\d+ errors of n = 60\), \d+ s of training", validation)
    assert "\x1b" not in out
    assert err == ""


def test_there_is_at_most_one_plain_line_in_ten_seconds(tmp_path, capfd):
    train(tmp_path / "run", log_steps=1)
    assert len(re.findall("^epoch . step", capfd.readouterr().out, re.M)) == 1


def test_on_a_terminal_the_progress_is_a_bar(tmp_path, monkeypatch):
    run = start_run(tmp_path / "run", TINY, few_digits())
    keyboard, terminal = pty.openpty()
    measured = dict.fromkeys(TRAINED, 0.5)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with open(terminal, "w") as screen:
        monkeypatch.setattr(sys, "stdout", screen)
        with Log(run, step=0, steps=4) as log:
            log.train(step=3, epoch=2, seconds=1.0, measured=measured)
        shown = os.read(keyboard, 2**16).decode()
    os.close(keyboard)
    assert re.search("epoch 2.*━━.*75 %.*loss 0.5", shown)
    assert "step 3/4" not in shown
