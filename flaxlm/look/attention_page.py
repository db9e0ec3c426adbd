"""Attention maps as one HTML page: a grid of layers and heads, one picture each.

The page stands alone and loads nothing. Weights lie in it as 16-bit numbers, so what is shown when
the mouse is over a picture is exact to four decimals.
"""

import base64
import html
import json
from collections.abc import Sequence

import numpy as np

from flaxlm.errors import DataError
from flaxlm.look.attention import Maps

_MOST = 64 * 2**20  # bytes of weights in a page
_FULL = 65535

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222 }
body { margin: 1.5rem auto; padding: 0 1rem; max-width: 1200px }
h1 { font-size: 1.3rem } h2 { font-size: 1rem; margin: 1.5rem 0 .3rem }
.grid { display: grid; gap: 6px; overflow-x: auto; align-items: center }
.grid span { color: #777; font-size: 12px; text-align: center }
canvas { width: 84px; height: 84px; image-rendering: pixelated; border: 1px solid #ccc }
canvas.large { width: 420px; height: 420px }
.said { position: sticky; bottom: 0; background: #fff; border-top: 1px solid #ccc; padding: .5rem }
.said b { font-weight: 600 } .said i { font-style: normal; white-space: pre-wrap }
"""

_SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const said = document.getElementById("said");

function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
  return new DataView(bytes.buffer);
}

function element(kind, text, parent) {
  const made = document.createElement(kind);
  if (text) made.textContent = text;
  parent.appendChild(made);
  return made;
}

for (const maps of data) {
  const [layers, heads, queries, keys] = maps.shape;
  const weights = unpacked(maps.weights);
  element("h2", maps.name, document.getElementById("maps"));
  const grid = element("div", "", document.getElementById("maps"));
  grid.className = "grid";
  grid.style.gridTemplateColumns = `auto repeat(${heads}, max-content) 1fr`;
  element("span", "", grid);
  for (let head = 0; head < heads; head++) element("span", `head ${head}`, grid);
  element("span", "", grid);
  for (let layer = 0; layer < layers; layer++) {
    element("span", `layer ${layer}`, grid);
    for (let head = 0; head < heads; head++) {
      const first = (layer * heads + head) * queries * keys;
      const weight = (q, k) => weights.getUint16(2 * (first + q * keys + k), true) / 65535;
      const canvas = element("canvas", "", grid);
      canvas.width = keys;
      canvas.height = queries;
      draw(canvas, weight);
      canvas.addEventListener("click", () => canvas.classList.toggle("large"));
      canvas.addEventListener("mousemove", event => {
        const box = canvas.getBoundingClientRect();
        const at = (x, size, count) =>
          Math.max(0, Math.min(count - 1, Math.floor(x / size * count)));
        const q = at(event.clientY - box.top, box.height, queries);
        const k = at(event.clientX - box.left, box.width, keys);
        tell(maps, layer, head, q, k, weight);
      });
    }
    element("span", "", grid);
  }
}

function draw(canvas, weight) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  for (let q = 0; q < canvas.height; q++) {
    for (let k = 0; k < canvas.width; k++) {
      const dark = Math.sqrt(weight(q, k)), at = 4 * (q * canvas.width + k);
      image.data[at] = 255 - 230 * dark;
      image.data[at + 1] = 255 - 180 * dark;
      image.data[at + 2] = 255 - 95 * dark;
      image.data[at + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
}

function tell(maps, layer, head, q, k, weight) {
  said.textContent = "";
  const where = `${maps.name}, layer ${layer}, head ${head}: `;
  element("span", where, said);
  element("b", `${q} "${maps.queries[q]}"`, said);
  element("span", " to ", said);
  element("b", `${k} "${maps.keys[k]}"`, said);
  element("span", ` ${weight(q, k).toFixed(4)}`, said);
  const line = element("div", "", said);
  maps.keys.forEach((key, at) => {
    const one = element("i", key, line);
    one.style.background = `rgba(25, 75, 160, ${Math.sqrt(weight(q, at)) * 0.7})`;
  });
}
"""


def attention_page(maps: Sequence[Maps], *, title: str = "attention") -> str:
    """The page.

    Raises:
      DataError: it would have more than 64 MiB of weights.
    """
    size = sum(2 * one.weights.size for one in maps)
    if size > _MOST:
        raise DataError(
            f"{size / 2**20:.0f} MiB of attention weights, at most {_MOST / 2**20:.0f} make a page "
            f"to look at: take a shorter text than {max(len(one.keys) for one in maps)} tokens"
        )
    name = html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{name}</title>\n'
        f"<style>{_STYLE}</style>\n<h1>{name}</h1>\n"
        "<p>A picture for every head: a row for each token that attends, a column for each that is "
        "attended to; dark is much, on the scale of the square root. Click to enlarge.</p>\n"
        '<div id="maps"></div>\n<div class="said" id="said">Move over a picture.</div>\n'
        f'<script type="application/json" id="data">{_json(maps)}</script>\n'
        f"<script>{_SCRIPT}</script>\n</html>\n"
    )


def _json(maps: Sequence[Maps]) -> str:
    """What the script reads; no token can end the element that it lies in."""
    data = [
        {
            "name": one.name,
            "shape": one.weights.shape,
            "queries": one.queries,
            "keys": one.keys,
            "weights": _packed(one.weights),
        }
        for one in maps
    ]
    return json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")


def _packed(weights: np.ndarray) -> str:
    numbers = np.rint(np.clip(weights, 0, 1).astype(np.float64) * _FULL).astype("<u2")
    return base64.b64encode(numbers.tobytes()).decode("ascii")
