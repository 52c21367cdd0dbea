"""A launcher that passes sockets on as sd_listen_fds(3) says, without systemd."""

from __future__ import annotations

import socket
import sys
from typing import IO

_LAUNCHER = """
import os, sys
names, descriptors, *command = sys.argv[1:]
kept = [os.dup2(int(each), 100 + n) for n, each in enumerate(descriptors.split(","))]
for n, each in enumerate(kept):
    os.dup2(each, 3 + n)
    os.close(each)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(kept)))
if names:
    os.environ["LISTEN_FDNAMES"] = names
os.execv(command[0], command)
"""


def launching(names: str, *sockets: socket.socket | IO[str]) -> list[str]:
    """The beginning of a command line by which a program is passed ``sockets``.

    ``names``: as LISTEN_FDNAMES has them.  The launcher has to inherit the sockets.
    """
    descriptors = ",".join(str(sock.fileno()) for sock in sockets)
    return [sys.executable, "-c", _LAUNCHER, names, descriptors]
