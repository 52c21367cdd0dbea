"""Users in a file: read at the start, reloaded when it changes, and never a part of it."""

from __future__ import annotations

import errno
import logging
import os
from itertools import count
from pathlib import Path

import gevent
import pytest
from nacl.pwhash import argon2id

from gsocks.access import users_file
from gsocks.access.users_file import FileUsers
from gsocks.errors import ConfigError
from gsocks.files import FileState, state_of

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


# --- contents of a file -------------------------------------------------------------------------


def test_users_of_the_file_log_in_with_their_passwords(file: File) -> None:
    users = FileUsers(file.path)
    assert users.verify("alice", b"secret")
    assert users.verify("bob", b"hidden")
    assert not users.verify("alice", b"hidden")
    assert not users.verify("mallory", b"secret")


def test_comments_empty_lines_and_spaces_around_are_ignored(file: File) -> None:
    file.write("# our users", "", "   ", f"  alice:{SECRET}  ", "  # bob:no longer", "\r")
    users = FileUsers(file.path)
    assert repr(users) == "<FileUsers ['alice'] remembered=[] pending=0>"
    assert users.verify("alice", b"secret")


def test_lines_may_end_as_they_do_on_windows_or_not_at_all(file: File) -> None:
    file.path.write_bytes(f"\ufeffalice:{SECRET}\r\nbob:{HIDDEN}".encode())
    assert repr(FileUsers(file.path)) == "<FileUsers ['alice', 'bob'] remembered=[] pending=0>"


def test_a_name_may_have_any_printable_letters(file: File) -> None:
    file.write(f"Jürgen v. d. Höhe:{SECRET}", f"a#b:{HIDDEN}")
    users = FileUsers(file.path)
    assert users.verify("Jürgen v. d. Höhe", b"secret")
    assert users.verify("a#b", b"hidden")


def test_users_of_the_config_log_in_too(file: File) -> None:
    users = FileUsers(file.path, {"carol": FRESH})
    assert users.verify("carol", b"fresh")
    assert users.verify("alice", b"secret")


def test_a_file_with_only_a_comment_has_no_users(file: File) -> None:
    file.write("# no users, on purpose")
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
        (f"bob:{SECRET}", "line 2: duplicate user 'bob'"),
        (f"carol:{SECRET}", "line 2: user 'carol' is also in the config"),
    ],
)
def test_a_mistake_is_reported_with_its_line_and_without_a_hash(
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
    with pytest.raises(ConfigError, match=r"missing\.txt: No such file or directory"):
        FileUsers(tmp_path / "missing.txt")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        FileUsers(tmp_path)


def test_a_file_without_a_byte_is_a_mistake(file: File) -> None:
    file.write()
    with pytest.raises(ConfigError, match="is empty"):
        FileUsers(file.path)


def test_a_file_has_a_largest_size(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    assert users_file.MAX_FILE == 16 * 1024 * 1024
    monkeypatch.setattr(users_file, "MAX_FILE", 1024)
    file.write("#" * 1023)
    FileUsers(file.path)
    file.write("#" * 1024)
    with pytest.raises(ConfigError, match="larger than 1KiB"):
        FileUsers(file.path)


# --- changes ----------------------------------------------------------------------------------


def test_a_changed_file_is_reloaded_by_the_next_login_a_second_later(
    file: File, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    users = FileUsers(file.path, clock=clock)
    assert users.verify("alice", b"secret")
    file.write(f"alice:{FRESH}")
    clock.now += FileUsers.check_interval
    assert not users.verify("alice", b"secret")
    assert users.verify("alice", b"fresh")
    assert not users.verify("bob", b"hidden")
    assert caplog.messages == [f"reloaded: {file.path}"]


def test_a_name_is_known_after_the_change_before_a_password_is_verified(
    file: File, clock: Clock
) -> None:
    users = FileUsers(file.path, clock=clock)
    file.write(f"carol:{FRESH}")
    assert "alice" in users
    clock.now += FileUsers.check_interval
    assert "carol" in users
    assert "alice" not in users


def test_the_file_is_checked_once_a_second_however_many_users_log_in(
    file: File, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = FileUsers(file.path, clock=clock)
    looks: list[Path] = []

    def look(path: Path) -> FileState:
        looks.append(path)
        return state_of(path)

    monkeypatch.setattr(users_file, "state_of", look)
    for _ in range(10):
        clock.now += 0.35
        users.verify("alice", b"secret")
    assert looks == [file.path] * 3


def test_an_unchanged_file_is_not_reloaded(
    file: File, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    users = FileUsers(file.path, clock=clock)
    for _ in range(3):
        clock.now += 1
        assert users.verify("alice", b"secret")
    assert not caplog.messages


def test_a_file_moved_into_its_place_is_reloaded_though_it_is_as_old_and_as_long(
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
def test_a_mistake_in_the_changed_file_is_logged_once_and_changes_nothing(
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
    assert first.startswith(f"not reloaded, the previous users stay in effect: {file.path}: ")
    assert second == first, "each invalid change is logged"
    file.write(f"alice:{FRESH}")
    clock.now += 1
    assert users.verify("alice", b"fresh")
    assert not users.verify("bob", b"hidden")


def test_a_missing_file_changes_nothing_and_is_reloaded_when_it_is_back(
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
    assert caplog.messages[1:] == [f"reloaded: {file.path}"]
    file.path.rename(away)
    clock.now += 1
    assert users.verify("alice", b"secret")
    assert len(caplog.messages) == 3, "logged again, because it was there in between"


def test_a_file_that_could_not_be_read_for_a_while_is_reloaded_when_it_can(
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


def test_a_large_file_is_read_in_turns_with_everything_else(file: File, clock: Clock) -> None:
    users = FileUsers(file.path, clock=clock)
    file.write(f"alice:{FRESH}", *(f"user{number}:{HIDDEN}" for number in range(20_000)))
    clock.now += 1
    logins = [gevent.spawn(users.verify, "alice", word) for word in (b"secret", b"fresh")]
    turns = 0
    while not all(login.ready() for login in logins):
        gevent.sleep(1e-6)
        turns += 1
    # at once, it would take as many turns as Argon2 does
    assert turns > 20
    assert [login.get() for login in logins] == [False, True]
    assert "user19999" in users


def test_a_file_is_read_to_its_end_though_the_client_that_waits_has_gone(
    file: File, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    users = FileUsers(file.path, clock=clock)
    file.write(f"alice:{FRESH}", *(f"user{number}:{HIDDEN}" for number in range(5_000)))
    clock.now += 1
    login = gevent.spawn(users.verify, "alice", b"fresh")
    gevent.sleep(1e-6)
    login.kill()
    assert not users.verify("alice", b"secret")
    assert caplog.messages == [f"reloaded: {file.path}"]


def test_a_user_who_is_being_removed_does_not_log_in_meanwhile(file: File, clock: Clock) -> None:
    users = FileUsers(file.path, clock=clock)
    assert users.verify("alice", b"secret")
    file.write(*(f"user{number}:{HIDDEN}" for number in range(5_000)))
    clock.now += 1
    logins = [gevent.spawn(users.verify, "alice", b"secret") for _ in range(3)]
    assert [login.get() for login in logins] == [False] * 3


@pytest.mark.parametrize("after", ["alice", f"alice:{FRESH}"])
def test_a_file_that_changes_while_it_is_read_is_read_again(
    file: File, clock: Clock, caplog: pytest.LogCaptureFixture, after: str
) -> None:
    """``after`` is what a writer who has not finished has left: no user is locked out by it."""
    written: list[str] = []

    def a_writer_goes_on() -> None:
        if not written:
            written.append(after)
            file.write(f"alice:{FRESH}", f"bob:{HIDDEN}")

    file.write(after)
    users = FileUsers(file.path, clock=clock, give_way=a_writer_goes_on)
    assert users.names == ["alice", "bob"]
    assert users.verify("bob", b"hidden")


def test_a_file_that_is_written_all_the_time_is_taken_in_the_end(file: File, clock: Clock) -> None:
    readings: list[int] = []

    def a_writer_goes_on() -> None:
        readings.append(1)
        file.write(f"alice:{FRESH}")

    file.write(f"alice:{SECRET}")
    users = FileUsers(file.path, clock=clock, give_way=a_writer_goes_on)
    assert len(readings) == 3
    clock.now += 1
    assert users.verify("alice", b"fresh")


def test_users_that_were_replaced_are_not_undone_by_a_reading_that_began_before(
    file: File, clock: Clock
) -> None:
    users = FileUsers(file.path, {"carol": SECRET}, clock)
    file.write(*(f"user{number}:{HIDDEN}" for number in range(5_000)))
    clock.now += 1
    login = gevent.spawn(users.verify, "carol", b"secret")
    gevent.sleep(1e-6)
    users.replace({"dave": FRESH})
    login.get()
    assert "carol" not in users
    assert users.verify("dave", b"fresh")


# --- who may write it -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o602, 0o666, 0o646])
def test_a_file_that_others_may_write_is_refused(file: File, mode: int) -> None:
    file.path.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        FileUsers(file.path)
    assert str(caught.value) == (
        f"{file.path}: can be written by others than its owner (chmod go-w mends it)"
    )
    file.path.chmod(0o644)
    assert FileUsers(file.path).names == ["alice", "bob"]


def test_users_that_others_have_written_into_the_file_do_not_log_in(
    file: File, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    users = FileUsers(file.path, clock=clock)
    file.path.chmod(0o666)
    file.write(f"mallory:{FRESH}")
    for _ in range(3):
        clock.now += 1
        assert not users.verify("mallory", b"fresh")
        assert users.verify("alice", b"secret")
    assert len(caplog.messages) == 1
    assert "can be written by others" in caplog.messages[0]
    file.path.chmod(0o600)
    clock.now += 1
    assert users.verify("mallory", b"fresh")


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_any_more_holds_nothing_up(
    file: File, clock: Clock, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    users = FileUsers(file.path, clock=clock)
    file.path.unlink()
    if kind == "folder":
        file.path.mkdir()
    else:
        os.mkfifo(file.path, 0o600)
        # it has a writer, who says nothing
        writer = os.open(file.path, os.O_RDWR)
    clock.now += 1
    assert users.verify("alice", b"secret")
    assert len(caplog.messages) == 1
    if kind == "pipe":
        assert caplog.messages[0].endswith("users.txt: is not a file")
        os.close(writer)


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-be", "utf-8-sig"])
def test_a_file_that_windows_has_written_is_read(file: File, codec: str) -> None:
    mark = "\ufeff" if codec == "utf-16-be" else ""
    file.path.write_bytes(f"{mark}# Benützer\r\nJürgen:{SECRET}\r\n".encode(codec))
    assert FileUsers(file.path).verify("Jürgen", b"secret")


def test_a_file_that_is_no_text_is_refused_in_true_words(file: File) -> None:
    file.path.write_bytes(b"\xff\xfea")
    with pytest.raises(ConfigError, match="begins as UTF-16 and is not"):
        FileUsers(file.path)


def test_replaced_users_of_the_config_stand_beside_the_reloaded_file(file: File) -> None:
    clock = Clock()
    users = FileUsers(file.path, {"carol": FRESH}, clock)
    file.write(f"alice:{SECRET}")
    users.replace({"dave": HIDDEN})
    assert repr(users) == "<FileUsers ['alice', 'dave'] remembered=[] pending=0>"
    file.write(f"bob:{SECRET}")
    clock.now += 1
    assert users.verify("dave", b"hidden")
    assert repr(users) == "<FileUsers ['bob', 'dave'] remembered=['dave'] pending=0>"


def test_an_invalid_replacement_changes_nothing(file: File, clock: Clock) -> None:
    users = FileUsers(file.path, {"carol": FRESH}, clock)
    for bad in ({"alice": HIDDEN}, {"dave": "no hash"}):
        with pytest.raises(ConfigError):
            users.replace(bad)
    file.write(f"alice:{SECRET}")
    clock.now += 1
    assert users.verify("carol", b"fresh")
    assert repr(users) == "<FileUsers ['alice', 'carol'] remembered=['carol'] pending=0>"
