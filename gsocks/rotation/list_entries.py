"""The entries of a list of exits, whatever its format: bytes in, lines and objects out.

A list is text with a line for each exit, CSV with names in its first line, JSON, a line of JSON for
each exit, YAML, the configuration of proxychains, or any of these in base64.
"""

from __future__ import annotations

import base64
import codecs
import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import TypeAlias

from gsocks.errors import ConfigError
from gsocks.messages import Mistake
from gsocks.rotation import list_json
from gsocks.rotation.list_kinds import is_kind
from gsocks.rotation.list_objects import is_exit, is_heading
from gsocks.units import format_size
from gsocks.yaml_tree import NOT_YAML, SyntaxFault, read_tree

#: in place of each byte that is not UTF-8: of no use in any text, and not printable
SPOILED = "\ue000"


#: where an entry stands (``line 7``; ``entry 7`` of JSON and YAML), the entry (a line, an object,
#: or a Mistake in place of one), and the kind of proxies that it stands under, if any
Entry: TypeAlias = "tuple[str, object, str | None]"

#: characters of a list of YAML, some 10,000 exits: it is read whole, in thirty times its size
MAX_YAML = 1024 * 1024

# bytes that are made text in one step, in which no other thread of the process runs
_PIECE = 65536

#: characters at the beginning in which the words of a format are looked for
_BEGINNING = 1024 * 1024

#: characters of a line that are looked at; longer ones are refused
_MAX_LINE = 8192

_YAML_WORDS = ("proxies", "proxy", "servers", "exits")
_YAML = re.compile(
    rf"^(?:{'|'.join(_YAML_WORDS)}):[ \t]*(?:\r?$|[\[#&].*$)", re.MULTILINE | re.IGNORECASE
)
_YAML_LIST = re.compile(r"-[ \t]+(?:\{|[A-Za-z_-]+:(?:[ \t]|$))")

_PROXYCHAINS = re.compile(r"^[ \t]*\[proxylist\][ \t\r]*$", re.MULTILINE | re.IGNORECASE)

_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{16,}={0,2}")

_COMMENT = re.compile(r"\s#.*")

#: byte order marks and blanks of no width, wherever they stand
_NO_WIDTH = "\ufeff\u200b\u200c\u200d\u2060"

#: lines among which the names of columns may stand
_MAX_ABOVE_CSV = 5

#: under what providers wrap their list, once or twice
_WRAPPERS = (
    *("proxies", "results", "data", "items", "list", "exits"),
    *("servers", "outbounds", "proxysettings", "nodes"),
)

_NO_LIST = "no list of exits"


def entries(raw: bytes, most: int) -> Iterator[Entry]:
    """Each entry, in their order; made one by one, as a list may be long.

    Raises ConfigError for what is no list, and for a document with more than ``most`` entries.
    """
    text = _text(raw)
    if text.startswith("<", list_json.next_part(text, 0)):
        raise ConfigError(f"{_NO_LIST} (looks like a web page)")
    return _of_text(_from_base64(text), most)


def too_many(most: int) -> ConfigError:
    """A list has more than ``most`` entries."""
    return ConfigError(f"more than {most:,} entries")


def _text(raw: bytes) -> str:
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    decode = codecs.getincrementaldecoder("utf-16" if wide else "utf-8")("replace").decode
    # 16 MiB of random bytes in one step would take half a second
    begins = range(0, len(raw), _PIECE)
    pieces = (decode(raw[at : at + _PIECE], at + _PIECE >= len(raw)) for at in begins)
    return "".join(map(_readable, pieces))


def _readable(text: str) -> str:
    if "\0" in text:
        raise ConfigError(f"{_NO_LIST} (not text)")
    if not text.isascii():
        for char in _NO_WIDTH:  # to translate a long text would take seconds
            text = text.replace(char, "")
        text = text.replace("\ufffd", SPOILED)
    return text


def _from_base64(text: str) -> str:
    """What a text that is nothing but base64 stands for; other text as it is."""
    if ":" in text or "." in text or not text.isascii():
        return text
    packed = text.encode().translate(None, b" \t\r\n\v\f")
    if not _BASE64.fullmatch(packed):
        return text
    packed = packed.rstrip(b"=")
    try:
        raw = base64.b64decode(packed + b"=" * (-len(packed) % 4), altchars=_altchars(packed))
        found = raw.decode()
    except ValueError:  # binascii.Error and UnicodeDecodeError are
        return text
    return found if ":" in found else text


def _altchars(packed: bytes) -> bytes:
    return b"-_" if b"-" in packed or b"_" in packed else b"+/"


def _of_text(text: str, most: int) -> Iterator[Entry]:
    at = list_json.next_part(text, 0)
    # [2001:db8::7]:8080 begins with a bracket as well
    inside = list_json.next_part(text, at + 1) if text.startswith("[", at) else at
    if text.startswith("{", at) or (inside > at and text.startswith(('"', "{", "]"), inside)):
        return _of_json(text, most)
    beginning = text[:_BEGINNING]
    lowered = beginning.lower()
    # to look for a word first spares long lists a search at each of their characters
    chains = _PROXYCHAINS.search(beginning) if "[proxylist]" in lowered else None
    if chains is not None:
        lines = _lines(text, chains.end())
        return ((f"line {number}", _of_proxychains(line), None) for number, line in lines)
    if any(f"{word}:" in lowered for word in _YAML_WORDS) and _YAML.search(beginning):
        return _of_yaml(text)
    first = next((line for _, line in _lines(beginning) if not line.startswith("---")), "")
    if _YAML_LIST.match(first):
        return _of_yaml(text)
    return _of_lines(_lines(text))


def _of_proxychains(line: str) -> str:
    """A line of [ProxyList], in which socks4 is given names: its usual one is Tor."""
    kind, *rest = line.split()
    return " ".join(["socks4a" if kind == "socks4" else kind, *rest])


# --- lines ----------------------------------------------------------------------------------


def _lines(text: str, start: int = 0) -> Iterator[tuple[int, str]]:
    """The lines that say something, behind their numbers, from the character ``start`` on."""
    for number, line in _cut(text, start, _MAX_LINE):
        if line and not line.startswith("#"):
            yield number, _COMMENT.sub("", line).rstrip() if "#" in line else line


def _cut(text: str, start: int, most: int) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, behind their numbers, of ``most`` characters each."""
    number = text.count("\n", 0, start) + 1
    size = len(text)
    while start < size:
        begin = start
        if text[start] <= " ":  # as hardly any line begins
            begin = list_json.next_part(text, start)
            if begin == size:
                return
            number += text.count("\n", start, begin)
        end = text.find("\n", begin)
        if end < 0:
            end = size
        yield number, text[begin : min(end, begin + most)].strip()
        start, number = end + 1, number + 1


def _of_lines(lines: Iterator[tuple[int, str]]) -> Iterator[Entry]:
    for above, (number, line) in enumerate(lines):
        columns = _columns(line) if above < _MAX_ABOVE_CSV else None
        if columns is not None:
            yield from _of_csv(lines, *columns)
            return
        yield f"line {number}", line, None


def _columns(line: str) -> tuple[list[str], str] | None:
    """The names in the first line of CSV, and what stands between them; None if it isn't."""
    for comma in ",;\t|":
        names = [name.strip(' "') for name in line.split(comma)]
        if len(names) > 1 and is_heading(names):
            return names, comma
    return None


def _of_csv(lines: Iterator[tuple[int, str]], names: list[str], comma: str) -> Iterator[Entry]:
    for number, line in lines:
        if len(line) == _MAX_LINE:
            yield f"line {number}", Mistake("a line that is too long"), None
            continue
        try:
            cells = next(csv.reader([line], delimiter=comma)) if '"' in line else line.split(comma)
        except csv.Error:
            cells = []
        yield f"line {number}", dict(zip(names, cells, strict=False)), None


# --- documents --------------------------------------------------------------------------------


def _of_json(text: str, most: int) -> Iterator[Entry]:
    try:
        document = list_json.loads(text, most)
    except list_json.TooMany:
        raise too_many(most) from None
    except (ValueError, RecursionError):
        return _of_json_lines(text)
    return _of_document(document, "JSON")


def _of_json_lines(text: str) -> Iterator[Entry]:
    """Raises ConfigError unless the first line is an object of JSON."""
    lines = _cut(text, 0, list_json.MAX_ENTRY)
    found = ((number, line.rstrip(",")) for number, line in lines if line)
    first = next(found)
    if not isinstance(_json_line(first[1]), dict):
        raise ConfigError(f"{_NO_LIST} (begins as JSON, and isn't)")
    return ((f"line {number}", _json_line(line), None) for number, line in chain([first], found))


def _json_line(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return Mistake("not JSON, as the lines above it are")


def _of_yaml(text: str) -> Iterator[Entry]:
    if len(text) > MAX_YAML:
        raise ConfigError(
            f"larger than {format_size(MAX_YAML)}, which is the most for YAML"
            " (lines, CSV and JSON may be larger)"
        )
    try:
        document = read_tree(NOT_YAML.sub(SPOILED, text))
    except SyntaxFault as error:
        line = "" if error.problem_mark is None else f": line {error.problem_mark.line + 1}"
        raise ConfigError(f"{_NO_LIST} (begins as YAML, and isn't{line})") from None
    except (Mistake, ValueError) as error:
        found = re.match(r"line [0-9]+", str(error))
        place = "" if found is None else f": {found[0]}"
        raise ConfigError(f"{_NO_LIST} (YAML that is not read{place})") from None
    return _of_document(document, "YAML")


def _of_document(document: object, form: str) -> Iterator[Entry]:
    for _ in range(3):
        if isinstance(document, list | list_json.Items):
            return _numbered(document)
        if not isinstance(document, dict):
            break
        if any(
            is_kind(str(key)) and isinstance(document[key], list | list_json.Items)
            for key in document
        ):
            return _by_kind(document)
        wrapped = {str(key).lower(): value for key, value in document.items()}
        found = next((wrapped[key] for key in _WRAPPERS if key in wrapped), None)
        if found is None and (members := [v for v in document.values() if is_exit(v)]):
            return _numbered(members)
        if found is None and is_exit(document):
            return _numbered([document])
        document = found
    raise ConfigError(f"{_NO_LIST} ({form} without a list under {', '.join(_WRAPPERS)})")


def _numbered(items: Iterable[object]) -> Iterator[Entry]:
    return ((f"entry {number}", item, None) for number, item in enumerate(items, start=1))


def _by_kind(document: Mapping[object, object]) -> Iterator[Entry]:
    """The entries of lists that stand under the kind of their proxies."""
    for key, items in document.items():
        word = str(key).lower()
        if not is_kind(word) or not isinstance(items, list | list_json.Items):
            continue
        for number, item in enumerate(items, start=1):
            yield f"{word} entry {number}", item, word
