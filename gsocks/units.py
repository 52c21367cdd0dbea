"""Durations, sizes and rates, as a config and log lines have them.

A duration is a float of seconds, a size an int of bytes, a rate a float of bytes per second.
"""

from __future__ import annotations

import math
import re

from gsocks.messages import shown

_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_BYTES = {
    "B": 1,
    "kB": 1000,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
    "TiB": 1024**4,
}

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_PLAIN = re.compile(_NUMBER)
# Each unit once and the larger first: "30m1h" is more likely a mistake than meant.
_DURATION = re.compile("".join(rf"(?:({_NUMBER}){unit})?" for unit in _SECONDS))
_SIZE = re.compile(rf"({_NUMBER}) ?([A-Za-z]*)")


def parse_duration(value: str | float) -> float:
    """Seconds from ``10s``, ``250ms``, ``1h30m``, ``1.5h`` or a bare number of seconds.

    Zero is allowed; negative and infinite values are not.  Raises ValueError, which says what was
    expected.
    """
    text = _text(value)
    if _PLAIN.fullmatch(text):
        seconds = float(text)
    else:
        match = _DURATION.fullmatch(text)
        if not text or match is None:
            raise _refusal(value, "a duration", "30s, 10m or 1h30m")
        seconds = sum(
            float(count) * unit
            for count, unit in zip(match.groups("0"), _SECONDS.values(), strict=True)
        )
    if not math.isfinite(seconds):
        raise _refusal(value, "a duration", "30s, 10m or 1h30m")
    return seconds


def format_duration(seconds: float) -> str:
    """``1h30m``, ``12.5s`` or ``250ms``: to the millisecond, and readable by parse_duration."""
    milliseconds = round(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    text = ""
    for unit in ("d", "h", "m"):
        whole, milliseconds = divmod(milliseconds, round(_SECONDS[unit] * 1000))
        if whole:
            text += f"{whole}{unit}"
    if milliseconds:
        text += f"{milliseconds / 1000:g}s"
    return text


def parse_size(value: str | float) -> int:
    """Bytes from ``64KiB`` (1024), ``10MB`` (1000 squared) or a bare number of bytes.

    ``64K`` and ``10Mb`` are refused, because their meaning is ambiguous.  Raises ValueError, which
    says what was expected.
    """
    match = _SIZE.fullmatch(_text(value))
    unit = _BYTES.get(match[2] or "B") if match else None
    if match is None or unit is None or not math.isfinite(float(match[1]) * unit):
        raise _refusal(value, "a size", "65536, 64KiB or 10MB")
    return round(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit


def format_size(size: float) -> str:
    """``64KiB`` or ``1.4MiB``: the largest binary unit that fits, to one decimal."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        # a size that would round to 1024 of the next smaller unit is shown as 1 of this one
        if size >= _BYTES[unit] * (1 - 0.05 / 1024):
            return f"{size / _BYTES[unit]:.1f}".removesuffix(".0") + unit
    return f"{size:.0f}B"


def parse_rate(value: str | float) -> float:
    """Bytes per second from ``10MB/s`` or a bare number of them.

    Raises ValueError, which says what was expected.
    """
    try:
        return float(parse_size(_text(value).removesuffix("/s")))
    except ValueError:
        raise _refusal(value, "a rate", "64KiB/s or 10MB/s") from None


def format_rate(rate: float) -> str:
    """``1.4MiB/s``: a size per second."""
    return format_size(rate) + "/s"


def _text(value: str | float) -> str:
    # True is an int to Python, but no quantity.
    return "" if isinstance(value, bool) else str(value).strip()


def _refusal(value: object, kind: str, examples: str) -> ValueError:
    return ValueError(f"{shown(value)} is not {kind} (expected e.g. {examples})")
