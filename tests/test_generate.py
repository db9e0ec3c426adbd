"""Generation: a cache changes nothing, padding changes nothing, and what settings promise holds."""

import dataclasses
import io
import json
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxlm import generate as command
from flaxlm import named
from flaxlm.convert.check import random_batch
from flaxlm.data import english
from flaxlm.data.spec import Vocabulary
from flaxlm.data.vocab import train_vocab
from flaxlm.decode import Settings, cache, scores
from flaxlm.decode.prompts import Reader, bucket, generate
from flaxlm.decode.search import Search
from flaxlm.errors import ConfigError, DataError, MissingInput
from flaxlm.lm import load
from flaxlm.models import bart, bert, gpt1, gpt2, gpt3, t5
from flaxlm.nn.compute import Compute
from flaxlm.nn.positions import Alibi, RelativeBias, Rotary, Sinusoidal
from flaxlm.nn.relative import TransformerXL
from flaxlm.nn.stack import apart
from flaxlm.weights import write_run

VOCAB = 40
UNROLLED = Compute(scan=False)


def sized(kind, **more):
    return dataclasses.replace(kind.SIZES["tiny"], vocab=VOCAB, width=32, mlp=48, **more)


GPT2 = gpt2.Model(sized(gpt2, heads=4, head_dim=8, positions=48))
MODELS = {
    "gpt1": gpt1.Model(sized(gpt1, heads=4, head_dim=8, positions=48)),
    "gpt2": GPT2,
    "gpt2_unrolled": GPT2.clone(compute=UNROLLED),
    "gpt3": gpt3.Model(sized(gpt3, heads=4, head_dim=8, positions=48, band=3)),
    "rotary": GPT2.clone(positions=Rotary()),
    "alibi": GPT2.clone(positions=Alibi()),
    "buckets": GPT2.clone(positions=RelativeBias(8, 20)),
    "sinusoidal": GPT2.clone(positions=Sinusoidal()),
    "transformer_xl": GPT2.clone(positions=TransformerXL(32)),
    "t5_lm": t5.LanguageModel(sized(t5, heads=4, head_dim=8)),
    "t5_prefix_lm": t5.PrefixLanguageModel(sized(t5, heads=4, head_dim=8)),
    "t5": t5.Model(sized(t5, heads=4, head_dim=8)),
    "t5_v1_0": t5.ModelV10(sized(t5, heads=4, head_dim=8)),
    "bart": bart.Model(sized(bart, heads=4, positions=48)),
}
FEW = ("gpt2", "t5_prefix_lm", "bart")  # of each kind one
PROMPTS = [[3, 9, 4, 11, 5, 8, 7], [6, 2, 3], [12], [9, 9, 9, 1, 2, 3, 4, 5]]


@pytest.fixture(scope="module")
def parameters():
    """Parameters of a model, random and loud: every part matters."""
    made = {}

    def get(name):
        if name not in made:
            model = MODELS[name]
            batch = random_batch(model, seed=0)
            boxed = jax.eval_shape(
                lambda: model.init(jax.random.key(0), batch, train=False)["params"]
            )
            rng = np.random.default_rng(1)

            def draw(path, x):
                noise = 0.3 * rng.standard_normal(x.shape)
                name = named.path_name(path)
                noise = noise + 1 if name.endswith("scale") else noise
                return jnp.asarray(noise * 3 if name.endswith("table") else noise, jnp.float32)

            made[name] = jax.tree_util.tree_map_with_path(draw, named.unbox(boxed))
        return made[name]

    return get


def answers(model, params, prompts, settings, *, prefixes=None, seed=0, rows=16, eos=None):
    reader = Reader.of(model, None, eos=eos, start=2)
    prefixes = prefixes or [()] * len(prompts)
    return generate(reader, params, prompts, settings, prefixes=prefixes, seed=seed, rows=rows)


@partial(jax.jit, static_argnums=0)
def full_logits(model, params, batch):
    readout = model.apply({"params": params}, batch, train=False)["logits"]
    return readout.logits()[..., : readout.vocab]


def full(model, params, prompt, answer) -> np.ndarray:
    """[N, V] logits of the tokens of an answer by one forward pass over all of it."""

    def row(ids, prefix=""):
        tokens = np.zeros((1, 24), np.int32)
        tokens[0, : len(ids)] = ids
        segments = (np.arange(24) < len(ids)).astype(np.int32)[None]
        return {prefix + "tokens": tokens, prefix + "segments": segments}

    if cache.has_encoder(model):
        batch = row(prompt) | row([2, *answer], "decoder_")
        return np.asarray(full_logits(model, params, batch))[0, : len(answer)]
    batch = row([*prompt, *answer])
    places = np.arange(24, dtype=np.int32)[None]
    batch |= {"positions": places, "prefix": (places < len(prompt)).astype(np.int32)}
    start = len(prompt) - 1
    return np.asarray(full_logits(model, params, batch))[0, start : start + len(answer)]


def test_layers_apart_are_no_copies(parameters):
    params = parameters("gpt2")
    stacked, cut = params["layers"]["mlp"], apart(params)["layers"]["mlp"]
    assert params.keys() == apart(params).keys()
    name = max(stacked, key=lambda name: stacked[name].size)
    assert len(cut[name]) == len(stacked[name])
    start, size = stacked[name].unsafe_buffer_pointer(), stacked[name][0].nbytes
    for layer, array in enumerate(cut[name]):
        np.testing.assert_array_equal(array, stacked[name][layer])
        assert array.unsafe_buffer_pointer() == start + layer * size


@pytest.mark.parametrize(
    "name, layers",
    [*((name, "in a stack") for name in MODELS), ("gpt3", "apart"), ("bart", "apart")],
)
def test_a_cached_step_equals_the_full_forward(name, layers, parameters):
    """Logits of every step, rows of different lengths in one batch, to 1e-5."""
    model, params = MODELS[name], parameters(name)
    if layers == "apart":
        params = apart(params)
    answer, longest = [5, 17, 30, 8, 21], max(map(len, PROMPTS))
    tokens = np.zeros((len(PROMPTS), longest), np.int32)
    segments = np.zeros_like(tokens)
    for row, ids in enumerate(PROMPTS):
        at = slice(0, len(ids)) if cache.has_encoder(model) else slice(longest - len(ids), None)
        tokens[row, at], segments[row, at] = ids, 1
    prompts = {"tokens": tokens, "segments": segments}
    if cache.has_encoder(model):
        prompts["decoder_tokens"] = np.full((len(PROMPTS), 1), 2, np.int32)
    logits, text = jax.jit(lambda: cache.begin(model, params, prompts, 8))()
    go_on = jax.jit(lambda text: cache.go_on(model, params, text))
    found = [logits]
    for token in answer[:-1]:
        logits, text = go_on(text.add(jnp.full(len(PROMPTS), token)))
        found.append(logits)
    for row, ids in enumerate(PROMPTS):
        expected = full(model, params, ids, answer)
        assert np.abs(expected).max() > 1, "too quiet to find a mistake"
        ours = np.stack([logits[row] for logits in found])
        np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("settings", [
    Settings(max_new_tokens=9, sample=True, top_k=20, top_p=0.9, candidates=3),
    Settings(max_new_tokens=9, num_beams=3, no_repeat_ngram_size=2, repetition_penalty=1.3),
], ids=("sampled", "beams"))  # fmt: skip
def test_rows_do_not_depend_on_one_another(name, settings, parameters):
    model, params = MODELS[name], parameters(name)
    together = answers(model, params, PROMPTS, settings, eos=7, seed=3)
    assert len({answer.ids for answer in together}) > 1
    apart = answers(model, params, PROMPTS, settings, eos=7, seed=3, rows=1)
    for one, other in zip(together, apart, strict=True):
        assert one.ids == other.ids
        assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-4)


@pytest.mark.parametrize("name", FEW)
def test_greedy_takes_the_best_and_counts_its_likelihood(name, parameters):
    model, params = MODELS[name], parameters(name)
    for prompt, found in zip(
        PROMPTS, answers(model, params, PROMPTS, Settings(max_new_tokens=9), eos=7), strict=True
    ):
        logits = full(model, params, prompt, found.ids)
        assert found.ids == tuple(logits.argmax(axis=1).tolist())
        assert 7 not in found.ids[:-1] and (len(found.ids) == 9 or found.ids[-1] == 7)
        log_p = np.asarray(jax.nn.log_softmax(logits))
        expected = log_p[np.arange(len(found.ids)), found.ids].sum()
        assert found.log_likelihood == pytest.approx(expected, abs=1e-3)


def test_draws_follow_the_distribution(parameters):
    """The first token of many draws from one prompt against the softmax, and the seed rules."""
    model, params = MODELS["gpt2"], parameters("gpt2")
    settings = Settings(max_new_tokens=1, sample=True, temperature=2.0)
    count = 2048
    draw = partial(answers, model, params, [[5, 6]] * count, settings, rows=count)
    ids = [answer.ids[0] for answer in draw()]
    shares = np.bincount(ids, minlength=VOCAB) / count
    logits = full(model, params, [5, 6], [0])[0] / 2.0
    assert np.abs(shares - np.asarray(jax.nn.softmax(logits))).max() < 0.04
    assert [answer.ids[0] for answer in draw()] == ids
    assert [answer.ids[0] for answer in draw(seed=1)] != ids


def test_the_best_of_several_draws_is_kept(parameters):
    model, params = MODELS["gpt2"], parameters("gpt2")
    settings = Settings(max_new_tokens=6, sample=True)
    (one,) = answers(model, params, PROMPTS[:1], settings)
    many = dataclasses.replace(settings, candidates=16)
    (best,) = answers(model, params, PROMPTS[:1], many)
    assert best.score > one.score and best.score == pytest.approx(best.log_likelihood / 6)


def test_what_is_given_stands_at_the_beginning(parameters):
    for name in FEW:
        for more in ({}, {"num_beams": 3}):
            found = answers(
                MODELS[name], parameters(name), PROMPTS[:2], Settings(max_new_tokens=6, **more),
                prefixes=[(31, 32, 33), (30,)],
            )  # fmt: skip
            assert found[0].ids[:3] == (31, 32, 33) and found[1].ids[0] == 30


def test_lengths(parameters):
    model, params = MODELS["gpt2"], parameters("gpt2")
    (plain,) = answers(model, params, PROMPTS[:1], Settings(max_new_tokens=12))
    eos = plain.ids[3]
    (short,) = answers(model, params, PROMPTS[:1], Settings(max_new_tokens=12), eos=eos)
    assert short.ids == plain.ids[: plain.ids.index(eos) + 1]
    for more in ({}, {"num_beams": 2}):
        settings = Settings(max_new_tokens=12, min_new_tokens=8, **more)
        (long,) = answers(model, params, PROMPTS[:1], settings, eos=eos)
        assert len(long.ids) >= 8 and eos not in long.ids[:8]


def test_beams_find_what_is_likelier(parameters):
    """With as many beams as there are hypotheses the search is exhaustive."""
    model, params = MODELS["gpt2"], parameters("gpt2")
    settings = Settings(max_new_tokens=2, num_beams=VOCAB)
    (found,) = answers(model, params, PROMPTS[:1], settings)
    first = np.asarray(jax.nn.log_softmax(full(model, params, PROMPTS[0], [0])[0]))
    best = max(
        first[a] + np.asarray(jax.nn.log_softmax(full(model, params, PROMPTS[0], [a, 0])[1])).max()
        for a in range(VOCAB)
    )
    assert found.log_likelihood == pytest.approx(best, abs=1e-4)


def text_of(tokens, column=None):
    tokens = np.array(tokens, np.int32)
    segments = (tokens >= 0).astype(np.int32)
    column = jnp.asarray(tokens.shape[1] if column is None else column)
    return cache.Text(jnp.asarray(np.maximum(tokens, 0)), jnp.asarray(segments), column, {}, {}, {})


def controls(logits, text, made=0, eos=None, forced=(), **settings):
    return np.asarray(
        scores.allowed(
            jnp.asarray(logits, jnp.float32), text, settings=Settings(**settings),
            made=jnp.asarray(made), forced_BN=jnp.zeros((len(logits), 0), jnp.int32), eos=eos,
        )
    )  # fmt: skip


def test_controls_by_hand():
    # -1 is padding, the token of the last column is not there yet.
    text = text_of([[-1, -1, 1, 2, 1, 0], [3, 4, 3, 4, 3, 0]], column=5)
    logits = [[1.0, 2.0, -3.0, 4.0, 5.0]] * 2
    weaker = controls(logits, text, repetition_penalty=2.0)
    np.testing.assert_allclose(weaker, [[1, 1, -6, 4, 5], [1, 2, -3, 2, 2.5]])
    blocked = controls(logits, text, no_repeat_ngram_size=2) < -1e29
    assert blocked.nonzero()[0].tolist() == [0, 1] and blocked.nonzero()[1].tolist() == [2, 4]
    blocked = controls(logits, text, no_repeat_ngram_size=3) < -1e29
    assert not blocked[0].any() and blocked[1].nonzero()[0].tolist() == [4]
    blocked = controls(logits, text, no_repeat_ngram_size=1) < -1e29
    assert [row.nonzero()[0].tolist() for row in blocked] == [[1, 2], [3, 4]]
    assert not (controls(logits, text, no_repeat_ngram_size=6) < -1e29).any()


def kept(share, **settings):
    logits = jnp.log(jnp.asarray([share]))
    found = scores.warped(logits, settings=Settings(sample=True, **settings))
    return np.flatnonzero(np.asarray(found)[0] > -1e29).tolist()


def test_distributions_by_hand():
    share = [0.1, 0.4, 0.05, 0.3, 0.15]
    assert kept(share, top_k=2) == [1, 3]
    assert kept(share, top_p=0.69) == [1, 3] and kept(share, top_p=0.71) == [1, 3, 4]
    assert kept(share, top_p=0.01) == [1]
    # The entropy is 1.39 nat: nearest are 0.3 (1.20), 0.4 (0.92) and 0.15 (1.90).
    assert kept(share, typical_p=0.2) == [3] and kept(share, typical_p=0.5) == [1, 3]


@pytest.mark.parametrize("wrong, words", [
    (dict(max_new_tokens=0), "max_new_tokens=0: an integer of at least 1"),
    (dict(num_beams=2.0), "num_beams=2.0: an integer"),
    (dict(sample=True, temperature=0.0), "temperature=0.0: must be above 0"),
    (dict(sample=True, top_p=1.5), "top_p=1.5: a probability"),
    (dict(top_k=3), "top_k=3 is of draws: it needs sample=True"),
    (dict(sample=True, num_beams=2), "num_beams=2 with sample=True"),
    (dict(early_stopping=True), "early_stopping is of a beam search"),
    (dict(num_beams=2, early_stopping="soon"), "early_stopping='soon': True, False or 'never'"),
    (dict(length_penalty=2.0), "length_penalty ranks answers"),
    (dict(min_new_tokens=65), "min_new_tokens=65 is above max_new_tokens=64"),
])  # fmt: skip
def test_settings_that_make_no_sense(wrong, words):
    with pytest.raises(ConfigError, match=words):
        Settings(**wrong)


def test_few_shapes():
    assert sorted({bucket(n) for n in range(1, 100)}) == [8, 12, 16, 24, 32, 48, 64, 96, 128]
    assert all(n <= bucket(n) < max(9, 1.5 * n) for n in range(1, 5000))


def test_one_program_serves_a_bucket(parameters):
    model, params = MODELS["gpt2"], parameters("gpt2")
    sizes = []
    for count, longest, new in ((3, 7, 9), (4, 8, 12), (4, 5, 10)):
        answers(model, params, [[5] * longest] * count, Settings(max_new_tokens=new))
        sizes.append(Search.run._cache_size())
    assert len(set(sizes)) == 1


def test_streaming_says_the_same(run):
    lm = load(run)
    settings = Settings(max_new_tokens=20, sample=True, temperature=0.7)
    (whole,) = lm.generate(["the cost of"], settings)
    pieces = list(lm.stream("the cost of", settings))
    assert "".join(pieces) == whole.text and len(pieces) > 3
    with pytest.raises(ConfigError, match="nothing to stream"):
        next(lm.stream("a", Settings(num_beams=2)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a GPT-2 with a byte-level vocabulary."""
    return made(tmp_path_factory.mktemp("gpt2"), gpt2.Model, gpt2.SIZES["tiny"], "bytes")


@pytest.fixture(scope="module")
def masked_run(tmp_path_factory):
    """A run of a BERT."""
    folder = tmp_path_factory.mktemp("bert")
    return made(folder, bert.MaskedLanguageModel, bert.SIZES["tiny"], "wordpiece")


def made(folder, kind, size, vocabulary):
    vocab = train_vocab(english.documents()[:30], Vocabulary(size=440, kind=vocabulary))
    model = kind(dataclasses.replace(size, vocab=vocab.size))
    batch = random_batch(model, seed=0)
    boxed = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=False)["params"])
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: (0.2 * rng.standard_normal(x.shape)).astype(np.float32), named.unbox(boxed)
    )
    write_run(folder, model, params, vocab)
    return folder


def test_texts_in_texts_out(run):
    lm = load(run)
    found = lm.generate(["the cost of", ""], Settings(max_new_tokens=8), prefixes=[" is", ""])
    assert found[0].text.startswith(" is") and len(found[0].ids) <= 8
    whole = [*lm.vocab.encode("the cost of"), *found[0].ids]
    assert lm.vocab.decode(whole) == "the cost of" + found[0].text
    with pytest.raises(ConfigError, match="prompt 0 has 130 tokens; with max_new_tokens=8"):
        lm.generate([[5] * 130], Settings(max_new_tokens=8))
    with pytest.raises(DataError, match="ids in"):
        lm.generate([[]])
    with pytest.raises(ConfigError, match="1 prefixes for 2 prompts"):
        lm.generate(["a", "b"], prefixes=["a"])
    blind = dataclasses.replace(lm, vocab=None)
    with pytest.raises(MissingInput, match="prompts are ids"):
        blind.generate(["a"])
    assert blind.generate([[5, 6]], Settings(max_new_tokens=3))[0].text == ""
    with pytest.raises(ConfigError, match="writes texts: generate"):
        lm.fill(["a"])


def test_masks_are_filled(masked_run):
    lm = load(masked_run)
    texts = ["the [MASK] of a list", "[MASK] is [MASK]"]
    found = lm.fill(texts, top=3)
    assert [len(masks) for masks in found] == [1, 2]
    batch = lm.batch(texts)
    logits = lm(batch)["logits"]
    for row, masks in enumerate(found):
        places = np.flatnonzero(batch["tokens"][row] == lm.vocab.mask)
        for place, tokens in zip(places, masks, strict=True):
            share = np.asarray(jax.nn.softmax(logits[row, place]))
            best = np.argsort(-share)[:3]
            assert [token.id for token in tokens] == best.tolist()
            np.testing.assert_allclose([t.probability for t in tokens], share[best], rtol=1e-4)
    with pytest.raises(DataError, match=r"has no \[MASK\]"):
        lm.fill(["nothing"])
    with pytest.raises(ConfigError, match="does not write texts"):
        lm.generate(["a"])


def test_the_command(run, masked_run, tmp_path, capsys, monkeypatch):
    lm = load(run)
    (whole,) = lm.generate(["the cost"], Settings(max_new_tokens=6))
    argv = ["--run", str(run), "--max-new-tokens", "6"]
    assert command.main([*argv, "--prompt", "the cost"]) == 0
    assert capsys.readouterr().out == command._printable(whole.text) + "\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cost\n\nthe list\n"))
    output = tmp_path / "answers.jsonl"
    assert command.main([*argv, "--num-beams", "2", "--output", str(output)]) == 0
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["prompt"] for record in records] == ["the cost", "the list"]
    assert len(records[0]["ids"]) <= 6 and records[0]["log_likelihood"] < 0
    assert command.main(["--run", str(masked_run), "--fill", "--prompt", "a [MASK]"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert command.main(["--help"]) == 0
    assert "--no-repeat-ngram-size" in capsys.readouterr().out


@pytest.mark.parametrize("argv, words", [
    ([], "--run RUN is missing"),
    (["--run", "x", "--top-p", "most"], "--top-p most: expected a number"),
    (["--run", "x", "--top-k", "3"], "top_k=3 is of draws"),
    (["--run", "x", "--fill", "--sample"], "--fill takes --run"),
    (["--run", "x", "--top", "3"], "--top is of --fill"),
    (["--run", "x", "--early-stopping", "maybe"], "true, false or never"),
    (["--run", "x", "--tempreature", "1"], "unknown flag --tempreature"),
    (["--run", "x", "--prompt", "a"], "no such folder"),
])  # fmt: skip
def test_the_command_refuses_in_one_line(argv, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main(argv) != 0
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
