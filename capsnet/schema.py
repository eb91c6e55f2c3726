"""JSON files, checked against the dataclass that each one holds.

pydantic makes the checks from the type hints: `@with_config(STRICT)` above a dataclass refuses strings for numbers,
fields that are missing or unknown, NaN and infinity. Bounds stand in the hints: `Annotated[int, Field(ge=1)]`.
"""

from pathlib import Path
from typing import TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from capsnet.errors import InputError

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
Kind = TypeVar("Kind")
MAX_BYTES = 16 << 20  # of a JSON file; those of a run hold a few kilobytes


def read_json(path: Path, kind: type[Kind]) -> Kind:
    """Read a JSON file as an instance of a dataclass.

    Raises InputError, naming the file and the first field at fault, where it cannot be read or does not hold one.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise InputError(f"{path} is damaged: it is larger than {MAX_BYTES >> 20} MiB")
    return parse_json(content, kind, str(path))


def parse_json(content: bytes, kind: type[Kind], source: str) -> Kind:
    """Read JSON text as an instance of a dataclass; `source` names it in the InputError that is raised otherwise."""
    try:
        return TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        raise InputError(f"{source} is damaged: {reason(error)}") from error


def reason(error: ValidationError) -> str:
    """The first field at fault and what is wrong with it, in one line."""
    first, *others = error.errors(include_url=False, include_context=False, include_input=False)
    field = ".".join(str(part) for part in first["loc"])
    words = f"{field}: {first['msg']}" if field else first["msg"]
    return " ".join(words.split()) + (f" (and {len(others)} more)" if others else "")
