"""Texts into padded batches, and what a search finds back into texts.

Programs are compiled per shape, so shapes are rounded up: rows to a power of two, columns of the
prompts and of the new tokens to 8, 12, 16, 24, 32, 48, ... What fills them up changes no answer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import numpy as np

from flaxlm.convert.families import family_of_model
from flaxlm.convert.tokenizer import Template
from flaxlm.data.vocab_base import Vocab
from flaxlm.decode.beams import Beams
from flaxlm.decode.cache import has_encoder
from flaxlm.decode.sampling import Sampling
from flaxlm.decode.search import Inputs, Search
from flaxlm.decode.settings import Settings
from flaxlm.errors import ConfigError, DataError, MissingInput

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Answer:
    """What a model said to a prompt.

    Attributes:
      text: the new text; "" where the model came without a vocabulary.
      ids: the new tokens, the end of text included.
      log_likelihood: of these tokens, in nat.
      score: what it was ranked by: log_likelihood / tokens to the power of the length penalty.
    """

    text: str
    ids: tuple[int, ...]
    log_likelihood: float
    score: float


@dataclass(frozen=True)
class Reader:
    """What turns the prompts of one model into ids and back.

    Attributes:
      model: the module.
      vocab: its vocabulary; None: prompts are ids.
      eos: the end of text; None: there is none.
      start: what a decoder begins with; None in a decoder-only model.
    """

    model: object
    vocab: Vocab | None
    eos: int | None
    start: int | None

    @classmethod
    def of(
        cls, model, vocab: Vocab | None, *, eos: int | None = None, start: int | None = None
    ) -> "Reader":
        """For a model; `eos` and `start` replace those of the vocabulary.

        Raises:
          ConfigError: the model does not generate, or its start is not known.
        """
        if not has_encoder(model) and not hasattr(model, "prompt"):
            raise ConfigError(
                f"{type(model).__module__}.{type(model).__name__} does not write texts; a masked "
                "model fills in its masks: lm.fill, or --fill"
            )
        if eos is None and vocab is not None:
            eos = vocab.eos
        if has_encoder(model) and start is None:
            if vocab is None:
                raise ConfigError("there is no vocabulary to say what a decoder begins with: start")
            symbol = family_of_model(model).TOKENIZER.start
            vocab.require(symbol)
            start = getattr(vocab, symbol)
        return cls(model, vocab, eos, start)

    def ids(self, prompt: Prompt) -> np.ndarray:
        """[P] ids of a prompt with what the family puts around it; ids are taken as they are.

        Raises:
          MissingInput: it is text and there is no vocabulary.
          DataError: it is empty, or an id is none of the model's.
        """
        if not isinstance(prompt, str):
            ids = np.asarray(prompt, np.int64).reshape(-1)
            if not len(ids) or ids.min() < 0 or ids.max() >= self.model.size.vocab:
                raise DataError(f"a prompt needs ids in [0, {self.model.size.vocab})")
            return ids.astype(np.int32)
        if self.vocab is None:
            raise MissingInput("the model came without a vocabulary: prompts are ids")
        if has_encoder(self.model):
            template = family_of_model(self.model).TOKENIZER
        else:
            template = Template(self.model.prompt, "")
        ids, _ = template.around(self.vocab, self.vocab.encode(prompt, specials=True))
        if not len(ids):  # as between two documents of the stream that it was trained on
            if self.vocab.eos is None:
                raise DataError("an empty prompt, and the vocabulary has no end of text to go on")
            return np.array([self.vocab.eos], np.int32)
        return ids

    def forced(self, prefix: Prompt) -> np.ndarray:
        """Ids of the text that an answer begins with."""
        if not isinstance(prefix, str):
            return np.asarray(prefix, np.int32).reshape(-1)
        if prefix and self.vocab is None:
            raise MissingInput("the model came without a vocabulary: prefixes are ids")
        return self.vocab.encode(prefix) if prefix else np.zeros(0, np.int32)

    def text(self, prompt: np.ndarray, ids: Sequence[int]) -> str:
        """The text that `ids` add to a prompt; with an encoder they stand alone."""
        if self.vocab is None:
            return ""
        before = [] if has_encoder(self.model) else list(prompt)
        start = self.vocab.decode(before)
        whole = self.vocab.decode([*before, *(at for at in ids if at < self.vocab.size)])
        return whole[len(start) :] if whole.startswith(start) else whole

    def check(self, prompts: Sequence[np.ndarray], settings: Settings) -> None:
        """Refuse what does not fit into the model's positions.

        Raises:
          ConfigError: naming the prompt.
        """
        longest = getattr(self.model, "longest", None)
        for number, ids in enumerate(prompts):
            new = settings.max_new_tokens
            needed = max(len(ids), new) if has_encoder(self.model) else len(ids) + new
            if longest is not None and needed > longest:
                raise ConfigError(
                    f"prompt {number} has {len(ids)} tokens; with max_new_tokens={new} that is "
                    f"more than the model's {longest} positions"
                )


def bucket(size: int, *, limit: int | None = None) -> int:
    """The next of 8, 12, 16, 24, 32, 48, ...; above `limit` only where `size` is."""
    power = 8
    while power < size:
        power *= 2
    found = power * 3 // 4 if power > 8 and size <= power * 3 // 4 else power
    return found if limit is None else max(min(found, limit), size)


def generate(
    reader: Reader,
    params,
    prompts: Sequence[Prompt],
    settings: Settings,
    *,
    prefixes: Sequence[Prompt],
    seed: int,
    rows: int,
) -> list[Answer]:
    """The answers, in the order of the prompts. Arguments as `flaxlm.lm.LM.generate`."""
    ids = [reader.ids(prompt) for prompt in prompts]
    forced = [reader.forced(prefix) for prefix in prefixes]
    reader.check(ids, settings)
    search = search_of(reader, settings)
    answers = []
    for start in range(0, len(ids), rows):
        part = slice(start, start + rows)
        inputs = padded(reader, ids[part], forced[part], settings, seed=seed, first=start)
        found = jax.device_get(search.run(params, inputs))
        for row, prompt in enumerate(ids[part]):
            new = tuple(found.tokens[row, : found.lengths[row]].tolist())
            answers.append(
                Answer(
                    reader.text(prompt, new),
                    new,
                    float(found.likelihoods[row]),
                    float(found.scores[row]),
                )
            )
    return answers


def stream(
    reader: Reader, params, prompt: Prompt, settings: Settings, *, prefix: Prompt, seed: int
) -> Iterator[str]:
    """The answer of `generate` to one prompt piece by piece, as it is made.

    Raises:
      ConfigError: the settings look at several answers.
    """
    if settings.num_beams > 1 or settings.candidates > 1:
        raise ConfigError("several answers are compared before one is known: nothing to stream")
    ids = reader.ids(prompt)
    reader.check([ids], settings)
    search = search_of(reader, settings)
    inputs = padded(reader, [ids], [reader.forced(prefix)], settings, seed=seed, first=0)
    state, said = search.begin(params, inputs), ""
    while True:
        made, done = int(state.made), bool(state.done[0])
        column = state.text.tokens.shape[1] - search.room
        new = np.asarray(state.text.tokens)[0, column : column + made]
        text = reader.text(ids, new.tolist())
        if done or not text.endswith("\ufffd"):  # else a character of which bytes are missing
            yield text[len(said) :]
            said = text
        if done:
            return
        state = search.step(params, inputs, state)


def search_of(reader: Reader, settings: Settings) -> Search:
    """The search that settings ask for; equal for all that one compiled program serves."""
    kind = Beams if settings.num_beams > 1 else Sampling
    room = bucket(settings.max_new_tokens)
    settings = replace(settings, max_new_tokens=max(settings.min_new_tokens, 1))
    return kind(reader.model, settings, room, reader.eos)


def padded(
    reader: Reader,
    prompts: Sequence[np.ndarray],
    forced: Sequence[np.ndarray],
    settings: Settings,
    *,
    seed: int,
    first: int,
) -> Inputs:
    """The inputs of a search, in a shape of few.

    Args:
      first: number of the first prompt, which its draws depend on.
    """
    rows = 1 << (len(prompts) - 1).bit_length()
    full = [*prompts, *[prompts[-1]] * (rows - len(prompts))]
    columns = bucket(max(map(len, full)))
    tokens = np.zeros((rows, columns), np.int32)
    segments = np.zeros((rows, columns), np.int32)
    for row, ids in enumerate(full):
        place = slice(0, len(ids)) if has_encoder(reader.model) else slice(columns - len(ids), None)
        tokens[row, place], segments[row, place] = ids, 1
    made = {"tokens": tokens, "segments": segments}
    if has_encoder(reader.model):
        made["decoder_tokens"] = np.full((rows, 1), reader.start, np.int32)
    most = max(map(len, forced))
    given = np.full((rows, bucket(most) if most else 0), -1, np.int32)
    for row, ids in enumerate(forced):
        given[row, : len(ids)] = ids
    numbers = np.arange(first, first + rows)
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(numbers)
    limit = np.int32(settings.max_new_tokens)
    return Inputs(made, given, limit, keys, np.arange(rows) < len(prompts))
