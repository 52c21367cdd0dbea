"""What one process can be asked and be told to do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from gsocks.admin import snapshot
from gsocks.admin.snapshot import Json
from gsocks.admin.tally import Tally
from gsocks.door import Door
from gsocks.errors import BadAddress, NoExit
from gsocks.ways_out import WaysOut

log = logging.getLogger("gsocks.admin")

#: seconds that an exit may be banned for: a year
LONGEST_BAN = 366 * 86400


class Problem(Exception):
    """A request that can't be served, as an HTTP status and a line."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


_Text = Annotated[str, Meta(min_length=1, max_length=255)]


class _Body(Struct, forbid_unknown_fields=True):
    """What a command says: a JSON object, and nothing in it that is not known."""


class _Ban(_Body):
    seconds: Annotated[float, Meta(gt=0, le=LONGEST_BAN)]
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


class Panel:
    """The exits of one process, by the names of their sections, and what is told of its doors."""

    def __init__(self, doors: Sequence[Door], ways: Mapping[str, WaysOut], tally: Tally) -> None:
        self._doors = doors
        self._ways = ways
        self._tally = tally

    def snapshot(self) -> Json:
        """See :func:`gsocks.admin.snapshot.take`."""
        return snapshot.take(self._doors, self._ways, self._tally)

    def sessions(self, most: int) -> list[Json]:
        """See :func:`gsocks.admin.snapshot.sessions`."""
        return snapshot.sessions(self._ways, most)

    def obey(self, path: Sequence[str], section: str | None, body: bytes) -> None:
        """Do what ``path`` says.  Raises Problem."""
        ways = self._section(section)
        match path:
            case ["exits", name, word] if word in _EXIT_COMMANDS:
                kind, command = _EXIT_COMMANDS[word]
                _do(command, ways, name, _read(body, kind))
            case ["sessions", word] if word in _SESSION_COMMANDS:
                kind, command = _SESSION_COMMANDS[word]
                _do(command, ways, _read(body, kind))
            case _:
                raise Problem(HTTPStatus.NOT_FOUND, "no such command")

    def _section(self, name: str | None) -> WaysOut:
        if name is None:
            name = "local" if "local" in self._ways else next(iter(self._ways))
        if name not in self._ways:
            known = ", ".join(self._ways)
            raise Problem(HTTPStatus.NOT_FOUND, f"no section {name!r} runs here (known: {known})")
        return self._ways[name]


def _do(command: Callable[..., None], *arguments: object) -> None:
    try:
        command(*arguments)
    except NoExit as error:
        raise Problem(HTTPStatus.NOT_FOUND, str(error)) from None
    except BadAddress as error:
        raise Problem(HTTPStatus.BAD_REQUEST, f"domain: {error}") from None


def _read(body: bytes, kind: type[B]) -> B:
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.DecodeError as error:  # a ValidationError is one
        raise Problem(HTTPStatus.BAD_REQUEST, str(error)) from None


# --- the commands -----------------------------------------------------------------------------


def _ban(ways: WaysOut, name: str, said: _Ban) -> None:
    ways.ban(name, said.seconds, said.domain)
    log.info("exit %s is banned for %g s%s", name, said.seconds, _for(said.domain))


def _unban(ways: WaysOut, name: str, said: _Unban) -> None:
    ways.unban(name, said.domain)
    log.info("exit %s is unbanned%s", name, _for(said.domain))


def _drain(ways: WaysOut, name: str, _: _Body) -> None:
    ways.drain(name)
    log.info("exit %s is drained", name)


def _undrain(ways: WaysOut, name: str, _: _Body) -> None:
    ways.drain(name, draining=False)
    log.info("exit %s is in use again", name)


def _report(ways: WaysOut, name: str, said: _Report | _SessionReport) -> None:
    ways.report(name, said.ok, said.domain)
    how = "well" if said.ok else "badly"
    why = f": {said.reason}" if said.reason else ""
    log.debug("exit %s has served %s %s%s", name, said.domain, how, why)


def _rotate(ways: WaysOut, said: _Session) -> None:
    ways.rotate(said.user, said.session)


def _report_session(ways: WaysOut, said: _SessionReport) -> None:
    name = ways.exit_of(said.user, said.session)
    if name is None:
        raise NoExit(f"no session {said.session!r} has an exit")
    _report(ways, name, said)


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
