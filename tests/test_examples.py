"""Examples as data: rows by number, epochs, shares of hosts, what is held out."""

import dataclasses

import numpy as np
import pytest

from flaxlm.data.batches import Batches, EvalBatches
from flaxlm.data.examples import ExampleWindows, check_tasks, open_examples, texts
from flaxlm.data.prepared import open_data
from flaxlm.data.spec import Data, Phase, Source, Vocabulary
from flaxlm.errors import ConfigError, DataError, MissingInput
from flaxlm.heldout import measures, predictions
from flaxlm.objectives.classification import Classification
from flaxlm.objectives.masked_lm import MaskedLM
from flaxlm.objectives.tagging import Tagging
from flaxlm.tasks.base import Classes
from tests import tasks
from tests.vocabs import made

OBJECTIVE = Classification(classes=2)
FORM = Classes(("negative", "positive"))


def some(count: int, *, labels=True):
    return [
        {"id": str(n), "text": f"the value {n}", "pair": None, "label": n % 2 if labels else None}
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def vocab():
    return made("wordpiece", lowercase=True)


def data(**changes) -> Data:
    sources = (Source("task:sentences/polarity"),)
    return Data(**dict(sources=sources, batch=4, length=16, packing="examples") | changes)


def batches(vocab, count=10, **changes):
    sets = changes.pop("sets", None) or [(tasks.examples(FORM, some(count)), 1.0)]
    spec = data(**{k: v for k, v in changes.items() if k not in ("seed", "rows")})
    given = {"seed": 0} | {k: v for k, v in changes.items() if k in ("seed", "rows")}
    return Batches(sets, OBJECTIVE, vocab, data=spec, **given)


def ids(vocab, features) -> list[str]:
    return [
        vocab.decode(tokens[real > 0]).split()[-2]
        for tokens, real in zip(features["tokens"], features["segments"], strict=True)
    ]


def test_an_epoch_has_every_example_once_in_an_order_of_its_own(vocab):
    found = batches(vocab)
    seen = [word for step in range(5) for word in ids(vocab, found[step])]
    assert sorted(seen[:10]) == sorted(seen[10:]) == sorted(str(n) for n in range(10))
    assert seen[:10] != seen[10:]
    other = batches(vocab, seed=1)
    assert ids(vocab, other[0]) != ids(vocab, found[0])
    assert other.fingerprint != found.fingerprint == batches(vocab).fingerprint
    assert batches(vocab, count=11).fingerprint != found.fingerprint


def test_hosts_make_their_shares_of_one_batch(vocab):
    whole = batches(vocab)[7]
    for rows in (slice(0, 2), slice(2, 4), np.array([1, 3])):
        share = batches(vocab, rows=rows)[7]
        for name, array in whole.items():
            np.testing.assert_array_equal(share[name], array[rows], err_msg=name)


def test_several_tasks_and_lengths_mix(vocab):
    sets = [
        (tasks.examples(FORM, some(10)), 3.0),
        (tasks.examples(FORM, [e | {"text": f"a set {e['id']}"} for e in some(6)]), 1.0),
    ]
    names = (Source("task:sentences/polarity"), Source("task:sentences/subjectivity"))
    found = batches(vocab, sets=sets, sources=names, phases=(Phase(2, 8, 8),))
    assert found[0]["tokens"].shape == (4, 16) and found[2]["tokens"].shape == (8, 8)
    words = [vocab.decode(row) for step in range(100) for row in found[step]["tokens"]]
    share = np.mean(["set" in text for text in words])
    assert 0.15 < share < 0.35
    uri, documents = found.origins(0)[0]
    assert uri in [name.uri for name in names] and len(documents) == 1


def test_an_evaluation_answers_every_example_in_its_place(vocab):
    sets = [(tasks.examples(FORM, some(n), _share), 1.0) for n in (5, 6)]
    sets[1] = (
        dataclasses.replace(sets[1][0], task=dataclasses.replace(sets[1][0].task, name="test/two")),
        1.0,
    )
    names = (Source("task:a/b"), Source("task:c/d"))
    held_out = EvalBatches(sets, OBJECTIVE, vocab, data=data(sources=names), count=0)
    assert len(held_out) == 3
    weights = np.concatenate([features["label_weights"] for features in held_out])
    assert weights.sum() == 11 and weights[-1] == 0
    answers = []
    for features in held_out:
        right = features["classes"]
        answers.append({"class_log_probs": -np.stack([right, 1 - right], 1).astype(float)})
    found = predictions(held_out, answers)
    classes = [[int(np.argmax(shares)) for shares in made] for _, made in found]
    assert classes == [[0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1]]
    assert measures(found) == {"test/one:accuracy": 1.0, "test/two:accuracy": 1.0}
    assert measures(found[:1]) == {"accuracy": 1.0}
    unknown = dataclasses.replace(sets[0][0], examples=some(5, labels=False))
    windows = ExampleWindows(unknown, OBJECTIVE, vocab, length=16, name="x")
    assert measures([(windows, [0] * 5)]) == {}


def _share(answers, examples):
    """Of answers that are probabilities."""
    right = [np.argmax(a) == e["label"] for a, e in zip(answers, examples, strict=True)]
    return {"accuracy": np.mean(right)}


def test_a_share_is_held_out_whatever_the_seed(tmp_path):
    uri = tasks.polarity_files(tmp_path / "files", count=50)
    source = Source(uri)
    (train, _), (held_out, _) = (
        part[0] for part in open_examples(data(sources=(source,), held_out_share=0.2))
    )
    names = [[example["id"] for example in part.examples] for part in (train, held_out)]
    assert len(names[1]) == 20 and not set(names[0]) & set(names[1])
    assert len(names[0]) + len(names[1]) == 100
    assert len(list(texts(source))) == 100


def test_a_vocabulary_is_made_of_the_texts_of_a_task(tmp_path):
    uri = tasks.polarity_files(tmp_path / "files")
    spec = Vocabulary(size=80, kind="wordpiece", sentinels=0, lowercase=True)
    found = open_data(data(sources=(Source(uri),), vocabulary=spec), cache=tmp_path / "cache")
    assert found.vocab.size <= 80 and found.train[0][0].task.name == "sentences/polarity"
    assert len(found.train[0][0].examples) + len(found.held_out[0][0].examples) == 128


def test_what_does_not_go_together_is_refused_in_time(tmp_path):
    with pytest.raises(ConfigError, match="packing=examples takes tasks"):
        check_tasks(OBJECTIVE, data(sources=(Source("text:x"),)))
    with pytest.raises(ConfigError, match="no task has that name"):
        check_tasks(OBJECTIVE, data(sources=(Source("task:sentences/polarty"),)))
    with pytest.raises(ConfigError, match="is of the form Classes; Tagging learns Tags"):
        check_tasks(Tagging(tags=3), data())
    with pytest.raises(MissingInput):
        open_examples(data(sources=(Source(f"task:sentences/polarity@{tmp_path}"),)))
    assert check_tasks(OBJECTIVE, data()) == {"accuracy"}
    assert check_tasks(MaskedLM(), data(packing="sentences")) == set()
    assert "examples" not in MaskedLM().packings


def test_what_has_no_label_is_not_learned(vocab, monkeypatch):
    from flaxlm.data import examples

    nothing = tasks.examples(FORM, some(4, labels=False))
    monkeypatch.setattr(examples, "_read", lambda source: nothing)
    with pytest.raises(DataError, match="have no labels"):
        open_examples(data())
    empty = tasks.examples(FORM, [])
    with pytest.raises(DataError, match="has no examples"):
        ExampleWindows(empty, OBJECTIVE, vocab, length=16, name="task:x/y")
