"""The step of a Llama-shaped decoder, compiled for a TPU slice that is not there, beside MaxText's.

    python benchmarks/decoder_shapes.py --shape llama2-7b --remat full dots

The model is made of flaxlm's own blocks and goes through the same plan and train step as every
experiment; only the shapes come from elsewhere. Needs libtpu, no TPU. HBM is what the compiler
reports of a chip: `argument_size_in_bytes`, `temp_size_in_bytes`, and `peak_memory_in_bytes`, the
most that is alive at once, arguments included; that is what has to fit, the sum of the other two
is some 4 GiB above what the compiler allocates. Times are those of `flaxlm.aot.estimate` on the
compiled program, for both sides: they rank programs of equal shape, and nobody has measured them.

MaxText's numbers are of maxtext 0.2.5, compiled by its own `train_compile` with jax 0.12.0.1 and
libtpu 0.0.50.1 and put through the same estimate. Beyond its defaults: model_name=llama2-7b
compile_topology=v5p-128 (which is v5p 4x4x4) compile_topology_num_slices=1 ici_fsdp_parallelism=64
per_device_batch_size=4 max_target_length=4096 attention=flash dataset_type=synthetic. Compute type
bf16, parameters, gradients and Adam's state fp32, as here.
"""

# ruff: noqa: E402  libtpu is told where it is before jax is imported

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flaxlm.aot import devices, topologies

TOPOLOGY = "v5p:4x4x4"
devices.prepare_environment(topologies.parse(TOPOLOGY))  # before jax is imported

import flax.linen as nn
import jax
from jax.nn.initializers import normal

from flaxlm import sharding
from flaxlm.aot.estimate import Estimate, estimate
from flaxlm.batch import Batch
from flaxlm.data.spec import Data, Source, Vocabulary
from flaxlm.experiment import Experiment, Run
from flaxlm.losses import Readout
from flaxlm.nn import masks
from flaxlm.nn.attention import Attention
from flaxlm.nn.block import Block, pre_norm
from flaxlm.nn.compute import POLICIES, Compute
from flaxlm.nn.embed import Embed, Head
from flaxlm.nn.mlp import GatedMLP
from flaxlm.nn.norm import RMSNorm
from flaxlm.nn.positions import Rotary
from flaxlm.nn.stack import stack
from flaxlm.objectives.causal_lm import CausalLM
from flaxlm.optim import AdamW, Constant
from flaxlm.plan import make_plan
from flaxlm.step import jit_programs


@dataclass(frozen=True)
class Size:
    """The numbers of a decoder, named as in `flaxlm.models.gpt1.Size`."""

    depth: int
    width: int
    mlp: int
    heads: int
    vocab: int
    head_dim: int = 128
    base: float = 10_000.0  # of the rotary wavelengths
    eps: float = 1e-5


# Attention here has as many keys as queries, so of the Llamas those without grouped heads.
SIZES = {"llama2-7b": Size(32, 4096, 11008, 32, 32000)}

GIB = 2**30
LENGTH, ROWS = 4096, 4  # rows per chip

# MaxText by its remat policies that keep what ours of these names keep: GiB of arguments and of
# temporaries, at the peak; ms of matrix products, elementwise work, copies, attention, exposed
# collectives, ms of a step, share of the chip's peak FLOPs.
COLUMNS = ("matmul", "elementwise", "copies", "attention", "collectives")
MAXTEXT = {
    "full": ("full", 1.18, 12.80, 9.59, 2269, 220, 32, 422, 96, 3039, 0.503),
    "qkv": ("save_qkv_proj", 1.18, 25.28, 21.71, 2166, 196, 25, 422, 96, 2905, 0.527),
    "dots": ("minimal", 1.18, 49.39, 46.66, 2025, 221, 59, 422, 96, 2822, 0.542),
    "minimal": ("minimal_with_context", 1.18, 53.20, 50.59, 2025, 238, 44, 345, 96, 2749, 0.557),
}


class Model(nn.Module):
    """Pre-norm decoder with RMSNorm, gated SiLU, rotary positions, a readout of its own.

    Attributes:
      size: the numbers.
      compute: how to compute.
    """

    size: Size
    compute: Compute

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> dict:
        """logits: Readout; hidden: [B, L, D]."""
        size = self.size
        init = normal(0.02)
        norm = partial(RMSNorm, size.eps)
        block = Block(
            partial(Attention, size.heads, size.head_dim, init, scale=size.head_dim**-0.5),
            partial(GatedMLP, size.mlp, jax.nn.silu, init),
            norm,
            pre_norm,
            name="layers",
        )
        embed = Embed(size.vocab, size.width, init, self.compute.type, name="embed")
        hidden_BLD = stack(
            block,
            embed(batch["tokens"]),
            masks.same_segment(batch["segments"]) & masks.causal(),
            None,
            Rotary(base=size.base).rotation(batch["positions"], size.head_dim),
            depth=size.depth,
            compute=self.compute,
            train=train,
        )
        hidden_BLD = norm(name="norm")(hidden_BLD)
        head = Head(size.vocab, size.width, init, name="head")
        return {
            "logits": Readout(hidden_BLD, head.kernel_DV, vocab=size.vocab),
            "hidden": hidden_BLD,
        }

    def flops(self, shapes: Mapping[str, tuple[int, ...]]) -> float:
        """Forward FLOPs of one batch, of attention the causal half: what MaxText counts."""
        size, (rows, length) = self.size, shapes["tokens"]
        inner = size.heads * size.head_dim
        layer = 2 * size.width * (4 * inner + 3 * size.mlp) + 2 * length * inner
        return float(rows * length * (size.depth * layer + 2 * size.width * size.vocab))


def make_experiment(size: Size, *, remat: str, length: int, batch: int, mesh) -> Experiment:
    return Experiment(
        model=Model(size, Compute("bfloat16", remat=remat)),
        objective=CausalLM(),
        data=Data(
            sources=(Source("embedded:english"),),
            vocabulary=Vocabulary(size=size.vocab - 100),
            batch=batch,
            length=length,
        ),
        optimizer=AdamW(Constant(3e-4), decay=0.1),
        mesh=mesh,
        run=Run(steps=1000),
    )


def compiled(experiment: Experiment, target: devices.Target):
    """The compiled train step and its plan."""
    layout = sharding.make_layout(experiment.mesh, target.devices)
    plan = make_plan(experiment, layout, experiment.data.vocabulary.blank())
    programs = jit_programs(plan, seed=0, accumulate=1)
    with sharding.using(layout):
        return programs.step.lower(plan.state, dict(plan.features)).compile(), plan


def row(name: str, numbers) -> str:
    """One line of the table."""
    arguments, temporaries, peak, *milliseconds, mfu = numbers
    cells = [f"{name:28}", f"{arguments:6.2f}", f"{temporaries:7.2f}", f"{peak:6.2f}"]
    cells += [f"{x:{len(title)}.0f}" for x, title in zip(milliseconds, _TITLES, strict=True)]
    return " | ".join([*cells, f"{mfu:6.1%}"])


_TITLES = (*COLUMNS, "step ms")


def measured(experiment: Experiment, target: devices.Target, save: Path | None):
    """(numbers of `row`, the estimate, seconds of compilation)."""
    start = time.perf_counter()
    program, plan = compiled(experiment, target)
    seconds = time.perf_counter() - start
    text, memory = program.as_text(), program.memory_analysis()
    if save is not None:
        save.write_text(text)
    found: Estimate = estimate(text, target.chip)
    numbers = (
        memory.argument_size_in_bytes / GIB,
        memory.temp_size_in_bytes / GIB,
        memory.peak_memory_in_bytes / GIB,
        *(found.breakdown[name] * 1e3 for name in COLUMNS),
        found.step_seconds * 1e3,
        found.mfu(plan.train_flops() / len(target.devices)),
    )
    return numbers, found, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SIZES, default="llama2-7b")
    parser.add_argument("--remat", choices=POLICIES, nargs="+", default=list(MAXTEXT))
    parser.add_argument("--save", type=Path, help="folder for the compiled programs' text")
    arguments = parser.parse_args()
    if arguments.save is not None:
        arguments.save.mkdir(parents=True, exist_ok=True)
    target = devices.target(topologies.parse(TOPOLOGY))
    chips = len(target.devices)
    print(
        f"{arguments.shape}, {LENGTH} tokens, {ROWS} rows per chip, {TOPOLOGY}, fsdp={chips}\n"
        "GiB per chip as compiled; milliseconds and MFU are estimates, nothing was run"
    )
    print(" | ".join([f"{'':28}", "  args", "  temps", "  peak", *_TITLES, "   MFU"]))
    for remat in arguments.remat:
        experiment = make_experiment(
            SIZES[arguments.shape],
            remat=remat,
            length=LENGTH,
            batch=ROWS * chips,
            mesh=sharding.Mesh(data=1, fsdp=chips),
        )
        save = arguments.save and arguments.save / f"{arguments.shape}.{remat}.txt"
        ours, found, seconds = measured(experiment, target, save)
        print(row(f"flaxlm {remat}", ours), flush=True)
        if remat in MAXTEXT:
            name, *theirs = MAXTEXT[remat]
            print(row(f"MaxText {name}", theirs))
            peak, step = ours[2] / theirs[2], ours[-2] / theirs[-2]
            print(f"{'ratio':28} | peak {peak:.2f} | step {step:.3f}")
        described = ", ".join(
            f"{x.count} {x.kind} over {x.group}: {x.bytes / 1e9:.1f} GB" for x in found.traffic
        )
        print(f"    compiled in {seconds:.0f} s; {described}", flush=True)


if __name__ == "__main__":
    main()
