"""TLS to a proxy goes by the exit's own authorities, name and certificate; shown with stunnel."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from gsocks import errors
from gsocks.access.rules import ALLOW_ALL
from gsocks.address import Address
from gsocks.errors import ConfigError
from gsocks.exits import ExitDeps, ExitSpec, make_exit
from gsocks.exits.spec import TlsOptions
from gsocks.messages import Mistake
from gsocks.request import Command, Request
from gsocks.rotation.lists import ListOptions, read_list
from tests.support import needs
from tests.support.engine import echo, serving
from tests.support.program import Program, web_server
from tests.support.proxies import microsocks, stunnel, tinyproxy
from tests.support.waiting import TOO_LONG

pytestmark = pytest.mark.usefixtures("never_hangs")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Authorities of the proxy and of its clients, and certificates by them."""
    folder = tmp_path_factory.mktemp("tls")
    proxies, clients = trustme.CA(), trustme.CA()
    proxies.cert_pem.write_to_path(folder / "ca.pem")
    clients.cert_pem.write_to_path(folder / "clients.pem")
    proxies.issue_cert("proxy.example").private_key_and_cert_chain_pem.write_to_path(
        folder / "server.pem"
    )
    for name in ("client", "renewed"):
        client = clients.issue_cert(f"{name}@example.com")
        client.private_key_and_cert_chain_pem.write_to_path(folder / f"{name}.pem")
        client.cert_chain_pems[0].write_to_path(folder / f"{name}.crt")
        client.private_key_pem.write_to_path(folder / f"{name}.key")
    key = serialization.load_pem_private_key((folder / "client.key").read_bytes(), None)
    (folder / "encrypted.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    (folder / "nothing.pem").write_text("a secret text, which is no PEM\n")
    return folder


@pytest.fixture(scope="module")
def proxy(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """tinyproxy behind stunnel, whose certificate is for proxy.example."""
    folder = tmp_path_factory.mktemp("proxy")
    with tinyproxy(folder) as plain, stunnel(folder, files / "server.pem", plain) as address:
        yield address


@pytest.fixture(scope="module")
def guarded(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """The same, for clients with a certificate only."""
    folder = tmp_path_factory.mktemp("guarded")
    wanted = ("verifyChain = yes", f"CAfile = {files}/clients.pem")
    with (
        tinyproxy(folder) as plain,
        stunnel(folder, files / "server.pem", plain, *wanted) as address,
    ):
        yield address


@pytest.fixture(scope="module")
def server() -> Iterator[Address]:
    with serving(echo) as address:
        yield address


@pytest.fixture(scope="module")
def socks(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """microsocks behind stunnel, for clients with a certificate only."""
    folder = tmp_path_factory.mktemp("socks")
    wanted = ("verifyChain = yes", f"CAfile = {files}/clients.pem")
    with (
        microsocks() as plain,
        stunnel(folder, files / "server.pem", plain, *wanted) as address,
    ):
        yield address


def ask(proxy: Address, server: Address, base: Path, **options: object) -> None:
    ask_by("https", proxy, server, base, options)


def ask_by(
    scheme: str, proxy: Address, server: Address, base: Path, options: dict[str, object]
) -> None:
    spec = ExitSpec.parse({"url": f"{scheme}://{proxy}", **options}, base)
    exit_ = make_exit(spec, ExitDeps(ALLOW_ALL))
    stream = exit_.connect(Request(Command.CONNECT, server)).stream
    stream.write(b"hello")
    assert stream.read() == b"hello"
    stream.abort()


@pytest.mark.parametrize(
    "options",
    [
        {"ca": "ca.pem", "sni": "proxy.example"},
        {"insecure": True},
        {"insecure": "true", "sni": "whatever.example"},
    ],
)
def test_a_proxy_is_reached_by_the_exits_own_trust(
    options: dict[str, object], proxy: Address, server: Address, files: Path
) -> None:
    ask(proxy, server, files, **options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "certificate can't be trusted"),
        ({"ca": "clients.pem", "sni": "proxy.example"}, "certificate can't be trusted"),
        ({"ca": "ca.pem"}, "IP address mismatch"),
        ({"ca": "ca.pem", "sni": "other.example"}, "not valid for 'other.example'"),
    ],
)
def test_a_certificate_that_is_not_trusted_is_the_exits_failure(
    options: dict[str, object], reason: str, proxy: Address, server: Address, files: Path
) -> None:
    with pytest.raises(errors.ExitFailed, match=reason):
        ask(proxy, server, files, **options)


@pytest.mark.parametrize(
    "own", [{"cert": "client.pem"}, {"cert": "client.crt", "key": "client.key"}]
)
def test_a_proxy_that_wants_a_certificate_gets_it(
    own: dict[str, object], guarded: Address, server: Address, files: Path
) -> None:
    ask(guarded, server, files, ca="ca.pem", sni="proxy.example", **own)
    ask(guarded, server, files, insecure=True, **own)
    # an alert that TLS 1.3 sends only after the handshake, unless the reset behind it is faster
    with pytest.raises(errors.ConnectFailed, match=r"certificate required|reset by peer"):
        ask(guarded, server, files, insecure=True)


@pytest.mark.parametrize(
    "own", [{"cert": "client.pem"}, {"cert": "client.crt", "key": "client.key"}]
)
def test_socks5_in_tls_has_the_same_trust_and_certificates(
    own: dict[str, object], socks: Address, server: Address, files: Path
) -> None:
    trusting = {**own, "ca": "ca.pem"}
    ask_by("socks5s", socks, server, files, {**trusting, "sni": "proxy.example"})
    with pytest.raises(errors.ExitFailed, match="IP address mismatch"):
        ask_by("socks5s", socks, server, files, trusting)
    with pytest.raises(errors.ConnectFailed, match=r"certificate required|reset by peer"):
        ask_by("socks5s", socks, server, files, {"insecure": True})


def test_files_that_have_changed_are_read_again(
    guarded: Address, server: Address, files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ca, cert = tmp_path / "ca.pem", tmp_path / "client.pem"
    ca.write_bytes((files / "clients.pem").read_bytes())
    cert.write_bytes((files / "client.pem").read_bytes())
    url = f"https://{guarded}?ca=ca.pem&cert=client.pem&sni=proxy.example"
    exit_ = make_exit(ExitSpec.parse(url, tmp_path), ExitDeps(ALLOW_ALL))
    request = Request(Command.CONNECT, server)
    with pytest.raises(errors.ExitFailed, match="can't be trusted"):
        exit_.connect(request)
    replace(ca, files / "ca.pem")
    exit_.connect(request).stream.abort()
    replace(cert, files / "nothing.pem")
    exit_.connect(request).stream.abort()
    assert "the previous TLS files stay in use" in caplog.text
    assert "secret" not in caplog.text
    replace(cert, files / "renewed.pem")
    exit_.connect(request).stream.abort()
    assert caplog.text.count("previous") == 1


def replace(path: Path, new: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(new.read_bytes())
    os.replace(other, path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ca": "missing.pem"}, "missing.pem: No such file or directory"),
        ({"ca": "nothing.pem"}, "nothing.pem: has no certificates in PEM"),
        ({"cert": "missing.pem"}, "missing.pem: No such file or directory"),
        ({"cert": "nothing.pem"}, "nothing.pem: not a certificate and its key in PEM"),
        ({"cert": "client.crt"}, "client.crt: not a certificate and its key in PEM"),
        ({"cert": "client.crt", "key": "missing.key"}, "missing.key: No such file or directory"),
        ({"cert": "client.crt", "key": "renewed.key"}, "renewed.key: is not the key of the"),
        ({"cert": "client.crt", "key": "encrypted.key"}, "encrypted.key: is encrypted, and a pass"),
        (
            {"cert": "client.crt", "key": "nothing.pem"},
            "nothing.pem: not a certificate and its key",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_told_by_its_name(
    options: dict[str, object], message: str, files: Path
) -> None:
    spec = ExitSpec.parse({"url": "https://h:1", **options}, files)
    with pytest.raises(ConfigError) as caught:
        make_exit(spec, ExitDeps(ALLOW_ALL))
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"url": "http://h:1", "ca": "x"},
            "ca: not for http (only for gsocks, https, socks5s, trojan)",
        ),
        ({"url": "socks5://h", "insecure": True}, "insecure: not for socks5 (only for gsocks, h"),
        (
            {"url": "socks5://h", "key": "x"},
            "key: not for socks5 (only for gsocks, https, socks5s, trojan)",
        ),
        ({"url": "https://h:1", "key": "x"}, "key: needs a cert"),
        ({"url": "https://h:1", "insecure": "maybe"}, "insecure: 'maybe' is not true or false"),
        ({"url": "https://h:1", "sni": "a b"}, "sni: 'a b' is not the name of a server"),
        ({"url": "https://h:1", "ca": ["x"]}, "ca: a list is not the path of a file"),
        ({"url": "https://h:1", "ca": "x", "insecure": True}, "insecure: says that no certificate"),
        ("https://h:1?ca=x&ca=y", "ca stands twice"),
    ],
)
def test_a_mistake_is_named(entry: str | dict[str, object], message: str) -> None:
    with pytest.raises(Mistake) as caught:
        ExitSpec.parse(entry)
    assert str(caught.value).lstrip(".").startswith(message)


def test_exits_that_differ_in_tls_are_different_and_one_url_says_all() -> None:
    plain = ExitSpec.parse("https://u:p@h:1", Path("/etc"))
    spec = ExitSpec.parse(
        {"url": "https://u:p@h:1", "ca": "a b", "sni": "N", "cert": "c", "key": "/k"}, Path("/etc")
    )
    assert spec.tls == TlsOptions(Path("/etc/a b"), False, "n", Path("/etc/c"), Path("/k"))
    assert plain.tls is None
    assert spec != plain
    assert ExitSpec.parse(spec.url) == spec
    insecure = ExitSpec.parse("https://u:p@h:1?insecure=true")
    assert ExitSpec.parse(insecure.url) == insecure != plain
    assert ExitSpec.parse("https://u:p@h:1?insecure=false", Path("/etc")) == plain


def test_a_list_has_the_tls_of_its_source_and_one_from_a_url_names_no_files() -> None:
    text = (
        b"https://a:1\nhttp://b:1\nhttps://c:1?ca=mine\nhttps://d:1?insecure=true\n"
        b"https://e:1?sni=x\n"
    )
    given = {"ca": Path("/ca")}
    own = read_list(text, ListOptions("http", given, Path("/etc"))).exits
    assert [spec.tls and spec.tls.ca for spec in own] == [
        *(Path("/ca"), None, Path("/etc/mine"), None, Path("/ca"))
    ]
    foreign = read_list(text, ListOptions("http", given))
    assert [spec.host for spec in foreign.exits] == ["a", "b", "d", "e"]
    assert "can't name a file (ca)" in str(foreign.skipped)


def test_gsocks_check_reads_the_files_and_a_program_goes_by_them(
    proxy: Address, files: Path, tmp_path: Path
) -> None:
    text = (
        "local: {listen: '127.0.0.1:0', rules: [allow all], exits: ['https://%s?ca=%s&sni=%s']}\n"
    )
    config = tmp_path / "config.yaml"
    config.write_text(text % (proxy, files / "missing.pem", "proxy.example"))
    with Program("check", "-c", config) as check:
        assert check.end() == 2
    assert "missing.pem: No such file or directory" in check.log
    config.write_text(text % (proxy, files / "ca.pem", "proxy.example"))
    with Program("-c", config) as program, web_server() as web:
        told = subprocess.run(
            [needs.program("curl"), "-sS", "-x", f"http://127.0.0.1:{program.port()}",
             f"http://127.0.0.1:{web}/text/secured"],
            capture_output=True, check=True, timeout=TOO_LONG,
        )  # fmt: skip
        assert told.stdout == b"secured"
