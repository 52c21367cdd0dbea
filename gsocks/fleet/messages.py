"""What gateways tell each other over the store's channel, in JSON.

Unknown keys are ignored and unknown kinds are passed over, so that two versions can run side by
side.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

#: bytes of a message; a longer one is not read
MAX_SIZE = 1024 * 1024

#: characters of a record's value; a longer one is not shared
MAX_VALUE = 4096


class Told(Struct, omit_defaults=True, array_like=True):
    """A record: what is known of one thing."""

    section: str
    kind: str
    key: str
    #: see :mod:`gsocks.fleet.hybrid_clock`
    stamp: str
    value: str
    #: when it may be forgotten, in seconds since the epoch
    expires: float


class News(Struct, omit_defaults=True):
    """A message."""

    #: the process that sends it, and the gateway to which it belongs
    node: str
    gateway: str
    records: list[Told] = []
    #: what each part tells, by its name: how something is
    parts: dict[str, Any] = {}
    #: the same of what has happened, which counts once, by its number; 0: nothing has
    events: dict[str, Any] = {}
    number: int = 0


_decoder = msgspec.json.Decoder(News)
_encoder = msgspec.json.Encoder()


def encode(news: News) -> bytes:
    """The message as it is sent."""
    return _encoder.encode(news)


def decode(raw: bytes) -> News:
    """A message.  Raises ValueError for what is none."""
    if len(raw) > MAX_SIZE:
        raise ValueError("too long")
    try:
        return _decoder.decode(raw)
    except msgspec.MsgspecError as error:  # a ValueError in its later versions alone
        raise ValueError(str(error)) from None
