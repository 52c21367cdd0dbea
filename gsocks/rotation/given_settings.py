"""Settings as a program gives them: a struct of gsocks/settings.py, or a mapping as in a config.

Gateway(timeouts={"connect": "5s"})        Gateway(timeouts=Timeouts(connect=5))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec
from msgspec import Struct

from gsocks import settings
from gsocks.errors import ConfigError
from gsocks.http.url import WebUrl
from gsocks.messages import check_type, shown, unknown_keyword
from gsocks.units import parse_duration, parse_rate, parse_size

_S = TypeVar("_S", bound=Struct)


def _share(text: str) -> float:
    number, percent, rest = text.partition("%")
    if not percent or rest or not number.isdigit() or int(number) > 100:
        raise ValueError(f"{shown(text)} is not a share (expected e.g. 50%)")
    return int(number) / 100


#: how the text of each type is read; numbers are taken as they are
_PARSERS: dict[Any, Callable[[str], object]] = {
    settings.Seconds: parse_duration,
    settings.Size: parse_size,
    settings.Rate: parse_rate,
    settings.Share: _share,
}


def given(owner: str, name: str, value: object, kind: type[_S]) -> _S:
    """The settings of ``kind`` that are the argument ``name`` of ``owner``.

    Raises TypeError for what is none and for an unknown key, ConfigError for a value that can't be
    read; both name the key.
    """
    if isinstance(value, Mapping):
        fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
        for key in value:
            if key not in fields:
                raise unknown_keyword(f"{owner}: {name}", str(key), fields)
        made = {
            key: _value(owner, f"{name}.{key}", each, fields[key]) for key, each in value.items()
        }
        for field in msgspec.structs.fields(kind):
            if field.required and field.name not in made:
                raise ConfigError(f"{owner}: {name}.{field.name}: missing")
        return kind(**made)
    check_type(owner, name, value, kind)
    found: _S = value  # type: ignore[assignment]  # checked
    texts = {
        field.name: getattr(found, field.name)
        for field in msgspec.structs.fields(kind)
        if isinstance(getattr(found, field.name), str) and _parser(field.type) is not None
    }
    return msgspec.structs.replace(found, **_read(owner, name, texts, kind)) if texts else found


def _read(owner: str, name: str, texts: Mapping[str, str], kind: type[Struct]) -> dict[str, object]:
    fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
    return {key: _value(owner, f"{name}.{key}", text, fields[key]) for key, text in texts.items()}


def _parser(kind: Any) -> Callable[[str], object] | None:
    kinds = (kind, *get_args(kind))
    return next((_PARSERS[each] for each in kinds if each in _PARSERS), None)


def _value(owner: str, place: str, value: object, kind: Any) -> object:
    parse = _parser(kind)
    if isinstance(value, str) and Path in (kind, *get_args(kind)):
        return Path(value)
    if isinstance(kind, type) and issubclass(kind, Struct):
        return given(owner, place, value, kind)
    try:
        if parse is not None:
            if isinstance(value, str):
                return parse(value)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int | float)
            ):
                raise ValueError(f"{shown(value)} is no number")
            return value
        if kind is settings.CheckUrls:
            return tuple(WebUrl.parse(str(each)) for each in listed(value, "URLs"))
        if isinstance(kind, type) and kind.__module__ == settings.__name__:
            return value  # read by what uses it
        return msgspec.convert(value, kind, strict=not isinstance(value, str))
    except msgspec.ValidationError:
        raise ConfigError(f"{owner}: {place}: {shown(value)} is no value of it") from None
    except ValueError as error:
        raise ConfigError(f"{owner}: {place}: {error}") from None


def listed(value: object, what: str) -> Iterable[Any]:
    """``value`` if it is a list of ``what``.  Raises ConfigError for a text and for no list."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise ConfigError(f"{shown(value)} is not a list of {what} (put it in brackets)")
    return value
