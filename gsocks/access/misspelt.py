"""User names whose parameters are misspelt, at a listener that requires no login.

There a name may be anything: what no parameter is found in selects nothing, and the client is
served as if it had sent none.  So ``sesion-x1`` would go unnoticed, and each request would have
another exit.  Such names are told in the log, and counted.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

from gsocks.access.username_style import UserNameStyle
from gsocks.messages import did_you_mean, shown

log = logging.getLogger("gsocks.users")

#: words of a name that are looked at, and characters of one
_MAX_WORDS = 8
_MAX_WORD = 24

#: how similar a word is to the key that was meant: ``sesion``, ``contry``, ``sessionid``
_CUTOFF = 0.75


class IgnoredNames:
    """Names that select nothing, though they seem to be meant to."""

    #: names that are told in the log; strangers could fill it with others
    max_told = 100

    def __init__(self) -> None:
        #: how many such names came, each time that they did
        self.count = 0
        self._told: set[str] = set()

    def note(self, name: str, why: str) -> None:
        """A client with that name was served, and it selects nothing because of ``why``."""
        self.count += 1
        if name in self._told or len(self._told) >= self.max_told:
            return
        self._told.add(name)
        log.warning("the user name %s selects nothing: %s", shown(name), why)
        if len(self._told) == self.max_told:
            log.warning("further user names that select nothing are only counted")


#: those of this process
ignored_names = IgnoredNames()


@functools.lru_cache(maxsize=4096)
def misspelt(name: str, styles: Sequence[UserNameStyle]) -> str:
    """What is wrong with a name in which no parameter was found; empty if nothing seems to be.

    ``styles`` have to be hashable.  Names are the clients' own: of a long one only the first words
    are looked at.
    """
    for style in styles:
        if style.in_password:
            continue
        for word, has_value in _words(name, style):
            keys = [key for key, meaning in style.keys.items() if has_value or meaning == "strict"]
            guess = did_you_mean(word.lower(), keys, _CUTOFF)
            if guess and word.lower() not in style.keys:
                return f"{shown(word)} is not a key{guess}"
    return ""


def _words(name: str, style: UserNameStyle) -> list[tuple[str, bool]]:
    """The words that may be keys, and whether a value stands behind each."""
    for separator in (style.start, style.pairs):
        name = name.replace(separator, "\0")
    if style.values in (style.start, style.pairs):
        parts = name.split("\0", _MAX_WORDS)
        found = [(part, number + 1 < len(parts)) for number, part in enumerate(parts)]
    else:
        pairs = [part.partition(style.values) for part in name.split("\0", _MAX_WORDS)]
        found = [(key, bool(mark)) for key, mark, _ in pairs]
    return [each for each in found[:_MAX_WORDS] if 2 < len(each[0]) <= _MAX_WORD]
