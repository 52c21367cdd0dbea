"""Why a destination may be reached or not, for whoever writes the rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from gsocks.address import Address, IPAddress
from gsocks.errors import ConnectFailed
from gsocks.rules import Decision, Rules, Verdict


class Opinion(NamedTuple):
    """What the rules of one end say of a destination."""

    #: whether it may be reached, at one of its addresses at least
    allowed: bool
    #: how that was decided, step by step
    lines: tuple[str, ...]


def judge(
    rules: Rules,
    dest: Address,
    user: str | None,
    resolve: Callable[[str], Sequence[IPAddress]] | None,
) -> Opinion:
    """What ``rules`` say when ``user`` asks for ``dest``.

    ``resolve`` gives the addresses of a name or raises ConnectFailed, and is asked only where
    the rules need them; None is an end whose exits look names up themselves.
    """
    first = rules.before_resolving(dest, user)
    lines = [f"{dest} is {_told(first)}"]
    if first.verdict is not Verdict.DEPENDS:
        return Opinion(first.verdict is Verdict.ALLOW, tuple(lines))
    if resolve is None:
        lines.append(f"{dest} is looked up behind the exit, by whose rules these are judged")
        return Opinion(True, tuple(lines))
    try:
        addresses = resolve(dest.host)
    except ConnectFailed as error:
        lines.append(f"{dest} can't be looked up: {error}")
        return Opinion(False, tuple(lines))
    decisions = [rules.for_ip(dest, ip, user) for ip in addresses]
    lines += [
        f"{dest} at {ip} is {_told(decision)}"
        for ip, decision in zip(addresses, decisions, strict=True)
    ]
    return Opinion(any(each.verdict is Verdict.ALLOW for each in decisions), tuple(lines))


def _told(decision: Decision) -> str:
    word = {Verdict.ALLOW: "allowed", Verdict.DENY: "denied", Verdict.DEPENDS: "undecided"}
    return f"{word[decision.verdict]}: {decision.reason}"
