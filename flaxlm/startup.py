"""What a run says before its first step: the banner, the parameter table, and what would not
fit.
"""

import math

import jax
import psutil

from flaxlm.errors import ConfigError
from flaxlm.lock import check_space
from flaxlm.plan import Plan, make_plan
from flaxlm.sharding import AXES, abstract_layout, path_name


def banner(plan: Plan, loaded, overrides, directory, start: int, batches, held_out) -> str:
    """The lines printed at start: what runs, on what, how large, from where."""
    run, data, layout = loaded.experiment.run, loaded.experiment.data, plan.layout
    rows = data.batch
    size, shards = plan.bytes_per_device(), layout.parts("batch")
    devices = layout.mesh.devices
    mesh = " x ".join(f"{axis}={ways}" for axis, ways in layout.sizes.items() if ways > 1) or "1"
    counts = batches.counts
    passes = ", ".join(f"{passes:.1f}" for passes in batches.passes(run.steps))
    lines = {
        "experiment": " ".join([loaded.name, *(f"--{path}={value}" for path, value in overrides)]),
        "model": f"{type(plan.model).__module__.rpartition('.')[2]}.{type(plan.model).__name__}, "
        f"{plan.parameters:,} parameters, {plan.model.compute}",
        "objective": repr(plan.objective),
        "devices": f"{devices.size} x {devices.flat[0].device_kind}, mesh {mesh}, "
        f"{jax.process_count()} process(es)",
        "batch": f"{rows} rows = {shards} shard(s) x {run.accumulate} micro-batch(es) x "
        f"{rows // shards // run.accumulate}; "
        + ", ".join(
            f"{feature} {list(x.shape[1:])}"
            for feature, x in plan.features.items()
            if feature.endswith("tokens")
        )
        + "".join(
            f"; after {phase.start:,} steps {phase.batch} rows of length {phase.length}"
            for phase in data.phases
        ),
        "per device": f"parameters {mebibytes(size['parameters'])} + gradients "
        f"{mebibytes(size['parameters'])} + "
        + (f"frozen {mebibytes(size['frozen'])} + " if size["frozen"] else "")
        + f"optimizer {mebibytes(size['optimizer'])} + batch {mebibytes(size['batch'])}, "
        f"activations on top",
        "data": f"{sum(count.tokens for count in counts):,} tokens in "
        f"{sum(count.documents for count in counts):,} "
        f"documents, {run.steps} steps pass {passes} time(s) over them; {len(held_out)} held-out "
        f"batch(es)",
        "run": f"{directory}, " + (f"resumed after step {start}" if start else "from the start"),
    }
    return "\n".join(f"{label:>10}  {text}" for label, text in lines.items())


def abstract_plan(experiment) -> Plan:
    """The experiment traced on as many imaginary devices as its mesh names (an axis of -1 counts
    once).
    """
    sizes = [getattr(experiment.mesh, axis) for axis in AXES]
    layout = abstract_layout(experiment.mesh, math.prod(size for size in sizes if size > 0))
    return make_plan(experiment, layout, experiment.data.vocabulary.blank())


def mebibytes(size: float) -> str:
    """Bytes as a person reads them, in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024


def parameter_table(plan: Plan) -> str:
    """One line per parameter: path, shape, dim names, layout, bytes per device."""
    rows = [("parameter", "shape", "dims", "split", "per device")]
    for path, leaf in jax.tree_util.tree_leaves_with_path(plan.state.params):
        axes = plan.axes[path_name(path)]
        split = ", ".join(str(entry) for entry in plan.layout.spec(axes) if entry) or "-"
        size = mebibytes(plan.local_bytes(leaf, axes))
        rows.append((path_name(path), str(list(leaf.shape)), " ".join(axes), split, size))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    size = plan.bytes_per_device()
    lines.append(
        f"{plan.parameters:,} parameters; per device: parameters {mebibytes(size['parameters'])}, "
        + (f"frozen {mebibytes(size['frozen'])}, " if size["frozen"] else "")
        + f"optimizer {mebibytes(size['optimizer'])}, batch {mebibytes(size['batch'])}"
    )
    return "\n".join(lines)


def check_memory(plan: Plan) -> None:
    """Refuse a run whose state alone cannot fit.

    Raises:
      ConfigError: with both numbers and what would help.
    """
    size = plan.bytes_per_device()
    need = sum(size.values()) + size["parameters"]  # gradients are as large as the parameters
    devices = plan.layout.mesh.local_devices
    stats = devices[0].memory_stats() if devices[0].platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        have, where = stats["bytes_limit"], f"a {devices[0].device_kind}"
    elif devices[0].platform == "cpu":
        need *= len(devices)
        have, where = psutil.virtual_memory().total, "this machine"
    else:
        return
    if need > have:
        raise ConfigError(
            f"the state needs {mebibytes(need)} (parameters, gradients, optimizer"
            f"{', frozen models' if size['frozen'] else ''}) and {where} "
            f"has {mebibytes(have)}: "
            f"split it over more devices (mesh.fsdp), or take a smaller model.size"
        )


def check_room(directory, plan: Plan) -> None:
    """Refuse a run directory without room for two checkpoints.

    Raises:
      RunDirError: with the numbers.
    """
    saved = jax.tree.leaves(plan.state.replace(frozen={}))
    check_space(directory, sum(x.size * x.dtype.itemsize for x in saved))
