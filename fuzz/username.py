"""The grammar of user names: who it is, and which exit is wished for (gsocks/rotation/username.py).

The first byte of the input says whether the door has users.
"""

from __future__ import annotations

from gsocks.errors import BadParameters
from gsocks.handshake import printable
from gsocks.rotation.username import read_parameters, split
from gsocks.wish import ANY, Wish

_USERS = {"alice", "alice-session", "alice-session-x", "user", "bob-exit-1", "b"}
_PREFIXES = ("", "customer-", "user-")
_KEYS = {
    **dict.fromkeys(("session", "sessid"), "session"),
    **dict.fromkeys(("lifetime", "sesstime", "sessionduration"), "lifetime"),
    **dict.fromkeys(("country", "cc"), "country"),
    "tag": "tag",
    "exit": "exit",
}

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
]
WORDS = [f"-{key}-".encode() for key in _KEYS] + [name.encode() for name in sorted(_USERS)]


def check(data: bytes) -> None:
    name = printable(data[1:])
    users = None if data[:1] == b"\x01" else _USERS
    user, text = split(name, users)
    assert (user, text) == model_split(name, users), (user, text, name)
    try:
        wish = read_parameters(text)
    except BadParameters as error:
        assert str(error).isprintable(), error
        assert text, name
        return
    _agrees(text, wish)
    assert wish.over(ANY) == ANY.over(wish) == wish


def model_split(name: str, users: set[str] | None) -> tuple[str, str]:
    """Who it is, and the parameters; at an open door (None) nobody."""
    if users is None:
        words = name.split("-")
        while words and words[0].lower() not in _KEYS:
            del words[0]
        return "", "-".join(words)
    if len(name) > 255:
        return name, ""
    # the longest beginning that is somebody, and the shortest prefix in front of him
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


def _agrees(text: str, wish: Wish) -> None:
    """Each thing that is wished for was said, and nothing that was said is lost."""
    pairs: list[tuple[str, str]] = []
    for word in text.split("-") if text else []:
        if word.lower() in _KEYS and (not pairs or pairs[-1][1]):
            pairs.append((_KEYS[word.lower()], ""))
        else:
            key, value = pairs[-1]
            pairs[-1] = (key, f"{value}-{word}" if value else word)
    said = [(key, value) for key, value in pairs if key != "lifetime"]
    meant = [
        *([("session", wish.session)] if wish.session else []),
        *([("country", wish.country)] if wish.country else []),
        *([("exit", wish.exit)] if wish.exit else []),
    ]
    one_each = [(key, value) for key, value in said if key != "tag"]
    assert sorted(key for key, _ in one_each) == sorted(key for key, _ in meant), (text, wish)
    for key, value in one_each:
        assert (key, value if key == "session" else value.lower()) in meant, (text, wish)
    tags = {value.lower() for key, value in said if key == "tag"}
    assert wish.tags == tuple(sorted(tags)), (text, wish)
    lifetimes = [value for key, value in pairs if key == "lifetime"]
    assert len(lifetimes) == (wish.lifetime is not None), (text, wish)
    if lifetimes and lifetimes[0].isdigit():
        assert wish.lifetime == 60 * int(lifetimes[0]) > 0, (text, wish)
