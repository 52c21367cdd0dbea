"""Lists of exits, as a provider or anybody else may serve them at a URL.

The first byte of the input says whether the list is one of this machine, or comes from elsewhere:
then no exit of it may read a file here, or go out directly.
"""

from __future__ import annotations

import re
from pathlib import Path

from fuzz.exit_url import MARK
from gsocks.errors import ConfigError
from gsocks.exits.url import ExitSpec
from gsocks.rotation.lists import Manner, parse_list

SEEDS = [
    b"\x00# ours\n10.0.0.7:8080\n10.0.0.7:8080:user:7f3a9c\nuser:7f3a9c@10.0.0.8:8080\n",
    b"\x00user:7f3a9c:10.0.0.7:8080\r\n[2001:db8::7]:8080 country=de tags=a,b name=berlin\r\n",
    b"\x0010.0.0.7:8080@user:7f3a9c\nproxy.example:3128\ndirect\nhttp://a:1?weight=2\n",
    b"\x01direct\ngsocks://h?key_file=x\nsocks5://user:7f3a9c@10.0.0.7\n",
    b'\x01["10.0.0.7:8080", {"ip": "10.0.0.8", "port": 80, "username": "u", "password": "7f3a9c"}]',
    b'\x01{"proxies": [{"host": "10.0.0.8", "port": "8080", "protocol": "socks5"}]}',
    b"\x01ip,port,country\n10.0.0.7,8080,de\n10.0.0.8,8081,fr\n",
    b"\x01<html>",
    b"\x01user:7f3a9c@nowhere\n10.0.0.7:99999\n10.0.0.7:8080\n",
]
WORDS = [
    *(b"10.0.0.7:8080", b":user:7f3a9c", b"user:7f3a9c@", b"[2001:db8::7]:8080", b"direct", b"\n"),
    *(b" country=de", b" tags=a,b", b" name=x", b"key_file=", b"?key_file=x", b"via=direct", b"{}"),
    *(b'"ip": ', b'"port": 8080', b'"url": "', b"socks5://", b"gsocks://", b"ip,port\n", b"[[["),
]

_PLAIN = re.compile(rb"([1-9][0-9]?(?:\.[1-9][0-9]?){3}):([1-9][0-9]{0,3})(?::([a-z]+):([a-z]+))?")


def check(data: bytes) -> None:
    here, raw = data[:1] != b"\x01", data[1:]
    manner = Manner(base=Path("/nowhere") if here else None)
    plain = _plain_lines(raw)
    try:
        found = parse_list(raw, manner)
    except ConfigError as error:
        assert MARK not in str(error) or _is_a_key(raw), (error, raw)
        assert not plain, raw
        return
    for left_out in found.left_out:
        assert left_out.reason.isprintable(), left_out
        assert MARK not in left_out.reason or _is_a_key(raw), left_out
    for spec in found.exits:
        _look_at(spec, here)
    assert len(set(found.exits)) == len(found.exits)
    known = {(spec.host, spec.port, spec.user, spec.password) for spec in found.exits}
    assert set(plain) <= known, (plain, known)


def _look_at(spec: ExitSpec, here: bool) -> None:
    assert ExitSpec.parse(spec.url) == spec, spec.url
    assert spec.label.isprintable()
    if spec.password is not None and MARK in spec.password:
        hidden = (spec.host, spec.user or "", str(spec.via or ""))
        assert MARK in "".join(hidden) or MARK not in repr(spec), spec
    while not here and spec is not None:
        assert spec.key_file is None, spec.url
        assert spec.scheme != "direct", spec.url
        spec = spec.via  # type: ignore[assignment]


def _is_a_key(raw: bytes) -> bool:
    """Whether the mark stands in a key of JSON, which is told if it is not known."""
    return bool(re.search(rb'"[^"]*' + MARK.encode() + rb'[^"]*"\s*:', raw))


def _plain_lines(raw: bytes) -> list[tuple[str, int, str | None, str | None]]:
    """What is meant by a list of nothing but lines that can be understood in one way."""
    lines = [line for line in raw.split(b"\n") if line]
    found = [_PLAIN.fullmatch(line) for line in lines]
    if not all(found):
        return []
    said = [tuple(part and part.decode() for part in each.groups()) for each in found if each]
    return [(host, int(port), user, password) for host, port, user, password in said]
