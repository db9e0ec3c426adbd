"""Processor seconds to trace and compile a GPT-2 train step: its layers in a loop, or one by one.

    python benchmarks/compile_time.py                   # GPT-2 small: 12 layers
    python benchmarks/compile_time.py --depth 12 48

Compiled for the CPU of this machine, on shapes alone: nothing is computed, no cache is read. Every
compilation has a process of its own; the fastest of `--rounds` is printed, in processor seconds
(all threads together), which a busy machine distorts least.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace


def measure(depth: int, scan: bool) -> dict:
    """{"trace": seconds, "compile": seconds} in this process."""
    import jax

    from flaxlm import named, optim, sharding, step
    from flaxlm.data.spec import Vocabulary
    from flaxlm.models import gpt2
    from flaxlm.nn.compute import Compute
    from flaxlm.objectives.causal_lm import StreamLM
    from flaxlm.plan import Plan, trace_features

    jax.config.update("jax_enable_compilation_cache", False)
    blank = Vocabulary(size=50257, kind="bytes", sentinels=0).blank()
    features = trace_features(StreamLM(), length=1024, batch=4, vocab=blank)
    size = replace(gpt2.SIZES["small"], depth=depth)
    model = gpt2.Model(size, Compute(scan=scan, remat="full"))
    with sharding.using(sharding.make_layout(sharding.Mesh(), jax.devices()[:1])) as layout:
        axes = named.axes_of(jax.eval_shape(lambda: step.init_params(model, features, seed=0)))
        tx = optim.AdamW(optim.Constant(1e-3)).build(axes, 10)
        state = jax.eval_shape(step.make_init(model, tx, features, seed=0))
        plan = Plan(model, StreamLM(), layout, {0: features}, state, axes, tx)
        program = step.jit_programs(plan, seed=0, accumulate=1).step
        start = time.process_time()
        lowered = program.lower(state, features)
        traced = time.process_time()
        lowered.compile()
    return {"trace": traced - start, "compile": time.process_time() - traced}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, nargs="+", default=[12])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("DEPTH", "SCAN"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        depth, scan = map(int, arguments.one)
        print(json.dumps(measure(depth, bool(scan))))
        return
    print("| layers | how | trace s | compile s |\n|---|---|---|---|")
    for depth in arguments.depth:
        for scan, name in ((1, "in a loop"), (0, "one by one")):
            command = [sys.executable, __file__, "--one", str(depth), str(scan)]
            rounds = [
                json.loads(
                    subprocess.run(
                        command,
                        env={**os.environ, "JAX_PLATFORMS": "cpu"},
                        stdout=subprocess.PIPE,
                        check=True,
                    ).stdout
                )
                for _ in range(arguments.rounds)
            ]
            trace, compiling = (min(found[part] for found in rounds) for part in rounds[0])
            print(f"| {depth} | {name} | {trace:.1f} | {compiling:.1f} |", flush=True)


if __name__ == "__main__":
    main()
