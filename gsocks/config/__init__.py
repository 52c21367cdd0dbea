"""The configuration file: YAML in, frozen structs out, and each mistake reported in one line."""

from gsocks.config.changes import needing_restart, reloaded
from gsocks.config.convert import load, parse
from gsocks.config.schema import (
    Addresses,
    Admin,
    Config,
    Exits,
    KeySource,
    KeySources,
    ListenAddress,
    ListenAddresses,
    Local,
    Log,
    Section,
    Server,
)

__all__ = [
    "Addresses",
    "Admin",
    "Config",
    "Exits",
    "KeySource",
    "KeySources",
    "ListenAddress",
    "ListenAddresses",
    "Local",
    "Log",
    "Section",
    "Server",
    "load",
    "needing_restart",
    "parse",
    "reloaded",
]
