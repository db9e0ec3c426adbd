"""One leaf of an experiment as text: read as its annotation says, printed as one would type it."""

import math
import re
import types
import typing
from collections.abc import Callable
from typing import Any

_TOO_LARGE = 2**31  # steps, ids, sizes and seeds are 32 bits wide on the devices


class WrongType(Exception):
    """The text is not of the annotated type; `str(error)` names what was expected."""


def read(text: str, annotation: Any, old: Any) -> Any:
    """`text` as the annotation says; where that is Any, as the type of the value it replaces.

    Raises:
      WrongType: saying what was expected.
    """
    if annotation is Any:
        annotation = type(old)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _parse_union(text, arguments, old)
    if origin is typing.Literal:
        choices = {str(choice): choice for choice in arguments}
        return _lookup(text, choices, " or ".join(choices))
    if annotation is tuple or origin is tuple:
        return _parse_tuple(text, arguments, old)
    if annotation is bool:
        return _lookup(text, {"true": True, "false": False}, "true or false")
    if annotation is str:
        return text
    if annotation is int:
        number = _number(int, text, "an integer")
        if abs(number) >= _TOO_LARGE:
            raise WrongType(f"an integer of less than {_TOO_LARGE}")
        return number
    if annotation is float:
        number = _number(float, text, "a number")
        # What overflows is not what was meant; infinity has a name.
        if math.isnan(number) or (math.isinf(number) and "inf" not in text.lower()):
            raise WrongType("a number")
        return number
    if annotation is type(None):
        return _lookup(text, {"none": None}, "none")
    raise WrongType(
        f"a {getattr(annotation, '__name__', annotation)}, which a command line cannot write"
    )


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value is what an annotation says. An int is a float too; a bool is neither, what is
    not a number is no float, and an int has 32 bits. What is inside a mapping or a dataclass is not
    looked at.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in arguments)
    if origin is typing.Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin is tuple and isinstance(value, tuple):
        if arguments[1:] == (Ellipsis,):
            return all(fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    if annotation in (int, float) and isinstance(value, bool):
        return False
    if annotation is int:
        return isinstance(value, int) and abs(value) < _TOO_LARGE
    if annotation is float and isinstance(value, int):
        return abs(value) < 2**63
    if annotation is float:
        return isinstance(value, float) and not math.isnan(value)
    if annotation is Callable or origin is Callable:
        return callable(value)
    return isinstance(value, origin or annotation)


def type_name(annotation: Any) -> str:
    """An annotation as a person writes it, without the names of modules."""
    if annotation is int:
        return f"int below {_TOO_LARGE}"
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    return re.sub(r"[\w.]+\.(\w+)", r"\1", str(annotation))


def _parse_union(text: str, options: tuple, old):
    # "none" must not become a string, nor 2 a float, so the narrow types come first.
    order = [type(None), bool, int, float]
    ranked = sorted(
        options, key=lambda option: order.index(option) if option in order else len(order)
    )
    wanted = []
    for option in ranked:
        try:
            return read(text, option, old)
        except WrongType as error:
            wanted.append(str(error))
    raise WrongType(" or ".join(wanted))


def _parse_tuple(text: str, arguments: tuple, old: tuple):
    words = [word.strip() for word in text.split(",")] if text else []
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        inner = [arguments[0]] * len(words)
    elif arguments:
        inner = list(arguments)
        if len(words) != len(inner):
            raise WrongType(f"{len(inner)} values separated by commas")
    else:
        inner = [type(old[0]) if old else str] * len(words)
    try:
        return tuple(read(word, kind, None) for word, kind in zip(words, inner, strict=True))
    except WrongType as error:
        raise WrongType(f"values separated by commas, each {error}") from None


def _lookup(text: str, choices: dict[str, Any], wanted: str):
    if text not in choices:
        raise WrongType(wanted)
    return choices[text]


def _number(kind: type, text: str, wanted: str):
    try:
        return kind(text)
    except ValueError:
        raise WrongType(wanted) from None


def write(value: Any) -> str:
    """A leaf as one would write it in an override."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(write(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return getattr(value, "__qualname__", None) or str(value)
