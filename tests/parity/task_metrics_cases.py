"""Random answers and labels for tests/test_tasks_metrics.py, and for the script that makes its
goldens. The random numbers are Python's own, whose sequence of a seed does not change.
"""

from random import Random

COUNT = 1000
TYPES = ("PER", "LOC", "creative-work")
TAGS = ["O", *(f"{begin}-{kind}" for kind in TYPES for begin in "BI")]
RELATIONS = 20


def classes(number: int, *, most: int = 5) -> tuple[list[int], list[int], int]:
    """(answers, labels, classes): some constant, some without one of the classes."""
    draw = Random(number)
    count, size = draw.randint(2, most), draw.randint(1, 30)
    kinds = [draw.choice((1, count, count, count)) for _ in range(2)]
    answers, labels = ([draw.randrange(kind) for _ in range(size)] for kind in kinds)
    if number % 7 == 0:
        answers = list(labels)
    return answers, labels, count


def scores(number: int) -> tuple[list[float], list[float]]:
    """(answers, labels): some with ties, some constant, some of two."""
    draw = Random(10_000 + number)
    size, step = draw.choice((2, 3, 10, 40)), draw.choice((0, 1, 8))

    def some():
        values = [draw.uniform(0, 5) for _ in range(size)]
        values = [round(v * step) / step for v in values] if step else values
        return [2.5] * size if draw.random() < 0.05 else values

    answers, labels = some(), some()
    if number % 5 == 0:
        answers = [2 * label + 1e-3 * draw.random() for label in labels]
    return answers, labels


def thresholds(number: int) -> tuple[list[float], list[bool]]:
    """(scores of a class, whether it is the label): some with ties, some nowhere, some all."""
    draw = Random(20_000 + number)
    size, digits = draw.randint(1, 40), draw.choice((1, 3))
    rate = draw.choice((0.0, 0.1, 0.5, 1.0))
    values = [round(draw.random(), digits) for _ in range(size)]
    return values, [draw.random() < rate for _ in range(size)]


def tags(number: int) -> tuple[list[list[str]], list[list[str]]]:
    """(answers, labels) of a few sentences: tags in any order, so that many begin with I-."""
    draw = Random(30_000 + number)
    weights = [draw.choice((1, 8)), *[1] * (len(TAGS) - 1)]
    labels = [draw.choices(TAGS, weights, k=draw.randint(1, 12)) for _ in range(draw.randint(1, 4))]
    keep = draw.choice((0.0, 0.7, 1.0))
    answers = [[t if draw.random() < keep else draw.choice(TAGS) for t in some] for some in labels]
    if number % 11 == 0:
        answers = [["O"] * len(some) for some in labels]
    return answers, labels


def arcs(number: int) -> tuple[list, list]:
    """(answers, labels) of a few sentences, each (heads, relations)."""
    draw = Random(40_000 + number)
    answers, labels = [], []
    for _ in range(draw.randint(1, 3)):
        size = draw.randint(1, 9)
        heads = [draw.randint(0, size) for _ in range(size)]
        relations = [draw.randrange(RELATIONS) for _ in range(size)]
        keep = draw.choice((0.0, 0.6, 1.0))
        answers.append(
            (
                [h if draw.random() < keep else draw.randint(0, size) for h in heads],
                [r if draw.random() < keep else draw.randrange(RELATIONS) for r in relations],
            )
        )
        labels.append((heads, relations))
    return answers, labels
