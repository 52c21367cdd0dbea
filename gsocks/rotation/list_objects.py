"""One object of a list of exits, of JSON, YAML or CSV, with the names that its provider has.

Names of fields are compared without capitals, blanks and signs: ``IP Address`` is ``ip_address``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from gsocks.exits.spec import parse_option
from gsocks.messages import Mistake
from gsocks.rotation.countries import country_of, flag_in
from gsocks.rotation.list_kinds import scheme_of, with_tls
from gsocks.rotation.list_lines import Described, describe_line, is_place

_HOSTS = (
    *("host", "hostname", "ip", "ipaddress", "address", "server", "serveraddress"),
    *("proxyaddress", "proxyhost", "proxyip"),
)
_PORTS = ("port", "serverport", "proxyport")
_URLS = ("url", "proxy", "proxyurl", "ipport", "hostport", "link")
_KINDS = ("scheme", "protocol", "protocols", "proto", "proxytype", "type")
_NAMES = ("name", "title", "remarks", "tag", "country")

#: where a country's code or name stands, the best name first
_COUNTRIES = ("countrycode", "cc", "isocode", "countryiso", "alpha2", "iso", "code", "country")
#: the same, and names of the country in an object that is about it
_IN_COUNTRY = (*_COUNTRIES, "countryname", "name", "names", "en")
#: what may have them inside
_PLACES = ("country", "geolocation", "location", "geo", "ipdata", "ipinfo", "names")

#: what an option is called elsewhere, the best name first
_OPTIONS = {
    "user": ("username", "user", "login", "proxyusername", "proxyuser"),
    "password": ("password", "pass", "passwd", "proxypassword", "proxypass"),
    "tags": ("tags",),
    "weight": ("weight",),
    "max_connections": ("maxconnections",),
    "requests_per_minute": ("requestsperminute",),
}

#: the field of a server of Shadowsocks, which names no kind (SIP008)
_OF_SHADOWSOCKS = "method"
#: the same of other kinds of proxies that are no exits
_OF_OTHERS = frozenset({"cipher", "uuid", "alterid", "privatekey", "psk", "flow", "obfs"})

#: fields that FoxyProxy alone has, and its kinds by number
_OF_FOXYPROXY = frozenset({"proxydns", "whitepatterns", "blackpatterns", "pacstring"})
_FOXYPROXY = {"1": "http", "2": "https", "3": "socks5", "4": "socks4", "5": "direct", "6": "pac"}

_FALSE = (False, "false", "no", "off", "0", "none", "null")

#: where Webshare's list of backbone connections, which has no addresses, says to connect to
#: (apidocs.webshare.io/proxy-list)
_WEBSHARE = "p.webshare.io"


def describe_object(item: Mapping[object, object], scheme: str) -> Described:
    """What ``item`` says of an exit, which is one of ``scheme`` unless the item names its kind.

    Fields that mean nothing here are the provider's.  Raises Mistake, which repeats none of them.
    """
    fields = _fields(item)
    kind = _scheme(fields, scheme)
    options: Described = {
        option: value
        for option, names in _OPTIONS.items()
        if (value := _first(fields, names)) is not None
    }
    if (country := _country(fields) or _flag(fields)) is not None:
        options["country"] = country
    if kind in ("https", "socks5s"):
        options |= _tls_options(fields)
    elif kind == "ss":
        options = _shadowsocks_options(fields, options)
    elif kind == "trojan":
        options = _trojan_options(fields, options)
    name = fields.get("name")
    if _is_one("name", name):
        options["name"] = name
    host, port = _text(fields, _HOSTS), _text(fields, _PORTS)
    url = _text(fields, _URLS)
    if url is None and port is None and host is not None and is_place(host):
        url = host
    if url is not None and (port is None or "://" in url or ":" in url):
        described = describe_line(url, kind)
        return {**({"url": described} if isinstance(described, str) else described), **options}
    host = host or url or _backbone(item, fields)
    if host is None or port is None:
        raise Mistake("an object needs a url, or a host (or ip) and a port")
    place = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return {"url": f"{kind}://{place}:{port}", **options}


def is_exit(item: object) -> bool:
    """Whether ``item`` is an object with the fields of an exit."""
    if not isinstance(item, Mapping):
        return False
    fields = _fields(item)
    place = _first(fields, _HOSTS) is not None and _first(fields, _PORTS) is not None
    return place or _text(fields, _URLS) is not None


def is_heading(names: Iterable[str]) -> bool:
    """Whether ``names`` are those of columns of exits."""
    found = {_normal(name) for name in names}
    return not found.isdisjoint(_URLS) or not (found.isdisjoint(_HOSTS) or found.isdisjoint(_PORTS))


# --- fields ---------------------------------------------------------------------------------


def _fields(item: Mapping[object, object]) -> dict[str, object]:
    """The fields that have a value; of two with one name the first."""
    found: dict[str, object] = {}
    for name, value in item.items():
        if value is not None and value != "":
            text = str(value) if type(value) is int else value
            found.setdefault(_normal(str(name)), text)
    return found


@functools.lru_cache(maxsize=1024)
def _normal(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _first(fields: Mapping[str, object], names: Iterable[str]) -> object:
    return next((fields[name] for name in names if name in fields), None)


def _text(fields: Mapping[str, object], names: Iterable[str]) -> str | None:
    value = _first(fields, names)
    return value.strip() if isinstance(value, str) else None


def _is_one(option: str, value: object) -> bool:
    """Whether it is what the option of that name may be, and not a provider's prose."""
    try:
        parse_option(option, value, Path())
    except Mistake:
        return False
    return True


def _backbone(item: Mapping[object, object], fields: Mapping[str, object]) -> str | None:
    no_address = "proxy_address" in item and item["proxy_address"] is None
    return _WEBSHARE if no_address and "username" in fields else None


# --- kind and country -----------------------------------------------------------------------


def _scheme(fields: Mapping[str, object], default: str) -> str:
    """Raises Mistake for a kind that is no exit's."""
    foxyproxy = not _OF_FOXYPROXY.isdisjoint(fields)
    found, tls = None, fields.get("tls")
    for name in _KINDS:
        if name not in fields:
            continue
        value = fields[name]
        if isinstance(value, list) and any(isinstance(each, dict) for each in value):
            value, tls = _best(value)
        if foxyproxy and isinstance(value, str):
            value = _FOXYPROXY.get(value, value)
        try:
            found = scheme_of(value, default, means_tls=foxyproxy)
        except Mistake as mistake:
            raise mistake.prefixed(f".{name}") from None
        if found is not None:
            break
    if found is None and _OF_SHADOWSOCKS in fields:
        found = "ss"
    if found is None and not _OF_OTHERS.isdisjoint(fields):
        raise Mistake("no kind is named, and it has fields of a kind that is no exit")
    if found == "socks5" and fields.get("version") in ("4", "4a"):  # as sing-box has it
        found = f"socks{fields['version']}"
    found = found or default
    if isinstance(tls, Mapping):  # as sing-box has it
        tls = tls.get("enabled")
    if isinstance(tls, str):
        tls = tls.strip().lower()
    if tls is None or tls in _FALSE:
        return found
    try:
        return with_tls(found)
    except Mistake as mistake:
        raise mistake.prefixed(".tls") from None


def _shadowsocks_options(fields: Mapping[str, object], options: Described) -> Described:
    """Method and password as SIP008, Clash and sing-box have them.  Raises Mistake."""
    plugin = fields.get("plugin")
    if plugin is not None and plugin not in _FALSE:
        raise Mistake("needs a plugin of Shadowsocks, and none is supported")
    found = {name: value for name, value in options.items() if name != "user"}
    if (method := _text(fields, ("method", "cipher"))) is not None:
        found["cipher"] = method
    return found


def _trojan_options(fields: Mapping[str, object], options: Described) -> Described:
    """Password and TLS as Clash and sing-box have them.  Raises Mistake."""
    tls = fields.get("tls")
    inside = _fields(tls) if isinstance(tls, Mapping) else {"enabled": tls}
    if "tls" in fields and inside.get("enabled") in _FALSE:
        raise Mistake("trojan without TLS is no kind of exit", ".tls")
    for name in ("network", "transport"):
        transport = fields.get(name)
        if isinstance(transport, Mapping):
            transport = _fields(transport).get("type")
        if transport not in (None, "tcp", "raw"):
            raise Mistake("a transport that is not supported (trojan has TLS over TCP)", f".{name}")
    for name, of in (("reality-opts", fields), ("ss-opts", fields), ("reality", inside)):
        found = of.get(_normal(name))
        if isinstance(found, Mapping) and _fields(found).get("enabled") not in _FALSE:
            raise Mistake("is not supported of trojan", f".{name}")
    found = {name: value for name, value in options.items() if name != "user"}
    return found | _tls_options(fields)


def _tls_options(fields: Mapping[str, object]) -> Described:
    """The name and the checks of TLS, as Clash and sing-box have them."""
    inside = fields.get("tls")
    if isinstance(inside, Mapping):
        fields = {**fields, **_fields(inside)}
    found: Described = {}
    if (sni := _text(fields, ("sni", "servername"))) is not None:
        found["sni"] = sni
    insecure = _first(fields, ("skipcertverify", "insecure", "allowinsecure"))
    if insecure is True or (isinstance(insecure, str) and insecure.lower() in ("true", "1")):
        found["insecure"] = "true"
    return found


def _best(kinds: list[object]) -> tuple[object, object]:
    """The word of the last of several kinds that are objects themselves, and its ``tls``."""
    last = kinds[-1]
    if not isinstance(last, dict):
        return last, None
    fields = _fields(last)
    return _first(fields, ("type", "protocol", "name")), fields.get("tls")


def _country(
    fields: Mapping[str, object], names: Iterable[str] = _COUNTRIES, depth: int = 3
) -> str | None:
    """The country's code; it may stand in objects inside of ``fields``."""
    for name in names:
        value = fields.get(name)
        if isinstance(value, str) and (found := country_of(value.strip())) is not None:
            return found
    for name in _PLACES if depth else ():
        value = fields.get(name)
        found = (
            _country(_fields(value), _IN_COUNTRY, depth - 1) if isinstance(value, Mapping) else None
        )
        if found is not None:
            return found
    return None


def _flag(fields: Mapping[str, object]) -> str | None:
    for name in _NAMES:
        value = fields.get(name)
        if isinstance(value, str) and (found := flag_in(value)) is not None:
            return found
    return None
