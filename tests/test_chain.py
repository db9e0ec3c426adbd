"""Chains of thought: answers out of texts, votes, the published files."""

import gzip
import json
from types import SimpleNamespace

import pytest

from flaxlm.decode import Settings
from flaxlm.errors import DataError
from flaxlm.prompts import chain
from tests.vocabs import sample_data


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("He has 3 + 2 = 5. The answer is 5.", "5"),
        ("the answer is 4. No, the answer is 1,234.50 dollars", "1234.5"),
        ("The answer is $18.", "18"),
        ("steps\n#### -7\nmore", "-7"),
        ("#### 1,000", "1000"),
        ("So the answer is (C) blue.", "(C)"),
        ("So the answer is: valid.", "valid"),
        ("The answer is no", "no"),
        ("I do not know", None),
        ("The answer is .", None),
        ("", None),
    ],
)
def test_the_answer_of_a_chain(text, answer):
    assert chain.final(text) == answer


def test_most_chains_decide():
    assert chain.voted(["2", None, "3", "3", "2", "3"]) == "3"
    assert chain.voted(["2", "3", "3", "2"]) == "2"
    assert chain.voted([None, None]) is None


class Fake:
    """A model that says what it is told to."""

    def __init__(self, texts):
        self.texts, self.asked = texts, []

    def generate(self, prompts, settings, *, seed, rows):
        self.asked.append((prompts, settings, seed))
        return [SimpleNamespace(text=text) for text in self.texts]


def test_a_problem_is_asked_several_times():
    problems = [
        chain.Problem("one and one?", "2"),
        chain.Problem("two and two?", "4", "2 + 2 = 4."),
    ]
    lm = Fake([
        " 1 + 1 = 2. The answer is 2.\n\nQ: next?\nA: The answer is 9.", " The answer is 3.",
        " The answer is 2", " The answer is 5.", " The answer is 4.", " hm",
    ])  # fmt: skip
    found = chain.solve(lm, problems, examples=problems[1].solved, samples=3, seed=7)
    assert [one.answers for one in found] == [("2", "3", "2"), ("5", "4", None)]
    assert [one.answer for one in found] == ["2", "5"]
    assert found[0].chains[0] == "1 + 1 = 2. The answer is 2."
    ((prompts, settings, seed),) = lm.asked
    start = "Q: two and two?\nA: 2 + 2 = 4. The answer is 4.\n\n"
    assert prompts[2] == f"{start}Q: one and one?\nA:" and len(prompts) == 6
    assert settings == chain.SETTINGS and seed == 7
    assert chain.accuracy(found, problems) == {"vote": 50.0, "chain": 50.0}
    lm = Fake(["The answer is 2."])
    assert chain.solve(lm, problems[:1])[0].answer == "2"
    assert lm.asked[0][:2] == (["Q: one and one?\nA:"], Settings(max_new_tokens=128))


def test_files_are_read(tmp_path):
    path = tmp_path / "some.jsonl.gz"
    row = {"question": "How many?", "answer": "3 + 2 = <<3+2=5>>5\nSo five.\n#### 1,005"}
    path.write_bytes(gzip.compress(json.dumps(row).encode()))
    (one,) = chain.read(path)
    assert one == chain.Problem("How many?", "1005", "3 + 2 = 5 So five.")
    assert one.solved == "Q: How many?\nA: 3 + 2 = 5 So five. The answer is 1005."
    path = tmp_path / "some.json"
    path.write_text(json.dumps({"canary": "x", "examples": [{"input": "a?", "target": "(B)"}]}))
    assert chain.read(path) == [chain.Problem("a?", "(B)")]
    path.write_text("[]")
    with pytest.raises(DataError, match="expected an object with 'examples'"):
        chain.read(path)
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question": "a", "answer": "b"}\n')
    with pytest.raises(DataError, match="has no '#### NUMBER' at its end"):
        chain.read(path)
    path = tmp_path / "prompt.txt"
    path.write_text("canary\n-----\nTask.\n\nQ: a\nA: So the answer is b.\n")
    assert chain.read_prompt(path) == "Task.\n\nQ: a\nA: So the answer is b."


def test_every_published_solution_comes_to_its_answer():
    problems = chain.read(sample_data("en_gsm8k", "train_head2500.jsonl.gz"))
    assert len(problems) == 2500
    assert all(chain.final(problem.solved) == problem.answer for problem in problems)
