"""Metrics of tasks, compared with scikit-learn, SciPy and seqeval (goldens) on 1,000 random cases
each, and with the published scripts' arithmetic, written out again here.
"""

import math
import re
import string
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest

from flaxlm.errors import DataError
from flaxlm.tasks import metrics, spans, structures
from flaxlm.tasks.base import find
from tests.parity import task_metrics_cases as cases

GOLDEN = Path(__file__).parent / "parity" / "task_metrics.npz"


def _classes(number, most=5):
    answers, labels, count = cases.classes(number, most=most)
    return (answers, labels), count


def _arc(name):
    return lambda number: structures.arc_scores(*cases.arcs(number))[name]


def _entity(name):
    return lambda number: structures.entity_scores(*cases.tags(number))[name]


def _micro(number):
    (answers, labels), count = _classes(number)
    return metrics.micro_f1(answers, labels, range(1, count))


def _every_class(number):
    (answers, labels), count = _classes(number)
    return metrics.macro_f1(answers, labels, of=range(count), empty=1.0)


OURS = {
    "accuracy": lambda n: metrics.accuracy(*_classes(n)[0]),
    "macro_f1": lambda n: metrics.macro_f1(*_classes(n)[0]),
    "matthews": lambda n: metrics.matthews(*_classes(n)[0]),
    "micro_f1": _micro,
    "macro_f1_of_every_class": _every_class,
    "binary_f1": lambda n: metrics.binary_f1(*_classes(n, 2)[0]),
    "pearson": lambda n: metrics.pearson(*cases.scores(n)),
    "spearman": lambda n: metrics.spearman(*cases.scores(n)),
    "area_under_precision_recall": lambda n: metrics.area_under_precision_recall(
        *cases.thresholds(n)
    ),
    "entity_precision": _entity("precision"),
    "entity_recall": _entity("recall"),
    "entity_f1": _entity("f1"),
    "strict_entity_macro_f1": lambda n: structures.strict_entity_macro_f1(*cases.tags(n)),
    **{name: _arc(name) for name in ("uas", "las", "uas_macro_f1", "las_macro_f1")},
}


def test_every_golden_is_compared():
    with np.load(GOLDEN) as golden:
        assert set(golden) == set(OURS)


@pytest.mark.parametrize("name", OURS)
def test_equal_to_the_library(name):
    with np.load(GOLDEN) as golden:
        expected = golden[name]
    assert len(expected) == cases.COUNT and np.nanstd(expected) > 0.1
    found = np.array([OURS[name](number) for number in range(cases.COUNT)])
    # Where the library has no number (a constant, no entities) there is nothing to praise.
    np.testing.assert_allclose(found, np.nan_to_num(expected), rtol=1e-9, atol=1e-9)


def test_character_f1_is_macro_f1_over_all_sentences():
    answers, labels = [[0, 1], [2]], [[0, 2], [2]]
    flat = metrics.macro_f1([0, 1, 2], [0, 2, 2], of=range(4), empty=1.0)
    assert structures.character_macro_f1(answers, labels, 4) == pytest.approx(flat)
    assert flat == pytest.approx((1 + 0 + 2 / 3 + 1) / 4)


def test_metrics_of_nothing_are_zero():
    assert metrics.accuracy([], []) == metrics.pearson([], []) == metrics.mean([]) == 0.0
    assert metrics.pearson([1.0, 1.0], [0.0, 5.0]) == metrics.spearman([1, 2], [3, 3]) == 0.0
    assert metrics.matthews([1, 1, 1], [0, 1, 1]) == 0.0 == metrics.binary_f1([0, 0], [0, 0])
    assert structures.entity_scores([["O"]], [["O"]]) == {"precision": 0, "recall": 0, "f1": 0}


def test_matthews_of_many_examples_does_not_overflow():
    labels = np.arange(400_000) % 2
    assert metrics.matthews(labels, labels) == pytest.approx(1.0)


# Answers as pieces of text.

WORDS = ["the", "a", "an", "The", "cat", "dog", "Dog's", "1,000", "—", "…", "é", "서울", "서울은",
         "(주)", "‘말’", "《책》", "<b>", '"', "'", "  ", "\u00a0", "A.", "one", "İ"]  # fmt: skip


def _texts(number):
    """An answer and the known ones: often close to each other, sometimes empty or articles only."""
    draw = Random(50_000 + number)

    def text():
        return " ".join(draw.choices(WORDS, k=draw.choice((0, 1, 1, 2, 3, 6))))

    known = [text() for _ in range(draw.randint(1, 3))]
    answer = draw.choice([text(), draw.choice(known), draw.choice(known) + " " + text(), ""])
    return answer, known


def _normal(text):
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text, flags=re.UNICODE).split())


def _shared(one, other, both_empty):
    if both_empty is not None and (not one or not other):
        return both_empty if one == other else 0
    same = sum(min(n, Counter(other)[key]) for key, n in Counter(one).items())
    if same == 0:
        return 0
    return 2 * (same / len(one)) * (same / len(other)) / (same / len(one) + same / len(other))


def _korean(text):
    for mark in ["'", '"', "《", "》", "<", ">", "〈", "〉", "(", ")", "‘", "’"]:
        text = text.replace(mark, " ")
    return " ".join("".join(c for c in text.lower() if c not in string.punctuation).split())


def _klue(text):
    text = re.sub("[\\'\\\"《》<>〈〉]\\(\\)\\‘\\’", " ", text.lower())
    return " ".join("".join(c for c in text if c not in string.punctuation).split())


def _longest(one, other):
    return max(
        (j - i for i in range(len(one)) for j in range(i + 1, len(one) + 1) if one[i:j] in other),
        default=0,
    )


def _rouge_w(answer, true):
    answer, true = _klue(answer), _klue(true)
    if true == "":
        return float(answer == true)
    size = _longest(answer, true)
    if size == 0:
        return 0.0
    precision, recall = size / len(answer), size / len(true)
    return 2 * precision * recall / (precision + recall)


REFERENCES = {
    "words_f1": lambda a, b: _shared(_normal(a).split(), _normal(b).split(), None),
    "words_or_nothing_f1": lambda a, b: _shared(_normal(a).split(), _normal(b).split(), 1),
    "characters_f1": lambda a, b: _shared(
        [*"".join(_korean(a).split())], [*"".join(_korean(b).split())], None
    ),
    "longest_piece_f1": _rouge_w,
}


@pytest.mark.parametrize("name", REFERENCES)
def test_overlaps_are_those_of_the_scripts(name):
    found = set()
    for number in range(1000):
        answer, known = _texts(number)
        for text in known:
            value = getattr(spans, name)(answer, text)
            assert value == pytest.approx(REFERENCES[name](answer, text), abs=1e-12), (answer, text)
            found.add(value)
    assert {0.0, 1.0} < found


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (spans.normalise_english, _normal),
        (spans.normalise_korquad, _korean),
        (spans.normalise_klue, _klue),
    ],
)
def test_normalised_as_the_scripts_do(ours, theirs):
    texts = [text for number in range(1000) for text in [_texts(number)[0], *_texts(number)[1]]]
    assert [ours(text) for text in texts] == [theirs(text) for text in texts]


def test_answers_of_articles_only():
    """SQuAD 1.1 finds two empty answers the same but without overlap; SQuAD 2.0 gives both."""
    same = spans.exact(spans.normalise_english)
    assert same("the", "a") == 1.0 and spans.words_f1("the", "a") == 0.0
    assert spans.words_or_nothing_f1("the", "a") == 1.0
    assert spans.normalise_klue("'《()‘’값") == "값" and spans.normalise_klue("‘값’") == "‘값’"
    assert spans.normalise_korquad("‘값’") == "값"


def _squad2(number):
    draw = Random(60_000 + number)
    answers, examples = [], []
    for at in range(draw.randint(1, 12)):
        answer, known = _texts(1000 * number + at)
        impossible = draw.random() < draw.choice((0.0, 0.5))
        doubt = round(draw.uniform(-2, 2), draw.choice((0, 3)))
        answers.append({"text": answer, "no_answer": doubt})
        texts = [] if impossible else [{"text": text, "start": 0} for text in known]
        example = {"id": str(at), "question": "?", "context": "", "answers": texts}
        examples.append({**example, "impossible": impossible})
    return answers, examples


def _squad2_script(answers, examples, threshold=0.0):
    """The values of the published script, of dicts by id as it has them."""
    has = {e["id"]: bool(e["answers"]) for e in examples}
    preds = {e["id"]: a["text"] for a, e in zip(answers, examples, strict=True)}
    doubt = {e["id"]: a["no_answer"] for a, e in zip(answers, examples, strict=True)}
    values = {}
    for name, metric in (
        ("exact", lambda a, b: int(_normal(a) == _normal(b))),
        ("f1", REFERENCES["words_or_nothing_f1"]),
    ):
        raw = {}
        for example in examples:
            gold = [a["text"] for a in example["answers"] if _normal(a["text"])] or [""]
            raw[example["id"]] = max(metric(preds[example["id"]], text) for text in gold)
        final = {i: (float(not has[i]) if doubt[i] > threshold else s) for i, s in raw.items()}
        values[name] = 100.0 * sum(final.values()) / len(final)
        for part, kept in (("HasAns", True), ("NoAns", False)):
            some = [s for i, s in final.items() if has[i] is kept]
            if some:
                values[f"{part}_{name}"] = 100.0 * sum(some) / len(some)
        current = best = sum(not h for h in has.values())
        at = 0.0
        for i in sorted(doubt, key=doubt.__getitem__):
            current += raw[i] if has[i] else (-1 if preds[i] else 0)
            if current > best:
                best, at = current, doubt[i]
        values |= {f"best_{name}": 100.0 * best / len(raw), f"best_{name}_thresh": at}
    return values


def test_squad2_values_are_the_scripts():
    measure = find("squad/v2").metrics
    thresholds = set()
    for number in range(1000):
        case = _squad2(number)
        expected = _squad2_script(*case)
        assert measure(*case) == pytest.approx(expected, abs=1e-9)
        thresholds.add(expected["best_f1_thresh"])
    assert len(thresholds) > 20


@pytest.mark.parametrize("name", ["squad/v1", "squad/korquad", "klue/mrc"])
def test_span_tasks_take_the_best_of_the_known_answers(name):
    reference = {
        "squad/v1": (lambda a, b: _normal(a) == _normal(b), REFERENCES["words_f1"]),
        "squad/korquad": (lambda a, b: _korean(a) == _korean(b), REFERENCES["characters_f1"]),
        "klue/mrc": (lambda a, b: _klue(a) == _klue(b), _rouge_w),
    }[name]
    for number in range(100):
        answers, examples = [], []
        for at in range(10):
            answer, known = _texts(1000 * number + at)
            answers.append({"text": answer, "no_answer": 0.0})
            texts = [{"text": text, "start": 0} for text in known]
            examples.append({"id": str(at), "answers": texts, "impossible": False})
        expected = [
            10.0 * sum(max(metric(a["text"], t["text"]) for t in e["answers"])
                       for a, e in zip(answers, examples, strict=True))
            for metric in reference
        ]  # fmt: skip
        found = find(name).metrics(answers, examples)
        assert list(found.values()) == pytest.approx(expected, abs=1e-9)


def test_an_answer_of_klue_mrc_is_none_above_zero():
    example = {"id": "1", "answers": [], "impossible": True}
    measure = find("klue/mrc").metrics
    assert measure([{"text": "값", "no_answer": 0.1}], [example])["exact"] == 100.0
    assert measure([{"text": "값", "no_answer": 0.0}], [example])["rouge_w"] == 0.0


# States and groups.


def test_states_are_counted_turn_by_turn():
    """The published arithmetic: a turn counts once; one without slots is right if left empty."""
    draw = Random(7)
    answers, labels = [], []
    for _ in range(1000):
        label = {slot: draw.choice("xy") for slot in "abcd" if draw.random() < 0.5}
        answer = {s: v if draw.random() < 0.7 else "z" for s, v in label.items()}
        answer |= {"e": "x"} if draw.random() < 0.2 else {}
        answers.append(answer)
        labels.append(label)
    right = each = 0
    for answer, label in zip(answers, labels, strict=True):
        given = [f"{s}-{v}" for s, v in answer.items()]
        gold = [f"{s}-{v}" for s, v in label.items()]
        right += set(given) == set(gold)
        if gold:
            hits = sum(g in given for g in gold)
            wrong, missed = sum(p not in gold for p in given), len(gold) - hits
            precision = hits / (hits + wrong) if hits + wrong else 0
            recall = hits / (hits + missed)
            each += 2 * precision * recall / (precision + recall) if precision + recall else 0
        else:
            each += not given
    found = structures.state_scores(answers, labels)
    assert found["joint_goal_accuracy"] == right / 1000
    assert found["slot_f1"] == pytest.approx(each / 1000)


def test_multirc_counts_answers_and_whole_questions():
    examples = [
        {"id": f"0-{question}-{at}", "label": label, "group": f"0-{question}"}
        for question, labels in enumerate([(1, 0), (1, 1), (0, 0)])
        for at, label in enumerate(labels)
    ]
    found = find("superglue/multirc").metrics([1, 0, 1, 0, 0, 1], examples)
    assert found["f1_a"] == pytest.approx(100 * 2 * 2 / (3 + 3))
    assert found["exact"] == pytest.approx(100 / 3)


def test_relation_metrics_leave_out_no_relation():
    task = find("klue/re")
    labels = [0, 0, 1, 2, 2]
    examples = [{"id": str(i), "label": label} for i, label in enumerate(labels)]
    given = [0, 1, 1, 2, 0]
    assert task.metrics(given, examples) == {"micro_f1": pytest.approx(100 * 2 * 2 / (3 + 3))}
    rows = np.full((5, 30), 0.001)
    rows[np.arange(5), given] = 0.9
    found = task.metrics(rows.tolist(), examples)
    assert found["micro_f1"] == pytest.approx(100 * 2 / 3)
    # 27 relations are nowhere and count half each, as scikit-learn's curve has it.
    areas = [metrics.area_under_precision_recall(rows[:, c], np.equal(labels, c)) for c in range(3)]
    assert found["auprc"] == pytest.approx(100 * (sum(areas) + 27 * 0.5) / 30)


def test_tags_of_spaces_are_left_out_of_klue_ner():
    labels = find("klue/ner").form.labels
    b, i, o = labels.index("B-PS"), labels.index("I-PS"), labels.index("O")
    example = {"id": "1", "words": list("가 나다"), "tags": [b, i, i, o]}
    found = find("klue/ner").metrics([[b, o, i, o]], [example])
    assert found == {"entity_macro_f1": 100.0, "character_macro_f1": pytest.approx(100.0)}


@pytest.mark.parametrize(
    "name, answers, examples, said",
    [
        ("glue/sst2", [1], [{"id": "4", "label": None}], "'4' has no label"),
        ("glue/sst2", [1, 0], [{"id": "4", "label": 1}], "2 answers for 1 examples"),
        ("glue/sst2", [], [], "no examples to measure"),
        ("klue/ner", [[0]], [{"id": "4", "words": "ab", "tags": [0, 0]}], "1 tags for 2 words"),
        ("squad/v1", [{"text": ""}], [{"id": "4", "answers": [], "impossible": False}], "'4'"),
        (
            "klue/dp",
            [([0], [0, 1])],
            [{"id": "4", "words": ["a"], "heads": [0], "relations": [0]}],
            "not one head and relation per word",
        ),
    ],
)
def test_what_cannot_be_measured(name, answers, examples, said):
    with pytest.raises(DataError, match=re.escape(said)):
        find(name).metrics(answers, examples)


def test_probabilities_answer_as_their_largest():
    examples = [{"id": str(i), "label": i % 2} for i in range(4)]
    rows = [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.1, 0.9]]
    assert find("glue/sst2").metrics(rows, examples) == {"accuracy": 75.0}
    assert math.isclose(find("glue/cola").metrics([0, 1, 0, 1], examples)["matthews"], 100.0)
