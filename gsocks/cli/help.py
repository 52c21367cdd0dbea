"""``gsocks help TOPIC``: a command, a key of the config, or a short text about a subject."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files

import msgspec

from gsocks.config.document import ExitKeys, ExitSourceKeys, Key, ListenKeys, RouteKeys, keys_of
from gsocks.config.schema import Config
from gsocks.errors import ConfigError
from gsocks.messages import did_you_mean

#: columns of a line
WIDTH = 80

#: mappings that stand in lists
_ITEMS: dict[str, type[msgspec.Struct]] = {
    "exits[]": ExitKeys,
    "exit_sources[]": ExitSourceKeys,
    "listen[]": ListenKeys,
    "routes[]": RouteKeys,
}

_LINK = re.compile(r"\[([^]]*)\]\([^)]*\)")


def topics() -> dict[str, str]:
    """Each short text by its name."""
    folder = files("gsocks.cli").joinpath("topics")
    found = {each.name.removesuffix(".txt"): each.read_text("utf-8") for each in folder.iterdir()}
    return dict(sorted(found.items()))


def show_help(topic: str | None, commands: Mapping[str, Callable[[], str]]) -> int:
    """Print what there is about ``topic``, or what topics there are.

    ``commands``: a function for each command that returns its usage.  Raises ConfigError.
    """
    texts = topics()
    if topic is None:
        print(commands[""]().rstrip())
        print(f"\nsubjects: {', '.join(texts)}")
        print("keys:     gsocks help local, gsocks help timeouts, gsocks help local.timeouts.idle")
        return 0
    parts = [texts[topic]] if topic in texts else []
    if topic and topic in commands:
        parts.append(commands[topic]())
    if found := [*_keys(topic)]:
        parts.append("\n".join(found))
    if not parts:
        keys = {name.rpartition(".")[2] for name, _ in _all_keys()}
        known = {*texts, *filter(None, commands), *keys, *_ITEMS}
        raise ConfigError(f"no help about {topic!r}{did_you_mean(topic, known)} (gsocks help)")
    print("\n\n".join(part.rstrip() for part in parts))
    return 0


def _keys(topic: str) -> Iterator[str]:
    """The keys that ``topic`` is, or that it has below it; those of several sections once."""
    found: dict[tuple[object, ...], tuple[Key, list[str]]] = {}
    for path, key in _all_keys():
        is_same = path == topic or path.endswith(f".{topic}")
        if is_same or f".{path.rpartition('.')[0]}".endswith(f".{topic}"):
            found.setdefault(_told(key), (key, []))[1].append(path)
    for key, paths in found.values():
        yield from _described(paths, key)


def _told(key: Key) -> tuple[object, ...]:
    return key.name, key.values, key.description, str(key.default)


def _described(paths: Sequence[str], key: Key) -> Iterator[str]:
    default = "required" if key.required else "" if key.default is None else f"{_text(key.default)}"
    head = f"{', '.join(paths)}: {key.values.replace('`', '')}{f' ({default})' if default else ''}"
    yield from textwrap.wrap(head, WIDTH, subsequent_indent="    ", break_on_hyphens=False)
    text = _LINK.sub(r"\1", key.description).replace("`", "")
    yield from textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ")


def _text(default: object) -> str:
    if isinstance(default, bool):
        return "true" if default else "false"
    return ", ".join(map(str, default)) if isinstance(default, list) else str(default)


def _all_keys() -> Iterator[tuple[str, Key]]:
    yield from _below("", Config)
    for name, struct in _ITEMS.items():
        yield from ((f"{name}.{key.name}", key) for key in keys_of(struct))


def _below(prefix: str, struct: type[msgspec.Struct]) -> Iterator[tuple[str, Key]]:
    types = {each.name: each.type for each in msgspec.structs.fields(struct)}
    for key in keys_of(struct):
        yield f"{prefix}{key.name}", key
        for kind in (types[key.name], *getattr(types[key.name], "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
                yield from _below(f"{prefix}{key.name}.", kind)
