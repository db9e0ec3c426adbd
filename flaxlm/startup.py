"""What a run sees to and says before its first step: where compiled programs are kept, the banner,
the parameter table, and what would not fit.
"""

import hashlib
import math
import os
import platform
from pathlib import Path

import jax
import psutil

from flaxlm import flags
from flaxlm.cluster import has_plugin
from flaxlm.data.files import cache_folder
from flaxlm.errors import ConfigError
from flaxlm.lock import check_space
from flaxlm.named import path_name
from flaxlm.plan import Plan, make_plan
from flaxlm.sharding import AXES, abstract_layout


def banner(plan: Plan, loaded, overrides, directory, start: int, batches, held_out) -> str:
    """The lines printed at start: what runs, on what, how large, from where."""
    run, data, layout = loaded.experiment.run, loaded.experiment.data, plan.layout
    rows = data.batch
    size, shards = plan.bytes_per_device(), layout.parts("batch")
    devices = layout.mesh.devices
    mesh = " x ".join(f"{axis}={ways}" for axis, ways in layout.sizes.items() if ways > 1) or "1"
    lines = {
        "experiment": " ".join([loaded.name, *(f"--{path}={value}" for path, value in overrides)]),
        "file": str(loaded.path),  # the one file of a run that is executed
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
        "attention": plan.attention or "none",
        "per device": f"parameters {mebibytes(size['parameters'])} + gradients "
        f"{mebibytes(size['parameters'])} + "
        + (f"frozen {mebibytes(size['frozen'])} + " if size["frozen"] else "")
        + f"optimizer {mebibytes(size['optimizer'])} + batch {mebibytes(size['batch'])}, "
        f"activations on top",
        **_data_lines(run, data, batches, held_out),
        "run": f"{directory}, " + (f"resumed after step {start}" if start else "from the start"),
    }
    if set_flags := flags.summary(jax.default_backend()):
        lines["flags"] = set_flags
    return "\n".join(f"{label:>10}  {text}" for label, text in lines.items())


def _data_lines(run, data, batches, held_out) -> dict[str, str]:
    """What becomes of the corpora: tokens, passes, documents that are cut or empty, shares."""

    def total(name: str) -> int:
        return sum(getattr(count, name) for count in batches.counts)

    passes = ", ".join(f"{passes:.1f}" for passes in batches.passes(run.steps))
    lines = {
        "data": f"{total('tokens'):,} tokens in {total('documents'):,} documents, "
        f"{run.steps} steps pass {passes} time(s) over them; {len(held_out)} held-out batch(es)",
        "rows": f"{total('rows'):,} in an epoch; {total('split'):,} documents are longer than a "
        f"row, {total('empty'):,} are empty, {total('dropped'):,} tokens are left over",
    }
    sources = list(zip(data.sources, batches.counts, batches.fractions, strict=True))
    if len(sources) > 1:
        lines["mixture"] = ", ".join(f"{share:.2%} {source.uri}" for source, _, share in sources)
    repeated = [
        f"{source.uri} makes {count.rows} row(s), so a batch has some of them more than once"
        for source, count, share in sources
        if count.rows < data.batch * share
    ]
    if repeated:
        lines["warning"] = "; ".join(repeated)
    return lines


class Programs:
    """The compiled programs of this process: kept in a folder, so that the next start reads them.

    The folder is `programs` in the cache ($FLAXLM_CACHE), one for each kind of machine: a program
    for CPUs is made for the instructions of one. JAX_COMPILATION_CACHE_DIR names another;
    JAX_ENABLE_COMPILATION_CACHE=false keeps none. What compiles in less than a second is not kept.

    A context manager; it counts inside.

    Attributes:
      made: programs that were compiled.
      read: programs that were read from the folder instead.
    """

    def __init__(self):
        self.made = self.read = 0
        if jax.config.jax_enable_compilation_cache and not jax.config.jax_compilation_cache_dir:
            folder = cache_folder() / "programs" / _machine()
            jax.config.update("jax_compilation_cache_dir", str(folder))

    def report(self, step: int, seconds: float) -> str:
        """One line about a step whose program had to be made, which took so long."""
        kept = jax.config.jax_enable_compilation_cache
        return f"step {step} took {seconds:.1f} s; programs so far: {self.made} compiled, " + (
            f"{self.read} read from {jax.config.jax_compilation_cache_dir}"
            if kept
            else "none kept (JAX_ENABLE_COMPILATION_CACHE)"
        )

    def __enter__(self):
        jax.monitoring.register_event_listener(self._count_read)
        jax.monitoring.register_event_duration_secs_listener(self._count)
        return self

    def __exit__(self, *exception):
        jax.monitoring.unregister_event_listener(self._count_read)
        jax.monitoring.unregister_event_duration_listener(self._count)

    def _count_read(self, event: str, **_) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            self.read += 1
            self.made -= 1  # jax times every program, those that it reads too

    def _count(self, event: str, seconds: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.made += 1


def idle_accelerator() -> str:
    """One line if the run is on CPUs although this machine has what an accelerator needs, else
    "".
    """
    if jax.default_backend() != "cpu" or os.environ.get("JAX_PLATFORMS"):
        return ""
    plugins = {"libtpu": "TPU", "jax_cuda13_plugin": "GPU", "jax_cuda12_plugin": "GPU"}
    kinds = [f"{kind} ({name})" for name, kind in plugins.items() if has_plugin(name)]
    if not kinds:
        return ""
    return (
        f"warning: this runs on CPUs, although jax is installed for {', '.join(kinds)}: is the "
        "device there and free? JAX_PLATFORMS=tpu or cuda says why not, JAX_PLATFORMS=cpu is "
        "silent"
    )


def _machine() -> str:
    """Name of this kind of machine: its architecture and the instructions it knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        known = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        known = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(known.encode()).hexdigest()[:8]}"


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
        entries = [entry for entry in plan.layout.spec(axes) if entry]
        split = ", ".join(x if isinstance(x, str) else " x ".join(x) for x in entries) or "-"
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
