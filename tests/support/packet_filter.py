"""Rules of the kernel's packet filter, as docs/redirect.md has them, in a network of the test."""

from __future__ import annotations

import re
import subprocess

from tests.support import needs
from tests.support.network import ip
from tests.support.program import ROOT
from tests.support.waiting import TOO_LONG

PAGE = ROOT / "docs" / "redirect.md"

#: where the redirected connections of these tests go: addresses of this network alone
HERE4, HERE6 = "198.51.100.7", "2001:db8::7"


def documented(language: str) -> str:
    """The only block of that language on the page."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return str(found)


def nft(rules: str) -> None:
    """Have the kernel take ``rules``."""
    subprocess.run(
        [needs.program("nft", "nftables"), "-f", "-"],
        input=rules,
        check=True,
        text=True,
        timeout=TOO_LONG,
    )


def public_addresses() -> None:
    """Give this network addresses that are not private, and a way to all others."""
    ip(f"address add {HERE4}/32 dev lo")
    ip(f"address add {HERE6}/128 dev lo nodad")  # at once, without a look for others that have it
    ip("route add default dev card")
    ip("-6 route add default dev card")
