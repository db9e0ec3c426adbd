"""Make the goldens of tests/test_tasks_metrics.py from scikit-learn, SciPy and seqeval.

    python tests/parity/make_task_metrics.py     (needs pip install scikit-learn scipy seqeval)

Made with scikit-learn 1.9.1, SciPy 1.17.1 and seqeval 1.2.2. Where these have no number (the
correlation with a constant, the mean over no entity types) the golden has NaN.
"""

import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import task_metrics_cases as cases
from scipy import stats
from seqeval import metrics as seqeval
from seqeval.scheme import IOB2
from sklearn import metrics

FILE = Path(__file__).parent / "task_metrics.npz"


def main():
    warnings.simplefilter("ignore")  # of shares of nothing
    found = defaultdict(list)
    for number in range(cases.COUNT):
        answers, labels, count = cases.classes(number)
        found["accuracy"].append(metrics.accuracy_score(labels, answers))
        found["macro_f1"].append(metrics.f1_score(labels, answers, average="macro"))
        found["matthews"].append(metrics.matthews_corrcoef(labels, answers))
        some = {"labels": list(range(1, count)), "average": "micro"}
        found["micro_f1"].append(metrics.f1_score(labels, answers, **some))
        every = {"labels": list(range(count)), "average": "macro", "zero_division": 1}
        found["macro_f1_of_every_class"].append(metrics.f1_score(labels, answers, **every))
        answers, labels, _ = cases.classes(number, most=2)
        found["binary_f1"].append(metrics.f1_score(labels, answers))
        answers, labels = cases.scores(number)
        found["pearson"].append(stats.pearsonr(answers, labels).statistic)
        found["spearman"].append(stats.spearmanr(answers, labels).statistic)
        scores, there = cases.thresholds(number)
        precision, recall, _ = metrics.precision_recall_curve(there, scores)
        found["area_under_precision_recall"].append(metrics.auc(recall, precision))
        answers, labels = cases.tags(number)
        for name in ("precision", "recall", "f1"):
            found[f"entity_{name}"].append(getattr(seqeval, f"{name}_score")(labels, answers))
        strict = {"average": "macro", "mode": "strict", "scheme": IOB2}
        found["strict_entity_macro_f1"].append(seqeval.f1_score(labels, answers, **strict))
        for name, value in arcs(*cases.arcs(number)).items():
            found[name].append(value)
    np.savez_compressed(FILE, **{name: np.array(some, float) for name, some in found.items()})


def arcs(answers, labels) -> dict[str, float]:
    """As KLUE's baseline: a relation from the sixteenth on is -3, one with a wrong head -2."""
    head, kind, true_head, true_kind = (
        np.array([x for some in part for x in some[i]])
        for part in (answers, labels)
        for i in (0, 1)
    )
    kind, true_kind = np.where(kind >= 15, -3, kind), np.where(true_kind >= 15, -3, true_kind)
    kind = np.where(head == true_head, kind, -2)
    return {
        "uas": metrics.f1_score(true_head, head, average="micro"),
        "uas_macro_f1": metrics.f1_score(true_head, head, average="macro"),
        "las": metrics.f1_score(true_kind, kind, average="micro"),
        "las_macro_f1": metrics.f1_score(true_kind, kind, average="macro"),
    }


if __name__ == "__main__":
    main()
