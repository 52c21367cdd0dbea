"""The explanation of a decision, for the author of the rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import ip_address

import pytest

from gsocks.access.explain import Explanation, explain
from gsocks.access.rules import Rules
from gsocks.address import Address, IPAddress
from gsocks.errors import NameNotFound

RULES = Rules.parse(
    (
        "deny private",
        "allow *.example.com:443 user alice",
        "deny *.example.com",
        "allow all:443",
    )
)


def resolves_to(*hosts: str) -> Callable[[str], Sequence[IPAddress]]:
    return lambda _: [ip_address(host) for host in hosts]


def never(host: str) -> Sequence[IPAddress]:
    raise NotImplementedError(f"{host} was resolved")


def ask(
    dest: str,
    user: str | None = None,
    resolve: Callable[[str], Sequence[IPAddress]] | None = never,
    rules: Rules = RULES,
) -> Explanation:
    return explain(rules, Address.parse(dest), user, resolve)


def test_an_address_is_judged_at_once() -> None:
    assert ask("10.0.0.1:443") == (False, ("10.0.0.1:443 is denied: rule 'deny private'",))
    assert ask("8.8.8.8:443") == (True, ("8.8.8.8:443 is allowed: rule 'allow all:443'",))


def test_what_no_rule_matches_is_denied() -> None:
    assert ask("8.8.8.8:80") == (False, ("8.8.8.8:80 is denied: no rule allows it",))


def test_a_name_that_is_denied_whatever_its_addresses_is_not_resolved() -> None:
    assert ask("www.example.com:80") == (
        False,
        ("www.example.com:80 is denied: rule 'deny *.example.com'",),
    )


def test_a_name_that_is_allowed_whatever_its_addresses_is_not_resolved() -> None:
    told = ask("example.org:80", rules=Rules.parse(["allow all"]))
    assert told == (True, ("example.org:80 is allowed: rule 'allow all'",))


def test_where_its_addresses_decide_each_of_them_is_told() -> None:
    assert ask("example.org:443", None, resolves_to("10.0.0.1", "8.8.8.8", "::1")) == (
        True,
        (
            "example.org:443 is undecided: its addresses decide",
            "example.org:443 at 10.0.0.1 is denied: rule 'deny private'",
            "example.org:443 at 8.8.8.8 is allowed: rule 'allow all:443'",
            "example.org:443 at ::1 is denied: rule 'deny private'",
        ),
    )


def test_a_name_with_no_allowed_address_is_denied() -> None:
    told = ask("example.org:443", None, resolves_to("10.0.0.1", "::1"))
    assert not told.allowed
    assert len(told.lines) == 3


@pytest.mark.parametrize(("user", "allowed"), [("alice", True), ("bob", False), (None, False)])
def test_the_user_counts(user: str | None, allowed: bool) -> None:
    assert ask("www.example.com:443", user, resolves_to("8.8.8.8")).allowed is allowed


def test_a_name_that_does_not_resolve_is_told() -> None:
    def resolve(host: str) -> Sequence[IPAddress]:
        raise NameNotFound(f"{host}: no such name")

    assert ask("example.org:443", None, resolve) == (
        False,
        (
            "example.org:443 is undecided: its addresses decide",
            "example.org:443 can't be resolved: example.org: no such name",
        ),
    )


def test_where_names_are_resolved_behind_the_exit_its_rules_decide() -> None:
    told = ask("example.org:443", None, None)
    assert told.allowed
    assert told.lines[-1] == (
        "example.org:443 is resolved behind the exit, whose own rules check its addresses"
    )
    assert not ask("www.example.com:80", None, None).allowed
