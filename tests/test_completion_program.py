"""Names that a shell completes: those of the running gateway, or none, and never a word of why."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsocks.access.users import hash_password
from release.data_files import COMPLETIONS, SHARE
from tests.support import needs
from tests.support.program import Program, run, web_server
from tests.support.waiting import TOO_LONG, eventually

CONFIG = """
admin: {listen: 'unix:admin.sock'}
local:
  listen: 127.0.0.1:0
  rules: [allow all]
  users: {ann: 'HASH', anton: 'HASH'}
  exits:
    - {url: direct, name: berlin-1, tags: [home]}
    - {url: 'socks5://127.0.0.1:9', name: berlin-2}
    - {url: 'socks5://127.0.0.1:7', name: paris}
""".replace("HASH", hash_password(b"x"))

#: as it is installed, on the PATH of a shell
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "LC_ALL": "C.UTF-8",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where gsocks runs by c.yaml; broken.yaml is no config, and gone.yaml that of none."""
    place = tmp_path_factory.mktemp("completion")
    (place / "c.yaml").write_text(CONFIG)
    (place / "broken.yaml").write_text("local: [")
    (place / "gone.yaml").write_text(CONFIG.replace("admin.sock", "gone.sock"))
    with Program("-c", "c.yaml", cwd=place) as program, web_server() as port:
        for session in ("cart1", "cart2"):
            run(
                "curl",
                *("-sS", "--proxy", f"socks5h://127.0.0.1:{program.port()}"),
                *("--proxy-user", f"ann-session-{session}:x", f"http://127.0.0.1:{port}/text/page"),
            )
        yield place


def bash(line: str, folder: Path) -> list[str]:
    script = SHARE / COMPLETIONS["bash"]
    words = [*line.split(" ")]
    quoted = " ".join(f"'{each}'" for each in words)
    ask = (
        f"source {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; "
        f"COMP_LINE='{line}'; COMP_POINT={len(line)}; _shtab_gsocks; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    return ask_shell([needs.program("bash"), "--norc", "-c", ask], folder)


def fish(line: str, folder: Path) -> list[str]:
    script = SHARE / COMPLETIONS["fish"]
    ask = f"source {script}; complete -C '{line}'"
    found = ask_shell([needs.program("fish"), "--no-config", "-c", ask], folder)
    return [each.partition("\t")[0] for each in found]


#: a terminal within zsh, in which TAB is pressed; what it would complete is written to a file
ZSH = """
zmodload zsh/zpty
zpty terminal zsh -f -i
zpty -w terminal "PROMPT=; fpath=({functions} \\$fpath); autoload -Uz compinit"
zpty -w terminal "compinit -u -d {dump}; zle -C noted complete-word note; bindkey '^I' noted"
zpty -w terminal "note() {{ compadd() {{ builtin compadd -O found \\$@ }}; _main_complete }}"
zpty -w terminal "print re''ady"
zpty -r -m terminal said '*ready*'
zpty -w -n terminal $'{line}\\t'
zpty -w terminal $'\\Cuprint -rl -- $found > {found}; print do\\'\\'ne'
zpty -r -m terminal said '*done*'
zpty -d terminal
"""


def zsh(line: str, folder: Path) -> list[str]:
    found = folder / "found"
    ask = ZSH.format(
        functions=(SHARE / COMPLETIONS["zsh"]).parent,
        dump=folder / "dump",
        line=line,
        found=found,
    )
    ask_shell([needs.program("zsh"), "-f", "-c", ask], folder)
    return found.read_text().split()


def ask_shell(command: list[str], folder: Path) -> list[str]:
    done = subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=TOO_LONG
    )
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if line]


SHELLS = {"bash": bash, "fish": fish, "zsh": zsh}


@pytest.mark.parametrize("shell", SHELLS)
def test_names_that_the_gateway_has_are_completed(shell: str, folder: Path) -> None:
    for line, names in (
        ("ctl -c c.yaml ban ber", ["berlin-1", "berlin-2"]),
        ("ctl -c c.yaml drain ", ["berlin-1", "berlin-2", "paris"]),
        ("ctl drain -c c.yaml paris be", ["berlin-1", "berlin-2"]),
        ("ctl -c c.yaml rotate ca", ["cart1", "cart2"]),
        ("ctl -c c.yaml rotate cart1 --user an", ["ann", "anton"]),
        ("ctl -c c.yaml sessions --user ant", ["anton"]),
        ("ctl -c c.yaml exits --tag ", ["home"]),
    ):
        # the answer may take longer than it is waited for, on a busy machine
        eventually(lambda: sorted(SHELLS[shell](f"gsocks {line}", folder)) == names)  # noqa: B023


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    "options", ["", "-c broken.yaml ", "-c gone.yaml ", "-c missing.yaml ", "--admin ftp://x "]
)
def test_where_the_gateway_can_not_be_asked_there_is_nothing(
    shell: str, options: str, folder: Path
) -> None:
    assert SHELLS[shell](f"gsocks ctl {options}ban ber", folder) == []
