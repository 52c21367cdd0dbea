"""Lists of exits, as a provider or an attacker may serve them at a URL.

The first byte of the input selects whether the list is a file of this machine, or from elsewhere:
then no exit of it may read a file here, or connect directly.
"""

from __future__ import annotations

import re
from pathlib import Path

from fuzz.exit_url import MARK
from gsocks.errors import ConfigError
from gsocks.exits.spec import ExitSpec
from gsocks.rotation.lists import ListOptions, parse_list

SEEDS = [
    b"\x00# ours\n10.0.0.7:8080\n10.0.0.7:8080:user:7f3a9c\nuser:7f3a9c@10.0.0.8:8080\n",
    b"\x00user:7f3a9c:10.0.0.7:8080\r\n[2001:db8::7]:8080 country=de tags=a,b name=berlin\r\n",
    b"\x0010.0.0.7:8080@user:7f3a9c\nproxy.example:3128\ndirect\nhttp://a:1?weight=2\n",
    b"\x01direct\ngsocks://h?key_file=x\nsocks5://user:7f3a9c@10.0.0.7\n",
    b'\x01["10.0.0.7:8080", {"ip": "10.0.0.8", "port": 80, "username": "u", "password": "7f3a9c"}]',
    b'\x01{"proxies": [{"host": "10.0.0.8", "port": "8080", "protocol": "socks5"}]}',
    b"\x01ip,port,country\n10.0.0.7,8080,de\n10.0.0.8,8081,fr\n",
    b"\x01<html>",
    b"\x00http://10.0.0.7:8080:user:7f3a9c\n10.0.0.7 8080 user 7f3a9c\n10.0.0.7:8080:Germany\n",
    b"\x00[ProxyList]\nsocks5 10.0.0.7 1080 user 7f3a9c\nraw 10.0.0.8 80 user 7f3a9c\n",
    b"\x00proxies:\n  - {type: vmess, server: 10.0.0.7, port: 1, password: 7f3a9c, tls: true}\n",
    b"\x00proxies:\n  - {type: trojan, server: 10.0.0.7, port: 1, password: 7f3a9c, network: ws}\n",
    b"\x01trojan://7f3a9c@10.0.0.7:443?type=tcp&sni=a#b\ntrojan://7f3a9c@10.0.0.8?type=ws\n",
    b'\x01{"socks5": ["10.0.0.7:1080"], "vmess": ["7f3a9c"]}',
    b'\x01{"ip": "10.0.0.7", "port": 1, "type": "7f3a9c"}\n{"proxy": "10.0.0.8:80", "type": 5}\n',
    b"\x01c29ja3M1Oi8vdXNlcjo3ZjNhOWNAMTAuMC4wLjc6MTA4MAo=",
    b"\x01socks://dXNlcjo3ZjNhOWM=@10.0.0.7:1080#7f3a9c\n10.0.0.7:80 US-N-S! +\na|80|7f3a9c\n",
    b"\x01user:7f3a9c@nowhere\n10.0.0.7:99999\n10.0.0.7:8080\n",
]
WORDS = [
    *(b"10.0.0.7:8080", b":user:7f3a9c", b"user:7f3a9c@", b"[2001:db8::7]:8080", b"direct", b"\n"),
    *(b" country=de", b" tags=a,b", b" name=x", b"key_file=", b"?key_file=x", b"via=direct", b"{}"),
    *(b'"ip": ', b'"port": 8080', b'"url": "', b"socks5://", b"gsocks://", b"ip,port\n", b"[[["),
    *(b'"type": "vmess"', b'"tls": true', b"[ProxyList]\n", b"proxies:\n", b"- {", b"vless://"),
    *(b"#7f3a9c", b"|", b"\t", b",", b" 8080 ", b"\xf4", b"\xef\xbb\xbf", b":Germany", b"raw "),
]

_PLAIN = re.compile(rb"([1-9][0-9]?(?:\.[1-9][0-9]?){3}):([1-9][0-9]{0,3})(?::([a-z]+):([a-z]+))?")

_SCHEME = re.compile(rb"[\w+.-]*" + MARK.encode() + rb"[\w+.-]*:/", re.ASCII)


def check(data: bytes) -> None:
    here, raw = data[:1] != b"\x01", data[1:]
    options = ListOptions(base=Path("/nowhere") if here else None)
    plain = _plain_lines(raw)
    try:
        found = parse_list(raw, options)
    except ConfigError as error:
        assert MARK not in str(error) or _may_be_told(raw), (error, raw)
        assert not plain, raw
        return
    for skipped in found.skipped:
        assert skipped.reason.isprintable(), skipped
        assert MARK not in skipped.reason or _may_be_told(raw), skipped
    for spec in found.exits:
        _look_at(spec, here)
    assert len(set(found.exits)) == len(found.exits)
    known = {(spec.host, spec.port, spec.user, spec.password) for spec in found.exits}
    assert set(plain) <= known, (plain, known)


def _may_be_told(raw: bytes) -> bool:
    """Whether the mark stands where no secret does: a key of JSON, or the scheme of a URL, which
    names the kind that is left out."""
    return _is_a_key(raw) or _SCHEME.search(raw) is not None


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
    """Whether the mark is in a key of JSON, which is reported if it is unknown."""
    return bool(re.search(rb'"[^"]*' + MARK.encode() + rb'[^"]*"\s*:', raw))


def _plain_lines(raw: bytes) -> list[tuple[str, int, str | None, str | None]]:
    """The exits of a list that has only unambiguous lines."""
    lines = [line for line in raw.split(b"\n") if line]
    found = [_PLAIN.fullmatch(line) for line in lines]
    if not all(found):
        return []
    said = [
        [None if part is None else part.decode() for part in each.groups()]
        for each in found
        if each
    ]
    return [(str(host), int(str(port)), user, password) for host, port, user, password in said]
