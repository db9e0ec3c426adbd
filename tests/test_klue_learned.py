"""Relations and questions of KLUE through the objectives that learn them: rows in, metrics out."""

import json

import numpy as np
import pytest

from flaxlm.data.wordpiece import WordPieceVocab
from flaxlm.errors import DataError
from flaxlm.objectives.answer_spans import AnswerSpans
from flaxlm.objectives.classification import Classification
from flaxlm.tasks.base import find

RELATION = {
    "guid": "r1", "sentence": "가 나다를 라", "label": "per:product",
    "subject_entity": {"word": "라", "start_idx": 6, "end_idx": 6},
    "object_entity": {"word": "나다", "start_idx": 2, "end_idx": 3},
}  # fmt: skip
QUESTIONS = [
    {"guid": "q1", "question": "가?", "is_impossible": False,
     "answers": [{"text": "다 라", "answer_start": 4}]},
    {"guid": "q2", "question": "마?", "is_impossible": True, "answers": []},
]  # fmt: skip
VOCAB = WordPieceVocab(
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"<>/?가나다라마바를", "##다", "##를",
     "subj", "obj"]
)  # fmt: skip


def read(folder, key: str, file: str, content):
    (folder / file).write_text(json.dumps(content), encoding="utf-8")
    task = find(f"klue/{key}")
    return task, task.read("train", str(folder))


def test_the_marks_of_entities_are_pieces_of_the_row(tmp_path):
    other = RELATION | {"guid": "r2", "label": "no_relation"}
    task, examples = read(tmp_path, "re", "klue-re-v1.1_train.json", [RELATION, other])
    objective = Classification(classes=30)
    objective.check(task.form, name=task.name)
    encoded = objective.encode(examples, task.form, VOCAB, 24)
    pieces = [VOCAB.decode([at]) for at in encoded.tokens[0][: encoded.lengths[0, 0]].tolist()]
    assert "".join(pieces[1:-1]).replace("##", "") == "가<obj>나다</obj>를<subj>라</subj>"
    assert encoded.targets["classes"].tolist() == [27, 0]

    right = np.full((2, 30), -5.0)
    right[0, 27] = right[1, 0] = 0.0
    answers = objective.predictions({"class_log_probs": right}, encoded, examples, task.form)
    assert np.sum(answers, axis=1) == pytest.approx([1, 1])
    found = task.metrics(answers, examples)
    assert found["micro_f1"] == 100 and found["auprc"] > 0
    wrong = objective.predictions({"class_log_probs": right[::-1]}, encoded, examples, task.form)
    assert task.metrics(wrong, examples)["micro_f1"] == 0


def test_a_question_is_answered_in_the_text_or_not_at_all(tmp_path):
    text = {
        "data": [{"title": "", "paragraphs": [{"context": "가 나 다 라 마 바", "qas": QUESTIONS}]}]
    }
    task, examples = read(tmp_path, "mrc", "klue-mrc-v1.1_train.json", text)
    objective = AnswerSpans(question=4)
    encoded = objective.encode(examples, task.form, VOCAB, 16)
    assert encoded.targets["span_starts"].tolist() == [6, 0]
    assert encoded.targets["span_ends"].tolist() == [7, 0]
    logits = np.zeros((2, 16, 2))
    logits[0, 6, 0] = logits[0, 7, 1] = 5.0  # more than [CLS]
    logits[1, 0] = 5.0
    answers = objective.predictions({"span_logits": logits}, encoded, examples, task.form)
    assert [answer["text"] for answer in answers] == ["다 라", ""]
    assert task.metrics(answers, examples) == {"exact": 100, "rouge_w": 100}
    turned = objective.predictions({"span_logits": logits[::-1]}, encoded, examples, task.form)
    assert task.metrics(turned, examples) == {"exact": 0, "rouge_w": 0}


def test_an_unknown_part_of_speech_is_named_with_its_line(tmp_path):
    lines = ["## g1\t가", "1\t가\t가\tNNG+QQ\t0\tNP", ""]
    (tmp_path / "klue-dp-v1.1_train.tsv").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=r"tsv:2: label 'QQ' is none of NNG, NNP, "):
        find("klue/dp").read("train", str(tmp_path))
