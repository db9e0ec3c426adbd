"""Objectives: literal rows in, literal features out; T5's distribution; the text comes back."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxlm.batch import check_features
from flaxlm.data.random import RowRandom
from flaxlm.data.rows import Rows
from flaxlm.errors import ConfigError
from flaxlm.losses import Readout
from flaxlm.objectives.causal_lm import CausalLM
from flaxlm.objectives.prefix_lm import OneStackPrefixLM, PrefixLM
from flaxlm.objectives.span_corruption import SpanCorruption
from tests.fakes import VOCAB

EOS = VOCAB.eos
S0, S1, S2 = VOCAB.sentinels[:3].tolist()
OBJECTIVES = [
    SpanCorruption(),
    SpanCorruption(roll=True),
    SpanCorruption(rate=0.5, mean_length=1),
    PrefixLM(),
    OneStackPrefixLM(),
    CausalLM(),
]


def named(objective):
    return "".join(c for c in repr(objective) if c.isalnum())


def prepare(objective, rows, seed=0):
    features = objective.prepare(rows, RowRandom(seed, rows.index), VOCAB)
    check_features(features, vocab_size=VOCAB.size)
    return features


def lists(features):
    return {name: values.tolist() for name, values in features.items()}


def ragged(lengths, width, *, seed=0):
    """Rows of one document each, padded from lengths[b] on."""
    tokens = np.random.default_rng(seed).integers(10, VOCAB.pieces, (len(lengths), width))
    real = np.arange(width) < np.asarray(lengths)[:, None]
    rows = Rows.of(np.where(real, tokens, VOCAB.pad))
    return dataclasses.replace(
        rows,
        segments=real.astype(np.int32),
        positions=np.where(real, rows.positions, 0).astype(np.int32),
        sentences=rows.sentences & real,
    )


# Literal examples. Where every part has one possible size, the corruption is not random.


def test_span_corruption_of_one_span():
    objective = SpanCorruption(rate=0.34)
    assert lists(prepare(objective, Rows.of([[11, 12, 13, 14, 15, 16]]))) == {
        "tokens": [[11, 12, 13, 14, S0, EOS]],
        "segments": [[1, 1, 1, 1, 1, 1]],
        "decoder_tokens": [[0, S0, 15, 16]],
        "decoder_segments": [[1, 1, 1, 1]],
        "targets": [[S0, 15, 16, EOS]],
        "weights": [[1, 1, 1, 1]],
        "text_weights": [[0, 1, 1, 0]],
    }


def test_span_corruption_of_two_spans_and_of_padded_rows():
    objective = SpanCorruption(rate=0.5, mean_length=1)
    rows = ragged([4, 2, 1, 0], 4)
    rows.tokens[:] = [[11, 12, 13, 14], [21, 22, 0, 0], [31, 0, 0, 0], [0, 0, 0, 0]]
    assert lists(prepare(objective, rows)) == {
        "tokens": [[11, S0, 13, S1, EOS], [21, S0, EOS, 0, 0], [31, EOS, 0, 0, 0], [0] * 5],
        "segments": [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [0] * 5],
        "decoder_tokens": [[0, S0, 12, S1, 14], [0, S0, 22, EOS, 0], [0, S0, EOS, 0, 0], [0] * 5],
        "decoder_segments": [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [0] * 5],
        "targets": [[S0, 12, S1, 14, EOS], [S0, 22, EOS, 0, 0], [S0, EOS, 0, 0, 0], [0] * 5],
        "weights": [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [0] * 5],
        "text_weights": [[0, 1, 0, 1, 0], [0, 1, 0, 0, 0], [0] * 5, [0] * 5],
    }


def test_rolled_spans(monkeypatch):
    """Spans at both ends: as published, the input's sentinels are one ahead of the target's."""
    objective = SpanCorruption(rate=0.5, mean_length=2, roll=True)
    kept, dropped = np.array([[0, 2, 1], [1, 2, 0]]), np.array([[1, 2, 0], [3, 0, 0]])
    monkeypatch.setattr(SpanCorruption, "runs", lambda *_: (kept, dropped))
    features = prepare(objective, Rows.of([[11, 12, 13, 14, 15, 16], [21, 22, 23, 24, 25, 26]]))
    assert features["tokens"].tolist() == [
        [S0, 12, 13, S1, 16, EOS, 0],
        [21, S0, 25, 26, EOS, 0, 0],
    ]
    assert features["targets"].tolist() == [
        [11, S0, 14, 15, S1, EOS, 0],
        [S0, 22, 23, 24, S1, EOS, 0],
    ]
    for i in range(2):
        ids = objective.invert(features["tokens"][i], features["targets"][i], VOCAB)
        assert ids.tolist() == [10 * i + 10 + k for k in range(1, 7)]


def test_prefix_lm(monkeypatch):
    rows = ragged([5, 3, 1, 0], 5)
    rows.tokens[:] = [[11, 12, 13, 14, 15], [21, 22, 23, 0, 0], [31, 0, 0, 0, 0], [0] * 5]
    monkeypatch.setattr(
        "flaxlm.objectives.prefix_lm.split_points", lambda *_: np.array([2, 1, 0, 0])
    )
    assert lists(prepare(PrefixLM(), rows)) == {
        "tokens": [
            [11, 12, EOS, 0, 0, 0],
            [21, EOS, 0, 0, 0, 0],
            [EOS, 0, 0, 0, 0, 0],
            [0] * 6,
        ],
        "segments": [[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0] * 6],
        "decoder_tokens": [
            [0, 13, 14, 15, EOS, 0],
            [0, 22, 23, EOS, 0, 0],
            [0, 31, EOS, 0, 0, 0],
            [0] * 6,
        ],
        "decoder_segments": [
            [1, 1, 1, 1, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [0] * 6,
        ],
        "targets": [
            [13, 14, 15, EOS, 0, 0],
            [22, 23, EOS, 0, 0, 0],
            [31, EOS, 0, 0, 0, 0],
            [0] * 6,
        ],
        "weights": [[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0] * 6],
        "text_weights": [[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0] * 6],
    }


def test_prefix_lm_in_one_stack(monkeypatch):
    """The example of seqio's PrefixLMFeatureConverter (inputs 9 4 6, targets 3 9), and padding."""
    rows = ragged([5, 2, 0], 5)
    rows.tokens[:] = [[19, 14, 16, 13, 29], [21, 22, 0, 0, 0], [0] * 5]
    monkeypatch.setattr("flaxlm.objectives.prefix_lm.split_points", lambda *_: np.array([3, 1, 0]))
    assert lists(prepare(OneStackPrefixLM(), rows)) == {
        "tokens": [[0, 19, 14, 16, EOS, 13, 29], [0, 21, EOS, 22, 0, 0, 0], [0] * 7],
        "segments": [[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0], [0] * 7],
        "positions": [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 0, 0, 0], [0] * 7],
        "prefix": [[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0, 0], [0] * 7],
        "targets": [[19, 14, 16, EOS, 13, 29, EOS], [21, EOS, 22, EOS, 0, 0, 0], [0] * 7],
        "weights": [[0, 0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0, 0], [0] * 7],
        "text_weights": [[0, 0, 0, 0, 1, 1, 0], [0, 0, 1, 0, 0, 0, 0], [0] * 7],
    }


def test_causal_lm():
    rows = Rows(
        index=np.arange(1),
        tokens=np.array([[11, 12, EOS, 21, EOS, 0]], np.int32),
        segments=np.array([[1, 1, 1, 2, 2, 0]], np.int32),
        positions=np.array([[0, 1, 2, 0, 1, 0]], np.int32),
        sentences=np.array([[1, 0, 0, 1, 0, 0]], bool),
    )
    assert lists(prepare(CausalLM(), rows)) == {
        "tokens": [[0, 11, 12, 0, 21, 0]],
        "segments": [[1, 1, 1, 2, 2, 0]],
        "positions": [[0, 1, 2, 0, 1, 0]],
        "targets": [[11, 12, EOS, 21, EOS, 0]],
        "weights": [[1, 1, 1, 1, 1, 0]],
        "text_weights": [[1, 1, 0, 1, 0, 0]],
    }
    assert CausalLM().separator(VOCAB) == EOS and SpanCorruption().separator(VOCAB) is None


# Lengths.


@pytest.mark.parametrize(
    ("length", "mean", "window", "targets"),
    [
        (128, 3, 141, 29),
        (256, 3, 284, 58),
        (512, 3, 568, 114),
        (1024, 3, 1137, 229),
        (2048, 3, 2274, 456),
        (512, 2, 552, 126),
        (512, 5, 581, 105),
        (512, 10, 591, 99),
    ],
)
def test_published_lengths(length, mean, window, targets):
    objective = SpanCorruption(mean_length=mean)
    assert objective.window(length) == window
    assert objective.lengths(window) == (length, targets)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=named)
@pytest.mark.parametrize("length", [8, 37, 64])
def test_the_longest_feature_has_the_length(objective, length):
    rows = Rows.of(np.full((2, objective.window(length)), 50))
    widths = {values.shape[1] for values in prepare(objective, rows).values()}
    assert max(widths) == length


def test_halves_round_to_even():
    objective = SpanCorruption(rate=0.5, mean_length=2)
    noise, spans = objective.counts(np.array([1, 2, 3, 5, 7, 10, 14, 18]))
    assert noise.tolist() == [0, 1, 2, 2, 4, 5, 7, 9]
    assert spans.tolist() == [0, 1, 1, 1, 2, 2, 4, 4]


def test_refusals():

    with pytest.raises(ConfigError, match="57 spans but the vocabulary has 20 sentinels"):
        vocab = type("Few", (), {"sentinels": VOCAB.sentinels[:20], "pad": 0, "eos": 1})
        rows = Rows.of(np.full((1, 1137), 50))
        SpanCorruption().prepare(rows, RowRandom(0, rows.index), vocab)
    for changes in (
        {"rate": 0.0},
        {"rate": 1.0},
        {"mean_length": 0.5},
        {"rate": 0.9, "mean_length": 2.0},
        {"z_loss": -1.0},
    ):
        with pytest.raises(ConfigError, match="objective"):
            dataclasses.replace(SpanCorruption(), **changes)
    for objective in (SpanCorruption(), PrefixLM(), OneStackPrefixLM()):
        with pytest.raises(ConfigError, match="length=2 is too short"):
            objective.window(2)


# Randomness.


@pytest.mark.parametrize("objective", OBJECTIVES, ids=named)
def test_a_row_depends_on_seed_and_number_alone(objective):
    width = objective.window(40)
    rows = ragged(np.r_[np.full(6, width), 1 + np.arange(10)], width)
    features = prepare(objective, rows, seed=3)
    for picked in ([0], [9], [15], [9, 3]):  # alone, or with another neighbour
        i = picked[0]
        part = Rows(*(getattr(rows, f.name)[picked] for f in dataclasses.fields(Rows)[:5]))
        again = prepare(objective, part, seed=3)
        assert all(np.array_equal(again[name][0], features[name][i]) for name in features)
    other = prepare(objective, rows, seed=4)
    equal = all(np.array_equal(other[name], features[name]) for name in features)
    assert equal == isinstance(objective, CausalLM)


def reference_noise(length, density, mean, random):
    """`random_spans_noise_mask` of the T5 code base, one row at a time, in plain numpy."""
    original, length = length, max(length, 2)
    noise_tokens = min(max(int(np.round(length * density)), 1), length - 1)
    spans = max(int(np.round(noise_tokens / mean)), 1)

    def segmentation(items, segments):
        first = np.arange(items - 1) < segments - 1
        random.shuffle(first)
        first = np.pad(first, [[1, 0]])
        return np.bincount(np.cumsum(first), minlength=segments)

    noise_lengths = segmentation(noise_tokens, spans)
    text_lengths = segmentation(length - noise_tokens, spans)
    interleaved = np.stack([text_lengths, noise_lengths], axis=1).reshape(-1)
    starts = np.zeros(length, np.int64)
    starts[np.cumsum(interleaved)[:-1]] = 1
    return (np.cumsum(starts) % 2 == 1)[:original]


def chi_square(hits, other):
    """Two-sample statistic over the cells that hold enough, and its degrees of freedom."""
    enough = hits + other >= 20
    a, b = hits[enough], other[enough]
    share = math.sqrt(b.sum() / a.sum())
    return ((a * share - b / share) ** 2 / (a + b)).sum(), enough.sum() - 1


def noise_mask(objective, length, count, *, seed=0, padded=0):
    """[count, length] bool from the objective's runs of rows that end in padding."""
    rng = RowRandom(seed, np.arange(count))
    kept, dropped = objective.runs(np.full(count, length), length + padded, rng)
    assert (kept >= 0).all() and (dropped >= 0).all()
    runs = np.stack([kept, dropped], axis=2).reshape(count, -1)
    kinds = np.broadcast_to(np.arange(runs.shape[1]) % 2 == 1, runs.shape)
    return np.repeat(kinds.ravel(), runs.ravel()).reshape(count, length)


def run_lengths(mask):
    """Lengths of the runs of True, over all rows."""
    edges = np.diff(np.pad(mask, [[0, 0], [1, 1]]).astype(np.int8), axis=1)
    return np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]


@pytest.mark.parametrize(
    ("length", "rate", "mean"), [(60, 0.15, 3.0), (41, 0.5, 2.0), (25, 0.3, 3.0), (3, 0.15, 3.0)]
)
@pytest.mark.parametrize("padded", [0, 7])
def test_the_distribution_is_t5s(length, rate, mean, padded):
    count = 4000
    random = np.random.default_rng(0)
    expected = np.stack([reference_noise(length, rate, mean, random) for _ in range(count)])
    objective = SpanCorruption(rate=rate, mean_length=mean)
    found = noise_mask(objective, length, count, seed=1, padded=padded)
    assert np.array_equal(found.sum(axis=1), expected.sum(axis=1))
    assert len(run_lengths(found)) == len(run_lengths(expected))
    for statistic in (
        run_lengths,  # of spans
        lambda mask: run_lengths(~mask),  # of the text between
        lambda mask: np.nonzero(mask)[1],  # where
        lambda mask: mask[:, -6:] @ (1 << np.arange(mask[:, -6:].shape[1])),  # jointly
    ):
        pair = statistic(found), statistic(expected)
        size = max(values.max() for values in pair) + 1
        value, degrees = chi_square(*(np.bincount(values, minlength=size) for values in pair))
        assert value <= degrees + 5 * math.sqrt(2 * degrees) + 1e-9


def test_every_partition_is_equally_likely():
    """9 noise tokens in 3 spans: C(8, 2) = 28 partitions."""
    count = 28_000
    mask = noise_mask(SpanCorruption(rate=0.3), 30, count)
    sizes = run_lengths(mask).reshape(count, 3)
    hits = np.bincount(sizes[:, 0] * 10 + sizes[:, 1])
    hits = hits[hits > 0]
    assert len(hits) == 28
    assert ((hits - 1000) ** 2 / 1000).sum() < 64  # 27 degrees of freedom, 99.99 %


def test_roll_is_uniform():
    count, length = 20_000, 10
    objective = SpanCorruption(roll=True)  # one span of two tokens
    hits = noise_mask(objective, length, count, padded=2).sum(axis=0)
    assert ((hits - 4000) ** 2 / 4000).sum() < 34


def test_prefixes_are_uniform():
    rows = ragged(np.full(16_000, 9), 12)
    features = prepare(PrefixLM(), rows)
    hits = np.bincount(features["segments"].sum(axis=1) - 1)
    assert len(hits) == 9 and hits[0] == 0  # 1 to 8 tokens of nine
    assert ((hits[1:] - 2000) ** 2 / 2000).sum() < 30
    assert (features["segments"].sum(axis=1) + features["weights"].sum(axis=1) == 11).all()


# The text can be had back.


def test_ten_thousand_windows_inverted():
    objective = SpanCorruption()
    for step in range(10):
        tokens = np.random.default_rng(step).integers(10, VOCAB.pieces, (1000, 568))
        rows = Rows.of(tokens, index=step * 1000 + np.arange(1000))
        features = prepare(objective, rows)
        assert features["tokens"].shape == (1000, 512) and features["targets"].shape == (1000, 114)
        for row in range(1000):
            text = objective.invert(features["tokens"][row], features["targets"][row], VOCAB)
            assert text.tobytes() == rows.tokens[row].tobytes()


@pytest.mark.parametrize("roll", [False, True])
def test_rows_of_any_length_inverted(roll):
    objective = SpanCorruption(roll=roll, rate=0.3, mean_length=2.0)
    lengths = np.tile(np.arange(1, 65), 8)
    rows = ragged(lengths, 64)
    features = prepare(objective, rows)
    for row, length in enumerate(lengths):
        text = objective.invert(features["tokens"][row], features["targets"][row], VOCAB)
        assert text.tolist() == rows.tokens[row, :length].tolist()


# Weights and terms.


@pytest.mark.parametrize("objective", OBJECTIVES, ids=named)
def test_weights_are_never_on_padding(objective):
    width = objective.window(48)
    rows = ragged(np.arange(width + 1), width)
    features = prepare(objective, rows)
    segments = features["decoder_segments" if "decoder_segments" in features else "segments"]
    weights, targets = features["weights"], features["targets"]
    assert (weights[segments == 0] == 0).all() and (targets[segments == 0] == VOCAB.pad).all()
    assert (features["tokens"][features["segments"] == 0] == VOCAB.pad).all()
    assert (weights[0] == 0).all() and (weights[1:].sum(axis=1) > 0).all()
    text = features["text_weights"] > 0
    assert (weights[text] > 0).all()
    assert ((targets[text] >= 10) & (targets[text] < VOCAB.pieces)).all()
    special = np.isin(targets, [EOS, *VOCAB.sentinels])
    assert not text[special].any() and text[(weights > 0) & ~special].all()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=named)
def test_terms_are_finite_and_the_shape_of_their_weights(objective):
    objective = dataclasses.replace(objective, z_loss=1e-4)
    batch = prepare(objective, Rows.of(np.full((2, objective.window(16)), 50)))
    hidden = jax.random.normal(jax.random.key(0), (*batch["targets"].shape, 4))
    kernel = jax.random.normal(jax.random.key(1), (4, VOCAB.size))

    def apply(batch, *, rng):
        return {"logits": Readout(hidden, kernel, vocab=VOCAB.size), "hidden": hidden}

    outputs = objective.forward(apply, batch, None)
    assert objective.terms.keys() == {"nll", "z_loss", "text_nll"}
    for term in objective.terms.values():
        values = term.values(outputs, batch)
        assert values.shape == batch[term.weights].shape and jnp.isfinite(values).all()
    assert objective.terms["z_loss"].scale == 1e-4 and objective.terms["text_nll"].scale == 0
    assert "z_loss" not in dataclasses.replace(objective, z_loss=0.0).terms


@pytest.mark.parametrize("objective", OBJECTIVES, ids=named)
def test_show(objective):
    class Spelling:
        sentinels, eos, pad, size = VOCAB.sentinels, VOCAB.eos, VOCAB.pad, VOCAB.size

        def decode(self, ids):
            return " ".join(str(i) for i in np.asarray(ids).tolist())

    vocab = Spelling()
    rows = Rows.of(np.arange(10, 10 + 2 * objective.window(16)).reshape(2, -1))
    features = prepare(objective, rows)
    examples = objective.show(features, vocab)
    assert len(examples) == 2
    words = " ".join([examples[1].input, examples[1].target]).split()
    assert {str(i) for i in rows.tokens[1].tolist()} <= set(words)
