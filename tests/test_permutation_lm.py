"""Permutation language modelling: literal rows, the published rule of who sees whom, statistics."""

import dataclasses
import itertools

import jax
import numpy as np
import optax
import pytest

from flaxlm import named, step
from flaxlm.batch import check_features
from flaxlm.data.batches import Batches
from flaxlm.data.random import RowRandom
from flaxlm.data.rows import Rows
from flaxlm.data.spec import Data, Source, Vocabulary
from flaxlm.errors import ConfigError
from flaxlm.models import xlnet
from flaxlm.objectives.permutation_lm import PermutationLM
from tests.fakes import VOCAB, FakeCorpus

SEP, CLS, PAD = VOCAB.sep, VOCAB.cls, VOCAB.pad
VOCABULARY = Vocabulary(size=1000, sentinels=100)
PUBLISHED = PermutationLM()
SIMPLE = PermutationLM(predicted=6, reuse=0, pairs=False)


def text_rows(objective, count, length, *, seed=0, sentence=17, index=None):
    """Full rows of random ids with a sentence every `sentence` tokens, and partners of the same."""
    random = np.random.default_rng(seed)
    width = objective.window(length)

    def rows():
        made = Rows.of(random.integers(10, VOCAB.pieces, (count, width)), index=index)
        made.sentences[:, ::sentence] = True
        return made

    return dataclasses.replace(rows(), partners=tuple(rows() for _ in range(objective.partners)))


def prepare(objective, rows, seed=0, vocab=VOCAB):
    features = objective.prepare(rows, RowRandom(seed, rows.index), vocab)
    check_features(features, vocab_size=VOCAB.size)
    return features


def ragged(lengths, width):
    rows = Rows.of(np.random.default_rng(0).integers(10, VOCAB.pieces, (len(lengths), width)))
    real = np.arange(width) < np.asarray(lengths)[:, None]
    return dataclasses.replace(
        rows, tokens=np.where(real, rows.tokens, PAD), segments=real.astype(np.int32)
    )


def test_rows_of_one_text():
    """One predicted token, whose place the rows do not change: features to the last number."""
    objective = PermutationLM(predicted=1, reuse=0, pairs=False, longest=1, alpha=1)
    rows = ragged([4, 2, 0], 4)
    rows.tokens[:] = [[11, 12, 13, 14], [21, 22, PAD, PAD], [PAD] * 4]
    found = prepare(objective, rows)
    # A token of the first row; the second is too short for its share of one to be a whole token.
    assert found["tokens"].tolist() == [
        [11, 12, 13, 14, SEP, CLS], [21, 22, SEP, CLS, PAD, PAD], [PAD] * 6
    ]  # fmt: skip
    assert found["segments"].tolist() == [[1] * 6, [1, 1, 1, 1, 0, 0], [0] * 6]
    assert found["types"].tolist() == [[0, 0, 0, 0, 0, 2], [0, 0, 0, 2, 0, 0], [0] * 6]
    # context of one piece, left or right of the span: the second token or the first
    (slot,) = found["slots"][0]
    assert slot == 0
    assert found["slot_targets"].tolist() == [[11], [PAD], [PAD]]
    assert found["slot_weights"].tolist() == [[1], [0], [0]]
    order, reach = found["order"], found["reach"]
    unseen = np.iinfo(np.int32).max
    assert order[0, 1:4].tolist() == [-1, -1, -1] and reach[0, 1:4].tolist() == [0, 0, 0]
    assert reach[0, 0] == order[0, 0] and (reach[0, 4:] == order[0, 4:] + 1).all()
    assert sorted(order[0, [0, 4, 5]].tolist())[0] >= 0
    assert order[1, 4:].tolist() == [unseen, unseen] and (order[2] == unseen).all()
    assert reach[1, 4:].tolist() == [0, 0]


def test_pairs_with_reuse():
    """Seven tokens, the first three reused; the one end of a sentence is after two of the rest."""
    objective = PermutationLM(predicted=2, reuse=3)
    rows = Rows.of(np.arange(10, 17)[None].repeat(64, axis=0))
    rows.sentences[:, 5] = True
    partner = Rows.of(np.arange(50, 57)[None].repeat(64, axis=0))
    partner.sentences[:] = False
    partner.sentences[:, [2, 6]] = True  # from the last one two tokens would not fit
    found = prepare(objective, dataclasses.replace(rows, partners=(partner,)))
    goes_on = [10, 11, 12, 13, 14, SEP, 15, 16, SEP, CLS]
    elsewhere = [10, 11, 12, 13, 14, SEP, 52, 53, SEP, CLS]
    rows = found["tokens"].tolist()
    assert {tuple(row) for row in rows} == {tuple(goes_on), tuple(elsewhere)}
    assert 16 < rows.count(goes_on) < 48
    assert (found["types"] == [0, 0, 0, 0, 0, 0, 1, 1, 1, 2]).all()
    assert (found["segments"] == 1).all()


def test_pairs_without_an_end_of_a_sentence_are_never_one_text():
    objective = PermutationLM(predicted=2, reuse=3)
    rows = text_rows(objective, 40, 16, sentence=1000)
    found = prepare(objective, rows)
    sep = (found["tokens"] == SEP).argmax(axis=1)
    assert 4 <= sep.min() < sep.max() <= 12
    for row, end, partner in zip(found["tokens"], sep, rows.partners[0].tokens, strict=True):
        assert row[end + 1 : -2].tolist() == partner[: 13 - end].tolist()


def test_a_row_that_is_not_full_makes_no_pair():
    objective = PermutationLM(predicted=2, reuse=3)
    rows = text_rows(objective, 2, 16)
    rows.segments[1], rows.tokens[1] = 0, PAD
    found = prepare(objective, rows)
    assert found["segments"].sum(axis=1).tolist() == [16, 0]
    assert found["slot_weights"][1].sum() == 0
    assert (found["tokens"][1] == PAD).all() and (found["types"][1] == 0).all()


def published_mask(tokens, drawn, index):
    """Of one part, True where i may not see j: the rule in its own words."""
    functional = np.isin(tokens, (SEP, CLS))
    target = drawn & ~functional
    order = np.where(drawn | functional, index, -1)
    own = np.where(target, order, order + 1)
    return (own[:, None] <= order[None, :]) & (drawn | functional)[None, :]


@pytest.mark.parametrize("shuffled", [0, 8])
def test_who_sees_whom_is_the_published_rule(shuffled):
    objective = PermutationLM(predicted=21, reuse=24, shuffled=shuffled)
    found = prepare(objective, text_rows(objective, 30, 48, sentence=5))
    order, reach, tokens = (found[name] for name in ("order", "reach", "tokens"))
    hidden = ~(reach[:, :, None] > order[:, None, :])
    for row in range(30):
        slots = found["slots"][row][found["slot_weights"][row] > 0]
        drawn = np.zeros(48, bool)
        drawn[slots] = True
        first, second = slice(0, 24), slice(24, 48)
        expected = np.ones((48, 48), bool)
        expected[second, first] = False
        for part in (first, second):
            # Any order of a part with the same ranks gives the same mask.
            index = np.argsort(np.argsort(order[row, part], kind="stable"), kind="stable")
            expected[part, part] = published_mask(tokens[row, part], drawn[part], index)
        np.testing.assert_array_equal(hidden[row], expected)
        assert hidden[row, slots, slots].all(), "a slot does not see its own token"
    if shuffled:
        # The same permutation in every block of a part, block after block.
        for part, base in ((slice(0, 24), 0), (slice(24, 48), 25)):
            kept = order[:, part].reshape(30, 3, 8) - base - 8 * np.arange(3)[None, :, None]
            some = order[:, part].reshape(30, 3, 8) >= base
            for row in range(30):
                for column in range(8):
                    assert len(set(kept[row, some[row, :, column], column])) <= 1
            assert kept[some].min() == 0 and kept[some].max() == 7


def test_statistics_over_a_million_tokens():
    vocab = VOCAB
    rows = text_rows(PUBLISHED, 2000, 512)
    found = prepare(PUBLISHED, rows, vocab=vocab)
    tokens, weights = found["tokens"], found["slot_weights"]
    assert tokens.size > 1e6
    # 43 and 42 tokens are drawn; what of the single ones falls on SEP or CLS is no target.
    in_first = (found["slots"] < 256) & (weights > 0)
    assert (in_first.sum(axis=1) == 43).all()
    later = weights.sum(axis=1) - 43
    assert later.max() == 42 and 41.3 < later.mean() < 41.97
    assert not np.isin(found["slot_targets"][weights > 0], (SEP, CLS)).any()
    np.testing.assert_array_equal(
        np.take_along_axis(tokens, found["slots"], axis=1)[weights > 0],
        found["slot_targets"][weights > 0],
    )
    # B goes on half of the time.
    half = (tokens[:, -3] == rows.tokens[:, -1]).mean()
    assert abs(half - 0.5) < 4 * (0.25 / 2000) ** 0.5
    # Every place of a part is drawn alike often, the ends aside.
    share = np.bincount(found["slots"][in_first], minlength=256)[:256] / 2000
    assert abs(share.mean() - 43 / 256) < 1e-9
    # Plain tokens see all plain ones of their part and of those before.
    plain = (found["reach"] > found["order"]) & np.isin(found["reach"], (0, 257))
    assert 0.8 < plain.mean() < 0.86


def spans(chosen):
    """Lengths of the runs of True of each row, one after the other."""
    edges = np.diff(np.pad(chosen, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    return np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]


def test_span_lengths_are_in_proportion_to_one_over_n():
    """Over 1.6e6 pieces, with a budget that rows run out of text before they use up."""
    objective = PermutationLM(predicted=1000, reuse=0, pairs=False)
    starts, lengths = np.ones((400, 4096), bool), np.full(400, 4096)
    chosen, left = objective._spans(starts, lengths, 1000, RowRandom(1, np.arange(400)))
    np.testing.assert_array_equal(chosen.sum(axis=1), 1000 - left)
    assert left.min() > 0
    found = spans(chosen)
    counts = np.bincount(found, minlength=6)[1:]
    chance = 1 / np.arange(1, 6)
    chance /= chance.sum()
    error = np.sqrt(chance * (1 - chance) / len(found))
    assert len(found) > 1e5 and len(counts) == 5
    # The last span of a row is long less often: it would not fit.
    assert (np.abs(counts / len(found) - chance) < 4 * error + 1 / 250).all()
    # n pieces have 6 n around them: a seventh of the text.
    assert abs(chosen.mean() - 1 / 7) < 0.001


def test_spans_begin_words():
    objective = PermutationLM(predicted=20, reuse=0, pairs=False, alpha=3)
    starts = np.zeros((200, 128), bool)
    starts[:, ::4] = True
    chosen = objective._choose(starts, np.full(200, 128), 20, RowRandom(0, np.arange(200)))
    assert (chosen.sum(axis=1) == 20).all()
    edges = np.diff(np.pad(chosen, ((0, 0), (1, 0))).astype(np.int8), axis=1) == 1
    # Single pieces begin anywhere, spans at every fourth.
    assert edges[:, ::4].sum() > 3 * edges[:, 1::4].sum()


def test_a_rows_features_depend_on_its_number_alone():
    whole = prepare(PUBLISHED, text_rows(PUBLISHED, 6, 512))
    rows = text_rows(PUBLISHED, 6, 512)
    some = np.array([4, 1])
    part = dataclasses.replace(
        rows,
        **{
            name: getattr(rows, name)[some]
            for name in ("index", "tokens", "segments", "positions", "sentences")
        },
        partners=tuple(
            dataclasses.replace(p, tokens=p.tokens[some], sentences=p.sentences[some])
            for p in rows.partners
        ),
    )
    alone = prepare(PUBLISHED, part)
    for name, values in whole.items():
        np.testing.assert_array_equal(values[some], alone[name], err_msg=name)
    other = prepare(PUBLISHED, rows, seed=1)
    assert not np.array_equal(other["order"], whole["order"])


def test_shorter_rows_have_the_same_share():
    objective = PermutationLM(predicted=20, reuse=0, pairs=False)
    found = prepare(objective, ragged([118, 58, 28, 1, 0], 118))
    assert found["slot_weights"].sum(axis=1).max() <= 20
    drawn = np.array([20, 10, 5, 0, 0])
    assert (found["slot_weights"].sum(axis=1) <= drawn).all()
    assert (found["slot_weights"].sum(axis=1) >= drawn - 2).all()
    inside = found["slots"] < np.array([118, 58, 28, 1, 1])[:, None]
    assert inside.all()


@pytest.mark.parametrize(
    ("numbers", "length", "message"),
    [
        ({"predicted": 0}, 512, r"predicted=0: must be at least 1"),
        ({"alpha": 0}, 512, r"alpha=0: must be at least beta=1"),
        ({"reuse": 508}, 512, r"reuse=508 leaves no room in data\.length=512.*at most 507"),
        ({"shuffled": 100}, 512, r"shuffled=100 does not divide a part of the row, 256 of"),
        ({"reuse": 64, "predicted": 85}, 128, r"predicted=85: 43 of a part of 64 positions"),
    ],
)
def test_numbers_that_cannot_be(numbers, length, message):
    with pytest.raises(ConfigError, match=message):
        PermutationLM(**numbers).window(length)


def test_what_it_asks_of_the_data():
    assert (PUBLISHED.window(512), PUBLISHED.advance(512), PUBLISHED.partners) == (509, 256, 1)
    assert PUBLISHED.packings == ("continue",)
    assert (SIMPLE.window(32), SIMPLE.advance(32), SIMPLE.partners) == (30, 30, 0)
    assert "split" in SIMPLE.packings and "pack" not in SIMPLE.packings
    assert "split" not in dataclasses.replace(SIMPLE, pairs=True).packings


def test_rows_of_a_run_go_on_after_what_is_reused():
    """Through the input pipeline: the first part of a row's next step is the text after the first
    part of this one, which is where this one's A begins.
    """
    objective = PermutationLM(predicted=12, reuse=16)
    data = Data(
        sources=(Source("text:x"),), batch=4, length=40, vocabulary=VOCABULARY, packing="continue"
    )
    corpus = FakeCorpus([300, 500, 700])
    batches = Batches([(corpus, 1.0)], objective, VOCAB, data=data, seed=3)
    rows = [batches[step] for step in range(4)]
    for now, then in itertools.pairwise(rows):
        sep = (now["tokens"] == SEP).argmax(axis=1)
        for row, end in enumerate(sep):
            own = now["tokens"][row, 16 : min(end, 32)]
            np.testing.assert_array_equal(then["tokens"][row, : len(own)], own)
    assert not np.array_equal(rows[0]["tokens"][0], rows[0]["tokens"][1])


def test_a_slots_prediction_hangs_on_what_it_may_see_alone():
    """From rows to logits: a changed token moves those slots, at most, that it is visible to."""
    objective = PermutationLM(predicted=12, reuse=16)
    size = dataclasses.replace(xlnet.SIZES["tiny"], vocab=VOCAB.size)
    model = xlnet.TwoStreamModel(size)
    found = prepare(objective, text_rows(objective, 4, 40, sentence=5))
    params = jax.tree.map(
        lambda x: 3 * x,
        jax.jit(lambda: model.init(jax.random.key(0), found, train=False)["params"])(),
    )
    params = named.unbox(params)
    score = jax.jit(lambda p, b: step.Applied(model, p)(b, rng=None)["logits"].logits())
    before = np.asarray(score(params, found))
    used, moves = found["slot_weights"] > 0, np.zeros(2)
    at_slots = np.take_along_axis(found["reach"], found["slots"], axis=1)
    for place in range(40):
        tokens = found["tokens"].copy()
        tokens[:, place] = 10 + (tokens[:, place] + 1) % 900
        after = np.asarray(score(params, found | {"tokens": tokens}))
        moved = np.abs(after - before).max(axis=-1) > 1e-5
        sees = at_slots > found["order"][:, place, None]
        assert not (moved & ~sees & used).any(), place
        moves += np.array([(moved & sees & used).sum(), (sees & used).sum()])
    assert moves[0] > 0.95 * moves[1] > 500


def test_the_loss_falls():
    size = dataclasses.replace(xlnet.SIZES["tiny"], depth=1, vocab=VOCAB.size)
    model, objective = xlnet.TwoStreamModel(size), SIMPLE
    rows = text_rows(objective, 8, 32)
    batch = prepare(objective, dataclasses.replace(rows, tokens=rows.tokens % 20 + 10))
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    tx = optax.adam(3e-3)
    state = jax.jit(step.make_init(model, tx, shapes, seed=0))()
    update = jax.jit(step.make_train_step(model, objective, tx, seed=0))
    seen = []
    for _ in range(20):
        state, metrics = update(state, batch)
        seen.append(float(metrics["plm"]))
    assert np.isfinite(seen).all() and seen[-1] < seen[0] - 1


def test_show():
    found = prepare(SIMPLE, text_rows(SIMPLE, 2, 32))

    class Words:
        def decode(self, ids):
            return " ".join(map(str, ids))

    examples = SIMPLE.show(found, Words())
    assert examples[0].input.split() == [str(i) for i in found["tokens"][0]]
    assert examples[0].target.split() == [
        str(i) for i in found["slot_targets"][0][found["slot_weights"][0] > 0]
    ]
