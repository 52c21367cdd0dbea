"""What the admin API changes and asks of the service: exits, users, quotas and the config.

A change is applied in this process and stored in a file beside the state file, or, where there are
several workers and no state file, in the folder of their sockets; the other workers read it there,
and so does one that is started again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import gevent
import msgspec
from gevent.lock import BoundedSemaphore
from msgspec import Struct

from gsocks import config
from gsocks.access.users import Users, check_hash, hash_password
from gsocks.admin.problems import ApiError, conflict, invalid, not_found
from gsocks.admin.shapes import (
    ConfigChange,
    ConfigCheck,
    ConfigKey,
    ExitTerms,
    Quota,
    RunningConfig,
    RunTimeChanges,
    UserSecret,
)
from gsocks.config import Config
from gsocks.config.shown import keys_of
from gsocks.errors import ConfigError
from gsocks.exits import ExitSpec
from gsocks.exits.spec import derived_name
from gsocks.files import read_secret, replace_secret
from gsocks.inbound.quota import UserQuota
from gsocks.messages import Mistake
from gsocks.request import as_exit
from gsocks.rotation.apply import ExitUpdater
from gsocks.rotation.geo import open_countries
from gsocks.rotation.group import ExitGroup
from gsocks.rotation.probe import ProbeTarget
from gsocks.settings import CheckSettings

log = logging.getLogger("gsocks.admin")

#: bytes of the file, and exits and users that may be in it
MAX_SIZE, MAX_CHANGES = 16 << 20, 10_000

_Value = TypeVar("_Value")


class Stored(Struct, omit_defaults=True):
    """All that was changed at run time."""

    #: by the section, then by the name: an exit as it was put, or None for one that was removed
    exits: dict[str, dict[str, ExitTerms | None]] = {}
    #: hashes; None: the user was removed
    users: dict[str, str | None] = {}
    quotas: dict[str, Quota] = {}


class ServiceControl:
    """See :class:`gsocks.admin.control.Control`.

    ``running``: the config that runs; ``load``: reads it again; ``mistakes``: all those that its
    file has; ``path``: of the file with the changes, None: they are in memory alone.
    """

    def __init__(
        self,
        name: str,
        running: Callable[[], Config],
        load: Callable[[], Config],
        mistakes: Callable[[], Sequence[str]],
        path: Path | None,
        *,
        lasting: bool,
        in_worker: bool,
    ) -> None:
        self._name = name
        self._running = running
        self._load = load
        self._mistakes = mistakes
        self._path = path
        self._lasting = lasting
        self._in_worker = in_worker
        self._stored = Stored()
        self._changing = BoundedSemaphore()
        self.groups: Mapping[str, ExitGroup] = {}
        self.updaters: Mapping[str, ExitUpdater] = {}
        self.user_table: Users | None = None
        self.user_quotas: dict[str, UserQuota] = {}
        self._limits: dict[str, Quota] = {}
        #: told of what was changed here, for the other gateways
        self.on_change: Callable[[Collection[str]], object] = lambda _: None

    def begin(self, limits: Mapping[str, Any]) -> None:
        """Take what is stored; ``limits``: those of each section in the config."""
        for name, each in limits.items():
            rates = (each.bandwidth_per_user, each.bandwidth_per_connection)
            user, connection = (None if rate is None else int(rate) for rate in rates)
            self._limits[name] = Quota(
                per_user=each.per_user,
                bandwidth_per_user=user,
                bandwidth_per_connection=connection,
            )
        for quota in self.user_quotas.values():
            quota.counts = True
        if self._path is not None and self._path.exists():
            try:
                self.take_changes()
            except (ApiError, ConfigError) as error:
                log.error("changes of the admin API are not taken: %s", error)

    # --- queries ----------------------------------------------------------------------------

    def users(self) -> dict[str, str]:
        """See :class:`gsocks.admin.control.Control`, as for all that follows."""
        if self.user_table is None:
            return {}
        local = self._running().local
        own = {} if local is None else local.users
        changed = self._stored.users
        return {
            name: "api" if name in changed else "config" if name in own else "file"
            for name in self.user_table.names
        }

    def open_connections(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for quota in self.user_quotas.values():
            found.update(quota.users)
        return found

    def quotas(self) -> dict[str, Quota]:
        return {name: self._stored.quotas.get(name, each) for name, each in self._limits.items()}

    def target(self, section: str) -> ProbeTarget:
        found = getattr(self._running(), section)
        checks: CheckSettings = found.checks
        return ProbeTarget(
            (*checks.ip_urls, *checks.urls),
            expect=checks.expect,
            countries=open_countries(checks.geo_file),
        )

    def config(self) -> RunningConfig:
        stored = self._stored
        return RunningConfig(
            self._name,
            [ConfigKey(key, value) for key, value in keys_of(self._running())],
            RunTimeChanges(
                _names(stored.exits, removed=False),
                _names(stored.exits, removed=True),
                [name for name, secret in stored.users.items() if secret is not None],
                [name for name, secret in stored.users.items() if secret is None],
                [*stored.quotas],
                self._lasting,
            ),
        )

    def check(self) -> ConfigCheck:
        mistakes, found = _in_thread(self._read)
        if found is None:
            return ConfigCheck(False, mistakes, [])
        running = self._running()
        try:
            after = config.reloaded(running, found)
        except ConfigError as error:
            return ConfigCheck(False, [str(error)], [])
        restart = config.needing_restart(after, found)
        before, then = dict(keys_of(running)), dict(keys_of(found))
        changes = [
            ConfigChange(
                key,
                before.get(key),
                then.get(key),
                any(key == each or key.startswith((each + ".", each + "[")) for each in restart),
            )
            for key in dict.fromkeys([*before, *then])
            if before.get(key) != then.get(key)
        ]
        told = {each.key for each in changes}
        # what is shown alike, as another password is
        changes += [
            ConfigChange(key, "***", "*** (another)", True)
            for key in restart
            if not any(each.startswith(key) for each in told)
        ]
        return ConfigCheck(True, [], changes)

    def _read(self) -> tuple[list[str], Config | None]:
        try:
            if mistakes := [*self._mistakes()]:
                return mistakes, None
            return [], self._load()
        except ConfigError as error:
            return [str(error)], None

    def reload(self) -> None:
        os.kill(os.getppid() if self._in_worker else os.getpid(), signal.SIGHUP)

    # --- commands ---------------------------------------------------------------------------

    def put_exit(self, section: str, name: str, terms: ExitTerms) -> None:
        try:
            is_name = as_exit(name) == name
        except ValueError:
            is_name = False
        if not is_name:
            raise invalid("expected a word in small letters, such as berlin-1", "name")
        spec = spec_of(name, terms)
        group = self.groups[section]
        for member in group.roster:
            if member.key == spec and member.name != name:
                raise conflict(f"that is the exit {member.name}")
        self._check_named(section, name)
        with self._changed() as stored:
            stored.exits.setdefault(section, {})[name] = terms
        log.info("exit %s was put by the admin API: %s", name, spec.label)

    def delete_exit(self, section: str, name: str) -> None:
        self._check_named(section, name)
        if self.groups[section].roster.named(name) is None:
            raise not_found(f"no exit is called {name!r}")
        with self._changed() as stored:
            stored.exits.setdefault(section, {})[name] = None
        log.info("exit %s was removed by the admin API", name)

    def reset_exit(self, section: str, name: str) -> None:
        if name not in self._stored.exits.get(section, {}):
            raise not_found(f"the exit {name!r} was not changed by the API")
        with self._changed() as stored:
            stored.exits.get(section, {}).pop(name, None)
        log.info("exit %s is as the config says again", name)

    def _check_named(self, section: str, name: str) -> None:
        member = self.groups[section].roster.named(name)
        spec = None if member is None else member.key
        if isinstance(spec, ExitSpec) and name != (spec.name or derived_name(spec.label)):
            raise conflict("others differ from that exit by their password alone: give it a name")

    def put_user(self, name: str, secret: UserSecret) -> None:
        self._check_user(name)
        if (secret.password is None) == (secret.hash is None):
            raise invalid("expected a password or a hash, and not both", "password")
        if secret.hash is not None:
            try:
                check_hash(name, secret.hash)
            except ConfigError as error:
                raise invalid(str(error), "hash") from None
            hashed = secret.hash
        else:
            hashed = _in_thread(lambda: hash_password((secret.password or "").encode()))
        with self._changed() as stored:
            stored.users[name] = hashed
        log.info("user %s was put by the admin API", name)

    def delete_user(self, name: str) -> None:
        self._check_user(name)
        if self.user_table is None or name not in self.user_table.names:
            raise not_found(f"no user is called {name!r}")
        with self._changed() as stored:
            stored.users[name] = None
        log.info("user %s was removed by the admin API", name)

    def _check_user(self, name: str) -> None:
        if self.user_table is None:
            raise conflict("local has no users; the first one needs a restart")
        if not name.isprintable() or ":" in name or len(name.encode()) > 255:
            raise invalid("expected 1 to 255 printable characters without a colon", "name")
        if self.users().get(name) == "file":
            raise conflict("that user stands in local.users_file, which has to be changed itself")

    def put_quota(self, section: str, quota: Quota) -> None:
        if section not in self.user_quotas:
            raise not_found(f"no section {section!r} with users runs here")
        with self._changed() as stored:
            stored.quotas[section] = quota
        log.info("quotas of %s were changed by the admin API", section)

    # --- what is stored ---------------------------------------------------------------------

    def take_changes(self) -> None:
        with self._changing:
            stored = _in_thread(self._stored_file)
            self._apply(stored)
            self._stored = stored

    def reloaded(self) -> None:
        """The config was read again: what was changed stays."""
        if self._stored.users and self.user_table is not None:
            self._apply_users(self._stored)

    # --- for other gateways, see gsocks.fleet.changes.RunTimeChanges --------------------------

    def change_keys(self) -> list[str]:
        """See :class:`gsocks.fleet.changes.RunTimeChanges`, as for the next two."""
        return list(_by_key(self._stored))

    def change_of(self, key: str) -> str | None:
        changes = _by_key(self._stored)
        return msgspec.json.encode(changes[key]).decode() if key in changes else None

    def take_shared(self, changes: Mapping[str, str | None]) -> None:
        try:
            with self._changed(tell=False) as stored:
                for key, text in changes.items():
                    self._try_one(stored, key, text)
        except (ApiError, ConfigError) as error:
            log.error("changes of another gateway are not taken: %s", error)

    def _try_one(self, stored: Stored, key: str, text: str | None) -> None:
        try:
            self._take_one(stored, msgspec.json.decode(key, type=list[str]), text)
        except (ApiError, ConfigError, msgspec.DecodeError) as error:
            log.warning("%s: a change of another gateway is not taken: %s", key, error)

    def _take_one(self, stored: Stored, key: Sequence[str], text: str | None) -> None:
        """Raises ApiError, ConfigError and DecodeError, and then has changed nothing."""
        match key:
            case ["exit", section, name] if section in self.groups:
                terms = None if text is None else msgspec.json.decode(text, type=ExitTerms | None)
                if terms is not None:
                    spec_of(name, terms)
                _set(stored.exits.setdefault(section, {}), name, terms, is_set=text is not None)
            case ["user", name] if self.user_table is not None:
                if self.users().get(name) == "file":
                    raise conflict("that user stands in local.users_file")
                hashed = None if text is None else msgspec.json.decode(text, type=str | None)
                if hashed is not None:
                    check_hash(name, hashed)
                _set(stored.users, name, hashed, is_set=text is not None)
            case ["quota", section] if section in self.user_quotas:
                quota = Quota() if text is None else msgspec.json.decode(text, type=Quota)
                _set(stored.quotas, section, quota, is_set=text is not None)

    @contextmanager
    def _changed(self, *, tell: bool = True) -> Iterator[Stored]:
        """What is stored, to be changed; then it is applied, and written.

        ``tell``: the other gateways are told of it.
        """
        with self._changing:
            lock = _in_thread(self._lock)
            try:
                was = self._stored if self._path is None else _in_thread(self._stored_file)
                stored = msgspec.json.decode(msgspec.json.encode(was), type=Stored)
                yield stored
                count = sum(map(len, stored.exits.values())) + len(stored.users)
                if count > MAX_CHANGES:
                    raise conflict(f"more than {MAX_CHANGES} changes; they belong into the config")
                before = self._stored
                try:
                    self._apply(stored)
                    self._write(stored)
                except ApiError:
                    self._apply(before)
                    raise
                self._stored = stored
                if tell:
                    self.on_change(_differing(_by_key(was), _by_key(stored)))
            finally:
                if lock is not None:
                    os.close(lock)

    def _apply(self, stored: Stored) -> None:
        """Raises ApiError."""
        try:
            for section, updater in self.updaters.items():
                changes = stored.exits.get(section, {})
                if changes or self._stored.exits.get(section):
                    put = {
                        name: spec_of(name, terms)
                        for name, terms in changes.items()
                        if terms is not None
                    }
                    removed = [name for name, terms in changes.items() if terms is None]
                    updater.change(put, removed)
            if stored.users != self._stored.users and self.user_table is not None:
                self._apply_users(stored)
        except ConfigError as error:
            raise conflict(str(error)) from None
        for section, quota in self.user_quotas.items():
            told = stored.quotas.get(section, self._limits.get(section, Quota()))
            if told != self._stored.quotas.get(section, self._limits.get(section, Quota())):
                quota.change(told.per_user, told.bandwidth_per_user, told.bandwidth_per_connection)

    def _apply_users(self, stored: Stored) -> None:
        local = self._running().local
        hashes: dict[str, str] = {} if local is None else dict(local.users)
        for name, hashed in stored.users.items():
            if hashed is None:
                hashes.pop(name, None)
            else:
                hashes[name] = hashed
        if self.user_table is not None:
            self.user_table.replace(hashes)

    def _lock(self) -> int | None:
        """A descriptor whose closing lets the next worker change something."""
        if self._path is None:
            return None
        descriptor = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return descriptor

    def _stored_file(self) -> Stored:
        if self._path is None or not self._path.exists():
            return Stored()
        try:
            return msgspec.json.decode(read_secret(self._path, MAX_SIZE, log), type=Stored)
        except OSError as error:
            raise conflict(f"{self._path}: {error.strerror}") from None
        except msgspec.DecodeError:
            raise conflict(f"{self._path} is not what gsocks has written") from None

    def _write(self, stored: Stored) -> None:
        if self._path is None:
            return
        path, content = self._path, msgspec.json.encode(stored)
        try:
            _in_thread(lambda: replace_secret(path, content))
        except OSError as error:
            raise conflict(f"{self._path} can't be written: {error.strerror}") from None


def spec_of(name: str, terms: ExitTerms) -> ExitSpec:
    """The exit that was put under that name.  Raises ApiError."""
    told = {key: value for key, value in msgspec.to_builtins(terms).items() if value is not None}
    try:
        spec = ExitSpec.parse({**told, "name": name})
    except Mistake as error:
        raise invalid(error.message, error.at.removeprefix(".") or "url") from None
    except ConfigError as error:
        raise invalid(str(error), "url") from None
    hop: ExitSpec | None = spec
    while hop is not None:
        tls = hop.tls
        names_files = tls is not None and (tls.ca or tls.cert or tls.key)
        if hop.key_file is not None or hop.key_from is not None or names_files:
            raise invalid("files and commands of this machine belong into the config", "url")
        hop = hop.via
    return spec


def _by_key(stored: Stored) -> dict[str, ExitTerms | str | Quota | None]:
    """All changes, by what they are of."""
    found: dict[tuple[str, ...], ExitTerms | str | Quota | None] = {}
    for section, exits in stored.exits.items():
        found.update((("exit", section, name), terms) for name, terms in exits.items())
    found.update((("user", name), hashed) for name, hashed in stored.users.items())
    found.update((("quota", section), quota) for section, quota in stored.quotas.items())
    return {msgspec.json.encode(key).decode(): value for key, value in found.items()}


def _differing(was: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    return [
        key
        for key in {**was, **now}
        if (key in was) != (key in now) or was.get(key) != now.get(key)
    ]


def _set(table: dict[str, _Value], name: str, value: _Value, *, is_set: bool) -> None:
    """Set a change, or take it back."""
    if is_set:
        table[name] = value
    else:
        table.pop(name, None)


def _names(
    exits: Mapping[str, Mapping[str, ExitTerms | None]], *, removed: bool
) -> dict[str, list[str]]:
    return {
        section: [name for name, terms in changes.items() if (terms is None) == removed]
        for section, changes in exits.items()
    }


def _in_thread(call: Callable[[], Any]) -> Any:
    """Run ``call`` in a thread: files and YAML must not block the event loop."""

    def made() -> tuple[Any, BaseException | None]:
        try:
            return call(), None
        except (ApiError, ConfigError, OSError) as error:  # gevent prints what is raised there
            return None, error

    found, error = gevent.get_hub().threadpool.apply(made)
    if error is not None:
        raise error
    return found
