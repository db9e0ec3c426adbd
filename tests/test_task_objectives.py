"""Objectives of tasks: literal examples in, literal rows and answers out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxlm.data.encoded import ExampleRows
from flaxlm.data.random import RowRandom
from flaxlm.data.spec import Vocabulary
from flaxlm.data.wordpiece import WordPieceVocab
from flaxlm.errors import ConfigError
from flaxlm.losses import Readout
from flaxlm.objectives.answer_spans import AnswerSpans
from flaxlm.objectives.classification import Classification, Regression
from flaxlm.objectives.multiple_choice import MultipleChoice
from flaxlm.objectives.tagging import Tagging
from flaxlm.objectives.texts import Texts, nearest_window, truncated, windows
from flaxlm.tasks.base import Choices, Classes, Score, Spans, Tags
from tests.vocabs import made

LETTERS = [f"{mark}{c}" for mark in ("", "##") for c in "abcdefgh"]
VOCAB = WordPieceVocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS])
A, B, C, D, E, F, G, H = range(5, 13)
_A = 13  # ##a and so on
XLNET = Texts("A sep cls:2", "A sep B:1 sep:1 cls:2")


def rows(encoded, place=None) -> dict:
    place = np.arange(len(encoded)) if place is None else np.array(place)
    return ExampleRows(encoded, place, index=place, pad=0).features


def test_a_pair_is_laid_out_and_labelled():
    objective = Classification(classes=3)
    form = Classes(("x", "y", "z"), pair=True)
    examples = [
        {"id": "0", "text": "a b", "pair": "c", "label": 2},
        {"id": "1", "text": "d", "pair": "e f", "label": None},
    ]
    found = rows(objective.encode(examples, form, VOCAB, 8), [1, 0, -1])
    assert found["tokens"].tolist() == [
        [2, D, 3, E, F, 3, 0, 0], [2, A, B, 3, C, 3, 0, 0], [0] * 8
    ]  # fmt: skip
    assert found["types"].tolist() == [
        [0, 0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1, 0, 0], [0] * 8
    ]  # fmt: skip
    assert found["segments"].sum(1).tolist() == [6, 6, 0]
    assert found["positions"][1].tolist() == [0, 1, 2, 3, 4, 5, 0, 0]
    assert found["classes"].tolist() == [0, 2, 0]
    assert found["label_weights"].tolist() == [0, 1, 0]


def test_a_layout_is_the_familys():
    ids, types = XLNET.around(VOCAB, [A], [B, C])[0]
    assert (ids, types) == ([A, 3, B, C, 3, 2], [0, 0, 1, 1, 1, 2])
    assert XLNET.place_of_symbol(2, "cls", (ids, types)) == 5
    with pytest.raises(ConfigError, match=r"texts\.pair='A sep'"):
        Texts(pair="A sep")


@pytest.mark.parametrize("sizes", [(9, 4), (4, 9), (9, 9), (1, 20), (3, 3)])
@pytest.mark.parametrize("room", [6, 7, 10])
def test_the_longer_text_is_cut_first(sizes, room):
    """As the published loop: a token of the longer text goes, of equals the second's."""
    first, second = (list(range(size)) for size in sizes)
    found = truncated([first, second], room)
    while len(first) + len(second) > room:
        (first if len(first) > len(second) else second).pop()
    assert found == [first, second]


def test_windows_go_over_all_and_each_token_has_its_best():
    places = windows(10, 4, 2)
    assert places == [(0, 4), (2, 6), (4, 8), (6, 10)]
    assert [nearest_window(places, at) for at in range(10)] == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]


def test_a_long_text_is_answered_by_the_mean_of_its_rows():
    objective, form = Classification(classes=2, stride=2), Classes(("x", "y"))
    examples = [
        {"id": "0", "text": "a b c d e f", "pair": None, "label": 1},
        {"id": "1", "text": "a", "pair": None, "label": 0},
    ]
    encoded = objective.encode(examples, form, VOCAB, 6)
    assert encoded.example.tolist() == [0, 0, 1]
    assert rows(encoded)["tokens"][1].tolist() == [2, C, D, E, F, 3]
    logs = np.array([[-1.0, -2.0], [-5.0, -0.1], [-0.1, -3.0]])
    found = objective.predictions({"class_log_probs": logs}, encoded, examples, form)
    shares = [[np.exp(-3.0), np.exp(-1.05)], [np.exp(-0.1), np.exp(-3.0)]]
    np.testing.assert_allclose(found, [np.array(row) / sum(row) for row in shares])
    short = Classification(classes=2).encode(examples, form, VOCAB, 6)
    assert rows(short)["tokens"][0].tolist() == [2, A, B, C, D, 3]


def test_a_number_stays_in_its_range():
    objective, form = Regression(), Score(0.0, 5.0, pair=True)
    examples = [{"id": "0", "text": "a", "pair": "b", "label": 2.5}] * 3
    encoded = objective.encode(examples, form, VOCAB, 8)
    assert rows(encoded)["scores"].tolist() == [2.5] * 3
    score = {"score": np.array([-1.0, 3.5, 7.0])}
    assert objective.predictions(score, encoded, examples, form) == [0.0, 3.5, 5.0]


def test_the_endings_of_an_example_lie_side_by_side():
    objective, form = MultipleChoice(choices=2), Choices(2)
    examples = [{"id": "0", "text": "a b", "endings": ["c", "d e"], "label": 1}]
    found = rows(objective.encode(examples, form, VOCAB, 7))
    assert found["tokens"].tolist() == [[2, A, B, 3, C, 3, 0, 2, A, B, 3, D, E, 3]]
    assert found["segments"].tolist() == [[1] * 6 + [0] + [2] * 7]
    assert found["positions"][0, 7:].tolist() == list(range(7))
    assert found["classes"].tolist() == [1]


def extended():
    """Letters and three symbols above them, as GPT-1 has: start, delimiter, extract."""
    vocab = WordPieceVocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS])
    vocab.sentinels = np.array([23, 22, 21], np.int32)
    return vocab


GPT1 = Texts("<extra_id_2> A <extra_id_0>", "<extra_id_2> A <extra_id_1> B <extra_id_0>")


def test_the_input_of_gpt1_has_start_delimiter_and_extract():
    vocab, form = extended(), Classes(("x", "y"), pair=True)
    examples = [{"id": "0", "text": "a b", "pair": "c", "label": 1}]
    objective = Classification(classes=2, texts=GPT1, language=0.5)
    encoded = objective.encode(examples, form, vocab, 8)
    place = np.array([0, -1])
    found = objective.prepare(
        ExampleRows(encoded, place, index=place, pad=0), RowRandom(0, place), vocab
    )
    assert found["tokens"].tolist() == [[21, A, B, 22, C, 23, 0, 0], [0] * 8]
    assert found["targets"].tolist() == [[A, B, 22, C, 23, 0, 0, 0], [0] * 8]
    np.testing.assert_allclose(found["weights"], [[0.2] * 5 + [0] * 3, [0] * 8], atol=1e-7)
    assert objective.terms["language_nll"].scale == 0.5
    assert "language_nll" not in Classification(classes=2).terms
    with pytest.raises(ConfigError, match=r"<extra_id_3>, and the vocabulary has 3 sentinels"):
        Texts("A <extra_id_3>").around(vocab, [A])
    with pytest.raises(ConfigError, match=r"objective\.language=-1"):
        Regression(language=-1)


def test_a_pair_without_an_order_is_read_in_both():
    """Logits of both orders are added; every order is a text of the language model."""
    vocab, form = extended(), Score(0.0, 5.0)
    examples = [{"id": "0", "text": "a b", "pair": "c", "label": 4.0}]
    objective = Regression(texts=GPT1, both_orders=True, language=0.5)
    encoded = objective.encode(examples, form, vocab, 7)
    place = np.zeros(1, int)
    batch = objective.prepare(
        ExampleRows(encoded, place, index=place, pad=0), RowRandom(0, place), vocab
    )
    assert batch["tokens"].tolist() == [[21, A, B, 22, C, 23, 0, 21, C, 22, A, B, 23, 0]]
    np.testing.assert_allclose(batch["weights"].reshape(2, 7).sum(1), 1)
    seen = {}

    def model(features, *, rng):
        seen.update(features)
        hidden = jax.nn.one_hot(features["tokens"], 24)
        first = features["tokens"][:, 1:2].astype(jnp.float32)
        return {"class_logits": first, "logits": Readout(hidden, jnp.eye(24), vocab=24)}

    outputs = objective.forward(model, batch, None)
    assert seen["tokens"].shape == (2, 7) and seen["segments"].max() == 1
    assert outputs["score"].tolist() == [A + C]
    assert outputs["language_nll"].shape == (1, 14)
    single = [{"id": "0", "text": "a", "pair": None, "label": 1.0}]
    with pytest.raises(ConfigError, match="has no order"):
        objective.encode(single, form, vocab, 7)
    with pytest.raises(ConfigError, match=r"make objective\.stride 0"):
        Regression(both_orders=True, stride=2)


def test_a_decoder_reads_the_row_once_more():
    texts = Texts("A sep", "A sep B sep", decoder="pad")
    objective = Classification(classes=2, texts=texts)
    examples = [{"id": "0", "text": "a b", "pair": None, "label": 1}]
    encoded = objective.encode(examples, Classes(("x", "y")), VOCAB, 5)
    place = np.array([0, -1])
    found = objective.prepare(
        ExampleRows(encoded, place, index=place, pad=4), RowRandom(0, place), VOCAB
    )
    assert found["tokens"].tolist() == [[A, B, 3, 4, 4], [4] * 5]
    assert found["decoder_tokens"].tolist() == [[0, A, B, 0, 0], [0] * 5]
    assert found["decoder_segments"].tolist() == [[1, 1, 1, 0, 0], [0] * 5]


def test_a_tag_is_read_at_the_first_piece_of_its_word():
    objective, form = Tagging(tags=3), Tags(("O", "B-X", "I-X"))
    examples = [{"id": "0", "words": ["ab", "c", "def"], "tags": [1, 2, 0]}]
    encoded = objective.encode(examples, form, VOCAB, 10)
    found = rows(encoded)
    assert found["tokens"][0].tolist() == [2, A, _A + 1, C, D, _A + 4, _A + 5, 3, 0, 0]
    assert found["tags"][0].tolist() == [0, 1, 0, 2, 0, 0, 0, 0, 0, 0]
    assert found["weights"][0].tolist() == [0, 1, 0, 1, 1, 0, 0, 0, 0, 0]
    tags = np.arange(10)[None] % 3
    assert objective.predictions({"tags": tags}, encoded, examples, form) == [[1, 0, 1]]


def test_every_word_of_a_long_sentence_counts_once():
    objective, form = Tagging(tags=4, stride=3), Tags(("O", "B-X", "I-X", "B-Y"))
    words = list("abcdefgh") * 3
    examples = [{"id": "0", "words": words, "tags": [n % 4 for n in range(24)]}]
    encoded = objective.encode(examples, form, VOCAB, 8)
    found = rows(encoded)
    assert len(encoded) == 7 and found["weights"].sum() == 24
    answers = {"tags": encoded.targets["tags"]}
    assert objective.predictions(answers, encoded, examples, form) == [examples[0]["tags"]]


def test_characters_take_the_tag_of_their_piece():
    objective, form = Tagging(tags=3), Tags(("O", "B-X", "I-X"), joined=True)
    examples = [{"id": "0", "words": list("zz ab"), "tags": [1, 2, 0, 0, 0]}]
    vocab = WordPieceVocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "zz", "a", "##b"])
    encoded = objective.encode(examples, form, vocab, 6)
    found = rows(encoded)
    assert found["tokens"][0].tolist() == [2, 5, 6, 7, 3, 0]
    assert found["tags"][0].tolist() == [0, 1, 0, 0, 0, 0]
    answers = {"tags": np.array([[0, 1, 0, 1, 0, 0]])}
    assert objective.predictions(answers, encoded, examples, form) == [[1, 2, 0, 0, 1]]


def question(context, text, start, **more):
    answers = [{"text": text, "start": start}] if text else []
    return {
        "id": "0", "question": "a b", "context": context, "answers": answers,
        "impossible": not text, **more,
    }  # fmt: skip


def test_an_answer_is_found_where_it_stands():
    objective, form = AnswerSpans(question=4), Spans()
    examples = [question("c  de f", "de", 3), question("gh", "", 0)]
    encoded = objective.encode(examples, form, VOCAB, 12)
    found = rows(encoded)
    assert found["tokens"][0].tolist() == [2, A, B, 3, C, D, _A + 4, F, 3, 0, 0, 0]
    assert found["span_starts"].tolist() == [5, 0] and found["span_ends"].tolist() == [6, 0]
    assert found["label_weights"].tolist() == [1, 1]
    logits = np.zeros((2, 12, 2))
    logits[0, 5, 0] = logits[0, 6, 1] = logits[1, 4, 0] = logits[1, 5, 1] = 3
    logits[:, 9] = 9  # beyond the context
    answers = {"span_logits": logits}
    found = objective.predictions(answers, encoded, examples, form)
    assert found == [{"text": "de", "no_answer": 0.0}, {"text": "gh", "no_answer": 0.0}]
    logits[1, 0] = 4
    found = objective.predictions(answers, encoded, examples, Spans(no_answer=True))
    assert found == [{"text": "de", "no_answer": -6.0}, {"text": "", "no_answer": 2.0}]
    bold = AnswerSpans(question=4, threshold=2.5)
    assert bold.predictions(answers, encoded, examples, Spans(True))[1]["text"] == "gh"


def test_an_answer_in_a_long_context_is_in_the_rows_that_hold_it():
    objective, form = AnswerSpans(question=2, stride=2), Spans(no_answer=True)
    context = "a b c d e f g h"
    examples = [question(context, "f g", 10)]
    encoded = objective.encode(examples, form, VOCAB, 9)
    begins = [window.tolist() for window in encoded.notes["window"]]
    assert begins == [[0, 4], [2, 6], [4, 8]]
    assert rows(encoded)["span_starts"].tolist() == [0, 0, 5]
    logits = np.zeros((3, 9, 2))
    logits[0, 7] = 5  # "d", which has more context in the second row
    logits[2, 5, 0] = logits[2, 6, 1] = 4
    answer = objective.predictions({"span_logits": logits}, encoded, examples, form)[0]
    assert answer["text"] == "f g" and answer["no_answer"] == -8


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bpe", "bytes"])
def test_pieces_know_their_characters(kind):
    vocab = made(kind, **({"lowercase": True} if kind == "wordpiece" else {}))
    text = "The  Value of é and “quotes” (in 1,895) is returned.\n"
    ids, spans = vocab.encode_spans([text])[0]
    assert ids == vocab.encode(text).tolist() and len(spans) == len(ids)
    covered = {c for first, stop in spans for c in range(first, stop)}
    missing = [text[c] for c in range(len(text)) if c not in covered and not text[c].isspace()]
    assert not missing
    assert (spans[:, 0] <= spans[:, 1]).all() and (np.diff(spans[:, 0]) >= 0).all()
    value = [text[a:b] for a, b in spans if 5 <= a < 10]
    assert "".join(value) == "Value"


def test_forms_and_numbers_must_agree():
    with pytest.raises(ConfigError, match="is of the form Tags; Classification learns Classes"):
        Classification(classes=2).check(Tags(("O",)), name="a/b")
    with pytest.raises(ConfigError, match=r"objective\.classes=2: task:a/b has 3"):
        Classification(classes=2).check(Classes(("x", "y", "z")), name="a/b")
    with pytest.raises(ConfigError, match=r"objective\.choices=4: task:a/b has 2"):
        MultipleChoice(choices=4).check(Choices(2), name="a/b")
    with pytest.raises(ConfigError, match="no room"):
        Classification(classes=2).rows_of_texts([{"text": "a", "pair": "b"}], VOCAB, 4)
    with pytest.raises(ConfigError, match="leaves no room for a context"):
        AnswerSpans(question=9).encode([question("a", "a", 0)], Spans(), VOCAB, 12)


@pytest.mark.parametrize(
    "objective",
    [Classification(classes=2), Regression(), MultipleChoice(choices=3), Tagging(tags=2),
     AnswerSpans(), Regression(language=0.5, texts=Texts(decoder="sep")),
     MultipleChoice(choices=3, language=0.5)],
    ids=lambda some: type(some).__name__,
)  # fmt: skip
def test_a_run_is_traced_with_the_shapes_that_it_has(objective):
    blank = Vocabulary(size=50, kind="wordpiece").blank()
    traced = objective.prepare(objective.blank(16, blank), None, blank)
    text = {"id": "0", "text": "a", "pair": None, "label": 1}
    forms = {
        "Classes": (Classes(("x", "y")), text),
        "Score": (Score(0, 1), text),
        "Choices": (Choices(3), text | {"endings": ["a", "b", "c"]}),
        "Tags": (Tags(("O", "B-X")), {"words": ["a"], "tags": [1]}),
        "Spans": (Spans(), question("a", "a", 0)),
    }
    form, example = forms[objective.form]
    objective = AnswerSpans(question=4) if objective.form == "Spans" else objective
    encoded, place = objective.encode([example], form, VOCAB, 16), np.zeros(1, int)
    real = objective.prepare(ExampleRows(encoded, place, index=place, pad=0), None, VOCAB)
    assert {n: (x.shape, x.dtype) for n, x in traced.items()} == {
        n: (x.shape, x.dtype) for n, x in real.items()
    }
