"""What a plan says of a run, and what it refuses before anything is touched."""

import dataclasses
from dataclasses import dataclass

import jax
import numpy as np
import pytest

from flaxlm.data.spec import Phase
from flaxlm.errors import ConfigError
from flaxlm.feed import Feed
from flaxlm.models import t5
from flaxlm.objectives.causal_lm import CausalLM
from flaxlm.plan import make_plan, trace_features
from flaxlm.sharding import Mesh, abstract_layout, make_layout
from tests import tiny


def plan(layout=None, *, run=(), **data):
    experiment = dataclasses.replace(
        tiny.EXPERIMENT,
        data=dataclasses.replace(tiny.EXPERIMENT.data, **data),
        run=dataclasses.replace(tiny.EXPERIMENT.run, **dict(run)),
    )
    layout = layout or abstract_layout(Mesh(), 4)
    return make_plan(experiment, layout, tiny.VOCABULARY.blank())


def test_phases():
    long = plan(phases=(Phase(10, 128, 16), Phase(30, 128, 32)))
    assert [features["tokens"].shape for features in long.phases.values()] == [
        (16, 64),
        (16, 128),
        (32, 128),
    ]
    assert long.features is long.phases[0]
    short = plan()
    assert long.train_flops(9) == short.train_flops() == long.train_flops()
    assert long.train_flops(30) == 2 * long.train_flops(10) > 4 * long.train_flops(9)
    last = plan(length=128, batch=32)
    assert long.bytes_per_device()["batch"] == last.bytes_per_device()["batch"]
    assert long.bytes_per_device() == last.bytes_per_device()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"phases": (Phase(0, 64, 16),)}, r"data\.phases\.0\.start=0: must be at least 1"),
        (
            {"phases": (Phase(5, 64, 16), Phase(5, 32, 16))},
            r"data\.phases\.1\.start=5: must be at least 6",
        ),
        ({"phases": (Phase(5, 1, 16),)}, r"data\.phases\.0\.length=1: must be at least 2"),
        (
            {"phases": (Phase(5, 64, 10),)},
            r"data\.phases\.0\.batch=10 rows cannot be split over 4 .*accumulate=1; .*8 or 12",
        ),
        (
            {"phases": (Phase(5, 64, 20),), "run": {"accumulate": 4}},
            r"data\.phases\.0\.batch=20 .*accumulate=4; nearest that work: 16 or 32",
        ),
        (
            {"phases": (Phase(5, 64, 8),), "packing": "continue"},
            r"data\.phases\.0\.batch=8: under data\.packing=continue .* must stay 16",
        ),
        ({"packing": "sentence"}, r"data\.packing=sentence: SpanCorruption takes stream or split"),
    ],
)
def test_refused(changes, line):
    with pytest.raises(ConfigError, match=line):
        plan(**changes)


class Short(t5.Model):
    """A model with a table of 64 positions."""

    longest = 64


class Remembering(t5.Model):
    """A model that carries something from step to step."""

    def carried(self, shapes):
        rows, length = shapes["tokens"].shape
        return {"memory": jax.ShapeDtypeStruct((rows, 1, length, 8), np.float32)}

    def __call__(self, batch, *, train):
        return {**super().__call__(batch, train=train), "memory": batch["memory"]}


def with_model(kind, **data):
    experiment = dataclasses.replace(
        tiny.EXPERIMENT,
        model=kind(tiny.EXPERIMENT.model.size),
        data=dataclasses.replace(tiny.EXPERIMENT.data, **data),
    )
    return make_plan(experiment, abstract_layout(Mesh(), 4), tiny.VOCABULARY.blank())


def test_rows_longer_than_the_table_of_positions():
    assert with_model(Short)
    with pytest.raises(ConfigError, match=r"^data\.length=65: .* has a table of 64 positions"):
        with_model(Short, length=65)
    with pytest.raises(ConfigError, match=r"^data\.phases\.0\.length=128: .* of 64 positions"):
        with_model(Short, phases=(Phase(3, 128, 16),))


def test_what_is_carried_keeps_its_shape():
    going_on = with_model(Remembering, packing="continue")
    assert going_on.state.carry["memory"].shape == (16, 1, 64, 8)
    with pytest.raises(ConfigError, match=r"^data\.phases\.0: tests\.test_plan carries a memory"):
        with_model(Remembering, packing="continue", phases=(Phase(3, 128, 16),))
    with pytest.raises(ConfigError, match=r"^data\.packing=stream: .* carries a memory"):
        with_model(Remembering)


@dataclass(frozen=True, kw_only=True)
class OfSentences(CausalLM):
    """An objective that takes rows of sentences alone, in pairs."""

    packings = ("sentences",)
    partners = 2
    symbols = ("cls",)

    def prepare(self, rows, rng, vocab):
        first, second = rows.partners
        assert first.tokens.shape == second.tokens.shape == rows.tokens.shape
        return super().prepare(rows, rng, vocab)


def test_an_objective_names_its_packings_and_gets_its_partners():
    vocab = tiny.VOCABULARY.blank()
    found = trace_features(OfSentences(), length=32, batch=8, vocab=vocab)
    assert found["tokens"].shape == (8, 32)
    experiment = dataclasses.replace(tiny.EXPERIMENT, objective=OfSentences())
    with pytest.raises(ConfigError, match=r"data\.packing=stream: OfSentences takes sentences$"):
        make_plan(experiment, abstract_layout(Mesh(), 4), vocab)


def test_feed_takes_the_batches_of_all_phases():
    layout = make_layout(Mesh(), jax.devices())
    found = plan(layout, phases=(Phase(10, 128, 32),))
    feed = Feed(found)
    assert feed.rows(16).tolist() == list(range(16)) and len(feed.rows(32)) == 32
    for features in found.phases.values():
        host = {
            name: np.random.default_rng(0).integers(0, 9, x.shape).astype(x.dtype)
            for name, x in features.items()
        }
        fed = feed(host)
        assert all(np.array_equal(fed[name], host[name]) for name in host)
        assert len(fed["tokens"].addressable_shards) == 8
