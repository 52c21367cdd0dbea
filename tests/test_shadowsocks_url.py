"""``ss://`` URLs: both forms of SIP002, the older one, and what is refused in them."""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import quote

import pytest

from gsocks.errors import ConfigError
from gsocks.exits.spec import ExitSpec
from gsocks.shadowsocks import url

KEY = base64.b64encode(bytes([255]) * 32).decode()
SMALL = base64.b64encode(bytes([255]) * 16).decode()
AES = "aes-256-gcm:hunter2"


def b64(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"ss://{AES}@10.0.0.7:8388", f"ss://{AES}@10.0.0.7:8388"),
        (f"ss://{AES}@10.0.0.7", f"ss://{AES}@10.0.0.7:8388"),
        (f"SS://{AES}@10.0.0.7:443/", f"ss://{AES}@10.0.0.7:443"),
        (f"ss://{b64(AES)}@host.example:1#a name", f"ss://{AES}@host.example:1"),
        (f"ss://{b64(AES).rstrip('=')}@[::1]:1/?plugin=", f"ss://{AES}@[::1]:1"),
        (f"ss://{quote(b64(AES))}@10.0.0.7:1/?outline=1", f"ss://{AES}@10.0.0.7:1"),
        (f"ss://{b64(AES + '@10.0.0.7:99')}#x@y", f"ss://{AES}@10.0.0.7:99"),
        (f"ss://{b64('aes-128-gcm:a:b@c')}@10.0.0.7:1", "ss://aes-128-gcm:a%3Ab%40c@10.0.0.7:1"),
        (
            f"ss://2022-blake3-aes-256-gcm:{quote(KEY, safe='')}@10.0.0.7:1#n",
            f"ss://2022-blake3-aes-256-gcm:{quote(KEY, safe='')}@10.0.0.7:1",
        ),
        (
            f"ss://2022-blake3-aes-128-gcm:{quote(f'{SMALL}:{SMALL}')}@10.0.0.7:1?type=tcp&udp=1",
            f"ss://2022-blake3-aes-128-gcm:{quote(f'{SMALL}:{SMALL}', safe='')}@10.0.0.7:1",
        ),
        (f"ss://{b64('chacha20-poly1305:p')}@h:1", "ss://chacha20-ietf-poly1305:p@h:1"),
    ],
)
def test_every_form_of_a_url_is_read(text: str, expected: str) -> None:
    spec = ExitSpec.parse(text)
    assert spec.url == expected
    assert ExitSpec.parse(spec.url) == spec
    assert "hunter2" not in spec.label + repr(spec) + str(spec)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"ss://{AES}@h:1?plugin=obfs-local%3Bobfs%3Dhttp", r"needs a plugin .*\(plugin=\)"),
        (f"ss://{AES}@h:1?prefix=%16", r"needs what is not supported \(prefix=\)"),
        (f"ss://{AES}@h:1?type=ws", r"needs what is not supported \(type=\)"),
        (f"ss://{AES}@h:1?nonsense=1", "unknown option behind the"),
        (f"ss://{AES}@h:0", "not between 1 and 65535"),
        (f"ss://{AES}@a b:1", "neither METHOD:PASSWORD@HOST:PORT nor that in base64"),
        ("ss://hunter2hunter2@h:1", "neither METHOD:PASSWORD nor that in base64"),
        ("ss://hunter2@h:1", "neither METHOD:PASSWORD nor that in base64"),
        ("ss://rc4-md5:hunter2@h:1", "cipher: not a method of Shadowsocks"),
        ("ss://2022-blake3-aes-256-gcm:hunter2@h:1", "password: a key of 2022-blake3-aes-256-gcm"),
        ("ss://aes-256-gcm:@h:1", "password: the password is empty"),
        ("ss://aes-256-gcm:%ff@h:1", "its percent codes are not UTF-8"),
        ("ss://h:1", "needs a cipher"),
        ("ss://aes-256-gcm:{session}@h:1", "can't be a template"),
    ],
)
def test_what_can_not_be_used_is_told_in_one_line_without_a_secret(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as raised:
        ExitSpec.parse(text)
    assert "hunter2" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_method_and_password_may_stand_beside_the_url() -> None:
    entry = {"url": "ss://h:1", "cipher": "aes-256-gcm", "password": "{}", "name": "a"}
    assert ExitSpec.parse(entry, Path()).url == "ss://aes-256-gcm:%7B%7D@h:1"


def test_a_chain_may_have_it_at_either_place() -> None:
    via = quote(f"ss://{AES}@a:1", safe="")
    assert ExitSpec.parse(f"socks5://b:1?via={via}").label == (
        "socks5://b:1 via ss://aes-256-gcm:***@a:1"
    )
    assert ExitSpec.parse(f"ss://{AES}@a:1?via=socks5%3A%2F%2Fb%3A1").hops == 2


def test_its_parts_are_shown_without_the_password() -> None:
    assert repr(url.split(f"{AES}@h:1")) == "<SsUrl h:1>"
