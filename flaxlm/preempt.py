"""Stopping on request: one SIGTERM or SIGINT at the next step boundary, a second one at once."""

import os
import signal
import threading

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """Context manager that turns a signal into an answer at the next step boundary.

        with StopSignal() as stop:
            for step in ...:
                ...
                if stop.reached(step):
                    save and return 75

    One process: the first SIGTERM or SIGINT is remembered, the second ends the process with 128 +
    its number, even while the main thread is inside a compilation. Several processes: SIGTERM
    belongs to `jax.distributed`, which lets all agree on the step to stop at, about a second after
    any of them was signalled, and hides a second one; SIGINT is passed on to it, and a second one
    ends the process at once.

    The handlers found on entry are put back on exit. Outside the main thread, where Python allows
    no handlers, nothing is installed.
    """

    def __init__(self):
        self._name = ""
        self._distributed = False
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

    def __enter__(self):
        self._distributed = jax.distributed.is_initialized()
        if threading.current_thread() is not threading.main_thread():
            return self
        read, write = os.pipe()
        os.set_blocking(write, False)
        self._wakeup = (read, write, signal.set_wakeup_fd(write, warn_on_full_buffer=False))
        threading.Thread(target=self._watch, args=(read,), name="stop-signal", daemon=True).start()
        # jax took SIGTERM when it was initialised; a handler of ours would silence it.
        for number in (signal.SIGINT,) if self._distributed else _SIGNALS:
            self._old[number] = signal.signal(number, lambda number, frame: None)
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

    def _watch(self, read: int) -> None:
        # Python runs handlers between bytecodes of the main thread, which may be minutes away
        # inside a compilation; the number of the signal is written to the pipe at once.
        with os.fdopen(read, "rb", buffering=0) as pipe:
            while received := pipe.read(1):
                number = received[0]
                if number not in _SIGNALS:
                    continue
                if self._name:
                    os._exit(128 + number)
                self._name = signal.Signals(number).name
                if self._distributed:
                    os.kill(os.getpid(), signal.SIGTERM)
