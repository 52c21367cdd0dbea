"""The options of both servers, as a Python program gives them."""

from __future__ import annotations

import pytest

from gsocks import Limits, LocalOptions, LocalServer, RemoteServer, ServerOptions, Timeouts
from gsocks.crypto import Key
from gsocks.inbound.options import ListenerOptions, collect

ANYWHERE = ("127.0.0.1", 0)
KEYS = {"mine": Key(bytes(32))}


def test_options_are_keywords() -> None:
    local = LocalServer(ANYWHERE, ["direct"], limits=Limits(connections=3))
    server = RemoteServer(ANYWHERE, ["direct"], KEYS, timeouts=Timeouts(handshake=2.0))
    assert local.limits == Limits(connections=3)
    assert server.timeouts == Timeouts(handshake=2.0)


def test_options_are_one_object() -> None:
    options = LocalOptions(limits=Limits(connections=3), timeouts=Timeouts(idle=9.0))
    local = LocalServer(ANYWHERE, options=options)
    assert (local.limits, local.timeouts) == (options.limits, options.timeouts)


def test_a_keyword_counts_over_the_object() -> None:
    options = ServerOptions(limits=Limits(connections=3), timeouts=Timeouts(idle=9.0))
    server = RemoteServer(ANYWHERE, ["direct"], KEYS, options, limits=Limits(connections=7))
    assert (server.limits.connections, server.timeouts.idle) == (7, 9.0)
    assert options.limits.connections == 3


@pytest.mark.parametrize(
    ("keyword", "message"),
    [
        ("usrs", r"LocalServer has no option usrs \(did you mean users\?\)$"),
        ("guard", r"LocalServer has no option guard$"),
        ("colour", r"LocalServer has no option colour$"),
    ],
)
def test_an_option_that_does_not_exist_is_a_type_error(keyword: str, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        LocalServer(ANYWHERE, ["direct"], None, **{keyword: None})


def test_an_option_of_local_alone_is_none_of_the_servers() -> None:
    with pytest.raises(TypeError, match="RemoteServer has no option users"):
        RemoteServer(ANYWHERE, ["direct"], KEYS, users={})


def test_an_options_object_of_the_other_server_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="LocalServer takes LocalOptions, not ServerOptions"):
        LocalServer(ANYWHERE, options=ServerOptions())  # type: ignore[arg-type]


def test_a_class_of_a_programs_own_is_named_by_its_own_name() -> None:
    class Mine(LocalServer):
        pass

    with pytest.raises(TypeError, match="Mine has no option colour"):
        Mine(ANYWHERE, colour="red")


def test_options_cannot_be_changed_once_they_are_made() -> None:
    with pytest.raises(AttributeError):
        LocalOptions().limits = Limits()  # type: ignore[misc]


def test_without_keywords_the_object_is_taken_as_it_is() -> None:
    options = ListenerOptions()
    assert collect("it", ListenerOptions, options, {}) is options
    assert collect("it", ListenerOptions, None, {}) == options
