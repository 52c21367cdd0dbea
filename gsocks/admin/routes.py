"""The table of the admin API's routes, by which requests are read and its document is written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from http import HTTPStatus
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import parse_qsl, unquote

import msgspec
from msgspec import Struct

from gsocks.admin.problems import ApiError, invalid

#: bytes of a request's body
MAX_BODY = 65536

#: parameters of a query; no route has as many
MAX_PARAMETERS = 50

JSON = "application/json"
EVENT_STREAM = "text/event-stream"

# what msgspec appends to a message: " - at `$.limit`"
_PLACE = re.compile(r" - at `\$\.?([^`]*)`\Z")
_FIELD = re.compile(r"field `([^`]*)`")


class Role(IntEnum):
    """What the holder of a token may do; each may do what those before it may."""

    #: sees
    VIEWER = 1
    #: acts
    OPERATOR = 2

    @classmethod
    def named(cls, name: str) -> Role:
        """The role as a config writes it."""
        return cls[name.upper()]

    def __str__(self) -> str:
        return self.name.lower()


class NoQuery(Struct, forbid_unknown_fields=True):
    """No parameters."""


class Done(Struct):
    """A command was executed."""

    done: bool


class Call(NamedTuple):
    """A request that was read, and whose parameters are valid."""

    #: the names in its path
    path: Mapping[str, str]
    #: of the types that the route has
    query: Any
    body: Any
    #: path and query as they were sent, and the body, for other workers
    target: str
    raw: bytes
    #: the name of the token that it has shown, and what it may do
    by: str = ""
    role: Role = Role.OPERATOR
    #: whether that token or its session still counts
    is_valid: Callable[[], bool] = lambda: True
    #: the media types that the client takes
    accept: str = ""


class Answer(NamedTuple):
    """A response."""

    body: bytes | Iterable[bytes]
    kind: str = JSON
    status: HTTPStatus = HTTPStatus.OK


#: serves a route.  Raises ApiError
Handler: TypeAlias = Callable[[Call], Answer]


class Route(NamedTuple):
    """A method and a path."""

    method: str
    #: ``{name}`` stands for one segment
    path: str
    #: the operation's name in the document
    name: str
    summary: str
    handler: Handler
    query: type[Struct] = NoQuery
    #: None: it has none
    body: type[Struct] | None = None
    #: the type of the answer
    answer: Any = Done
    kind: str = JSON
    status: HTTPStatus = HTTPStatus.OK
    role: Role = Role.VIEWER

    @property
    def segments(self) -> list[str]:
        """The parts of its path."""
        return self.path.split("/")[1:]

    @property
    def names(self) -> list[str]:
        """The names in its path."""
        return [each[1:-1] for each in self.segments if each.startswith("{")]


class Routes:
    """All routes."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = routes
        self._by_length: dict[int, list[Route]] = {}
        for route in routes:
            self._by_length.setdefault(len(route.segments), []).append(route)

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes)

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """The route of a request, and the names in its path, which is not decoded yet.

        Raises ApiError.
        """
        segments = [_decoded(each) for each in path.split("/")[1:]]
        wanted = "GET" if method == "HEAD" else method
        found: list[tuple[Route, dict[str, str]]] = []
        for route in self._by_length.get(len(segments), ()):
            names = _names(route, segments)
            if names is not None:
                found.append((route, names))
        for route, names in found:
            if route.method == wanted:
                _check_names(names)
                return route, names
        if not found:
            raise ApiError(HTTPStatus.NOT_FOUND, "no such path (/openapi.json tells them)")
        methods = sorted({route.method for route, _ in found})
        raise ApiError(
            HTTPStatus.METHOD_NOT_ALLOWED,
            f"expected {' or '.join(methods)}",
            fields=[("Allow", ", ".join(methods))],
        )


def _names(route: Route, segments: Sequence[str]) -> dict[str, str] | None:
    """The names in the path; None if it is another one."""
    names: dict[str, str] = {}
    for wanted, given in zip(route.segments, segments, strict=True):
        if wanted.startswith("{"):
            names[wanted[1:-1]] = given
        elif wanted != given:
            return None
    return names


def _check_names(names: Mapping[str, str]) -> None:
    for name, value in names.items():
        if not 0 < len(value) <= MAX_NAME:
            raise invalid(f"expected 1 to {MAX_NAME} characters", name)


#: characters of a name in a path
MAX_NAME = 255


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ApiError(HTTPStatus.BAD_REQUEST, "the path is not UTF-8") from None


def read_query(text: str, kind: type[Struct]) -> Any:
    """The parameters of a query, of that type.  Raises ApiError."""
    try:
        pairs = parse_qsl(
            text, keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS
        )
    except UnicodeDecodeError:
        raise ApiError(HTTPStatus.BAD_REQUEST, "the query is not UTF-8") from None
    except ValueError:
        raise ApiError(HTTPStatus.BAD_REQUEST, "too many parameters") from None
    query = dict(pairs)
    if len(query) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise invalid("given twice", twice)
    try:
        return msgspec.convert(query, kind, strict=False)
    except msgspec.ValidationError as error:
        raise as_invalid(error) from None


def read_body(raw: bytes, kind: type[Struct] | None) -> Any:
    """The JSON object of a body, of that type; nothing stands for an empty one.

    Raises ApiError.
    """
    if kind is None:
        return None
    try:
        return msgspec.json.decode(raw or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise as_invalid(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(HTTPStatus.BAD_REQUEST, f"the body is not JSON: {error}") from None


def as_invalid(error: msgspec.ValidationError) -> ApiError:
    """The problem, with the name of what is wrong, and without its value."""
    text = str(error)
    place = _PLACE.search(text)
    unknown = _FIELD.search(text)
    name = (place[1] if place else "") or (unknown[1] if unknown else "")
    if text.startswith("Invalid enum value"):
        return invalid("is not one of the known values (/openapi.json tells them)", name or None)
    return invalid(_PLACE.sub("", text), name or None)
