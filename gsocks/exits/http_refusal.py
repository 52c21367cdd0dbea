"""What an HTTP proxy says when it does not connect: whose failure that is, as far as it tells.

A status alone hardly tells: 503 of squid, 500 of tinyproxy, 404 of privoxy and 504 of ncat stand
for every cause.  407 is about the proxy's credentials, as 401 is of tinyproxy; 403 comes from
some proxy's rules; any other 4xx or 5xx is unclear; 1xx and 3xx are no answers of a proxy.  These
words are more precise and take precedence, in this order: a Proxy-Status field (RFC 9209), squid's
X-Squid-Error, and the reason phrases of proxy-chain (docs/exits.md).
"""

from __future__ import annotations

import errno
import re
from http import HTTPStatus
from http.client import responses

import h11

from gsocks.address import Address
from gsocks.errors import (
    ConnectFailed,
    ConnectionRefused,
    ConnectTimeout,
    ExitDoubtful,
    ExitFailed,
    Forbidden,
    HostUnreachable,
    NameNotFound,
    NetworkUnreachable,
    OutOfResources,
    connect_failure,
)

# Errors of RFC 9209 section 2.3 that have a precise cause; all others are unclear.
_PROXY_STATUS: dict[str, type[ConnectFailed]] = {
    "dns_timeout": HostUnreachable,
    "dns_error": NameNotFound,
    "destination_not_found": NameNotFound,
    "destination_ip_prohibited": Forbidden,
    "destination_ip_unroutable": NetworkUnreachable,
    "connection_refused": ConnectionRefused,
    "connection_timeout": ConnectTimeout,
    "http_request_denied": Forbidden,
    "proxy_configuration_error": ExitFailed,
    "proxy_loop_detected": ExitFailed,
}
_PROXY_STATUS_ERROR = re.compile(r";\s*error\s*=\s*([a-z_]+)")

# squid's names of its error pages (errors/err_type.h).  ERR_CANNOT_FORWARD, which it also has for a
# name that does not exist, is not among them: it is unclear.
_SQUID: dict[str, type[ConnectFailed]] = {
    "ERR_ACCESS_DENIED": Forbidden,
    "ERR_CACHE_ACCESS_DENIED": ExitFailed,
    "ERR_DNS_FAIL": NameNotFound,
}
_SQUID_CONNECT_FAIL = "ERR_CONNECT_FAIL"  # with the errno of connect() behind it
_ERRNO_NAMES = {str(number): name for number, name in errno.errorcode.items()}

# proxy-chain has an HTTP proxy of its own behind it, whose status it reports in its reason phrase.
_UPSTREAM = re.compile(r"UPSTREAM([1-9][0-9][0-9])")
_UPSTREAM_STATUS = 590
# It could not reach or log in to that proxy: ENOTFOUND, ECONNREFUSED, credentials.
_UPSTREAM_FAILED = frozenset({593, 594, 597})
# The same with a SOCKS5 proxy, whose reply it names.
_UPSTREAM_SOCKS = re.compile(r"Socks5 proxy rejected connection - ([A-Za-z]+)")
_UPSTREAM_REPLIES: dict[str, type[ConnectFailed]] = {
    "NotAllowed": Forbidden,
    "NetworkUnreachable": NetworkUnreachable,
    "HostUnreachable": HostUnreachable,
    "ConnectionRefused": ConnectionRefused,
    "TTLExpired": ConnectTimeout,
}

_STATUSES: dict[int, type[ConnectFailed]] = {
    401: ExitFailed,
    403: Forbidden,
    407: ExitFailed,
    504: ConnectTimeout,
}


def refusal(answer: h11.Response, dest: Address, *, had_credentials: bool) -> ConnectFailed:
    """The failure that a proxy's answer to a request for ``dest`` stands for."""
    failure = _failure(answer, dest, had_credentials)
    failure.status = answer.status_code
    return failure


def _failure(answer: h11.Response, dest: Address, had_credentials: bool) -> ConnectFailed:
    status = answer.status_code
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        wanted = "other credentials" if had_credentials else "a user and a password"
        return ExitFailed(f"the proxy requires {wanted}")
    said = _precise(answer)
    if said is not None:
        kind, words = said
        return kind(f"{dest}: {words}, reported by the proxy")
    # not the proxy's reason phrase, which may be anything
    return _by_status(status)(f"{dest}: the proxy answers {status} {_phrase(status)}".rstrip())


def own_failure(
    answer: h11.Response, dest: Address, *, had_credentials: bool
) -> ConnectFailed | None:
    """Why the proxy did not serve a request in absolute form; None for an answer of the origin
    server, or one that may be."""
    is_own = answer.status_code == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED or (
        answer.status_code >= HTTPStatus.BAD_REQUEST and _precise(answer) is not None
    )
    return refusal(answer, dest, had_credentials=had_credentials) if is_own else None


def _precise(answer: h11.Response) -> tuple[type[ConnectFailed], str] | None:
    """The failure by precise words, and these; None without any."""
    squid = ""
    cause = ""
    for name, value in answer.headers:
        if name == b"proxy-status" and not cause:
            # the proxy that is nearest to the destination comes first
            found = _PROXY_STATUS_ERROR.search(value.decode("latin-1"))
            cause = found[1] if found else ""
        elif name == b"x-squid-error":
            squid = value.decode("latin-1")
    if cause in _PROXY_STATUS:
        return _PROXY_STATUS[cause], cause.replace("_", " ")
    page, _, number = squid.partition(" ")
    if page == _SQUID_CONNECT_FAIL and number in _ERRNO_NAMES:
        name_of_errno = _ERRNO_NAMES[number]
        kind = type(connect_failure(OSError(getattr(errno, name_of_errno), name_of_errno)))
        # it is squid's machine that has no descriptors left, not this one
        return ExitDoubtful if kind is OutOfResources else kind, name_of_errno
    if page in _SQUID:
        return _SQUID[page], page
    return _of_proxy_chain(answer.status_code, answer.reason.decode("latin-1"))


def _of_proxy_chain(status: int, reason: str) -> tuple[type[ConnectFailed], str] | None:
    if status == _UPSTREAM_STATUS and (upstream := _UPSTREAM.fullmatch(reason)):
        inner = int(upstream[1])
        return _by_status(inner), f"the proxy behind it answers {inner} {_phrase(inner)}".rstrip()
    if status in _UPSTREAM_FAILED:
        return ExitFailed, "the proxy behind it can't be used"
    if found := _UPSTREAM_SOCKS.search(reason):
        return _UPSTREAM_REPLIES.get(found[1], ExitDoubtful), "the proxy behind it refuses"
    return None


def _by_status(status: int) -> type[ConnectFailed]:
    return _STATUSES.get(status, ExitDoubtful if status >= HTTPStatus.BAD_REQUEST else ExitFailed)


def _phrase(status: int) -> str:
    return responses.get(status, "")
