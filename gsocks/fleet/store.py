"""The store that gateways share, by redis-py in two native threads.

One thread writes, the other one reads: redis-py sleeps, holds locks and looks names up while it
reconnects or follows a failover, so that in the event loop it would stop all clients (ADR 0026).
Every call here blocks the calling greenlet only.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from gevent.threadpool import ThreadPool

from gsocks.config.schema import State
from gsocks.config.store import StoreUrl
from gsocks.errors import ConfigError, StoreFailed
from gsocks.files import read_secret
from gsocks.fleet.log import log
from gsocks.net.certificates import identify, trust

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.cluster import ClusterNode, RedisCluster
    from redis.exceptions import RedisClusterException, RedisError, ResponseError
    from redis.retry import Retry
    from redis.sentinel import MasterNotFoundError, Sentinel
except ImportError:
    raise ConfigError("state.url: needs redis-py (pip install 'gsocks[fleet]')") from None

#: the layout of keys and messages; what has another one is not read
LAYOUT = 1

#: seconds for a connect, and for an answer
TIMEOUT = 1.0

#: bytes of a password file
_MAX_PASSWORD = 4096

#: keys that are asked for at a time
_CHUNK = 500

#: messages that are read at a time
_MAX_MESSAGES = 1000

#: a command, its arguments as redis-py takes them
Command: TypeAlias = tuple[str | bytes | int, ...]

#: errors of one command that mean that the store can't be used now, by their first word; after any
#: other one the command is given up, since it would fail again
_TRANSIENT = frozenset(
    [
        "OOM",
        "LOADING",
        "READONLY",
        "MISCONF",
        "CLUSTERDOWN",
        "MASTERDOWN",
        "TRYAGAIN",
        "NOAUTH",
        "NOPERM",
        "WRONGPASS",
        "BUSY",
        "NOREPLICAS",
        "UNBLOCKED",
        "EXECABORT",
    ]
)

#: what redis-py raises if the store can't be reached; of a cluster that is no RedisError
_FAILURES = (RedisError, RedisClusterException, OSError)

_Made = TypeVar("_Made")


class Store:
    """The store of ``settings``, for the process ``node``.

    Every method but :meth:`close` raises StoreFailed, with one line.
    """

    def __init__(self, settings: State, node: str) -> None:
        self._settings = settings
        self.url = _url_of(settings)
        self._node = node
        self._writer: Any = None
        self._reader: Any = None
        self._channel: Any = None
        self._threads = (ThreadPool(1), ThreadPool(1))
        #: seconds by which its clock is ahead of this machine's monotonic one; None: not asked yet
        self.offset: float | None = None
        #: commands that were sent, for those who want to know what sharing costs
        self.commands = 0

    def __repr__(self) -> str:
        return f"<Store {self.url} commands={self.commands}>"

    def key(self, *parts: str) -> str:
        """The name of a key."""
        return key_of(self._settings, *parts)

    # --- the thread that writes -------------------------------------------------------------

    def exchange(
        self, commands: Sequence[Command], message: bytes | None = None
    ) -> Sequence[object]:
        """Send commands, and tell the other gateways ``message``; the answers, in their order.

        The answer to a command that has failed by itself is None.
        """
        return self._in_thread(0, lambda: self._exchange(commands, message))

    def _exchange(self, commands: Sequence[Command], message: bytes | None) -> Sequence[object]:
        if self._writer is None:
            self._writer = connect(self._settings)
            self.offset = self._measure_offset(self._writer)
        is_cluster = self.url.kind == "cluster"
        self.commands += len(commands) + (message is not None)
        answers: list[object] = []
        if commands or not is_cluster:
            pipeline = self._writer.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            if message is not None and not is_cluster:
                pipeline.execute_command("PUBLISH", self.key("news"), message)
            answers = pipeline.execute(raise_on_error=False)
        if message is not None and is_cluster:  # whose pipelines have commands with keys only
            self._writer.publish(self.key("news"), message)
        return [_answer(each) for each in answers[: len(commands)]]

    def _measure_offset(self, client: Any) -> float:
        """By a third of Cristian's algorithm: the answer is taken for the middle of its way."""
        sent = time.monotonic()
        nodes = {"target_nodes": RedisCluster.RANDOM} if self.url.kind == "cluster" else {}
        found = client.time(**nodes)
        if isinstance(found, dict):  # a cluster's, by nodes
            found = next(iter(found.values()))
        seconds, micros = found
        return float(seconds + micros / 1e6 - (sent + time.monotonic()) / 2)

    # --- the thread that reads --------------------------------------------------------------

    def subscribe(self) -> None:
        """Listen to what the others say, from now on."""
        self._in_thread(1, self._subscribe)

    def _subscribe(self) -> None:
        self._close_reader()
        self._reader = connect(self._settings)
        if self.offset is None:
            self.offset = self._measure_offset(self._reader)
        self._channel = self._reader.pubsub(ignore_subscribe_messages=True)
        self._channel.subscribe(self.key("news"))
        if self._channel.parse_response(timeout=TIMEOUT) is None:  # the confirmation
            raise StoreFailed(f"{self.url}: no answer within {TIMEOUT:g} s")

    def receive(self, seconds: float) -> list[bytes]:
        """Messages that have arrived; waits for the first one, so long at most."""
        return self._in_thread(1, lambda: self._receive(seconds))

    def _receive(self, seconds: float) -> list[bytes]:
        found: list[bytes] = []
        wait = seconds
        while len(found) < _MAX_MESSAGES:
            message = self._channel.get_message(timeout=wait)
            if message is None:
                break
            if message["type"] == "message":
                found.append(message["data"])
            wait = 0.0
        return found

    def read_all(self, *parts: str) -> Iterator[list[tuple[str, bytes]]]:
        """The keys that begin so, without that beginning, and their texts; some at a time."""
        begins = self.key(*parts, "")
        scan = self._in_thread(1, lambda: self._scan(begins))
        while found := self._in_thread(1, lambda: self._next_chunk(scan)):
            size = len(begins.encode())
            yield [
                (name[size:].decode("utf-8", "replace"), text)
                for name, text in found
                if isinstance(text, bytes)  # else it has expired meanwhile
            ]

    def read_lists(self, names: Sequence[str]) -> Sequence[Sequence[bytes]]:
        """All entries of some lists."""
        return self._in_thread(1, lambda: self._read_lists(names)) if names else []

    def _read_lists(self, names: Sequence[str]) -> Sequence[Sequence[bytes]]:
        pipeline = self._reader.pipeline(transaction=False)
        for name in names:
            pipeline.lrange(name, 0, -1)
        found: Sequence[Sequence[bytes]] = pipeline.execute()
        return found

    def _scan(self, begins: str) -> Iterator[bytes]:
        return iter(self._reader.scan_iter(match=f"{begins}*", count=_CHUNK))

    def _next_chunk(self, scan: Iterator[bytes]) -> list[tuple[bytes, object]]:
        names = []
        for name in scan:
            names.append(name)
            if len(names) == _CHUNK:
                break
        if not names:
            return []
        pipeline = self._reader.pipeline(transaction=False)
        for name in names:
            pipeline.get(name)
        return list(zip(names, pipeline.execute(raise_on_error=False), strict=True))

    # --- both -------------------------------------------------------------------------------

    def _in_thread(self, number: int, call: Callable[[], _Made]) -> _Made:
        def made() -> _Made | StoreFailed:
            try:
                return call()
            except StoreFailed as error:  # gevent prints what is raised in its threads
                self._drop(number)
                return error
            except (*_FAILURES, ConfigError) as error:
                self._drop(number)
                return StoreFailed(f"{self.url}: {_line(error)}")
            except (
                TypeError,
                ValueError,
                LookupError,
            ) as error:  # of redis-py, which expects another
                self._drop(number)
                return StoreFailed(f"{self.url}: an answer that no Redis gives ({_line(error)})")

        found: _Made | StoreFailed = self._threads[number].apply(made)
        if isinstance(found, StoreFailed):
            raise found
        return found

    def _drop(self, number: int) -> None:
        """Close the connections of a thread: a new one may reach another master."""
        if number:
            self._close_reader()
        else:
            writer, self._writer = self._writer, None
            _close(writer)

    def _close_reader(self) -> None:
        channel, self._channel = self._channel, None
        reader, self._reader = self._reader, None
        _close(channel)
        _close(reader)

    def close(self) -> None:
        """Close the connections; blocks the calling greenlet while a thread is at work."""
        for number, thread in enumerate(self._threads):
            thread.apply(lambda number=number: self._drop(number))
            thread.kill()


def key_of(settings: State, *parts: str) -> str:
    """The name of a key."""
    return ":".join((settings.prefix, str(LAYOUT), *parts))


def ask(settings: State, commands: Sequence[Command]) -> Sequence[Any]:
    """The answers to a few commands, by a connection of their own.

    Blocks the thread.  Raises StoreFailed.
    """
    client: Any = None
    try:
        client = connect(settings)
        return [client.execute_command(*command) for command in commands]
    except (*_FAILURES, ConfigError) as error:
        raise StoreFailed(f"{_url_of(settings)}: {_line(error)}") from None
    finally:
        _close(client)


def connect(settings: State) -> Any:
    """A client of redis-py.  Blocks the thread.  Raises ConfigError, and _FAILURES."""
    url = _url_of(settings)
    password = url.password
    if settings.password_file is not None:
        password = _password(settings.password_file)
    options: dict[str, Any] = {
        "username": url.user,
        "password": password,
        "socket_timeout": TIMEOUT,
        "socket_connect_timeout": TIMEOUT,
        "socket_keepalive": True,
        "protocol": 2,
    }
    if url.tls:
        options |= _tls_options(settings)
    once: dict[str, Any] = {
        "retry": Retry(NoBackoff(), 0)
    }  # the caller retries, and sees what happens
    database: dict[str, Any] = {"db": url.database}
    hosts = [(each.host, each.port) for each in url.hosts]
    if url.kind == "unix":
        del options["socket_keepalive"]
        return redis.Redis(unix_socket_path=url.path, **options, **once, **database)
    if url.kind == "cluster":
        nodes = [ClusterNode(*each) for each in hosts]  # type: ignore[no-untyped-call]
        return RedisCluster(startup_nodes=nodes, **options)
    if url.kind == "sentinel":
        logins = ("username", "password")  # the master's
        of_sentinels = {name: each for name, each in options.items() if name not in logins}
        sentinels: Any = Sentinel
        found = sentinels(hosts, sentinel_kwargs={**of_sentinels, **once}, **options)
        return found.master_for(url.service, **once, **database)
    host, port = hosts[0]
    return redis.Redis(host=host, port=port, **options, **once, **database)


def _tls_options(settings: State) -> dict[str, Any]:
    """As redis-py takes them.  Raises ConfigError, which names a file and not what is in it."""
    options: dict[str, Any] = {"ssl": True, "ssl_check_hostname": True}
    options["ssl_min_version"] = ssl.TLSVersion.TLSv1_2
    # tried here first, since redis-py's error quotes no file, and OpenSSL would ask the terminal
    # for the password of an encrypted key
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if settings.ca is not None:
        trust(context, settings.ca)
        options["ssl_ca_certs"] = str(settings.ca)
    if settings.cert is not None:
        identify(context, settings.cert, settings.key)
        options["ssl_certfile"] = str(settings.cert)
        options["ssl_keyfile"] = None if settings.key is None else str(settings.key)
    return options


def check(settings: State) -> str:
    """For ``gsocks check``: what the store of ``settings`` is, or why it can't be used now.

    Blocks the thread, for some seconds at most.  Raises ConfigError for what no store mends.
    """
    url = _url_of(settings)
    if settings.password_file is not None:
        _password(settings.password_file)
    client: Any = None
    try:
        client = connect(settings)
        nodes = {"target_nodes": RedisCluster.RANDOM} if url.kind == "cluster" else {}
        client.ping(**nodes)
    except _FAILURES as error:
        return f"{url}: {_line(error)} (each gateway goes on alone meanwhile)"
    finally:
        _close(client)
    return f"shared at {url}, by keys that begin with {settings.prefix}:{LAYOUT}:"


def _url_of(settings: State) -> StoreUrl:
    if settings.url is None:
        raise ConfigError("state.url: missing")
    return settings.url


def _password(path: Path) -> str:
    try:
        raw = read_secret(path, _MAX_PASSWORD, log)
        return raw.decode("utf-8").rstrip("\r\n")
    except OSError as error:
        raise ConfigError(f"state.password_file: {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"state.password_file: {path}: not UTF-8") from None


def _answer(found: object) -> object:
    """The answer to one command; None if it has failed in a way that would repeat itself."""
    if isinstance(found, ResponseError):
        if str(found).partition(" ")[0] in _TRANSIENT or type(found) is not ResponseError:
            raise found
        log.warning("a command was refused: %s", _line(found))
        return None
    if isinstance(found, Exception):
        raise found
    return found


def _line(error: Exception) -> str:
    """The error in one line."""
    if isinstance(error, MasterNotFoundError):  # its text has the repr of each connection
        return "no Sentinel that answers knows this master"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:300]


def _close(client: Any) -> None:
    try:
        if client is not None:
            client.close()
    except _FAILURES:
        pass  # it is gone already
