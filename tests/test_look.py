"""Attention maps and losses by token: their numbers, their pages, what is refused."""

import base64
import dataclasses
import html
import json
import math
import re

import jax
import numpy as np
import pytest

from flaxlm import likelihood, look, named
from flaxlm.convert.check import random_batch
from flaxlm.errors import ConfigError, DataError, MissingInput
from flaxlm.lm import LM
from flaxlm.look import __main__ as command
from flaxlm.look.pieces import pieces
from flaxlm.models import albert, bert, electra, gpt2, gpt3, t5, xlnet
from tests import vocabs

TEXT = "the value of the function is <b> & returned"
TINY = {kind: kind.SIZES["tiny"] for kind in (albert, bert, electra, gpt2, gpt3, t5, xlnet)}


def sized(kind, **numbers):
    return dataclasses.replace(TINY[kind], vocab=vocabs.SIZE, **numbers)


MODELS = {
    "bert": bert.MaskedLanguageModel(sized(bert, depth=1)),
    "albert": albert.MaskedLanguageModel(sized(albert)),
    "electra": electra.Model(sized(electra)),
    "gpt2": gpt2.Model(sized(gpt2, positions=32)),
    "gpt3": gpt3.Model(sized(gpt3)),
    "t5": t5.Model(sized(t5)),
    "xlnet": xlnet.TwoStreamModel(sized(xlnet, memory=3)),
}
NAMES = {
    "electra": ["discriminator/layers/attention", "generator/layers/attention"],
    "t5": [
        "decoder/layers/attention", "decoder/layers/cross_attention", "encoder/layers/attention",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def lms(tmp_path_factory):
    made = {}

    def lm(name):
        if name not in made:
            model, kind = MODELS[name], "bytes" if name.startswith("gpt") else "wordpiece"
            kind = "unigram" if name in ("t5", "xlnet") else kind
            batch = random_batch(model, seed=0)
            shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=False))
            random = np.random.default_rng(0)
            params = jax.tree.map(
                lambda x: random.normal(0, 0.3, x.shape).astype(np.float32),
                named.unbox(shapes["params"]),
            )
            made[name] = LM(
                model, params, vocabs.made(kind, sentinels=0), tmp_path_factory.getbasetemp()
            )
        return made[name]

    return lm


def parts_of(page: str) -> list[dict]:
    """The maps in a page, as its script reads them."""
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1]
    return json.loads(text)


@pytest.mark.parametrize("name", MODELS)
def test_rows_of_attention_sum_to_one(lms, name):
    lm = lms(name)
    target = {"target": "return the value"} if name == "t5" else {}
    maps = look.attention(lm, TEXT, **target)
    assert sorted(one.name for one in maps) == (
        NAMES[name] if name in NAMES else ["layers/attention"]
    )
    for one in maps:
        size = lm.model.size
        assert one.weights.shape[2:] == (len(one.queries), len(one.keys))
        np.testing.assert_allclose(one.weights.sum(-1), 1, atol=1e-5)
        assert one.weights.shape[0] in {
            getattr(size, "depth", 0),
            getattr(size, "decoder_depth", 0),
        }
        causal = name.startswith("gpt") or one.name == "decoder/layers/attention"
        assert causal == (not np.triu(one.weights, 1).any())
    if name == "xlnet":
        assert maps[0].keys[:4] == ("(memory)",) * 3 + maps[0].queries[:1]
    if name == "t5":
        shapes = {one.name: (len(one.queries), len(one.keys)) for one in maps}
        inner, outer = shapes["decoder/layers/attention"], shapes["encoder/layers/attention"]
        assert shapes["decoder/layers/cross_attention"] == (inner[0], outer[0])


def test_weights_are_those_of_the_formula(lms):
    """softmax(q k / sqrt(K)) of a layer whose input is the embedding, by numpy."""
    lm = lms("bert")
    (found,) = look.attention(lm, "the value", pair="is returned")
    batch = lm.batch(["the value"], ["is returned"])
    x_LD = lm(batch)["embedded"][0].astype(np.float64)
    part = jax.tree.map(lambda x: np.asarray(x[0], np.float64), lm.params["layers"]["attention"])
    heads, width = lm.model.size.heads, lm.model.size.head_dim

    def heads_of(name):
        y = x_LD @ part[name] + part[f"{name}_bias"]
        return y.reshape(len(x_LD), heads, width)

    scores = np.einsum("QHK,SHK->HQS", heads_of("query"), heads_of("key")) / math.sqrt(width)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(found.weights[0], weights, atol=2e-5)
    assert found.weights.std() > 0.01  # not all alike


def test_the_page_of_attention(lms):
    maps = look.attention(lms("gpt2"), "a </script><b>한국어")
    page = look.attention_page(maps, title="<i>&")
    assert "&lt;i&gt;&amp;" in page and "<b>" not in page and page.count("</script>") == 2
    assert not re.search(r"https?://|<link|<img|src=|url\(", page)
    (part,) = parts_of(page)
    assert part["keys"] == list(maps[0].keys) and "".join(part["keys"]).replace("·", "").endswith(
        "한국어"
    )
    numbers = np.frombuffer(base64.b64decode(part["weights"]), "<u2").reshape(part["shape"]) / 65535
    np.testing.assert_allclose(numbers, maps[0].weights, atol=1e-5)
    large = dataclasses.replace(maps[0], weights=np.broadcast_to(np.float32(0), (96, 96, 64, 64)))
    with pytest.raises(DataError, match="72 MiB of attention weights, at most 64"):
        look.attention_page([large])


def test_losses_of_a_language_model(lms):
    """The text in windows; the sum is the likelihood of the whole."""
    lm, text = lms("gpt2"), f"{TEXT} 한국어 " * 3
    tokens = look.losses(lm, text)
    assert len(tokens) > 32  # positions of the model
    (whole,) = likelihood.of_texts(lm, [text])
    assert len(tokens) == whole.tokens
    np.testing.assert_allclose(sum(token.nats for token in tokens), -whole.nats, rtol=1e-5)
    assert "".join(token.text for token in tokens).replace("·", "") == text


def test_losses_of_an_encoder_and_decoder(lms):
    lm = lms("t5")
    tokens = look.losses(lm, "return the value", context=TEXT)
    (whole,) = likelihood.of_continuations(lm, [(TEXT, "return the value")])
    np.testing.assert_allclose(sum(token.nats for token in tokens), -whole.nats, rtol=1e-5)


def test_losses_of_a_masked_model(lms):
    """Each token behind a mask, by the model's own logits; what is no text costs nothing."""
    lm = lms("bert")
    tokens = look.losses(lm, TEXT)
    batch = lm.batch([TEXT])
    assert [token.nats is None for token in tokens] == lm.vocab.special[batch["tokens"][0]].tolist()
    for place in (1, len(tokens) - 2):
        masked = {**batch, "tokens": batch["tokens"].copy()}
        masked["tokens"][0, place] = lm.vocab.mask
        logits = lm(masked)["logits"][0, place].astype(np.float64)
        nats = np.log(np.exp(logits).sum()) - logits[batch["tokens"][0, place]]
        np.testing.assert_allclose(tokens[place].nats, nats, rtol=1e-4)


def test_the_page_of_losses():
    tokens = [look.Token("[CLS]", None), look.Token("<b>", 0.5), look.Token(' "한\n', 9.5)]
    page = look.loss_page(tokens, title="<i>")
    assert "<b>" not in page and "<i>" not in page and "<script" not in page
    assert not re.search(r"https?://|<link|<img|src=|url\(", page)
    shown = html.unescape(re.sub("<[^>]*>", "", page))
    assert "2 tokens, 5.0000 nat each, 10.00 in all; perplexity 148.41" in shown
    titles = [html.unescape(text) for text in re.findall('title="([^"]*)"', page)]
    assert titles[0] == "'<b>': 0.5000 nat, probability 60.65%"
    assert titles[1].endswith("9.5000 nat, probability 7.5e-05") and len(titles) == 2


def test_pieces_of_every_kind_of_vocabulary():
    for kind in ("bytes", "unigram", "wordpiece"):
        vocab = vocabs.made(kind, sentinels=0)
        ids = vocab.encode("the value returned, 한")
        found = pieces(vocab, ids)
        assert len(found) == len(ids)
        assert "".join(found).replace("·", "") == vocab.decode(ids.tolist())
    assert pieces(vocab, [vocab.cls, *ids])[:2] == ["[CLS]", "the"]


def test_what_is_refused(lms, tmp_path):
    with pytest.raises(ConfigError, match=r"Model has a decoder: say with `target`"):
        look.attention(lms("t5"), "a")
    with pytest.raises(ConfigError, match="has no encoder, so no `target`"):
        look.attention(lms("gpt2"), "a", target="b")
    with pytest.raises(ConfigError, match="has no encoder"):
        look.losses(lms("bert"), "a", context="b")
    with pytest.raises(DataError, match=r"the text has \d+ tokens, the model 32 positions"):
        look.attention(lms("gpt2"), TEXT * 4)
    with pytest.raises(DataError, match=r"the text has \d+ tokens, the model 64 positions"):
        look.losses(lms("bert"), TEXT * 20)
    with pytest.raises(DataError, match="the text is empty"):
        look.losses(lms("gpt2"), "")
    with pytest.raises(ConfigError, match="Body predicts no tokens"):
        lm = lms("bert")
        look.losses(dataclasses.replace(lm, model=bert.Body(lm.model.size)), "a")
    with pytest.raises(MissingInput, match="has no vocabulary"):
        look.losses(dataclasses.replace(lms("gpt2"), vocab=None), "a")


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        ([], 78, "look at what?"),
        (["faces", "--run", "a", "--text", "b"], 78, "look at what?"),
        (["attention", "--run", "a"], 78, "--text is missing"),
        (["attention", "--run", "a", "--text", "b", "--context", "c"], 78, "belongs to loss"),
        (["loss", "--run", "a", "--text", "gone.txt"], 66, "--text gone.txt"),
        (["attention", "--run", "gone", "--text", "b"], 66, "gone"),
    ],
)
def test_command_line_mistakes(argv, code, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main(argv) == code
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_command_line(lms, tmp_path, monkeypatch, capsys):
    import flaxlm

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(flaxlm, "load", lambda path: lms("gpt2"))
    assert command.main(["attention", "--run", "runs/one", "--text", "return"]) == 0
    assert "<title>attention of one</title>" in (tmp_path / "attention.html").read_text()
    (tmp_path / "text.txt").write_text("return 한국어")
    out = ["--out", "pages/loss.html"]
    assert command.main(["loss", "--run", "runs/one", "--text", "text.txt", *out]) == 0
    assert "한" in (tmp_path / "pages" / "loss.html").read_text(encoding="utf-8")
    assert capsys.readouterr().out.count("wrote ") == 2
