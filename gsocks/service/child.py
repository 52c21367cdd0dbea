"""A child process that ends with its parent."""

from __future__ import annotations

import ctypes
import os
import signal

# <linux/prctl.h>
_PR_SET_PDEATHSIG = 1

_LIBC = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int, signum: signal.Signals) -> None:
    """Have the kernel send ``signum`` to this process when ``parent`` dies (prctl(2)).

    ``parent``: the pid of the process that has forked this one.  Exits at once with status 1 if it
    is dead already.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)
