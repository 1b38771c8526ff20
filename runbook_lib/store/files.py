"""Files and folders of this machine: written whole and durably, locked, with modes that the umask does not change."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import get_native_id

#: Errors of file systems without hard links, and of those that cannot fsync a folder.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
#: Seconds to wait for the holder of a lock: more than one needs, also where a store answers slowly.
LOCK_S = 120.0


def open_locked(path: Path, flags: int) -> int:
    """Open and lock a path that its holder may remove; return the descriptor.

    Raises OSError, also if for LOCK_S the lock has had one holder who has written no file: with many writers a waiter
    may be overtaken, since `flock` has no timeout and is tried again and again.
    """
    until, pause, last = 0.0, 0.001, (0, 0)
    while True:
        descriptor, locked = os.open(path, os.O_RDONLY | os.O_NONBLOCK | flags, 0o600), False
        try:
            about = os.fstat(descriptor)
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked = os.fstat(descriptor).st_nlink > 0
        finally:
            if not locked:
                os.close(descriptor)
        if locked:
            return descriptor
        seen = about.st_ino, about.st_mtime_ns
        if seen != last:
            last, until = seen, time.monotonic() + LOCK_S
        elif time.monotonic() > until:
            held = f"{path} has been locked by another process for {LOCK_S:.0f} s"
            raise OSError(errno.ETIMEDOUT, f"{held}: `fuser -v {path}` names it; end it, then run this again")
        time.sleep(pause)
        pause = min(2 * pause, 0.01)


def make_folder(folder: Path, mode: int = 0o700) -> None:
    """Make a folder and its parents with a mode that the umask does not change.

    Below a folder with the setgid bit its group has that folder's permissions, so that two people can write to one
    incident.
    """
    try:
        if not folder.parent.exists():
            make_folder(folder.parent)
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not folder.is_dir():
            raise
    else:
        around = folder.parent.stat().st_mode
        set_mode(folder, mode | (around & (stat.S_ISGID | stat.S_IRWXG) if around & stat.S_ISGID else 0))
        sync_folder(folder.parent)


def file_mode(folder: Path) -> int:
    """Return the mode of a dossier's file: who may read the folder may read the file. Only its owner changes it."""
    return 0o600 | folder.stat().st_mode & 0o044


def set_mode(path: Path | int, mode: int) -> None:
    """Set the mode of a new file or folder, if it differs; some file systems have modes of their own."""
    if stat.S_IMODE(os.stat(path).st_mode) != mode:  # noqa: PTH116 - a descriptor, too
        with suppress(PermissionError):
            os.chmod(path, mode)  # noqa: PTH101


def digest(content: bytes) -> str:
    """Return the SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def read_regular(path: Path, at_most: int | None = None) -> bytes:
    """Return the content of a regular file; a FIFO or a device could block its reader.

    Raises OSError, also if the file has more than `at_most` bytes.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.ENXIO, "it is not a regular file: remove it", str(path))
        if at_most is not None and about.st_size > at_most:
            raise OSError(errno.EFBIG, f"it has more than {at_most:,} bytes", str(path))
        return file.read(-1 if at_most is None else at_most)


def write_whole(path: Path, content: bytes, *, durable: bool = True, mode: int | None = None) -> None:
    """Write a file atomically: a reader sees the old or the new content, never a part.

    If `durable`, the new content survives a power failure when this returns. `mode` is the file's, by default as the
    umask says.
    """
    with _temporary_file(path, content, durable=durable, mode=mode) as draft:
        draft.replace(path)
    if durable:
        sync_folder(path.parent)


def replace_file(path: Path, content: bytes, new_mode: int | None = None) -> None:
    """Write a file that a person named, as `write_whole` does; it keeps its owner, group and mode.

    Of a link, the file to which it leads is replaced; what is no file, such as a pipe, is written to. `new_mode` is the
    mode of a new file. Raises OSError, also if the owner cannot be kept.
    """
    path = path.resolve()
    before = path.stat() if path.exists() else None
    if before and not stat.S_ISREG(before.st_mode):
        path.write_bytes(content)
        return
    mode = stat.S_IMODE(before.st_mode) if before else new_mode
    with _temporary_file(path, content, mode=mode, before=before) as draft:
        draft.replace(path)
    sync_folder(path.parent)


def create_whole(path: Path, content: bytes, mode: int | None = None) -> None:
    """Create a file atomically and durably. Raises OSError; FileExistsError if it exists."""
    with _temporary_file(path, content, mode=mode) as draft:
        try:
            path.hardlink_to(draft)
        except OSError as e:
            if e.errno not in _NO_LINKS:
                raise
            path.open("xb").close()  # if killed here, it leaves an empty file, which is a valid empty log
            draft.replace(path)
    sync_folder(path.parent)


@contextmanager
def _temporary_file(
    path: Path, content: bytes, *, durable: bool = True, mode: int | None = None, before: os.stat_result | None = None
) -> Iterator[Path]:
    """Make a temporary file beside `path` with its future content; it is removed afterwards.

    It gets the owner and group of the file `before` it.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.{get_native_id()}.new")
    draft.unlink(missing_ok=True)  # of a killed process, or planted: a link or a FIFO
    try:
        made = 0o666 if mode is None else 0o600
        with open(draft, "xb", opener=lambda name, flags: os.open(name, flags, made)) as file:
            if before:
                _keep_owner(file.fileno(), before)
            if mode is not None:
                set_mode(file.fileno(), mode)
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _keep_owner(descriptor: int, before: os.stat_result) -> None:
    """Give a file the owner and group of another: who reads that one now must be able to read this one."""
    try:
        os.fchown(descriptor, before.st_uid, before.st_gid)
    except OSError as e:
        raise OSError(e.errno, f"its owner and group cannot be kept ({e.strerror})") from None


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable (fsync), if the file system supports it."""
    with suppress(PermissionError):  # write permission does not imply read permission
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as e:
            if e.errno not in _NO_SYNC:
                raise
        finally:
            os.close(descriptor)
