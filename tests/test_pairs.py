"""Pairs of texts and permuted sentences: literal rows, and the published program row by row."""

import dataclasses
import random

import numpy as np
import pytest

from flaxlm.batch import check_features
from flaxlm.data.random import RowRandom
from flaxlm.objectives.pairs import Halves, NextSentence, SentenceOrder, _limit, _pops
from flaxlm.objectives.sentence_permutation import permuted_sentences, sentence_table
from tests.lines import CLS, SEP, VOCAB, joined, random_rows, rows_of


def lay_out(pairs, rows, seed=0):
    features = pairs.lay_out(rows, RowRandom(seed, rows.index), VOCAB)
    check_features(features, vocab_size=VOCAB.size)
    return features


def texts(features):
    """[(A, B, label)] as lists, from the layout."""
    found = []
    for tokens, segments, types, label in zip(
        *(features[name] for name in ("tokens", "segments", "types", "labels")), strict=True
    ):
        ids = tokens[segments > 0].tolist()
        assert ids[0] == CLS and ids[-1] == SEP and ids.count(SEP) == 2
        split = ids.index(SEP)
        kinds = types[segments > 0].tolist()
        assert kinds == [0] * (split + 1) + [1] * (len(ids) - split - 1)
        assert not tokens[segments == 0].any() and not types[segments == 0].any()
        found.append((tuple(ids[1:split]), tuple(ids[split + 1 : -1]), int(label)))
    return found


S = [[11, 12], [13], [14, 15, 16]]  # the sentences of a row
T = [[31], [32, 33], [34]]  # and of its partner
JOINED, OTHER = (11, 12, 13, 14, 15, 16), (31, 32, 33, 34)


def both(count, width=10, texts=S):
    return dataclasses.replace(
        rows_of([texts] * count, width), partners=(rows_of([T] * count, 10),)
    )


def test_next_sentence():
    pairs = NextSentence(short=0.0)
    assert pairs.window(11) == 10  # eight tokens in all, and two to spare
    features = lay_out(pairs, both(4000))
    found = texts(features)
    real = {(a, b) for a, b, label in found if label == 0}
    assert real == {(JOINED[:2], JOINED[2:]), (JOINED[:3], JOINED[3:])}
    drawn = {(a, b) for a, b, label in found if label == 1}
    # B begins where it can fill what is left of eight, else at the partner's first sentence.
    assert drawn == {(JOINED[:2], OTHER), (JOINED[:3], OTHER)}
    assert abs(np.mean(features["labels"]) - 0.5) < 0.04
    assert abs(np.mean([len(a) == 2 for a, *_ in found]) - 0.5) < 0.04
    row = features["labels"].tolist().index(0)
    assert features["segments"][row].tolist() == [1] * 9 + [0] * 2
    assert features["positions"][row].tolist() == [*range(9), 0, 0]


def test_a_random_text_begins_anywhere_with_enough_after_it():
    pairs = NextSentence(short=0.0)
    rows = both(6000, texts=[[11, 12, 13, 14, 15, 16], [17]])
    found = [b for a, b, label in texts(lay_out(pairs, rows)) if label == 1]
    # Two tokens are wanted; B stops with the sentence that reaches them.
    assert set(found) == {(31, 32, 33), (32, 33)}


def test_a_row_of_one_sentence_takes_a_random_text():
    for pairs in (NextSentence(), SentenceOrder(), NextSentence(single=True)):
        rows = both(400, texts=[[11, 12]])
        found = texts(lay_out(pairs, rows))
        assert {a for a, *_ in found} == {(11, 12)} and {label for *_, label in found} == {1}
        assert all(set(b) <= set(OTHER) for _, b, _ in found)


def test_sentence_pair():
    found = texts(lay_out(NextSentence(single=True), both(6000)))
    assert {(a, b) for a, b, label in found if label == 0} == {
        ((11, 12), (13,)),
        ((13,), (14, 15, 16)),
    }
    drawn = {(a, b) for a, b, label in found if label == 1}
    assert drawn == {(a, b) for a in ((11, 12), (13,)) for b in ((31,), (32, 33), (34,))}


def test_sentence_order():
    features = lay_out(SentenceOrder(short=0.0), both(4000))
    found = texts(features)
    right = {(a, b) for a, b, label in found if label == 0}
    assert right == {(JOINED[:2], JOINED[2:]), (JOINED[:3], JOINED[3:])}
    assert {(b, a) for a, b, label in found if label == 1} == right
    assert abs(np.mean(features["labels"]) - 0.5) < 0.04


def test_short_pairs():
    """A tenth is filled to a length uniform in [2, 8] only, a whole sentence at a time."""
    rows = both(40_000, texts=[[i] for i in range(11, 19)])
    lengths = np.array([len(a) + len(b) for a, b, _ in texts(lay_out(SentenceOrder(), rows))])
    assert lengths.min() == 2 and lengths.max() == 8
    assert abs((lengths < 8).mean() - 0.1 * 6 / 7) < 0.006
    assert np.bincount(lengths)[2:8].std() < 90


# Against the published program, one row at a time (bert/create_pretraining_data.py and
# albert/create_pretraining_data.py), on the sentences that the row brings.


def reference(sentences, other, limit, kind, rng, short=0.1):
    target = rng.randint(2, limit) if rng.random() < short else limit
    chunk, size = [], 0
    for sentence in sentences:
        chunk.append(sentence)
        size += len(sentence)
        if size >= target:
            break
    end = rng.randint(1, len(chunk) - 1) if len(chunk) >= 2 else 1
    a = joined(chunk[:end])
    label, swap = 0, False
    if len(chunk) == 1 or (kind is NextSentence and rng.random() < 0.5):
        label, b = 1, []
        wanted = target - len(a)
        starts = [s for s in range(len(other)) if sum(map(len, other[s:])) >= wanted]
        for sentence in other[rng.choice(starts or [0]) :]:
            b += sentence
            if len(b) >= wanted:
                break
    else:
        b = joined(chunk[end:])
        if kind is SentenceOrder and rng.random() < 0.5:
            label, swap = 1, True
    if swap:
        a, b = b, a
    a, b = list(a), list(b)
    while len(a) + len(b) > limit:
        longer = a if len(a) > len(b) else b
        if rng.random() < 0.5:
            del longer[0]
        else:
            longer.pop()
    return tuple(a), tuple(b), label


@pytest.mark.parametrize("kind", [NextSentence, SentenceOrder])
def test_the_distribution_is_the_published_one(kind):
    count, sentences = 40_000, [[11, 12], [13, 14, 15], [16, 21]]
    other = [[31, 32], [33], [34, 35, 36]]
    pairs = kind()
    width = pairs.window(9)
    assert _limit(width) == 6 and width == 7
    rows = rows_of([sentences] * count, width)
    rows = dataclasses.replace(rows, partners=(rows_of([other] * count, width),))
    found = texts(lay_out(pairs, rows, seed=1))
    rng = random.Random(0)
    expected = [reference(sentences, other, 6, kind, rng) for _ in range(count)]
    cells = sorted(set(found) | set(expected))
    hits = np.array([[group.count(cell) for cell in cells] for group in (found, expected)])
    assert len(cells) > 10
    value = ((hits[0] - hits[1]) ** 2 / hits.sum(axis=0)).sum()
    assert value < len(cells) - 1 + 5 * np.sqrt(2 * (len(cells) - 1))


def test_pops_are_the_published_loop():
    random = np.random.default_rng(0)
    a, b = random.integers(1, 120, 3000), random.integers(0, 120, 3000)
    fronts, pops = _pops(a, b, 60, RowRandom(0, np.arange(3000)))
    for row in range(3000):
        left = [a[row], b[row]]
        while sum(left) > 60:
            left[0 if left[0] > left[1] else 1] -= 1
        assert (np.array([a[row], b[row]]) - pops[row]).tolist() == left
    assert (fronts >= 0).all() and (fronts <= pops).all()
    n = pops.ravel().astype(float)  # heads of n fair coins: variance n / 4
    z = (fronts.ravel() - n / 2)[n > 0] / np.sqrt(n[n > 0] / 4)
    assert abs(z.mean()) < 5 / np.sqrt(len(z)) and abs(z.var() - 1) < 0.1


@pytest.mark.parametrize("length", [5, 8, 11, 64, 128, 512])
def test_window_and_limit_are_inverse(length):
    assert _limit(NextSentence().window(length)) == length - 3


def test_any_rows_fit():
    for pairs in (NextSentence(), NextSentence(single=True), SentenceOrder()):
        for length in (5, 17, 40):
            rows = random_rows(300, pairs.window(length))
            rows = dataclasses.replace(
                rows, partners=(random_rows(300, pairs.window(length), seed=9, least=1),)
            )
            features = lay_out(pairs, rows)
            assert features["tokens"].shape == (300, length)
            some = rows.lengths > 0
            picked = {name: x[some] for name, x in features.items()}
            for a, b, _ in texts(picked):
                assert 0 < len(a) and 0 < len(b) and len(a) + len(b) <= length - 3


# Permuted sentences.


def test_sentence_table():
    rows = rows_of([S, [[11]], []], 8)
    rows.sentences[0, 0] = False  # cut inside a sentence
    begins, count = sentence_table(rows)
    assert begins.tolist() == [[0, 2, 3, 6], [0, 1, 1, 1], [0, 0, 0, 0]]
    assert count.tolist() == [3, 1, 0]


def test_permuted_sentences():
    count = 12_000
    rows = rows_of([S] * count, 8)
    index = permuted_sentences(rows, RowRandom(0, rows.index))
    found = np.take_along_axis(rows.tokens, index, axis=1)
    orders, hits = np.unique(found, axis=0, return_counts=True)
    assert sorted(orders.tolist()) == sorted(
        [*joined(S[i] for i in order), 0, 0]
        for order in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    )
    assert ((hits - 2000) ** 2 / 2000).sum() < 30
    alone = rows_of([[], [[11]], S], 8, index=[0, 1, 7])
    assert np.array_equal(permuted_sentences(alone, RowRandom(0, alone.index))[2], index[7])


def test_a_share_of_the_sentences_is_permuted():
    """fairseq: ceil(share * sentences) of them, chosen at random, change places."""
    rows = rows_of([[[11], [12], [13], [14]]] * 12_000, 4)
    index = permuted_sentences(rows, RowRandom(0, rows.index), share=0.5)
    moved = (index != np.arange(4)).sum(axis=1)
    assert set(moved.tolist()) == {0, 2} and abs((moved == 2).mean() - 0.5) < 0.03
    swaps, hits = np.unique(index[moved == 2], axis=0, return_counts=True)
    assert len(swaps) == 6 and hits.std() < 120


# Halves.


def halves_of(row, shares, length, rng):
    """electra/build_pretraining_dataset.py, on the sentences of a row; `shares`: single, short."""
    target = rng.randint(5, length) if rng.random() < shares[1] else length
    chunk, size = [], 0
    for sentence in row:
        chunk.append(sentence)
        size += len(sentence)
        if size >= target:
            break
    half = 100_000 if rng.random() < shares[0] else (target - 3) // 2
    a, b = [], []
    for sentence in chunk:
        if (
            not a
            or (not b and len(a) + len(sentence) < half)
            or (not b and len(a) < half and rng.random() < 0.5)
        ):
            a += sentence
        else:
            b += sentence
    a = a[: length - 2]
    return tuple(a), tuple(b[: max(0, length - len(a) - 3)])


def test_halves_are_the_published_ones():
    count, row = 30_000, [[11, 12], [13, 14], [15], [16, 20, 21], [22, 23]]
    pairs = Halves(single=0.3, short=0.3)
    width = pairs.window(11)
    assert width == 10 and not pairs.labelled and pairs.partners == 0
    features = lay_out(pairs, rows_of([row] * count, width))
    assert features.keys() == {"tokens", "segments", "positions", "types"}
    found = []
    for tokens, segments, types in zip(
        features["tokens"], features["segments"], features["types"], strict=True
    ):
        ids, kinds = tokens[segments > 0].tolist(), types[segments > 0].tolist()
        split = ids.index(SEP)
        assert ids[0] == CLS and ids[-1] == SEP
        assert kinds == [0] * (split + 1) + [1] * (len(ids) - split - 1)
        found.append((tuple(ids[1:split]), tuple(ids[split + 1 : -1])))
    rng = random.Random(0)
    expected = [halves_of(row, (0.3, 0.3), 11, rng) for _ in range(count)]
    cells = sorted(set(found) | set(expected))
    hits = np.array([[group.count(cell) for cell in cells] for group in (found, expected)])
    assert len(cells) > 5
    value = ((hits[0] - hits[1]) ** 2 / hits.sum(axis=0)).sum()
    assert value < len(cells) - 1 + 5 * np.sqrt(2 * (len(cells) - 1))
