"""An exit as its user writes it, in a list that may come from anywhere.

An exit that is read has one URL, which reads as the same exit; and what is secret in it stands
neither where it is shown nor in a complaint.
"""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from gsocks.errors import ConfigError
from gsocks.exits.spec import ExitSpec

SEEDS = [
    b"direct",
    b"direct://?source=203.0.113.0/28",
    b"direct://?source=2001:db8::/64&interface=wg0&mark=0x1f",
    b"socks5+unix://user:7f3a9c@/run/tor/socks?weight=2",
    b"socks5s://user:7f3a9c@10.0.0.7?sni=proxy.example",
    b"socks5://10.0.0.7",
    b"socks5h://user:7f3a%39c@[::1]:1080?weight=2&tags=de,fast&country=de",
    b"socks4a://me@proxy.example:1080/",
    b"http://user:7f3a9c@10.0.0.8:3128?max_connections=50",
    b"https://10.0.0.8:443",
    b"gsocks://AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA@vps.example:8388?cipher=aegis256",
    b"gsocks://vps.example?key_file=my.key&via=socks5%3A%2F%2Fa%3Ab%4010.0.0.7",
    b"socks5://a:b@c@10.0.0.7:1080",
    b"socks5://user:7f3a9c@",
    b"ftp://user:7f3a9c@10.0.0.7:21",
    b"ss://aes-256-gcm:7f3a9c@10.0.0.7:8388/?outline=1#name",
    b"ss://YWVzLTI1Ni1nY206cHc@[::1]:8388?plugin=x",
    b"ss://2022-blake3-aes-128-gcm:AAAAAAAAAAAAAAAAAAAAAA%3D%3D@h:1",
    b"ss://YWVzLTI1Ni1nY206cHdAMTAuMC4wLjc6ODA=#x",
    b"trojan://7f3a9c@[2001:db8::7]:443?peer=a.example&allowInsecure=1&type=tcp#name",
    b"trojan://7f3a9c%40@h?type=ws&alpn=h2%2Chttp%2F1.1",
]
#: what no word of gsocks has in it
MARK = "7f3a9c"

WORDS = [
    *(
        b"direct",
        b"socks5://",
        b"socks4a://",
        b"socks4://",
        b"http://",
        b"https://",
        b"gsocks://",
        b"socks5h://",
        b"socks5s://",
        b"trojan://",
        b"socks5+unix:///",
    ),
    *(
        b"weight=",
        b"tags=",
        b"country=",
        b"max_connections=",
        b"via=",
        b"key_file=",
        b"source=",
        b"interface=",
        b"mark=",
        b"&",
    ),
    *(b"name=", b"requests_per_minute=", b"%3A%2F%2F", b"%40", b"[::1]", b":1080", b"user:7f3a9c@"),
]


def check(data: bytes) -> None:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return  # a list that isn't text is refused as a whole
    try:
        spec = ExitSpec.parse(text)
    except ConfigError as error:
        _hides(str(error), text)
        return
    again = ExitSpec.parse(spec.url)
    assert again == spec, (again.url, spec.url)
    assert again.url == spec.url
    assert hash(again) == hash(spec)
    assert spec.label.isprintable(), spec.label
    _hides(spec.label, text)
    _hides(repr(spec), text)
    _agrees(text, spec)


def _agrees(text: str, spec: ExitSpec) -> None:
    """Whether Python's own library finds the same in it, where that has an opinion."""
    if spec.scheme == "direct" or not re.fullmatch(r"[!-~]+", text):
        return
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError:
        return
    if re.search("[/?#]", text.partition("://")[2].rpartition("@")[0]):
        return  # in a password, which that library takes for the beginning of the rest
    assert (port or spec.port) == spec.port, (text, spec)
    if spec.user is not None:
        assert unquote(url.username or "") == spec.user, text
        assert spec.password is None or unquote(url.password or "") == spec.password, text
    if re.fullmatch(r"[a-z.]+", host or ""):
        assert host == spec.host, text


def _is_secret(text: str) -> bool:
    """Whether the mark stands where a password or a key does, and nowhere else."""
    before = text.partition("://")[2].rpartition("@")[0]
    secret = before if text.lower().startswith("gsocks") else before.partition(":")[2]
    return unquote(text).count(MARK) == 1 and MARK in unquote(secret)


def _hides(shown: str, text: str) -> None:
    assert not (_is_secret(text) and MARK in shown), (shown, text)
