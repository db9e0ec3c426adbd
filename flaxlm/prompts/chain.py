"""Chains of thought (Wei et al. 2022) with self-consistency (Wang et al. 2023): a model writes out
its steps, several times over, and the answer that most of its chains come to is taken.

    Q: Tom has 3 apples and buys 2. How many?
    A: He had 3 and got 2, 3 + 2 = 5. The answer is 5.

Problems are GSM8K's JSON lines ({"question", "answer": "steps\\n#### 5"}) or a file of
BIG-Bench-Hard ({"examples": [{"input", "target"}]}); its prompts are read too.
"""

import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flaxlm.decode.settings import Settings
from flaxlm.errors import DataError, MissingInput
from flaxlm.prompts.contexts import BETWEEN
from flaxlm.tasks import files

_CALCULATOR = re.compile(r"<<[^<>]*>>")  # GSM8K: 3 + 2 = <<3+2=5>>5
_SAID = re.compile(r"the answer is:?", re.IGNORECASE)
_LETTER = re.compile(r"\(([A-Z])\)")
_NUMBER = re.compile(r"[-+]?\$?\d[\d,]*(?:\.\d+)?")
# Wang et al. 2023, section 3.1, of the models whose samples are cut.
SETTINGS = Settings(sample=True, temperature=0.7, top_k=40, max_new_tokens=128)


@dataclass(frozen=True)
class Problem:
    """A question with its answer.

    Attributes:
      question, answer: texts; the answer as `final` gives it.
      steps: how to come to it; "" where that is not known.
    """

    question: str
    answer: str
    steps: str = ""

    @property
    def solved(self) -> str:
        """As an example in front of others."""
        steps = f"{self.steps} " if self.steps else ""
        return f"Q: {self.question}\nA: {steps}The answer is {self.answer}."


@dataclass(frozen=True)
class Solved:
    """What a model came to.

    Attributes:
      chains: its texts.
      answers: of each of them, None where it comes to nothing.
      answer: the commonest.
    """

    chains: tuple[str, ...]
    answers: tuple[str | None, ...]
    answer: str | None


def read(path: str | Path) -> list[Problem]:
    """The problems of a file, by its form; .jsonl and .jsonl.gz are GSM8K's, .json is of
    BIG-Bench-Hard.

    Raises:
      MissingInput, DataError: it cannot be read, or is neither.
    """
    path = _there(path)
    if ".jsonl" in path.suffixes:
        return [_of_gsm8k(row, place) for place, row in files.json_lines(path)]
    whole = files.json_file(path)
    if not isinstance(whole, dict):
        raise DataError(f"{path}: expected an object with 'examples'")
    found = []
    for row in files.field(whole, "examples", str(path), list):
        asked, target = (files.field(row, name, str(path)) for name in ("input", "target"))
        found.append(Problem(asked, _normal(target)))
    return found


def read_prompt(path: str | Path) -> str:
    """Examples in front of a question from a prompt file of BIG-Bench-Hard: what stands behind its
    line of dashes; without one, all of it.

    Raises:
      MissingInput, DataError: it cannot be read.
    """
    lines = [line for _, line in files.lines(_there(path))]
    dashes = [at for at, line in enumerate(lines) if re.fullmatch(r"-{3,}", line.strip())]
    return "\n".join(lines[dashes[0] + 1 if dashes else 0 :]).strip()


def _there(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise MissingInput(f"{path}: no such file")
    return Path(path)


def _of_gsm8k(row, place: str) -> Problem:
    steps, mark, answer = files.field(row, "answer", place).partition("####")
    if not mark or not answer.strip():
        raise DataError(f"{place}: the answer has no '#### NUMBER' at its end")
    steps = " ".join(_CALCULATOR.sub("", steps).split())
    return Problem(files.field(row, "question", place), _normal(answer), steps)


def final(text: str) -> str | None:
    """The answer that a chain comes to: behind "####" or the last "the answer is", the letter of a
    choice, a number without what is around it, or the words up to the end of the sentence.

    >>> final("3 + 2 = 5. The answer is $5.00.")
    '5'
    >>> final("So the answer is (B).")
    '(B)'
    >>> final("3 + 2 = 5\\n#### 5")
    '5'
    """
    marks = [text.rfind("####") + 4] if "####" in text else [m.end() for m in _SAID.finditer(text)]
    if not marks:
        return None
    return _normal(text[marks[-1] :].strip().partition("\n")[0]) or None


def _normal(text: str) -> str:
    text = text.strip()
    if match := _LETTER.match(text):
        return f"({match[1]})"
    if match := _NUMBER.match(text):
        number = match[0].replace(",", "").replace("$", "").lstrip("+")
        return number.rstrip("0").rstrip(".") if "." in number else number
    return text.rstrip(".").strip()


def voted(answers: Sequence[str | None]) -> str | None:
    """The commonest answer, of several the one that came first; None where there is none."""
    found = [answer for answer in answers if answer is not None]
    return Counter(found).most_common(1)[0][0] if found else None


def solve(
    lm,
    problems: Sequence[Problem],
    *,
    examples: str = "",
    samples: int = 1,
    settings: Settings | None = None,
    seed: int = 0,
    rows: int = 16,
) -> list[Solved]:
    """Let a model think about problems.

    Args:
      lm: a `flaxlm.lm.LM` that writes texts.
      examples: solved problems in front of every question, as `Problem.solved` or `read_prompt`.
      samples: chains for each problem.
      settings: of the chains; None: greedy for one, else `SETTINGS`.

    Raises:
      ConfigError: the model does not write, or a question has no room (`flaxlm.lm.LM.generate`).
    """
    if settings is None:
        drawn = samples > 1
        settings = SETTINGS if drawn else Settings(max_new_tokens=SETTINGS.max_new_tokens)
    before = [examples] if examples else []
    prompts = [BETWEEN.join([*before, f"Q: {one.question}\nA:"]) for one in problems]
    every = [prompt for prompt in prompts for _ in range(samples)]
    said = [answer.text for answer in lm.generate(every, settings, seed=seed, rows=rows)]
    chains = [text.partition("\nQ:")[0].strip() for text in said]
    found = []
    for start in range(0, len(chains), samples):
        some = tuple(chains[start : start + samples])
        answers = tuple(map(final, some))
        found.append(Solved(some, answers, voted(answers)))
    return found


def accuracy(solved: Sequence[Solved], problems: Sequence[Problem]) -> dict[str, float]:
    """In percent: "vote", problems whose commonest answer is right; "chain", chains that are."""
    pairs = list(zip(solved, problems, strict=True))
    return {
        "vote": 100 * statistics.fmean(one.answer == problem.answer for one, problem in pairs),
        "chain": 100
        * statistics.fmean(a == problem.answer for one, problem in pairs for a in one.answers),
    }
