"""The file that a key lives in."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gsocks.crypto import Key
from gsocks.errors import ConfigError
from gsocks.keyfile import create_key, read_key


def test_a_key_that_is_made_is_kept_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "new.key"
    key = create_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_key(path) == key


def test_a_key_that_a_windows_editor_has_saved_is_read(tmp_path: Path) -> None:
    key = Key.generate()
    (tmp_path / "k").write_bytes(b"\xef\xbb\xbf" + key.text().encode() + b"\r\n")
    (tmp_path / "k").chmod(0o600)
    assert read_key(tmp_path / "k") == key


@pytest.mark.parametrize("codec", ["utf-16", "utf-8-sig"])
def test_a_key_that_a_windows_shell_has_redirected_is_read(tmp_path: Path, codec: str) -> None:
    key = Key.generate()
    (tmp_path / "k").write_bytes(f"{key.text()}\r\n".encode(codec))
    (tmp_path / "k").chmod(0o600)
    assert read_key(tmp_path / "k") == key


def test_a_key_that_others_may_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "open.key"
    text = Key.generate().text()
    path.write_text(text)
    path.chmod(0o622)
    with pytest.raises(ConfigError) as caught:
        read_key(path)
    assert str(caught.value) == (
        f"{path}: can be written by others than its owner (chmod go-w mends it)"
    )


def test_the_key_of_a_faster_process_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new.key"
    assert create_key(path) == create_key(path)


def test_a_key_that_others_can_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "open.key"
    text = Key.generate().text()
    path.write_text(text)
    path.chmod(0o644)
    read_key(path)
    assert "can be read by others" in caplog.text
    assert text not in caplog.text


@pytest.mark.parametrize(
    "content", [b"", b"not base64 !", b"c2hvcnQ", b"\xff" * 44, b"\xff\xfea", b"A" * 2000]
)
def test_what_is_no_key_is_refused_by_the_files_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.key"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.key") as caught:
        read_key(path)
    assert not content or content.decode("latin-1") not in str(caught.value)


def test_a_missing_key_is_named_and_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.key: no such file .*gsocks keygen"):
        read_key(tmp_path / "no.key")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be kept there"):
        create_key(tmp_path / "no" / "where.key")
