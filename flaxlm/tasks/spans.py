"""Metrics of answers that are pieces of a text: SQuAD 1.1 and 2.0, KorQuAD, KLUE-MRC.

All compare normalised strings; they differ in what is normalised away, in what overlap is counted
(words, characters, the longest common piece) and in what no answer is worth.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# Of the KorQuAD 1.0 script: these become spaces before punctuation goes.
_KOREAN_QUOTES = str.maketrans(dict.fromkeys("'\"《》<>〈〉()‘’", " "))
# Of KLUE's: not a set of characters, though it looks like one, but five in a row.
_KLUE_QUOTES = re.compile("['\"《》<>〈〉]\\(\\)‘’")


def normalise_english(text: str) -> str:
    """Lower case without punctuation and articles, words one space apart (SQuAD)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def normalise_korquad(text: str) -> str:
    """Lower case without quotes, brackets and punctuation, words one space apart (KorQuAD 1.0)."""
    return " ".join(text.translate(_KOREAN_QUOTES).lower().translate(_PUNCTUATION).split())


def normalise_klue(text: str) -> str:
    """Lower case without ASCII punctuation, words one space apart (KLUE-MRC)."""
    return " ".join(_KLUE_QUOTES.sub(" ", text.lower()).translate(_PUNCTUATION).split())


def overlap(answer: Sequence[str], true: Sequence[str]) -> float:
    """F1 of two bags; 0.0 where either is empty (SQuAD 1.1)."""
    same = sum((Counter(answer) & Counter(true)).values())
    if not same:
        return 0.0
    precision, recall = same / len(answer), same / len(true)
    return 2 * precision * recall / (precision + recall)


def words_f1(answer: str, true: str) -> float:
    """F1 of the words of two texts (SQuAD 1.1)."""
    return overlap(normalise_english(answer).split(), normalise_english(true).split())


def words_or_nothing_f1(answer: str, true: str) -> float:
    """F1 of the words of two texts; 1.0 where both have none (SQuAD 2.0)."""
    given, known = normalise_english(answer).split(), normalise_english(true).split()
    return overlap(given, known) if given and known else float(given == known)


def characters_f1(answer: str, true: str) -> float:
    """F1 of the characters of two texts, spaces aside (KorQuAD 1.0)."""
    return overlap(
        normalise_korquad(answer).replace(" ", ""), normalise_korquad(true).replace(" ", "")
    )


def longest_piece_f1(answer: str, true: str) -> float:
    """What KLUE-MRC calls ROUGE-W: F1 of the length of the longest common piece, in characters."""
    given, known = normalise_klue(answer), normalise_klue(true)
    if not known:
        return float(given == known)
    # Its heuristic for texts of 200 characters and more ("autojunk") is part of the metric.
    matcher = SequenceMatcher(None, given, known)
    size = matcher.find_longest_match(0, len(given), 0, len(known)).size
    if not size:
        return 0.0
    precision, recall = size / len(given), size / len(known)
    return 2 * precision * recall / (precision + recall)


def exact(normalise: Callable[[str], str]) -> Callable[[str, str], float]:
    """The metric that two texts are the same once normalised."""
    return lambda answer, true: float(normalise(answer) == normalise(true))


def best_over(metric: Callable[[str, str], float], answer: str, texts: Sequence[str]) -> float:
    """The metric against the answer that it likes best."""
    return max(metric(answer, text) for text in texts)


def best_threshold(
    scores: Sequence[float], texts: Sequence[str], no_answer: Sequence[float], has: Sequence[bool]
) -> tuple[float, float]:
    """The threshold of "no answer" at which the sum of the scores is highest (SQuAD 2.0's script).

    Walking up, one example after the other is answered with its text; an example without an answer
    is lost as soon as it is answered with any.

    Args:
      scores: of each answer's text.
      texts: the answers' texts.
      no_answer: of each answer, the higher the surer that there is none.
      has: whether the question has an answer.

    Returns:
      (mean score there, threshold: an example is answered up to and including it; 0.0 where it is
      best to answer none).
    """
    sum_now = best = sum(not h for h in has)
    threshold = 0.0
    for i in sorted(range(len(scores)), key=lambda i: no_answer[i]):
        sum_now += scores[i] if has[i] else (-1 if texts[i] else 0)
        if sum_now > best:
            best, threshold = sum_now, no_answer[i]
    return best / len(scores), threshold
