"""The words that lists have for the kind of a proxy, and the schemes of exits that they mean.

A kind that can't be an exit, or is not known, is refused by its name where that is a known word: it
is never read as another kind, to which its password would be sent in clear text.
"""

from __future__ import annotations

import re

from gsocks.messages import Mistake


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SCHEMES = {
    "http": "http",
    "https": "https",
    "socks": "socks5",
    "socks5": "socks5",
    "socks5h": "socks5",
    "socksv5": "socks5",
    "socks4": "socks4",
    "socks4a": "socks4a",
    "socksv4": "socks4",
    "ss": "ss",
    "shadowsocks": "ss",
    "trojan": "trojan",
}

#: the same for SOCKS by its version alone
_VERSIONS = {"5": "socks5", "4": "socks4", "4a": "socks4a"}

#: kinds of proxies, and of groups of them, which are no exits
_OTHERS = _words(
    """
    vmess vless ssr shadowsocksr wireguard wg hysteria hysteria2 hy2
    tuic snell ssh anytls mieru juicity naive mtproto mtproxy masque sudoku tor openvpn
    ssl-vpn raw direct reject block dns pac selector urltest url-test fallback load-balance
    relay select http2 http3 quic warp brook shadowtls tailscale
    """
)

#: said in the same place of how anonymous a proxy is, where its address comes from and what for
_NO_KINDS = _words(
    """
    elite anonymous anonym anonymity transparent high high-anonymous distorting distorted
    noa anm hia medium low none residential datacenter dc mobile isp static rotating
    dedicated shared public private premium free paid proxy proxies ipv4 ipv6 ip tcp udp
    backconnect sticky business hosting cellular dynamic
    """
)

_BETWEEN = re.compile(r"[\s,/|;+&()]+")


def is_kind(word: str) -> bool:
    """Whether ``word`` is the name of a kind of proxy."""
    word = word.lower()
    return word in _SCHEMES or word in _OTHERS


def is_no_kind(word: str) -> bool:
    """Whether ``word`` says something else of a proxy: how anonymous it is, for example."""
    return word.lower() in _NO_KINDS


def scheme_of(value: object, default: str, *, means_tls: bool = False) -> str | None:
    """The scheme of an exit whose kind ``value`` is; None if that says nothing of its kind.

    ``value``: a word, several of which the last, the best, counts, a list of words, or a version
    of SOCKS.  ``https`` mostly means an HTTP proxy that is good for https sites, and is one that
    itself speaks TLS if ``means_tls`` or the ``default`` of its list is that.  Raises Mistake for
    all other kinds.
    """
    if isinstance(value, list):
        words = [str(word) for word in value]
    elif isinstance(value, str) or type(value) is int:
        words = _BETWEEN.split(str(value).strip())
    else:
        raise Mistake("a kind of proxy that is not known")
    words = [word.strip("[]{}'\"").lower() for word in words]
    found = [word for word in words if word in _SCHEMES or word in _VERSIONS]
    if not found:
        _check_no_kinds(words)
        return None
    if not isinstance(value, list):
        _check_no_kinds([word for word in words if word not in found])
    word = found[-1]
    if word == "https" and not means_tls:
        return default if default in ("http", "https") else "http"
    return _SCHEMES.get(word) or _VERSIONS[word]


def with_tls(scheme: str) -> str:
    """The scheme of the same kind of proxy that is reached by TLS.  Raises Mistake."""
    if scheme in ("http", "https"):
        return "https"
    if scheme == "socks5":
        return "socks5s"
    if scheme == "trojan":
        return scheme
    raise Mistake("SOCKS4 within TLS is no kind of exit")


def _check_no_kinds(words: list[str]) -> None:
    for word in words:
        if word in _OTHERS:
            raise Mistake(f"{word} is no kind of exit")
        if word and word not in _NO_KINDS:
            raise Mistake("a kind of proxy that is not known")
