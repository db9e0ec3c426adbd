"""Likelihoods of continuations and of whole texts, against the model's own log-softmax."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from flaxlm import likelihood, named
from flaxlm.convert.check import random_batch
from flaxlm.decode import Settings
from flaxlm.errors import ConfigError, DataError
from flaxlm.lm import LM
from flaxlm.models import bert, gpt2, t5
from tests import vocabs

VOCAB = vocabs.SIZE
SIZES = {kind: kind.SIZES["tiny"] for kind in (gpt2, t5, bert)}
MODELS = {
    "gpt2": gpt2.Model(dataclasses.replace(SIZES[gpt2], vocab=VOCAB, positions=24)),
    "t5": t5.Model(dataclasses.replace(SIZES[t5], vocab=VOCAB)),
    "t5_prefix_lm": t5.PrefixLanguageModel(dataclasses.replace(SIZES[t5], vocab=VOCAB)),
}
PAIRS = [([5, 6, 7], [8, 9]), ([10], [11, 12, 13, 14, 15]), ([3, 4, 5, 6], [7])]


@pytest.fixture(scope="module")
def lms(tmp_path_factory):
    vocab = vocabs.made("unigram", sentinels=0)

    def made(model):
        params = named.unbox(
            jax.jit(
                lambda: model.init(jax.random.key(0), random_batch(model, seed=0), train=False)
            )()
        )["params"]
        return LM(
            model, jax.tree.map(lambda x: 3 * x, params), vocab, tmp_path_factory.getbasetemp()
        )

    return {name: made(model) for name, model in MODELS.items()}


def log_softmax(lm, batch):
    logits = lm(batch)["logits"].astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def row(**arrays):
    return {name: np.array([array], np.int32) for name, array in arrays.items()}


def expected(lm, name, context, continuation):
    """(nats, greedy), one pair at a time, without padding."""
    if name == "t5":
        inputs = [lm.vocab.pad, *continuation[:-1]]
        batch = row(
            tokens=context, segments=[1] * len(context), positions=range(len(context)),
            decoder_tokens=inputs, decoder_segments=[1] * len(inputs),
            decoder_positions=range(len(inputs)),
        )  # fmt: skip
        found = log_softmax(lm, batch)[0]
    else:
        inputs = [*context, *continuation[:-1]]
        prefix = [int(at < len(context)) for at in range(len(inputs))]
        ones, places = [1] * len(inputs), range(len(inputs))
        batch = row(tokens=inputs, segments=ones, positions=places, prefix=prefix)
        found = log_softmax(lm, batch)[0, len(context) - 1 :]
    picked = [found[at, token] for at, token in enumerate(continuation)]
    best = all(found[at].argmax() == token for at, token in enumerate(continuation))
    return sum(picked), best


@pytest.mark.parametrize("name", MODELS)
def test_continuations(lms, name):
    lm = lms[name]
    found = likelihood.of_continuations(lm, PAIRS, rows=2)
    for (context, continuation), one in zip(PAIRS, found, strict=True):
        nats, best = expected(lm, name, context, continuation)
        assert one.tokens == len(continuation) and one.greedy == best
        np.testing.assert_allclose(one.nats, nats, rtol=5e-5)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_the_most_likely_continuation_is_greedy(lms, name):
    lm, context = lms[name], [5, 6, 7]
    said = lm.generate([context], Settings(max_new_tokens=3))[0].ids
    (found,) = likelihood.of_continuations(lm, [(context, said)])
    assert found.greedy
    other = [*said[:-1], (said[-1] + 1) % VOCAB]
    assert not likelihood.of_continuations(lm, [(context, other)])[0].greedy


def test_texts_are_read_as_one(lms):
    """The space before a word is the word's, whichever side it was written on."""
    lm = lms["gpt2"]
    pairs = [("the value of", " the function"), ("the value of ", "the function")]
    one, other = likelihood.of_continuations(lm, pairs)
    assert one == other and one.tokens == len(lm.vocab.encode("the function"))
    whole = lm.vocab.encode("the value of the function")
    context = lm.vocab.encode("the value of")
    ids = likelihood.of_continuations(lm, [(context, whole[len(context) :])])[0]
    np.testing.assert_allclose(one.nats, ids.nats, rtol=1e-6)


def test_a_long_context_loses_its_beginning(lms):
    lm = lms["gpt2"]
    long = list(range(10, 50))
    cut, whole = likelihood.of_continuations(lm, [(long[-23:], [3, 4]), (long, [3, 4])])
    np.testing.assert_allclose(cut.nats, whole.nats, rtol=1e-6)


def test_every_token_of_a_text_is_predicted_once():
    """The windows of ten tokens behind an end of text (0), four positions long."""

    def windows(window, stride):
        made = likelihood._windows(np.arange(11), window, stride)
        return [
            (one.inputs.tolist(), one.targets[len(one.targets) - one.counted :].tolist())
            for one in made
        ]

    assert windows(4, 4) == [
        ([0, 1, 2, 3], [1, 2, 3, 4]),
        ([4, 5, 6, 7], [5, 6, 7, 8]),
        ([6, 7, 8, 9], [9, 10]),
    ]
    assert windows(4, 2)[1] == ([2, 3, 4, 5], [5, 6])
    for window, stride in ((4, 1), (4, 3), (16, 16), (10, 7)):
        predicted = [at for _, found in windows(window, stride) for at in found]
        assert predicted == list(range(1, 11))


def test_whole_texts(lms):
    lm = lms["gpt2"]
    texts = ["the value of the function " * 12, "", "return"]
    ids = [[lm.vocab.eos, *lm.vocab.encode(text)] for text in texts]
    assert len(ids[0]) > 48  # several windows
    coarse = likelihood.of_texts(lm, texts, window=16)
    assert [one.tokens for one in coarse] == [len(row) - 1 for row in ids]
    assert coarse[1].nats == 0
    short = likelihood.of_continuations(lm, [(ids[2][:1], ids[2][1:])])[0]
    np.testing.assert_allclose(coarse[2].nats, short.nats, rtol=1e-6)
    found = likelihood.perplexity(lm, texts, window=16, stride=4)
    assert found.tokens == sum(one.tokens for one in coarse)
    assert found.bytes == sum(map(len, texts))
    fine = likelihood.of_texts(lm, texts, window=16, stride=4)
    nats = sum(one.nats for one in fine)
    np.testing.assert_allclose(found.per_token, math.exp(-nats / found.tokens))
    np.testing.assert_allclose(found.bits_per_byte, -nats / math.log(2) / found.bytes)


def test_what_is_refused(lms):
    with pytest.raises(DataError, match="pair 0: the continuation is empty"):
        likelihood.of_continuations(lms["gpt2"], [([3], [])])
    with pytest.raises(DataError, match="pair 0: the continuation has more tokens than 24"):
        likelihood.of_continuations(lms["gpt2"], [([3], [4] * 30)])
    with pytest.raises(ConfigError, match="reads with an encoder"):
        likelihood.of_texts(lms["t5"], ["a"])
    with pytest.raises(ConfigError, match="<= 24, the model's positions"):
        likelihood.of_texts(lms["gpt2"], ["a"], window=25)
    masked = lms["gpt2"]
    model = bert.MaskedLanguageModel(SIZES[bert])
    with pytest.raises(ConfigError, match="does not write texts"):
        likelihood.of_continuations(dataclasses.replace(masked, model=model), PAIRS)
