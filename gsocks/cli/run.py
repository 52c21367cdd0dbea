"""``gsocks -c FILE [--live]``: run what a config describes."""

from __future__ import annotations

import sys
from pathlib import Path

from gsocks import config
from gsocks.cli.process import check_descriptor_limit, log_to_stderr
from gsocks.errors import ConfigError
from gsocks.service.activation import Inherited
from gsocks.service.service import Service
from gsocks.service.supervisor import MISTAKE


def run(path: Path) -> int:
    """Serve until a signal stops it."""
    return _serve(path, config.load(path), Inherited.take())


def run_live(path: Path) -> int:
    """Serve in a child process, whose state is shown on the terminal."""
    settings = config.load(path)
    inherited = Inherited.take()  # which is not meant for a child process
    if not sys.stdout.isatty():
        raise ConfigError("--live needs a terminal")
    try:
        from gsocks.cli import live
    except ImportError:
        raise ConfigError("--live needs rich (pip install 'gsocks[cli]')") from None

    def serve(socket_folder: Path) -> int:
        try:
            return _serve(path, settings, inherited, socket_folder)
        except ConfigError as error:
            print(f"gsocks: {error}", file=sys.stderr)
            return MISTAKE

    return live.show(serve)


def _serve(
    path: Path,
    settings: config.Config,
    inherited: Inherited,
    socket_folder: Path | None = None,
) -> int:
    log_to_stderr(settings.log)
    check_descriptor_limit(settings)
    return Service(path, settings, socket_folder, inherited).run()
