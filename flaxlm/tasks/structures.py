"""Metrics of tags, dependency arcs and dialogue states.

Entities are read from tags in two ways: as seqeval does by default, forgiving as the CoNLL script
(an I- without its B- opens an entity), and strictly, as KLUE does.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from flaxlm.tasks.metrics import f1, macro_f1, mean, ratio

_OTHERS = 15  # KLUE-DP counts the relations from here on as one: they are rare


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(type, first, last) of the entities of a sentence, as the CoNLL script finds them.

    An entity goes on while tags are I- or E- of its type; another tag but O opens the next. B- and
    S- always open one, and after E- and S- nothing goes on.
    """
    found: list[tuple[str, int, int]] = []
    before, kind_before, first = "O", "", 0
    for at, tag in enumerate([*tags, "O"]):
        begin, kind = tag[0], tag[1:].split("-", maxsplit=1)[-1] or "_"
        other = before not in "O." and kind != kind_before
        if before in ("E", "S") or (before in ("B", "I") and begin in ("B", "S", "O")) or other:
            found.append((kind_before, first, at - 1))
        fresh = before in ("E", "S", "O") and begin in ("E", "I")
        if begin in ("B", "S") or fresh or (begin not in "O." and kind != kind_before):
            first = at
        before, kind_before = begin, kind
    return found


def strict_entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(type, first, last) of B- and the I- of its type that follow; any other I- is no entity."""
    found: list[tuple[str, int, int]] = []
    for at, tag in enumerate(tags):
        if tag[0] == "B":
            found.append((tag[2:], at, at))
        elif tag[0] == "I" and found and found[-1][0] == tag[2:] and found[-1][2] == at - 1:
            found[-1] = (*found[-1][:2], at)
    return found


def entity_scores(
    answers: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Precision, recall and F1 of entities over all sentences (seqeval's default)."""
    given, true = (_numbered(map(entities, some)) for some in (answers, labels))
    hits = len(given & true)
    return {
        "precision": ratio(hits, len(given)),
        "recall": ratio(hits, len(true)),
        "f1": f1(hits, len(given), len(true)),
    }


def _numbered(sentences) -> set[tuple[int, str, int, int]]:
    return {(i, *entity) for i, some in enumerate(sentences) for entity in some}


def strict_entity_macro_f1(
    answers: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]
) -> float:
    """Mean over the entity types that are answered or there of the F1 of strict entities (KLUE)."""
    given, true = (_numbered(map(strict_entities, some)) for some in (answers, labels))
    per_type = [Counter(entity[1] for entity in some) for some in (given & true, given, true)]
    each = [
        f1(*(count[kind] for count in per_type)) for kind in sorted({*per_type[1], *per_type[2]})
    ]
    return mean(each)


def character_macro_f1(
    answers: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], classes: int
) -> float:
    """Mean over all tags, O too, of the F1 of characters; of a tag that is nowhere it is 1 (KLUE).

    The published baseline also counts the O of [CLS] and [SEP], which are no characters.
    """
    flat = [np.array([t for some in tags for t in some], int) for tags in (answers, labels)]
    return macro_f1(*flat, of=range(classes), empty=1.0)


def arc_scores(
    answers: Sequence[tuple[Sequence[int], Sequence[int]]],
    labels: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> dict[str, float]:
    """Attachment scores of words over all sentences, each (heads, relations).

    uas, las: share of words with the right head; with the right head and relation. The macro ones
    are KLUE's: the mean F1 of places of heads (word 3, word 4, ...), and of relations, where a
    wrong head is a class of its own that is never right.
    """
    head, relation, true_head, true_relation = (
        np.array([value for some in part for value in some[i]], int)
        for part in (answers, labels)
        for i in (0, 1)
    )
    right = head == true_head
    relation, true_relation = np.minimum(relation, _OTHERS), np.minimum(true_relation, _OTHERS)
    return {
        "uas": ratio(int(right.sum()), len(right)),
        "las": ratio(int((right & (relation == true_relation)).sum()), len(right)),
        "uas_macro_f1": macro_f1(head, true_head),
        "las_macro_f1": macro_f1(np.where(right, relation, -1), true_relation),
    }


def state_scores(
    answers: Sequence[Mapping[str, str]], labels: Sequence[Mapping[str, str]]
) -> dict[str, float]:
    """Share of turns whose state is right as a whole, and the mean F1 of a turn's slots."""
    pairs = [(set(a.items()), set(b.items())) for a, b in zip(answers, labels, strict=True)]
    each = [f1(len(a & b), len(a), len(b), empty=1.0) for a, b in pairs]
    return {
        "joint_goal_accuracy": ratio(sum(a == b for a, b in pairs), len(pairs)),
        "slot_f1": mean(each),
    }
