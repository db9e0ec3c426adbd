"""Our likelihoods in lm-evaluation-harness: on the same weights they are transformers' own, by the
harness's own class for those.
"""

import dataclasses
import importlib

import jax
import numpy as np
import pytest

from flaxlm import load, named
from flaxlm.convert import __main__ as convert
from flaxlm.convert.check import random_batch
from flaxlm.errors import ConfigError
from flaxlm.models import gpt2
from flaxlm.weights import write_run
from tests import vocabs

CONTEXTS = [
    "the value of",
    "a class",
    "",
    "if the argument is not a number, an exception is raised",
]
ENDINGS = [" the function", " instance method", "import", " and the file is closed again"]


@pytest.fixture(scope="module")
def harness():
    """Our module, where the extra is installed."""
    pytest.importorskip("lm_eval", reason="needs the harness extra")
    return importlib.import_module("flaxlm.harness")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A GPT-2 at random, as a folder that transformers loads."""
    vocab = vocabs.made("bytes")
    model = gpt2.Model(dataclasses.replace(gpt2.SIZES["tiny"], vocab=vocab.size, positions=48))
    batch = random_batch(model, seed=0)
    params = named.unbox(jax.jit(lambda: model.init(jax.random.key(1), batch, train=False))())
    run, made = (tmp_path_factory.mktemp("gpt2") / name for name in ("run", "exported"))
    run.mkdir()
    write_run(run, model, jax.tree.map(lambda x: 2 * x, params["params"]), vocab)
    assert not convert.main(["--run", str(run), "--to-hf", str(made)])
    return made


def requests(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


def test_as_the_harness_calls_transformers(harness, folder):
    pytest.importorskip("torch", reason="needs the parity extra: torch")
    pytest.importorskip("accelerate", reason="the harness needs it for transformers")
    from lm_eval.models.huggingface import HFLM

    ours = harness.FlaxLM(load(folder), batch_size=4)
    # Before a text stands the end of another, as in training; theirs takes a "bos" if there is one.
    theirs = HFLM(
        pretrained=str(folder), device="cpu", batch_size=4, dtype="float32",
        prefix_token_id=ours.lm.vocab.eos,
    )  # fmt: skip
    pairs = [(context, ending) for context in CONTEXTS for ending in ENDINGS]
    asked = requests("loglikelihood", pairs)
    expected = theirs.loglikelihood(asked, disable_tqdm=True)
    found = ours.loglikelihood(asked)
    np.testing.assert_allclose(
        *([nats for nats, _ in side] for side in (found, expected)), atol=1e-4
    )
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    texts = [(" ".join(CONTEXTS) * times,) for times in (1, 3, 9)]
    asked = requests("loglikelihood_rolling", texts)
    expected = theirs.loglikelihood_rolling(asked, disable_tqdm=True)
    np.testing.assert_allclose(ours.loglikelihood_rolling(asked), expected, atol=1e-3, rtol=1e-6)
    wanted = {"until": ["ing"], "max_gen_toks": 8, "do_sample": False}
    asked = requests("generate_until", [(context, wanted) for context in CONTEXTS if context])
    assert ours.generate_until(asked) == theirs.generate_until(asked, disable_tqdm=True)


def test_a_task_of_the_harness(harness, folder):
    """Multiple choice, by likelihood; nothing is downloaded."""
    from datasets import Dataset, DatasetDict
    from lm_eval import simple_evaluate

    rows = [
        {"text": context, "answers": ENDINGS, "label": number}
        for number, context in enumerate(CONTEXTS)
    ]
    task = {
        "task": "endings",
        "custom_dataset": lambda **_: DatasetDict({"test": Dataset.from_list(rows)}),
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{answers}}",
        "doc_to_target": "label",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    ours = harness.FlaxLM(str(folder))
    found = simple_evaluate(ours, tasks=[task], bootstrap_iters=0)
    scores = np.array(
        [[one.nats for one in harness.of_continuations(ours.lm, [(text, x) for x in ENDINGS])]
         for text in CONTEXTS]
    )  # fmt: skip
    expected = (scores.argmax(axis=1) == np.arange(len(CONTEXTS))).mean()
    assert found["results"]["endings"]["acc,none"] == expected


def test_settings_of_the_harness(harness):
    settings, ends = harness._settings(
        {"until": ["\n"], "max_gen_toks": 5, "do_sample": False, "temperature": 0.0}
    )
    assert (settings.max_new_tokens, settings.sample, ends) == (5, False, ("\n",))
    settings, ends = harness._settings({"until": "x", "do_sample": True, "top_k": 3})
    assert (settings.max_new_tokens, settings.top_k, ends) == (256, 3, ("x",))
    with pytest.raises(ConfigError, match="num_breams"):
        harness._settings({"num_breams": 4})
    with pytest.raises(ConfigError, match="batch_size=auto"):
        harness.FlaxLM(None, batch_size="auto")
    assert harness._until("a.\nb", ("\n", ".")) == "a" and harness._until("ab", ("c",)) == "ab"
