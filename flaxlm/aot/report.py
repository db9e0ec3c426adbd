"""A compiled experiment as text for people and as JSON for programs."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from flaxlm.aot.devices import Target
from flaxlm.aot.fit import Fit, describe_mesh
from flaxlm.startup import mebibytes

ASSUMES = (
    "time and MFU are estimates, not measurements: computed from the compiled program with the "
    "compiler's own cycles, data-sheet bandwidths and an assumed speed of attention kernels; "
    "nothing of it was validated on hardware, and host stalls are not in it"
)


def as_text(fit: Fit, target: Target) -> str:
    """The page that the command prints for one phase."""
    topology = target.topology
    lines = {
        "target": f"{topology}, {topology.chips} chips, {len(target.devices)} devices",
        "mesh": describe_mesh(fit.sizes),
        "batch": f"{fit.rows} rows of length {fit.length}"
        + (f", from step {fit.start:,} on" if fit.start else ""),
    }
    if fit.attention:
        lines["attention"] = fit.attention
    if fit.memory is None:
        lines["memory"] = (
            f"{mebibytes(fit.needed)} of {mebibytes(fit.available)} on each device: does not fit "
            f"by {mebibytes(-fit.headroom)}; state and batch are {mebibytes(fit.arguments)} of it"
        )
        return _aligned(lines)
    memory, priced = fit.memory, fit.estimate
    verdict = (
        f"{mebibytes(fit.headroom)} left"
        if fit.fits
        else f"does not fit by {mebibytes(-fit.headroom)}"
    )
    lines["memory"] = (
        f"{mebibytes(memory.total)} of {mebibytes(fit.available)} on each device: {verdict}"
    )
    lines["of it"] = (
        f"arguments {mebibytes(memory.arguments)}, temporaries {mebibytes(memory.temporaries)}, "
        f"outputs {mebibytes(memory.outputs)} ({mebibytes(memory.aliased)} in place of arguments), "
        f"code {mebibytes(memory.code)}"
    )
    lines["FLOPs"] = (
        f"{priced.flops:.3e} per device and step, {fit.model_flops:.3e} of them the model's own"
    )
    lines["exchange"] = (
        ", ".join(
            f"{count:,.0f} {kind} {mebibytes(size)}"
            for kind, (count, size) in priced.collectives.items()
        )
        or "no collectives"
    )
    seconds = roofline(fit)
    lines["roofline"] = (
        ", ".join(f"{name} {value * 1e3:,.1f} ms" for name, value in seconds.items())
        + f": bound by {max(seconds, key=seconds.get)}"
    )
    lines["cycles"] = (
        f"{priced.cycles:,.0f} by the compiler, {priced.matmul_cycles:,.0f} of them in matmuls"
        if priced.cycles
        else "none given by this compiler"
    )
    lines["time"] = (
        f"{priced.step_seconds * 1e3:,.1f} ms a step, {100 * fit.mfu:.0f} % MFU, both ESTIMATED: "
        + ", ".join(f"{name} {value * 1e3:,.1f}" for name, value in priced.breakdown.items())
    )
    lines["compiled"] = f"in {fit.compile_seconds:.0f} s"
    return _aligned(lines)


def roofline(fit: Fit) -> dict[str, float]:
    """{resource: seconds it is busy at full speed} of a step."""
    priced = fit.estimate
    return {
        "compute": priced.compute_seconds,
        "HBM": priced.hbm_seconds,
        "links": priced.ici_seconds,
    }


def as_json(fit: Fit) -> dict[str, Any]:
    """All numbers of one phase; what was not computed is null."""
    priced = fit.estimate
    return {
        "fits": fit.fits,
        "start": fit.start,
        "rows": fit.rows,
        "length": fit.length,
        "mesh": dict(fit.sizes),
        "attention": fit.attention,
        "hbm": {
            "available": fit.available,
            "needed": fit.needed,
            "headroom": fit.headroom,
            "state_and_batch": fit.arguments,
            **({"compiled": asdict(fit.memory)} if fit.memory else {"compiled": None}),
        },
        "model_flops_per_device": fit.model_flops,
        "compile_seconds": round(fit.compile_seconds, 1),
        "estimate": priced
        and {
            "assumes": ASSUMES,
            "flops_per_device": priced.flops,
            "collectives": {
                kind: {"count": count, "bytes": size}
                for kind, (count, size) in priced.collectives.items()
            },
            "hbm_bytes": priced.hbm_bytes,
            "roofline_seconds": roofline(fit),
            "cycles": priced.cycles,
            "matmul_cycles": priced.matmul_cycles,
            "step_seconds": priced.step_seconds,
            "breakdown_seconds": dict(priced.breakdown),
            "mfu": fit.mfu,
            "unpriced_kernels": dict(priced.unpriced),
        },
    }


def _aligned(lines: Mapping[str, str]) -> str:
    return "\n".join(f"{label:>10}  {text}" for label, text in lines.items())


def table(rows: list[tuple[str, ...]]) -> str:
    """Columns of text, the first row their heads."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
