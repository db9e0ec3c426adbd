"""The plain language models: literal rows in, literal features out; what a document sees."""

import dataclasses

import jax
import numpy as np
import pytest

from flaxlm import named
from flaxlm.batch import check_features
from flaxlm.data.batches import Batches
from flaxlm.data.random import RowRandom
from flaxlm.data.rows import Rows
from flaxlm.data.spec import Data, Source
from flaxlm.models import gpt2
from flaxlm.objectives.causal_lm import CausalLM, StreamLM
from flaxlm.step import Applied, init_params
from tests.fakes import VOCAB, FakeCorpus

EOS = VOCAB.eos
SIZE = dataclasses.replace(gpt2.SIZES["tiny"], vocab=VOCAB.size)


def prepare(objective, rows):
    features = objective.prepare(rows, RowRandom(0, rows.index), VOCAB)
    check_features(features, vocab_size=VOCAB.size)
    return features


def row(tokens, segments, positions):
    arrays = (np.array([x], np.int32) for x in (tokens, segments, positions))
    sentences = np.array([positions]) == 0
    return Rows(np.arange(1), *arrays, sentences)


TWO = row([11, 12, EOS, 21, EOS, 0], [1, 1, 1, 2, 2, 0], [0, 1, 2, 0, 1, 0])


def test_a_stream_is_one_text():
    assert {name: x.tolist() for name, x in prepare(StreamLM(), TWO).items()} == {
        "tokens": [[11, 12, EOS, 21, 0]],
        "segments": [[1, 1, 1, 1, 0]],
        "positions": [[0, 1, 2, 3, 0]],
        "targets": [[12, EOS, 21, EOS, 0]],
        "weights": [[1, 1, 1, 1, 0]],
        "text_weights": [[1, 0, 1, 0, 0]],
    }


@pytest.mark.parametrize("count", [0, 1, 2, 6])
def test_short_rows(count):
    real = np.arange(6) < count
    rows = row(np.where(real, np.arange(11, 17), 0), real, np.where(real, np.arange(6), 0))
    features = prepare(StreamLM(), rows)
    expected = max(count - 1, 0)
    assert features["weights"].sum() == (features["segments"] > 0).sum() == expected
    assert features["tokens"][0, :expected].tolist() == list(range(11, 11 + expected))
    assert features["targets"][0, :expected].tolist() == list(range(12, 12 + expected))
    assert (
        not features["tokens"][0, expected:].any() and not features["positions"][0, expected:].any()
    )


@pytest.mark.parametrize("packing", ["stream", "split", "pack"])
@pytest.mark.parametrize("objective", [CausalLM(), StreamLM()], ids=["apart", "stream"])
def test_rows_of_a_corpus(objective, packing):
    """Every target is the token after its input, in the text or as its document's first."""
    assert packing in objective.packings
    data = Data((Source("fake:"),), batch=8, length=32, packing=packing)
    corpus = FakeCorpus([5, 70, 0, 31, 32, 33, 9, 200, 1, 1, 40])
    batches = Batches([(corpus, 1.0)], objective, VOCAB, data=data, seed=0)
    text = np.concatenate([np.append(t, EOS) for t in corpus.texts if len(t)])
    pairs = set(zip(text.tolist(), np.roll(text, -1).tolist(), strict=True))
    for step in range(3):
        features = batches[step]
        assert features["tokens"].shape == (8, 32)
        real = features["weights"] > 0
        assert np.array_equal(real, features["segments"] > 0) and real.any()
        follows = features["positions"] > 0 if type(objective) is CausalLM else real
        if packing == "pack" and type(objective) is StreamLM:
            follows = real & (features["tokens"] != EOS)  # the next document of the row is any
        found = zip(
            *(features[name][follows].tolist() for name in ("tokens", "targets")), strict=True
        )
        assert set(found) <= pairs
        assert (features["targets"][~real] == VOCAB.pad).all()


def losses(model, params, objective, features):
    outputs = objective.forward(Applied(model, params), features, None)
    return np.asarray(outputs["nll"])


@pytest.fixture(scope="module")
def tiny():
    model = gpt2.Model(SIZE)
    shapes = {
        name: jax.ShapeDtypeStruct((1, 8), np.int32) for name in ("tokens", "segments", "positions")
    }
    params = jax.jit(lambda: named.unbox(init_params(model, shapes, seed=0)))()
    return model, jax.tree.map(lambda x: x * 3, params)  # far from uniform predictions


def test_packed_documents_score_as_they_would_alone(tiny):
    model, params = tiny
    objective = CausalLM()
    packed = losses(model, params, objective, prepare(objective, TWO))
    first = row([11, 12, EOS], [1, 1, 1], [0, 1, 2])
    second = row([21, EOS], [1, 1], [0, 1])
    alone = [losses(model, params, objective, prepare(objective, x)) for x in (first, second)]
    np.testing.assert_allclose(packed[:, :5], np.concatenate(alone, axis=1), atol=2e-5)


def test_a_stream_lets_a_document_see_the_one_before(tiny):
    model, params = tiny
    other = dataclasses.replace(TWO, tokens=TWO.tokens.copy())
    other.tokens[0, 1] = 13  # of the first document
    moved = {
        objective: np.abs(
            np.subtract(
                *(losses(model, params, objective, prepare(objective, x)) for x in (TWO, other))
            )
        )[0]
        for objective in (CausalLM(), StreamLM())
    }
    assert moved[CausalLM()][3:].max() == 0 and moved[StreamLM()][2] > 1e-3


def test_show():
    class Spelling:
        def decode(self, ids):
            return " ".join(str(i) for i in np.asarray(ids).tolist())

    [example] = StreamLM().show(prepare(StreamLM(), TWO), Spelling())
    assert example.input == f"11 12 {EOS} 21" and example.target == f"12 {EOS} 21 {EOS}"


def test_windows():
    assert StreamLM().window(1024) == 1025 and StreamLM().advance(1024) == 1024
    assert CausalLM().window(1024) == 1024
    assert StreamLM().separator(VOCAB) == EOS
