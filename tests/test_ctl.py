"""``gsocks ctl`` and ``gsocks health``: what they say, and their exit status."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gsocks.address import Address
from gsocks.main import main
from gsocks.rotation.probe import ProbeTarget
from gsocks.service.supervisor import MISTAKE
from tests.support.admin_desk import Desk, direct, open_desk, token_in
from tests.support.ports import free_port

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")


@pytest.fixture
def desk() -> Iterator[Desk]:
    yield from open_desk(direct("berlin-1"), direct("berlin-2"), direct("paris"))


@pytest.fixture
def ctl(desk: Desk, tmp_path: Path) -> Callable[..., int]:
    """Runs ``gsocks ctl``, and returns its exit status."""
    file = token_in(tmp_path)

    def run(*words: str) -> int:
        where = ("--admin", f"http://{desk.server.bound}", "--token-file", str(file))
        return main(["ctl", *words, *where])

    return run


def test_a_session_that_does_not_exist_is_said_to_be_none(
    ctl: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ctl("rotate", "card") == 1
    assert capsys.readouterr() == ("", "gsocks: there is no session 'card' without a user\n")


def test_a_name_that_is_wrong_keeps_none_of_the_others_from_being_served(
    ctl: Callable[..., int], desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ctl("drain", "nowhere", "paris") == 1
    assert capsys.readouterr() == ("paris: done\n", "gsocks: no exit is called 'nowhere'\n")
    assert desk.get("/v1/exits/paris")["state"] == "draining"


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_check_that_fails_ends_with_a_status_of_its_own(
    ctl: Callable[..., int],
    form: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = ProbeTarget(dest=Address("127.0.0.1", free_port()))
    monkeypatch.setattr("gsocks.admin.api.ProbeTarget", lambda: target)
    assert ctl("check", "paris", *form) == 1
    assert "Connection refused" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("127.0.0.1:9090", "--admin: expected http://HOST:PORT, https://HOST or unix:PATH\n"),
        ("http://127.0.0.1:x", "--admin: expected http://HOST:PORT, https://HOST or unix:PATH\n"),
        ("http://[::1", "--admin: expected http://HOST:PORT, https://HOST or unix:PATH\n"),
        (
            "http://127.0.0.1:9",
            "--admin needs the token, too: --token-file FILE (the gateway's log",
        ),
    ],
)
def test_what_is_wrong_with_an_admin_is_told_before_anything_is_asked_for(
    url: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ctl", "rotate", "x", "--admin", url]) == MISTAKE
    assert capsys.readouterr().err.startswith(f"gsocks: {said}")


def test_the_token_of_a_config_serves_for_an_admin_that_is_named(
    desk: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token_in(tmp_path)
    path = tmp_path / "c.yaml"
    path.write_text("admin: {listen: 127.0.0.1:9}\nlocal: {listen: 127.0.0.1:0}\n")
    where = ("-c", str(path), "--admin", f"http://{desk.server.bound}")
    assert main(["ctl", "exits", *where]) == 0
    assert "paris" in capsys.readouterr().out


# --- a config that is being edited ----------------------------------------------------------------

EDITED = {
    "another key": "admin: {{listen: {admin}}}\nlocal: {{listen: {local}, rulez: [allow all]}}\n",
    "no YAML": "admin:\n  # of ours\n  listen: {admin}\nlocal:\n  listen: [{local}\n",
    "without the rest": "admin: {{listen: {admin}}}\n",
}


@pytest.fixture(params=EDITED)
def edited(request: pytest.FixtureRequest, desk: Desk, tmp_path: Path) -> Path:
    token_in(tmp_path)
    path = tmp_path / "c.yaml"
    text = EDITED[request.param].format(admin=desk.server.bound, local=desk.inbound.bound)
    path.write_text(text)
    return path


def test_a_mistake_elsewhere_in_the_config_does_not_keep_ctl_from_asking(
    edited: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ctl", "exits", "-c", str(edited)]) == 0
    out, err = capsys.readouterr()
    assert "berlin-1" in out
    assert err.startswith(f"gsocks: {edited}: ")
    assert err.endswith(" (only the admin's section was read)\n")
    assert err.count("\n") == 1


def test_a_mistake_elsewhere_in_the_config_does_not_make_health_fail(
    edited: Path, desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["health", "-c", str(edited)]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith(" (only where its sections listen was read)\n")
    desk.server.stop(0)
    assert main(["health", "-c", str(edited)]) == 1
    assert capsys.readouterr().out == f"admin: {desk.server.bound}: Connection refused\n"


def test_a_mistake_in_what_is_needed_is_the_one_that_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("local: {listen: 1080, rulez: 1}\nadmin: {listen: 127.0.0.1:99999}\n")
    assert main(["ctl", "exits", "-c", str(path)]) == MISTAKE
    said = "admin.listen: port 99999 is not between 0 and 65535"
    assert capsys.readouterr().err == f"gsocks: {path}: {said}\n"


def test_an_admin_that_is_not_there_is_told_without_numbers(
    ctl: Callable[..., int], desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.server.stop(0)
    assert ctl("exits") == 1
    assert capsys.readouterr().err == (
        f"gsocks: http://{desk.server.bound}: Connection refused"
        " (nothing listens there: is gsocks running?)\n"
    )
