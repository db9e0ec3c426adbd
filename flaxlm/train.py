"""`python -m flaxlm.train --experiment t5_span`: the command and the loop. Reading starts here.

The whole path: an experiment (experiment.py) is traced abstractly (plan.py), its run directory is
opened (rundir.py), its data made or found (data/), its state made or restored (checkpoint.py), and
the loop at the end of this file feeds batches to one jitted step.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flaxlm import flags, host
from flaxlm.arguments import TRAIN_FLAGS, help_page, parse_argv
from flaxlm.errors import PREEMPTED, NonFinite, command


@command
def main(argv: list[str]) -> int | None:
    """The command line. Returns the exit code."""
    arguments = parse_argv(argv)
    if arguments["--help"]:
        print(
            help_page("flaxlm.train", "Train the model that an experiment declares.", TRAIN_FLAGS)
        )
        return None
    # A command line that makes no sense was refused before jax is imported.
    flags.use()
    from flaxlm.experiment import names
    from flaxlm.overrides import describe, resolve
    from flaxlm.startup import abstract_plan, parameter_table

    if arguments["--list"]:
        print("\n".join(f"{name:24} {line}" for name, line in names().items()))
        return None
    loaded = resolve(arguments)
    if arguments["--print-config"]:
        print(describe(loaded.experiment, arguments.overrides))
    elif arguments["--dry-run"]:
        print(parameter_table(abstract_plan(loaded.experiment)))
    else:
        return train(loaded, arguments.overrides)
    return None


def train(loaded, overrides=()) -> int:
    """Run or continue an experiment.

    Args:
      loaded: an `experiment.Loaded`.
      overrides: ((path, text), ...) that were applied to it, for the banner.

    Returns:
      0 when all steps are done, 75 when a signal stopped the run and the state is saved.
    """
    import jax

    from flaxlm import distributed, handshake, heldout, sharding
    from flaxlm.checkpoint import Checkpoints
    from flaxlm.data.batches import Batches, EvalBatches
    from flaxlm.data.prepared import open_data
    from flaxlm.feed import Feed
    from flaxlm.goodput import FINISHED, KIND, Ledger, carried, summary
    from flaxlm.metrics import Log, Meter, MetricsWriter, total_peak, written
    from flaxlm.overrides import to_json
    from flaxlm.plan import check_vocab, make_plan
    from flaxlm.preempt import StopSignal
    from flaxlm.rundir import has_checkpoints, keep_vocab, open_run
    from flaxlm.startup import Programs, banner, check_memory, check_room, idle_accelerator
    from flaxlm.step import jit_programs
    from flaxlm.warm import read_warm
    from flaxlm.watchdog import Watchdog

    experiment, run, data = loaded.experiment, loaded.experiment.run, loaded.experiment.data
    began, ledger, compiled = time.time(), Ledger(), Programs()
    distributed.initialize(handshake.facts(experiment))
    first = jax.process_index() == 0

    def say(text):
        if first and text:
            print(text, flush=True)

    say(idle_accelerator())
    # What can be refused is refused here, before data is prepared or a program compiled.
    layout = sharding.make_layout(experiment.mesh)
    plan = make_plan(experiment, layout, data.vocabulary.blank())
    check_memory(plan)
    with (
        compiled,
        open_run(loaded) as (directory, lock),
        StopSignal() as stop,
        sharding.using(layout),
    ):
        check_room(directory, plan)
        warm = read_warm(experiment, plan, resumes=has_checkpoints(directory))
        corpora = open_data(data)
        vocab, objective = corpora.vocab, plan.objective
        check_vocab(plan.model, vocab)
        warm.check_vocab(vocab)
        feed = Feed(plan)
        batches = Batches(corpora.train, objective, vocab, data=data, seed=run.seed, rows=feed.rows)
        handshake.agree({"vocabulary": vocab.sha256, "data": str(batches.fingerprint)})
        keep_vocab(directory, vocab)
        vocab.require(*objective.symbols)
        held_out = EvalBatches(
            corpora.held_out, objective, vocab, data=data, count=run.eval_batches, rows=feed.rows
        )
        programs = jit_programs(plan, seed=run.seed, accumulate=run.accumulate)
        identity = {
            "experiment": to_json(experiment), "vocab": vocab.sha256, "data": batches.fingerprint,
            **warm.identity,
        }  # fmt: skip
        with (
            Checkpoints(directory / "checkpoints", keep=run.keep, identity=identity) as checkpoints,
            distributed.ending_with_peers(lock.release),
        ):
            state, start = checkpoints.restore(plan.abstract_state()) or (None, 0)
            if state is None and experiment.start and warm.start is None:
                warm = read_warm(experiment, plan, resumes=False)  # no step was complete
            say(banner(plan, loaded, overrides, directory, start, batches, held_out))
            say("\n".join(warm.lines))
            state = warm.begin(programs.init(), plan) if state is None else state
            state = warm.with_frozen(state, plan)
            ledger.add(carried(written(directory), step=start, now=began) if first else {})

            with (
                MetricsWriter(
                    directory, steps=run.steps, first_step=start + 1, active=first
                ) as writer,
                Watchdog(
                    ledger, patience=run.patience, directory=directory,
                    process=jax.process_index(), last=lock.release,
                ),
            ):  # fmt: skip

                def note(step, values):
                    writer.record(step, {**ledger.seconds(), **values}, kind=KIND)

                def save(step, state):
                    lock.check()
                    checkpoints.save(step, state.replace(frozen={}))
                    note(step, {})

                note(start, {})
                work = Work(
                    step=programs.step,
                    batches=batches,
                    feed=feed,
                    evaluate=heldout.Evaluation(programs.evaluate, objective, feed, held_out),
                    save=save,
                    log=Log(
                        writer,
                        Meter(peak=total_peak(layout.mesh)),
                        rate=experiment.optimizer.schedule.build(run.steps),
                        on_loss=check_finite,
                    ),
                    stop=stop,
                    ledger=ledger,
                    compiled=compiled,
                    flops=plan.train_flops,
                )
                state, found, signal = loop(state, start, run, work)
                if not signal:
                    with ledger.during("eval"):
                        found = work.evaluate(state) if found is None else found
                        text = heldout.report(
                            directory, plan.model, objective, state, found, held_out, vocab
                        )
                with ledger.during("save"):
                    checkpoints.wait()
                note(int(state.step), {} if signal else {FINISHED: 1})
    if not signal:
        say(text)
    say(f"goodput: {summary(ledger.seconds())}")
    if signal:
        say(f"{signal}: stopped, the state is saved; the same command goes on")
    return PREEMPTED if signal else 0


@dataclass(frozen=True)
class Work:
    """What the loop works with.

    Attributes:
      step: (state, batch) -> (state, metrics), the jitted train step.
      batches: step -> features of this process's rows.
      feed: features -> arrays on the mesh.
      evaluate: state -> held-out metrics.
      save: (step, state), writes a checkpoint.
      log: writes metrics, one step late.
      stop: whether a signal has come.
      ledger: where the seconds go; the watchdog reads it.
      compiled: counts the programs that were compiled.
      flops: step -> FLOPs of the model for it.
    """

    step: Callable
    batches: Any
    feed: Callable
    evaluate: Callable
    save: Callable
    log: Any
    stop: Any
    ledger: Any
    compiled: Any
    flops: Callable


def loop(state, start, run, work):
    """The training loop: steps start + 1 to run.steps. Returns the last state, its evaluation (None
    if it has none) and the signal that stopped the loop, or "".

    Step n is dispatched before the metrics of an earlier one are read, so the devices never wait
    for the host; step n - 2 is done by then, so the host is never far ahead of them.
    """
    import jax

    from flaxlm.data.ahead import run_ahead

    log, ledger, found = work.log, work.ledger, None
    dispatched = deque()  # a value of each of the last steps

    def every(period):
        return period > 0 and step % period == 0

    ledger.begin()
    with run_ahead(work.batches, start, run.steps) as ahead:
        for step in range(start + 1, run.steps + 1):
            with log.meter.waiting(), ledger.during("data"):
                batch = work.feed(next(ahead))
            compiles = step == start + 1 or work.batches.begins(step - 1)
            if compiles:
                log.write()  # the speed of the phase before
                log.meter.flops = work.flops(step - 1)
                began = time.monotonic()
                with ledger.during("compile"):
                    state, metrics = jax.block_until_ready(work.step(state, batch))
                log.writer.say(work.compiled.report(step, time.monotonic() - began))
            else:
                state, metrics = work.step(state, batch)
                dispatched.append(metrics["loss"])
                if len(dispatched) > 2:
                    jax.block_until_ready(dispatched.popleft())
            log.write()
            log.writer.tick(step)
            log.meter.step()
            ledger.stepped()
            if compiles:
                log.meter.restart()
            signal, last = work.stop.reached(step), step == run.steps
            if step == 1 or last or every(run.log_every):
                log.later(step, metrics)
            # Evaluated before it is saved: what the metrics lack after a kill, the next start
            # computes again.
            if last or every(run.eval_every):
                log.write()
                with ledger.during("eval"):
                    found = work.evaluate(state)
                log.writer.write(step, found, kind="eval")
                log.meter.restart()
            if signal or last or every(run.save_every):
                log.write()
                # What is not finite is never saved.
                check_finite(step, float(metrics["loss"]), float(metrics["grad_norm"]))
                with ledger.during("save"):
                    work.save(step, state)
                log.meter.restart()
            if signal and not last:
                return state, None, signal
    return state, found, ""


def check_finite(step: int, loss: float, norm: float) -> None:
    """Raise `NonFinite` if step `step` made a loss or a gradient that is no number."""
    if not math.isfinite(loss + norm):
        raise NonFinite(
            f"step {step}: loss {loss}, grad_norm {norm}. The run stops; the last checkpoint is "
            f"from before. A lower "
            f"learning rate, a longer warmup or optimizer.clip=1.0 are the usual remedies"
        )


if __name__ == "__main__":
    host.use_huge_pages()
    host.finish(main)
