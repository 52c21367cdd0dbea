"""The queries and commands of the admin API in one process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from gsocks.admin import snapshot
from gsocks.admin.counters import ConnectionCounters
from gsocks.admin.problems import ApiError, invalid, not_found
from gsocks.admin.routes import read_body
from gsocks.admin.shapes import Ban, ExitAction, Nothing, Report, SessionName, SessionReport, Unban
from gsocks.admin.snapshot import EVERY_EXIT, EVERY_SESSION, Json, WantedExits, WantedSessions
from gsocks.errors import BadAddress, NoExit
from gsocks.history.latency import RequestLatencies
from gsocks.inbound.context import Inbound
from gsocks.loop_lag import LoopLag
from gsocks.rotation.group import ExitGroup
from gsocks.turns import give_way

log = logging.getLogger("gsocks.admin")


class Commands:
    """Works on the listeners and on the exit groups of one process.

    ``exit_groups``: by the names of their sections.  ``latencies``: of requests; None: not counted.
    ``source_of``: tells where an exit comes from.
    """

    def __init__(
        self,
        inbounds: Sequence[Inbound],
        exit_groups: Mapping[str, ExitGroup],
        counters: ConnectionCounters,
        lag: LoopLag,
        latencies: RequestLatencies | None = None,
        source_of: snapshot.SourceOf = snapshot.from_config,
    ) -> None:
        #: those of now; a reload may change them
        self.inbounds = inbounds
        self._exit_groups = exit_groups
        self._counters = counters
        self._lag = lag
        self._latencies = latencies
        #: how many requests were not logged, since the file could not take them
        self.log_lost: Callable[[], int] = lambda: 0
        self._source_of = source_of

    def snapshot(
        self,
        which: str = snapshot.ALL,
        most: int | None = None,
        wanted: WantedExits = EVERY_EXIT,
        *,
        domains: bool = True,
        figures: Collection[str] | None = None,
    ) -> Json:
        """See :func:`gsocks.admin.snapshot.take`."""
        taken = snapshot.take(
            self.inbounds,
            self._exit_groups,
            self._counters,
            self._lag,
            which,
            most,
            wanted,
            self._source_of,
            domains=domains,
            figures=figures,
        )
        histograms = snapshot.histograms(self._latencies)
        return {**taken, "histograms": histograms, "requests_lost": self.log_lost()}

    def exits_named(self, names: Iterable[tuple[str, str]]) -> list[Json]:
        """See :func:`gsocks.admin.snapshot.exits_named`."""
        return snapshot.exits_named(self._exit_groups, names, self._source_of)

    def sessions(self, limit: int, wanted: WantedSessions = EVERY_SESSION) -> list[Json]:
        """See :func:`gsocks.admin.snapshot.sessions`."""
        return snapshot.sessions(self._exit_groups, limit, wanted)

    def group(self, section: str) -> ExitGroup:
        """The exits of a section; empty: of ``local`` if there are any.  Raises ApiError."""
        return self._exit_groups[self.section(section)]

    def execute(self, path: Sequence[str], section: str, body: bytes) -> None:
        """Run the command that ``path`` names.  Raises ApiError."""
        group = self.group(section)
        match path:
            case ["exits", "actions"]:
                self.act_on(read_body(body, ExitAction), section)
            case ["exits", name, word] if word in _EXIT_COMMANDS:
                kind, command = _EXIT_COMMANDS[word]
                _do(command, group, name, read_body(body, kind))
            case ["sessions", word] if word in _SESSION_COMMANDS:
                kind, command = _SESSION_COMMANDS[word]
                _do(command, group, read_body(body, kind))
            case _:
                raise not_found("no such command")

    def execute_quietly(self, path: Sequence[str], section: str, body: bytes) -> None:
        """Run a command of another gateway, which may be about what this one does not have."""
        try:
            self.execute(path, section, body)
        except ApiError as error:
            log.debug("a command of another gateway: %s", error)

    def act_on(self, action: ExitAction, section: str) -> list[str]:
        """Run a command for several exits; returns those that are not there.  Raises ApiError."""
        group, unknown = self.group(section), []
        body: Any = Nothing()
        if action.action == "ban":
            body = Ban(seconds=action.seconds, domain=action.domain)
        elif action.action == "unban":
            body = Unban(domain=action.domain)
        for name in action.names:
            try:
                _EXIT_COMMANDS[action.action][1](group, name, body)
            except NoExit:
                unknown.append(name)
            except BadAddress as error:
                raise invalid(str(error), "domain") from None
            give_way()
        return unknown

    def section(self, name: str) -> str:
        """The section that is meant.  Raises ApiError."""
        if not name:
            name = "local" if "local" in self._exit_groups else next(iter(self._exit_groups), "")
        if name not in self._exit_groups:
            known = ", ".join(self._exit_groups)
            raise not_found(f"no section {name!r} runs here (known: {known})")
        return name


def _do(command: Callable[..., None], *arguments: object) -> None:
    try:
        command(*arguments)
    except NoExit as error:
        raise not_found(str(error)) from None
    except BadAddress as error:
        raise invalid(str(error), "domain") from None


# --- the commands -----------------------------------------------------------------------------


def _ban(group: ExitGroup, name: str, body: Ban) -> None:
    group.ban(name, body.seconds, body.domain)
    log.info("exit %s: banned for %g s%s", name, body.seconds, _for(body.domain))


def _unban(group: ExitGroup, name: str, body: Unban) -> None:
    group.unban(name, body.domain)
    log.info("exit %s: unbanned%s", name, _for(body.domain))


def _drain(group: ExitGroup, name: str, _: Nothing) -> None:
    group.drain(name)
    log.info("exit %s: draining", name)


def _undrain(group: ExitGroup, name: str, _: Nothing) -> None:
    group.drain(name, draining=False)
    log.info("exit %s: draining stopped", name)


def _report(group: ExitGroup, name: str, body: Report | SessionReport) -> None:
    group.report(name, body.ok, body.domain)
    how = "success" if body.ok else "failure"
    why = f": {body.reason}" if body.reason else ""
    log.debug("exit %s: %s reported for %s%s", name, how, body.domain, why)


def _rotate(group: ExitGroup, body: SessionName) -> None:
    is_known = group.exit_of(body.user, body.session) is not None
    # all the same: to another worker it may be known, and all are to agree on its next exit
    group.rotate(body.user, body.session)
    if not is_known:
        whose = f"of the user {body.user!r}" if body.user else "without a user"
        raise NoExit(f"there is no session {body.session!r} {whose}")


def _report_session(group: ExitGroup, body: SessionReport) -> None:
    name = group.exit_of(body.user, body.session)
    if name is None:
        raise NoExit(f"session {body.session!r} has no exit")
    _report(group, name, body)


def _for(domain: str | None) -> str:
    return "" if domain is None else f" for {domain}"


_EXIT_COMMANDS: dict[str, tuple[type[Any], Callable[..., None]]] = {
    "ban": (Ban, _ban),
    "unban": (Unban, _unban),
    "drain": (Nothing, _drain),
    "undrain": (Nothing, _undrain),
    "report": (Report, _report),
}

_SESSION_COMMANDS: dict[str, tuple[type[Any], Callable[..., None]]] = {
    "rotate": (SessionName, _rotate),
    "report": (SessionReport, _report_session),
}
