"""Authentication of a client by user name and password; the name may carry an exit selector too."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import NamedTuple, TypeAlias

from gsocks.access.misspelt import ignored_names, misspelt
from gsocks.access.username import read_credentials
from gsocks.access.username_style import STANDARD, UserNameStyle
from gsocks.errors import AuthenticationFailed, BadParameters
from gsocks.request import ANY, ExitSelector

#: whether a user has a password (see gsocks.access.users)
VerifyPassword: TypeAlias = Callable[[str, bytes], bool]


class Identity(NamedTuple):
    """An authenticated client, or one of a listener that requires no authentication."""

    #: None if the listener requires no authentication
    user: str | None
    selector: ExitSelector


class Authenticator(NamedTuple):
    """How a listener authenticates its clients.

    ``verify_password``: None if the listener requires no authentication; then only the parameters
    of a client's user name count.  ``users``: the known names, by which a name is separated from
    the parameters behind it.  ``selector``: the listener's exit selector; the parameters of a
    client override it.  ``styles``: how these are written.  ``asks``: whether clients are asked for
    credentials that are not required, since their user names may carry parameters;
    ``prefers_login``: whether those are that offer some besides none.  ``user``: who the client
    has shown to be already, by its certificate.
    """

    verify_password: VerifyPassword | None = None
    users: Container[str] = ()
    selector: ExitSelector = ANY
    styles: Sequence[UserNameStyle] = (STANDARD,)
    asks: bool = False
    prefers_login: bool = False
    user: str | None = None

    @property
    def required(self) -> bool:
        """Whether clients have to authenticate."""
        return self.verify_password is not None

    def anonymous(self) -> Identity:
        """The identity of a client without a user name, where none is required."""
        return Identity(self.user, self.selector)

    def authenticate(self, name: str, password: bytes) -> Identity:
        """The identity of the client that sends these credentials.

        A name without a password may be that of the user of the client's machine, which Java and
        SOCKS4 clients send if they were given no other.  Where none is required, it selects nothing
        if it has no valid parameters; what seems to be misspelt is told in the log.

        Raises AuthenticationFailed, BadParameters (only after the password has proved right: the
        message would tell other clients about the exits), and the errors of ``verify_password``.
        """
        verify = self.verify_password
        users = None if verify is None else self.users
        user, secret, found = read_credentials(name, password, users, self.styles)
        if verify is not None and not verify(user, secret):
            raise AuthenticationFailed(f"no user {user!r} with that password")
        if isinstance(found, BadParameters):
            if verify is not None or password:
                raise found
            ignored_names.note(name, str(found))
            found = ANY
        elif verify is None and found is ANY and name:
            why = misspelt(name, tuple(self.styles))
            if why:
                ignored_names.note(name, why)
        selector = found if self.selector is ANY else found.merge(self.selector)
        return Identity(self.user if verify is None else user, selector)


#: no authentication is required
OPEN = Authenticator()
