"""``gsocks -c FILE [--live]``: run what a config describes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from gsocks import config
from gsocks.cli.process import check_descriptor_limit, log_to_stderr
from gsocks.errors import ConfigError
from gsocks.service.activation import Inherited
from gsocks.service.service import Service
from gsocks.service.supervisor import MISTAKE


def run(path: Path, *, live: bool = False, beside: bool = False) -> int:
    """Serve what the file ``path`` describes until a signal stops it.  Raises ConfigError."""
    return serve(path, config.load(path), live=live, beside=beside)


def serve(
    path: Path,
    settings: config.Config,
    load: Callable[[], config.Config] | None = None,
    *,
    live: bool = False,
    beside: bool = False,
) -> int:
    """Serve ``settings``; ``path``, ``load`` and ``beside`` are as for Service.

    ``live``: in a child process, whose state is shown on the terminal.
    """
    inherited = Inherited.take()  # which is not meant for a child process
    if not live:
        return _serve(path, settings, inherited, load, beside=beside)
    if not sys.stdout.isatty():
        raise ConfigError("--live needs a terminal")
    try:
        from gsocks.cli import live as view
    except ImportError:
        raise ConfigError("--live needs rich (pip install 'gsocks[cli]')") from None

    def serve_in(socket_folder: Path) -> int:
        try:
            return _serve(path, settings, inherited, load, socket_folder, beside=beside)
        except ConfigError as error:
            print(f"gsocks: {error}", file=sys.stderr)
            return MISTAKE

    return view.show(serve_in)


def _serve(
    path: Path,
    settings: config.Config,
    inherited: Inherited,
    load: Callable[[], config.Config] | None,
    socket_folder: Path | None = None,
    *,
    beside: bool,
) -> int:
    log_to_stderr(settings.log)
    check_descriptor_limit(settings)
    return Service(path, settings, socket_folder, inherited, load, beside=beside).run()
