"""Checks of arguments, recipes and JSON files against type hints, by pydantic.

The hints of a function's arguments or a dataclass's fields are the schema: `Annotated[int, Field(ge=1)]` has a bound.
`@with_config(STRICT)` above a dataclass refuses strings for numbers, missing and unknown fields, NaN and infinity.
"""

import reprlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_origin, get_type_hints

from pydantic import AliasChoices, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from capsnet.errors import InputError

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
Size = Annotated[int, Field(ge=1, le=2**20)]
Iterations = Annotated[int, Field(ge=1, le=100)]
Slope = Annotated[float, Field(ge=0, le=1)]
Scale = Annotated[float, Field(gt=0, le=1000)]
ImageShape = Annotated[tuple[Size, Size, Size], Field(strict=False)]  # a list and a torch.Size are accepted too
Decoder = Literal["dense", "conv", "none"]
Initialisation = Literal["torch", "official"]
Classes = Annotated[int, Field(ge=2, le=2**20)]
MAX_PARAMETERS = 2**31  # of a network: 8 GiB in float32
MAX_BYTES = 16 << 20  # of a JSON file; those of a run have a few kilobytes
T = TypeVar("T")


def renamed(name: str, old: str) -> Any:
    """Annotate an argument or field of this name: in JSON files its old name is accepted too."""
    return Field(validation_alias=AliasChoices(name, old))


@cache
def arguments_of(source: Callable[..., Any]) -> type[dict[str, Any]]:
    """Return a TypedDict of a function's arguments, or of a dataclass's fields, made from their hints."""
    hints = get_type_hints(source, include_extras=True)
    hints = {name: hint for name, hint in hints.items() if get_origin(hint) is not ClassVar and name != "return"}
    return with_config(STRICT)(TypedDict(f"Arguments of {source.__qualname__}", hints))  # type: ignore[operator]


_adapter = cache(TypeAdapter)


def check_arguments(source: Callable[..., Any], values: Mapping[str, Any], written: Callable[[str], str] = str) -> None:
    """Raise InputError for the first value that its hint does not allow; the message has `written(name)` for a name."""
    schema = arguments_of(source)
    known = {name: value for name, value in values.items() if name in schema.__annotations__}
    try:
        _adapter(schema).validate_python(known)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = ".".join([written(str(first["loc"][0])), *map(str, first["loc"][1:])])
        value = " ".join(reprlib.repr(first["input"]).split())
        reason = first["msg"].replace("Input should be", "must be")
        words = f"{name} {reason}, not {value}" if reason.startswith("must") else f"{name}: {reason}"
        raise InputError(words) from error


def check_parameters(**counts: int) -> None:
    """Raise InputError for a network whose parts have too many parameters in total; the message names the largest."""
    if sum(counts.values()) > MAX_PARAMETERS:
        largest = max(counts, key=counts.__getitem__)
        raise InputError(
            f"this network would have {sum(counts.values()):.1e} parameters, most of them in {largest}: choose smaller "
            f"sizes, {MAX_PARAMETERS:.1e} are allowed"
        )


def read_json(path: Path, schema: type[T]) -> T:
    """Read a JSON file as an instance of a dataclass or a TypedDict.

    Raises InputError, naming the file and its first invalid field, if it cannot be read or does not fit.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise InputError(f"{path} is damaged: it is larger than {MAX_BYTES >> 20} MiB")
    return parse_json(content, schema, str(path))


def parse_json(content: bytes, schema: type[T], source: str) -> T:
    """Read JSON text as an instance of a dataclass or a TypedDict; the InputError for invalid text names `source`."""
    try:
        return TypeAdapter(schema).validate_json(content)
    except ValidationError as error:
        raise InputError(f"{source} is damaged: {first_fault(error)}") from error


def first_fault(error: ValidationError) -> str:
    """Return the first invalid field and what is wrong with it, in one line."""
    first, *others = error.errors(include_url=False, include_context=False, include_input=False)
    field = ".".join(str(part) for part in first["loc"])
    words = f"{field}: {first['msg']}" if field else first["msg"]
    return " ".join(words.split()) + (f" (and {len(others)} more)" if others else "")
