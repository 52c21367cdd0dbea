"""The routes of the admin API, and what serves them, for this process and its peers."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from http import HTTPStatus
from itertools import islice
from operator import itemgetter
from typing import Any, Protocol
from urllib.parse import urlencode

import msgspec
from gevent.lock import BoundedSemaphore

from gsocks.admin import shapes, snapshot
from gsocks.admin.commands import Commands
from gsocks.admin.control import Control
from gsocks.admin.event_stream import EventStreams, News
from gsocks.admin.exit_pages import figures_of, page_of, unwritten, written
from gsocks.admin.history import AskedHistory
from gsocks.admin.openapi import document
from gsocks.admin.peers import Peers
from gsocks.admin.problems import ApiError, invalid, not_found
from gsocks.admin.routes import (
    EVENT_STREAM,
    Answer,
    Call,
    Role,
    Route,
    Routes,
)
from gsocks.admin.snapshot import Json
from gsocks.errors import HistoryFailed
from gsocks.history.requests import RequestFilter, RequestLog, RequestRow
from gsocks.rotation.probe import ProbeTarget, examine
from gsocks.turns import give_way

log = logging.getLogger("gsocks.admin")

#: checks of exits at a time, and seconds of each
MAX_CHECKS, CHECK_TIMEOUT = 8, 10.0

#: rows of the request log that are searched for the errors of an exit
_ERRORS_OF = 500

_DONE = Answer(b'{"done": true}\n')


class FleetView(Protocol):
    """The gateways that share a store."""

    def listing(self) -> Json:
        """The members and the store."""

    @property
    def has_others(self) -> bool:
        """Whether other gateways are there."""

    def command(self, path: Sequence[str], section: str, body: bytes) -> None:
        """Tell the others of a command."""

    def soon(self) -> None:
        """Tell at once what has changed."""


class Api:
    """Serves the routes.

    ``history``: what has happened; None: it is not counted.  ``control``: the service; None: there
    is none, and its routes answer 501.  ``version``: that of gsocks.
    """

    def __init__(
        self,
        commands: Commands,
        peers: Peers,
        history: AskedHistory | None = None,
        control: Control | None = None,
        version: str = "",
    ) -> None:
        self._version = version
        self._commands = commands
        self._peers = peers
        self._history = history
        self._control = control
        self._checks = BoundedSemaphore(MAX_CHECKS)
        self._streams = EventStreams(self._status_now, self._changes_since)
        self.routes = Routes(self._table())
        #: the other gateways, if there are any
        self.fleet: FleetView | None = None
        self._document: bytes | None = None

    def close(self) -> None:
        """End all streams of events."""
        self._streams.close()

    def _table(self) -> list[Route]:
        get, post, put, delete = "GET", "POST", "PUT", "DELETE"
        acts: Any = {"role": Role.OPERATOR}
        of_section: Any = {"query": shapes.OfSection, **acts}
        command: Any = {"handler": self._command, **of_section}
        of_session: Any = {"handler": self._session_command, **of_section}
        exit_ = "/v1/exits/{name}"
        return [
            Route(get, "/v1/me", "me", "Name and role of the token", self._me, answer=shapes.Me),
            Route(
                get,
                "/v1/status",
                "status",
                "Listeners, workers, counts, the loops' lag",
                self._status,
                answer=shapes.Status,
            ),
            Route(
                get,
                "/v1/fleet",
                "fleet",
                "The gateways that share a store",
                self._fleet,
                answer=shapes.Fleet,
            ),
            Route(
                get,
                "/v1/exits",
                "listExits",
                "Exits",
                self._exits,
                shapes.ExitQuery,
                answer=shapes.ExitPage,
            ),
            Route(
                post,
                "/v1/exits/actions",
                "actOnExits",
                "Ban, unban, drain or undrain several exits",
                self._act,
                body=shapes.ExitAction,
                answer=shapes.ActionResult,
                **of_section,
            ),
            Route(
                get,
                exit_,
                "getExit",
                "One exit, with the domains that it is not used for",
                self._exit,
                shapes.OfSection,
                answer=shapes.ExitDetail,
            ),
            Route(
                put,
                exit_,
                "putExit",
                "Add an exit, or replace the one of that name",
                self._put_exit,
                body=shapes.ExitTerms,
                **of_section,
            ),
            Route(delete, exit_, "deleteExit", "Remove an exit", self._delete_exit, **of_section),
            Route(
                post,
                exit_ + "/reset",
                "resetExit",
                "Have an exit as the config and the lists say again",
                self._reset_exit,
                **of_section,
            ),
            Route(
                post,
                exit_ + "/ban",
                "banExit",
                "Don't use an exit for so long, or not for a domain",
                body=shapes.Ban,
                **command,
            ),
            Route(
                post,
                exit_ + "/unban",
                "unbanExit",
                "Use an exit again that was banned or ejected",
                body=shapes.Unban,
                **command,
            ),
            Route(
                post,
                exit_ + "/drain",
                "drainExit",
                "Send an exit no new requests",
                body=shapes.Nothing,
                **command,
            ),
            Route(
                post,
                exit_ + "/undrain",
                "undrainExit",
                "Send an exit requests again",
                body=shapes.Nothing,
                **command,
            ),
            Route(
                post,
                exit_ + "/report",
                "reportExit",
                "Report whether an exit serves a domain",
                body=shapes.Report,
                **command,
            ),
            Route(
                post,
                exit_ + "/check",
                "checkExit",
                "Check an exit now",
                self._check_exit,
                answer=shapes.CheckResult,
                **of_section,
            ),
            Route(
                get,
                "/v1/sessions",
                "listSessions",
                "Sessions and their exits, those of the latest use first",
                self._sessions,
                shapes.SessionQuery,
                answer=shapes.SessionPage,
            ),
            Route(
                post,
                "/v1/sessions/rotate",
                "rotateSession",
                "Move a session to another exit at its next request",
                body=shapes.SessionName,
                answer=shapes.SessionDone,
                **of_session,
            ),
            Route(
                post,
                "/v1/sessions/report",
                "reportSession",
                "Report whether the exit of a session serves a domain",
                body=shapes.SessionReport,
                answer=shapes.SessionDone,
                **of_session,
            ),
            Route(
                get,
                "/v1/users",
                "listUsers",
                "Users, their open connections and their traffic of a day",
                self._users,
                shapes.UserQuery,
                answer=shapes.UserPage,
            ),
            Route(
                put,
                "/v1/users/{name}",
                "putUser",
                "Add a user, or change the password",
                self._put_user,
                body=shapes.UserSecret,
                **acts,
            ),
            Route(
                delete, "/v1/users/{name}", "deleteUser", "Remove a user", self._drop_user, **acts
            ),
            Route(
                get,
                "/v1/quotas",
                "listQuotas",
                "What one user may use at a time",
                self._quotas,
                answer=shapes.Quotas,
            ),
            Route(
                put,
                "/v1/quotas/{section}",
                "putQuota",
                "Change what one user may use at a time",
                self._put_quota,
                body=shapes.Quota,
                **acts,
            ),
            Route(
                get,
                "/v1/requests",
                "listRequests",
                "The request log, the latest first",
                self._requests,
                shapes.RequestQuery,
                answer=shapes.RequestPage,
            ),
            Route(
                get,
                "/v1/series",
                "series",
                "Counters by time",
                self._series,
                shapes.SeriesQuery,
                answer=shapes.Series,
            ),
            Route(
                get,
                "/v1/top",
                "top",
                "The worst or busiest exits (by their tries), users, hosts, outcomes",
                self._top,
                shapes.TopQuery,
                answer=shapes.Top,
            ),
            Route(
                get,
                "/v1/changes",
                "listChanges",
                "What has changed lately, the latest first",
                self._changes,
                shapes.ChangeQuery,
                answer=shapes.Changes,
            ),
            Route(
                get,
                "/v1/events",
                "events",
                "What happens, as server-sent events, at most once a second",
                self._events,
                shapes.EventQuery,
                answer=str,
                kind=EVENT_STREAM,
            ),
            Route(
                get,
                "/v1/config",
                "config",
                "What runs, without secrets",
                self._config,
                answer=shapes.RunningConfig,
            ),
            Route(
                get,
                "/v1/config/check",
                "checkConfig",
                "What a reload would change",
                self._check_config,
                answer=shapes.ConfigCheck,
            ),
            Route(
                post,
                "/v1/reload",
                "reload",
                "Read keys, users, exits and certificates again",
                self._reload,
                body=shapes.Nothing,
                status=HTTPStatus.ACCEPTED,
                **acts,
            ),
            Route(
                get,
                "/metrics",
                "metrics",
                "For Prometheus",
                self._metrics,
                answer=str,
                kind="text/plain",
            ),
            Route(
                get,
                "/openapi.json",
                "openapi",
                "This document",
                self._openapi,
                answer=dict[str, Any],
            ),
        ]

    # --- state ------------------------------------------------------------------------------

    def _me(self, call: Call) -> Answer:
        return _json({"name": call.by, "role": str(call.role)})

    def _fleet(self, _: Call) -> Answer:
        if self.fleet is None:
            raise not_found("this gateway is alone (state.url is not set)")
        return _json(self.fleet.listing())

    def _status(self, _: Call) -> Answer:
        return _json(self._status_now())

    def _status_now(self) -> Json:
        own = self._commands.snapshot(most=0)
        others = self._peers.snapshots(snapshot.ALL, most=0)
        state = snapshot.merged([own, *others])
        named = ("workers", "inbounds", "sessions", "log_dropped", "ignored_names", "exit_states")
        return {
            "version": self._version,
            **{name: state[name] for name in named},
            "loop": snapshot.loop_lag(state),
            "requests": self._history is not None and self._history.requests is not None,
            "fleet": self.fleet is not None,
        }

    def _exits(self, call: Call) -> Answer:
        query: shapes.ExitQuery = call.query
        wanted = snapshot.WantedExits(
            query.section,
            query.country.lower(),
            query.tag.lower(),
            query.source,
            query.text.lower(),
        )
        brief: Any = {"wanted": wanted, "domains": False, "figures": figures_of(query.sort)}
        own = self._commands.snapshot(**brief)
        others = self._peers.snapshots(snapshot.ALL, **brief)
        page = page_of(snapshot.merged([own, *others])["exits"], query)
        page["items"] = self._in_full(page["items"])
        if query.history:
            self._add_history(page["items"])
        return _json(page)

    def _in_full(self, exits: list[Json]) -> list[Json]:
        """All that is known of some exits, in the same order."""
        names = [(each["section"], each["name"]) for each in exits]
        lists = [self._commands.exits_named(names), *self._peers.exits_named(names)]
        found = {(each["section"], each["name"]): each for each in snapshot.merged_exits(lists)}
        return [found[name] for name in names if name in found]

    def _add_history(self, exits: list[Json]) -> None:
        """Add the requests of the last hour."""
        if self._history is None:
            return
        names = [f"{each['section']}/{each['name']}" for each in exits]
        found = self._history.minutes("exit", names)
        for each, name in zip(exits, names, strict=True):
            each["tries_by_minute"], each["failed_by_minute"] = found[name]

    def _exit(self, call: Call) -> Answer:
        name, section = call.path["name"], call.query.section
        others = self._peers.snapshots(name)
        state = snapshot.merged([self._commands.snapshot(name), *others])
        for each in state["exits"]:
            if each["name"] == name and section in ("", each["section"]):
                domains = [
                    {key: pair[key] for key in ("domain", "state", "back_in")}
                    for pair in state["domains"]
                    if (pair["section"], pair["exit"]) == (each["section"], name)
                ]
                self._add_history([each])
                return _json({**each, "domains": domains, "errors": self._errors_of(name)})
        raise not_found(f"no exit is called {name!r}")

    def _errors_of(self, name: str) -> dict[str, int] | None:
        """How its latest requests have failed, and its tries."""
        if self._history is None or self._history.requests is None:
            return None
        counts: Counter[str] = Counter()
        with _unfailing():
            page = self._history.requests.search(RequestFilter(exit=name), _ERRORS_OF)
        for row in page.rows:
            own = [each.why for each in row.tries if each.exit == name]
            if not own and row.exit == name and row.outcome != "ok":
                own = [row.outcome]
            counts.update(own)
        return dict(counts.most_common())

    def _sessions(self, call: Call) -> Answer:
        query: shapes.SessionQuery = call.query
        wanted = snapshot.WantedSessions(query.section, query.user, query.exit, query.text.lower())
        place: tuple[Any, ...] | None = None
        if query.cursor:
            match unwritten(query.cursor):
                case [float(used) | int(used), str(section), str(user), str(session)]:
                    place = used, section, user, session
                    wanted = wanted._replace(before=float(used))
                case _:
                    raise invalid("expected what `next` of the page before is", "cursor")
        # those that were used at the very same moment come again
        limit = query.limit + 1 + (100 if place else 0)
        asked = urlencode({"limit": limit, **wanted._asdict()})
        found = self._commands.sessions(limit, wanted)
        for response in self._peers.ask("GET", f"/own/sessions?{asked}"):
            if response.status == HTTPStatus.OK:
                found += response.body
        # of a session that several workers know, the state at the one that used it last
        found.sort(key=_place_of_session, reverse=True)
        latest: dict[tuple[str, ...], Json] = {}
        for each in found:
            if place is None or _place_of_session(each) < place:
                latest.setdefault((each["section"], each["user"] or "", each["session"]), each)
        items = list(islice(latest.values(), query.limit))
        more = len(latest) > query.limit
        return _json(
            {"items": items, "next": written(_place_of_session(items[-1])) if more else None}
        )

    def _users(self, call: Call) -> Answer:
        query: shapes.UserQuery = call.query
        known = {} if self._control is None else dict(self._control.users())
        opened: Counter[str] = Counter()
        if self._control is not None:
            opened.update(self._control.open_connections())
        for response in self._peers.ask("GET", "/own/users"):
            if response.status == HTTPStatus.OK:
                opened.update(response.body)
        totals = {}
        if self._history is not None:
            totals = self._history.totals("user", time.time() - 86400, 3600)
        for name in (*totals, *opened):
            if name:
                known.setdefault(name, "seen")
        text = query.text.lower()
        names = sorted(name for name in known if text in name.lower())
        following = [name for name in names if name > query.cursor]
        items = []
        for name in following[: query.limit]:
            seen = totals.get(name)
            items.append(
                {
                    "name": name,
                    "source": known[name],
                    "open": opened[name],
                    "requests": 0 if seen is None else seen.requests,
                    "failed": 0 if seen is None else seen.failed,
                    "up": 0 if seen is None else seen.up,
                    "down": 0 if seen is None else seen.down,
                }
            )
            give_way()
        more = len(following) > query.limit
        quotas = {} if self._control is None else self._control.quotas()
        return _json(
            {
                "items": items,
                "next": items[-1]["name"] if more else None,
                "total": len(names),
                "quotas": msgspec.to_builtins(quotas),
            }
        )

    def _quotas(self, _: Call) -> Answer:
        return _json({"sections": msgspec.to_builtins(self._service.quotas())})

    # --- history ----------------------------------------------------------------------------

    @property
    def _counted(self) -> AskedHistory:
        if self._history is None:
            raise not_found("requests are not counted here")
        return self._history

    @property
    def _log(self) -> RequestLog:
        if self._history is None or self._history.requests is None:
            raise not_found("there is no request log (`requests: {}` in the config has one)")
        return self._history.requests

    def _requests(self, call: Call) -> Answer:
        query: shapes.RequestQuery = call.query
        with _unfailing():
            page = self._log.search(
                _filter_of(query),
                query.limit,
                int(query.cursor) if query.cursor else None,
                query.after or None,
            )
        return _json(
            {
                "items": [request_json(row) for row in page.rows],
                "next": None if page.before is None else str(page.before),
                "is_partial": page.is_partial,
            }
        )

    def _series(self, call: Call) -> Answer:
        query: shapes.SeriesQuery = call.query
        now = time.time()
        since = query.since or None
        # a point costs some 100 bytes
        if since is not None and now - since > _MOST_POINTS * query.step:
            raise invalid(f"more than {_MOST_POINTS} points; a longer step has fewer", "since")
        with _unfailing():
            points = self._counted.series(query.kind, query.name, since, query.step)
        first = points[0].at if points else int(since or now)
        names = [name for name in _FIGURES if query.kind == "total" or name not in _OF_TOTAL]
        return _json(
            {
                "kind": query.kind,
                "name": query.name,
                "since": first,
                "step": query.step,
                **{
                    _called(name, query.kind): [getattr(each, name) for each in points]
                    for name in names
                },
            }
        )

    def _top(self, call: Call) -> Answer:
        query: shapes.TopQuery = call.query
        now = time.time()
        since = query.since or now - 3600
        step = 60 if query.kind != "host" and now - since <= 86400 else 3600
        with _unfailing():
            totals = self._counted.totals(query.kind, since, step)
        figure = _TOP_BY[query.sort]
        found = sorted(
            (pair for pair in totals.items() if figure(pair[1])),
            key=lambda pair: (-figure(pair[1]), pair[0]),
        )
        names = [each for each in shapes.TopItem.__struct_fields__ if each not in ("name", "tries")]
        items = [
            {"name": name, **{_called(each, query.kind): getattr(point, each) for each in names}}
            for name, point in found[: query.limit]
        ]
        return _json({"items": items, "since": int(since)})

    def _changes(self, call: Call) -> Answer:
        query: shapes.ChangeQuery = call.query
        behind: tuple[float, str] | None = None
        if query.cursor:
            match unwritten(query.cursor):
                case [float(when) | int(when), str(digest)]:
                    behind = when, digest
                case _:
                    raise invalid("expected what `next` of the page before is", "cursor")
        found = [
            (_place_of_change(each), each)
            for each in self._changes_since(query.since)
            if (not query.kind or each["kind"] == query.kind)
            and (not query.exit or each["exit"] == query.exit)
            and (not query.subject or each["subject"] == query.subject)
        ]
        found.sort(key=itemgetter(0), reverse=True)
        if behind is not None:
            found = [pair for pair in found if pair[0] < behind]
        page, more = found[: query.limit], len(found) > query.limit
        return _json(
            {
                "items": [each for _, each in page],
                "next": written(page[-1][0]) if more else None,
            }
        )

    def _changes_since(self, since: float) -> list[Json]:
        if self._history is None:
            return []
        names = shapes.Change.__struct_fields__
        return [
            {name: getattr(event, name) for name in names}
            for event in self._history.events(since, shapes.MAX_PAGE)
        ]

    def _events(self, call: Call) -> Answer:
        query: shapes.EventQuery = call.query
        topics = query.topics.split(",")
        requests: Callable[[int], list[Json]] | None = None
        if "requests" in topics:
            found, wanted = self._log, _filter_of(query)

            def requests(after: int) -> list[Json]:
                with _unfailing():
                    page = found.search(wanted, MAX_TAIL, after=after or None)
                return [request_json(row) for row in page.rows]

        stream = self._streams.open(News(topics, requests, call.is_valid))
        return Answer(stream, EVENT_STREAM)

    # --- commands ---------------------------------------------------------------------------

    def _command(self, call: Call) -> Answer:
        self._execute(call)
        return _DONE

    def _session_command(self, call: Call) -> Answer:
        return _json({"done": True, "known": self._execute(call)})

    def _execute(self, call: Call) -> bool:
        """Whether what the command names is known here; if not, another gateway may know it."""
        self._commands.section(call.query.section)  # none is told of one that does not exist
        others = [each.status for each in self._peers.ask("POST", call.target, call.raw)]
        path = _command_path(call)
        if self.fleet is not None:
            self.fleet.command(path, call.query.section, call.raw)
        try:
            self._commands.execute(path, call.query.section, call.raw)
        except ApiError as error:
            # a session may be known to another worker alone, or to another gateway
            is_known = HTTPStatus.OK in others
            may_be = path[0] == "sessions" and self.fleet is not None and self.fleet.has_others
            if error.status is not HTTPStatus.NOT_FOUND or not (is_known or may_be):
                raise
        else:
            is_known = True
        self._soon()
        return is_known

    def _soon(self) -> None:
        """Have the other gateways learn at once what has changed."""
        if self.fleet is not None:
            self.fleet.soon()

    def _act(self, call: Call) -> Answer:
        self._peers.ask("POST", call.target, call.raw)
        unknown = self._commands.act_on(call.body, call.query.section)
        self._soon()
        return _json({"done": True, "unknown": unknown})

    def _check_exit(self, call: Call) -> Answer:
        section = self._commands.section(call.query.section)
        member = self._commands.group(section).roster.named(call.path["name"])
        if member is None:
            raise not_found(f"no exit is called {call.path['name']!r}")
        target = ProbeTarget() if self._control is None else self._control.target(section)
        if not self._checks.acquire(blocking=False):
            raise ApiError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{MAX_CHECKS} exits are being checked; try again",
                fields=[("Retry-After", "5")],
            )
        try:
            found = examine(member, target, CHECK_TIMEOUT)
        finally:
            self._checks.release()
        return _json(
            {
                "ok": found.trouble is None,
                "trouble": found.trouble,
                "seconds": found.seconds,
                "address": found.address,
                "country": found.country,
                "only_answers": found.only_answers,
            }
        )

    @property
    def _service(self) -> Control:
        if self._control is None:
            raise ApiError(HTTPStatus.NOT_IMPLEMENTED, "there is no service here")
        return self._control

    def _put_exit(self, call: Call) -> Answer:
        section = self._commands.section(call.query.section)
        self._service.put_exit(section, call.path["name"], call.body)
        return self._changed()

    def _delete_exit(self, call: Call) -> Answer:
        section = self._commands.section(call.query.section)
        self._service.delete_exit(section, call.path["name"])
        return self._changed()

    def _reset_exit(self, call: Call) -> Answer:
        section = self._commands.section(call.query.section)
        self._service.reset_exit(section, call.path["name"])
        return self._changed()

    def _put_user(self, call: Call) -> Answer:
        self._service.put_user(call.path["name"], call.body)
        return self._changed()

    def _drop_user(self, call: Call) -> Answer:
        self._service.delete_user(call.path["name"])
        return self._changed()

    def _put_quota(self, call: Call) -> Answer:
        self._service.put_quota(call.path["section"], call.body)
        return self._changed()

    def _changed(self) -> Answer:
        """Have the other workers take what was changed."""
        self._peers.ask("POST", "/own/changes")
        self._soon()
        return _DONE

    def _config(self, _: Call) -> Answer:
        return _json(msgspec.to_builtins(self._service.config()))

    def _check_config(self, _: Call) -> Answer:
        return _json(msgspec.to_builtins(self._service.check()))

    def _reload(self, _: Call) -> Answer:
        found = self._service.check()
        if not found.ok:
            raise ApiError(
                HTTPStatus.CONFLICT,
                f"the config can't be used: {found.mistakes[0]}",
                mistakes=found.mistakes,
            )
        self._service.reload()
        return _DONE._replace(status=HTTPStatus.ACCEPTED)

    # --- documents --------------------------------------------------------------------------

    def _metrics(self, call: Call) -> Answer:
        try:
            from gsocks.admin import metrics
        except ImportError:
            raise ApiError(
                HTTPStatus.NOT_IMPLEMENTED,
                "metrics need prometheus_client (pip install 'gsocks[metrics]')",
            ) from None
        state = [self._commands.snapshot(), *self._peers.snapshots(snapshot.ALL)]
        whole = snapshot.merged(state)
        if metrics.wants_openmetrics(call.accept):
            return Answer(metrics.exposition(whole, openmetrics=True), metrics.OPENMETRICS)
        return Answer(metrics.exposition(whole), metrics.CONTENT_TYPE)

    def _openapi(self, _: Call) -> Answer:
        if self._document is None:
            self._document = document(self.routes, self._version)
        return Answer(self._document)


#: rows of the request log that a stream tells in a second
MAX_TAIL = 100

#: points of a series: a week of minutes
_MOST_POINTS = 10_080

_FIGURES = [
    each
    for each in shapes.Series.__struct_fields__
    if each not in ("kind", "name", "since", "step", "tries")
]
_OF_TOTAL = _FIGURES[_FIGURES.index("connect_p50") :]

_TOP_BY: dict[str, Callable[[Any], int]] = {
    "requests": lambda each: each.requests,
    "tries": lambda each: each.requests,
    "failed": lambda each: each.failed,
    "bytes": lambda each: each.up + each.down,
}


def _called(figure: str, kind: str) -> str:
    """What a figure of a series is called."""
    return "tries" if (figure, kind) == ("requests", "exit") else figure


class _unfailing:  # noqa: N801 - a context manager
    """Turns a failure of the history's files into a problem."""

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, HistoryFailed):
            raise ApiError(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from None


def _command_path(call: Call) -> list[str]:
    """The path of a command, decoded, behind the version."""
    path = call.target.partition("?")[0].split("/")[2:]
    return [path[0], call.path["name"], path[2]] if "name" in call.path else path


def _place_of_session(each: Mapping[str, Any]) -> tuple[Any, ...]:
    return each["last_used"], each["section"], each["user"] or "", each["session"]


def _place_of_change(each: Mapping[str, Any]) -> tuple[float, str]:
    # several may have the same time, and their texts are too long for a cursor
    texts = "\0".join((each["kind"], each["exit"], each["subject"], each["text"]))
    return each["time"], blake2b(texts.encode(), digest_size=8).hexdigest()


def _filter_of(query: shapes.RequestFilterQuery) -> RequestFilter:
    texts = {name: getattr(query, name) for name in RequestFilter._fields if name not in _TIMES}
    return RequestFilter(since=query.since or None, until=query.until or None, **texts)


_TIMES = ("since", "until")


def request_json(row: RequestRow) -> Json:
    """A row of the request log."""
    return {**row._asdict(), "tries": [each._asdict() for each in row.tries]}


def _json(value: object) -> Answer:
    return Answer(snapshot.to_json(value))
