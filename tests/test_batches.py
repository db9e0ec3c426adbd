"""Batches: a pure function of (corpus, seed, step), the same for any number of hosts."""

import dataclasses
import threading
import time

import numpy as np
import pytest

from flaxlm.data.batches import Batches, EvalBatches, run_ahead
from flaxlm.data.spec import Data, Source
from flaxlm.errors import DataError
from flaxlm.objectives.causal_lm import CausalLM
from flaxlm.objectives.prefix_lm import OneStackPrefixLM, PrefixLM
from flaxlm.objectives.span_corruption import SpanCorruption
from tests.fakes import VOCAB, FakeCorpus

SIZES = np.random.default_rng(0).integers(1, 120, 200)
DATA = Data(sources=(Source("fake:a"),), batch=16, length=32)
OBJECTIVES = [SpanCorruption(), PrefixLM(), OneStackPrefixLM(), CausalLM()]


def make(data=DATA, *, objective=None, seed=0, rows=slice(None), corpora=None):
    corpora = corpora or [(FakeCorpus(SIZES), 1.0)]
    return Batches(corpora, objective or SpanCorruption(), VOCAB, data=data, seed=seed, rows=rows)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def two_corpora(extra=0):
    data = dataclasses.replace(DATA, sources=(Source("fake:a"), Source("fake:b")))
    grown = FakeCorpus([*SIZES, *[50] * extra], seed=1)
    return data, [(FakeCorpus(SIZES), 3.0), (grown, 1.0)]


@pytest.mark.parametrize("packing", ["stream", "split", "pack"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_hosts_make_the_global_batch_together(objective, packing):
    data, corpora = two_corpora()
    data = dataclasses.replace(data, packing=packing)
    whole = make(data, objective=objective, corpora=corpora)
    for step in (0, 3, 1000):
        features = whole[step]
        assert all(len(values) == 16 for values in features.values())
        assert features["weights"].sum() > 0
        for hosts in (1, 2, 4, 8):
            size = 16 // hosts
            parts = [
                make(
                    data,
                    objective=objective,
                    corpora=corpora,
                    rows=slice(h * size, (h + 1) * size),
                )[step]
                for h in range(hosts)
            ]
            joined = {name: np.concatenate([p[name] for p in parts]) for name in features}
            assert same(joined, features)


def test_a_step_is_a_pure_function():
    batches = make()
    before = batches[7]
    _ = batches[3], batches[100_000]
    assert same(batches[7], before)
    assert same(make()[7], before)
    assert not same(make(seed=1)[7], before)
    assert not same(batches[8], before)
    assert batches.rows_of(7).tolist() == list(range(112, 128))
    assert make(rows=slice(4, 6)).rows_of(7).tolist() == [116, 117]
    with pytest.raises(IndexError):
        batches[-1]


def test_an_epoch_reads_every_window_once():
    corpus = FakeCorpus([32 * 64])
    data = dataclasses.replace(DATA, batch=8)
    batches = make(data, objective=CausalLM(), corpora=[(corpus, 1.0)])
    assert batches.counts[0].rows == 64
    first = np.concatenate([batches[step]["targets"] for step in range(8)])
    second = np.concatenate([batches[step]["targets"] for step in range(8, 16)])
    text = np.append(corpus.texts[0], VOCAB.eos)[: 32 * 64 + 1]
    for epoch in (first, second):  # the ring of 2049 tokens leaves one out, another every epoch
        assert len(np.unique(epoch, axis=0)) == 64
        left_out = np.bincount(text, minlength=VOCAB.size) - np.bincount(
            epoch.ravel(), minlength=VOCAB.size
        )
        assert left_out.min() == 0 and left_out.sum() == 1
    assert not np.array_equal(first, second)
    assert batches.passes(16) == [2.0]


def test_one_component_grows_and_the_other_does_not_notice():
    data, corpora = two_corpora()
    _, grown = two_corpora(extra=100)
    a, b = (make(data, objective=CausalLM(), corpora=c) for c in (corpora, grown))
    of_first = a._mixture(a.rows_of(5))[0] == 0
    assert 0 < of_first.sum() < 16
    assert np.array_equal(a[5]["targets"][of_first], b[5]["targets"][of_first])
    assert not np.array_equal(a[5]["targets"], b[5]["targets"])
    assert a.fractions == b.fractions == [0.75, 0.25]
    assert a.fingerprint != b.fingerprint


def test_fingerprint():
    assert make().fingerprint == make(rows=slice(0, 4)).fingerprint  # hosts agree
    others = [
        make(seed=1),
        make(objective=SpanCorruption(rate=0.3)),
        make(dataclasses.replace(DATA, packing="pack")),
        make(dataclasses.replace(DATA, length=48)),
        make(dataclasses.replace(DATA, batch=8)),
        make(corpora=[(FakeCorpus(SIZES, seed=2), 1.0)]),
    ]
    assert len({make().fingerprint, *(other.fingerprint for other in others)}) == 7


def test_id_outside_the_vocabulary():
    corpus = FakeCorpus([[20] * 500 + [VOCAB.size] + [20] * 40])
    batches = make(objective=CausalLM(), corpora=[(corpus, 1.0)])
    with pytest.raises(DataError, match=rf"token id {VOCAB.size} is outside"):
        for step in range(2):
            batches[step]


def evaluation(count, *, rows=slice(None), sizes=SIZES, **changes):
    data = dataclasses.replace(DATA, **changes)
    return EvalBatches(
        [(FakeCorpus(sizes), 1.0)], SpanCorruption(), VOCAB, data=data, count=count, rows=rows
    )


def test_evaluation_is_fixed_and_counts_no_row_twice():
    everything = evaluation(1000, packing="split")
    rows = everything._rows
    assert rows % 16, "the example should have a partial batch"
    assert len(everything) == rows // 16 + 1
    last = everything[len(everything) - 1]
    real = rows % 16
    assert (last["weights"][:real].sum(axis=1) > 0).all()
    assert (last["segments"][real:] == 0).all() and (last["weights"][real:] == 0).all()
    # Text on both sides, over all batches: exactly the corpus.
    text = np.concatenate(
        [
            batch[name][batch[name] < VOCAB.pieces]
            for batch in everything
            for name in ("tokens", "targets")
        ]
    )
    text = np.sort(text[text >= 10])
    assert np.array_equal(text, np.sort(np.concatenate(FakeCorpus(SIZES).texts)))
    # Fewer batches are the same first batches; hosts share them.
    some = evaluation(2, packing="split")
    assert len(some) == 2 and same(some[1], everything[1])
    half = evaluation(1000, packing="split", rows=slice(8, 16))
    assert same(half[len(half) - 1], {name: values[8:] for name, values in last.items()})
    with pytest.raises(IndexError):
        some[2]


def test_evaluation_of_less_than_a_batch():
    short = evaluation(4, sizes=[100, 30], length=32)
    assert len(short) == 1
    assert (short[0]["weights"].sum(axis=1) > 0).sum() == short._rows == 3


def test_run_ahead_gives_the_same_batches():
    batches = make()
    with run_ahead(batches, 3, 9, ahead=2) as ahead:
        steps = list(ahead)
    assert len(steps) == 6
    assert all(same(features, batches[3 + i]) for i, features in enumerate(steps))
    with run_ahead(batches, 5, 5) as nothing:
        assert list(nothing) == []


class Counting:
    def __init__(self, fail_at=None):
        self.asked = []
        self.fail_at = fail_at

    def __getitem__(self, step):
        self.asked.append(step)
        if step == self.fail_at:
            raise DataError(f"step {step} is bad")
        return {"step": step}


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_run_ahead_is_bounded_and_leaves_no_thread():
    before = set(threading.enumerate())
    counting = Counting()
    ahead = run_ahead(counting, 0, 1000, ahead=3)
    assert wait_for(lambda: len(counting.asked) == 3)  # begins before it is asked
    assert next(ahead) == {"step": 0}
    assert wait_for(lambda: len(counting.asked) == 4)
    time.sleep(0.05)
    assert counting.asked == [0, 1, 2, 3]
    ahead.close()
    ahead.close()
    assert wait_for(lambda: set(threading.enumerate()) <= before)
    with pytest.raises(StopIteration):
        next(ahead)


def test_run_ahead_passes_errors_on():
    with run_ahead(Counting(fail_at=2), 0, 10) as ahead:
        assert next(ahead) == {"step": 0}
        assert next(ahead) == {"step": 1}
        with pytest.raises(DataError, match="step 2 is bad"):
            next(ahead)
