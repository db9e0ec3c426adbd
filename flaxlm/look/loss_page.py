"""Per-token losses as one HTML page: the text, each token on a colour by its cost.

The page stands alone: no script, nothing that is loaded. The exact number is what the browser shows
when the mouse rests on a token.
"""

import html
import math
from collections.abc import Sequence

from flaxlm.look.loss import Token

_DEAREST = 8.0  # nats from which the colour is full

_STYLE = """
body { font: 16px/2 system-ui, sans-serif; color: #222 }
body { margin: 1.5rem auto; padding: 0 1rem; max-width: 900px }
h1 { font-size: 1.3rem } p { line-height: 1.5 }
.text { white-space: pre-wrap; overflow-wrap: anywhere }
.text span { border-radius: 2px; padding: 1px 0; box-decoration-break: clone }
.text .not { color: #999 }
.scale span { padding: 0 .6rem }
"""


def loss_page(tokens: Sequence[Token], *, title: str = "loss by token") -> str:
    """The page."""
    name = html.escape(title)
    scale = "".join(
        f'<span style="{_colour(nats)}">{nats:g}</span>' for nats in (0, 1, 2, 3, 4, 6, 8)
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{name}</title>\n'
        f"<style>{_STYLE}</style>\n<h1>{name}</h1>\n<p>{html.escape(_summary(tokens))}</p>\n"
        f'<p class="scale">nat: {scale}</p>\n'
        f'<p class="text">{"".join(map(_span, tokens))}</p>\n</html>\n'
    )


def _summary(tokens: Sequence[Token]) -> str:
    costs = [token.nats for token in tokens if token.nats is not None]
    if not costs:
        return "no token is predicted"
    mean = sum(costs) / len(costs)
    return (
        f"{len(costs):,} tokens, {mean:.4f} nat each, {sum(costs):.2f} in all; perplexity "
        f"{math.exp(mean):.2f}"
    )


def _span(token: Token) -> str:
    text = html.escape(token.text.replace("\n", "↵\n"))
    if token.nats is None:
        return f'<span class="not">{text}</span>'
    hover = html.escape(f"{token.text!r}: {token.nats:.4f} nat, probability {_share(token.nats)}")
    return f'<span style="{_colour(token.nats)}" title="{hover}">{text}</span>'


def _share(nats: float) -> str:
    return f"{math.exp(-nats):.2%}" if nats < 9 else f"{math.exp(-nats):.1e}"


def _colour(nats: float) -> str:
    return f"background: rgba(214, 69, 32, {min(max(nats, 0) / _DEAREST, 1) * 0.85:.3f})"
