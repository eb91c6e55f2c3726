"""A run folder has all files of a run, is written atomically, and is never overwritten by mistake."""

import hashlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from capsnet import training
from capsnet.checkpoints import checkpoint_paths, load_checkpoint, read_checkpoint, save_checkpoint
from capsnet.data import load_data
from capsnet.errors import InputError
from capsnet.evaluation import evaluate
from capsnet.files import atomic_write, locked
from capsnet.hardware import default_device, environment
from capsnet.runs import load_run, save_network, start_run
from tests.training import TINY, few_digits, train, weights


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "finished", replace(TINY, epochs=None, steps=2))


@pytest.fixture
def copied(finished, tmp_path):
    """A run that a test may damage."""
    return load_run(shutil.copytree(finished.folder, tmp_path / "copied"))


def start(folder, **how):
    return start_run(folder, TINY, few_digits(), **how)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_folder_has_the_files_it_should_and_no_others(finished):
    files = {name for name in contents(finished.folder) if not name.startswith("events.out.tfevents.")}
    best = {"best/config.json", "best/model.safetensors", "best/README.md"}
    assert files == {"recipe.json", "environment.json", "log.jsonl", "run.lock", "checkpoints/0000000002.ckpt"} | best


def test_a_run_is_opened_as_it_was_started(finished):
    assert load_run(finished.folder) == load_run(str(finished.folder)) == finished


def test_an_existing_run_is_overwritten_only_with_overwrite(copied):
    before = contents(copied.folder)
    with pytest.raises(InputError, match="exists: continue it with --resume, replace it with --overwrite, or choose a"):
        start(copied.folder)
    assert contents(copied.folder) == before
    start(copied.folder, overwrite=True)
    assert contents(copied.folder).keys() == {"recipe.json", "run.lock"}


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_that_is_no_run_is_never_removed(tmp_path, overwrite):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="exists and is not a run folder: choose another one with --run"):
        start(tmp_path, overwrite=overwrite)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


def test_an_empty_folder_may_become_a_run(tmp_path):
    assert start(tmp_path).folder == tmp_path


def test_a_file_in_the_place_of_the_folder_is_refused_and_kept(tmp_path):
    (tmp_path / "file").write_text("kept")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match=f"{folder} "):
            start(folder, overwrite=True)
    assert contents(tmp_path) == {"file": b"kept"}


@pytest.fixture
def no_room():
    """Limit files to 4 KiB, to simulate a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_earlier_ones_unchanged(copied, no_room):
    before, state = contents(copied.folder), load_checkpoint(copied)
    no_room()
    with pytest.raises(InputError, match=r"cannot write .*0000000003\.ckpt, which is left as it was: ") as refusal:
        save_checkpoint(copied, state | {"step": 3})
    assert "\n" not in str(refusal.value)
    assert contents(copied.folder) == before


def test_a_network_that_does_not_fit_on_the_disk_leaves_the_earlier_one_unchanged(copied, no_room):
    before, network = contents(copied.folder), copied.load_network()
    no_room()
    with pytest.raises(InputError, match=rf"cannot write {copied.best}, whose model.safetensors is left as it was: "):
        save_network(copied, network)
    assert contents(copied.folder) == before


def test_an_atomic_write_replaces_the_file_when_it_is_complete(tmp_path):
    (tmp_path / "file").write_text("old")
    with atomic_write(tmp_path / "file") as part:
        part.write_text("new")
        assert contents(tmp_path)["file"] == b"old"
    assert contents(tmp_path) == {"file": b"new"}


def test_leftovers_of_a_killed_process_are_removed_when_the_run_is_resumed(copied):
    (copied.folder / "best.1-0.part").mkdir()
    (copied.folder / "checkpoints" / "0000000003.ckpt.1-0.part").write_bytes(b"half")
    (copied.folder / "thesis.part").write_bytes(b"years of work")
    train_again(copied)
    assert [name for name in contents(copied.folder) if ".part" in name] == ["thesis.part"]


def test_a_folder_with_a_part_file_of_the_user_is_not_free(tmp_path):
    (tmp_path / "film.mkv.part").touch()
    with pytest.raises(InputError, match="exists and is not a run folder"):
        start(tmp_path)


@pytest.mark.parametrize("left", ["recipe.json.1-0.part", "run.lock"])
def test_a_folder_that_a_killed_process_had_only_created_is_free(tmp_path, left):
    (tmp_path / left).write_text("")
    start(tmp_path)
    assert load_run(tmp_path).recipe == TINY


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe\x00", b'{"recipe": "digits"}', b'{"recipe": "none", "fields": {}}', 100_000 * b"["],
)
def test_a_damaged_recipe_is_refused_in_one_line(copied, content):
    (copied.folder / "recipe.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"{copied.folder / 'recipe.json'} is damaged: .") as refusal:
        load_run(copied.folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "change",
    [
        {"classes": []},
        {"classes": ["a", "a"]},
        {"classes": "0123456789"},
        {"image_shape": [8, 8]},
        {"image_shape": [1, -8, 8]},
        {"image_shape": [1, 8.5, 8]},
        {"recipe": "none"},
        {"data": 3},
        {"fingerprint": {}},
        {"fields": None},
        {"more": 1},
    ],
)
def test_a_run_file_with_an_impossible_value_is_refused_in_one_line(copied, change):
    path = copied.folder / "recipe.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=r"recipe\.json is damaged: ") as refusal:
        load_run(copied.folder)
    assert "\n" not in str(refusal.value)


def test_a_folder_in_the_place_of_the_recipe_is_refused_in_one_line(copied):
    (copied.folder / "recipe.json").unlink()
    (copied.folder / "recipe.json").mkdir()
    with pytest.raises(InputError, match=r"recipe\.json cannot be read: Is a directory"):
        load_run(copied.folder)


@pytest.mark.parametrize("value", ["many", 0])
def test_a_recipe_with_an_impossible_value_is_refused(copied, value):
    path = copied.folder / "recipe.json"
    about = json.loads(path.read_text())
    about["fields"]["epochs"] = value
    path.write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"recipe\.json is damaged: --epochs "):
        load_run(copied.folder)


@pytest.mark.parametrize("folder", [".", "nowhere", "recipe.json"])
def test_a_path_that_is_no_run_folder_is_refused(finished, tmp_path, folder):
    where = {"recipe.json": finished.folder / "recipe.json"}.get(folder, tmp_path / folder)
    with pytest.raises(InputError, match=f"{where} is not a run folder: it has no recipe.json"):
        load_run(where)


def sealed(state):
    """The content of a checkpoint with a valid checksum."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return hashlib.sha256(buffer.getvalue()).hexdigest().encode() + buffer.getvalue()


@pytest.mark.parametrize("keep", [0, 30, 100, 10_000])
def test_a_truncated_checkpoint_is_refused_in_one_line(copied, keep):
    path = checkpoint_paths(copied)[0]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"0000000002\.ckpt is damaged: its checksum does not match"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: [], "Input should be a valid dictionary"),
        (lambda state: torch.zeros(3), "Input should be a valid dictionary"),
        (lambda state: {}, "network: Field required"),
        (lambda state: state | {"step": -5}, "step: Input should be greater than or equal to 0"),
        (lambda state: state | {"step": "2"}, "step: Input should be a valid integer"),
        (lambda state: state | {"seconds": float("nan")}, "seconds: Input should be"),
        (lambda state: state | {"least_errors": None}, "least_errors: Input should be a valid number"),
        (lambda state: state | {"network": torch.zeros(3)}, "network: Input should be a valid dictionary"),
        (lambda state: state | {"random": 3}, "random: Input should be an instance of Tensor"),
        (lambda state: state | {"more": 3}, "more: Extra inputs are not permitted"),
    ],
)
def test_a_checkpoint_with_other_content_is_refused_in_one_line(copied, change, says):
    path = checkpoint_paths(copied)[0]
    path.write_bytes(sealed(change(load_checkpoint(copied))))
    with pytest.raises(InputError, match=rf"0000000002\.ckpt is damaged: {says}") as refusal:
        read_checkpoint(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("file", "says"), [("model.safetensors", "cannot be read: "), ("config.json", "is damaged: ")])
@pytest.mark.parametrize("keep", [0, 100])
def test_a_truncated_network_is_refused_in_one_line(copied, file, says, keep):
    path = copied.best / file
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=f"{path} {says}") as refusal:
        copied.load_network()
    assert "\n" not in str(refusal.value)


def test_any_flipped_bit_of_the_weights_is_found(copied):
    path, intact = copied.best / "model.safetensors", weights(copied)
    content = path.read_bytes()
    found = 0
    for place in range(0, len(content), 997):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            assert torch.equal(weights(copied), intact)  # padding of the header
        except InputError:
            found += 1
    assert found > 0.99 * len(content) / 997


def test_the_weights_of_another_network_are_refused_in_one_line(copied, tmp_path):
    other = train(tmp_path / "other", replace(TINY, epochs=None, steps=1, capsule_dim=4))
    (other.best / "model.safetensors").replace(copied.best / "model.safetensors")
    with pytest.raises(InputError, match=r"does not hold the weights of its config\.json: .*size mismatch") as refusal:
        copied.load_network()
    assert "\n" not in str(refusal.value)


def test_a_run_without_a_network_says_how_to_get_one(tmp_path):
    with pytest.raises(
        InputError, match=r"no trained network yet: train it with `capsnet train digits --run .*run --r"
    ):
        start(tmp_path / "run").load_network()


def test_a_network_is_loaded_in_evaluation_mode_and_without_output(finished, capfd):
    assert not finished.load_network().training
    assert capfd.readouterr() == ("", "")


def test_the_results_have_the_numbers_and_how_they_were_made(finished, monkeypatch):
    data, network = few_digits(), finished.load_network()
    result = evaluate(network, data.test)
    results = json.loads(finished.write_results(network, data, result).read_text())
    assert results["test"] == {
        "n": 60,
        "errors": result.errors,
        "accuracy": result.accuracy,
        "per_class": result.per_class,
        "confusion": result.confusion,
        "reconstruction": result.reconstruction,
        "masked_by": "prediction",
    }
    assert (results["recipe"], results["data"], results["image_shape"]) == ("digits", "digits", [1, 8, 8])
    assert results["fields"]["conv_channels"] == TINY.conv_channels
    assert results["parameters"] == weights(network).numel()
    assert (results["training_images"], results["validation_images"]) == (200, 60)
    assert results["training_seconds"] > 0
    assert results["validation"] == finished.records("validation")
    kept = json.loads((finished.folder / "environment.json").read_text())["parts"]
    assert (results["environment"], results["training_parts"]) == (kept[-1], kept)


def test_the_environment_is_recorded_with_the_precision(finished):
    (kept,) = json.loads((finished.folder / "environment.json").read_text())["parts"]
    about = {"precision": "32-true", "from_step": 0, "steps": 2, "processes": 1, "nodes": 1}
    assert kept == environment(default_device()) | about


@pytest.fixture
def on_all_digits(tmp_path):
    return start_run(tmp_path / "all", TINY, load_data("digits"))


def test_a_run_loads_its_data_split_as_in_training(on_all_digits):
    assert on_all_digits.load_data().fingerprint() == on_all_digits.fingerprint
    assert on_all_digits.load_data("digits").fingerprint() == on_all_digits.fingerprint


def test_another_split_is_refused_and_the_parts_named(on_all_digits):
    with pytest.raises(InputError, match=r"train has other images or labels \(1,294\); validation has other images or"):
        replace(on_all_digits, recipe=replace(TINY, seed=1)).load_data()


def save_arrays(path, classes, n=40, size=8):
    images = np.random.default_rng(0).integers(0, 256, (n, size, size), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(n) % len(classes), classes=np.array(classes))
    return str(path)


def test_data_that_have_grown_since_the_training_are_refused_and_the_counts_named(tmp_path):
    path = save_arrays(tmp_path / "own.npz", ["a", "b"])
    run = start_run(tmp_path / "run", TINY, load_data(path))
    save_arrays(tmp_path / "own.npz", ["a", "b"], n=80)
    with pytest.raises(
        InputError, match=r"own\.npz is not what .*run was trained on: train had \d+ images and has \d+"
    ):
        run.load_data()


def test_a_run_keeps_the_absolute_path_of_its_data(tmp_path, monkeypatch):
    save_arrays(tmp_path / "own.npz", ["a", "b"])
    monkeypatch.chdir(tmp_path)
    run = start_run(tmp_path / "run", TINY, load_data("own.npz"))
    monkeypatch.chdir("/")
    assert load_run(run.folder).load_data().fingerprint() == run.fingerprint


def test_other_data_is_brought_to_the_size_of_the_network(finished, tmp_path):
    other = save_arrays(tmp_path / "other.npz", [str(k) for k in range(10)], size=12)
    assert finished.load_data(other).image_shape == (1, 8, 8)


def test_the_classes_of_other_data_are_matched_by_name(finished, tmp_path):
    names = ["9", "3", "4"]
    other = finished.load_data(save_arrays(tmp_path / "other.npz", names))
    own = load_data(str(tmp_path / "other.npz"))
    assert other.classes == finished.classes
    assert [other.classes[k] for k in other.test.labels] == [names[k] for k in own.test.labels]


def test_other_data_with_a_class_that_the_network_does_not_know_is_refused(finished, tmp_path):
    other = save_arrays(tmp_path / "other.npz", [*(str(k) for k in range(9)), "cat"])
    with pytest.raises(InputError, match=r"other\.npz has classes that .* does not have: cat; it has 0, 1, 2"):
        finished.load_data(other)


@pytest.mark.parametrize(
    "line",
    [b"", b"3", b"{}", b"\0", b'{"kind": "train", "st', b'{"kind": "train", "step": 1, "epoch": 1, "seconds": "\xff"}'],
)
def test_a_damaged_line_of_the_log_is_left_out_and_counted(copied, line, caplog):
    before = copied.records()
    copied.log.write_bytes(line + b"\n" + copied.log.read_bytes() + line + b"\n")
    assert copied.records() == before
    assert "log.jsonl: 2 damaged lines are left out" in caplog.text


def test_the_learning_rate_of_old_logs_is_read_as_lr(copied):
    line = '{"kind": "train", "step": 1, "epoch": 1, "seconds": 0.5, "loss": 0.25, "rate": 0.001}'
    copied.log.write_text(line + "\n")
    expected = {"kind": "train", "step": 1, "epoch": 1, "seconds": 0.5, "loss": 0.25, "lr": 0.001}
    assert copied.records("train") == [expected]


def in_a_thread(act, *arguments):
    """What a function raises in another thread."""
    with ThreadPoolExecutor() as threads:
        return threads.submit(act, *arguments).exception()


def test_a_folder_that_is_being_trained_in_is_refused_and_the_owner_named(copied):
    with locked(copied.folder):
        for act in (train_again, lambda run: start(run.folder, overwrite=True)):
            refusal = in_a_thread(act, copied)
            assert isinstance(refusal, InputError)
            assert f"is being trained by process {os.getpid()} on " in str(refusal)


def test_the_process_that_has_the_lock_may_lock_again(copied):
    with locked(copied.folder), locked(copied.folder):
        pass
    train_again(copied)


def test_the_lock_of_a_process_that_was_killed_is_free(copied):
    program = "import sys, time; from pathlib import Path; from capsnet.files import locked\n"
    program += "with locked(Path(sys.argv[1])): print('locked', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", program, str(copied.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match=f"is being trained by process {owner.pid} on "):
            train_again(copied)
        owner.kill()
    train_again(copied)


def train_again(run):
    training.train(run, few_digits(), resume=True)
