"""A file of the system that is read again when it has changed."""

from __future__ import annotations

from pathlib import Path

from gsocks.files import FileState, state_of


class SystemFile:
    """Tells when a small file has changed.  A missing file is an empty one."""

    def __init__(self, path: Path, max_size: int) -> None:
        """Of more than ``max_size`` bytes only those are read, up to the last whole line."""
        self._path = path
        self._max_size = max_size
        self._state: FileState = ()  # which no file has

    def read_if_changed(self) -> bytes | None:
        """Its content; None if it is the same file as the last time."""
        state = state_of(self._path)
        if state == self._state:
            return None
        self._state = state
        try:
            with self._path.open("rb") as file:
                data = file.read(self._max_size + 1)
        except OSError:
            return b""
        if len(data) > self._max_size:
            return data[: data.rfind(b"\n", 0, self._max_size) + 1]
        return data
