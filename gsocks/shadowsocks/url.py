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
from urllib.parse import unquote

from gsocks.messages import Mistake

_PLACE = r"(?:\[[^\[\]]*\]|[^:@\[\]/?#\s]+)(?::[0-9]{1,5})?"
_WHOLE = re.compile(
    rf"(?:(?P<user>.*?)@)?(?P<place>{_PLACE})/?(?:\?(?P<query>[^#]*))?(?P<name>#.*)?"
)
_BASE64 = re.compile(r"(?P<text>[A-Za-z0-9+/_-]+={0,2})/?(?P<name>#.*)?")

#: what other programs add, and what it may say for a server as any other
_IGNORED: dict[str, frozenset[str] | None] = {
    "outline": None,
    "group": None,
    "tfo": None,
    "udp": None,
    "uot": frozenset({"", "0", "false"}),
    "type": frozenset({"", "tcp"}),
    "security": frozenset({"", "none"}),
    "encryption": frozenset({"", "none"}),
    "headerType": frozenset({"", "none"}),
    "plugin": frozenset({"", "none"}),
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
    found = _of_base64(rest) or _WHOLE.fullmatch(rest)
    if isinstance(found, SsUrl):
        return found
    if found is None:
        raise Mistake(
            "what stands behind ss:// is neither METHOD:PASSWORD@HOST:PORT nor that in base64"
        )
    method, password = None, None
    if found["user"] is not None:
        method, password = _credentials(found["user"])
    return SsUrl(
        method, password, found["place"], _known(found["query"] or ""), _name(found["name"])
    )


def _credentials(text: str) -> tuple[str, str]:
    method, colon, password = text.partition(":")
    if colon:
        return _decoded(method), _decoded(password)
    plain = _decoded(text)
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
    if not at or not colon or not re.fullmatch(_PLACE, place):
        return None
    return SsUrl(method, password, place, "", _name(whole["name"]))


def _from_base64(text: str) -> str | None:
    bare = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        found = base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        return None
    return found if found.isprintable() else None


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise Mistake("its percent codes are not UTF-8") from None


def _name(fragment: str | None) -> str | None:
    name = unquote((fragment or "#")[1:], errors="replace").strip()
    return name or None


def _known(query: str) -> str:
    """``query`` without what other programs add.  Raises Mistake for what can't be ignored."""
    kept = []
    for pair in filter(None, query.split("&")):
        name, _, value = pair.partition("=")
        if name not in _IGNORED:
            kept.append(pair)
            continue
        harmless = _IGNORED[name]
        if harmless is None or unquote(value) in harmless:
            continue
        if name == "plugin":
            raise Mistake("needs a plugin of Shadowsocks, and none is supported (plugin=)")
        raise Mistake(f"needs what is not supported ({name}=)")
    return "&".join(kept)
