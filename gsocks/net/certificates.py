"""The files of TLS: the certificate by which an end shows who it is, and those that it trusts.

They are read again when they have changed, since certificates are renewed while a program runs.  A
new connection then goes by the new ones; files that can't be used leave the previous ones in force.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path

from gsocks.errors import ConfigError

#: device, inode, size and time of change of each file
_Stamps = tuple[tuple[int, int, int, int], ...]


def identify(context: ssl.SSLContext, cert: Path, key: Path | None) -> None:
    """Give ``context`` the certificate, and its key, which may be in the same file.

    Raises ConfigError, which names a file and never what is in it.
    """
    for path in (cert, key or cert):
        _check_readable(path)

    def no_password() -> str:
        raise ConfigError(f"{key or cert}: is encrypted, and a password has no place")

    try:
        context.load_cert_chain(cert, key, no_password)
    except (ssl.SSLError, OSError) as error:
        if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{key or cert}: is not the key of the certificate") from None
        where = "" if key is None else f" and {key}"
        raise ConfigError(f"{cert}{where}: not a certificate and its key in PEM") from None


def trust(context: ssl.SSLContext, ca: Path) -> None:
    """Have ``context`` trust the certificates in a file.  Raises ConfigError as above."""
    try:
        context.load_verify_locations(cafile=ca)
    except ssl.SSLError:  # an OSError too; its text may quote the file
        raise ConfigError(f"{ca}: has no certificates in PEM") from None
    except OSError as error:
        raise ConfigError(f"{ca}: {error.strerror}") from None


class ContextOfFiles:
    """The context that ``make`` makes of ``files``, and makes again when they have changed.

    Raises what ``make`` raises, at first.
    """

    __slots__ = ("_context", "_files", "_log", "_make", "_stamps")

    def __init__(
        self, files: Iterable[Path], make: Callable[[], ssl.SSLContext], log: logging.Logger
    ) -> None:
        self._files = tuple(files)
        self._make = make
        self._log = log
        self._stamps = _stamps(self._files)
        self._context = make()

    def __call__(self) -> ssl.SSLContext:
        """The context of the files as they are now, or as they last could be used."""
        stamps = _stamps(self._files)
        if stamps != self._stamps:
            self._stamps = stamps
            try:
                self._context = self._make()
            except ConfigError as error:
                self._log.warning("the previous TLS files stay in use: %s", error)
        return self._context


def _check_readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def _stamps(files: Iterable[Path]) -> _Stamps:
    return tuple(_stamp(path) for path in files)


def _stamp(path: Path) -> tuple[int, int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0, 0
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
