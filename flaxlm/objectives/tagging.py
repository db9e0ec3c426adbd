"""One of several tags for every word (Devlin et al. 2019, section 5.3).

    words       Jim    Hen          ##son   was
    tags        B-PER  I-PER                O

A word's tag is read at its first piece; the others do not count. A long sentence goes over several
rows; every word counts in one of them, that in which it has the most context.

Where the "words" are the characters of a text (`Tags.joined`), the text is cut into pieces as it
stands: a piece is read at its first character, and the tag that it gets is that of all its
characters, of which only the first begins what the tag names.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.data.encoded import Encoded
from flaxlm.errors import ConfigError
from flaxlm.objectives.base import Apply, Outputs, Term
from flaxlm.objectives.examples import ExampleObjective, check_count, check_width
from flaxlm.objectives.texts import nearest_window, pieces_of_words, windows


@dataclass(frozen=True, kw_only=True)
class Tagging(ExampleObjective):
    """Reads the output "tag_logits" [B, L, tags].

    Attributes:
      tags: how many there are.
      stride: tokens by which the next row of a long sentence moves on.
    """

    tags: int
    stride: int = 64

    form = "Tags"

    def __post_init__(self):
        if self.tags < 2:
            raise ConfigError(f"objective.tags={self.tags}: at least 2")
        if self.stride < 1:
            raise ConfigError(f"objective.stride={self.stride}: at least 1 token")

    def check(self, form, *, name):
        super().check(form, name=name)
        check_count("tags", self.tags, task=name, there=len(form.labels))

    def targets(self, rows, length):
        return {
            "tags": np.zeros((rows, length), np.int32),
            "weights": np.zeros((rows, length), np.float32),
        }

    def encode(self, examples, form, vocab, length):
        """Notes: "places", of each example (row, position) of every word or character."""
        room = self.texts.room(1, length)
        rows, owners, where, tagged = [], [], [], []
        for at, example in enumerate(examples):
            pieces, first = (_joined if form.joined else pieces_of_words)(example["words"], vocab)
            spans = windows(len(pieces), room, min(self.stride, room))
            begin = len(rows)
            for start, stop in spans:
                row, (offset,) = self.texts.around(vocab, pieces[start:stop])
                rows.append([row])
                owners.append(at)
            window = [nearest_window(spans, piece) for piece in first]
            places = [
                (begin + w, offset + piece - spans[w][0])
                for w, piece in zip(window, first, strict=True)
            ]
            where.append(np.array(places, np.int64).reshape(-1, 2))
            tagged.append(example["tags"])
        targets = self.targets(len(rows), length)
        for places, tags in zip(where, tagged, strict=True):
            if tags is None:
                continue
            # Characters of one piece share a place; the first of them says its tag.
            row, position = places[::-1].T
            targets["tags"][row, position] = tags[::-1]
            targets["weights"][row, position] = 1
        return Encoded.of(
            rows, length=length, example=owners, targets=targets, notes={"places": where}
        )

    def forward(self, apply: Apply, batch, rng) -> Outputs:
        """One call of the model; adds "tag_log_probs" [B, L, tags]."""
        outputs = apply(batch, rng=rng)
        check_width(self, outputs["tag_logits"], self.tags)
        logits = outputs["tag_logits"].astype(jnp.float32)
        return {**outputs, "tag_log_probs": jax.nn.log_softmax(logits)}

    @property
    def terms(self) -> Mapping[str, Term]:
        """The loss "nll"; as a metric "right", the share of right tags."""
        return {
            "nll": Term(_nll, "weights"),
            "right": Term(_hit, "weights", scale=0.0),
        }

    def answers(self, outputs, batch):
        return {"tags": outputs["tag_log_probs"].argmax(axis=2).astype(jnp.int32)}

    def predictions(self, answers, encoded, examples, form):
        found = []
        for places in encoded.notes["places"]:
            row, position = places.T
            tags = answers["tags"][row, position]
            if form.joined:
                same = np.all(places[1:] == places[:-1], axis=1)
                inside = _inside(form.labels)
                tags[1:] = np.where(same, inside[tags[1:]], tags[1:])
            found.append(tags.tolist())
        return found


def _joined(characters, vocab) -> tuple[list[int], list[int]]:
    """(pieces of the text that the characters make, the piece that each character belongs to).
    A character that no piece has, such as a space, belongs to the piece behind it.
    """
    text, ends = "".join(characters), np.cumsum([len(c) for c in characters])
    pieces, spans = vocab.encode_spans([text])[0]
    if not len(pieces):
        return [vocab.unk], [0] * len(characters)
    at = np.searchsorted(spans[:, 1], ends - 1, side="right")
    return list(pieces), np.minimum(at, len(pieces) - 1).tolist()


def _inside(labels) -> np.ndarray:
    """[T] for each tag that of what goes on: B-X becomes I-X, where there is one."""
    place = {label: n for n, label in enumerate(labels)}
    return np.array([place.get("I" + label[1:], n) if label[:2] == "B-" else n
                     for n, label in enumerate(labels)])  # fmt: skip


def _nll(outputs: Outputs, batch) -> jax.Array:
    picked = jnp.take_along_axis(outputs["tag_log_probs"], batch["tags"][..., None], axis=2)
    return -picked[..., 0]


def _hit(outputs: Outputs, batch) -> jax.Array:
    return (outputs["tag_log_probs"].argmax(axis=2) == batch["tags"]).astype(jnp.float32)
