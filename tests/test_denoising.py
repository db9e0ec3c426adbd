"""Denoising: literal rows, the published arithmetic and distribution, nothing lost."""

import dataclasses
import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from flaxlm.batch import check_features
from flaxlm.data.random import RowRandom
from flaxlm.data.rows import Rows
from flaxlm.data.spec import Vocabulary
from flaxlm.errors import ConfigError
from flaxlm.objectives import noise
from flaxlm.objectives.denoising import Denoising

VOCAB = Vocabulary(size=1000, kind="bytes", sentinels=0).blank()
# Odd ids go on with a word; every special id stands alone.
VOCAB.word_starts = (np.arange(VOCAB.size) % 2 == 0) | VOCAB.special
BOS, PAD, EOS, MASK = VOCAB.bos, VOCAB.pad, VOCAB.eos, VOCAB.mask
NONE = dict(permute=0.0, infill=0.0, random=0.0)


def load_peer():
    path = Path(__file__).parent.parent / "benchmarks" / "objectives_bart.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Peer


def ragged(lengths, width, *, seed=0, sentence=7):
    """Rows of one document each, padded from lengths[b] on, a sentence every 7 tokens."""
    tokens = np.random.default_rng(seed).integers(10, VOCAB.pieces - 1, (len(lengths), width))
    real = np.arange(width) < np.asarray(lengths)[:, None]
    rows = Rows.of(np.where(real, tokens, PAD))
    return dataclasses.replace(
        rows,
        segments=real.astype(np.int32),
        positions=np.where(real, rows.positions, 0).astype(np.int32),
        sentences=(np.arange(width) % sentence == 0) & real,
    )


def prepare(objective, rows, seed=0):
    features = objective.prepare(rows, RowRandom(seed, rows.index), VOCAB)
    check_features(features, vocab_size=VOCAB.size)
    return features


def texts(features, name="tokens"):
    """The texts of a feature without padding and ends."""
    segments = features["segments" if name == "tokens" else "decoder_segments"]
    return [row[real > 0][1:-1] for row, real in zip(features[name], segments, strict=True)]


# Literal examples. Where every choice has one outcome, the corruption is not random.


def test_everything_masked():
    rows = ragged([4, 2, 0], 4)
    rows.tokens[:] = [[10, 11, 12, 14], [20, 21, PAD, PAD], [PAD] * 4]
    features = prepare(Denoising(**NONE | {"mask": 1.0}), rows)
    assert {name: values.tolist() for name, values in features.items()} == {
        "tokens": [
            [BOS, MASK, MASK, MASK, MASK, EOS],
            [BOS, MASK, MASK, EOS, PAD, PAD],
            [PAD] * 6,
        ],
        "segments": [[1] * 6, [1, 1, 1, 1, 0, 0], [0] * 6],
        "decoder_tokens": [
            [EOS, BOS, 10, 11, 12, 14],
            [EOS, BOS, 20, 21, EOS, PAD],
            [EOS, *[PAD] * 5],
        ],
        "decoder_segments": [[1] * 6, [1, 1, 1, 1, 0, 0], [0] * 6],
        "targets": [[BOS, 10, 11, 12, 14, EOS], [BOS, 20, 21, EOS, PAD, PAD], [PAD] * 6],
        "weights": [[1] * 6, [1, 1, 1, 1, 0, 0], [0] * 6],
        "text_weights": [[0, 1, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0], [0] * 6],
    }


@pytest.mark.parametrize(
    ("begin", "lengths", "expected"),
    [
        ([0, 3], [1, 1], [MASK, 12, 14, 15, MASK, 18]),  # words of two pieces, of one
        ([1, 3], [2, 1], [10, 11, MASK, MASK, 18]),
        ([1, 2], [2, 1], [10, 11, MASK, 16, 18]),  # the later span lies in the earlier
        ([1, 2], [2, 2], [10, 11, MASK, 18]),  # and goes on behind it
        ([3, 0], [9, 1], [MASK, 12, 14, 15, MASK]),  # no span goes over the end
    ],
)
def test_spans_cover_whole_words(monkeypatch, begin, lengths, expected):
    """The words 10 11 | 12 | 14 15 | 16 | 18, and a second text that must stay as it is."""
    first = [10, 11, 12, 14, 15, 16, 18]
    given = noise.Texts(np.array([*first, 20, 21], np.int32), np.array([7, 2]), 7)

    def choose(counts, picks, width, rng):
        assert counts.tolist() == [5, 1] and picks.tolist() == [len(begin), 0]
        return np.array(begin), np.zeros(len(begin), int)

    most = noise._most_spans(math.ceil(7 * 0.3), 3.0)
    table = [0.5 * (a + b) for a, b in itertools.pairwise([0, *noise._poisson(3.0)])]

    class Drawn(RowRandom):
        def uniform(self, n):
            drawn = np.full((2, n), table[1])
            drawn[0, : len(lengths)] = [table[length] for length in lengths]
            return drawn

    monkeypatch.setattr(noise, "_choose", choose)
    budget = np.array([sum(lengths), 0])
    monkeypatch.setattr(noise, "_budget", lambda counts, share: budget)
    found = noise.infill(given, 0.3, 3.0, 0.0, Drawn(0, np.arange(2)), VOCAB)
    assert most >= len(lengths)
    assert found.ids.tolist() == [*expected, 20, 21]
    assert found.lengths.tolist() == [len(expected), 2]


def test_the_last_span_is_cut_to_the_budget(monkeypatch):
    """Lengths 0 3 2 under a budget of 4: an inserted mask, three words, one word."""
    picked = []
    monkeypatch.setattr(noise, "_budget", lambda counts, share: np.array([4]))
    table = [0.5 * (a + b) for a, b in itertools.pairwise([0, *noise._poisson(3.0)])]

    class Drawn(RowRandom):
        def uniform(self, n):
            return np.array([[table[k] for k in [0, 3, 2, *[1] * (n - 3)]]])

    def choose(counts, picks, width, rng):
        picked.append(picks.tolist())
        return np.array([0, 5]), np.zeros(2, int)

    monkeypatch.setattr(noise, "_choose", choose)
    given = noise.Texts(np.arange(10, 28, 2, dtype=np.int32), np.array([9]), 9)
    found = noise.infill(given, 0.3, 3.0, 0.0, Drawn(0, np.arange(1)), VOCAB)
    assert picked == [[2]]
    assert np.count_nonzero(found.ids == MASK) == 3
    assert found.ids[found.ids != MASK].tolist() == [16, 18, 22, 24, 26]


def test_sentences_change_places_whole():
    rows = ragged([16], 16)
    found = {
        tuple(texts(prepare(Denoising(**NONE | {"permute": 1.0}), rows, s))[0]) for s in range(60)
    }
    a, b, c = (tuple(part) for part in np.split(rows.tokens[0], [7, 14]))
    orders = [a + b + c, a + c + b, b + a + c, b + c + a, c + a + b, c + b + a]
    assert found == set(orders)


def test_rotation_is_uniform():
    rows = Rows.of(np.tile([10, 11, 12, 13, 14], (12_000, 1)))
    features = prepare(Denoising(**NONE | {"rotate": 1.0}), rows)
    begins = np.bincount(features["tokens"][:, 1] - 10, minlength=5)
    # An offset in 0 ... 5, of which both ends leave the text as it is.
    expected = np.array([4000, 2000, 2000, 2000, 2000])
    assert ((begins - expected) ** 2 / expected).sum() < 24
    for row in features["tokens"][:50, 1:-1]:
        assert np.roll(row, row[0] - 10).tolist() == [10, 11, 12, 13, 14]
    half = prepare(Denoising(**NONE | {"rotate": 0.5}), rows)["tokens"][:, 1]
    assert abs((half != 10).mean() - 0.5 * 4 / 6) < 0.02


# What comes out is what went in, but for the noise.


def is_inside(part, whole):
    """Whether `part` is a subsequence of `whole`."""
    rest = iter(whole.tolist())
    return all(token in rest for token in part.tolist())


LENGTHS = [*range(1, 41), 40, 40]


@pytest.mark.parametrize(
    "changes",
    [dict(mask=0.3), dict(infill=0.3), dict(delete=0.3), dict(insert=0.3), dict(rotate=1.0)]
    + [
        dict(infill=0.3, delete=0.1, insert=0.2),
        dict(infill=1.0),
        dict(infill=0.5, mean_length=0.2),
    ],
    ids=str,
)
def test_the_text_without_its_masks_comes_from_the_original(changes):
    rows = ragged(LENGTHS, 40)
    features = prepare(Denoising(**NONE | changes), rows)
    for noised, text, tokens, length in zip(
        texts(features), texts(features, "targets"), rows.tokens, LENGTHS, strict=True
    ):
        assert text.tolist() == tokens[:length].tolist()
        left = noised[noised != MASK]
        if "rotate" in changes:
            assert any(np.array_equal(np.roll(text, -k), noised) for k in range(length))
        else:
            assert is_inside(left, text)
        if changes.keys() == {"mask"}:
            assert len(noised) == length
            assert np.array_equal(noised[noised != MASK], text[noised != MASK])
        if changes.keys() == {"delete"}:
            assert len(noised) == length - np.ceil(np.float32(length) * np.float32(0.3))
        if changes.keys() == {"insert"}:
            assert np.array_equal(left, text)
            assert len(noised) == length + math.ceil((length + 2) * 0.3)


def test_permuted_sentences_sort_back():
    rows = ragged(LENGTHS, 40)
    features = prepare(Denoising(**NONE | {"permute": 1.0}), rows)
    for noised, text in zip(texts(features), texts(features, "targets"), strict=True):
        assert sorted(noised.tolist()) == sorted(text.tolist())
        pieces = [tuple(text[at : at + 7]) for at in range(0, len(text), 7)]
        at = 0
        while at < len(noised):  # piece by piece
            piece = next(p for p in pieces if tuple(noised[at : at + len(p)]) == p)
            pieces.remove(piece)
            at += len(piece)
        assert not pieces


@pytest.mark.parametrize("objective", [Denoising(), Denoising(insert=0.2, mask=0.1, rotate=0.5)])
def test_no_weight_on_padding(objective):
    features = prepare(objective, ragged([0, 1, 2, 39, 40], 40))
    for prefix in ("", "decoder_"):
        padding = features[prefix + "segments"] == 0
        inside = features[prefix + "tokens"][padding]
        assert prefix or (inside == PAD).all()
    assert not features["weights"][features["decoder_segments"] == 0].any()
    assert not features["text_weights"][features["weights"] == 0].any()
    assert features["weights"].sum(axis=1).tolist() == [0, 3, 4, 41, 42]
    assert features["text_weights"].sum(axis=1).tolist() == [0, 1, 2, 39, 40]
    real = features["decoder_segments"].sum(axis=1)
    assert (features["targets"][:, 0][real > 0] == BOS).all()
    assert (features["decoder_tokens"][:, 0] == EOS).all()


# The distribution is the published one.


def chi_square(hits, other):
    """Two-sample statistic over the cells that hold enough, and its degrees of freedom."""
    enough = hits + other >= 20
    a, b = hits[enough], other[enough]
    share = math.sqrt(b.sum() / a.sum())
    return ((a * share - b / share) ** 2 / (a + b)).sum(), enough.sum() - 1


PEERS = {
    "infill": (dict(infill=0.3), dict(rate=0.3, mean=3.0, replace=1)),
    "infill short": (dict(infill=0.4, mean_length=1.0), dict(rate=0.4, mean=1.0, replace=1)),
    "mask": (dict(mask=0.15), dict(rate=0.15, mean=0, replace=-1)),
    "delete": (dict(delete=0.2), dict(rate=0.2, mean=0, replace=0)),
    "insert": (dict(insert=0.2), dict(rate=0, mean=0, replace=1, insert=0.2)),
    "rotate": (dict(rotate=1.0), dict(rate=0, mean=0, replace=1, rotate=1.0)),
    "permute": (dict(permute=0.5), dict(rate=0, mean=0, replace=1, permute=0.5)),
}


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("length", [5, 30])
def test_the_distribution_is_fairseqs(name, length):
    """Against the peer of benchmarks/objectives_bart.py: lengths, masks and where they are."""
    changes, arguments = PEERS[name]
    count, random = 6000, 0.2
    text = 10 + np.arange(length)
    text[3::4] = 11 + 2 * np.arange(len(text[3::4]))  # some pieces go on with a word
    rows = Rows.of(np.tile(text, (count, 1)))
    rows.sentences[:, :: max(length // 4, 2)] = True
    features = prepare(Denoising(**NONE | {"random": random} | changes), rows, seed=3)
    ours = texts(features)
    peer = load_peer()(
        VOCAB,
        random=random,
        word_starts=VOCAB.word_starts if arguments["mean"] else None,
        **arguments,
    )
    framed = np.array([BOS, *text, EOS])
    sentences = 1 + np.flatnonzero(rows.sentences[0])
    theirs = [
        peer(framed, sentences)[1:-1][: features["tokens"].shape[1] - 2] for _ in range(count)
    ]

    def drawn(row):  # ids that are neither of the text nor <mask>: drawn at random
        return (row != MASK) & (row >= 10 + 2 * length)

    statistics = {
        "length": lambda row: [len(row)],
        "masks": lambda row: [np.count_nonzero(row == MASK)],
        "where": lambda row: np.flatnonzero(row == MASK),
        "random ids": lambda row: [np.count_nonzero(drawn(row))],
        "what follows": lambda row: row[1:][row[:-1] == MASK] % 997,
        "first": lambda row: row[:1] % 997,
        "middle": lambda row: row[len(row) // 2 :][:1] % 997,
    }
    for what, statistic in statistics.items():
        pair = [
            np.concatenate([np.asarray(statistic(row), int) for row in side])
            for side in (ours, theirs)
        ]
        size = max(values.max(initial=0) for values in pair) + 1
        if not all(len(values) for values in pair):
            assert len(pair[0]) == len(pair[1]) == 0
            continue
        value, degrees = chi_square(*(np.bincount(values, minlength=size) for values in pair))
        assert value <= degrees + 5 * math.sqrt(2 * degrees) + 1e-9, what


def test_shares_over_a_million_tokens():
    count, width = 2000, 510
    rows = ragged(np.full(count, width), width, seed=5)
    words = VOCAB.word_starts[rows.tokens]
    words[:, 0] = True
    masked = prepare(Denoising(**NONE | {"mask": 0.15, "random": 0.1}), rows)["tokens"][:, 1:-1]
    changed = masked != rows.tokens
    assert abs(changed.sum() / rows.tokens.size - math.ceil(510 * 0.15) / 510) < 2e-4
    assert abs((masked == MASK).sum() / changed.sum() - 0.9) < 5e-3
    random = masked[changed & (masked != MASK)]
    cells = np.bincount(random * 20 // VOCAB.pieces, minlength=20)
    assert ((cells - cells.mean()) ** 2 / cells.mean()).sum() < 55 and random.min() >= 1

    infilled = prepare(Denoising(**NONE | {"infill": 0.3}), rows)
    peer = load_peer()(
        VOCAB, rate=0.3, mean=3.0, replace=1, random=0.0, word_starts=VOCAB.word_starts
    )
    theirs = [peer(np.array([BOS, *row, EOS]), None) for row in rows.tokens[:400]]

    def dropped(kept):
        left = sum(np.count_nonzero(VOCAB.word_starts[row] & ~VOCAB.special[row]) for row in kept)
        return 1 - left / words[: len(kept)].sum()

    share = dropped(texts(infilled))
    assert 0.25 < share < 0.28  # spans overlap: below 0.3
    assert abs(share - dropped(theirs)) < 2e-3


def test_span_lengths_are_poisson(monkeypatch):
    """Lengths before the cut of the last, over 10^6 tokens: chi-square, the share of zeros."""
    seen = []
    searchsorted = np.searchsorted

    def record(table, values, side="left"):
        found = searchsorted(table, values, side=side)
        if side == "right":
            seen.append(found.copy())
        return found

    monkeypatch.setattr(np, "searchsorted", record)
    prepare(Denoising(**NONE | {"infill": 0.3}), ragged(np.full(2000, 510), 510))
    lengths = seen[0].ravel()
    hits = np.bincount(lengths, minlength=14)[:14]
    chances = np.array([math.exp(-3) * 3**k / math.factorial(k) for k in range(14)])
    expected = chances * len(lengths)
    assert len(lengths) > 100_000
    assert ((hits - expected) ** 2 / expected).sum() < 40  # 13 degrees of freedom, 99.99 %
    assert abs(hits[0] / len(lengths) - math.exp(-3)) < 2e-3


# Rows, widths, refusals.


OBJECTIVES = [
    Denoising(),
    Denoising(permute=0.5, mask=0.1, delete=0.1, insert=0.1, rotate=0.5),
    Denoising(permute=0, infill=0, insert=0.3),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=range(3))
def test_a_row_depends_on_seed_and_number_alone(objective):
    rows = ragged([*range(1, 21), 40, 40, 0], 40)
    features = prepare(objective, rows, seed=3)
    for picked in ([0], [20], [20, 3], [9, 22]):
        parts = {field.name: getattr(rows, field.name) for field in dataclasses.fields(Rows)}
        part = Rows(**{k: v[picked] if isinstance(v, np.ndarray) else v for k, v in parts.items()})
        again = prepare(objective, part, seed=3)
        for name in features:
            np.testing.assert_array_equal(again[name], features[name][picked], err_msg=name)
    other = prepare(objective, rows, seed=4)
    assert not np.array_equal(other["tokens"], features["tokens"])
    assert np.array_equal(other["targets"], features["targets"])


@pytest.mark.parametrize("objective", OBJECTIVES, ids=range(3))
@pytest.mark.parametrize("length", [8, 37, 64])
def test_the_longest_feature_has_the_length(objective, length):
    window = objective.window(length)
    widths = {values.shape[1] for values in prepare(objective, ragged([window], window)).values()}
    assert max(widths) == max(objective.lengths(window)) <= length
    assert max(objective.lengths(window + 1)) > length


def test_windows():
    assert Denoising().window(512) == 510
    assert Denoising(permute=0, infill=0, insert=0.5).window(512) == 339  # 341 + 171 = 512
    with pytest.raises(ConfigError, match="length=2 is too short"):
        Denoising().window(2)


def test_inputs_that_grow_lose_their_end():
    """Nearly all spans are empty: masks come in until the row is full."""
    objective = Denoising(**NONE | {"infill": 0.3, "mean_length": 0.05})
    features = prepare(objective, ragged([40, 20], 40))
    assert features["tokens"].shape == (2, 42)
    assert (features["tokens"][0, [0, -1]] == [BOS, EOS]).all()
    assert (features["segments"][0] == 1).all()


def test_random_ids_are_pieces():
    vocab = Vocabulary(size=200, kind="unigram", sentinels=50).blank()
    rows = Rows.of(np.full((200, 40), 20))
    objective = Denoising(permute=0, infill=0, mask=1.0, random=1.0)
    features = objective.prepare(rows, RowRandom(0, rows.index), vocab)
    ids = features["tokens"][:, 1:-1]
    assert ids.min() == 1 and ids.max() == 199


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(infill=1.5), "objective.infill=1.5"),
        (dict(permute=-0.1), "objective.permute=-0.1"),
        (dict(delete=1.0), "leaves no text"),
        (dict(mean_length=0.0), "mean_length=0.0.*above 0"),
        (dict(mean_length=20.0), "mean_length=20.0.*at most 16"),
        (dict(permute=0.0, infill=0.0), "no noise to remove"),
        (dict(z_loss=-1.0), "objective.z_loss"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ConfigError, match=message):
        Denoising(**changes)


def test_show():
    class Spelling:
        def decode(self, ids):
            return " ".join(map(str, ids.tolist()))

    rows = ragged([3, 2], 4)
    features = prepare(Denoising(**NONE | {"mask": 1.0}), rows)
    first = Denoising().show(features, Spelling())[0]
    assert first.input == f"{BOS} {MASK} {MASK} {MASK} {EOS}"
    assert first.target == " ".join(map(str, [BOS, *rows.tokens[0, :3], EOS]))
