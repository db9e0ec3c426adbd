"""Tokens per second of a T5 training step on this machine's CPU: flaxlm against transformers on
torch.

    pip install '.[parity]'                      # Python 3.11; peers are optional
    python benchmarks/train_step.py              # the table of benchmarks/README.md
    python benchmarks/train_step.py --profile    # and where flaxlm's time goes

Same model, batch, optimizer (AdamW, decay 0.01, gradient norm clipped to 1) and precision (fp32) on
both sides. Every contender lives in a process of its own and they take turns, a few steps each, so
a machine whose speed drifts is equally unkind to all; the medians of the rounds make the ratio.
Tokens are those of encoder and decoder together.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path


def _shape(width, depth, heads, mlp, vocab, rows, length, targets, **more):
    """An encoder-decoder with `depth` layers in each stack, and a batch of it."""
    names = ("width", "depth", "heads", "mlp", "vocab", "rows", "length", "targets")
    numbers = (width, depth, heads, mlp, vocab, rows, length, targets)
    return dict(zip(names, numbers, strict=True)) | {"v1_0": False, "dropout": 0.0} | more


SHAPES = {
    "v1.1 256 x 4": _shape(256, 4, 4, 1024, 8192, 8, 256, 58),
    "v1.1 512 x 6": _shape(512, 6, 8, 1024, 8192, 4, 512, 114),
    "v1.0 512 x 6": _shape(512, 6, 8, 2048, 32128, 4, 512, 114, v1_0=True, dropout=0.1),
}
# Huge pages, as flaxlm.host asks for; given to every contender alike.
_TUNABLES = "glibc.malloc.hugetlb=1"
CONTENDERS = ("flaxlm", "torch eager", "torch compiled")


def batch(shape):
    import numpy as np

    random = np.random.default_rng(0)
    tokens = random.integers(2, shape["vocab"], (shape["rows"], shape["length"])).astype(np.int32)
    targets = random.integers(2, shape["vocab"], (shape["rows"], shape["targets"])).astype(np.int32)
    return tokens, targets


def flaxlm_step(shape):
    """`run(n)`: n training steps; and where a profile of them would be read from."""
    import jax
    import numpy as np

    from flaxlm import optim, sharding, step
    from flaxlm.models import t5
    from flaxlm.nn.compute import Compute
    from flaxlm.objectives.span_corruption import SpanCorruption
    from flaxlm.objectives.tokens import shift_right
    from flaxlm.plan import Plan

    tokens, targets = batch(shape)
    features = {
        "tokens": tokens,
        "segments": np.ones_like(tokens),
        "decoder_tokens": shift_right(targets, 0),
        "decoder_segments": np.ones_like(targets),
        "targets": targets,
        "weights": np.ones(targets.shape, np.float32),
        "text_weights": np.ones(targets.shape, np.float32),
    }
    size = t5.Size(
        shape["depth"], shape["width"], shape["mlp"], shape["heads"], vocab=shape["vocab"],
        dropout=shape["dropout"],
    )  # fmt: skip
    kind = t5.ModelV10 if shape["v1_0"] else t5.Model
    model, objective = kind(size, Compute(scan=False)), SpanCorruption()
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in features.items()}
    layout = sharding.make_layout(sharding.Mesh(data=1), jax.devices()[:1])
    with sharding.using(layout):
        axes = sharding.axes_of(jax.eval_shape(lambda: step.init_params(model, shapes, seed=0)))
        tx = optim.AdamW(optim.Constant(1e-4), decay=0.01).build(axes, 1)
        state = jax.eval_shape(step.make_init(model, tx, shapes, seed=0))
        plan = Plan(model, objective, layout, shapes, state, axes, tx)
        programs = step.jit_programs(plan, seed=0, accumulate=1)
        state = programs.init()
        placed = jax.device_put(features, plan.batch_shardings())

    def run(n):
        nonlocal state
        with sharding.using(layout):
            for _ in range(n):
                state, metrics = programs.step(state, placed)
            return float(metrics["loss"]), plan.parameters

    return run


def torch_step(shape, compiled):
    import numpy as np
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.set_num_threads(os.cpu_count())
    tokens, targets = batch(shape)
    v1_0 = shape["v1_0"]
    config = T5Config(
        vocab_size=shape["vocab"],
        d_model=shape["width"],
        d_kv=64,
        d_ff=shape["mlp"],
        num_layers=shape["depth"],
        num_decoder_layers=shape["depth"],
        num_heads=shape["heads"],
        dropout_rate=shape["dropout"],
        feed_forward_proj="relu" if v1_0 else "gated-gelu",
        tie_word_embeddings=v1_0,
        use_cache=False,
    )
    model = T5ForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    if not v1_0:  # the class ties the readout whatever its configuration says
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.train()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01, fused=True)
    inputs = torch.tensor(tokens, dtype=torch.long)
    labels = torch.tensor(targets, dtype=torch.long)
    shifted = torch.tensor(
        np.concatenate([np.zeros((len(targets), 1), np.int64), targets[:, :-1]], axis=1)
    )

    def loss_of(inputs, shifted, labels):
        return model(
            input_ids=inputs, decoder_input_ids=shifted, labels=labels, use_cache=False
        ).loss

    forward = torch.compile(loss_of) if compiled else loss_of

    def run(n):
        for _ in range(n):
            optimizer.zero_grad(set_to_none=True)
            loss = forward(inputs, shifted, labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
            optimizer.step()
        return loss.item(), sum(p.numel() for p in parameters)

    return run


def worker(name, shape):
    """Serve requests on stdin: a number of steps to make, or a folder to leave a profile in."""
    run = flaxlm_step(shape) if name == "flaxlm" else torch_step(shape, name == "torch compiled")
    start = time.perf_counter()
    loss, parameters = run(2)
    ready = {"start": time.perf_counter() - start, "loss": loss, "parameters": parameters}
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if isinstance(request, str):
            import jax

            with jax.profiler.trace(request):
                run(3)
            print(json.dumps(3), flush=True)
            continue
        run(1)  # while others had their turn the system may have taken this process's memory
        start, cpu = time.perf_counter(), time.process_time()
        run(request)
        used = [time.perf_counter() - start, time.process_time() - cpu]
        print(json.dumps([seconds / request for seconds in used]), flush=True)


class Contender:
    def __init__(self, name, shape):
        command = [sys.executable, __file__, "--worker", name, json.dumps(shape)]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": _TUNABLES}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        line = self.process.stdout.readline()
        self.ready = json.loads(line) if line else None
        self.wall, self.cpu = [], []

    def ask(self, request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def compare(title, shape, *, rounds, steps, profile):
    contenders = {}
    for name in CONTENDERS:
        contender = Contender(name, shape)
        if contender.ready is None:
            print(f"{name}: not available here, left out", flush=True)
        else:
            contenders[name] = contender
    for _ in range(rounds):
        for contender in contenders.values():
            wall, cpu = contender.ask(steps)
            contender.wall.append(wall)
            contender.cpu.append(cpu)
    tokens = shape["rows"] * (shape["length"] + shape["targets"])
    settings = ", ".join(f"{key} {value}" for key, value in shape.items())
    print(f"\n{title}: {settings}; {rounds} rounds of {steps} steps, medians", flush=True)
    titles = "contender", "parameters", "first two steps s", "tokens/s", "CPU s/step", "ratio"
    print("| " + " | ".join([*titles, "ratio in CPU time"]) + " |")
    print("|---|---|---|---|---|---|---|")
    base = contenders.get("torch eager")
    for name, contender in contenders.items():
        wall, cpu = statistics.median(contender.wall), statistics.median(contender.cpu)
        ratios = "- | -"
        if base is not None:
            pairs = [
                [b / c for b, c in zip(x, y, strict=True)]
                for x, y in ((base.wall, contender.wall), (base.cpu, contender.cpu))
            ]
            ratios = " | ".join(f"{statistics.median(pair):.2f}" for pair in pairs)
        print(
            f"| {name} | {contender.ready['parameters']:,} | {contender.ready['start']:.0f} "
            f"| {tokens / wall:,.0f} | {cpu:.3f} | {ratios} |"
        )
    if profile and "flaxlm" in contenders:
        with tempfile.TemporaryDirectory() as folder:
            made = contenders["flaxlm"].ask(folder)
            print_profile(folder, made)
    for contender in contenders.values():
        contender.close()


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
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    if options.worker:
        worker(options.worker[0], json.loads(options.worker[1]))
        return
    for title in options.shapes:
        compare(
            title,
            SHAPES[title],
            rounds=options.rounds,
            steps=options.steps,
            profile=options.profile,
        )


if __name__ == "__main__":
    main()
