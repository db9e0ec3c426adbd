"""Greedy generation on this machine's CPU: flaxlm against transformers' `generate`, for a GPT-2 and
a T5.

    pip install '.[parity]'                      # Python 3.11; peers are optional
    python benchmarks/generate.py                # the table of benchmarks/README.md

Same shapes, random weights, fp32 and a key-value cache on both sides; every call reads its prompts
and writes a fixed number of tokens. Every contender lives in a process of its own and they take
turns, one call each; the ratios are medians over the rounds, pair by pair. Tokens are new ones, the
time is that of the whole call.
"""

import argparse
import statistics

from steps import turns
from train_step import ENVIRONMENT, faster


def _shape(family: str, width: int, depth: int, mlp: int, **more):
    made = {"family": family, "width": width, "depth": depth, "heads": width // 64, "mlp": mlp}
    return made | {"length": 64, "new": 64, "dtype": "float32"} | more


def _gpt2(rows: int):
    return _shape("gpt2", 768, 12, 3072, vocab=50257, rows=rows)


def _t5(rows: int):
    return _shape("t5", 512, 8, 1024, heads=8, vocab=32128, rows=rows)


SHAPES = {
    "gpt2 small, batch 1": _gpt2(1),
    "gpt2 small, batch 16": _gpt2(16),
    "t5 small, batch 1": _t5(1),
    "t5 small, batch 16": _t5(16),
    "tiny": _shape("gpt2", 64, 2, 128, vocab=512, rows=2, length=8, new=8),
}
CONTENDERS = ("flaxlm", "torch eager", "torch compiled")


def compare(title, shape, names, *, rounds):
    """Lets the contenders take turns and prints their table."""
    contenders = {}
    for name in names:
        found = turns.missing(name)
        contender = None if found else turns.Contender(name, shape, ENVIRONMENT)
        if contender is None or contender.ready is None:
            why = f"{found} not installed" if found else "it did not start, see above"
            print(f"{name}: left out, {why}", flush=True)
        else:
            contenders[name] = contender
    for _ in range(rounds):
        for contender in contenders.values():
            contender.take_turn(1)
    settings = ", ".join(f"{key} {value}" for key, value in shape.items())
    print(f"\n{title}: {settings}; {rounds} rounds, medians", flush=True)
    print("| contender | parameters | first two calls s | tokens/s | CPU s/call | ratio |")
    print("|---|---|---|---|---|---|")
    ours = contenders.get("flaxlm")
    for name, contender in contenders.items():
        wall, cpu = (statistics.median(contender.seconds(clock)) for clock in ("wall", "cpu"))
        ratio = "-" if ours in (None, contender) else f"{faster(ours, contender):.2f}"
        print(
            f"| {name} | {contender.ready['parameters']:,} | {contender.ready['start']:.0f} "
            f"| {shape['rows'] * shape['new'] / wall:,.1f} | {cpu:.2f} | {ratio} |"
        )
    for contender in contenders.values():
        contender.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    known = [name for name in SHAPES if name != "tiny"]
    parser.add_argument("--shapes", nargs="*", default=known, choices=list(SHAPES))
    parser.add_argument("--contenders", nargs="*", default=CONTENDERS, choices=CONTENDERS)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for title in options.shapes:
        compare(title, SHAPES[title], options.contenders, rounds=options.rounds)


if __name__ == "__main__":
    main()
