"""The grammar of user names: the user and the exit selector (gsocks/access/username.py).

The first byte of the input selects whether the listener has users; from 2 on it selects one of the
known styles, in which user and password are read, with a NUL between them.
"""

from __future__ import annotations

from gsocks.access.username import read_credentials, read_parameters, split
from gsocks.access.username_style import STYLES
from gsocks.errors import BadParameters
from gsocks.handshake import printable
from gsocks.request import ANY, ExitSelector

_USERS = {"alice", "alice-session", "alice-session-x", "user", "bob-exit-1", "b"}
_PREFIXES = ("", "customer-", "user-")
_KEYS = {
    **dict.fromkeys(("session", "sessid"), "session"),
    **dict.fromkeys(("lifetime", "sesstime", "sessionduration"), "lifetime"),
    **dict.fromkeys(("country", "cc"), "country"),
    "tag": "tag",
    "exit": "exit",
    "strict": "strict",
}
_STYLES = list(STYLES.values())

SEEDS = [
    b"\x00alice",
    b"\x00alice-session-x-country-de",
    b"\x00customer-alice-cc-DE-sessid-abcd1234-sesstime-10",
    b"\x00user-alice-session-x-session-y-tag-mobile-tag-fast",
    b"\x00user-session-123e4567-e89b-12d3-a456-426614174000-lifetime-2h",
    b"\x00bob-exit-1-exit-berlin-1",
    b"\x00alice-sesion-x",
    b"\x00alice-",
    b"\x00mallory-session-x",
    b"\x01session-x-country-de",
    b"\x01anything-at-all-tag-a-b-sessionduration-30",
    b"\x01\xff\n-exit-x",
    b"\x00alice-session-x-strict",
    b"\x02alice__cr.de;sessid.x1;sessttl.60",
    b"\x06alice\x00pw_country-us_session-sgn34f3e_lifetime-10m",
]
WORDS = [f"-{key}-".encode() for key in _KEYS] + [name.encode() for name in sorted(_USERS)]


def check(data: bytes) -> None:
    if data[:1] > b"\x01":
        _check_style(data)
        return
    name = printable(data[1:])
    users = None if data[:1] == b"\x01" else _USERS
    user, text = split(name, users)
    assert (user, text) == model_split(name, users), (user, text, name)
    try:
        selector = read_parameters.__wrapped__(text)  # what was read before is remembered
    except BadParameters as error:
        assert str(error).isprintable(), error
        assert text, name
        return
    _agrees(text, selector)
    assert selector.merge(ANY) == ANY.merge(selector) == selector


def _check_style(data: bytes) -> None:
    raw, _, password = data[1:].partition(b"\0")
    style, name = _STYLES[data[0] % len(_STYLES)], printable(raw)
    found = read_credentials(name, password, _USERS, [style])
    assert found.user in (*_USERS, name), found
    assert password.startswith(found.password), found
    if not style.in_password:
        assert found.password == password, found
    if isinstance(found.selector, BadParameters):
        assert str(found.selector).isprintable(), found


def model_split(name: str, users: set[str] | None) -> tuple[str, str]:
    """The user and the parameters; no user if the listener requires no authentication (None)."""
    if users is None:
        words = name.split("-")
        while words and words[0].lower() not in _KEYS:
            del words[0]
        return "", "-".join(words)
    if len(name) > 255:
        return name, ""
    # the longest prefix that is a user, with the shortest customer- or user- in front of it
    found = [
        (-len(prefix + user), len(prefix), user)
        for user in users
        for prefix in _PREFIXES
        if (name + "-").startswith(prefix + user + "-")
    ]
    if not found:
        return name, ""
    end, _, user = min(found)
    return user, name[1 - end :]


def _agrees(text: str, selector: ExitSelector) -> None:
    """Each attribute of the selector is in the text, and no parameter of the text is lost."""
    pairs: list[tuple[str, str]] = []
    for word in text.split("-") if text else []:
        if word.lower() in _KEYS and (not pairs or pairs[-1][1] or pairs[-1][0] == "strict"):
            pairs.append((_KEYS[word.lower()], ""))
        else:
            key, value = pairs[-1]
            pairs[-1] = (key, f"{value}-{word}" if value else word)
    said = [
        (key, value)
        for key, value in pairs
        if key not in ("lifetime", "strict")
        and not (key == "country" and value.lower() in ("any", "all", "random"))
    ]
    meant = [
        *([("session", selector.session)] if selector.session else []),
        *([("country", selector.country)] if selector.country else []),
        *([("exit", selector.exit)] if selector.exit else []),
    ]
    one_each = [(key, value) for key, value in said if key != "tag"]
    assert sorted(key for key, _ in one_each) == sorted(key for key, _ in meant), (text, selector)
    for key, value in one_each:
        assert (key, value if key == "session" else value.lower()) in meant, (text, selector)
    assert selector.strict == (("strict", "") in pairs), (text, selector)
    tags = {value.lower() for key, value in said if key == "tag"}
    assert selector.tags == tuple(sorted(tags)), (text, selector)
    lifetimes = [value for key, value in pairs if key == "lifetime"]
    assert len(lifetimes) == (selector.lifetime is not None), (text, selector)
    if lifetimes and lifetimes[0].isdigit():
        assert selector.lifetime == 60 * int(lifetimes[0]) > 0, (text, selector)
