"""``gsocks exits``: probe all exits, and report which of them work."""

from __future__ import annotations

import sys
from pathlib import Path

from gsocks import config
from gsocks.cli.process import (
    INTERRUPTED,
    interruptible,
    log_to_stderr,
    raise_descriptor_limit,
)
from gsocks.cli.report import as_json, progress, summary, table
from gsocks.rotation.probe import ProbeResult, ProbeTarget, probe
from gsocks.service.plan import exits_to_probe

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
) -> int:
    """Probe the exits of both sections, with ``target`` or with the ``checks`` of the config.

    ``timeout``: seconds for each exit.  0 if an exit works or answers (``need_all``: if all do),
    else NONE_WORKS; after Ctrl-C the results so far are printed, and the status is INTERRUPTED.
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
        results.sort(key=lambda result: result.member.number)
    _print(found, json=json)
    all_results = [result for results in found.values() for result in results]
    print(summary(all_results, total), file=sys.stderr)
    if interrupted:
        return INTERRUPTED
    working = sum(result.trouble is None for result in all_results)
    return 0 if working and (working == total or not need_all) else NONE_WORKS


def _print(found: dict[str, list[ProbeResult]], *, json: bool) -> None:
    if json:
        print(as_json(found))
        return
    for name, results in found.items():
        print(f"{name}:")
        for line in table(results):
            print(f"  {line}")
