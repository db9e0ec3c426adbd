"""What is masked at once: words, n-grams, names, rare tokens."""

import random

import numpy as np
import pytest

from flaxlm.data import __main__ as data_command
from flaxlm.data.random import RowRandom
from flaxlm.data.rows import Rows
from flaxlm.data.vocab import load_vocab
from flaxlm.errors import DataError, MissingInput
from flaxlm.objectives.entities import Entities, inside_names
from flaxlm.objectives.masked_lm import MaskedLM
from flaxlm.objectives.units import Ngrams, RareTokens, Tokens, WholeWords, text, words
from tests.lines import CLS, SEP, VOCAB, joined

UNK = VOCAB.unk


def chosen(units, tokens, number, seed=0):
    tokens = np.asarray(tokens, np.int32)
    numbers = np.full(len(tokens), number)
    rng = RowRandom(seed, np.arange(len(tokens)))
    return units.choose(tokens, np.ones_like(tokens), numbers, rng, VOCAB)


def test_what_is_text():
    tokens = np.array([[CLS, UNK, 17, 11, SEP, 0]], np.int32)
    found = text(tokens, np.array([[1, 1, 1, 1, 1, 0]]), VOCAB)
    assert found.tolist() == [[False, True, True, True, False, False]]


def test_words():
    tokens = np.array([[CLS, 17, 18, 11, 19, SEP, 27, 12]], np.int32)
    may = text(tokens, np.ones_like(tokens), VOCAB)
    found = words(tokens, may, VOCAB.word_starts)
    assert found.astype(int).tolist() == [[0, 1, 0, 1, 0, 0, 1, 1]]


def counted(masks):
    return {mask: masks.count(mask) for mask in set(masks)}


def reference(groups, number, longest, rng):
    """albert/create_pretraining_data.py, and with longest = 1 whole word masking of
    bert/create_pretraining_data.py: groups are the words, as lists of places.
    """
    shares = [1 / n for n in range(1, longest + 1)]
    candidates = [[groups[i : i + n] for n in range(1, longest + 1)] for i in range(len(groups))]
    rng.shuffle(candidates)
    covered = set()
    for candidate in candidates:
        if len(covered) >= number:
            break
        (n,) = rng.choices(range(1, longest + 1), shares)
        places = joined(candidate[n - 1])
        while len(covered) + len(places) > number and n > 1:
            n -= 1
            places = joined(candidate[n - 1])
        if len(covered) + len(places) > number or covered & set(places):
            continue
        covered |= set(places)
    return tuple(sorted(covered))


ROW = [CLS, 11, 17, 18, 12, 13, SEP, 14, 19, 15, 16, 20, SEP]
GROUPS = [[1, 2, 3], [4], [5], [7, 8], [9], [10], [11]]


@pytest.mark.parametrize("number", [1, 2, 4, 5])
@pytest.mark.parametrize("units", [WholeWords(), Ngrams(), Ngrams(longest=2)], ids=repr)
def test_the_distribution_is_the_published_one(units, number):
    count = 20_000
    masks = chosen(units, [ROW] * count, number)
    found = [tuple(np.flatnonzero(mask).tolist()) for mask in masks]
    rng = random.Random(0)
    longest = units.longest if isinstance(units, Ngrams) else 1
    expected = [reference(GROUPS, number, longest, rng) for _ in range(count)]
    assert max(map(len, found)) <= number
    a, b = counted(found), counted(expected)
    cells = [cell for cell in a.keys() | b.keys()]
    hits = np.array([[group[cell] if cell in group else 0 for cell in cells] for group in (a, b)])
    often = hits.sum(axis=0) >= 20
    assert often.sum() >= 4
    value = ((hits[0] - hits[1]) ** 2 / hits.sum(axis=0))[often].sum()
    assert value < often.sum() - 1 + 5 * np.sqrt(2 * max(often.sum() - 1, 1))


def test_ngrams_are_one_to_three_words_over_a_million_tokens():
    """The first n-gram of a row with room for it: 6/11, 3/11, 2/11."""
    tokens = np.full((10_000, 110), 11)
    masks = chosen(Ngrams(), tokens, 3)
    # The first taken decides the rest: three words at once, or one and then what fits.
    runs = np.diff(np.pad(masks, [[0, 0], [1, 1]]).astype(int), axis=1)
    assert (masks.sum(axis=1) == 3).all()
    single_run = (np.count_nonzero(runs == 1, axis=1) == 1).mean()
    rng = random.Random(1)
    groups = [[i] for i in range(110)]
    sample = [reference(groups, 3, 3, rng) for _ in range(10_000)]
    expected = np.mean([mask[2] - mask[0] == 2 for mask in sample])
    assert abs(single_run - expected) < 5 * np.sqrt(2 * expected * (1 - expected) / 10_000)


def test_whole_words_are_whole():
    tokens = np.random.default_rng(0).integers(10, 500, (200, 60))
    tokens[:, [0, 30, 59]] = CLS, SEP, SEP
    for units in (WholeWords(), Ngrams()):
        masks = chosen(units, tokens, 9)
        assert masks.sum(axis=1).max() == 9 and masks.sum(axis=1).mean() > 8.9
        assert not masks[:, [0, 30, 59]].any()
        goes_on = ~VOCAB.word_starts[tokens] & ~VOCAB.special[tokens]
        goes_on &= ~VOCAB.special[np.roll(tokens, 1, axis=1)]
        assert np.array_equal(masks[:, 1:][goes_on[:, 1:]], masks[:, :-1][goes_on[:, 1:]])


# Names.


def found_names(rows, names):
    tokens = np.array(rows, np.int32)
    may = text(tokens, tokens > 0, VOCAB)
    by_length = {}
    for name in names:
        by_length.setdefault(len(name), []).append(name)
    by_length = {n: np.array(group, np.int32) for n, group in by_length.items()}
    return (
        inside_names(tokens, may, words(tokens, may, VOCAB.word_starts), by_length)
        .astype(int)
        .tolist()
    )


def test_names_are_found_longest_first():
    names = [[11, 12], [11, 12, 13], [14, 17], [15], [13, 14, 17, 11]]
    assert found_names([[CLS, 11, 12, 13, 11, 12, SEP]], names) == [[0, 0, 1, 1, 0, 1, 0]]
    assert found_names([[11, 12, 13, 14, 17, 11, 12]], names) == [[0, 1, 0, 1, 1, 1, 0]]
    assert found_names([[11, 12, 12, 11, 15, 14, 17]], names) == [[0, 1, 0, 0, 0, 0, 1]]


def test_names_begin_and_end_with_words():
    names = [[14, 17], [11, 12]]
    assert found_names([[14, 17, 18, 14, 17, 11, 12, 19]], names) == [[0, 0, 0, 0, 1, 0, 0, 0]]
    assert found_names([[11, 12, 11]], names) == [[0, 1, 0]]
    assert found_names([[11, SEP, 12]], [[11, SEP, 12], [11, 12]]) == [[0, 0, 0]]
    assert found_names([[11, 11], [12, 12]], names) == [[0, 0], [0, 0]]  # not over rows


def test_overlapping_names_are_taken_from_the_left():
    assert found_names([[11, 11, 11, 11, 11, 12, 11, 11]], [[11, 11]]) == [[0, 1, 0, 1, 0, 0, 0, 1]]
    assert found_names([[11, 12, 11, 12, 11, 12, 11]], [[11, 12, 11]]) == [[0, 1, 1, 0, 0, 1, 1]]


def test_names_are_masked_whole(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("11 12 13\n\n14 17\n", encoding="utf-8")
    rows = Rows.of(
        [[15, 11, 12, 13, 16, 14, 17, 15, 16, 15, 16, 15, 16, 15, 16, 20, 21, 22]] * 2000
    )
    objective = MaskedLM(slots=4, rate=0.2, mask=1.0, random=0.0, units=Entities(path=str(path)))
    tokens = (
        objective.prepare(rows, RowRandom(0, rows.index), VOCAB)["tokens"][:, 1:-1] == VOCAB.mask
    )
    assert (tokens[:, 1:4].all(axis=1) == tokens[:, 1:4].any(axis=1)).all()
    assert (tokens[:, 5:7].all(axis=1) == tokens[:, 5:7].any(axis=1)).all()
    assert tokens[:, 1].any() and tokens[:, 5].any() and (tokens.sum(axis=1) == 4).all()


def test_a_list_that_is_not_there(tmp_path):
    tokens = [[CLS, 11, 12, SEP]]
    with pytest.raises(MissingInput, match=r"objective\.units\.path"):
        chosen(Entities(path=str(tmp_path / "none.txt")), tokens, 1)
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(DataError, match="has no name"):
        chosen(Entities(path=str(tmp_path / "empty.txt")), tokens, 1)
    (tmp_path / "latin.txt").write_bytes(b"Qu\xe9bec\n")
    with pytest.raises(DataError, match="not UTF-8"):
        chosen(Entities(path=str(tmp_path / "latin.txt")), tokens, 1)
    with pytest.raises(MissingInput, match=r"objective\.units\.path"):
        chosen(RareTokens(path=str(tmp_path / "none.txt")), tokens, 1)
    (tmp_path / "counts.txt").write_text("1\n2\n")
    with pytest.raises(DataError, match="counts 2 ids, but the vocabulary has 500"):
        chosen(RareTokens(path=str(tmp_path / "counts.txt")), tokens, 1)
    (tmp_path / "words.txt").write_text("one\n")
    with pytest.raises(DataError, match="one count a line"):
        chosen(RareTokens(path=str(tmp_path / "words.txt")), tokens, 1)


def test_rare_tokens_are_chosen_more_often(tmp_path):
    """One token of each row: probabilities are the weights themselves, count^-0.7."""
    counts = np.ones(500, int)
    counts[[11, 12, 13]] = 1, 10, 100
    path = tmp_path / "counts.txt"
    np.savetxt(path, counts, fmt="%d")
    count = 40_000
    rows = [[CLS, 11, 12, 13, 12, SEP]] * count
    hits = chosen(RareTokens(path=str(path)), rows, 1).sum(axis=0)
    weights = np.array([0, 1, 10**-0.7, 100**-0.7, 10**-0.7, 0])
    expected = weights / weights.sum() * count
    assert hits[0] == hits[5] == 0 and hits.sum() == count
    assert ((hits - expected)[1:5] ** 2 / expected[1:5]).sum() < 25
    even = chosen(RareTokens(path=str(path), power=0.0), rows, 1).sum(axis=0)
    assert ((even[1:5] - count / 4) ** 2 / (count / 4)).sum() < 25


def test_rows_with_fewer_tokens_than_their_number():
    tokens = [[CLS, 11, 17, SEP], [CLS, SEP, SEP, SEP]]
    for units in (Tokens(), WholeWords(), Ngrams()):
        assert chosen(units, tokens, 4).astype(int).tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]
        assert not chosen(units, tokens, 0).any()


def test_counts_of_a_corpus(tmp_path):
    (tmp_path / "a.txt").write_text("the cat saw the dog and the cat.\n" * 30, encoding="utf-8")
    source, vocab, folder = f"text:{tmp_path}/a.txt", tmp_path / "v.model", tmp_path / "corpus"
    for argv in (
        ["vocab", "--source", source, "--out", str(vocab), "--size", "277"],
        ["prepare", "--source", source, "--vocab", str(vocab), "--out", str(folder)]
        + ["--held-out", "0", "--workers", "1"],
        ["count", str(folder), "--out", str(tmp_path / "counts.txt")],
    ):
        assert data_command.main(argv) == 0
    loaded = load_vocab(vocab)
    expected = np.bincount(loaded.encode((tmp_path / "a.txt").read_text()), minlength=277)
    counts = np.loadtxt(tmp_path / "counts.txt", dtype=int)
    assert counts.sum() == expected.sum() and counts.tolist() == expected.tolist()
    tokens = np.flatnonzero(counts)[None].astype(np.int32)
    units = RareTokens(path=str(tmp_path / "counts.txt"))
    found = units.choose(tokens, np.ones_like(tokens), np.array([2]), RowRandom(0, [0]), loaded)
    assert found.sum() == 2
