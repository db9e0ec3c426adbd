"""KLUE (Park et al., 2021): eight tasks of Korean, in the publisher's files and with the metrics of
the published baseline (KLUE-benchmark/KLUE-baseline, klue_baseline/metrics).

Files are found in FOLDER/klue-nli-v1.1/klue-nli-v1.1_dev.json or FOLDER/klue-nli-v1.1_dev.json, of
version 1.1 or 1. How some tasks become examples:

* `re`: the entities stand between <subj> </subj> and <obj> </obj>, as in the baseline.
* `ner`: "words" are characters, spaces too; metrics leave the spaces out, as the baseline does.
* `wos`: an example for each turn of the user, with all that was said up to it.

The baseline writes answers of `mrc` alone; those of `ner`, `dp` and `wos` are written in the layout
of the data, the others as lines of id and label.
"""

import numpy as np

from flaxlm.errors import DataError
from flaxlm.tasks import metrics, structures
from flaxlm.tasks.base import Arcs, Classes, Score, Spans, States, Tags, Task
from flaxlm.tasks.klue_files import (
    arcs,
    entities,
    inference,
    passages,
    reader,
    relations,
    similarity,
    topics,
    turns,
)
from flaxlm.tasks.klue_labels import ARCS, NER, NLI, RELATIONS, SLOTS, TAGS, TOPICS
from flaxlm.tasks.measures import (
    ACCURACY,
    aligned,
    answer_texts,
    class_metrics,
    indices,
    known,
    score_metrics,
    tag_pairs,
    write_json,
    write_labels,
    write_scores,
    write_spans,
    write_text,
)
from flaxlm.tasks.spans import best_over, exact, longest_piece_f1, normalise_klue

_RELATED = range(1, len(RELATIONS))  # all but no_relation
_THRESHOLD = 3.0  # from which a pair counts as similar


def _sts_f1(answers, labels) -> float:
    similar = [np.asarray(some) >= _THRESHOLD for some in (answers, labels)]
    return metrics.binary_f1(*similar)


def _re_metrics(answers, examples) -> dict[str, float]:
    aligned(answers, examples)
    given, true = indices(answers), known(examples, "label")
    values = {"micro_f1": 100 * metrics.micro_f1(given, true, _RELATED)}
    if np.ndim(answers[0]) > 0:  # the area needs probabilities
        areas = [
            metrics.area_under_precision_recall([a[c] for a in answers], np.equal(true, c))
            for c in range(len(RELATIONS))
        ]
        values["auprc"] = 100 * metrics.mean(areas)
    return values


def _ner_metrics(answers, examples) -> dict[str, float]:
    aligned(answers, examples)
    pairs = zip(*tag_pairs(answers, examples), examples, strict=True)
    given, true = [], []
    for answer, tags, example in pairs:
        at = [i for i, character in enumerate(example["words"]) if character != " "]
        given.append([answer[i] for i in at])
        true.append([tags[i] for i in at])
    named = ([[NER[t] for t in tags] for tags in some] for some in (given, true))
    return {
        "entity_macro_f1": 100 * structures.strict_entity_macro_f1(*named),
        "character_macro_f1": 100 * structures.character_macro_f1(given, true, len(NER)),
    }


def _dp_metrics(answers, examples) -> dict[str, float]:
    aligned(answers, examples)
    true = list(zip(known(examples, "heads"), known(examples, "relations"), strict=True))
    for (heads, kinds), example in zip(answers, examples, strict=True):
        if not len(heads) == len(kinds) == len(example["words"]):
            raise DataError(f"example {example['id']!r}: not one head and relation per word")
    values = structures.arc_scores(answers, true)
    return {name: 100 * value for name, value in values.items()}


def _mrc_metrics(answers, examples) -> dict[str, float]:
    aligned(answers, examples)
    final = ["" if answer["no_answer"] > 0.0 else answer["text"] for answer in answers]
    pairs = list(zip(final, map(answer_texts, examples), strict=True))
    return {
        name: 100 * metrics.mean([best_over(metric, *pair) for pair in pairs])
        for name, metric in (("exact", exact(normalise_klue)), ("rouge_w", longest_piece_f1))
    }


def _wos_metrics(answers, examples) -> dict[str, float]:
    aligned(answers, examples)
    values = structures.state_scores(answers, known(examples, "state"))
    return {name: 100 * value for name, value in values.items()}


def _write_ner(answers, examples, path) -> None:
    aligned(answers, examples)
    rows = []
    for tags, example in zip(answers, examples, strict=True):
        rows.append(f"## {example['id']}\t{''.join(example['words'])}")
        rows += [f"{c}\t{NER[t]}" for c, t in zip(example["words"], tags, strict=True)] + [""]
    write_text(path, rows)


def _write_dp(answers, examples, path) -> None:
    aligned(answers, examples)
    rows = []
    for (heads, kinds), example in zip(answers, examples, strict=True):
        rows.append(f"## {example['id']}\t{' '.join(example['words'])}")
        columns = zip(
            example["words"], example["lemmas"], example["pos"], heads, kinds, strict=True
        )
        rows += ["\t".join([str(i), *row[:3], str(row[3]), ARCS[row[4]]])
                 for i, row in enumerate(columns, 1)] + [""]  # fmt: skip
    write_text(path, rows)


def _write_wos(answers, examples, path) -> None:
    aligned(answers, examples)
    states = [sorted(f"{slot}-{value}" for slot, value in state.items()) for state in answers]
    write_json(path, dict(zip([e["id"] for e in examples], states, strict=True)))


def _task(key: str, stem: str, kind: str, form, parse, metrics, main: str, write) -> Task:
    read = reader(key, stem, kind, parse)
    return Task(f"klue/{key}", form, read, metrics, main, write)


_TOPICS = class_metrics(macro_f1=metrics.macro_f1, accuracy=metrics.accuracy)
_STS = score_metrics(pearson=metrics.pearson, f1=_sts_f1)


TASKS = {
    "ynat": _task("ynat", "ynat", "json", Classes(TOPICS), topics, _TOPICS, "macro_f1",
                  write_labels(TOPICS)),
    "sts": _task("sts", "klue-sts", "json", Score(0.0, 5.0, pair=True), similarity, _STS,
                 "pearson", write_scores),
    "nli": _task("nli", "klue-nli", "json", Classes(NLI, pair=True), inference, ACCURACY,
                 "accuracy", write_labels(NLI)),
    "ner": _task("ner", "klue-ner", "tsv", Tags(NER, joined=True), entities, _ner_metrics,
                 "entity_macro_f1", _write_ner),
    "re": _task("re", "klue-re", "json", Classes(RELATIONS), relations, _re_metrics, "micro_f1",
                write_labels(RELATIONS)),
    "dp": _task("dp", "klue-dp", "tsv", Arcs(ARCS, TAGS), arcs, _dp_metrics, "las_macro_f1",
                _write_dp),
    "mrc": _task("mrc", "klue-mrc", "json", Spans(no_answer=True), passages, _mrc_metrics,
                 "rouge_w", write_spans()),
    "wos": _task("wos", "wos", "json", States(SLOTS), turns, _wos_metrics,
                 "joint_goal_accuracy", _write_wos),
}  # fmt: skip
