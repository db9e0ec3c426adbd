"""How likely a model finds texts: continuations of a context, whole texts, perplexity.

`B` rows, `L` positions.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np

from flaxlm.batch import Batch, Features
from flaxlm.convert.tokenizer import Template
from flaxlm.decode.cache import has_encoder
from flaxlm.decode.prompts import Prompt, Reader, bucket
from flaxlm.errors import ConfigError, DataError
from flaxlm.losses import judged
from flaxlm.step import ByName


@dataclass(frozen=True)
class Likelihood:
    """Of some tokens after others.

    Attributes:
      nats: their log-likelihood.
      tokens: how many they are.
      greedy: whether each of them is the most likely one in its place.
    """

    nats: float
    tokens: int
    greedy: bool


@dataclass(frozen=True)
class Perplexity:
    """Of a collection of texts.

    Attributes:
      nats: log-likelihood of all tokens.
      tokens: how many they are.
      bytes: of the texts in UTF-8.
    """

    nats: float
    tokens: int
    bytes: int

    @property
    def per_token(self) -> float:
        """The perplexity: e to the mean loss. Depends on the vocabulary."""
        return math.exp(-self.nats / max(self.tokens, 1))

    @property
    def bits_per_byte(self) -> float:
        """Can be compared between vocabularies."""
        return -self.nats / math.log(2) / max(self.bytes, 1)


@dataclass(frozen=True)
class _Row:
    """What is scored in one row.

    Attributes:
      encoder: ids that an encoder reads; empty where there is none.
      inputs: ids before each target.
      targets: ids, of which the last `counted` count.
      context: inputs that a prefix LM sees as wholes.
    """

    encoder: np.ndarray
    inputs: np.ndarray
    targets: np.ndarray
    counted: int
    context: int = 0


def of_continuations(
    lm, pairs: Sequence[tuple[Prompt, Prompt]], *, rows: int = 16
) -> list[Likelihood]:
    """The likelihood of each (context, continuation), in their order.

    A context that is too long loses its beginning. Both are texts or ids. A decoder-only model
    reads text as one piece, so that a token may not cross from one to the other but spaces at the
    end of a context belong to what follows; an encoder reads the context by itself.

    Args:
      lm: a `flaxlm.lm.LM` that writes texts.
      rows: pairs at a time.

    Raises:
      ConfigError: the model does not write texts.
      DataError: a continuation is empty, or longer than the model's positions.
    """
    reader = Reader.of(lm.model, lm.vocab)
    made = [_pair(reader, number, *pair) for number, pair in enumerate(pairs)]
    return _scored(reader, lm.params, made, rows)


def of_texts(
    lm, texts: Sequence[str], *, window: int = 0, stride: int = 0, rows: int = 16
) -> list[Likelihood]:
    """The likelihood of whole texts, of whatever length.

    Every token is predicted once, from at most `window` before it; the first from the end of
    another text. Windows move on by `stride` tokens, so each token but the first ones sees at least
    window - stride others. The last window is as long as the others.

    Args:
      window: 0: the model's positions, or 1024.
      stride: 0: `window`, the fastest; smaller is closer to what the model can do.

    Raises:
      ConfigError: the model has an encoder or does not write, or the numbers make no sense.
    """
    reader, window, stride = _whole(lm, window, stride)
    parts, owners = [], []
    for number, text in enumerate(texts):
        ids = lm.vocab.encode(text)
        if len(ids):
            found = list(_windows(np.append(reader.ids("")[:1], ids), window, stride))
            parts += found
            owners += [number] * len(found)
    sums = [Likelihood(0.0, 0, True)] * len(texts)
    for owner, found in zip(owners, _scored(reader, lm.params, parts, rows), strict=True):
        before = sums[owner]
        sums[owner] = Likelihood(
            before.nats + found.nats, before.tokens + found.tokens, before.greedy and found.greedy
        )
    return sums


def of_tokens(
    lm, text: str, *, context: str = "", window: int = 0, stride: int = 0
) -> list[tuple[int, float]]:
    """(id, log-likelihood in nat) of every token of a text.

    Args:
      context: what an encoder reads; a decoder-only model has none, its text is of any length.
      window, stride: as `of_texts`.

    Raises:
      ConfigError, DataError: as `of_texts` and `of_continuations`; or there is a context that no
        encoder reads.
    """
    if has_encoder(lm.model):
        reader = Reader.of(lm.model, lm.vocab)
        parts = [_pair(reader, 0, context, text)]
    else:
        if context:
            raise ConfigError(f"{type(lm.model).__name__} has no encoder: put all into the text")
        reader, window, stride = _whole(lm, window, stride)
        ids = np.append(reader.ids("")[:1], lm.vocab.encode(text))
        parts = list(_windows(ids, window, stride))
    found = []
    for part, (nll, _) in zip(parts, _by_token(reader, lm.params, parts, 16), strict=True):
        spelt = part.targets[len(part.targets) - part.counted :]
        found += zip(spelt.tolist(), (-nll).tolist(), strict=True)
    return found


def _whole(lm, window: int, stride: int) -> tuple[Reader, int, int]:
    """(reader, window, stride) for whole texts of a model that goes on from one; see `of_texts`."""
    reader = Reader.of(lm.model, lm.vocab)
    if has_encoder(lm.model):
        raise ConfigError(
            f"{type(lm.model).__name__} reads with an encoder: it has no likelihood of a whole text"
        )
    longest = getattr(lm.model, "longest", None)
    window = window or longest or 1024
    stride = stride or window
    if not 0 < stride <= window or (longest is not None and window > longest):
        raise ConfigError(
            f"window={window}, stride={stride}: 0 < stride <= window"
            + (f" <= {longest}, the model's positions" if longest is not None else "")
        )
    return reader, window, stride


def perplexity(
    lm, texts: Sequence[str], *, window: int = 0, stride: int = 0, rows: int = 16
) -> Perplexity:
    """Of all texts together; arguments as `of_texts`."""
    found = of_texts(lm, texts, window=window, stride=stride, rows=rows)
    return Perplexity(
        sum(one.nats for one in found),
        sum(one.tokens for one in found),
        sum(len(text.encode()) for text in texts),
    )


def _pair(reader: Reader, number: int, context: Prompt, continuation: Prompt) -> _Row:
    if has_encoder(reader.model):
        spelt = _ids(reader, continuation)
        row = _Row(reader.ids(context), np.append(reader.start, spelt[:-1]), spelt, len(spelt))
    else:
        before, spelt = _split(reader, context, continuation)
        whole = np.concatenate([before, spelt])
        row = _Row(np.zeros(0, np.int32), whole[:-1], whole[1:], len(spelt), len(before))
    if not len(spelt):
        raise DataError(f"pair {number}: the continuation is empty")
    longest = getattr(reader.model, "longest", None)
    if longest is None:
        return row
    if len(spelt) > longest or len(row.encoder) > longest:
        part = "continuation" if len(spelt) > longest else "context"
        raise DataError(f"pair {number}: the {part} has more tokens than {longest} positions")
    lost = max(len(row.inputs) - longest, 0)
    return _Row(
        row.encoder, row.inputs[lost:], row.targets[lost:], row.counted, max(row.context - lost, 0)
    )


def _split(reader: Reader, context: Prompt, continuation: Prompt) -> tuple[np.ndarray, np.ndarray]:
    """Ids of both, read as one text where a model's prompt ends with its text."""
    texts = isinstance(context, str) and isinstance(continuation, str)
    if not texts or Template(reader.model.prompt, "").words(1)[-1][0] != "A" or not context:
        return reader.ids(context), _ids(reader, continuation)
    kept = context.rstrip()
    if not kept:
        return reader.ids(""), _ids(reader, context + continuation)
    before = reader.ids(kept)
    whole = reader.ids(context + continuation)
    return before, whole[len(before) :]


def _ids(reader: Reader, continuation: Prompt) -> np.ndarray:
    return reader.forced(continuation).astype(np.int32)


def _windows(ids: np.ndarray, window: int, stride: int) -> Iterator[_Row]:
    """Rows that predict ids[1:], each once."""
    start = 1
    while start < len(ids):
        end = min(start + (window if start == 1 else stride), len(ids))
        first = max(end - window, 1)
        yield _Row(np.zeros(0, np.int32), ids[first - 1 : end - 1], ids[first:end], end - start)
        start = end


def _scored(reader: Reader, params, made: Sequence[_Row], rows: int) -> list[Likelihood]:
    return [
        Likelihood(-float(nll.sum(dtype=np.float64)), len(nll), bool(best.all()))
        for nll, best in _by_token(reader, params, made, rows)
    ]


def _by_token(
    reader: Reader, params, made: Sequence[_Row], rows: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(negative log-likelihoods, whether none is likelier) of the targets that count of each row.

    The longest first: rows of one length share a batch, the first needs the most memory.
    """
    order = sorted(range(len(made)), key=lambda at: -len(made[at].inputs))
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        batch, targets = _padded(reader, [made[at] for at in part])
        nll, best = jax.device_get(_judge(reader.model, params, batch, targets))
        for row, at in enumerate(part):
            end = len(made[at].targets)
            counted = slice(end - made[at].counted, end)
            found[at] = nll[row, counted], best[row, counted]
    return [found[at] for at in range(len(made))]


def _padded(reader: Reader, made: Sequence[_Row]) -> tuple[Features, np.ndarray]:
    """Features and targets [B, L] in a shape of few, padded at the end."""
    rows = 1 << (len(made) - 1).bit_length()
    longest = getattr(reader.model, "longest", None)
    side = "decoder_" if has_encoder(reader.model) else ""

    def laid(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        most = max(map(len, parts))
        shape = rows, bucket(most, limit=longest)
        tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        for row, ids in enumerate(parts):
            tokens[row, : len(ids)], segments[row, : len(ids)] = ids, 1
        return tokens, segments

    tokens, segments = laid([row.inputs for row in made])
    columns = np.arange(tokens.shape[1], dtype=np.int32)
    batch = {
        side + "tokens": tokens,
        side + "segments": segments,
        side + "positions": columns * segments,
    }
    if side:
        batch["tokens"], batch["segments"] = laid([row.encoder for row in made])
        places = np.arange(batch["tokens"].shape[1], dtype=np.int32)
        batch["positions"] = places * batch["segments"]
    else:
        seen = np.array([row.context for row in made] + [0] * (rows - len(made)))
        batch["prefix"] = (columns < seen[:, None]).astype(np.int32)
    return batch, laid([row.targets for row in made])[0]


@partial(jax.jit, static_argnums=0)
def _judge(model, params, batch: Batch, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    outputs = model.apply({"params": params}, ByName("feature", batch), train=False)
    return judged(outputs["logits"], targets)
