"""Tries another implementation of docs/protocol.md, case by case.

    python -m tests.conformance HOST:PORT [--target HOST:PORT]    tries a server
    python -m tests.conformance --client PORT [--socks HOST:PORT] is a server, and tries a client

Exit status: 0 if no case has failed, 1 if one has, 2 if none could be tried.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import os
import socket
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from tests.conformance.agreements import agreement, silence
from tests.conformance.answers import answers, bind
from tests.conformance.cases import Case
from tests.conformance.clients import ClientTrial, Server, clients
from tests.conformance.datagrams import associations
from tests.conformance.look_ups import look_ups
from tests.conformance.report import Report, outcome, run_at_once
from tests.conformance.streams import streams
from tests.conformance.trial import Place, Target, Trial
from tests.conformance.tunnels import bounds, boxes, frames

#: strangers wait for the end of the silence, so they begin first
SERVER_AREAS = (
    *(silence, agreement, boxes, frames, bounds, streams, answers, bind, associations),
    look_ups,
)

#: cases that are tried at once; more than there are strangers
THREADS = 48


class Unusable(Exception):
    """Why nothing can be tried."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        if options.client is not None:
            return _try_client(options)
        return _try_server(options)
    except Unusable as error:
        print(error, file=sys.stderr)
        return 2


def _try_server(options: argparse.Namespace) -> int:
    every: list[Case[Trial]] = [case for area in SERVER_AREAS for case in area.all]
    cases = _chosen(every, options)
    if options.list:
        return _list(cases)
    if options.server is None:
        raise Unusable("which server? HOST:PORT, or --client PORT for a client")
    key, server = _key(options), _place(options.server)
    echo = None if options.target is None else _place(options.target)
    try:
        target = Target(server, key, echo, options.timeout)
    except OSError as error:
        raise Unusable(f"{options.server}: {error.strerror or error}") from None
    report = Report(len(cases))
    try:
        run_at_once(cases, target.trial, report, THREADS)
    finally:
        target.close()
    return report.end()


def _try_client(options: argparse.Namespace) -> int:
    cases = _chosen(clients.all, options)
    if options.list:
        return _list(cases)
    key = _key(options)
    socks = None if options.socks is None else _place(options.socks)
    text = options.client if ":" in options.client else f"127.0.0.1:{options.client}"
    if socks is not None:
        try:
            socket.create_connection(socks, options.timeout).close()
        except OSError as error:
            raise Unusable(f"{options.socks}: {error.strerror or error}") from None
    try:
        server = Server(_place(text), key, options.timeout)
    except OSError as error:
        raise Unusable(f"{text}: {error.strerror or error}") from None
    by = "by --socks" if socks else "by hand: have it make requests, each case takes one"
    print(f"listening on port {server.port} for the client, which is driven {by}", flush=True)
    report = Report(len(cases))
    try:
        for case in cases:  # one after the other, since each takes the next request
            report.tell(case, outcome(case, ClientTrial(server, socks)))
    finally:
        server.close()
    return report.end()


def _chosen(cases: list[Case[Any]], options: argparse.Namespace) -> list[Case[Any]]:
    if not options.only:
        return cases
    chosen = [
        case
        for case in cases
        if any(pattern in str(case) or fnmatchcase(str(case), pattern) for pattern in options.only)
    ]
    if not chosen:
        raise Unusable(f"no case is called {', '.join(options.only)}")
    return chosen


def _list(cases: list[Case[Any]]) -> int:
    for case in cases:
        print(case)
    return 0


def _key(options: argparse.Namespace) -> bytes:
    """The 32 bytes of the key.  Raises Unusable, which does not repeat them."""
    if options.key is not None:
        text, place = options.key, "--key"
    elif options.key_file is not None:
        place = options.key_file
        try:
            with open(place) as file:
                text = file.read()
        except (OSError, ValueError) as error:
            raise Unusable(f"{place}: {getattr(error, 'strerror', None) or 'no text'}") from None
    else:
        text, place = os.environ.get("GSOCKS_KEY", ""), "GSOCKS_KEY"
        if not text:
            raise Unusable("which key? --key, --key-file, or GSOCKS_KEY in the environment")
    bare = text.strip().rstrip("=").replace("-", "+").replace("_", "/")
    try:
        key = base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Unusable(f"{place}: not base64") from None
    if len(key) != 32:
        raise Unusable(f"{place}: {len(key)} bytes, and a key has 32")
    return key


def _place(text: str) -> Place:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise Unusable(f"{text!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m tests.conformance",
        description="Tries another implementation of docs/protocol.md, case by case.",
    )
    add = made.add_argument
    add("server", nargs="?", metavar="HOST:PORT", help="the server that is tried")
    add("--client", metavar="PORT", help="try a client instead: be its server at [HOST:]PORT")
    add("--socks", metavar="HOST:PORT", help="the client's SOCKS5 listener, by which it is driven")
    add("--target", metavar="HOST:PORT", help="an echo service that the server can reach")
    add("--key", help="in base64; others see it in the list of processes")
    add("--key-file", metavar="FILE", help="a file with the key; else GSOCKS_KEY is asked")
    add("--timeout", type=float, default=15.0, metavar="SECONDS", help="for each case (15)")
    add("--only", action="append", metavar="PATTERN", help="cases whose line has this in it")
    add("--list", action="store_true", help="show the cases, and try none")
    return made


if __name__ == "__main__":
    sys.exit(main())
