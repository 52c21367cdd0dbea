"""An exit selector in a client's credentials, which are all that every client can send to a proxy.

    alice-session-x1-country-de            customer-alice-cc-DE-sessid-x1-sesstime-10
    alice-exit-berlin-1                    user-alice-country-us-tag-mobile-tag-fast

``USER(-key-value)*``, as commercial proxy gateways have it; keys are not case-sensitive:

    session, sessid                        requests of the same session have the same exit
    lifetime, sesstime, sessionduration    of the session: minutes, or 30s, 10m, 2h
    country, cc                            where the exit is
    tag                                    a tag that the exit has; may be repeated
    exit                                   the exit's name
    strict                                 without a value: the session fails rather than move

A user name may contain hyphens and look like a parameter: the longest prefix that is a known user
name is the user.  ``customer-`` or ``user-`` may precede it.  A listener without authentication
knows no users, and the name, which may be empty, ends where the first key begins.

A value ends where the next key begins.  Only tags, names of exits and sessions that are UUIDs may
contain hyphens, so that a misspelled key is reported and doesn't become part of a session.

Other separators, keys and places (behind the password, for example) are other styles: see
gsocks/access/username_style.py.  A password ends where the first key of its parameters begins, and
nothing of it or behind it stands in a message.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Container, Sequence
from typing import Any, NamedTuple, TypeVar

from gsocks.access.username_style import STANDARD, UserNameStyle
from gsocks.errors import BadParameters
from gsocks.messages import did_you_mean, shown
from gsocks.request import ANY, ExitSelector, as_country, as_exit, as_session, as_tag
from gsocks.units import parse_duration

#: characters of a user name with its parameters; RFC 1929's bound for all clients
MAX_NAME = 255

# RFC 9562 section 4
_UUID = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")

#: seconds; a longer lifetime is a typing mistake
_MAX_LIFETIME = 366 * 86400

_Text = TypeVar("_Text", str, bytes)

#: countries that providers have for "any"
_ANY_COUNTRY = ("any", "all", "random")


def split(
    name: str, users: Container[str] | None, style: UserNameStyle = STANDARD
) -> tuple[str, str]:
    """The user in ``name``, and the parameters behind it; empty if there are none.

    ``users``: the known names.  If ``name`` begins with none of them, all of it is the name of an
    unknown user.  None: the listener requires no authentication, and the user is empty.  The
    parameters of a style that has them in the password are not looked for.
    """
    if users is None:
        found = None if style.in_password else style.opening_or_begin.search(name)
        return "", "" if found is None else name[found.end() :]
    if len(name) > MAX_NAME:  # no user's, and the search would take long
        return name, ""
    end, start = len(name), style.start
    while end > 0:
        for prefix in ("", *style.prefixes):
            user = name[len(prefix) : end]
            if name.startswith(prefix) and user in users:
                return user, name[end + len(start) :] if end < len(name) else ""
        if style.in_password:
            break
        end = name.rfind(start, 0, end)
    return name, ""


def split_password(password: bytes, style: UserNameStyle, required: bool) -> tuple[bytes, str]:
    """The password, and the parameters behind it; empty if there are none.

    ``required``: whether the listener requires a password; if it does not, the parameters may
    stand alone.
    """
    text = password.decode("latin-1")
    found = (style.opening if required else style.opening_or_begin).search(text)
    if found is None:
        return password, ""
    return password[: found.start()], text[found.end() :]


class Credentials(NamedTuple):
    """What a client has sent, taken apart."""

    #: empty if the listener requires no authentication
    user: str
    password: bytes
    #: the parameters; or the mistake in them, which is raised once the password has proved right
    selector: ExitSelector | BadParameters


def read_credentials(
    name: str,
    password: bytes,
    users: Container[str] | None,
    styles: Sequence[UserNameStyle] = (STANDARD,),
) -> Credentials:
    """User, password and exit selector in credentials that are written in one of ``styles``.

    A style counts if there are parameters that it can read, the first one before the others; if
    none can, the mistake is that of the first.  Parameters may stand behind the name and behind the
    password.  ``users`` is as for :func:`split`.
    """
    if len(styles) == 1 and not styles[0].in_password:  # the usual case, for each request
        user, parameters = split(name, users, styles[0])
        try:
            return Credentials(user, password, read_parameters(parameters, styles[0]))
        except BadParameters as mistake:
            return Credentials(user, password, mistake)
    in_name = [style for style in styles if not style.in_password]
    in_password = [style for style in styles if style.in_password]
    # a style of passwords says which prefixes a name has, if there is no other
    user, selector = _first_read(
        [(style, *split(name, users, style)) for style in in_name or in_password]
    )
    if not in_password:
        return Credentials(user, password, selector)
    parted = [(each, *split_password(password, each, users is not None)) for each in in_password]
    password, more = _first_read(parted)
    if isinstance(selector, ExitSelector):
        selector = selector.merge(more) if isinstance(more, ExitSelector) else more
    return Credentials(user, password, selector)


def _first_read(
    found: list[tuple[UserNameStyle, _Text, str]],
) -> tuple[_Text, ExitSelector | BadParameters]:
    """The text and the selector behind it of the first style that reads parameters there.

    Each of ``found`` is a style, the text before its parameters, and these.
    """
    mistaken: tuple[_Text, ExitSelector | BadParameters] | None = None
    for style, text, parameters in found:
        if not parameters:
            continue
        try:
            return text, read_parameters(parameters, style)
        except BadParameters as mistake:
            mistaken = mistaken or (text, mistake)
    # without parameters a text is the shorter, the more of a prefix was removed
    return mistaken or (min((text for _, text, _ in found), key=len), ANY)


@functools.lru_cache(maxsize=8192)
def read_parameters(text: str, style: UserNameStyle = STANDARD) -> ExitSelector:
    """The selector in ``key-value-key-value``.  Raises BadParameters, which lists the keys.

    Nothing of parameters behind a password stands in the message.
    """
    if not text:
        return ANY
    if len(text) > MAX_NAME:
        raise BadParameters(f"a user name longer than {MAX_NAME} characters")
    found: dict[str, Any] = {}
    tags: set[str] = set()
    tokens = text.split(style.pairs)
    while tokens:
        key, value = _next_parameter(tokens, style)
        if key not in style.keys:
            word = "this" if style.in_password else shown(key)
            raise _mistake(f"{word} is not a key{_guess(key, style)}", style)
        try:
            _set(found, tags, key, value, style)
        except ValueError as error:
            raise _mistake(f"{key}: {'not valid' if style.in_password else error}", style) from None
    return ExitSelector(**found, tags=tuple(sorted(tags)))


def _next_parameter(tokens: list[str], style: UserNameStyle) -> tuple[str, str]:
    """Remove the first parameter from ``tokens``: its key, and a value up to the next parameter."""
    first = tokens.pop(0)
    if style.pairs == style.values:
        key, values = first.lower(), tokens[:1]
        has_value = style.keys.get(key) != "strict"
        del tokens[: len(values) if has_value else 0]
        values = values if has_value else []
    else:
        key, mark, value = first.partition(style.values)
        key, values, has_value = key.lower(), [value], bool(mark)
    while has_value and tokens and not style.begins_parameter(tokens[0]):
        values.append(tokens.pop(0))
    return key, style.pairs.join(values)


def _set(found: dict[str, Any], tags: set[str], key: str, value: str, style: UserNameStyle) -> None:
    """Note what one parameter says.  Raises ValueError."""
    meaning = style.keys[key]
    if meaning == "tag":
        # providers write new+york, and tags have no such sign
        tags.add(as_tag(value if key == "tag" else value.replace("+", "_")))
        return
    if meaning == "ignored":
        return
    if meaning == "strict" and value:
        raise ValueError("has no value")
    attribute = "session" if meaning == "strict_session" else meaning
    if attribute in found and attribute != "strict":
        raise ValueError("duplicate")
    if attribute == "session":
        found["session"] = _session(value, style)
        if meaning == "strict_session":
            found["strict"] = True
    elif attribute == "strict":
        found["strict"] = True
    elif attribute == "lifetime":
        found["lifetime"] = _lifetime(value, style)
    elif attribute == "country":
        found["country"] = None if value.lower() in _ANY_COUNTRY else as_country(value)
    else:
        found["exit"] = as_exit(value)


def _guess(key: str, style: UserNameStyle) -> str:
    return "" if style.in_password else did_you_mean(key, style.keys)


def _mistake(what: str, style: UserNameStyle) -> BadParameters:
    place = "behind a password" if style.in_password else "in a user name"
    return BadParameters(f"{place}: {what}; known keys: {', '.join(style.keys)}")


def _session(text: str, style: UserNameStyle) -> str:
    if style.pairs in text and not _UUID.fullmatch(text):
        what = "hyphen" if style.pairs == "-" else style.pairs
        raise ValueError(f"{shown(text)} has a {what}, which only a UUID may have")
    return as_session(text)


def _lifetime(text: str, style: UserNameStyle) -> float:
    if text.isascii() and text.isdigit():
        text += style.lifetime_unit
    seconds = parse_duration(text)
    if not seconds:
        raise ValueError("a session needs a lifetime above zero")
    if seconds > _MAX_LIFETIME:
        raise ValueError("a session lasts a year at the most")
    return seconds
