"""The types of the admin API: parameters of queries, bodies of commands, and answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from gsocks.history.cells import KINDS
from gsocks.history.requests import RequestRow, TryRow

#: items of a page, unless it is told, and the maximum
DEFAULT_PAGE, MAX_PAGE = 100, 1000

#: exits of one command
MAX_AT_ONCE = 1000

#: seconds that an exit may be banned for: a year
MAX_BAN = 366 * 86400

_Limit = Annotated[int, Meta(ge=1, le=MAX_PAGE, description="Items of a page.")]
_Cursor = Annotated[str, Meta(max_length=600, description="`next` of the page before.")]
_Section = Annotated[
    Literal["", "local", "server", "forwards", "redirect", "dns_listener"],
    Meta(description="Whose exits; left out, those of `local` for commands, and all in lists."),
]
_Word = Annotated[str, Meta(max_length=255)]
_Text = Annotated[str, Meta(min_length=1, max_length=255)]
_Time = Annotated[float, Meta(ge=0, le=1e11)]
_Search = Annotated[str, Meta(max_length=255, description="A part of a text, in any case.")]
_Order = Annotated[Literal["asc", "desc"], Meta(description="The direction of `sort`.")]
_State = Literal[
    "", "draining", "banned", "spent", "down", "ejected", "probation", "degraded", "ok", "unproven"
]


class _Query(Struct, forbid_unknown_fields=True, kw_only=True):
    """Parameters; unknown ones are refused."""


class OfSection(_Query):
    section: _Section = ""


class ExitQuery(OfSection):
    state: _State = ""
    country: Annotated[str, Meta(pattern="^([A-Za-z]{2})?$", description="Two letters.")] = ""
    tag: _Word = ""
    source: Annotated[
        str, Meta(max_length=255, description="`config`, `api` or the list that it comes from.")
    ] = ""
    text: _Search = ""
    sort: Literal[
        "name",
        "state",
        "country",
        "open",
        "connected",
        "failed",
        "success",
        "connect_seconds",
        "traffic",
        "address",
    ] = "name"
    order: _Order = "asc"
    limit: _Limit = DEFAULT_PAGE
    cursor: _Cursor = ""
    history: Annotated[
        bool, Meta(description="With the requests of each minute of the last hour.")
    ] = False


class SessionQuery(OfSection):
    user: _Word = ""
    exit: _Word = ""
    text: _Search = ""
    limit: _Limit = DEFAULT_PAGE
    cursor: _Cursor = ""


class UserQuery(_Query):
    text: _Search = ""
    limit: _Limit = DEFAULT_PAGE
    cursor: _Cursor = ""


class RequestFilterQuery(_Query):
    since: _Time = 0.0
    until: _Time = 0.0
    exit: _Word = ""
    outcome: Annotated[str, Meta(max_length=255, description="`!ok` is all but those.")] = ""
    user: _Word = ""
    session: _Word = ""
    dest: Annotated[
        str, Meta(max_length=255, description="A host; `.example.com` has its subdomains too.")
    ] = ""
    client: _Word = ""
    inbound: _Word = ""
    id: _Word = ""
    status: Annotated[str, Meta(pattern="^(!?[0-9]{3})?$")] = ""
    text: _Search = ""


class RequestQuery(RequestFilterQuery):
    limit: _Limit = DEFAULT_PAGE
    cursor: Annotated[
        str, Meta(pattern="^[0-9]{0,18}$", description="`next` of the page before.")
    ] = ""
    after: Annotated[int, Meta(ge=0, le=10**18, description="Only those with a higher number.")] = 0


class SeriesQuery(_Query):
    kind: Literal[KINDS] = "total"  # type: ignore[valid-type] # the names of a tuple
    name: Annotated[str, Meta(max_length=600, description="Of an exit `SECTION/NAME`.")] = ""
    since: Annotated[
        float, Meta(ge=0, le=1e11, description="Left out: as long as the step is kept.")
    ] = 0.0
    step: Annotated[Literal[10, 60, 3600], Meta(description="Seconds of a point.")] = 60


class TopQuery(_Query):
    kind: Literal["exit", "user", "outcome", "inbound", "host"] = "exit"
    since: Annotated[float, Meta(ge=0, le=1e11, description="Left out: an hour ago.")] = 0.0
    sort: Annotated[
        Literal["requests", "tries", "failed", "bytes"],
        Meta(description="Of exits `tries`, of others `requests`; either is taken for both."),
    ] = "requests"
    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE)] = 10


class ChangeQuery(_Query):
    since: _Time = 0.0
    kind: _Word = ""
    exit: _Word = ""
    subject: _Word = ""
    limit: _Limit = DEFAULT_PAGE
    cursor: _Cursor = ""


class EventQuery(RequestFilterQuery):
    topics: Annotated[
        str,
        Meta(
            pattern="^((status|changes|requests)(,(status|changes|requests)){0,2})$",
            description="What is told; the other parameters select the requests.",
        ),
    ] = "status,changes"


# --- bodies -----------------------------------------------------------------------------------


class _Body(Struct, forbid_unknown_fields=True, kw_only=True):
    """The JSON object of a command; unknown keys are refused."""


class Nothing(_Body):
    pass


class Ban(_Body):
    seconds: Annotated[float, Meta(gt=0, le=MAX_BAN)]
    domain: _Text | None = None


class Unban(_Body):
    domain: _Text | None = None


class Report(_Body):
    domain: _Text
    ok: bool
    reason: _Text | None = None


class SessionName(_Body):
    session: _Text
    user: _Text | None = None


class SessionReport(_Body):
    session: _Text
    domain: _Text
    ok: bool
    user: _Text | None = None
    reason: _Text | None = None


class ExitAction(_Body):
    names: Annotated[list[_Text], Meta(min_length=1, max_length=MAX_AT_ONCE)]
    action: Literal["ban", "unban", "drain", "undrain"]
    seconds: Annotated[float, Meta(gt=0, le=MAX_BAN)] = 600.0
    domain: _Text | None = None


_Size = Annotated[int, Meta(ge=1, le=10**18)]


class ExitTerms(_Body):
    """An exit, as a config has it; files and commands of this machine can't be named."""

    url: Annotated[str, Meta(min_length=1, max_length=2000)]
    user: Annotated[str, Meta(max_length=255)] | None = None
    password: Annotated[str, Meta(max_length=255)] | None = None
    key: Annotated[str, Meta(max_length=100)] | None = None
    via: Annotated[str, Meta(max_length=2000)] | None = None
    weight: Annotated[float, Meta(ge=0.001, le=1000)] | None = None
    tags: Annotated[list[_Text], Meta(max_length=20)] | None = None
    country: Annotated[str, Meta(pattern="^[A-Za-z]{2}$")] | None = None
    max_connections: Annotated[int, Meta(ge=1, le=10**6)] | None = None
    requests_per_minute: Annotated[int, Meta(ge=1, le=10**6)] | None = None
    bytes_per_day: _Size | None = None
    bytes_per_month: _Size | None = None


class UserSecret(_Body):
    """The password of a user, or its Argon2id hash as ``gsocks passwd`` prints it."""

    password: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    hash: Annotated[str, Meta(max_length=255)] | None = None


class Quota(_Body):
    """What one user may use at a time, in each worker; null is no limit."""

    #: open connections
    per_user: Annotated[int, Meta(ge=1, le=10**6)] | None = None
    #: bytes a second in each direction, of all connections of a user and of each connection
    bandwidth_per_user: Annotated[int, Meta(ge=1024, le=10**12)] | None = None
    bandwidth_per_connection: Annotated[int, Meta(ge=1024, le=10**12)] | None = None


# --- answers ----------------------------------------------------------------------------------


class Me(Struct):
    name: str
    role: Literal["viewer", "operator"]


class FleetStore(Struct):
    url: str
    state: str


class FleetMember(Struct):
    node: str
    gateway: str
    version: str
    worker: int
    #: seconds since the epoch
    since: float
    connections: int
    requests: int
    #: CPU seconds since then
    cpu: float
    ready: bool
    #: seconds since it was heard of
    heard: float


class Fleet(Struct):
    gateway: str
    store: FleetStore
    members: list[FleetMember]


class Lag(Struct, rename={"p999": "p99.9"}):
    turns: int
    p50: float
    p99: float
    p999: float
    longest: float


class InboundState(Struct):
    listen: list[str]
    connections: int
    outcomes: dict[str, int]
    up: int
    down: int


class Status(Struct):
    version: str
    workers: int
    inbounds: dict[str, InboundState]
    sessions: dict[str, int]
    exit_states: dict[str, int]
    log_dropped: int
    ignored_names: int
    loop: Lag
    #: whether there is a request log, and whether the gateway shares a store with others
    requests: bool
    fleet: bool


class Tunnels(Struct):
    ready: int
    opened: int
    hits: int
    misses: int
    found_dead: int


class ExitState(Struct, kw_only=True):
    section: str
    name: str
    label: str
    source: str
    country: str | None
    address: str | None
    address_country: str | None
    tags: list[str]
    weight: float
    max_connections: int | None
    state: str
    back_in: float | None
    open: int
    in_flight: int
    connected: int
    failed: int
    up: int
    down: int
    connect_seconds: float | None
    last_error: str
    budget: dict[str, Any] | UnsetType = UNSET
    tunnels: Tunnels | UnsetType = UNSET
    #: tries of each minute of the last hour, and those that failed
    tries_by_minute: list[int] | UnsetType = UNSET
    failed_by_minute: list[int] | UnsetType = UNSET


class ExitPage(Struct):
    items: list[ExitState]
    next: str | None
    #: how many match
    total: int
    #: how many match in each state, if the state is left aside
    states: dict[str, int]


class BarredFor(Struct):
    domain: str
    state: str
    back_in: float | None


class ExitDetail(ExitState, kw_only=True):
    #: what it is not used for
    domains: list[BarredFor]
    #: how its latest failed requests ended; null: there is no request log
    errors: dict[str, int] | None


class CheckResult(Struct):
    ok: bool
    #: why not
    trouble: str | None
    seconds: float | None
    address: str | None
    country: str | None
    #: it has answered, and it is not known whether it reaches anything
    only_answers: bool


class ActionResult(Struct):
    done: bool
    #: exits that are not there
    unknown: list[str]


class SessionDone(Struct):
    done: bool
    #: whether this gateway knows the session; if not, those that share its store were told
    known: bool


class SessionState(Struct):
    section: str
    user: str | None
    session: str
    exit: str
    age: float
    idle: float
    last_used: float


class SessionPage(Struct):
    items: list[SessionState]
    next: str | None


class UserState(Struct):
    name: str
    #: where it comes from: ``config``, ``file``, ``api``; or ``seen``, in requests alone
    source: str
    #: open connections, at all listeners
    open: int
    #: of a day
    requests: int
    failed: int
    up: int
    down: int


class UserPage(Struct):
    items: list[UserState]
    next: str | None
    total: int
    #: what one user may use at a time, in each worker
    quotas: dict[str, Quota]


class Quotas(Struct):
    sections: dict[str, Quota]


Try: Any = msgspec.defstruct("Try", [*get_type_hints(TryRow).items()])

#: the same fields as in the log
LoggedRequest = msgspec.defstruct(
    "LoggedRequest",
    [
        (name, list[Try] if name == "tries" else kind)
        for name, kind in get_type_hints(RequestRow).items()
    ],
)


class RequestPage(Struct):
    items: list[LoggedRequest]  # type: ignore[valid-type] # made above
    next: str | None
    #: whether the search was ended early; the next page goes on
    is_partial: bool


class Series(Struct, kw_only=True):
    """A list for each figure, with an item for each step."""

    kind: str
    name: str
    since: int
    step: int
    #: of an exit its tries instead, of which one request may have several
    requests: list[int] | UnsetType = UNSET
    tries: list[int] | UnsetType = UNSET
    failed: list[int]
    up: list[int]
    down: list[int]
    connect: list[float | None]
    first_byte: list[float | None]
    total: list[float | None]
    connect_p50: list[float | None] | UnsetType = UNSET
    connect_p95: list[float | None] | UnsetType = UNSET
    first_byte_p50: list[float | None] | UnsetType = UNSET
    first_byte_p95: list[float | None] | UnsetType = UNSET
    open: list[int | None] | UnsetType = UNSET
    lag: list[float | None] | UnsetType = UNSET


class TopItem(Struct, kw_only=True):
    name: str
    #: of an exit its tries instead, of which one request may have several
    requests: int | UnsetType = UNSET
    tries: int | UnsetType = UNSET
    failed: int
    up: int
    down: int
    connect: float | None
    first_byte: float | None
    total: float | None


class Top(Struct):
    items: list[TopItem]
    since: int


class Change(Struct):
    time: float
    kind: str
    exit: str
    subject: str
    text: str


class Changes(Struct):
    items: list[Change]
    next: str | None


class ConfigKey(Struct):
    key: str
    value: str


class ConfigChange(Struct):
    key: str
    running: str | None
    found: str | None
    needs_restart: bool


class RunTimeChanges(Struct):
    """What was changed by the API, by the names of the sections."""

    exits: dict[str, list[str]]
    removed: dict[str, list[str]]
    users: list[str]
    removed_users: list[str]
    quotas: list[str]
    #: whether they outlive a restart
    lasting: bool


class RunningConfig(Struct):
    file: str
    keys: list[ConfigKey]
    changes: RunTimeChanges


class ConfigCheck(Struct):
    ok: bool
    mistakes: list[str]
    changes: list[ConfigChange]
