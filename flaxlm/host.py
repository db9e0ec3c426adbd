"""How the process itself starts and ends."""

import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from flaxlm.errors import PREEMPTED

_TUNABLE = "glibc.malloc.hugetlb=1"  # ask for transparent huge pages with madvise


def use_huge_pages() -> None:
    """Start this command anew with transparent huge pages for malloc, where that can matter.

    XLA's CPU programs allocate their temporaries at every step, and the C library returns blocks of
    that size to the system, so every step pays for its page faults again. With pages of 2 MiB a
    small T5 has a twelfth of them (benchmarks/README.md). glibc reads the setting when a process
    starts, hence the new start: same process number, same arguments, before anything else happened.

    Nothing is done where GLIBC_TUNABLES is set already, where jax has a plugin for an accelerator,
    or on other systems than Linux.
    """
    accelerated = any(importlib.util.find_spec(name) for name in ("libtpu", "jax_plugins"))
    if accelerated or not sys.platform.startswith("linux") or "GLIBC_TUNABLES" in os.environ:
        return
    os.environ["GLIBC_TUNABLES"] = _TUNABLE
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def finish(main: Callable[[], int]) -> NoReturn:
    """Run a command and end this process with its code.

    A failed process of a run of several ends at once: jax would first wait five minutes for the
    others, and they for it. So does a single one that was preempted: a thread of its own may be
    waiting for data, for as long as that takes.
    """
    try:
        code = main()
    except Exception:
        traceback.print_exc()
        code = 1
    jax = sys.modules.get("jax")
    alone = jax is None or not jax.distributed.is_initialized()
    if code == 0 or alone != (code == PREEMPTED):
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
