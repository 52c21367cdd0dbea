"""What is built of gsocks: the wheel and the sdist, the Debian package, the steps of the image."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from gsocks import __version__
from release import dist
from tests.support import needs
from tests.support.ports import free_port
from tests.support.program import ROOT, Program, gsocks

#: a venv is filled from the registry
LONG = 240


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return dist.build(tmp_path_factory.mktemp("dist"))


def test_the_same_commit_gives_the_same_bytes(built: list[Path], tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        again = dist.build(tmp_path / "again")
    finally:
        os.umask(before)
    hashes = [[hashlib.sha256(each.read_bytes()).hexdigest() for each in s] for s in (built, again)]
    assert hashes[0] == hashes[1]


def test_the_sdist_has_the_documents_the_examples_and_the_makefile(built: list[Path]) -> None:
    with tarfile.open(built[0]) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    wanted = {"Makefile", "CHANGELOG.md", "docs/config.md", "examples/embedded.py", "LICENSE"}
    assert wanted | {"share/man/man1/gsocks.1", "deploy/systemd/gsocks.service"} <= held


def test_the_metadata_and_the_contents_are_as_the_index_wants_them(built: list[Path]) -> None:
    tools = Path(sys.executable).parent
    if not (tools / "twine").exists():
        needs.missing("needs make .venv/installed-tools")
    sdist, wheel = map(str, built)
    checks = (["twine", "check", "--strict", sdist, wheel], ["check-wheel-contents", wheel])
    for name, *arguments in checks:
        done = subprocess.run(
            [tools / name, *arguments],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_steps_of_the_image_make_a_gsocks_that_runs(tmp_path: Path) -> None:
    steps = [ROOT / "deploy" / "oci" / "steps.sh", ROOT, tmp_path / "opt"]
    done = subprocess.run(
        steps, capture_output=True, text=True, timeout=LONG, check=True,
        env={**os.environ, "PYTHON": sys.executable},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == f"gsocks {__version__}"
    assert (tmp_path / "opt" / "share" / "man" / "man1" / "gsocks.1").is_file()
    text = (ROOT / "Containerfile").read_text()
    assert "RUN /source/deploy/oci/steps.sh /source /opt/gsocks" in text
    assert re.search(r"^USER 65532", text, re.MULTILINE)
    assert '"gsocks", "health"' in text


def test_links_are_made_and_only_they_are_removed(tmp_path: Path) -> None:
    units, share, binaries = "/etc/systemd/system", "/usr/share", "/usr/bin"
    (tmp_path / units[1:]).mkdir(parents=True)
    script = str(ROOT / "deploy" / "link.sh")
    arguments = [str(tmp_path), "/opt/gsocks", binaries, share, units]
    subprocess.run([script, *arguments], check=True)
    assert os.readlink(tmp_path / "usr/bin/gsocks") == "/opt/gsocks/bin/gsocks"
    unit = (tmp_path / "etc/systemd/system/gsocks.service").read_text()
    assert "ExecStart=/opt/gsocks/bin/gsocks -c /etc/gsocks/config.yaml" in unit
    (tmp_path / "usr/share/man/man1/other.1").write_text("")
    subprocess.run([script, "--remove", *arguments], check=True)
    left = [path.name for path in tmp_path.rglob("*") if not path.is_dir()]
    assert left == ["other.1"]


def test_health_tells_whether_the_listeners_accept(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"local: {{listen: ['127.0.0.1:{free_port()}', 'unix:{tmp_path}/s']}}")
    down = gsocks("health", "-c", path)
    assert down.returncode == 1
    assert "Connection refused" in down.stdout
    with Program("-c", path) as program:
        program.wait_for("local: listening on unix")
        assert gsocks("health", "-c", path).returncode == 0


def test_the_scripts_of_the_debian_package_are_good_shell() -> None:
    for script in (ROOT / "deploy" / "debian").iterdir():
        subprocess.run(["sh", "-n", script], check=True)


def test_the_debian_package_has_a_gsocks_that_runs(tmp_path: Path) -> None:
    needs.root()
    needs.program("dpkg-deb", "dpkg")
    if not Path("/usr/bin/python3").exists():
        needs.missing("needs python3 and python3-venv of Debian")
    build = ROOT / "deploy" / "debian" / "build.sh"
    subprocess.run([build, tmp_path], check=True, capture_output=True, timeout=LONG)
    (package,) = tmp_path.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", package, tmp_path / "x"], check=True)
    for name in ("usr/bin/gsocks", "usr/share/man/man1/gsocks.1"):
        assert os.readlink(tmp_path / "x" / name).startswith("/opt/gsocks/")
    unit = (tmp_path / "x/usr/lib/systemd/system/gsocks.service").read_text()
    assert "ExecStart=/opt/gsocks/bin/gsocks" in unit
    at_its_place = (
        f"mount -t tmpfs none /opt && mkdir /opt/gsocks"
        f" && mount --bind {tmp_path}/x/opt/gsocks /opt/gsocks && /opt/gsocks/bin/gsocks --version"
    )
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", at_its_place],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"gsocks {__version__}\n"
