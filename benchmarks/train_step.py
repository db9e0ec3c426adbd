"""A training step on this machine's CPU: flaxlm against transformers on torch, for a GPT-2, a BERT
and a T5.

    pip install '.[parity]'                      # Python 3.11; peers are optional
    python benchmarks/train_step.py              # the tables of benchmarks/README.md
    python benchmarks/train_step.py --profile    # and where flaxlm's time goes

Same model, batch, optimizer (AdamW, decay 0.01, gradient norm clipped to 1) and precision (fp32) on
both sides. Every contender lives in a process of its own and they take turns, a few steps each; the
ratios are medians over the turns of a round, pair by pair. Tokens are those of encoder and decoder
together.

A BERT predicts the tokens at 15 % of the positions. transformers' class computes the logits of all
of them; the contenders "slots" are the same class with the hidden states gathered before its head,
which is what flaxlm does.
"""

import argparse
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path

from steps import turns
from steps.shapes import shape, tokens

SHAPES = {
    "gpt2 384 x 6": shape("gpt2", 384, 6, rows=8, length=256, vocab=8192),
    "gpt2 512 x 6": shape("gpt2", 512, 6, rows=4, length=512, vocab=50257),
    "bert 384 x 6": shape("bert", 384, 6, rows=16, length=128, vocab=30522, slots=20),
    "bert 512 x 6": shape("bert", 512, 6, rows=4, length=512, vocab=30522, slots=77),
    "t5 256 x 4": shape("t5", 256, 4, rows=8, length=256, targets=58, vocab=8192),
    "t5 512 x 6": shape("t5", 512, 6, mlp=1024, rows=4, length=512, targets=114, vocab=8192),
    "t5 1.0 512 x 6": shape(
        "t5_v1_0", 512, 6, rows=4, length=512, targets=114, vocab=32128, dropout=0.1
    ),
}
CONTENDERS = ("flaxlm", "torch eager", "torch compiled")
WITH_SLOTS = ("torch eager, slots", "torch compiled, slots")

# Huge pages, as flaxlm.host asks for; given to every contender alike.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def compare(title, shape, names, *, rounds, steps, profile, python):
    """Lets the contenders take turns and prints their table."""
    contenders = {}
    for name in names:
        found = turns.missing(name)
        runs = python if turns.is_ours(name) else sys.executable
        contender = None if found else turns.Contender(name, shape, ENVIRONMENT, runs)
        if contender is None or contender.ready is None:
            why = f"{found} not installed" if found else "it did not start, see above"
            print(f"{name}: left out, {why}", flush=True)
        else:
            contenders[name] = contender
    for _ in range(rounds):
        for contender in contenders.values():
            contender.take_turn(steps)
    settings = ", ".join(f"{key} {value}" for key, value in shape.items() if value)
    print(f"\n{title}: {settings}; {rounds} rounds of {steps} steps, medians", flush=True)
    print_table(contenders, tokens(shape))
    if profile and "flaxlm" in contenders:
        with tempfile.TemporaryDirectory() as folder:
            made = contenders["flaxlm"].profile(folder)
            print_profile(folder, made)
    for contender in contenders.values():
        contender.close()


def print_table(contenders, tokens):
    titles = "contender", "parameters", "first two steps s", "tokens/s", "CPU s/step", "ratio"
    print("| " + " | ".join([*titles, "ratio in CPU time"]) + " |")
    print("|---|---|---|---|---|---|---|")
    base = contenders.get("torch eager")
    for name, contender in contenders.items():
        wall, cpu = (statistics.median(contender.seconds(clock)) for clock in ("wall", "cpu"))
        ratios = ["-", "-"]
        if base is not None:
            ratios = [f"{faster(contender, base, clock):.2f}" for clock in ("wall", "cpu")]
        print(
            f"| {name} | {contender.ready['parameters']:,} | {contender.ready['start']:.0f} "
            f"| {tokens / wall:,.0f} | {cpu:.3f} | {' | '.join(ratios)} |"
        )
    for kind in ("", ", slots"):
        peers = [
            (name, peer) for name, peer in contenders.items()
            if name in (f"torch eager{kind}", f"torch compiled{kind}")
        ]  # fmt: skip
        if peers and "flaxlm" in contenders:
            name, best = min(peers, key=lambda peer: statistics.median(peer[1].seconds()))
            print(f"flaxlm is {faster(contenders['flaxlm'], best):.2f} times as fast as {name}")


def faster(contender, base, clock="wall"):
    """Median over the rounds of how many times as fast `contender` is as `base`."""
    pairs = zip(base.seconds(clock), contender.seconds(clock), strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)


def print_profile(folder, steps):
    """Shares of the time by kind of operation, from the trace of the compiled program."""
    from jax.profiler import ProfileData

    spent = Counter()
    for file in Path(folder).rglob("*.xplane.pb"):
        for plane in ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                for event in line.events:
                    name = event.name.lstrip("%").split(".")[0]
                    called = any(mark in event.name for mark in ("::", " ", "(", "PjRt"))
                    if "CPU" in plane.name and not called:
                        spent[name] += event.duration_ns
    kinds = Counter()
    for name, nanoseconds in spent.items():
        kinds[kind_of(name)] += nanoseconds
    total = sum(kinds.values())
    print(f"\nWhere flaxlm's time goes ({total / steps / 1e6:.0f} ms of threads a step):")
    for kind, nanoseconds in kinds.most_common(10):
        print(f"  {kind:28} {nanoseconds / total:6.1%}")


def kind_of(name):
    for words, kind in (
        (("ynn", "dot", "gemm", "onednn"), "matrix products"),
        (("transpose", "copy", "bitcast"), "copies and transposes"),
        (("reduce",), "reductions"),
        (("scatter", "gather", "dynamic"), "gathers and scatters"),
        (("rng", "threefry"), "random numbers"),
        (("fusion", "add", "multiply", "exponential", "broadcast"), "elementwise"),
    ):
        if any(word in name for word in words):
            return kind
    return name


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--contenders", nargs="*", choices=list(turns.CONTENDERS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument(
        "--python", default=sys.executable, help="runs flaxlm: of another environment, another jax"
    )
    options = parser.parse_args()
    for title in options.shapes:
        names = CONTENDERS + (WITH_SLOTS if SHAPES[title]["slots"] else ())
        compare(
            title,
            SHAPES[title],
            options.contenders or names,
            rounds=options.rounds,
            steps=options.steps,
            profile=options.profile,
            python=options.python,
        )


if __name__ == "__main__":
    main()
