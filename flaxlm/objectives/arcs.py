"""For every word of a sentence its head and its relation to it (KLUE's baseline, Park et al. 2021).

    words       she    eats   fish
    slots       root   she    eats   fish
    heads              2      0      2
    relations          NP_SBJ VP     NP_OBJ

A head of the model scores all pairs of slots. The loss is the cross-entropy of the heads and that
of the relations to the right heads; at evaluation each word takes its best head, and the best
relation to that one. As in the baseline nothing asks for a tree; unlike there, a slot without a
word is never a head.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.data.encoded import Encoded
from flaxlm.errors import ConfigError, DataError
from flaxlm.objectives.base import Apply, Example, Outputs, Term
from flaxlm.objectives.examples import ExampleObjective, check_count, check_width
from flaxlm.objectives.texts import pieces_of_words

_NEVER = -1e30


@dataclass(frozen=True, kw_only=True)
class DependencyArcs(ExampleObjective):
    """Reads the outputs "arc_logits" [B, S, S] and "relation_logits" [B, S, S, relations].

    Attributes:
      relations: how many there are.
      words: most words of a sentence; S is one more.
    """

    relations: int
    words: int = 63

    form = "Arcs"

    def __post_init__(self):
        if self.relations < 2:
            raise ConfigError(f"objective.relations={self.relations}: at least 2")
        if self.words < 1:
            raise ConfigError(f"objective.words={self.words}: at least 1")

    def check(self, form, *, name):
        super().check(form, name=name)
        check_count("relations", self.relations, task=name, there=len(form.labels))

    def targets(self, rows, length):
        names = ("word_starts", "word_ends", "words", "word_tags", "heads", "relations")
        slots = (rows, self.words + 1)
        zeros = {name: np.zeros(slots, np.int32) for name in names}
        return {**zeros, "word_weights": np.zeros(slots, np.float32)}

    def encode(self, examples, form, vocab, length):
        """A sentence is one row; its slots are the root, at the symbol "cls", and its words."""
        room, rows = self.texts.room(1, length), []
        targets = self.targets(len(examples), length)
        tag_of = {tag: n for n, tag in enumerate(form.tags)}
        targets["word_tags"][:] = len(form.tags)  # of the root, and where no word is
        for at, example in enumerate(examples):
            pieces, first = pieces_of_words(example["words"], vocab)
            _check_room(example, "tokens", len(pieces), room, "data.length")
            _check_room(example, "words", len(first), self.words, "objective.words")
            row, (offset,) = self.texts.around(vocab, pieces)
            rows.append([row])
            root = self.texts.place_of_symbol(1, "cls", row)
            stop = len(first) + 1
            targets["word_starts"][at, :stop] = [root, *(offset + n for n in first)]
            targets["word_ends"][at, :stop] = [
                root, *(offset + n - 1 for n in [*first[1:], len(pieces)])
            ]  # fmt: skip
            targets["words"][at, :stop] = 1
            if tag_of:
                targets["word_tags"][at, 1:stop] = [tag_of[_last(pos)] for pos in example["pos"]]
            if example["heads"] is not None:
                targets["heads"][at, 1:stop] = example["heads"]
                targets["relations"][at, 1:stop] = example["relations"]
                targets["word_weights"][at, 1:stop] = 1
        return Encoded.of(rows, length=length, example=range(len(rows)), targets=targets)

    def forward(self, apply: Apply, batch, rng) -> Outputs:
        """One call of the model; adds "head_log_probs" [B, S, S], over the slots in use, and
        "relation_log_probs" [B, S, relations], of the right heads.
        """
        outputs = apply(batch, rng=rng)
        check_width(self, outputs["relation_logits"], self.relations)
        used = (batch["words"] > 0)[:, None]
        arcs = jnp.where(used, outputs["arc_logits"].astype(jnp.float32), _NEVER)
        relations = relations_to(outputs, batch["heads"])
        return {
            **outputs,
            "head_log_probs": jax.nn.log_softmax(arcs),
            "relation_log_probs": jax.nn.log_softmax(relations),
        }

    @property
    def terms(self) -> Mapping[str, Term]:
        """The losses "head_nll" and "relation_nll"; as metrics, shares of words: "right_head", and
        "right", head and relation.
        """
        return {
            "head_nll": Term(_nll("head_log_probs", "heads"), "word_weights"),
            "relation_nll": Term(_nll("relation_log_probs", "relations"), "word_weights"),
            "right_head": Term(_right_head, "word_weights", scale=0.0),
            "right": Term(_right, "word_weights", scale=0.0),
        }

    def answers(self, outputs, batch):
        heads, relations = _answered(outputs)
        return {"heads": heads.astype(jnp.int32), "relations": relations.astype(jnp.int32)}

    def predictions(self, answers, encoded, examples, form):
        return [
            tuple(
                answers[name][at, 1 : len(example["words"]) + 1].tolist()
                for name in ("heads", "relations")
            )
            for at, example in enumerate(examples)
        ]

    def show(self, features, vocab):
        """The text of each row; of each word head:relation."""
        shown = []
        for row, words in enumerate(features["words"].sum(1).tolist()):
            text = features["tokens"][row][features["segments"][row] > 0]
            pairs = zip(*(features[name][row, 1:words] for name in ("heads", "relations")),
                        strict=True)  # fmt: skip
            shown.append(Example(vocab.decode(text), " ".join(f"{h}:{r}" for h, r in pairs)))
        return shown


def relations_to(outputs: Outputs, heads_BS: jax.Array) -> jax.Array:
    """[B, S, relations] fp32: the scores of each word's relations to one head."""
    logits = outputs["relation_logits"].astype(jnp.float32)
    return jnp.take_along_axis(logits, heads_BS[..., None, None], axis=2)[:, :, 0]


def _check_room(example, what: str, count: int, most: int, field: str) -> None:
    if count > most:
        raise DataError(
            f"example {example['id']!r} has {count} {what}, there is room for {most}: a sentence "
            f"is parsed as a whole; make {field} larger"
        )


def _last(pos: str) -> str:
    """The part of speech of a word's last morpheme."""
    return pos.rpartition("+")[2]


def _nll(output: str, target: str):
    def values(outputs: Outputs, batch) -> jax.Array:
        picked = jnp.take_along_axis(outputs[output], batch[target][..., None], axis=2)
        return -picked[..., 0]

    return values


def _answered(outputs: Outputs) -> tuple[jax.Array, jax.Array]:
    heads_BS = outputs["head_log_probs"].argmax(axis=2)
    return heads_BS, relations_to(outputs, heads_BS).argmax(axis=2)


def _right_head(outputs: Outputs, batch) -> jax.Array:
    return (_answered(outputs)[0] == batch["heads"]).astype(jnp.float32)


def _right(outputs: Outputs, batch) -> jax.Array:
    heads, relations = _answered(outputs)
    right = (heads == batch["heads"]) & (relations == batch["relations"])
    return right.astype(jnp.float32)
