"""The command line: the only place that reads the config, forks and handles signals."""

from __future__ import annotations

import argparse
import getpass
import logging
import os
import re
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from gsocks import __version__, config
from gsocks.address import Address
from gsocks.crypto import Key
from gsocks.dial import Resolver
from gsocks.errors import BadAddress, ConfigError
from gsocks.http.url import WebUrl
from gsocks.keyfile import create_key
from gsocks.observe import JsonFormatter, TextFormatter
from gsocks.report import as_json, counted, progress, table
from gsocks.service import Service
from gsocks.survey import Finding, Question, survey
from gsocks.units import parse_duration
from gsocks.users import hash_password

log = logging.getLogger("gsocks")

#: exit status of a mistake in the command line or the config, as argparse has it
MISTAKE = 2

#: exit status of ``gsocks check --to`` where the rules deny it
DENIED = 1

#: exit status of ``gsocks exits`` where no exit works, or with --all not every one does
NONE_WORKS = 1

#: exit status after Ctrl-C, as shells have it
INTERRUPTED = 130

_ABOUT = """\
An encrypted SOCKS5 tunnel with a pool of ready connections, and a proxy with many ways out.

  gsocks -c config.yaml          run what the file describes: a local end, a server, or both
      --live                          and show its exits and connections meanwhile
  gsocks check -c config.yaml    say what is wrong with it, or what it would run
      --to HOST:PORT [--user NAME]    or which rule decides about a destination
  gsocks exits -c config.yaml    ask all exits at once, and say which of them work
      [--url URL | --to HOST:PORT] [--json] [--at-once N] [--timeout 10s] [--all]
  gsocks keygen [FILE]           make the key that both ends share
  gsocks passwd                  make the hash of a password, for local.users
"""

_EXAMPLE = """\
To try it on one machine, with nothing to edit:

  gsocks -c config.example.yaml
  curl --socks5-hostname 127.0.0.1:1080 https://example.com/

SIGTERM stops after the open connections have ended (a second one at once), SIGINT stops at
once, SIGHUP reads keys, users and exits again.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``gsocks``; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except ConfigError as error:
        print(f"gsocks: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # gsocks keygen | head
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gsocks",
        usage="gsocks -c FILE | gsocks {check,exits,keygen,passwd} ...",
        description=_ABOUT,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gsocks {__version__}")
    parser.add_argument("-c", "--config", metavar="FILE", type=Path, help="the config to run")
    parser.add_argument(
        "--live", action="store_true", help="show exits, connections and the log on the terminal"
    )
    parser.set_defaults(run=_run)
    commands = parser.add_subparsers(title="commands", metavar="")

    check = commands.add_parser("check", help="say what is wrong with a config, or what it runs")
    # its own default would overwrite the -c that stands before the word "check"
    check.add_argument(
        "-c", "--config", metavar="FILE", type=Path, default=argparse.SUPPRESS, help="the config"
    )
    check.add_argument(
        "--to", metavar="HOST:PORT", help="say which rule decides about that destination"
    )
    check.add_argument("--user", metavar="NAME", help="who asks: a user of local, a server's key")
    check.set_defaults(run=_check)

    exits = commands.add_parser("exits", help="ask all exits at once, and say which of them work")
    exits.add_argument(
        "-c", "--config", metavar="FILE", type=Path, default=argparse.SUPPRESS, help="the config"
    )
    what = exits.add_mutually_exclusive_group()
    what.add_argument("--url", metavar="URL", help="ask for that page, which may tell an address")
    what.add_argument("--to", metavar="HOST:PORT", help="ask to be connected to that")
    exits.add_argument("--json", action="store_true", help="print JSON instead of a table")
    exits.add_argument("--at-once", metavar="N", default="100", help="so many at a time (100)")
    exits.add_argument("--timeout", metavar="10s", default="10s", help="for each of them (10s)")
    exits.add_argument("--all", action="store_true", help="status 0 only if all of them work")
    exits.set_defaults(run=_exits)

    keygen = commands.add_parser("keygen", help="make the key that both ends share")
    keygen.add_argument(
        "file", metavar="FILE", type=Path, nargs="?", help="keep it there, mode 0600; else print it"
    )
    keygen.set_defaults(run=_keygen)

    passwd = commands.add_parser("passwd", help="make the hash of a password, for local.users")
    passwd.set_defaults(run=_passwd)
    return parser


def _load(options: argparse.Namespace) -> config.Config:
    if options.config is None:
        raise ConfigError("no config given (gsocks -c FILE; gsocks --help shows an example)")
    return config.load(options.config)


def _run(options: argparse.Namespace) -> int:
    settings = _load(options)
    if options.live:
        return _show(options.config, settings)
    return _serve(options.config, settings)


def _serve(path: Path, settings: config.Config, watched_in: Path | None = None) -> int:
    _log_to_stderr(settings.log)
    _check_descriptors(settings)
    return Service(path, settings, watched_in).run()


def _show(path: Path, settings: config.Config) -> int:
    """Serve in a child, whose state is shown on the terminal."""
    if not sys.stdout.isatty():
        raise ConfigError("--live needs a terminal")
    try:
        from gsocks import live
    except ImportError:
        raise ConfigError("--live needs rich (pip install 'gsocks[cli]')") from None

    def program(folder: Path) -> int:
        try:
            return _serve(path, settings, folder)
        except ConfigError as error:
            print(f"gsocks: {error}", file=sys.stderr)
            return MISTAKE

    return live.show(program)


def _check(options: argparse.Namespace) -> int:
    service = Service(options.config, _load(options))
    if options.to is not None:
        return _judge(service, options.to, options.user)
    if options.user is not None:
        raise ConfigError("--user says who asks for a destination, which --to has to name")
    for line in service.describe():
        print(line)
    print(f"{options.config}: ok")
    return 0


def _judge(service: Service, dest: str, user: str | None) -> int:
    """Which rules decide; 0 if all of them allow it, else DENIED."""
    address = _destination(dest)
    status = 0
    for who, opinion in service.judge(address, user, Resolver()):
        for line in opinion.lines:
            print(f"{who}: {line}")
        if not opinion.allowed:
            status = DENIED
    return status


def _exits(options: argparse.Namespace) -> int:
    """0 if one of the exits works, or with --all if all do, else NONE_WORKS."""
    settings = _load(options)
    asked, at_once, timeout = _question(options), _at_once(options.at_once), _timeout(options)
    _log_to_stderr(config.Log(level="warning"))
    _raise_descriptor_limit()
    found: dict[str, list[Finding]] = {}
    total, interrupted = 0, False
    try:
        for door, ways, wanted in Service(options.config, settings).exits(timeout):
            members = list(ways.roster)
            total += len(members)
            found[door] = []
            with progress(len(members), sys.stderr) as one_more:
                for finding in survey(members, asked or wanted, at_once=at_once, timeout=timeout):
                    found[door].append(finding)
                    one_more()
    except KeyboardInterrupt:  # what is known is worth having
        interrupted = True
    for those in found.values():
        those.sort(key=lambda finding: finding.member.number)
    findings = [finding for those in found.values() for finding in those]
    if options.json:
        print(as_json(found))
    else:
        for door, those in found.items():
            print(f"{door}:")
            for line in table(those):
                print(f"  {line}")
    print(counted(findings, total), file=sys.stderr)
    if interrupted:
        return INTERRUPTED
    working = [finding for finding in findings if finding.trouble is None]
    return 0 if working and (len(working) == total or not options.all) else NONE_WORKS


def _question(options: argparse.Namespace) -> Question | None:
    """What the exits are asked for; None if that is left to the config."""
    if options.to is not None:
        return Question(dest=_destination(options.to))
    if options.url is None:
        return None
    try:
        return Question(urls=(WebUrl.parse(options.url),))
    except ValueError as error:
        raise ConfigError(f"--url: {error}") from None


def _at_once(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not int(text):
        raise ConfigError("--at-once: expected a whole number from 1 to 99999")
    return int(text)


def _timeout(options: argparse.Namespace) -> float:
    try:
        seconds = parse_duration(options.timeout)
    except ValueError as error:
        raise ConfigError(f"--timeout: {error}") from None
    if not seconds:
        raise ConfigError("--timeout: expected more than no time at all")
    return seconds


def _destination(text: str) -> Address:
    try:
        return Address.parse(text)
    except BadAddress as error:
        raise ConfigError(f"--to: {error}") from None


def _keygen(options: argparse.Namespace) -> int:
    if options.file is None:
        print(Key.generate().text())
        return 0
    if options.file.exists():
        raise ConfigError(f"{options.file}: exists already, and may be in use")
    create_key(options.file)
    print(f"{options.file}: a new key; copy it to the other end over a safe channel")
    return 0


def _passwd(_: argparse.Namespace) -> int:
    if sys.stdin.isatty():
        password = _ask("password: ")
        if _ask("once more: ") != password:
            raise ConfigError("the two passwords differ")
    else:
        password = sys.stdin.buffer.readline().removesuffix(b"\n").removesuffix(b"\r")
    if not password:
        raise ConfigError("an empty password keeps nobody out")
    print(hash_password(password))
    return 0


def _ask(prompt: str) -> bytes:
    try:
        return os.fsencode(getpass.getpass(prompt))  # its bytes, whatever text they may be
    except EOFError:
        print(file=sys.stderr)  # the prompt stands on its line
        raise ConfigError("no password was given") from None


def _log_to_stderr(settings: config.Log) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if settings.format == "json" else TextFormatter())
    log.addHandler(handler)
    log.setLevel(settings.level.upper())
    log.propagate = False


def _raise_descriptor_limit() -> int:
    """Up to what the system allows, which is returned."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _check_descriptors(settings: config.Config) -> None:
    """A proxied connection holds two descriptors."""
    hard = _raise_descriptor_limit()
    doors = [door for door in (settings.local, settings.server) if door is not None]
    wanted = 2 * max(door.limits.connections for door in doors)
    if hard != resource.RLIM_INFINITY and wanted > hard:
        log.warning(
            "limits.connections may need %d descriptors, and the system allows %d (ulimit -n)",
            wanted,
            hard,
        )


if __name__ == "__main__":
    sys.exit(main())
