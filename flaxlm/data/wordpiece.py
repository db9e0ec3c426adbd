"""WordPiece: words cut into the longest known pieces, of which all but the first begin with ##.

The text is first cut into words: control characters dropped, Chinese characters and punctuation
signs set apart, and, if the vocabulary is lower-cased, capitals and accents dropped. The last takes
Korean syllables apart into letters (Unicode NFD): vocabularies for Korean are not lower-cased.
A word of more than `LONGEST` characters, or with a part that no piece fits, is the unk.

Whitespace is not kept: `decode` puts spaces between words, but not where English has none.
"""

import re
from functools import partial

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from flaxlm.data.vocab_base import Vocab, container, unambiguous
from flaxlm.errors import DataError

SYMBOLS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
# As in the tokenisers that released models are used with today; the first one wrote 200.
LONGEST = 100
_NO_SPACE_BEFORE = re.compile(r" (?=[.,!?;:)\]}%…])")
_NO_SPACE_AFTER = re.compile(r"(?<=[(\[{]) ")
# An apostrophe between letters is part of a word.
_APOSTROPHE = re.compile(r"(?<=\w) ['’] (?=\w)")


def words(*, lowercase: bool) -> tuple[normalizers.Normalizer, pre_tokenizers.PreTokenizer]:
    """What cuts a text into words."""
    normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=lowercase, lowercase=lowercase
    )
    return normalizer, pre_tokenizers.BertPreTokenizer()


class WordPieceVocab(Vocab):
    """A WordPiece vocabulary; see `Vocab`."""

    kind = "wordpiece"

    def __init__(self, pieces: list[str], *, lowercase: bool = False, path: str = ""):
        """
        Args:
          pieces: by id.
          lowercase: whether capitals and accents are dropped first.
          path: where it was read.

        Raises:
          DataError: a piece occurs twice, or there is no [UNK].
        """
        found = unambiguous(pieces, path)
        if SYMBOLS["unk"] not in found:
            raise DataError(f"{path or 'the vocabulary'} has no piece [UNK], so it is no WordPiece")
        model = models.WordPiece(found, unk_token=SYMBOLS["unk"], max_input_chars_per_word=LONGEST)
        self._tokenizer = Tokenizer(model)
        self._tokenizer.normalizer, self._tokenizer.pre_tokenizer = words(lowercase=lowercase)
        self.lowercase = lowercase
        symbols = {name: found.get(piece) for name, piece in SYMBOLS.items()}
        super().__init__(
            container(kind=self.kind, lowercase=lowercase, pieces=pieces),
            pieces,
            {"bos": None, "eos": None, **symbols},
            path=path,
        )

    def __reduce__(self):
        settings = {"lowercase": self.lowercase, "path": self.path}
        return partial(WordPieceVocab, self._spellings, **settings), ()

    def files(self) -> dict[str, bytes]:
        return {"vocab.txt": "".join(f"{piece}\n" for piece in self._spellings).encode()}

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [self._tokenizer.encode(text, add_special_tokens=False).ids for text in texts]

    def _spans(self, text: str, ids: list[int]) -> list[tuple[int, int]]:
        return self._tokenizer.encode(text, add_special_tokens=False).offsets

    def _decode(self, ids: list[int]) -> str:
        text = " ".join(self._spellings[at] for at in ids).replace(" ##", "")
        text = _NO_SPACE_AFTER.sub("", _NO_SPACE_BEFORE.sub("", text))
        return _APOSTROPHE.sub(lambda found: found[0].strip(), text)

    def _starts_word(self, spelling: str) -> bool:
        return not spelling.startswith("##")
