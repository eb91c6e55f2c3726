"""JSON files are written atomically, and the cache folder is the user's."""

import json
from pathlib import Path

import pytest

from capsnet.files import cache_folder, write_json


def test_a_json_file_is_written_in_a_new_folder_and_replaced(tmp_path):
    for content in ({"a": [1, None]}, {"a": "ä"}):
        path = write_json(tmp_path / "new" / "file.json", content)
        assert json.loads(path.read_text()) == content
    assert [path.name for path in path.parent.iterdir()] == ["file.json"]


def test_content_that_is_no_json_leaves_the_file_unchanged(tmp_path):
    path = write_json(tmp_path / "file.json", [1])
    with pytest.raises(TypeError):
        write_json(path, {1, 2})
    assert path.read_text() == "[\n 1\n]\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_the_cache_is_in_the_folder_of_the_environment_or_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "capsnet"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert cache_folder() == tmp_path / "home" / ".cache" / "capsnet"
