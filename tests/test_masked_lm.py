"""Masked language modelling: literal rows in, literal features out; the published numbers."""

import dataclasses
import math

import numpy as np
import pytest

from flaxlm.batch import check_features
from flaxlm.data.batches import Batches
from flaxlm.data.random import RowRandom
from flaxlm.data.rows import Rows
from flaxlm.data.spec import Data, Source
from flaxlm.errors import ConfigError
from flaxlm.objectives.entities import Entities
from flaxlm.objectives.masked_lm import MaskedLM
from flaxlm.objectives.pairs import NextSentence, SentenceOrder
from flaxlm.objectives.units import Ngrams, RareTokens, Tokens, WholeWords
from tests import fakes
from tests.fakes import FakeCorpus
from tests.lines import CLS, MASK, PAD, SEP, VOCAB, random_rows, rows_of, take

ROBERTA = MaskedLM(slots=77, units=Tokens(specials=True), dither=True, random_from=4)
OBJECTIVES = {
    "tokens": MaskedLM(slots=8),
    "roberta": dataclasses.replace(ROBERTA, slots=12),
    "words": MaskedLM(slots=8, units=WholeWords()),
    "ngrams": MaskedLM(slots=8, units=Ngrams()),
    "next": MaskedLM(slots=8, pairs=NextSentence()),
    "sentence pair": MaskedLM(slots=8, pairs=NextSentence(single=True)),
    "order": MaskedLM(slots=8, units=Ngrams(), pairs=SentenceOrder()),
    "static": MaskedLM(slots=8, static=3),
}


@pytest.fixture(params=OBJECTIVES)
def objective(request):
    return OBJECTIVES[request.param]


def prepare(objective, rows, seed=0):
    features = objective.prepare(rows, RowRandom(seed, rows.index), VOCAB)
    check_features(features, vocab_size=VOCAB.size)
    return features


def lists(features):
    return {name: values.tolist() for name, values in features.items()}


# Literal examples: all words but one are too long for the number, so nothing is random.


def test_one_text():
    objective = MaskedLM(slots=2, mask=1.0, random=0.0, units=WholeWords())
    rows = rows_of([[[11, 17, 12]], [[13]], []], 5)
    assert lists(prepare(objective, rows)) == {
        "tokens": [[CLS, 11, 17, MASK, SEP, 0, 0], [CLS, MASK, SEP, 0, 0, 0, 0], [0] * 7],
        "segments": [[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0, 0], [0] * 7],
        "positions": [[0, 1, 2, 3, 4, 0, 0], [0, 1, 2, 0, 0, 0, 0], [0] * 7],
        "types": [[0] * 7] * 3,
        "slots": [[3, 0], [1, 0], [0, 0]],
        "slot_targets": [[12, 0], [13, 0], [0, 0]],
        "slot_weights": [[1, 0], [1, 0], [0, 0]],
    }


def test_a_row_that_ends_its_document_has_one_separator():
    """As fairseq's complete sentences: documents are separated and closed by </s>."""
    objective = MaskedLM(slots=1, random=0.0, mask=0.0)
    assert objective.separator(VOCAB) == SEP
    rows = rows_of([[[11, 12, SEP]], [[11, SEP, 12]], [[11, SEP, 12, 13]]], 4)
    assert prepare(objective, rows)["tokens"].tolist() == [
        [CLS, 11, 12, SEP, 0, 0],
        [CLS, 11, SEP, 12, SEP, 0],
        [CLS, 11, SEP, 12, 13, SEP],
    ]


def test_show_fills_the_slots():
    objective = MaskedLM(slots=2, mask=1.0, random=0.0, units=WholeWords())
    features = prepare(objective, rows_of([[[11, 17, 12]]], 5))
    (example,) = objective.show(features, VOCAB)
    assert (
        example.input == f"{CLS} 11 17 {MASK} {SEP}" and example.target == f"{CLS} 11 17 12 {SEP}"
    )
    guess = objective.guessed(features, np.array([[40, 99]]), VOCAB)
    assert objective.show(guess, VOCAB)[0].target == f"{CLS} 11 17 40 {SEP}"


# Numbers.


def test_numbers_are_berts():
    objective = MaskedLM(slots=20)
    rows = random_rows(300, 126, least=1)
    features = prepare(objective, rows)
    for length, weights in zip(rows.lengths, features["slot_weights"], strict=True):
        wanted = min(20, max(1, round(0.15 * (length + 2))))
        assert weights.sum() == min(wanted, length)
        assert (np.diff(weights) <= 0).all()


def test_numbers_are_robertas():
    """int(0.15 * n + U(0, 1)): their mean is exact, and only two values occur."""
    rows = Rows.of(np.full((20_000, 39), 20))
    found = prepare(dataclasses.replace(ROBERTA, slots=20), rows)["slot_weights"].sum(axis=1)
    assert set(found.tolist()) == {6, 7}
    assert abs(found.mean() - 6.15) < 5 * math.sqrt(0.15 * 0.85 / 20_000)


# The corruption, over a million tokens.


@pytest.mark.parametrize("units", [Tokens(), WholeWords(), Ngrams()], ids=repr)
def test_eighty_ten_ten(units):
    tokens = np.random.default_rng(0).integers(10, VOCAB.size, (8000, 126), np.int32)
    objective = MaskedLM(slots=20, units=units)
    features = prepare(objective, Rows.of(tokens))
    row, used = np.arange(8000)[:, None], features["slot_weights"] > 0
    original, slots = features["slot_targets"][used], features["slots"]
    assert (original == tokens[row, slots - 1][used]).all()
    now = features["tokens"][row, slots][used]
    count = len(now)
    assert count > 0.14 * tokens.size
    masked, kept = (now == MASK), (now == original)
    other = ~masked & ~kept
    # A random id is the mask or the original once in `size` times.
    for found, share in (
        (masked, 0.8 + 0.1 / VOCAB.size),
        (kept, 0.1 + 0.1 / VOCAB.size),
        (other, 0.1 - 0.2 / VOCAB.size),
    ):
        assert abs(found.mean() - share) < 5 * math.sqrt(share * (1 - share) / count)
    hits = np.bincount(now[other], minlength=VOCAB.size)
    assert hits[MASK] == 0 and hits[[0, 1, 2, 3, 4, 5]].min() > 0  # specials are drawn too
    hits = np.delete(hits, MASK)
    expected = hits.sum() / len(hits)
    value, degrees = ((hits - expected) ** 2 / expected).sum(), len(hits) - 1
    assert value < degrees + 5 * math.sqrt(2 * degrees)
    # Nothing else has changed.
    untouched = features["tokens"].copy()
    untouched[np.nonzero(used)[0], slots[used]] = original
    assert np.array_equal(untouched[:, 1:-1], tokens)


def test_random_ids_leave_out_the_first():
    rows = Rows.of(np.full((2000, 126), 499))
    objective = dataclasses.replace(ROBERTA, mask=0.0, random=1.0)
    features = prepare(objective, rows)
    changed = features["tokens"][features["tokens"] != 499]
    assert set(range(7, 499)) <= set(changed.tolist())
    used = features["slot_weights"] > 0
    now = features["tokens"][np.nonzero(used)[0], features["slots"][used]]
    assert now.min() == 4 and now.max() == 499


@pytest.mark.parametrize("specials", [False, True])
def test_every_token_is_as_likely_and_pairs_of_them_too(specials):
    count, length = 60_000, 12
    objective = MaskedLM(rate=0.25, slots=3, units=Tokens(specials=specials))
    features = prepare(objective, Rows.of(np.full((count, length - 2), 20)))
    slots = features["slots"]
    assert (features["slot_weights"] == 1).all() and (np.diff(slots, axis=1) > 0).all()
    may = np.arange(length) if specials else np.arange(1, length - 1)
    assert np.isin(slots, may).all()
    codes = slots @ np.array([length**2, length, 1])
    hits = np.unique(codes, return_counts=True)[1]
    sets = math.comb(len(may), 3)
    assert len(hits) == sets  # every set of three
    expected = count / sets
    value = ((hits - expected) ** 2 / expected).sum()
    assert value < sets - 1 + 5 * math.sqrt(2 * (sets - 1))


# Weights, shapes, randomness.


def test_no_weight_on_padding_or_specials(objective):
    rows = random_rows(200, objective.window(32))
    features = prepare(objective, rows)
    slots, used = features["slots"], features["slot_weights"] > 0
    assert features["tokens"].shape == (200, 32)
    row = np.nonzero(used)[0]
    assert (features["segments"][row, slots[used]] == 1).all()
    special = np.isin(features["slot_targets"][used], [CLS, SEP])
    assert special.any() == (objective.units == Tokens(specials=True))
    assert not (features["slot_targets"][used] == PAD).any()
    assert not slots[~used].any() and not features["slot_targets"][~used].any()
    empty = rows.lengths == 0
    assert empty.any() and not used[empty].any() and used[~empty].any(axis=1).mean() > 0.9
    padding = features["segments"] == 0
    for name in ("tokens", "positions", "types"):
        assert not features[name][padding].any(), name
    if objective.pairs is not None:
        assert np.array_equal(features["label_weights"] > 0, ~empty)
        assert not features["labels"][empty].any()


def test_a_row_depends_on_seed_and_number_alone(objective):
    rows = random_rows(40, objective.window(32))
    features = prepare(objective, rows, seed=3)
    for picked in ([0], [9], [39], [9, 3], [5, 6, 7]):
        again = prepare(objective, take(rows, picked), seed=3)
        assert all(np.array_equal(again[name], features[name][picked]) for name in features)
    other = prepare(objective, rows, seed=4)
    assert not np.array_equal(other["tokens"], features["tokens"])


def test_static_masks_come_back_and_dynamic_ones_do_not():
    corpus = FakeCorpus([60] * 8)
    texts = {}
    for static in (0, 3):
        objective = MaskedLM(slots=8, static=static)
        data = Data(sources=(Source("memory:"),), batch=8, length=64, packing="split")
        batches = Batches([(corpus, 1.0)], objective, fakes.VOCAB, data=data, seed=0)
        for epoch in range(9):
            features = batches[epoch]
            filled = features["tokens"].copy()
            used = features["slot_weights"] > 0
            filled[np.nonzero(used)[0], features["slots"][used]] = features["slot_targets"][used]
            for text, corrupted in zip(filled, features["tokens"], strict=True):
                texts.setdefault((static, text.tobytes()), []).append(corrupted.tobytes())
    assert len(texts) == 16
    for (static, _), seen in texts.items():
        assert len(seen) == 9 and len(set(seen)) == (static or 9)
        assert not static or seen[:3] == seen[3:6] == seen[6:]
    assert "stream" in MaskedLM().packings and "stream" not in MaskedLM(static=3).packings


def test_refusals():
    for changes in (
        {"rate": 0.0},
        {"rate": 1.0},
        {"slots": 0},
        {"mask": 0.9, "random": 0.2},
        {"random": -0.1},
        {"random_from": -1},
        {"static": -1},
    ):
        with pytest.raises(ConfigError, match="objective"):
            MaskedLM(**changes)
    with pytest.raises(ConfigError, match=r"slots=20 is more than data.length=8.* 1 would do"):
        MaskedLM().window(8)
    with pytest.raises(ConfigError, match="at least 3"):
        MaskedLM(slots=1).window(2)
    with pytest.raises(ConfigError, match="at least 5"):
        MaskedLM(slots=1, pairs=NextSentence()).window(4)
    with pytest.raises(ConfigError, match="only 500 pieces"):
        prepare(MaskedLM(random_from=500), rows_of([[[11]]], 30))
    with pytest.raises(ConfigError, match="short=2"):
        NextSentence(short=2)
    with pytest.raises(ConfigError, match="longest=0"):
        Ngrams(longest=0)
    assert Entities(path="x") and RareTokens(path="x")
