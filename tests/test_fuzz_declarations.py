"""Fuzzing of what a user writes: command lines, overrides, experiment files. Whatever comes in, it
is an experiment of the types its fields declare, or one line and exit code 78.
"""

import functools
import json

from hypothesis import example, given
from hypothesis import strategies as st

from flaxlm.arguments import parse_argv
from flaxlm.errors import ConfigError
from flaxlm.experiment import Experiment, load
from flaxlm.overrides import apply_overrides, describe, diff, flatten, misfits, resolve, to_json
from flaxlm.startup import abstract_plan, parameter_table
from tests import fuzz, runs

NAMES = (
    "t5_span",
    "bert_base",
    "xlnet_base",
    "electra_small",
    "tinybert_4l",
    "gpt3_13b",
    "bart_base",
)


@functools.cache
def experiment(name: str) -> Experiment:
    return load(name).experiment


@functools.cache
def paths(name: str) -> list[str]:
    return [path for path in flatten(to_json(experiment(name))) if not path.endswith("class")]


LEAVES = st.one_of(
    st.sampled_from([
        "", "none", "None", "true", "false", "True", "inf", "-inf", "nan", "1e999", "1e-999", "0",
        "-0", "-1", "1_0", "0x10", " 1 ", "٣", "²", "1.5", "1,2", ",", ",,", "1,", "fsdp,tensor",
        "embedded:english", "text:*", "9" * 20, "9" * 5000, "1e400", "(1, 2)", "[1]", "{}", "\\",
    ]),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=12),
)  # fmt: skip


@st.composite
def mistyped(draw, known: list[str]) -> str:
    """The path of a field, or something near it."""
    path = draw(st.sampled_from(known))
    words = path.split(".")
    kind = draw(st.sampled_from(["as it is"] * 4 + ["cut", "letter", "longer", "any"]))
    if kind == "cut":
        words = words[: draw(st.integers(1, len(words)))]
    elif kind == "letter":
        at = draw(st.integers(0, len(words) - 1))
        where = draw(st.integers(0, len(words[at])))
        words[at] = words[at][:where] + draw(st.text(max_size=2)) + words[at][where + 1 :]
    elif kind == "longer":
        words.append(draw(st.sampled_from(["0", "-1", "size", "__class__", "parent", "name", ""])))
    return draw(st.text(max_size=20)) if kind == "any" else ".".join(words)


@fuzz.inputs(400)
@given(st.data())
def test_any_override_replaces_what_it_names_or_is_refused(data):
    name = data.draw(st.sampled_from(NAMES))
    base = experiment(name)
    some = data.draw(st.lists(st.tuples(mistyped(paths(name)), LEAVES), min_size=1, max_size=3))
    with fuzz.refused() as errors:
        given_ = parse_argv([f"--{path}={text}" for path, text in some]).overrides
        found = apply_overrides(base, given_)
    if errors:
        assert type(errors[0]) is ConfigError
        return
    assert not list(misfits(found, Experiment))
    written = to_json(found)
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    changed = {path for path, _, _ in diff(to_json(base), written)}
    assert changed <= {path for path, _ in given_}
    # What is printed as the value gives it again.
    lines = describe(found, given_).splitlines()[1:]
    assert sum(line.endswith("command line") for line in lines) == len(given_)


@fuzz.inputs(60)
@given(st.data())
def test_any_legal_override_is_traced_or_refused(data):
    """The tiny experiment as `--dry-run` takes it: no number of it may break the trace."""
    base = experiment(runs.TINY)
    numbers = st.one_of(
        st.integers(-3, 300), st.sampled_from([2**31, 2**31 - 1, 2**32, 2**63, 10**12, 10**30])
    ).map(str)
    texts = st.one_of(numbers, numbers, st.floats().map(str), LEAVES)
    some = data.draw(
        st.lists(st.tuples(st.sampled_from(paths(runs.TINY)), texts), min_size=1, max_size=2)
    )
    with fuzz.refused() as errors:
        found = apply_overrides(base, parse_argv([f"--{p}={t}" for p, t in some]).overrides)
        parameter_table(abstract_plan(found))
    assert all(type(error) is ConfigError for error in errors), errors


@fuzz.inputs(400)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=8),
            st.sampled_from(
                [
                    "--experiment",
                    "--experiment=t5_span",
                    "--dry-run",
                    "--list",
                    "-h",
                    "--",
                    "-",
                    "=",
                ]
            ),
            st.tuples(mistyped(["run.steps", "mesh.fsdp"]), LEAVES).map("--{0[0]}={0[1]}".format),
        ),
        max_size=5,
    )
)
@example(["--a.b"])
@example(["--experiment=t5_span", "--.=1"])
def test_any_command_line_is_taken_apart_or_refused(argv):
    with fuzz.refused() as errors:
        found = parse_argv(argv)
    if not errors:
        assert len(dict(found.overrides)) == len(found.overrides)
        assert all("." in path for path, _ in found.overrides)
    assert all(type(error) is ConfigError for error in errors)


# Experiment files

VALUES = st.one_of(
    st.sampled_from([
        "None", "True", "()", "[]", "{}", "''", "'x'", "1j", "b'x'", "lambda: 0", "print",
        "type", "int", "...", "float('nan')", "float('inf')", "-1", "0", "10**30", "1.5", "(1, 2)",
        "[1, 2]", "{'a': 1}", "Run", "Run(1)", "base", "base.model", "base.data",
        "(base,)", "np.zeros(3)", "np.int64(3)", "np.float32(1)", "range(3)", "'a\\nb'", "'\\0'",
        "'\\ud800'", "'한' * 9", "1 / 0", "undefined", "raise_()", "sys.exit()", "x = 1", "(", "#",
    ]),
    st.integers().map(repr),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.text(max_size=8).map(repr),
)  # fmt: skip
FIELDS = [
    "model", "objective", "data", "optimizer", "run", "mesh", "start", "frozen", "model.size",
    "model.compute", "model.size.depth", "model.size.width", "model.size.heads", "model.parent",
    "model.name", "model.positions", "objective.rate", "data.sources", "data.vocabulary",
    "data.vocabulary.kind", "data.phases", "data.packing", "optimizer.schedule", "optimizer.clip",
    "optimizer.schedule.peak", "run.steps", "run.seed", "run.patience", "run.directory",
    "mesh.data", "mesh.rules", "data.batch", "nothing", "data.nothing", "run.stpes",
]  # fmt: skip
FILE = """
import dataclasses, sys
import numpy as np
from flaxlm.experiment import Experiment, Frozen, Restore, Run
from experiments.{name} import experiment as base
def raise_(): raise ValueError("two\\nlines")
def put(node, path, value):
    first, _, rest = path.partition(".")
    value = put(getattr(node, first), rest, value) if rest else value
    return dataclasses.replace(node, **{{first: value}})
experiment = base
"""


@fuzz.inputs(300)
@given(st.data())
def test_any_experiment_file_declares_one_or_is_refused(tmp_path_factory, data):
    name = data.draw(st.sampled_from(NAMES))
    path = tmp_path_factory.getbasetemp() / "fuzzed.py"
    lines = [FILE.format(name=name)]
    for field, value in data.draw(
        st.lists(st.tuples(st.sampled_from(FIELDS), VALUES), min_size=1, max_size=3)
    ):
        lines.append(f"experiment = put(experiment, {field!r}, {value})")
    text = "\n".join(lines) + "\n"
    if data.draw(st.integers(0, 9)) == 0:  # bytes that are perhaps no text
        at = data.draw(st.integers(0, len(text)))
        content = text[:at].encode() + data.draw(st.binary(max_size=4)) + text[at:].encode()
    else:
        content = text.encode()
    path.write_bytes(content)
    with fuzz.refused() as errors:
        loaded = resolve(parse_argv([f"--experiment={path}"]))
    if errors:
        assert type(errors[0]) is ConfigError
        assert str(path) in str(errors[0]), errors
        return
    assert not list(misfits(loaded.experiment, Experiment))
    written = to_json(loaded.experiment)
    assert json.loads(json.dumps(written, allow_nan=False)) == written
