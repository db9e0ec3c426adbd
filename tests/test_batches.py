"""Batches: a pure function of (corpus, seed, step), the same for any number of hosts."""

import dataclasses
import threading
import time

import numpy as np
import pytest

from flaxlm.data.ahead import run_ahead
from flaxlm.data.batches import Batches, EvalBatches
from flaxlm.data.spec import Data, Phase, Source
from flaxlm.errors import ConfigError, DataError
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


@dataclasses.dataclass(frozen=True)
class Paired(CausalLM):
    """Its partner's tokens stand where the targets of a language model do."""

    partners = 2

    def prepare(self, rows, rng, vocab):
        assert all(np.array_equal(other.index, rows.index) for other in rows.partners)
        first, second = (other.tokens for other in rows.partners)
        weights = (rows.segments > 0).astype(np.float32)
        return {
            "tokens": rows.tokens,
            "targets": first,
            "decoder_tokens": second,
            "weights": weights,
        }


@dataclasses.dataclass(frozen=True)
class Overlapping(CausalLM):
    """Rows move on by half their length."""

    def advance(self, length):
        return length // 2


@pytest.mark.parametrize(
    "packing", ["stream", "split", "pack", "sentences", "full_sentences", "continue"]
)
@pytest.mark.parametrize("objective", [*OBJECTIVES, Paired()], ids=lambda o: type(o).__name__)
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
        make(PHASES),
        make(corpora=[(FakeCorpus(SIZES, seed=2), 1.0)]),
    ]
    assert len({make().fingerprint, *(other.fingerprint for other in others)}) == 8


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


@pytest.mark.parametrize("packing", ["stream", "sentences"])
def test_partners_are_other_rows_of_the_same_corpus(packing):
    data, _ = two_corpora()
    data = dataclasses.replace(data, packing=packing)
    ids = np.random.default_rng(0).integers(0, 400, (2, 30, 50)) + [[[10]], [[500]]]
    corpora = [(FakeCorpus(list(texts)), 1.0) for texts in ids]
    batches = make(data, objective=Paired(), corpora=corpora)
    component = batches._mixture(batches.rows_of(0))[0]
    assert 0 < component.sum() < 16
    features = batches[0]
    for name in ("tokens", "targets", "decoder_tokens"):
        values = features[name]
        assert np.array_equal(values.max(axis=1) >= 500, component == 1), name
        assert ((values < 10) | ((values >= 500) == component[:, None])).all(), name
    assert not (features["tokens"] == features["targets"]).all(axis=1).any()
    assert not (features["targets"] == features["decoder_tokens"]).all(axis=1).all()
    assert same(make(data, objective=Paired(), corpora=corpora)[0], features)


def test_partners_need_two_rows():
    data = dataclasses.replace(DATA, packing="sentences")
    with pytest.raises(DataError, match=r"fake:a: 20 tokens make one row .* Paired pairs rows"):
        make(data, objective=Paired(), corpora=[(FakeCorpus([19]), 1.0)])


def test_rows_continue():
    corpus = FakeCorpus([10_000, 3000])
    data = dataclasses.replace(DATA, packing="continue", batch=4)
    ring = np.concatenate([np.append(text, VOCAB.eos) for text in corpus.texts])
    for objective, advance in ((CausalLM(), 32), (Overlapping(), 16)):
        batches = make(data, objective=objective, corpora=[(corpus, 1.0)])
        first = int(np.flatnonzero((windows(ring, 32) == batches[0]["targets"][0]).all(axis=1))[0])
        for step in (0, 1, 2, 50, 203, 204, 1000):  # far beyond the end of the ring
            for row, targets in enumerate(batches[step]["targets"]):
                begin = first + row * len(ring) // 4 + step * advance
                assert np.array_equal(targets, windows(ring, 32)[begin % len(ring)])
        assert batches.passes(100) == [100 * 4 * advance / len(ring)]
        assert same(make(data, objective=objective, corpora=[(corpus, 1.0)])[50], batches[50])
    other = make(data, objective=CausalLM(), corpora=[(corpus, 1.0)], seed=1)
    assert not np.array_equal(other[0]["targets"], batches[0]["targets"])


def windows(ring, width):
    return np.lib.stride_tricks.sliding_window_view(np.append(ring, ring[: width - 1]), width)


def test_rows_continue_in_sources_of_their_own():
    data, corpora = two_corpora()
    data = dataclasses.replace(data, packing="continue", batch=8)
    batches = make(data, objective=CausalLM(), corpora=corpora)
    assert batches.fractions == [0.75, 0.25]
    lone = [make(dataclasses.replace(DATA, packing="continue", batch=6), objective=CausalLM())]
    assert np.array_equal(batches[9]["targets"][:6], lone[0][9]["targets"])
    with pytest.raises(ConfigError, match=r"data\.batch=1 is less than 2 sources"):
        make(dataclasses.replace(data, batch=1), corpora=corpora)
    held_out = EvalBatches(corpora, CausalLM(), VOCAB, data=data, count=2)
    assert len(held_out) == 2 and held_out[1]["targets"].shape == (8, 32)


PHASES = dataclasses.replace(DATA, phases=(Phase(3, 64, 8), Phase(5, 64, 4), Phase(9, 32, 16)))


def test_phases_have_their_lengths_and_batches():
    batches = make(PHASES, objective=CausalLM())
    shapes = [batches[step]["tokens"].shape for step in range(12)]
    assert shapes == [(16, 32)] * 3 + [(8, 64)] * 2 + [(4, 64)] * 4 + [(16, 32)] * 3
    numbers = np.concatenate([batches.rows_of(step) for step in range(12)])
    assert np.array_equal(numbers, np.arange(len(numbers)))
    assert [step for step in range(12) if batches.begins(step)] == [0, 3, 5, 9]
    # Before the first phase and without it, the same run.
    assert same(batches[2], make(objective=CausalLM())[2])
    # A length that was there before goes on with its epoch: its fourth batch.
    assert np.array_equal(batches[9]["targets"], make(objective=CausalLM())[3]["targets"])
    # Hosts, and batches whose share is a function of their size.
    for step in (2, 4, 8, 10):
        whole, half = batches[step], len(batches[step]["tokens"]) // 2
        shares = [lambda batch: np.arange(batch // 2), lambda batch: np.arange(batch // 2, batch)]
        parts = [make(PHASES, objective=CausalLM(), rows=rows)[step] for rows in shares]
        assert len(parts[0]["tokens"]) == half
        assert same({n: np.concatenate([p[n] for p in parts]) for n in whole}, whole)


def test_phases_of_one_length_share_an_epoch():
    data = dataclasses.replace(DATA, phases=(Phase(4, 32, 32),))
    batches = make(data, objective=CausalLM(), corpora=[(FakeCorpus([32 * 128]), 1.0)])
    assert batches.counts[0].rows == 128
    epoch = np.concatenate([batches[step]["targets"] for step in range(6)])  # 4 x 16 + 2 x 32
    assert len(epoch) == 128 == len(np.unique(epoch, axis=0))
    assert (
        batches.passes(6) == [1.0] and batches.passes(5) == [0.75] and batches.passes(2) == [0.25]
    )


def test_continued_rows_go_on_through_a_phase():
    corpus = FakeCorpus([10_000])
    data = dataclasses.replace(DATA, packing="continue", batch=4, phases=(Phase(3, 64, 4),))
    batches = make(data, objective=CausalLM(), corpora=[(corpus, 1.0)])
    row = np.concatenate([batches[step]["targets"][1] for step in range(5)])
    assert len(row) == 3 * 32 + 2 * 64
    ring = np.append(corpus.texts[0], VOCAB.eos)
    assert (windows(ring, len(row)) == row).all(axis=1).any()


def test_evaluation_has_the_last_phase():
    held_out = EvalBatches([(FakeCorpus(SIZES), 1.0)], CausalLM(), VOCAB, data=PHASES, count=2)
    assert held_out[1]["tokens"].shape == (16, 32)
    data = dataclasses.replace(PHASES, phases=PHASES.phases[:2])
    held_out = EvalBatches([(FakeCorpus(SIZES), 1.0)], CausalLM(), VOCAB, data=data, count=2)
    assert held_out[1]["tokens"].shape == (4, 64)


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
