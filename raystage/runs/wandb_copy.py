"""Copies what W&B writes offline to a store, for a run whose own folder goes with its Ray job or its pod."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from pathlib import Path

from raystage.errors import StorageError
from raystage.files.filesystem import Folder
from raystage.files.retry import brief
from raystage.timers import RepeatingTimer

COPY_SECONDS = 60.0

_logger = logging.getLogger(__name__)


class WandbCopy:
    """A temporary folder for W&B, which is copied to the folder `target` now and then, and at the end.

    A file is written as a whole, and only if it has changed. If the store refuses, it is tried again; no run fails
    because of it.
    """

    def __init__(self, target: Folder, seconds: float = COPY_SECONDS) -> None:
        self.folder = tempfile.mkdtemp(prefix="raystage-wandb-")
        self._target = target
        self._copied: dict[Path, tuple[int, int]] = {}
        self._timer = RepeatingTimer("raystage-wandb-copy", seconds, brief(self._try_to_copy))

    def copy(self) -> None:
        """Raises StorageError."""
        root = Path(self.folder) / "wandb"
        for path in sorted(root.glob("offline-run-*/**/*")):
            with contextlib.suppress(FileNotFoundError):  # W&B has removed it meanwhile
                found = path.stat()
                state = (found.st_size, found.st_mtime_ns)
                if path.is_symlink() or not path.is_file() or self._copied.get(path) == state:
                    continue
                folder = self._target / path.parent.relative_to(root).as_posix()
                folder.write_whole(path.name, path.read_bytes())
                self._copied[path] = state

    def _try_to_copy(self) -> None:
        with contextlib.suppress(StorageError):
            self.copy()

    def end(self) -> None:
        """Copy what is left, once W&B has ended. What cannot be copied stays, and the log says where."""
        self._timer.stop()
        try:
            self.copy()
        except StorageError as error:
            _logger.warning("what W&B wrote stays in %s/wandb: %s", self.folder, error)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
