"""``gsocks init``: a commented config to begin with."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

from gsocks.errors import ConfigError

#: what there is, and the file that each is written to
KINDS = {
    "example": "config.yaml",
    "local": "local.yaml",
    "server": "server.yaml",
    "gateway": "gateway.yaml",
}


#: where the repository has the one and its schema: neither is beside what is written
_OF_REPOSITORY = "# yaml-language-server: $schema=docs/config.schema.json\n#\n"
_EXAMPLE = "config.example.yaml"


def template(kind: str) -> str:
    """The commented config of that kind."""
    return (files("gsocks.cli") / "templates" / f"{kind}.yaml").read_text("utf-8")


def init(kind: str, output: Path | None) -> int:
    """Write the config of ``kind`` to ``output`` (``-``: print it), which must not exist yet.

    Raises ConfigError.
    """
    path = Path(KINDS[kind]) if output is None else output
    text = template(kind).removeprefix(_OF_REPOSITORY)
    text = text.replace(_EXAMPLE, KINDS[kind] if path == Path("-") else str(path))
    if path == Path("-"):
        sys.stdout.write(text)
        return 0
    try:
        with path.open("x", encoding="utf-8") as file:
            path.chmod(0o600)  # passwords and keys may come in
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{path}: exists already (-o FILE writes another one)") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    print(f"{path}: written; edit it, then: gsocks check -c {path}", file=sys.stderr)
    return 0
