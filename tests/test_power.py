"""The files of a run and the entries of its folders are flushed to disk, so that they survive a power loss."""

import os
from pathlib import Path

from capsnet.runs import start_run
from tests.training import TINY, few_digits, train


def flushed(monkeypatch):
    """Files and folders that this process flushes to disk from now on."""
    paths, fsync = [], os.fsync

    def flush(number):
        paths.append(Path(os.readlink(f"/proc/self/fd/{number}")))
        fsync(number)

    monkeypatch.setattr(os, "fsync", flush)
    return paths


def test_a_new_run_folder_and_its_parents_survive_a_power_loss(tmp_path, monkeypatch):
    paths = flushed(monkeypatch)
    start_run(tmp_path / "runs" / "new" / "run", TINY, few_digits())
    assert {tmp_path, tmp_path / "runs", tmp_path / "runs" / "new", tmp_path / "runs" / "new" / "run"} <= {*paths}


def test_the_log_and_the_folders_of_a_run_survive_a_power_loss(tmp_path, monkeypatch):
    paths = flushed(monkeypatch)
    folder = train(tmp_path / "run").folder
    left = {folder, folder / "best", folder / "checkpoints", folder / "log.jsonl", *folder.glob("*tfevents*")}
    assert left <= {*paths}
