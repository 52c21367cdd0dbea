"""Which listeners other machines can reach, and which of them would be open to all."""

from __future__ import annotations

from gsocks.address import Address
from gsocks.config.schema import Local
from gsocks.messages import Mistake
from gsocks.net.endpoint import Endpoint
from gsocks.net.listen import is_local


def is_remote(endpoint: Endpoint) -> bool:
    """Whether other machines can reach it; of a passed socket, that is seen when it is passed."""
    return isinstance(endpoint, Address) and not is_local(endpoint)


def check_open(local: Local) -> None:
    """Raise Mistake if other machines can reach an address at which anyone may come in."""
    if not local.allow_anonymous:
        for listener in local.listen:
            if is_remote(listener.address) and not local.is_guarded(listener):
                raise Mistake(
                    f"{listener.address} would be an open proxy for all machines that can reach it"
                    " (add users, or allow_anonymous: true if that is intended)",
                    ".local.listen",
                )
