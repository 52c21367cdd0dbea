"""A config file as running doors: made, started, told of signals, read again, stopped."""

from __future__ import annotations

import gc
import logging
import signal
import socket as std_socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import gevent
from gevent.event import Event

from gsocks import config
from gsocks.address import Address
from gsocks.admin.app import App
from gsocks.admin.crew import Crew
from gsocks.admin.listener import AdminServer
from gsocks.admin.panel import Panel
from gsocks.admin.tally import Tally
from gsocks.admin.token import read_or_make_token
from gsocks.assemble import make_logins, make_rules, make_ways_out
from gsocks.checks import CheckSettings
from gsocks.crypto import Key, KeyRing, fast_ciphers
from gsocks.dial import Resolver
from gsocks.door import Door
from gsocks.errors import ConfigError
from gsocks.exits import ExitSpec, Ground
from gsocks.feed import Feed, read_source
from gsocks.judge import Opinion, judge
from gsocks.keyfile import create_key, read_key
from gsocks.limits import Limits, Timeouts, Udp
from gsocks.listen import await_first_words, listen, listen_at_path, reserve
from gsocks.local import LocalServer
from gsocks.observe import AccessLog, NullObserver, Observer
from gsocks.replay import ReplayGuard
from gsocks.rotation.health import HealthSettings
from gsocks.rotation.session import Sessions
from gsocks.rotation.sources import UrlSource
from gsocks.server import RemoteServer
from gsocks.shares import Shares
from gsocks.supervisor import run_workers, worker_count
from gsocks.supply import Supply
from gsocks.survey import Question
from gsocks.units import format_duration
from gsocks.users import Users
from gsocks.users_file import FileUsers
from gsocks.ways_out import WaysOut
from gsocks.wish import ANY
from gsocks.wording import did_you_mean

log = logging.getLogger("gsocks")

#: objects made and not yet gone after which Python looks for cycles; its default of 700 comes
#: every few connections
GC_THRESHOLD = 20_000


class Service:
    """What ``gsocks -c FILE`` runs.  Raises ConfigError for what only shows when it is made.

    ``watched_in``: a folder in which each worker tells at a Unix socket how it stands.
    """

    def __init__(self, path: Path, settings: config.Config, watched_in: Path | None = None) -> None:
        self._path = path
        self._settings = settings
        self._watched_in = watched_in
        self._users: Users | None = None
        self._locals: list[LocalServer] = []
        self._servers: list[RemoteServer] = []
        self._ways: dict[str, WaysOut] = {}
        self._admins: list[AdminServer] = []
        self._tally = Tally(NullObserver())
        self._token = ""
        #: where the workers ask one another, by their indices
        self._meetings: list[Path] = []
        self._supplies: dict[str, Supply] = {}
        self._stopped = Event()
        self._terminated = False

    # --- before the fork --------------------------------------------------------------------

    def describe(self) -> Iterator[str]:
        """What it would run, a line each.  Raises ConfigError for what can't be."""
        to_be_made = self._missing_keys()
        for name, section in _sections(self._settings):
            make_rules(section.rules)
            exits = known_exits(section)
            for spec in exits:
                if spec.key_file is not None and spec.key_file not in to_be_made:
                    read_key(spec.key_file)
            where = ", ".join(_listening(section))
            yield f"{name}: listens on {where}, goes out by {_ways(section, exits)}"
        local, server = self._settings.local, self._settings.server
        users = _users(local) if local is not None else None
        if users is not None:
            yield f"local: users {_some(users.names)}"
        if local is not None and local.sessions != config.Sessions():
            yield f"local: {_told(local.sessions)}"
        if server is not None:
            for source in server.keys.values():
                if source.file not in to_be_made:
                    _key(source)
            yield f"server: keys {_some(server.keys)}"
        for path in to_be_made:
            yield f"server: {path} is made at the first start"

    def judge(
        self, dest: Address, user: str | None, resolver: Resolver
    ) -> Iterator[tuple[str, Opinion]]:
        """Which rules decide when ``user`` asks for ``dest``, at each end that the file describes.

        At a server the users are its keys: without the name of one, all are asked for.  Raises
        ConfigError, also for a user whom nobody knows.
        """
        local, server = self._settings.local, self._settings.server
        users = _users(local) if local is not None else None
        names = users.names if users is not None else []
        keys = list(server.keys) if server is not None else []
        if user is not None and user not in names and user not in keys:
            known = did_you_mean(user, [*names, *keys])
            raise ConfigError(f"no user and no key is called {user!r}{known}")
        if local is not None:
            asks = user if user in names else None
            who = "local" if asks is None else f"local, user {asks}"
            yield who, _judge(local, dest, asks, resolver)
        if server is not None:
            of_keys: dict[Opinion, list[str]] = {}
            for key in [user] if user in keys else keys:
                of_keys.setdefault(_judge(server, dest, key, resolver), []).append(str(key))
            for opinion, those in of_keys.items():
                yield f"server, key {_some(those)}", opinion

    def exits(self, timeout: float) -> Iterator[tuple[str, WaysOut, Question]]:
        """Each door, its exits to be asked one by one, and for what the config wants them asked.

        Lists are read, and fetched if need be.  ``timeout``: seconds for an exit to connect.
        Raises ConfigError.
        """
        for name, section in _sections(self._settings):
            feed = Feed(section.exits, section.exit_sources)
            try:
                found = feed.begin()
            finally:
                feed.close()
            ground = replace(_ground(section), timeouts=Timeouts(connect=timeout), pool_size=0)
            asked = Question(section.checks.urls, status=section.checks.status)
            yield name, make_ways_out(found, ground=ground), asked

    def run(self) -> int:
        """Serve until a signal ends it; returns the exit status."""
        for path in self._missing_keys():
            create_key(path)
            log.info("made a new key: %s (the other end needs a copy of it)", path)
        for line in self.describe():
            log.debug("%s", line)
        guard = ReplayGuard()
        sections = [section for _, section in _sections(self._settings)]
        addresses = [address for section in sections for address in section.addresses]
        if self._settings.admin is not None:
            addresses += self._settings.admin.listen
            self._token = read_or_make_token(self._token_file(self._settings.admin))
        count = worker_count(self._settings.workers)
        if self._watched_in is not None:
            self._meetings = [self._watched_in / f"{index}.sock" for index in range(count)]
        if count == 1:
            return self._work([listen(address, reuse_port=False) for address in addresses], guard)
        # the parent holds the ports, without listening; each worker listens on its own socket
        held = [reserve(address) for address in addresses]
        bound = [Address.from_sockaddr(sock.getsockname()) for sock in held]
        with TemporaryDirectory(prefix="gsocks-") as folder:
            if not self._meetings:
                self._meetings = [Path(folder) / f"{index}.sock" for index in range(count)]
            return run_workers(
                count, lambda index: self._work_beside_others(bound, guard, index), log=log
            )

    def _missing_keys(self) -> list[Path]:
        """Files of the server's own keys that are not there yet; these it makes."""
        server = self._settings.server
        sources = server.keys.values() if server is not None else ()
        return [s.file for s in sources if s.file is not None and not s.file.exists()]

    def _token_file(self, admin: config.Admin) -> Path:
        if admin.token_file is None:
            return self._path.absolute().parent / "admin.token"
        return Path(admin.token_file)

    # --- in the process that serves ---------------------------------------------------------

    def _work_beside_others(self, addresses: list[Address], guard: ReplayGuard, index: int) -> int:
        # A worker that takes a dead one's place must not bring back the keys and users that
        # stood in the file when the parent read it.
        return self._work([listen(at, reuse_port=True) for at in addresses], guard, index)

    def _work(
        self,
        listeners: list[std_socket.socket],
        guard: ReplayGuard,
        index: int | None = None,
    ) -> int:
        """Serve; ``index`` is that of a worker among others."""
        waiting = iter(listeners)
        if index is not None:
            self._settings = self._with_exits_of_now()
        self._make_doors(waiting, guard)
        if index is not None:
            self._read_again()
        # who has spawned whom costs a walk up the stack at each spawn, and nobody asks
        gevent.config.track_greenlet_tree = False
        self._make_admins(waiting, index or 0)
        # before the doors open: a signal that comes early must find its handler
        gevent.signal_handler(signal.SIGTERM, self._terminate)
        gevent.signal_handler(signal.SIGINT, self._interrupt)
        gevent.signal_handler(signal.SIGHUP, self._reload)
        for door in self._doors:
            door.start()
        for admin in self._admins:
            admin.start()
        _spare_the_collector()
        self._tell_where()
        self._stopped.wait()
        return 0

    def _make_doors(self, listeners: Iterator[std_socket.socket], guard: ReplayGuard) -> None:
        observer: Observer = AccessLog() if self._settings.log.access else NullObserver()
        if self._settings.admin is not None or self._meetings:
            observer = self._tally = Tally(observer)
        server, local = self._settings.server, self._settings.local
        if server is not None:
            ways, keys = self._ways_out("server", server), _keys(server)
            shares = Shares(_limits(server))
            self._servers = [
                RemoteServer(
                    next(listeners),
                    ways,
                    keys,
                    guard=guard,
                    ciphers=fast_ciphers(),
                    timeouts=_timeouts(server),
                    limits=_limits(server),
                    clients=server.clients,
                    proxy_protocol_from=server.proxy_protocol_from,
                    shares=shares,
                    observer=observer,
                )
                for _ in server.addresses
            ]
        if local is not None:
            ways, self._users = self._ways_out("local", local), _users(local)
            logins = make_logins(self._users)
            shares = Shares(_limits(local))
            self._locals = [
                LocalServer(
                    await_first_words(next(listeners)),
                    ways,
                    users=logins,
                    timeouts=_timeouts(local),
                    limits=_limits(local),
                    udp=_udp(local),
                    wish=listener.wish,
                    by_client=local.sessions.by_client,
                    fast_open=local.fast_open,
                    retry_on=local.retry_on,
                    clients=local.clients,
                    proxy_protocol_from=local.proxy_protocol_from,
                    shares=shares,
                    observer=observer,
                )
                for listener in local.listen
            ]

    def _ways_out(self, name: str, section: config.Section) -> WaysOut:
        feed = Feed(section.exits, section.exit_sources)
        ground = _ground(section)
        ways = make_ways_out(
            feed.begin(),
            ground=ground,
            rotate=section.rotate,
            tries=section.tries,
            health=_health(section),
            checks=_checks(section),
            sessions=_sessions(section) if isinstance(section, config.Local) else None,
        )
        self._ways[name] = ways
        self._supplies[name] = Supply(name, ways, ground, feed)
        return ways

    def _make_admins(self, listeners: Iterator[std_socket.socket], index: int) -> None:
        """What the admin can ask: this process, or by way of it the others too."""
        panel = Panel(self._doors, self._ways, self._tally)
        others = [path for number, path in enumerate(self._meetings) if number != index]
        app = App(panel, Crew(others), self._token)
        self._admins = [AdminServer(listener, app) for listener in listeners]
        if self._meetings:
            own = listen_at_path(self._meetings[index])
            self._admins.append(AdminServer(own, App(panel, Crew(), None)))

    @property
    def _doors(self) -> list[Door]:
        return [*self._servers, *self._locals]

    def _tell_where(self) -> None:
        for server in self._servers:
            log.info("server: waits for tunnels on %s", server.bound)
        for local in self._locals:
            log.info("local: SOCKS5, SOCKS4 and HTTP on %s", local.bound)
        settings = self._settings.admin
        token_file = None if settings is None else self._token_file(settings)
        for admin in self._admins:
            if isinstance(admin.address, tuple):
                log.info(
                    "admin: JSON and metrics on http://%s, for who shows the token in %s",
                    admin.bound,
                    token_file,
                )
        if self._locals:
            log.info(
                "try it: curl --socks5-hostname %s https://example.com/  (or set it as the SOCKS5"
                " proxy of a browser, with names resolved by the proxy)",
                self._locals[0].bound,
            )

    # --- signals ----------------------------------------------------------------------------

    def _terminate(self) -> None:
        """SIGTERM: let connections end; the second one ends at once."""
        if self._terminated:
            log.info("told again to stop: ending at once")
            self._stop(0)
            return
        self._terminated = True
        open_now = sum(door.connections for door in self._doors)
        log.info("stopping: waits for %d connections (SIGTERM again ends at once)", open_now)
        self._stop(None)
        log.info("stopped")

    def _interrupt(self) -> None:
        """SIGINT: end at once."""
        log.info("interrupted: ending at once")
        self._stop(0)

    def _stop(self, seconds: float | None) -> None:
        for supply in self._supplies.values():
            supply.close()
        gevent.joinall(
            [
                gevent.spawn(door.stop, door.timeouts.drain if seconds is None else seconds)
                for door in self._doors
            ]
        )
        for admin in self._admins:
            admin.stop(0)
        self._stopped.set()

    def _reload(self) -> None:
        """SIGHUP: other keys, users and exits, without touching a connection."""
        settings = self._read_again()
        if settings is None or not self._take_exits(settings):
            return
        log.info(
            "read again: keys, users and exits of %s (other changes need a restart)", self._path
        )

    def _read_again(self) -> config.Config | None:
        """Take the keys and users that the config has now; or all stays as it was.

        Returns the config, unless it can't be used.
        """
        try:
            settings = config.load(self._path)
            keys = _keys(settings.server) if settings.server is not None else None
            local, before = settings.local, self._settings.local
            file = local.users_file if local is not None else None
            if file != (before.users_file if before is not None else None):
                raise ConfigError("local.users_file: another one needs a restart")
            hashes = local.users if local is not None else {}
            if (bool(hashes) or file is not None) != (self._users is not None):
                raise ConfigError("local.users: opening or closing a door needs a restart")
            if self._users is not None:
                self._users.replace(hashes)
        except ConfigError as error:
            log.error("not read again, all stays as it was: %s", error)
            return None
        if keys is not None:
            for server in self._servers:
                server.replace_keys(keys)
        return settings

    def _take_exits(self, settings: config.Config) -> bool:
        """Whether that was possible at every door; where it wasn't, they stay as they were."""
        taken = True
        for name, section in _sections(settings):
            if name not in self._supplies:
                continue
            try:
                self._supplies[name].replace(section.exits, section.exit_sources)
            except ConfigError as error:
                log.error("%s: the exits stay as they were: %s", name, error)
                taken = False
        return taken

    def _with_exits_of_now(self) -> config.Config:
        """The config of the start, with the exits that stand in the file now if it can be used."""
        try:
            found = config.load(self._path)
        except ConfigError:
            return self._settings  # which it is, is told to whoever changes it
        return config.with_exits(self._settings, found)


def _spare_the_collector() -> None:
    """What is there now is there to stay, and connections leave no cycles behind them.

    So the garbage collector has less to look at, and looks less often: a twentieth of the CPU
    time of a new connection was its.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, *gc.get_threshold()[1:])


# --- from the config's structs to the engine's parts ----------------------------------------


def _sections(
    settings: config.Config,
) -> Iterator[tuple[str, config.Local | config.Server]]:
    # the server first, so that a local end in the same process finds it listening
    if settings.server is not None:
        yield "server", settings.server
    if settings.local is not None:
        yield "local", settings.local


def _ground(section: config.Section) -> Ground:
    return Ground(
        make_rules(section.rules),
        timeouts=_timeouts(section),
        pool_size=section.pool.size,
        pool_max_idle=section.pool.max_idle,
    )


def _sessions(local: config.Local) -> Sessions:
    return Sessions(idle=local.sessions.idle, longest=local.sessions.longest)


def known_exits(section: config.Section) -> list[ExitSpec]:
    """All exits that can be known without fetching a list.  Raises ConfigError."""
    lists = [read_source(source) for source in section.exit_sources]
    listed = (spec for found in lists if found for spec in found.exits)
    return list(dict.fromkeys([*section.exits, *listed]))


def _ways(section: config.Section, exits: Sequence[ExitSpec]) -> str:
    named = [spec.label for spec in exits[:3]]
    if len(exits) > 3:
        named.append(f"{len(exits) - 3} more")
    fetched = [str(each) for each in section.exit_sources if isinstance(each, UrlSource)]
    return ", ".join(named + [f"what {url} lists" for url in fetched])


def _listening(section: config.Local | config.Server) -> Iterator[str]:
    """Each address, and what is asked for those who come in there."""
    if isinstance(section, config.Server):
        yield from map(str, section.listen)
        return
    for each in section.listen:
        yield str(each.address) if each.wish == ANY else f"{each.address} ({each.wish})"


def _told(sessions: config.Sessions) -> str:
    longest, idle = format_duration(sessions.longest), format_duration(sessions.idle)
    named = ", each client's address is one if it names none" if sessions.by_client else ""
    return f"a session has one exit for {longest}, or until it is silent for {idle}{named}"


def _timeouts(section: config.Section) -> Timeouts:
    return Timeouts(**{name: getattr(section.timeouts, name) for name in Timeouts._fields})


def _limits(section: config.Section) -> Limits:
    return Limits(**{name: getattr(section.limits, name) for name in Limits._fields})


def _health(section: config.Section) -> HealthSettings:
    return HealthSettings(
        **{name: getattr(section.health, name) for name in HealthSettings._fields}
    )


def _checks(section: config.Section) -> CheckSettings:
    return CheckSettings(**{name: getattr(section.checks, name) for name in CheckSettings._fields})


def _users(local: config.Local) -> Users | None:
    if local.users_file is not None:
        return FileUsers(local.users_file, local.users)
    return Users(local.users) if local.users else None


def _judge(section: config.Section, dest: Address, user: str | None, resolver: Resolver) -> Opinion:
    """What the rules of ``section`` say; only direct looks names up at this end."""
    here = any(spec.scheme == "direct" for spec in known_exits(section))
    return judge(make_rules(section.rules), dest, user, resolver.resolve if here else None)


def _some(names: Iterable[str]) -> str:
    """The first of many names."""
    listed = list(names)
    more = f" and {len(listed) - 10} more" if len(listed) > 10 else ""
    return ", ".join(listed[:10]) + more


def _udp(local: config.Local) -> Udp:
    return Udp(**{name: getattr(local.udp, name) for name in Udp._fields})


def _keys(server: config.Server) -> KeyRing:
    return KeyRing({name: _key(source) for name, source in server.keys.items()})


def _key(source: config.KeySource) -> Key:
    return read_key(source.file) if source.file is not None else Key.parse(source.key or "")
