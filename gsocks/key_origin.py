"""Keys that lie in no file: in the environment, or with a vault that a command asks.

Neither is kept by gsocks, and no message repeats what a variable or a command has said.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from gevent._hub_local import get_hub_if_exists

from gsocks.crypto import Key
from gsocks.errors import ConfigError
from gsocks.messages import Mistake, shown

#: seconds for a command to print the key
COMMAND_TIMEOUT = 10.0

#: bytes of its output; a key's line has 44 at most
_MAX_SIZE = 1024

#: words of a command
_MAX_WORDS = 100


class KeyVariable(NamedTuple):
    """An environment variable that holds a key in base64."""

    name: str

    def read(self) -> Key:
        """Raises ConfigError."""
        text = os.environ.get(self.name)
        if text is None:
            raise ConfigError(f"the environment has no variable {self.name}")
        try:
            return Key.parse(text.strip())
        except ConfigError as error:
            raise ConfigError(f"the variable {self.name}: {error}") from None


class KeyCommand(NamedTuple):
    """A command that prints a key in base64; it is run without a shell."""

    words: tuple[str, ...]

    def read(self) -> Key:
        """Run it, for :data:`COMMAND_TIMEOUT` seconds at most.  Raises ConfigError."""
        # In a thread, a loop that turns meanwhile could be told of the command's end first, and its
        # failure would look like status 0: gevent's own waits for it instead.
        hub = get_hub_if_exists()
        # (the loops of other threads than the main one can't wait for processes)
        by_the_loop = hub is not None and hub.loop.default
        if by_the_loop:
            # here, since it is a thirtieth of the time that a start takes, and few have commands
            import gevent.subprocess

            output = self._output(gevent.subprocess)
        else:
            output = self._output(subprocess)
        try:
            return Key.parse(output.decode("ascii").strip())
        except (ConfigError, UnicodeDecodeError):
            raise ConfigError(
                f"{self.words[0]}: printed something that is no key (expected one line of base64)"
            ) from None

    def _output(self, subprocess: Any) -> bytes:
        name = self.words[0]
        try:
            done = subprocess.run(  # the operator's own command, and no shell
                self.words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                timeout=COMMAND_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ConfigError(f"{name}: has printed no key in {COMMAND_TIMEOUT:g} s") from None
        except OSError as error:
            raise ConfigError(f"{name}: {error.strerror}") from None
        if done.returncode:
            raise ConfigError(f"{name}: failed with status {done.returncode}")
        printed: bytes = done.stdout
        return printed[: _MAX_SIZE + 1]


KeyOrigin: TypeAlias = KeyVariable | KeyCommand


def parse_variable(value: object) -> KeyVariable:
    """The variable of that name.  Raises Mistake."""
    if not isinstance(value, str) or not value.isidentifier() or not value.isascii():
        raise Mistake(f"{shown(value)} is not the name of an environment variable")
    return KeyVariable(value)


def parse_command(value: object) -> KeyCommand:
    """The command that a list of words is.  Raises Mistake."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise Mistake("not a list of words (expected e.g. [pass, show, gsocks]; there is no shell)")
    words = tuple(value)
    for word in words:
        if not isinstance(word, str) or not word.isprintable():
            raise Mistake(f"{shown(word)} is not a word of a command")
    if not words or not words[0] or len(words) > _MAX_WORDS:
        raise Mistake(f"needs a command of 1 to {_MAX_WORDS} words")
    return KeyCommand(words)
