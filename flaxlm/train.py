"""`python -m flaxlm.train --experiment t5_span`: the command and the loop. Reading starts here.

The whole path: an experiment (experiment.py) is traced abstractly (step.py), its run directory is opened (rundir.py),
its data made or found (data/), its state made or restored (checkpoint.py), and the loop at the end of this file feeds
batches to one jitted step.
"""

import math
import sys

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
    # A command line that makes no sense is refused before jax is imported.
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

    from flaxlm import distributed, sharding
    from flaxlm.checkpoint import Checkpoints
    from flaxlm.data.batches import Batches, EvalBatches
    from flaxlm.data.prepared import open_data
    from flaxlm.feed import Feed
    from flaxlm.metrics import Meter, MetricsWriter, peak_flops
    from flaxlm.preempt import StopSignal
    from flaxlm.rundir import open_run
    from flaxlm.startup import banner, check_memory, check_room
    from flaxlm.step import check_vocab, make_eval_step, make_init, make_plan, make_train_step

    experiment, run = loaded.experiment, loaded.experiment.run
    distributed.initialize()
    # What can be refused is refused here, before data is prepared or a program compiled.
    layout = sharding.make_layout(experiment.mesh)
    plan = make_plan(experiment, layout, experiment.data.vocabulary.blank())
    check_memory(plan)
    with open_run(loaded) as directory, StopSignal() as stop, sharding.using(layout):
        check_room(directory, plan)
        prepared = open_data(experiment.data)
        check_vocab(plan.model, prepared.vocab)
        feed = Feed(layout, plan.features)
        making = {"data": experiment.data, "rows": feed.rows}
        batches = Batches(prepared.train, plan.objective, prepared.vocab, seed=run.seed, **making)
        held_out = EvalBatches(
            prepared.held_out, plan.objective, prepared.vocab, count=run.eval_batches, **making
        )
        places, everywhere = plan.state_shardings(), layout.sharding(())
        identity = {"vocab": prepared.vocab.sha256, "data": batches.fingerprint}
        with Checkpoints(
            directory / "checkpoints", keep=run.keep, identity=identity
        ) as checkpoints:
            state, start = checkpoints.restore(plan.abstract_state()) or (None, 0)
            text = banner(
                plan, experiment, name=loaded.name, overrides=overrides, directory=directory, start=start,
                batches=batches, held_out=held_out,
            )  # fmt: skip
            if jax.process_index() == 0:
                print(text, flush=True)
            if state is None:
                init = make_init(plan.model, plan.tx, plan.features, seed=run.seed)
                state = jax.jit(init, out_shardings=places)()
            step = make_train_step(
                plan.model, plan.objective, plan.tx, seed=run.seed, accumulate=run.accumulate
            )
            step = jax.jit(
                step,
                in_shardings=(places, feed.shardings),
                out_shardings=(places, everywhere),
                donate_argnums=0,
            )
            evaluate = jax.jit(
                make_eval_step(plan.model, plan.objective),
                in_shardings=(places, feed.shardings),
                out_shardings=everywhere,
            )
            kinds = [peak_flops(device.device_kind) for device in layout.mesh.devices.flat]
            meter = Meter(
                flops=3 * plan.model.flops({name: x.shape for name, x in plan.features.items()}),
                peak=sum(kinds) if all(kinds) else None,
            )
            with MetricsWriter(
                directory, steps=run.steps, first_step=start + 1, active=jax.process_index() == 0
            ) as writer:
                state, done = loop(
                    state, start, plan=plan, step=step, evaluate=evaluate, batches=batches, held_out=held_out, feed=feed,
                    checkpoints=checkpoints, writer=writer, meter=meter, stop=stop, experiment=experiment,
                )  # fmt: skip
            if done:
                report(directory, plan, state, evaluate, held_out, feed, prepared.vocab)
    return 0 if done else PREEMPTED


def loop(
    state, start, *, plan, step, evaluate, batches, held_out, feed, checkpoints, writer, meter, stop, experiment
):  # fmt: skip
    """The training loop. Returns the last state and whether all steps are done.

    Step n is dispatched before the metrics of an earlier one are read, so the devices never wait for the host.
    """
    import jax
    import numpy as np

    from flaxlm import heldout
    from flaxlm.data.batches import run_ahead

    run = experiment.run
    rate = experiment.optimizer.schedule.build(run.steps)
    waiting = None  # (step, metrics) dispatched but not yet written

    def write():
        nonlocal waiting
        if waiting is not None:
            number, metrics = waiting
            values = {name: float(value) for name, value in metrics.items()}
            tokens = values.pop("tokens")
            speed = meter.read(tokens=tokens)
            writer.write(number, {**values, "lr": float(rate(np.int32(number - 1))), **speed})
            waiting = None
            check_finite(number, metrics, checkpoints)

    def every(period, number):
        return period > 0 and number % period == 0

    with run_ahead(batches, start, run.steps) as ahead:
        for number in range(start + 1, run.steps + 1):
            with meter.waiting():
                batch = feed(next(ahead))
            state, metrics = step(state, batch)
            write()
            writer.tick(number)
            meter.step()
            if number == start + 1:
                jax.block_until_ready(metrics)
                meter.restart()  # it compiled
            signal, last = stop.reached(number), number == run.steps
            if number == 1 or last or every(run.log_every, number):
                waiting = (number, metrics)
            # Evaluated before it is saved: what the metrics file lacks after a kill, the next start computes again.
            if every(run.eval_every, number) and not last:
                write()
                found = heldout.evaluate(evaluate, plan.objective, state, map(feed, held_out))
                writer.write(number, found, kind="eval")
                meter.restart()
            if signal or last or every(run.save_every, number):
                write()
                check_finite(number, metrics, checkpoints)  # what is not finite is never saved
                checkpoints.save(number, state)
                meter.restart()
            if signal and not last:
                checkpoints.wait()
                print(
                    f"{signal}: stopped after step {number}, state saved; the same command goes on",
                    flush=True,
                )
                return state, False
    return state, True


def check_finite(number, metrics, checkpoints) -> None:
    """Raise `NonFinite` if step `number` made a loss or a gradient that is not a number."""
    loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
    if not math.isfinite(loss + norm):
        kept = checkpoints.steps()
        raise NonFinite(
            f"step {number}: loss {loss}, grad_norm {norm}; the run stops, "
            + (
                f"the checkpoint of step {kept[-1]} is kept"
                if kept
                else "there is no checkpoint yet"
            )
            + ". A lower learning rate, a longer warmup or optimizer.clip=1.0 are the usual remedies"
        )


def report(directory, plan, state, evaluate, held_out, feed, vocab) -> None:
    """The final evaluation and a few predictions, printed and written to evaluation.json and samples.txt."""
    import jax

    from flaxlm import heldout
    from flaxlm.rundir import write_json

    found = heldout.evaluate(evaluate, plan.objective, state, map(feed, held_out))
    entropy = heldout.unigram_entropy(held_out)
    if jax.process_count() > 1:  # predicting and printing need every row here
        entropy, text = None, ""
    else:
        text = heldout.examples(plan.model, plan.objective, state, held_out[0], vocab)
    if jax.process_index() != 0:
        return
    summary = " ".join(f"{name} {value:.4f}" for name, value in found.items())
    print(f"held-out after step {int(state.step)}: {summary}")
    if entropy is not None and "text_nll" in found:
        gain = entropy - found["text_nll"]
        print(
            f"held-out text tokens: loss {found['text_nll']:.3f} nat, unigram entropy {entropy:.3f} nat, "
            f"{gain:.3f} nat {'under' if gain >= 0 else 'over'} it"
        )
        found |= {"unigram_entropy": entropy, "gain": gain}
    write_json(directory / "evaluation.json", {"step": int(state.step), **found})
    if text:
        (directory / "samples.txt").write_text(text + "\n", encoding="utf-8")
        print(text)


if __name__ == "__main__":
    sys.exit(main())
