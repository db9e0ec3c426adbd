"""`python -m flaxlm.train --experiment t5_span`: the command and the loop. Reading starts here.

The whole path: an experiment (experiment.py) is traced abstractly (plan.py), its run directory is
opened (rundir.py), its data made or found (data/), its state made or restored (checkpoint.py), and
the loop at the end of this file feeds batches to one jitted step.
"""

import math
import sys

from flaxlm import host
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

    from flaxlm import distributed, heldout, sharding
    from flaxlm.checkpoint import Checkpoints
    from flaxlm.data.batches import Batches, EvalBatches
    from flaxlm.data.prepared import open_data
    from flaxlm.feed import Feed
    from flaxlm.metrics import Log, Meter, MetricsWriter, total_peak
    from flaxlm.overrides import to_json
    from flaxlm.plan import check_vocab, make_plan
    from flaxlm.preempt import StopSignal
    from flaxlm.rundir import has_checkpoints, keep_vocab, open_run
    from flaxlm.startup import banner, check_memory, check_room
    from flaxlm.step import jit_programs
    from flaxlm.warm import read_warm

    experiment, run, data = loaded.experiment, loaded.experiment.run, loaded.experiment.data
    distributed.initialize()
    # What can be refused is refused here, before data is prepared or a program compiled.
    layout = sharding.make_layout(experiment.mesh)
    plan = make_plan(experiment, layout, data.vocabulary.blank())
    check_memory(plan)
    with open_run(loaded) as (directory, lock), StopSignal() as stop, sharding.using(layout):
        check_room(directory, plan)
        warm = read_warm(experiment, plan, resumes=has_checkpoints(directory))
        corpora = open_data(data)
        vocab, objective = corpora.vocab, plan.objective
        check_vocab(plan.model, vocab)
        warm.check_vocab(vocab)
        keep_vocab(directory, vocab)
        vocab.require(*objective.symbols)
        feed = Feed(plan)
        batches = Batches(corpora.train, objective, vocab, data=data, seed=run.seed, rows=feed.rows)
        held_out = EvalBatches(
            corpora.held_out, objective, vocab, data=data, count=run.eval_batches, rows=feed.rows
        )
        programs = jit_programs(plan, seed=run.seed, accumulate=run.accumulate)
        identity = {
            "experiment": to_json(experiment), "vocab": vocab.sha256, "data": batches.fingerprint,
            **warm.identity,
        }  # fmt: skip
        first = jax.process_index() == 0
        with Checkpoints(
            directory / "checkpoints", keep=run.keep, identity=identity
        ) as checkpoints:
            state, start = checkpoints.restore(plan.abstract_state()) or (None, 0)
            if state is None and experiment.start and warm.start is None:
                warm = read_warm(experiment, plan, resumes=False)  # no step was complete
            if first:
                print(
                    banner(plan, loaded, overrides, directory, start, batches, held_out), flush=True
                )
                print("".join(f"{line}\n" for line in warm.lines), end="", flush=True)
            state = warm.begin(programs.init(), plan) if state is None else state
            state = warm.with_frozen(state, plan)

            evaluate = heldout.Evaluation(programs.evaluate, objective, feed, held_out)

            def save(step, state):
                lock.check()
                checkpoints.save(step, state.replace(frozen={}))

            meter = Meter(peak=total_peak(layout.mesh))
            with MetricsWriter(
                directory, steps=run.steps, first_step=start + 1, active=first
            ) as writer:
                rate = experiment.optimizer.schedule.build(run.steps)
                log = Log(writer, meter, rate=rate, on_loss=check_finite)
                state, found, signal = loop(
                    state, start, run, programs.step, batches, feed, evaluate, save, log, stop,
                    flops=plan.train_flops,
                )  # fmt: skip
            if not signal:
                found = evaluate(state) if found is None else found  # no step was left to make
                text = heldout.report(
                    directory, plan.model, objective, state, found, held_out, vocab
                )
                if first:
                    print(text, flush=True)
    if signal and first:
        print(f"{signal}: stopped, the state is saved; the same command goes on", flush=True)
    return PREEMPTED if signal else 0


def loop(state, start, run, train_step, batches, feed, evaluate, save, log, stop, *, flops):
    """The training loop: steps start + 1 to run.steps. Returns the last state, its evaluation (None
    if it has none) and the signal that stopped the loop, or "".

    Step n is dispatched before the metrics of an earlier one are read, so the devices never wait
    for the host.
    """
    import jax

    from flaxlm.data.ahead import run_ahead

    found = None

    def every(period):
        return period > 0 and step % period == 0

    with run_ahead(batches, start, run.steps) as ahead:
        for step in range(start + 1, run.steps + 1):
            with log.meter.waiting():
                batch = feed(next(ahead))
            compiles = step == start + 1 or batches.begins(step - 1)
            if compiles:
                log.write()  # the speed of the phase before
                log.meter.flops = flops(step - 1)
            state, metrics = train_step(state, batch)
            log.write()
            log.writer.tick(step)
            log.meter.step()
            if compiles:
                jax.block_until_ready(metrics)
                log.meter.restart()
            signal, last = stop.reached(step), step == run.steps
            if step == 1 or last or every(run.log_every):
                log.later(step, metrics)
            # Evaluated before it is saved: what the metrics lack after a kill, the next start
            # computes again.
            if last or every(run.eval_every):
                log.write()
                found = evaluate(state)
                log.writer.write(step, found, kind="eval")
                log.meter.restart()
            if signal or last or every(run.save_every):
                log.write()
                # What is not finite is never saved.
                check_finite(step, float(metrics["loss"]), float(metrics["grad_norm"]))
                save(step, state)
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
    sys.exit(main())
