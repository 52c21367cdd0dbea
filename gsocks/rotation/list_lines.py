"""One line of a list of exits: text in, what :meth:`gsocks.exits.spec.ExitSpec.parse` takes out.

    10.0.0.7:8080                         10.0.0.7:8080:user:password
    user:password@10.0.0.7:8080           user:password:10.0.0.7:8080
    [2001:db8::7]:8080                    10.0.0.7:8080@user:password
    socks5://user:password@10.0.0.7       socks5://10.0.0.7:1080:user:password
    10.0.0.7:8080 country=de tags=fast,cheap name=berlin
    10.0.0.7 8080 user password           10.0.0.7,8080,user,password
    socks5 10.0.0.7 1080 user password    10.0.0.7:8080 user:password
    10.0.0.7:8080 | Germany | elite       10.0.0.7:8080:Germany

A line without a scheme has that of its list.  Where it has two parts that could be host and
port, the one with an IP address is, then the one with a dot in its name; then the first one, or
the one behind an @.

Notes are read behind host and port only: the country and the kind of proxy count, anonymity, speed
and the like say nothing.  A first note that is none of these may be a user name, so that its line
is refused rather than read without it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import TypeAlias
from urllib.parse import unquote

from gsocks.address import Address
from gsocks.errors import BadAddress
from gsocks.exits import credentials
from gsocks.exits.spec import SCHEMES
from gsocks.messages import Mistake
from gsocks.request import as_exit
from gsocks.rotation.countries import country_of, flag_in, without_flags
from gsocks.rotation.list_kinds import is_kind, is_no_kind, scheme_of

#: what describes an exit: a mapping with ``url``, and options beside it
Described: TypeAlias = dict[str, object]

#: characters of a line; no URL of an exit comes near
_MAX_LENGTH = 4096

_PLACE = r"(?:\[[^\[\]]*\]|[^:@\[\]/?#\s]+):[0-9]{1,5}"
_PLACE_FIRST = re.compile(rf"(?P<place>{_PLACE})(?P<mark>[:@])(?P<login>.+)")
_PLACE_LAST = re.compile(rf"(?P<login>.+)(?P<mark>[:@])(?P<place>{_PLACE})(?P<query>\?\S*)?")
_PLACE_ONLY = re.compile(rf"{_PLACE}(?:\?\S*)?")
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)|direct$")

# what stands behind the last @ of a URL
_URL_PLACE = re.compile(r"(?P<place>(?:\[[^\[\]]*\]|[^:@\[\]/?#\s]+)(?::[0-9]{1,5})?)/?(?:\?\S*)?")

_LAST_OPTION = re.compile(r"(?P<rest>.*\S)\s+(?P<name>[a-z_]+)=(?P<value>\S*)")

# what stands before an entry of a list in Markdown, YAML or a program, or before a flag
_BULLET = re.compile(r"(?:[-*\u2022]\s+)?['\"]?(?:[^\w\[\s]\s*)*", re.ASCII)

_PORT = re.compile(r"[0-9]{1,5}")
_COLUMNS = re.compile(r"\s*[|,;\t]\s*")
_BLANKS = re.compile(r"[|,;\s]+")

# US-N-S!: country, anonymity, SSL support, as spys.me has it
_SPYS = re.compile(r"(?P<country>[A-Z]{2})-[NAH](?:-S)?!?")

_MEASURE = re.compile(
    r"[0-9]+(?:[.,:/%T-][0-9]*)*\s?(?:ms|s|sec|min|[kmg]?b(?:it)?/?p?s|[kmg]bps|%|z)?", re.I
)
_SIGNS = re.compile(r"[^\w\s]+")
_STATES = frozenset(
    ("yes", "no", "true", "false", "ok", "good", "alive", "live", "working", "up")
    + ("ssl", "google", "n/a", "unknown")
)

_NOT_AN_EXIT = (
    "not an exit (expected e.g. 10.0.0.7:8080, 10.0.0.7:8080:USER:PASSWORD or"
    " socks5://USER:PASSWORD@10.0.0.7:1080)"
)


def describe_line(line: str, scheme: str) -> Described | str:
    """The URL of an exit, or what else ``line`` says of it; ``scheme`` is that of lines without.

    Raises Mistake, which repeats nothing of the line.
    """
    if len(line) > _MAX_LENGTH:
        raise Mistake(f"longer than {_MAX_LENGTH} characters")
    if _PLACE_ONLY.fullmatch(line):
        return f"{scheme}://{line}"
    options: Described = {}
    while "=" in line and (found := _LAST_OPTION.fullmatch(line)):
        if found["name"] in options:
            raise Mistake("stands here twice", f".{found['name']}")
        options[found["name"]] = found["value"]
        line = found["rest"]
    notes: Described = {}
    if not line.isascii() and (country := flag_in(line)) is not None:
        notes["country"] = country
        line = without_flags(line).strip()
    bare = _bare(line)
    # "* http://..." has no credentials before its @ that begin with "* http"
    is_behind = _URL.match(bare) is not None and _URL.match(line) is None
    described = (
        (None if is_behind else _strict(line, scheme))
        or _strict(bare, scheme)
        or _of_columns(bare, scheme)
        or _behind_kind(bare, scheme)
        or _behind_notes(bare, scheme)
    )
    if described is None:
        if not _URL.match(line):
            raise Mistake(_NOT_AN_EXIT)
        described = {"url": line}  # whose reader knows best what is wrong with it
    return {**notes, **described, **options}


def is_place(text: str) -> bool:
    """Whether ``text`` is a host and a port, and no more."""
    return _PLACE_ONLY.fullmatch(text) is not None


def _bare(line: str) -> str:
    """``line`` without what a document has around its entries."""
    return _BULLET.sub("", line, count=1).rstrip(" \t,;'\"")


def _strict(line: str, scheme: str) -> Described | None:
    """A line that is a URL, or has host, port and credentials and no more."""
    url = _URL.match(line)
    return _of_bare(line, scheme) if url is None else _of_url(line, url)


# --- URLs -----------------------------------------------------------------------------------


def _of_url(line: str, url: re.Match[str]) -> Described | None:
    word = (url["scheme"] or "direct").lower()
    if word == "direct":
        return {"url": line}
    rest, name = _without_fragment(url["rest"])
    if word == "socks":
        word, rest = "socks5", _without_base64(rest)
    described: Described | None = None
    if word in ("gsocks", "ss", "trojan") or _URL_PLACE.fullmatch(rest.rpartition("@")[2]):
        described = {"url": f"{word}://{rest}"}
    elif word in SCHEMES or is_kind(word):
        described = _of_bare(rest, word, of_url=True)
    elif name is not None:
        described = {"url": f"{word}://{rest}"}
    if described is None or name is None:
        return described
    return {**_of_name(name), **described}


def _without_fragment(rest: str) -> tuple[str, str | None]:
    """What stands behind ``://``, and the name behind its #; a password may have a # as well."""
    before, mark, name = rest.partition("#")
    if not mark:
        return rest, None
    named = _URL_PLACE.fullmatch(before.rpartition("@")[2])
    last = rest.rpartition("@")[2]
    whole = _URL_PLACE.fullmatch(last) if "@" in name else None
    if "@" in name and "#" in last:
        whole = _URL_PLACE.fullmatch(last.partition("#")[0])
    if whole is None or (named is not None and _place_rank(named) >= _place_rank(whole)):
        return before, name
    head, _, name = rest.rpartition("@")[2].partition("#")
    return rest[: len(rest) - len(last)] + head, name or None


def _place_rank(found: re.Match[str]) -> int:
    place = found["place"]
    if not _PLACE_ONLY.fullmatch(place):
        return 0
    return _rank(place)


def _of_name(name: str) -> Described:
    """What the name of a node says: itself, if it is a word, and its country by a flag."""
    text = unquote(name, errors="replace").strip()
    found: Described = {}
    if (country := flag_in(text)) is not None:
        found["country"] = country
    try:
        found["name"] = as_exit(text)
    except ValueError:
        pass
    return found


def _without_base64(rest: str) -> str:
    """The rest of a ``socks://`` link, whose credentials, or all of it, may be base64."""
    secret, at, place = rest.rpartition("@")
    if ":" in (secret if at else rest):
        return rest
    text = _from_base64(secret if at else rest)
    if text is None or ":" not in text:
        return rest
    if not at:
        return text
    return place if text == ":" else f"{text}@{place}"


def _from_base64(text: str) -> str | None:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        found = raw.decode("ascii")
    except (binascii.Error, ValueError):
        return None
    return found if found.isprintable() else None


# --- host, port and credentials ---------------------------------------------------------------


def _of_bare(line: str, scheme: str, *, of_url: bool = False) -> Described | None:
    """Host, port, and credentials or a country, in any order; None if it is not that.

    ``of_url``: ``scheme`` stands in the line itself, and no note counts against it."""
    if _PLACE_ONLY.fullmatch(line):
        return {"url": f"{scheme}://{line}"}
    first, last = _PLACE_FIRST.fullmatch(line), _PLACE_LAST.fullmatch(line)
    at_first = _likelihood(first) if first is not None else 0
    at_last = _likelihood(last) if last is not None else 0
    by_at = last is not None and last["mark"] == "@"
    found = last if at_last > at_first or (at_last == at_first and by_at) else first
    if found is None or not max(at_first, at_last):
        return None if first is None else _of_noted(first, scheme)
    query = (found["query"] or "") if found is last else ""
    if found["mark"] == "@":  # as in a URL, percent codes too
        return {"url": f"{scheme}://{found['login']}@{found['place']}{query}"}
    login, notes = _without_notes(found["login"]) if found is first else (found["login"], [])
    user, _, password = credentials.partition(login)
    place = f"{found['place']}{query}"
    if not of_url:
        scheme = scheme_of([note for note in notes if is_kind(note)], scheme) or scheme
    described: Described = {"url": f"{scheme}://{place}", "user": user, "password": password}
    return {**_country_in(notes), **described}


def _without_notes(login: str) -> tuple[str, list[str]]:
    """A login, and the notes behind a blank; other blanks are the password's."""
    first, *rest = login.split(maxsplit=1)
    notes = [note for note in _BLANKS.split(rest[0]) if note] if rest else []
    if not notes or not (all(map(_is_note, notes)) or country_of(" ".join(notes))):
        return login, []
    return first.rstrip(",;|"), notes


def _likelihood(found: re.Match[str]) -> int:
    """How much host and port look like what they are taken for; 0 if they can't be that."""
    if found["mark"] == ":" and ":" not in found["login"]:
        return 0  # one word more than host and port: a user name, or a note
    return _rank(found["place"])


def _rank(place: str) -> int:
    try:
        address = Address.parse(place)
    except BadAddress:
        return 0
    if not address.port:
        return 0
    if address.ip is not None:
        return 3
    return 2 if "." in address.host else 1


def _of_noted(found: re.Match[str], scheme: str) -> Described | None:
    """``host:port:Country``, or a kind in place of the country."""
    word = found["login"]
    if found["mark"] != ":" or ":" in word or _rank(found["place"]) < 2:
        return None
    if (country := country_of(word)) is not None:
        return {"url": f"{scheme}://{found['place']}", "country": country}
    if is_kind(word):
        return {"url": f"{scheme_of(word, scheme)}://{found['place']}"}
    return None


def _behind_kind(line: str, scheme: str) -> Described | None:
    """``socks5:10.0.0.7:1080``, with credentials or without."""
    word, _, rest = line.partition(":")
    if not is_kind(word) or (described := _of_bare(rest, "", of_url=True)) is None:
        return None
    described["url"] = f"{scheme_of(word, scheme)}{described['url']}"
    return described


# --- columns ------------------------------------------------------------------------------------


def _of_columns(line: str, scheme: str) -> Described | None:
    """An exit in columns, between which stand blanks, commas, semicolons or bars."""
    cells = _cells(line)
    named = len(cells) > 1 and is_kind(cells[0])
    if named:
        scheme = scheme_of(cells[0], scheme) or scheme
        cells = cells[1:]
    described, notes = None, cells[1:]
    if _URL.match(cells[0]) or (":" in cells[0] and _rank(cells[0]) != 0):
        described = _strict(cells[0], scheme)
    split = described is None and len(cells) > 1 and _PORT.fullmatch(cells[1]) is not None
    if split:
        host = f"[{cells[0]}]" if ":" in cells[0] else cells[0]
        place = f"{host}:{cells[1]}"
        if _rank(place) >= (1 if named else 2):
            described, notes = {"url": f"{scheme}://{place}"}, cells[2:]
    if described is None:
        return None
    if "user" in described or "@" in str(described["url"]):
        return {**_country_in(notes), **described}
    login, notes = _login_in(notes, may_be_apart=split, must_be=named)
    if notes and not login and not _is_note(notes[0]) and country_of(" ".join(notes)) is None:
        raise Mistake("what stands behind host and port is no note that is understood")
    described |= login
    if not named and _URL.match(cells[0]) is None:
        kind = scheme_of([note for note in notes if is_kind(note)], scheme) or scheme
        described["url"] = kind + str(described["url"]).removeprefix(scheme)
    return {**_country_in(notes), **described}


def _behind_notes(line: str, scheme: str) -> Described | None:
    """An exit with an IP address, or a URL, behind notes: ``US 10.0.0.7:8080``."""
    cells = _cells(line)
    places = (at for at, cell in enumerate(cells) if _URL.match(cell) or _rank(cell) == 3)
    notes = cells[: next(places, 0)]
    if not notes or not (all(map(_is_note, notes)) or country_of(" ".join(notes))):
        return None
    kinds = [note for note in notes if is_kind(note)]
    described = _of_columns(" ".join([*kinds[-1:], *cells[len(notes) :]]), scheme)
    return None if described is None else {**_country_in(notes), **described}


def _cells(line: str) -> list[str]:
    first, *rest = _COLUMNS.split(line)
    # host and port, or a kind, may stand apart before notes behind a bar
    cells = [*first.split(), *rest]
    return [cell.strip("'\"") for cell in cells if cell] or [""]


def _login_in(
    notes: list[str], *, may_be_apart: bool, must_be: bool
) -> tuple[Described, list[str]]:
    """User and password with which the notes behind host and port begin, and the other notes.

    ``may_be_apart``: they may be two columns; ``must_be``: two columns are nothing else.
    """
    if may_be_apart and len(notes) > 1 and (not _is_note(notes[0]) or must_be):
        return {"user": notes[0], "password": notes[1]}, notes[2:]
    if len(notes) == 1 and ":" in notes[0] and not _is_note(notes[0]):
        user, _, password = credentials.partition(notes[0])
        return {"user": user, "password": password}, []
    return {}, notes


def _country_in(notes: Sequence[str]) -> Described:
    """The country among the notes."""
    if (country := country_of(" ".join(notes))) is not None:
        return {"country": country}
    for note in notes:
        spys = _SPYS.fullmatch(note)
        country = country_of(note if spys is None else spys["country"])
        if country is not None and (len(note) > 2 or note.isupper()):
            return {"country": country}
    return {}


def _is_note(text: str) -> bool:
    """Whether ``text`` says something of an exit that is neither user nor password."""
    if len(text) == 2 and text.isalpha():
        return text.isupper() and country_of(text) is not None
    return (
        is_no_kind(text)
        or is_kind(text)
        or text.lower() in _STATES
        or country_of(text) is not None
        or (_SPYS.fullmatch(text) or _MEASURE.fullmatch(text) or _SIGNS.fullmatch(text)) is not None
    )
