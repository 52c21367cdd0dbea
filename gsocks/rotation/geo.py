"""The country of an IP address.

By default it is that of the registry's delegation, from the data that the package iptocc ships
(``pip install 'gsocks[geo]'``): it needs a millisecond to load and less than 1 MiB, and agrees with
geolocation services for some 95% of the addresses.  A file in the MMDB format (GeoLite2, DB-IP,
IPinfo...) is more exact; it is read by the package maxminddb.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gsocks.errors import ConfigError
from gsocks.files import FileState, state_of
from gsocks.rotation.countries import country_of

if TYPE_CHECKING:
    import maxminddb

log = logging.getLogger("gsocks.rotation")

#: what ends an MMDB file's data and begins its description, and the bytes at its end that have it
_MARKER = b"\xab\xcd\xefMaxMind.com"
_MAX_DESCRIPTION = 128 * 1024


class Countries(Protocol):
    """A look-up of countries."""

    def of(self, address: str) -> str | None:
        """The code, in lower case, of the country of an IP address; None: it is not known."""

    def close(self) -> None:
        """Release the data; calls of :meth:`of` may follow, and open it again."""


def open_countries(file: Path | None) -> Countries | None:
    """The look-up in the MMDB file ``file``, or in the data of iptocc if that is None.

    None: that package is not installed.  Raises ConfigError.
    """
    if file is not None:
        return _Database(file)
    try:
        from iptocc import country_code
    except ImportError:
        return None
    return _Delegations(country_code)


class _Delegations:
    """The registries' data, which are a part of the package's code."""

    def __init__(self, country_code: Callable[[str], str | None]) -> None:
        self._country_code = country_code

    def of(self, address: str) -> str | None:
        """See :class:`Countries`."""
        found = self._country_code(address) if _is_global(address) else None
        return country_of(found) if found else None

    def close(self) -> None:
        """Do nothing."""


class _Database:
    """An MMDB file, which is opened again when it has changed.

    It is read piece by piece: mapped into memory, a file that is overwritten would kill the process
    (SIGBUS), and few look-ups are made.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._state: FileState = None
        self._reader: maxminddb.Reader | None = None
        self._trouble: str | None = None
        self._open()

    def of(self, address: str) -> str | None:
        """See :class:`Countries`."""
        if self._reader is None or state_of(self._file) != self._state:
            self._open_again()
        if self._reader is None or not _is_global(address):
            return None
        try:
            return _country_in(self._reader.get(address))
        except (ValueError, LookupError, TypeError, OSError, RuntimeError, struct.error) as error:
            log.error("%s: damaged (%s)", self._file, type(error).__name__)
            return None

    def _open(self) -> None:
        try:
            import maxminddb
        except ImportError:
            raise ConfigError(
                f"{self._file}: needs maxminddb (pip install 'gsocks[geo]')"
            ) from None
        self._state = state_of(self._file)
        try:
            # it would leave a file open that it then can't read
            if not _is_mmdb(self._file):
                raise ValueError
            reader = maxminddb.open_database(str(self._file), maxminddb.MODE_FILE)
        except OSError as error:
            raise ConfigError(f"{self._file}: {error.strerror}") from None
        except (maxminddb.InvalidDatabaseError, ValueError, TypeError, KeyError):
            raise ConfigError(f"{self._file}: not a file in the MMDB format") from None
        self.close()
        self._reader = reader

    def close(self) -> None:
        """See :class:`Countries`."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _open_again(self) -> None:
        try:
            self._open()
        except ConfigError as error:
            if str(error) != self._trouble:
                log.error("%s (keeping the previous one)", error)
            self._trouble = str(error)
        else:
            self._trouble = None


def _is_mmdb(file: Path) -> bool:
    with file.open("rb") as content:
        content.seek(max(0, os.fstat(content.fileno()).st_size - _MAX_DESCRIPTION))
        return _MARKER in content.read(_MAX_DESCRIPTION)


def _is_global(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _country_in(record: object) -> str | None:
    """The country in a record of GeoLite2 and DB-IP, IPinfo or ip-location-db."""
    if not isinstance(record, dict):
        return None
    for name in ("country", "country_code", "registered_country"):
        found = record.get(name)
        if isinstance(found, dict):
            found = found.get("iso_code")
        if isinstance(found, str) and (code := country_of(found)) is not None:
            return code
    return None
