"""The queries and commands of the admin API in one process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from gsocks.admin import snapshot
from gsocks.admin.counters import ConnectionCounters
from gsocks.admin.snapshot import Json
from gsocks.errors import BadAddress, NoExit
from gsocks.history.latency import RequestLatencies
from gsocks.inbound.context import Inbound
from gsocks.loop_lag import LoopLag
from gsocks.rotation.group import ExitGroup

log = logging.getLogger("gsocks.admin")

#: seconds that an exit may be banned for: a year
MAX_BAN = 366 * 86400


class ApiError(Exception):
    """A request that can't be served, as an HTTP status and a line."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


_Text = Annotated[str, Meta(min_length=1, max_length=255)]


class _Body(Struct, forbid_unknown_fields=True):
    """The JSON object of a command; unknown keys are refused."""


class _Ban(_Body):
    seconds: Annotated[float, Meta(gt=0, le=MAX_BAN)]
    domain: _Text | None = None


class _Unban(_Body):
    domain: _Text | None = None


class _Report(_Body):
    domain: _Text
    ok: bool
    reason: _Text | None = None


class _Session(_Body):
    session: _Text
    user: _Text | None = None


class _SessionReport(_Body):
    session: _Text
    domain: _Text
    ok: bool
    user: _Text | None = None
    reason: _Text | None = None


B = TypeVar("B", bound=_Body)


class Commands:
    """Works on the listeners and on the exit groups of one process.

    ``exit_groups``: by the names of their sections.  ``latencies``: of requests; None: not counted.
    """

    def __init__(
        self,
        inbounds: Sequence[Inbound],
        exit_groups: Mapping[str, ExitGroup],
        counters: ConnectionCounters,
        lag: LoopLag,
        latencies: RequestLatencies | None = None,
    ) -> None:
        self._inbounds = inbounds
        self._exit_groups = exit_groups
        self._counters = counters
        self._lag = lag
        self._latencies = latencies
        #: how many requests were not logged, since the file could not take them
        self.log_lost: Callable[[], int] = lambda: 0

    def snapshot(self, which: str = snapshot.ALL, most: int | None = None) -> Json:
        """See :func:`gsocks.admin.snapshot.take`."""
        taken = snapshot.take(
            self._inbounds, self._exit_groups, self._counters, self._lag, which, most
        )
        histograms = snapshot.histograms(self._latencies)
        return {**taken, "histograms": histograms, "requests_lost": self.log_lost()}

    def sessions(self, limit: int) -> list[Json]:
        """See :func:`gsocks.admin.snapshot.sessions`."""
        return snapshot.sessions(self._exit_groups, limit)

    def execute(self, path: Sequence[str], section: str | None, body: bytes) -> None:
        """Run the command that ``path`` names.  Raises ApiError."""
        group = self._section(section)
        match path:
            case ["exits", name, word] if word in _EXIT_COMMANDS:
                kind, command = _EXIT_COMMANDS[word]
                _do(command, group, name, _read(body, kind))
            case ["sessions", word] if word in _SESSION_COMMANDS:
                kind, command = _SESSION_COMMANDS[word]
                _do(command, group, _read(body, kind))
            case _:
                raise ApiError(HTTPStatus.NOT_FOUND, "no such command")

    def _section(self, name: str | None) -> ExitGroup:
        if name is None:
            name = "local" if "local" in self._exit_groups else next(iter(self._exit_groups))
        if name not in self._exit_groups:
            known = ", ".join(self._exit_groups)
            raise ApiError(HTTPStatus.NOT_FOUND, f"no section {name!r} runs here (known: {known})")
        return self._exit_groups[name]


def _do(command: Callable[..., None], *arguments: object) -> None:
    try:
        command(*arguments)
    except NoExit as error:
        raise ApiError(HTTPStatus.NOT_FOUND, str(error)) from None
    except BadAddress as error:
        raise ApiError(HTTPStatus.BAD_REQUEST, f"domain: {error}") from None


def _read(body: bytes, kind: type[B]) -> B:
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.DecodeError as error:  # a ValidationError is one
        raise ApiError(HTTPStatus.BAD_REQUEST, str(error)) from None


# --- the commands -----------------------------------------------------------------------------


def _ban(group: ExitGroup, name: str, body: _Ban) -> None:
    group.ban(name, body.seconds, body.domain)
    log.info("exit %s: banned for %g s%s", name, body.seconds, _for(body.domain))


def _unban(group: ExitGroup, name: str, body: _Unban) -> None:
    group.unban(name, body.domain)
    log.info("exit %s: unbanned%s", name, _for(body.domain))


def _drain(group: ExitGroup, name: str, _: _Body) -> None:
    group.drain(name)
    log.info("exit %s: draining", name)


def _undrain(group: ExitGroup, name: str, _: _Body) -> None:
    group.drain(name, draining=False)
    log.info("exit %s: draining stopped", name)


def _report(group: ExitGroup, name: str, body: _Report | _SessionReport) -> None:
    group.report(name, body.ok, body.domain)
    how = "success" if body.ok else "failure"
    why = f": {body.reason}" if body.reason else ""
    log.debug("exit %s: %s reported for %s%s", name, how, body.domain, why)


def _rotate(group: ExitGroup, body: _Session) -> None:
    group.rotate(body.user, body.session)


def _report_session(group: ExitGroup, body: _SessionReport) -> None:
    name = group.exit_of(body.user, body.session)
    if name is None:
        raise NoExit(f"session {body.session!r} has no exit")
    _report(group, name, body)


def _for(domain: str | None) -> str:
    return "" if domain is None else f" for {domain}"


_EXIT_COMMANDS: dict[str, tuple[type[Any], Callable[..., None]]] = {
    "ban": (_Ban, _ban),
    "unban": (_Unban, _unban),
    "drain": (_Body, _drain),
    "undrain": (_Body, _undrain),
    "report": (_Report, _report),
}

_SESSION_COMMANDS: dict[str, tuple[type[Any], Callable[..., None]]] = {
    "rotate": (_Session, _rotate),
    "report": (_SessionReport, _report_session),
}
