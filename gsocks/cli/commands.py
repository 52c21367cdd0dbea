"""The arguments of the commands that need no config file, and of those that help with one."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsocks import config

if TYPE_CHECKING:
    from gsocks.cli.one_line import OneLine

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

#: keys of a section that have an option of another name too
_OWN = {"exits", "keys", "exit_sources"}


def add_commands(commands: Commands, top: argparse.ArgumentParser) -> None:
    """Add them to ``commands``, those of the parser ``top``."""
    _add_local(commands)
    _add_server(commands)
    _add_rotate(commands)
    _add_share(commands)
    _add_doctor(commands)
    _add_ctl(commands)
    _add_health(commands)
    _add_init(commands)
    _add_completion(commands, top)
    _add_help(commands, top)


def _add_local(commands: Commands) -> None:
    parser = _section(commands, "local", "run a local end without a config", config.Local)
    _add_exits(parser)
    parser.add_argument(
        "--key-file", metavar="FILE", action="append", default=[], help="the key of a gsocks exit"
    )
    parser.set_defaults(run=lambda options: _run("local", options, key_files=options.key_file))


def _add_server(commands: Commands) -> None:
    parser = _section(commands, "server", "run a server without a config", config.Server)
    parser.add_argument(
        "--key-file",
        metavar="[NAME=]FILE",
        action="append",
        default=[],
        help="a key of clients, made if missing; the variable GSOCKS_KEY may have it instead",
    )
    _add_exits(parser)
    parser.set_defaults(run=lambda options: _run("server", options, key_files=options.key_file))


def _add_rotate(commands: Commands) -> None:
    parser = _section(commands, "rotate", "run a rotating proxy without a config", config.Local)
    parser.add_argument("lists", metavar="LIST", nargs="+", help="a file or URL of exits")
    parser.add_argument("--scheme", metavar="KIND", help="the kind of entries that name none")
    _add_exits(parser)
    parser.set_defaults(
        run=lambda options: _run("local", options, lists=options.lists, scheme=options.scheme)
    )


class _KeyOption(argparse.Action):
    """Notes a key of the section and its value, in their order."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        del parser, option_string
        namespace.keys = [*namespace.keys, (self.dest, str(values))]


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Options of commands that stand for a config."""
    parser.add_argument(
        "--set",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        dest="settings",
        help="any key, from the section or from the top: timeouts.idle=5m, log.level=debug",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the config that this means, as YAML"
    )


def _section(
    commands: Commands, name: str, text: str, section: type[config.Section]
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, allow_abbrev=False)
    add_settings(parser)
    parser.add_argument(
        "--live", action="store_true", help="show exits, connections and the log on the terminal"
    )
    keys = parser.add_argument_group(
        "keys of the section",
        "as in a config (gsocks help KEY); [a, b] is a list, {a: b} a mapping, and an option that"
        " is repeated a list",
    )
    for key in section.__struct_fields__:
        keys.add_argument(
            f"--{key.replace('_', '-')}",
            metavar="VALUE",
            action=_KeyOption,
            dest=key,
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS if key in _OWN else None,
        )
    parser.set_defaults(keys=[])
    return parser


def _add_exits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--exit",
        metavar="URL",
        action="append",
        default=[],
        help="an exit, or @FILE; what stands here is seen by others (gsocks help secrets)",
    )
    parser.add_argument(
        "--exit-file",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="a file of exits, one URL a line; or the variable GSOCKS_EXIT has one",
    )


def _run(section: str, options: argparse.Namespace, **more: Any) -> int:
    from gsocks.cli.one_line import run_one_line

    return run_one_line(
        _one_line(section, options, **more), print_config=options.print_config, live=options.live
    )


def _one_line(section: str, options: argparse.Namespace, **more: Any) -> OneLine:
    from gsocks.cli.one_line import OneLine

    return OneLine(
        section=section,
        keys=options.keys,
        settings=options.settings,
        exits=options.exit,
        exit_files=options.exit_file,
        **more,
    )


# --- what helps with a config -------------------------------------------------------------------


def _add_share(commands: Commands) -> None:
    parser = commands.add_parser("share", help="print a server's URL and a QR code")
    add_config(parser)
    parser.add_argument("--key-file", metavar="FILE", type=Path, help="its key, without a config")
    parser.add_argument("--key", metavar="NAME", help="which of its keys")
    parser.add_argument("--host", metavar="HOST[:PORT]", help="where clients reach it")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help="write the URL to that file (mode 0600), or its code, if it is called .svg or .png",
    )
    parser.add_argument("--no-qr", action="store_true", help="show no code")
    parser.set_defaults(run=_share)


def _share(options: argparse.Namespace) -> int:
    from gsocks.cli.share import share

    return share(
        options.config,
        key_file=options.key_file,
        key=options.key,
        host=options.host,
        output=options.output,
        qr=not options.no_qr,
    )


def _add_doctor(commands: Commands) -> None:
    parser = commands.add_parser(
        "doctor", help="say what is wrong with this machine, the clocks, names, exits and keys"
    )
    add_config(parser)
    _add_exits(parser)
    parser.add_argument(
        "--key-file", metavar="FILE", action="append", default=[], help="the key of a gsocks exit"
    )
    parser.add_argument("--timeout", metavar="5s", default="5s", help="time for each exit (5s)")
    parser.set_defaults(run=_doctor, keys=[], settings=[])


def _doctor(options: argparse.Namespace) -> int:
    from gsocks.cli.doctor import doctor
    from gsocks.cli.one_line import loaded

    settings = None
    if options.config is not None:
        settings = config.load(options.config)
    elif options.exit or options.exit_file:
        settings = loaded(_one_line("local", options, key_files=options.key_file))
    return doctor(options.config, settings, timeout=duration(options.timeout, "--timeout"))


def _add_health(commands: Commands) -> None:
    parser = commands.add_parser("health", help="status 0 if all listeners accept connections")
    add_config(parser)
    parser.set_defaults(run=_health)


def _health(options: argparse.Namespace) -> int:
    from gsocks.cli.health import health
    from gsocks.errors import ConfigError

    if options.config is None:
        raise ConfigError("no config given (gsocks health -c FILE)")
    return health(options.config)


def _add_ctl(commands: Commands) -> None:
    from gsocks.cli.completion import NAMES
    from gsocks.cli.ctl import ACTIONS

    parser = commands.add_parser("ctl", help="ask and steer a running gsocks by its admin")
    add_config(parser)
    parser.add_argument("action", choices=ACTIONS)
    names: Any = parser.add_argument(
        "names", metavar="NAME", nargs="*", help="exits, or sessions (rotate)"
    )
    names.complete = NAMES
    parser.add_argument("--admin", metavar="URL", help="http://HOST:PORT or unix:PATH")
    parser.add_argument("--token-file", metavar="FILE", type=Path, help="its token")
    parser.add_argument("--json", action="store_true", help="print JSON, an object a line")
    parser.add_argument("--for", metavar="10m", dest="seconds", help="ban: for how long (10m)")
    parser.add_argument("--domain", metavar="NAME", help="ban, unban: for that domain alone")
    parser.add_argument(
        "--section",
        choices=("local", "server", "forwards"),
        help="exits, and commands for them: whose (local)",
    )
    user: Any = parser.add_argument("--user", metavar="NAME", help="sessions, rotate: of that user")
    parser.add_argument("--url", metavar="URL", help="put: the exit")
    parser.add_argument("--state", metavar="STATE", help="exits: those in that state")
    parser.add_argument("--country", metavar="CC", help="exits: those of that country")
    tag: Any = parser.add_argument("--tag", metavar="TAG", help="exits: those with that tag")
    user.complete = tag.complete = NAMES
    parser.set_defaults(run=_ctl)


#: the options of each action of ``ctl``
_OF_ACTION = {
    "exits": ("section", "state", "country", "tag"),
    "sessions": ("user",),
    "ban": ("section", "seconds", "domain"),
    "unban": ("section", "domain"),
    "drain": ("section",),
    "undrain": ("section",),
    "check": ("section",),
    "put": ("section", "url"),
    "delete": ("section",),
    "rotate": ("user",),
}


def _ctl(options: argparse.Namespace) -> int:
    from gsocks.cli.ctl import OF_NAMES, Ctl, ctl
    from gsocks.errors import ConfigError

    known = _OF_ACTION.get(options.action, ())
    given = {}
    for name in ("section", "seconds", "domain", "user", "url", "state", "country", "tag"):
        value = getattr(options, name)
        if value is not None and name not in known:
            option = "for" if name == "seconds" else name
            raise ConfigError(f"--{option} is not for ctl {options.action}")
        if value is not None:
            given[name] = value
    needs_name = options.action in OF_NAMES
    if needs_name != bool(options.names):
        what = "needs a NAME" if needs_name else "takes no NAME"
        raise ConfigError(f"ctl {options.action} {what}")
    if options.action == "put" and "url" not in given:
        raise ConfigError("ctl put needs --url URL")
    return ctl(
        Ctl(
            action=options.action,
            names=options.names,
            config=options.config,
            admin=options.admin,
            token_file=options.token_file,
            as_json=options.json,
            given=given,
        )
    )


def _add_init(commands: Commands) -> None:
    parser = commands.add_parser("init", help="write a commented config to begin with")
    parser.add_argument(
        "kind",
        nargs="?",
        default="example",
        choices=("local", "server", "gateway", "example"),
        help="example, the default, is both ends on one machine",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help="the file, which must be new; - prints it",
    )
    parser.set_defaults(run=_init)


def _init(options: argparse.Namespace) -> int:
    from gsocks.cli.init import init

    return init(options.kind, options.output)


def _add_completion(commands: Commands, top: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("completion", help="print the completions for a shell")
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    # by which the scripts ask, with what is typed so far
    parser.add_argument("--names", action=_NamesOption, top=top, help=argparse.SUPPRESS)
    parser.set_defaults(run=lambda options: _completion(options.shell, top))


class _NamesOption(argparse.Action):
    """Prints names and ends the program, as ``--help`` does."""

    def __init__(self, *arguments: Any, top: argparse.ArgumentParser, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._top = top

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        from gsocks.cli.ctl import OF_NAMES
        from gsocks.cli.names import names_for

        del namespace, option_string
        for name in names_for(str(values), self._top.parse_known_args, OF_NAMES):
            print(name)
        parser.exit()


def _completion(shell: str, top: argparse.ArgumentParser) -> int:
    from gsocks.cli.completion import completion

    print(completion(top, shell), end="")
    return 0


def _add_help(commands: Commands, top: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("help", help="explain a command, a key of the config or a subject")
    parser.add_argument("topic", nargs="?", metavar="TOPIC")
    parser.set_defaults(run=lambda options: _help(options.topic, commands, top))


def _help(topic: str | None, commands: Commands, top: argparse.ArgumentParser) -> int:
    from gsocks.cli.help import show_help

    usages: dict[str, Callable[[], str]] = {
        name: parser.format_help for name, parser in commands.choices.items()
    }
    return show_help(topic, {"": top.format_help, **usages})


# --- what commands have in common ---------------------------------------------------------------


def add_config(command: argparse.ArgumentParser) -> None:
    """Add the option of a config file."""
    # a default would overwrite the -c that stands before the command
    command.add_argument(
        "-c", "--config", metavar="FILE", type=Path, default=argparse.SUPPRESS, help="the config"
    )


def duration(text: str, option: str) -> float:
    """Seconds, more than 0.  Raises ConfigError."""
    from gsocks.errors import ConfigError
    from gsocks.units import parse_duration

    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from None
    if not seconds:
        raise ConfigError(f"{option}: expected a duration above zero")
    return seconds
