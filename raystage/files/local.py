"""What a store needs of a local file system beyond pyarrow: files that last, files written once, symbolic links seen.

Everything here raises OSError.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import stat
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

_SYNC_FILE_RANGE_WRITE = 2  # of <fcntl.h>: start to write dirty pages, without waiting
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

# Errors of file systems without hard links.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EINVAL}


def user_cache(name: str) -> Path:
    """The folder in which raystage keeps something of this kind for the user, on this machine."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "raystage" / name


def fsync(path: str) -> None:
    """Write a file, or the entries of a folder, through to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def begin_writeback(path: str) -> None:
    """Let the disk start to write new data of a file, without waiting for it. Linux only; elsewhere nothing."""
    if _sync_file_range is not None:
        with contextlib.suppress(OSError):
            file = os.open(path, os.O_RDONLY)
            _sync_file_range(file, 0, 0, _SYNC_FILE_RANGE_WRITE)
            os.close(file)


def make_folders(path: str) -> None:
    """Create a folder and missing folders above it. The entry of each new folder is synced: with a folder that is lost,
    a synced file in it is lost, too."""
    missing = []
    at = path
    while not os.path.isdir(at):
        missing.append(at)
        at = os.path.dirname(at)
    os.makedirs(path, exist_ok=True)
    for made in reversed(missing):
        fsync(os.path.dirname(made))


def write_in_place(path: str, content: bytes) -> None:
    """Write a file so that readers see all of it or nothing, and so that it lasts."""
    with _beside(path, content) as temporary:
        os.replace(temporary, path)
    fsync(os.path.dirname(path))


def write_new(path: str, content: bytes) -> bool:
    """The same if there is no such file yet; False where there is. Of several processes one gets True.

    A file system without hard links (some network ones) cannot guarantee that; there the last one wins.
    """
    with _beside(path, content) as temporary:
        try:
            os.link(temporary, path)
            os.unlink(temporary)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(path):
                return False
            os.replace(temporary, path)
    fsync(os.path.dirname(path))
    return True


def is_special(path: str) -> bool:
    """Whether it is something whose content cannot be read like a file's: a device, a pipe, a socket."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def entries(folder: str) -> list[os.DirEntry[str]]:
    """The entries directly in a folder; empty where there is none. Names that are not valid text are left out: nothing
    here writes them, and nothing could open them."""
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if _is_text(entry.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one. A link that leads to itself is none."""
    with LEADS_NOWHERE:
        return entry.is_dir()
    return False


class _LeadsNowhere:
    """Passes over what has been removed meanwhile, and over links that lead to themselves. Every other error counts."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _place: object) -> bool:
        return isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ELOOP)


LEADS_NOWHERE = _LeadsNowhere()  # one for all: a walk enters it for each file


def walk(folder: str, follow_links: bool = True) -> Iterator[os.DirEntry[str]]:
    """Everything in a folder and below, each entry once.

    Links to folders are followed unless told not to, but none to a folder that holds the one where the walk began: a
    link to / would lead to every file of the machine.
    """
    # The real paths of the folder where the walk began and of those that links have led to. All below them is walked on
    # the way there.
    start = os.path.realpath(folder)
    roots = {start}
    folders, unless_it_fails = [(folder, False)], contextlib.suppress(OSError)
    while folders:
        at, is_linked = folders.pop()
        for entry in entries(at):
            yield entry
            with unless_it_fails:
                if entry.is_dir(follow_symlinks=follow_links) and _is_new(entry, start, roots, is_linked):
                    folders.append((entry.path, is_linked or entry.is_symlink()))


def _is_new(folder: os.DirEntry[str], start: str, roots: set[str], is_linked: bool) -> bool:
    """Whether a folder has to be walked. is_linked: whether a link leads to where it lies, which may hold one of the
    roots. One that a link leads to becomes one of them."""
    is_link = folder.is_symlink()
    if not is_link and not is_linked:  # only else is its real path asked for, which takes long
        return True
    real = os.path.realpath(folder.path)
    if real in roots or (is_link and (_is_below(real, roots) or _is_below(start, {real}))):
        return False
    if is_link:
        roots.add(real)
    return True


def _is_below(path: str, roots: set[str]) -> bool:
    """Whether a folder is one of the roots, or below one."""
    while path not in roots:
        above = os.path.dirname(path)
        if above == path:
            return False
        path = above
    return True


def first_link(root: str, path: str) -> str | None:
    """The first symbolic link on the path from `root` (which may itself be one) down to `path`."""
    at = root
    for part in os.path.relpath(path, root).split(os.sep):
        at = os.path.join(at, part)
        if os.path.islink(at):
            return at
    return None


def remove_folder(path: str) -> None:
    """Remove a folder and everything in it, links without their targets; nothing where there is none."""
    if os.path.islink(path):
        os.unlink(path)
    elif os.path.isdir(path):
        shutil.rmtree(path, onerror=_unless_gone)  # another process may remove the same folder


def _unless_gone(action: object, path: str, found: tuple[type, BaseException, object]) -> None:
    if not isinstance(found[1], FileNotFoundError):
        raise found[1]


@contextlib.contextmanager
def _beside(path: str, content: bytes) -> Iterator[str]:
    """A new file with that content in the same folder, on disk; removed again unless it was renamed."""
    temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
