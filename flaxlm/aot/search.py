"""Other layouts of an experiment, each tried by compiling: which fit, and which of them is fastest.

`search` walks meshes and remat policies of the same chips. `suggestions` looks for the cheapest
changes that make a run fit. What arithmetic or the experiment's own checks rule out is not
compiled; a compiler that refuses a program for its memory does so in seconds.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from flaxlm import sharding
from flaxlm.aot import devices, report, topologies
from flaxlm.aot.devices import Target
from flaxlm.aot.fit import Fit, compile_step, describe_mesh, place
from flaxlm.aot.topologies import Topology
from flaxlm.errors import ConfigError
from flaxlm.nn.compute import POLICIES
from flaxlm.overrides import apply_overrides
from flaxlm.plan import make_plan
from flaxlm.startup import mebibytes

Overrides = tuple[tuple[str, str], ...]

_REMAT = "model.compute.remat"
_MESHES = 16  # that a search compiles at most
_ENOUGH = 3  # suggestions
_TENSOR = 8  # the widest split of matrices that is tried: beyond, links outweigh compute


@dataclass(frozen=True)
class Trial:
    """A change of the command, compiled.

    Attributes:
      overrides: to add to the command.
      topology: to compile for.
      fit: of the largest batch.
    """

    overrides: Overrides
    topology: Topology
    fit: Fit

    @property
    def cost(self) -> float:
        """Estimated chip-seconds of a step."""
        return self.fit.estimate.step_seconds * self.topology.chips

    def as_json(self) -> dict[str, Any]:
        return {
            "overrides": dict(self.overrides),
            "topology": self.topology.name,
            "slices": self.topology.slices,
            **report.as_json(self.fit),
        }

    def command(self, original: Topology) -> str:
        """What to add to the command."""
        words = [f"--{path}={text}" for path, text in self.overrides]
        if self.topology != original:
            words.insert(0, f"--topology {self.topology.name}")
        return " ".join(words)


def search(experiment, target: Target, *, say: Callable[[str], None]) -> list[Trial]:
    """Meshes x remat policies on the same chips, those that fit first, the fastest of them first.

    On each mesh the policies are compiled from the least recomputation on until one fits: what
    recomputes more would fit too and be slower.
    """
    trials = []
    for mesh in meshes(experiment, target):
        for policy in reversed(POLICIES):
            trial = attempt(experiment, target.topology, (*mesh, (_REMAT, policy)), target)
            if trial is None:
                break
            trials.append(trial)
            say(f"  {_line(trial)}")
            if trial.fit.fits:
                break
    if not trials:
        raise ConfigError(
            f"--search: no mesh of {target.topology} splits data.batch={experiment.data.batch}, "
            "the heads and the widths of this model evenly; another data.batch or topology"
        )
    return sorted(trials, key=lambda t: (not t.fit.fits, t.cost if t.fit.fits else t.fit.needed))


def suggestions(
    experiment, target: Target, failed: Fit, *, say: Callable[[str], None]
) -> list[Trial]:
    """Three changes that fit, the cheapest first by estimated chip-seconds.

    Kinds of changes are tried from the one that usually costs least on, then pairs of them, until
    three fit.
    """
    say(f"does not fit by {mebibytes(-failed.headroom)}; compiling changes that might:")
    singles = [list(kind) for kind in changes(experiment, target, failed)]
    ladders: list[list[tuple[Overrides, Topology]]] = singles + [
        [_both(first[-1], second[-1], target.topology)]
        for first, second in itertools.combinations([kind for kind in singles if kind], 2)
        if _apart(first[-1], second[-1])
    ]
    found: list[Trial] = []
    for ladder in ladders:
        if len(found) == _ENOUGH:
            break
        for overrides, topology in ladder:
            trial = attempt(experiment, topology, overrides, target)
            if trial is None:
                continue
            say(f"  {_line(trial)}")
            if trial.fit.fits:
                found.append(trial)
                break
    return sorted(found, key=lambda trial: trial.cost)


def changes(
    experiment, target: Target, failed: Fit
) -> Iterator[Iterator[tuple[Overrides, Topology]]]:
    """Kinds of changes; each yields (overrides, topology) from the mildest on."""
    mesh, topology = failed.sizes, target.topology
    activations = failed.needed - failed.arguments
    room = failed.available - failed.arguments

    def remat():
        for policy in reversed(POLICIES[: POLICIES.index(experiment.model.compute.remat)]):
            yield ((_REMAT, policy),), topology

    def accumulate():
        now = experiment.run.accumulate
        shards = math.prod(mesh[axis] for axis in ("slices", "data", "fsdp"))
        rows = math.gcd(*(phase.batch for phase in experiment.data.course)) // shards
        for more in range(now + 1, rows + 1):
            # At best activations shrink as the micro-batch does.
            if rows % more == 0 and activations * now / more < room:
                yield (("run.accumulate", str(more)),), topology

    def fully_sharded():
        if mesh["data"] > 1:
            sizes = {"data": 1, "fsdp": mesh["data"] * mesh["fsdp"]}
            yield _mesh(sizes), topology

    def moments():
        names = [field.name for field in dataclasses.fields(experiment.optimizer)]
        narrow = [name for name in ("first_moment", "second_moment") if name in names]
        if narrow:
            yield tuple((f"optimizer.{name}", "bfloat16") for name in narrow), topology

    def split(axis):
        for source in ("data", "fsdp"):
            if mesh[source] % 2 == 0:
                yield _mesh({source: mesh[source] // 2, axis: mesh[axis] * 2}), topology
                return

    def more_chips():
        bigger, factor = topologies.larger(topology), 2
        axis = "fsdp" if mesh["fsdp"] > 1 or failed.arguments > failed.available / 2 else "data"
        while bigger is not None and factor <= 4:
            yield _mesh({axis: mesh[axis] * factor}), bigger
            bigger, factor = topologies.larger(bigger), factor * 2

    yield fully_sharded()
    yield remat()
    yield accumulate()
    yield moments()
    yield split("tensor")
    yield split("sequence")
    yield more_chips()


def meshes(experiment, target: Target) -> list[Overrides]:
    """Meshes of the target's devices worth compiling, at most `_MESHES`: the experiment's own, then
    those that split matrices and rows the least.

    Parameters are split no further than four times what their state needs, but for all devices;
    rows only as far as there are too few of them.
    """
    slices = target.topology.slices
    per_slice = len(target.devices) // slices
    rows = min(phase.batch for phase in experiment.data.course)
    state = _state_bytes(experiment)
    enough = max(1, math.ceil(state / (target.hbm_bytes / 2)))
    found = [_sizes(experiment.mesh.sizes(len(target.devices)))]
    for tensor, sequence in sorted(
        itertools.product(_powers(_TENSOR), _powers(per_slice)), key=lambda pair: math.prod(pair)
    ):
        rest, uneven = divmod(per_slice, tensor * sequence)
        if uneven or (sequence > 1 and 2 * rest * slices <= rows):
            continue
        for fsdp in reversed([n for n in _powers(rest) if rest % n == 0]):
            needed = max(1, enough // (tensor * sequence))
            if fsdp < needed or (fsdp > 4 * needed and fsdp != rest):
                continue
            found.append(_sizes({"data": rest // fsdp, "fsdp": fsdp, "tensor": tensor,
                                 "sequence": sequence}))  # fmt: skip
    legal = []
    for overrides in dict.fromkeys(found):
        if len(legal) == _MESHES:
            break
        if _is_legal(experiment, overrides, target):
            legal.append(overrides)
    return legal


def attempt(experiment, topology: Topology, overrides: Overrides, target: Target) -> Trial | None:
    """Compile a changed experiment's largest phase, or None: the change is not legal."""
    try:
        changed = place(apply_overrides(experiment, overrides), topology)
        if topology != target.topology:
            limit = target.hbm_bytes
            target = dataclasses.replace(devices.target(topology), hbm_bytes=limit)
        (fit,) = compile_step(changed, target, only_largest=True)
    except ConfigError:
        return None
    return Trial(overrides, topology, fit)


def ranking(trials: list[Trial]) -> str:
    """The table of a search."""
    rows = [("mesh", "remat", "HBM", "left", "est. step", "est. MFU", "links", "fits")]
    for trial in trials:
        fit, changed = trial.fit, dict(trial.overrides)
        priced = fit.estimate
        rows.append((
            describe_mesh(fit.sizes),
            changed[_REMAT],
            mebibytes(fit.needed),
            mebibytes(fit.headroom) if fit.fits else "-",
            f"{priced.step_seconds * 1e3:,.1f} ms" if priced else "-",
            f"{100 * fit.mfu:.0f} %" if priced else "-",
            f"{priced.ici_seconds * 1e3:,.1f} ms" if priced else "-",
            "yes" if fit.fits else "no",
        ))  # fmt: skip
    best = trials[0]
    tail = f"\nadd  {best.command(best.topology)}" if best.fit.fits else "\nnone of them fits"
    return report.table(rows) + tail


def advice(trials: list[Trial]) -> str:
    """The lines under a program that does not fit."""
    if not trials:
        return "\nno change that was tried fits: a smaller model.size or data.length, or more chips"
    lines = ["\nfits with any of these, the cheapest in estimated chip time first:"]
    lines += [f"  {_line(trial)}" for trial in trials]
    return "\n".join(lines)


def _mesh(sizes: dict[str, int]) -> Overrides:
    return tuple((f"mesh.{axis}", str(size)) for axis, size in sizes.items())


def _sizes(sizes) -> Overrides:
    return _mesh({axis: sizes[axis] for axis in ("data", "fsdp", "tensor", "sequence")})


def _powers(most: int) -> list[int]:
    return [2**n for n in range(most.bit_length()) if 2**n <= most]


def _both(first, second, original: Topology):
    (one, topology), (other, larger) = first, second
    return (*one, *other), topology if topology != original else larger


def _apart(first, second) -> bool:
    """Whether two changes touch different things; two new meshes do not go together."""
    things = [
        {"mesh" if path.startswith("mesh.") else path for path, _ in overrides}
        for overrides, _ in (first, second)
    ]
    return not things[0] & things[1]


def _is_legal(experiment, overrides: Overrides, target: Target) -> bool:
    try:
        changed = place(apply_overrides(experiment, overrides), target.topology)
        layout = sharding.make_layout(changed.mesh, target.devices)
        make_plan(changed, layout, changed.data.vocabulary.blank())
    except ConfigError:
        return False
    return True


def _state_bytes(experiment) -> int:
    """Of the whole state with gradients, on one device."""
    changed = dataclasses.replace(experiment, mesh=sharding.Mesh(data=1))
    layout = sharding.abstract_layout(changed.mesh, 1)
    size = make_plan(changed, layout, changed.data.vocabulary.blank()).bytes_per_device()
    return 2 * size["parameters"] + size["frozen"] + size["optimizer"]


def _line(trial: Trial) -> str:
    fit = trial.fit
    size = f"{mebibytes(fit.needed)} of {mebibytes(fit.available)}"
    words = [f"--{path}={text}" for path, text in trial.overrides]
    what = " ".join([trial.topology.name, *words])
    if not fit.fits:
        return f"{what}: {size}, does not fit"
    return f"{what}: {size}, estimated {fit.estimate.step_seconds * 1e3:,.1f} ms a step"
