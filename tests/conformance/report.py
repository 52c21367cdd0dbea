"""Runs cases, and tells each as soon as it is known."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from typing import TypeVar

from tests.conformance.cases import Case, Failed, NotTried
from tests.conformance.wire import Ended

OK, FAILED, NOT_TRIED = "ok", "FAILED", "not tried"

_Trial = TypeVar("_Trial")


def outcome(case: Case[_Trial], trial: AbstractContextManager[_Trial]) -> tuple[str, str]:
    """How the case ends, and why if it is not ``ok``."""
    try:
        with trial as given:
            case.run(given)
    except Failed as failed:
        return FAILED, str(failed)
    except NotTried as obstacle:
        return NOT_TRIED, str(obstacle)
    except Ended as ended:
        return FAILED, f"expected the connection to last, saw {ended}"
    except OSError as error:
        return FAILED, f"expected no error of the network, saw {error.strerror or error}"
    return OK, ""


class Report:
    """One line for each case, and the sum of all."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._seen: Counter[str] = Counter()
        self._began = time.monotonic()

    def tell(self, case: Case[_Trial], ended: tuple[str, str]) -> None:
        """A case has ended."""
        how, why = ended
        self._seen[how] += 1
        place = f"{self._seen.total()}/{self._count}"
        print(f"{place:>7}  {how:<9}  {case}{f': {why}' if why else ''}", flush=True)

    def end(self) -> int:
        """The sum; the exit status."""
        seconds = time.monotonic() - self._began
        told = ", ".join(f"{self._seen[how]} {how}" for how in (OK, FAILED, NOT_TRIED))
        print(f"{told}, in {seconds:.1f} s", flush=True)
        return 1 if self._seen[FAILED] else 0


def run_at_once(
    cases: Iterable[Case[_Trial]],
    make_trial: Callable[[], AbstractContextManager[_Trial]],
    report: Report,
    threads: int,
) -> None:
    """Run cases that have nothing to do with each other."""

    def run(case: Case[_Trial]) -> tuple[str, str]:
        return outcome(case, make_trial())

    with ThreadPoolExecutor(threads) as pool:
        running = {pool.submit(run, case): case for case in cases}
        for done in as_completed(running):
            report.tell(running[done], done.result())
