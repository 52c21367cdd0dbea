"""The names that ``gsocks ctl`` offers a shell for completion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gsocks.cli import names
from gsocks.cli.ctl import OF_NAMES
from gsocks.main import main, make_parser
from gsocks.request import ExitSelector
from gsocks.service.supervisor import MISTAKE
from tests.support.admin_desk import Desk, direct, open_desk, token_in
from tests.support.engine import read_to_end, serving

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")


@pytest.fixture
def desk() -> Iterator[Desk]:
    yield from open_desk(direct("berlin-1"), direct("berlin-2"), direct("paris"))


def parse() -> names.Parse:
    return make_parser().parse_known_args


@pytest.fixture
def completed(desk: Desk, tmp_path: Path) -> Callable[[str], list[str]]:
    """The names that come next behind ``gsocks ctl --admin URL --token-file FILE``."""
    file = token_in(tmp_path)

    def ask(line: str) -> list[str]:
        where = f"--admin http://{desk.server.bound} --token-file {file}"
        return names.names_for(f"gsocks ctl {where} {line}", parse(), OF_NAMES)

    return ask


def test_names_begin_with_what_is_typed_and_are_offered_once(
    completed: Callable[[str], list[str]],
) -> None:
    assert completed("ban ") == ["berlin-1", "berlin-2", "paris"]
    assert completed("ban berlin-2 --for 1h ber") == ["berlin-1"]
    assert completed("ban erlin") == []
    assert completed("exits ") == []
    assert completed("ban --") == []


def test_tags_are_offered_behind_their_option(tmp_path: Path) -> None:
    offers = (direct("a", tags=("fast", "home")), direct("b", tags=("fast", "f;id")))
    for desk in open_desk(*offers):
        where = f"--admin http://{desk.server.bound} --token-file {token_in(tmp_path)}"
        for line, offered in (("exits --tag ", ["fast", "home"]), ("exits --tag fa", ["fast"])):
            assert names.names_for(f"gsocks ctl {where} {line}", parse(), OF_NAMES) == offered


def test_a_tag_of_many_exits_leaves_room_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "MAX_NAMES", 2)
    offers = [direct(name, tags=("fast",)) for name in "abc"]
    for desk in open_desk(*offers, direct("d", tags=("home",))):
        where = f"--admin http://{desk.server.bound} --token-file {token_in(tmp_path)}"
        told = names.names_for(f"gsocks ctl {where} exits --tag ", parse(), OF_NAMES)
        assert told == ["fast", "home"]


def test_the_line_of_a_shell_may_have_other_commands_and_variables(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN_FILE", str(token_in(tmp_path)))
    where = f"--admin http://{desk.server.bound} --token-file $TOKEN_FILE"
    for line in (
        f"cd /; /opt/gsocks ctl {where} ban pa",
        f"gsocks -c x.yaml ctl {where} ban pa",
        f"g ctl {where} ban pa",
    ):
        assert names.names_for(line, parse(), OF_NAMES) == ["paris"], line
    itself = f"gsocks completion --names 'ctl {where} ban ' ctl "
    for line in ("", "gsocks", "gsocks check ", itself):
        assert names.names_for(line, parse(), OF_NAMES) == [], line


@pytest.mark.parametrize("line", ["", "ban 'ber", "ban --for", "nothing ", "--help ", "-x"])
def test_a_line_that_says_nothing_yet_has_no_names_and_prints_nothing(
    completed: Callable[[str], list[str]], line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert completed(line) == []
    assert capfd.readouterr() == ("", "")


def test_what_a_shell_would_run_is_not_offered(
    desk: Desk, completed: Callable[[str], list[str]]
) -> None:
    for session in ("cart", "c$(id)", "c;id", "c d", "c`id`", "c\nd", "-c", "c\x1b[2J"):
        desk.used(ExitSelector(session=session))
    assert completed("rotate ") == ["cart"]


def test_a_gateway_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "PATIENCE", 0.05)
    file = token_in(tmp_path)
    with serving(read_to_end) as silent:
        line = f"gsocks ctl --admin http://{silent} --token-file {file} ban "
        assert names.names_for(line, parse(), OF_NAMES) == []


def test_names_may_stand_before_and_behind_options(
    desk: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--admin", f"http://{desk.server.bound}", "--token-file", str(token_in(tmp_path)))
    assert main(["ctl", "ban", *where, "paris"]) == 0
    assert main(["ctl", "drain", "berlin-1", *where, "berlin-2"]) == 0
    assert capsys.readouterr().out == "paris: done\nberlin-1: done\nberlin-2: done\n"
    states = [each["state"] for each in desk.get("/v1/exits")["items"]]
    assert states == ["draining", "draining", "banned"]
    assert main(["ctl", "ban", *where, "paris", "--nothing"]) == MISTAKE
    assert "--nothing is no option" in capsys.readouterr().err


def test_a_section_may_be_named(
    desk: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--admin", f"http://{desk.server.bound}", "--token-file", str(token_in(tmp_path)))
    assert main(["ctl", "ban", "paris", "--section", "local", *where]) == 0
    assert main(["ctl", "ban", "paris", "--section", "server", *where]) == 1
    assert "no section 'server' runs here" in capsys.readouterr().err
