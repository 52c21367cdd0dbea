"""Files that people and other processes write too: secrets, and files that are read again."""

from __future__ import annotations

import codecs
import contextlib
import errno
import grp
import logging
import os
import pwd
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias

log = logging.getLogger("gsocks.files")

#: what differs when a file has changed; None: it is missing or may not be looked at
FileState: TypeAlias = tuple[int, ...] | None

#: the modes that were warned of
_reported: dict[Path, int] = {}


def state_of(file: Path | int) -> FileState:
    """The state of the file with that path or descriptor."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    # the inode and ctime too: a file moved into its place may be as old and as long
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size


def open_guarded(path: Path) -> BinaryIO:
    """Open a file that decides who may come in, for reading.

    Raises PermissionError if others than its owner may write it: what they wrote would count as the
    owner's word.  As for sshd, a group that is its owner's own is not others.  A folder in which
    all users may put another file into its place is warned of.  Raises OSError.
    """
    file = path.open("rb")
    try:
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode):  # a pipe or a device has no other content in its place
            if _others_may_write(status):
                raise PermissionError(
                    errno.EACCES, "can be written by others than its owner (chmod go-w mends it)"
                )
            for folder in {path.absolute().parent, path.resolve().parent}:
                _warn_of_writers(folder)
    except BaseException:
        file.close()
        raise
    return file


def _warn_of_writers(folder: Path) -> None:
    # not refused: Kubernetes' emptyDir, where a config may be written at the start, has mode 0777
    mode = folder.stat().st_mode
    is_open = mode & stat.S_IWOTH and not mode & stat.S_ISVTX
    if _is_news(folder, mode if is_open else None):
        log.warning("all users may replace what is in %s (chmod o-w mends it)", folder)


def _is_news(path: Path, mode: int | None) -> bool:
    """Whether that mode, which is to be warned of, was not reported yet; None is a good one."""
    if mode is None:
        _reported.pop(path, None)
        return False
    if _reported.get(path) == mode:
        return False
    _reported[path] = mode
    return True


def _others_may_write(status: os.stat_result) -> bool:
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and not _is_own_group(status.st_uid, status.st_gid)


def _is_own_group(uid: int, gid: int) -> bool:
    """Whether a group has no member but that user, as each user's has on most systems."""
    try:
        owner, group = pwd.getpwuid(uid), grp.getgrgid(gid)
    except KeyError:
        return False
    is_theirs = owner.pw_gid == gid and group.gr_name == owner.pw_name
    return is_theirs and set(group.gr_mem) <= {owner.pw_name}


def as_utf8(raw: bytes) -> bytes:
    """Text without a byte order mark; UTF-16, which has one, becomes UTF-8.

    Windows' editors write the mark, and what its PowerShell redirects into a file is UTF-16.
    Raises UnicodeDecodeError for invalid UTF-16.
    """
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16").encode("utf-8", "surrogatepass")
    return raw.removeprefix(codecs.BOM_UTF8)


def create_secret(path: Path, text: str) -> bool:
    """Write ``text`` into a new file with mode 0600; False, and nothing, if ``path`` exists.

    Another process finds no file or a whole one, also where the disk is full or the machine loses
    its power.  Raises OSError.
    """
    if os.path.lexists(path):
        return False
    with _written_beside(path, text.encode(), None) as name:
        try:
            os.link(name, path)
        except FileExistsError:  # of a process that was faster
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP):
                raise
            _rename_new(name, path)  # a file system without links, as of USB sticks
    _sync_folder(path.parent)
    return True


def _rename_new(name: str, path: Path) -> None:
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    os.rename(name, path)


def replace_secret(path: Path, content: bytes, like: os.stat_result | None = None) -> None:
    """Write ``content`` into the file ``path`` with mode 0600, in the place of what is there.

    ``like``: whose owner and mode it gets instead.  Another process finds the old content or the
    new one, never a part.  Raises OSError.
    """
    with _written_beside(path, content, like) as name:
        os.replace(name, path)
    _sync_folder(path.parent)


@contextlib.contextmanager
def _written_beside(path: Path, content: bytes, like: os.stat_result | None) -> Iterator[str]:
    """The name of a new file beside ``path``, of mode 0600, that has all of ``content`` on disk."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if like is not None:
                os.fchown(descriptor, like.st_uid, like.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(like.st_mode))
            os.fsync(descriptor)
        yield name
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


def _sync_folder(folder: Path) -> None:
    """Have the name of a new file on disk, where the file system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def warn_of_readers(path: Path, status: os.stat_result, has_secrets: bool) -> None:
    """Log once that ``path``, which has secrets, can be read by others, as its status says."""
    if _is_news(path, status.st_mode if has_secrets and _others_may_read(status) else None):
        log.warning("%s has secrets and can be read by others (chmod 600 mends it)", path)


def _others_may_read(status: os.stat_result) -> bool:
    """Whether others than its owner may.

    A file of another owner, as root, that is for the group of this process alone, as of a service,
    is for no others.
    """
    if status.st_mode & 0o007:
        return True
    uid, gid = os.geteuid(), status.st_gid
    is_given = status.st_uid != uid and gid == os.getegid() and _is_own_group(uid, gid)
    return bool(status.st_mode & 0o070) and not is_given


def read_secret(path: Path, size: int, log: logging.Logger) -> bytes:
    """The first ``size`` bytes of ``path``; a warning in ``log`` if other users may read it.

    A file is warned of once, and again when its mode has changed.  Raises OSError, and
    PermissionError if others may write it.
    """
    with open_guarded(path) as file:
        content = file.read(size)
        status = os.fstat(file.fileno())
    if _is_news(path, status.st_mode if _others_may_read(status) else None):
        log.warning("%s can be read by others than its owner (chmod 600 mends it)", path)
    return content
