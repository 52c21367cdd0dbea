"""``gsocks ctl``: queries and commands for a running gsocks, by its admin API."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import localtime, strftime
from typing import Any

from gsocks import config
from gsocks.admin.token import read_token
from gsocks.admin_client import AdminClient, AdminError, check_url
from gsocks.cli.process import interruptible
from gsocks.cli.warn import warn_of_mistake
from gsocks.errors import ConfigError
from gsocks.net.endpoint import UnixPath
from gsocks.service.plan import token_file
from gsocks.units import format_size, parse_duration

#: exit status if the admin has not served the request, or an exit has failed its check
FAILED = 1


@dataclass(frozen=True, kw_only=True)
class Ctl:
    """The options of one command."""

    action: str
    names: Sequence[str] = ()
    config: Path | None = None
    admin: str | None = None
    token_file: Path | None = None
    as_json: bool = False
    #: of the command: ``--for``, ``--domain``, ``--state``, ...
    given: dict[str, Any] = field(default_factory=dict)


def ctl(options: Ctl) -> int:
    """Run one command; returns the exit status.  Raises ConfigError."""
    url, token = place_of(options)
    try:
        with interruptible(), AdminClient(url, token) as admin:
            is_done = _ACTIONS[options.action](admin, options)
    except AdminError as error:
        print(f"gsocks: {error}", file=sys.stderr)
        return FAILED
    return FAILED if is_done is False else 0


def place_of(options: Ctl) -> tuple[str, str]:
    """The URL of the admin, and the token.  Raises ConfigError."""
    if options.admin is not None:
        try:
            check_url(options.admin)
        except AdminError as error:
            raise ConfigError(f"--admin: {error}") from None
        if options.token_file is None and options.config is None:
            raise ConfigError(
                "--admin needs the token, too: --token-file FILE (the gateway's log names it at its"
                " start; admin.token beside the config unless that says otherwise)"
            )
        if options.token_file is not None:
            return options.admin, read_token(options.token_file)
    if options.config is None:
        raise ConfigError("no config given (gsocks ctl -c FILE, or --admin URL --token-file FILE)")
    found, mistake = config.load_partly(options.config, {"admin": ()})
    warn_of_mistake(mistake, "the admin's section")
    settings = found.admin
    if settings is None:
        raise ConfigError(f"{options.config}: there is no admin (admin: {{listen: ...}})")
    endpoint = settings.listen[0]
    url = f"unix:{endpoint.path}" if isinstance(endpoint, UnixPath) else f"http://{endpoint}"
    return options.admin or url, read_token(
        options.token_file or token_file(settings, options.config)
    )


# --- the commands -----------------------------------------------------------------------------


def _exits(admin: AdminClient, options: Ctl) -> None:
    _show(
        options,
        admin.exits(**options.given),
        {
            "exit": lambda each: each["name"],
            "state": lambda each: each["state"],
            "open": lambda each: str(each["open"]),
            "connected": lambda each: str(each["connected"]),
            "failed": lambda each: str(each["failed"]),
            "ms": lambda each: _ms(each["connect_seconds"]),
            "country": lambda each: each["country"] or "",
            "label": lambda each: each["label"],
            "last error": lambda each: each["last_error"],
        },
    )


def _sessions(admin: AdminClient, options: Ctl) -> None:
    _show(
        options,
        admin.sessions(**options.given),
        {
            "session": lambda each: each["session"],
            "user": lambda each: each["user"] or "",
            "exit": lambda each: each["exit"],
            "idle": lambda each: f"{each['idle']:.0f} s",
        },
    )


def _users(admin: AdminClient, options: Ctl) -> None:
    _show(
        options,
        admin.users(),
        {
            "user": lambda each: each["name"],
            "from": lambda each: each["source"],
            "open": lambda each: str(each["open"]),
            "requests": lambda each: str(each["requests"]),
            "up": lambda each: format_size(each["up"]),
            "down": lambda each: format_size(each["down"]),
        },
    )


def _fleet(admin: AdminClient, options: Ctl) -> None:
    told = admin.fleet()
    if not options.as_json:
        print(_plain(f"store {told['store']['url']}: {told['store']['state']}"))
    _show(
        options,
        told["members"],
        {
            "gateway": lambda each: each["gateway"],
            "worker": lambda each: str(each["worker"]),
            "version": lambda each: each["version"],
            "state": lambda each: "ready" if each["ready"] else "not ready",
            "open": lambda each: str(each["connections"]),
            "requests": lambda each: str(each["requests"]),
            "cpu": lambda each: f"{each['cpu']:.1f} s",
            "since": lambda each: strftime("%Y-%m-%d %H:%M:%S", localtime(each["since"])),
            "heard": lambda each: f"{each['heard']:.1f} s",
        },
    )


def _changes(admin: AdminClient, options: Ctl) -> None:
    _show(
        options,
        admin.changes(),
        {
            "kind": lambda each: each["kind"],
            "exit": lambda each: each["exit"],
            "subject": lambda each: each["subject"],
            "what": lambda each: each["text"],
        },
    )


def _events(admin: AdminClient, options: Ctl) -> None:
    for kind, data in admin.events(topics="changes"):
        if options.as_json:
            print(json.dumps({"event": kind, **data}), flush=True)
        else:
            print(_plain(f"{data['kind']} {data['exit']} {data['text']}"), flush=True)


def _each(command: Callable[[AdminClient, str, dict[str, Any]], Any]) -> Callable[..., bool]:
    def run(admin: AdminClient, options: Ctl) -> bool:
        """Of every name, whatever becomes of those before it; whether all is well."""
        is_well = True
        for name in options.names:
            try:
                told = command(admin, name, options.given)
            except AdminError as error:
                if not error.status:  # the admin is not reached
                    raise
                print(f"gsocks: {_plain(str(error))}", file=sys.stderr)
                is_well = False
                continue
            is_well = is_well and (told is None or told.get("ok", True))
            done = {"name": name, **(told or {"done": True})}
            print(json.dumps(done) if options.as_json else _plain(f"{name}: {_words(done)}"))
        return is_well

    return run


def _words(done: dict[str, Any]) -> str:
    if not done.get("known", True):
        return "not known to this gateway; the others were told"
    if "ok" not in done:
        return "done"
    if not done["ok"]:
        return str(done["trouble"])
    return f"{'answers' if done['only_answers'] else 'works'}, {_ms(done['seconds'])} ms"


def _ban(admin: AdminClient, name: str, given: dict[str, Any]) -> None:
    try:
        seconds = parse_duration(given.get("seconds") or "10m")
    except ValueError as error:
        raise AdminError(f"--for: {error}") from None
    admin.ban(name, seconds, given.get("domain"), given.get("section"))


def _unban(admin: AdminClient, name: str, given: dict[str, Any]) -> None:
    admin.unban(name, given.get("domain"), given.get("section"))


def _rotate(admin: AdminClient, name: str, given: dict[str, Any]) -> dict[str, Any]:
    return {"done": True, "known": admin.rotate(name, given.get("user"))}


def _reload(admin: AdminClient, options: Ctl) -> None:
    admin.reload()
    print(json.dumps({"done": True}) if options.as_json else "the config is being read again")


#: each returns False if something that was asked for is not so
_ACTIONS: dict[str, Callable[[AdminClient, Ctl], bool | None]] = {
    "exits": _exits,
    "sessions": _sessions,
    "users": _users,
    "fleet": _fleet,
    "changes": _changes,
    "events": _events,
    "ban": _each(_ban),
    "unban": _each(_unban),
    "drain": _each(lambda admin, name, given: admin.drain(name, given.get("section"))),
    "undrain": _each(lambda admin, name, given: admin.undrain(name, given.get("section"))),
    "check": _each(lambda admin, name, given: admin.check(name, given.get("section"))),
    "put": _each(
        lambda admin, name, given: admin.put_exit(name, given.get("section"), url=given["url"])
    ),
    "delete": _each(lambda admin, name, given: admin.delete_exit(name, given.get("section"))),
    "rotate": _each(_rotate),
    "reload": _reload,
}

ACTIONS = tuple(_ACTIONS)

#: those of exits, and of sessions, by their names
OF_NAMES = ("ban", "unban", "drain", "undrain", "check", "put", "delete", "rotate")


# --- tables -----------------------------------------------------------------------------------


def _show(options: Ctl, found: Iterable[Any], columns: dict[str, Callable[[Any], str]]) -> None:
    if options.as_json:
        for each in found:
            print(json.dumps(each))
        return
    rows = [[*columns], *([_plain(cell(each)) for cell in columns.values()] for each in found)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(columns))]
    for row in rows:
        print(
            "  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip()
        )


def _plain(text: str) -> str:
    """Without what a terminal would take for a command."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.0f}"
