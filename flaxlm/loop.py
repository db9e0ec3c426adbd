"""The training loop: steps, and what comes between them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from flaxlm.data.ahead import run_ahead
from flaxlm.divergence import not_finite
from flaxlm.preempt import Stopped


@dataclass(frozen=True)
class Work:
    """What the loop works with.

    Attributes:
      step: (state, batch) -> (state, metrics), the jitted train step.
      batches: step -> features of this process's rows.
      feed: features -> arrays on the mesh.
      evaluate: state -> held-out metrics.
      save: (step, state, its evaluation or None), writes a checkpoint.
      log: writes metrics, one step late.
      watch: looks at the verdicts, two steps late.
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
    watch: Any
    stop: Any
    ledger: Any
    compiled: Any
    flops: Callable


@dataclass(frozen=True)
class End:
    """How the loop ended.

    Attributes:
      state: after the last step, if that is worth anything.
      found: its evaluation, None if it has none.
      signal: what stopped the loop, or "".
      bad: the step at which the run has to go back, or 0.
      first: the first of the bad steps.
      why: that it has to.
    """

    state: Any = None
    found: dict[str, float] | None = None
    signal: str = ""
    bad: int = 0
    first: int = 0
    why: str = ""


def loop(state, start, run, work, *, owed: bool = False) -> End:
    """Steps start + 1 to run.steps.

    Step n is dispatched before the metrics of an earlier one are read, so the devices never wait
    for the host; step n - 2 is done by then, so the host is never far ahead of them.

    Args:
      owed: the state that came in is yet to be evaluated.
    """
    log, ledger, watch, found = work.log, work.ledger, work.watch, None

    def every(period):
        return period > 0 and step % period == 0

    def evaluate(step):
        log.write()
        with ledger.during("eval"):
            found = work.evaluate(state, check=work.stop.check)
        log.writer.write(step, found, kind="eval")
        log.meter.restart()
        return found

    def save(step):
        """Returns the end of the loop if the run has to go back instead."""
        log.write()
        if bad := watch.look(state, behind=0):
            return retreat(bad)
        if names := not_finite(state):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            return End(bad=step, first=step, why=f"{names[0]}{more} of the state not finite")
        with ledger.during("save"):
            work.save(step, state, found)
        log.meter.restart()
        return None

    def retreat(bad):
        why = f"{watch.streak} step(s) in a row were no good, {watch.last}"
        return End(bad=bad, first=bad - watch.streak + 1, why=why)

    ledger.begin()
    with run_ahead(work.batches, start, run.steps) as ahead:
        try:
            found = evaluate(start) if owed else None
        except Stopped:
            return End(state, signal=work.stop.reached(start))
        for step in range(start + 1, run.steps + 1):
            try:
                with log.meter.waiting(), ledger.during("data"):
                    with work.stop.interrupting():
                        features = next(ahead)
                    batch = work.feed(features)
            except Stopped:  # after the step before this one
                end = save(step - 1) if step > start + 1 else None
                return end or End(state, signal=work.stop.reached(step - 1))
            compiles = step == start + 1 or work.batches.begins(step - 1)
            if work.batches.lands(step - 1):  # its rows do not go on where the last ones ended
                state = state.replace(carry=jax.tree.map(lambda x: 0 * x, state.carry))
            if compiles:
                # A signal is not heard while a program is compiled.
                if step > start + 1 and (end := save(step - 1)):
                    return end
                log.meter.flops = work.flops(work.batches.number(step - 1))
                began = time.monotonic()
                with ledger.during("compile"):
                    state, metrics = jax.block_until_ready(work.step(state, batch))
                log.writer.say(work.compiled.report(step, time.monotonic() - began))
            else:
                state, metrics = work.step(state, batch)
            watch.later(step, metrics)
            if bad := watch.look(state):
                return retreat(bad)
            log.write()
            log.writer.tick(step)
            log.meter.step()
            ledger.stepped()
            if compiles:
                log.meter.restart()
            signal, last = work.stop.reached(step), step == run.steps
            asked = work.stop.asked(step)
            evaluates = last or every(run.eval_every)
            saves = signal or last or asked or every(run.save_every)
            if step == 1 or last or every(run.log_every):
                log.later(step, metrics)
            if (evaluates or saves) and (bad := watch.look(state, behind=0)):
                return retreat(bad)
            # Evaluated before it is saved: what the metrics lack after a kill, the next start
            # computes again.
            found = None
            if evaluates:
                try:
                    found = evaluate(step)
                except Stopped:  # the next start owes it
                    signal = saves = work.stop.reached(step)
            # Among bad steps there is no checkpoint to go back to, unless one must be.
            if signal or last or asked or (saves and not watch.streak):
                if end := save(step):
                    return end
            if signal and (found is None or not last):
                return End(state, signal=signal)
    return End(state, found)
