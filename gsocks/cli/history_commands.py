"""The arguments of the commands that read the history and the request log."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gsocks.cli.commands import add_config, duration

if TYPE_CHECKING:
    from gsocks.cli.past import Past

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

#: what `gsocks top` and `gsocks report` tell apart
TOP_BY = ("exit", "user", "outcome", "dest", "client", "session")
REPORT_BY = ("provider", "exit", "country", "tag")

_FILTERS = {
    "exit": "served by that exit, or tried there; ! before a value: not",
    "outcome": "with that outcome, such as '!ok'",
    "user": "of that user",
    "session": "of that session",
    "dest": "for that host; .example.com is all of it",
    "client": "of that address",
    "inbound": "of that listener's name in the log",
    "status": "with that HTTP status",
    "text": "with that text in destination, exit, user, session or reason",
}


def add_commands(commands: Commands) -> None:
    """Add them to ``commands``."""
    parser = commands.add_parser("requests", help="search the request log")
    _add_place(parser)
    _add_since(parser, "1h")
    for name, text in _FILTERS.items():
        parser.add_argument(f"--{name}", metavar="VALUE", default="", help=text)
    parser.add_argument("--limit", metavar="N", default="100", help="the latest so many (100)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="an object of JSON a line")
    how.add_argument("--csv", action="store_true", help="CSV, with a line of headings")
    parser.add_argument("--follow", action="store_true", help="go on with those that come")
    parser.set_defaults(run=_requests)

    parser = commands.add_parser("top", help="show which exits, users, hosts have most requests")
    _add_place(parser)
    _add_since(parser, "10m")
    parser.add_argument("--by", choices=TOP_BY, default="exit", help="what is told apart (exit)")
    parser.add_argument("--limit", metavar="N", default="20", help="so many lines (20)")
    parser.add_argument("--json", action="store_true", help="a list of objects, once")
    parser.add_argument("--once", action="store_true", help="do not go on showing it")
    parser.set_defaults(run=_top)

    parser = commands.add_parser("explain", help="tell one request's story")
    _add_place(parser)
    parser.add_argument("id", metavar="ID", help="as in the access log, or its number with #")
    parser.add_argument("--json", action="store_true", help="a list of objects")
    parser.set_defaults(run=_explain)

    parser = commands.add_parser(
        "report", help="tell what each provider's exits cost, carried and failed"
    )
    _add_place(parser)
    _add_since(parser, "7d")
    parser.add_argument(
        "--by", choices=REPORT_BY, default="provider", help="what is told apart (provider)"
    )
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a page with charts too")
    parser.add_argument("--json", action="store_true", help="a list of objects")
    parser.set_defaults(run=_report)


def _add_place(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "--state", metavar="FILE", type=Path, help="the state file, instead of a config that has it"
    )


def _add_since(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--since", metavar=default, default=default, help=f"for so long back ({default})"
    )


def _past(options: argparse.Namespace) -> Past:
    from gsocks.cli.past import Past

    return Past.of(options.state, options.config)


def _number(text: str) -> int:
    from gsocks.errors import ConfigError

    if not (text.isascii() and text.isdigit() and 1 <= len(text) <= 9 and int(text)):
        raise ConfigError("--limit: expected a whole number from 1")
    return int(text)


def _requests(options: argparse.Namespace) -> int:
    from gsocks.cli.requests import show_requests

    return show_requests(
        _past(options),
        {name: getattr(options, name) for name in _FILTERS},
        since=duration(options.since, "--since"),
        limit=_number(options.limit),
        how="json" if options.json else "csv" if options.csv else "text",
        follow=options.follow,
    )


def _top(options: argparse.Namespace) -> int:
    from gsocks.cli.top import show_top

    return show_top(
        _past(options),
        options.by,
        since=duration(options.since, "--since"),
        limit=_number(options.limit),
        json=options.json,
        once=options.once,
    )


def _explain(options: argparse.Namespace) -> int:
    from gsocks.cli.requests import explain

    return explain(_past(options), options.id, json=options.json)


def _report(options: argparse.Namespace) -> int:
    from gsocks.cli.history_page import page
    from gsocks.cli.history_report import show_report

    return show_report(
        _past(options),
        options.by,
        since=duration(options.since, "--since"),
        html=options.html,
        page=page,
        json=options.json,
    )
