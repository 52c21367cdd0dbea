"""``gsocks doctor``: what is wrong with this machine, the clocks, names, exits and keys.

One line for each thing that was looked at: ``ok``, ``warn`` or ``FAIL``, and what mends it.
"""

from __future__ import annotations

import ctypes
import errno
import resource
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from gsocks import config
from gsocks.address import Address
from gsocks.cli.process import interruptible, log_to_stderr, raise_descriptor_limit
from gsocks.config.changes import SECTIONS
from gsocks.errors import ConfigError, ExitUnproven, GsocksError
from gsocks.exits import make_exit
from gsocks.exits.clock_probe import find_clock
from gsocks.exits.spec import ExitSpec
from gsocks.exits.tunnel import TunnelExit
from gsocks.net.resolve import Resolver
from gsocks.net.unix import BACKLOG
from gsocks.rotation.probe import ask_for_nothing
from gsocks.service.plan import exit_deps, key_of, sections
from gsocks.settings import PoolSettings, Timeouts
from gsocks.units import format_duration

#: exit status if something has failed
FAILED = 1

#: exits of a section that are tried
MAX_EXITS = 20

#: a name that is looked up where no exit has one
_SOME_NAME = "example.com"

# <sys/timex.h>
_STA_UNSYNC = 0x0040
_TIMEX_SIZE = 512
_STATUS_AT = 40


class Found(NamedTuple):
    """What was found of one thing."""

    state: str
    what: str
    text: str


def doctor(path: Path | None, settings: config.Config | None, *, timeout: float) -> int:
    """Print what is found; FAILED if something does not work.

    ``settings``: what would run, of the file ``path`` if that is not None; None: only this machine
    is looked at.  ``timeout``: seconds for each exit.
    """
    log_to_stderr(config.Log(level="error"))
    failed = False
    with interruptible():
        for found in _all(path, settings, timeout):
            print(f"{found.state:4} {found.what}: {found.text}", flush=True)
            failed = failed or found.state == "FAIL"
    return FAILED if failed else 0


def _all(path: Path | None, settings: config.Config | None, timeout: float) -> Iterator[Found]:
    yield _descriptors(settings)
    yield _backlog()
    yield _own_clock()
    if settings is None:
        yield _name(Resolver(), _SOME_NAME)
        yield Found("warn", "exits", "none looked at (-c FILE, or --exit URL)")
        return
    yield from _keys(settings)
    yield from _listeners(settings)
    resolver = Resolver(settings=settings.dns)
    names = {spec.host for _, section in sections(settings) for spec in _first(section)}
    names = {host for host in names if host and Address(host, 1).ip is None}
    for host in sorted(names) or [_SOME_NAME]:
        yield _name(resolver, host)
    for _, section in sections(settings):
        for spec in _first(section):
            yield from _exit(spec, section, resolver, timeout)
        if section.exit_sources:
            more = f"gsocks exits -c {path}" if path is not None else "gsocks exits"
            yield Found("ok", "lists", f"their exits are not looked at here ({more} does)")


def _first(section: config.Section) -> list[ExitSpec]:
    return list(section.exits[:MAX_EXITS])


def _descriptors(settings: config.Config | None) -> Found:
    hard = raise_descriptor_limit()
    parts = () if settings is None else config.serving_sections(settings)
    limits = [each.limits.connections for each in parts]
    needed = 2 * max(limits, default=10_000)  # a proxied connection holds two
    if hard != resource.RLIM_INFINITY and hard < needed:
        return Found(
            "warn",
            "descriptors",
            f"{hard} are allowed, limits.connections may need {needed}"
            " (LimitNOFILE= of the service, or ulimit -Hn)",
        )
    return Found("ok", "descriptors", f"{'any number' if hard < 0 else hard} are allowed")


def _backlog() -> Found:
    try:
        most = int(Path("/proc/sys/net/core/somaxconn").read_text())
    except (OSError, ValueError):
        return Found("warn", "somaxconn", "can't be read (net.core.somaxconn)")
    if most < BACKLOG:
        return Found(
            "warn",
            "somaxconn",
            f"{most} clients may wait to be accepted, not {BACKLOG}"
            f" (sysctl -w net.core.somaxconn={BACKLOG})",
        )
    return Found("ok", "somaxconn", str(most))


def _own_clock() -> Found:
    """Whether the kernel's clock is kept by a time service (adjtimex(2))."""
    buffer = ctypes.create_string_buffer(_TIMEX_SIZE)
    if ctypes.CDLL(None, use_errno=True).adjtimex(buffer) < 0:
        return Found("warn", "clock", "it is not known whether it is synchronized")
    status = int.from_bytes(buffer.raw[_STATUS_AT : _STATUS_AT + 4], "little")
    if status & _STA_UNSYNC:
        return Found(
            "warn",
            "clock",
            "no time service keeps this machine's clock (systemd-timesyncd or chrony does); the"
            " clocks of both ends must agree within 30 s",
        )
    return Found("ok", "clock", "kept by a time service")


def _keys(settings: config.Config) -> Iterator[Found]:
    server = settings.server
    for name, source in server.keys.items() if server is not None else ():
        if source.file is not None and not source.file.exists():
            yield Found("ok", f"key {name}", f"{source.file} is made at the first start")
            continue
        try:
            key_of(source)
        except ConfigError as error:
            yield Found("FAIL", f"key {name}", str(error))
        else:
            yield Found("ok", f"key {name}", "can be read")


def _listeners(settings: config.Config) -> Iterator[Found]:
    for name in SECTIONS:
        section = getattr(settings, name)
        for endpoint in section.addresses if section is not None else ():
            if isinstance(endpoint, Address) and endpoint.port:
                yield _bindable(name, endpoint)


def _bindable(name: str, address: Address) -> Found:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address.host, address.port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return Found("warn", name, f"{address} is in use (by gsocks, if it runs already)")
        return Found("FAIL", name, f"{address}: {error.strerror}")
    return Found("ok", name, f"{address} is free")


def _name(resolver: Resolver, host: str) -> Found:
    try:
        addresses = resolver.look_up(host)
    except GsocksError as error:
        return Found(
            "FAIL" if host != _SOME_NAME else "warn", "dns", f"{host}: {_without(host, error)}"
        )
    return Found("ok", "dns", f"{host} is {', '.join(map(str, addresses[:3]))}")


def _without(host: str, error: GsocksError) -> str:
    """Its words, without the name that most of them begin with."""
    return str(error).removeprefix(f"{host}: ")


def _exit(
    spec: ExitSpec, section: config.Section, resolver: Resolver, timeout: float
) -> Iterator[Found]:
    if spec.scheme == "direct":
        return
    what = f"exit {spec.name or spec.label}"
    deps = replace(
        exit_deps(section, resolver),
        timeouts=Timeouts(connect=timeout, exit=timeout),
        pool=PoolSettings(size=0),
    )
    try:
        exit_ = make_exit(spec, deps)
    except ConfigError as error:
        yield Found("FAIL", what, str(error))
        return
    attempt: Callable[[], object] = lambda: ask_for_nothing(exit_, timeout)  # noqa: E731
    if isinstance(exit_, TunnelExit):
        attempt = exit_.verify
    try:
        attempt()
    except ExitUnproven as error:
        yield _unproven(what, exit_, error, timeout)
    except GsocksError as error:
        yield Found("FAIL", what, str(error).removeprefix(f"{spec.label}: "))
    else:
        proven = "answers, key and clock are right" if spec.scheme == "gsocks" else "answers"
        yield Found("ok", what, proven)
    finally:
        exit_.close()


def _unproven(what: str, exit_: object, error: ExitUnproven, timeout: float) -> Found:
    """A server that is there and does not answer: because of the clock, or of the key."""
    if not isinstance(exit_, TunnelExit):
        return Found("FAIL", what, str(error))
    ahead = find_clock(exit_, timeout)
    if ahead is None:
        return Found(
            "FAIL",
            what,
            "accepts connections and does not answer: it has another key, or is no gsocks server"
            " (or the clocks differ by more than the time zones of the world)",
        )
    side = "behind" if ahead > 0 else "ahead of"
    return Found(
        "FAIL",
        what,
        f"the key is right, this machine's clock is about {format_duration(abs(ahead))} {side} the"
        " server's (30 s are allowed)",
    )
