"""Jinja from a file of somebody else's: it can read the example, and work on text within limits.

Jinja compiles templates to Python. jinja2's sandbox keeps them from what Python objects lead to;
here they are held besides to the kinds of expression that templates of promptsource use, to methods
and filters that are named below, and to sizes: a template that loops or grows without end is
refused, as is one that names a field that the example does not have.
"""

import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

from flaxlm.errors import ConfigError, DataError

try:
    import jinja2
    from jinja2 import nodes
    from jinja2.runtime import LoopContext
    from jinja2.sandbox import ImmutableSandboxedEnvironment
except ImportError:
    raise ConfigError(
        "templates of promptsource need jinja2: pip install 'flaxlm[prompts]'"
    ) from None

_SOURCE = 20_000  # characters of a template
_TEXT = 100_000  # of what it makes, at any point
_LOOPS = 10_000  # passes of all loops together
_RANGE = 1_000
_BUDGET = " passes left"  # no name in a template has a space
_DRAWS = " draws"

_NODES = (
    "Template Output TemplateData Name Getattr Getitem Const Filter Call For If Compare Operand "
    "Assign List Tuple CondExpr And Or Not Slice Add Sub Mul Div FloorDiv Mod Neg Pos Test Keyword"
).split()
# What attributes of a value are for templates.
_NAMES = {
    LoopContext: "index index0 first last length".split(),
    str: "split strip lstrip rstrip lower upper title capitalize startswith endswith index find "
    "count join replace isdigit".split(),
    list: ["index", "count"],
    dict: ["items", "keys", "values", "get"],
}
_FILTERS = ("capitalize lower upper title trim length count round int float first last").split()
_OURS = ("passes", "flat")  # filters that templates do not write
_TESTS = "defined none string number in eq ne lt le gt ge odd even true false".split()


class Unfit(DataError):
    """A template that asks for more than it may; `str(error)` says what."""


def _sized(value):
    if isinstance(value, str | list | tuple) and len(value) > _TEXT:
        raise Unfit(f"makes a text of more than {_TEXT:,} characters")
    return value


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "%"])

    def __init__(self):
        super().__init__(undefined=jinja2.StrictUndefined, finalize=_scalar, cache_size=0)
        built_in = {name: self.filters[name] for name in _FILTERS}
        self.filters = {**built_in, "join": _join, "replace": _replace}
        self.filters |= {"choice": _choice, "most_frequent": _most_frequent}
        self.filters |= {"passes": _passes, "flat": _flat, "string": lambda x: str(_scalar(x))}
        self.tests = {name: self.tests[name] for name in _TESTS}
        self.globals = {"range": _range, "zip": zip}

    def is_safe_attribute(self, obj, attr, value):
        return any(isinstance(obj, kind) and attr in names for kind, names in _NAMES.items())

    def getattr(self, obj, attribute):
        # Of a dict, a field: "choices.text"; a field of that name goes before a method.
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        if isinstance(obj, str) and attribute not in _NAMES[str]:  # "format" among them
            return self.unsafe_undefined(obj, attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj, argument):
        if isinstance(obj, str) and isinstance(argument, str):
            return self.getattr(obj, argument)
        return super().getitem(obj, argument)

    def call(self, context, function, *args, **kwargs):
        on, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(on, str) and name in ("join", "replace"):  # which could make very long text
            return _join(*args, on) if name == "join" else _replace(on, *args)
        return _sized(super().call(context, function, *args, **kwargs))

    def call_binop(self, context, operator, left, right):
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator != "+" and not numbers:
            raise Unfit(f"{operator!r} is for numbers")
        if numbers and max(abs(left), abs(right)) > 1e15:
            raise Unfit("a number is above 1e15")
        return _sized(super().call_binop(context, operator, left, right))


class Compiled:
    """A template that was read and checked."""

    def __init__(self, source: str):
        """
        Raises:
          Unfit: it is no template, or holds what a template may not.
        """
        if len(source) > _SOURCE:
            raise Unfit(f"has {len(source):,} characters, at most {_SOURCE:,} make sense")
        try:
            tree = _ENVIRONMENT.parse(source)
            _check(tree)
            code = _ENVIRONMENT.compile(tree)
        except Unfit:
            raise
        except jinja2.TemplateError as error:
            raise Unfit(f"line {getattr(error, 'lineno', 1)}: {error}") from None
        except (RecursionError, SyntaxError, ValueError, MemoryError) as error:
            raise Unfit(f"cannot be read: {error}") from None
        self._template = jinja2.Template.from_code(
            _ENVIRONMENT, code, _ENVIRONMENT.make_globals(None)
        )

    def __call__(self, fields: Mapping[str, Any], *, seed: str) -> str:
        """The text for some fields; `seed` decides what the filter "choice" takes.

        Raises:
          Unfit: it fails, or names a field that is not there.
        """
        hidden = {_BUDGET: [_LOOPS], _DRAWS: random.Random(seed)}
        pieces, size = [], 0
        try:
            for piece in self._template.generate({**fields, **hidden}):
                size += len(piece)
                if size > _TEXT:
                    raise Unfit(f"makes a text of more than {_TEXT:,} characters")
                pieces.append(piece)
        except jinja2.TemplateError as error:
            raise Unfit(str(error)) from None
        except Unfit:
            raise
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError,
                ValueError) as error:  # fmt: skip
            raise Unfit(f"fails: {type(error).__name__}: {error}") from None
        return "".join(pieces)


def _check(tree) -> None:
    """Refuse kinds of expression that are not known here; let every loop count its passes, and
    every list its items.
    """
    todo = [tree]
    while todo:
        node = todo.pop()
        kind = type(node).__name__
        if kind not in _NODES:
            raise Unfit(f"line {node.lineno}: {kind} is not allowed here")
        if kind == "Filter" and node.name in _OURS:
            raise Unfit(f"line {node.lineno}: no filter named {node.name!r}")
        if kind == "For" and node.recursive:
            raise Unfit(f"line {node.lineno}: a recursive loop is not allowed here")
        todo += node.iter_child_nodes()
    for loop in list(tree.find_all(nodes.For)):
        loop.iter = _filtered(loop.iter, "passes")
    _flatten(tree)


def _flatten(node) -> None:
    """Lists of lists of lists are small, and endless to compare or to print."""
    for name, value in node.iter_fields():
        if isinstance(value, nodes.List | nodes.Tuple) and getattr(value, "ctx", "load") == "load":
            setattr(node, name, _filtered(value, "flat"))
        if isinstance(value, list):
            value[:] = [
                _filtered(one, "flat") if isinstance(one, nodes.List | nodes.Tuple) else one
                for one in value
            ]
    for child in node.iter_child_nodes():
        is_list = type(node).__name__ == "Filter" and node.name == "flat" and child is node.node
        for inner in child.iter_child_nodes() if is_list else (child,):
            _flatten(inner)


def _filtered(node, name: str):
    """The expression behind a filter."""
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


@jinja2.pass_context
def _passes(context, items):
    """What a loop runs over, taken off what loops may do."""
    left, items = context.resolve(_BUDGET), list(items)
    left[0] -= len(items)
    if left[0] < 0:
        raise Unfit(f"loops more than {_LOOPS:,} times")
    return items


@jinja2.pass_context
def _choice(context, items):
    """One of several, as promptsource's filter; drawn by the example, the same in every run."""
    return context.resolve(_DRAWS).choice(list(items))


def _flat(items):
    """A list as written in a template."""
    return [_scalar(item) for item in items]


def _scalar(value):
    """What can stand in a text."""
    if not isinstance(value, str | int | float | jinja2.StrictUndefined):
        raise Unfit(f"a {type(value).__name__} where a text or a number was expected")
    return value


def _most_frequent(items) -> list:
    """The commonest of several, all of them where they are equally common (promptsource's)."""
    counted = Counter(map(_scalar, items)).most_common()
    return [item for item, count in counted if count == counted[0][1]]


def _range(*limits: int) -> range:
    made = range(*limits)
    if len(made) > _RANGE:
        raise Unfit(f"a range of {len(made):,}, at most {_RANGE:,} make sense")
    return made


def _join(items, between="") -> str:
    found = [str(_scalar(item)) for item in items]
    if sum(map(len, found)) + len(between) * len(found) > _TEXT:
        raise Unfit(f"makes a text of more than {_TEXT:,} characters")
    return between.join(found)


def _replace(text, old, new) -> str:
    text, old, new = (str(_scalar(one)) for one in (text, old, new))
    if len(text) + text.count(old) * len(new) > _TEXT:
        raise Unfit(f"makes a text of more than {_TEXT:,} characters")
    return text.replace(old, new)


_ENVIRONMENT = _Sandbox()
