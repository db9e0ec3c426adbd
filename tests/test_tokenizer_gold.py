"""Ids of published vocabularies, compared with those of the reference implementations."""

import gzip
import json

import pytest

from flaxlm.data.vocab import SPECIAL, load_vocab
from tests.vocabs import TEXTS, sample_data

# name in the gold -> (file, whether it is lower-cased, whether the reference takes the names of
# special pieces in a text for these pieces)
GOLD = {
    "bert-base-uncased": ("bert-base-uncased-vocab.txt", True, True),
    "bert-base-cased": ("bert-base-cased-vocab.txt", False, True),
    "bert-base-chinese": ("bert-base-chinese-vocab.txt", True, True),
    "koelectra": ("koelectra-vocab.txt", False, True),
    "gpt2": ("gpt2-encoder.json", False, False),
    "albert-30k-clean": ("albert-30k-clean.model", False, False),
    "spm-test_model": ("spm-test_model.model", False, False),
    "seqio-t5-test": ("seqio-t5-test-sentencepiece.model", False, False),
}


@pytest.mark.parametrize("name", GOLD)
def test_ids_are_those_of_the_reference_on_every_line(name):
    """The reference for WordPiece is Hugging Face's, where "[MASK]" in a text is a mask; in the
    published code it is text, as it is here unless one asks for names. One line has such names.
    """
    file, lowercase, named = GOLD[name]
    vocab = load_vocab(sample_data("tokenizers", file), lowercase=lowercase)
    with gzip.open(sample_data("tokenizer_gold", "gold.jsonl.gz"), "rt", encoding="utf-8") as lines:
        gold = [json.loads(line) for line in lines]
    assert len(gold) == 124
    for line in gold:
        assert vocab.encode(line["text"], specials=named).tolist() == line[name], line["text"]
    names = [line["text"] for line in gold if "[MASK]" in line["text"]]
    assert len(names) == 1 and not vocab.special[vocab.encode(names[0])].any()
    texts = [line["text"] for line in gold if line["text"] not in names]
    expected = [line[name] for line in gold if line["text"] not in names]
    assert vocab.encode_batch(texts, threads=2) == expected
    if vocab.kind == "bytes":
        assert [vocab.decode(ids) for ids in expected] == texts
        assert [vocab.decode(vocab.encode(text)) for text in texts] == texts


def test_published_special_ids():
    def ids(file):
        vocab = load_vocab(sample_data("tokenizers", file), sentinels=0)
        return vocab.size, {name: getattr(vocab, name) for name in SPECIAL}

    none = dict.fromkeys(SPECIAL)
    symbols = {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103}
    assert ids("bert-base-uncased-vocab.txt") == (30522, none | symbols)
    assert ids("koelectra-vocab.txt") == (
        32200, none | {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    )  # fmt: skip
    end = dict.fromkeys(("pad", "eos", "unk", "bos"), 50256)
    assert ids("gpt2-encoder.json") == (50257, none | end)
    assert ids("gpt2-tiny-vocab.json")[0] == 5000
    assert ids("gpt1-encoder_bpe_40000.json") == (40478, none | {"pad": 0, "unk": 0})


def test_published_pieces_with_ends_of_words():
    vocab = load_vocab(sample_data("tokenizers", "gpt1-encoder_bpe_40000.json"))
    pieces = [vocab.piece(n) for n in vocab.encode("Hello there, it's naïve!")]
    assert pieces == [
        *("hello</w>", "there</w>", ",</w>", "it</w>", "'</w>", "s</w>", "naive</w>", "!</w>")
    ]
    transformers = pytest.importorskip("transformers")
    reference = transformers.OpenAIGPTTokenizer(
        vocab={vocab.piece(n): n for n in range(vocab.size)}, merges=vocab._merges
    )
    for text in TEXTS[:5]:
        ids = reference(text.replace("<", "("), add_special_tokens=False)["input_ids"]
        assert vocab.encode(text.replace("<", "(")).tolist() == ids


@pytest.mark.parametrize("name", ["gpt-2", "bert-bge"])
def test_ids_of_another_implementation(name):
    """llama.cpp's own test texts, with ids by the tokenizers of the models' authors."""
    file, lowercase = {
        "gpt-2": ("gpt2-encoder.json", False), "bert-bge": ("bert-base-uncased-vocab.txt", True)
    }[name]  # fmt: skip
    vocab = load_vocab(sample_data("tokenizers", file), lowercase=lowercase)
    folder = sample_data("tokenizers", "parity_llamacpp")
    texts = (folder / f"{name}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = (folder / f"{name}.out").read_text().split("\n")
    for text, line in zip(texts, lines, strict=False):
        assert vocab.encode(text).tolist() == [int(n) for n in line.split()], text
