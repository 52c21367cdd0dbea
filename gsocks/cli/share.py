"""``gsocks share``: a server's URL for the other end, and a QR code of it."""

from __future__ import annotations

import io
import logging
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gsocks import config
from gsocks.address import Address
from gsocks.cli.process import log_to_stderr
from gsocks.crypto import Key
from gsocks.errors import BadAddress, ConfigError
from gsocks.exits.spec import SCHEMES, ExitSpec, TransportOptions
from gsocks.files import replace_secret
from gsocks.keyfile import read_key
from gsocks.messages import did_you_mean
from gsocks.net.listen import is_local
from gsocks.service.plan import key_of
from gsocks.transport.options import OVER_TLS

if TYPE_CHECKING:
    import segno

log = logging.getLogger("gsocks")

_IMAGES = (".svg", ".png")


class _Shared(NamedTuple):
    """What is shared: a key, and where and how the server that has it is reached."""

    name: str
    key: Key
    port: int
    host: str | None = None
    transport: TransportOptions | None = None


def share(
    path: Path | None,
    *,
    key_file: Path | None = None,
    key: str | None = None,
    host: str | None = None,
    output: Path | None = None,
    qr: bool = True,
) -> int:
    """Print the URL by which ``gsocks local --exit`` reaches the server of a config.

    ``path``: its config, or ``key_file``: its key.  ``key``: the name of one of its keys.
    ``host``: where clients reach it, with its port if that is another one.  ``output``: a file of
    mode 0600 that gets the URL, or the QR code if it is called ``.svg`` or ``.png``.  ``qr``:
    whether a terminal is shown the code.  Raises ConfigError.
    """
    log_to_stderr(config.Log(level="warning"))
    if path is not None:
        shared = _of_config(path, key)
    elif key_file is not None:
        shared = _Shared("default", read_key(key_file), SCHEMES["gsocks"] or 0)
    else:
        raise ConfigError("whose URL? (expected -c FILE, the server's config, or --key-file FILE)")
    spec = _exit(shared, host)
    if output is not None:
        _write(output, spec.url)
        print(f"{output}: written (mode 0600)", file=sys.stderr)
    else:
        _warn_of_readers()
        print(spec.url)
        if qr and sys.stdout.isatty():
            sys.stdout.write(_drawn(spec.url))
    print(
        f"gsocks: it has the key {shared.name!r}: send it over a safe channel only;"
        " at the other end: gsocks local --exit @FILE",
        file=sys.stderr,
    )
    return 0


def _of_config(path: Path, wanted: str | None) -> _Shared:
    settings = config.load(path)
    server = settings.server
    if server is None:
        raise ConfigError(f"{path}: has no server, whose URL could be shared")
    names = list(server.keys)
    if wanted is None and len(names) > 1:
        raise ConfigError(f"{path}: which key? (--key {' | '.join(names[:10])})")
    name = names[0] if wanted is None else wanted
    if name not in server.keys:
        raise ConfigError(f"{path}: no key is called {name!r}{did_you_mean(name, names)}")
    transport = None
    if server.transport.kind != "tcp":
        transport = TransportOptions(server.transport.kind, server.transport.path)
        if server.transport.kind in OVER_TLS:
            log.warning(
                "the other end checks the certificate of %s by its system's authorities (behind"
                " the URL, &ca=FILE has it trust another one)",
                server.transport.cert,
            )
    listens = [each for each in server.listen if isinstance(each, Address)]
    if not listens:
        raise ConfigError(f"{path}: the server listens at no IP address (--host HOST:PORT)")
    reached = next((each for each in listens if not each.is_unspecified), None)
    try:
        key = key_of(server.keys[name])
    except ConfigError as error:
        raise ConfigError(f"{path}: server.keys.{name}: {error}") from None
    if reached is not None and is_local(reached):
        log.warning("the server listens on loopback only: no other machine reaches it there")
    host = None if reached is None else reached.host
    return _Shared(name, key, (reached or listens[0]).port, host, transport)


def _exit(shared: _Shared, host: str | None) -> ExitSpec:
    port = shared.port
    place = host or shared.host
    if place is None:
        raise ConfigError(
            "where do clients reach the server? (--host HOST or --host HOST:PORT: its name, or its"
            " public address)"
        )
    try:
        address = Address.parse(place) if _has_port(place) else Address.of(place, port)
    except BadAddress as error:
        raise ConfigError(f"--host: {error}") from None
    if not address.port:
        raise ConfigError("--host: needs a port, as the server takes any free one (HOST:PORT)")
    return ExitSpec(
        "gsocks",
        host=address.host,
        port=address.port,
        key=shared.key.text(),
        transport=shared.transport,
    )


def _has_port(place: str) -> bool:
    if place.startswith("["):
        return "]:" in place
    return place.count(":") == 1


def _warn_of_readers() -> None:
    mode = os.fstat(sys.stdout.fileno()).st_mode
    if stat.S_ISREG(mode) and mode & 0o077:
        log.warning(
            "the key is written into a file that others may read (-o FILE makes one of mode 0600)"
        )


def _write(path: Path, url: str) -> None:
    """Raises ConfigError."""
    content = f"{url}\n".encode()
    if path.suffix in _IMAGES:
        image = io.BytesIO()
        _code(url).save(image, kind=path.suffix[1:], scale=4)
        content = image.getvalue()
    try:
        replace_secret(path, content)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or type(error).__name__}") from None


def _drawn(url: str) -> str:
    """The code for a terminal; a line that says how to have it, without segno."""
    try:
        code = _code(url)
    except ConfigError as error:
        return f"({error})\n"
    text = io.StringIO()
    code.terminal(text, compact=True)
    return text.getvalue()


def _code(url: str) -> segno.QRCode:
    try:
        import segno
    except ImportError:
        raise ConfigError("a QR code needs segno (pip install 'gsocks[cli]')") from None
    return segno.make(url, error="l", micro=False)
