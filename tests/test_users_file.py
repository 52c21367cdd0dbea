"""Users in a file: read at the start, read again when it changes, and never half of it."""

from __future__ import annotations

import errno
import logging
import os
from itertools import count
from pathlib import Path

import pytest
from nacl.pwhash import argon2id

from gsocks import users_file
from gsocks.errors import ConfigError
from gsocks.users_file import FileUsers

pytestmark = pytest.mark.usefixtures("never_hangs")


def cheap(password: bytes) -> str:
    """A real hash at the least that libsodium does, some 20 us."""
    return argon2id.str(password, opslimit=1, memlimit=argon2id.MEMLIMIT_MIN).decode("ascii")


SECRET, HIDDEN, FRESH = cheap(b"secret"), cheap(b"hidden"), cheap(b"fresh")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class File:
    """A users file, whose every change can be seen by its time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seconds = count(1_700_000_000)

    def write(self, *lines: str | bytes) -> None:
        raw = [line if isinstance(line, bytes) else line.encode() for line in lines]
        self.path.write_bytes(b"".join(line + b"\n" for line in raw))
        os.utime(self.path, (0, next(self._seconds)))


@pytest.fixture
def file(tmp_path: Path) -> File:
    file = File(tmp_path / "users.txt")
    file.write(f"alice:{SECRET}", f"bob:{HIDDEN}")
    return file


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gsocks.users")


# --- what a file says -------------------------------------------------------------------------


def test_users_of_the_file_come_in_by_their_passwords(file: File) -> None:
    users = FileUsers(file.path)
    assert users.verify("alice", b"secret")
    assert users.verify("bob", b"hidden")
    assert not users.verify("alice", b"hidden")
    assert not users.verify("mallory", b"secret")


def test_comments_empty_lines_and_spaces_around_say_nothing(file: File) -> None:
    file.write("# who may come in", "", "   ", f"  alice:{SECRET}  ", "  # bob:no longer", "\r")
    users = FileUsers(file.path)
    assert repr(users) == "<FileUsers ['alice']>"
    assert users.verify("alice", b"secret")


def test_lines_may_end_as_they_do_on_windows_or_not_at_all(file: File) -> None:
    file.path.write_bytes(f"alice:{SECRET}\r\nbob:{HIDDEN}".encode())
    assert repr(FileUsers(file.path)) == "<FileUsers ['alice', 'bob']>"


def test_a_name_may_have_any_printable_letters(file: File) -> None:
    file.write(f"Jürgen v. d. Höhe:{SECRET}", f"a#b:{HIDDEN}")
    users = FileUsers(file.path)
    assert users.verify("Jürgen v. d. Höhe", b"secret")
    assert users.verify("a#b", b"hidden")


def test_users_of_the_config_come_in_beside_them(file: File) -> None:
    users = FileUsers(file.path, {"carol": FRESH})
    assert users.verify("carol", b"fresh")
    assert users.verify("alice", b"secret")


def test_a_file_with_nothing_but_a_comment_lets_nobody_in(file: File) -> None:
    file.write("# nobody, on purpose")
    assert not FileUsers(file.path).verify("alice", b"secret")


# --- mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("alice", "line 2: expected name:hash"),
        (f"alice {SECRET}", "line 2: expected name:hash"),
        (f":{SECRET}", "line 2: a name that is empty"),
        (f"{'x' * 256}:{SECRET}", "line 2: a name that is empty, not printable or longer"),
        (f"{'ü' * 128}:{SECRET}", "line 2: a name that is empty, not printable or longer"),
        (f"al\x1bice:{SECRET}", "line 2: a name that is empty, not printable"),
        ("alice:", "line 2: user 'alice': expected an Argon2id hash"),
        ("alice:geheim", "line 2: user 'alice': expected an Argon2id hash"),
        (f"alice:{SECRET}:1000:1000", "line 2: user 'alice': expected an Argon2id hash"),
        (f"alice: {SECRET}", "line 2: user 'alice': expected an Argon2id hash"),
        (SECRET.replace("m=8,", "m=9999999,").join(("alice:", "")), "line 2: user 'alice': the"),
        (b"al\xffice:" + SECRET.encode(), "line 2: not UTF-8"),
        (f"bob:{SECRET}", "line 2: 'bob' stands here twice"),
        (f"carol:{SECRET}", "line 2: 'carol' is among the users of the config already"),
    ],
)
def test_a_mistake_is_told_by_its_line_and_shows_no_hash(
    file: File, line: str | bytes, expected: str
) -> None:
    file.write(f"bob:{HIDDEN}", line)
    with pytest.raises(ConfigError) as caught:
        FileUsers(file.path, {"carol": FRESH})
    message = str(caught.value)
    assert message.startswith(f"{file.path}: {expected}")
    assert "\n" not in message
    assert not any(secret in message for secret in ("geheim", SECRET.rpartition("$")[2]))


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nobody\.txt: No such file or directory"):
        FileUsers(tmp_path / "nobody.txt")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        FileUsers(tmp_path)


def test_a_file_without_a_byte_is_a_mistake(file: File) -> None:
    file.write()
    with pytest.raises(ConfigError, match="is empty"):
        FileUsers(file.path)


def test_a_file_has_a_largest_size(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    assert users_file.LARGEST_FILE == 16 * 1024 * 1024
    monkeypatch.setattr(users_file, "LARGEST_FILE", 1024)
    file.write("#" * 1023)
    FileUsers(file.path)
    file.write("#" * 1024)
    with pytest.raises(ConfigError, match="larger than 1KiB"):
        FileUsers(file.path)


# --- changes ----------------------------------------------------------------------------------


def test_a_change_counts_at_the_next_login_a_second_later(
    file: File, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    users = FileUsers(file.path, clock=clock)
    assert users.verify("alice", b"secret")
    file.write(f"alice:{FRESH}")
    clock.now += FileUsers.LOOK_EVERY
    assert not users.verify("alice", b"secret")
    assert users.verify("alice", b"fresh")
    assert not users.verify("bob", b"hidden")
    assert caplog.messages == [f"read again: {file.path}"]


def test_a_name_is_known_from_the_change_on_before_its_password_is_asked_for(
    file: File, clock: Clock
) -> None:
    users = FileUsers(file.path, clock=clock)
    file.write(f"carol:{FRESH}")
    assert "alice" in users
    clock.now += FileUsers.LOOK_EVERY
    assert "carol" in users
    assert "alice" not in users


def test_the_file_is_looked_at_once_a_second_however_many_log_in(
    file: File, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    stat = os.stat
    monkeypatch.setattr(users_file.os, "stat", lambda path: looks.append(path) or stat(path))
    users = FileUsers(file.path, clock=clock)
    for _ in range(10):
        clock.now += 0.35
        users.verify("alice", b"secret")
    assert len(looks) == 3


def test_a_file_that_has_not_changed_is_not_read(
    file: File, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    users = FileUsers(file.path, clock=clock)
    for _ in range(3):
        clock.now += 1
        assert users.verify("alice", b"secret")
    assert not caplog.messages


def test_another_file_in_its_place_is_seen_though_it_is_as_old_and_as_long(
    file: File, clock: Clock
) -> None:
    users = FileUsers(file.path, clock=clock)
    times = os.stat(file.path)
    other = file.path.with_name("other")
    other.write_text(f"alice:{FRESH}\nbob:{HIDDEN}\n")
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert os.stat(other).st_size == times.st_size
    other.replace(file.path)
    clock.now += 1
    assert users.verify("alice", b"fresh")


@pytest.mark.parametrize("bad", [["alice"], [], [f"carol:{FRESH}"]])
def test_a_mistake_in_the_changed_file_is_told_once_and_changes_nothing(
    file: File, clock: Clock, bad: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    users = FileUsers(file.path, {"carol": SECRET}, clock)
    file.write(*bad)
    for _ in range(3):
        clock.now += 1
        assert users.verify("alice", b"secret")
        assert users.verify("carol", b"secret")
    file.write(*bad)
    clock.now += 1
    assert users.verify("alice", b"secret")
    first, second = caplog.messages
    assert first.startswith(f"not read again, the users of before stay: {file.path}: ")
    assert second == first, "each change that is a mistake is told"
    file.write(f"alice:{FRESH}")
    clock.now += 1
    assert users.verify("alice", b"fresh")
    assert not users.verify("bob", b"hidden")


def test_a_file_that_is_gone_changes_nothing_and_is_read_when_it_comes_back(
    file: File, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    users = FileUsers(file.path, clock=clock)
    away = file.path.rename(file.path.with_name("away"))
    for _ in range(3):
        clock.now += 1
        assert users.verify("alice", b"secret")
    assert len(caplog.messages) == 1
    assert "No such file" in caplog.messages[0]
    away.rename(file.path)
    clock.now += 1
    assert users.verify("alice", b"secret")
    assert caplog.messages[1:] == [f"read again: {file.path}"]
    file.path.rename(away)
    clock.now += 1
    assert users.verify("alice", b"secret")
    assert len(caplog.messages) == 3, "told again, because it is another time"


def test_a_file_that_could_not_be_read_for_a_while_is_read_when_it_can(
    file: File, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    users = FileUsers(file.path, clock=clock)
    file.write(f"alice:{FRESH}")

    def exhausted(path: Path, mode: str) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", exhausted)
        for _ in range(3):
            clock.now += 1
            assert users.verify("alice", b"secret")
    assert len(caplog.messages) == 1
    clock.now += 1
    assert users.verify("alice", b"fresh")


def test_other_users_of_the_config_take_the_place_of_those_before(file: File) -> None:
    clock = Clock()
    users = FileUsers(file.path, {"carol": FRESH}, clock)
    file.write(f"alice:{SECRET}")
    users.replace({"dave": HIDDEN})
    assert repr(users) == "<FileUsers ['alice', 'dave']>"
    file.write(f"bob:{SECRET}")
    clock.now += 1
    assert users.verify("dave", b"hidden")
    assert repr(users) == "<FileUsers ['bob', 'dave']>"


def test_a_replacement_that_cannot_be_leaves_all_as_it_was(file: File, clock: Clock) -> None:
    users = FileUsers(file.path, {"carol": FRESH}, clock)
    for bad in ({"alice": HIDDEN}, {"dave": "no hash"}):
        with pytest.raises(ConfigError):
            users.replace(bad)
    file.write(f"alice:{SECRET}")
    clock.now += 1
    assert users.verify("carol", b"fresh")
    assert repr(users) == "<FileUsers ['alice', 'carol']>"
