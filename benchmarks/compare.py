"""Runs of different objectives under one yardstick: what do their hidden states know?

    python benchmarks/compare.py RUN [RUN ...]

Losses of different objectives do not compare: they predict other things from other inputs. Here
every run, and the same model untrained, makes the mean hidden state of each passage, and a ridge
classifier tells from it which of the twenty largest documents of the embedded corpus the passage is
from. Classifier and split are the same for all; the passages to be told apart were not seen by it.
For masked language models there is also the loss of masked tokens of held-out text at one rate,
15 %, all of them visibly masked, whatever rate the run was trained with. Prints Markdown.
"""

import hashlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import flaxlm
from flaxlm import named
from flaxlm.convert.families import family_of_model, parts_of
from flaxlm.data import english
from flaxlm.data.random import RowRandom
from flaxlm.data.rows import Rows
from flaxlm.lm import LM
from flaxlm.models import xlnet
from flaxlm.objectives.masked_lm import MaskedLM
from flaxlm.step import Applied

CLASSES, LENGTH, ROWS = 20, 120, 64
RIDGES = 10.0 ** np.arange(-2, 4)


def passages() -> tuple[list[str], np.ndarray, np.ndarray]:
    """(texts, document number, is it for testing): paragraphs of the largest documents."""
    largest = sorted(english.documents(), key=len)[-CLASSES:]
    found = [
        (text, number)
        for number, document in enumerate(largest)
        for text in document.split("\n\n")
        if len(text.split()) >= 12
    ]
    test = np.random.default_rng(0).random(len(found)) < 0.3
    return [text for text, _ in found], np.array([number for _, number in found]), test


def unseen() -> list[str]:
    """Paragraphs of the documents that the small experiments hold out of training."""
    limit = int(0.06 * 2**64)  # of the hash by which data/chunk.py splits

    def place(text):
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())

    held_out = [text for text in english.documents() if place(text) < limit]
    return [part for text in held_out for part in text.split("\n\n") if len(part.split()) >= 12]


def rows_of(lm: LM, texts: list[str]) -> dict[str, np.ndarray]:
    """The texts as the family's tokenizer lays them out, cut to LENGTH tokens."""
    cut = []
    for text in texts:
        ids = lm.vocab.encode(text)[: LENGTH - 4]
        cut.append(family_of_model(lm.model).TOKENIZER.around(lm.vocab, ids)[0])
    tokens = np.full((len(cut), LENGTH), lm.vocab.pad, np.int32)
    segments = np.zeros((len(cut), LENGTH), np.int32)
    for row, ids in enumerate(cut):
        tokens[row, : len(ids)], segments[row, : len(ids)] = ids, 1
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
    batch = {"tokens": tokens, "segments": segments, "positions": positions}
    start = {"decoder_" + name: value[:, :1] for name, value in batch.items()}
    return {**batch, "types": np.zeros_like(tokens), **start}


def states(lm: LM, params, batch: dict[str, np.ndarray]) -> np.ndarray:
    """[N, D] mean hidden states (the encoder's, where there is one) over the real tokens."""

    @jax.jit
    def run(params, batch):
        outputs = lm.model.apply({"params": params}, batch, train=False)
        hidden = outputs["encoder" if "encoder" in outputs else "hidden"]
        real = (batch["segments"] > 0)[..., None]
        return (hidden * real).sum(1) / real.sum(1)

    count = len(batch["tokens"])
    whole = {n: np.resize(x, (-(-count // ROWS) * ROWS, *x.shape[1:])) for n, x in batch.items()}
    parts = [
        run(params, {name: value[at : at + ROWS] for name, value in whole.items()})
        for at in range(0, len(whole["tokens"]), ROWS)
    ]
    return np.concatenate([np.asarray(part) for part in parts])[:count]


def accuracy(x: np.ndarray, labels: np.ndarray, test: np.ndarray) -> float:
    """Of a ridge classifier on the test passages, its strength chosen on a part of the others."""
    x = (x - x[~test].mean(0)) / (x[~test].std(0) + 1e-6)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    wanted = np.eye(CLASSES)[labels]
    own = ~test & (np.arange(len(x)) % 4 == 0)

    def score(fit, judge, ridge):
        gram = x[fit].T @ x[fit] + ridge * np.eye(x.shape[1])
        weights = np.linalg.solve(gram, x[fit].T @ wanted[fit])
        return ((x[judge] @ weights).argmax(1) == labels[judge]).mean()

    best = max(RIDGES, key=lambda ridge: score(~test & ~own, own, ridge))
    return float(score(~test, test, best))


def masked_loss(lm: LM, batch: dict[str, np.ndarray]) -> float | None:
    """Nats per masked token; None if the model is no masked language model of one sequence."""
    if lm.vocab.mask is None or "head" not in lm.params or "dense" not in lm.params["head"]:
        return None
    objective = MaskedLM(rate=0.15, slots=20, mask=1.0, random=0.0)
    inner = batch["segments"].copy()
    rows = Rows(
        index=np.arange(len(inner)),
        tokens=batch["tokens"][:, 1:-1],
        segments=inner[:, 1:-1],
        positions=batch["positions"][:, 1:-1],
        sentences=np.zeros((len(inner), LENGTH - 2), bool),
    )
    features = objective.prepare(rows, RowRandom(0, rows.index), lm.vocab)

    @jax.jit
    def run(params, part):
        found = objective.forward(Applied(lm.model, params), part, None)
        return (found["mlm_nll"] * part["slot_weights"]).sum()

    whole = len(inner) // ROWS * ROWS
    total = sum(
        float(run(lm.params, {name: value[at : at + ROWS] for name, value in features.items()}))
        for at in range(0, whole, ROWS)
    )
    return total / float(features["slot_weights"][:whole].sum())


def compare(path: str, texts, labels, test) -> tuple:
    """(name, parameters, accuracy, untrained accuracy, masked loss or None) of a run."""
    lm = flaxlm.load(path)
    model, params = next(iter(parts_of(lm.model, lm.params).values()))
    if isinstance(model, xlnet.TwoStreamModel):
        model = xlnet.Model(model.size, model.compute)
    lm = LM(model, params, lm.vocab, lm.path)
    batch = rows_of(lm, texts)
    shapes = {name: jnp.asarray(value[:1]) for name, value in batch.items()}
    fresh = named.unbox(model.init(jax.random.key(0), shapes, train=False)["params"])
    trained, untrained = (
        accuracy(states(lm, part, batch), labels, test) for part in (params, fresh)
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Path(path).name, count, trained, untrained, masked_loss(lm, rows_of(lm, unseen()))


def main(paths: list[str]) -> None:
    texts, labels, test = passages()
    largest = np.bincount(labels[test]).max() / test.sum()
    print(f"{len(texts)} passages of {CLASSES} documents, {test.sum()} to be told apart; always")
    print(f"naming the largest document is right {largest:.1%} of the time.\n")
    print(
        "| run | parameters | accuracy | untrained | nats per masked token |\n|---|---|---|---|---|"
    )
    for path in paths:
        name, count, trained, untrained, loss = compare(path, texts, labels, test)
        loss = "" if loss is None else f"{loss:.3f}"
        print(f"| {name} | {count:,} | {trained:.1%} | {untrained:.1%} | {loss} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("which runs? python benchmarks/compare.py RUN [RUN ...]")
    main(sys.argv[1:])
