"""Tokens per second of the input pipeline, against the pipelines people use today, in one run.

    python benchmarks/data_pipeline.py [--rounds 9] [--seconds 0.5]

All contestants take turns on one core: in every round each works for `--seconds` of processor time,
of all its threads together, and the table shows medians over the rounds. A ratio is the median of
the rounds' ratios, so a machine that slows down slows both sides. Raw text tokens are counted.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain, cycle

if hasattr(os, "sched_setaffinity"):  # before TensorFlow counts the cores it may use
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from flaxlm.data.batches import Batches
from flaxlm.data.pack import Windows
from flaxlm.data.random import RowRandom
from flaxlm.data.rows import Rows
from flaxlm.data.spec import Data, Source, Vocabulary
from flaxlm.objectives.causal_lm import CausalLM
from flaxlm.objectives.prefix_lm import OneStackPrefixLM, PrefixLM
from flaxlm.objectives.span_corruption import SpanCorruption

BATCH, LENGTH = 256, 512
VOCAB = Vocabulary(size=32000, sentinels=100).blank()

# What flaxlm claims of span corruption: at least so many times the peer's tokens per second.
GOALS = {"Transformers: the T5 collator's logic": 5, "seqio: task and converter": 30}

# A contestant works through batches for ever and yields the raw tokens of each.
Work = Callable[[], Iterator[int]]


class Documents:
    """A corpus in memory: 20,000 documents of log-normal length, some 6 M tokens of random ids."""

    def __init__(self):
        random = np.random.default_rng(0)
        sizes = np.clip(random.lognormal(5.3, 0.9, 20_000), 1, 20_000).astype(np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(sizes)])
        self.documents, self.tokens = len(sizes), int(sizes.sum())
        self.fingerprint = "benchmark"
        self.text = random.integers(10, VOCAB.pieces, self.tokens, dtype=np.int32)
        self.sentences = np.arange(0, 20_000, 25, dtype=np.int32)

    def read(self, ids):
        starts, stops = self.offsets[ids].tolist(), self.offsets[ids + 1].tolist()
        return [
            (self.text[start:stop], self.sentences[: (stop - start + 24) // 25])
            for start, stop in zip(starts, stops, strict=True)
        ]


# flaxlm


def ours(objective, corpus: Documents) -> Work:
    """`prepare` alone: windows in, features out, as the collator and the tf.data map do."""
    windows = windows_of(corpus, objective.window(LENGTH))
    batches = [
        Rows.of(windows[first : first + BATCH], index=first + np.arange(BATCH))
        for first in range(0, len(windows) - BATCH, BATCH)
    ]

    def work():
        for rows in cycle(batches):
            objective.prepare(rows, RowRandom(0, rows.index), VOCAB)
            yield rows.tokens.size

    return work


def ours_from_documents(objective, corpus: Documents, packing: str) -> Work:
    """`Batches[step]`: shuffled order, windows cut from documents, features, id checks."""
    data = Data(sources=(Source("memory:"),), batch=BATCH, length=LENGTH, packing=packing)
    batches = Batches([(corpus, 1.0)], objective, VOCAB, data=data, seed=0)
    tokens = round(BATCH * objective.window(LENGTH) * batches.counts[0].full)

    def work():
        for step in range(sys.maxsize):
            batches[step]
            yield tokens

    return work


def our_packer(corpus: Documents, packing: str) -> Work:
    """Lay the corpus out once and read a batch of its rows, again and again."""

    def work():
        while True:
            windows = Windows(corpus, width=LENGTH, packing=packing)
            order = np.random.default_rng(0).permutation(len(windows))
            for first in range(0, len(windows) - BATCH, BATCH):
                rows = windows.rows(
                    order[first : first + BATCH], np.int64(0), index=np.arange(BATCH), pad=0
                )
                assert rows.segments.shape == rows.positions.shape == rows.tokens.shape
                yield round(BATCH * LENGTH * windows.counts.full)

    return work


def windows_of(corpus: Documents, width: int) -> np.ndarray:
    count = corpus.tokens // width
    return corpus.text[: count * width].reshape(count, width)


# The collator of Transformers' T5 example: masks row by row, everything else over the batch.


def collator(corpus: Documents) -> Work:
    windows = windows_of(corpus, SpanCorruption().window(LENGTH))
    random = np.random.default_rng(0)
    noise_tokens, spans = (int(count) for count in SpanCorruption().counts(windows.shape[1]))

    def partition(items, parts):
        marks = np.arange(items - 1) < parts - 1
        random.shuffle(marks)
        part = np.cumsum(np.pad(marks, [[1, 0]]))
        return np.unique(part, return_counts=True)[1]

    def mask(width):
        runs = np.stack([partition(width - noise_tokens, spans), partition(noise_tokens, spans)], 1)
        marks = np.zeros(width, np.int8)
        marks[np.cumsum(runs.reshape(-1))[:-1]] = 1
        return np.cumsum(marks) % 2 == 1

    def sentinel_ids(mask):
        starts = mask - np.roll(mask, 1, axis=-1) * mask
        starts[:, 0] = mask[:, 0]
        ids = np.where(starts != 0, np.cumsum(starts, axis=-1), starts)
        ids = np.where(ids != 0, VOCAB.size - ids, 0)
        return ids - (mask - starts)  # -1 on the rest of a masked span

    def fold(ids, sentinels):
        kept = np.where(sentinels != 0, sentinels, ids)
        kept = kept[kept >= 0].reshape(len(ids), -1)
        return np.concatenate([kept, np.full((len(ids), 1), VOCAB.eos, np.int32)], axis=-1)

    def collate(examples):
        ids = np.array([example["input_ids"] for example in examples])
        masks = np.asarray([mask(ids.shape[1]) for _ in examples])
        inputs = fold(ids, sentinel_ids(masks.astype(np.int8)))
        labels = fold(ids, sentinel_ids((~masks).astype(np.int8)))
        shifted = np.zeros_like(labels)
        shifted[:, 1:] = labels[:, :-1]
        assert inputs.shape[1] == LENGTH
        return {"input_ids": inputs, "labels": labels, "decoder_input_ids": shifted}

    batches = [
        [{"input_ids": row} for row in windows[first : first + BATCH]]
        for first in range(0, len(windows) - BATCH, BATCH)
    ]

    def work():
        for examples in cycle(batches):
            collate(examples)
            yield BATCH * windows.shape[1]

    return work


def group_texts(corpus: Documents) -> Work:
    """Transformers' way to make rows of a fixed length: Python lists, 1,000 documents at a time."""
    documents = [tokens.tolist() for tokens, _ in corpus.read(np.arange(corpus.documents))]

    def work():
        while True:
            for first in range(0, len(documents), 1000):
                joined = list(chain(*documents[first : first + 1000]))
                total = len(joined) // LENGTH * LENGTH
                rows = [joined[i : i + LENGTH] for i in range(0, total, LENGTH)]
                result = {"input_ids": rows, "labels": rows.copy()}
                yield len(result["labels"]) * LENGTH

    return work


# seqio. The `t5` package, which holds T5's preprocessors, does not install beside a current
# TensorFlow; the peers below are seqio's own machinery around the same steps in the same TensorFlow
# operations.


def seqio_peers(corpus: Documents) -> dict[str, Work]:
    import seqio
    import tensorflow as tf

    objective = SpanCorruption()
    width = objective.window(LENGTH)
    lengths = {"inputs": LENGTH, "targets": int(objective.lengths(width)[1])}
    vocabulary = seqio.PassThroughVocabulary(VOCAB.size, eos_id=VOCAB.eos)
    features = {name: seqio.Feature(vocabulary, add_eos=True) for name in ("inputs", "targets")}

    # T5's random_spans_noise_mask and noise_span_to_unique_sentinel.

    def partition(items, parts, seed):
        marks = tf.cast(tf.range(items - 1) < parts - 1, tf.int32)
        part = tf.cumsum(tf.pad(seqio.stateless_shuffle(marks, seed), [[1, 0]]))
        return tf.math.segment_sum(tf.ones_like(part), part)

    def noise_mask(size, seeds):
        length = tf.maximum(size, 2)
        noise = tf.cast(tf.round(tf.cast(length, tf.float32) * objective.rate), tf.int32)
        noise = tf.minimum(tf.maximum(noise, 1), length - 1)
        spans = tf.cast(tf.round(tf.cast(noise, tf.float32) / objective.mean_length), tf.int32)
        spans = tf.maximum(spans, 1)
        runs = [partition(length - noise, spans, seeds[1]), partition(noise, spans, seeds[0])]
        starts = tf.cumsum(tf.reshape(tf.stack(runs, axis=1), [spans * 2]))[:-1]
        marks = tf.math.unsorted_segment_sum(tf.ones_like(starts), starts, length)
        return tf.equal(tf.cumsum(marks) % 2, 1)[:size]

    def fold(tokens, mask):
        before = tf.pad(mask[:-1], [[1, 0]])
        first = tf.logical_and(mask, tf.logical_not(before))
        sentinel = VOCAB.size - tf.cumsum(tf.cast(first, tokens.dtype))
        tokens = tf.where(first, sentinel, tokens)
        return tf.boolean_mask(tokens, tf.logical_not(tf.logical_and(mask, before)))

    @seqio.map_over_dataset(num_seeds=6)
    def denoise(features, seeds):
        tokens = features["targets"]
        mask = noise_mask(tf.size(tokens), seeds[:2])
        return {"inputs": fold(tokens, mask), "targets": fold(tokens, tf.logical_not(mask))}

    # T5's select_random_chunk, reduce_concat_tokens and split_tokens.

    @seqio.map_over_dataset(num_seeds=1)
    def chunk(features, seed, most=65536):
        tokens = features["targets"]
        chunks = tf.cast(tf.math.ceil(tf.size(tokens) / most), tf.int32)
        start = most * tf.random.stateless_uniform([], maxval=chunks, dtype=tf.int32, seed=seed)
        return {"targets": tokens[start : tf.minimum(start + most, tf.size(tokens))]}

    def join(dataset):
        dataset = dataset.padded_batch(128, padded_shapes={"targets": [-1]})

        @seqio.map_over_dataset
        def strip(features):
            tokens = tf.reshape(features["targets"], [-1])
            return {"targets": tf.boolean_mask(tokens, tf.cast(tokens, tf.bool))}

        return strip(dataset)

    def split(dataset):
        @seqio.map_over_dataset
        def cut(features):
            tokens = features["targets"]
            count = tf.cast(tf.math.ceil(tf.size(tokens) / width), tf.int32)
            padding = count * width - tf.size(tokens)
            sizes = tf.concat([tf.repeat(width, count - 1), [width - padding]], axis=0)
            return {"targets": tf.reshape(tf.pad(tokens, [[0, padding]]), [-1, width])}, sizes

        def strip(features, size):
            return {"targets": features["targets"][:size]}

        return cut(dataset).unbatch().map(strip, num_parallel_calls=tf.data.AUTOTUNE)

    def windows(split="train", shuffle_files=False, seed=None):
        return tf.data.Dataset.from_tensor_slices({"targets": windows_of(corpus, width)})

    def documents(split="train", shuffle_files=False, seed=None):
        ragged = tf.RaggedTensor.from_row_splits(corpus.text, corpus.offsets)
        dataset = tf.data.Dataset.from_tensor_slices(ragged)
        return dataset.map(lambda tokens: {"targets": tokens})

    def batches(dataset, name):
        for batch in dataset.batch(BATCH, drop_remainder=True).as_numpy_iterator():
            assert batch[name].shape == (BATCH, LENGTH)
            yield BATCH * width

    def bare():
        """denoise, eos, batch: no decoder inputs, no weights."""
        dataset = seqio.preprocessors.append_eos(denoise(windows().repeat()), features)
        yield from batches(dataset, "inputs")

    def task(source, *preprocessors):
        """A seqio.Task and its feature converter: what T5X trains from."""
        task = seqio.Task(
            "span_corruption",
            source=seqio.FunctionDataSource(source, splits=["train"]),
            output_features=features,
            preprocessors=[*preprocessors, denoise, seqio.preprocessors.append_eos],
        )
        dataset = task.get_dataset(lengths, split="train", shuffle=False, num_epochs=None)
        dataset = seqio.EncDecFeatureConverter(pack=False)(dataset, lengths)
        # From documents, the last piece of 128 is shorter and padded; it counts as a whole one.
        yield from batches(dataset, "encoder_input_tokens")

    def packed():
        dataset = seqio.utils.trim_and_pack_dataset(documents().repeat(), {"targets": LENGTH})
        for batch in dataset.batch(BATCH).as_numpy_iterator():
            yield int(np.count_nonzero(batch["targets_segment_ids"]))

    return {
        "bare": bare,
        "windows": lambda: task(windows),
        "documents": lambda: task(documents, chunk, join, split),
        "packed": packed,
    }


# The race


def race(contestants: dict[str, Work], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Tokens per second of processor time, of each contestant in each round.

    Every turn starts afresh and ends the work, so that no background thread works through the turn
    of another or ahead for its own; the first batches of a turn warm up and do not count.
    """
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, work in contestants.items():
            running = work()
            for _ in range(3):
                next(running)
            tokens, start = 0, time.process_time()
            while (spent := time.process_time() - start) < seconds:
                tokens += next(running)
            running.close()
            speeds[name].append(tokens / spent)
    return speeds


def ratio(speeds: dict[str, list[float]], name: str, peer: str) -> float:
    return statistics.median(a / b for a, b in zip(speeds[name], speeds[peer], strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5, help="per contestant and round")
    options = parser.parse_args()

    corpus = Documents()
    span, width = SpanCorruption(), SpanCorruption().window(LENGTH)
    from_windows = {
        "flaxlm: prepare": ours(span, corpus),
        "Transformers: the T5 collator's logic": collator(corpus),
    }
    from_documents = {
        "flaxlm: Batches[step], shuffled": ours_from_documents(span, corpus, "stream"),
    }
    rows = {
        "flaxlm: CausalLM batches, stream": ours_from_documents(CausalLM(), corpus, "stream"),
        "flaxlm: CausalLM batches, pack": ours_from_documents(CausalLM(), corpus, "pack"),
        "flaxlm: PrefixLM batches, split": ours_from_documents(PrefixLM(), corpus, "split"),
        "flaxlm: OneStackPrefixLM batches": ours_from_documents(
            OneStackPrefixLM(), corpus, "stream"
        ),
        "flaxlm: rows, stream": our_packer(corpus, "stream"),
        "flaxlm: best fit and rows": our_packer(corpus, "pack"),
        "Transformers: group_texts' logic": group_texts(corpus),
    }
    try:
        peers = seqio_peers(corpus)
    except ImportError as error:
        print(f"without seqio ({error}): pip install 'flaxlm[bench]' to compare with it\n")
    else:
        from_windows["seqio: task and converter"] = peers["windows"]
        from_windows["seqio (bare): denoise, eos, batch"] = peers["bare"]
        from_documents["seqio: task from documents"] = peers["documents"]
        rows["seqio: trim_and_pack_dataset"] = peers["packed"]

    groups = {
        f"T5 span corruption of windows, {width} -> 512 + 114": from_windows,
        "T5 span corruption from documents": from_documents,
        f"Language model rows of {LENGTH} from documents": rows,
    }
    for title, contestants in groups.items():
        speeds = race(contestants, options.rounds, options.seconds)
        peers = [name for name in contestants if not name.startswith("flaxlm")]
        width = max(map(len, contestants)) + 2
        print(f"{title}; batches of {BATCH}, {options.rounds} rounds of {options.seconds} s")
        heads = "".join(f"{'/ ' + peer.partition(':')[0]:>16}" for peer in peers)
        print(f"{'':{width}}{'Mtok/s':>8}{heads}")
        for name in contestants:
            ratios = "".join(f"{ratio(speeds, name, peer):16.1f}" for peer in peers)
            print(f"{name:{width}}{statistics.median(speeds[name]) / 1e6:8.2f}{ratios}")
        for peer, goal in GOALS.items():
            if peer in speeds:
                found = ratio(speeds, next(iter(contestants)), peer)
                verdict = "met" if found >= goal else "MISSED"
                print(f"goal: {goal} times {peer}: {verdict}, {found:.1f}")
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
