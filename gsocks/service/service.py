"""A config file as running listeners: created, started, reloaded and shut down by signals."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import gevent
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from gsocks import __version__, config
from gsocks.access.rules import ReplaceableRules
from gsocks.access.throttle import Throttle
from gsocks.access.username_style import STANDARD
from gsocks.access.users import Users
from gsocks.admin.api import Api
from gsocks.admin.app import App
from gsocks.admin.commands import Commands
from gsocks.admin.counters import ConnectionCounters
from gsocks.admin.health import HealthApp, Readiness
from gsocks.admin.history import AskedHistory
from gsocks.admin.peers import Peers
from gsocks.admin.server import AdminServer
from gsocks.admin.sign_in import KEY_SIZE
from gsocks.admin.token import Tokens
from gsocks.admin.worker_app import WorkerApp
from gsocks.config.convert import read_file
from gsocks.config.mistakes import mistakes
from gsocks.crypto import KeyRing, fast_ciphers
from gsocks.errors import ConfigError, ExitUnproven, GsocksError, StateFailed
from gsocks.events import note
from gsocks.exits import ExitDeps
from gsocks.exits.tunnel import TunnelExit
from gsocks.forward import ForwardServer
from gsocks.history.series import ExitInfo
from gsocks.inbound.context import Inbound
from gsocks.inbound.listener import Listener
from gsocks.inbound.options import ForwardOptions
from gsocks.inbound.quota import UserQuota
from gsocks.inbound.udp_forward import UdpForward
from gsocks.keyfile import create_key
from gsocks.local import LocalServer
from gsocks.loop_lag import LoopLag
from gsocks.messages import plural
from gsocks.net.endpoint import Endpoint, UnixPath
from gsocks.net.listen import defer_accept
from gsocks.net.resolve import Resolver
from gsocks.net.unix import UnixAddress, listen_at
from gsocks.observe import AccessLog, NullObserver, Observer, log_as_worker
from gsocks.redirect import RedirectServer
from gsocks.replay import ReplayGuard
from gsocks.request import ExitSelector
from gsocks.rotation.apply import ExitUpdater
from gsocks.rotation.build import FEW_EXITS, make_authenticator, make_exit_group
from gsocks.rotation.group import ExitGroup
from gsocks.rotation.policy import make_policy
from gsocks.rotation.roster import Member
from gsocks.rotation.session import Sessions
from gsocks.rotation.watch import ExitListWatcher, ListSharing
from gsocks.server import RemoteServer
from gsocks.service.activation import Inherited
from gsocks.service.control import ServiceControl
from gsocks.service.notify import Heartbeats, Notifier
from gsocks.service.openings import Opening, Openings
from gsocks.service.places import BothOpenings, Move, ParentChannels, Places, WorkerChannel, move
from gsocks.service.plan import (
    SomeSection,
    check_reach,
    check_tls,
    describe,
    exit_deps,
    make_key_ring,
    make_shadowsocks_keys,
    make_tokens,
    make_transport,
    make_users,
    missing_keys,
    refuse_loops,
    rules_of,
    sections,
    shares_exits,
    token_file,
    warn_of_own_listeners,
)
from gsocks.service.socket_folder import socket_folder
from gsocks.service.supervisor import accept_reloads, run_workers, worker_count
from gsocks.service.watchdog import Watchdog
from gsocks.settings import Limits, ReuseSettings, TransportSettings
from gsocks.transport.server import ServerTransport
from gsocks.turns import give_way, without_collection
from gsocks.units import format_duration

if TYPE_CHECKING:
    from gsocks.dns_listener.server import DnsServer
    from gsocks.fleet.fleet import Fleet, Load
    from gsocks.history.history import History
    from gsocks.inbound.shadowsocks import ShadowsocksServer
    from gsocks.inbound.shadowsocks_udp import ShadowsocksDatagrams
    from gsocks.rotation.state_sync import StateSync
    from gsocks.service.shadowsocks import Opened, ShadowsocksListeners
    from gsocks.shadowsocks.accept import Guards

log = logging.getLogger("gsocks")

#: live objects after which Python's garbage collector runs; its default of 700 is reached every few
#: connections
GC_THRESHOLD = 20_000

#: seconds between two signs of life of a worker, where no supervisor wants them more often
HEARTBEAT = 5.0

#: seconds for which a thread that reads a list may keep the interpreter from the event loop
SWITCH_INTERVAL = 0.0005


class Service:
    """What ``gsocks -c FILE`` runs.

    ``path``: the config file, which is read again at a reload; ``settings``: its content at the
    start, in which a reload replaces keys, users and exits.  ``socket_folder``: a folder in which
    each worker serves its state at a Unix socket; None: one is made if there are several workers.
    ``inherited``: sockets that were passed to the program.  ``load``: what a reload has instead of
    the content of ``path``.
    ``beside``: whether it may be started beside another gsocks of this user, whose place it takes.
    """

    def __init__(
        self,
        path: Path,
        settings: config.Config,
        socket_folder: Path | None = None,
        inherited: Inherited | None = None,
        load: Callable[[], config.Config] | None = None,
        *,
        beside: bool = False,
    ) -> None:
        self._path = path
        self._settings = settings
        self._notifier = Notifier.take()
        self._heartbeats = Heartbeats(worker_count(settings.workers))
        #: a timer of the hub, by which a supervisor knows that it turns
        self._beats: Any = None
        self._socket_folder = socket_folder
        self._load = partial(config.load, path) if load is None else load
        self._openings = Openings(
            Inherited() if inherited is None else inherited,
            worker_count(settings.workers),
            beside=beside,
        )
        #: each place to listen, and what the config has there
        self._at: Places = Places.none()
        #: the Unix sockets at which the workers query each other, by their indices
        self._worker_sockets: list[Path] = []
        #: of the server: those of the start or of the last reload
        self._keys = KeyRing({})
        self._transport = ServerTransport(TransportSettings())
        self._users: Users | None = None
        self._resolver = Resolver(settings=settings.dns)
        self._locals: list[LocalServer] = []
        self._servers: list[RemoteServer] = []
        #: of Shadowsocks clients: what was opened, what must not come twice, and the listeners
        self._shadowsocks_at: Opened | None = None
        self._shadowsocks_guards: Guards | None = None
        self._shadowsocks: ShadowsocksListeners | None = None
        self._forwards: list[ForwardServer | UdpForward] = []
        self._redirects: list[RedirectServer] = []
        self._dns_servers: list[DnsServer] = []
        self._exit_groups: dict[str, ExitGroup] = {}
        self._updaters: dict[str, ExitUpdater] = {}
        #: of each section
        self._deps: dict[str, ExitDeps] = {}
        self._observers: dict[str, Observer] = {}
        self._guard: ReplayGuard | None = None
        #: listeners that accept no more, whose connections go on
        self._retired: list[Listener] = []
        self._retired_admins: list[AdminServer] = []
        #: of the parent, and of a worker
        self._channels: ParentChannels | None = None
        self._channel: WorkerChannel | None = None
        self._admins: list[AdminServer] = []
        self._health: list[AdminServer] = []
        #: the admin for the other workers
        self._own_admin: AdminServer | None = None
        self._api: Api | None = None
        self._throttle: Throttle | None = None
        self._commands: Commands | None = None
        self._readiness = Readiness(self._exit_groups, self._key_files)
        self._state: StateSync | None = None
        self._fleet: Fleet | None = None
        #: why the state file could not be used before the fork
        self._state_trouble: str | None = None
        self._counters = ConnectionCounters(NullObserver())
        self._history: History | None = None
        #: of the pseudonyms of the request log
        self._history_key = b""
        self._tokens = Tokens(())
        #: signs the sessions of the dashboard in all workers
        self._sign_in_key = os.urandom(KEY_SIZE)
        self._control: ServiceControl | None = None
        self._admin_app: App | None = None
        self._quotas: dict[str, UserQuota] = {}
        self._in_worker = False
        #: one reload after the other: the file that was read last counts
        self._reloading = BoundedSemaphore()
        self._stopped = Event()
        self._started = False
        self._draining = False

    # --- before the fork --------------------------------------------------------------------

    def run(self) -> int:
        """Serve until a signal stops it; returns the exit status.  Raises ConfigError."""
        for path in missing_keys(self._settings):
            create_key(path)
            log.info("created a new key: %s (the other end needs a copy of it)", path)
        for line in describe(self._path, self._settings):
            log.debug("%s", line)
        server = self._settings.server
        guard = ReplayGuard(keys=0 if server is None else len(server.keys))
        with closing(self._openings):
            return self._run(guard)

    def _run(self, guard: ReplayGuard) -> int:
        self._open()
        if self._settings.admin is not None:
            self._tokens = make_tokens(self._settings.admin, self._path)
        server = self._settings.server
        if server is not None:
            self._keys = make_key_ring(server)
            self._transport = make_transport(server)
        self._prepare_state()
        if self._settings.requests is not None:
            self._history_key = os.urandom(32)
        if self._settings.tracing is not None:
            from gsocks.history.files import check_tracing

            check_tracing()
        count = worker_count(self._settings.workers)
        if self._socket_folder is not None:
            self._worker_sockets = _worker_sockets(self._socket_folder, count)
        if count == 1:
            return self._serve(guard)
        self._log_how_to_try()
        self._channels = ParentChannels(count)
        with socket_folder() as folder:
            if not self._worker_sockets and folder is not None:
                self._worker_sockets = _worker_sockets(folder, count)
            return run_workers(
                count,
                lambda index: self._serve_as_worker(guard, index),
                log=log,
                # before the workers get it, so that one that is started later has the same users
                reload=self._read_again,
                # no client is to wait for workers that accept no more
                stopping=(lambda: None) if self._drain_notice else self._openings.close,
                notifier=self._notifier,
                heartbeats=self._heartbeats,
            )

    def _open(self) -> None:
        """Open all that clients come in by.  Raises ConfigError."""
        settings, opened = self._settings, self._openings.open
        server, local, forwards = settings.server, settings.local, settings.forwards
        at = self._at = Places.none()
        for endpoint in server.listen if server is not None else ():
            at.server.extend((each, endpoint) for each in opened(endpoint))
        if server is not None and server.shadowsocks is not None:
            # here, since most programs do without it
            from gsocks.service.shadowsocks import guards_of, open_all

            self._shadowsocks_guards = guards_of(server.shadowsocks)
            self._shadowsocks_at = open_all(server.shadowsocks, self._openings)
        for address in local.listen if local is not None else ():
            at.local.extend((each, address) for each in opened(address.address))
        for leg in forwards.legs if forwards is not None else ():
            at.forwards.extend((each, leg) for each in opened(leg.listen, udp=leg.route.udp))
        for address in settings.redirect.listen if settings.redirect is not None else ():
            at.redirect.extend((each, address) for each in opened(address.address))
        dns = settings.dns_listener
        for address in dns.listen if dns is not None else ():
            at.dns.extend((each, address) for each in self._open_for_dns(address.address))
        for endpoint in settings.admin.listen if settings.admin is not None else ():
            at.admin.extend((each, endpoint) for each in opened(endpoint))
        for endpoint in settings.health.listen if settings.health is not None else ():
            at.health.extend((each, endpoint) for each in opened(endpoint))
        self._openings.all_open()
        check_reach(
            settings,
            local=(
                each.bound
                for each, listener in at.local
                if local is None or not (local.allow_anonymous or local.is_guarded(listener))
            ),
            forwards=(each.bound for each, _ in at.forwards),
            redirect=(each.bound for each, _ in at.redirect),
            dns=(each.tcp.bound for each, _ in at.dns),
            admin=(each.bound for each, _ in at.admin),
        )

    def _open_for_dns(self, endpoint: Endpoint) -> Iterator[BothOpenings]:
        """Open an address for TCP, and its port for UDP."""
        for tcp in self._openings.open(endpoint):
            for udp in self._openings.open(tcp.bound, udp=True):
                yield BothOpenings(tcp, udp)

    def _prepare_state(self) -> None:
        """Create the state file, or log why it can't be used: once, and not in each worker."""
        if self._settings.state is not None and self._settings.state.file is not None:
            # here, as below, since most programs do without SQLite, which takes 1 MiB
            from gsocks.rotation.state_file import StateFile
            from gsocks.rotation.state_sync import NOT_KEPT

            file = StateFile(Path(self._settings.state.file))
            try:
                file.open()
            except StateFailed as error:
                self._state_trouble = str(error)
                log.error("%s (%s)", error, NOT_KEPT)
            file.close()

    # --- in the process that serves ---------------------------------------------------------

    def _serve_as_worker(self, guard: ReplayGuard, index: int) -> int:
        self._in_worker = True
        log_as_worker(index)
        return self._serve(guard, index)

    def _serve(self, guard: ReplayGuard, index: int | None = None) -> int:
        """Serve until a signal; ``index``: that of a worker, None if this process is alone."""
        number = index or 0
        if self._channels is not None:
            self._channel, self._channels = self._channels.of_worker(number, self._at), None
        self._at = self._at.of_worker(number)
        if self._shadowsocks_at is not None:
            self._shadowsocks_at = self._shadowsocks_at.of_worker(number)
        self._main = gevent.getcurrent()
        watchdog = Watchdog()
        if index is None:  # a worker that starts is ended by SIGINT as such, and told of no reload
            gevent.signal_handler(signal.SIGINT, self._interrupt)
            gevent.signal_handler(signal.SIGHUP, self._reload)
        with self._reloading:  # a reload waits until there is what it replaces
            self._make_listeners(guard)
            # who has spawned whom costs a walk up the stack at each spawn; nothing here reads it
            gevent.config.track_greenlet_tree = False
            if self._history is not None:
                self._history.counters.longest_turn = watchdog.lag.take_longest
            self._make_admins(number, watchdog.lag)
            self._restore_state(alone=index is None)
            self._join_fleet(number)
            # before the listeners accept: an early signal must find its handler
            gevent.signal_handler(signal.SIGTERM, self._terminate)
            if index is not None:
                gevent.signal_handler(signal.SIGINT, self._interrupt)
                gevent.signal_handler(signal.SIGHUP, self._reload)
                accept_reloads()
            self._started = True
            for listener in self._listeners:
                listener.start()
            if self._history is not None:
                self._history.start()
            for admin in self._all_admins:
                admin.start()
            _tune_garbage_collector()
            share_interpreter()
            self._log_addresses()
            if index is None:
                self._log_how_to_try()
        self._begin_to_beat(number)
        gevent.spawn(self._verify_exits, tell=not number)
        watchdog.start()
        self._stopped.wait()
        watchdog.stop()
        self._beats.stop()
        self._beats.close()
        log.info("shut down")
        return 0

    def _begin_to_beat(self, number: int) -> None:
        """Show that it serves, and that the loop turns, as often as a supervisor wants."""

        def beat() -> None:
            self._heartbeats.beat(number)
            if not self._in_worker:
                self._notifier.alive()

        interval = self._notifier.interval or HEARTBEAT
        self._beats = gevent.get_hub().loop.timer(interval, interval, ref=False)
        self._beats.start(beat)
        beat()
        if not self._in_worker:
            self._notifier.ready("serving")

    def _verify_exits(self, *, tell: bool) -> None:
        """Look whether gsocks servers accept key and clock, before a request has to find out.

        Not those of lists, of which most are never asked.
        """
        for name, section in sections(self._settings):
            if len(section.exits) > FEW_EXITS or section.exit_sources:
                continue
            for member in list(self._exit_groups[name].roster):
                if isinstance(member.exit, TunnelExit):
                    try:
                        member.exit.verify()
                    except ExitUnproven as error:
                        if tell:
                            log.error("%s: exit %s: %s", name, member.name, error)
                    except GsocksError as error:  # it may be started later
                        log.debug("%s: exit %s: %s", name, member.name, error)

    def _make_listeners(self, guard: ReplayGuard) -> None:
        observer: Observer = AccessLog() if self._settings.log.access else NullObserver()
        shares = self._settings.state is not None and self._settings.state.url is not None
        if self._settings.admin is not None or self._worker_sockets or shares:
            observer = self._counters = ConnectionCounters(observer)
        self._history = self._make_history()
        settings = self._settings
        server, local, forwards = settings.server, settings.local, settings.forwards
        self._guard = guard
        if server is not None:
            exits = self._make_exit_group("server", server)
            told = self._observers["server"] = self._told("server", observer)
            quota = self._quotas["server"] = UserQuota(server.limits)
            self._servers = [self._make_server(each, server) for each, _ in self._at.server]
            self._make_shadowsocks(server, exits, quota, told)
        if local is not None:
            self._make_exit_group("local", local)
            self._users = make_users(local)
            self._throttle = make_authenticator(self._users)
            self._observers["local"] = self._told("local", observer)
            self._quotas["local"] = UserQuota(local.limits)
            self._locals = [self._make_local(*each, local) for each in self._at.local]
        if forwards is not None:
            self._make_forwards(forwards, observer)
        if settings.redirect is not None:
            self._make_redirects(settings.redirect, observer)
        if settings.dns_listener is not None:
            self._make_dns(settings.dns_listener, observer)

    def _make_server(self, opening: Opening, server: config.Server) -> RemoteServer:
        made = RemoteServer(
            opening.socket,
            self._exit_groups["server"],
            self._keys,
            guard=self._guard,
            ciphers=fast_ciphers(),
            timeouts=server.timeouts,
            limits=server.limits,
            clients=server.clients,
            proxy_protocol_from=server.proxy_protocol_from,
            quota=self._quotas["server"],
            observer=self._observers["server"],
        )
        made.replace_transport(self._transport)
        return made

    def _make_local(
        self, opening: Opening, listener: config.ListenAddress, local: config.Local
    ) -> LocalServer:
        return LocalServer(
            defer_accept(opening.socket),
            self._exit_groups["local"],
            users=self._throttle,
            allow_anonymous=local.allow_anonymous,
            timeouts=local.timeouts,
            limits=local.limits,
            udp=local.udp,
            selector=listener.selector,
            username_style=listener.username_style or local.username_style or STANDARD,
            by_client=local.sessions.by_client,
            ask=local.asks(listener),
            prefer_login=local.prefers_login(listener),
            fast_open=local.fast_open,
            retry_on=local.retry_on,
            via=local.via,
            pac=local.pac,
            tls=local.tls_of(listener),
            clients=local.clients,
            proxy_protocol_from=local.proxy_protocol_from,
            quota=self._quotas["local"],
            observer=self._observers["local"],
        )

    def _make_shadowsocks(
        self, server: config.Server, exits: ExitGroup, quota: UserQuota, observer: Observer
    ) -> None:
        settings, opened, guards = (
            server.shadowsocks,
            self._shadowsocks_at,
            self._shadowsocks_guards,
        )
        if settings is not None and opened is not None and guards is not None:
            from gsocks.service.shadowsocks import ShadowsocksListeners

            self._shadowsocks = ShadowsocksListeners(
                server, settings, opened, exits, quota, observer, guards
            )

    def _make_forwards(self, forwards: config.Forwards, observer: Observer) -> None:
        exits, common = self._sharing("forwards", forwards, observer)
        options = ForwardOptions(**common, udp=forwards.udp)
        for opening, leg in self._at.forwards:
            kind = UdpForward if leg.route.udp else ForwardServer
            selector = leg.route.selector
            self._forwards.append(kind(opening.socket, leg.to, exits, options, selector=selector))

    def _make_redirects(self, redirect: config.Redirect, observer: Observer) -> None:
        exits, options = self._sharing("redirect", redirect, observer)
        for opening, address in self._at.redirect:
            self._redirects.append(
                RedirectServer(opening.socket, exits, **options, selector=address.selector)
            )

    def _make_dns(self, dns: config.DnsListener, observer: Observer) -> None:
        # here, since most programs do without it and dnspython
        from gsocks.dns_listener.server import DnsServer, ResolverOfExits
        from gsocks.inbound.options import DnsOptions

        exits, common = self._sharing("dns_listener", dns, observer)
        options = DnsOptions(
            **common,
            cache_size=dns.cache_size,
            timeout=dns.timeout,
            waiting=dns.waiting,
            waiting_per_client=dns.waiting_per_client,
        )
        resolvers: dict[ExitSelector, ResolverOfExits] = {}
        for opening, address in self._at.dns:
            selector = address.selector
            if selector not in resolvers:
                own = replace(options, selector=selector)
                resolvers[selector] = ResolverOfExits(dns.server, exits, own)
            resolver = resolvers[selector]
            self._dns_servers.append(
                DnsServer(
                    opening.tcp.socket, opening.udp.socket, dns.server, exits, options, resolver
                )
            )

    def _sharing(
        self, name: str, section: config.SharingSection, observer: Observer
    ) -> tuple[ExitGroup, dict[str, Any]]:
        """The exits of ``section``, which may be those of ``local``, and its listeners' options."""
        if shares_exits(section):
            exits, counted = self._exit_groups["local"], "local"
        else:
            exits, counted = self._make_exit_group(name, section), name
        return exits, {
            "timeouts": section.timeouts,
            "limits": section.limits,
            "clients": section.clients,
            "proxy_protocol_from": section.proxy_protocol_from,
            "quota": UserQuota(section.limits),
            "observer": self._told(counted, observer),
            "allow_remote": section.allow_remote,
        }

    def _make_history(self) -> History | None:
        """What counts requests by time and logs them; None: nothing asks for that."""
        settings = self._settings
        if settings.admin is None and settings.requests is None and settings.tracing is None:
            return None
        # here, since many programs do without it, and without SQLite
        from gsocks.history.counters import MemoryCounters
        from gsocks.history.files import open_files
        from gsocks.history.history import History

        counters = MemoryCounters(
            time.time, lambda: sum(each.connections for each in self._listeners)
        )
        counters.keeps_hosts = settings.requests is None or settings.requests.redact == "none"
        counter_file, request_file = open_files(settings.state, settings.requests)
        history = History(
            counters,
            counter_file,
            request_file,
            settings.requests,
            exits=self._exit_info,
            key=self._history_key,
        )
        if settings.admin is not None:
            history.count_latencies(exemplars=settings.admin.exemplars)
        if settings.tracing is not None:
            from gsocks.history.tracing import Tracing

            key = None if counters.keeps_hosts else self._history_key
            history.also.append(Tracing(settings.tracing, __version__, key))
        return history

    def _exit_info(self, name: str) -> ExitInfo | None:
        """What is known of an exit by the name of its series."""
        section, _, exit_ = name.partition("/")
        group = self._exit_groups.get(section)
        member = None if group is None else group.roster.named(exit_)
        if member is None:
            return None
        spending = member.spending
        cost = None if spending is None else spending.budget.cost_per_gb
        return ExitInfo(member.label, member.country or "", " ".join(member.tags), cost)

    def _told(self, section: str, then: Observer) -> Observer:
        """The observer of the listeners whose exits are those of ``section``."""
        return then if self._history is None else self._history.observer(section, then)

    def _make_exit_group(self, name: str, section: config.Section) -> ExitGroup:
        watcher = ExitListWatcher(
            section.exits, section.exit_sources, self._resolver, self._list_sharing()
        )
        deps = self._deps[name] = exit_deps(section, self._resolver)
        with without_collection(at_start=True):
            exits = watcher.begin()
            warn_of_own_listeners(name, self._settings, exits)
            group = make_exit_group(
                exits,
                deps=deps,
                rotate=section.rotate,
                tries=section.tries,
                hedge=section.hedge,
                per_host=section.per_host,
                health=section.health,
                checks=section.checks,
                listed=bool(section.exit_sources),
                sessions=Sessions(section.sessions) if isinstance(section, config.Local) else None,
                reuse=section.reuse if isinstance(section, config.Local) else ReuseSettings(),
            )
        self._exit_groups[name] = group
        self._updaters[name] = ExitUpdater(name, group, deps, watcher)
        return group

    def _list_sharing(self) -> ListSharing | None:
        """By which gateways share lists; None: they don't."""
        state = self._settings.state
        if state is None or state.url is None or state.shared_key_file is None:
            return None
        # here, as the fleet below
        from gsocks.fleet.lists import SharedLists

        return SharedLists(state)

    def _make_admins(self, worker: int, lag: LoopLag) -> None:
        """The admin API of all workers, and that of this process alone at its Unix socket."""
        of_requests = self._history
        latencies = None if of_requests is None else of_requests.latencies
        if latencies is not None:
            latencies.expect(each.name for each in self._listeners)
        commands = Commands(
            self._listeners, self._exit_groups, self._counters, lag, latencies, self._source_of
        )
        if of_requests is not None:
            commands.log_lost = lambda: of_requests.dropped
        settings = self._settings.admin
        counters = None if self._history is None else self._history.counters
        state = self._settings.state
        if settings is not None or (state is not None and state.shared_key_file is not None):
            self._control = self._make_control()
        if settings is not None:
            control = self._control
            peers = Peers([each for at, each in enumerate(self._worker_sockets) if at != worker])
            history = None
            if self._history is not None:
                kept = self._history.kept_counters
                history = AskedHistory(self._history.counters, peers, self._history.requests, kept)
            api = self._api = Api(commands, peers, history, control, __version__)
            app = self._admin_app = App(api, self._tokens, self._sign_in_key, peers, settings.hosts)
            app.readiness = self._readiness
            self._admins = [AdminServer(opening.socket, app) for opening, _ in self._at.admin]
        self._commands = commands
        self._health = [self._make_health(opening) for opening, _ in self._at.health]
        if self._worker_sockets:
            own = listen_at(UnixPath(str(self._worker_sockets[worker])))
            revoke = None if self._admin_app is None else self._admin_app.sessions.revoke_nonce
            self._own_admin = AdminServer(own, WorkerApp(commands, counters, self._control, revoke))

    def _make_health(self, opening: Opening) -> AdminServer:
        return AdminServer(opening.socket, HealthApp(self._readiness))

    def _source_of(self, section: str, member: Member) -> str:
        updater = self._updaters.get(section)
        return "config" if updater is None else updater.source_of(member)

    def _make_control(self) -> ServiceControl:
        state, path = self._settings.state, None
        if state is not None and state.file is not None:
            path = Path(f"{state.file}-changes")
        elif len(self._worker_sockets) > 1:
            path = self._worker_sockets[0].parent / "changes"
        control = ServiceControl(
            str(self._path),
            lambda: self._settings,
            self._load,
            self._mistakes,
            path,
            lasting=state is not None and state.file is not None,
            in_worker=self._in_worker,
        )
        control.groups, control.updaters = self._exit_groups, self._updaters
        control.user_table, control.user_quotas = self._users, self._quotas
        sections = {"local": self._settings.local, "server": self._settings.server}
        control.begin({name: each.limits for name, each in sections.items() if each is not None})
        return control

    def _mistakes(self) -> list[str]:
        """All of the config file; none where there is no file."""
        if not self._path.is_file():
            return []
        text = read_file(self._path)
        found = mistakes(text, self._path.absolute().parent, str(self._path))
        return [str(each) for each in found]

    def _restore_state(self, *, alone: bool) -> None:
        if self._settings.state is not None and self._settings.state.file is not None:
            from gsocks.rotation.saved import keep
            from gsocks.rotation.state_file import StateFile
            from gsocks.rotation.state_sync import StateSync

            file = StateFile(Path(self._settings.state.file))
            self._state = StateSync(file, alone=alone, trouble=self._state_trouble)
            keep(self._state, self._exit_groups.items())
            self._state.start()

    def _join_fleet(self, worker: int) -> None:
        settings, commands = self._settings.state, self._commands
        if settings is not None and settings.url is not None and commands is not None:
            # here, since most programs do without redis-py, which takes 9 MiB
            from gsocks.fleet.fleet import Fleet

            fleet = self._fleet = Fleet(
                settings,
                self._exit_groups,
                worker,
                self._load_now,
                commands.execute_quietly,
                __version__,
            )
            for section, quota in self._quotas.items():
                fleet.share_quota(section, quota)
            if self._throttle is not None:
                fleet.share_guesses(self._throttle)
            if self._control is not None:
                fleet.share_changes(self._control)
            if self._api is not None:
                self._api.fleet = fleet
            fleet.start()

    def _load_now(self) -> Load:
        from gsocks.fleet.fleet import Load

        open_now = sum(each.connections for each in self._listeners)
        return Load(open_now, self._counters.ended_count, not self._readiness.why_not())

    def _key_files(self) -> list[Path]:
        """The files without which no tunnel opens."""
        server = self._settings.server
        found = [each.file for each in server.keys.values()] if server is not None else []
        return [path for path in found if path is not None]

    @property
    def _drain_notice(self) -> float | None:
        health = self._settings.health
        return None if health is None else health.drain_notice

    @property
    def _listeners(self) -> list[Inbound]:
        ends = [*self._servers, *self._of_shadowsocks, *self._locals]
        more = [*self._forwards, *self._redirects, *self._dns_servers, *self._retired]
        return [*ends, *more]

    @property
    def _of_shadowsocks(self) -> list[ShadowsocksServer | ShadowsocksDatagrams]:
        own = self._shadowsocks
        return [] if own is None else [*own.tcp, *own.udp]

    @property
    def _all_admins(self) -> list[AdminServer]:
        own = [] if self._own_admin is None else [self._own_admin]
        return [*self._admins, *self._health, *own, *self._retired_admins]

    def _log_addresses(self) -> None:
        for server in self._servers:
            _log_server(server)
        if self._shadowsocks is not None:
            for inbound in self._shadowsocks.tcp:
                log.info("server: listening on %s (Shadowsocks)", inbound.bound)
        for local in self._locals:
            _log_local(local)
        for opening, leg in self._at.forwards:
            if leg.to == leg.route.to:  # the first of its ports, which tells of all of them
                log.info("forward: listening on %s", leg.route.at(opening.bound))
        for redirect in self._redirects:
            log.info("redirect: listening on %s (connections that are redirected)", redirect.bound)
        for dns in self._dns_servers:
            log.info("dns_listener: listening on %s (UDP, TCP)", dns.bound)
        for health in self._health:
            _log_health(health)
        for admin in self._admins:
            self._log_admin(admin)

    def _log_admin(self, admin: AdminServer) -> None:
        settings = self._settings.admin
        if settings is not None:
            log.info(
                "admin: listening on %s%s (dashboard, JSON and metrics, token in %s)",
                "" if isinstance(admin.bound, UnixAddress) else "http://",
                admin.bound,
                token_file(settings, self._path),
            )

    def _log_how_to_try(self) -> None:
        """Once for all workers."""
        if self._at.local:
            opening, listener = self._at.local[0]
            bound, local = opening.bound, self._settings.local
            # curl names a Unix socket by a path behind the host
            has_users = local is not None and (local.users or local.users_file is not None)
            login = "--proxy-user USER:PASSWORD " if has_users else ""
            proxy = f"{login}--socks5-hostname {bound}"
            if isinstance(bound, UnixAddress):
                proxy = f"{login}--proxy socks5h://localhost{bound.path}"
            if local is not None and local.tls_of(listener) is not None:
                log.info("try it: curl --proxy https://%s https://example.com/", bound)
                return
            log.info(
                "try it: curl %s https://example.com/  (or set it as the SOCKS5"
                " proxy of a browser, with names resolved by the proxy)",
                proxy,
            )

    # --- signals ----------------------------------------------------------------------------

    def _terminate(self) -> None:
        """SIGTERM: drain open connections; the second one closes them."""
        if self._draining:
            log.info("SIGTERM again: closing all connections")
            self._stop(0)
            return
        self._draining = self._readiness.is_shutting_down = True
        if self._drain_notice is not None:
            notice = format_duration(self._drain_notice)
            log.info("shutting down in %s, not ready any more (SIGTERM again closes all)", notice)
            if self._stopped.wait(self._drain_notice):
                return
        if not self._in_worker:
            self._notifier.stopping("draining connections")
        open_now = plural(sum(each.connections for each in self._listeners), "connection")
        log.info("shutting down, draining %s (SIGTERM again closes all)", open_now)
        self._stop(None)

    def _interrupt(self) -> None:
        """SIGINT: close all connections."""
        if not self._started:  # it may wait for a list of exits
            gevent.kill(self._main, KeyboardInterrupt)
            return
        log.info("SIGINT: shutting down, closing all connections")
        self._stop(0)

    def _stop(self, seconds: float | None) -> None:
        """Stop within ``seconds``; None: within the drain timeout of each listener."""
        self._readiness.is_shutting_down = True
        if not self._in_worker:
            self._openings.remove_files()
        for updater in self._updaters.values():
            updater.close()
        gevent.joinall(
            [
                gevent.spawn(each.stop, each.timeouts.drain if seconds is None else seconds)
                for each in self._listeners
            ]
        )
        if self._history is not None:
            self._history.close()
        if self._state is not None:
            self._state.close()
        if self._admin_app is not None:
            self._admin_app.close()
        if self._fleet is not None:
            self._fleet.close()
        for admin in self._all_admins:
            admin.stop(0)
        self._stopped.set()

    def _reload(self) -> None:
        """SIGHUP: replace keys, users, exits and certificate; open connections stay as they are."""
        with self._reloading:
            if not self._in_worker:
                self._notifier.reloading()
            try:
                self._reload_now()
            finally:
                if not self._in_worker:
                    self._notifier.ready("serving")

    def _reload_now(self) -> None:
        before = self._at
        if not self._read_again():
            return
        self._change_listeners(before)
        if self._replace_users():
            for server in self._all_servers:
                server.replace_transport(self._transport)
                server.replace_keys(self._keys)
            settings = self._settings.server
            if self._shadowsocks is not None and settings is not None and settings.shadowsocks:
                self._shadowsocks.replace_keys(settings.shadowsocks)
            self._replace_bounds()
            if self._replace_exits():
                log.info("reloaded: keys, users and exits of %s", self._path)
                note("reloaded", "keys, users and exits")

    def _replace_bounds(self) -> None:
        """Take rules, limits and tries of the config that was read."""
        settings = self._settings
        for name, group in self._exit_groups.items():
            section, deps = getattr(settings, name), self._deps[name]
            if isinstance(deps.rules, ReplaceableRules):
                deps.rules.replace(rules_of(section))
            group.replace_tries(section.tries, section.hedge)
            if group.roster.policy_word != section.rotate:
                group.replace_policy(make_policy(section.rotate, deps.random))
        parts: tuple[tuple[Sequence[_HasLimits], SomeSection | None], ...] = (
            (self._all_servers, settings.server),
            (self._of_shadowsocks, settings.server),
            (self._all_locals, settings.local),
            (self._forwards, settings.forwards),
            (self._redirects, settings.redirect),
            (self._dns_servers, settings.dns_listener),
        )
        for listeners, part in parts:
            if part is not None:
                for listener in listeners:
                    listener.replace_limits(part.limits)

    def _read_again(self) -> bool:
        """Take keys, users, exits and certificate from their files, or keep all of them.

        False, after a line in the log, if the file can't be used.
        """
        try:
            found = self._load()
            settings = config.reloaded(self._settings, found)
            refuse_loops(settings)
            server = settings.server
            keys, transport = self._keys, self._transport
            if server is not None:
                keys, transport = make_key_ring(server), make_transport(server)
                if server.shadowsocks is not None:
                    make_shadowsocks_keys(server.shadowsocks)
            if settings.local is not None:
                make_users(settings.local, give_way)
                if settings.local.tls is not None:
                    check_tls(settings.local.tls)
            moved = self._move(settings)
        except ConfigError as error:
            log.error("not reloaded, the previous config stays: %s", error)
            note("not_reloaded", str(error))
            return False
        if not self._in_worker:
            names = config.changes(self._settings, settings)
            told = ", ".join(names) or "nothing but what lies in other files"
            log.info("%s: changed: %s", self._path, told)
            if ignored := config.needing_restart(settings, found):
                log.warning("%s: a restart is needed for %s", self._path, ", ".join(ignored))
        self._settings, self._keys, self._transport = settings, keys, transport
        self._at = moved.places
        if self._channels is not None:
            self._channels.tell(moved)
            for opening in moved.closed:
                self._openings.release(opening)
        return True

    # --- other addresses ----------------------------------------------------------------------

    def _move(self, settings: config.Config) -> Move:
        """Open what ``settings`` listen at; closes nothing.  Raises ConfigError."""
        if self._channel is not None:
            return self._channel.move(self._at, settings)
        return move(self._at, settings, self._openings)

    def _change_listeners(self, before: Places) -> None:
        """Serve where the config listens now, and accept no more where it did ``before``."""
        settings, now = self._settings, self._at
        server, local = settings.server, settings.local
        gone: list[Listener | AdminServer] = []
        if server is not None:
            self._servers = _refitted(
                self._servers,
                before.server,
                now.server,
                lambda opening, _: self._make_server(opening, server),
                _log_server,
                gone,
            )
        if local is not None:
            self._locals = _refitted(
                self._locals,
                before.local,
                now.local,
                lambda opening, listener: self._make_local(opening, listener, local),
                _log_local,
                gone,
            )
        if (app := self._admin_app) is not None:
            self._admins = _refitted(
                self._admins,
                before.admin,
                now.admin,
                lambda opening, _: AdminServer(opening.socket, app),
                self._log_admin,
                gone,
            )
        self._health = _refitted(
            self._health,
            before.health,
            now.health,
            lambda opening, _: self._make_health(opening),
            _log_health,
            gone,
        )
        # together: each may wait for clients that have said nothing yet
        gevent.joinall([gevent.spawn(self._retire, each) for each in gone], raise_error=True)
        if not self._in_worker:
            left = {opening.number for places in now.pool.values() for opening, _ in places}
            for places in before.pool.values():
                for opening, _ in places:
                    if opening.number not in left:
                        self._openings.release(opening)
        self._tell_of_listeners()

    def _retire(self, listener: Listener | AdminServer) -> None:
        """Have it accept no more, while its connections go on."""
        if isinstance(listener, AdminServer):
            listener.close()
            log.info("no longer listening on %s (admin, health)", listener.bound)
            open_ones = [each for each in self._retired_admins if each.pool and len(each.pool)]
            self._retired_admins = [*open_ones, listener]
            return
        self._retired.append(listener)  # so that a shutdown meanwhile has it stop, too
        listener.retire()
        log.info(
            "%s: no longer listening on %s (%s)",
            listener.name,
            listener.bound,
            plural(listener.connections, "open connection"),
        )
        gevent.spawn(self._end_retired, listener)

    def _end_retired(self, listener: Listener) -> None:
        """Let go of it after its last connection."""
        listener.context.all_closed.wait()
        if not self._readiness.is_shutting_down:
            self._retired.remove(listener)
            listener.stop(0)
            self._tell_of_listeners()

    def _tell_of_listeners(self) -> None:
        if self._commands is not None:
            self._commands.inbounds = self._listeners

    @property
    def _all_servers(self) -> list[RemoteServer]:
        retired = [each for each in self._retired if isinstance(each, RemoteServer)]
        return [*self._servers, *retired]

    @property
    def _all_locals(self) -> list[LocalServer]:
        retired = [each for each in self._retired if isinstance(each, LocalServer)]
        return [*self._locals, *retired]

    def _replace_users(self) -> bool:
        """False, after a line in the log, if the users' file has just become unusable."""
        local = self._settings.local
        if self._users is None or local is None:
            return True
        try:
            self._users.replace(local.users)
        except ConfigError as error:
            log.error("not reloaded, the previous users stay: %s", error)
            note("not_reloaded", str(error))
            return False
        if self._control is not None:
            self._control.reloaded()
        return True

    def _replace_exits(self) -> bool:
        """Whether the exits of every section were replaced; where not, the previous ones stay."""
        local = self._settings.local
        if local is not None:
            for listener, (_, address) in zip(self._locals, self._at.local, strict=True):
                listener.replace_defaults(
                    address.selector,
                    address.username_style or local.username_style or STANDARD,
                    ask=local.asks(address),
                    prefer_login=local.prefers_login(address),
                )
                listener.replace_pac(local.pac)
                if local.tls is not None:
                    listener.replace_tls(local.tls)
        replaced = [self._replace_exits_of(name, each) for name, each in sections(self._settings)]
        return all(replaced)

    def _replace_exits_of(self, name: str, section: config.Section) -> bool:
        try:
            self._updaters[name].replace(section.exits, section.exit_sources)
        except ConfigError as error:
            log.error("%s: exits not reloaded, the previous ones stay: %s", name, error)
            return False
        return True


class _HasLimits(Protocol):
    def replace_limits(self, limits: Limits) -> None: ...


_L = TypeVar("_L", bound="Listener | AdminServer")
_E = TypeVar("_E")


def _refitted(
    listeners: Sequence[_L],
    before: Sequence[tuple[Opening, _E]],
    now: Sequence[tuple[Opening, _E]],
    make: Callable[[Opening, _E], _L],
    tell: Callable[[_L], object],
    gone: list[Any],
) -> list[_L]:
    """The listeners of ``now``: those that stay, and new ones, which are started.

    ``gone`` gets the others.
    """
    pairs = zip(before, listeners, strict=True)
    known = {opening.number: listener for (opening, _), listener in pairs}
    found: list[_L] = []
    for opening, entry in now:
        listener = known.pop(opening.number, None)
        if listener is None:
            listener = make(opening, entry)
            listener.start()
            tell(listener)
        found.append(listener)
    gone.extend(known.values())
    return found


def _log_server(server: RemoteServer) -> None:
    log.info("server: listening on %s (tunnels)", server.bound)


def _log_local(local: LocalServer) -> None:
    how = ", in TLS" if local.is_secure else ""
    log.info("local: listening on %s (SOCKS5, SOCKS4, HTTP%s)", local.bound, how)


def _log_health(health: AdminServer) -> None:
    log.info("health: listening on %s (/healthz, /readyz)", health.bound)


def _worker_sockets(folder: Path, count: int) -> list[Path]:
    return [folder / f"{index}.sock" for index in range(count)]


def share_interpreter() -> None:
    """Have threads give the interpreter back to the event loop sooner.

    With Python's 5 ms each of the half a dozen turns of a request took 5 ms longer while a list was
    read; now 0.7 ms, and the list takes a twentieth more CPU time.
    """
    sys.setswitchinterval(SWITCH_INTERVAL)


def _tune_garbage_collector() -> None:
    """Exempt the objects that exist now from garbage collection, and collect less often.

    They live as long as the process, and connections leave no cycles behind them.  Garbage
    collection was a twentieth of the CPU time of a new connection.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, *gc.get_threshold()[1:])
