"""JSON files are checked against their dataclass; an invalid one is refused in one line."""

from dataclasses import dataclass
from typing import Annotated

import pytest
from pydantic import Field, with_config

from capsnet.checks import MAX_BYTES, STRICT, read_json
from capsnet.errors import InputError


@with_config(STRICT)
@dataclass(frozen=True)
class Settings:
    name: str
    epochs: Annotated[int, Field(ge=1)]
    lr: float = 0.1
    shape: tuple[int, int] = (1, 2)

    def __post_init__(self):
        if self.lr > 1:
            raise InputError(f"lr is at most 1, not {self.lr}")


def test_a_valid_file_is_an_instance_of_its_dataclass(tmp_path):
    (tmp_path / "a.json").write_text('{"name": "a", "epochs": 2, "shape": [3, 4]}')
    assert read_json(tmp_path / "a.json", Settings) == Settings("a", 2, shape=(3, 4))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "EOF while parsing"),
        (b"3", "Input should be an object"),
        (b"[1]", "Input should be an object"),
        (b"null", "Input should be an object"),
        (b'{"name": "a"}', "epochs: Field required"),
        (b'{"name": "a", "epochs": 2, "epoch": 1}', "epoch: Unexpected keyword argument"),
        (b'{"name": "a", "epochs": "2"}', "epochs: Input should be a valid integer"),
        (b'{"name": "a", "epochs": 1.5}', "epochs: Input should be a valid integer"),
        (b'{"name": "a", "epochs": true}', "epochs: Input should be a valid integer"),
        (b'{"name": "a", "epochs": 0}', "epochs: Input should be greater than or equal to 1"),
        (b'{"name": "a", "epochs": 2, "lr": NaN}', "lr: Input should be a finite number"),
        (b'{"name": "a", "epochs": 2, "lr": Infinity}', "lr: Input should be a finite number"),
        (b'{"name": "a", "epochs": 2, "lr": 3}', "lr is at most 1, not 3"),
        (b'{"name": "a", "epochs": 2, "shape": [1]}', "shape.1: Field required"),
        (b'{"name": "a", "epochs": ' + 5000 * b"9" + b"}", "number out of range"),
        (b'{"name": "a\xff", "epochs": 2}', "Invalid JSON"),
        (b'{"name": "a", "epo\0', "Invalid JSON"),
        (100_000 * b"[", "recursion limit exceeded"),
        (b" " * (MAX_BYTES + 1), "larger than 16 MiB"),
    ],
)
def test_an_invalid_file_is_refused_in_one_line_with_file_and_field(tmp_path, content, says):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as raised:
        read_json(path, Settings)
    message = str(raised.value)
    assert message.startswith(f"{path} is damaged: ")
    assert says in message
    assert "\n" not in message


def test_a_folder_and_a_missing_file_are_refused_in_one_line(tmp_path):
    (tmp_path / "folder.json").mkdir()
    for name, says in (("folder.json", "Is a directory"), ("none.json", "No such file")):
        with pytest.raises(InputError, match=says):
            read_json(tmp_path / name, Settings)
