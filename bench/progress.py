"""What is being done, shown while it runs: a bar on a terminal, lines anywhere else."""

from __future__ import annotations

import importlib.util
import sys
from types import TracebackType
from typing import TYPE_CHECKING

from bench import signals

if TYPE_CHECKING:
    from rich.progress import Progress


def _new_bar() -> Progress | None:
    """A bar where there is a terminal, and rich, which is in the extra "bench"."""
    if not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        return None
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        MofNCompleteColumn(),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        # its thread would run beside the load
        auto_refresh=False,
    )


class Steps:
    """So many steps, each with a name.  Draws only between two of them, never during one."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._done = 0
        self._bar = _new_bar()
        if self._bar is not None:
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
        if kind is None:
            signals.check()

    def begin(self, name: str) -> None:
        """The step before is over, and this one begins.  Raises Interrupted."""
        signals.check()
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
