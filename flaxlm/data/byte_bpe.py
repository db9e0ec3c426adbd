"""Byte-pair encodings of vocab.json and merges.txt: over bytes, and over words with marked ends.

Over bytes (kind "bytes"): the text is cut before the space in front of a word, its UTF-8 bytes are
written as 256 printable characters (a space is Ġ), and pairs are merged within each part. Nothing
is unknown and nothing is lost: `decode(encode(text)) == text`.

With marked ends (kind "endings"): the text is lower-cased, accents dropped, punctuation set apart,
and the last piece of a word ends in </w>. The model published so cut its text with ftfy and spaCy;
the words cut here are those that Hugging Face cuts without these packages. Ids differ where spaCy
separates differently (contractions, abbreviations, URLs) and where ftfy repairs a text.
"""

import json
from functools import partial

from tokenizers import Tokenizer, models, pre_tokenizers

from flaxlm.data.vocab_base import Vocab, container, short, unambiguous
from flaxlm.data.wordpiece import words
from flaxlm.errors import DataError

END = "</w>"
# Names of the symbols, the first that a vocabulary has.
SYMBOLS = {
    "pad": ("<pad>", "[PAD]", "<|endoftext|>", "</s>"),
    "eos": ("</s>", "<|endoftext|>", "[SEP]"),
    "unk": ("<unk>", "[UNK]", "<|endoftext|>", "</s>"),
    "bos": ("<s>", "<|endoftext|>", "[CLS]"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("<mask>", "[MASK]"),
}


def _characters() -> dict[str, int]:
    """The byte that each of the 256 characters stands for: itself where it is printable in
    Latin-1, else the next free character from 256 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTES = _characters()
# A word begins with whitespace: space, line feed, tab and their like.
_SPACES = tuple(character for character, byte in BYTES.items() if chr(byte) in " \n\t\r\f\v")


class BpeVocab(Vocab):
    """A byte-pair encoding; see `Vocab`. Its kind is "endings" if a piece ends in </w>.

    Attributes:
      prefix_space: whether a text begins with a space even if it has none.
    """

    def __init__(
        self,
        pieces: list[str],
        merges: list[tuple[str, str]],
        *,
        path: str = "",
        prefix_space: bool = False,
    ):
        """
        Args:
          pieces: by id.
          merges: pairs, the first to merge first.
          path: where it was read.
          prefix_space: kind "bytes": whether a text begins with a space if it has none.

        Raises:
          DataError: a piece occurs twice; a merge is of unknown pieces or makes one; bytes without
            a piece.
        """
        found = unambiguous(pieces, path)
        where = path or "the vocabulary"
        for number, (left, right) in enumerate(merges, 1):
            for part in (left, right, left + right):
                if part not in found:
                    raise DataError(
                        f"{where}: merge {number} names {short(part)}, which is not "
                        "among the pieces: are both files of one vocabulary?"
                    )
        ends = any(piece.endswith(END) for piece in pieces)
        self.kind = "endings" if ends else "bytes"
        self.lowercase, self.keeps_spaces = ends, not (ends or prefix_space)
        symbols = {
            name: next((found[piece] for piece in known if piece in found), None)
            for name, known in SYMBOLS.items()
        }
        if ends:
            # Padding weighs nothing, whatever it is.
            symbols["pad"] = symbols["unk"] if symbols["pad"] is None else symbols["pad"]
            if symbols["unk"] is None:
                raise DataError(f"{where} has no piece <unk>")
            unknown = pieces[symbols["unk"]]
            model = models.BPE(found, merges, unk_token=unknown, end_of_word_suffix=END)
            self._tokenizer = Tokenizer(model)
            self._tokenizer.normalizer, self._tokenizer.pre_tokenizer = words(lowercase=True)
        else:
            missing = [byte for character, byte in BYTES.items() if character not in found]
            if missing:
                raise DataError(
                    f"{where} has no piece for {len(missing)} of the 256 bytes, the first is "
                    f"0x{missing[0]:02x}; a byte-level vocabulary has all"
                )
            self._tokenizer = Tokenizer(models.BPE(found, merges))
            self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
        self._merges, self.prefix_space = merges, prefix_space
        facts = {} if ends else {"prefix_space": prefix_space}
        super().__init__(
            container(
                kind=self.kind, pieces=pieces, merges=[" ".join(pair) for pair in merges], **facts
            ),
            pieces,
            symbols,
            path=path,
        )

    def __reduce__(self):
        settings = {"path": self.path, "prefix_space": self.prefix_space}
        return partial(BpeVocab, self._spellings, self._merges, **settings), ()

    def files(self) -> dict[str, bytes]:
        table = {piece: at for at, piece in enumerate(self._spellings)}
        merges = ["#version: 0.2", *(" ".join(pair) for pair in self._merges)]
        return {
            "vocab.json": json.dumps(table, ensure_ascii=False).encode(),
            "merges.txt": "".join(f"{line}\n" for line in merges).encode(),
        }

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [self._tokenizer.encode(text, add_special_tokens=False).ids for text in texts]

    def _spans(self, text: str, ids: list[int]) -> list[tuple[int, int]]:
        return self._tokenizer.encode(text, add_special_tokens=False).offsets

    def _decode(self, ids: list[int]) -> str:
        if self.kind == "endings":
            spelling = "".join(self._spellings[at] for at in ids)
            return spelling.replace(END, " ").removesuffix(" ")
        content = bytearray()
        for at in ids:
            spelling = self._spellings[at]
            try:
                content += bytes(BYTES[character] for character in spelling)
            except KeyError:  # a filler that no text makes
                content += spelling.encode()
        return content.decode("utf-8", errors="replace")

    def _starts_word(self, spelling: str) -> bool:
        # Where only ends are marked, a piece does not tell whether it begins a word.
        return self.kind == "endings" or spelling.startswith(_SPACES)
