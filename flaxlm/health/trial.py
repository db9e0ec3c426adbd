"""A few steps of a tiny model on every device, and a checkpoint of them: a run in ten seconds.

`python -m flaxlm.health.trial [FOLDER]` is started by `flaxlm.health.selftest` in a process of its
own, because a broken jax, driver or compiler may end the process, or hang. It goes the way of
`flaxlm.train` (same plan, same step, same checkpoints) with made-up rows in place of data, and says
on standard output, a line of JSON at a time, which stage begins and what was found.
"""

import importlib
import json
import os
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager

from flaxlm import flags, host
from flaxlm.errors import NonFinite, RunDirError, UserError
from flaxlm.health import accelerators, settings, software
from flaxlm.health.finding import Finding, one_line

# Any shipped experiment would do; this one compiles quickly and has no dropout.
EXPERIMENT = "tiny_gpt2"
STEPS = 12  # before the checkpoint, and half as many again after it
_ROWS, _LENGTH = 4, 32  # of a batch, for each device
_RATE = 3e-3


class Reporter:
    """Says on the standard output that the process was started with what is going on; whatever
    else writes there, a library in C for instance, lands on standard error.
    """

    def __init__(self):
        self._out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def begin(self, stage: str) -> None:
        self._say({"stage": stage})

    def found(self, finding: Finding) -> None:
        self._say({"finding": vars(finding)})

    def failed(self, error: Exception) -> None:
        code = error.code if isinstance(error, UserError) else None
        text = str(error) if code else f"{type(error).__name__}: {error}".removesuffix(": ")
        traceback.print_exc()  # for those who start it alone
        self._say({"error": one_line(text, longest=600), "code": code})

    def _say(self, what: dict) -> None:
        print(json.dumps(what), file=self._out, flush=True)


def main(folder: str) -> int:
    """Go through all stages; the first that fails is the last. Returns the exit code."""
    report = Reporter()
    try:
        report.begin("imports")
        flags.use()  # as a run does, before jax is imported
        for finding in imports():
            report.found(finding)
        report.begin("processes")
        for finding in processes():
            report.found(finding)
        report.begin("devices")
        for finding in devices():
            report.found(finding)
        report.begin("training")
        began = time.monotonic()
        trial = Trial()
        report.found(trial.train(began))
        report.begin("checkpoint")
        for finding in trial.save_and_continue(folder):
            report.found(finding)
        report.begin("end")
    except Exception as error:
        report.failed(error)
        return 1
    return 0


def imports():
    """Import jax, then every other package that flaxlm needs."""
    began = time.monotonic()
    import jax

    yield from settings.unknown_options(os.environ, jax.config.values)
    from packaging.requirements import Requirement

    names = [Requirement(text).name for text in software.declared()[1]]
    for name in names:
        try:
            importlib.import_module(software.module_of(name))
        except Exception as error:
            text = f"cannot be imported: {one_line(f'{type(error).__name__}: {error}')}"
            yield Finding(name, text, f"pip install --force-reinstall {name}", 78)
    seconds = time.monotonic() - began
    yield Finding("imports", f"jax and {len(names) - 1} other packages in {seconds:.1f} s")


def processes():
    """Join the other processes of a run, if this one was started as one of several."""
    import jax

    from flaxlm import distributed, handshake
    from flaxlm.experiment import load

    if distributed.initialize(handshake.facts(load(EXPERIMENT).experiment)):
        text = f"this is {jax.process_index()} of {jax.process_count()}, and all are there"
        yield Finding("processes", text)
    else:
        yield Finding("processes", "one")


def devices():
    """What jax sees, beside what the machine has."""
    import jax

    mine = jax.local_devices()
    text = f"{jax.device_count()} x {mine[0].device_kind}"
    if len(mine) != jax.device_count():
        text += f", {len(mine)} of them here"
    stats = mine[0].memory_stats() if mine[0].platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        text += f", {stats['bytes_limit'] / 2**30:.0f} GiB each"
    yield accelerators.seen(mine[0].platform, text, accelerators.hardware(), os.environ)


class Trial:
    """The tiny run: planned, compiled, with one batch that it sees again and again."""

    def __init__(self):
        from dataclasses import replace

        import jax
        import numpy as np

        from flaxlm import optim, sharding
        from flaxlm.data.random import RowRandom
        from flaxlm.data.rows import Rows
        from flaxlm.experiment import load
        from flaxlm.feed import Feed
        from flaxlm.plan import make_plan
        from flaxlm.step import jit_programs

        shipped = load(EXPERIMENT).experiment
        rows = _ROWS * jax.device_count()
        experiment = replace(
            shipped,
            data=replace(shipped.data, batch=rows, length=_LENGTH),
            optimizer=optim.AdamW(optim.Constant(_RATE)),
        )
        layout = sharding.make_layout(experiment.mesh)
        vocab, objective = experiment.data.vocabulary.blank(), experiment.objective
        self.plan = make_plan(experiment, layout, vocab)
        self.programs = jit_programs(self.plan, seed=0, accumulate=1)
        feed = Feed(self.plan)
        index = feed.rows(rows)
        ids = np.random.default_rng(0).integers(10, 100, (rows, objective.window(_LENGTH)))
        features = objective.prepare(Rows.of(ids[index], index=index), RowRandom(0, index), vocab)
        self.batch = feed(features)
        self.state = None

    def train(self, began: float) -> Finding:
        """Train from the beginning; the loss must fall.

        Raises:
          NonFinite: it does not, or is no number.
        """
        import jax
        import numpy as np

        from flaxlm import sharding

        with sharding.using(self.plan.layout):
            state, losses = self.programs.init(), []
            for step in range(STEPS):
                state, metrics = self.programs.step(state, self.batch)
                losses.append(float(metrics["loss"]))
                if step == 0:
                    compiled, begun = time.monotonic() - began, time.monotonic()
            self.state = jax.block_until_ready(state)
        seconds = (time.monotonic() - begun) / (STEPS - 1)
        text = f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {STEPS} steps of a tiny model"
        if not np.isfinite(losses).all() or losses[-1] >= losses[0]:
            raise NonFinite(f"{text}: it should fall")
        text += f" ({compiled:.1f} s to compile, {1e3 * seconds:.1f} ms a step)"
        return Finding("training", text)

    def save_and_continue(self, folder: str):
        """Save, restore, compare bit for bit; then go on from both, and compare again.

        Args:
          folder: where the checkpoint is written for a moment; "" is a temporary folder.

        Raises:
          StorageError: what is restored is not what was saved.
        """
        import jax

        from flaxlm import sharding
        from flaxlm.checkpoint import Checkpoints
        from flaxlm.errors import StorageError

        if jax.process_count() > 1 and not folder:
            advice = "--run.directory=PATH on a file system that all hosts mount tries it"
            yield Finding("checkpoint", "not tried: no folder is known to all hosts", advice)
            return
        saved, began = bits(self.state), time.monotonic()
        with temporary(folder) as place, sharding.using(self.plan.layout):
            identity = {"vocab": "trial", "data": "trial"}
            with Checkpoints(place, keep=1, identity=identity) as checkpoints:
                checkpoints.save(STEPS, self.state, wait=True)
                again, _ = checkpoints.restore(self.plan.abstract_state())
            if bits(again) != saved:
                raise StorageError(f"a checkpoint in {place} comes back with other bits")
            seconds = time.monotonic() - began
            yield Finding("checkpoint", f"saved, verified, restored bit for bit in {seconds:.1f} s")
            # In step with all other processes, so none of them still reads when the folder goes.
            ends = [self._more(state) for state in (self.state, again)]
        if ends[0] == ends[1]:
            yield Finding("repeatable", f"{STEPS // 2} more steps from it give the same bits twice")
        else:
            gpu = jax.default_backend() == "gpu"
            flag = "XLA_FLAGS=--xla_gpu_deterministic_ops=true, which is slower"
            advice = flag if gpu else "chips or memory compute differently: test the hardware"
            text = "the same steps from the same state end in other bits"
            yield Finding("repeatable", f"{text}: a run cannot be repeated to the bit", advice)

    def _more(self, state) -> list[bytes]:
        for _ in range(STEPS // 2):
            state, _ = self.programs.step(state, self.batch)
        return bits(state)


def bits(state) -> list[bytes]:
    """Every byte that this process holds of a state."""
    import jax
    import numpy as np

    leaves = jax.tree.leaves(state)
    return [np.asarray(part.data).tobytes() for x in leaves for part in x.addressable_shards]


@contextmanager
def temporary(folder: str):
    """A folder that is gone afterwards, the same for all processes."""
    import shutil

    from flaxlm.processes import from_first

    def make() -> str:
        try:
            return tempfile.mkdtemp(prefix=".doctor-", dir=folder or None)
        except OSError as error:
            raise RunDirError(f"{folder or 'temporary folder'}: {error.strerror}") from None

    place = from_first(make)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    host.finish(lambda: main(sys.argv[1] if len(sys.argv) > 1 else ""))
