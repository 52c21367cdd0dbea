"""What a reload takes from a changed config, and what has to wait for a restart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from gsocks.config.reach import check_open
from gsocks.config.schema import (
    Config,
    ListenAddress,
    Section,
    Shadowsocks,
    Sharing,
    SharingSection,
    endpoint_of,
)
from gsocks.errors import ConfigError
from gsocks.messages import Mistake
from gsocks.net.endpoint import Activated, Endpoint
from gsocks.settings import TlsSettings

#: the keys of a section that a reload replaces
_RELOADED = (
    *("exits", "exit_sources", "users", "keys", "transport"),
    *("rules", "limits", "rotate", "tries", "hedge", "pac"),
)

#: the sections that serve clients
SECTIONS = ("local", "server", "forwards", "redirect", "dns_listener")

#: limits that what is open counts by, and which so stay as they were
_LASTING = ("per_user", "bandwidth_per_user", "bandwidth_per_connection", "request_body")


def reloaded(running: Config, found: Config) -> Config:
    """``running`` with the keys, users, exits, addresses and transport of ``found``, of what both
    have.

    Raises ConfigError if its users need a restart, or an address that needs what does.
    """
    before, after = running.local, found.local
    if before is not None and after is not None:
        if after.users_file != before.users_file:
            raise ConfigError("local.users_file: another file needs a restart")
        if after.users_file is None and bool(after.users) != bool(before.users):
            raise ConfigError("local.users: the first user, or none, needs a restart")
    changed: dict[str, Section] = {}
    for name in SECTIONS:
        section, other = getattr(running, name), getattr(found, name)
        if section is not None and other is not None:
            if isinstance(section, SharingSection) and section.has_own_exits != other.has_own_exits:
                raise ConfigError(
                    f"{name}.exits: the first exit of its own, or none, needs a restart"
                )
            keys = [key for key in _RELOADED if key in section.__struct_fields__]
            found_keys = {key: getattr(other, key) for key in keys}
            lasting = {key: getattr(section.limits, key) for key in _LASTING}
            found_keys["limits"] = replace(other.limits, **lasting)
            if _is_open(name, section) != _is_open(name, other):
                found_keys["rules"] = section.rules
            found_keys |= _reloaded_shadowsocks(section, other)
            found_keys |= _reloaded_tls(section, other)
            if name in ("local", "server"):
                found_keys |= _reloaded_listen(section, other)
            changed[name] = replace(section, **found_keys)
    admin, health = running.admin, running.health
    if admin is not None and found.admin is not None:
        admin = replace(admin, **_reloaded_listen(admin, found.admin))
    if health is not None and found.health is not None:
        health = replace(health, **_reloaded_listen(health, found.health))
    merged = replace(running, **changed, admin=admin, health=health)
    if merged.local is not None:
        try:
            check_open(merged.local)
        except Mistake as mistake:
            raise ConfigError(f"{mistake}, and what permits it needs a restart") from None
    return merged


def _reloaded_listen(section: Struct, other: Struct) -> dict[str, Any]:
    """Where ``other`` listens, and what permits that.

    Nothing if sockets that systemd passes are others, which only a start receives, or if an address
    that stays comes to have TLS, or loses it.
    """
    before, after = getattr(section, "listen", ()), getattr(other, "listen", ())
    if not before or not after or _passed(before) != _passed(after):
        return {}
    had_tls = dict(_tls_of(before))
    if any(had_tls.get(endpoint, tls) != tls for endpoint, tls in _tls_of(after)):
        return {}
    names = ("listen", "allow_anonymous", "allow_remote")
    return {name: getattr(other, name) for name in names if name in section.__struct_fields__}


def _passed(listen: Iterable[Endpoint | ListenAddress]) -> list[Endpoint]:
    return [each for each in map(endpoint_of, listen) if isinstance(each, Activated)]


def _tls_of(listen: Iterable[Endpoint | ListenAddress]) -> Iterator[tuple[Endpoint, bool]]:
    for each in listen:
        if isinstance(each, ListenAddress):
            yield each.address, each.tls is not False


def _reloaded_shadowsocks(section: Section, other: Section) -> dict[str, Shadowsocks]:
    """The passwords of what was found, for the listeners there are."""
    before, after = getattr(section, "shadowsocks", None), getattr(other, "shadowsocks", None)
    if before is None or after is None or before.method != after.method:
        return {}
    passwords = {name: getattr(after, name) for name in ("password", "password_file", "users")}
    return {"shadowsocks": replace(before, **passwords)}


def _reloaded_tls(section: Section, other: Section) -> dict[str, TlsSettings]:
    """The files of what was found, if clients come in as they did before."""
    before, after = getattr(section, "tls", None), getattr(other, "tls", None)
    if before is None or after is None:
        return {}
    is_alike = (before.client_ca is None) == (after.client_ca is None)
    return {"tls": after} if is_alike and before.client_cert == after.client_cert else {}


def _is_open(name: str, section: Section) -> bool:
    """Whether it is a section whose destinations are those of the config, and need no rules."""
    return name in ("forwards", "dns_listener") and section.rules is None


def serving_sections(config: Config) -> list[Section]:
    """Those that serve clients."""
    found = (getattr(config, name) for name in SECTIONS)
    return [section for section in found if section is not None]


def sharing_sections(config: Config) -> Iterator[tuple[str, Sharing]]:
    """Those that may share the exits of ``local``, behind their names."""
    for name in SECTIONS:
        section = getattr(config, name)
        if isinstance(section, Sharing):
            yield name, section


def changes(before: Config, after: Config) -> list[str]:
    """The keys by which ``after`` differs from ``before``; those of limits and the like in full."""
    return [path for path in _differences(before, after, "") if path]


def needing_restart(running: Config, found: Config) -> list[str]:
    """The keys by which ``found`` differs and which a reload does not replace."""
    return changes(reloaded(running, found), found)


def _differences(before: object, after: object, path: str) -> Iterator[str]:
    if type(before) is not type(after) or not isinstance(before, Struct):
        if before != after:
            yield path
        return
    for name in before.__struct_fields__:
        at = f"{path}.{name}" if path else name
        yield from _differences(getattr(before, name), getattr(after, name), at)
