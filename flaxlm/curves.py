"""The picture of `flaxlm.report`: loss on top, below it learning rate, gradient norm and speed."""

import io
import math
from collections.abc import Sequence
from typing import Protocol

from flaxlm.console import format_count

# Okabe and Ito's palette, without its yellow: told apart by colour-blind readers too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#333333")
_INK, _FAINT = "#222222", "#777777"
_STYLES = ("-", "--", "-.")  # once the colours are used up
_MANY = 200  # points from which a curve is also drawn smoothed

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e6e6e6",
    "lines.solid_capstyle": "round",
}


class Curves(Protocol):
    """What is drawn of a run: its name, (steps, values) of a metric, its chief held-out metric."""

    name: str
    held_out: str

    def series(self, key: str, kind: str = "train") -> tuple[list[int], list[float]]: ...


def draw(runs: Sequence[Curves], *, metric: str = "") -> bytes:
    """The picture of the runs as the bytes of a PNG.

    Args:
      metric: the held-out metric of the large panel; "": the loss in training, held-out loss as
        dots.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(11, 7), dpi=160, facecolor="white")
        longest = max(len(_short(run.name)) for run in runs)
        grid = figure.add_gridspec(
            2, 3, height_ratios=(3, 2), hspace=0.34, wspace=0.26,
            left=0.06, right=0.96 - 0.0068 * max(longest, 15), top=0.94, bottom=0.065,
        )  # fmt: skip
        large = figure.add_subplot(grid[0, :])
        if metric:
            _held_out(large, runs, metric)
        else:
            _loss(large, runs)
        _panel(figure.add_subplot(grid[1, 0]), runs, "lr", "learning rate")
        _panel(figure.add_subplot(grid[1, 1]), runs, "grad_norm", "gradient norm")
        speed = figure.add_subplot(grid[1, 2])
        _panel(speed, runs, "tokens_per_second", "tokens / s")
        speed.yaxis.set_major_formatter(lambda value, place: format_count(value))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        return buffer.getvalue()


def _colour(index: int) -> dict:
    style = _STYLES[index // len(_COLOURS) % len(_STYLES)]
    return {"color": _COLOURS[index % len(_COLOURS)], "linestyle": style}


def _loss(axes, runs: Sequence[Curves]) -> None:
    labels, late = [], []
    several = len(runs) > 1
    for index, run in enumerate(runs):
        colour = _colour(index)
        steps, values = run.series("loss")
        _curve(axes, steps, values, colour)
        late += [value for value in values[len(values) // 50 :] if math.isfinite(value)]
        evaluated, scores = run.series(run.held_out, "eval")
        held_out = {"color": colour["color"] if several else _COLOURS[1]}
        axes.plot(
            evaluated, scores, "o", markersize=4.5, markeredgecolor="white", zorder=4, **held_out
        )
        late += [value for value in scores if math.isfinite(value)]
        ends = smooth(values)
        if several:
            finite = [value for value in (scores[-1:] or ends[-1:]) if math.isfinite(value)]
            labels += [(value, _short(run.name), colour["color"]) for value in finite]
        else:
            name = f"held out {run.held_out}".removesuffix(" loss")
            named = ((ends, "training", colour["color"]), (scores, name, _COLOURS[1]))
            labels += [
                (found[-1], f"{name} {found[-1]:.3f}", ink)
                for found, name, ink in named
                if found and math.isfinite(found[-1])
            ]
    _frame(axes, "loss; dots: held out" if several else f"loss of {runs[0].name}")
    if late:
        low, high = min(late), max(late)
        margin = 0.06 * (high - low or abs(high) or 1.0)
        # The first steps of a run fall from far above; the frame is for the rest.
        axes.set_ylim(low - margin, high + margin)
    _labels(axes, labels)


def _held_out(axes, runs: Sequence[Curves], metric: str) -> None:
    labels = []
    for index, run in enumerate(runs):
        steps, values = run.series(metric, "eval")
        colour = _colour(index)
        axes.plot(steps, values, linewidth=1.6, marker="o", markersize=4.5, **colour)
        finite = [value for value in values if math.isfinite(value)]
        labels += [(value, _short(run.name), colour["color"]) for value in finite[-1:]]
    _frame(axes, f"held out: {metric}")
    _labels(axes, labels)


def _panel(axes, runs: Sequence[Curves], key: str, title: str) -> None:
    found = [run.series(key) for run in runs]
    for index, (steps, values) in enumerate(found):
        _curve(axes, steps, values, _colour(index))
    _frame(axes, title)
    if not any(values for _, values in found):
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color=_FAINT)
        return
    late = [v for _, values in found for v in values[len(values) // 50 :] if math.isfinite(v)]
    if late and max(late) > 0:
        axes.set_ylim(0, 1.08 * max(late))
    if key == "lr":
        axes.yaxis.set_major_formatter(lambda value, place: f"{value:g}")


def _curve(axes, steps: list[int], values: list[float], colour: dict) -> None:
    smoothed = smooth(values)
    if smoothed is not values:
        axes.plot(steps, values, linewidth=0.7, alpha=0.25, **colour)
    axes.plot(steps, smoothed, linewidth=1.6, marker="." if len(steps) == 1 else None, **colour)


def smooth(values: list[float]) -> list[float]:
    """A centred mean over a fiftieth of the curve; `values` itself where it has few points."""
    if len(values) < _MANY:
        return values
    import numpy as np

    reach = len(values) // 100
    padded = np.pad(np.asarray(values, float), reach, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    return windows.mean(axis=1).tolist()


def _short(name: str) -> str:
    return name if len(name) <= 36 else f"{name[:17]}...{name[-16:]}"


def _frame(axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("step", loc="right", fontsize=8, color=_FAINT, labelpad=1)
    axes.xaxis.set_major_formatter(lambda value, place: format_count(value))
    axes.margins(x=0.01)


def _labels(axes, labels: list[tuple[float, str, str]]) -> None:
    """Names at the right end of their curves, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    labels = sorted(labels)
    wishes = [min(max((value - low) / (high - low), 0.0), 1.0) for value, _, _ in labels]
    for place, (_, text, ink) in zip(spread(wishes, gap=0.05), labels, strict=True):
        axes.text(
            1.012, place, text, transform=axes.transAxes, color=ink, va="center", fontsize=9.5
        )  # fmt: skip


def spread(wishes: list[float], *, gap: float) -> list[float]:
    """Places in [0, 1] at least `gap` apart, near to the `wishes`; both ascend."""
    blocks: list[list[float]] = []  # wishes whose places touch, centred on their mean

    def start(block):
        middle = sum(block) / len(block) - gap * (len(block) - 1) / 2
        return max(min(middle, 1.0 - gap * (len(block) - 1)), 0.0)

    for wish in wishes:
        blocks.append([wish])
        while len(blocks) > 1:
            before, after = blocks[-2], blocks[-1]
            if start(before) + gap * len(before) <= start(after):
                break
            blocks[-2:] = [before + after]
    return [start(block) + gap * place for block in blocks for place in range(len(block))]
