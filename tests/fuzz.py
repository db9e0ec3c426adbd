"""What the fuzzers share: how many inputs, what may come out, and how much memory it may take.

A fuzzer makes a few hundred inputs in an ordinary run of the tests; FLAXLM_FUZZ=20000 makes that
many of each (docs/reliability.md says what came of it).
"""

import contextlib
import copy
import json
import os
import resource
import signal
from collections.abc import Iterator

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from flaxlm.errors import UserError

_SECONDS = 60  # after which an input is said to hang
_GROWTH = 1 << 20  # KiB of resident memory that all inputs of a fuzzer may add


def inputs(count: int):
    """Hypothesis settings of a fuzzer: `count` inputs, or as many as FLAXLM_FUZZ says."""
    return settings(
        max_examples=int(os.environ.get("FLAXLM_FUZZ", count)),
        deadline=None,
        database=None,
        derandomize="FLAXLM_FUZZ" not in os.environ,
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def refused() -> Iterator[list[UserError]]:
    """The block may raise a `UserError` whose message is one line of bounded length, perhaps with a
    table below; nothing else. Yields a list that then holds it.
    """
    found: list[UserError] = []

    def hangs(*_):
        raise AssertionError(f"an input took more than {_SECONDS} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(_SECONDS)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield found
    except UserError as error:
        found.append(error)
        first, *table = str(error).splitlines() or [""]
        assert first and len(str(error)) < 4000 and len(table) <= 16, error
        assert all(line.startswith("  ") for line in table), error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < _GROWTH


# JSON values that are not what a field holds, and some that are.
NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([2**31, 2**31 - 1, 2**63, 10**12, 10**30, -(2**63), 10**400]),
    st.floats(),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8))
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=6,
)


@st.composite
def damaged(draw, tree, values=JSON, most: int = 3):
    """A JSON tree with some of its values replaced, removed, renamed or doubled."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, most))):
        node = tree
        while True:  # down to some container
            inner = [
                key
                for key in (node if isinstance(node, dict) else range(len(node)))
                if isinstance(node[key], dict | list) and node[key]
            ]
            if not inner or draw(st.booleans()):
                break
            node = node[draw(st.sampled_from(inner))]
        if not node:
            break
        key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        kind = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "swap"]))
        if kind == "replace":
            node[key] = copy.deepcopy(draw(values))
        elif kind == "remove":
            del node[key]
        elif kind == "add" and isinstance(node, dict):
            node[draw(st.text(max_size=8))] = copy.deepcopy(draw(values))
        elif kind == "add":
            node.insert(key, copy.deepcopy(draw(values)))
        elif isinstance(node, dict):
            other = draw(st.sampled_from(sorted(node)))
            node[key], node[other] = node[other], node[key]
    return tree


@st.composite
def scratched(draw, tree) -> str:
    """JSON of a damaged tree, now and then no JSON."""
    text = json.dumps(draw(damaged(tree)))
    if draw(st.integers(0, 3)):
        return text
    at = draw(st.integers(0, len(text)))
    return text[:at] + draw(st.text(max_size=3)) + text[at + draw(st.integers(0, 3)) :]
