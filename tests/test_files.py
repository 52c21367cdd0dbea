"""Secrets are for their owner only, and a changed file has another state."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from gsocks.files import as_utf8, create_secret, open_guarded, read_secret, replace_secret, state_of

log = logging.getLogger("gsocks.test")


def test_a_secret_is_created_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    before = os.umask(0)
    try:
        assert create_secret(path, "first\n")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert not create_secret(path, "second\n")
    assert path.read_text() == "first\n"


def test_a_secret_is_not_created_where_there_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        create_secret(tmp_path / "missing" / "secret", "x")


def test_a_secret_is_read_up_to_a_size(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    create_secret(path, "12345")
    assert read_secret(path, 4, log) == b"1234"
    assert read_secret(path, 6, log) == b"12345"


@pytest.mark.parametrize(("mode", "warnings"), [(0o600, 0), (0o400, 0), (0o640, 1), (0o604, 1)])
def test_a_secret_that_others_may_read_is_warned_of_by_its_path_alone(
    mode: int, warnings: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "secret"
    create_secret(path, "hunter2")
    path.chmod(mode)
    assert read_secret(path, 100, log) == b"hunter2"
    told = f"{path} can be read by others than its owner (chmod 600 mends it)"
    assert caplog.messages == [told] * warnings


def test_a_secret_is_warned_of_once_until_its_mode_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "secret"
    create_secret(path, "hunter2")
    for mode, warnings in ((0o640, 1), (0o640, 1), (0o644, 2), (0o600, 2), (0o644, 3)):
        path.chmod(mode)
        read_secret(path, 100, log)
        assert len(caplog.messages) == warnings


def test_a_state_is_that_of_the_file_by_path_and_by_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("a")
    with path.open("rb") as file:
        assert state_of(path) == state_of(file.fileno()) is not None


def test_a_file_in_its_place_that_is_as_old_and_as_long_has_another_state(tmp_path: Path) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    path.write_text("a")
    before = state_of(path)
    times = path.stat()
    other.write_text("b")
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(path)
    assert state_of(path) != before


def test_a_missing_file_has_no_state(tmp_path: Path) -> None:
    assert state_of(tmp_path / "missing") is None


# --- what decides who may come in -------------------------------------------------------------


class Group(NamedTuple):
    gr_name: str
    gr_mem: list[str]


@pytest.mark.parametrize(
    ("mode", "owner", "group", "refused"),
    [
        (0o600, "alice", Group("alice", []), False),
        (0o644, "alice", Group("staff", ["bob"]), False),
        (0o602, "alice", Group("alice", []), True),
        (0o606, "root", Group("root", []), True),
        # a umask of 002, which is the default where every user has a group of their own
        (0o664, "alice", Group("alice", []), False),
        (0o660, "alice", Group("alice", ["alice"]), False),
        (0o664, "alice", Group("alice", ["bob"]), True),
        (0o664, "alice", Group("staff", []), True),
    ],
)
def test_a_file_that_others_may_write_is_not_opened(
    mode: int,
    owner: str,
    group: Group,
    refused: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    path.chmod(mode)
    gid = path.stat().st_gid
    monkeypatch.setattr("pwd.getpwuid", lambda _: SimpleNamespace(pw_name=owner, pw_gid=gid))
    monkeypatch.setattr("grp.getgrgid", lambda _: group)
    if refused:
        with pytest.raises(PermissionError, match="can be written by others than its owner"):
            open_guarded(path)
    else:
        open_guarded(path).close()


def test_a_group_without_a_name_is_others(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    os.chown(path, -1, 54321)
    path.chmod(0o660)
    with pytest.raises(PermissionError, match="can be written by others"):
        open_guarded(path)


@pytest.mark.parametrize(("mode", "warnings"), [(0o777, 1), (0o1777, 0), (0o775, 0)])
def test_a_folder_in_which_all_may_replace_a_file_is_warned_of_once(
    mode: int, warnings: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_text("x")
    (tmp_path / "link").symlink_to(folder / "file")
    folder.chmod(mode)
    for path in (folder / "file", tmp_path / "link"):
        open_guarded(path).close()
    told = f"all users may replace what is in {folder} (chmod o-w mends it)"
    assert caplog.messages == [told] * warnings


def test_a_pipe_of_a_shell_is_read_as_ever() -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, b"text")
        with open_guarded(Path(f"/dev/fd/{reading}")) as file:
            assert file.read(4) == b"text"
    finally:
        os.close(reading)
        os.close(writing)


def test_a_secret_that_others_may_write_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    create_secret(path, "hunter2")
    path.chmod(0o622)
    with pytest.raises(PermissionError, match="can be written by others"):
        read_secret(path, 100, log)


@pytest.mark.parametrize(
    "raw",
    [
        "é\r\n".encode(),
        b"\xef\xbb\xbf" + "é\r\n".encode(),
        b"\xff\xfe" + "é\r\n".encode("utf-16-le"),
        b"\xfe\xff" + "é\r\n".encode("utf-16-be"),
    ],
)
def test_text_of_windows_is_read_as_utf_8(raw: bytes) -> None:
    assert as_utf8(raw) == "é\r\n".encode()


def test_what_is_no_utf_16_is_refused() -> None:
    with pytest.raises(UnicodeDecodeError):
        as_utf8(b"\xff\xfea")


def test_a_full_disk_leaves_no_part_of_a_secret_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    old = tmp_path / "old"
    old.write_bytes(b"before")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        create_secret(tmp_path / "new", "secret")
    with pytest.raises(OSError, match="No space left"):
        replace_secret(old, b"secret")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert old.read_bytes() == b"before"
