"""Tasks of a few examples each, and files of one that the reader finds: for tests of what learns
them.
"""

from pathlib import Path

import numpy as np

from flaxlm.data.examples import TaskExamples
from flaxlm.tasks.base import Task

GOOD = ("good", "fine", "great", "lovely")
BAD = ("bad", "poor", "awful", "dull")


def examples(form, some, metrics=None) -> TaskExamples:
    """A set of examples of a task that no folder has."""
    return TaskExamples(Task("test/one", form, None, metrics, "accuracy", None), some)


def polarity_files(folder: Path, count: int = 64) -> str:
    """The folder's uri as a source, after files of so many sentences of either kind were written:
    one word says which it is.
    """
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    fill = "the a film is and of it story with this one for scene".split()
    for stem, words in (("pos", GOOD), ("neg", BAD)):
        lines = []
        for _ in range(count):
            sentence = random.choice(fill, random.integers(3, 9)).tolist()
            sentence.insert(int(random.integers(len(sentence))), str(random.choice(words)))
            lines.append(" ".join(sentence))
        (folder / f"rt-polarity.{stem}").write_text("\n".join(lines) + "\n")
    return f"task:sentences/polarity@{folder}"
