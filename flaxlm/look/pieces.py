"""Ids as the texts that a person reads."""

from collections.abc import Sequence

INSIDE = "·"  # of a character that a later token completes


def pieces(vocab, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text, spaces included.

    Of several tokens that are one character together, as over bytes, the last one has it and the
    others are "·". Special tokens have their names.
    """
    found: list[str] = []
    start, before = 0, ""
    for at, token in enumerate(map(int, ids)):
        if token >= vocab.size or vocab.special[token]:
            found.append(vocab.piece(token) if token < vocab.size else "")
            start, before = at + 1, ""
            continue
        text = vocab.decode(list(map(int, ids[start : at + 1])))
        if text.endswith("\ufffd"):
            found.append(INSIDE)
        else:  # decoding may tidy up what stood there
            found.append(text[len(before) :] if text.startswith(before) else vocab.piece(token))
            before = text
    return found
