"""The folder of the workers' Unix sockets: that of systemd, of a user's session, or /tmp."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

log = logging.getLogger("gsocks")

#: bytes of the path of a Unix socket (unix(7)), less those of the name in the folder
_MAX_PATH = 107 - len("/gsocks-12345678/1023.sock")


@contextmanager
def socket_folder(environ: Mapping[str, str] = os.environ) -> Iterator[Path | None]:
    """A new folder that only this user may enter; removed at the end.

    None, after a warning, if none can be made, as on a root that is read-only.
    """
    for parent in _parents(environ):
        try:
            folder = TemporaryDirectory(prefix="gsocks-", dir=parent)
        except OSError:
            continue
        with folder as name:
            yield Path(name)
        return
    log.warning(
        "workers can't query each other, so that the admin tells of one worker at a time:"
        " no folder can be written (RuntimeDirectory= of the service, or TMPDIR)"
    )
    yield None


def _parents(environ: Mapping[str, str]) -> Iterator[str | None]:
    found = [*environ.get("RUNTIME_DIRECTORY", "").split(":"), environ.get("XDG_RUNTIME_DIR", "")]
    yield from (each for each in found if each and len(os.fsencode(each)) <= _MAX_PATH)
    yield None  # that of tempfile
