"""The way to the store in TLS: a private authority, certificates of clients, users of an ACL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from gsocks import config
from gsocks.errors import ConfigError, StoreFailed
from gsocks.fleet.store import Store, check
from tests.support.fleets import becomes, gateways, settings
from tests.support.program import gsocks
from tests.support.proxies import authority
from tests.support.redis_server import RedisServer, cluster, tls_sentinel, tls_server

#: the rights that docs/fleet.md names
RIGHTS = ("~gsocks:*", "&gsocks:*", "+@all", "-@dangerous")
PASSWORD = "s3cret-word"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RedisServer, int]]:
    with tls_server(tmp_path_factory.mktemp("redis"), authority()) as (plain, port):
        admin = plain.client()
        admin.execute_command("ACL", "SETUSER", "gw", "on", f">{PASSWORD}", *RIGHTS)
        yield plain, port


def write_files(folder: Path, of: trustme.CA | None = None) -> dict[str, Any]:
    """The files that a gateway has, as the settings name them; its certificate is by ``of``."""
    issued = (of or authority()).issue_cert("gateway.example")
    issued.private_key_pem.write_to_path(str(folder / "gateway.key"))
    issued.cert_chain_pems[0].write_to_path(str(folder / "gateway.pem"))
    authority().cert_pem.write_to_path(str(folder / "ca.pem"))
    (folder / "password").write_text(PASSWORD + "\n")
    (folder / "password").chmod(0o600)
    return {
        "ca": folder / "ca.pem",
        "cert": folder / "gateway.pem",
        "key": folder / "gateway.key",
        "password_file": folder / "password",
    }


def asked(of: config.State) -> str:
    """What a store answers, or why it does not, in one line that has no secret."""
    store = Store(of, "00000000")
    try:
        told = repr(store.exchange([("GET", "gsocks:1:mark")]))
    except StoreFailed as error:
        told = str(error)
    finally:
        store.close()
    assert "\n" not in told
    assert PASSWORD not in told
    return told


def test_gateways_share_over_tls_by_certificate_user_and_password_file(
    server: tuple[RedisServer, int], tmp_path: Path
) -> None:
    of = settings(f"rediss://gw@127.0.0.1:{server[1]}", **write_files(tmp_path))
    with gateways(of) as (one, two):
        one.group.ban("e0", 60.0)
        becomes(lambda: two.state("e0") == "banned")
        assert one.fleet.sync.state == "ok"
        assert PASSWORD not in repr(one.fleet.store) + repr(of)


@pytest.mark.parametrize(
    ("without", "why"),
    [
        ("ca", "CERTIFICATE_VERIFY_FAILED"),
        ("password_file", "invalid username-password pair"),
        ("cert", ""),  # it hangs up, which is told as that or as an alert
    ],
)
def test_what_is_missing_on_the_way_to_the_store_is_one_line(
    server: tuple[RedisServer, int], tmp_path: Path, without: str, why: str
) -> None:
    more = write_files(tmp_path)
    del more[without]
    if without == "cert":
        del more["key"]
    of = settings(f"rediss://gw@127.0.0.1:{server[1]}", **more)
    told = asked(of)
    assert told.startswith(f"rediss://gw:***@127.0.0.1:{server[1]}: ")
    assert why in told
    assert check(of).endswith("(each gateway goes on alone meanwhile)")


def test_the_store_is_known_by_the_name_in_its_certificate(
    server: tuple[RedisServer, int], tmp_path: Path
) -> None:
    of = settings(f"rediss://gw@localhost:{server[1]}", **write_files(tmp_path))
    assert "not valid for 'localhost'" in asked(of)


@pytest.mark.parametrize("name", ["ca", "cert", "key"])
@pytest.mark.parametrize("text", [None, "no certificate, " + PASSWORD])
def test_a_file_that_can_not_be_used_is_told_by_its_name(
    server: tuple[RedisServer, int], tmp_path: Path, name: str, text: str | None
) -> None:
    more = write_files(tmp_path)
    if text is None:
        more[name].unlink()
    else:
        more[name].write_text(text)
    of = settings(f"rediss://gw@127.0.0.1:{server[1]}", **more)
    assert str(more[name]) in asked(of)
    with pytest.raises(ConfigError, match=str(more[name])) as caught:
        check(of)
    assert PASSWORD not in str(caught.value)


def test_an_encrypted_key_is_refused_and_no_password_is_asked_for(tmp_path: Path) -> None:
    more = write_files(tmp_path)
    secret = tmp_path / "secret.key"
    key = serialization.load_pem_private_key(more["key"].read_bytes(), None)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    secret.write_bytes(key.private_bytes(*form, serialization.BestAvailableEncryption(b"word")))
    with pytest.raises(ConfigError, match="is encrypted"):
        check(settings("rediss://127.0.0.1:9", **{**more, "key": secret}))


def test_renewed_files_are_taken_at_the_next_connect_without_a_restart(
    server: tuple[RedisServer, int], tmp_path: Path
) -> None:
    plain, port = server
    stranger = trustme.CA()
    of = settings(f"rediss://gw@127.0.0.1:{port}", **write_files(tmp_path, stranger))
    with gateways(of, 1) as (one,):
        assert not one.fleet.sync.is_in_touch
        one.group.ban("e1", 60.0)
        write_files(tmp_path)
        becomes(lambda: one.fleet.sync.is_in_touch)
        becomes(lambda: plain.client().keys("gsocks:1:r:local:ban:e1"))


def test_sentinels_are_asked_in_tls_too(tmp_path: Path) -> None:
    files = write_files(tmp_path)
    with (
        tls_server(tmp_path / "master", authority()) as (plain, port),
        tls_sentinel(tmp_path / "sentinel", port, authority()) as watching,
    ):
        plain.client().execute_command("ACL", "SETUSER", "gw", "on", f">{PASSWORD}", *RIGHTS)
        of = settings(f"rediss+sentinel://gw@127.0.0.1:{watching}/main", **files)
        assert check(of).startswith("shared at rediss+sentinel://")
        with gateways(of) as (one, two):
            one.group.ban("e0", 60.0)
            becomes(lambda: two.state("e0") == "banned")
        unknown = settings(f"rediss+sentinel://gw@127.0.0.1:{watching}/other", **files)
        assert asked(unknown) == f"{unknown.url}: no Sentinel that answers knows this master"


def test_a_cluster_is_asked_in_tls_at_each_of_its_nodes(tmp_path: Path) -> None:
    files = write_files(tmp_path)
    with cluster(tmp_path / "nodes", authority=authority()) as nodes:
        for node in nodes:
            node.client().execute_command("ACL", "SETUSER", "gw", "on", f">{PASSWORD}", *RIGHTS)
        url = f"rediss+cluster://gw@127.0.0.1:{nodes[0].tls_port}"
        of = settings(url, **files)
        assert check(of).startswith("shared at rediss+cluster://gw:***@")
        with gateways(of) as (one, two):
            for number in range(4):
                one.group.ban(f"e{number}", 60.0)
            becomes(lambda: {two.state(f"e{number}") for number in range(4)} == {"banned"})
        assert all(node.client().keys("gsocks:1:*") for node in nodes)
        stranger = settings(url, **write_files(tmp_path, trustme.CA()))
        assert "cannot be connected" in asked(stranger)


def test_check_says_whether_the_way_to_the_store_is_right(
    server: tuple[RedisServer, int], tmp_path: Path
) -> None:
    write_files(tmp_path)
    path = tmp_path / "config.yaml"
    begin = f"local: {{listen: 127.0.0.1:0}}\nstate: {{url: 'rediss://gw@127.0.0.1:{server[1]}'"
    whole = f"{begin}, password_file: password, ca: ca.pem, cert: gateway.pem, key: gateway.key}}"
    path.write_text(whole)
    checked = gsocks("check", "-c", path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"shared at rediss://gw:***@127.0.0.1:{server[1]}" in checked.stdout + checked.stderr
    path.write_text(whole.replace("key: gateway.key", "key: ca.pem"))
    checked = gsocks("check", "-c", path)
    told = checked.stdout + checked.stderr
    assert checked.returncode != 0
    assert "ca.pem" in told
    assert "Traceback" not in told
    for wrong, why in (
        ("key: gateway.key", "needs the certificate that it belongs to"),
        ("cert: gateway.pem", "needs TLS"),
    ):
        url = begin if "key" in wrong else begin.replace("rediss", "redis")
        path.write_text(f"{url}, {wrong}}}")
        assert why in gsocks("check", "-c", path).stderr
