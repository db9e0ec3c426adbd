"""How a step is computed changes no loss and no gradient, objective by objective: in micro-batches
with unequal numbers of targets, on meshes, with rows over several devices, scanned or unrolled,
whatever is computed again in the backward pass, packed or one document a row.

The real train step with an optimizer that hands over the gradients: two batches, the second with
what the model carries from the first. fp32, and without dropout, whose noise is drawn per
micro-batch. Distances are those of `equal.assert_gradients_agree`.

Here two programs per objective, each of several ways together. Every way by itself, ten more:

    FLAXLM_EVERY_WAY=1 pytest tests/test_equivalence.py
"""

import dataclasses
import functools
import math
import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxlm import named, sharding
from flaxlm.data.batches import Batches
from flaxlm.data.pack import Windows
from flaxlm.data.random import RowRandom
from flaxlm.data.spec import Data, Source
from flaxlm.experiment import Experiment, Frozen, Restore, Run
from flaxlm.models import albert, bart, bert, distilbert, electra, gpt3, t5, tinybert, xlnet
from flaxlm.nn.compute import POLICIES, Compute
from flaxlm.objectives import replaced_token
from flaxlm.objectives.causal_lm import CausalLM, StreamLM
from flaxlm.objectives.denoising import Denoising
from flaxlm.objectives.distillation import Distillation, LayerDistillation
from flaxlm.objectives.entities import Entities
from flaxlm.objectives.masked_lm import MaskedLM
from flaxlm.objectives.pairs import Halves, NextSentence, SentenceOrder
from flaxlm.objectives.permutation_lm import PermutationLM
from flaxlm.objectives.prefix_lm import OneStackPrefixLM, PrefixLM
from flaxlm.objectives.replaced_token import ReplacedToken
from flaxlm.objectives.span_corruption import SpanCorruption
from flaxlm.objectives.units import Ngrams, RareTokens, Tokens, WholeWords
from flaxlm.plan import make_plan
from flaxlm.step import init_params, jit_programs
from tests import lines
from tests.equal import assert_gradients_agree
from tests.fakes import FakeCorpus

ROWS, STEPS = 8, 2
BERT = dict(depth=2, width=32, mlp=48, heads=4, vocab=500, length=48)
GPT = dict(depth=2, width=32, mlp=48, heads=4, head_dim=8, vocab=500, positions=48, dropout=0.1)
T5 = t5.Size(2, 32, 48, 4, head_dim=8, vocab=500)
XLNET = xlnet.Size(2, 32, 48, 4, head_dim=8, vocab=500, memory=16, reuse=16)
ELECTRA = electra.Size(2, 32, 48, 4, 16, 16, 24, 4, vocab=500, length=48)


# With the gated GELU of v1.1: rounding may carry a value over the kink of a ReLU, and did.
class LanguageModel(t5.LanguageModel):
    mlp = staticmethod(t5.gated_gelu)


class PrefixLanguageModel(t5.PrefixLanguageModel):
    mlp = staticmethod(t5.gated_gelu)


class Pieces(lines.Pieces):
    """Those of tests.lines, the last twenty of them sentinels."""

    pieces = 480
    sentinels = np.arange(499, 479, -1, dtype=np.int32)
    special = lines.Pieces.special | (np.arange(500) >= 480)


VOCAB = Pieces()


@dataclass(frozen=True)
class Case:
    """An objective, a model of its family, and what rows are made of.

    Attributes:
      same: further objectives that make features of the same shapes and are scored alike, so that
        they go through the same programs.
    """

    model: Any
    objective: Any
    packing: str = "split"
    length: int = 32
    teacher: Any = None
    same: tuple = ()


def masked(**parts):
    return MaskedLM(slots=8, rate=0.2, **parts)


CASES = {
    "causal": Case(gpt3.Model(gpt3.Size(**GPT, band=6)), CausalLM(), same=(StreamLM(),)),
    "causal, T5": Case(LanguageModel(T5), CausalLM(z_loss=1e-2)),
    "masked": Case(
        bert.MaskedLanguageModel(bert.Size(**BERT)),
        masked(),
        same=(
            masked(units=Tokens(specials=True), dither=True, random_from=4),
            masked(units=WholeWords()),
            masked(units=Ngrams()),
            masked(units=RareTokens(path="counts.txt")),
            masked(units=Entities(path="names.txt")),
        ),
    ),
    "pairs": Case(
        albert.Model(albert.Size(**BERT, embed_width=16)),
        masked(units=Ngrams(), pairs=SentenceOrder()),
        packing="sentences",
        same=(masked(pairs=NextSentence()), masked(pairs=NextSentence(single=True))),
    ),
    "permutation": Case(
        xlnet.TwoStreamModel(XLNET), PermutationLM(predicted=12, reuse=16), packing="continue"
    ),
    "replaced token": Case(
        electra.Model(ELECTRA),
        ReplacedToken(masked=masked(mask=0.85, random=0.0, pairs=Halves())),
        packing="sentences",
    ),
    "denoising": Case(bart.Model(bart.Size(2, 32, 48, 4, vocab=500, positions=48)), Denoising()),
    "span corruption": Case(t5.Model(T5), SpanCorruption(z_loss=1e-2), length=48),
    "prefix": Case(t5.Model(T5), PrefixLM()),
    "prefix, one stack": Case(PrefixLanguageModel(T5), OneStackPrefixLM()),
    "distillation": Case(
        distilbert.Model(distilbert.Size(**BERT)),
        Distillation(masked=masked()),
        teacher=bert.MaskedLanguageModel(bert.Size(**BERT)),
    ),
    "layer distillation": Case(
        tinybert.Model(tinybert.Size(**(BERT | {"depth": 1, "width": 16}), teacher_width=32)),
        LayerDistillation(masked=masked()),
        teacher=bert.Model(bert.Size(**BERT)),
    ),
}
EVERY = [(name, number) for name, case in CASES.items() for number in range(1 + len(case.same))]


@dataclass(frozen=True)
class Way:
    """A way to compute the step."""

    mesh: tuple[tuple[str, int], ...] = (("data", 1),)
    accumulate: int = 1
    compute: Compute = Compute()


ONE = Way()
MESH = (("data", 2), ("fsdp", 2), ("tensor", 2))
ROWS_SPLIT = (("data", 1), ("fsdp", 2), ("tensor", 2), ("sequence", 2))
WAYS = {
    "mesh, two micro-batches": Way(MESH, accumulate=2),
    "rows over devices, unrolled, remat": Way(
        ROWS_SPLIT, compute=Compute(scan=False, remat="attention")
    ),
}
if "FLAXLM_EVERY_WAY" in os.environ:
    WAYS |= {
        "mesh": Way(MESH),
        "rows over devices": Way(ROWS_SPLIT),
        "fsdp": Way((("data", 1), ("fsdp", 8))),
        "two micro-batches": Way(accumulate=2),
        "eight micro-batches": Way(accumulate=8),
        "unrolled": Way(compute=Compute(scan=False)),
        **{
            f"remat {name}": Way(compute=Compute(remat=name))
            for name in POLICIES
            if name not in ("none", "offload")
        },
    }


class Gradients:
    """An optimizer that changes nothing; its state is the last gradients."""

    def build(self, axes, steps):
        def update(gradients, state, params):
            return jax.tree.map(jnp.zeros_like, gradients), gradients

        return optax.GradientTransformation(lambda params: params, update)


class Still:
    """An objective that switches dropout off."""

    def __init__(self, objective):
        self._objective, self.terms = objective, objective.terms

    def forward(self, apply, batch, rng):
        return self._objective.forward(apply, batch, None)


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory):
    """What two of the units read; their paths are relative."""
    folder = tmp_path_factory.mktemp("files")
    counts = np.random.default_rng(0).integers(1, 1000, VOCAB.pieces)
    (folder / "counts.txt").write_text("\n".join(map(str, counts)))
    (folder / "names.txt").write_text("\n".join(f"{i} {i + 1}" for i in range(10, 480, 10)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


def corpus():
    """Documents of 2 to 40 tokens."""
    random = np.random.default_rng(1)
    sizes = random.integers(2, 41, 300)
    return FakeCorpus([random.integers(10, 480, size) for size in sizes])


def data_of(case) -> Data:
    return Data((Source("fake:"),), batch=ROWS, length=case.length, packing=case.packing)


@functools.cache
def batches_of(name, number):
    case = CASES[name]
    objective = (case.objective, *case.same)[number]
    batches = Batches([(corpus(), 1.0)], objective, VOCAB, data=data_of(case), seed=0)
    return [batches[step] for step in range(STEPS)]


@functools.cache
def plan_of(name, way):
    case, mesh = CASES[name], sharding.Mesh(**dict(way.mesh))
    layout = sharding.make_layout(mesh, jax.devices()[: math.prod(dict(way.mesh).values())])
    frozen = () if case.teacher is None else (Frozen("teacher", case.teacher, Restore("nowhere")),)
    experiment = Experiment(
        model=case.model.clone(compute=way.compute),
        objective=case.objective,
        data=data_of(case),
        optimizer=Gradients(),
        run=Run(steps=STEPS, accumulate=way.accumulate),
        mesh=mesh,
        frozen=frozen,
    )
    return make_plan(experiment, layout, VOCAB)


@functools.cache
def programs_of(name, way):
    plan = plan_of(name, way)
    plan = dataclasses.replace(plan, objective=Still(plan.objective))
    with sharding.using(plan.layout):
        return jit_programs(plan, seed=0, accumulate=way.accumulate)


@functools.cache
def start_of(name):
    """The state before the first step, in host memory: the same one for every way."""
    plan = plan_of(name, ONE)
    with sharding.using(plan.layout):
        state = programs_of(name, ONE).init()
        frozen = {
            part: jax.jit(partial(init_params, model, plan.features, seed=1))()
            for part, model in plan.frozen.items()
        }
    return jax.tree.map(np.asarray, state.replace(frozen=named.unbox(frozen)))


def steps_of(name, batches, way):
    """[(metrics, gradients)] of a step per batch, and what is carried on at the end."""
    plan, programs, start = plan_of(name, way), programs_of(name, way), start_of(name)
    seen = []
    with sharding.using(plan.layout):
        state = jax.device_put(start, plan.state_shardings())
        for batch in batches:
            state, metrics = programs.step(state, jax.device_put(batch, plan.batch_shardings()))
            seen.append(jax.tree.map(np.asarray, (metrics, state.opt)))
        return seen, jax.tree.map(np.asarray, state.carry)


@functools.cache
def expected_of(name, number):
    return steps_of(name, batches_of(name, number), ONE)


def assert_same_steps(found, expected):
    (found, carry), (expected, expected_carry) = found, expected
    for (metrics, gradients), (wanted, wanted_gradients) in zip(found, expected, strict=True):
        assert_same_losses(metrics, wanted)
        rows, wanted_rows = (values["evidence"]["rows"] for values in (metrics, wanted))
        for term in wanted_rows:
            np.testing.assert_allclose(rows[term], wanted_rows[term], rtol=1e-4, atol=1e-4)
        assert_gradients_agree(gradients, wanted_gradients)
    for name in expected_carry:
        np.testing.assert_allclose(carry[name], expected_carry[name], atol=1e-5)


def assert_same_losses(found, expected):
    """All metrics that are one number."""
    assert found.keys() == expected.keys() and np.isfinite(expected["loss"])
    for term, value in expected.items():
        if term != "evidence":
            np.testing.assert_allclose(found[term], value, rtol=1e-5, atol=1e-6, err_msg=term)


def one_draw(readout, key):
    """Instead of `losses.sample`, whose draws hang on the place of a row among the others."""
    logits = readout.logits()
    noise = jax.random.gumbel(jax.random.key(5), logits.shape[1:])
    return jnp.argmax(logits + noise[None], axis=-1).astype(jnp.int32)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "number"), EVERY)
def test_the_same_step(name, number, way, monkeypatch):
    monkeypatch.setattr(replaced_token, "sample", one_draw)
    batches = batches_of(name, number)
    for part in {"weights", "slot_weights"} & batches[0].keys():
        one, other = (batches[0][part][first::2].sum() for first in (0, 1))
        assert one != other, "micro-batches have unequal numbers of targets"
    found = steps_of(name, batches, WAYS[way])
    assert_same_steps(found, expected_of(name, number))


# Objectives whose documents of a row do not see one another.
@pytest.mark.parametrize("name", ["causal", "causal, T5"])
def test_packed_documents_are_documents_alone(name):
    """The same documents, several to a row and one to a row; rows that are left over are empty."""
    case = CASES[name]
    objective, documents = case.objective, FakeCorpus([20, 9, 3, 11, 1, 30, 7, 2])
    rows = {}
    for packing in ("pack", "split"):
        windows = Windows(documents, width=case.length, packing=packing, separator=VOCAB.eos)
        place = np.arange(ROWS)
        place[len(windows) :] = -1
        rows[packing] = windows.rows(place, 0 * place, index=np.arange(ROWS), pad=VOCAB.pad)
    assert rows["pack"].segments.max() > 2 and rows["split"].segments.max() == 1
    seen = {}
    for packing, made in rows.items():
        batch = objective.prepare(made, RowRandom(0, made.index), VOCAB)
        [seen[packing]], _ = steps_of(name, [batch], ONE)
    assert_same_losses(seen["pack"][0], seen["split"][0])
    assert_gradients_agree(seen["pack"][1], seen["split"][1])
