"""Writing a file whole or not at all, and the errors of a disk in words."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from vitscale.errors import MISSING, VitscaleError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class HashedFile:
    """A binary file under a temporary name that takes its real one in `commit`; it counts and hashes what it writes.

    Closing without `commit` removes it: what was interrupted cannot be mistaken for what is whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Two hosts, or containers, may have processes of the same number.
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}{secrets.randbelow(10**6):06}.partial")
        self.sha256 = hashlib.sha256()
        self.bytes = 0
        self._file: IO[bytes] | None = self.temporary.open("wb")

    def write(self, data: bytes) -> int:
        if self._file is None:  # a tar stream that was given up flushes its buffer when it is collected
            return len(data)
        self._file.write(data)
        self.sha256.update(data)
        self.bytes += len(data)
        return len(data)

    def commit(self) -> None:
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        self.temporary.replace(self.path)
        sync(self.path.parent)

    def commit_first(self) -> bool:
        """As `commit`, where there is no file of that name yet; False, and nothing is changed, where there is."""
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        try:
            os.link(self.temporary, self.path)
        except FileExistsError:
            return False
        self.close()
        sync(self.path.parent)
        return True

    def close(self) -> None:
        if self._file is None:
            return
        # Closing flushes, and a full disk refuses that too; the file goes away all the same.
        with contextlib.suppress(OSError):
            self._file.close()
        self._file = None
        self.temporary.unlink(missing_ok=True)

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def sync(path: Path) -> None:
    """Makes a file's bytes, or a rename inside a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def text_of(path: Path) -> str:
    """A file in UTF-8, without the mark that some editors put before it.

    Raises:
        UnicodeDecodeError, OSError: as `Path.read_text`.
    """
    return path.read_text("utf-8-sig")


def write_whole(path: Path, data: bytes) -> None:
    """The file at `path` is the old one or the new one at every moment."""
    with HashedFile(path) as file:
        file.write(data)
        file.commit()


def write_first(path: Path, data: bytes) -> bool:
    """As `write_whole` by the first of several that want to; False where there is such a file already."""
    with HashedFile(path) as file:
        file.write(data)
        return file.commit_first()


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Holds the lock file at `path`, which is gone afterwards; False where another process holds it, unless we `wait`.

    The kernel lets go of it when the process dies, however it dies.
    """
    with contextlib.ExitStack() as stack:
        held = False
        while not held:
            file = stack.enter_context(path.open("a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                break
            # Who held it before may have removed the file between our opening and locking it.
            with contextlib.suppress(FileNotFoundError):
                held = os.path.samestat(os.fstat(file.fileno()), path.stat())
        if held:
            stack.callback(path.unlink, missing_ok=True)
        yield held


def is_full(error: Exception) -> bool:
    """Whether a disk has no space left, or a person no quota; safetensors tells the number in its text alone."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(f"(os error {number})" in str(error) for number in FULL)


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns what a full, read-only or forbidden disk says into a `VitscaleError` that names the folder."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            hint = "free some space and run the same command again: what is whole is kept"
            raise VitscaleError(f"{folder}: no space left to write to", hint=hint, exit_code=MISSING) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST) and (file := _file_in(folder)):
            what = "a file" if file.exists() else "a link to nothing"
            hint = "move it away, or name another folder"
            raise VitscaleError(f"{file} is {what}, where a folder is needed", hint=hint, exit_code=MISSING) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            hint = "choose a folder that you may write to"
            raise VitscaleError(f"{folder}: {error.strerror}", hint=hint, exit_code=MISSING) from error
        if error.errno == errno.ENOENT:  # /proc says so to whoever makes a folder there
            hint = "it is gone, or cannot be made there: choose a folder that you may write to"
            where = error.filename or folder
            raise VitscaleError(f"{where}: {error.strerror}", hint=hint, exit_code=MISSING) from error
        raise


def _file_in(folder: Path) -> Path | None:
    """What is no folder of a folder and those that it is in."""
    return next((place for place in (folder, *folder.parents) if os.path.lexists(place) and not place.is_dir()), None)


def wait_for_shared(path: Path, seconds: float) -> None:
    """Until a file that another host writes is seen on this one.

    Raises:
        VitscaleError: it is not, for so long (exit 5).
    """
    end = time.monotonic() + seconds
    while not path.is_file():
        if time.monotonic() > end:
            raise VitscaleError(
                f"{path.absolute()} is not there on {socket.gethostname()}",
                hint="all hosts need the same working folder, and --runs on a file system that they share",
                exit_code=MISSING,
            )
        time.sleep(0.2)
