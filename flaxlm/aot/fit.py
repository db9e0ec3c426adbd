"""The train step of an experiment, compiled for devices that need not exist: does it fit, what does
it cost.

The program is the one that training runs (`step.jit_programs`), lowered on a state and a batch that
have shapes, types and layouts but no values.
"""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass

import jax

from flaxlm import sharding
from flaxlm.aot import topologies
from flaxlm.aot.devices import Target
from flaxlm.aot.estimate import Estimate, estimate
from flaxlm.aot.memory import Memory, memory_of, out_of_memory
from flaxlm.batch import FEATURES
from flaxlm.data.spec import Phase
from flaxlm.errors import ConfigError
from flaxlm.plan import Plan, make_plan
from flaxlm.sharding import AXES
from flaxlm.step import jit_programs


@dataclass(frozen=True)
class Fit:
    """One program: the train step of one phase on one mesh.

    Attributes:
      start: first step of the phase.
      rows, length: the global batch of the phase.
      sizes: of the mesh.
      attention: which way to attend was taken, "" if the model has none.
      needed: bytes of one device's memory that the program takes, at most.
      available: bytes that it can have.
      arguments: bytes of state and batch on one device.
      memory: what the compiler reports; None if it refused the program.
      estimate: None if it refused the program, or what it wrote cannot be read.
      model_flops: of the model per device and step, nothing recomputed.
      compile_seconds: wall time of lowering and compiling, on this machine.
    """

    start: int
    rows: int
    length: int
    sizes: Mapping[str, int]
    attention: str
    needed: int
    available: int
    arguments: int
    memory: Memory | None
    estimate: Estimate | None
    model_flops: float
    compile_seconds: float

    @property
    def fits(self) -> bool:
        return self.memory is not None and self.needed <= self.available

    @property
    def headroom(self) -> int:
        """Bytes that are left; less than 0 if the program does not fit."""
        return self.available - self.needed

    @property
    def mfu(self) -> float | None:
        """Estimated, see `Estimate`."""
        return self.estimate.mfu(self.model_flops) if self.estimate else None


def place(experiment, topology: topologies.Topology):
    """The experiment on that many slices, and its layout checked against the number of devices.

    Raises:
      ConfigError: with a topology and with overrides that would go together.
    """
    mesh = experiment.mesh
    if topology.slices > 1 and mesh.slices == 1:
        mesh = dataclasses.replace(mesh, slices=topology.slices)
        experiment = dataclasses.replace(experiment, mesh=mesh)
    if mesh.slices not in (-1, topology.slices):
        raise ConfigError(
            f"mesh.slices={mesh.slices} and --slices {topology.slices}: a mesh has as many as the "
            f"topology: --slices {mesh.slices}"
        )
    try:
        mesh.sizes(topology.devices)
    except ConfigError as error:
        raise ConfigError(_mismatch(mesh, topology) or str(error)) from error
    return experiment


def compile_step(experiment, target: Target, *, only_largest: bool = False) -> tuple[Fit, ...]:
    """Compile the train step for every length of the run's phases, with the largest batch of it.

    Args:
      only_largest: compile the one with the most tokens in a batch alone.

    Raises:
      ConfigError: the experiment is not legal on this mesh.
    """
    layout = sharding.make_layout(experiment.mesh, target.devices)
    plan = make_plan(experiment, layout, experiment.data.vocabulary.blank())
    biggest: dict[int, Phase] = {}
    for phase in experiment.data.course:
        if phase.length not in biggest or phase.batch > biggest[phase.length].batch:
            biggest[phase.length] = phase
    phases = list(biggest.values())
    if only_largest:
        phases = [max(phases, key=lambda phase: (phase.batch * phase.length, phase.length))]
    return tuple(_compile(experiment, plan, phase, target) for phase in phases)


def largest(fits: tuple[Fit, ...]) -> Fit:
    """The phase that needs the most memory."""
    return max(fits, key=lambda fit: (not fit.fits, fit.needed))


def _compile(experiment, plan: Plan, phase, target: Target) -> Fit:
    layout = plan.layout
    began = time.monotonic()
    with sharding.using(layout):
        programs = jit_programs(
            plan, seed=experiment.run.seed, accumulate=experiment.run.accumulate
        )
        state = plan.map_state(
            lambda leaf, axes: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=layout.sharding(axes)
            )
        )
        batch = {
            name: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=layout.sharding(FEATURES[name].axes)
            )
            for name, leaf in plan.phases[phase.start].items()
        }
        lowered = programs.step.lower(state, batch)
        memory = priced = None
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            refused = out_of_memory(error)
            if refused is None:
                raise
            needed = max(refused.needed, target.hbm_bytes + 1)
        else:
            memory = memory_of(compiled)
            needed = memory.total
    seconds = time.monotonic() - began
    if memory is not None:
        priced = estimate(compiled.as_text(), target.chip, slices=layout.sizes["slices"])
    size = plan.bytes_per_device()
    return Fit(
        start=phase.start,
        rows=phase.batch,
        length=phase.length,
        sizes=dict(layout.sizes),
        attention=plan.attention,
        needed=needed,
        available=target.hbm_bytes,
        arguments=memory.arguments if memory else sum(size.values()),
        memory=memory,
        estimate=priced,
        model_flops=plan.train_flops(phase.start) / layout.mesh.size,
        compile_seconds=seconds,
    )


def _mismatch(mesh: sharding.Mesh, topology: topologies.Topology) -> str:
    """What is wrong with a mesh of other size than the topology, and what would work; "" if its
    sizes are not legal anywhere.
    """
    sizes = {axis: getattr(mesh, axis) for axis in AXES}
    if any(size < 1 for size in sizes.values()):
        return ""
    product = 1
    for size in sizes.values():
        product *= size
    text = " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "1"
    ways = []
    usual = topologies.with_devices(topology.chip, product // topology.slices)
    if usual:
        ways.append(f"--topology {usual.name}")
    for axis in ("data", "fsdp"):
        others = product // sizes[axis]
        if topology.devices % others == 0:
            ways.append(f"--mesh.{axis}={topology.devices // others}")
            break
    else:
        ways.append(f"a mesh of {topology.devices}, such as --mesh.data=-1 with smaller others")
    return (
        f"mesh: {text} is {product} device(s), {topology} has {topology.devices}; take "
        f"{' or '.join(ways)}"
    )


def describe_mesh(sizes: Mapping[str, int]) -> str:
    """ "data=4 x fsdp=16"."""
    return " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "1"
