"""`python -m flaxlm.train --experiment t5_span`: the command. Reading starts here.

The whole path: an experiment (experiment.py) is traced abstractly (plan.py), its run directory is
opened (rundir.py), its data made or found (data/), its state made or restored (checkpoint.py), and
the loop (loop.py) feeds batches to one jitted step (step.py). If the steps come to no good, the
state is restored once more and the loop goes on behind the bad data (divergence.py).
"""

import time

from flaxlm import flags, host
from flaxlm.arguments import TRAIN_FLAGS, help_page, parse_argv
from flaxlm.errors import PREEMPTED, command


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
    from flaxlm.diagnostics import Diagnostics
    from flaxlm.divergence import Course, Retreat, Watch, go_back, read_retreats
    from flaxlm.feed import Feed
    from flaxlm.goodput import FINISHED, KIND, Ledger, carried, summary
    from flaxlm.loop import Work, loop
    from flaxlm.metrics import Log, Meter, MetricsWriter, total_peak, written
    from flaxlm.overrides import to_json
    from flaxlm.plan import check_vocab, make_plan
    from flaxlm.preempt import Stopped, StopSignal
    from flaxlm.processes import from_first
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
        distributed.ending_with_peers(),  # they may go while this one still starts
        compiled,
        open_run(loaded) as (directory, lock),
        StopSignal(every=run.log_every) as stop,
        sharding.using(layout),
    ):
        check_room(directory, plan)
        warm = read_warm(experiment, plan, resumes=has_checkpoints(directory))
        try:
            with stop.interrupting():  # making a corpus may take hours
                corpora = open_data(data)
        except Stopped as signal:
            say(f"{signal}: stopped before the first step; the same command goes on")
            return PREEMPTED
        vocab, objective = corpora.vocab, plan.objective
        check_vocab(plan.model, vocab)
        warm.check_vocab(vocab)
        feed = Feed(plan)
        batches = Batches(
            corpora.train, objective, vocab, data=data, seed=run.seed, rows=feed.rows,
            tables=plan.tables,
        )  # fmt: skip
        handshake.agree({"vocabulary": vocab.sha256, "data": str(batches.fingerprint)})
        keep_vocab(directory, vocab)
        vocab.require(*objective.symbols)
        held_out = EvalBatches(
            corpora.held_out, objective, vocab, data=data, count=run.eval_batches, rows=feed.rows,
            tables=plan.tables,
        )  # fmt: skip
        programs = jit_programs(
            plan, seed=run.seed, accumulate=run.accumulate, skip_spike=run.divergence.skip_spike
        )
        evaluate = heldout.Evaluation(programs.evaluate, objective, feed, held_out)
        identity = {
            "experiment": to_json(experiment), "vocab": vocab.sha256, "data": batches.fingerprint,
            **warm.identity,
        }  # fmt: skip
        retreats = from_first(lambda: read_retreats(directory))
        course = Course(batches, tuple(Retreat(**retreat) for retreat in retreats))
        with (
            Checkpoints(
                directory / "checkpoints", identity=identity,
                keep=run.keep, hours=run.keep_hours, best=run.keep_best,
            ) as checkpoints,
            distributed.ending_with_peers(lock.release),
        ):  # fmt: skip
            end = None
            while end is None or end.bad:  # once, and once more each time that it goes back
                state, start = checkpoints.restore(plan.abstract_state()) or (None, 0)
                if state is None and experiment.start and warm.start is None:
                    warm = read_warm(experiment, plan, resumes=False)  # no step was complete
                if end is None:
                    say(banner(plan, loaded, overrides, directory, start, batches, held_out))
                    say("\n".join(warm.lines))
                state = warm.begin(programs.init(), plan) if state is None else state
                state = warm.with_frozen(state, plan)
                before = written(directory) if first else []
                ledger.add(carried(before, step=start, now=began))
                owed = from_first(lambda lines=before, step=start: owes(run, step, lines))

                with (
                    MetricsWriter(
                        directory, steps=run.steps, first_step=start + 1, active=first
                    ) as writer,
                    Watchdog(
                        ledger, patience=run.patience, directory=directory,
                        process=jax.process_index(), last=lock.release,
                    ),
                ):  # fmt: skip

                    def note(step, values, writer=writer):
                        writer.record(step, {**ledger.seconds(), **values}, kind=KIND)

                    def save(step, state, found, note=note):
                        lock.check()
                        checkpoints.save(step, state.replace(frozen={}), metrics=found)
                        note(step, {"saves_failed": checkpoints.failures})

                    diagnostics = Diagnostics(directory, plan=plan, batches=course, vocab=vocab)
                    note(start, {})
                    if end is not None:
                        writer.record(start, course.facts, kind="retreat")
                    work = Work(
                        step=programs.step,
                        batches=course,
                        feed=feed,
                        evaluate=evaluate,
                        save=save,
                        log=Log(
                            writer,
                            Meter(peak=total_peak(layout.mesh)),
                            rate=experiment.optimizer.schedule.build(run.steps),
                            shares=course.used,
                        ),
                        watch=Watch(run.divergence, writer=writer, diagnostics=diagnostics),
                        stop=stop,
                        ledger=ledger,
                        compiled=compiled,
                        flops=plan.train_flops,
                    )
                    end = loop(state, start, run, work, owed=owed)
                    del state  # its memory is needed for the next one
                    if end.bad:
                        course = go_back(end, course, checkpoints, directory, run.divergence)
                        writer.say(course.summary)
                        began = time.time()
                        ledger.again()
                        continue
                    if not end.signal:
                        with ledger.during("eval"):
                            found = evaluate(end.state) if end.found is None else end.found
                            text = heldout.report(
                                directory,
                                plan.model,
                                objective,
                                end.state.replace(params=plan.learns.merged(end.state.params)),
                                found,
                                held_out,
                                vocab,
                            )
                    with ledger.during("save"):
                        checkpoints.wait()
                    note(int(end.state.step), {} if end.signal else {FINISHED: 1})
    if not end.signal:
        say(text)
    say(f"goodput: {summary(ledger.seconds())}")
    if end.signal:
        say(f"{end.signal}: stopped, the state is saved; the same command goes on")
    return PREEMPTED if end.signal else 0


def owes(run, step: int, lines) -> bool:
    """Whether the evaluation after `step` was due and is not among the lines of metrics.jsonl: a
    signal broke it off.
    """
    due = step == run.steps or (run.eval_every > 0 and step % run.eval_every == 0)
    done = any(line["kind"] == "eval" and line["step"] == step for line in lines)
    return step > 0 and due and not done


if __name__ == "__main__":
    host.use_huge_pages()
    host.finish(main)
