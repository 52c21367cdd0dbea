"""What is being done, shown while it runs: a bar on a terminal, lines anywhere else."""

from __future__ import annotations

import sys
from types import TracebackType

try:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,  # fmt: skip
    )
except ImportError:  # it is in the extra "bench"
    Progress = None


class Steps:
    """So many steps, each with a name.  Draws only between two of them, never during one."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._done = 0
        self._bar = None
        if Progress is not None and sys.stderr.isatty():
            self._bar = Progress(
                MofNCompleteColumn(),
                BarColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                # its thread would run beside the load
                auto_refresh=False,
            )
            self._task = self._bar.add_task("", total=count)

    def __enter__(self) -> Steps:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, name: str) -> None:
        """The step before is over, and this one begins."""
        self._done += 1
        if self._bar is None:
            print(f"[{self._done}/{self._count}] {name}", file=sys.stderr, flush=True)
        else:
            self._bar.update(self._task, completed=self._done - 1, description=name)
            self._bar.refresh()

    def tell(self, words: str) -> None:
        """Something to be read that stays."""
        if self._bar is None:
            print(words, file=sys.stderr, flush=True)
        else:
            self._bar.console.print(words, markup=False)
