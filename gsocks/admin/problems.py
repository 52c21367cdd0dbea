"""Errors of the admin API, as problem details (RFC 9457)."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

import msgspec
from msgspec import UNSET, Struct, UnsetType

from gsocks.http.status import reason_phrase

#: the media type of a problem
PROBLEM = "application/problem+json"


class Problem(Struct):
    """Why a request could not be served."""

    #: the title says all that a type would
    type: str
    title: str
    status: int
    #: one line
    detail: str
    #: which parameter, or key of the body, is wrong
    parameter: str | UnsetType = UNSET
    #: all mistakes of a config, a line each
    mistakes: list[str] | UnsetType = UNSET


class ApiError(Exception):
    """A request that can't be served, as an HTTP status and a line.

    ``parameter``: which one is wrong; ``mistakes``: those of a config; ``fields``: more fields of
    the response.
    """

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        *,
        parameter: str | None = None,
        mistakes: Sequence[str] = (),
        fields: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.parameter = parameter
        self.mistakes = mistakes
        self.fields = [*fields]

    def as_json(self) -> bytes:
        """The problem that the client gets."""
        return msgspec.json.encode(
            Problem(
                "about:blank",
                reason_phrase(self.status),
                self.status.value,
                str(self),
                UNSET if self.parameter is None else self.parameter,
                [*self.mistakes] or UNSET,
            )
        )


def not_found(message: str) -> ApiError:
    """What is asked for does not exist."""
    return ApiError(HTTPStatus.NOT_FOUND, message)


def invalid(message: str, parameter: str | None = None) -> ApiError:
    """A parameter, or a key of the body, that is not what it must be."""
    return ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, message, parameter=parameter)


def conflict(message: str) -> ApiError:
    """What can't be done as things stand."""
    return ApiError(HTTPStatus.CONFLICT, message)
