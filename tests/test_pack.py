"""Windows: literal documents in, literal rows out; every token placed once; rows nearly full."""

import numpy as np
import pytest

from flaxlm.data.pack import Windows
from flaxlm.data.pieces import best_fit
from flaxlm.errors import ConfigError, DataError
from tests.fakes import FakeCorpus

A, B, C = [11, 12, 13, 14, 15, 16, 17], [21, 22], [31, 32, 33]


def read(windows, place=None, shift=0):
    place = np.arange(len(windows)) if place is None else np.asarray(place)
    made = windows.rows(place, np.int64(shift), index=100 + place, pad=0)
    assert np.array_equal(made.lengths, np.count_nonzero(made.segments, axis=1))
    return made.tokens, made.segments, made.positions, made.sentences


def rows(windows, place=None, shift=0):
    return [x.tolist() for x in read(windows, place, shift)]


def test_stream():
    windows = Windows(FakeCorpus([A, [], B, C]), width=5, packing="stream")
    tokens, segments, positions, sentences = rows(windows)
    assert tokens == [[11, 12, 13, 14, 15], [16, 17, 21, 22, 31]]
    assert segments == [[1, 1, 1, 1, 1], [1, 1, 2, 2, 3]]
    assert positions == [[0, 1, 2, 3, 4], [0, 1, 0, 1, 0]]
    # Sentences begin at tokens 0 and 5 of a document; a window's first token need not begin one.
    assert sentences == [[True, False, False, False, False], [True, False, True, False, True]]
    counts = windows.counts
    assert (counts.documents, counts.empty, counts.split) == (4, 1, 1)
    assert (counts.tokens, counts.dropped, counts.rows) == (12, 2, 2)


def test_stream_is_a_ring_that_epochs_turn():
    windows = Windows(FakeCorpus([A, B, C]), width=5, packing="stream")
    tokens, segments, positions, _ = rows(windows, shift=4)
    assert tokens == [[15, 16, 17, 21, 22], [31, 32, 33, 11, 12]]
    assert segments == [[1, 1, 1, 2, 2], [1, 1, 1, 2, 2]]
    assert positions == [[0, 1, 2, 0, 1], [0, 1, 2, 0, 1]]


def test_stream_with_separator():
    windows = Windows(FakeCorpus([[], A, [], B, C]), width=5, packing="stream", separator=1)
    tokens, segments, positions, sentences = rows(windows)
    assert tokens == [[11, 12, 13, 14, 15], [16, 17, 1, 21, 22], [1, 31, 32, 33, 1]]
    assert segments == [[1, 1, 1, 1, 1], [1, 1, 1, 2, 2], [1, 2, 2, 2, 2]]
    assert positions == [[0, 1, 2, 3, 4], [0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]
    assert sentences[2] == [False, True, False, False, False]


def test_split():
    windows = Windows(FakeCorpus([A, B, [], C]), width=5, packing="split")
    tokens, segments, positions, _ = rows(windows, [0, 1, 2, 3, -1])
    assert tokens == [
        [11, 12, 13, 14, 15],
        [16, 17, 0, 0, 0],
        [21, 22, 0, 0, 0],
        [31, 32, 33, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    assert segments[1:] == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0] * 5]
    assert positions[3:] == [[0, 1, 2, 0, 0], [0] * 5]
    assert windows.counts.dropped == 0 and windows.counts.split == 1
    assert windows.counts.full == 12 / 20


def test_pack():
    windows = Windows(FakeCorpus([A, B, C]), width=5, packing="pack")
    tokens, segments, positions, sentences = rows(windows)
    assert tokens == [[11, 12, 13, 14, 15], [16, 17, 31, 32, 33], [21, 22, 0, 0, 0]]
    assert segments == [[1, 1, 1, 1, 1], [1, 1, 2, 2, 2], [1, 1, 0, 0, 0]]
    assert positions[1] == [0, 1, 0, 1, 2]
    assert sentences[1] == [True, False, True, False, False]


# Sentences of a document: 3 + 4 tokens, 2, 1 + 2; and one of 7 tokens that no row of 5 can hold.
SENTENCES = {"documents": [A, [], B, C], "starts": [[0, 3], [], [0], [0, 1]]}
LONG = {"documents": [A, C], "starts": [[0], [0, 1]]}


def test_sentences():
    windows = Windows(FakeCorpus(**SENTENCES), width=5, packing="sentences")
    tokens, segments, positions, sentences = rows(windows, [0, 1, 2, 3, -1])
    assert tokens == [
        [11, 12, 13, 0, 0],
        [14, 15, 16, 17, 0],
        [21, 22, 0, 0, 0],
        [31, 32, 33, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    assert segments[1:4] == [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]
    assert positions[1] == [0, 1, 2, 3, 0]
    assert sentences[0] == [True, False, False, False, False]
    assert sentences[3] == [True, True, False, False, False]
    counts = windows.counts
    assert (counts.rows, counts.pieces, counts.dropped, counts.full) == (4, 4, 0, 12 / 20)


def test_full_sentences():
    windows = Windows(FakeCorpus(**SENTENCES), width=5, packing="full_sentences")
    tokens, segments, positions, _ = rows(windows)
    assert tokens == [[11, 12, 13, 0, 0], [14, 15, 16, 17, 0], [21, 22, 31, 32, 33]]
    assert segments == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 2, 2, 2]]
    assert positions[2] == [0, 1, 0, 1, 2]
    # A separator belongs to the sentence before it.
    windows = Windows(FakeCorpus(**SENTENCES), width=5, packing="full_sentences", separator=1)
    tokens, segments, _, sentences = rows(windows)
    assert tokens == [
        [11, 12, 13, 0, 0],
        [14, 15, 16, 17, 1],
        [21, 22, 1, 31, 0],
        [32, 33, 1, 0, 0],
    ]
    assert segments[2:] == [[1, 1, 1, 2, 0], [1, 1, 1, 0, 0]]
    assert sentences[2] == [True, False, False, True, False]


def test_a_sentence_longer_than_a_row_is_cut():
    tokens = rows(Windows(FakeCorpus(**LONG), width=5, packing="sentences"))[0]
    assert tokens == [[11, 12, 13, 14, 15], [16, 17, 0, 0, 0], [31, 32, 33, 0, 0]]
    tokens = rows(Windows(FakeCorpus(**LONG), width=5, packing="full_sentences"))[0]
    assert tokens == [[11, 12, 13, 14, 15], [16, 17, 31, 32, 33]]
    tokens = rows(Windows(FakeCorpus(**LONG), width=4, packing="full_sentences"))[0]
    assert tokens == [[11, 12, 13, 14], [15, 16, 17, 31], [32, 33, 0, 0]]


def slow_greedy(corpus, width, across):
    """Token counts of the rows, one sentence after the other."""
    found, used = [], 0
    for text, starts in zip(corpus.texts, corpus.starts, strict=True):
        for size in np.diff(starts, append=len(text)).tolist():
            for piece in [width] * (size // width) + [size % width] * (size % width > 0):
                if used + piece > width:
                    found.append(used)
                    used = 0
                used += piece
        if not across and used:
            found.append(used)
            used = 0
    return found + [used] * (used > 0)


@pytest.mark.parametrize("chunk", [7, 1 << 16])
@pytest.mark.parametrize("packing", ["sentences", "full_sentences"])
def test_sentences_equal_one_at_a_time(packing, chunk, monkeypatch):
    monkeypatch.setattr("flaxlm.data.pack._SENTENCES_OF", chunk)
    random = np.random.default_rng(2)
    sizes = random.integers(0, 90, 200)
    marks = [np.flatnonzero(random.random(size) < 0.1) for size in sizes]
    starts = [np.unique([0, *m])[: max(size, 0)] for m, size in zip(marks, sizes, strict=True)]
    corpus = FakeCorpus(sizes, starts=starts)
    windows = Windows(corpus, width=24, packing=packing)
    tokens, segments, _, _ = read(windows)
    assert np.array_equal(tokens[segments > 0], np.concatenate(corpus.texts))
    expected = slow_greedy(corpus, 24, across=packing == "full_sentences")
    assert (segments > 0).sum(axis=1).tolist() == expected


@pytest.mark.parametrize("packing", ["stream", "pack", "sentences", "full_sentences"])
def test_others_are_uniform_and_never_the_row_itself(packing):
    windows = Windows(FakeCorpus([40] * 3 + [7]), width=16, packing=packing)
    count, number = len(windows), np.arange(4000)
    place = np.arange(4000) % count
    found = windows.others(place, 0, 3, number)
    assert (found != place).all() and found.min() == 0 and found.max() == count - 1
    if packing == "sentences":  # rows of another document
        allowed = windows._document_of(place)[:, None] != windows._document_of(np.arange(count))
    else:
        allowed = place[:, None] != np.arange(count)
    seen = np.bincount(place * count + found, minlength=count * count).reshape(count, count)
    expected = np.array(
        [allowed[:count][p] / allowed[p].sum() * (place == p).sum() for p in range(count)]
    )
    assert (seen[expected == 0] == 0).all()
    assert (np.abs(seen - expected) <= 5 * np.sqrt(expected)).all()
    # Of the key alone: rows may be asked for in any company.
    some = np.array([5, 77, 3])
    assert np.array_equal(windows.others(place[some], 0, 3, number[some]), found[some])
    assert not np.array_equal(windows.others(place, 1, 3, number), found)
    assert windows.others(np.array([2, -1]), 0, 3, number[:2])[1] == -1


def test_others_in_a_corpus_of_one_document():
    windows = Windows(FakeCorpus([80]), width=16, packing="sentences")
    place = np.arange(len(windows))
    found = windows.others(place, 0)
    assert (found != place).all() and (found < len(windows)).all() and (found >= 0).all()


@pytest.mark.parametrize("separator", [None, 1])
@pytest.mark.parametrize("packing", ["stream", "split", "pack", "sentences", "full_sentences"])
def test_every_token_is_placed_once(packing, separator):
    random = np.random.default_rng(1)
    sizes = random.integers(0, 60, 300)
    sizes[:3] = 0
    sizes[-2:] = 0
    corpus = FakeCorpus(sizes)
    windows = Windows(corpus, width=16, packing=packing, separator=separator)
    tokens, segments, _, _ = read(windows)
    placed = tokens[segments > 0]
    every = [np.append(t, 1) if separator else t for t in corpus.texts if len(t)]
    expected = np.concatenate(every)
    assert windows.counts.tokens == len(expected)
    assert len(placed) + windows.counts.dropped == len(expected)
    if packing == "stream":
        assert np.array_equal(placed, expected[: len(placed)])
    else:
        assert np.array_equal(np.sort(placed), np.sort(expected))
    # In any order and one at a time, the same rows.
    some = random.permutation(len(windows))[:20]
    for i, row in zip(some, read(windows, some)[0], strict=True):
        assert np.array_equal(row, tokens[i])


def slow_best_fit(sizes, width):
    """Best-fit decreasing one piece at a time; room left in every bin, sorted."""
    room = []
    for size in sorted(sizes, reverse=True):
        fits = [r for r in room if r >= size]
        if fits:
            room.remove(min(fits))
            room.append(min(fits) - size)
        else:
            room.append(width - size)
    return sorted(room)


@pytest.mark.parametrize("seed", range(5))
def test_best_fit_equals_one_piece_at_a_time(seed):
    random = np.random.default_rng(seed)
    width = int(random.integers(5, 60))
    sizes = (
        random.integers(1, width + 1, 400)
        if seed
        else np.minimum(random.geometric(0.2, 400), width)
    )
    bins = best_fit(sizes, width)
    used = np.bincount(bins, weights=sizes).astype(int)
    assert used.max() <= width and used.min() > 0
    assert sorted((width - used).tolist()) == slow_best_fit(sizes.tolist(), width)


def test_pack_is_nearly_full():
    sizes = np.clip(np.random.default_rng(0).lognormal(4.0, 1.0, 5000), 1, 5000).astype(int)
    assert Windows(FakeCorpus(sizes), width=256, packing="pack").counts.full > 0.98


def test_packing_in_chunks(monkeypatch):
    corpus = FakeCorpus(np.random.default_rng(0).integers(0, 40, 200))
    monkeypatch.setattr("flaxlm.data.pack.CHUNK", 32)
    windows = Windows(corpus, width=16, packing="pack")
    tokens, segments, _, _ = read(windows)
    assert np.array_equal(np.sort(tokens[segments > 0]), np.sort(np.concatenate(corpus.texts)))
    assert windows.counts.empty == sum(len(t) == 0 for t in corpus.texts)


@pytest.mark.parametrize("documents", [[], [[]], [[], []], [A]])
def test_less_than_a_row(documents):
    with pytest.raises(DataError, match=r"tokens in \d documents .* do not make one row") as error:
        Windows(FakeCorpus(documents), width=8, packing="stream")
    assert error.value.code == 65


def test_damaged_corpus():
    corpus = FakeCorpus([A, B, C])
    windows = Windows(corpus, width=5, packing="stream", name="text:x")
    corpus.texts[1] = corpus.texts[1][:1]
    with pytest.raises(DataError, match="text:x: document 1 has 1 tokens but its index says 2"):
        rows(windows)


def test_unknown_packing():
    with pytest.raises(ConfigError, match="'pak' does not exist; did you mean pack"):
        Windows(FakeCorpus([A]), width=5, packing="pak")
