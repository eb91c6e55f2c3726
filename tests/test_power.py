"""What a run leaves is flushed to the disk, with the names of its folders: a loss of power takes nothing of it."""

import os
from pathlib import Path

from capsnet.runs import start_run
from tests.training import TINY, few_digits, train


def flushed(monkeypatch):
    """Files and folders that this process flushes to the disk from now on."""
    paths, fsync = [], os.fsync

    def flush(number):
        paths.append(Path(os.readlink(f"/proc/self/fd/{number}")))
        fsync(number)

    monkeypatch.setattr(os, "fsync", flush)
    return paths


def test_the_names_of_a_new_run_folder_and_of_those_that_it_lies_in_survive_a_loss_of_power(tmp_path, monkeypatch):
    paths = flushed(monkeypatch)
    start_run(tmp_path / "runs" / "new" / "run", TINY, few_digits())
    assert {tmp_path, tmp_path / "runs", tmp_path / "runs" / "new", tmp_path / "runs" / "new" / "run"} <= {*paths}


def test_the_log_and_the_folders_of_a_run_survive_a_loss_of_power(tmp_path, monkeypatch):
    paths = flushed(monkeypatch)
    folder = train(tmp_path / "run").folder
    left = {folder, folder / "best", folder / "checkpoints", folder / "log.jsonl", *folder.glob("*tfevents*")}
    assert left <= {*paths}
