"""Warm starts and frozen models: what is read, what is refused, and that a run is told apart."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from flaxlm import named, sharding, train
from flaxlm.convert.check import random_batch
from flaxlm.data import english
from flaxlm.data.spec import Vocabulary
from flaxlm.data.vocab import train_vocab
from flaxlm.errors import ConfigError, MissingInput
from flaxlm.experiment import Frozen, Restore
from flaxlm.models import t5
from flaxlm.optim import averaged
from flaxlm.plan import make_plan
from flaxlm.step import jit_programs
from flaxlm.warm import read_warm
from flaxlm.weights import read_weights, write_run
from tests import runs, tiny

SIZE = tiny.EXPERIMENT.model.size


def random_run(folder, model, *, seed=0, vocab=None):
    """A converted run with parameters of its own."""
    batch = random_batch(model, seed=0)
    init = jax.jit(lambda key: model.init(key, batch, train=False)["params"])
    params = jax.tree.map(np.asarray, named.unbox(init(jax.random.key(seed + 100))))
    folder.mkdir()
    write_run(folder, model, params, vocab)
    return params


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run of the tiny model, but one layer deeper in both stacks."""
    folder = tmp_path_factory.mktemp("warm") / "run"
    deeper = dataclasses.replace(SIZE, depth=3)
    return folder, random_run(folder, t5.Model(deeper))


@pytest.fixture(scope="module")
def planned():
    """(layout, {experiment's changes: plan}) of the tiny experiment on 8 devices."""
    layout = sharding.make_layout(sharding.Mesh(data=2, fsdp=2, tensor=2))

    def plan(**changes):
        experiment = dataclasses.replace(tiny.EXPERIMENT, **changes)
        return experiment, make_plan(experiment, layout, tiny.VOCABULARY.blank())

    return layout, plan


def warm(planned, *, resumes=False, **changes):
    experiment, plan = planned[1](**changes)
    return read_warm(experiment, plan, resumes=resumes), plan


def test_a_part_of_another_run_is_taken(planned, source):
    folder, params = source
    start = (
        Restore(str(folder), take="embed", into="embed"),
        Restore(str(folder), take="encoder/layers", into="decoder/layers", layers=(2, 0)),
        Restore(str(folder), take="head/kernel", into="head/kernel"),
    )
    with pytest.raises(ConfigError, match=r"is \[3, .* and \[2, "):
        # Encoder layers have a place in the decoder, but 3 do not fit 2.
        warm(planned, start=(Restore(str(folder), take="encoder", into="decoder"),))
    found, plan = warm(planned, start=start)
    with sharding.using(planned[0]):
        cold = jit_programs(plan, seed=0, accumulate=1).init()
        state = found.begin(cold, plan)
    flat = {
        named.path_name(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
    }
    np.testing.assert_array_equal(flat["embed/table"], params["embed"]["table"])
    np.testing.assert_array_equal(
        flat["decoder/layers/mlp/gate"], params["encoder"]["layers"]["mlp"]["gate"][[2, 0]]
    )
    before = jax.tree.map(np.asarray, cold.params)
    np.testing.assert_array_equal(
        flat["encoder/layers/mlp/gate"], before["encoder"]["layers"]["mlp"]["gate"]
    )
    # Laid out as planned, and the optimizer's average begins from what was read.
    wanted = plan.state_shardings().params
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, state.params, wanted))
    average = averaged(state.opt, None)
    np.testing.assert_array_equal(average["embed"]["table"], params["embed"]["table"])
    (line,) = found.lines
    assert str(folder) in line and "layers 2,0" in line and "stay initialised" in line
    assert re.search(r"\d+ stay initialised: decoder/bias/table", line)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(take="encodr"), r"start: .* has no parameters 'encodr'; there are decoder, embed"),
        (dict(take="embed", into="embd"), "no parameters 'embd' here; there are decoder, embed"),
        (dict(take="embed", into="embed", layers=(0,)), "nothing that is taken has layers"),
        (
            dict(take="encoder/layers", into="encoder/layers", layers=(0, 3)),
            r"layers=\(0, 3\), and .* has layers 0 to 2",
        ),
        (
            dict(take="encoder/layers", into="encoder/layers"),
            r"encoder/layers/attention/\w+ is \[3, .*\] in .* and \[2, .*\] here; layers=",
        ),
        (
            dict(take="encoder/layers/mlp/gate", into="encoder/layers/mlp/out", layers=(0, 1)),
            r"mlp/out is \[2, 64, 128\] in .* and \[2, 128, 64\] here",
        ),
        (dict(take="decoder", into="encoder"), "which the model lacks; name the part"),
    ],
)
def test_what_does_not_fit_is_refused(planned, source, change, message):
    with pytest.raises(ConfigError, match=message) as error:
        warm(planned, start=(Restore(str(source[0]), **change),))
    assert "\n" not in str(error.value)


def test_a_source_that_is_not_there(planned, tmp_path):
    with pytest.raises(MissingInput, match=r"start: .*no such folder"):
        warm(planned, start=(Restore(str(tmp_path / "none")),))
    found, _ = warm(planned, start=(Restore(str(tmp_path / "none")),), resumes=True)
    assert found.start is None and found.lines == []


def test_a_frozen_model_is_laid_out_and_known_by_its_content(planned, source, tmp_path):
    teacher = t5.Model(dataclasses.replace(SIZE, depth=3))
    folder, params = source
    frozen = (Frozen("teacher", teacher, Restore(str(folder))),)
    found, plan = warm(planned, frozen=frozen, resumes=True)
    with sharding.using(planned[0]):
        state = found.with_frozen(jit_programs(plan, seed=0, accumulate=1).init(), plan)
    shardings = plan.state_shardings().frozen
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, state.frozen, shardings))
    same = jax.tree.map(np.array_equal, state.frozen["teacher"], params)
    assert jax.tree.all(same)
    again, _ = warm(planned, frozen=frozen)
    assert found.identity == again.identity and len(found.identity["frozen"]["teacher"]) == 64
    random_run(tmp_path / "other", teacher, seed=5)
    moved = (Frozen("teacher", teacher, Restore(str(tmp_path / "other"))),)
    assert warm(planned, frozen=moved)[0].identity != found.identity
    assert warm(planned)[0].identity == {}


def test_a_frozen_model_must_be_whole(planned, source):
    part = Restore(str(source[0]), take="embed", into="embed")
    with pytest.raises(ConfigError, match=r"frozen\.0 \(teacher\): .* must be restored whole"):
        warm(planned, frozen=(Frozen("teacher", t5.Model(SIZE), part),))
    with pytest.raises(ConfigError, match=r"frozen\.0: .*is \[3, "):
        warm(planned, frozen=(Frozen("teacher", t5.Model(SIZE), Restore(str(source[0]))),))


def test_a_vocabulary_grows_behind_its_last_id(planned, tmp_path):
    """Rows of known ids are taken, padding is not, the new ones stay as they were initialised."""
    smaller = dataclasses.replace(SIZE, vocab=SIZE.vocab - 3)
    params = random_run(tmp_path / "run", t5.Model(smaller))
    whole = Restore(str(tmp_path / "run"))
    found, plan = warm(planned, start=(dataclasses.replace(whole, grow=True),))
    with sharding.using(planned[0]):
        cold = jit_programs(plan, seed=0, accumulate=1).init()
        before = jax.tree.map(np.asarray, cold.params)
        state = found.begin(cold, plan)
    wanted = plan.state_shardings().params
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, state.params, wanted))
    for tree, cut in (("embed", np.s_[: smaller.vocab]), ("head", np.s_[:, : smaller.vocab])):
        (ours,), (theirs,), (fresh,) = (
            [np.asarray(x) for x in some[tree].values()] for some in (state.params, params, before)
        )
        np.testing.assert_array_equal(ours[cut], theirs[cut])
        rest = np.ones(ours.shape, bool)
        rest[cut] = False
        np.testing.assert_array_equal(ours[rest], fresh[rest])
    assert f"{smaller.vocab} ids of the vocabulary" in found.lines[0]
    narrow = dataclasses.replace(SIZE, width=32)
    random_run(tmp_path / "narrow", t5.Model(narrow))
    start = (Restore(str(tmp_path / "narrow"), take="embed", into="embed", grow=True),)
    with pytest.raises(ConfigError, match=r"embed/table is \[\d+, 32\] in "):
        read_warm(dataclasses.replace(tiny.EXPERIMENT, start=start), plan, resumes=False)
    frozen = (Frozen("teacher", t5.Model(SIZE), dataclasses.replace(whole, grow=True)),)
    with pytest.raises(ConfigError, match=r"frozen\.0 \(teacher\): grow"):
        read_warm(dataclasses.replace(tiny.EXPERIMENT, frozen=frozen), plan, resumes=False)


def test_another_vocabulary_is_refused(planned, tmp_path):
    texts = english.documents()[:20]
    one, other = (train_vocab(texts, Vocabulary(size=size)) for size in (400, 410))
    random_run(tmp_path / "run", tiny.EXPERIMENT.model, vocab=one)
    whole = (Restore(str(tmp_path / "run")),)
    found, _ = warm(planned, start=whole)
    found.check_vocab(one)
    with pytest.raises(MissingInput, match=r"another vocabulary \(500 ids.*\(510 ids"):
        found.check_vocab(other)
    layers = (Restore(str(tmp_path / "run"), take="encoder/layers", into="encoder/layers"),)
    warm(planned, start=layers)[0].check_vocab(other)  # layers know no ids
    frozen = (Frozen("teacher", tiny.EXPERIMENT.model, whole[0]),)
    with pytest.raises(MissingInput, match="another vocabulary"):
        warm(planned, frozen=frozen)[0].check_vocab(other)


EXPERIMENT = '''
"""A run that starts from another one and is taught by it."""
import dataclasses
import jax.numpy as jnp
from flaxlm.experiment import Frozen, Restore
from flaxlm.objectives.base import Term
from flaxlm.objectives.span_corruption import SpanCorruption
from experiments.tiny_span import experiment as tiny

@dataclasses.dataclass(frozen=True)
class Taught(SpanCorruption):
    def forward(self, apply, batch, rng):
        teacher = apply.frozen["teacher"](batch, rng=None)
        mine = apply(batch, rng=rng)
        gap = jnp.abs(mine["hidden"] - teacher["hidden"]).mean(axis=-1)
        return super().forward(apply, batch, rng) | {{"gap": gap}}

    @property
    def terms(self):
        gap = Term(lambda outputs, batch: outputs["gap"], weights="weights", scale=0.1)
        return {{**super().terms, "gap": gap}}

whole = Restore({source!r})
experiment = dataclasses.replace(
    tiny, objective=Taught(), start=(whole,), frozen=(Frozen("teacher", tiny.model, whole),),
)
'''


@pytest.mark.slow
def test_a_run_starts_from_another_and_is_taught_by_it(
    tmp_path, text_file, data_cache, monkeypatch, capsys
):
    """First steps, a resume after the sources of the start moved, and another teacher."""
    monkeypatch.setenv("FLAXLM_CACHE", str(data_cache))
    shared = [f"--data.sources.0.uri=text:{text_file}", "--mesh.data=8"]
    first = [*runs.arguments(text_file, tmp_path / "first", "--run.steps=2", "--mesh.data=8")]
    assert train.main(first) == 0
    (tmp_path / "tiny_span.py").write_text(Path(runs.TINY).read_text())
    (tmp_path / "taught.py").write_text(EXPERIMENT.format(source=str(tmp_path / "first")))
    run = tmp_path / "second"
    argv = ["--experiment", str(tmp_path / "taught.py"), *shared, f"--run.directory={run}"]
    assert train.main([*argv, "--run.steps=2"]) == 0
    said = capsys.readouterr().out
    assert "warm start" in said and "teacher" in said and "0 stay initialised" in said
    steps = runs.metrics(run)
    cold = runs.metrics(tmp_path / "first")
    assert steps[0]["loss"] < cold[0]["loss"]
    found = json.loads((run / "checkpoints" / "2" / "MANIFEST.json").read_text())
    assert set(found["identity"]["frozen"]) == {"teacher"}
    assert not any(path.startswith("frozen") for path in found["tree"])
    assert (run / "vocab.model").read_bytes() == (tmp_path / "first" / "vocab.model").read_bytes()
    # Resuming reads the teacher, not the start.
    assert train.main([*argv, "--run.steps=3"]) == 0
    said = capsys.readouterr().out
    assert "warm start" not in said and "teacher" in said and "resumed after step 2" in said
    # Another teacher is another run.
    assert train.main([word.replace("steps=2", "steps=4") for word in first]) == 0
    capsys.readouterr()
    assert train.main([*argv, "--run.steps=5"]) == 66
    assert "made with another frozen" in capsys.readouterr().err
    assert read_weights(run).step == 3
