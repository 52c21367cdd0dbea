"""What a client asks of the choice of its exit, and the words in which it may be said."""

from __future__ import annotations

import re
from typing import NamedTuple

from gsocks.units import format_duration
from gsocks.wording import shown

#: characters of a session's id, of a tag and of an exit's name
LONGEST_WORD = 64

_SESSION = re.compile(rf"[A-Za-z0-9_.-]{{1,{LONGEST_WORD}}}")
_WORD = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.-]{{0,{LONGEST_WORD - 1}}}")
_COUNTRY = re.compile(r"[A-Za-z]{2}")


class Wish(NamedTuple):
    """What a client asks of the choice of its exit."""

    #: requests with the same one have the same exit
    session: str | None = None
    #: seconds for which a session keeps its exit, from its first use; None: the door's bound
    lifetime: float | None = None
    #: two letters, lower case
    country: str | None = None
    #: the exit has all of them; lower case, sorted, none twice
    tags: tuple[str, ...] = ()
    #: the exit's name, lower case
    exit: str | None = None

    def __str__(self) -> str:
        """What is asked, in the words of a config."""
        said: dict[str, object] = {"session": self.session}
        if self.lifetime is not None:
            said["lifetime"] = format_duration(self.lifetime)
        said |= {"country": self.country, "tags": " ".join(self.tags), "exit": self.exit}
        return ", ".join(f"{key} {value}" for key, value in said.items() if value)

    def over(self, other: Wish) -> Wish:
        """This wish, and where it says nothing, what ``other`` says: key by key."""
        return Wish(
            self.session or other.session,
            self.lifetime or other.lifetime,
            self.country or other.country,
            self.tags or other.tags,
            self.exit or other.exit,
        )


#: whichever exit the policy chooses
ANY = Wish()


def as_session(text: object) -> str:
    """``text``, if it can name a session.  Raises ValueError, as the others here do."""
    if isinstance(text, str) and _SESSION.fullmatch(text):
        return text
    raise ValueError(
        f"{shown(text)} is not a session (expected at most {LONGEST_WORD} letters, digits, _ . -)"
    )


def as_country(text: object) -> str:
    """A country's two letters, in lower case."""
    if isinstance(text, str) and _COUNTRY.fullmatch(text):
        return text.lower()
    raise ValueError(f"{shown(text)} is not a country (expected a two-letter code such as de)")


def as_tag(text: object) -> str:
    """A tag, in lower case."""
    return _word(text, "a tag (expected a word such as residential)")


def as_exit(text: object) -> str:
    """An exit's name, in lower case."""
    return _word(text, "the name of an exit (expected a word such as berlin-1)")


def _word(text: object, what: str) -> str:
    if isinstance(text, str) and _WORD.fullmatch(text):
        return text.lower()
    raise ValueError(f"{shown(text)} is not {what}")
