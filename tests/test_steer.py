"""Steering: nothing moves without steps, attributes become likely, rows do not know each other, and
the tokens are those of the published algorithm.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxlm import named, safetensors, steer
from flaxlm.convert.check import random_batch
from flaxlm.convert.folder import write_folder
from flaxlm.decode import Settings
from flaxlm.errors import ConfigError, DataError
from flaxlm.lm import LM
from flaxlm.models import gpt2, t5
from flaxlm.steer import __main__ as command
from flaxlm.steer import fit
from flaxlm.weights import write_run
from tests import vocabs

VOCAB, LABEL = 60, 1
MODEL = gpt2.Model(dataclasses.replace(gpt2.SIZES["tiny"], vocab=VOCAB, positions=48))
PROMPTS = [[3, 9, 4, 11, 5], [7, 8], [21, 2, 2, 13]]
BAG = steer.Bag(jnp.array([30, 41, 52]))
STRONG = steer.Steering(step=1.0, iterations=3, sample=False, fusion=0.95, top_k=VOCAB)


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    boxed = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), random_batch(MODEL, seed=0),
                                              train=False))  # fmt: skip
    rng = np.random.default_rng(3)

    def draw(path, x):
        noise = 0.3 * rng.standard_normal(x.shape)
        return jnp.asarray(noise + 1 if named.path_name(path).endswith("scale") else noise, "f4")

    params = jax.tree_util.tree_map_with_path(draw, named.unbox(boxed)["params"])
    return LM(MODEL, params, None, tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def head():
    rng = np.random.default_rng(4)
    width = MODEL.size.width
    return steer.Head(jnp.asarray(rng.standard_normal((width, 3)), "f4"), jnp.zeros(3), LABEL)


def said(lm, attributes, steering, prompts=PROMPTS, **more):
    return [one.ids for one in steer.steered(lm, prompts, attributes, steering, tokens=9, **more)]


def test_without_steps_it_is_the_model(lm, head):
    still = dataclasses.replace(STRONG, step=0.0)
    greedy = [one.ids for one in lm.generate(PROMPTS, Settings(max_new_tokens=9))]
    assert said(lm, [BAG, head], still) == greedy
    assert said(lm, [], STRONG) == greedy
    assert said(lm, [BAG], dataclasses.replace(STRONG, fusion=0.0)) == greedy
    assert said(lm, [BAG], STRONG) != greedy


def test_attributes_become_likely(lm, head):
    plain, led = said(lm, [], STRONG), said(lm, [BAG], STRONG)
    bag = set(BAG.ids.tolist())
    shares = [sum(at in bag for row in ids for at in row) for ids in (plain, led)]
    assert shares[1] > shares[0] + 3, shares

    def probability(ids):
        rows = [[*prompt, *new] for prompt, new in zip(PROMPTS, ids, strict=True)]
        means = np.concatenate([fit._mean(MODEL, lm.params, {
            "tokens": jnp.array([row]), "segments": jnp.ones((1, len(row)), jnp.int32)
        }) for row in rows])  # fmt: skip
        return float(jax.nn.softmax(head.logits(jnp.asarray(means)))[:, LABEL].mean())

    towards = said(lm, [head], STRONG)
    away = said(lm, [dataclasses.replace(head, weight=-1.0)], STRONG)
    assert probability(away) < probability(plain) < probability(towards)
    gentle = dataclasses.replace(STRONG, gamma=1.0)
    both = said(lm, [BAG, dataclasses.replace(head, weight=3.0)], gentle)
    assert probability(both) > probability(plain)
    assert sum(at in bag for row in both for at in row) > shares[0]


def test_rows_are_their_own(lm, head):
    drawn = dataclasses.replace(STRONG, sample=True, top_k=10, window=3)
    together = said(lm, [BAG, head], drawn, seed=5)
    assert together == said(lm, [BAG, head], drawn, seed=5, rows=2)
    assert together != said(lm, [BAG, head], drawn, seed=6)
    alone = said(lm, [BAG], dataclasses.replace(STRONG, window=2), PROMPTS[1:2])
    assert alone == said(lm, [BAG], dataclasses.replace(STRONG, window=2))[1:2]


def test_it_can_stop(lm):
    first = said(lm, [BAG], dataclasses.replace(STRONG, until=1))
    always, never = said(lm, [BAG], STRONG), said(lm, [], STRONG)
    assert [row[:1] for row in first] == [row[:1] for row in always]
    assert first != always and first != never  # what was moved stays so


def test_a_fitted_head_tells_classes_apart(lm):
    rng = np.random.default_rng(0)
    labels = [number % 2 for number in range(96)]
    texts = [rng.integers(2, 20, 8) + 30 * label for label in labels]

    class Vocab:
        eos = 1

        def encode(self, text, specials=False):
            return np.asarray([int(word) for word in text.split()], np.int32)

    spelt = [" ".join(map(str, text)) for text in texts]
    worded = dataclasses.replace(lm, vocab=Vocab())
    made = steer.fit_head(worded, spelt[:64], labels[:64], classes=2, label=1)
    means = jnp.asarray(steer.mean_hidden(worded, spelt[64:]))
    assert (np.asarray(made.logits(means)).argmax(1) == labels[64:]).mean() > 0.9
    with pytest.raises(DataError, match="of 2 classes"):
        steer.fit_head(worded, spelt, [2] * 96, classes=2, label=1)


def test_files_and_what_is_refused(lm, head, tmp_path):
    tensors = {"mlp.weight": np.asarray(head.kernel).T.copy(), "mlp.bias": np.zeros(3, np.float32)}
    safetensors.write(tmp_path / "head.safetensors", tensors)
    read = steer.Head.read(tmp_path / "head.safetensors", LABEL)
    np.testing.assert_array_equal(read.kernel, head.kernel)
    with pytest.raises(DataError, match="label 3 of 3 classes"):
        steer.Head.read(tmp_path / "head.safetensors", 3)
    with pytest.raises(DataError, match="the head reads 5 numbers"):
        said(lm, [steer.Head(jnp.zeros((5, 2)), jnp.zeros(2), 0)], STRONG)
    for wrong in (dict(step=-1.0), dict(iterations=0), dict(fusion=1.5), dict(temperature=0.0)):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            steer.Steering(**wrong)
    with pytest.raises(ConfigError, match="has an encoder"):
        said(dataclasses.replace(lm, model=t5.Model(t5.SIZES["tiny"])), [BAG], STRONG)
    with pytest.raises(ConfigError, match="more than the model's 48 positions"):
        steer.steered(lm, PROMPTS, [BAG], tokens=60)
    with pytest.raises(DataError, match="No such file"):
        steer.Bag.read(None, tmp_path / "none.txt")


def test_the_command(tmp_path, capsys):
    vocab = vocabs.made("bytes")
    size = dataclasses.replace(gpt2.SIZES["tiny"], vocab=vocab.size, positions=48)
    model = gpt2.Model(size)
    batch = random_batch(model, seed=0)
    params = jax.jit(lambda: model.init(jax.random.key(1), batch, train=False))()["params"]
    (tmp_path / "run").mkdir()
    write_run(tmp_path / "run", model, named.unbox(params), vocab)
    (tmp_path / "words.txt").write_text("the\nof\nunspeakably\n")
    width = size.width
    tensors = {"mlp.weight": np.ones((2, width), np.float32), "mlp.bias": np.zeros(2, np.float32)}
    safetensors.write(tmp_path / "head.safetensors", tensors)
    common = ["--run", str(tmp_path / "run"), "--prompt", "a value", "--tokens", "4"]
    bags = ["--bags", str(tmp_path / "words.txt"), "--step", "0.5", "--samples", "2"]
    heads = ["--heads", f"{tmp_path / 'head.safetensors'}:1"]
    assert command.main([*common, *bags, *heads]) == 0
    assert capsys.readouterr().out.count("a value") >= 2
    for wrong, why in {
        ("--run", "x"): "nothing to lead to",
        ("--bags", "x"): "--run is missing",
        (*common, "--heads", "head"): "expected FILE:CLASS",
        (*common, *bags, "--step", "much"): "given twice",
        (*common, *heads, "--step", "much"): "expected a number",
        (*common, "--bags", str(tmp_path / "none.txt")): "No such file",
    }.items():
        assert command.main(list(wrong)) != 0
        assert why in capsys.readouterr().err


CASES = {
    "bag": (True, False, steer.Steering(step=0.5, sample=False, fusion=0.9, top_k=VOCAB)),
    "head": (False, True, steer.Steering(step=0.5, gamma=1.0, sample=False, top_k=VOCAB, kl=0.1)),
    "both": (True, True, steer.Steering(step=0.8, iterations=2, sample=False, top_k=VOCAB)),
    "oldest": (True, False, steer.Steering(step=2.0, window=3, oldest=True, sample=False, gamma=1)),
}


def published(model, prompt, bag, head, steering, tokens):
    """The algorithm of run_pplm.py for one text, with torch's gradients."""
    import torch
    from transformers import DynamicCache

    def cached(past):
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(past):
            cache.update(keys, values, layer)
        return cache

    def kept(found):
        return [(layer.keys, layer.values) for layer in found.past_key_values.layers]

    def run(past, **inputs):
        found = model(
            **inputs, past_key_values=cached(past), output_hidden_states=True, use_cache=True
        )
        return found.logits[:, -1], found.hidden_states[-1], kept(found)

    text = torch.tensor([prompt])
    _, _, past = run([], input_ids=text[:, :-1])
    largest = None
    for _ in range(tokens):
        plain, hidden, plain_past = run([], input_ids=text)
        plain = torch.softmax(plain, -1).detach()
        length = past[0][0].shape[2]
        mask = torch.ones(length)
        if steering.window and length > steering.window:
            mask[steering.window :] = 0  # where the published code has it
        mask = mask[None, None, :, None]
        moves = [(torch.zeros_like(k), torch.zeros_like(v)) for k, v in past]
        for _ in range(steering.iterations):
            moves = [tuple(x.detach().requires_grad_() for x in pair) for pair in moves]
            moved = [(k + a, v + b) for (k, v), (a, b) in zip(past, moves, strict=True)]
            logits, last, _ = run(moved, input_ids=text[:, -1:])
            shares = torch.softmax(logits, -1)
            loss = steering.kl * (shares * (shares / plain).log()).sum()
            if bag is not None:
                loss = loss - shares[:, bag].sum().log()
            if head is not None:
                embedded = (shares @ model.transformer.wte.weight[: shares.shape[1]])[:, None]
                _, ahead, _ = run(plain_past, inputs_embeds=embedded)
                total = hidden[:, :-1].sum(1) + last.sum(1).detach() + ahead.sum(1)
                logits = total / (length + 2) @ head
                loss = loss + torch.nn.functional.cross_entropy(logits, torch.tensor([LABEL]))
            loss.backward()
            norms = [
                sum((x.grad * mask).square().sum() for x in pair).sqrt() + 1e-15 for pair in moves
            ]
            if head is None and largest is not None:
                norms = [torch.maximum(*pair) for pair in zip(norms, largest, strict=True)]
            largest = norms
            moves = [
                tuple(
                    x.detach() - steering.step * x.grad * mask / norm**steering.gamma for x in pair
                )
                for pair, norm in zip(moves, norms, strict=True)
            ]
        moved = [(k + a, v + b) for (k, v), (a, b) in zip(past, moves, strict=True)]
        logits, _, past = run([tuple(x.detach() for x in p) for p in moved],
                              input_ids=text[:, -1:])  # fmt: skip
        past = [tuple(x.detach() for x in pair) for pair in past]
        mixed = torch.softmax(logits, -1) ** steering.fusion * plain ** (1 - steering.fusion)
        text = torch.cat([text, mixed.argmax(-1, keepdim=True)], 1)
    return tuple(text[0, len(prompt) :].tolist())


@pytest.mark.parametrize("case", CASES)
def test_it_says_what_the_published_algorithm_says_in_transformers(case, lm, head, tmp_path):
    pytest.importorskip("torch", reason="needs the parity extra: torch")
    transformers = pytest.importorskip("transformers", reason="needs the parity extra")
    import torch

    with_bag, with_head, steering = CASES[case]
    write_folder(tmp_path, lm.model, lm.params, None)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval().requires_grad_(False)
    bag = torch.tensor(BAG.ids.tolist()) if with_bag else None
    kernel = torch.tensor(np.asarray(head.kernel)) if with_head else None
    attributes = [BAG] * with_bag + [head] * with_head
    expected = [published(model, prompt, bag, kernel, steering, 9) for prompt in PROMPTS]
    assert said(lm, attributes, steering) == expected
    assert said(lm, [], steering) != expected
