"""How the process itself runs on a CPU."""

import importlib.util
import os
import sys

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
