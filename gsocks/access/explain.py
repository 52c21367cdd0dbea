"""Explains why the rules allow or deny a destination, for the author of the rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from gsocks.access.rules import Decision, Rules, Verdict
from gsocks.address import Address, IPAddress
from gsocks.errors import ConnectFailed


class Explanation(NamedTuple):
    """The decision of one end's rules about a destination."""

    #: whether at least one address of the destination is allowed
    allowed: bool
    #: each step of the decision, as a sentence
    lines: tuple[str, ...]


def explain(
    rules: Rules,
    dest: Address,
    user: str | None,
    resolve: Callable[[str], Sequence[IPAddress]] | None,
) -> Explanation:
    """How ``rules`` decide about a request of ``user`` for ``dest``.

    ``resolve`` returns the addresses of a name or raises ConnectFailed, and is called only where
    the rules need them; None if the exits of this end resolve names themselves.
    """
    first = rules.before_resolving(dest, user)
    lines = [f"{dest} is {_in_words(first)}"]
    if first.verdict is not Verdict.DEPENDS:
        return Explanation(first.verdict is Verdict.ALLOW, tuple(lines))
    if resolve is None:
        lines.append(f"{dest} is resolved behind the exit, whose own rules check its addresses")
        return Explanation(True, tuple(lines))
    try:
        addresses = resolve(dest.host)
    except ConnectFailed as error:
        lines.append(f"{dest} can't be resolved: {error}")
        return Explanation(False, tuple(lines))
    decisions = [rules.for_ip(dest, ip, user) for ip in addresses]
    lines += [
        f"{dest} at {ip} is {_in_words(decision)}"
        for ip, decision in zip(addresses, decisions, strict=True)
    ]
    return Explanation(any(each.verdict is Verdict.ALLOW for each in decisions), tuple(lines))


def _in_words(decision: Decision) -> str:
    word = {Verdict.ALLOW: "allowed", Verdict.DENY: "denied", Verdict.DEPENDS: "undecided"}
    return f"{word[decision.verdict]}: {decision.reason}"
