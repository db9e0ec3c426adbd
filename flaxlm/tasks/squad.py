"""Questions whose answer is a piece of a text: SQuAD 1.1 (Rajpurkar et al., 2016), SQuAD 2.0
(Rajpurkar et al., 2018), KorQuAD 1.0 (Lim et al., 2019). All three have the same JSON.

The result file is the script's: {id: text}; for SQuAD 2.0 a second one has how sure it is that
there is no answer. A question without an answer in a file of 1.1, or a file with `is_impossible`
questions read as 1.1, is an error: the metrics of 1.1 do not know such questions.
"""

from pathlib import Path
from typing import Any

from flaxlm.errors import DataError
from flaxlm.tasks import files
from flaxlm.tasks.base import Example, Spans, Task
from flaxlm.tasks.measures import span_metrics, squad2_metrics, write_spans, write_spans_and_doubt
from flaxlm.tasks.spans import (
    characters_f1,
    exact,
    normalise_english,
    normalise_korquad,
    words_f1,
)


def questions(path: Path, *, no_answer: bool, id_name: str = "id") -> list[Example]:
    """The examples of a file in SQuAD's JSON.

    Args:
      no_answer: questions may have no answer.
      id_name: of a question's id (KLUE calls it guid).

    Raises:
      DataError: with the id of the question.
    """
    whole = files.json_file(path)
    if not isinstance(whole, dict):
        raise DataError(f"{path}: a JSON {type(whole).__name__}, expected an object with 'data'")
    examples = []
    for article in files.field(whole, "data", str(path), list):
        for paragraph in files.field(article, "paragraphs", str(path), list):
            context = files.field(paragraph, "context", str(path))
            for qa in files.field(paragraph, "qas", str(path), list):
                identity = str(files.field(qa, id_name, str(path), (str, int)))
                place = f"{path}: question {identity}"
                found = _question(qa, identity, context, place)
                if found["impossible"] and not no_answer:
                    raise DataError(f"{place} is impossible; use a task that knows such questions")
                examples.append(found)
    return examples


def _question(qa: dict[str, Any], identity: str, context: str, place: str) -> Example:
    impossible = "is_impossible" in qa and files.field(qa, "is_impossible", place, bool)
    known = files.field(qa, "answers", place, list) if "answers" in qa and not impossible else []
    answers = []
    for answer in known:
        start = files.field(answer, "answer_start", place, int)
        answers.append({"text": files.field(answer, "text", place), "start": start})
        files.check_span(context, answers[-1], place)
    return {
        "id": identity,
        "question": files.field(qa, "question", place),
        "context": context,
        "answers": answers,
        "impossible": impossible,
    }


def convert(record: dict[str, Any], place: str) -> Example:
    """An example of a record of TFDS."""
    pairs = zip(record["answers"]["text"], record["answers"]["answer_start"], strict=True)
    answers = [{"text": text, "start": start} for text, start in pairs]
    for answer in answers:
        files.check_span(record["context"], answer, place)
    return {
        "id": record["id"],
        "question": record["question"],
        "context": record["context"],
        "answers": answers,
        "impossible": "is_impossible" in record and record["is_impossible"],
    }


def _task(key: str, stem: str, metrics, main: str, write, *, no_answer=False, tfds="") -> Task:
    name = f"squad/{key}"
    train, dev = stem.format("train"), stem.format("dev")
    read = files.reader(
        name,
        files={"train": (f"{train}.json", f"{train}*.json"),
               "validation": (f"{dev}.json", f"{dev}*.json", "xquad.*.json")[: 2 + (key == "v1")]},
        parse=lambda path, split: questions(path, no_answer=no_answer),
        tfds=tfds,
        convert=convert if tfds else None,
    )  # fmt: skip
    return Task(name, Spans(no_answer), read, metrics, main, write)


_ENGLISH = exact(normalise_english)
_KOREAN = span_metrics(exact(normalise_korquad), characters_f1)

TASKS = {
    "v1": _task("v1", "{}-v1.1", span_metrics(_ENGLISH, words_f1), "f1", write_spans(),
                tfds="squad/v1.1"),
    "v2": _task("v2", "{}-v2.0", squad2_metrics(), "best_f1", write_spans_and_doubt,
                no_answer=True, tfds="squad/v2.0"),
    "korquad": _task("korquad", "KorQuAD_v1.0_{}", _KOREAN, "f1", write_spans()),
}  # fmt: skip
