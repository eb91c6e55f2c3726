"""What any network or recipe asks of its arguments, refused with the value and the way out.

The hints of a function's arguments or of a dataclass's fields are their schema: `Annotated[int, Field(ge=1)]`. pydantic
checks it, here for Python values and in `capsnet.schema` for JSON.
"""

import reprlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, get_origin, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from capsnet.errors import InputError
from capsnet.schema import STRICT

Size = Annotated[int, Field(ge=1, le=2**20)]
Iterations = Annotated[int, Field(ge=1, le=100)]
Slope = Annotated[float, Field(ge=0, le=1)]
Scale = Annotated[float, Field(gt=0, le=1000)]
ImageShape = Annotated[tuple[Size, Size, Size], Field(strict=False)]  # so that a list or torch.Size is one too
Classes = Annotated[int, Field(ge=2, le=2**20)]
MAX_PARAMETERS = 2**31  # of a network: 8 GiB in float32


@cache
def arguments_of(source: Callable[..., Any]) -> Any:
    """The dictionary type of a function's arguments, or of a dataclass's fields, as their hints describe them."""
    hints = get_type_hints(source, include_extras=True)
    hints = {name: hint for name, hint in hints.items() if get_origin(hint) is not ClassVar and name != "return"}
    return with_config(STRICT)(TypedDict(f"Arguments of {source.__qualname__}", hints))  # type: ignore[operator]


_adapter = cache(TypeAdapter)


def check_arguments(source: Callable[..., Any], values: Mapping[str, Any], written: Callable[[str], str] = str) -> None:
    """Raise InputError for the first value that its hint does not allow; `written` is how the message writes a name."""
    kind = arguments_of(source)
    try:
        _adapter(kind).validate_python({name: value for name, value in values.items() if name in kind.__annotations__})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = ".".join([written(str(first["loc"][0])), *map(str, first["loc"][1:])])
        value = " ".join(reprlib.repr(first["input"]).split())
        reason = first["msg"].replace("Input should be", "must be")
        words = f"{name} {reason}, not {value}" if reason.startswith("must") else f"{name}: {reason}"
        raise InputError(words) from error


def check_parameters(**counts: int) -> None:
    """Raise InputError for a network whose parts have too many parameters together; the message names the largest."""
    if sum(counts.values()) > MAX_PARAMETERS:
        largest = max(counts, key=counts.__getitem__)
        raise InputError(
            f"this network would have {sum(counts.values()):.1e} parameters, most of them in {largest}: choose smaller "
            f"sizes, {MAX_PARAMETERS:.1e} are allowed"
        )
