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


@pytest.mark.parametrize("separator", [None, 1])
@pytest.mark.parametrize("packing", ["stream", "split", "pack"])
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
