"""gsocks, a site and the trials of one client after the other."""

from __future__ import annotations

import io
import os
import re
import subprocess
import tempfile
import wave
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple

from tests.clients.client import Client, Places, serving
from tests.support.program import ROOT, Program, both_programs, web_server
from tests.support.real import LOOPBACK_ONLY, NAME, PASSWORD, USERS, Certified

BUILT = ROOT / "build" / "clients"

#: where rustup has its toolchains, whatever HOME is
RUSTUP = os.environ.get("RUSTUP_HOME", str(Path.home() / ".rustup"))

#: seconds that a line may take
PATIENCE = 90.0


class Trial(NamedTuple):
    """What came of a line."""

    what: str
    #: why it has not worked, or None
    failure: str | None


class Site(SimpleHTTPRequestHandler):
    """A folder by HTTP/1.1, and the same for POST."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


class Scene:
    """Two local ends of one server, with and without users, and a site behind it."""

    def __init__(self, folder: Path, ports: dict[str, int], ca: Path, programs: list[Program]):
        self._folder = folder
        self._ports = ports
        self._ca = ca
        self._programs = programs

    def try_client(self, client: Client) -> list[Trial]:
        """One line after the other."""
        with tempfile.TemporaryDirectory(dir=self._folder) as own:
            places = Places(Path(own), ca=self._ca, built=BUILT, name=NAME, password=PASSWORD,
                            **self._ports)  # fmt: skip
            with serving(client.server, places) as more:
                return [
                    Trial(what, self._failure(client, what, places.words(**more)))
                    for what in client.lines
                ]

    def _failure(self, client: Client, what: str, words: dict[str, str]) -> str | None:
        logs_in = "password" in what
        with tempfile.TemporaryDirectory(dir=words["work"]) as own:
            words = {**words, "work": own, "root": str(ROOT)}
            for name, text in client.files.items():
                (Path(own) / name).write_text(filled(text, words))
            ports = "|".join(
                sorted({words["web"], words["tls"], words.get("server", words["web"])})
            )
            carried = rf"gsocks\.access: .* dest=\S+:({ports}) exit=gsocks://"
            before = [self._count(program, carried) for program in self._programs]
            try:
                done = subprocess.run(
                    ["bash", "-c", filled(client.lines[what], words)],
                    cwd=own,
                    capture_output=True,
                    stdin=subprocess.DEVNULL,
                    timeout=PATIENCE,
                    check=False,
                    env={
                        "PATH": path(),
                        "HOME": own,
                        "LANG": "C.UTF-8",
                        "TERM": "xterm",
                        "RUSTUP_HOME": RUSTUP,
                    },
                )
            except subprocess.TimeoutExpired:
                return f"has not ended within {PATIENCE:g} s"
            said = (done.stdout + b"\n" + done.stderr).decode(errors="replace")
            if done.returncode != 0:
                return f"status {done.returncode}: {said.strip()[-400:]}"
            if client.prints not in done.stdout.decode(errors="replace"):
                return f"printed {said.strip()[-400:]!r}"
            program = self._programs[logs_in]
            try:
                program.wait_for(carried, before[logs_in] + 1)
            except AssertionError:
                return "gsocks has not carried it"
            return None

    def _count(self, program: Program, pattern: str) -> int:
        return sum(bool(re.search(pattern, line)) for line in list(program.lines))


def path() -> str:
    """Where programs are looked for: this environment's Python, then those that were built."""
    own = ROOT / ".venv" / "bin"
    return f"{own}:{BUILT / 'bin'}:{BUILT / 'venv' / 'bin'}:{os.environ['PATH']}:/usr/sbin:/sbin"


def filled(text: str, words: dict[str, str]) -> str:
    """``{word}`` replaced where it is one of ours; other braces stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda found: words.get(found[1], found[0]), text)


def version_of(client: Client) -> str | None:
    """What it calls itself, or None if it is not here."""
    words = {"built": str(BUILT), "root": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", filled(client.version, words)], capture_output=True, timeout=PATIENCE,
        stdin=subprocess.DEVNULL, check=False,
        env={"PATH": path(), "HOME": "/nonexistent", "RUSTUP_HOME": RUSTUP},
    )  # fmt: skip
    found = re.search(r"\d+\.\d[\w.]*", (done.stdout + done.stderr).decode(errors="replace"))
    return found[0].removesuffix(".jar").rstrip(".") if found else None


@contextmanager
def scene(folder: Path) -> Iterator[Scene]:
    """All that clients are tried with."""
    with ExitStack() as stack:
        site = folder / "site"
        site.mkdir()
        certified = Certified(folder)
        pages: Any = partial(Site, directory=str(site))
        web = stack.enter_context(web_server(pages=pages))
        fill(site, web)
        tls = stack.enter_context(web_server(pages=pages, tls=certified.server()))
        near, _ = stack.enter_context(both_programs(folder, rules=LOOPBACK_ONLY))
        config = folder / "guarded.yaml"
        config.write_text((folder / "local.yaml").read_text() + USERS)
        guarded = stack.enter_context(Program("-c", config))
        ports = {"port": near.port(), "guarded": guarded.port(), "web": web, "tls": tls}
        yield Scene(folder, ports, certified.authority, [near, guarded])


def fill(site: Path, web: int) -> None:
    """What clients fetch: a page, a repository of git, packages of pip, npm and cargo, sound."""
    (site / "found.txt").write_text("found\n")
    (site / "index.html").write_text("<title>found</title><p>found</p>\n")
    with wave.open(str(site / "found.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 8000, "NONE", ""))
        sound.writeframes(bytes(16000))
    (site / "found.mp4").write_bytes(bytes(1000))
    _git(site / "found.git")
    _pip(site)
    (site / "npm").mkdir()
    (site / "npm" / "found").write_text(
        '{"name": "found", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": '
        '{"name": "found", "version": "1.0.0", "description": "found", "dist": {"tarball": '
        f'"http://localhost:{web}/npm/found.tgz", "shasum": "{"0" * 40}"}}}}}}}}'
    )
    index = site / "cargo" / "fo" / "un"
    index.mkdir(parents=True)
    (site / "cargo" / "config.json").write_text(f'{{"dl": "http://localhost:{web}/crates"}}')
    (index / "found").write_text(
        f'{{"name":"found","vers":"1.0.0","deps":[],"cksum":"{"0" * 64}",'
        '"features":{},"yanked":false}\n'
    )


def _git(folder: Path) -> None:
    script = (
        'set -e; git init -q -b main "$1.work"; cd "$1.work"; echo found >found; git add found; '
        "git -c user.name=a -c user.email=a@example.com commit -qm found; "
        'git clone -q --bare . "$1"; git -C "$1" update-server-info'
    )
    subprocess.run(
        ["bash", "-c", script, "git", str(folder)], check=False, capture_output=True,
        env={"PATH": path(), "HOME": str(folder.parent)},
    )  # fmt: skip


def _pip(site: Path) -> None:
    """A wheel with a module that says ``found``, behind a simple index (PEP 503)."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as wheel:
        wheel.writestr("found.py", 'print("found")\n')
        wheel.writestr(
            "found-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: found\nVersion: 1.0\n"
        )
        wheel.writestr(
            "found-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr("found-1.0.dist-info/RECORD", "")
    folder = site / "simple" / "found"
    folder.mkdir(parents=True)
    name = "found-1.0-py3-none-any.whl"
    (folder / name).write_bytes(made.getvalue())
    digest = sha256(made.getvalue()).hexdigest()
    (folder / "index.html").write_text(f'<a href="{name}#sha256={digest}">{name}</a>')
