"""Metrics of classes and scores: plain arrays in, a number out.

Each is the arithmetic of scikit-learn or SciPy, on the scale of these (0 to 1, -1 to 1); tasks
multiply by 100, as papers print it. A share of nothing is 0.0, and so is the correlation with a
constant, where SciPy has NaN: a model that always answers the same has learned nothing.
"""

import math
from collections.abc import Sequence

import numpy as np


def accuracy(answers: Sequence[int], labels: Sequence[int]) -> float:
    """Share of answers that are the label."""
    return ratio(int((np.asarray(answers) == np.asarray(labels)).sum()), len(labels))


def ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def counts(answers: Sequence[int], labels: Sequence[int], of: Sequence[int]) -> np.ndarray:
    """[len(of), 3] for each class in `of`: hits, times answered, times it is the label."""
    answers, labels = np.asarray(answers), np.asarray(labels)
    hits = [[((answers == c) & (labels == c)).sum(), (answers == c).sum(), (labels == c).sum()]
            for c in of]  # fmt: skip
    return np.array(hits, np.int64).reshape(-1, 3)


def f1(hits: int, answered: int, there: int, empty: float = 0.0) -> float:
    """Harmonic mean of precision and recall; `empty` where there is nothing, answered or not."""
    return 2 * hits / (answered + there) if answered + there else empty


def binary_f1(answers: Sequence[int], labels: Sequence[int], positive: int = 1) -> float:
    """F1 of one class (GLUE's MRPC and QQP)."""
    return f1(*counts(answers, labels, [positive])[0].tolist())


def macro_f1(
    answers: Sequence[int],
    labels: Sequence[int],
    of: Sequence[int] | None = None,
    empty: float = 0.0,
) -> float:
    """Mean of the F1 of each class.

    Args:
      of: the classes; all that are answered or there if None.
      empty: the F1 of a class of which there is neither.
    """
    classes = np.union1d(answers, labels).astype(int).tolist() if of is None else of
    each = [f1(*row, empty=empty) for row in counts(answers, labels, classes).tolist()]
    return ratio(sum(each), len(each))


def micro_f1(answers: Sequence[int], labels: Sequence[int], of: Sequence[int]) -> float:
    """F1 of the hits of the classes `of` taken together."""
    return f1(*counts(answers, labels, of).sum(axis=0).tolist())


def matthews(answers: Sequence[int], labels: Sequence[int]) -> float:
    """Matthews' correlation coefficient, of any number of classes (Gorodkin, 2004)."""
    classes, coded = np.unique(np.concatenate([answers, labels]), return_inverse=True)
    total = len(labels)
    given, true = coded[:total], coded[total:]
    hits = int((given == true).sum())
    given_K = np.bincount(given, minlength=len(classes)).tolist()  # Python's integers: no overflow
    true_K = np.bincount(true, minlength=len(classes)).tolist()
    together = hits * total - sum(a * b for a, b in zip(given_K, true_K, strict=True))
    spread = (total**2 - sum(a * a for a in given_K)) * (total**2 - sum(b * b for b in true_K))
    return together / float(spread) ** 0.5 if spread else 0.0


def pearson(answers: Sequence[float], labels: Sequence[float]) -> float:
    """Pearson's r."""
    x, y = np.asarray(answers, np.float64), np.asarray(labels, np.float64)
    if len(x) < 2 or (x == x[0]).all() or (y == y[0]).all():
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)), -1.0, 1.0))


def spearman(answers: Sequence[float], labels: Sequence[float]) -> float:
    """Spearman's rho: Pearson's r of the ranks, ties sharing the mean of theirs."""
    return pearson(_ranks(answers), _ranks(labels))


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[place]


def area_under_precision_recall(scores: Sequence[float], there: Sequence[bool]) -> float:
    """Area under the curve of precision over recall by trapezoids, a point per distinct score.

    Of a class that is nowhere, recall is 1 and precision 0 at every threshold, as scikit-learn has
    it: the area is that of the last trapezoid, 0.5.
    """
    scores, there = np.asarray(scores, np.float64), np.asarray(there, bool)
    order = np.argsort(-scores, kind="stable")
    scores, there = scores[order], there[order]
    ends = np.append(np.nonzero(np.diff(scores))[0], len(scores) - 1)
    hits = np.cumsum(there)[ends]
    precision = np.append(1.0, hits / (ends + 1))
    recall = np.append(0.0, hits / hits[-1] if hits[-1] else np.ones(len(hits)))
    return float(np.trapezoid(precision, recall))


def grouped_exact(answers: Sequence[int], labels: Sequence[int], groups: Sequence[str]) -> float:
    """Share of the groups of which every answer is right (MultiRC's exact match of a question)."""
    right = dict.fromkeys(groups, True)
    for answer, label, group in zip(answers, labels, groups, strict=True):
        right[group] &= bool(answer == label)
    return ratio(sum(right.values()), len(right))


def mean(values: Sequence[float]) -> float:
    """Mean of numbers, 0.0 of none."""
    return ratio(math.fsum(values), len(values))
