"""A run folder holds all that belongs to a run, is written whole or not at all, and is never lost by mistake."""

import json
import os
import resource
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from capsnet.errors import InputError
from capsnet.evaluation import evaluate
from capsnet.files import whole
from capsnet.hardware import default_device, environment
from capsnet.runs import load_checkpoint, load_run, save_checkpoint, save_network, start_run
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
    assert files == {"recipe.json", "environment.json", "log.jsonl", "last.ckpt"} | best


def test_a_run_is_opened_as_it_was_started(finished):
    assert load_run(finished.folder) == load_run(str(finished.folder)) == finished


def test_a_folder_that_exists_is_not_overwritten_unless_told(copied):
    before = contents(copied.folder)
    with pytest.raises(InputError, match="exists: go on with it by --resume, replace it by --overwrite, or name ano"):
        start(copied.folder)
    assert contents(copied.folder) == before
    start(copied.folder, overwrite=True)
    assert contents(copied.folder).keys() == {"recipe.json"}


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_that_is_no_run_is_never_removed(tmp_path, overwrite):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="exists and is no run folder: name another one with --run"):
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
    """Let no file grow beyond 4 KiB, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_for_which_there_is_no_room_leaves_the_one_before(copied, no_room):
    before = contents(copied.folder)
    no_room()
    with pytest.raises(InputError, match=rf"cannot write {copied.checkpoint}, which is left as it was: ") as refusal:
        save_checkpoint(copied, {"network": torch.zeros(10_000)})
    assert "\n" not in str(refusal.value)
    assert contents(copied.folder) == before


def test_a_network_for_which_there_is_no_room_leaves_the_one_before(copied, no_room):
    before, network = contents(copied.folder), copied.load_network()
    no_room()
    with pytest.raises(InputError, match=rf"cannot write {copied.best}, which is left as it was: "):
        save_network(copied, network)
    assert contents(copied.folder) == before


def test_what_is_written_takes_the_place_of_what_was_there_when_it_is_whole(tmp_path):
    (tmp_path / "file").write_text("old")
    with whole(tmp_path / "file") as part:
        part.write_text("new")
        assert contents(tmp_path)["file"] == b"old"
    assert contents(tmp_path) == {"file": b"new"}


def test_what_a_killed_process_left_half_written_is_in_nobodys_way(copied):
    copied.checkpoint.with_name("last.ckpt.part").write_bytes(b"half")
    copied.best.with_name("best.part").mkdir()
    save_checkpoint(copied, {"step": 3})
    save_network(copied, copied.load_network())
    assert load_checkpoint(copied) == {"step": 3}
    assert not [name for name in os.listdir(copied.folder) if name.endswith(".part")]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe\x00", b'{"recipe": "digits"}', b'{"recipe": "none", "fields": {}}'],
)
def test_a_damaged_recipe_is_refused_in_one_line(copied, content):
    (copied.folder / "recipe.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"{copied.folder / 'recipe.json'} cannot be read: .") as refusal:
        load_run(copied.folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("value", ["many", 0])
def test_a_recipe_with_an_impossible_value_is_refused(copied, value):
    path = copied.folder / "recipe.json"
    about = json.loads(path.read_text())
    about["fields"]["epochs"] = value
    path.write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"recipe\.json cannot be read: "):
        load_run(copied.folder)


@pytest.mark.parametrize("folder", [".", "nowhere", "recipe.json"])
def test_what_is_no_run_folder_is_refused(finished, tmp_path, folder):
    where = {"recipe.json": finished.folder / "recipe.json"}.get(folder, tmp_path / folder)
    with pytest.raises(InputError, match=f"{where} is no run folder: it has no recipe.json"):
        load_run(where)


@pytest.mark.parametrize("keep", [0, 100, 10_000])
def test_a_damaged_checkpoint_is_refused_in_one_line(copied, keep):
    copied.checkpoint.write_bytes(copied.checkpoint.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"last\.ckpt is damaged \(\w+\): start anew with --overwrite") as refusal:
        load_checkpoint(copied)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("keep", [0, 100])
def test_a_damaged_network_is_refused_in_one_line(copied, file, keep):
    path = copied.best / file
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=f"{copied.best} does not hold the weights of its config.json: ") as refusal:
        copied.load_network()
    assert "\n" not in str(refusal.value)


def test_the_weights_of_another_network_are_refused_in_one_line(copied, tmp_path):
    other = train(tmp_path / "other", replace(TINY, epochs=None, steps=1, capsule_dim=4))
    (other.best / "model.safetensors").replace(copied.best / "model.safetensors")
    with pytest.raises(InputError, match=r"does not hold the weights of its config\.json: .*size mismatch") as refusal:
        copied.load_network()
    assert "\n" not in str(refusal.value)


def test_a_run_without_a_network_says_how_to_get_one(tmp_path):
    with pytest.raises(InputError, match="has no trained network yet: finish it with `capsnet train --resume`"):
        start(tmp_path / "run").load_network()


def test_a_network_is_loaded_in_evaluation_mode_and_in_silence(finished, capfd):
    assert not finished.load_network().training
    assert capfd.readouterr() == ("", "")


def test_the_results_have_the_numbers_and_everything_they_stand_on(finished, monkeypatch):
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
    assert results["environment"] == json.loads((finished.folder / "environment.json").read_text())


def test_the_environment_is_kept_with_the_precision(finished):
    kept = json.loads((finished.folder / "environment.json").read_text())
    assert kept == environment(default_device()) | {"precision": "32-true"}


def test_a_run_has_its_data_split_as_in_training(finished):
    data = finished.load_data()
    assert (len(data.train), len(data.validation), len(data.test)) == (1294, 143, 360)
    reseeded = replace(finished, recipe=replace(TINY, seed=1)).load_data()
    assert not torch.equal(reseeded.validation.images, data.validation.images)


def test_other_data_with_as_many_classes_is_brought_to_the_size_of_the_network(finished, tmp_path):
    arrays = {"images": np.zeros((40, 12, 12), np.uint8), "labels": np.arange(40) % 10}
    np.savez(tmp_path / "other.npz", **arrays)
    assert finished.load_data(str(tmp_path / "other.npz")).image_shape == (1, 8, 8)


def test_other_data_with_other_classes_is_refused(finished, tmp_path):
    np.savez(tmp_path / "other.npz", images=np.zeros((40, 8, 8), np.uint8), labels=np.arange(40) % 4)
    with pytest.raises(InputError, match=r"other\.npz has 4 classes and images \(1, 8, 8\), but the network of .* 10"):
        finished.load_data(str(tmp_path / "other.npz"))
