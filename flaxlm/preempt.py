"""Signals: stop at the next step boundary (SIGTERM, SIGINT), save and go on (SIGUSR1)."""

import functools
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils

_STOPS = (signal.SIGTERM, signal.SIGINT)
_SIGNALS = (*_STOPS, signal.SIGUSR1)


class Stopped(Exception):
    """A signal to stop came while the main thread was where it can be taken out."""


class StopSignal:
    """Context manager that turns a signal into an answer at the next step boundary.

        with StopSignal() as stop:
            for step in ...:
                with stop.interrupting():  # raises Stopped
                    wait for data
                ...
                if stop.reached(step):
                    save and return 75
                if stop.asked(step):
                    save

    One process: the first SIGTERM or SIGINT is remembered, the second ends the process with 128 +
    its number, even while the main thread is inside a compilation. Several processes: SIGTERM
    belongs to `jax.distributed`, which lets all agree on the step to stop at, about a second after
    any of them was signalled, and hides a second one; SIGINT is passed on to it, and a second one
    ends the process at once.

    SIGUSR1 asks for a checkpoint. Several processes agree on it every `every` steps: what one of
    them has heard by then is done by all at the next of these steps, so nobody waits for anybody.

    The handlers found on entry are put back on exit. Outside the main thread, where Python allows
    no handlers, nothing is installed.
    """

    def __init__(self, *, every: int = 1):
        self._name = ""
        self._asked = False
        self._every = every
        self._common: jax.Array | None = None  # how many processes had been asked
        self._distributed = False
        self._inside = False  # the main thread may be taken out of what it does
        self._old: dict[int, object] = {}
        self._wakeup: tuple[int, int, int] | None = (
            None  # read end, write end, the descriptor found on entry
        )

    def reached(self, step: int) -> str:
        """Name of the signal to stop for after `step`, or "" to go on.

        With several processes this is collective: all call it after every step, with its number.
        """
        if self._distributed and multihost_utils.reached_preemption_sync_point(step):
            return self._name or "SIGTERM"
        return "" if self._distributed else self._name

    def asked(self, step: int) -> bool:
        """Whether a checkpoint was asked for since the last time this said so. Collective."""
        if not self._distributed:
            asked, self._asked = self._asked, False
            return asked
        if step % self._every:
            return False
        before, asked = self._common, self._asked
        self._asked = False
        self._common = _count(asked)
        return before is not None and int(before) > 0

    def check(self) -> None:
        """Raise `Stopped` if a single process is to stop: for what takes long and can be left."""
        if self._name and not self._distributed:
            raise Stopped(self._name)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Inside, a signal to stop a single process raises `Stopped` as it comes, also where the
        main thread waits for another one.
        """
        self._inside = True
        try:
            self.check()
            yield
        finally:
            self._inside = False

    def __enter__(self):
        self._distributed = jax.distributed.is_initialized()
        if threading.current_thread() is not threading.main_thread():
            return self
        read, write = os.pipe()
        os.set_blocking(write, False)
        self._wakeup = (read, write, signal.set_wakeup_fd(write, warn_on_full_buffer=False))
        threading.Thread(target=self._watch, args=(read,), name="stop-signal", daemon=True).start()
        # jax took SIGTERM when it was initialised; a handler of ours would silence it.
        ours = (number for number in _SIGNALS if number != signal.SIGTERM or not self._distributed)
        for number in ours:
            self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception):
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old.clear()
        if self._wakeup is not None:
            _, write, old = self._wakeup
            signal.set_wakeup_fd(old)
            os.close(write)  # ends the watcher, which closes its own end
            self._wakeup = None

    def _handle(self, number: int, frame) -> None:
        """In the main thread, between two of its bytecodes."""
        if number in _STOPS and not self._distributed:
            self._name = self._name or signal.Signals(number).name
            if self._inside:
                self._inside = False
                raise Stopped(self._name)

    def _watch(self, read: int) -> None:
        # Python runs handlers between bytecodes of the main thread, which may be minutes away
        # inside a compilation; the number of the signal is written to the pipe at once.
        stops = 0
        with os.fdopen(read, "rb", buffering=0) as pipe:
            while received := pipe.read(1):
                number = received[0]
                if number == signal.SIGUSR1:
                    self._asked = True
                if number not in _STOPS:
                    continue
                stops += 1
                if stops > 1:
                    os._exit(128 + number)
                self._name = self._name or signal.Signals(number).name
                if self._distributed:
                    os.kill(os.getpid(), signal.SIGTERM)


def _count(asked: bool) -> jax.Array:
    """How many devices belong to processes that were asked; not yet computed. Collective."""
    split, total = _counter()
    shape = split.mesh.devices.shape
    mine = jax.make_array_from_callback(shape, split, lambda index: np.array([asked], np.int32))
    return total(mine)


@functools.cache
def _counter():
    """(how numbers, one per device, are laid out; their sum, on all devices)."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("devices",))
    split, everywhere = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        for axes in (["devices"], [])
    )
    return split, jax.jit(lambda x: x.sum(), out_shardings=everywhere)
