"""What a contender is: how it is found, how it is told from others, how it is set up."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from bench.load.route import Place

#: where programs are looked for: PATH, this Python's own folder (an environment that no shell has
#: activated), and where Debian keeps daemons
_FOLDERS = [
    *os.environ.get("PATH", "").split(os.pathsep),
    str(Path(sys.executable).parent),
    "/usr/local/sbin",
    "/usr/sbin",
]


class Kind(str, Enum):
    """Who is compared with whom."""

    #: no proxy at all
    NONE = "none"
    #: a near end and a far end, encrypted between them
    PAIR = "pair"
    #: one SOCKS5 server
    PLAIN = "plain"
    #: one proxy that spreads its requests over many others
    GATEWAY = "gateway"


class Endpoints(NamedTuple):
    """Where a contender is set up for one measurement."""

    #: for its files; its own, and empty
    folder: Path
    #: where clients come
    inbound: Place
    #: where the far end of a pair listens
    far: Place
    #: where the near end finds the far end: the same, or the other end of a long link
    far_seen: Place
    #: the upstream proxies of a gateway
    upstreams: Sequence[Place] = ()


class Command(NamedTuple):
    """A program to start, and the port by which one sees that it is ready."""

    argv: list[str]
    port: int
    #: variables beyond those that all contenders are given
    environment: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Contender:
    """One way to set up one program."""

    name: str
    #: for tables
    label: str
    kind: Kind
    #: the programs it needs
    programs: tuple[str, ...]
    #: writes its configuration into the ground's folder; what to start, the far end first
    set_up: Callable[[Endpoints], list[Command]]
    #: its version, once its programs are there
    version: Callable[[], str]
    #: why it can't run here, for what no look at PATH can tell; "" if it can
    obstacle: Callable[[], str] = lambda: ""

    def missing(self) -> str:
        """Why it is not measured; "" if it is."""
        absent = [program for program in self.programs if not find(program)]
        if absent:
            return f"not found: {', '.join(absent)}"
        return self.obstacle()


def find(program: str) -> str:
    """The path of a program, or ""."""
    return shutil.which(program, path=os.pathsep.join(_FOLDERS)) or ""


def said(*argv: str) -> str:
    """All that a program prints."""
    run = subprocess.run(
        [find(argv[0]), *argv[1:]], capture_output=True, text=True, timeout=10, check=False
    )
    return run.stdout + run.stderr


def said_version(*argv: str) -> str:
    """The first number with dots in what a program says about itself, with what hangs on to it."""
    found = re.search(r"\d+\.\d+[\w.+~-]*", said(*argv))
    return found.group().rstrip(".") if found else "of unknown version"


def module_version(program: str) -> str:
    """The version of the Go module that a program was built from."""
    if not find("go"):
        return "of unknown version"
    for line in said("go", "version", "-m", find(program)).splitlines():
        fields = line.split()
        if fields[:1] == ["mod"]:
            return fields[2].removeprefix("v")
    return "of unknown version"


def packaged_version(program: str) -> str:
    """The version of the Debian package a program is from, for those that don't tell."""
    if not shutil.which("dpkg-query"):
        return "of unknown version"
    path = os.path.realpath(find(program))
    run = subprocess.run(["dpkg-query", "-S", path], capture_output=True, text=True, check=False)
    return said_version("dpkg-query", "-W", "-f", "${Version}", run.stdout.partition(":")[0])
