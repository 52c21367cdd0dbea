"""What the admin API asks of the service that runs it: its config, users, quotas and exits.

The service has these (gsocks/service/control.py); a listener that a program embeds has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from gsocks.admin.shapes import ConfigCheck, ExitTerms, Quota, RunningConfig, UserSecret
from gsocks.rotation.probe import ProbeTarget


class Control(Protocol):
    """Every method may raise ApiError, and block the calling greenlet.

    What changes something does so in this process, and stores it for the others, which then have to
    call :meth:`take_changes`.
    """

    def users(self) -> Mapping[str, str]:
        """The users of the local end, and where each comes from."""

    def open_connections(self) -> Mapping[str, int]:
        """How many each user has open in this process."""

    def quotas(self) -> dict[str, Quota]:
        """What one user may use at a time, by the names of the sections."""

    def target(self, section: str) -> ProbeTarget:
        """What an exit is checked with."""

    def config(self) -> RunningConfig:
        """What runs, without secrets."""

    def check(self) -> ConfigCheck:
        """What a reload would change, or the mistakes that prevent it."""

    def reload(self) -> None:
        """Have all workers read the config again, as SIGHUP does."""

    def put_exit(self, section: str, name: str, terms: ExitTerms) -> None:
        """Add an exit, or put it in the place of the one of that name."""

    def delete_exit(self, section: str, name: str) -> None:
        """Remove an exit."""

    def reset_exit(self, section: str, name: str) -> None:
        """Have an exit as the config and the lists say again."""

    def put_user(self, name: str, secret: UserSecret) -> None:
        """Add a user, or change the password of the one of that name."""

    def delete_user(self, name: str) -> None:
        """Remove a user."""

    def put_quota(self, section: str, quota: Quota) -> None:
        """Change what one user may use at a time."""

    def take_changes(self) -> None:
        """Take what another worker has stored."""
