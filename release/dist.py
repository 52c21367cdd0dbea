"""Builds the sdist and the wheel, byte by byte the same from the same commit.

    python -m release.dist [FOLDER]

The files are those of the commit, their times that of the commit (SOURCE_DATE_EPOCH,
reproducible-builds.org/specs/source-date-epoch), and their owners and modes the same everywhere.
The wheel is built from the sdist.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent

_BACKEND = "import sys, setuptools.build_meta as b; print(b.{0}(sys.argv[1]))"


def epoch() -> int:
    """Seconds since 1970: SOURCE_DATE_EPOCH, or the time of the commit."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given is not None:
        return int(given)
    command = ["git", "log", "-1", "--format=%ct"]
    return int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def build(folder: Path, commit: str = "HEAD") -> list[Path]:
    """The sdist and the wheel, in ``folder``."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        archive = subprocess.run(
            ["git", "archive", "--format=tar", commit], cwd=ROOT, check=True, capture_output=True
        )
        _extract(archive.stdout, tree / "source")
        made = tree / "made"
        made.mkdir()
        sdist = folder / _build("build_sdist", tree / "source", made)
        sdist.write_bytes(repacked((made / sdist.name).read_bytes(), epoch()))
        _extract(gzip.decompress(sdist.read_bytes()), tree / "again")
        (unpacked,) = (tree / "again").iterdir()
        wheel = folder / _build("build_wheel", unpacked, folder)
    return [sdist, wheel]


def repacked(sdist: bytes, when: int) -> bytes:
    """The same files in their order by name, with times, owners and modes that never differ."""
    out = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(sdist)) as old,
        gzip.GzipFile(fileobj=out, mode="wb", mtime=when, filename="") as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda each: each.name):
            member.mtime = when
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    return out.getvalue()


def _extract(archive: bytes, folder: Path) -> None:
    folder.mkdir()
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")


def _build(hook: str, source: Path, to: Path) -> str:
    """The name of what setuptools has made."""
    done = subprocess.run(
        [sys.executable, "-c", _BACKEND.format(hook), str(to)],
        cwd=source,
        check=True,
        capture_output=True,
        text=True,
        umask=0o022,  # the wheel keeps the modes of files that are made on the way
        env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch()), "PYTHONHASHSEED": "0"},
    )
    return done.stdout.split()[-1]


def main() -> None:
    """Build into the folder that is named, or dist/, and print the hashes."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist"
    for path in build(folder):
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}")


if __name__ == "__main__":
    main()
