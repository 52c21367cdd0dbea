"""``ss://`` URLs as SIP002 has them, and the older form that is base64 as a whole.

    ss://METHOD:PASSWORD@HOST:PORT                percent codes, which the keys of 2022 need
    ss://BASE64(METHOD:PASSWORD)@HOST:PORT/?...#name
    ss://BASE64(METHOD:PASSWORD@HOST:PORT)#name

No message repeats any part of a URL.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import NamedTuple

from gsocks.link import PLACE, Harmless, decoded, name_of, without_harmless
from gsocks.link import split as split_link
from gsocks.messages import Mistake

_BASE64 = re.compile(r"(?P<text>[A-Za-z0-9+/_-]+={0,2})/?(?P<name>#.*)?")

#: what other programs add, and what it may say for a server as any other
_HARMLESS: Harmless = {
    "outline": None,
    "group": None,
    "tfo": None,
    "udp": None,
    "uot": frozenset({"", "0", "false"}),
    "type": frozenset({"", "tcp"}),
    "security": frozenset({"", "none"}),
    "encryption": frozenset({"", "none"}),
    "headerType": frozenset({"", "none"}),
    "prefix": frozenset({""}),
}


class SsUrl(NamedTuple):
    """The parts of a URL, as text."""

    method: str | None
    password: str | None
    #: host and port
    place: str
    query: str
    #: None: it has none
    name: str | None

    def __repr__(self) -> str:
        return f"<SsUrl {self.place}>"


def split(rest: str) -> SsUrl:
    """The parts of what stands behind ``ss://``.  Raises Mistake."""
    found = _of_base64(rest) or split_link(rest)
    if isinstance(found, SsUrl):
        return found
    if found is None:
        raise Mistake(
            "what stands behind ss:// is neither METHOD:PASSWORD@HOST:PORT nor that in base64"
        )
    method, password = None, None
    if found.user is not None:
        method, password = _credentials(found.user)
    return SsUrl(method, password, found.place, _known(found.query), found.name)


def _credentials(text: str) -> tuple[str, str]:
    method, colon, password = text.partition(":")
    if colon:
        return decoded(method), decoded(password)
    plain = decoded(text)
    found = plain if ":" in plain else _from_base64(plain)
    if found is None or ":" not in found:
        raise Mistake("what stands before the @ is neither METHOD:PASSWORD nor that in base64")
    method, _, password = found.partition(":")
    return method, password


def _of_base64(rest: str) -> SsUrl | None:
    """A URL that is base64 as a whole; None if it isn't."""
    whole = _BASE64.fullmatch(rest)
    text = None if whole is None else _from_base64(whole["text"])
    if whole is None or text is None:
        return None
    secret, at, place = text.rpartition("@")
    method, colon, password = secret.partition(":")
    if not at or not colon or not re.fullmatch(PLACE, place):
        return None
    return SsUrl(method, password, place, "", name_of(whole["name"]))


def _from_base64(text: str) -> str | None:
    bare = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        found = base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        return None
    return found if found.isprintable() else None


def _known(query: str) -> str:
    """``query`` without what other programs add.  Raises Mistake for what can't be ignored."""
    kept = []
    for pair in filter(None, without_harmless(query, _HARMLESS).split("&")):
        name, _, value = pair.partition("=")
        if name != "plugin":
            kept.append(pair)
        elif value not in ("", "none"):
            raise Mistake("needs a plugin of Shadowsocks, and none is supported (plugin=)")
    return "&".join(kept)
