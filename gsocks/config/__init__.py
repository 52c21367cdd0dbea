"""The configuration file: YAML in, frozen structs out, and each mistake reported in one line."""

from gsocks.config.changes import changes, needing_restart, reloaded
from gsocks.config.convert import completed, load, parse
from gsocks.config.routes import Leg, Route
from gsocks.config.schema import (
    Addresses,
    Admin,
    Config,
    Exits,
    Forwards,
    KeySource,
    KeySources,
    ListenAddress,
    ListenAddresses,
    Local,
    Log,
    Routes,
    Section,
    Server,
    Shadowsocks,
    State,
)

__all__ = [
    "Addresses",
    "Admin",
    "Config",
    "Exits",
    "Forwards",
    "KeySource",
    "KeySources",
    "Leg",
    "ListenAddress",
    "ListenAddresses",
    "Local",
    "Log",
    "Route",
    "Routes",
    "Section",
    "Server",
    "Shadowsocks",
    "State",
    "changes",
    "completed",
    "load",
    "needing_restart",
    "parse",
    "reloaded",
]
