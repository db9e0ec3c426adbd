"""Agreement between the processes of a run: what one of them decides, all do."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from flaxlm import errors

_BYTES = 1 << 16  # of one agreed answer


def from_first(function: Callable):
    """`function()` on process 0 alone; every process returns its JSON value or raises its error.

    Collective when the run has several processes: all of them call it, in the same order. Without
    `jax.distributed` it is a plain call that touches no device. Only a `UserError` is shared.
    """
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return function()
    answer = np.zeros(_BYTES, np.uint8)
    if jax.process_index() == 0:
        try:
            outcome = {"value": function()}
        except errors.UserError as error:
            outcome = {"code": type(error).code, "message": str(error)[: _BYTES // 8]}
        text = json.dumps(outcome).encode()
        assert len(text) <= _BYTES, "an agreed answer is small"
        answer[: len(text)] = np.frombuffer(text, np.uint8)
    answer = np.asarray(multihost_utils.broadcast_one_to_all(answer)).astype(np.uint8)
    outcome = json.loads(answer.tobytes().rstrip(b"\0"))
    if "code" in outcome:
        kinds = [errors.UserError, *errors.UserError.__subclasses__()]
        kind = next(kind for kind in kinds if kind.code == outcome["code"])
        raise kind(outcome["message"])
    return outcome["value"]


def any_text(text: str) -> str:
    """The text of the first process that has one, on all of them; "" if none has. Collective."""
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return text
    encoded = text.encode()[:1024]
    mine = np.zeros(1024, np.uint8)
    mine[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(mine)).astype(np.uint8)
    texts = [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in rows]
    return next((text for text in texts if text), "")


def check_shared(directory: Path) -> None:
    """Check that every process sees what process 0 writes in `directory`. Collective.

    Raises:
      RunDirError: naming the processes that do not.
    """
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return
    token = directory / f".shared-{from_first(lambda: str(time.time_ns()))}"
    from_first(token.touch)
    seen = multihost_utils.process_allgather(np.array(token.exists())).reshape(-1)
    from_first(lambda: token.unlink(missing_ok=True))
    if not seen.all():
        blind = ", ".join(str(process) for process in np.flatnonzero(~seen))
        raise errors.RunDirError(
            f"{directory} is not shared: process {blind} of {jax.process_count()} does not see "
            "what process 0 writes; use a directory on a file system that all hosts mount"
        )
