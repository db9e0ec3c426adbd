"""Tasks through prompts: contexts, every measure against known likelihoods, the command."""

import dataclasses
import json
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from flaxlm import evaluate as evaluation
from flaxlm import named
from flaxlm.convert.check import random_batch
from flaxlm.decode.prompts import Reader
from flaxlm.errors import ConfigError, DataError
from flaxlm.likelihood import Likelihood, of_continuations, perplexity
from flaxlm.lm import LM
from flaxlm.models import gpt2, t5
from flaxlm.objectives.templates import Asked, Template
from flaxlm.prompts import contexts, evaluate, rank
from flaxlm.prompts.__main__ import main
from flaxlm.tasks.base import Choices, Classes, Spans, Task
from flaxlm.tasks.measures import ACCURACY, span_metrics
from flaxlm.weights import write_run
from tests import tasks, vocabs

MODELS = {
    "gpt2": gpt2.Model(dataclasses.replace(gpt2.SIZES["tiny"], vocab=vocabs.SIZE, positions=48)),
    "t5": t5.Model(dataclasses.replace(t5.SIZES["tiny"], vocab=vocabs.SIZE)),
}


@pytest.fixture(scope="module")
def lms(tmp_path_factory):
    vocab = vocabs.made("unigram", sentinels=0)

    def made(model):
        def init():
            return model.init(jax.random.key(0), random_batch(model, seed=0), train=False)

        params = named.unbox(jax.jit(init)())["params"]
        scaled = jax.tree.map(lambda x: 3 * x, params)
        return LM(model, scaled, vocab, tmp_path_factory.getbasetemp())

    return {name: made(model) for name, model in MODELS.items()}


def asked(text, *candidates, right=0):
    return Asked(text, candidates[right] if candidates else None, candidates)


def test_examples_are_drawn_by_the_seed_and_never_the_question():
    pool = [asked(f"q{at}", "a", "b") for at in range(6)] + [Asked("q9", None, ("a", "b"))]
    questions = [asked("q1", "a", "b"), asked("x", "a", "b")]
    first = contexts.drawn(pool, questions, 5, seed=0)
    assert sorted(one.input for one in first[0]) == ["q0", "q2", "q3", "q4", "q5"]
    assert len({one.input for one in first[1]}) == 5
    assert first == contexts.drawn(pool, questions, 5, seed=0)
    assert first != contexts.drawn(pool, questions, 5, seed=1)
    assert contexts.drawn([], questions, 0, seed=0) == [[], []]
    with pytest.raises(DataError, match="6 examples are asked for; of those to draw from 5 are"):
        contexts.drawn(pool, questions, 6, seed=0)


def test_a_context_is_cut_by_whole_examples(lms):
    reader = Reader.of(MODELS["gpt2"], lms["gpt2"].vocab)
    shots = [asked(f"the value of number {at}", "the function", "a list") for at in range(9)]
    one = asked("the value", "the function", "a list")
    found = contexts.question(reader, one, shots, join=" ", room=0)
    assert 0 < found.shots < 9
    texts = [f"{shot.input} the function" for shot in shots[9 - found.shots :]]
    assert found.context == "\n\n".join([*texts, "the value"])
    longest = max(len(reader.ids(f"{found.context} {text}")) for text in one.candidates)
    more = "\n\n".join([f"{shots[8 - found.shots].input} the function", found.context])
    assert longest <= 48 < max(len(reader.ids(f"{more} {text}")) for text in one.candidates)
    less = contexts.question(reader, one, shots, join=" ", room=20)
    assert less.shots < found.shots
    reader = Reader.of(MODELS["t5"], lms["t5"].vocab)  # has no table of positions
    assert contexts.question(reader, one, shots, join=" ", room=0).shots == 9


class Stub:
    """Instead of a model: likelihoods by (context, continuation)."""

    vocab = None

    def __init__(self, known, model):
        self.known, self.model = known, model

    def __call__(self, lm, pairs, *, rows):
        return [self.known[pair] for pair in pairs]


def test_every_measure_is_what_it_says(monkeypatch):
    """Each of them decides otherwise."""

    def one(nats, tokens):
        return Likelihood(nats, tokens, False)

    stub = Stub(
        {
            ("q", " no"): one(-4.0, 1),
            ("q", " maybe yes"): one(-6.0, 4),
            ("q", " \ub124\ub124"): one(-5.0, 2),
            ("Answer:", " no"): one(-1.0, 1),
            ("Answer:", " maybe yes"): one(-4.0, 4),
            ("Answer:", " \ub124\ub124"): one(-9.0, 2),
        },
        MODELS["gpt2"],
    )
    monkeypatch.setattr(rank, "of_continuations", stub)
    question = contexts.Question("q", asked("q", "no", "maybe yes", "\ub124\ub124"), 0)
    (found,) = rank.ranked(stub, [question], join=" ")
    assert {name: values.tolist() for name, values in found.items()} == {
        "sum": [-4.0, -6.0, -5.0],
        "token": [-4.0, -1.5, -2.5],
        "character": [-2.0, -6 / 9, -2.5],
        "byte": [-2.0, -6 / 9, -5 / 6],
        "unconditional": [-3.0, -2.0, 4.0],
    }
    assert [int(found[name].argmax()) for name in ("sum", "token", "unconditional")] == [0, 1, 2]


def test_likelihoods_are_the_models(lms):
    lm = lms["gpt2"]
    question = contexts.Question("the value", asked("", "of a list", "function"), 0)
    (found,) = rank.ranked(lm, [question], join=" ")
    wanted = of_continuations(lm, [("the value", " of a list"), ("the value", " function")])
    np.testing.assert_allclose(found["sum"], [one.nats for one in wanted], rtol=1e-6)


def test_with_an_encoder_the_end_counts(lms):
    lm = lms["t5"]
    question = contexts.Question("the value", asked("", "of a list", "function"), 0)
    (found,) = rank.ranked(lm, [question], join=" ")
    for at, text in enumerate(("of a list", "function")):
        batch = lm.batch(["the value"], targets=[text])
        ids = np.append(lm.vocab.encode(text), lm.vocab.eos)
        logits = lm(batch)["logits"][0, np.arange(len(ids))].astype(np.float64)
        nats = logits[np.arange(len(ids)), ids] - np.log(np.exp(logits).sum(-1))
        assert math.isclose(found["sum"][at], nats.sum(), rel_tol=1e-4)
        assert math.isclose(found["token"][at], nats.mean(), rel_tol=1e-4)


def task_of(form, metrics=ACCURACY, main="accuracy"):
    return Task("test/one", form, None, metrics, main, None)


def test_templates_and_seeds_make_a_table(lms):
    form = Classes(("no", "yes"))
    pool = [{"id": str(n), "text": f"the {n}", "pair": None, "label": n % 2} for n in range(8)]
    templates = {"a": Template("{text} is"), "b": Template("of {text}")}
    found = evaluate.scored(
        lms["gpt2"], task_of(form), pool[:3], templates, pool=pool, shots=2, seeds=(0, 1)
    )
    assert [(one.template, one.seed, one.shots) for one in found] == [
        ("a", 0, 2.0), ("a", 1, 2.0), ("b", 0, 2.0), ("b", 1, 2.0)
    ]  # fmt: skip
    lines = evaluate.table(found, main="accuracy").splitlines()
    assert lines[1].split() == ["template", "seed", "shots", *rank.MEASURES]
    values = [one.metrics["sum"]["accuracy"] for one in found]
    median, least, most = (line.split() for line in lines[-3:])
    assert median[1] == f"{np.median(values):.2f}"
    assert (least[1], most[1]) == (f"{min(values):.2f}", f"{max(values):.2f}")
    with pytest.raises(ConfigError, match="the template"):
        evaluate.scored(lms["gpt2"], task_of(Choices(2)), pool, {"a": Template("{pair}")})


def test_what_is_no_choice_is_said(lms, monkeypatch):
    """What stands on the first line, whatever else the model says."""

    def same(answer, text):
        return float(answer == text)

    def generate(lm, prompts, settings, *, rows):
        assert prompts == ["who"] and settings.max_new_tokens == 32
        return [SimpleNamespace(text=" value\nQ: what?")]

    example = {
        "id": "0", "question": "who", "context": "the value", "impossible": False,
        "answers": [{"text": "value", "start": 4}],
    }  # fmt: skip
    monkeypatch.setattr(LM, "generate", generate)
    task = task_of(Spans(), span_metrics(same, same), "f1")
    (found,) = evaluate.scored(lms["t5"], task, [example], {"qa": Template("{question}")})
    assert found.metrics == {"said": {"exact": 100.0, "f1": 100.0}}


def test_the_command(lms, tmp_path, capsys):
    lm = lms["gpt2"]
    uri = tasks.polarity_files(tmp_path / "set", 10).removeprefix("task:")
    run = tmp_path / "run"
    run.mkdir()
    write_run(run, lm.model, lm.params, lm.vocab)
    arguments = ["--run", str(run), "--task", uri, "--split", "train[:4]"]
    shots = ["--shots", "1", "--shots-split", "train[4:]", "--seeds", "0,3"]
    assert main([*arguments, *shots, "--template", "review", "--out", str(tmp_path / "a")]) == 0
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert result["examples"] == 4 and [one["seed"] for one in result["scores"]] == [0, 3]
    assert set(result["scores"][0]["metrics"]) == set(rank.MEASURES)
    report = (tmp_path / "a" / "report.txt").read_text()
    assert report.strip() in capsys.readouterr().out and "median" in report
    pytest.importorskip("jinja2", reason="needs the prompts extra: jinja2")
    path = tmp_path / "some.yaml"
    path.write_text(
        "templates:\n  1: !Template\n    name: x\n    jinja: '{{text}} good? ||| "
        "{{answer_choices[label]}}'\n    answer_choices: no ||| yes\n"
    )
    assert main([*arguments, "--template", f"{path}:x", "--out", str(tmp_path / "b")]) == 0
    assert "x" in json.loads((tmp_path / "b" / "result.json").read_text())["scores"][0]["template"]
    for more, error in (
        (["--template", "t6"], "has no template 't6'"),
        (["--template", str(path)], "no template of the original task"),
        (["--seeds", "1"], "--seeds is of the examples in the context"),
        (["--shots", "x"], "expected a number"),
        (["--shots", "1", "--seeds", "1,1"], "each once"),
        (["--template", str(path) + "x"], "FILE.yaml or FILE.yaml:NAME"),
    ):
        assert main([*arguments, *more]) == 78
        (line,) = capsys.readouterr().err.splitlines()[-1:]
        assert error in line


def test_perplexity_of_a_file(lms, tmp_path, capsys):
    lm, run, file = lms["gpt2"], tmp_path / "run", tmp_path / "some.txt"
    run.mkdir()
    write_run(run, lm.model, lm.params, lm.vocab)
    file.write_text("the value of the function \u00e9\n" * 8, encoding="utf-8")
    arguments = ["--run", str(run), "--text", str(file), "--window", "32", "--stride", "16"]
    assert evaluation.main(arguments) == 0
    wanted = perplexity(lm, [file.read_text(encoding="utf-8")], window=32, stride=16)
    result = json.loads((run / "evaluate" / "some" / "result.json").read_text())
    assert (result["tokens"], result["words"]) == (wanted.tokens, 48)
    assert result["bytes"] == file.stat().st_size
    assert result["perplexity_per_token"] == pytest.approx(wanted.per_token, rel=1e-6)
    assert result["perplexity_per_word"] == pytest.approx(math.exp(-wanted.nats / 48), rel=1e-6)
    assert result["bits_per_byte"] == pytest.approx(wanted.bits_per_byte, rel=1e-6)
    assert "perplexity_per_word" in capsys.readouterr().out
    file.write_text(" \n")
    for words, code, error in (
        (["--text", str(file)], 65, "has no words"),
        (["--text", str(tmp_path / "none")], 66, "No such file"),
        (["--text", str(file), "--task", "a"], 78, "give one of the two"),
        (["--task", "glue/rte", "--stride", "4"], 78, "--stride is of --text"),
    ):
        assert evaluation.main(["--run", str(run), *words]) == code
        assert error in capsys.readouterr().err
