"""``gsocks exits``: probe all exits, and report which of them work."""

from __future__ import annotations

import sys
from pathlib import Path
from shutil import get_terminal_size

from gsocks import config
from gsocks.cli.exit_line import exit_line
from gsocks.cli.process import (
    INTERRUPTED,
    interruptible,
    log_to_stderr,
    raise_descriptor_limit,
)
from gsocks.cli.report import SORTS, as_json, folded, progress, summary, table
from gsocks.errors import ConfigError
from gsocks.exits.spec import ExitSpec
from gsocks.files import replace_secret
from gsocks.messages import plural
from gsocks.rotation.probe import ProbeResult, ProbeTarget, probe
from gsocks.service.plan import exits_to_probe

#: exits that don't work, above which they are folded on a screen
MAX_DEAD = 20

#: exit status if no exit works or answers, or with --all if one doesn't
NONE_WORKS = 1


def probe_exits(
    path: Path,
    target: ProbeTarget | None,
    *,
    at_once: int,
    timeout: float,
    json: bool,
    need_all: bool,
    only_working: bool = False,
    sort: str = "order",
    output: Path | None = None,
) -> int:
    """Probe the exits of both sections, with ``target`` or with the ``checks`` of the config.

    ``timeout``: seconds for each exit.  ``only_working``: the others are only counted.  ``sort``:
    one of :data:`gsocks.cli.report.SORTS`.  ``output``: a file, made with mode 0600 or replaced,
    that gets those that work as a list with their credentials.  0 if an exit works or answers
    (``need_all``: if all do), else NONE_WORKS; after Ctrl-C the results so far are printed, and
    the status is INTERRUPTED.
    """
    settings = config.load(path)
    log_to_stderr(config.Log(level="warning"))
    raise_descriptor_limit()
    found: dict[str, list[ProbeResult]] = {}
    total, interrupted = 0, False
    try:
        with interruptible():
            for name, group, checks in exits_to_probe(settings, timeout):
                wanted = checks if target is None else target._replace(countries=checks.countries)
                members = list(group.roster)
                total += len(members)
                found[name] = []
                with progress(len(members), sys.stderr) as one_more:
                    for result in probe(members, wanted, at_once=at_once, timeout=timeout):
                        found[name].append(result)
                        one_more()
    except KeyboardInterrupt:
        interrupted = True
    for results in found.values():
        results.sort(key=SORTS[sort])
    if output is not None:
        _write(output, [each for results in found.values() for each in results])
    _print(found, json=json, only_working=only_working)
    all_results = [result for results in found.values() for result in results]
    print(summary(all_results, total), file=sys.stderr)
    if interrupted:
        return INTERRUPTED
    working = sum(result.trouble is None for result in all_results)
    return 0 if working and (working == total or not need_all) else NONE_WORKS


def _print(found: dict[str, list[ProbeResult]], *, json: bool, only_working: bool) -> None:
    working = {
        name: [each for each in results if each.trouble is None] for name, results in found.items()
    }
    if json:
        print(as_json(working if only_working else found))
        return
    is_screen = sys.stdout.isatty()
    width = get_terminal_size().columns - 2 if is_screen else 0
    for name, results in found.items():
        dead = len(results) - len(working[name])
        # most of a list is dead, and the living would scroll away
        folds = only_working or (is_screen and dead > MAX_DEAD)
        print(f"{name}:")
        for line in table(working[name] if folds else results, width):
            print(f"  {line}")
        if folds and dead:
            for line in folded(results):
                print(f"  {line}")


def _write(path: Path, results: list[ProbeResult]) -> None:
    """Raises ConfigError."""
    lines = [
        f"{exit_line(each.member.key)}\n"
        for each in results
        if each.trouble is None and isinstance(each.member.key, ExitSpec)
    ]
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path}: not a file")
    if not lines:
        print(f"{path}: not written, as no exit works", file=sys.stderr)
        return
    try:
        replace_secret(path, "".join(lines).encode())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or type(error).__name__}") from None
    exits = plural(len(lines), "exit")
    print(f"{path}: {exits}, with their credentials (mode 0600)", file=sys.stderr)
