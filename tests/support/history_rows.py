"""Rows of the request log."""

from __future__ import annotations

from typing import Any

from gsocks.history.requests import (
    RequestRow,
)

MB = 1 << 20


def row(**how: Any) -> RequestRow:
    """A row with these fields."""
    plain = RequestRow(
        0, 1000.0, "c1-1", "local", "local", "192.0.2.1:5000", "ann", "", "connect",
        "www.example.com:443", "berlin-1", "198.51.100.7", "ok", "", 0, 0.02, 0.05, 1.5, 10, 100,
        (), "", 3, 2, "round_robin",
    )  # fmt: skip
    return plain._replace(**how)
