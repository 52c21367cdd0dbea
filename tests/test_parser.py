"""A command line that is wrong: one line that says what, and where help is."""

from __future__ import annotations

import pytest

from gsocks.crypto import Key
from gsocks.main import main

KEY = Key(bytes(range(32))).text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("chek", "gsocks: 'chek' is no command (did you mean check?) (gsocks --help)"),
        ("-c", "gsocks: --config needs a value FILE (gsocks --help)"),
        ("--frobnicate", "gsocks: --frobnicate is no option (gsocks --help)"),
        ("forward", "gsocks forward: missing: [ADDRESS:]PORT:HOST:PORT (gsocks forward --help)"),
        (
            "completion",
            "gsocks completion: missing: shell (bash, zsh, fish) (gsocks completion --help)",
        ),
        (
            "ctl",
            "gsocks ctl: missing: action (exits, sessions, users, fleet, changes, events, ban, "
            "unban, drain, undrain, check, put, delete, rotate, reload) (gsocks ctl --help)",
        ),
        (
            "local --rotat x",
            "gsocks local: --rotat is no option (did you mean --rotate?) (gsocks local --help)",
        ),
        ("passwd a b", "gsocks passwd: 'b' is one argument too many (gsocks passwd --help)"),
        (
            "check gw.yaml",
            "gsocks check: 'gw.yaml' is one argument too many (did you mean -c 'gw.yaml'?)"
            " (gsocks check --help)",
        ),
        (
            "exits --sort x",
            "gsocks exits: --sort: 'x' is none of order, speed, country, name, reason"
            " (gsocks exits --help)",
        ),
        (
            "exits --url a --to b:1",
            "gsocks exits: argument --to: not allowed with argument --url (gsocks exits --help)",
        ),
        ("completion tcsh", "shell: 'tcsh' is none of bash, zsh, fish (gsocks completion --help)"),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(
    arguments: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.endswith(f"{said}\n")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("local", "gsocks local: no exit (expected --exit URL"),
        ("server", "gsocks server: no key (expected --key-file FILE"),
        ("rotate none.txt", "gsocks rotate: local.exit_sources[0]"),
        ("help nothing", "gsocks: no help about 'nothing'"),
        ("-c gsocks.none", "gsocks: gsocks.none: "),
    ],
)
def test_the_name_of_the_program_stands_before_a_mistake_once(
    arguments: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GSOCKS_EXIT", "GSOCKS_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert main(arguments.split()) == 2
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize(
    "arguments",
    [f"gsocks://{KEY}@h:1", f"passwd a gsocks://{KEY}@h:1", f"local --exits=gsocks://{KEY}@h:1 -x"],
)
def test_a_secret_at_the_wrong_place_is_not_repeated(
    arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == 2
    assert KEY not in capsys.readouterr().err
