"""A task as text in, text out (Raffel et al. 2020, section 2.4), for an encoder-decoder.

    input      sst2 sentence: a fine film </s>
    target     positive </s>

What is asked and said is a `Template`'s. Learned is the target, token by token; an evaluation says
an answer, always the likeliest token, and reads the task's answer from it: what is none of the
labels counts as wrong.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from flaxlm.data.encoded import Encoded
from flaxlm.decode import greedy
from flaxlm.errors import ConfigError
from flaxlm.objectives.base import Apply, Example, Outputs
from flaxlm.objectives.examples import ExampleObjective
from flaxlm.objectives.templates import Template, read_answer
from flaxlm.objectives.texts import Texts, symbol
from flaxlm.objectives.tokens import EncoderDecoderObjective, shift_right, text_weights


@dataclass(frozen=True, kw_only=True)
class TextToText(ExampleObjective, EncoderDecoderObjective):
    """Reads the output "logits" of an encoder-decoder. Inputs that are longer than data.length lose
    their end, targets what is beyond `answer`.

    Attributes:
      template: what is asked and said.
      answer: most tokens of what is said, its end included.
      texts: around input and target alike, and `decoder`, what the decoder begins with; T5's by
        default. BART's are Texts("bos A eos", decoder="eos").
    """

    template: Template
    answer: int = 16
    texts: Texts = field(default_factory=lambda: Texts("A eos", "A B eos", decoder="pad"))

    form: ClassVar[str] = ""  # those that a template can put
    measured = EncoderDecoderObjective.measured

    def __post_init__(self):
        super().__post_init__()
        if self.answer < 2:
            raise ConfigError(f"objective.answer={self.answer}: a token and the end, at least 2")
        if not self.texts.decoder:
            raise ConfigError("objective.texts.decoder is empty: pad for T5, eos for BART")

    def window(self, length: int) -> int:
        if self.answer > length:
            raise ConfigError(f"objective.answer={self.answer} is above data.length={length}")
        return length

    def check(self, form, *, name):
        self.template.check(form, name=name)

    def targets(self, rows, length):
        self.window(length)
        shape = rows, self.answer
        return {
            "targets": np.zeros(shape, np.int32),
            "weights": np.zeros(shape, np.float32),
            "text_weights": np.zeros(shape, np.float32),
        }

    def encode(self, examples, form, vocab, length):
        """Notes: "asked", the texts of each example; "vocab"."""
        asked = [self.template.ask(example, form) for example in examples]
        room, said = self.texts.room(1, length), self.texts.room(1, self.answer)
        inputs = vocab.encode_batch([one.input for one in asked])
        outputs = vocab.encode_batch([one.target or "" for one in asked])
        targets = self.targets(len(asked), length)
        for row, ids in enumerate(outputs):
            if asked[row].target is not None:
                (ids, _), _ = self.texts.around(vocab, ids[:said])
                targets["targets"][row, : len(ids)] = ids
                targets["weights"][row, : len(ids)] = 1
        targets["text_weights"][:] = text_weights(targets["targets"], targets["weights"], vocab)
        return Encoded.of(
            [[self.texts.around(vocab, ids[:room])[0]] for ids in inputs],
            length=length,
            example=range(len(asked)),
            targets=targets,
            notes={"asked": asked, "vocab": vocab},
        )

    def prepare(self, rows, rng, vocab):
        """Features of an encoder-decoder: tokens, segments, positions, decoder_*, targets and
        weights.
        """
        features = {name: x for name, x in rows.features.items() if name != "types"}
        inside = (features["weights"] > 0).astype(np.int32)
        start = symbol(vocab, self.texts.decoder)
        return features | {
            "decoder_tokens": shift_right(features["targets"], start),
            "decoder_segments": inside,
            "decoder_positions": np.arange(self.answer, dtype=np.int32) * inside,
        }

    def forward(self, apply: Apply, batch, rng) -> Outputs:
        """One call of the model; in an evaluation adds "said" [B, M], the ids of an answer."""
        outputs = super().forward(apply, batch, rng)
        return outputs if rng is not None else {**outputs, "said": greedy(apply, batch)}

    def answers(self, outputs, batch):
        return {"said": outputs["said"]}

    def predictions(self, answers, encoded, examples, form):
        vocab, found = encoded.notes["vocab"], []
        for ids, asked, example in zip(
            answers["said"], encoded.notes["asked"], examples, strict=True
        ):
            found.append(read_answer(said(ids, vocab), asked, example, form))
        return found

    def show(self, features, vocab):
        return [
            Example(
                vocab.decode(features["tokens"][row][features["segments"][row] > 0]),
                said(features["targets"][row][features["weights"][row] > 0], vocab),
            )
            for row in range(len(features["tokens"]))
        ]


def said(ids: np.ndarray, vocab) -> str:
    """The text of ids up to the end of text. Ids that a model has to spare are unknown."""
    ids = ids.tolist()
    ids = ids[: ids.index(vocab.eos)] if vocab.eos in ids else ids
    return vocab.decode([at if at < vocab.size else vocab.unk for at in ids])
