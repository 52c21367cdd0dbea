"""The certificate by which an end of TLS shows who it is."""

from __future__ import annotations

import ssl
from pathlib import Path

from gsocks.errors import ConfigError


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


def _check_readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
