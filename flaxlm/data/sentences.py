"""Where sentences end: at whitespace only, so tokenising sentences is tokenising the document.

Sentencepiece marks a word by the whitespace before it, hence cutting at whitespace changes no piece
(a test holds this). Text without spaces between sentences (Chinese, Japanese) is cut at its line
and paragraph breaks only.
"""

import re

# The characters that sentencepiece's own normalisation turns into a space.
_SPACE = r"[ \t\n\r\u00a0\u3000]"
# Possessive quantifiers (++) keep the search linear on texts such as a megabyte of full stops.
_BORDER = re.compile(
    rf"""(?P<end>[.!?…。！？])["'”’»)\]』」〉》]{{0,3}}+(?P<space>{_SPACE}++)(?![a-z])"""
    rf"""|(?P<blank>(?<!{_SPACE}){_SPACE}*?\n{_SPACE}*?\n{_SPACE}*+)""",
)
# Words after which a full stop does not end a sentence.
_ABBREVIATIONS = frozenset("Mr Mrs Ms Dr Prof St Jr Sr vs etc cf e.g i.e No Fig Vol pp al".split())
_LAST_WORD = re.compile(r"[\w.]{1,8}$")


def sentences(text: str) -> list[str]:
    """The sentences of `text`, without the whitespace around them; never an empty one.

    >>> sentences("It works. Does it?  Yes.\\n\\nA title\\n\\nMr. Kim said so.")
    ['It works.', 'Does it?', 'Yes.', 'A title', 'Mr. Kim said so.']
    """
    found, start = [], 0
    for border in _BORDER.finditer(text):
        group = "blank" if border["blank"] else "space"
        if border["end"] == "." and border["space"].count("\n") < 2:
            if _abbreviated(text, border.start()):
                continue
        found.append(text[start : border.start(group)])
        start = border.end()
    found.append(text[start:])
    return [s for s in map(str.strip, found) if s]


def _abbreviated(text: str, stop: int) -> bool:
    """Whether the full stop at `stop` belongs to an abbreviation or an initial."""
    word = _LAST_WORD.search(text, max(0, stop - 8), stop)
    return bool(word) and (word[0] in _ABBREVIATIONS or (len(word[0]) == 1 and word[0].isupper()))
