"""Tokens per second of the objectives of encoders, against Transformers' collators, in one run.

    python benchmarks/objectives_masked.py [--rounds 9] [--seconds 0.5]

As `benchmarks/data_pipeline.py`: one core, contestants take turns, medians. Rows are made
beforehand; the work is what happens to them on the way to the model. flaxlm's part is `prepare`:
[CLS] and [SEP] put around the text, tokens chosen, corrupted and listed, types and positions. The
collator (it needs torch and transformers) gets rows that have their specials already, with the mask
of specials its documentation recommends; it pads, chooses and corrupts. Permutation language
modelling has a collator of its own there. The rows of the other objectives have no peer.
"""

import argparse
import dataclasses
import statistics
import sys
import warnings
from itertools import cycle

import numpy as np
from data_pipeline import BATCH, LENGTH, Documents, Work, race, ratio, windows_of

from flaxlm.data.random import RowRandom
from flaxlm.data.rows import Rows
from flaxlm.data.spec import Vocabulary
from flaxlm.objectives.base import Objective
from flaxlm.objectives.causal_lm import CausalLM, StreamLM
from flaxlm.objectives.distillation import Distillation
from flaxlm.objectives.masked_lm import MaskedLM
from flaxlm.objectives.pairs import Halves, NextSentence, SentenceOrder
from flaxlm.objectives.permutation_lm import PermutationLM
from flaxlm.objectives.prefix_lm import PrefixLM
from flaxlm.objectives.replaced_token import ReplacedToken
from flaxlm.objectives.units import Ngrams, Tokens, WholeWords

VOCAB = Vocabulary(size=32000, kind="wordpiece").blank()
SLOTS = 77  # as many as a row of 512 needs

OBJECTIVES = {
    "tokens (BERT)": MaskedLM(slots=SLOTS),
    "tokens (RoBERTa)": MaskedLM(
        slots=SLOTS, units=Tokens(specials=True), dither=True, random_from=4
    ),
    "tokens, ten static masks": MaskedLM(slots=SLOTS, static=10),
    "whole words": MaskedLM(slots=SLOTS, units=WholeWords()),
    "n-grams (ALBERT)": MaskedLM(slots=SLOTS, units=Ngrams()),
    "tokens, next sentence": MaskedLM(slots=SLOTS, pairs=NextSentence()),
    "tokens, sentence pair": MaskedLM(slots=SLOTS, pairs=NextSentence(single=True)),
    "n-grams, sentence order": MaskedLM(slots=SLOTS, units=Ngrams(), pairs=SentenceOrder()),
    "replaced tokens, halves (ELECTRA)": ReplacedToken(
        masked=MaskedLM(slots=SLOTS, mask=0.85, random=0.0, pairs=Halves())
    ),
    "distillation": Distillation(masked=MaskedLM(slots=SLOTS)),
    "permutation (XLNet)": PermutationLM(predicted=85, reuse=256),
    "permutation, one part": PermutationLM(predicted=85, reuse=0, pairs=False),
    "language model, documents apart": CausalLM(),
    "language model, stream (GPT)": StreamLM(),
    "prefix language model": PrefixLM(),
}

GOAL = 20  # times the collator's tokens per second, for single tokens


class Words:
    """`VOCAB`, of whose pieces three in ten go on with a word, with an end for language models."""

    eos = VOCAB.sep
    sentinels = np.zeros(0, np.int32)

    word_starts = unit_starts = (np.random.default_rng(0).random(VOCAB.size) < 0.7) | VOCAB.special

    def __getattr__(self, name):
        return getattr(VOCAB, name)


def ours(objective: Objective, corpus: Documents) -> Work:
    windows = windows_of(corpus, objective.window(LENGTH))
    vocab = Words()

    def rows(first):
        found = Rows.of(windows[first : first + BATCH], index=first + np.arange(BATCH))
        found.sentences[:, ::25] = True
        return found

    batches = [rows(first) for first in range(0, len(windows) - BATCH, BATCH)]
    batches = [
        dataclasses.replace(one, partners=(other,))
        for one, other in zip(batches, [*batches[1:], batches[0]], strict=True)
    ]

    def work():
        for rows in cycle(batches):
            features = objective.prepare(rows, RowRandom(0, rows.index), vocab)
            yield features["tokens"].size

    return work


def collators(corpus: Documents) -> dict[str, Work]:
    import tokenizers
    import torch
    import transformers

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    spelt = {getattr(VOCAB, name): text for name, text in names.items()}
    pieces = {spelt.get(i, f"piece{i}"): i for i in range(VOCAB.size)}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel(pieces, "[UNK]")),
        **{f"{name}_token": text for name, text in names.items()},
    )
    windows = windows_of(corpus, LENGTH - 2)
    special = np.zeros(LENGTH, int)
    special[[0, -1]] = 1
    ids = np.pad(windows, [[0, 0], [1, 1]], constant_values=VOCAB.cls)
    ids[:, -1] = VOCAB.sep
    part = ids[: 8 * BATCH]

    def of(examples, kind=transformers.DataCollatorForLanguageModeling, **options) -> Work:
        collate = kind(tokenizer, **options)

        def work():
            for first in cycle(range(0, len(examples), BATCH)):
                batch = collate([dict(example) for example in examples[first : first + BATCH]])
                assert batch["input_ids"].shape == (BATCH, LENGTH)
                yield BATCH * LENGTH

        return work

    def examples(kind, **more):
        columns = {"attention_mask": np.ones(LENGTH, int), "special_tokens_mask": special, **more}
        columns = {name: kind(x) for name, x in columns.items()}
        return [{"input_ids": kind(row), **columns} for row in part]

    starts = np.flatnonzero(np.random.default_rng(0).random(LENGTH) < 0.7)
    begin = np.arange(LENGTH) + np.searchsorted(starts, np.arange(LENGTH), side="right")
    offsets = np.stack([begin, begin + 1], axis=1)  # a gap before every word
    lists = np.ndarray.tolist
    return {
        "collator: lists": of(examples(lists)),
        "collator-np: lists, return_tensors=np": of(examples(lists), return_tensors="np"),
        "collator-arr: arrays": of(examples(np.asarray)),
        "collator-ww: whole words, lists": of(
            examples(lists, offset_mapping=offsets), whole_word_mask=True
        ),
        "collator-perm: of permutation language modelling": of(
            [{"input_ids": row.tolist()} for row in part],
            transformers.DataCollatorForPermutationLanguageModeling,
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5, help="per contestant and round")
    options = parser.parse_args()

    corpus = Documents()
    contestants = {f"flaxlm: {name}": ours(o, corpus) for name, o in OBJECTIVES.items()}
    peers: dict[str, Work] = {}
    try:
        peers = collators(corpus)
    except ImportError as error:
        print(f"without Transformers ({error}): install torch and transformers to compare\n")
    speeds = race({**contestants, **peers}, options.rounds, options.seconds)
    width = max(map(len, speeds)) + 2
    print(f"Objectives of encoders, rows of {LENGTH}, batches of {BATCH}; ", end="")
    print(f"{options.rounds} rounds of {options.seconds} s")
    heads = "".join(f"{'/ ' + peer.partition(':')[0]:>16}" for peer in peers)
    print(f"{'':{width}}{'Mtok/s':>8}{heads}")
    for name in speeds:
        ratios = "".join(f"{ratio(speeds, name, peer):16.1f}" for peer in peers)
        print(f"{name:{width}}{statistics.median(speeds[name]) / 1e6:8.2f}{ratios}")
    if peers:
        found = ratio(speeds, next(iter(contestants)), next(iter(peers)))
        verdict = "met" if found >= GOAL else "MISSED"
        print(f"goal: {GOAL} times DataCollatorForLanguageModeling: {verdict}, {found:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
