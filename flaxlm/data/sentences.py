"""Where sentences end: at whitespace only, so tokenising sentences is tokenising the document.

Sentencepiece marks a word by the whitespace before it, hence cutting at whitespace changes no piece
(a test holds this). Text without spaces between sentences (Chinese, Japanese) is cut at its line
and paragraph breaks only.
"""

import re
from collections.abc import Iterator

# The characters that sentencepiece's own normalisation turns into a space.
_SPACE = r"[ \t\n\r\u00a0\u3000]"
# Possessive quantifiers (++) keep the search linear on texts such as a megabyte of full stops.
_BORDER = re.compile(
    rf"""(?P<end>[.!?…。！？])["'”’»)\]』」〉》]{{0,3}}+(?P<space>{_SPACE}++)(?![a-z])"""
    rf"""|(?P<blank>(?<!{_SPACE}){_SPACE}*?\n{_SPACE}*?\n{_SPACE}*+)""",
)
# What Python calls a space and sentencepiece turns into one, or into nothing.
_AROUND = "".join(c for c in map(chr, range(0x3001)) if c.isspace() and c not in "\x85\u1680")
# Words after which a full stop does not end a sentence.
_ABBREVIATIONS = frozenset("Mr Mrs Ms Dr Prof St Jr Sr vs etc cf e.g i.e No Fig Vol pp al".split())
_LAST_WORD = re.compile(r"[\w.]{1,8}$")


def sentences(text: str) -> list[str]:
    """The sentences of `text`, without the whitespace around them; never an empty one.

    >>> sentences("It works. Does it?  Yes.\\n\\nA title\\n\\nMr. Kim said so.")
    ['It works.', 'Does it?', 'Yes.', 'A title', 'Mr. Kim said so.']
    """
    found, start = [], 0
    for stop, following in _borders(text):
        found.append(text[start:stop])
        start = following
    found.append(text[start:])
    return [s for s in (part.strip(_AROUND) for part in found) if s]


def spaced_sentences(text: str) -> list[str]:
    """The same, each with all whitespace in front of it: together they are `text`, but for
    whitespace at its end.

    >>> spaced_sentences("It works. Does it?  Yes.\\n\\nA title")
    ['It works.', ' Does it?', '  Yes.', '\\n\\nA title']
    """
    found, start = [], 0
    for stop, _ in _borders(text):
        while stop > start and _white(text[stop - 1]):  # a rarer kind of space
            stop -= 1
        if text[start:stop].strip():
            found.append(text[start:stop])
            start = stop
    return [*found, text[start:]] if text[start:].strip() else found


def _borders(text: str) -> Iterator[tuple[int, int]]:
    """(where a sentence ends, where the next one begins)."""
    for border in _BORDER.finditer(text):
        if border["end"] == "." and border["space"].count("\n") < 2:
            if _abbreviated(text, border.start()):
                continue
        yield border.start("blank" if border["blank"] else "space"), border.end()


def _white(character: str) -> bool:
    """Whether Unicode calls it white space; Python adds four control characters."""
    return character.isspace() and character not in "\x1c\x1d\x1e\x1f"


def _abbreviated(text: str, stop: int) -> bool:
    """Whether the full stop at `stop` belongs to an abbreviation or an initial."""
    word = _LAST_WORD.search(text, max(0, stop - 8), stop)
    return bool(word) and (word[0] in _ABBREVIATIONS or (len(word[0]) == 1 and word[0].isupper()))
