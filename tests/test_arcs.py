"""Dependency arcs: literal sentences in, literal slots out; scores, decoding and a whole run."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxlm import evaluate, lm
from flaxlm.batch import check_features
from flaxlm.convert import families
from flaxlm.data.encoded import ExampleRows
from flaxlm.data.spec import Data, Source, Vocabulary
from flaxlm.data.wordpiece import WordPieceVocab
from flaxlm.errors import ConfigError, DataError
from flaxlm.experiment import Experiment, Loaded, Run
from flaxlm.models import bert
from flaxlm.nn.compute import Compute
from flaxlm.nn.parser import Biaffine
from flaxlm.objectives.arcs import DependencyArcs
from flaxlm.objectives.texts import Texts
from flaxlm.optim import AdamW, Constant
from flaxlm.overrides import to_json
from flaxlm.rebuild import rebuild
from flaxlm.tasks.base import Arcs, find
from flaxlm.tasks.klue_labels import ARCS, TAGS
from flaxlm.train import train
from tests import encoders, runs

LETTERS = [f"{mark}{c}" for mark in ("", "##") for c in "abcdefgh"]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]
VOCAB = WordPieceVocab(PIECES)
FORM = Arcs(("X", "Y", "Z"), ("N", "V"))
SENTENCE = {"id": "0", "words": ["ab", "c", "def"], "pos": ["N", "V+N", "N+V"],
            "heads": [3, 1, 0], "relations": [1, 2, 0]}  # fmt: skip
SIZE = bert.Size(1, 16, 32, 2, vocab=128, length=32)


def parser(**changes) -> bert.Parser:
    numbers = {"classes": 3, "tags": 2, "tag_width": 4, "hidden": 8, "arc_width": 8,
               "relation_width": 4}  # fmt: skip
    return bert.Parser(bert.Body(SIZE, Compute(scan=False)), **numbers | changes)


def features(objective, examples, length=12) -> dict:
    encoded = objective.encode(examples, FORM, VOCAB, length)
    place = np.arange(len(encoded))
    return ExampleRows(encoded, place, index=place, pad=0).features


def test_words_stand_in_slots_behind_the_root():
    found = features(DependencyArcs(relations=3, words=4), [SENTENCE, SENTENCE | {"heads": None}])
    assert {name: found[name][0].tolist() for name in found if found[name].shape[1] == 5} == {
        "word_starts": [0, 1, 3, 4, 0],
        "word_ends": [0, 2, 3, 6, 0],
        "words": [1, 1, 1, 1, 0],
        "word_tags": [2, 0, 0, 1, 2],
        "heads": [0, 3, 1, 0, 0],
        "relations": [0, 1, 2, 0, 0],
        "word_weights": [0, 1, 1, 1, 0],
    }
    assert found["words"][1].sum() == 4 and found["word_weights"][1].sum() == 0
    check_features(found, vocab_size=len(PIECES))
    last = DependencyArcs(relations=3, words=4, texts=Texts("A sep cls:2", "A sep B:1 sep:1 cls:2"))
    assert features(last, [SENTENCE])["word_starts"][0].tolist() == [7, 0, 2, 3, 0]
    blank = Vocabulary(size=50, kind="wordpiece").blank()
    traced = last.prepare(last.blank(12, blank), None, blank)
    assert {n: (x.shape[1:], x.dtype) for n, x in traced.items()} == {
        n: (x.shape[1:], x.dtype) for n, x in found.items()
    }
    shown = DependencyArcs(relations=3, words=4).show(found, VOCAB)
    assert shown[0].target == "3:1 1:2 0:0"


def test_scores_of_pairs_by_hand():
    """2 words of width 2, 2 outputs, computed pair by pair."""
    random = np.random.default_rng(0)
    words, heads = random.normal(size=(2, 1, 3, 2))
    params = {
        "pairs": random.normal(size=(2, 2, 2)),
        "words": random.normal(size=(2, 2)),
        "heads": random.normal(size=(2, 2)),
        "bias": np.array([0.5, -2.0]),
    }
    found = Biaffine(2).apply({"params": params}, jnp.array(words), jnp.array(heads))
    assert found.shape == (1, 3, 3, 2)
    for i, j, o in itertools.product(range(3), range(3), range(2)):
        x, y = words[0, i], heads[0, j]
        expected = params["bias"][o]
        for a in range(2):
            expected += x[a] * params["words"][a, o] + y[a] * params["heads"][a, o]
            expected += sum(x[a] * params["pairs"][o, a, b] * y[b] for b in range(2))
        assert found[0, i, j, o] == pytest.approx(expected, abs=1e-5)


def test_what_a_sentence_scores_does_not_depend_on_the_room_it_has():
    model = parser()
    short = features(DependencyArcs(relations=3, words=3), [SENTENCE], 9)
    long = features(DependencyArcs(relations=3, words=6), [SENTENCE], 14)
    params, axes = encoders.init(model, short)
    assert axes["arcs/pairs"] == ("types", "embed", "width")
    apply = jax.jit(lambda batch: model.apply({"params": params}, batch, train=False))
    found, again = apply(short), apply(long)
    assert {name: (x.shape, x.dtype.name) for name, x in again.items()} == {
        "arc_logits": ((1, 7, 7), "float32"), "relation_logits": ((1, 7, 7, 3), "float32"),
    }  # fmt: skip
    for name, scores in found.items():
        assert np.abs(scores[:, 1:]).max() > 1e-3
        np.testing.assert_allclose(again[name][:, 1:4, :4], scores[:, 1:], atol=1e-5)
    noun = short | {"word_tags": np.array([[2, 0, 0, 0]], np.int32)}
    assert np.abs(apply(noun)["arc_logits"] - found["arc_logits"]).max() > 1e-4


def test_it_drops_out_in_training_alone_and_comes_back_from_its_description():
    model = parser(tags=0)
    assert not model.tables and parser().tables == {"word_tags": 3}
    batch = features(DependencyArcs(relations=3, words=3), [SENTENCE], 9)
    params, axes = encoders.init(model, batch)
    assert "tags" not in axes

    @jax.jit
    def draw(key):
        return model.apply({"params": params}, batch, train=True, rngs={"dropout": key})

    drawn = [draw(jax.random.key(n)) for n in (0, 1)]
    assert not np.array_equal(*(some["arc_logits"] for some in drawn))
    assert rebuild(json.loads(json.dumps(to_json(model))), where="here") == model
    assert lm.LM(model, params, None, None)(batch)["relation_logits"].shape == (1, 4, 4, 3)


def test_losses_and_answers_are_those_of_all_heads_tried():
    """Every word against every head and relation, one by one; sentences of 1 to 4 words."""
    objective = DependencyArcs(relations=3, words=4)
    random = np.random.default_rng(2)
    examples = [
        {"id": str(n), "words": ["a"] * n, "pos": ["N"] * n,
         "heads": random.integers(0, n + 1, n).tolist(),
         "relations": random.integers(0, 3, n).tolist()}
        for n in (1, 2, 3, 4) * 5
    ]  # fmt: skip
    batch = features(objective, examples)
    arcs = random.normal(size=(20, 5, 5)).astype(np.float32) * 3
    relations = random.normal(size=(20, 5, 5, 3)).astype(np.float32)
    logits = {"arc_logits": jnp.array(arcs), "relation_logits": jnp.array(relations)}
    outputs = objective.forward(lambda batch, rng: logits, batch, None)
    values = {name: np.asarray(term.values(outputs, batch))
              for name, term in objective.terms.items()}  # fmt: skip
    answers = jax.device_get(objective.answers(outputs, batch))
    found = objective.predictions(answers, None, examples, FORM)
    for row, (example, answer) in enumerate(zip(examples, found, strict=True)):
        count = len(example["words"])
        assert len(answer[0]) == len(answer[1]) == count
        for word in range(1, count + 1):
            right = example["heads"][word - 1], example["relations"][word - 1]
            head = max(range(count + 1), key=lambda h, w=word: arcs[row, w, h])
            kind = max(range(3), key=lambda r, w=word, h=head: relations[row, w, h, r])
            assert (answer[0][word - 1], answer[1][word - 1]) == (head, kind)
            assert values["right_head"][row, word] == (head == right[0])
            assert values["right"][row, word] == ((head, kind) == right)
            each = np.exp(arcs[row, word, : count + 1].astype(float))
            expected = -np.log(each[right[0]] / each.sum())
            assert values["head_nll"][row, word] == pytest.approx(expected, abs=1e-4)
            each = np.exp(relations[row, word, right[0]].astype(float))
            expected = -np.log(each[right[1]] / each.sum())
            assert values["relation_nll"][row, word] == pytest.approx(expected, abs=1e-4)


def test_what_does_not_fit_is_said_in_one_line():
    objective = DependencyArcs(relations=3, words=2)
    with pytest.raises(DataError, match=r"'0' has 3 words, .* 2: .* make objective\.words larger"):
        objective.encode([SENTENCE], FORM, VOCAB, 12)
    with pytest.raises(DataError, match=r"'0' has 6 tokens, .* 4: .* make data\.length larger"):
        objective.encode([SENTENCE], FORM, VOCAB, 6)
    with pytest.raises(ConfigError, match=r"objective\.relations=3: task:klue/dp has 38"):
        objective.check(find("klue/dp").form, name="klue/dp")
    with pytest.raises(ConfigError, match=r"objective\.words=0: at least 1"):
        DependencyArcs(relations=3, words=0)
    with pytest.raises(ConfigError, match=r"model\.classes=0: at least 1"):
        encoders.init(parser(classes=0))
    batch = features(DependencyArcs(relations=3, words=3), [SENTENCE])
    with pytest.raises(DataError, match=r"word_tags\[0\]: 2 is outside \[0, 2\)"):
        check_features(batch, vocab_size=50, tables=parser(tags=1).tables)
    with pytest.raises(ConfigError, match="transformers has no Parser"):
        families.families()["bert"].table(parser())


def dp_file(folder, count=64) -> str:
    """Sentences in KLUE's layout: a word of one letter hangs on the next of two, that one on the
    last, whose letters do not matter; the parts of speech say nothing.
    """
    random, lines = np.random.default_rng(3), ["## columns : INDEX\tWORD_FORM"]
    for number in range(count):
        words, heads = [], []
        for _ in range(random.integers(1, 4)):
            single = int(random.integers(0, 3))
            words += [str(random.choice(list("abcd"))) for _ in range(single)] + ["ef"]
            heads += [len(words)] * single + [0]
        heads = [head or len(words) for head in heads]
        heads[-1] = 0
        lines.append(f"## dp-{number}\t{' '.join(words)}")
        for at, (word, head) in enumerate(zip(words, heads, strict=True), 1):
            kind = "NP" if word != "ef" else "NP_AJT" if head else "VP"
            lines.append(f"{at}\t{word}\t{word}\tNNG\t{head}\t{kind}")
        lines.append("")
    folder.mkdir(exist_ok=True)
    (folder / "klue-dp-v1.1_train.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"task:klue/dp@{folder}"


def test_it_is_learned_and_answered_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXLM_CACHE", str(tmp_path / "cache"))
    uri = dp_file(tmp_path / "files")
    (tmp_path / "vocab.txt").write_text("".join(f"{piece}\n" for piece in PIECES))
    experiment = Experiment(
        model=parser(classes=len(ARCS), tags=len(TAGS), hidden=16),
        objective=DependencyArcs(relations=len(ARCS), words=9),
        data=Data(
            (Source(uri, split="train[:75%]"),),
            held_out=(Source(uri, split="train[75%:]"),),
            vocabulary=Vocabulary(
                path=str(tmp_path / "vocab.txt"), size=VOCAB.size, kind="wordpiece", sentinels=0
            ),
            packing="examples", batch=16, length=24,
        ),
        optimizer=AdamW(Constant(1e-2)),
        run=Run(steps=24, log_every=8, eval_every=24, eval_batches=0, save_every=24, keep=1,
                directory=str(tmp_path / "run"), keep_best="max las_macro_f1"),
    )  # fmt: skip
    assert train(Loaded(experiment, "arcs", tmp_path / "arcs.py", "", "")) == 0
    losses = [line["loss"] for line in runs.metrics(tmp_path / "run", "train")]
    assert losses[-1] < 0.7 * losses[0]
    last = runs.metrics(tmp_path / "run", "eval")[-1]
    assert last["uas"] == pytest.approx(100 * last["right_head"], rel=1e-5)
    assert last["las"] == pytest.approx(100 * last["right"], rel=1e-5)

    name, out = uri.removeprefix("task:"), tmp_path / "out"
    report = evaluate.evaluate(tmp_path / "run", name, "train[75%:]", out)
    assert "of 16 answered otherwise than labelled" in report
    task = find("klue/dp")
    held_out = task.read("train[75%:]", str(tmp_path / "files"))
    metrics = json.loads((out / "result.json").read_text())["metrics"]
    assert metrics["las"] == pytest.approx(last["las"], rel=1e-5)
    back = tmp_path / "back"
    back.mkdir()
    (out / "answers").rename(back / "klue-dp-v1.1_train.tsv")
    answered = task.read("train", str(back))
    assert [e["words"] for e in answered] == [e["words"] for e in held_out]
