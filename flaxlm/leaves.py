"""One leaf of an experiment as text: read as its annotation says, printed as one would type it."""

import math
import types
import typing
from typing import Any


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
        return _number(int, text, "an integer")
    if annotation is float:
        number = _number(float, text, "a number")
        if math.isnan(number):
            raise WrongType("a number")
        return number
    if annotation is type(None):
        return _lookup(text, {"none": None}, "none")
    raise WrongType(
        f"a {getattr(annotation, '__name__', annotation)}, which a command line cannot write"
    )


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
