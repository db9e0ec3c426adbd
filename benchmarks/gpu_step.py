"""A training step on one GPU: flaxlm against transformers on torch, in bf16, at published sizes.

    python benchmarks/gpu_step.py                  # all shapes; torch and transformers wanted
    python benchmarks/gpu_step.py --shapes gpt2_124m --rows 64
    python benchmarks/gpu_step.py --tiny           # the whole script in miniature, on a CPU

Equal model, batch, optimizer (AdamW, gradient norm clipped to 1), dropout 0. Both sides keep
float32 weights and optimizer states and run products and attention in bfloat16, norms and the
softmax of the loss in float32: flaxlm by its Compute("bfloat16"), torch by autocast. Attention is
cuDNN's in flaxlm where it applies, in torch scaled_dot_product_attention with whatever kernel it
chooses (flash for GPT-2 and BERT, memory-efficient with T5's bias). Vocabularies are multiples of
128 on both sides.

Every contender gets the GPU for itself: a process is started, makes its turn and ends; the next one
follows, and all of that again in every round. Compiled programs are kept in a folder between
rounds. FLOPs are those of the model's matrix products, masked-out pairs included and nothing
recomputed, the same number for both sides; BERT's logits are counted at the predicted positions, so
the class that computes them everywhere does more than it is given credit for: the contenders
"slots" do not. MFU is against the bf16 figure of the data sheet. Memory is the allocator's peak.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from steps import turns
from steps.shapes import shape, tokens

from flaxlm import flags
from flaxlm.metrics import peak_flops

# Batches that fit 80 GB without rematerialisation, logits of every position included.
SHAPES = {
    "gpt2_124m": shape("gpt2", 768, 12, rows=32, length=1024, vocab=50304),
    "gpt2_1.5b": shape("gpt2", 1600, 48, heads=25, rows=6, length=1024, vocab=50304),
    "bert_large": shape("bert", 1024, 24, rows=48, length=512, vocab=30592, slots=77),
    "t5_large": shape(
        "t5", 1024, 24, mlp=2816, rows=16, length=512, targets=114, vocab=32128
    ),
}  # fmt: skip
TINY = {
    "gpt2_tiny": shape("gpt2", 64, 2, rows=2, length=32, vocab=512),
    "bert_tiny": shape("bert", 64, 2, rows=2, length=32, vocab=512, slots=5),
    "t5_tiny": shape("t5", 64, 2, rows=2, length=32, targets=8, vocab=512),
}
OURS = ("flaxlm", "flaxlm scanned")
PEERS = ("torch eager", "torch compiled")
WITH_SLOTS = ("torch eager, slots", "torch compiled, slots")


def measure(shape, names, *, rounds, steps, environment):
    """{name: turns of a contender, with its `ready` words in each}; those who cannot run are left
    out with a line.
    """
    found, gone = {}, {}
    for name in names:
        if missing := turns.missing(name):
            gone[name] = f"{missing} not installed"
    for _ in range(rounds):
        for name in names:
            if name in gone:
                continue
            contender = turns.Contender(name, shape, environment)
            if contender.ready is None:
                gone[name] = "it did not start (out of memory?), see above"
                continue
            contender.take_turn(steps)
            contender.close()
            found.setdefault(name, []).append(contender.ready | contender.turns[0])
    for name, why in gone.items():
        print(f"{name}: left out, {why}", flush=True)
    return {name: made for name, made in found.items() if len(made) == rounds}


def print_table(title, shape, found, *, rounds, steps):
    settings = ", ".join(f"{key} {value}" for key, value in shape.items() if value)
    print(f"\n{title}: {settings}; {rounds} rounds of {steps} steps, medians")
    flops = next((made[0]["flops"] for name, made in found.items() if turns.is_ours(name)), None)
    print("| contender | parameters | start s | ms/step | tokens/s | TFLOP/s | MFU | peak GiB |")
    print("|---|---|---|---|---|---|---|---|")
    for name, made in found.items():
        wall = statistics.median(turn["wall"] for turn in made)
        speed = flops / wall if flops else None
        peak = peak_flops(made[0]["device"])
        mfu = f"{speed / peak:.1%}" if speed and peak else "-"
        memory = f"{made[-1]['peak'] / 2**30:.1f}" if made[-1]["peak"] else "-"
        print(
            f"| {name} | {made[0]['parameters']:,} | {made[0]['start']:.0f} | {wall * 1e3:.1f} "
            f"| {tokens(shape) / wall:,.0f} | {f'{speed / 1e12:.1f}' if speed else '-'} | {mfu} "
            f"| {memory} |"
        )
    for kind in ("", ", slots"):
        print_ratio(found, [f"torch eager{kind}", f"torch compiled{kind}"])
    print(f"measured on: {', '.join({made[0]['device'] for made in found.values()})}", flush=True)


def print_ratio(found, peers):
    """flaxlm's better contender against the better of the peers, round by round."""

    def best(names):
        known = [name for name in names if name in found]
        return min(known, key=lambda name: statistics.median(t["wall"] for t in found[name]))

    if not (set(peers) & set(found) and set(OURS) & set(found)):
        return
    ours, theirs = best(OURS), best(peers)
    ratio = statistics.median(
        b["wall"] / a["wall"] for a, b in zip(found[ours], found[theirs], strict=True)
    )
    print(f"{ours} is {ratio:.2f} times as fast as {theirs}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="tiny models on the CPU")
    parser.add_argument("--shapes", nargs="*", choices=[*SHAPES, *TINY])
    parser.add_argument("--contenders", nargs="*", choices=list(turns.CONTENDERS))
    parser.add_argument("--rows", type=int, help="of a batch; default: what fits 80 GB")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    table = TINY if options.tiny else SHAPES
    wrong = [title for title in options.shapes or () if title not in table]
    if wrong:
        parser.error(f"{', '.join(wrong)}: with{'' if options.tiny else 'out'} --tiny there are "
                     f"{', '.join(table)}")  # fmt: skip
    rounds = options.rounds or (1 if options.tiny else 3)
    steps = options.steps or (2 if options.tiny else 20)
    with tempfile.TemporaryDirectory() as folder:
        environment = (
            {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
            if options.tiny
            else flags.environment("gpu")
        )
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": str(Path(folder) / "jax"),
            "TORCHINDUCTOR_CACHE_DIR": str(Path(folder) / "inductor"),
        }
        for title in options.shapes or table:
            chosen = table[title] | {"dtype": "bfloat16"}
            chosen |= {"rows": options.rows} if options.rows else {}
            names = options.contenders or (
                OURS + PEERS + (WITH_SLOTS if chosen["slots"] else ())
            )  # fmt: skip
            found = measure(chosen, names, rounds=rounds, steps=steps, environment=environment)
            print_table(title, chosen, found, rounds=rounds, steps=steps)


if __name__ == "__main__":
    main()
