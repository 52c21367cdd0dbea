"""Addresses held, shared, and refused."""

import errno
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from gsocks.address import Address
from gsocks.errors import ConfigError
from gsocks.net.listen import defer_accept, listen, reserve

ANY_PORT = Address("127.0.0.1", 0)


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def bound(sock: socket.socket) -> Address:
    return Address.from_sockaddr(sock.getsockname())


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def accept(sock: socket.socket, seconds: float = 20) -> socket.socket:
    assert select.select([sock], [], [], seconds)[0]
    return sock.accept()[0]


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", pytest.param("::1", marks=needs_ipv6)])
def test_a_listener_takes_clients_and_does_not_block(host: str, closing: ExitStack) -> None:
    sock = closing.enter_context(listen(Address(host, 0)))
    assert bound(sock).port
    with pytest.raises(BlockingIOError):
        sock.accept()
    reached_at = "127.0.0.1" if host == "0.0.0.0" else host
    closing.enter_context(socket.create_connection((reached_at, bound(sock).port)))


def test_a_client_is_handed_over_with_its_first_words(closing: ExitStack) -> None:
    sock = defer_accept(closing.enter_context(listen(ANY_PORT)))
    client = closing.enter_context(socket.create_connection(bound(sock)))
    with pytest.raises(BlockingIOError):
        sock.accept()
    client.sendall(b"hello")
    accepted = closing.enter_context(accept(sock))
    assert accepted.recv(5, socket.MSG_DONTWAIT) == b"hello"


def test_a_client_that_ends_without_a_word_is_handed_over_at_once(closing: ExitStack) -> None:
    sock = defer_accept(closing.enter_context(listen(ANY_PORT)))
    socket.create_connection(bound(sock)).close()
    assert closing.enter_context(accept(sock)).recv(1) == b""


def test_a_client_that_says_nothing_is_handed_over_after_a_while(closing: ExitStack) -> None:
    sock = defer_accept(closing.enter_context(listen(ANY_PORT)))
    closing.enter_context(socket.create_connection(bound(sock)))
    closing.enter_context(accept(sock))


def test_without_defer_accept_a_silent_client_is_handed_over_at_once(
    closing: ExitStack,
) -> None:
    sock = closing.enter_context(listen(ANY_PORT))
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) == 0


def test_an_address_that_is_listened_on_is_told_to_be_in_use(closing: ExitStack) -> None:
    address = bound(closing.enter_context(listen(ANY_PORT)))
    for attempt in (listen, reserve):
        with pytest.raises(ConfigError) as caught:
            attempt(address)
        assert str(caught.value) == f"{address}: address already in use"


def test_a_port_shared_by_workers_is_not_shared_with_a_second_start(closing: ExitStack) -> None:
    held = closing.enter_context(reserve(ANY_PORT))
    for attempt in (listen, reserve):
        with pytest.raises(ConfigError, match="already in use"):
            attempt(bound(held))
    closing.enter_context(listen(bound(held), reuse_port=True))
    for attempt in (listen, reserve):
        with pytest.raises(ConfigError, match="already in use"):
            attempt(bound(held))


def test_workers_listen_beside_each_other_on_a_port_that_is_held(closing: ExitStack) -> None:
    held = closing.enter_context(reserve(ANY_PORT))
    address = bound(held)
    assert address.port
    workers = [closing.enter_context(listen(address, reuse_port=True)) for _ in range(3)]
    for _ in range(60):
        closing.enter_context(socket.create_connection(address))
    for _ in range(60):
        ready, _, _ = select.select(workers, [], [], 10)
        closing.enter_context(ready[0].accept()[0])


def test_a_port_that_is_only_held_refuses_clients(closing: ExitStack) -> None:
    held = closing.enter_context(reserve(ANY_PORT))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(bound(held))


def test_a_port_that_clients_have_just_left_is_free_again() -> None:
    with listen(ANY_PORT) as sock:
        address = bound(sock)
        with socket.create_connection(address) as client:
            client.sendall(b"hello")
            # the server's end closes first and stays in TIME_WAIT
            accept(sock).close()
    listen(address).close()
    with reserve(address):
        listen(address, reuse_port=True).close()


@needs_ipv6
def test_both_families_may_have_the_same_port(closing: ExitStack) -> None:
    for _ in range(20):  # another program may have the port in the other family
        first = bound(closing.enter_context(listen(Address("::", 0))))
        try:
            closing.enter_context(listen(Address("0.0.0.0", first.port)))
        except ConfigError:
            continue
        return
    pytest.fail("no port could be had in both families")


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        listen(Address("192.0.2.1", 1080))
    assert str(caught.value) == "192.0.2.1:1080: this machine has no such address"


def test_a_name_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        listen(Address("proxy.example", 1080))
    assert str(caught.value) == ("proxy.example:1080: a listener needs an IP address")


def test_a_machine_without_that_family_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*args: object) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    monkeypatch.setattr("gsocks.net.listen.socket.socket", unsupported)
    with pytest.raises(ConfigError) as caught:
        listen(Address("::1", 1080))
    assert str(caught.value) == "[::1]:1080: this machine has no addresses of that family"


def test_a_privileged_port_is_told_to_be_one() -> None:
    script = """
import os
from gsocks.address import Address
from gsocks.errors import ConfigError
from gsocks.net.listen import defer_accept, listen
if os.getuid() == 0:
    os.setresuid(65534, 65534, 65534)
try:
    listen(Address("127.0.0.1", 1))
except ConfigError as error:
    print(error)
else:
    print("allowed")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    if done.stdout == "allowed\n":
        pytest.skip("net.ipv4.ip_unprivileged_port_start lets everybody")
    assert done.stdout == (
        "127.0.0.1:1: permission denied (ports below 1024 need root or CAP_NET_BIND_SERVICE)\n"
    )
