"""Who comes in at a door, by name and password, and what the name asks of the exit."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import NamedTuple, TypeAlias

from gsocks.errors import AuthenticationFailed
from gsocks.rotation.username import read_parameters, split
from gsocks.wish import ANY, Wish

#: whether that user has that password (see gsocks.users)
Authenticate: TypeAlias = Callable[[str, bytes], bool]


class Caller(NamedTuple):
    """Somebody who has come in."""

    #: None at an open door
    user: str | None
    wish: Wish


class Login(NamedTuple):
    """How the clients of a door say who they are.

    ``authenticate`` decides who may come in; None leaves the door open, and of the name that
    somebody gives only the parameters mean anything.  ``users``: the names that are known, which
    is how they are told from the parameters behind them.  ``wish``: what is asked for whoever
    comes; a client's own parameters count over it.
    """

    authenticate: Authenticate | None = None
    users: Container[str] = ()
    wish: Wish = ANY

    @property
    def required(self) -> bool:
        """Whether nobody may come in without."""
        return self.authenticate is not None

    def unnamed(self) -> Caller:
        """Whoever gives no name, where none is required."""
        return Caller(None, self.wish)

    def enter(self, name: str, password: bytes) -> Caller:
        """Let somebody in.

        Raises AuthenticationFailed, BadParameters (only to those who have the password: what it
        tells is none of the others' business), and what ``authenticate`` raises.
        """
        if self.authenticate is None:
            _, parameters = split(name, None)
            return Caller(None, read_parameters(parameters).over(self.wish))
        user, parameters = split(name, self.users)
        if not self.authenticate(user, password):
            raise AuthenticationFailed(f"no user {user!r} with that password")
        return Caller(user, read_parameters(parameters).over(self.wish))


#: everybody may come in
OPEN = Login()
