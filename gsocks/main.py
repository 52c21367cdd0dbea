"""The command line: arguments, dispatch to gsocks/cli, and the exit status of errors."""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gsocks import __version__
from gsocks.address import Address
from gsocks.cli import history_commands
from gsocks.cli.check import check, check_destination
from gsocks.cli.commands import add_commands, add_config, add_settings, duration
from gsocks.cli.exits import probe_exits
from gsocks.cli.forward import forward
from gsocks.cli.import_ import import_list
from gsocks.cli.keygen import keygen
from gsocks.cli.parser import COMMAND, Parser
from gsocks.cli.passwd import passwd
from gsocks.cli.process import INTERRUPTED, plain_warnings
from gsocks.cli.redirect import redirect
from gsocks.cli.report import SORTS
from gsocks.cli.run import run
from gsocks.errors import BadAddress, ConfigError
from gsocks.http.url import WebUrl
from gsocks.rotation.probe import ProbeTarget
from gsocks.service.supervisor import MISTAKE

_ABOUT = """\
An encrypted SOCKS5 tunnel with a pool of ready connections, and a rotating proxy.

  gsocks -c config.yaml          run what the file describes: a local end, a server, or both
      --beside                        while another gsocks is still at its ports
      --live                          and show its exits and connections on the terminal
  gsocks check -c config.yaml    report a mistake in it, or what it would run
      --to HOST:PORT [--user NAME]    or which rule decides about a destination
  gsocks exits -c config.yaml    probe all exits at once, and report which of them work
      [--url URL | --to HOST:PORT] [--working] [--sort speed] [-o FILE] [--json] ...
  gsocks import FILE             convert a list of exits to one URL a line, report what is skipped
      [-o FILE] [--scheme socks5] [--with-credentials]
  gsocks forward PORT:HOST:PORT  forward a port through an exit, as ssh -L does, or several
      --exit URL | --exit-file FILE | -c config.yaml  [--udp] [--allow-remote]
  gsocks redirect PORT --exit URL  a transparent proxy: what the kernel redirects, see docs
  gsocks local --exit URL        a local end without a config; each key is an option, or
      --set timeouts.idle=5m          --print-config shows the config that it means
  gsocks server --key-file FILE  a server, gsocks rotate LIST a rotating proxy, the same way
  gsocks share -c server.yaml    print the URL for the other end, and a QR code
  gsocks doctor [-c FILE]        say what is wrong: descriptors, clocks, names, exits, keys
  gsocks health -c FILE          status 0 if all listeners accept connections
  gsocks ctl exits|ban|drain|rotate|...  ask and steer a running gsocks by its admin, see --help
  gsocks init [local|server|gateway|example]  write a commented config to begin with
  gsocks help [TOPIC]            explain a command, a key of the config or a subject
  gsocks completion SHELL        print the completions for bash, zsh or fish
  gsocks requests -c FILE        search the request log: --since 1h --outcome '!ok' ...
  gsocks top -c FILE             show which exits, users, hosts have most requests
  gsocks explain ID -c FILE      tell one request's story: candidates, choice, tries
  gsocks report -c FILE          what each provider's exits cost, carried and failed [--html FILE]
  gsocks keygen [FILE]           make the key that both ends share
  gsocks passwd [--file FILE NAME]  hash a password, for local.users or a users file
"""

_EXAMPLE = """\
To try it on one machine, with nothing to edit:

  gsocks init && gsocks -c config.yaml
  curl --socks5-hostname 127.0.0.1:1080 https://example.com/

Signals: SIGTERM drains open connections, then exits (a second one closes them), SIGINT closes them
and exits, SIGHUP reads the config again.
"""

_OF_COMMAND = re.compile(r"gsocks( [a-z]+)?: ")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``gsocks``; returns the exit status."""
    _have_output()
    try:
        with plain_warnings():
            options = make_parser().parse_all(arguments)
            status = int(options.run(options))
            sys.stdout.flush()
            return status
    except ConfigError as error:
        text = str(error)
        # what is said of a command has its name already
        print(text if _OF_COMMAND.match(text) else f"gsocks: {text}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # gsocks keygen | head
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"gsocks: the output can't be written: {error.strerror}", file=sys.stderr)
        _forget_output()
        return MISTAKE


def _have_output() -> None:
    """Python has None for a stream that the caller has closed (``gsocks ... >&-``)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def _forget_output() -> None:
    """Keep the interpreter from writing, at its end, what could not be written."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def make_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="gsocks",
        usage="gsocks -c FILE | gsocks COMMAND ...",
        description=_ABOUT,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gsocks {__version__}")
    parser.add_argument("-c", "--config", metavar="FILE", type=Path, help="the config to run")
    parser.add_argument(
        "--live", action="store_true", help="show exits, connections and the log on the terminal"
    )
    parser.add_argument(
        "--beside",
        action="store_true",
        help="start beside another gsocks at the same ports, as for an upgrade",
    )
    parser.set_defaults(run=_run)  # without a command
    commands: argparse._SubParsersAction[Any] = parser.add_subparsers(
        title="commands", metavar=COMMAND, prog="gsocks", dest="command"
    )

    checked = commands.add_parser("check", help="report a mistake in a config, or what it runs")
    add_config(checked)
    checked.add_argument(
        "--to", metavar="HOST:PORT", help="report which rule decides about that destination"
    )
    checked.add_argument(
        "--user", metavar="NAME", help="the user of that request: one of local, or a server's key"
    )
    checked.set_defaults(run=_check)

    probed = commands.add_parser("exits", help="probe all exits at once, report which of them work")
    add_config(probed)
    what = probed.add_mutually_exclusive_group()
    what.add_argument("--url", metavar="URL", help="fetch that page, which may report an address")
    what.add_argument("--to", metavar="HOST:PORT", help="connect to that destination")
    probed.add_argument("--json", action="store_true", help="print JSON instead of a table")
    probed.add_argument(
        "--at-once", metavar="N", default="100", help="exits that are probed at a time (100)"
    )
    probed.add_argument(
        "--timeout", metavar="10s", default="10s", help="time limit for each exit (10s)"
    )
    probed.add_argument("--all", action="store_true", help="status 0 only if all exits work")
    probed.add_argument(
        "--working", action="store_true", help="list only those that work, and count the others"
    )
    probed.add_argument(
        "--sort", metavar="BY", choices=tuple(SORTS), default="order", help=" | ".join(SORTS)
    )
    probed.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help="write those that work to that file (mode 0600), with passwords and keys",
    )
    probed.set_defaults(run=_probe_exits)

    imported = commands.add_parser("import", help="convert a list of exits to one URL a line")
    imported.add_argument("file", metavar="FILE", type=Path, help="the list; - is standard input")
    imported.add_argument(
        "--scheme", metavar="KIND", default="http", help="the kind of entries that name none (http)"
    )
    imported.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help="write them to that file (mode 0600), with passwords and keys",
    )
    imported.add_argument(
        "--with-credentials", action="store_true", help="print passwords and keys, not ***"
    )
    imported.set_defaults(run=_import_list)

    forwarding = commands.add_parser(
        "forward", help="forward ports through an exit, as ssh -L does"
    )
    add_config(forwarding)
    forwarding.add_argument(
        "forwards",
        metavar="[ADDRESS:]PORT:HOST:PORT",
        nargs="+",
        help="where to listen, on 127.0.0.1 by default, and the destination; ports may be ranges",
    )
    _add_exits(forwarding)
    forwarding.add_argument("--udp", action="store_true", help="forward datagrams")
    forwarding.set_defaults(run=_forward)

    redirecting = commands.add_parser(
        "redirect", help="carry connections that the kernel redirects: a transparent proxy"
    )
    add_config(redirecting)
    redirecting.add_argument(
        "listen",
        metavar="[ADDRESS:]PORT",
        nargs="+",
        help="where redirected connections come, on 127.0.0.1 by default",
    )
    _add_exits(redirecting)
    redirecting.set_defaults(run=_redirect)

    key = commands.add_parser("keygen", help="make the key that both ends share")
    key.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        nargs="?",
        help="write it to that file (mode 0600), not to the output",
    )
    key.set_defaults(run=lambda options: keygen(options.file))

    password = commands.add_parser("passwd", help="hash a password, for local.users")
    password.add_argument("--file", metavar="FILE", type=Path, help="change that users file")
    password.add_argument("user", metavar="NAME", nargs="?", help="the user whose line it is")
    password.add_argument("--delete", action="store_true", help="remove that line")
    password.set_defaults(
        run=lambda options: passwd(options.file, options.user, delete=options.delete)
    )
    add_commands(commands, parser)
    history_commands.add_commands(commands)
    return parser


def _add_exits(parser: argparse.ArgumentParser) -> None:
    """What a command without users has for its exits."""
    parser.add_argument(
        "--exit",
        metavar="URL",
        action="append",
        default=[],
        help="an exit, or @FILE; other users of this machine can see what stands here",
    )
    parser.add_argument(
        "--exit-file",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="a file of exits, one URL a line; or the variable GSOCKS_EXIT has one",
    )
    parser.add_argument(
        "--allow-remote", action="store_true", help="listen where other machines can connect"
    )
    add_settings(parser)


def _run(options: argparse.Namespace) -> int:
    return run(_config(options), live=options.live, beside=options.beside)


def _check(options: argparse.Namespace) -> int:
    if options.to is not None:
        return check_destination(_config(options), _destination(options.to), options.user)
    if options.user is not None:
        raise ConfigError("--user needs --to HOST:PORT, the destination of its request")
    return check(_config(options))


def _probe_exits(options: argparse.Namespace) -> int:
    return probe_exits(
        _config(options),
        _target(options),
        at_once=_at_once(options.at_once),
        timeout=duration(options.timeout, "--timeout"),
        json=options.json,
        need_all=options.all,
        only_working=options.working,
        sort=options.sort,
        output=options.output,
    )


def _import_list(options: argparse.Namespace) -> int:
    return import_list(
        options.file,
        options.scheme,
        with_credentials=options.with_credentials,
        output=options.output,
    )


def _forward(options: argparse.Namespace) -> int:
    return forward(
        options.forwards,
        udp=options.udp,
        exits=options.exit,
        exit_files=options.exit_file,
        path=options.config,
        allow_remote=options.allow_remote,
        settings=options.settings,
        print_config=options.print_config,
    )


def _redirect(options: argparse.Namespace) -> int:
    return redirect(
        options.listen,
        exits=options.exit,
        exit_files=options.exit_file,
        path=options.config,
        allow_remote=options.allow_remote,
        settings=options.settings,
        print_config=options.print_config,
    )


# --- the values of options --------------------------------------------------------------------


def _config(options: argparse.Namespace) -> Path:
    if options.config is None:
        raise ConfigError("no config given (gsocks -c FILE; gsocks --help shows an example)")
    path: Path = options.config
    return path


def _target(options: argparse.Namespace) -> ProbeTarget | None:
    """What the exits are probed with; None: the checks of the config."""
    if options.to is not None:
        return ProbeTarget(dest=_destination(options.to))
    if options.url is None:
        return None
    try:
        return ProbeTarget(urls=(WebUrl.parse(options.url),))
    except ValueError as error:
        raise ConfigError(f"--url: {error}") from None


def _at_once(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not int(text):
        raise ConfigError("--at-once: expected a whole number from 1 to 99999")
    return int(text)


def _destination(text: str) -> Address:
    try:
        return Address.parse(text)
    except BadAddress as error:
        raise ConfigError(f"--to: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
