"""What leading a model costs and brings: the share of wanted words (or the probability of a wanted
class) against the perplexity of what it writes.

    python benchmarks/steer.py --run runs/tiny_gpt2 --bags military.txt politics.txt \\
        [--polarity sentences/polarity@FOLDER]

Every line is of the same prompts and seeds. Perplexity is that of the text under the model as it
is. Beside the led texts stand those of the same model not led, and not led but drawn at a higher
temperature, until they are as improbable as the led ones: what chance brings at that price. A class
is judged by a head that was fitted to other texts than the one that leads.
"""

import argparse
import math
from pathlib import Path

import numpy as np

from flaxlm import flags

PROMPTS = (
    "The", "In this", "There is", "We are", "It was", "When the", "They have", "This year",
    "For the", "You can", "I have", "One of", "The people of", "At the same time", "After the",
    "All of the",
)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--run", required=True, help="a decoder-only run or Hugging Face folder")
    parser.add_argument("--bags", nargs="*", default=[], help="files of words")
    parser.add_argument("--polarity", help="a task of two classes to fit heads to: NAME@FOLDER")
    parser.add_argument("--texts", type=int, default=600, help="to fit each head to")
    parser.add_argument("--samples", type=int, default=4, help="of every prompt")
    parser.add_argument("--tokens", type=int, default=40)
    options = parser.parse_args()
    flags.use()
    import flaxlm
    from flaxlm.steer import Bag, Steering

    lm = flaxlm.load(options.run)
    bags = {Path(path).stem: Bag.read(lm.vocab, path) for path in options.bags}
    by_words = Steering(step=0.03, window=5, fusion=0.95, top_k=20)
    by_class = Steering(step=0.04, iterations=10, gamma=1.0, fusion=0.95, top_k=20)
    print("| led to | words | % of the tokens | perplexity |\n|---|---|---|---|", flush=True)
    bench = _Bench(lm, PROMPTS * options.samples, options.tokens)
    for name, bag in bags.items():
        _lines(bench, name, [bag], _Words(bag), by_words)
    if len(bags) > 1:
        both = dict(list(bags.items())[:2])
        for name, bag in both.items():
            told = f"{' + '.join(both)}: {name}"
            bench.line(told, list(both.values()), _Words(bag), by_words)
    if options.polarity:
        head, judge = _heads(lm, options.polarity, options.texts)
        print("\n| led to | | probability of the class % | perplexity |\n|---|---|---|---|")
        _lines(bench, "positive", [head], judge, by_class)
        for name, bag in list(bags.items())[:1]:
            told = f"positive + {name}"
            bench.line(f"{told}: positive", [head, bag], judge, by_class)
            bench.line(f"{told}: {name}", [head, bag], _Words(bag), by_class)


class _Bench:
    """Texts of one model."""

    def __init__(self, lm, prompts, tokens):
        self.lm, self.prompts, self.tokens = lm, prompts, tokens

    def line(self, told, attributes, measure, steering) -> float:
        """Prints what came of it; returns the perplexity."""
        from flaxlm.steer import steered

        answers = steered(
            self.lm, self.prompts, attributes, steering, tokens=self.tokens, seed=0, rows=64
        )
        shares = [measure(self.lm, answer) for answer in answers]
        nats = [-answer.log_likelihood / len(answer.ids) for answer in answers]
        found, error = 100 * np.mean(shares), 100 * np.std(shares) / math.sqrt(len(shares))
        perplexity = math.exp(np.mean(nats))
        cells = told, measure.words, f"{found:.1f} ± {error:.1f}", f"{perplexity:.1f}"
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
        return perplexity


class _Words:
    """The share of new tokens that are words of a bag."""

    def __init__(self, bag):
        self._ids = {int(id) for id in bag.ids}
        self.words = len(self._ids)

    def __call__(self, lm, answer) -> float:
        return sum(id in self._ids for id in answer.ids) / len(answer.ids)


class _Judge:
    """The probability that a head gives its class."""

    words = ""

    def __init__(self, head):
        self._head = head

    def __call__(self, lm, answer) -> float:
        from flaxlm.steer.fit import mean_hidden

        logits = np.asarray(self._head.logits(mean_hidden(lm, [answer.text])))[0]
        shares = np.exp(logits - logits.max())
        return float(shares[self._head.label] / shares.sum())


def _heads(lm, task: str, texts: int):
    """(the head that leads, the judge); their accuracy on texts that neither saw is printed."""
    from flaxlm.steer import fit_head
    from flaxlm.steer.fit import mean_hidden
    from flaxlm.tasks.base import find

    name, _, folder = task.partition("@")
    examples = find(name).read("train", folder)[: 3 * texts]
    fitted = []
    for start in (0, texts):
        part = examples[start : start + texts]
        read, labels = [one["text"] for one in part], [one["label"] for one in part]
        fitted.append(fit_head(lm, read, labels, classes=2, label=1))
    rest = examples[2 * texts :]
    means = mean_hidden(lm, [one["text"] for one in rest])
    for told, head in zip(("head", "judge"), fitted, strict=True):
        right = np.asarray(head.logits(means)).argmax(1) == [one["label"] for one in rest]
        print(f"\n{told}: right on {100 * right.mean():.1f} % of {len(rest)} other texts")
    return fitted[0], _Judge(fitted[1])


def _lines(bench, name, attributes, measure, steering):
    from dataclasses import replace

    bench.line(f"{name}: not led", [], measure, steering)
    perplexity = bench.line(f"{name}: led", attributes, measure, steering)
    for temperature in (1.2, 1.4, 1.6, 2.0, 3.0):
        hotter = replace(steering, temperature=temperature, top_k=1000, fusion=1.0)
        told = f"{name}: not led, temperature {temperature}"
        if bench.line(told, [], measure, hotter) >= perplexity:
            break


if __name__ == "__main__":
    main()
