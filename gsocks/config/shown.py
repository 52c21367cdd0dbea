"""A config as keys and texts, without its secrets, to be shown and compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from msgspec import Struct

from gsocks.access.networks import Networks
from gsocks.config.schema import Config, KeySource, Secret
from gsocks.exits.spec import ExitSpec

#: items of a list that are shown
_MOST = 1000


def keys_of(config: Config) -> Iterator[tuple[str, str]]:
    """The keys that are not as by default, and their values."""
    yield from _keys("", config)


def _keys(at: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Struct):
        for name, default in zip(value.__struct_fields__, _defaults(value), strict=True):
            found = getattr(value, name)
            if found != default:
                yield from _keys(f"{at}.{name}" if at else name, found)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _keys(f"{at}.{name}", item)
    elif isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        for number, item in enumerate(value[:_MOST]):
            yield from _keys(f"{at}[{number}]", item)
        if len(value) > _MOST:
            yield f"{at}[{_MOST}]", f"and {len(value) - _MOST} more"
    else:
        yield at, _text(value)


def _defaults(value: Struct) -> list[Any]:
    required = len(value.__struct_fields__) - len(value.__struct_defaults__)
    return [object()] * required + [*value.__struct_defaults__]


def _text(value: Any) -> str:
    if isinstance(value, Secret):
        return "***"
    if isinstance(value, ExitSpec):
        name = f"{value.name}: " if value.name else ""
        return f"{name}{value.label}{_terms(value)}"
    if isinstance(value, KeySource):
        return "***" if value.file is None else str(value.file)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Networks):
        return str(value)
    if is_dataclass(value):
        parts = ((each.name, getattr(value, each.name)) for each in fields(value))
        return ", ".join(f"{name}: {_text(item)}" for name, item in parts if item is not None)
    return str(value)


def _terms(spec: ExitSpec) -> str:
    told = {
        "weight": None if spec.weight == 1 else spec.weight,
        "country": spec.country,
        "tags": ", ".join(spec.tags) or None,
        "max_connections": spec.max_connections,
        "requests_per_minute": spec.requests_per_minute,
    }
    parts = [
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in told.items()
        if value is not None
    ]
    return f" ({'; '.join(parts)})" if parts else ""
