"""Where in a context the answer to a question stands (Devlin et al. 2019, sections 4.2 and 4.3).

    row         [CLS] who sat ? [SEP] the cat sat [SEP]
    start, end  6, 6                                         cat

A head gives every position two numbers, how well an answer begins and ends there. A long context
goes over several rows. A row without the answer has its place at [CLS]; where a question may have
none at all (SQuAD 2.0), what [CLS] gets against the best span decides, by `threshold`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.data.encoded import Encoded
from flaxlm.errors import ConfigError
from flaxlm.objectives.base import Apply, Outputs, Term
from flaxlm.objectives.examples import ExampleObjective, check_width
from flaxlm.objectives.texts import nearest_window, windows

_NEVER = -1e30


@dataclass(frozen=True, kw_only=True)
class AnswerSpans(ExampleObjective):
    """Reads the output "span_logits" [B, L, 2].

    Attributes:
      question: most tokens of a question; what is longer is cut.
      stride: tokens by which the next row of a long context moves on (BERT's doc_stride).
      candidates: starts and ends of a row that are looked at, the best of each.
      longest: most tokens of an answer.
      threshold: a question that may have no answer gets none where [CLS] scores by more than this
        above the best span.
    """

    question: int = 64
    stride: int = 128
    candidates: int = 20
    longest: int = 30
    threshold: float = 0.0

    form = "Spans"

    def __post_init__(self):
        for name in ("question", "stride", "candidates", "longest"):
            if getattr(self, name) < 1:
                raise ConfigError(f"objective.{name}={getattr(self, name)}: at least 1")

    def targets(self, rows, length):
        return {
            "span_starts": np.zeros(rows, np.int32),
            "span_ends": np.zeros(rows, np.int32),
            "label_weights": np.zeros(rows, np.float32),
        }

    def encode(self, examples, form, vocab, length):
        """Notes, of each row: "none", the place of [CLS]; "context", where the context begins;
        "window", which of its tokens these are [N, 2]. Of each example: "spans", the characters of
        the context's tokens.
        """
        if self.question >= self.texts.room(2, length):
            raise ConfigError(
                f"objective.question={self.question} leaves no room for a context in rows of "
                f"data.length={length}"
            )
        questions = vocab.encode_batch([example["question"] for example in examples])
        contexts = vocab.encode_spans([example["context"] for example in examples])
        rows, owners, targets, none, begins, parts = [], [], [], [], [], []
        for at, (question, (ids, spans)) in enumerate(zip(questions, contexts, strict=True)):
            question = question[: self.question]
            room = self.texts.room(2, length) - len(question)
            known = _tokens_of(examples[at], spans)
            answered = known is not None or examples[at]["impossible"]
            for start, stop in windows(len(ids), room, min(self.stride, room)):
                row, (_, begin) = self.texts.around(vocab, question, ids[start:stop])
                place = self.texts.place_of_symbol(2, "cls", row)
                inside = known is not None and start <= known[0] and known[1] < stop
                first, last = (begin + k - start for k in known) if inside else (place, place)
                rows.append([row])
                owners.append(at)
                targets.append((first, last, answered))
                none.append(place)
                begins.append(begin)
                parts.append((start, stop))
        starts, ends, weights = (np.array(column) for column in zip(*targets, strict=True))
        return Encoded.of(
            rows,
            length=length,
            example=owners,
            targets={
                "span_starts": starts.astype(np.int32),
                "span_ends": ends.astype(np.int32),
                "label_weights": weights.astype(np.float32),
            },
            notes={
                "none": np.array(none),
                "context": np.array(begins),
                "window": np.array(parts),
                "spans": [spans for _, spans in contexts],
            },
        )

    def forward(self, apply: Apply, batch, rng) -> Outputs:
        """One call of the model; adds "span_log_probs" [B, L, 2], over the positions of a row."""
        outputs = apply(batch, rng=rng)
        check_width(self, outputs["span_logits"], 2)
        text = (batch["segments"] > 0)[..., None]
        logits = jnp.where(text, outputs["span_logits"].astype(jnp.float32), _NEVER)
        return {
            **outputs,
            "span_logits": logits,
            "span_log_probs": jax.nn.log_softmax(logits, axis=1),
        }

    @property
    def terms(self) -> Mapping[str, Term]:
        """The loss "nll", the mean of start and end; as a metric "right", the share of the rows in
        which both are.
        """
        return {
            "nll": Term(_nll, "label_weights"),
            "right": Term(_exact, "label_weights", scale=0.0),
        }

    def answers(self, outputs, batch):
        return {"span_logits": outputs["span_logits"]}

    def predictions(self, answers, encoded, examples, form):
        """Of each example the best span of its rows; "no_answer" is the least score of [CLS] in a
        row of it minus that of the span.
        """
        logits, notes = answers["span_logits"], encoded.notes
        rows = np.searchsorted(encoded.example, np.arange(len(examples) + 1))
        found = []
        for at, example in enumerate(examples):
            here = range(rows[at], rows[at + 1])
            places = [tuple(notes["window"][row]) for row in here]
            best, span = -np.inf, None
            for number, row in enumerate(here):
                first, stop = places[number]
                begin = notes["context"][row]
                scores = logits[row, begin : begin + stop - first].astype(np.float64)
                starts = np.arange(first, stop)
                if len(places) > 1:  # an answer begins where its first token has most context
                    kept = [nearest_window(places, k) == number for k in starts.tolist()]
                    scores[~np.array(kept, bool), 0] = -np.inf
                score, pair = self._best(scores)
                if score > best:
                    best, span = score, (first + pair[0], first + pair[1])
            none = min(logits[row, notes["none"][row]].astype(np.float64).sum() for row in here)
            found.append(self._answer(example, notes["spans"][at], span, none - best, form))
        return found

    def _best(self, scores: np.ndarray) -> tuple[float, tuple[int, int]]:
        """(score, (start, end)) of the best span [n, 2] among the candidates."""
        if not len(scores):
            return -np.inf, (0, 0)
        order = np.argsort(-scores, axis=0, kind="stable")[: self.candidates]
        starts, ends = order.T
        size = ends[None, :] - starts[:, None] + 1
        joint = scores[starts, 0][:, None] + scores[ends, 1][None, :]
        joint = np.where((size >= 1) & (size <= self.longest), joint, -np.inf)
        start, end = np.unravel_index(joint.argmax(), joint.shape)
        return float(joint[start, end]), (int(starts[start]), int(ends[end]))

    def _answer(self, example, spans, span, none: float, form) -> dict:
        text = ""
        if span is not None:
            text = example["context"][spans[span[0], 0] : spans[span[1], 1]]
        if not form.no_answer:
            return {"text": text, "no_answer": 0.0}
        # Without any span there is nothing to weigh against.
        none = float(none) if np.isfinite(none) else 1e9
        return {"text": "" if none > self.threshold else text, "no_answer": none}


def _tokens_of(example, spans: np.ndarray) -> tuple[int, int] | None:
    """(first, last) token of the example's first answer, or None."""
    if not example["answers"] or example["impossible"]:
        return None
    answer = example["answers"][0]
    stop = answer["start"] + len(answer["text"])
    first = int(np.searchsorted(spans[:, 1], answer["start"], side="right"))
    last = int(np.searchsorted(spans[:, 0], stop, side="left")) - 1
    return (first, last) if first <= last else None


def _nll(outputs: Outputs, batch) -> jax.Array:
    places = jnp.stack([batch["span_starts"], batch["span_ends"]], axis=1)[:, None]
    picked = jnp.take_along_axis(outputs["span_log_probs"], places, axis=1)[:, 0]
    return -picked.mean(axis=1)


def _exact(outputs: Outputs, batch) -> jax.Array:
    places = jnp.stack([batch["span_starts"], batch["span_ends"]], axis=1)
    return (outputs["span_log_probs"].argmax(axis=1) == places).all(axis=1).astype(jnp.float32)
