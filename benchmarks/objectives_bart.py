"""BART's denoising: tokens per second of `Denoising.prepare` against fairseq's logic, in one run.

    python benchmarks/objectives_bart.py [--rounds 9]          (torch: pip install torch)

The peers make one text at a time, as `DenoisingDataset.__getitem__` of fairseq 0.12 does, and
collate a batch: `TorchPeer` with the operations that fairseq uses, `Peer` with numpy in place of
torch, whose calls cost more on texts this short. All work on one core over the same texts of 510
tokens, in turns; a ratio is the median of the rounds' ratios. The test of the objective's
distribution (tests/test_denoising.py) uses `Peer` too.
"""

import argparse
import math
import os
import statistics
import time

import numpy as np

BATCH, WIDTH = 256, 510
GOAL = 10  # times the peer's tokens per second


class Peer:
    """Noise for one text `<s> ... </s>` at a time.

    Attributes:
      rate, mean: share of the words covered by spans, mean words of a span (0: every span is one
        unit long).
      replace: 1: a span becomes one mask, 0: nothing, -1: a mask per token.
      word_starts: [V] bool; None: every token is a unit.
    """

    def __init__(self, vocab, *, rate, mean, replace, random, permute=0.0, insert=0.0, rotate=0.0,
                 word_starts=None, seed=0):  # fmt: skip
        self.vocab, self.rate, self.mean, self.replace = vocab, rate, mean, replace
        self.random, self.permute, self.insert, self.rotate = random, permute, insert, rotate
        self.word_starts, self.generator = word_starts, np.random.default_rng(seed)
        chances = []
        while mean and (not chances or chances[-1] >= 1e-7):
            k = len(chances)
            chances.append(math.exp(-mean) * mean**k / math.factorial(k))
        self.chances = np.array(chances) / sum(chances) if chances else None

    def __call__(self, tokens: np.ndarray, sentences: np.ndarray) -> np.ndarray:
        """The noised text. `sentences`: places of the first tokens of sentences."""
        source = tokens.copy()
        if self.permute:
            source = self.permuted(source, sentences)
        if self.rate:
            source = self.masked(source)
        if self.insert:
            source = self.inserted(source, self.insert)
        if self.rotate and self.generator.random() < self.rotate:
            offset = self.generator.integers(1, max(1, len(source) - 1) + 1)
            source = np.concatenate([source[:1], source[offset:-1], source[1:offset], source[-1:]])
        return source

    def permuted(self, source, sentences):
        count = len(sentences)
        ends = np.append(sentences[1:], len(source) - 1)
        number = math.ceil(count * self.permute)
        chosen = self.generator.permutation(count)[:number]
        order = np.arange(count)
        order[chosen] = chosen[self.generator.permutation(number)]
        result, at = source.copy(), 1
        for i in order:
            sentence = source[sentences[i] : ends[i]]
            result[at : at + len(sentence)] = sentence
            at += len(sentence)
        return result

    def masked(self, source):
        starts = np.ones(len(source), int)
        if self.word_starts is not None:
            starts = self.word_starts[source].astype(int)
            starts[1] = 1  # a row's first token begins a word, as in flaxlm
        starts[0] = starts[-1] = 0
        number = math.ceil(np.float32(starts.sum()) * np.float32(self.rate))
        if number == 0:
            return source
        inserts = 0
        if self.mean:
            draw = lambda: self.generator.choice(len(self.chances), number, p=self.chances)
            lengths = draw()
            while lengths.sum() < number:
                lengths = np.concatenate([lengths, draw()])
            total = np.cumsum(lengths)
            i = 0
            while total[i] < number:
                i += 1
            lengths[i] = number - (0 if i == 0 else total[i - 1])
            lengths = lengths[: i + 1]
            inserts = int((lengths == 0).sum())
            lengths = lengths[lengths > 0]
            number = len(lengths)
        else:
            lengths = np.ones(number, int)
        words = np.flatnonzero(starts)
        at = words[self.generator.permutation(len(words))[:number]]
        random = self.generator.random(number) < self.random
        keep = np.ones(len(source), bool)
        starts[-1] = 255  # no span goes over the end
        self.put(source, keep, at, random, first=True)
        lengths = lengths - 1
        while len(at):
            lengths = lengths - starts[at + 1]
            going = lengths >= 0
            at, random, lengths = at[going] + 1, random[going], lengths[going]
            self.put(source, keep, at, random, first=False)
        source = source[keep]
        return self.inserted(source, inserts / len(source)) if inserts else source

    def put(self, source, keep, at, random, *, first):
        if self.replace == 0 or (self.replace == 1 and not first):
            keep[at] = False
            return
        source[at] = self.vocab.mask
        source[at[random]] = self.generator.integers(1, self.vocab.pieces, int(random.sum()))

    def inserted(self, tokens, share):
        number = math.ceil(len(tokens) * share - 1e-9)
        places = self.generator.permutation(len(tokens) + number - 2)[:number] + 1
        result = np.full(len(tokens) + number, -1, tokens.dtype)
        random = math.ceil(number * self.random)
        result[places[random:]] = self.vocab.mask
        result[places[:random]] = self.generator.integers(1, self.vocab.pieces, random)
        result[result < 0] = tokens
        return result


class TorchPeer:
    """`Peer` with permutation, infilling and insertion, in torch. Arguments as `Peer`."""

    def __init__(self, torch, vocab, *, rate, mean, random, permute, word_starts):
        self.torch, self.vocab, self.rate, self.random = torch, vocab, rate, random
        self.permute, self.word_starts = permute, torch.from_numpy(word_starts).long()
        chances = Peer(vocab, rate=rate, mean=mean, replace=1, random=random).chances
        self.lengths = torch.distributions.Categorical(torch.FloatTensor(chances))

    def __call__(self, tokens, sentences):
        return self.masked(self.permuted(tokens, sentences))

    def permuted(self, source, sentences):
        torch, count = self.torch, len(sentences)
        ends = torch.cat([sentences[1:], torch.tensor([len(source) - 1])])
        number = math.ceil(count * self.permute)
        chosen = torch.randperm(count)[:number]
        order = torch.arange(count)
        order[chosen] = chosen[torch.randperm(number)]
        result, at = source.clone(), 1
        for i in order:
            sentence = source[sentences[i] : ends[i]]
            result[at : at + sentence.size(0)] = sentence
            at += sentence.size(0)
        return result

    def masked(self, source):
        torch = self.torch
        starts = self.word_starts.gather(0, source)
        starts[0] = starts[-1] = 0
        number = math.ceil(starts.float().sum() * self.rate)
        lengths = self.lengths.sample((number,))
        total = torch.cumsum(lengths, 0)
        while total[-1] < number:
            lengths = torch.cat([lengths, self.lengths.sample((number,))])
            total = torch.cumsum(lengths, 0)
        i = 0
        while total[i] < number:
            i += 1
        lengths[i] = number - (0 if i == 0 else total[i - 1])
        number = i + 1
        lengths = lengths[:number]
        lengths = lengths[lengths > 0]
        inserts = number - lengths.size(0)
        number -= inserts
        words = starts.nonzero()
        at = words[torch.randperm(words.size(0))[:number]].squeeze(1)
        random = torch.FloatTensor(number).uniform_() < self.random
        keep = torch.ones(source.size(0), dtype=torch.bool)
        starts[-1] = 255
        source[at] = self.vocab.mask
        source[at[random]] = torch.randint(1, self.vocab.pieces, (int(random.sum()),))
        lengths -= 1
        while at.size(0) > 0:
            lengths -= starts[at + 1]
            going = lengths >= 0
            at, random, lengths = at[going] + 1, random[going], lengths[going]
            keep[at] = 0
        source = source[keep]
        return self.inserted(source, inserts / source.size(0)) if inserts else source

    def inserted(self, tokens, share):
        torch, size = self.torch, len(tokens)
        number = math.ceil(size * share)
        places = torch.randperm(size + number - 2)[:number] + 1
        noise = torch.zeros(size + number, dtype=torch.bool)
        noise[places] = 1
        result = torch.LongTensor(size + number).fill_(-1)
        random = math.ceil(number * self.random)
        result[places[random:]] = self.vocab.mask
        result[places[:random]] = torch.randint(1, self.vocab.pieces, (random,))
        result[~noise] = tokens
        return result


def peers(vocab, texts, sentences, arguments):
    """{name: function that makes a batch}: noised texts padded together, targets shifted."""
    starts = vocab.word_starts if arguments["mean"] else None
    peer = Peer(vocab, word_starts=starts, **arguments)

    def with_numpy():
        noised = [peer(text, sentences) for text in texts]
        out = np.full((len(texts), max(map(len, noised))), vocab.pad, np.int64)
        for i, text in enumerate(noised):
            out[i, : len(text)] = text
        targets = np.stack(list(texts))
        return out, targets, np.roll(targets, 1, axis=1)

    found = {"numpy": with_numpy}
    try:
        import torch
    except ImportError:
        return found
    if not (arguments["mean"] and arguments.get("permute")):
        return found
    torch.set_num_threads(1)
    same = {name: arguments[name] for name in ("rate", "mean", "random", "permute")}
    torch_peer = TorchPeer(torch, vocab, word_starts=starts, **same)
    rows = [torch.from_numpy(text).long() for text in texts]
    places = torch.from_numpy(sentences)

    def with_torch():
        noised = [torch_peer(row.clone(), places) for row in rows]
        out = torch.full((len(rows), max(map(len, noised))), vocab.pad)
        targets = torch.full((len(rows), len(rows[0])), vocab.pad)
        inputs = torch.full_like(targets, vocab.pad)
        for i, (text, row) in enumerate(zip(noised, rows, strict=True)):
            out[i, : len(text)] = text
            targets[i, : len(row)] = row
            inputs[i, 0] = row[-1]
            inputs[i, 1 : len(row)] = row[:-1]
        return out, targets, inputs

    return {"torch": with_torch, **found}


def main() -> None:
    from flaxlm.data.random import RowRandom
    from flaxlm.data.rows import Rows
    from flaxlm.data.spec import Vocabulary
    from flaxlm.objectives.denoising import Denoising

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    vocab = Vocabulary(size=50265, kind="bytes", sentinels=0).blank()
    generator = np.random.default_rng(0)
    vocab.word_starts = generator.random(vocab.size) < 0.75  # words of 4/3 pieces
    rows = Rows.of(generator.integers(4, vocab.pieces - 1, (BATCH, WIDTH)))
    rows.sentences[:, ::25] = True
    texts = np.pad(rows.tokens, ((0, 0), (1, 1)), constant_values=vocab.bos)
    texts[:, -1] = vocab.eos
    sentences = np.arange(1, WIDTH + 1, 25)

    noises = {
        "permute 1.0, infill 0.3 (BART)": (
            Denoising(),
            dict(rate=0.3, mean=3.0, replace=1, random=0.1, permute=1.0),
        ),
        "mask 0.15": (
            Denoising(permute=0, infill=0, mask=0.15),
            dict(rate=0.15, mean=0, replace=-1, random=0.1),
        ),
        "delete 0.15": (
            Denoising(permute=0, infill=0, delete=0.15),
            dict(rate=0.15, mean=0, replace=0, random=0.1),
        ),
        "rotate 1.0": (
            Denoising(permute=0, infill=0, rotate=1.0),
            dict(rate=0, mean=0, replace=1, random=0.1, rotate=1.0),
        ),
    }
    found = {}
    print(f"{'noise':32} {'contender':10} {'Mtok/s':>8} {'flaxlm is faster by':>20}")
    for name, (objective, arguments) in noises.items():

        def ours(objective=objective):
            return objective.prepare(rows, RowRandom(0, rows.index), vocab)

        contenders = {"flaxlm": ours, **peers(vocab, texts, sentences, arguments)}
        seconds = {contender: [] for contender in contenders}
        for turn in range(rounds + 1):
            for contender, work in contenders.items():
                start = time.process_time()
                work()
                if turn:  # the first is not counted
                    seconds[contender].append(time.process_time() - start)
        for contender, times in seconds.items():
            pairs = zip(seconds["flaxlm"], times, strict=True)
            found[name, contender] = ratio = statistics.median(b / a for a, b in pairs)
            speed = BATCH * WIDTH / statistics.median(times) / 1e6
            print(f"{name:32} {contender:10} {speed:8.2f} {ratio:20.1f}")
    bart = next(iter(noises)), "torch"
    if bart in found:
        print(f"goal {GOAL} times fairseq's: {'met' if found[bart] >= GOAL else 'MISSED'}")


if __name__ == "__main__":
    main()
