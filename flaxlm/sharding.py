"""Mesh, axis names and the one table that maps names to mesh axes. Models never mention devices.

A parameter is born through `named.param(init, *axes)`, an activation is laid out through
`constrain(x, *axes)`, and both draw their names from `RULES`: a name that is not in the table
raises (Flax would drop it without a word).
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flaxlm.errors import ConfigError, nearest

AXES = (
    "slices",
    "data",
    "fsdp",
    "tensor",
    "sequence",
)  # of the mesh, outermost (slowest network) first

# name of a dim -> mesh axes it is split over. The only such table; an experiment may replace it in
# its Mesh.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("slices", "data", "fsdp"),
    "length": ("sequence",),
    "keys": (),  # length of what attention sees whole: always the keys, see attention_axes
    "width": (),  # D of activations and of norm scales
    "embed": ("fsdp", "sequence"),  # D of matrices; devices that share a row share its weights too
    "heads": ("tensor",),  # H, or H * K joined, of matrices and activations
    "attention_heads": ("tensor", "sequence"),  # H inside attention, if it divides
    "head_dim": (),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "buckets": (),  # of a relative position bias
    "positions": (),  # of a table of absolute positions
    "types": (),  # of a table of token types, or classes of a small head
    "slots": (),  # positions of a row that a masked language model predicts
    "rank": (),  # of a low-rank change of a matrix
    "memory": (),  # states of earlier segments that attention still sees
    "layers": (),
}


@dataclass(frozen=True)
class Mesh:
    """The layout: sizes of the mesh axes. -1 (at most once) takes all devices that are left; 1
    switches an axis off.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1
    slices: int = 1
    rules: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: RULES)

    def __post_init__(self):
        for name, axes in self.rules.items():
            if name not in RULES:
                raise ConfigError(
                    f"mesh.rules.{name}: no dim has that name; {nearest(name, RULES)}"
                )
            for axis in axes:
                if axis not in AXES:
                    raise ConfigError(f"mesh.rules.{name}={axis}: {nearest(axis, AXES)}")
        missing = sorted(set(RULES) - set(self.rules))
        if missing:
            raise ConfigError(f"mesh.rules: no rule for {', '.join(missing)}; () keeps a dim whole")

    def sizes(self, devices: int) -> dict[str, int]:
        """Axis sizes on `devices` devices.

        Raises:
          ConfigError: if the sizes cannot multiply to the number of devices.
        """
        sizes = {axis: getattr(self, axis) for axis in AXES}
        for axis, size in sizes.items():
            if size < 1 and size != -1:
                raise ConfigError(
                    f"mesh.{axis}={size}: a size is at least 1, or -1 for all devices that are left"
                )
        free = [axis for axis in AXES if sizes[axis] == -1]
        if len(free) > 1:
            raise ConfigError(f"mesh: only one axis can be -1, not {' and '.join(free)}")
        fixed = math.prod(size for size in sizes.values() if size != -1)
        if free and devices % fixed == 0:
            sizes[free[0]] = devices // fixed
        if math.prod(sizes.values()) != devices:
            product = (
                " x ".join(f"{axis}={sizes[axis]}" for axis in AXES if sizes[axis] not in (1, -1))
                or "1"
            )
            raise ConfigError(
                f"mesh: {product} does not fit {devices} device(s); legal products here: "
                f"{_divisors(devices)}" + ("" if free else ", or set one axis to -1")
            )
        return sizes


@dataclass(frozen=True)
class Layout:
    """A mesh with its rules. `mesh` is None in abstract traces for devices this machine does not
    have.
    """

    sizes: Mapping[str, int]
    rules: Mapping[str, tuple[str, ...]]
    mesh: jax.sharding.Mesh | None = None

    def spec(self, axes: tuple[str | None, ...]) -> PartitionSpec:
        """Dim names (None: whole on every device) to a PartitionSpec. Mesh axes of size 1 are
        left out, so specs read the same on every mesh.
        """
        entries = []
        for name in axes:
            if name is None:
                entries.append(None)
                continue
            entry = tuple(axis for axis in self._mesh_axes(name) if self.sizes[axis] > 1)
            entries.append(entry[0] if len(entry) == 1 else entry or None)
        used = [
            axis
            for entry in entries
            if entry
            for axis in ((entry,) if isinstance(entry, str) else entry)
        ]
        if len(used) != len(set(used)):
            raise ConfigError(
                f"dims {axes} map to the mesh axes {used}: one mesh axis cannot split two dims"
            )
        return PartitionSpec(*entries)

    def sharding(self, axes: tuple[str, ...]) -> NamedSharding:
        assert self.mesh is not None, "an abstract layout has no devices"
        return NamedSharding(self.mesh, self.spec(axes))

    def parts(self, name: str) -> int:
        """How many ways a dim of that name is split."""
        return math.prod(self.sizes[axis] for axis in self._mesh_axes(name))

    def _mesh_axes(self, name: str) -> tuple[str, ...]:
        if name not in self.rules:
            raise KeyError(f"dim name {name!r} is not in the sharding rules {sorted(self.rules)}")
        return self.rules[name]


_ONE_DEVICE = Layout(dict.fromkeys(AXES, 1), RULES)
_current: contextvars.ContextVar[Layout] = contextvars.ContextVar("layout", default=_ONE_DEVICE)


def make_layout(mesh: Mesh, devices=None) -> Layout:
    """Real devices in mesh order: slices outermost over the data-centre network, then data,
    fsdp, tensor, sequence.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = mesh.sizes(len(devices))
    shape = tuple(sizes[axis] for axis in AXES)
    if devices[0].platform == "tpu" and len(devices) > 1:
        from jax.experimental import mesh_utils

        if sizes["slices"] > 1:
            grid = mesh_utils.create_hybrid_device_mesh(
                (1, *shape[1:]),
                (shape[0], 1, 1, 1, 1),
                devices=devices,
                allow_split_physical_axes=True,
            )
        else:
            grid = mesh_utils.create_device_mesh(
                shape, devices=devices, allow_split_physical_axes=True
            )
    else:
        grid = np.array(devices).reshape(shape)
    # Auto everywhere: jax.make_mesh would make Explicit axes, which Linen cannot work with.
    built = jax.sharding.Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    return Layout(sizes, dict(mesh.rules), built)


def abstract_layout(mesh: Mesh, devices: int) -> Layout:
    """The layout on `devices` devices that need not exist: for dry runs."""
    return Layout(mesh.sizes(devices), dict(mesh.rules))


@contextlib.contextmanager
def using(layout: Layout) -> Iterator[Layout]:
    """Trace and run under `layout`: `constrain` and `axis_size` read it."""
    token = _current.set(layout)
    try:
        with jax.set_mesh(layout.mesh) if layout.mesh is not None else contextlib.nullcontext():
            yield layout
    finally:
        _current.reset(token)


def constrain(x: jax.Array, *axes: str) -> jax.Array:
    """`x` laid out over the mesh as its dim names say.

    Raises:
      ConfigError: if a dim does not divide.
    """
    layout = _current.get()
    assert x.ndim == len(axes), f"array of shape {x.shape} has dim names {axes}"
    spec = layout.spec(axes)
    for name, dim in zip(axes, x.shape, strict=True):
        _check_divides(f"activation {axes}", name, dim, layout)
    if layout.mesh is None or layout.mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, spec))


def current() -> Layout:
    """The layout of the innermost `using`; one device outside of any."""
    return _current.get()


def axis_size(name: str) -> int:
    """How many ways the current layout splits dims of that name."""
    return _current.get().parts(name)


def attention_axes(heads: int) -> tuple[str, str]:
    """Dim names of the queries' length and of the heads while they attend.

    Outside of attention a row's positions are split over the mesh axis "sequence". Inside, every
    device has whole rows of some of the heads, if their number divides: one exchange of positions
    for heads before and one after (all-to-all; DeepSpeed-Ulysses, Jacobs et al. 2023, section 3).
    Else the queries stay where they are and keys are gathered.
    """
    if heads % axis_size("attention_heads"):
        return "length", "heads"
    return "keys", "attention_heads"


def per_device(function: Callable, inputs: Iterable[tuple], output: tuple) -> Callable:
    """`function` of each device's parts of its arguments: for kernels, which XLA cannot split.

    Args:
      inputs: dim names of every argument.
      output: dim names of the result.
    """
    layout = _current.get()
    if layout.mesh is None or layout.mesh.size == 1:
        return function
    return jax.shard_map(
        function,
        mesh=layout.mesh,
        in_specs=tuple(map(layout.spec, inputs)),
        out_specs=layout.spec(output),
        check_vma=False,  # a Pallas kernel says nothing of how its results vary over the mesh
    )


def platform() -> str:
    """Of the devices that the program is for ("cpu", "gpu", "tpu"), which need not be here."""
    mesh = _current.get().mesh
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _check_divides(what: str, name: str, dim: int, layout: Layout) -> None:
    parts = layout.parts(name)
    if dim % parts:
        axes = " x ".join(
            f"mesh.{axis}={layout.sizes[axis]}"
            for axis in layout.rules[name]
            if layout.sizes[axis] > 1
        )
        legal = [d for d in _divisors(dim) if d <= parts]
        up = -(-dim // parts) * parts
        raise ConfigError(
            f"{what}: dim {name!r} of size {dim} cannot be split {parts} ways ({axes}). Nearest "
            f"that works: "
            f"{axes.split('=')[0]}={legal[-1]}"
            + (f", or size {up}" if name != "batch" else f", or data.batch={up}")
        )


def check_params(
    shapes: Mapping[str, tuple[int, ...]], axes: Mapping[str, tuple[str, ...]], layout: Layout
) -> None:
    """Check that every parameter divides over the mesh.

    Raises:
      ConfigError: naming parameter, dim, mesh axis and the nearest legal value.
    """
    for path, shape in shapes.items():
        layout.spec(axes[path])
        for name, dim in zip(axes[path], shape, strict=True):
            _check_divides(f"parameter {path} {shape}", name, dim, layout)
